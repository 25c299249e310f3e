"""Tasks of a user's own: every hyperparameter has its own value inside a program, or is refused."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import TaskFunctions, train_alone
from rings import assert_close, execute

import jaxexp as jx
from jaxexp.execution import trainer
from jaxexp.execution.listeners import Silent
from jaxexp.sklearn.mlp import SklearnMLP
from jaxexp.spec.padding import Choice, largest
from jaxexp.training.metrics import r2_around

RNG = np.random.default_rng(0)
X_Nx3 = RNG.normal(size=(50, 3)).astype(np.float32)
DATA = jx.Data(jx.Examples(X_Nx3, X_Nx3 @ np.array([1.0, -2.0, 0.5], np.float32) + 1))


@dataclass(frozen=True, kw_only=True)
class LineTrial(jx.Trial):
    batch_size: int = 16
    learning_rate: float = jx.traced(0.05)
    warmup: float = jx.traced(0.2, at_least=0, below=1)
    clip: float | None = None


def init(trial, rng, x):
    return {"w": 0.1 * jax.random.normal(rng, x.shape[1:]), "b": jnp.zeros(())}


def apply(trial, params, x):
    return x @ params["w"] + params["b"]


def schedule(trial, steps):
    """Warm-up and cosine over the true length of the run, and clipping where asked."""

    def rate(count):
        warm = trial.warmup * steps
        progress = jnp.clip((count - warm) / (steps - warm), 0, 1)
        falling = (1 + jnp.cos(jnp.pi * progress)) / 2
        return trial.learning_rate * jnp.where(count < warm, (count + 1) / (warm + 1), falling)

    clip = optax.identity() if trial.clip is None else optax.clip_by_global_norm(trial.clip)
    return optax.chain(clip, optax.scale_by_adam(), optax.scale_by_learning_rate(rate))


def line(optimizer=schedule, **options):
    return jx.supervised(
        init=init, apply=apply, loss=optax.squared_error, optimizer=optimizer, **options
    )


def test_schedules_over_the_run_length_in_a_shared_program_equal_each_trial_alone(devices):
    """Of several lengths and batch sizes: no trial is the prefix of another."""
    points = [(1, 16, 0.3), (3, 16, 0.3), (3, 50, 0.0)]
    sweep = jx.Sweep(LineTrial(), {("epochs", "batch_size", "warmup"): points})
    planned = jx.plan(sweep, line(), DATA, programs="one", devices=2)
    [program] = planned.plan.programs
    assert (len(program.trials), program.prefixes) == (3, ())
    together = execute(planned.plan, planned.task, DATA, devices[:2])
    for trial in sweep.trials():
        alone = jx.plan(jx.Sweep(trial), line(), DATA, devices=1)
        [record] = execute(alone.plan, alone.task, DATA, devices[:1]).values()
        assert_close(together[trial], record, atol=1e-6)


@pytest.mark.nightly
def test_a_schedule_equals_plain_optax(devices):
    """Step by step, in the order of the same shuffles."""
    from jaxexp.training.shuffle import permutation

    trial = LineTrial(epochs=3, clip=0.5, seed=4)
    results = jx.run(jx.Sweep(trial, {"epochs": [1, 3]}), line(), DATA, progress=False)
    optimizer = schedule(trial, 3 * 4)
    params = init(trial, jax.random.key(4), X_Nx3[:1])
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state, x, y):
        value = jax.value_and_grad(lambda p: optax.squared_error(apply(trial, p, x), y).mean())
        loss, grads = value(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for epoch in range(3):
        order_N = np.asarray(permutation(50, 4, epoch)(jnp.arange(50)))
        for start in range(0, 50, 16):
            rows = order_N[start : start + 16]
            params, state, loss = step(params, state, DATA.train.x[rows], DATA.train.y[rows])
            losses.append(float(loss))
    np.testing.assert_allclose(results["step_loss"].sel(epochs=3), losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), results.params(epochs=3), params
    )


def bfloat16_init(trial, rng, x):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), init(trial, rng, x))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda trial: optax.sgd(trial.learning_rate, momentum=trial.warmup),
        lambda trial: optax.adam(trial.learning_rate, b1=trial.warmup),
    ],
)
def test_the_state_of_bfloat16_parameters_stays_so_beside_traced_hyperparameters(optimizer):
    """Whole batches and microbatches, as alone and as a plain loop over optax."""
    task = jx.supervised(
        init=bfloat16_init, apply=apply, loss=optax.squared_error, optimizer=optimizer
    )
    sweep = jx.Sweep(LineTrial(epochs=2), {"batch_size": [8, 12], "warmup": [0.5, 0.9]})
    together = jx.run(sweep, task, DATA, progress=False)
    for i in (0, 3):
        trial = sweep.trials()[i]
        coords = {name: getattr(trial, name) for name in ("batch_size", "warmup")}
        loss = together["loss"].sel(split="train", **coords)
        single = jx.run(jx.Sweep(trial), task, DATA, progress=False)
        np.testing.assert_allclose(loss, single["loss"].sel(split="train"), rtol=1e-2)
        own = TaskFunctions(
            lambda trial, params, x: apply(trial, params, x),
            lambda trial, prediction, y: optax.squared_error(prediction, y),
            lambda trial, steps: optimizer(trial),
        )
        params = bfloat16_init(trial, jax.random.key(trial.seed), X_Nx3[:1])
        params, losses = train_alone(own, trial, DATA, params)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(single.params())} == {"bfloat16"}
        np.testing.assert_allclose(loss[-1], losses["train"], rtol=5e-2)


def test_a_state_that_becomes_one_of_other_numbers_is_refused():
    def update(grads, state, params=None):
        return grads, {"count": state["count"] + 0.5}

    counting = optax.GradientTransformation(lambda params: {"count": jnp.int32(0)}, update)
    message = r"optimizer: state\['count'\] is int32 at first and float32 after an update"
    with pytest.raises(jx.UserError, match=message):
        jx.plan(jx.Sweep(LineTrial(), {"warmup": [0.2]}), line(lambda trial: counting), DATA)


def test_a_prefix_is_shared_only_where_the_optimizer_does_not_ask_for_the_length():
    sweep = jx.Sweep(LineTrial(), {"epochs": [1, 2, 4]})

    def constant(trial):
        return optax.sgd(trial.learning_rate * (1 + trial.warmup))

    [program] = jx.plan(sweep, line(constant), DATA).plan.programs
    assert (len(program.trials), len(program.prefixes)) == (1, 2)
    planned = jx.plan(sweep, line(), DATA, programs="exact")
    assert [len(program.members) for program in planned.plan.programs] == [1, 1, 1]


class Epochs(jx.Task):
    """Whose loss, parameter or prediction is the trial's epochs, in one place or another."""

    prediction_dims = {"shown": ("place",)}  # noqa: RUF012

    def __init__(self, place: str):
        self.place = place

    def of(self, trial, place):
        return 1.0 * trial.epochs if place == self.place else 0.0

    def init(self, trial, rng, data):
        return jx.Variables(jnp.zeros(()) + self.of(trial, "init"))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        own = self.of(trial, "training" if train else "evaluation")
        return jx.Outputs(batch * (own + variables.params))

    def optimizer(self, trial, steps):
        return optax.scale(0.0)

    def optimizer_uses_steps(self, trial):
        return False

    def predictions(self, trial, variables, data):
        return {"shown": jnp.full(2, self.of(trial, "predictions"))}


@pytest.mark.parametrize("place", ["init", "training", "evaluation", "predictions"])
@pytest.mark.parametrize("programs", ["auto", "one"])
def test_epochs_inside_a_program_are_the_trials_own(place, programs):
    sweep = jx.Sweep(jx.Trial(batch_size=4), {"epochs": [1, 2, 3]}, record=("predictions",))
    data = jx.Data(np.ones(4, np.float32), coords={"place": (("place",), np.arange(2))})
    planned = jx.plan(sweep, Epochs(place), data, programs=programs)

    results = jx.run(planned, progress=False)
    found = {
        "init": results["loss"].isel(epoch=0, split=0),
        "training": results["running_loss"].isel(epoch=0),
        "evaluation": results["loss"].isel(epoch=0, split=0),
        "predictions": results["shown"].isel(place=0),
    }
    assert found[place].values.tolist() == [1, 2, 3]


class Asking(Epochs):
    """Whose optimizer asks for the steps of some trials: their updates are as large as given."""

    def __init__(self, size):
        super().__init__("nowhere")
        self.size = size

    def optimizer(self, trial, steps):
        own = {1: 1.0}.get(steps, self.size)
        return optax.scale(jnp.where(trial.learning_rate > 0.5, -own, -1.0))

    def optimizer_uses_steps(self, trial):
        return trial.learning_rate > 0.5


def test_steps_are_told_wherever_one_of_the_trials_asks_for_them():
    sweep = jx.Sweep(jx.Trial(batch_size=4, epochs=3), {"learning_rate": [0.1, 1.0, 0.2]})
    data = jx.Data(np.ones(4, np.float32))
    three, five = (jx.plan(sweep, Asking(size), data) for size in (3.0, 5.0))
    assert three.trained["task"] != five.trained["task"]
    losses_T = jx.run(three, progress=False)["loss"].isel(epoch=-1, split=0).values
    assert losses_T.tolist() == [-3, -9, -3]  # three steps, of 1 or 3


@pytest.mark.parametrize("programs", ["auto", "one"])
def test_trials_that_are_stopped_predict_with_the_epochs_that_they_were_given(programs):
    sweep = jx.Sweep(jx.Trial(batch_size=4), {"epochs": [2, 3, 1]}, record=("predictions",))
    data = jx.Data(np.ones(4, np.float32), coords={"place": (("place",), np.arange(2))})
    results = jx.run(
        sweep, Epochs("predictions"), data, programs=programs, stopping=jx.Budget(steps=1),
        progress=False,
    )  # fmt: skip
    assert results["epochs_trained"].values.tolist() == [1, 1, 1]
    assert results["shown"].isel(place=0).values.tolist() == [2, 3, 1]


def plan_line(axes, optimizer=schedule, base=None, **options):
    base = LineTrial() if base is None else base
    return jx.plan(jx.Sweep(base, axes), line(optimizer), DATA, **options)


@pytest.mark.parametrize("name", ["weight_decay", "momentum"])
def test_what_is_never_read_is_refused(name):
    assert plan_line({"warmup": [0.1, 0.2]})  # read in the update alone
    message = f"{name} is set to 0.0 or 0.1, but Supervised never reads it"
    with pytest.raises(jx.UserError, match=message):
        plan_line({name: [0.0, 0.1]})
    with pytest.raises(jx.UserError, match=f"{name} is set to 0.1, but"):
        plan_line({}, base=LineTrial().replace(**{name: 0.1}))


@dataclass(frozen=True, kw_only=True)
class ExtraTrial(jx.MLPTrial):
    extra: float = jx.traced(0.0)


def test_what_a_subclass_of_the_trial_adds_is_refused_where_the_task_does_not_know_it(problem):
    sweep = jx.Sweep(ExtraTrial(depth=1, batch_size=64), {"extra": [0.0, 1.0]})
    with pytest.raises(jx.UserError, match=r"extra is set to .* MLPClassification never reads"):
        jx.plan(sweep, jx.MLPClassification(), problem.data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"momentum": 0.9}, "momentum=0.9 needs optimizer=sgd, not adam"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 needs optimizer=adamw, not adam"),
    ],
)
def test_what_a_built_in_optimizer_would_not_read_is_refused(values, message, problem):
    with pytest.raises(jx.UserError, match=message):
        jx.plan(jx.Sweep(jx.MLPTrial(batch_size=64).replace(**values)), *problem)
    with pytest.raises(jx.UserError, match=message):
        plan_line({}, optimizer=None, base=LineTrial(warmup=0.2).replace(**values))


@dataclass(frozen=True, kw_only=True)
class LionTrial(jx.Trial):
    batch_size: int = 16
    optimizer: str = jx.choice("lion", ("adam", "lion"))


def by_name(trial):
    made = {"adam": optax.adam, "lion": optax.lion}
    assert not isinstance(trial.optimizer, Choice)
    return made[trial.optimizer](trial.learning_rate)


@pytest.mark.nightly
def test_an_optimizer_that_is_not_built_in_is_the_tasks_or_refused():
    sweep = jx.Sweep(LionTrial(epochs=2), {"optimizer": ["adam", "lion"]})
    with pytest.raises(
        jx.UserError, match="optimizer='lion': expected one of adam, adamw, sgd, or"
    ):
        jx.plan(sweep, line(None), DATA)
    found = jx.run(sweep, line(by_name), DATA, progress=False)["loss"]
    fixed = line(lambda trial: optax.lion(trial.learning_rate))
    lion = jx.run(jx.Sweep(LionTrial(epochs=2)), fixed, DATA, progress=False)["loss"]
    np.testing.assert_allclose(found.sel(optimizer="lion"), lion, rtol=1e-5)
    assert abs(lion - found.sel(optimizer="adam")).max() > 1e-4


@pytest.mark.parametrize("folded", [False, True])
def test_what_tasks_take_from_the_data_is_of_examples_that_count(folded):
    """Of weight above 0 and, with folds, in one of them."""
    weight_N = np.array([1, 0, 3, 2, 1], np.float32)
    value_N = np.array([1, -9999, 2, 6, -9999 if folded else 3], np.float32)
    folds = {"train": [[0, 1, 2], [1, 2, 3]], "validation": [[3], [0]]} if folded else None
    mean, median = 3.0, 2.0 if folded else 2.5

    def data(y):
        return jx.Data(jx.Examples(value_N[:, None], y, weight_N), folds=folds)

    r2 = r2_around(mean, median)
    assert line(metrics={"r2": jx.metrics.r2}).bind(data(value_N)).metrics["r2"] == r2
    own = SklearnMLP(regression=True).bind(data(value_N[:, None]))
    assert own.centers == ((mean,), (median,))
    labels = jx.MLPClassification().bind(data(np.array([0, 1, 1, 0, 1], np.int32)))
    assert labels.mean == (mean,)
    assert labels.std == (np.array([1, 2, 6, 3][: 3 if folded else 4]).std(),)
    binary = line(metrics={"accuracy": jx.metrics.accuracy})
    assert binary.bind(data(np.array([0, -1, 1, 0, 1], np.int32))).binary


def test_two_sweeps_without_names_are_refused():
    sweeps = [jx.Sweep(LineTrial()), jx.Sweep(LineTrial(seed=1))]
    with pytest.raises(jx.UserError, match="two sweeps are named 'sweep'"):
        jx.plan(sweeps, line(), DATA)
    named = [dataclasses.replace(sweep, name=str(i)) for i, sweep in enumerate(sweeps)]
    assert jx.plan(named, line(), DATA).plan.trials == 2


def test_seconds_are_shares_of_the_device_seconds_by_work(devices, monkeypatch):
    told, make = [], trainer.make_records

    def spy(program, task, examples, history, ends, stopped, changes, *seconds):
        told.append((program, seconds[0]))
        return make(program, task, examples, history, ends, stopped, changes, *seconds)

    monkeypatch.setattr(trainer, "make_records", spy)

    def constant(trial):
        return optax.sgd(trial.learning_rate * (1 + trial.warmup))

    sweep = jx.Sweep(LineTrial(), {"epochs": [2, 4], "warmup": [0.1, 0.2, 0.3]})
    results = jx.run(sweep, line(constant), DATA, progress=False, devices=2)
    [(program, seconds)] = told
    assert len(program.prefixes) == 3
    found = results["seconds"]
    assert float(found.sum()) == pytest.approx(seconds * 2)
    np.testing.assert_allclose(found.sel(epochs=4) / found.sel(epochs=2), 2, rtol=1e-6)
    assert results.dataset.attrs["train_seconds"] == pytest.approx(seconds * 2)


class Order(Silent):
    """Which program has moved, in order."""

    def __init__(self):
        self.programs = []

    def moved(self, program, epochs):
        self.programs.append(program)


@pytest.mark.nightly
def test_a_timed_sweep_runs_alone(devices):
    """After all others, one trial after another, each on one device."""
    timed = jx.Sweep(LineTrial(epochs=2), {"batch_size": [16, 50]}, name="time", timed=True)
    other = jx.Sweep(LineTrial(epochs=3), {"seed": [0, 1]}, name="other")
    planned = jx.plan([timed, other], line(), DATA, devices=2)
    order = Order()
    results = jx.run(planned, progress=order)
    alone = [program.alone for program in order.programs]
    assert alone == sorted(alone)
    own = [program.trials for program in order.programs if program.alone]
    assert len(dict.fromkeys(own)) == 2
    assert own == sorted(own, key=list(dict.fromkeys(own)).index)  # no two of them in turn
    assert all(len(trials) == 1 for trials in own)
    assert "one trial after another" in results["time"]["seconds"].attrs["long_name"]
    assert (results["time"]["seconds"] > 0).all()


@dataclass(frozen=True, kw_only=True)
class HeadsTrial(jx.Trial):
    """Of a model whose width is a multiple of its heads, which the default is not."""

    heads: int = 3
    width: int = jx.size(16)
    depth: int = jx.size(2, skipped=True)


class Heads(jx.Task):
    def init(self, trial, rng, data):
        assert largest(trial.width) % trial.heads == 0, trial
        return jx.Variables(jnp.ones((largest(trial.depth), largest(trial.width))))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        return jx.Outputs(jnp.square(variables.params).sum() * batch.y)

    def crop(self, trial, variables, norms_ExL):
        return jx.Variables(variables.params[: trial.depth, : trial.width]), norms_ExL


@pytest.mark.parametrize("mode", ["auto", "one", "exact"])
def test_a_plan_traces_no_size_that_no_trial_has(mode):
    sweep = jx.Sweep(HeadsTrial(batch_size=4), {"width": [12, 24], "depth": [3, 5]})
    planned = jx.plan(sweep, Heads(), DATA, programs=mode)
    assert sum(len(program.trials) for program in planned.plan.programs) == 4


def test_what_a_task_raises_says_what_it_was_traced_with():
    class Chooses(jx.Task):
        def init(self, trial, rng, data):
            return jx.Variables({"w": jnp.zeros(3)})

        def apply(self, trial, variables, batch, *, rng, mask, train):
            if len(batch.x) < 10:
                raise ValueError("ten of them")
            return jx.Outputs(loss=batch.x @ variables.params["w"])

    data = jx.arrays(np.ones((20, 3)), np.ones(20))
    with pytest.raises(ValueError, match="ten of them") as raised:
        jx.plan(jx.Sweep(jx.Trial(batch_size=16)), Chooses(), data)
    note = "Chooses was traced with a batch of 7 examples: any number has to work"
    assert note in raised.value.__notes__

    class Starts(Chooses):
        def init(self, trial, rng, data):
            raise ValueError("three of them")

    with pytest.raises(ValueError, match="three of them") as raised:
        jx.plan(jx.Sweep(jx.Trial(batch_size=16)), Starts(), data)
    assert "batch" not in str(getattr(raised.value, "__notes__", ""))


def test_a_loss_that_fails_for_a_size_of_batches_is_refused_by_the_size_and_its_line():
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.zeros(3)},
        apply=lambda trial, params, x: x @ params["w"],
        loss=lambda prediction, y: prediction - jax.lax.top_k(prediction, 3)[0][-1],
    )
    data = jx.arrays(np.ones((20, 3)), np.ones(20), validation=None)
    expected = r"^Supervised fails for a batch of 2 .* ValueError: .*\(test_tasks.py, line"
    with pytest.raises(jx.UserError, match=expected):
        jx.plan(jx.Sweep(jx.Trial(batch_size=2)), task, data)


def test_a_loss_of_the_hardest_four_of_a_batch_is_tried_with_enough():
    def hardest(prediction, y, mask):
        loss_B = jnp.where(mask, (prediction - y) ** 2, -jnp.inf)
        return jnp.where(loss_B >= jax.lax.top_k(loss_B, 4)[0][-1], loss_B, 0.0)

    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.zeros(3)},
        apply=lambda trial, params, x: x @ params["w"],
        loss=hardest,
    )
    data = jx.arrays(np.ones((20, 3)), np.ones(20), validation=None)
    assert jx.plan(jx.Sweep(jx.Trial(batch_size=8)), task, data)
