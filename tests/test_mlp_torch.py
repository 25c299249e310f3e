"""PyTorch is the oracle: the same weights, batches and order give the same training."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxexp import mlp
from jaxexp.mlp import Classification, MLPTrial
from jaxexp.shuffle import permutation
from jaxexp.train import _SHUFFLE, init, train_epoch

torch = pytest.importorskip("torch")
F = torch.nn.functional

TASK = Classification(5)
EPOCHS = 36  # of 7 steps, the last on 11 examples instead of 32: 252 steps
SMALL = {"epochs": EPOCHS, "batch_size": 32, "depth": 3, "width": 8, "learning_rate": 1e-3}
CASES = {
    "plain": {},
    "batch norm": {"batch_norm": True},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-2},
    "momentum": {"optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "residual": {"residual": True},
    "sines": {"features": "sines"},
    "depth 1": {"depth": 1},
    "looped": {"depth": mlp.UNROLLED_LAYERS + 2, "width": 4},
    "all": {"batch_norm": True, "residual": True, "features": "sines", "activation": "tanh"},
}
TORCH_ACTIVATIONS = {name: getattr(F, name) for name in mlp.ACTIVATIONS}


class TorchMLP(torch.nn.Module):
    """The network as one writes it in PyTorch."""

    def __init__(self, trial: MLPTrial, classes: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.trial = trial
        sizes = [20 if trial.features == "sines" else 2, *[trial.width] * trial.depth, classes]
        self.affine = torch.nn.ModuleList(
            torch.nn.Linear(*pair, dtype=dtype) for pair in itertools.pairwise(sizes)
        )
        self.norm = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(trial.width, dtype=dtype)
            if trial.batch_norm
            else torch.nn.Identity()
            for _ in range(trial.depth)
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
        return [first, *(jax.tree.map(lambda a, i=i: a[i], hidden) for i in range(others))]

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


def shuffled(trial: MLPTrial, epoch: int, n: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(trial.seed), _SHUFFLE)
    return np.asarray(permutation(n, jax.random.fold_in(key, epoch))(jnp.arange(n)))


def train_torch(trial: MLPTrial, model: TorchMLP, x_NxF, y_N):
    """Losses of all steps, and by epoch the mean squared gradient norm of each layer."""
    optimizer = torch_optimizer(trial, model.parameters())
    losses, norms = [], []
    for epoch in range(trial.epochs):
        norms.append([])
        for index_B in torch.from_numpy(shuffled(trial, epoch, len(y_N))).split(trial.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x_NxF[index_B]), y_N[index_B])
            loss.backward()
            norms[-1].append([float(a.weight.grad.square().sum()) for a in model.affine])
            optimizer.step()
            losses.append(loss.item())
    return np.array(losses), np.array(norms).mean(1)


def train_both(trial: MLPTrial, x_NxF: np.ndarray, y_N: np.ndarray):
    """Step losses, gradient norms, weights and logits in evaluation mode: ours, then PyTorch's."""
    state = init(TASK, trial)
    model = torch_model(trial, state.params, state.state)
    x_torch, y_torch = torch.from_numpy(x_NxF), torch.from_numpy(y_N.astype(np.int64))
    losses, norms = train_torch(trial, model, x_torch, y_torch)
    model.eval()
    with torch.no_grad():
        theirs = (losses, norms, {k: v.numpy() for k, v in model.state_dict().items()})
        theirs += (model(x_torch).numpy(),)

    epoch = jax.jit(functools.partial(train_epoch, TASK, trial, gradient_norms=True))
    losses, norms = [], []
    for i in range(trial.epochs):
        state, _, loss_S, norms_L = epoch(state, i, (x_NxF, y_N))
        losses.append(loss_S)
        norms.append(norms_L)
    variables = {"params": state.params, "batch_stats": state.state}
    logits_CxN = TASK.module(trial).apply(variables, x_NxF, jnp.ones(len(y_N)))
    weights = as_torch(state.params, state.state)
    ours = (np.concatenate(losses), np.stack(norms), weights, np.asarray(logits_CxN).T)
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_training(problem, case, dtype):
    import time
    trial = MLPTrial(**SMALL | CASES[case])
    x_NxF, y_N = problem.data["train"]
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        t=time.time()
        ours, theirs = train_both(trial, x_NxF.astype(dtype), y_N)
    print(time.time()-t)
    for o,t in zip(ours,theirs):
        if isinstance(o,dict):
            print({k:np.abs(o[k]-t[k]).max() for k in o})
        else: print(o.dtype, o.shape, np.abs(o-t).max(), np.abs(o-t)[:21].max(),np.abs(o/t-1).max(),  t.flat[0], t.flat[-1])
