"""Trials that end early against the same trials left alone, in batches that shrink."""

import contextlib
import dataclasses
import io
import itertools
import pickle
import time
import types
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from rings import execute, planned
from test_checkpoints import StopAfter

import jaxexp as jx
from jaxexp import api
from jaxexp.api import running as running_api
from jaxexp.base.errors import InterruptedRunError
from jaxexp.execution import calls as call_lengths
from jaxexp.execution import compiling, rules, trainer
from jaxexp.execution import program as running
from jaxexp.execution.checkpoints import Checkpoints
from jaxexp.execution.control import Control
from jaxexp.execution.driver import stream
from jaxexp.execution.program import RunningProgram, filled
from jaxexp.execution.rules import Change, Curves
from jaxexp.planning.cost import MACHINES
from jaxexp.results import seeds, select

BASE = jx.MLPTrial(epochs=6, batch_size=32, depth=1, width=8)
SWEEP = jx.Sweep(BASE, {"learning_rate": [3e-3, 1e-2, 3e-2, 0.1], "seed": [0, 1]})


@dataclass(frozen=True)
class EndAt:
    """Ends trials after the epochs that are given for their learning rates."""

    epochs: tuple[tuple[float, int], ...]

    def stop(self, epoch, trials, curves):
        assert curves("loss", "train").shape == (len(trials), epoch)
        ends = dict(self.epochs)
        return np.array([ends.get(trial.learning_rate) == epoch for trial in trials])


@dataclass(frozen=True)
class HalveTogether:
    """Keeps the better half of all trials at each of its rungs."""

    rungs: tuple[int, ...] = (1, 3)
    asked: list = field(default_factory=list, compare=False, repr=False)

    def stop(self, epoch, trials, curves):
        self.asked.append((epoch, list(trials)))
        order_T = np.argsort(np.argsort(curves.costs("loss")[:, -1]))
        return order_T >= len(trials) // 2


@dataclass(frozen=True)
class Shift:
    """After an epoch, every trial goes on as a copy of the one before it."""

    epoch: int

    def stop(self, epoch, trials, curves):
        return np.zeros(len(trials), bool)

    def change(self, epoch, trials, curves, values):
        if epoch != self.epoch:
            return None
        source = np.maximum(np.arange(len(trials)) - 1, 0)
        names = "learning_rate", "seed"
        return Change(source, {n: np.array([getattr(trials[s], n) for s in source]) for n in names})


RULES = {
    "each": EndAt(((0.1, 1), (3e-2, 3), (3e-3, 5))),
    "together": HalveTogether(),
    "best kept": jx.EarlyStopping("accuracy", patience=1),
    "copies": Shift(2),
}


@pytest.fixture
def compacts(monkeypatch):
    """Batches shrink whenever they can, however little that saves."""
    monkeypatch.setattr(
        trainer.Training,
        "_lanes",
        lambda self, lanes, trials, epoch: filled(
            dataclasses.replace(self.program, chunk=self.chunk), trials
        ),
    )


def train(problem, devices, rule=None, sweeps=(SWEEP,), mode="exact", **options):
    made = planned(list(sweeps), problem, devices, mode)
    control = Control(rule)
    batches = stream(made, *problem, devices, control=control, **options)
    with contextlib.closing(batches):
        return {record.trial: record for records in batches for record in records}


@pytest.fixture(scope="module")
def alone(problem, devices):
    """All trials, none of which ends early."""
    return execute(planned([SWEEP], problem, devices[:2]), *problem, devices[:2])


def count_calls(monkeypatch, where, name: str) -> list:
    """What a function that is called as before is called with."""
    calls, function = [], getattr(where, name)
    monkeypatch.setattr(where, name, lambda *own: calls.append(own) or function(*own))
    return calls


def epochs_of(record) -> int:
    return len(record.running["loss"])


def curves_of(record) -> dict:
    return {"metrics": record.metrics, "running": record.running, "steps": record.step_loss}


def assert_begins_like(record, whole, exact: bool) -> None:
    """What it has recorded are the first epochs of what the whole trial has."""
    epochs, steps = epochs_of(record), len(record.step_loss)
    for own, other in zip(*map(jax.tree.leaves, map(curves_of, (record, whole))), strict=True):
        first = other[:steps] if len(other) == len(whole.step_loss) else other[:epochs]
        if exact:
            np.testing.assert_array_equal(own, first)
        else:
            np.testing.assert_allclose(own, first, rtol=1e-4, atol=1e-5)


def test_a_stopped_trial_has_the_bits_of_its_twin(problem, devices, alone):
    """On one program, whose batch stays as it is: too little would be saved."""
    records = train(problem, devices[:2], RULES["each"])
    ends = dict(RULES["each"].epochs)
    for trial, record in records.items():
        assert epochs_of(record) == ends.get(trial.learning_rate, 6)
        assert_begins_like(record, alone[trial], exact=True)


@pytest.mark.nightly
def test_its_parameters_are_those_of_the_epoch_in_which_it_ended(problem, devices, compacts):
    records = train(problem, devices[:2], RULES["each"])
    for rate, epoch in RULES["each"].epochs[::2]:  # the first and the last to end
        shorter = jx.Sweep(BASE.replace(epochs=epoch, learning_rate=rate), {"seed": [0, 1]})
        for trial, expected in train(problem, devices[:2], sweeps=[shorter]).items():
            own = records[trial.replace(epochs=6)]
            assert epochs_of(own) == epoch
            for a, b in zip(
                *map(jax.tree.leaves, (own.variables, expected.variables)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "where", "method"),
    [
        pytest.param("each", RunningProgram, "end", marks=pytest.mark.nightly),
        ("copies", running, "_take"),
    ],
)
def test_what_memory_was_short_for_between_epochs_is_done_again(
    name, where, method, problem, devices, monkeypatch
):
    expected = train(problem, devices[:1], RULES[name])
    whole, failed = getattr(where, method), []

    def fails(*arguments):
        if not failed:
            failed.append(method)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(*arguments)

    monkeypatch.setattr(where, method, fails)
    records = train(problem, devices[:1], RULES[name])
    assert failed
    for trial, record in records.items():
        pair = record, expected[trial]
        own, other = ((r.running["loss"], r.variables, r.changes) for r in pair)
        assert jax.tree.structure(own) == jax.tree.structure(other)
        for a, b in zip(*(jax.tree.leaves(each[:2]) for each in (own, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["compile", "_take_over"])
def test_no_epoch_is_lost_where_memory_is_short_for_a_smaller_batch(
    method, problem, devices, monkeypatch, compacts
):
    class Measured(StopAfter):
        def measured(self, program, epoch, value):
            measured.append(epoch)

    measured: list[int] = []
    whole, failed = getattr(RunningProgram, method), []

    def fails(run, *arguments):
        if run.lanes < 8 and not failed:
            failed.append(method)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(run, *arguments)

    monkeypatch.setattr(RunningProgram, method, fails)
    watch = Measured(10**9)
    records = train(problem, devices[:1], KeepOne(), progress=watch)
    assert failed
    assert measured == [1, 2, 3, 4, 5, 6]
    assert watch.notes == ["a device is out of memory: continuing with 4 trials at a time"]
    assert sorted(map(epochs_of, records.values())) == [1] * 7 + [6]


@pytest.mark.parametrize("name", RULES)
def test_smaller_batches_go_on_with_the_same_numbers(name, problem, devices, alone, monkeypatch,
                                                     compacts):  # fmt: skip
    compacted = count_calls(monkeypatch, RunningProgram, "compact")
    records = train(problem, devices[:2], RULES[name])
    if name == "each":
        lanes = [snapshot.lanes for _, snapshot in compacted]
        assert lanes == [6, 4, 2] or lanes == [4, 2]
    if name == "copies":
        return
    for trial, record in records.items():
        assert_begins_like(record, alone[trial], exact=False)


@pytest.mark.nightly
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_chunks_that_no_trial_needs_stand_still(name, one_by_one, problem, devices, monkeypatch):
    """Without another compilation, and the numbers of the others keep their bits."""
    whole = planned([SWEEP], problem, devices[:2])
    program = dataclasses.replace(
        whole.programs[0], chunk=1 if one_by_one else 2, one_by_one=one_by_one
    )
    made = dataclasses.replace(whole, programs=(program,))
    compiled = count_calls(monkeypatch, compiling, "_compile")
    asked = count_calls(monkeypatch, running, "compile_program")

    def run(rule=None) -> dict:
        batches = stream(made, *problem, devices[:2], control=Control(rule))
        with contextlib.closing(batches):
            return {record.trial: record for records in batches for record in records}

    expected, chunks = run(), []
    steps = RunningProgram.call

    def call(own, most):
        chunks.append(int(own.chunks))
        return steps(own, most)

    monkeypatch.setattr(RunningProgram, "call", call)
    records = run(RULES[name])
    assert len(compiled) <= 1  # none, if another test has compiled the same
    if name != "together":  # which begins anew after its rungs
        assert len(asked) == 2  # once in each run: nothing is traced again, either
    full = 4 if one_by_one else 2
    assert chunks[0] == full
    assert sorted(chunks, reverse=True) == chunks
    if name != "best kept":  # with that, it depends on the numbers
        assert (chunks[-1] < full) == (name != "copies")
    if name == "copies":
        return
    for trial, record in records.items():
        assert_begins_like(record, expected[trial], exact=True)


def test_rungs_compare_the_trials_of_all_programs(problem, devices):
    """Two programs, one after another on one device, and both wait."""
    rule = HalveTogether()
    sweeps = [jx.Sweep(BASE.replace(depth=depth), {"learning_rate": [1e-5, 1e-2]}, name=str(depth))
              for depth in (1, 2)]  # fmt: skip
    records = train(problem, devices[:1], rule, sweeps)
    assert [(epoch, len(trials)) for epoch, trials in rule.asked] == [(1, 4), (3, 2)]
    loss = {t: r.metrics["validation"]["loss"] for t, r in records.items()}
    better = set(sorted(loss, key=lambda trial: loss[trial][0])[:2])
    best = min(better, key=lambda trial: loss[trial][2])
    assert {t: epochs_of(r) for t, r in records.items()} == {
        t: 6 if t == best else 3 if t in better else 1 for t in records
    }


@dataclass(frozen=True)
class KeepOne:
    """After the first epoch, one trial of each program goes on."""

    def stop(self, epoch, trials, curves):
        return (np.arange(len(trials)) > 0) & (epoch == 1)


@pytest.fixture
def parts(problem, devices, monkeypatch):
    """Two programs of four trials, which share compiled functions that take this long."""
    whole = planned([SWEEP], problem, devices[:1]).programs[0].estimate

    def made(compile_seconds: float):
        machine = dataclasses.replace(
            MACHINES["cpu"], state_bytes=whole.state_bytes / 2, compile_seconds=compile_seconds
        )
        monkeypatch.setitem(MACHINES, "cpu", machine)
        made = planned([SWEEP], problem, devices[:1])
        assert [len(program.trials) for program in made.programs] == [4, 4]
        return made

    return made


@pytest.mark.nightly
@pytest.mark.parametrize("calls", [3, 11])
def test_a_smaller_batch_that_several_programs_have_is_compiled_once(
    calls, problem, devices, parts, tmp_path, monkeypatch
):
    """What one of them saves is compared with its share, in a run that resumes as well."""
    lane_epoch = parts(1.0).programs[0].estimate.seconds / 4 / 6
    saved = (4 - 1) * lane_epoch * (6 - 1)
    compacted = count_calls(monkeypatch, RunningProgram, "compact")
    monkeypatch.setattr(call_lengths, "CALL_SECONDS", 0)
    monkeypatch.setattr(call_lengths, "FIRST_CALL", 2)

    def run(**options) -> dict:
        control = Control(KeepOne())
        batches = stream(made, *problem, devices[:1], control=control, **options)
        with contextlib.closing(batches):
            return {record.trial: record for records in batches for record in records}

    for seconds, expected in ((1.5 * saved, [1, 1]), (2.5 * saved, [])):
        made = parts(seconds)
        whole = run()
        assert [snapshot.lanes for _, snapshot in compacted] == expected
        assert sorted(map(epochs_of, whole.values())) == [1] * 6 + [6] * 2
        compacted.clear()
        for left in (calls, 10**9):
            watch = StopAfter(left)
            keeper = Checkpoints(tmp_path / f"{seconds}", watch.notes.append)
            with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
                records = run(progress=watch, checkpointer=keeper, stop=watch.stop)
        assert [snapshot.lanes for _, snapshot in compacted] == expected
        for trial, record in records.items():
            assert_begins_like(record, whole[trial], exact=True)
        compacted.clear()


@pytest.mark.parametrize("calls", [3, pytest.param(11, marks=pytest.mark.nightly), 23])
@pytest.mark.parametrize("name", RULES)
def test_a_run_interrupted_anywhere_decides_the_same(name, calls, problem, devices, tmp_path,
                                                     monkeypatch, compacts):  # fmt: skip
    expected = train(problem, devices[:2], RULES[name])
    monkeypatch.setattr(call_lengths, "CALL_SECONDS", 0)
    monkeypatch.setattr(call_lengths, "FIRST_CALL", 2)
    for left in (calls, 10**9):
        watch = StopAfter(left)
        keeper = Checkpoints(tmp_path, watch.notes.append)
        with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
            records = train(problem, devices[:2], RULES[name], progress=watch,
                            checkpointer=keeper, stop=watch.stop)  # fmt: skip
        assert not watch.notes
    assert records.keys() == expected.keys()
    for trial, record in records.items():
        own, other = (
            {**curves_of(r), "variables": r.variables, "best": r.best_epoch, "changes": r.changes}
            for r in (record, expected[trial])
        )
        assert jax.tree.structure(own) == jax.tree.structure(other)
        for a, b in zip(*map(jax.tree.leaves, (own, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_before_a_program_compiles_for_fewer_trials_it_is_saved(
    problem, devices, tmp_path, monkeypatch, compacts
):
    class Moved(StopAfter):
        def moved(self, program, epochs):
            moved.append(epochs)

    def interrupted(*_):
        raise InterruptedRunError

    moved: list[float] = []
    for compact in (interrupted, RunningProgram.compact):
        monkeypatch.setattr(RunningProgram, "compact", compact)
        compacted, watch = count_calls(monkeypatch, RunningProgram, "compact"), Moved(10**9)
        keeper = Checkpoints(tmp_path, watch.notes.append)
        with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
            moved.clear()
            train(problem, devices[:1], KeepOne(), progress=watch, checkpointer=keeper)
    assert moved[0] == 1
    assert not compacted


def test_a_copy_goes_on_as_the_trial_whose_state_it_took(problem, devices, alone):
    records = train(problem, devices[:2], Shift(2))
    trials = SWEEP.trials()
    for before, trial in itertools.pairwise(trials):
        own, source = records[trial], alone[before]
        assert own.changes[2][0] == before
        loss = own.metrics["validation"]["loss"]
        np.testing.assert_array_equal(loss[:2], alone[trial].metrics["validation"]["loss"][:2])
        np.testing.assert_array_equal(loss[2:], source.metrics["validation"]["loss"][2:])


class ShiftTheRest(Shift):
    """The first trial ends after that epoch."""

    def stop(self, epoch, trials, curves):
        return (np.arange(len(trials)) == 0) & (epoch == self.epoch)


class ShiftTogether(ShiftTheRest):
    rungs = (2,)


class StopAt(StopAfter):
    """Stops a run after so many epochs."""

    def moved(self, program, epochs):
        if epochs >= self.left:
            self.stop.set()


@pytest.mark.parametrize("rule", [ShiftTheRest(2), ShiftTogether(2)])
def test_those_that_are_left_become_copies(rule, problem, devices, alone, tmp_path, monkeypatch):
    """When others end, and at rungs; once, wherever they are interrupted there."""
    monkeypatch.setattr(call_lengths, "CALL_SECONDS", 0)
    monkeypatch.setattr(call_lengths, "FIRST_CALL", 2)
    for epochs in (2, 2.1, 10):
        watch = StopAt(epochs)
        keeper = Checkpoints(tmp_path, watch.notes.append)
        with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
            records = train(problem, devices[:2], rule, progress=watch,
                            checkpointer=keeper, stop=watch.stop)  # fmt: skip
    first, *left = SWEEP.trials()
    assert epochs_of(records[first]) == 2
    for before, trial in itertools.pairwise([left[0], *left]):
        assert list(records[trial].changes) == [2]
        assert records[trial].changes[2][0] == before
        own, source = (r.metrics["validation"]["loss"] for r in (records[trial], alone[before]))
        np.testing.assert_array_equal(own[2:], source[2:])


class KeepOneTogether(KeepOne):
    rungs = (1,)


def test_what_is_left_after_a_rung_goes_on_on_more_devices(problem, devices, alone, tmp_path,
                                                           monkeypatch):  # fmt: skip
    """Interrupted in the next epoch, in a batch of one lane."""
    monkeypatch.setattr(call_lengths, "CALL_SECONDS", 0)
    monkeypatch.setattr(call_lengths, "FIRST_CALL", 2)
    fast = dataclasses.replace(MACHINES["cpu"], compile_seconds=0.0)
    monkeypatch.setitem(MACHINES, "cpu", fast)
    compiled = count_calls(monkeypatch, running, "compile_program")
    for epochs, used in ((1.1, devices[:1]), (10, devices)):
        watch = StopAt(epochs)
        keeper = Checkpoints(tmp_path, watch.notes.append)
        with contextlib.closing(keeper), contextlib.suppress(InterruptedRunError):
            records = train(problem, used, KeepOneTogether(), progress=watch,
                            checkpointer=keeper, stop=watch.stop)  # fmt: skip
    assert [lanes for *_, lanes, _ in compiled] == [8, 1, len(devices)]
    assert not watch.notes
    for place, (trial, record) in enumerate(records.items()):
        assert epochs_of(record) == (6 if place == 0 else 1)
        assert_begins_like(record, alone[trial], exact=False)


def curves(**values) -> Curves:
    made = {name: np.array(value, float) for name, value in values.items()}
    directions = {name: "higher" if name == "accuracy" else "lower" for name in made}
    return Curves(lambda metric, split: made[metric], directions, ("train", "validation"))


def test_early_stopping_counts_epochs_without_improvement():
    rule = jx.EarlyStopping("accuracy", patience=2, min_delta=0.1)
    seen = curves(accuracy=[[0.1, 0.5, 0.55, 0.59], [0.1, 0.2, 0.3, 0.41], [np.nan] * 4])
    assert rule.stop(4, [None] * 3, seen).tolist() == [True, False, True]
    assert rule.improved(4, [None] * 3, seen).tolist() == [False, True, False]
    last = dataclasses.replace(rule, restore_best=False)
    assert last.improved(4, [None] * 3, seen) is None


def test_the_best_epochs_parameters(problem, devices):
    """They, not those of the last epoch, are what the results have, rank and predict with."""
    task, data = problem.task, problem.data
    rule = jx.EarlyStopping("loss", patience=2)
    sweep = jx.Sweep(BASE.replace(epochs=20), {"learning_rate": [0.03, 0.3], "seed": [0, 1]})
    results = jx.run(sweep, task, data, stopping=rule, progress=False)
    best, trained = results["best_epoch"].values, results["epochs_trained"].values
    assert ((trained == best + 2) | (trained == 20)).all()
    assert (trained < 20).any()
    for trial in sweep.trials():
        own = results.trial(learning_rate=trial.learning_rate, seed=trial.seed)
        loss = own.curves["loss"].sel(split="validation").values
        assert np.nanmin(loss) == select.final(own.curves).sel(split="validation")
        examples = data.splits["validation"]
        accuracy = (results.predict(examples.x, own) == named(data, examples.y)).mean()
        epoch = int(own.curves["best_epoch"])
        at_best = own.curves["accuracy"].sel(split="validation", epoch=epoch)
        np.testing.assert_allclose(accuracy, at_best, atol=1e-6)
    assert "EarlyStopping(metric='loss'" in results.dataset.attrs["stopping"]


@pytest.mark.nightly
def test_where_no_epoch_is_the_best_the_last_ones_parameters_count():
    """Where a metric is finite for some trials, or for none."""
    X_Nx1 = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    data = jx.arrays(X_Nx1, 2 * X_Nx1[:, 0], validation=8)

    def off(limit):
        return jx.Metric("lower", example=lambda p, t: jnp.where(jnp.abs(p) < limit, -p, jnp.nan))

    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.zeros(1)},
        apply=lambda trial, params, x: x @ params["w"],
        loss=optax.squared_error,
        metrics={"small": off(0.05), "never": off(0.0)},
    )

    sweep = jx.Sweep(jx.Trial(epochs=5, batch_size=8), {"learning_rate": [1e-3, 0.1]})
    for metric, best in (("small", [5, 0]), ("never", [0, 0])):
        rule = jx.EarlyStopping(metric, patience=3)
        results = jx.run(sweep, task, data, stopping=rule, progress=False, devices=1)
        assert results["best_epoch"].values.tolist() == best
        own = results.trial(learning_rate=0.1)
        error_N = data.validation.x @ own.params["w"] - data.validation.y
        loss = own.curves["loss"].sel(split="validation", epoch=3)
        np.testing.assert_allclose((error_N**2).mean(), loss, rtol=1e-4)
        assert results.table("loss").set_index("learning_rate")["epoch"].loc[0.1] == 3


def named(data, label_N):
    return np.array(data.classes)[label_N]


def test_means_over_seeds_that_ended_at_different_times(problem):
    ds = jx.run(
        jx.Sweep(BASE, {"learning_rate": [0.01], "seed": [0, 1]}), *problem,
        stopping=StopSeed(1, 2), progress=False,
    ).dataset  # fmt: skip
    mean = seeds.average(ds)
    loss = ds["loss"].sel(split="validation").values[0]
    expected = [(loss[0, e] + loss[1, min(e, 1)]) / 2 for e in range(6)]
    np.testing.assert_allclose(mean["loss"].sel(split="validation").values[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        select.final(mean).sel(split="validation"), [(loss[0, 5] + loss[1, 1]) / 2], rtol=1e-6
    )


@dataclass(frozen=True)
class StopSeed:
    """Ends the trials of one seed after an epoch."""

    seed: int
    epoch: int

    def stop(self, epoch, trials, curves):
        return np.array([trial.seed == self.seed and epoch == self.epoch for trial in trials])


def test_diverged_trials_end(problem, devices):
    sweep = jx.Sweep(BASE.replace(optimizer="sgd"), {"learning_rate": [1e-2, 1e30]})
    sound, broken = train(problem, devices[:1], jx.StopDiverged(), [sweep]).values()
    assert (epochs_of(sound), epochs_of(broken)) == (6, 1)
    assert (sound.diverged_epoch, broken.diverged_epoch) == (0, 1)


def test_losses_of_steps_that_are_not_finite_end_no_trial():
    values = {"loss": np.ones((2, 1)), "running_loss": np.array([[np.nan], [1.0]])}
    curves = Curves(lambda metric, split: values[metric], {"loss": "lower"}, ("train",))
    assert not jx.StopDiverged().stop(1, [], curves).any()


def test_budgets(problem):
    """203 examples in batches of 32 are 7 steps an epoch, of 64 4."""
    sweep = jx.Sweep(BASE, {"batch_size": [32, 64]})
    steps = jx.run(sweep, *problem, stopping=jx.Budget(steps=14), progress=False)
    assert steps["epochs_trained"].values.tolist() == [2, 3]
    no_time = jx.run(sweep, *problem, stopping=[jx.Budget(seconds=1e-9)], progress=False)
    assert no_time["epochs_trained"].values.tolist() == [1, 1]


def test_a_budget_of_seconds_is_one_on_every_node(monkeypatch):
    """Whatever their monotonic clocks, which count from when a machine was started."""
    rule = jx.Budget(seconds=3600)
    rule.check([BASE], None, np.ones(1))
    there = pickle.loads(pickle.dumps(rule))
    now, monotonic = time.time(), time.monotonic()
    for hours, over in ((0, False), (2, True)):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        for up in (-1e6, 1e6):
            monkeypatch.setattr(time, "monotonic", lambda up=up: monotonic + up)
            assert there.stop(1, [BASE], None).tolist() == [over]


class Wrong:
    def __init__(self, answer):
        self.answer = answer

    def stop(self, epoch, trials, curves):
        return self.answer(trials)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (jx.EarlyStopping("acuracy"), "metric='acuracy': did you mean accuracy\\? expected one of"),
        (jx.EarlyStopping(split="dev"), "split='dev': expected one of train, validation, test"),
        (jx.EarlyStopping("running_loss", split="train"), "taken in training, expected none"),
        (jx.EarlyStopping, "expected jaxexp.EarlyStopping\\(…\\) or another object"),
        ("loss", "stopping='loss': expected jaxexp.EarlyStopping"),
        ([jx.EarlyStopping(), jx.EarlyStopping("accuracy")], "both say which parameters"),
        (jx.Budget(steps=6), "steps=6: expected at least 7, those of an epoch of batch_size=32"),
        (HalveTogether((0, 3)), "HalveTogether.*: rungs=\\(0, 3\\), expected a list of epochs"),
        (HalveTogether((1.0,)), "whole numbers from 1 on"),
        (HalveTogether(iter([1])), "rungs=<list_iterator.*expected a list"),
        (HalveTogether("12"), "rungs='12'"),
        (Wrong(lambda trials: np.zeros(1)), "Wrong.stop returned float64 of shape \\(1,\\)"),
        (Wrong(lambda trials: True), "expected bool of shape \\(8,\\), one for each trial"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be(rule, message, problem):
    with pytest.raises(jx.UserError, match=message):
        jx.run(SWEEP, *problem, stopping=rule, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jx.EarlyStopping(patience=0), "patience=0: expected a whole number, at least 1"),
        (lambda: jx.EarlyStopping(patience=2.5), "patience=2.5"),
        (lambda: jx.EarlyStopping(min_delta=-1), "min_delta=-1: expected a number at least 0"),
        (lambda: jx.EarlyStopping(restore_best=1), "restore_best=1: expected True or False"),
        (lambda: jx.Budget(), "expected steps=, seconds=, or both"),
        (lambda: jx.Budget(seconds=0), "seconds=0: expected a number above 0"),
        (lambda: jx.Budget(steps=True), "steps=True: expected a whole number"),
    ],
)
def test_arguments_that_cannot_be(make, message):
    with pytest.raises(jx.UserError, match=message):
        make()


def test_rules_of_your_own_are_asked_about_every_trial(problem):
    class HalfWay:
        def stop(self, epoch, trials, curves):
            return np.array([2 * epoch == trial.epochs for trial in trials])

    sweep, rule = jx.Sweep(BASE, {"epochs": [2, 4]}), HalfWay()
    with pytest.raises(jx.UserError, match=r"HalfWay: would not be asked .*stopping=…"):
        jx.run(jx.plan(sweep, *problem), stopping=rule, progress=False)
    planned_run = jx.plan(sweep, *problem, stopping=rule)
    assert not any(program.prefixes for program in planned_run.plan.programs)
    assert all(program.prefixes for program in jx.plan(
        sweep, *problem, stopping=jx.StopDiverged()).plan.programs)  # fmt: skip
    results = jx.run(sweep, *problem, stopping=rule, progress=False)
    assert results["epochs_trained"].values.tolist() == [1, 2]


def test_attributes_of_your_own_rules_are_no_members_of_theirs():
    class Named(HalveTogether):
        change, improved, check, changed, metric = 0.1, 0.2, True, "all", "train"

    control = Control(Named())
    assert not control.changes
    assert (control.changed, control.metric) == ([], None)
    assert control.improved(1, [], None) is None
    assert Control(jx.search.Halving("accuracy")).metric == "accuracy"


class Together(NamedTuple):
    """A rule that is a tuple."""

    epochs: int = 1

    def stop(self, epoch, trials, curves):
        return np.full(len(trials), epoch >= self.epochs)


class Empty(Wrong):
    """A rule that is false."""

    def __len__(self):
        return 0


@pytest.mark.parametrize("rule", [Together(), Empty(lambda trials: np.zeros(len(trials), bool))])
def test_one_rule_is_one_whatever_else_it_is(rule):
    search = jx.search.Halving()
    own = types.SimpleNamespace(stop=search.stop, sweep=SWEEP)
    assert Control(rule).rules == (rule,)
    assert Control([rule, search]).rules == (rule, search)
    assert running_api._searched(own, rule) == (SWEEP, [own, rule])


def test_a_run_that_the_clock_has_ended_is_found_complete(problem, tmp_path, monkeypatch):
    class Clock:
        now, speed = 0, 1

        def stop(self, epoch, trials, curves):
            self.now += self.speed
            return np.zeros(len(trials), bool)

        def time(self):
            return self.now

    for speed in (1, 0):
        clock = Clock()
        clock.speed = speed
        monkeypatch.setattr(rules, "time", clock)
        results = jx.run(
            jx.Sweep(BASE), *problem, progress=False, checkpoint_dir=tmp_path,
            stopping=[clock, jx.Budget(seconds=2)],
        )  # fmt: skip
        assert results["epochs_trained"].item() == 2


def test_checkpoints_of_a_run_with_other_rules(problem, tmp_path):
    sweep = jx.Sweep(BASE.replace(epochs=1))
    rule = jx.EarlyStopping(patience=3)
    jx.run(sweep, *problem, stopping=rule, progress=False, checkpoint_dir=tmp_path)
    for other in (None, jx.EarlyStopping(patience=4)):
        with pytest.raises(jx.UserError, match="checkpoints of another run: stopping was Early"):
            jx.run(sweep, *problem, stopping=other, progress=False, checkpoint_dir=tmp_path)


def test_the_terminal_counts_what_is_trained(problem, tmp_path):
    """Epochs that no trial will train are not waited for, nor where the run resumes."""
    planned_run = api.plan(SWEEP, *problem)
    console = Console(file=io.StringIO(), width=200)
    records = []
    with api.terminal_progress(planned_run, console, best=8) as shown:
        control = api.controlled(planned_run, RULES["each"])
        with contextlib.closing(Checkpoints(tmp_path, shown.note)) as keeper:
            options = {"control": control, "checkpointer": keeper, "finished": records.append}
            for _ in api.train(planned_run, progress=shown, **options):
                pass
    assert shown.epochs == 2 * (1 + 3 + 5 + 6)
    assert shown.done() == ("30 of 30 epochs", 100)
    _, values, epochs, *_ = (list(column.cells) for column in shown.table().columns)
    own = [(f"{r.metrics['validation']['loss'][-1]:.4g}", str(epochs_of(r))) for r in records]
    assert sorted(zip(values, epochs, strict=True)) == sorted(own)
    with (
        api.terminal_progress(planned_run, console) as again,
        contextlib.closing(Checkpoints(tmp_path, again.note)) as keeper,
    ):
        for _ in api.train(planned_run, progress=again, control=control, checkpointer=keeper):
            pass
    assert again.done() == ("30 of 30 epochs", 100)
