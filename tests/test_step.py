"""Training as a pure function: what an epoch visits, and how it averages."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxexp as jx
from jaxexp.base.batches import steps_per_epoch, turns_per_epoch
from jaxexp.nn.classification import MLPClassification, cross_entropy
from jaxexp.spec.trial import MLPTrial, Trial
from jaxexp.training import batching, carry, evaluation, step
from jaxexp.training.data import Data, Examples
from jaxexp.training.metric import Metric
from jaxexp.training.shuffle import permutation
from jaxexp.training.task import Outputs, Task, Variables

N = 37


def test_what_fills_a_batch_follows_in_the_order():
    """No example is there twice: the distance of two that are the same has no gradient."""
    given = jnp.arange(10), 10, jnp.uint32(8), 5, 7, batching.as_they_lie
    batch_B, mask_B = batching.take(*given)
    np.testing.assert_array_equal(batch_B, [8, 9, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(mask_B, [True, True] + 5 * [False])


class Diary(Task):
    """A task that learns nothing and writes down what it sees: examples are numbers below N.

    The loss of an example is its number, and the state counts the visits to each.
    """

    def init(self, trial, rng, data):
        return Variables(jnp.zeros(()), jnp.zeros(N))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        loss_B = batch.astype(jnp.float32) + 0 * variables.params
        return Outputs(loss_B, state=variables.state.at[batch].add(mask))


class Loss(Task):
    """A task whose examples are their own losses."""

    evaluation_batch_size = 4

    def init(self, trial, rng, data):
        return Variables(jnp.zeros(()))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        return Outputs(batch + 0 * variables.params)


def run_epochs(
    trial: Trial, epochs: int, calls: int = 1
) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Of every epoch its step losses and its running loss; and the visits to each example."""
    task, data = Diary(), evaluation.with_evaluation(Data(np.arange(N, dtype=np.int32)))
    run = jax.jit(functools.partial(step.train_steps, task, trial, 1))
    (state, record), steps, means = step.init(task, trial, 1, data), [], []
    cuts = np.linspace(0, steps_per_epoch(N, trial.batch_size), calls + 1).astype(int)
    for epoch in range(epochs):
        for first, last in itertools.pairwise(cuts):
            state, record = run(state, record, epoch, first, last, data)
        steps.append(np.asarray(record.step_loss_S))
        means.append(float(carry.running_loss(trial.batch_size, steps[-1][None], None, N)[0]))
    return steps, means, np.asarray(state.variables.state)


@pytest.mark.parametrize("batch_size", [1, 8, 36, N])
def test_an_epoch_visits_every_example_once(batch_size):
    steps, means, visits_N = run_epochs(Trial(batch_size=batch_size), epochs=2)
    np.testing.assert_array_equal(visits_N, np.full(N, 2))
    assert [len(step_loss_S) for step_loss_S in steps] == [-(-N // batch_size)] * 2
    # A mean over the examples, not over the steps: the last step has fewer of them.
    np.testing.assert_allclose(means, (N - 1) / 2, rtol=1e-6)


def test_batches_follow_the_permutation_of_the_seed_and_the_epoch():
    steps, _, _ = run_epochs(Trial(seed=5, batch_size=8), epochs=2)
    for epoch, step_loss_S in enumerate(steps):
        order_N = np.asarray(permutation(N, 5, epoch)(jnp.arange(N)))
        batches = np.split(order_N, range(8, N, 8))
        np.testing.assert_allclose(step_loss_S, [batch.mean() for batch in batches], rtol=1e-6)


def test_shuffles_depend_on_the_seed_and_the_epoch_alone():
    base = Trial(batch_size=1)
    (first, second), _, _ = run_epochs(base, epochs=2)
    assert (first != second).any()
    assert (run_epochs(base.replace(seed=1), epochs=1)[0][0] != first).any()
    other = base.replace(learning_rate=0.5, optimizer="adamw", weight_decay=0.1, epochs=7)
    np.testing.assert_array_equal(run_epochs(other, epochs=2)[0], [first, second])


def test_an_epoch_in_several_calls_is_the_same_epoch():
    trial = Trial(seed=5, batch_size=8)
    whole, cut = (run_epochs(trial, epochs=2, calls=calls) for calls in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


turns_of = jax.jit(jax.vmap(step.turn_of, (0, None, None, None)))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40))
def test_microbatches_follow_one_another_to_the_end_of_each_batch(n, batch_size, microbatch):
    batch_size = min(batch_size, n)
    turns = turns_per_epoch(n, batch_size, microbatch)
    found = jax.tree.map(
        np.asarray, turns_of(jnp.arange(400), *map(jnp.int32, (n, batch_size, microbatch)))
    )
    assert found.active.tolist() == [True] * turns + [False] * (400 - turns)
    place = 0
    for i in range(turns):
        first = int(found.step[i]) * batch_size
        assert (int(found.start[i]), bool(found.begins[i])) == (place, place == first)
        place += min(microbatch, int(found.length[i]))
        whole = min(first + batch_size, n)
        assert place <= whole
        assert bool(found.ends[i]) == (place == whole)
    assert place == n


@pytest.mark.parametrize("n", [2**31 - 1, 2**30 + 1])
def test_microbatches_of_up_to_two_to_the_31_examples(n):
    at = jax.jit(functools.partial(step.turn_of, n=n), static_argnames="microbatch")
    for batch_size, microbatch in ((1, 8), (1000, 24), (2**30, 1024), (n, 1024)):
        turns, each = turns_per_epoch(n, batch_size, microbatch), -(-batch_size // microbatch)
        for i in (0, 1, turns // 2, turns - 1):
            found = at(jnp.int32(i), batch_size=jnp.int32(batch_size), microbatch=microbatch)
            number, part = divmod(i, each)
            start = number * batch_size + part * microbatch
            assert (int(found.step), int(found.start)) == (number, start)
            assert int(found.length) == min(n, (number + 1) * batch_size) - start
            assert bool(found.ends) == (int(found.length) <= microbatch)
            assert bool(found.active)


def evaluated(task: Task, trial: Trial, data: Data, calls: int = 1):
    """The model at its start, and its metrics by split."""
    arrays = evaluation.with_evaluation(data)
    state, record = jax.jit(lambda: step.init(task, trial, 1, arrays))()
    run = jax.jit(functools.partial(evaluation.evaluate, task, trial))
    n = batching.count(arrays["evaluation"]["examples"])
    batches = steps_per_epoch(n, min(n, task.evaluation_batch_size))
    for first, last in itertools.pairwise(np.linspace(0, batches, calls + 1).astype(int)):
        record = run(state, record, first, last, arrays)
    splits = jax.tree.map(lambda a: np.asarray(a)[None, None], record.splits)
    found = {split: carry.values(task, sums) for split, sums in splits.items()}
    return state.variables, jax.tree.map(lambda a: a[0, 0], found)


@pytest.mark.parametrize(
    ("validation", "test", "calls"),
    [pytest.param(30, None, 2, marks=pytest.mark.nightly), (1, 31, 3)],
)
def test_evaluation_is_the_mean_over_all_examples_of_a_split(problem, validation, test, calls):
    task = dataclasses.replace(problem.task, evaluation_batch_size=16)  # batches of several splits
    trial = MLPTrial(depth=1, width=8, batch_norm=True)  # statistics of the batch would show
    x_NxF, y_N, _ = problem.data.train
    counts = {"train": 203, "validation": validation, "test": test}
    data = Data(**{s: n and Examples(x_NxF[:n], y_N[:n]) for s, n in counts.items()})
    variables, found = evaluated(task, trial, data, calls)
    assert set(found) == set(data.splits)
    predict = jax.jit(lambda x: task.predict(trial, variables, x))
    for split, (inputs, labels, _) in data.splits.items():
        loss_N, right_N = cross_entropy(predict(inputs).T, labels)
        assert set(found[split]) == {"loss", "accuracy"}
        for name, value_N in (("loss", loss_N), ("accuracy", right_N)):
            # sums of up to 203 float32 in another order
            np.testing.assert_allclose(found[split][name], value_N.mean(), rtol=1e-6)


def test_nan_in_one_split_does_not_leak_into_another():
    splits = {s: np.ones(n, np.float32) for s, n in (("train", 4), ("validation", 3), ("test", 3))}
    arrays = evaluation.with_evaluation(Data(**splits))
    arrays["evaluation"]["examples"] = arrays["evaluation"]["examples"].copy()
    arrays["evaluation"]["examples"][8] = np.nan  # the second of the test split
    trial, task = Trial(batch_size=2), Loss()
    state, record = step.init(task, trial, 1, arrays)
    run = jax.jit(functools.partial(evaluation.evaluate, task, trial))
    record = run(state, record, 0, 3, arrays)
    assert float(record.splits["train"]["loss"]["total"]) == 4
    assert float(record.splits["validation"]["loss"]["total"]) == 3
    assert np.isnan(float(record.splits["test"]["loss"]["total"]))


def test_of_many_training_examples_a_fixed_sample_is_evaluated():
    for n, size in ((37, 37), (512, 512), (600, 512), (10_000, 3_000), (1_000_000, 10_000)):
        data = Data(np.arange(n, dtype=np.int32))
        sample_K = evaluation.train_sample(data)
        assert len(sample_K) == len(set(sample_K.tolist())) == size
        np.testing.assert_array_equal(sample_K, evaluation.train_sample(data))
        assert (np.diff(sample_K) > 0).all()
        assert sample_K[0] >= 0
        assert sample_K[-1] < n
    weight_N = np.zeros(600, np.float32)
    weight_N[[3, 500, 599]] = 1
    weighed = Data(Examples(weight_N, weight_N, weight_N), train_sample=2)
    assert set(evaluation.train_sample(weighed).tolist()) < {3, 500, 599}
    folded = weighed.folded({"train": np.array([[500, 7, 3, 8, -1], [0, 1, 2, 599, 3]])})
    assert [evaluation.train_sample(folded, fold).tolist() for fold in (0, 1)] == [[0, 2], [3, 4]]
    numbers_N = np.arange(1000, dtype=np.float32)
    for asked, size in ((None, 512), (7, 7), (2000, 1000)):
        data = Data(numbers_N, validation=numbers_N[:3], train_sample=asked)
        _, found = evaluated(Loss(), Trial(batch_size=10), data)
        sample_K = evaluation.train_sample(data)
        assert len(sample_K) == size
        assert found["train"]["loss"] == pytest.approx(numbers_N[sample_K].mean())
        assert found["validation"]["loss"] == 1
    with pytest.raises(jx.UserError, match="train_sample=0: expected a whole number above 0"):
        Data(numbers_N, train_sample=0)


# Steps and examples are numbers of 32 bits: nothing here trains.


def naive(i: int, n: int, batch_size: int) -> int:
    """The same in Python, whose whole numbers have no end."""
    return min(i, (n - 1) // batch_size) * batch_size


def test_a_finished_trial_stays_at_its_end_beside_one_that_trains():
    """100,000 examples in batches of 1 and of all: step 21,475 × 100,000 is past 2**31."""
    n = 100_000
    first = jax.jit(jax.vmap(lambda i, b: batching.first_example(i, n, b), (0, None)))
    i_S = np.array([0, 1, 21_474, 21_475, 42_949, 42_950, n - 1], np.int32)
    for batch_size in (1, 7, n // 2 + 1, n):
        expected_S = [naive(int(i), n, batch_size) for i in i_S]
        np.testing.assert_array_equal(first(i_S, np.int32(batch_size)), expected_S)
        steps = steps_per_epoch(jnp.int32(n), jnp.int32(batch_size))
        assert int(steps) == -(-n // batch_size)


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 - 2, 2**30 + 1, 2**16 + 1])
def test_steps_of_any_batch_size_up_to_two_to_the_31_examples(n):
    """The examples of a step, and which of them are there, as Python says."""
    rng = np.random.default_rng(0)

    @jax.jit
    def places(i, batch_size, offset_K):
        position_K = batching.first_example(i, n, batch_size) + offset_K
        inside_K = (position_K < jnp.uint32(n)) & (offset_K < batch_size.astype(jnp.uint32))
        return steps_per_epoch(n, batch_size), position_K, inside_K

    for size in (1, 2, 3, 1000, 2**16, 2**30, n // 2, n - 1, n, *rng.integers(1, n, 20)):
        batch_size, steps = int(size), -(-n // int(size))
        for i in {0, 1, steps // 2, steps - 2, steps - 1, steps, n - 1, *rng.integers(0, n, 3)}:
            if i < 0:
                continue
            offset_K = np.array([0, 1, batch_size - 1, batch_size, n - 1], np.uint32)
            found, position_K, inside_K = places(np.int32(i), np.int32(batch_size), offset_K)
            assert found == steps
            expected = [naive(int(i), n, batch_size) + int(k) for k in offset_K]
            assert position_K.tolist() == expected
            expected_K = [p < n and k < batch_size for p, k in zip(expected, offset_K, strict=True)]
            assert inside_K.tolist() == expected_K


def test_the_order_of_two_to_the_31_examples():
    n = 2**31 - 1
    place_K = np.array([0, 1, 2**16, 2**30, n - 2, n - 1], np.int32)
    found_K = np.asarray(jax.jit(permutation(n, 3, 4))(place_K))
    assert ((found_K >= 0) & (found_K < n)).all()
    assert len(set(found_K.tolist())) == len(place_K)


# Weights of examples, and metrics during and after an epoch


class Line(Task):
    """A line through the origin, fitted by least squares; its error is a metric of its own."""

    metrics = {"error": Metric("lower")}  # noqa: RUF012

    def init(self, trial, rng, data):
        return Variables(jnp.full((), 0.5))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        off_B = batch.x[:, 0] * variables.params - batch.y
        # Training is told apart from evaluation, as dropout would.
        return Outputs(jnp.square(off_B), metrics={"error": jnp.abs(off_B) + 100 * train})


def trained(data: Data, trial: Trial, microbatch: int | None = None):
    """After one epoch: the slope, its record, and metrics by split."""
    task, arrays = Line(), evaluation.with_evaluation(data)
    state, record = step.init(task, trial, 1, arrays, microbatch=microbatch)
    turns = turns_per_epoch(data.counts["train"], trial.batch_size, microbatch)
    run = jax.jit(functools.partial(step.train_steps, task, trial, 1, microbatch=microbatch))
    beyond = 0 if microbatch is None else 2  # as beside trials that take more turns
    state, record = run(state, record, 0, 0, turns + beyond, arrays)
    record = jax.jit(functools.partial(evaluation.evaluate, task, trial))(
        state, record, 0, 1, arrays
    )
    splits = jax.tree.map(lambda a: np.asarray(a)[None, None], record.splits)
    found = {split: carry.values(task, sums) for split, sums in splits.items()}
    return float(state.variables.params), record, jax.tree.map(lambda a: float(a[0, 0]), found)


@pytest.mark.nightly
def test_weights_of_examples_equal_so_many_copies_of_them():
    rng = np.random.default_rng(0)
    x_Nx1 = rng.normal(size=(6, 1)).astype(np.float32)
    y_N = rng.normal(size=6).astype(np.float32)
    times_N = np.array([1, 3, 0, 2, 1, 1])
    weighted = Examples(x_Nx1, y_N, times_N.astype(np.float32))
    repeated = Examples(x_Nx1.repeat(times_N, 0), y_N.repeat(times_N))
    for optimizer in ("sgd", "adam"):
        sgd = Trial(optimizer=optimizer, learning_rate=0.1)
        slope, record, found = trained(Data(weighted, weighted), sgd.replace(batch_size=6))
        expected, record_2, found_2 = trained(Data(repeated, repeated), sgd.replace(batch_size=8))
        assert slope == pytest.approx(expected, rel=1e-6)
        assert slope != pytest.approx(0.5, rel=1e-3)
        np.testing.assert_allclose(record.step_loss_S, record_2.step_loss_S, rtol=1e-6)
        assert record.step_weight_S.tolist() == [8]
        for split, metrics in found.items():
            assert metrics == pytest.approx(found_2[split], rel=1e-6)


class Parcel(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray  # in kg


def test_an_array_called_weight_is_that_of_examples_alone():
    x_Nx1, y_N = np.array([[1.0], [2]], np.float32), np.array([1, 3], np.float32)
    sgd = Trial(batch_size=2, optimizer="sgd", learning_rate=0.1)
    slope, record, found = trained(Data(Parcel(x_Nx1, y_N, -y_N)), sgd)
    expected, _, found_2 = trained(Data(Examples(x_Nx1, y_N)), sgd)
    assert (slope, found) == (expected, found_2)
    assert record.step_weight_S is None


@pytest.mark.parametrize(
    "microbatch", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 16)), 3]
)
def test_microbatches_of_weighted_examples_are_one_batch(microbatch):
    rng = np.random.default_rng(0)
    x_Nx1, y_N = rng.normal(size=(23, 1)).astype(np.float32), rng.normal(size=23)
    weighted = Examples(x_Nx1, y_N.astype(np.float32), rng.integers(0, 3, 23).astype(np.float32))
    for optimizer in ("sgd", "adam"):
        trial = Trial(optimizer=optimizer, learning_rate=0.1, batch_size=5)
        slope, record, found = trained(Data(weighted, weighted), trial, microbatch)
        expected, whole, found_2 = trained(Data(weighted, weighted), trial)
        assert slope == pytest.approx(expected, rel=1e-5)
        for name in ("step_loss_S", "step_weight_S", "running"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
                getattr(record, name), getattr(whole, name),
            )  # fmt: skip
        for split, metrics in found.items():
            assert metrics == pytest.approx(found_2[split], rel=1e-5)


def test_running_metrics_are_of_training_and_the_others_of_the_epochs_end():
    x_Nx1 = np.linspace(1, 2, 8, dtype=np.float32)[:, None]
    data = Data(Examples(x_Nx1, x_Nx1[:, 0]), validation=Examples(x_Nx1, x_Nx1[:, 0]))
    trial = Trial(optimizer="sgd", learning_rate=0.05, batch_size=2)
    slope, record, found = trained(data, trial)
    errors = {"loss": np.square((slope - 1) * x_Nx1).mean(), "error": abs(slope - 1) * 1.5}
    assert found["train"] == found["validation"] == pytest.approx(errors, rel=1e-5)
    own = jax.tree.map(lambda a: np.asarray(a)[None, None], record.running)
    running = float(carry.values(Line(), own)["error"][0, 0])
    assert running > 100  # in training mode
    assert running - 100 > 1.5 * found["train"]["error"]  # while the slope was worse
    loss = carry.running_loss(trial.batch_size, np.asarray(record.step_loss_S)[None], None, 8)
    assert loss[0] == pytest.approx(float(record.step_loss_S.mean()), rel=1e-6)
    assert loss[0] > 2 * found["train"]["loss"]


def test_weighted_running_loss_is_that_of_all_examples():
    weight_ExS = np.array([[3.0, 1.0, 0.0]])
    loss_ExS = np.array([[1.0, 5.0, 7.0]], np.float32)
    assert carry.running_loss(2, loss_ExS, weight_ExS, 6)[0] == 2


def test_inputs_of_sines_are_cropped_to_their_own_number():
    """Ten for each input, whatever the number of inputs."""
    for inputs in (2, 5, 64):
        data = Data(Examples(np.zeros((6, inputs), np.float32), np.arange(6, dtype=np.int32) % 3))
        task = MLPClassification().bind(data)
        trial = MLPTrial(features="sines", depth=2, width=4)

        def shapes(trial, task=task, data=data):
            return jax.eval_shape(lambda: task.init(trial, jax.random.key(0), data.arrays()))

        own = shapes(trial)
        wide = shapes(trial.replace(width=8, depth=3))
        cropped, _ = task.crop(trial, jax.tree.map(lambda a: np.ones(a.shape), wide), None)
        assert jax.tree.map(np.shape, cropped) == jax.tree.map(lambda a: a.shape, own)
        assert cropped.params["first"]["affine"]["kernel"].shape == (4, 10 * inputs)
