"""What a user is likely to get wrong is refused by name, before anything trains."""

import dataclasses
import functools
import operator
import re
import types
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxexp as jx
from jaxexp.api.checks import check_task
from jaxexp.base.errors import UserError
from jaxexp.training import supervised

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 4)).astype(np.float32)
LABEL, NUMBER = rng.integers(0, 3, 60), rng.normal(size=60).astype(np.float32)
LABELS, NUMBERS = jx.arrays(X, LABEL), jx.arrays(X, NUMBER)
TRIAL = jx.Trial(epochs=1, batch_size=16)


class Net(nn.Module):
    units: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.units)(x)


class DropNet(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("penalties", "of x", x.sum())
        return nn.Dense(3)(x)


class NNet(nnx.Module):
    def __init__(self, rngs):
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(x)


class Keeping(NNet):
    def __call__(self, x):
        self.seen = nnx.BatchStat(x.mean(0))
        return self.last(x)


class Counting(NNet):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = 0
        self.seen = {"calls": 0, "sizes": [0]}
        self.options = types.SimpleNamespace(scale=1.0)

    def __call__(self, x):
        self.calls += 1
        self.seen["calls"] += 1
        self.seen["sizes"][0] = len(x)
        self.options.scale *= 0.9
        return self.last(x) + self.calls


class Clipping(NNet):
    def __call__(self, x):
        kernel = jnp.clip(self.last.kernel[...], -1, 1)
        nnx.jit(lambda last: nnx.update(last, {"kernel": kernel}))(self.last)
        return self.last(x)


class Lazy(NNet):
    def __call__(self, x):
        self.last.own = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        return self.last.own(x)


class Opaque(jx.Task):
    def init(self, trial, rng, data):
        return jx.Variables({"w": jnp.zeros(4)})

    def apply(self, trial, variables, batch, *, rng, mask, train):
        return jx.Outputs((batch.x @ variables.params["w"]) ** 2)

    def optimizer(self, trial, steps):
        own = optax.sgd(trial.learning_rate)
        return optax.contrib.sam(own, own, opaque_mode=True)


@dataclass(frozen=True, kw_only=True)
class OwnTrial(jx.Trial):
    drop: float = jx.traced(0.1)
    hidden: int = jx.size(8)
    act: str = jx.choice("tanh", ("tanh", "relu"))


OWN = OwnTrial(epochs=1, batch_size=16)


IN_DICTS = jx.Data(jx.Examples(X, {"a": NUMBER}))


def of_dicts(prediction, y):
    return jnp.square(jax.tree.leaves(prediction)[0] - y["a"]).mean(1)


def endless(trial, params, x):
    return jax.lax.while_loop(lambda y: (y < 5).all(), lambda y: y + 1, x @ params["w"])


def zeros(*shape):
    return lambda trial, rng, x: {"w": jnp.zeros(shape)}


@dataclass(frozen=True, kw_only=True)
class NamedTrial(jx.Trial):
    final_loss: float = jx.traced(0.0)


def task(**parts):
    """A linear model of three classes, with other parts."""
    usual = {
        "init": zeros(4, 3),
        "apply": lambda trial, params, x: x @ params["w"],
        "loss": optax.softmax_cross_entropy_with_integer_labels,
    }
    if "module" in parts:
        del usual["init"], usual["apply"]
    return jx.supervised(**usual | parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden(jx.MLPClassification):
    optimizer: object


def hiding(name):
    made = jx.MLPClassification()
    vars(made)[name] = lambda trial, params, state: params
    return made


def plan(data=LABELS, trial=TRIAL, axes=None, **parts):
    return jx.plan(jx.Sweep(trial, axes or {}), task(**parts), data)


def regression(*shape, **parts):
    return plan(NUMBERS, **{"init": zeros(*shape), "loss": optax.squared_error} | parts)


def cosine(trial, steps):
    return optax.cosine_decay_schedule(trial.learning_rate, steps)


def too_long(trial, steps):
    return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 1.0, 500, steps))


def warmup(trial, steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, trial.learning_rate, 2, steps))


def hidden_layer(trial, rng, x):
    return {"a": jax.random.normal(rng, (4, trial.hidden)), "b": jnp.zeros((trial.hidden, 3))}


MISTAKES = {
    # Names
    "a misspelt option": (
        lambda: jx.run(jx.Sweep(TRIAL), task(), LABELS, devises=2),
        r"jaxexp.run: unknown argument 'devises': did you mean devices\? \(there are: sweep, ",
    ),
    "a hyperparameter as an option": (
        lambda: jx.plan(jx.Sweep(TRIAL), task(), LABELS, epochs=2),
        r"jaxexp.plan: unknown .* 'epochs': it is a hyperparameter, .*jaxexp.Trial\(epochs=",
    ),
    "a misspelt part of the data": (
        lambda: jx.arrays(X, LABEL, validaton=0.5),
        r"jaxexp.arrays: unknown argument 'validaton': did you mean validation\?",
    ),
    "a misspelt part of a task": (
        lambda: jx.supervised(los=optax.squared_error),
        r"jaxexp.supervised: unknown argument 'los': did you mean loss\?",
    ),
    "a misspelt split": (lambda: jx.folds(LABELS, fold=3), "'fold': did you mean folds"),
    "an abbreviation": (lambda: jx.Trial(lr=0.1), r"'lr': did you mean learning_rate\?"),
    "a misspelt hyperparameter": (lambda: jx.MLPTrial(widht=3), r"'widht': did you mean width\?"),
    "a misspelt one of one's own": (lambda: OwnTrial(hiden=3), r"'hiden': did you mean hidden\?"),
    "a copy with another": (
        lambda: dataclasses.replace(OWN, lr=0.1), r"'lr': did you mean learning_rate\?",
    ),
    "no dataclass": (
        lambda: type("Plain", (jx.Trial,), {"l2": 0.0})(l2=1.0),
        r"Plain: expected a frozen dataclass; write @dataclass\(frozen=True, kw_only=True\)",
    ),
    # Labels and rows
    "labels from 1": (lambda: plan(jx.arrays(X, LABEL + 1)), "label is 3, expected 0 to 2"),
    "labels from -1": (lambda: plan(jx.arrays(X, LABEL - 1)), "label is -1, expected 0 to 2"),
    "labels as floats": (lambda: plan(NUMBERS), r"loss: \w+Error .* target float32 \(7,\)"),
    "a class without examples": (lambda: plan(init=zeros(4, 5)), "label 3 does not occur"),
    "groups as labels": (
        lambda: plan(init=zeros(4, 2)),
        r"predictions are \(B, 2\): .*, expected 0 to 1 .*; whole numbers are labels there",
    ),
    "rows missing": (lambda: jx.arrays(X[:50], LABEL), "y: 60 rows, expected 50"),
    "no targets": (lambda: plan(jx.arrays(X)), "needs jaxexp.Examples with inputs x and targets y"),
    # Shapes
    "(B, 1) for (B,)": (lambda: regression(4, 1), r"shape \(7, 1\), its target \(7,\)"),
    "(B, 1) for (B,), and a loss that knows": (
        lambda: regression(4, 1, loss=lambda prediction, y: (prediction[..., 0] - y) ** 2),
        r"most losses and metrics would .*expected equal shapes, as of prediction\[\.\.\., 0\]",
    ),
    "(B,) for (B, 1)": (
        lambda: plan(jx.arrays(X, NUMBER[:, None]), init=zeros(4), loss=optax.squared_error),
        r"shape \(7,\), its target \(7, 1\): .* equal shapes, as of target\[\.\.\., 0\]",
    ),
    "(B, 1) for (B,) in a dict": (
        lambda: plan(IN_DICTS, init=zeros(4, 1), loss=of_dicts),
        r"^the prediction of .* \(7, 1\), its target\['a'\] \(7,\): .*prediction\[\.\.\., 0\]",
    ),
    "dicts of (B, 1) and (B,)": (
        lambda: plan(IN_DICTS, apply=lambda t, p, x: {"a": (x @ p["w"])[:, :1]}, loss=of_dicts),
        r"^the prediction\['a'\] of .* its target\['a'\] \(7,\): .*prediction\['a'\]\[\.\.\., 0\]",
    ),
    "(B, 3) for (B,)": (lambda: regression(4, 3), r"loss: .*prediction float32 \(7, 3\)"),
    "labels for one-hot targets of two": (
        lambda: plan(jx.arrays(X, LABEL % 2), init=zeros(4, 2), loss=optax.softmax_cross_entropy),
        r"loss: \w+Error for prediction float32 \(7, 2\) and target int32 \(7,\)",
    ),
    "prediction of the batch": (
        lambda: regression(4, apply=lambda t, p, x: (x @ p["w"]).sum(), loss=lambda a, b: a - b),
        r"prediction of a batch of 7 has the shape \(\)",
    ),
    "scalar loss": (
        lambda: plan(loss=lambda z, y: -jax.nn.log_softmax(z)[jnp.arange(len(y)), y].mean()),
        r"loss has the shape \(\) for a batch of 7 examples, expected \(7,\)",
    ),
    "whole loss": (
        lambda: plan(loss=lambda logits, y: (logits.argmax(1) != y).astype(int)),
        "loss has the type int32, expected a float",
    ),
    # Models
    "a module's class": (lambda: task(module=Net), "module: the class Net itself"),
    "an nnx module's class": (lambda: task(module=NNet), "module: the class NNet itself"),
    "an nnx module": (lambda: task(module=NNet(nnx.Rngs(0))), "a NNet that is made already"),
    "a class returned": (lambda: plan(module=lambda trial: Net), "returned type, expected a Flax"),
    "nothing returned": (lambda: plan(module=lambda trial: None), "returned NoneType"),
    "nnx without rngs": (
        lambda: plan(module=lambda trial: NNet(nnx.Rngs(0))),
        r"an nnx module is made by a function of \(trial, rngs\)",
    ),
    "module of nothing": (lambda: task(module=lambda: Net()), r"module: a function of \(\)"),
    "module and functions": (lambda: task(module=Net(), init=zeros(4)), "expected either"),
    "init without the trial": (
        lambda: task(init=lambda rng, x: {}),
        r"init: a function of \(rng, x\), expected one of \(trial, rng, x\)",
    ),
    "apply without the trial": (
        lambda: task(apply=lambda params, x: x),
        r"apply: a function of \(params, x\), expected one of \(trial, params, x\)",
    ),
    "apply in another order": (
        lambda: plan(apply=lambda params, trial, x: x @ params["w"]),
        "apply: TypeError .*'Trial' object is not subscriptable",
    ),
    "nothing to train": (
        lambda: plan(init=lambda trial, rng, x: None, apply=lambda trial, params, x: x[:, :3]),
        "init: no parameters",
    ),
    "whole parameters": (
        lambda: plan(init=lambda trial, rng, x: {"w": jnp.zeros((4, 3), int)}),
        r"init: params\['w'\] is int32, expected floats",
    ),
    # Losses, metrics
    "loss of three arrays": (
        lambda: regression(4, loss=optax.losses.triplet_margin_loss),
        r"^loss, called as \(trial, prediction, target\) since it takes three arguments: TypeError",
    ),
    "loss of four arrays": (
        lambda: task(loss=optax.ctc_loss),
        r"loss: a function of \(logits, .*, label_paddings, \*, blank_id, log_epsilon\), expected",
    ),
    "loss of one": (lambda: task(loss=lambda p: p), r"loss: a function of \(p\)"),
    "loss by name": (lambda: task(loss="mse"), "loss: 'mse', expected a function"),
    "metric as a function": (
        lambda: task(metrics={"accuracy": lambda prediction, y: prediction}),
        r"metrics\['accuracy'\] is <function.*expected one of jaxexp.metrics",
    ),
    "list of metrics": (lambda: task(metrics=[jx.metrics.accuracy]), "metrics is a list"),
    "metric without name": (lambda: task(metrics=jx.metrics.accuracy), "metrics is a Metric"),
    "name of a metric": (lambda: task(metrics={"a b": jx.metrics.auc}), r"metrics\['a b'\]"),
    "name of the results": (
        lambda: plan(metrics={"seconds": jx.metrics.accuracy}),
        r"metrics\['seconds'\]: this name stands for something else in results",
    ),
    "conditions": (
        lambda: jx.Sweep(jx.MLPTrial(), conditions={"momentum": {"optimizer": "sgd"}}),
        "conditions=.*: expected",
    ),
    "a condition of nothing": (
        lambda: jx.Sweep(jx.MLPTrial(), conditions={"momemtum": {"optimizer": ["sgd"]}}),
        "momemtum",
    ),
    "name of a deviation": (
        lambda: plan(metrics={"loss_std": jx.metrics.accuracy}),
        r"metrics\['loss_std'\]: this name stands for something else in results",
    ),
    "name of what is missing": (
        lambda: plan(metrics={"loss_undefined": jx.metrics.accuracy}),
        r"metrics\['loss_undefined'\]: this name stands for something else in results",
    ),
    "name of a metric in the end": (
        lambda: plan(metrics={"a": jx.metrics.accuracy, "final_a_std": jx.metrics.log_loss}),
        r"metrics\['final_a_std'\]: this name stands for something else in results",
    ),
    "a hyperparameter named as a mean": (
        lambda: jx.plan(jx.Sweep(NamedTrial(final_loss=1.0)), task(), LABELS),
        r"NamedTrial.final_loss: this name stands for something else in results and their means",
    ),
    "name of a count": (
        lambda: plan(metrics={"seeds": jx.metrics.accuracy}),
        r"metrics\['seeds'\]: this name stands for something else in means over seeds",
    ),
    "page of nothing": (lambda: jx.write_report({}, "page.html"), "results={}: expected"),
    "name of a hyperparameter": (
        lambda: plan(metrics={"seed": jx.metrics.accuracy}),
        r"metrics\['seed'\]: this name stands for something else in Trial",
    ),
    "r2 of labels": (lambda: plan(metrics={"r2": jx.metrics.r2}), "metric 'r2': predictions of"),
    "auc of 3 classes": (lambda: plan(metrics={"auc": jx.metrics.auc}), "'auc'.* two classes"),
    "accuracy of numbers": (
        lambda: regression(4, metrics={"accuracy": jx.metrics.accuracy}),
        "metric 'accuracy': targets of float32",
    ),
    "metric of the batch": (
        lambda: plan(metrics={"m": jx.Metric("lower", example=lambda p, y: p.mean())}),
        r"metric 'm': a value of shape \(\), expected \(7,\)",
    ),
    "metric that fails": (
        lambda: plan(metrics={"m": jx.Metric("lower", example=lambda p, y: p @ y)}),
        r"metrics\['m'\]: TypeError for prediction float32 \(7, 3\) and target int32 \(7,\)",
    ),
    # Optimizers
    "optimizer by name": (lambda: task(optimizer="adam"), "optimizer: 'adam', expected a function"),
    "unknown optimizer": (lambda: plan(trial=TRIAL.replace(optimizer="adamm")), "'adamm'"),
    "optax.adam itself": (
        lambda: task(optimizer=optax.adam),
        r"adam of optax itself, .* lambda trial: optax.adam\(trial.learning_rate\)",
    ),
    "optimizer of nothing": (lambda: task(optimizer=lambda: 0), r"optimizer: a function of \(\)"),
    "a schedule longer than the run": (
        lambda: plan(optimizer=too_long),
        r"optimizer of \d+ steps: ValueError: The cosine_decay_schedule requires positive",
    ),
    "a schedule returned": (lambda: plan(optimizer=cosine), "the function returned function"),
    "lookahead": (
        lambda: plan(optimizer=lambda t: optax.lookahead(optax.sgd(t.learning_rate), 5, 0.5)),
        r"^optimizer: .*takes the parameters of the task.*would have to be optax.LookaheadParams",
    ),
    "sam without its gradients": (
        lambda: jx.plan(jx.Sweep(TRIAL), Opaque(), LABELS),
        r"^Opaque.optimizer: ValueError: grad_fn must be provided.*; expected one that takes",
    ),
    # State
    "a module that sows into a collection of its own": (
        lambda: plan(module=Sowing()),
        r"another structure .*\(with \['penalties'\].*; what it sows grows .* with a reduce_fn",
    ),
    "an nnx module that keeps what it did not have": (
        lambda: plan(module=lambda trial, rngs: Keeping(rngs)),
        "^module: a call adds seen, .*: expected .* variables .* that are made in __init__",
    ),
    "an nnx module that counts its calls in Python": (
        lambda: plan(module=lambda trial, rngs: Counting(rngs)),
        r"^module: a call changes calls, options.scale, seen.calls, seen.sizes.0, which .* no "
        "variable: expected an nnx.Variable",
    ),
    "an nnx module that makes a layer in its call": (
        lambda: plan(module=lambda trial, rngs: Lazy(rngs)), "^module: a call adds last.own, which"
    ),
    "an nnx module that writes to a parameter": (
        lambda: plan(module=lambda trial, rngs: Clipping(rngs)),
        "^module: a call writes to the nnx.Param last.kernel, which only .* another nnx.Variable",
    ),
    # Traced values
    "a branch on a traced value": (
        lambda: plan(optimizer=lambda t: optax.adam(t.learning_rate if t.learning_rate else 1)),
        "optimizer: TracerBool.*the value of learning_rate is not known to Python",
    ),
    "a schedule that branches": (lambda: plan(optimizer=warmup), "the value of learning_rate is"),
    "float of a traced value": (
        lambda: plan(optimizer=lambda trial: optax.adam(float(trial.learning_rate))),
        "optimizer: .*the value of learning_rate is",
    ),
    "a traced rate of dropout": (
        lambda: plan(trial=OWN, module=lambda trial: DropNet(trial.drop)),
        "module: .*the value of drop is",
    ),
    "epochs as a size": (
        lambda: plan(
            module=lambda trial: nn.Sequential([nn.Dense(2 * trial.epochs), nn.Dense(3)])
        ),
        "module: .*Shapes must .*the value of epochs is not known to Python: .* compute with "
        "jax.numpy; what Python has to know is a hyperparameter of your own, declared with "
        "jaxexp.static; an optimizer is given the number of its steps, as its second argument",
    ),
    "a branch on epochs": (
        lambda: plan(optimizer=lambda trial: optax.adam(0.1 if trial.epochs > 3 else 0.01)),
        r"of epochs is not known .* compute with jax.numpy; .* its second argument\)$",
    ),
    # Gradients
    "a loop of unknown length": (
        lambda: plan(apply=endless), r"Supervised.apply: the loss has no gradient.*while_loop"
    ),
    # Hyperparameters
    "misspelt": (lambda: plan(axes={"learnin_rate": [0.1]}), "did you mean learning_rate"),
    "never read": (lambda: plan(trial=OWN.replace(drop=0.5)), "drop is set to 0.5, but"),
    "folds of data without": (
        lambda: plan(axes={"fold": [0, 1]}), "0 or 1, but the data have no folds: expected"
    ),
    "a size nobody pads": (
        lambda: plan(
            trial=OWN, axes={"hidden": [4, 8]}, init=hidden_layer,
            apply=lambda trial, params, x: x @ params["a"] @ params["b"],
        ),
        "hidden is declared with jaxexp.size, .* Supervised pads no model",
    ),
    "a choice nobody takes": (
        lambda: plan(
            trial=OWN, axes={"act": ["tanh", "relu"]},
            apply=lambda trial, params, x: getattr(nn, trial.act)(x @ params["w"]),
        ),
        "act is declared with jaxexp.choice, .* Supervised pads no model",
    ),
    # Arguments
    "a trial to plan": (lambda: jx.plan(TRIAL, task(), LABELS), "expected a jaxexp.Sweep, as"),
    "a dict to plan": (lambda: jx.plan({"seed": [1]}, task(), LABELS), "expected a jaxexp.Sweep"),
    "a tuple of data": (lambda: plan((X, LABEL)), "data=a tuple: expected jaxexp.Data"),
    "no task": (lambda: jx.plan(jx.Sweep(TRIAL), data=LABELS), "task=None: expected"),
    "memory in words": (
        lambda: jx.plan(jx.Sweep(TRIAL), task(), LABELS, memory="4GB"), "memory='4GB'",
    ),
    "progress in words": (
        lambda: jx.run(jx.Sweep(TRIAL), task(), LABELS, progress="yes"), "progress='yes'",
    ),
    "checkpoints never": (
        lambda: jx.run(jx.Sweep(TRIAL), task(), LABELS, checkpoint_every=0), "checkpoint_every=0",
    ),
    "checkpoints nowhere": (
        lambda: jx.run(jx.Sweep(TRIAL), task(), LABELS, checkpoint_dir=3), "checkpoint_dir=3",
    ),
    "nothing evaluated": (lambda: task(evaluation_batch_size=0), "evaluation_batch_size=0"),
    "a method that a field hides": (
        lambda: jx.plan(jx.Sweep(TRIAL), Hidden(optimizer=optax.sgd), LABELS),
        "Hidden.optimizer is a field or an attribute, and hides the method",
    ),
    "a method that an attribute hides": (
        lambda: jx.plan(jx.Sweep(TRIAL), hiding("evaluation_params"), LABELS),
        "MLPClassification.evaluation_params is .* a method `evaluation_params` that calls it",
    ),
    "norms without layers": (
        lambda: jx.plan(
            jx.Sweep(TRIAL, record=("gradient_norms",)),
            task(init=zeros(4), loss=optax.squared_error), NUMBERS,
        ),
        "no array of parameters has two axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_name(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        make()


ONE_B, ONE_Bx1, TWO_Bx2 = np.zeros(7), np.zeros((7, 1)), np.zeros((7, 2))


@pytest.mark.parametrize(
    ("prediction", "target", "named"),
    [
        ({"mean": ONE_Bx1, "v": ONE_Bx1}, ONE_B, "prediction['mean'] target"),
        ((ONE_Bx1, ONE_Bx1), ONE_B, "prediction[0] target"),
        (ONE_Bx1, {"a": ONE_B, "b": ONE_B}, "prediction target['a']"),
        ({"y": ONE_Bx1}, {"w": ONE_B, "y": ONE_B}, "prediction['y'] target['y']"),
        ({"y": [ONE_Bx1]}, {"w": ONE_B, "y": ONE_B}, "prediction['y'][0] target['y']"),
        ((TWO_Bx2, ONE_B), (TWO_Bx2, ONE_Bx1), "prediction[1] target[1]"),
        (ONE_B, {"index": ONE_Bx1.astype(int), "z": TWO_Bx2}, ""),
        ({"mean": TWO_Bx2, "scale": ONE_Bx1}, ONE_B, ""),
        ({"mean": ONE_B, "v": ONE_Bx1}, ONE_B, ""),
        ({"y": ONE_B, "scale": ONE_Bx1}, {"w": ONE_B, "y": ONE_B}, ""),
    ],
)
def test_predictions_that_broadcast_within_trees_are_refused(prediction, target, named):
    if not named:
        return supervised._check_broadcast(prediction, target)
    made, wanted = map(re.escape, named.split())
    with pytest.raises(UserError, match=rf"^the {made} of .*, its {wanted} \(.*\[\.\.\., 0\]$"):
        supervised._check_broadcast(prediction, target)


def test_training_without_compiling_is_refused():
    planned = jx.plan(jx.Sweep(TRIAL), task(), LABELS)
    for sweep, rest in ((planned, ()), (jx.Sweep(TRIAL), (task(), LABELS))):
        with jax.disable_jit(), pytest.raises(jx.UserError, match="JAX_DISABLE_JIT=1"):
            jx.run(sweep, *rest)


class Line(jx.Task):
    """A task of a user's own that does what it is told."""

    def __init__(self, variables=None, outputs=None, metrics=None):
        self.variables = jx.Variables({"w": jnp.zeros(4)}) if variables is None else variables
        self.outputs, self.metrics = outputs, metrics or {}

    def init(self, trial, rng, data):
        return self.variables

    def apply(self, trial, variables, batch, *, rng, mask, train):
        prediction = batch.x @ variables.params["w"]
        loss = optax.squared_error(prediction, batch.y)
        return self.outputs(loss) if self.outputs else jx.Outputs(loss, prediction, batch.y)


def own_line(**methods):
    return type("Own", (Line,), methods)()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Line(variables=({"w": jnp.zeros(4)}, ())), "Line.init returned tuple"),
        (Line(variables={"w": jnp.zeros(4)}), "Line.init returned dict"),
        (Line(outputs=lambda loss: loss), "Line.apply returned .*, expected jaxexp.Outputs"),
        (Line(outputs=lambda loss: (loss, loss)), "Line.apply returned tuple"),
        (Line(outputs=lambda loss: jx.Outputs(loss.mean())), r"loss has the shape \(\)"),
        (Line(metrics={"m": abs}), r"metrics\['m'\] is a builtin_function_or_method"),
        (Line(metrics={"m": jx.Metric("lower")}), "'m' computes nothing itself"),
        (Line(outputs=lambda loss: jx.Outputs(loss, {"each": loss, "mean": loss.mean()}, loss),
              metrics={"m": jx.Metric("lower", sums=lambda p, t, w: w.sum(), value=abs)}),
         r"Line.apply: prediction\['mean'\] has the shape \(\) .*metrics\['m'\] has `sums`"),
        (own_line(weights=lambda self, batch: batch.x), r"^Own.weights of train: shape \(48, 4\)"),
        (own_line(weights=lambda self, batch: batch.y), r"^Own.weights of train: row \d+ is -"),
        (own_line(weights=lambda self, batch: batch.y[len(batch.y) == 7 :] ** 2),
         r"^Own.weights returned the shape \(6,\) for a batch of 7 .*expected \(7,\)"),
        (own_line(optimizer=lambda self, trial: optax.sgd(trial.learning_rate)),
         r"^Own.optimizer: too many .* takes \(trial, steps\)$"),
        (own_line(apply=lambda self, trial, variables, batch, *, rng, mask: None),
         r"^Own.apply: .*'train', expected .*\(trial, variables, batch, \*, rng, mask, train\)$"),
        (own_line(init=lambda self, trial, rng, data: data["teacher"]),
         r"^Own.init: KeyError: 'teacher' .*`data` has 'train', 'validation', .*Data\(extra="),
        (own_line(optimizer=lambda self, trial, steps: optax.partition(
            {"known": optax.sgd(trial.learning_rate)}, {"w": "unknown"})),
         r"^Own.optimizer: .* labels: \['unknown'\] .* keys: \['known'\]; expected"),
        (own_line(bind=lambda self, data: None), "^Own.bind returned a NoneType, expected a task"),
        (Line, "task=an ABCMeta: expected a jaxexp.Task"),
        (Net(), "task=a Net: expected a jaxexp.Task"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_task_is_refused_by_name(own, message):
    with pytest.raises(UserError, match=message):
        jx.plan(jx.Sweep(TRIAL), own, NUMBERS)


def injecting(method):
    @functools.wraps(method)
    def given(*arguments):
        return method(*arguments, 0.9)

    return given


def test_methods_of_any_kind_are_taken():
    """What is called decides: that of a decorator, of Python or not, found anew or once."""

    class Own(Line):
        @functools.cached_property
        def optimizer(self):
            return lambda trial, steps: optax.sgd(trial.learning_rate)

    injected = injecting(lambda self, trial, steps, decay: optax.sgd(trial.learning_rate, decay))
    for task in (Own(), own_line(optimizer=injected), own_line(weights=operator.attrgetter("w"))):
        for _ in range(2):
            check_task(task)


def test_what_a_schedule_reads_counts_as_read():
    def optimizer(trial, steps):
        return optax.adam(lambda step: trial.learning_rate * (1 - step / steps))

    plan(axes={"learning_rate": [0.1, 0.01]}, optimizer=optimizer)


@pytest.mark.parametrize("programs", [pytest.param("exact", marks=pytest.mark.nightly), "one"])
def test_a_function_that_asks_for_the_optimizer_and_batch_size_gets_the_trials_own(programs):
    def optimizer(trial):
        rate = trial.learning_rate * trial.batch_size
        return optax.sgd(rate) if trial.optimizer == "sgd" else optax.adam(trial.learning_rate)

    own = task(optimizer=optimizer)
    axes = {"optimizer": ["adam", "sgd"], "batch_size": [8, 16]}
    results = jx.run(jx.Sweep(TRIAL, axes), own, LABELS, programs=programs)
    for trial in results.sweep.trials():
        alone = jx.run(jx.Sweep(trial), own, LABELS)
        found = results.trial(optimizer=trial.optimizer, batch_size=trial.batch_size)
        np.testing.assert_allclose(found.params["w"], alone.trial().params["w"], atol=1e-6)


def test_a_model_that_compares_a_choice_in_a_shared_program_is_refused():
    own = task(apply=lambda t, params, x: (x if t.optimizer == "sgd" else -x) @ params["w"])
    with pytest.raises(UserError, match=r"^optimizer: which value a trial has is not known"):
        jx.run(jx.Sweep(TRIAL, {"optimizer": ["adam", "sgd"]}), own, LABELS, programs="one")


def test_predicting_compiles_once_for_all_seeds():
    traced = []

    def apply(trial, params, x):
        traced.append(trial)
        return x @ params["w"] * trial.learning_rate

    results = jx.run(jx.Sweep(TRIAL, {"seed": range(3)}), task(apply=apply), LABELS)
    before = len(traced)
    predicted = [results.predict_proba(X, results.trial(seed=seed)) for seed in range(3)]
    assert len(traced) == before + 2  # tried with a few inputs, and compiled
    assert not np.array_equal(predicted[0], predicted[1])


def test_a_group_beside_targets_of_the_shape_of_predictions_is_no_mistake():
    data = jx.Data(jx.Examples(X, {"group": NUMBER, "y": NUMBER[:, None]}))
    assert plan(data, init=zeros(4, 1), loss=lambda p, y: jnp.square(p - y["y"])[:, 0] * y["group"])
