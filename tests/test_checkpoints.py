"""Runs stopped anywhere and resumed against runs left alone, and damaged checkpoints."""

import contextlib
import dataclasses
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rings import WAYS, assert_close, assert_same_bits, execute, force, planned
from test_driver import ALL, BASE

from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.execution import calls, checkpoints, driver
from jaxexp.execution.checkpoints import Checkpoints
from jaxexp.execution.compiling import state_like
from jaxexp.execution.listeners import Silent
from jaxexp.execution.program import RunningProgram
from jaxexp.spec.sweep import Sweep
from jaxexp.training.evaluation import with_evaluation

SWEEPS = {
    "on all devices": ("exact", Sweep(base=BASE, axes={"seed": range(5)}, record=ALL)),
    # Padded, with batch norm, and a trial that is the prefix of another.
    "in one program": (
        "one",
        Sweep(
            base=BASE.replace(batch_norm=True, depth=1),
            axes={"width": [4, 8], "epochs": [1, 3], "batch_size": [32, 64]},
            record=ALL,
        ),
    ),
    "one by one in microbatches": (
        "one",
        Sweep(
            base=BASE.replace(depth=1),
            axes={"width": [4, 8], "epochs": [1, 3], "batch_size": [32, 64]},
            record=ALL,
        ),
    ),
    "in several streams": (
        "exact",
        Sweep(base=BASE.replace(depth=1), axes={"batch_size": [32, 64, 128]}, record=ALL),
    ),
}


@pytest.fixture(scope="module")
def small(problem):
    """Held-out examples in several batches, so that evaluation can be interrupted."""
    task = dataclasses.replace(problem.task, evaluation_batch_size=41)
    return problem._replace(task=task)


@pytest.fixture
def one_step(monkeypatch):
    """Calls of one step, or one batch, each: a run can stop anywhere."""
    monkeypatch.setattr(calls, "CALL_SECONDS", 0)
    monkeypatch.setattr(calls, "FIRST_CALL", 1)


class StopAfter(Silent):
    """Stops a run after so many of its calls."""

    def __init__(self, calls: int):
        self.left, self.stop, self.notes = calls, threading.Event(), []

    def moved(self, program, epochs):
        self.left -= 1
        if self.left <= 0:
            self.stop.set()

    def note(self, text):
        self.notes.append(text)


def made(name, devices, problem):
    mode, sweep = SWEEPS[name]
    with pytest.MonkeyPatch.context() as patch:
        if name in WAYS:
            force(patch, name)
        return planned([sweep], problem, devices, mode)


def resume(made, problem, devices, folder, calls=10**9, notes=None):
    """Train, from the checkpoints in the folder if there are any, for so many calls at most."""
    watch = StopAfter(calls)
    keeper = Checkpoints(folder, (notes if notes is not None else []).append)
    with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
        batches = driver.stream(
            made, *problem, devices, watch, checkpointer=keeper, stop=watch.stop
        )
        return {record.trial: record for records in batches for record in records}
    return None


@pytest.fixture(scope="module")
def expected(small, devices):
    """The records of a sweep by its name, of those that are asked for."""

    class Runs(dict):
        def __missing__(self, name):
            return self.setdefault(name, execute(made(name, devices, small), *small, devices))

    return Runs()


# Each kind of moment, and each kind of program, on every day.
DAILY = {
    ("on all devices", 9), ("on all devices", 44), ("one by one in microbatches", 1),
}  # fmt: skip
STOPS = [
    pytest.param(name, calls, marks=[pytest.mark.nightly] * ((name, calls) not in DAILY))
    for name in SWEEPS
    for calls in (1, 7, 9, 15, 16, 44)
]


@pytest.mark.parametrize(("name", "calls"), STOPS)
def test_a_run_stopped_anywhere_ends_with_the_same_bits(
    name, calls, small, devices, expected, tmp_path, one_step
):
    """7 steps, then 8 batches evaluated, in each of 3 epochs: so many calls as `calls`."""
    own = made(name, devices, small)
    assert resume(own, small, devices, tmp_path, calls) is None
    notes: list[str] = []
    records = resume(own, small, devices, tmp_path, notes=notes)
    assert not notes
    assert records.keys() == expected[name].keys()
    for trial, record in records.items():
        assert_same_bits(record, expected[name][trial])


@pytest.mark.nightly
def test_a_run_stopped_again_and_again(small, devices, expected, tmp_path, one_step):
    own, stops = made("in several streams", devices, small), 0
    while (records := resume(own, small, devices, tmp_path, 20)) is None:
        stops += 1
    assert stops >= 3
    for trial, record in records.items():
        assert_same_bits(record, expected["in several streams"][trial])


@pytest.mark.parametrize("calls", [20, 25])
def test_what_was_done_is_not_done_again(calls, small, devices, tmp_path, one_step, monkeypatch):
    """Neither a step nor, with 25, a batch that was evaluated."""
    own, called = made("on all devices", devices, small), []
    whole = RunningProgram.call
    monkeypatch.setattr(
        RunningProgram, "call", lambda run, most: called.append(run.epoch) or whole(run, most)
    )
    assert resume(own, small, devices, tmp_path, calls) is None
    done = len(called)
    assert resume(own, small, devices, tmp_path) is not None
    assert len(called) == 3 * (7 + 8)
    assert called[done:] == [1] * (30 - done) + [2] * 15
    assert resume(own, small, devices, tmp_path) is not None  # complete: from its last checkpoint
    assert len(called) == 3 * (7 + 8)


def test_on_another_number_of_devices(small, devices, expected, tmp_path, one_step):
    """The checkpoint of a run on 4 devices goes on on 1: the same but for rounding."""
    own, fewer = (made("on all devices", used, small) for used in (devices, devices[:1]))
    assert resume(own, small, devices, tmp_path, 20) is None
    records = resume(fewer, small, devices[:1], tmp_path)
    for trial, record in records.items():
        assert_close(record, expected["on all devices"][trial])


def test_a_stop_while_another_stream_compiles(small, devices, expected, tmp_path, monkeypatch):
    """It is not waited for, and has nothing to leave; one that trains leaves a checkpoint."""
    own, compiles, whole = (
        made("in several streams", devices, small),
        threading.Event(),
        RunningProgram.start,
    )

    def start(run, snapshot=None):
        if run.program is not own.programs[0] and run.program.trials == own.programs[0].trials:
            assert compiles.wait(60)
        whole(run, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(RunningProgram, "start", start)
        assert resume(own, small, devices, tmp_path, 2) is None
    compiles.set()
    assert not (tmp_path / own.programs[0].id).exists()
    assert any((tmp_path / program.id / "1").exists() for program in own.programs[1:])
    for trial, record in resume(own, small, devices, tmp_path).items():
        assert_same_bits(record, expected["in several streams"][trial])


def out_of_memory(monkeypatch, method: str, at: int, when=lambda run: True):
    """A method of RunningProgram fails from its so many-th call on, as where memory is short."""
    whole, calls = getattr(RunningProgram, method), []

    def fails(run, *arguments):
        calls.append(run.program.chunk)
        if len(calls) >= at and when(run):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 1 TiB")
        return whole(run, *arguments)

    monkeypatch.setattr(RunningProgram, method, fails)
    return calls


@pytest.mark.parametrize(
    ("method", "at"),
    [pytest.param("start", 1, marks=pytest.mark.nightly), ("call", 1), ("call", 20), ("end", 1)],
)
def test_out_of_memory_halves_what_is_trained_at_once(
    method, at, small, devices, expected, one_step, monkeypatch
):
    own, watch = made("on all devices", devices[:1], small), StopAfter(10**9)
    calls = out_of_memory(monkeypatch, method, at, lambda run: run.program.chunk == 5)
    trained: list[int] = []
    whole = RunningProgram.call
    monkeypatch.setattr(
        RunningProgram, "call", lambda run, most: trained.append(0) or whole(run, most)
    )
    [records] = driver.stream(own, *small, devices[:1], watch)
    assert watch.notes == ["a device is out of memory: continuing with 3 trials at a time"]
    assert calls[0] == 5
    assert calls[-1] == 3
    # The state was whole: no step was made twice. One call was begun in vain.
    assert len(trained) == 3 * (7 + 8) + (method == "call")
    for record in records:
        assert_close(record, expected["on all devices"][record.trial])


@pytest.mark.parametrize(("keeps", "again"), [(True, ""), (False, ", from epoch 1 again")])
def test_a_state_that_is_lost_is_taken_from_the_last_snapshot(
    keeps, again, small, devices, expected, one_step, monkeypatch, tmp_path
):
    """The failing call has written over the state already."""
    own, watch = made("on all devices", devices[:1], small), StopAfter(10**9)
    whole, failed = RunningProgram.call, []

    def fails(run, most):
        if len(failed) < 1 and run.epoch == 2:
            failed.append(run)
            jax.tree.map(lambda a: a.delete(), run.state)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(run, most)

    monkeypatch.setattr(RunningProgram, "call", fails)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)  # saved before every call
    keeper = Checkpoints(tmp_path, watch.note, every=0) if keeps else None
    [records] = driver.stream(own, *small, devices[:1], watch, checkpointer=keeper)
    assert watch.notes == [f"a device is out of memory: continuing with 3 trials at a time{again}"]
    for record in records:
        assert_close(record, expected["on all devices"][record.trial])


def test_before_fewer_trials_at_once_compile_what_there_is_is_saved(
    small, devices, one_step, monkeypatch, tmp_path
):
    own, watch = made("on all devices", devices[:1], small), StopAfter(10**9)
    monkeypatch.setattr(watch, "note", lambda text: watch.stop.set())
    out_of_memory(monkeypatch, "call", 20)
    keeper, took = Checkpoints(tmp_path, watch.notes.append), []
    save = keeper.save
    monkeypatch.setattr(keeper, "save", lambda *own: took.append(own[-1]) or save(*own))
    running = driver.stream(own, *small, devices[:1], watch, checkpointer=keeper, stop=watch.stop)
    with contextlib.closing(keeper), pytest.raises(InterruptedRunError):
        list(running)
    snapshot, _ = loaded(tmp_path, own.programs[0], small)
    assert snapshot.chunk == 3
    assert all(seconds > 0 for seconds in took)  # to make each


@pytest.mark.nightly
def test_one_trial_that_does_not_fit_is_told(small, devices, monkeypatch):
    out_of_memory(monkeypatch, "call", 1)
    with pytest.raises(UserError, match="memory does not hold one trial: RESOURCE_EXHAUSTED"):
        execute(made("on all devices", devices, small), *small, devices)


def test_another_error_is_not_mistaken_for_memory(small, devices, monkeypatch):
    def fails(run, most):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(RunningProgram, "call", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        execute(made("on all devices", devices, small), *small, devices)


@pytest.fixture(scope="module")
def stopped(small, devices, tmp_path_factory):
    """The folder of a run stopped twice, which has left two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    own = made("on all devices", devices, small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "CALL_SECONDS", 0)
        patch.setattr(calls, "FIRST_CALL", 1)
        assert resume(own, small, devices, folder, 10) is None
        assert resume(own, small, devices, folder, 10) is None
    assert {path.name for path in (folder / own.programs[0].id).iterdir()} == {"1", "2"}
    return folder


def loaded(folder, program, problem):
    """What is found, and what is told of it."""
    notes: list[str] = []
    with contextlib.closing(Checkpoints(folder, notes.append)) as keeper:
        like = state_like(program, problem.task, with_evaluation(problem.data))
        return keeper.load(program, lambda: like), notes


def same(snapshot, other) -> bool:
    left, right = (jax.tree.flatten(vars(each) | {"ends": 0}) for each in (snapshot, other))
    return left[1] == right[1] and all(map(np.array_equal, left[0], right[0]))


@pytest.fixture(scope="module")
def program(small, devices):
    return made("on all devices", devices, small).programs[0]


@pytest.fixture(scope="module")
def sound(stopped, program, small, tmp_path_factory):
    """The older snapshot and the newer one, each alone in its folder."""
    found = []
    for name in ("1", "2"):
        folder = tmp_path_factory.mktemp("alone")
        shutil.copytree(stopped / program.id / name, folder / program.id / name)
        found.append(loaded(folder, program, small)[0])
    assert not same(*found)
    return found


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    stopped, program, small, devices, expected, tmp_path
):
    shutil.copytree(stopped, tmp_path / "copy")
    checkpoint, notes = tmp_path / "copy" / program.id / "2", []
    for file in files(checkpoint / "arrays"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 1] = b"!"
        file.write_bytes(content)
    own = made("on all devices", devices, small)
    records = resume(own, small, devices, tmp_path / "copy", notes=notes)
    assert len(notes) == 1
    assert f"{checkpoint}: not used, damaged or of another program" in notes[0]
    for trial, record in records.items():
        assert_same_bits(record, expected["on all devices"][trial])


@pytest.mark.nightly
def test_a_checkpoint_of_which_any_file_is_missing(stopped, program, sound, small, tmp_path):
    """What is found is the newer one, if the file did not matter, or the older one."""
    names = [path.relative_to(stopped) for path in files(stopped / program.id / "2")]
    lost = 0
    for i, name in enumerate(names):
        shutil.copytree(stopped, tmp_path / str(i))
        (tmp_path / str(i) / name).unlink()
        found, _ = loaded(tmp_path / str(i), program, small)
        assert any(same(found, each) for each in sound), name
        lost += same(found, sound[0])
    assert lost >= 2  # the arrays and the description at least


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=settings.default.max_examples // 2,
)
@given(data=st.data())
def test_no_damage_makes_a_wrong_snapshot(stopped, program, sound, small, tmp_path, data):
    """Bytes changed, cut off or put in, in any file of either: one of the two, or none."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stopped, folder)
    for name in data.draw(st.sampled_from([["1"], ["2"], ["1", "2"]])):
        file = data.draw(st.sampled_from(files(folder / program.id / name)))
        file.write_bytes(damaged(file.read_bytes(), data.draw))
    found, notes = loaded(folder, program, small)
    assert found is None or any(same(found, each) for each in sound)
    assert notes or same(found, sound[1])


def damaged(content: bytes, draw) -> bytes:
    place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 9))
    rest = draw(st.sampled_from([content[place + length :], content[place:], b""]))
    return content[:place] + draw(st.binary(max_size=9)) + rest


@pytest.mark.parametrize("content", [b"", b"PK", bytes(1000)])
def test_what_is_no_checkpoint_is_told(content, program, small, tmp_path):
    for name in ("7", "8", "notes"):
        (tmp_path / program.id / name).mkdir(parents=True)
    (tmp_path / program.id / "8" / "arrays").write_bytes(content)
    found, notes = loaded(tmp_path, program, small)
    assert found is None
    assert all("not used" in note for note in notes)
    assert {note.partition(":")[0] for note in notes} >= {str(tmp_path / program.id / "8")}


def test_only_the_last_two_are_kept(program, sound, tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, pytest.fail)) as keeper:
        for _ in range(12):
            keeper.save(program, sound[0])
    assert {path.name for path in (tmp_path / program.id).iterdir()} == {"11", "12"}


def test_snapshots_of_the_same_trials_on_other_data_are_told_and_not_used(
    program, sound, small, tmp_path
):
    notes = []
    state_and_rest = state_like(program, small.task, with_evaluation(small.data))
    for data in ("one", "two"):
        with contextlib.closing(Checkpoints(tmp_path, notes.append, of={"data": data})) as keeper:
            assert keeper.load(program, lambda: state_and_rest) is None
            keeper.save(program, sound[0])
    at = tmp_path / program.id
    assert notes == [
        f"{at}: checkpoints of another run (data was one, is two); its trials start afresh"
    ]
    keeper = Checkpoints(tmp_path, pytest.fail, of={"data": "two"})
    assert same(keeper.load(program, lambda: state_and_rest), sound[0])


def test_snapshots_within_an_epoch_are_of_its_parts(program, sound, small, tmp_path):
    """At the start of an epoch nothing is counted in parts; of others, nothing is ignored."""
    notes, own = [], dataclasses.replace(sound[0], step=0, batch=0)
    like = state_like(program, small.task, with_evaluation(small.data))
    others = dataclasses.replace(program, microbatch=4)
    with contextlib.closing(Checkpoints(tmp_path, notes.append)) as keeper:
        keeper.save(others, own)
        keeper.save(others, dataclasses.replace(own, step=2))
        assert same(keeper.load(program, lambda: like), own)
        keeper.save(program, dataclasses.replace(own, record=(own.record, np.zeros(1))))
        keeper.save(program, dataclasses.replace(own, stopped=own.stopped[1:]))
        assert keeper.load(program, lambda: like) is None
    assert [note.partition("(")[2] for note in notes] == [
        "within an epoch, computed in other parts)",
        "it is of another number of trials)",
        "record is of another program)",
    ]


def test_types_that_numpy_does_not_know(program, sound, small, tmp_path):
    def halve(tree):
        return jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16), tree)

    own = dataclasses.replace(sound[0], state=halve(sound[0].state))
    with contextlib.closing(Checkpoints(tmp_path, pytest.fail)) as keeper:
        keeper.save(program, own)
    keeper = Checkpoints(tmp_path, pytest.fail)
    state, *like = state_like(program, small.task, with_evaluation(small.data))
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), state)
    assert same(keeper.load(program, lambda: (state, *like)), own)


def test_saving_takes_no_more_than_its_share(program, sound, tmp_path, monkeypatch):
    """Of a clock of our own: a save of 10 s is followed by 500 s of training, 2 %.

    Of them, it took 4 s to make the snapshot. What is imported for the first one does not count.
    """
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    keeper = Checkpoints(tmp_path, pytest.fail, every=30)

    def takes(seconds):
        def slow(*_):
            now[0] += seconds

        return slow

    monkeypatch.setattr(keeper.store, "prepare", takes(100))
    monkeypatch.setattr(checkpoints, "_flatten", takes(6))
    monkeypatch.setattr(keeper, "_save", takes(0))
    assert not keeper.due(program)
    for seconds, due in ((29, False), (1, True)):
        now[0] += seconds
        assert keeper.due(program) == due
    keeper.save(program, sound[0], 4)
    for seconds, due in ((499, False), (1, True)):
        now[0] += seconds
        assert keeper.due(program) == due


def test_a_checkpoint_of_another_program_is_not_used(stopped, small, devices, tmp_path):
    [program] = made("on all devices", devices, small).programs
    sweep = Sweep(base=BASE.replace(learning_rate=0.1), axes={"seed": range(5)}, record=ALL)
    [other] = planned([sweep], small, devices).programs
    assert other.id != program.id
    shutil.copytree(stopped / program.id, tmp_path / other.id)
    found, notes = loaded(tmp_path, other, small)
    assert found is None
    assert len(notes) == 2


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run(
    small, devices, expected, tmp_path, one_step
):
    """The folder is a file: whatever is tried fails. It is told once."""
    blocked, notes = tmp_path / "checkpoints", []
    blocked.write_text("in the way")
    watch = StopAfter(10**9)
    keeper = Checkpoints(blocked, notes.append, every=0)
    own = made("on all devices", devices, small)
    [records] = driver.stream(own, *small, devices, watch, checkpointer=keeper)
    assert len(notes) == 1
    assert "could not be written" in notes[0]
    for record in records:
        assert_same_bits(record, expected["on all devices"][record.trial])


def test_after_a_failed_save_the_next_one_is_written(program, sound, small, tmp_path, monkeypatch):
    notes: list[str] = []
    keeper = Checkpoints(tmp_path, notes.append)

    def full(manager, step, *args, **kwargs):
        (tmp_path / program.id / f"{step}.orbax-checkpoint-tmp-1").mkdir()
        raise OSError(28, "No space left on device")

    keeper.save(program, sound[0])
    with monkeypatch.context() as patch:
        keeper.wait()
        patch.setattr(ocp.CheckpointManager, "save", full)
        keeper.save(program, sound[1])
        keeper.wait()
    assert len(notes) == 1
    assert "could not be written" in notes[0]
    assert "No space left on device" in notes[0]
    assert same(loaded(tmp_path, program, small)[0], sound[0])
    keeper.save(program, sound[1])
    keeper.close()
    assert same(loaded(tmp_path, program, small)[0], sound[1])
    assert {path.name for path in (tmp_path / program.id).iterdir()} == {"1", "2"}
