"""The batch against the trial alone, divergence, compilations, and how a run stops."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rings import assert_close, assert_same_bits, execute, planned, train

from jaxexp.api import Problem
from jaxexp.base.errors import InterruptedRunError, UserError
from jaxexp.execution import compiling, driver, program
from jaxexp.execution.listeners import Silent
from jaxexp.execution.records import TrialRecord
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial, Trial
from jaxexp.training import evaluation, step
from jaxexp.training.data import Data
from jaxexp.training.task import Outputs, Task, Variables

BASE = MLPTrial(epochs=3, batch_size=32, depth=2, width=8)
AXES = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "seed": [0, 1]}
NORMS, ALL = ("gradient_norms",), ("gradient_norms", "predictions")
OPTIONS = {  # and on how many devices: on 4, ten trials are 3 each, with 2 to fill up
    "adam": ({}, NORMS, (4,)),
    "sgd, batch norm": ({"optimizer": "sgd", "momentum": 0.9, "batch_norm": True}, ALL, (1, 4)),
}


LONG = pytest.mark.nightly


@pytest.mark.parametrize("option", ["adam", pytest.param("sgd, batch norm", marks=LONG)])
def test_alone_as_in_the_batch(problem, devices, option):
    values, record, used = OPTIONS[option]
    sweep = Sweep(BASE.replace(**values), AXES, record=record)
    together = [train([sweep], problem, devices[:count]) for count in used]
    assert all(list(each) == sweep.trials() for each in together)
    for i in (0, 4, 8, 9):  # of 4 devices, one trial on each: beside two others, or what fills up
        trial = sweep.trials()[i]
        alone = train([Sweep(trial, record=record)], problem, devices[:1])
        for each in together:
            assert_close(each[trial], alone[trial])


@pytest.mark.nightly
def test_batch_norm_with_adamw_trains_alone_as_in_the_batch(problem, devices):
    # A bias before a batch norm has no gradient but rounding noise, which Adam blows up to steps
    # of the learning rate. Training does not feel it; evaluation does, through the running mean.
    # So compare the loss of each step, which all the weights that matter decide.
    base = BASE.replace(optimizer="adamw", weight_decay=0.1, batch_norm=True)
    sweep = Sweep(base, AXES)
    together = train([sweep], problem, devices)
    for trial in sweep.trials()[::3]:
        expected_S = train([Sweep(trial)], problem, devices[:1])[trial].step_loss
        np.testing.assert_allclose(together[trial].step_loss, expected_S, rtol=1e-5)


@pytest.mark.nightly  # as any trial of a batch is the trial alone
def test_order_of_axes_does_not_matter(problem, devices):
    sweep = Sweep(base=BASE, axes=AXES, record=NORMS)
    turned = Sweep(base=BASE, axes=dict(reversed(AXES.items())), record=NORMS)
    assert sweep.trials() != turned.trials()
    expected = train([sweep], problem, devices)
    for trial, record in train([turned], problem, devices).items():
        assert_close(record, expected[trial])


def test_divergence_leaves_the_neighbours_bits_alone(problem, devices):
    base = BASE.replace(optimizer="sgd")
    broken, sound = (
        train([Sweep(base, {"learning_rate": [1e-2, rate, 1e-3]})], problem, devices[:1])
        for rate in (1e30, 1e-1)
    )
    assert [record.diverged_epoch for record in broken.values()] == [0, 1, 0]
    assert [record.diverged_epoch for record in sound.values()] == [0, 0, 0]
    for trial in broken.keys() & sound.keys():
        assert_same_bits(broken[trial], sound[trial])
    assert len(broken.keys() & sound.keys()) == 2


def test_divergence_in_a_padded_program_with_batch_norm(problem, devices):
    """The neighbours' bits, and the padding of the broken trial itself, are left alone."""
    base = BASE.replace(optimizer="sgd", batch_norm=True, depth=1)
    points = [(1e-2, 4), (0.1, 8), (1e-3, 8), (1e-2, 8)]

    def batch(rate: float) -> dict[Trial, TrialRecord]:
        own = [points[0], (rate, 5), *points[2:]]
        sweep = Sweep(base, {("learning_rate", "width"): own}, record=ALL)
        made = planned([sweep], problem, devices[:1], "one")
        assert made.programs[0].spec.sizes
        return execute(made, *problem, devices[:1])

    broken, sound = batch(3e38), batch(1e-1)
    assert [record.diverged_epoch for record in broken.values()] == [0, 1, 0, 0]
    assert [record.diverged_epoch for record in sound.values()] == [0] * 4
    assert len(broken.keys() & sound.keys()) == 3
    for trial in broken.keys() & sound.keys():
        assert_same_bits(broken[trial], sound[trial])


class Growth(Task):
    """A task with one weight, which each step of SGD multiplies by 1 - learning_rate."""

    def init(self, trial, rng, data):
        return Variables(jnp.ones(()))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        return Outputs(jnp.square(variables.params) / 2 * batch)


GROWTH = Growth()


def growth(n: int) -> Problem:
    """Growth over n examples, which are all 1."""
    ones_N = np.ones(n, np.float32)
    return Problem(GROWTH, Data(ones_N, validation=ones_N, test=ones_N))


# With learning rate 10 the loss after k steps is 81**k / 2: float32 ends between k = 20 and 21.
@pytest.mark.parametrize(
    ("steps", "epoch", "step"),
    [
        (6, 4, 22),  # whose loss is that of 21 steps: the fourth step of the fourth epoch
        (7, 3, 21),  # in the evaluation after the third, whose own steps are all finite
    ],
)
def test_diverged(devices, steps, epoch, step):
    base = Trial(epochs=6, batch_size=2, optimizer="sgd")
    sweep = Sweep(base, {"learning_rate": [0.5, 10, 2.5]})
    records = train([sweep], growth(2 * steps), devices[:1])
    assert [record.diverged_epoch for record in records.values()] == [0, epoch, 0]
    assert [record.diverged_step for record in records.values()] == [0, step, 0]


@pytest.mark.parametrize(
    ("step_losses", "after", "step"),
    [
        ("..x. x...", "..", 0),
        (".... ..xx", "..", 0),  # its evaluation comes after its last step
        ("xxxx .xxx", "xx", 1),
        ("x..x x.xx", ".x", 7),
        (".... ....", "xx", 4),
        (".... ....", "x.", 0),
        (".... xxxx", "..", 5),  # nothing was learned
    ],
)
def test_a_trial_that_recovers_has_not_diverged(step_losses, after, step):
    def losses(marks):
        return np.array([np.nan if mark == "x" else 1.0 for mark in marks.replace(" ", "")])

    metrics = {"train": {"loss": np.ones(2)}, "test": {"loss": losses(after)}}
    running = {"loss": np.ones(2)}
    record = TrialRecord(Trial(), metrics, running, losses(step_losses), None, {}, None, 0.0, 0.0)
    assert record.diverged_step == step
    assert record.diverged_epoch == -(-step // 4)


def test_each_program_is_traced_and_compiled_once(problem, devices, compilations, monkeypatch):
    traced = []

    def train_steps(task, trial, *args, **kwargs):
        traced.append(trial.width)
        return original(task, trial, *args, **kwargs)

    original = step.train_steps
    monkeypatch.setattr(step, "train_steps", train_steps)
    sweep = Sweep(
        base=BASE.replace(depth=1, batch_size=29),  # as in no other test: not compiled yet
        axes={("width", "seed"): [(4, 0), (8, 0), (8, 1), (8, 2), (8, 3), (8, 4)]},
        record=("predictions",),
    )
    first = train([sweep], problem, devices)  # width 8 on all devices, width 4 on one
    assert sorted(traced) == [4, 8]
    assert len(compilations) == 2 * 4  # for each program: initialise, train, evaluate, predict
    again = train([sweep], problem, devices)
    assert sorted(traced) == [4, 8]
    assert len(compilations) == 2 * 4
    for trial, record in again.items():
        assert_same_bits(record, first[trial])


class Slow(Growth):
    """Whose functions take a while to trace, and know how many are being traced at a time."""

    def __init__(self):
        self.now, self.most = 0, 0

    def apply(self, trial, variables, batch, *, rng, mask, train):
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return super().apply(trial, variables, batch, rng=rng, mask=mask, train=train)


def test_one_thread_at_a_time_traces(devices):
    """Flax changes classes while a function is traced, and fails where another thread reads them.

    (`nn.scan` makes a class, for which it takes fields out of those that it is made of.)
    """
    slow, (_, data) = Slow(), growth(12)
    sweep = Sweep(Trial(epochs=1, optimizer="sgd"), {"batch_size": [2, 3, 4, 6]})
    assert len(train([sweep], Problem(slow, data), devices)) == 4
    assert slow.most == 1


def test_one_thread_at_a_time_traces_what_a_checkpoint_holds(devices):
    """When a run is resumed, its streams ask at the same time."""
    slow, (_, data) = Slow(), growth(12)
    sweep = Sweep(Trial(epochs=1, optimizer="sgd"), {"batch_size": [2, 3, 4, 6]})
    programs = planned([sweep], Problem(slow, data), devices).programs
    arrays, slow.most = evaluation.with_evaluation(data), 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda own: compiling.state_like(own, slow, arrays), programs))
    assert slow.most == 1


class Watch(Silent):
    """Writes down what it is told."""

    def __init__(self):
        self.programs, self.epochs = [], []

    def compiling(self, program):
        self.programs.append(program)

    def moved(self, program, epochs):
        if epochs == int(epochs):
            self.epochs.append((program.trials[0].batch_size, int(epochs)))


def test_a_trial_of_two_sweeps_trains_once(devices):
    base, watch = Trial(epochs=2, batch_size=3, optimizer="sgd"), Watch()
    sweeps = [Sweep(base, {"learning_rate": a}) for a in ([0.1, 0.2], [0.2, 0.3])]
    records = train(sweeps, growth(6), devices[:1], progress=watch)
    trained = [trial for program in watch.programs for trial in program.trials]
    assert [trial.learning_rate for trial in trained] == [0.1, 0.2, 0.3]
    assert set(records) == {*sweeps[0].trials(), *sweeps[1].trials()}
    assert watch.epochs == [(3, 1), (3, 2)]


def test_too_large_a_batch_is_refused_before_anything_is_compiled(devices, compilations):
    sweep, watch = Sweep(base=Trial(epochs=1), axes={"batch_size": [6, 7]}), Watch()
    with pytest.raises(UserError, match="batch_size=7: larger than the 6 training examples"):
        train([sweep], growth(6), devices, progress=watch)
    assert not watch.programs
    assert not compilations


EPOCHS = 50


@pytest.fixture
def over(monkeypatch):
    """Set as soon as the driver has told all streams to stop, and begins to wait for them."""
    event, busy = threading.Event(), driver.Machine.busy
    monkeypatch.setattr(driver.Machine, "busy", lambda *args: event.set() or busy(*args))
    return event


class Held(Watch):
    """Holds the stream of one batch size, once it has trained, until all are told to stop."""

    def __init__(self, batch_size: int, over: threading.Event):
        super().__init__()
        self.batch_size, self.over, self.trains = batch_size, over, threading.Event()

    def moved(self, program, epochs):
        super().moved(program, epochs)
        if program.trials[0].batch_size == self.batch_size:
            self.trains.set()
            assert self.over.wait(60)
        else:
            self.other_moved()

    def other_moved(self):
        assert self.trains.wait(60)


class Trouble(Held):
    """Raises in the other stream."""

    def other_moved(self):
        super().other_moved()
        raise ZeroDivisionError


@pytest.mark.parametrize("batch_size", [2, 3])
def test_an_exception_stops_the_other_streams_and_is_raised(devices, batch_size, over):
    sweep = Sweep(Trial(epochs=EPOCHS), {"batch_size": [2, 3]})
    trouble = Trouble(5 - batch_size, over)
    with pytest.raises(ZeroDivisionError):
        train([sweep], growth(6), devices[:2], progress=trouble)
    assert trouble.trains.is_set()
    # Of the other, no more than the two calls that were under way: an epoch, at most.
    assert {(size, epoch) for size, epoch in trouble.epochs} <= {(5 - batch_size, 1)}


def test_who_stops_listening_stops_the_streams(devices, over):
    axes = {("batch_size", "epochs"): [(2, 1), (3, EPOCHS)]}
    watch = Held(3, over)
    made = planned([Sweep(Trial(), axes)], growth(6), devices[:2])
    batches = driver.stream(made, *growth(6), devices, watch)
    assert [record.trial.batch_size for record in next(batches)] == [2]
    batches.close()
    assert {epoch for size, epoch in watch.epochs if size == 3} <= {1}


def test_a_stop_that_was_not_asked_for_stays_unset(devices):
    """It serves the next stage of a run as well."""
    stop = threading.Event()
    made = planned([Sweep(base=Trial(epochs=1, batch_size=3))], growth(6), devices[:1])
    for _ in range(2):
        assert len(list(driver.stream(made, *growth(6), devices[:1], stop=stop))) == 1
        assert not stop.is_set()
    stop.set()
    with pytest.raises(InterruptedRunError):
        list(driver.stream(made, *growth(6), devices[:1], stop=stop))


def test_trials_trained_in_chunks_equal_those_trained_at_once(problem, devices):
    """Seven trials on two devices, two at a time: four each, the last one there to fill up."""
    sweep = Sweep(BASE.replace(depth=1), {"seed": range(7)}, record=NORMS)
    made = planned([sweep], problem, devices[:2])
    [program] = made.programs
    assert program.chunk == 4
    chunks = dataclasses.replace(made, programs=(dataclasses.replace(program, chunk=2),))
    together, apart = (execute(each, *problem, devices[:2]) for each in (made, chunks))
    assert list(together) == list(apart) == sweep.trials()
    for trial in sweep.trials():
        assert_close(apart[trial], together[trial])


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setitem(compiling.FAST_TO_COMPILE, "xla_no_such_option", True)
    double = compiling.compile_with(compiling.FAST_TO_COMPILE, jax.jit(lambda x: 2 * x).lower(1.0))
    assert double(3.0) == 6
    monkeypatch.setitem(compiling.FAST_TO_COMPILE, "xla_backend_optimization_level", "none")
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
        compiling.compile_with(compiling.FAST_TO_COMPILE, jax.jit(lambda x: 2 * x).lower(1.0))


def test_what_a_user_asks_of_xla_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    options = {"xla_backend_optimization_level": "none", "xla_llvm_disable_expensive_passes": True}
    double = compiling.compile_with(options, jax.jit(lambda x: 2 * x).lower(1.0))
    assert double(3.0) == 6


class Compilers:
    """Stands in for `compile_program`: says when a program of a batch size has been compiled."""

    def __init__(self, monkeypatch, broken: int | None = None):
        self.original, self.broken = program.compile_program, broken
        self.compiled = {size: threading.Event() for size in (2, 3)}
        self.sizes, self.lock = [], threading.Lock()
        monkeypatch.setattr(program, "compile_program", self)

    def __call__(self, which, *arguments):
        size = which.trials[0].batch_size
        try:
            if size == self.broken:
                raise ZeroDivisionError
            return self.original(which, *arguments)
        finally:
            with self.lock:
                self.sizes.append(size)
            self.compiled[size].set()


class UntilCompiled(Watch):
    """Holds the first program that trains until both have been compiled."""

    def __init__(self, compilers):
        super().__init__()
        self.compilers, self.before = compilers, None

    def moved(self, program, epochs):
        super().moved(program, epochs)
        assert all(event.wait(60) for event in self.compilers.compiled.values())
        self.before = self.before or list(self.compilers.sizes)


@pytest.mark.parametrize("timed", [False, True])
def test_programs_are_compiled_before_their_turn(devices, monkeypatch, timed):
    """While another trains; of those that run alone, all before the first."""
    compilers = Compilers(monkeypatch)
    watch = UntilCompiled(compilers)
    sweep = Sweep(Trial(epochs=2), {"batch_size": [2, 3]}, timed=timed)
    records = train([sweep], growth(6), devices[:1], progress=watch)
    assert list(records) == sweep.trials()
    assert {epoch for _, epoch in watch.epochs} == {1, 2}
    if timed:
        assert sorted(watch.before[:2]) == [2, 3]
    assert all(record.compile_seconds > 0 for record in records.values())


def test_what_cannot_be_compiled_is_said_when_its_turn_has_come(devices, monkeypatch):
    made = planned([Sweep(Trial(epochs=2), {"batch_size": [2, 3]})], growth(6), devices[:1])
    [own] = made.streams
    first, second = (each.trials[0].batch_size for each in own)
    Compilers(monkeypatch, broken=second)
    batches = driver.stream(made, *growth(6), devices[:1])
    assert [record.trial.batch_size for record in next(batches)] == [first]
    with pytest.raises(ZeroDivisionError):
        next(batches)


@pytest.mark.parametrize(("optimizer", "two"), [("adam", True), ("sgd", False)])
def test_optimizers_of_two_moments_are_told_apart(problem, devices, optimizer, two):
    made = planned([Sweep(BASE.replace(optimizer=optimizer))], problem, devices[:1])
    mesh = jax.sharding.Mesh(devices[:1], "trials")
    arrays = evaluation.with_evaluation(problem.data)
    found = compiling.lowered(made.programs[0], problem.task, mesh, arrays, 1, 1)
    assert compiling.keeps_two_moments(found.init.out_info[0]) == two
