"""Runs of the command line that are killed, interrupted, moved and edited, and resumed."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock
from test_cli import write_csvs

import jaxexp
from jaxexp.base.errors import InterruptedRunError
from jaxexp.base.locks import held
from jaxexp.cli import library, rundir
from jaxexp.cli import main as cli
from jaxexp.cli.session import Session
from jaxexp.cli.signals import Signals
from jaxexp.execution import claims

pytestmark = pytest.mark.usefixtures("no_figures")

TIMES = {"compile_seconds", "train_seconds", "wall_seconds", "started"}
SWEEP = """
import jaxexp as jx
from jaxexp.reproduce.places import problem

sweep = jx.Sweep(
    base=jx.MLPTrial(epochs=EPOCHS, batch_size=16, depth=2, width=8),
    axes={"learning_rate": [1e-2, 1e-3, 1e-4]},
    record=("predictions", "gradient_norms"),
    questions=(
        jx.Question(
            row="1", title="Any", question="Any?", reference="",
            draw=lambda results: [], answer=lambda results: "Yes.",  # figures take seconds
        ),
    ),
)
"""

# The command line, where no file may grow beyond so many bytes, as on a full disk; -1: any. Of
# several limits, one after another.
LIMITED = """
import resource, runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for largest in LARGEST:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, -1))
    try:
        runpy.run_module("jaxexp", run_name="__main__")
    except SystemExit as ended:
        code = ended.code
raise SystemExit(code)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a sweep file, and a cache of compiled programs."""
    folder = tmp_path_factory.mktemp("place")
    write_csvs(folder / "data", 700)
    (folder / "mine.py").write_text(SWEEP.replace("EPOCHS", "60"))
    return folder


def start(place: Path, *arguments: str, largest_files=(-1,)) -> subprocess.Popen:
    """The command line in a process of its own, whose home and cache are in `place`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jaxexp.__file__).parents[1]),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HOME": str(place / "home"),
    }
    line = [sys.executable, "-c", LIMITED.replace("LARGEST", str(largest_files)), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    told = process.communicate(timeout=300)[1]
    return process.returncode, told


def run_line(out: Path) -> list[str]:
    return ["run", "mine.py", "--data", "data", "--out", str(out), "--checkpoint-every", "0.1"]


@pytest.fixture(scope="module")
def whole(place):
    """The run that nothing happens to."""
    code, told = finish(start(place, *run_line(place / "whole")))
    assert code == 0, told
    return place / "whole"


def assert_same_results(out: Path, expected: Path) -> None:
    """Bit for bit, but for the times."""
    names = sorted(path.name for path in (expected / "results").iterdir())
    assert sorted(path.name for path in (out / "results").iterdir()) == names
    for name in names:
        with (
            xr.open_dataset(out / "results" / name) as own,
            xr.open_dataset(expected / "results" / name) as other,
        ):
            assert own.variables.keys() == other.variables.keys()
            for variable in own.variables.keys() - {"seconds"}:
                assert own[variable].dtype == other[variable].dtype
                assert own[variable].values.tobytes() == other[variable].values.tobytes(), variable
            for attribute in other.attrs.keys() - TIMES:
                assert np.all(own.attrs[attribute] == other.attrs[attribute]), attribute


def wait_for(what, process: subprocess.Popen, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not what() and process.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.002)


SEVERAL = ["--set", "batch_norm=false,true"]  # programs


def has_checkpoint(out: Path) -> bool:
    return any(path.name.isdecimal() for path in out.glob("checkpoints/*/*"))


def resumed(place: Path, out: Path) -> subprocess.Popen:
    if (out / "run.json").is_file():
        return start(place, "resume", str(out))
    return start(place, *run_line(out), *SEVERAL)


@pytest.mark.parametrize(
    "enough",
    [
        pytest.param(2, marks=pytest.mark.integration),
        pytest.param(24, marks=pytest.mark.nightly),
    ],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(enough, place, tmp_path):
    """SIGKILL: while it starts, compiles or trains, and while a checkpoint is written."""
    code, told = finish(start(place, *run_line(tmp_path / "whole"), *SEVERAL))
    assert code == 0, told
    chance, kills, runs, writing = random.Random(1), 0, 0, 0
    while kills < enough:
        out, runs = tmp_path / str(runs), runs + 1
        for _ in range(3):
            process = resumed(place, out)
            if chance.random() < 0.5:
                wait_for(lambda: any(out.glob("checkpoints/*/*orbax-checkpoint-tmp*")), process)  # noqa: B023
            else:
                wait_for(lambda: (out / "run.json").is_file(), process)  # noqa: B023
                time.sleep(chance.uniform(0, 4))
            process.kill()
            code, told = finish(process)
            writing += any(out.glob("checkpoints/*/*orbax-checkpoint-tmp*"))
            assert code in (0, -signal.SIGKILL), told
            kills += code != 0
            if code == 0:
                break
        if code != 0:
            code, told = finish(resumed(place, out))
        assert code == 0, told
        assert_same_results(out, tmp_path / "whole")
        assert not (out / "checkpoints").exists()
    print(f"{kills} kills, {writing} of them within a checkpoint; {runs} of {runs} runs ended")


def test_a_signal_while_it_loads(place, tmp_path):
    out = tmp_path / "run"
    process = start(place, *run_line(out))
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, told = finish(process)
    assert code in (143, -signal.SIGTERM)  # by itself, or before Python has come to our code
    assert "Traceback" not in told
    assert (code < 0) or "interrupted" in told


@pytest.fixture
def exits(monkeypatch):
    """The status with which the process would end; it goes on instead."""
    codes: list[int] = []

    def leave(code):
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", leave)
    return codes


def test_the_first_signal_asks_and_the_second_ends_the_process(exits):
    said, before = [], signal.getsignal(signal.SIGTERM)
    with Signals(lambda: said.append("interrupted")) as signals:
        with pytest.raises(InterruptedRunError), signals.deferred():
            signal.raise_signal(signal.SIGTERM)
        assert not exits
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGINT)
        assert exits == [143]
        assert not said
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_nothing_trains_ends_the_process(number, code, exits):
    said: list[str] = []
    with Signals(lambda: said.append("interrupted")) as signals:
        with signals.deferred():
            pass
        with pytest.raises(SystemExit):
            signal.raise_signal(number)
    assert exits == [code]
    assert said == ["interrupted"]


def test_the_end_of_a_budget_is_a_first_signal_with_a_status_of_its_own(exits):
    said: list[bool] = []
    with Signals(lambda: said.append(signals.over), budget=0.2) as signals:
        with pytest.raises(InterruptedRunError), signals.deferred() as stop:
            assert stop.wait(60)
        with pytest.raises(SystemExit):
            signals.leave()
    assert exits == [124]
    assert said == [True]


def test_a_budget_that_is_not_used_up_ends_nothing(exits):
    with Signals(lambda: None, budget=0.2) as signals:
        pass
    time.sleep(0.3)
    assert not signals.over
    assert not exits


def test_a_signal_before_the_end_of_a_budget_counts(exits):
    with Signals(lambda: None, budget=0.2) as signals:
        with contextlib.suppress(InterruptedRunError), signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        with pytest.raises(SystemExit):
            signals.leave()
    assert exits == [143]


@pytest.mark.parametrize(
    "written", ["2x", "h", "", "-1h", "nans", "0s", "1_0s", "1h30m", "99999999999h"]
)
def test_wrong_budgets_are_refused(written, tmp_path, capsys):
    out = tmp_path / "run"
    told = told_by(capsys, "run", "learning_rate", "--budget", written, "--out", str(out))
    assert "expected a duration as in 90s, 30m or 2h" in told
    assert not out.exists()


@pytest.fixture(scope="module")
def stopped(place):
    """A run directory with checkpoints, and how its process ended."""
    out = place / "an [i] run"  # not to be taken for markup
    process = start(place, *run_line(out))
    wait_for(lambda: has_checkpoint(out), process)
    process.send_signal(signal.SIGINT)
    return out, *finish(process)


@pytest.fixture(scope="module")
def interrupted(stopped):
    assert stopped[1] == 130, stopped[2]
    return stopped[0]


def test_ctrl_c_saves_and_says_how_to_resume(stopped):
    out, code, told = stopped
    assert code == 130
    assert has_checkpoint(out)
    assert f"interrupted; resume with: jaxexp resume '{out}'" in told
    assert "0 of 1 sweep complete and saved" in told
    assert "Traceback" not in told


@pytest.fixture
def copy(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "copy")
    return tmp_path / "copy"


def told_by(capsys, *arguments: str, code: int = 2) -> str:
    """What the command line says, in this process, as it exits with this status."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    told = capsys.readouterr().err.replace("\n", " ")
    assert stopped.value.code == code, told
    assert "Traceback" not in told
    return told


def test_a_directory_in_use_is_told(place, copy, capsys):
    (copy / ".holder").write_text("process 77 on abacus")
    with FileLock(copy / ".lock"):
        told = told_by(capsys, "resume", str(copy))
        assert f"{copy}: in use by process 77 on abacus" in told
        for force in ([], ["--force"]):
            line = ["run", str(place / "mine.py"), "--data", str(place / "data"), "--out"]
            assert "in use by process 77" in told_by(capsys, *line, str(copy), *force)
    assert has_checkpoint(copy)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_that_may_outlive_its_process_is_told_with_what_to_do(tmp_path, monkeypatch):
    """As on a file system without locks, after a crash of another machine."""
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".holder").write_text("process 77 on abacus")
    with FileLock(tmp_path / ".lock"), pytest.raises(jaxexp.UserError, match=r"abacus$"):
        held(tmp_path).__enter__()

    def missing(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", missing)
    (tmp_path / ".lock").touch()
    remedy = f"abacus; if it has ended, delete {tmp_path}/.lock"
    with pytest.raises(jaxexp.UserError, match=re.escape(remedy)):
        held(tmp_path).__enter__()
    (tmp_path / ".lock").unlink()
    with held(tmp_path):
        pass


@pytest.mark.nightly
def test_two_processes_on_one_directory(place, interrupted, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    first = start(place, "resume", str(out), "--checkpoint-every", "0.1")
    wait_for(lambda: (out / ".holder").is_file(), first)
    code, told = finish(start(place, "resume", str(out)))
    assert code == 2
    assert re.search(rf"in use by process {first.pid} on ", told)
    first.kill()
    finish(first)
    with rundir.RunDirectory.reopen(out):  # the lock is gone with its holder
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made["made_with"].update(jax="0.1"), "jax was 0.1, is "),
        (lambda made: made["made_with"].update(code="0" * 16), "code was 0000000000000000, is "),
        (lambda made: made["made_with"].update({"data of mine": "0"}), "data of mine was 0, is"),
        (lambda made: made["settings"].update(learning_rate=["0.5"]), "sweep mine was "),
    ],
)
def test_what_has_changed_is_told_and_needs_force(change, message, copy, capsys):
    made = json.loads((copy / "run.json").read_text())
    change(made)
    (copy / "run.json").write_text(json.dumps(made))
    told = told_by(capsys, "resume", str(copy))
    assert f"{copy}: not the run that was started: {message}" in told
    assert "--force resumes" in told
    assert has_checkpoint(copy)
    assert json.loads((copy / "run.json").read_text()) == made


@pytest.mark.nightly
def test_another_sweep_file_needs_force_and_then_runs_anew(place, copy, tmp_path, capsys):
    """Checkpoints of other trials are left alone."""
    own = tmp_path / "mine.py"
    own.write_text(SWEEP.replace("EPOCHS", "2"))
    made = json.loads((copy / "run.json").read_text()) | {"sweeps": [str(own)]}
    (copy / "run.json").write_text(json.dumps(made))
    told = told_by(capsys, "resume", str(copy))
    assert "sweep mine was" in told
    assert "file of sweep mine was" in told
    code, told = finish(start(place, "resume", str(copy), "--force"))
    assert code == 0, told
    with xr.open_dataset(copy / "results" / "mine.nc") as dataset:
        assert dataset.sizes["epoch"] == 2
    own.unlink()
    assert "mine.py: no such sweep file" in told_by(capsys, "report", str(copy), code=0)


def test_a_complete_run_and_what_is_no_run(whole, tmp_path, capsys):
    assert "this run is complete; `jaxexp report`" in told_by(capsys, "resume", str(whole))
    for path in (tmp_path, tmp_path / "nowhere"):
        assert f"{path}: not a run directory" in told_by(capsys, "resume", str(path))
    assert not list(tmp_path.iterdir())


def test_the_same_command_on_an_unfinished_run_says_how_to_resume(place, interrupted, capsys):
    line = [
        "run", str(place / "mine.py"), "--data", str(place / "data"), "--out", str(interrupted),
        "--checkpoint-every", "0.1",
    ]  # fmt: skip
    assert f"unfinished; `jaxexp resume '{interrupted}'` resumes it" in told_by(capsys, *line)
    assert "already holds a run" in told_by(capsys, *line, "--seed", "5")
    assert has_checkpoint(interrupted)


@pytest.mark.nightly
def test_a_run_moved_and_renamed_is_resumed(place, whole, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "another name")
    code, told = finish(start(place, "resume", str(tmp_path / "another name")))
    assert code == 0, told
    assert_same_results(tmp_path / "another name", whole)


ELSEWHERE = """
import os
import jaxexp as jx
from jaxexp.reproduce.places import problem

sweep = jx.Sweep(jx.MLPTrial(epochs=1, batch_size=64, depth=1, width=4))
"""


def test_checkpoints_kept_elsewhere_are_those_of_one_run(place, tmp_path, capsys, monkeypatch):
    """Neither taken over nor deleted by a run on other data, nor used by two at a time."""
    (tmp_path / "mine.py").write_text(ELSEWHERE)
    write_csvs(tmp_path / "other", 600)
    line = ["run", str(tmp_path / "mine.py"), "--checkpoints", str(tmp_path / "kept"), "--out"]
    own = [str(tmp_path / "own"), "--data", str(place / "data")]
    with monkeypatch.context() as patched:  # as where the first is interrupted
        patched.setattr(claims, "remove", lambda *_: None)
        told_by(capsys, *line, *own, code=0)
    before = sorted((tmp_path / "kept").rglob("*"))
    other = [str(tmp_path / "new"), "--data", str(tmp_path / "other")]
    told = told_by(capsys, *line, *other)
    assert f"{tmp_path / 'kept'}: checkpoints of another run: " in told
    assert "data was " in told
    assert not (tmp_path / "new").exists()
    made = json.loads((tmp_path / "own" / "run.json").read_text())
    made["inputs"]["data"] = other[-1]
    (tmp_path / "own" / "run.json").write_text(json.dumps(made | {"finished": False}))
    kept = tmp_path / "kept" / "identity.json"
    made_by = kept.read_text()
    kept.write_text(made_by.replace('"process": "', '"process": "0'))  # another run's, since
    told = told_by(capsys, "resume", str(tmp_path / "own"), "--force")
    assert f"{tmp_path / 'kept'}: checkpoints of another run: " in told
    assert "delete them, or start this one anew with other --checkpoints" in told
    kept.write_text(made_by)
    with held(tmp_path / "kept"):
        told = told_by(capsys, *line, str(tmp_path / "again"), *own[1:])
        assert f"{tmp_path / 'kept'}: in use by process" in told
    assert sorted((tmp_path / "kept").rglob("*")) == before


def unfinished(place, tmp_path, monkeypatch, capsys):
    """The line of a run that was interrupted as it ended, with its checkpoints elsewhere."""
    (tmp_path / "mine.py").write_text(ELSEWHERE)
    line = ["run", str(tmp_path / "mine.py"), "--data", str(place / "data")]
    line += ["--checkpoints", str(tmp_path / "kept"), "--out", str(tmp_path / "own")]
    with monkeypatch.context() as patched:
        patched.setattr(claims, "remove", lambda *_: None)
        told_by(capsys, *line, code=0)
    made = json.loads((tmp_path / "own" / "run.json").read_text())
    return line, made | {"finished": False}


@pytest.mark.nightly
def test_checkpoints_of_ones_own_elsewhere_start_afresh_with_force(
    place, tmp_path, capsys, monkeypatch
):
    _, made = unfinished(place, tmp_path, monkeypatch, capsys)
    write_csvs(tmp_path / "other", 600)
    made["inputs"]["data"] = str(tmp_path / "other")
    (tmp_path / "own" / "run.json").write_text(json.dumps(made))
    line = ["resume", str(tmp_path / "own")]
    told = told_by(capsys, *line)
    assert f"{tmp_path / 'own'}: not the run that was started: " in told
    assert "; data of mine was " in told
    assert "--force resumes it all the same" in told
    assert (tmp_path / "kept").exists()
    told = told_by(capsys, *line, "--force", code=0)
    assert "mine.nc: results of another run (" in told
    assert not (tmp_path / "kept").exists()


def test_a_run_that_is_replaced_leaves_its_place_for_checkpoints(
    place, tmp_path, capsys, monkeypatch
):
    line, _ = unfinished(place, tmp_path, monkeypatch, capsys)
    [program] = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
    other, kept = [*line, "--seed", "1"], tmp_path / "kept" / "identity.json"
    assert "checkpoints of another run: " in told_by(capsys, *other)
    made_by = kept.read_text()
    kept.write_text(made_by.replace('"process": "', '"process": "0'))  # another run's, since
    assert "checkpoints of another run: " in told_by(capsys, *other, "--force")
    assert program.exists()
    kept.write_text(made_by)
    claim, there = claims.claim, []
    monkeypatch.setattr(claims, "claim", lambda *a: there.append(program.exists()) or claim(*a))
    told_by(capsys, *other, "--force", code=0)
    assert there == [False]
    assert not (tmp_path / "kept").exists()


def test_checkpoints_in_a_run_directory_move_with_it_and_are_missed(
    place, tmp_path, capsys, monkeypatch
):
    def interrupt(self):
        raise jaxexp.UserError("as where it is interrupted")

    (tmp_path / "mine.py").write_text(ELSEWHERE)
    line = ["run", str(tmp_path / "mine.py"), "--data", str(place / "data")]
    out, moved = tmp_path / "own", tmp_path / "moved"
    with monkeypatch.context() as patched:
        patched.setattr(rundir.RunDirectory, "finish", interrupt)
        told_by(capsys, *line, "--checkpoints", str(out / "checkpoints"), "--out", str(out))
    out.rename(moved)
    assert rundir.RunDirectory(moved).command()["checkpoints"] == str(moved / "checkpoints")
    (moved / "checkpoints").rename(tmp_path / "gone")
    told = told_by(capsys, "resume", str(moved))
    assert f"{moved / 'checkpoints'}: the checkpoints of this run are gone; put them back" in told
    assert not (moved / "checkpoints").exists()
    (tmp_path / "gone").rename(moved / "checkpoints")
    told_by(capsys, "resume", str(moved), code=0)
    assert not out.exists()


def test_what_else_differs_from_ones_own_checkpoints_needs_force(
    place, tmp_path, capsys, monkeypatch
):
    """As where a file that the sweep's file imports holds another task."""
    _, made = unfinished(place, tmp_path, monkeypatch, capsys)
    (tmp_path / "own" / "run.json").write_text(json.dumps(made))
    kept = tmp_path / "kept" / "identity.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"task": "0", "gone": "1"}))
    line = ["resume", str(tmp_path / "own")]
    told = told_by(capsys, *line)
    assert "task was 0, is " in told
    assert "--force resumes this one all the same, and its trials start afresh" in told
    told_by(capsys, *line, "--force", code=0)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "kept", ["", "..", "results", "models/mine", "figures", "logs", "run.json", "file://results"]
)
def test_checkpoints_among_the_files_of_the_run_are_refused(kept, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(ELSEWHERE)
    out = tmp_path / "runs" / "own"
    scheme, _, name = kept.rpartition("://")
    place = f"{scheme}://{out / name}" if scheme else str(out / name)
    told = told_by(
        capsys, "run", str(tmp_path / "mine.py"), "--out", str(out), "--checkpoints", place
    )
    assert "--checkpoints /" in told
    assert f"expected a folder outside {out}, or one of its own in it, such as" in told
    assert not out.parent.exists()


def refuse(kept, _):
    raise jaxexp.UserError(f"{kept.location}: no")


def test_a_place_that_cannot_be_used_leaves_no_run_behind(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(ELSEWHERE)
    (tmp_path / "file").touch()
    out = tmp_path / "own"
    line = ["run", str(tmp_path / "mine.py"), "--out", str(out), "--checkpoints"]
    assert "checkpoints cannot be kept here" in told_by(capsys, *line, str(tmp_path / "file/in"))
    with held(tmp_path / "held"):
        assert "in use by process" in told_by(capsys, *line, str(tmp_path / "held"))
    with monkeypatch.context() as patched:  # as behind a URL, where only writing tells
        patched.setattr(claims, "claim", refuse)
        assert "memory://kept: no" in told_by(capsys, *line, "memory://kept")
    assert not out.exists()


def test_a_run_killed_as_it_began_is_begun_again(tmp_path):
    """Nothing is there but what comes before run.json."""
    for name in rundir.LEFTOVERS:
        (tmp_path / name).touch()
    with rundir.RunDirectory.create(tmp_path, {"sweeps": ["epochs"]}, force=False) as run:
        assert run.command()["finished"] is False


LINE = """
import jax.numpy as jnp
import jaxexp as jx
import numpy as np
import optax

task = jx.supervised(
    init=lambda trial, rng, x: {"w": jnp.ones(3)},
    apply=lambda trial, params, x: SCALE * (x @ params["w"]),
    loss=optax.squared_error,
)
sweep = jx.Sweep(jx.Trial(epochs=1, batch_size=8), {"learning_rate": [1e-2, 1e-3]})


def problem(inputs):
    x = np.linspace(-1, 1, 96, dtype="float32").reshape(32, 3)
    return jx.Problem(task, jx.arrays(x, x[:, 0], validation=8))
"""


def write_line(file: Path, scale: float) -> None:
    file.write_text(LINE.replace("SCALE", str(scale)))


def killed_as_it_drew(out: Path) -> None:
    """As a run is left whose results were complete, and its page was not."""
    made = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(made | {"finished": False}))


def losses_of(out: Path, name: str) -> list[float]:
    with xr.open_dataset(out / "results" / f"{name}.nc") as dataset:
        return dataset["loss"].values.ravel().tolist()


def test_results_of_another_task_are_not_taken_for_ones_own(tmp_path, capsys, monkeypatch):
    """Nor are its models: an interrupted run has none that the new task would be put through."""
    file, out = tmp_path / "line.py", tmp_path / "run"
    write_line(file, 1.0)
    told_by(capsys, "run", str(file), "--out", str(out), code=0)
    before = losses_of(out, "line")
    killed_as_it_drew(out)
    told_by(capsys, "resume", str(out), code=0)  # nothing has changed: they are taken over
    assert losses_of(out, "line") == before
    killed_as_it_drew(out)
    write_line(file, 2.0)
    told = told_by(capsys, "resume", str(out))
    assert "file of sweep line was " in told
    assert "; task of line was " in told
    assert losses_of(out, "line") == before
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_run_stage", interrupted_at_once)
        patched.setattr(Signals, "leave", lambda _: sys.exit(130))
        told = told_by(capsys, "resume", str(out), "--force", code=130)
    assert re.search(r"line.nc: results of another run \(task was .*\); the sweep runs again", told)
    (tmp_path / "new.csv").write_text("a,b,c\n0.1,0.2,0.3\n")
    assert "no results to report on" in told_by(
        capsys, "predict", str(out), str(tmp_path / "new.csv")
    )
    assert not (out / "models" / "line").exists()
    told_by(capsys, "resume", str(out), code=0)
    assert losses_of(out, "line") != before
    assert "of what was resumed, since then alone" in (out / "report.html").read_text()
    assert len(list((out / "models" / "line").glob("*.npz"))) == 2


def test_a_run_gone_while_it_trains_is_not_said_to_be_kept(tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "line.py", tmp_path / "run"
    write_line(file, 1.0)
    saved = rundir.RunDirectory.save

    def gone(*arguments):
        out.rename(tmp_path / "moved")  # at once, whatever is being written into it
        saved(*arguments)

    monkeypatch.setattr(rundir.RunDirectory, "save", gone)
    told = told_by(capsys, "run", str(file), "--out", str(out))
    assert f"{out}: deleted or moved while the run was under way: its run.json is gone" in told
    assert "is kept" not in told


def interrupted_at_once(*_):
    raise InterruptedRunError


@pytest.mark.nightly
def test_results_of_a_sweep_beside_others_are_compared_with_its_own_task(
    tmp_path, capsys, monkeypatch
):
    """Of what is planned only later as well; what still fits is kept."""
    first, last, out = tmp_path / "first.py", tmp_path / "last.py", tmp_path / "run"
    write_line(first, 1.0)
    write_line(last, 1.0)
    section = dataclasses.replace(cli.SECTIONS["6"], sweeps=(str(first), str(last)))
    monkeypatch.setitem(cli.SECTIONS, "6", section)
    line = ["reproduce", "--section", "6", "--out", str(out)]
    told_by(capsys, *line, code=0)
    kept = (out / "results" / "first.nc").read_bytes()
    killed_as_it_drew(out)
    last.write_text(LINE.replace("SCALE", "2.0") + GONE)
    told = told_by(capsys, "resume", str(out), "--force", code=3)
    assert "results of last cannot be compared with what would be trained now: on the moon" in told
    write_line(last, 2.0)
    told = told_by(capsys, "resume", str(out), "--force", code=0)
    assert "last.nc: results of another run (task was " in told
    assert "first.nc" not in told
    assert (out / "results" / "first.nc").read_bytes() == kept
    assert losses_of(out, "last") != losses_of(out, "first")


GONE = """
def problem(inputs):
    raise jx.UnavailableError("on the moon")
"""


def test_results_whose_identity_is_unknown_or_another_run_again(place, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    directory, notes = rundir.RunDirectory(tmp_path / "copy"), []
    sweep = library.load(str(place / "mine.py"))
    found = directory.finished(sweep, {"sweep": sweep.id}, notes.append)
    assert found.sizes["learning_rate"] == 3
    assert not notes
    for identity in ({"sweep": "0"}, {"data": "0"}, {"unheard": "of"}):
        directory.save(sweep, found, {"sweep": sweep.id, "data": "1"})
        assert directory.finished(sweep, identity, notes.append) is None
        assert not directory.has_results(sweep)
    assert f"sweep was {sweep.id}, is 0" in notes[0]
    assert "results of another run (data was 1, is 0); the sweep runs again" in notes[1]
    assert "unheard was missing, is of" in notes[2]


@pytest.mark.nightly
@pytest.mark.parametrize("later", ["", "resumed"])
def test_a_full_disk_stops_no_training_but_is_told_of_results(later, place, whole, tmp_path):
    """Also where it was too full to begin, at first."""
    out = tmp_path / "run"
    code, told = finish(start(place, *run_line(out), largest_files=(10, 20_000)))
    assert code == 2, told
    told = told.replace("\n", " ")
    before, warned, told = told.partition("a checkpoint could not be written")
    assert warned
    assert f"error: {out}: cannot write a run here" in before
    assert f"error: {out}: cannot write a run here (File too large); what its checkpoints" in told
    assert f"`jaxexp resume {out}` goes on" in told
    assert "Traceback" not in told
    assert not list((out / "results").iterdir())
    if later:
        code, told = finish(start(place, "resume", str(out)))
        assert code == 0, told
        assert_same_results(out, whole)


@pytest.mark.parametrize("where", ["file/run", "x" * 300])
def test_a_place_that_cannot_be_written(where, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    line = ["run", str(place / "mine.py"), "--data", str(place / "data"), "--out", where]
    assert f"{where}: cannot write a run here" in told_by(capsys, *line)


FAILING = """
import time
from jaxexp.cli import main as cli
from jaxexp.execution import program as compiled
from jaxexp.base.errors import UserError

whole, programs = compiled.compile_program, []

def compile_program(program, *arguments):
    programs.append(program)
    if program is programs[0]:
        time.sleep(0.3)
        raise UserError("no room")
    return whole(program, *arguments)

compiled.compile_program = compile_program
cli.main(["run", "mine.py", "--set", "epochs=1", "--set", "batch_norm=false,true",
          "--data", "data", "--programs", "exact", "--out", OUT])
"""


@pytest.mark.nightly
def test_an_error_in_one_stream_while_another_compiles(place, tmp_path):
    """Python used to crash where it ended meanwhile."""
    environment = {**os.environ, "PYTHONPATH": str(Path(jaxexp.__file__).parents[1])}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    code = FAILING.replace("OUT", repr(str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "error: no room" in done.stderr
    assert "terminate" not in done.stderr


def test_nothing_is_written_elsewhere(place, whole):
    """The whole run had a home, a cache and a current folder of its own."""
    found = {path.relative_to(place).parts[0] for path in place.rglob("*") if path.is_file()}
    assert found <= {"data", "mine.py", "whole", "an [i] run", "cache"}
    assert {path.name for path in (place / "cache").iterdir()} <= {"jaxexp", "matplotlib"}
    left = {path.relative_to(whole).parts[0] for path in whole.rglob("*")}
    assert left == {".lock", "run.json", "results", "models", "report.html"}  # it has no figures
