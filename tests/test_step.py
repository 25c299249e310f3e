"""Training as a pure function: what an epoch visits, and how it averages."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxexp.nn.mlp import cross_entropy
from jaxexp.spec.trial import MLPTrial, Trial
from jaxexp.training import step as train
from jaxexp.training.shuffle import permutation

N = 37


@dataclass(frozen=True)
class Diary:
    """A task that learns nothing and writes down what it sees: examples are numbers below N.

    The loss of an example is its number, and the state counts the visits to each.
    """

    def init(self, trial, key, data):
        return jnp.zeros(()), jnp.zeros(N)

    def apply(self, trial, params, state, batch, weight_B, *, train, noise=0):
        loss_B = batch.astype(jnp.float32) + 0 * params
        return {"loss": loss_B}, state.at[batch].add(weight_B)


@dataclass(frozen=True)
class Loss:
    """A task whose examples are their own losses."""

    evaluation_batch: int = 4

    def init(self, trial, key, data):
        return jnp.zeros(()), {}

    def apply(self, trial, params, state, batch, weight_B, *, train, noise=0):
        return {"loss": batch + 0 * params}, state


def run_epochs(
    trial: Trial, epochs: int, calls: int = 1
) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Of every epoch its step losses and its train loss; and the visits to each example."""
    task, examples = Diary(), np.arange(N)
    data = {"train": examples}
    run = jax.jit(functools.partial(train.train_steps, task, trial))
    (state, gathered), steps, means = train.init(task, trial, data), [], []
    cuts = np.linspace(0, train.steps_per_epoch(N, trial.batch_size), calls + 1).astype(int)
    for epoch in range(epochs):
        for first, last in itertools.pairwise(cuts):
            state, gathered = run(state, gathered, epoch, first, last, examples)
        history = jax.tree.map(lambda a: np.asarray(a)[None], gathered)
        steps.append(history.steps["loss"][0])
        found = train.means(trial, history, {"train": N, "validation": 1, "test": 1})
        means.append(float(found["train"]["loss"][0]))
    return steps, means, np.asarray(state.state)


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


@pytest.mark.parametrize(("validation", "test"), [(5, 7), (16, 16), (30, 20), (1, 31)])
@pytest.mark.parametrize("calls", [1, 2])
def test_evaluation_is_the_mean_over_all_examples_of_a_split(problem, validation, test, calls):
    task = dataclasses.replace(problem.task, evaluation_batch=16)  # batches with both splits
    trial = MLPTrial(depth=1, width=8, batch_norm=True)  # statistics of the batch would show
    counts = {"train": 203, "validation": validation, "test": test}
    x_NxF, y_N = problem.data["train"]
    data = {s: (x_NxF[:n], y_N[:n]) for s, n in counts.items()}
    state, gathered = jax.jit(lambda: train.init(task, trial, data))()
    joined = train.join_held_out(data)
    run = jax.jit(functools.partial(train.evaluate, task, trial))
    batches = train.steps_per_epoch(validation + test, min(16, validation + test))
    for first, last in itertools.pairwise(np.linspace(0, batches, calls + 1).astype(int)):
        gathered = run(state, gathered, first, last, joined)
    found = train.means(trial, jax.tree.map(lambda a: np.asarray(a)[None], gathered), counts)
    for split in train.HELD_OUT:
        inputs, labels = data[split]
        variables = {"params": state.params, "batch_stats": state.state}
        logits_CxN = task.module(trial).apply(variables, inputs, jnp.ones(len(labels)))
        assert set(found[split]) == {"loss", "accuracy"}
        for name, value_N in cross_entropy(logits_CxN, labels).items():
            # sums of 50 float32 in another order
            np.testing.assert_allclose(found[split][name], value_N.mean(), rtol=1e-6)


def test_nan_in_one_split_does_not_leak_into_another():
    data = {s: np.ones(n, np.float32) for s, n in (("train", 4), ("validation", 3), ("test", 3))}
    data["test"][1] = np.nan
    trial, task = Trial(batch_size=2), Loss()
    state, gathered = train.init(task, trial, data)
    run = jax.jit(functools.partial(train.evaluate, task, trial))
    gathered = run(state, gathered, 0, 2, train.join_held_out(data))
    assert float(gathered.held_out["validation"]["loss"]) == 3
    assert np.isnan(float(gathered.held_out["test"]["loss"]))
