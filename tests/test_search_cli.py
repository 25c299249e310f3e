"""`jaxexp search`: every sampler into a run directory, killed and resumed, and bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_resume import assert_same_results, has_checkpoint, wait_for

import jaxexp as jx
from jaxexp.cli import main as cli
from jaxexp.search import PBT, Halving, Hyperband

SWEEP = """
import jaxexp as jx
import numpy as np

sweep = jx.Sweep(
    jx.MLPTrial(depth=1, width=8, epochs=3, batch_size=16),
    {"depth": [1, 2]},
    questions=(
        jx.Question(
            row="1", title="Depth", question="How deep?", reference="",
            draw=lambda results: [], answer=lambda results: f"{results.sizes['depth']} depths",
        ),
    ),
)


def problem(inputs):
    x = np.random.default_rng(0).normal(size=(96, 2)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    return jx.Problem(jx.MLPClassification(), jx.arrays(x, y, validation=0.25))
"""
RATES = "learning_rate=loguniform(1e-4,1)"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SWEEP)
    return tmp_path


def here(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


def search(*arguments: str) -> list[str]:
    return ["search", "mine.py", "--set", RATES, *arguments]


def results(out: Path) -> xr.Dataset:
    with xr.open_dataset(out / "results" / "mine.nc") as dataset:
        return dataset.load()


SPACE = {"learning_rate": jx.search.loguniform(1e-4, 1)}


def expected(place: Path, sampler: str) -> jx.Results:
    """What the same search in Python ends with."""
    code: dict = {}
    exec(SWEEP, code)
    task, data = code["problem"](None)
    space = jx.search.Space(code["sweep"].base.replace(width=4), SPACE)
    made, rule = {
        "random": lambda: (jx.search.random(space, 6, seed=2), None),
        "sobol": lambda: (jx.search.sobol(space, 6, seed=2), None),
        "halving": lambda: (jx.search.random(space, 6, seed=2), Halving("accuracy")),
        "hyperband": lambda: (Hyperband(space, "accuracy", seed=2), None),
        "pbt": lambda: (PBT(space, population=6, metric="accuracy", seed=2), None),
    }[sampler]()
    return jx.run(made, task, data, progress=False, stopping=rule)


@pytest.mark.parametrize("sampler", ["random", "sobol", "halving", "hyperband", "pbt"])
def test_a_search_is_the_one_of_python(sampler, place):
    trials = [] if sampler == "hyperband" else ["--trials", "6"]
    options = ["--sampler", sampler, "--seed", "2", "--metric", "accuracy", "--set", "width=4"]
    assert here(*search(*options, *trials, "--out", "out")) == 0
    own, other = results(place / "out"), expected(place, sampler)
    assert own.attrs["ranked_by"] == "accuracy"
    for name in ("learning_rate", "loss", "accuracy", "epochs_trained", "trial_id"):
        np.testing.assert_array_equal(own[name].values, other[name].values, name)
    assert (own["epochs_trained"] < 3).any() == (sampler in ("halving", "hyperband"))
    assert ("parent" in own) == (sampler == "pbt")


@pytest.mark.integration
def test_its_run_directory_is_one_like_any_other(place, capsys):
    line = ["--trials", "3", "--set", "width=4,8", "--set", "depth=2", "--metric", "accuracy"]
    assert here(*search(*line, "--out", "runs/a")) == 0
    told = capsys.readouterr()
    assert "training mine: 3 trials" in told.err or "trained mine: 3 trials" in told.err
    assert "by validation accuracy" in told.err
    page = (place / "runs/a/report.html").read_text()
    assert told.out.strip() == "runs/a/report.html"
    assert "loguniform(1e-4,1)" in page
    assert "How deep?" not in page  # a question about the axes, which are not those of the search

    assert here("report", "runs/a") == 0
    assert (place / "runs/a/report.html").read_text() == page
    assert here("show", "runs/a") == 0
    assert "validation accuracy" in capsys.readouterr().out
    assert here("runs") == 0
    assert "complete" in capsys.readouterr().out
    assert here("export", "runs/a", "--csv", "a.csv", "--final") == 0
    assert len((place / "a.csv").read_text().splitlines()) == 4

    assert here("run", "mine.py", "--set", "epochs=1", "--out", "runs/b") == 0
    capsys.readouterr()
    assert here("compare", "runs/a", "runs/b") == 0
    told = capsys.readouterr().out
    assert "sampler" in told
    assert "random" in told
    assert here(*search("--trials", "3", "--out", "runs/a")) == 2
    assert "already holds a run" in capsys.readouterr().err


def start(place: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(jx.__file__).parents[1])}
    line = [sys.executable, "-m", "jaxexp", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.integration
@pytest.mark.parametrize(
    "sampler",
    [
        "sobol",
        "halving",
        "pbt",
        pytest.param("random", marks=pytest.mark.nightly),
        pytest.param("hyperband", marks=pytest.mark.nightly),
    ],
)
def test_killed_and_resumed_it_ends_with_the_same_bits(sampler, place):
    size = ["--set", "epochs=81"] if sampler == "hyperband" else ["--trials", "5"]
    size += [] if sampler == "hyperband" else ["--set", "epochs=400"]
    line = search("--sampler", sampler, *size, "--seed", "7", "--checkpoint-every", "0.1", "--out")
    assert here(*line, "whole") == 0
    process = start(place, *line, "killed")
    wait_for(lambda: has_checkpoint(place / "killed"), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not json.loads((place / "killed/run.json").read_text())["finished"]
    assert here("resume", "killed") == 0
    assert_same_results(place / "killed", place / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "3"], "--set: nothing is searched: expected a distribution"),
        (["--trials", "3", "--set", "width=8"], "--set: nothing is searched: expected a"),
        (
            ["--trials", "3", "--set", "learning_rate=loguniform(1,0.1)"],
            "--set learning_rate: loguniform(1, 0.1): expected low below high",
        ),
        (
            ["--trials", "3", "--set", "learning_rate=loguniform(0,1)"],
            "--set learning_rate: loguniform(0, 1): expected low above 0",
        ),
        (
            ["--trials", "3", "--set", "learning_rate=normal(0,1)"],
            "--set learning_rate: 'normal(0,1)': normal is unknown; expected uniform(LOW,HIGH)",
        ),
        (["--trials", "3", "--set", "widht=4,8"], "'widht': did you mean width"),
        (["--trials", "3", "--set", "width=0,8"], "width=0: expected a number at least 1"),
        (["--trials", "9", "--set", "width=4,8"], "trials=9: the space has 2 points at most"),
        (["--set", RATES], "--trials: random has to be told how many, at least 1"),
        (["--set", RATES, "--trials", "0"], "--trials 0: expected 1 to 1,000,000"),
        (["--set", RATES, "--trials", "1000001"], "--trials 1000001: expected 1 to 1,000,000"),
        (["--set", RATES, "--trials", "3", "--seed", "-1"], "--seed -1: expected a whole number"),
        (
            ["--set", RATES, "--trials", "3", "--sampler", "sobl"],
            "--sampler 'sobl': did you mean sobol? expected one of random, sobol, halving",
        ),
        (["--set", RATES, "--trials", "1", "--sampler", "pbt"], "--trials 1: expected 4 to"),
        (
            ["--set", "width=4,8", "--trials", "4", "--sampler", "pbt"],
            "width is size: a trial cannot change it while it trains",
        ),
        (
            ["--set", RATES, "--trials", "4", "--sampler", "hyperband"],
            "--trials 4: the brackets of hyperband decide how many: expected 5 for epochs=3",
        ),
        (
            ["--set", RATES, "--trials", "3", "--sampler", "halving", "--metric", "acuracy"],
            "--metric 'acuracy': did you mean accuracy? expected one of loss, accuracy",
        ),
        (
            ["--set", RATES, "--trials", "3", "--metric", "f1"],
            "--metric 'f1': expected one of loss, accuracy",
        ),
        (["--set", "epochs=3,4", "--trials", "2", "--quick"], "--set epochs: expected without"),
    ],
)
def test_bad_input_is_told_before_any_work(arguments, message, place, capsys):
    assert here("search", "mine.py", *arguments) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert message in told
    assert "Traceback" not in told
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py", "nowhere.py: no such sweep file"),
        ("learning_rat", "unknown sweep 'learning_rat': did you mean learning_rate?"),
        ("boosted_trees", "boosted_trees: another library fits its models; nothing is searched"),
        ("reproduce", "reproduce is a command, not a sweep"),
    ],
)
def test_what_cannot_be_searched_is_told(name, message, place, capsys):
    assert here("search", name, "--set", RATES, "--trials", "3") == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
