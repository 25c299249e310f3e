"""Answers and verdicts of the report's rows, from results that nobody has trained."""

import numpy as np
import pytest
from datasets import dataset

from jaxexp.cli import library
from jaxexp.reproduce.statements import best_at, near
from jaxexp.results import seeds, select

SEEDS = [0, 1, 2, 3]


def question(sweep: str, row: str):
    return next(q for q in library.load(sweep).questions if q.row == row)


def judged(sweep: str, row: str, results):
    """The verdict, and the answer, which has to be there beside it."""
    asked = question(sweep, row)
    assert asked.answer(results).endswith(".")
    verdict = asked.verdict(results)
    assert verdict.reason.endswith(".")
    return verdict


def rates(at_one, loss_of_others=0.3, **options):
    loss = np.array([[at_one] * 4, [0.2] * 4, [loss_of_others] * 4])
    return dataset({"learning_rate": [1.0, 1e-2, 1e-3], "seed": SEEDS}, loss=loss,
                   epochs=20, label_entropy=2.9, **options)  # fmt: skip


@pytest.mark.parametrize(
    ("results", "agrees"),
    [
        (rates(3.0), True),
        (rates(0.5), False),  # a rate of 1 learns
        (rates(3.0, loss_of_others=2.95), False),  # a lower one does not
        (rates(3.0).isel(learning_rate=[1, 2]), None),
        (rates(3.0).isel(seed=0, drop=True).assign_attrs(axes='["learning_rate"]'), True),
    ],
)
def test_learning_rate(results, agrees):
    assert judged("learning_rate", "6.1.2.1", results).agrees is agrees


def course(curve_E):
    """Losses of four seeds that follow a curve, on both splits alike but for an offset."""
    made = dataset({"seed": SEEDS}, epochs=len(curve_E))
    noise = 0.01 * np.random.default_rng(0).normal(size=(4, len(curve_E), 1))
    offset = np.array([0, 0.1, 0.1])
    made["loss"][:] = np.array(curve_E)[:, None] + noise + offset
    return made


def test_overfitting_is_a_rise_that_chance_does_not_explain():
    epochs = np.arange(100)
    falling = np.exp(-epochs / 30)
    late = judged("epochs", "6.1.2.2", course(falling + np.maximum(epochs - 80, 0) * 0.02))
    assert late.agrees
    assert late.reason.startswith("the validation loss rises by +0.2")
    early = judged("epochs", "6.1.2.2", course(falling + np.maximum(epochs - 40, 0) * 0.03))
    assert early.agrees is False
    never = judged("epochs", "6.1.2.2", course(falling))
    assert never.agrees is False
    assert "no overfitting is seen" in never.reason
    flat = judged("epochs", "6.1.2.2", course(falling * 0 + 1))
    assert flat.agrees is False
    one = course(falling).isel(seed=0, drop=True).assign_attrs(axes="[]")
    assert judged("epochs", "6.1.2.2", one).agrees is None
    assert "±" not in question("epochs", "6.1.2.2").answer(dataset({}, epochs=100))


def test_batch_norm():
    made = dataset({"batch_norm": [False, True], "seed": SEEDS}, epochs=10)
    accuracy = made["accuracy"].values
    accuracy[0] = np.linspace(0.3, 0.9, 10)[:, None]
    accuracy[1] = np.linspace(0.7, 0.95, 10)[:, None]
    assert judged("batch_norm", "6.1.2.3", made).agrees
    made["accuracy"].values[:] = accuracy[::-1].copy()
    verdict = judged("batch_norm", "6.1.2.3", made)
    assert verdict.agrees is False
    assert "with 0 of 4 seeds" in verdict.reason
    assert judged("batch_norm", "6.1.2.3", made.isel(batch_norm=[1])).agrees is None


def test_batch_size():
    axes = {"batch_size_epochs": {"batch_size": [1, 16, 128], "epochs": [1, 6, 6]}, "seed": SEEDS}
    rising = np.repeat([[0.6], [0.8], [0.9]], 4, axis=1)
    made = dataset(axes, values={"accuracy": rising})
    assert judged("batch_size", "6.1.2.4", made).agrees
    table = question("batch_size", "6.1.2.4").table(made)
    assert table["± test acc"].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    falling = dataset(axes, values={"accuracy": rising[::-1]})
    verdict = judged("batch_size", "6.1.2.4", falling)
    assert verdict.agrees is False
    assert "highest at 1," in verdict.reason


def shapes(loss_S, spread=0.01):
    depths, widths = [1, 2, 6, 10, 6, 6, 6], [16, 16, 16, 16, 8, 32, 64]
    rng = np.random.default_rng(0)
    loss = np.array(loss_S)[:, None] + spread * rng.normal(size=(7, 4))
    axes = {"depth_width": {"depth": depths, "width": widths}, "seed": SEEDS}
    return dataset(axes, loss=loss)


def test_shapes():
    made = shapes([1.0, 0.3, 0.4, 0.5, 0.6, 0.25, 0.5])
    verdicts = {row: judged("depth_width", row, made).agrees
                for row in ("6.2.1.1", "6.2.1.2", "6.2.1.3", "6.2.1.4")}  # fmt: skip
    assert verdicts == dict.fromkeys(verdicts, True)
    other = shapes([0.3, 0.6, 0.5, 0.55, 0.3, 0.6, 0.1])
    assert judged("depth_width", "6.2.1.1", other).agrees is False
    assert judged("depth_width", "6.2.1.3", other).reason == (
        "ours is best at depth 1, clearly ahead of 2 hidden layers."
    )
    close = shapes([0.5, 0.5, 0.5, 0.6, 0.6, 0.3, 0.3], spread=0)
    close["accuracy"][-1] += np.array([0.1, -0.09, 0.1, -0.09])[:, None, None]
    assert judged("depth_width", "6.2.1.4", close) == (
        None,
        "ours is best at width 64, but its lead over about 30 units is within the spread.",
    )
    assert judged("depth_width", "6.2.1.1", made.isel(seed=[0])).agrees


def test_a_precise_value_is_held_against_the_spread():
    steady = shapes([0.4] * 7, spread=0.001)
    _, point = select.point(seeds.average(steady), 0)
    assert not near(point, 0.25, within=0.05).agrees
    _, point = select.point(seeds.average(shapes([0.35] * 7, spread=0.2)), 0)
    assert near(point, 0.25, within=0.05).agrees
    diverged = dataset({"width": [8, 16]}, diverged=1)
    assert near(select.point(diverged, 0)[1], 0.25, within=0.05).agrees is False
    assert best_at(diverged, "loss", "width", 8, "8").agrees is None
    assert best_at(diverged, "loss", "width", 9, "9").agrees is None


def test_gradients():
    axes = {"batch_norm_residual": {"batch_norm": [False, True, False],
                                    "residual": [False, False, True]}, "seed": SEEDS}  # fmt: skip
    made = dataset(axes, layers=100)
    norms = made["gradient_norm"].values
    layers = np.arange(100)
    norms[0] = 10.0 ** (layers / 10 - 10)  # vanish towards the first layer
    norms[1] = 10.0 ** (-layers / 10)  # explode
    norms[2] = 1.0
    assert judged("gradients", "6.2.1.5", made).agrees
    assert judged("gradients", "6.2.1.6", made).agrees
    made["gradient_norm"].values[:2] = norms[1::-1].copy()
    assert judged("gradients", "6.2.1.5", made).agrees is False
    assert judged("gradients", "6.2.1.6", made).agrees is False


def test_sines():
    axes = {"features": ["raw", "sines"], "seed": SEEDS}

    def with_accuracy(sines, loss):
        values = {"accuracy": np.repeat([[0.8], [sines]], 4, axis=1)}
        return dataset(axes, loss=np.repeat([[0.6], [loss]], 4, axis=1), values=values)

    assert judged("sines", "6.2.1.7", with_accuracy(0.97, 0.1)).agrees
    assert judged("sines", "6.2.1.7", with_accuracy(0.81, 0.55)).agrees is False
    assert "with 4 of 4 seeds" in question("sines", "6.2.1.7").answer(with_accuracy(0.97, 0.1))
