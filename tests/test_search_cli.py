"""`jaxexp search`: every sampler into a run directory, killed and resumed, and bad input."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nights import at_night
from test_resume import assert_same_results, has_checkpoint, wait_for

import jaxexp as jx
from jaxexp.cli import main as cli
from jaxexp.cli import pages, prediction, searching, signals
from jaxexp.cli.rundir import RunDirectory
from jaxexp.results import models
from jaxexp.search import PBT, Halving, Hyperband
from jaxexp.spec.values import text

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


@pytest.mark.parametrize(
    "sampler",
    at_night(
        ["random", "sobol", "halving", "hyperband", "pbt"], "sobol", "halving", "hyperband", "pbt"
    ),
)
def test_a_search_is_the_one_of_python(sampler, place, request):
    if sampler != "pbt":
        request.getfixturevalue("no_figures")
    trials = [] if sampler == "hyperband" else ["--trials", "6"]
    options = ["--sampler", sampler, "--seed", "2", "--metric", "accuracy", "--set", "width=4"]
    assert here(*search(*options, *trials, "--out", "out")) == 0
    own, other = results(place / "out"), expected(place, sampler)
    assert own.attrs["ranked_by"] == "accuracy"
    compared = None if sampler in ("random", "sobol") else "accuracy"
    assert other.dataset.attrs.get("ranked_by") == compared
    for name in ("learning_rate", "loss", "accuracy", "epochs_trained", "trial_id"):
        np.testing.assert_array_equal(own[name].values, other[name].values, name)
    assert (own["epochs_trained"] < 3).any() == (sampler in ("halving", "hyperband"))
    assert ("parent" in own) == (sampler == "pbt")
    if sampler == "pbt":
        tells_what_members_had_in_the_end(place, own)


@pytest.mark.nightly
def test_a_search_compares_points_that_differ_in_their_epochs_alone(place, no_figures):
    line = ["--set", "epochs=choice(2,3)", "--trials", "2", "--sampler", "halving", "--out", "out"]
    assert here("search", "mine.py", "--set", "width=4", *line) == 0
    assert results(place / "out")["epochs_trained"].values.min() == 1


def tells_what_members_had_in_the_end(place: Path, own: xr.Dataset) -> None:
    """All that looks at the run, of the best: its rate is another than the one it began with."""
    rates, last = own["learning_rate"].values, own["own_learning_rate"].values[:, -1]
    assert (rates != last).any()
    assert here("export", "out", "--csv", "all.csv") == 0
    assert here("export", "out", "--csv", "final.csv", "--final") == 0
    final, every = pd.read_csv(place / "final.csv"), pd.read_csv(place / "all.csv")
    np.testing.assert_allclose(final["learning_rate"], last)
    np.testing.assert_allclose(final["initial_learning_rate"], rates)
    by_epoch = every[every["split"] == "train"]["learning_rate"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(by_epoch, own["own_learning_rate"].values)
    best = jx.select.best(own, "accuracy")[1]
    rate = text(best["own_learning_rate"].values[-1].item())
    (place / "new.csv").write_text("a,b\n0.1,0.2\n")
    for command, told in (
        (["show", "out"], "final learning rate"),
        (["runs", "."], f"mine, {jx.select.label(best)}: "),
        (["predict", "out", "new.csv"], f"model: mine, final learning rate {rate}, seed "),
    ):
        with redirect_stdout(out := StringIO()), redirect_stderr(out):
            assert here(*command) == 0
        assert told in out.getvalue()


SCALED = """
from dataclasses import dataclass

import jax
import jaxexp as jx
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Scaled(jx.Trial):
    power: float = jx.traced(1.0, above=0)


sweep = jx.Sweep(Scaled(epochs=4, batch_size=8, learning_rate=0.1), {"seed": [0]}, questions=())


def problem(inputs):
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jax.random.normal(rng, (1,))},
        apply=lambda trial, params, x: trial.power * (x @ params["w"]),
        loss=lambda prediction, y: (prediction - y) ** 2,
    )
    x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    return jx.Problem(task, jx.arrays(x, x[:, 0], validation=8))
"""


@pytest.mark.nightly
def test_models_of_a_population_predict_with_what_they_have_in_the_end(place, no_figures, capsys):
    (place / "scaled.py").write_text(SCALED)
    options = ["--trials", "6", "--seed", "2", "--sampler", "pbt"]
    space = ["--set", "power=uniform(0.1,5)"]
    assert here("search", "scaled.py", *space, *options, "--out", "out") == 0
    with xr.open_dataset(place / "out/results/scaled.nc") as own:
        own.load()
    ends = jx.select.in_the_end(own, "power").values
    (place / "new.csv").write_text("a\n1\n")
    slopes = {}
    for name, began, end in zip(own["trial_id"].values, own["power"].values, ends, strict=True):
        model = models.load(place / f"out/models/scaled/{name}.npz")
        assert float(model.about["trial"]["power"]) == pytest.approx(end)
        assert float(model.about["initial"]["power"]) == pytest.approx(began)
        slopes[name] = end * model.arrays["params/w"][0]
    best = jx.select.best(own)[1]
    assert best["power"] != jx.select.in_the_end(best, "power")
    capsys.readouterr()
    assert here("predict", "out", "new.csv") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert float(line.split("\t")[1]) == pytest.approx(slopes[best["trial_id"].item()], rel=1e-4)


def of_seeds(place: Path, sampler: str) -> jx.Results:
    """What the same search in Python ends with, of three seeds from 5 on."""
    code: dict = {}
    exec(SWEEP, code)
    task, data = code["problem"](None)
    space = jx.search.Space(code["sweep"].base.replace(width=4, seed=5), SPACE)
    made, rule = {
        "sobol": lambda: (jx.search.sobol(space, 4, seed=2, seeds=3), None),
        "random": lambda: (jx.search.random(space, 4, seed=2, seeds=3), None),
        "halving": lambda: (jx.search.random(space, 4, seed=2, seeds=3), Halving("accuracy")),
        "hyperband": lambda: (Hyperband(space, "accuracy", seed=2, seeds=3), None),
    }[sampler]()
    return jx.run(made, task, data, progress=False, stopping=rule)


SEEDS = ["--seed", "2", "--seeds", "3", "--metric", "accuracy", "--set", "width=4", "--set=seed=5"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "sampler", at_night(["random", "sobol", "halving", "hyperband"], "random", "sobol", "hyperband")
)
def test_each_point_is_trained_with_several_seeds(sampler, place, capsys):
    trials = [] if sampler == "hyperband" else ["--trials", "4"]
    assert here(*search("--sampler", sampler, *SEEDS, *trials, "--out", "out")) == 0
    assert "3 seeds" in capsys.readouterr().err  # the table is of means
    own, other = results(place / "out"), of_seeds(place, sampler)
    assert own["seed"].values.tolist() == [5, 6, 7]
    for name in ("learning_rate", "loss", "accuracy", "epochs_trained", "trial_id"):
        np.testing.assert_array_equal(own[name].values, other[name].values, name)
    assert own["loss"].dims == ("sample", "seed", "epoch", "split")
    assert jx.seeds.average(own)["accuracy_std"].dims == ("sample", "epoch", "split")
    ended = own["epochs_trained"]
    assert (ended < 3).any() == (sampler in ("halving", "hyperband"))
    assert (ended == ended.isel(seed=0)).all()  # the seeds of a point end together
    assert "each point with 3 seeds" in (place / "out/report.html").read_text()


@pytest.mark.nightly
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


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("then", [pytest.param("save", marks=pytest.mark.nightly), "draw"])
def test_a_budget_that_is_over_when_all_is_trained_ends_nothing(then, place, monkeypatch):
    clock = SimpleNamespace(over=None, start=lambda: None)
    clock.cancel = lambda: setattr(clock, "over", None)

    def timer(seconds, over):
        clock.over = over
        return clock

    owner = {"save": RunDirectory, "draw": pages}[then]
    before = getattr(owner, then)

    def late(*arguments):
        if clock.over:
            clock.over()
        return before(*arguments)

    monkeypatch.setattr(signals, "threading", SimpleNamespace(Timer=timer, Event=threading.Event))
    monkeypatch.setattr(owner, then, late)
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert here(*search("--trials", "2", "--budget", "1h", "--out", "out")) == 0
    assert (place / "out/report.html").exists()
    assert json.loads((place / "out/run.json").read_text())["finished"]


def start(place: Path, *arguments: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jx.__file__).parents[1]),
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),  # the same bits want the same devices
    }
    line = [sys.executable, "-m", "jaxexp", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.nightly
def test_points_of_several_seeds_that_are_killed_end_with_the_same_bits(place):
    size = ["--trials", "3", "--seeds", "2", "--set", "epochs=400"]
    line = search("--sampler", "halving", *size, "--checkpoint-every", "0.1", "--out")
    assert here(*line, "whole") == 0
    process = start(place, *line, "killed")
    wait_for(lambda: has_checkpoint(place / "killed"), process)
    killed(process, signal.SIGKILL)
    assert here("resume", "killed") == 0
    assert_same_results(place / "killed", place / "whole")
    assert results(place / "whole")["seed"].size == 2


@pytest.mark.nightly
@pytest.mark.parametrize("sampler", ["random", "sobol", "halving", "hyperband", "pbt"])
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


STUDY = ["--sampler", "optuna", "--seed", "2", "--metric", "accuracy", "--set", "width=4"]


@pytest.mark.integration
def test_a_study_is_the_one_of_python(place, capsys):
    op = pytest.importorskip("optuna")
    record = 'sweep = __import__("dataclasses").replace(sweep, record=("gradient_norms",))'
    (place / "mine.py").write_text(f"{SWEEP}\n{record}\n")
    assert here(*search(*STUDY, "--trials", "14", "--batch", "11", "--out", "out")) == 0
    code: dict = {}
    exec(SWEEP, code)
    task, data = code["problem"](None)
    sampler = op.samplers.TPESampler(seed=2, constant_liar=True)
    study = op.create_study(direction="maximize", sampler=sampler, pruner=op.pruners.NopPruner())
    other = jx.search.optuna(
        study, jx.search.Space(code["sweep"].base.replace(width=4), SPACE), task, data,
        trials=14, batch=11, metric="accuracy", progress=False,
    )  # fmt: skip
    own = results(place / "out")
    assert own.attrs["ranked_by"] == "accuracy"
    assert own.attrs["sweep"] == "mine"
    assert own["gradient_norm"].sizes["sample"] == 14
    assert other.dataset.attrs["ranked_by"] == "accuracy"
    for name in ("learning_rate", "loss", "accuracy", "epochs_trained", "trial_id"):
        np.testing.assert_array_equal(own[name].values, other[name].values, name)
    kept = study_of(place / "out")
    assert [(t.params, t.value) for t in kept.trials] == [(t.params, t.value) for t in study.trials]
    # The run directory is one like any other.
    models = {path.stem for path in (place / "out/models/mine").glob("*.npz")}
    assert models == set(own["trial_id"].values.tolist())
    assert not (place / "out/checkpoints").exists()
    (place / "new.csv").write_text("a,b\n0.1,0.2\n-1,1\n")
    capsys.readouterr()
    assert here("predict", "out", "new.csv") == 0
    told = capsys.readouterr()
    assert "model: mine, learning rate" in told.err
    classes = [line.split("\t")[1] for line in told.out.splitlines()]
    best = other.best_setting("accuracy")
    x = np.array([[0.1, 0.2], [-1, 1]], np.float32)
    assert classes == [str(label) for label in other.predict(x, best)]
    page = (place / "out/report.html").read_text()
    assert here("report", "out") == 0
    assert (place / "out/report.html").read_text() == page
    assert here("show", "out") == 0
    assert "the best 10 of 14 trials by validation accuracy" in capsys.readouterr().out
    assert here(*search(*STUDY, "--trials", "3", "--out", "out", "--force")) == 0
    assert len(study_of(place / "out").trials) == 3


@pytest.mark.usefixtures("no_figures")
def test_a_study_is_told_the_mean_over_the_seeds(place):
    pytest.importorskip("optuna")
    size = ["--sampler", "optuna", "--trials", "5", "--batch", "3", *SEEDS]
    assert here(*search(*size, "--out", "out")) == 0
    own = results(place / "out")
    assert own["loss"].dims == ("sample", "seed", "epoch", "split")
    assert own["seed"].values.tolist() == [5, 6, 7]
    means = own["accuracy"].sel(split="validation").isel(epoch=-1).mean("seed").values
    told = [trial.value for trial in study_of(place / "out").trials]
    np.testing.assert_allclose(told, means, rtol=1e-6)
    spread = own["accuracy"].sel(split="validation").isel(epoch=-1).std("seed").values
    assert (spread > 0).any()  # or any of the seeds would do
    assert len(list((place / "out/models/mine").glob("*.npz"))) == 15


def study_of(out: Path):
    """The study that a run directory holds."""
    import optuna as op
    from optuna.storages.journal import JournalFileBackend

    storage = op.storages.JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return op.load_study(study_name="mine", storage=storage)


def killed(process: subprocess.Popen, number: signal.Signals) -> str:
    """What a process tells that ends with this signal."""
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == codes[number], told
    return told


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "batch", "seeds", "url"),
    [
        (signal.SIGKILL, 1, 2, "file://{}/kept"),
        *(
            pytest.param(*own, None, marks=pytest.mark.nightly)
            for own in ((signal.SIGKILL, 0, 1), (signal.SIGTERM, 1, 1), (signal.SIGINT, 0, 1))
        ),
    ],
)
def test_a_study_interrupted_and_resumed_ends_with_the_same_bits(number, batch, seeds, url, place):
    pytest.importorskip("optuna")
    # One device: the process that is killed has as many as the machine.
    size = ["--trials", "14", "--batch", "11", "--set", "epochs=400", "--devices", "1"]
    size += ["--seeds", str(seeds)]
    line = search(*STUDY, *size, "--checkpoint-every", "0.1", "--out")
    assert here(*line, "whole") == 0
    at = ["--checkpoints", url.format(place)] if url else []
    process = start(place, *line, "killed", *at)
    folder = place / ("kept" if url else "killed/checkpoints") / f"batch-{batch:04d}"
    wait_for(lambda: any(path.name.isdecimal() for path in folder.glob("*/*")), process)
    told = killed(process, number)
    if number != signal.SIGKILL:
        assert "interrupted; resume with: jaxexp resume killed" in told
        assert "Traceback" not in told
    assert not json.loads((place / "killed/run.json").read_text())["finished"]
    with (place / "killed/study.journal").open("a") as journal:
        journal.write('{"op_code":')  # as one leaves it that is killed while it writes,
    os.symlink(place / "killed/study.journal", place / "killed/study.journal.lock")  # and locks
    assert here("resume", "killed") == 0
    assert_same_results(place / "killed", place / "whole")
    assert not (place / "kept").exists()
    for name in ("killed", "whole"):
        assert len(list((place / name / "models/mine").glob("*.npz"))) == 14 * seeds
    own, other = study_of(place / "killed"), study_of(place / "whole")
    assert [(t.number, t.params, t.value) for t in own.trials] == [
        (t.number, t.params, t.value) for t in other.trials
    ]


@pytest.mark.integration
def test_a_batch_whose_training_has_failed_is_resumed(place, monkeypatch, capsys):
    """Models that cannot be written end the run; nothing of it is lost."""
    pytest.importorskip("optuna")
    from jaxexp.results import models

    line = search(*STUDY, "--trials", "6", "--batch", "3", "--out")
    assert here(*line, "whole") == 0

    def full(*arguments):
        raise jx.UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(models, "save", full)
        assert here(*line, "failed") == 2
    assert "the disk is full" in capsys.readouterr().err
    assert here("resume", "failed") == 0
    assert_same_results(place / "failed", place / "whole")


@pytest.mark.usefixtures("no_figures")
@dataclass(frozen=True, kw_only=True)
class Typed(jx.Trial):
    extra: int | str = "3"
    taken: tuple[str, ...] = ("a",)


def test_trials_of_a_study_are_read_back_as_they_were():
    """Of values that are as in the base, those of its file; of others, as they were typed."""
    space = jx.search.Space(Typed(), {"extra": jx.search.parse("choice(4,off) when momentum=0.5"),
                                      "momentum": [0.0, 0.5]})  # fmt: skip
    source = SimpleNamespace(space=space, sweep=jx.Sweep(Typed()))
    for extra, momentum in (("3", 0.0), (4, 0.5), ("off", 0.5)):
        trial = Typed(extra=extra, momentum=momentum)
        about = {"initial": {name: text(value) for name, value in trial.values().items()}}
        assert prediction._trials(source, SimpleNamespace(about=about)) == [trial]


def test_an_empty_tuple_is_one_value():
    space = searching._space(jx.Sweep(Typed()), {"taken": ["()"], "momentum": ["0,0.5"]})
    assert (space.names, space.base.taken) == (("momentum",), ())


@pytest.mark.nightly
def test_a_study_of_another_task_begins_anew_with_force(place, capsys):
    """What it was told are losses of the old one."""
    pytest.importorskip("optuna")
    line = search("--sampler", "optuna", "--trials", "2", "--set", "epochs=1", "--out", "out")
    assert here(*line) == 0
    made = json.loads((place / "out/run.json").read_text())
    (place / "out/run.json").write_text(json.dumps(made | {"finished": False}))
    scaled = SWEEP.replace('astype("float32")', 'astype("float32") * 9')
    (place / "mine.py").write_text(scaled)
    before = [trial.value for trial in study_of(place / "out").trials]
    assert here("resume", "out") == 2
    capsys.readouterr()
    assert here("resume", "out", "--force") == 0
    told = capsys.readouterr().err
    assert "study.journal: a study of another run (task of mine was " in told
    assert "mine.nc: results of another run (task was " in told
    after = [trial.value for trial in study_of(place / "out").trials]
    assert len(after) == 2
    assert after != before


def test_without_optuna_it_is_said_how_to_install_it(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert here(*search("--sampler", "optuna", "--trials", "3")) == 2
    assert "pip install 'jaxexp[optuna]'" in capsys.readouterr().err.replace("\n", " ")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch 0: expected a whole number, at least 1"),
        (
            ["--seeds", "2", "--set", "seed=integers(0,9)"],
            "--seeds 2: expected without --set seed, which is searched",
        ),
        (["--trials", "0"], "--trials 0: expected 1 to 1,000,000 for --sampler optuna"),
        (["--metric", "acuracy"], "--metric 'acuracy': did you mean accuracy? expected one of"),
        (["--seed", "-1"], "--seed -1: expected a whole number"),
        (["--set", "width=0,8"], "width=0: expected a number at least 1"),
        (["--set", "batch_size=integers(8,500)"], "batch_size=500: larger than the 72 training"),
        (["--set", "momentum=uniform(0,0.9)"], "needs optimizer=sgd"),
        (["--checkpoints", "nowhere://x"], "nowhere://x: cannot be opened"),
    ],
)
def test_bad_input_of_a_study_is_told_before_any_work(arguments, message, place, capsys):
    pytest.importorskip("optuna")
    trials = [] if "--trials" in arguments else ["--trials", "3"]
    assert here(*search("--sampler", "optuna", *trials, *arguments)) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert message in told
    assert "Traceback" not in told
    assert not (place / "runs").exists()


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
        (["--set", RATES, "--trials", "3", "--seeds", "0"], "--seeds 0: expected 1 to 1,000"),
        (["--set", RATES, "--trials", "3", "--seeds", "1001"], "--seeds 1001: expected 1 to 1,000"),
        (
            ["--set", RATES, "--trials", "1000000", "--seeds", "2"],
            "--seeds 2: 1,000,000 points with so many seeds are more than 1,000,000 trials",
        ),
        (
            ["--set", "seed=1,2,3", "--trials", "2", "--seeds", "2"],
            "--seeds 2: expected without --set seed, which is searched",
        ),
        (
            ["--set", RATES, "--trials", "4", "--seeds", "2", "--sampler", "pbt"],
            "--seeds 2: the members of a population have a seed each, and copy one another: "
            "expected none with --sampler pbt; run the search again with another --seed",
        ),
        (
            ["--set", RATES, "--trials", "15", "--seeds", "3", "--sampler", "hyperband"],
            "--trials 15: the brackets of hyperband decide how many: expected 5 for epochs=3",
        ),
        (
            ["--set", RATES, "--trials", "3", "--sampler", "sobl"],
            "--sampler 'sobl': did you mean sobol? expected one of random, sobol, halving",
        ),
        (["--set", RATES, "--trials", "1", "--sampler", "pbt"], "--trials 1: expected 4 to"),
        (
            ["--set", "width=4,8", "--trials", "4", "--sampler", "pbt"],
            "width: a trial cannot change it while it trains",
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
        (
            ["--set", RATES, "--trials", "3", "--batch", "2"],
            "--batch 2: expected with --sampler op",
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
