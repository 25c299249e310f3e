"""The command line as a user meets it: real runs in processes of their own, and bad input."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.cli import library
from jaxexp.cli import main as cli
from jaxexp.cli.command import QUICK_EPOCHS
from jaxexp.reproduce.report import SECTIONS
from jaxexp.reproduce.tables import load_places

ROWS = ["6.1.2.1", "6.1.2.2", "6.1.2.3", "6.1.2.4"] + [f"6.2.1.{i}" for i in range(1, 8)]


def command(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """In a process of its own."""
    line = [sys.executable, "-m", "jaxexp", *arguments]
    environment = {**os.environ, **env}
    return subprocess.run(
        line, capture_output=True, text=True, cwd=cwd, timeout=600, env=environment
    )


def here(*arguments: str) -> int:
    """In this process; returns the exit status."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


def write_csvs(folder: Path, places_per_split: int, countries: int = 5) -> Path:
    """A folder in the report's format, from the embedded places of the largest countries."""
    places = load_places()
    largest = np.argsort(-np.bincount(places.train.y_N))[:countries]
    folder.mkdir()
    for name in ("train", "validation", "test"):
        split = getattr(places, name)
        own = np.isin(split.y_N, largest).nonzero()[0][:places_per_split]
        rows = [f"{i},{split.x_Nx2[i, 0]},{split.x_Nx2[i, 1]},{split.y_N[i]}" for i in own]
        (folder / f"{name}.csv").write_text("\n".join([",long,lat,country", *rows]) + "\n")
    return folder


def reproduce(out: Path, *options: str, **environment: str) -> Path:
    line = ["reproduce", "--section", "6", "--quick", "--seed", "3", "--out", str(out), *options]
    done = command(*line, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out / "report.html")
    assert re.search(r"[0-9]+ trials, .* of [0-9]+ epochs", done.stderr)
    return out


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> Path:
    """`jaxexp reproduce --quick` for real, on some of the places."""
    folder = tmp_path_factory.mktemp("reproduce")
    data = write_csvs(folder / "data", 1030)
    return reproduce(folder / "run", "--data", str(data))


@pytest.mark.nightly
def test_the_embedded_places_are_reproduced(tmp_path):
    out = reproduce(tmp_path / "run", "--seeds", "2")
    test_reproduce_answers_every_row_with_its_figures(out)
    with xr.open_dataset(out / "results" / "depth_width.nc") as dataset:
        assert dataset.attrs["data_fingerprint"] == load_places().fingerprint


@pytest.mark.integration
def test_reproduce_answers_every_row_with_its_figures(reproduced):
    page = (reproduced / "report.html").read_text()
    for row in ROWS:
        assert f">{row}<" in re.sub(r"\s+", "", page), row
        assert list((reproduced / "figures").glob(f"{row}-*.png")), row
    assert page.count("data:image/png;base64,") == len(list((reproduced / "figures").iterdir()))


@pytest.mark.integration
def test_results_open_with_xarray_alone_and_say_how_they_were_made(reproduced):
    with xr.open_dataset(reproduced / "results" / "learning_rate.nc") as dataset:
        assert dataset["loss"].dims == ("learning_rate", "epoch", "split")
        assert dataset.sizes["epoch"] == QUICK_EPOCHS
        assert dataset["learning_rate"].values.tolist() == [1, 1e-2, 1e-3, 1e-5]
        assert json.loads(dataset.attrs["seeds"]) == [3]
        assert dataset.attrs["data"] == str(reproduced.parent / "data")
        assert {"jax", "flax", "device", "started", "wall_seconds", "plan"} <= dataset.attrs.keys()
    stored = {path.stem for path in (reproduced / "results").iterdir()}
    assert stored == set(SECTIONS["6"].sweeps)


@pytest.mark.nightly
@pytest.mark.usefixtures("no_figures")
def test_the_learning_is_real(tmp_path):
    """On the embedded places, better than always naming the largest country, after two epochs."""
    line = ["run", "learning_rate", "--quick", "--set", "learning_rate=0.01"]
    assert here(*line, "--set", "depth=3", "--out", str(tmp_path / "run")) == 0
    with xr.open_dataset(tmp_path / "run" / "results" / "learning_rate.nc") as dataset:
        accuracy = dataset["accuracy"].sel(split="test").isel(epoch=-1)
        assert dataset.attrs["data_fingerprint"] == load_places().fingerprint
    majority = np.bincount(load_places().test.y_N).max() / len(load_places().test.y_N)
    assert float(accuracy.squeeze()) > majority + 0.3


@pytest.mark.integration
def test_the_same_trial_in_two_sweeps_is_one_run(reproduced):
    with (
        xr.open_dataset(reproduced / "results" / "learning_rate.nc") as rates,
        xr.open_dataset(reproduced / "results" / "depth_width.nc") as shapes,
    ):
        point = (shapes["depth"] == 6) & (shapes["width"] == 16)
        np.testing.assert_array_equal(
            rates["loss"].sel(learning_rate=1e-3), shapes["loss"][point.values][0]
        )


@pytest.mark.nightly
@pytest.mark.integration
def test_report_is_drawn_again_from_the_results(reproduced):
    before = (reproduced / "report.html").read_bytes()
    (reproduced / "report.html").unlink()
    assert command("report", str(reproduced)).returncode == 0
    assert (reproduced / "report.html").read_bytes() == before


@pytest.mark.integration
def test_an_output_directory_with_a_run_is_kept(reproduced, capsys):
    before = {path: path.read_bytes() for path in reproduced.rglob("*") if path.is_file()}
    assert here("run", "epochs", "--quick", "--out", str(reproduced)) == 2
    told = capsys.readouterr().err
    assert f"{reproduced}: already holds a run" in told
    assert "--force" in told
    assert before == {path: path.read_bytes() for path in reproduced.rglob("*") if path.is_file()}


def test_run_on_a_csv_folder_with_settings(tmp_path):
    data = write_csvs(tmp_path / "data", 700)
    out = tmp_path / "run"
    line = ["run", "learning_rate", "--data", str(data), "--out", str(out), "--set", "depth=2"]
    line += ["--set", "batch_size=64", "--set", "learning_rate=0.01,1e-3"]
    assert here(*line, "--set", "epochs=3") == 0
    with xr.open_dataset(out / "results" / "learning_rate.nc") as dataset:
        assert dataset["learning_rate"].values.tolist() == [0.01, 0.001]
        assert dataset.sizes["epoch"] == 3
        assert json.loads(dataset.attrs["base"])["batch_size"] == 64
        assert len(json.loads(dataset.attrs["classes"])) == 5
        assert dataset.attrs["data"] == str(data)
    assert "6.1.2.1" in (out / "report.html").read_text()

    assert here(*line, "--set", "epochs=1", "--force") == 0
    with xr.open_dataset(out / "results" / "learning_rate.nc") as dataset:
        assert dataset.sizes["epoch"] == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_file_of_ones_own_with_a_diverging_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_csvs(tmp_path / "data", 300)
    own = tmp_path / "mine.py"
    own.write_text(
        "import jaxexp as jx\n"
        "from jaxexp.reproduce.places import problem\n"
        "base = jx.MLPTrial(epochs=2, batch_size=32, depth=2, optimizer='sgd')\n"
        "sweep = jx.Sweep(base=base, axes={'learning_rate': [1e30, 1e-3]})\n"
    )
    assert here("run", str(own), "--data", str(data), "--out", "out") == 0
    with xr.open_dataset(tmp_path / "out" / "results" / "mine.nc") as dataset:
        assert dataset["diverged_epoch"].values.tolist() == [1, 0]
        assert np.isfinite(dataset["loss"].sel(learning_rate=1e-3)).all()
    assert (
        "learning rate 1e30 diverged in epoch 1" in (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "learning_rat"], "unknown sweep 'learning_rat': did you mean learning_rate?"),
        (["run", "nowhere/mine.py"], "nowhere/mine.py: no such sweep file"),
        (["run", "epochs", "--set", "widht=3"], "'widht': did you mean width"),
        (["run", "epochs", "--set", "width"], "--set 'width': expected KEY=VALUE"),
        (["run", "epochs", "--set", "width="], "--set 'width=': expected KEY=VALUE"),
        (["run", "epochs", "--set", "width=3", "--set", "width=4"], "--set width is given twice"),
        (["run", "epochs", "--set", "width=3.5"], "width='3.5': expected a whole number"),
        (["run", "epochs", "--set", "width=1_6"], "width='1_6': expected a whole number"),
        (["run", "epochs", "--set", "width=0"], "width=0: expected a number at least 1"),
        (["run", "epochs", "--set", "epochs=0"], "epochs=0: expected a number at least 1"),
        (["run", "epochs", "--set", "learning_rate=0"], "learning_rate=0.0: expected a number"),
        (["run", "epochs", "--set", "learning_rate=nan"], "learning_rate='nan': expected a finite"),
        (["run", "epochs", "--set", "learning_rate=fast"], "learning_rate='fast': expected"),
        (["run", "epochs", "--set", "optimizer=lion"], "optimizer='lion': expected one of adam"),
        (["run", "epochs", "--set", "batch_norm=perhaps"], "batch_norm='perhaps': expected on"),
        (["run", "epochs", "--set", "batch_size=1,1"], "has the trial batch_size=1 twice"),
        (["run", "epochs", "--set", "batch_size=77032"], "larger than the 77031 training examples"),
        (["run", "epochs", "--set", "batch_size=999999999"], "batch_size=999999999: larger than"),
        (["run", "batch_size", "--set", "epochs=1,2"], "epochs is zipped with batch_size: give"),
        (["run", "epochs", "--set", "batch_norm=on", "--set", "batch_size=1"], "batch norm needs"),
        (["run", "epochs", "--seed", "-1"], "seed=-1: expected a number at least 0"),
        (["run", "epochs", "--data", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere: not a run directory"),
        (["run", "epochs", "--memory", "1e-5"], "and 10 kB may be used"),
        (["run", "epochs", "--memory", "-1"], "--memory '-1': expected gigabytes, a number"),
        (["run", "epochs", "--memory", "1_0"], "--memory '1_0': expected gigabytes, a number"),
        (["plan", "epochs", "--memory", "much"], "--memory 'much': expected gigabytes, a number"),
        (["run", "epochs", "--programs", "many"], "programs='many': expected one of auto, exact"),
        (["plan", "epochs", "--set", "depht=3"], "'depht': did you mean depth"),
        (["plan", "epochs", "--devices", "8"], "devices=8: expected 1 to 4, the cpu devices of"),
        (["run", "epochs", "--devices", "8"], "devices=8: expected 1 to 4, the cpu devices of"),
        (["reproduce", "--section", "6", "--devices", "8"], "devices=8: expected 1 to 4, the cpu"),
        (["run", "epochs", "--set", "width=64-32-16"], "width=64-32-16: 3 widths for depth=6"),
        (["run", "epochs", "--set", "width=64-32-x"], "width='64-32-x': expected a whole number"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_any_work(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told.replace("\n", " ")
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "expected it to define `sweep`"),
        ("sweep = 1", "expected it to define `sweep`"),
        ("1 / 0", "cannot be run (ZeroDivisionError: division by zero)"),
        ("def", "cannot be run (SyntaxError"),
        ("import jaxexp as jx\nsweep = jx.Sweep(base=jx.MLPTrial(), axes={'depht': [1]})", "depht"),
        (
            "import jaxexp as jx\nsweep = jx.Sweep(base=jx.MLPTrial(), axes={'depth': []})",
            "is empty",
        ),
    ],
)
def test_bad_sweep_files(content, message, capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(path)])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert str(path) in told


def test_an_output_that_is_no_run_is_never_replaced(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in ([], ["--force"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", "epochs", "--out", str(tmp_path), *force])
        assert stopped.value.code == 2
        assert "is not an earlier run" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_output_that_is_a_broken_link_is_told(capsys, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    assert here("run", "epochs", "--out", str(tmp_path / "link")) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'link'}: a link to nowhere, which is not there" in told


NO_SWEEP = '{"format": 3, "sweeps": [], "title": "", "finished": true}'


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 99, "sweeps": ["epochs"]}', NO_SWEEP]
)
def test_a_run_directory_that_cannot_be_read(content, capsys, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path)])
    assert stopped.value.code == 2
    assert "run.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", library.names())
def test_every_sweep_that_ships_is_sound(name):
    sweep = library.load(name)
    trials = sweep.trials()
    assert sweep.name == name
    assert trials == library.load(name).trials()
    assert f"jaxexp run {name}" in library.load_module(name).__doc__
    assert sweep.questions


def test_a_plan_is_shown_and_nothing_is_trained(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for programs, count in (("auto", "2 programs"), ("exact", "4 programs"), ("one", "1 program")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(
                ["plan", "epochs", "--set", "epochs=2", "--set", "width=15,16",
                 "--set", "batch_norm=on,off", "--programs", programs]
            )  # fmt: skip
        assert stopped.value.code == 0
        told = capsys.readouterr().out
        assert f"4 trials in {count} on 4 cpu devices" in told
        assert "of the arithmetic is padding" in told
    assert not list(tmp_path.iterdir())


def test_a_plan_for_fewer_devices_and_widths_of_each_layer(capsys):
    settings = ["--set", "epochs=2", "--set", "depth=3", "--set", "width=16-15-16,16"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", "epochs", "--devices", "2", *settings])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "2 trials in 1 program on 2 cpu devices" in told
    assert "2 × 2 epochs on all devices: depth=3, width 15 to 16; padding " in told


def test_list_and_help_name_everything(capsys):
    for arguments in (["list"], ["--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
    told = capsys.readouterr().out
    for word in [*library.names(), "reproduce", "run", "report", "bench"]:
        assert word in told


@pytest.mark.integration
def test_bench_times_a_resnet_beside_torchvision(monkeypatch, capsys):
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"could not import {name!r}")
    from benchmarks import resnet as bench_vision
    from jaxexp.nn.residual import ResNet

    monkeypatch.setattr(bench_vision, "REPEATS", 1)
    monkeypatch.setattr(bench_vision, "OUTPUTS", 8)
    small = ResNet((), bench_vision.OUTPUTS, "lax")  # the stem alone compiles in a second
    monkeypatch.setattr(bench_vision, "resnet", lambda depth, outputs: small)
    bench_vision.compare_resnet(sizes=(16,), batch=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].strip(",") for line in lines[-3:]] == ["PyTorch", "jaxexp", "jaxexp"]
    assert lines[-3].split()[-1] == "1.00"  # the ratio to itself
    with pytest.raises(UserError, match="batch=0: expected a number at least 1"):
        bench_vision.compare_resnet(batch=0)
