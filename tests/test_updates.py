"""Optimizers that would update a padded model otherwise than alone are found out in time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nights import at_night
from optax import contrib

import jaxexp as jx
from jaxexp.spec.padding import ProgramSpec, choose, largest, value
from jaxexp.training import masks, updates

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
DATA = jx.arrays(X, (X[:, 0] > 0).astype(int) + (X[:, 2] > 0.3), validation=None)
BASE = jx.MLPTrial(epochs=2, depth=2, width=8, batch_size=16, learning_rate=0.02)
RATE = 0.02


@pytest.fixture(scope="module", autouse=True)
def examples_are_apart():
    """Of all models here: to prove it takes longer than to try their optimizers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxexp.api.inspector.mixing", lambda *_: lambda trial: masks.APART)
        yield


@dataclasses.dataclass(frozen=True)
class Own(jx.MLPClassification):
    """With an optimizer of the user's own."""

    make: object = None

    def optimizer(self, trial, steps):
        return self.make(trial)


def sgd_after(*parts):
    return lambda trial: optax.chain(*parts, optax.sgd(trial.learning_rate))


def later(part, condition):
    return optax.conditionally_transform(part, condition)


def by_count(factor, kind=jnp.int32):
    """Gradients moved by their mean, times a factor of a count."""

    def update(grads, count, params=None):
        moved = jax.tree.map(lambda g: g + factor(count) * g.mean(), grads)
        return moved, count + 1

    return sgd_after(optax.GradientTransformation(lambda params: kind(0), update))


def rounded_momentum():
    """Whole numbers that count nothing."""

    def update(grads, moments, params=None):
        new = jax.tree.map(lambda g: jnp.clip(jnp.round(8 * g), -9, 9).astype(jnp.int8), grads)
        return jax.tree.map(lambda g, m: g + 0.01 * m, grads, moments), new

    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int8), params), update
    )


SAME = {
    "clipped Adam": lambda t: optax.chain(
        optax.clip_by_global_norm(0.05), optax.adam(t.learning_rate)
    ),
    "AdamW with a warm-up": lambda t: optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, RATE, 5, 50), weight_decay=0.1
    ),
    "LAMB": lambda t: optax.lamb(t.learning_rate),
    "LARS": lambda t: optax.lars(t.learning_rate),
    "schedule-free": lambda t: contrib.schedule_free_adamw(t.learning_rate, 5),
    "signs": lambda t: optax.sign_sgd(t.learning_rate),
    "clipped later": sgd_after(later(optax.clip_by_global_norm(0.1), lambda step: step >= 10)),
    "momentum in integers": sgd_after(rounded_momentum()),
    "every 32nd step": lambda t: optax.MultiSteps(optax.adam(RATE), 32),
}
DIFFERENT = {
    "Adafactor": lambda t: optax.adafactor(t.learning_rate, min_dim_size_to_factor=2),
    "Muon": lambda t: contrib.muon(t.learning_rate),
    "centred": sgd_after(optax.centralize()),
    "clipped from some size on": sgd_after(optax.clip_by_block_rms(10.0)),
    "clipped after Adam": lambda t: optax.chain(
        optax.scale_by_adam(b2=0.95), optax.clip_by_block_rms(1.0), optax.scale(-RATE)),
    "noise": sgd_after(optax.add_noise(0.1, 0.5, 0)),
    "decay towards 1": sgd_after(optax.stateless(lambda grads, params: jax.tree.map(
        lambda g, p: g + 0.1 * (p - 1), grads, params))),
    "moves later": lambda t: optax.MultiSteps(contrib.muon(RATE), 8),
    "centred later": sgd_after(later(optax.centralize(), lambda step: step >= 10)),
    "centred at times": sgd_after(later(optax.centralize(), lambda step: step % 7 == 6)),
    "a factor that is 0 at first": by_count(lambda count: jnp.clip(count - 12.0, 0.0, 1.0)),
    "an unsigned count": by_count(lambda count: 1.0 * (count >= 10), jnp.uint32),
    "not a number in padding": sgd_after(optax.stateless(lambda grads, params: jax.tree.map(
        lambda g: g / abs(g), grads))),
}  # fmt: skip


def programs_of(task, axes, base=BASE, data=DATA, **options):
    return jx.plan(jx.Sweep(base, axes), task, data, devices=1, **options).plan.programs


def found(make, axes, base=BASE):
    return not why_not(Own(make=make), axes, base)


def why_not(task, axes, base=BASE):
    """Without a plan, which is quicker."""
    trials = jx.Sweep(base, axes).trials()
    return updates.why_not_padded(task.bind(DATA), trials, DATA.arrays(), 50)


@pytest.mark.parametrize("name", at_night(SAME, "LARS", "clipped later", "LAMB", "every 32nd step"))
def test_what_does_not_mind_padding_is_found_to(name):
    assert found(SAME[name], {("width", "depth"): [(3, 1), (8, 2)]})


@pytest.mark.parametrize("by", [0.5, pytest.param(0.0, marks=pytest.mark.nightly)])
def test_what_is_evaluated_counts_too(by):
    """Though the optimizer is built in."""

    class Averaged(jx.MLPClassification):
        def evaluation_params(self, trial, params, optimizer_state):
            return jax.tree.map(lambda p: p - by * p.mean(), params)

    why = why_not(Averaged(), {"width": [3, 8]})
    assert why.partition(" would")[0] == ("evaluation_params of Averaged" if by else "")


@pytest.mark.parametrize(
    "name",
    at_night(DIFFERENT, "noise", "moves later", "centred at times", "a factor that is 0 at first"),
)
def test_what_minds_is_found_to(name):
    assert not found(DIFFERENT[name], {"width": [3, 8]})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: optax.yogi(RATE), "moves weights whose gradient is 0"),
        pytest.param(
            lambda t: optax.MultiSteps(optax.sgd(RATE), 1000), "could not be tried",
            marks=pytest.mark.nightly,
        ),
        (lambda t: optax.sgd(RATE / t.width.sum()), "of Own would update them as alone raised"),
    ],
)  # fmt: skip
def test_it_is_said_what_is_known(make, said):
    assert said in why_not(Own(make=make), {"width": [3, 8]})


def with_mean(factor):
    """Gradients moved by their mean, times what a trial says."""

    def make(trial):
        by = factor(trial)
        means = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g + by * g.mean(), grads))
        return optax.chain(means, optax.sgd(RATE))

    return make


@pytest.mark.nightly
def test_the_ends_of_what_is_traced_are_tried():
    make = with_mean(lambda trial: trial.weight_decay)
    for order in ([0.1, 0.0], [0.0, 0.1]):
        assert not found(make, {"width": [3, 8], "weight_decay": order})


def test_few_ends_are_tried():
    """Of grids each two ends beside one another; else the ends of as many as there is room for."""
    names = ["momentum", "dropout", "weight_decay", "learning_rate"]
    trials = jx.Sweep(BASE, {name: [0.1, 0.2, 0.5] for name in names}).trials()
    ends = [[*end.values()] for end in updates._ends(trials, names)]
    assert ends[:2] == [[0.1] * 4, [0.5] * 4]
    for i, j in itertools.combinations(range(4), 2):
        assert len({(end[i], end[j]) for end in ends}) == 4
    columns = np.random.default_rng(0).random((4, 99)).tolist()
    apart = jx.Sweep(BASE, {tuple(names): [*zip(*columns, strict=True)]}).trials()
    ends = updates._ends(apart, names)
    assert len(ends) <= 8
    for name, column in zip(names, columns, strict=True):
        assert {min(column), max(column)} <= {end[name] for end in ends}
    assert updates._ends(apart, []) == [{}]


def test_what_nothing_reads_is_not_tried():
    spec = ProgramSpec.of([BASE, BASE.replace(width=3, momentum=0.1, seed=1, learning_rate=0.1)])
    model = updates._Model(Own(make=SAME["LAMB"]).bind(DATA), spec, BASE, DATA.arrays(), 50)
    assert model.read() == ["learning_rate"]


@pytest.mark.nightly
def test_options_are_tried():
    """Some pad the model, and others say how it is updated."""
    assert not found(DIFFERENT["Adafactor"], {"features": ["raw", "sines"]})
    make = with_mean(lambda trial: choose(trial.activation, lambda name: 1.0 * (name == "tanh")))
    for order in (["relu", "tanh"], ["tanh", "relu"]):
        assert not found(make, {"width": [3, 8], "activation": order})


def test_every_structure_is_tried():
    """The usual mask of biases, for one network with widths of each layer among others."""

    def kernels(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    decayed = optax.adamw(RATE, weight_decay=1e-4, mask=kernels)
    assert not found(lambda _: decayed, {"width": [4, (6, 4), 8, 12, 14, 16]})


@pytest.mark.nightly
def test_each_size_counts():
    """Of depths, the arrays of hidden layers that both have; of batch norm, the scales, too."""
    assert not found(DIFFERENT["clipped from some size on"], {"depth": [2, 3]})
    assert found(lambda t: optax.lbfgs(), {"width": [3, 8]})
    assert found(DIFFERENT["Muon"], {"width": [8], "batch_size": [4, 8], "seed": range(2)})
    normed = BASE.replace(batch_norm=True)
    assert found(SAME["AdamW with a warm-up"], {"width": [3, 8]}, normed)
    assert found(SAME["LAMB"], {"width": [3, 8]}, normed)
    assert found(SAME["clipped Adam"], {("width", "depth"): [((3, 5), 2), (8, 3), (4, 1)]})


def test_trials_are_padded_only_where_they_train_as_alone():
    sweep = jx.Sweep(BASE, {"width": [3, 8]})

    def planned(make, programs):
        return jx.plan(sweep, Own(make=make), DATA, devices=1, programs=programs)

    merged, alone = (planned(SAME["clipped Adam"], p) for p in ("auto", "exact"))
    assert planned(DIFFERENT["centred"], "auto").plan.programs == alone.plan.programs
    assert len(merged.plan.programs) == 1
    assert len(alone.plan.programs) == 2
    together, alone = (jx.run(plan, progress=False)["loss"] for plan in (merged, alone))
    np.testing.assert_allclose(together, alone, rtol=2e-5)


def test_one_program_of_them_is_refused():
    task, axes = Own(make=DIFFERENT["centred"]), {("width", "depth"): [(3, 1), (8, 2)]}
    with pytest.raises(jx.UserError, match=r"differ in depth and width .* of Own would not"):
        programs_of(task, axes, programs="one")
    assert len(programs_of(task, {"batch_size": [4, 8]}, programs="one")) == 1
    assert len(programs_of(Own(make=SAME["LAMB"]), axes, programs="one")) == 1


def test_optimizers_of_jaxexp_are_not_tried(monkeypatch):
    monkeypatch.setattr(updates, "_why", None)
    assert len(programs_of(jx.MLPClassification(), {"width": [3, 8]})) == 1
    task = Own(make=SAME["LAMB"])
    assert len(programs_of(task, {"width": [3, 8]}, programs="exact")) == 2
    assert len(programs_of(task, {"learning_rate": [0.1, 0.01]})) == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SumTrial(jx.Trial):
    terms: int = jx.size(4)


class Sum(jx.Task):
    """A model of the user's own, whose padding holds random numbers that nothing reads."""

    def __init__(self, make, crop=None):
        self.make, self.cut = make, crop or (lambda trial, w: w[: trial.terms])

    def init(self, trial, rng, data):
        return jx.Variables({"w": jax.random.normal(rng, (largest(trial.terms),))})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        own = jnp.arange(largest(trial.terms)) < value(trial.terms)
        slope = jnp.where(own, variables.params["w"], 0).sum()
        return jx.Outputs((batch.x[:, 0] * slope - batch.y) ** 2)

    def optimizer(self, trial, steps):
        return self.make(trial)

    def crop(self, trial, variables, norms_ExL):
        return jx.Variables({"w": self.cut(trial, variables.params["w"])}), norms_ExL


class Scaled(Sum):
    """Whose padding begins at what a trial says."""

    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.full(largest(trial.terms), 1.0) * trial.scale})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledTrial(SumTrial):
    scale: float = jx.traced(0.0)


def test_it_is_tried_from_the_start_of_each_end():
    axes, data = {"terms": [2, 4], "scale": [0.0, 1.0]}, jx.arrays(X, X[:, 0], validation=None)
    base, task = ScaledTrial(epochs=2, batch_size=16), Scaled(lambda t: optax.lars(RATE))
    assert len(programs_of(task, axes, base, data)) == 2


@pytest.mark.parametrize(
    ("make", "crop", "programs"),
    [
        (lambda t: optax.adamw(RATE, weight_decay=0.1), None, 1),
        (lambda t: optax.lars(RATE), None, 2),  # the norm of all weights, the padding's too
        (lambda t: optax.sgd(RATE / value(t.terms)), None, 1),
        (lambda t: optax.sgd(RATE / t.terms), None, 2),  # raises, for a size that is padded
        (lambda t: optax.sgd(RATE / largest(t.terms)), None, 2),
        (lambda t: optax.sgd(RATE), lambda trial, w: w, 2),  # which of them are its own?
    ],
)
def test_models_of_ones_own(make, crop, programs):
    axes, data = {"terms": [2, 4]}, jx.arrays(X, X[:, 0], validation=None)
    base = SumTrial(epochs=2, batch_size=16)
    assert len(programs_of(Sum(make, crop), axes, base, data)) == programs
