"""PyTorch is the oracle: the same weights, batches and order give the same training."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxexp.base.batches import steps_per_epoch
from jaxexp.nn import classification, mlp
from jaxexp.nn.classification import MLPClassification
from jaxexp.spec.trial import MLPTrial
from jaxexp.training.carry import EpochRecord, TrainState
from jaxexp.training.data import Examples
from jaxexp.training.shuffle import permutation
from jaxexp.training.step import init, train_steps

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # these networks are too small to share, and JAX has threads too
F = torch.nn.functional

TASK = MLPClassification(5)
Start = tuple[TrainState, EpochRecord]
POINT = {"train": Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))}
SMALL = {"batch_size": 32, "depth": 3, "width": 8}
EPOCHS = 30  # of 7 steps each on the 203 examples, the last step on 11 of them: 210 steps
CASES = {
    "plain": {},
    "batch norm": {"batch_norm": True},
    "momentum, sines": {
        "optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9, "features": "sines",
    },
    "adamw, residual": {"optimizer": "adamw", "weight_decay": 0.1, "residual": True},
    "depth 1": {"depth": 1},
    "widths": {"width": (8, 3, 5)},
    "widths, batch norm": {"width": (3, 8, 5), "batch_norm": True, "features": "sines"},
    "looped": {
        "depth": mlp.UNROLLED_LAYERS + 2, "width": 4, "residual": True,
        "optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9,
    },
    "all": {"batch_norm": True, "residual": True, "features": "sines", "activation": "tanh"},
}  # fmt: skip
LONG = (
    "plain",
    "batch norm",
    "depth 1",
    "widths",
    "adamw, residual",
    "momentum, sines",
)  # of which others hold the parts
TORCH_ACTIVATIONS = {name: getattr(F, name, torch.nn.Identity()) for name in mlp.ACTIVATIONS}


class TorchMLP(torch.nn.Module):
    """The network as one writes it in PyTorch."""

    def __init__(self, trial: MLPTrial, classes: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.trial = trial
        sizes = [20 if trial.features == "sines" else 2, *trial.widths, classes]
        self.affine = torch.nn.ModuleList(
            torch.nn.Linear(*pair, dtype=dtype) for pair in itertools.pairwise(sizes)
        )
        self.norm = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(width, dtype=dtype) if trial.batch_norm else torch.nn.Identity()
            for width in trial.widths
        )

    def forward(self, x_BxF: torch.Tensor) -> torch.Tensor:
        activation = TORCH_ACTIVATIONS[self.trial.activation]
        h = x_BxF
        if self.trial.features == "sines":
            h = torch.sin(torch.cat([float(a) * h for a in mlp.SINE_FREQUENCIES], dim=1))
        for i, (affine, norm) in enumerate(zip(self.affine[:-1], self.norm, strict=True)):
            out = activation(norm(affine(h)))
            h = h + out if self.trial.residual and i > 0 else out
        return self.affine[-1](h)


def as_torch(params, stats) -> dict[str, np.ndarray]:
    """Flax's weights and statistics under PyTorch's names."""

    def layers(tree, name):
        first, hidden = tree["first"][name], tree.get("hidden", {}).get(name)
        others = jax.tree.leaves(hidden)[0].shape[0] if hidden else 0
        stacked = [jax.tree.map(lambda a, i=i: a[i], hidden) for i in range(others)]
        ragged = [tree[f"hidden_{i}"][name] for i in range(1, 10) if f"hidden_{i}" in tree]
        return [first, *stacked, *ragged]

    named = {}
    for i, affine in enumerate([*layers(params, "affine"), params["last"]]):
        named |= {f"affine.{i}.weight": affine["kernel"], f"affine.{i}.bias": affine["bias"]}
    if stats:
        for i, norm in enumerate(layers(params, "norm")):
            named |= {f"norm.{i}.weight": norm["scale"], f"norm.{i}.bias": norm["bias"]}
        for i, norm in enumerate(layers(stats, "norm")):
            named |= {
                f"norm.{i}.running_mean": norm["mean"],
                f"norm.{i}.running_var": norm["var"],
            }
    return {name: np.array(value) for name, value in named.items()}


def torch_model(trial: MLPTrial, params, stats, classes: int = TASK.classes) -> TorchMLP:
    named = {name: torch.from_numpy(value) for name, value in as_torch(params, stats).items()}
    model = TorchMLP(trial, classes, dtype=named["affine.0.weight"].dtype)
    missing = model.load_state_dict(named, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model


def torch_optimizer(trial: MLPTrial, parameters) -> torch.optim.Optimizer:
    if trial.optimizer == "sgd":
        return torch.optim.SGD(parameters, trial.learning_rate, momentum=trial.momentum)
    if trial.optimizer == "adamw":
        return torch.optim.AdamW(parameters, trial.learning_rate, weight_decay=trial.weight_decay)
    return torch.optim.Adam(parameters, trial.learning_rate)


@functools.cache
def shuffles(seed: int, epochs: int, n: int) -> torch.Tensor:
    """The order of the examples in every epoch, (E, N)."""
    order = jax.vmap(lambda epoch: permutation(n, seed, epoch)(jnp.arange(n, dtype=jnp.int32)))
    return torch.from_numpy(np.array(jax.jit(order)(jnp.arange(epochs)), np.int64))


class Trained(NamedTuple):
    """What both must agree on: E epochs, S steps in all, L layers."""

    loss_S: np.ndarray
    squared_gradient_norm_ExL: np.ndarray  # means over the epoch's batches
    weights: dict[str, np.ndarray]  # and running statistics
    logits_NxC: np.ndarray  # in evaluation mode


def train_torch(trial: MLPTrial, model: TorchMLP, x_NxF: np.ndarray, y_N: np.ndarray) -> Trained:
    x, y = torch.from_numpy(x_NxF), torch.from_numpy(y_N.astype(np.int64))
    optimizer = torch_optimizer(trial, model.parameters())
    losses, norms = [], []
    for order_N in shuffles(trial.seed, trial.epochs, len(y)):
        norms.append([])
        for index_B in order_N.split(trial.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[index_B]), y[index_B])
            loss.backward()
            norms[-1].append([float(a.weight.grad.square().sum()) for a in model.affine])
            optimizer.step()
            losses.append(loss.item())
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return Trained(np.array(losses), np.mean(norms, axis=1), weights, logits(model, x_NxF))


def logits(model: TorchMLP, x_NxF: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x_NxF)).numpy()


def begin(trial: MLPTrial, x_NxF: np.ndarray, y_N: np.ndarray) -> Start:
    train = Examples(x_NxF, y_N)
    data = {"train": train, "evaluation": {"examples": train, "members": {}}}
    return jax.jit(lambda: init(TASK, trial, 1, data, gradient_norms=True))()


def train_jax(trial: MLPTrial, start: Start, x_NxF: np.ndarray, y_N: np.ndarray) -> Trained:
    state, record = start
    run = jax.jit(functools.partial(train_steps, TASK, trial, 1))
    steps = steps_per_epoch(len(y_N), trial.batch_size)
    losses, norms = [], []
    for i in range(trial.epochs):
        state, record = run(state, record, i, 0, steps, {"train": Examples(x_NxF, y_N)})
        losses.append(record.step_loss_S)
        norms.append(record.norms_L)
    weights = as_torch(*state.variables)
    return Trained(
        np.concatenate(losses), np.stack(norms), weights, flax_logits(trial, state, x_NxF)
    )


def flax_logits(trial: MLPTrial, state: TrainState, x_NxF: np.ndarray) -> np.ndarray:
    predict = jax.jit(lambda variables, x: TASK.predict(trial, variables, x))
    return np.asarray(predict(state.variables, x_NxF))


def train_both(trial: MLPTrial, x_NxF: np.ndarray, y_N: np.ndarray) -> tuple[Trained, Trained]:
    start = begin(trial, x_NxF, y_N)
    model = torch_model(trial, *start[0].variables)
    return train_jax(trial, start, x_NxF, y_N), train_torch(trial, model, x_NxF, y_N)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.nightly] * (c in LONG)) for c in CASES]
)
def test_training(problem, case):
    trial = MLPTrial(epochs=EPOCHS, **SMALL | CASES[case])
    x_NxF, y_N = problem.data.train[:2]
    with jax.enable_x64(True):
        ours, theirs = train_both(trial, x_NxF.astype(np.float64), y_N)
    # In float64 the two agree to a few units in the last place after all steps. An affine bias
    # before a batch norm has no gradient but rounding noise, which Adam divides by 1e-8: that moves
    # it, and with it the running mean and the logits of evaluation, by about 1e-9.
    np.testing.assert_allclose(ours.loss_S, theirs.loss_S, rtol=1e-12)
    norms = (ours.squared_gradient_norm_ExL, theirs.squared_gradient_norm_ExL)
    np.testing.assert_allclose(*norms, rtol=1e-10, atol=1e-15)
    for name, weight in ours.weights.items():
        np.testing.assert_allclose(weight, theirs.weights[name], atol=1e-7, err_msg=name)
    np.testing.assert_allclose(ours.logits_NxC, theirs.logits_NxC, atol=1e-7)


def test_training_in_float32(problem):
    trial = MLPTrial(epochs=EPOCHS, **SMALL)
    x_NxF, y_N = problem.data.train[:2]
    ours, theirs = train_both(trial, x_NxF.copy(), y_N)
    assert ours.loss_S.dtype == np.float32
    # Rounding, 6e-8, grows as training amplifies it: to 4e-7 in 21 steps, to 2e-4 in all.
    np.testing.assert_allclose(ours.loss_S[:21], theirs.loss_S[:21], rtol=5e-6)
    np.testing.assert_allclose(ours.loss_S, theirs.loss_S, rtol=2e-3)


@pytest.mark.parametrize("residual", [False, True])
def test_forward_of_a_deep_narrow_net(problem, residual):
    trial = MLPTrial(depth=100, width=4, residual=residual)
    x_NxF, y_N = (array.copy() for array in problem.data.test[:2])
    state, _ = begin(trial, x_NxF, y_N)
    ours, theirs = (
        flax_logits(trial, state, x_NxF),
        logits(torch_model(trial, *state.variables), x_NxF),
    )
    # Relative to the largest logit: a hundred layers of float32 sums.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.nightly
@pytest.mark.parametrize("width", [8, (9, 5, 7)], ids=str)
def test_initial_weights_are_distributed_as_in_torch(width):
    trial, seeds = MLPTrial(depth=3, width=width, features="sines"), range(100)
    draw = jax.jit(jax.vmap(lambda seed: TASK.init(trial, jax.random.key(seed), POINT).params))
    params = jax.device_get(draw(np.array(seeds)))
    ours = [as_torch(jax.tree.map(lambda a, i=i: a[i], params), {}) for i in seeds]
    torch.manual_seed(0)
    theirs = [TorchMLP(trial, TASK.classes).state_dict() for _ in seeds]
    fan_in = {f"affine.{i}": inputs for i, inputs in enumerate((20, *trial.widths))}
    for name in ours[0]:
        our = np.concatenate([weights[name].ravel() for weights in ours])
        their = np.concatenate([weights[name].numpy().ravel() for weights in theirs])
        bound = 1 / np.sqrt(fan_in[name.rpartition(".")[0]])
        # The largest of 500 uniform numbers falls below 0.97 of the bound once in 4 million times.
        assert 0.97 * bound < np.abs(our).max() <= bound, name
        # Kolmogorov and Smirnov's test; the seeds are fixed, so this is no lottery.
        assert scipy.stats.ks_2samp(our, their).pvalue > 1e-3, name
    network = np.concatenate([weight.ravel() for weight in ours[0].values()])
    assert len(np.unique(network)) == len(network)  # no layer or unit repeats another


@pytest.mark.nightly
def test_initial_weights_of_a_unit_do_not_depend_on_the_number_of_units():
    key = jax.random.key(3)

    def draw(width: int, classes: int) -> dict[str, np.ndarray]:
        trial = MLPTrial(depth=1, width=width)
        return as_torch(
            jax.jit(lambda key: MLPClassification(classes).init(trial, key, POINT).params)(key), {}
        )

    small, wide, many = draw(4, 3), draw(9, 3), draw(4, 5)
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(wide[f"affine.0.{name}"][:4], small[f"affine.0.{name}"])
        np.testing.assert_array_equal(many[f"affine.1.{name}"][:3], small[f"affine.1.{name}"])


@pytest.mark.parametrize("name", mlp.ACTIVATIONS)
def test_activations_and_their_slopes(name):
    x_N = np.linspace(-20, 20, 400, dtype=np.float32)  # without 0, where some have no slope
    y_N, pull = jax.vjp(mlp.ACTIVATIONS[name], x_N)
    x_torch = torch.from_numpy(x_N).requires_grad_()
    y_torch = TORCH_ACTIVATIONS[name](x_torch)
    y_torch.sum().backward()
    # Two float32 implementations of exp, tanh and erf.
    np.testing.assert_allclose(y_N, y_torch.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(400))[0], x_torch.grad.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_cross_entropy(scale):
    rng = np.random.default_rng(0)
    logits_BxC = (scale * rng.normal(size=(64, 5))).astype(np.float32)
    y_B = rng.integers(5, size=64)

    def total(logits_CxB):
        loss_B, right_B = classification.cross_entropy(logits_CxB, y_B)
        return loss_B.sum(), (loss_B, right_B)

    grad_CxB, (loss_B, right_B) = jax.grad(total, has_aux=True)(jnp.asarray(logits_BxC.T))
    logits_torch = torch.from_numpy(logits_BxC).requires_grad_()
    loss_torch = F.cross_entropy(logits_torch, torch.from_numpy(y_B), reduction="none")
    loss_torch.sum().backward()
    # Absolute where the loss is nearly 0: the logarithm of a sum near 1, in float32.
    np.testing.assert_allclose(loss_B, loss_torch.detach().numpy(), rtol=1e-6, atol=5e-7)
    np.testing.assert_allclose(grad_CxB.T, logits_torch.grad.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(right_B, logits_BxC.argmax(1) == y_B)


def test_equal_logits_predict_the_first_class():
    logits_CxB = jnp.array([[0.0, 1, 1], [0, 0, 2], [0, 1, 2]])
    for label, correct_B in enumerate([[1, 1, 0], [0, 0, 1], [0, 0, 0]]):
        _, right_B = classification.cross_entropy(logits_CxB, jnp.full(3, label))
        np.testing.assert_array_equal(right_B, correct_B)


def test_no_label_is_right_where_a_logit_is_no_number():
    logits_CxB = jnp.array([[jnp.nan, jnp.nan, 1], [1, jnp.nan, 0], [0, jnp.nan, 0]])
    loss_B, right_B = classification.cross_entropy(logits_CxB, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(right_B, [0, 0, 1])
    assert np.isnan(loss_B[:2]).all()


def test_label_smoothing():
    logits_BxC = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    y_B = np.arange(20, dtype=np.int32) % 5
    expected_B = F.cross_entropy(
        torch.tensor(logits_BxC), torch.tensor(y_B).long(), label_smoothing=0.2, reduction="none"
    )
    np.testing.assert_allclose(
        classification.cross_entropy(logits_BxC.T, y_B, 0.2)[0], expected_B, rtol=1e-5, atol=1e-6
    )
