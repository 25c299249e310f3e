"""Training as a pure function: what an epoch visits, and how it averages."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxexp import train
from jaxexp.mlp import cross_entropy
from jaxexp.shuffle import permutation
from jaxexp.trial import MLPTrial, Trial

N = 37


@dataclass(frozen=True)
class Diary:
    """A task that learns nothing and writes down what it sees: examples are numbers below N.

    The loss of an example is its number, and the state counts the visits to each.
    """

    def init(self, trial, key):
        return jnp.zeros(()), jnp.zeros(N)

    def apply(self, trial, params, state, batch, weight_B, *, train, noise=0):
        loss_B = batch.astype(jnp.float32) + 0 * params
        return {"loss": loss_B}, state.at[batch].add(weight_B)


def run_epochs(trial: Trial, epochs: int) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Of every epoch its step losses and its train loss; and the visits to each example."""
    task, examples = Diary(), np.arange(N)
    run = jax.jit(functools.partial(train.train_epoch, task, trial))
    state, steps, means = train.init(task, trial), [], []
    for epoch in range(epochs):
        state, metrics, step_loss_S, _ = run(state, epoch, examples)
        steps.append(np.asarray(step_loss_S))
        means.append(float(metrics["loss"]))
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


@pytest.mark.parametrize("n", [5, 16, 50])
def test_evaluation_is_the_mean_over_all_examples(problem, monkeypatch, n):
    monkeypatch.setattr(train, "EVALUATION_BATCH", 16)
    trial = MLPTrial(depth=1, width=8, batch_norm=True)  # statistics of the batch would show
    x_NxF, y_N = (jnp.asarray(array[:n]) for array in problem.data["train"])
    state = jax.jit(lambda: train.init(problem.task, trial))()

    @jax.jit
    def both(state):
        variables = {"params": state.params, "batch_stats": state.state}
        logits_CxN = problem.task.module(trial).apply(variables, x_NxF, jnp.ones(n))
        return (
            train.evaluate(problem.task, trial, state, (x_NxF, y_N)),
            jax.tree.map(jnp.mean, cross_entropy(logits_CxN, y_N)),
        )

    metrics, expected = both(state)
    assert set(metrics) == {"loss", "accuracy"}
    for name, value in expected.items():  # sums of 50 float32 in another order
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
