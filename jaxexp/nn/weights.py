"""Reading and writing torchvision's weights of ResNet 18 and 34.

A state dict maps names to arrays, such as `layer2.0.conv1.weight` to (O, I, K, K). Flax keeps the
same layers as nested dicts, with kernels (K, K, I, O) and running statistics in a tree of their
own.
"""

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import URLError

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.nn.residual import BLOCKS, resnet
from jaxexp.nn.torchvision import import_torch, import_torchvision
from jaxexp.training.trees import PyTree

StateDict = dict[str, np.ndarray]
Leaves = dict[str, tuple[str, tuple[int, ...]]]

# From Flax's leaf to torchvision's, and which of Flax's axes each of torchvision's axes is.
CONV: Leaves = {"kernel": ("weight", (3, 2, 0, 1))}
NORM: Leaves = {
    "scale": ("weight", (0,)),
    "bias": ("bias", (0,)),
    "mean": ("running_mean", (0,)),
    "var": ("running_var", (0,)),
}
HEAD: Leaves = {"kernel": ("weight", (0, 1)), "bias": ("bias", (0,))}
LAYERS = {"conv1": CONV, "conv2": CONV, "downsample_0": CONV, "fc": HEAD}
LAYERS |= dict.fromkeys(("bn1", "bn2", "downsample_1"), NORM)
STATISTICS = ("mean", "var")  # in a tree of their own, not trained
COUNTER = "num_batches_tracked"  # of torchvision's batch norm; only momentum=None would read it


def load(source: str | Path) -> StateDict:
    """The weights of a ResNet 18 or 34, float32 under torchvision's names, with any head.

    `source` is "imagenet", for torchvision's ResNet 18 (IMAGENET1K_V1; fetched once into PyTorch's
    cache), or the path of a state dict saved by PyTorch. Nothing in the file is executed. Raises
    UserError if the weights cannot be fetched or read, or if the file holds anything else.
    """
    path = _imagenet() if source == "imagenet" else Path(source)
    weights = _read(path)
    _check(weights, path)
    return weights


def depth_of(weights: Mapping[str, object]) -> int:
    """18 or 34, whichever the names resemble more."""
    return 34 if any(name.startswith("layer1.2.") for name in weights) else 18


def to_flax(weights: Mapping[str, np.ndarray]) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics for `jaxexp.nn.residual`, from what `load` returns."""
    params: PyTree = {}
    stats: PyTree = {}
    for name, array in weights.items():
        *layers, last = re.sub(r"\.(\d)", r"_\1", name).split(".")
        for key, (leaf, axes) in LAYERS[layers[-1]].items():
            if leaf == last:
                node = stats if key in STATISTICS else params
                for layer in layers:
                    node = node.setdefault(layer, {})
                node[key] = np.ascontiguousarray(array.transpose(np.argsort(axes)))
    return params, stats


def from_flax(params: PyTree, batch_stats: PyTree) -> StateDict:
    """Flax's weights under torchvision's names, as a strict `load_state_dict` expects them."""
    leaves = [*_walk(params), *_walk(batch_stats)]
    weights = {name: np.asarray(leaf).transpose(axes) for name, axes, leaf in leaves}
    means = [name for name in weights if name.endswith(".running_mean")]
    return weights | {
        name.replace("running_mean", COUNTER): np.zeros((), np.int64) for name in means
    }


def save_pth(path: str | Path, params: PyTree, batch_stats: PyTree) -> None:
    """Write a state dict that torchvision's network of the same depth and outputs loads.

    Raises UserError if the file cannot be written.
    """
    torch = import_torch()
    weights = from_flax(params, batch_stats)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    try:
        torch.save(tensors, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: the folder does not exist
        raise UserError(f"{path}: cannot be written: {error}") from error


def replace_head(params: PyTree, outputs: int, key: Array) -> PyTree:
    """The parameters with a newly initialised last layer that has `outputs` outputs."""
    kernel: Array = params["fc"]["kernel"]
    head = resnet(18, outputs).init(key, jnp.zeros((1, kernel.shape[1])), method="head")
    return {**params, "fc": head["params"]["fc"]}


def _shapes(depth: int, outputs: int) -> tuple[PyTree, PyTree]:
    """The shapes of parameters and batch statistics, found without computing the arrays."""
    model = resnet(depth, outputs, "lax")
    images, weight_B = jnp.zeros((1, 32, 32, 3)), jnp.ones(1)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, weight_B)
    return variables["params"], variables["batch_stats"]


def _walk(
    tree: PyTree, layers: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[int, ...], PyTree]]:
    """For every leaf: torchvision's name, the order of axes there, and the leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*layers, re.sub(r"_(\d)$", r".\1", key)))
        else:
            leaf, axes = LAYERS[layers[-1].replace(".", "_")][key]
            yield ".".join([*layers, leaf]), axes, value


def _check(weights: StateDict, path: Path) -> None:
    """Raise UserError, naming the first differences, unless these are a ResNet's finite weights."""
    depth = depth_of(weights)
    outputs = len(weights["fc.weight"]) if weights.get("fc.weight", np.zeros(())).ndim == 2 else 1
    expected = {
        name: tuple(leaf.shape[axis] for axis in axes)
        for tree in _shapes(depth, max(outputs, 1))
        for name, axes, leaf in _walk(tree)
    }
    found = {name: array.shape for name, array in weights.items() if not name.endswith(COUNTER)}
    differ = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
    if differ:
        lines = [f"{n}: {found.get(n, 'missing')}, not {expected.get(n, 'there')}" for n in differ]
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UserError(
            f"{path}: expected the weights of a ResNet {' or '.join(map(str, BLOCKS))}; beside "
            f"ResNet {depth}'s differ {'; '.join(lines[:4])}{more}"
        )
    for name, array in weights.items():
        if (bad := array[~np.isfinite(array)]).size:
            raise UserError(
                f"{path}: {name} holds {bad[0]} ({bad.size:,} of {array.size:,} numbers are not "
                "finite), expected finite numbers, as float32 holds them"
            )


def _read(path: Path) -> StateDict:
    """The arrays of a state dict, float32; executes nothing."""
    torch = import_torch()
    if not path.is_file():
        raise UserError(f"{path}: no such file (expected a state dict, .pth, or imagenet)")
    wanted = "expected what torch.save(model.state_dict(), path) writes"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL " in str(error):  # the pickle names a function or class that tensors do not need
            raise UserError(
                f"{path}: holds Python objects, which are code: not loaded; {wanted}"
            ) from error
        raise UserError(f"{path}: damaged, or not a file of PyTorch's; {wanted}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or cut short; {wanted}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds {type_of(found)}, not a state dict; {wanted}")
    odd = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if odd or not found:
        what = f"{odd[0]!r} is {type_of(found[odd[0]])}" if odd else "it is empty"
        raise UserError(f"{path}: not a state dict ({what}); {wanted}")
    for name, value in found.items():
        dense = value.layout is torch.strided and not (value.is_quantized or value.is_meta)
        if not dense or value.is_complex():
            raise UserError(
                f"{path}: {name} is {value.layout}, of {value.dtype} on {value.device}, expected "
                "a dense tensor of floats on the CPU: such as its .to_dense()"
            )
    counts = {n for n, v in found.items() if n.endswith(COUNTER) and not v.is_floating_point()}
    return {
        str(name): (value if name in counts else value.float()).detach().numpy()
        for name, value in found.items()
    }


def _imagenet() -> Path:
    """torchvision's file in PyTorch's cache: fetched if it is missing, and its hash checked."""
    torch, torchvision = import_torch(), import_torchvision()
    url: str = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    prefix = path.stem.rpartition("-")[2]  # resnet18-HASH.pth: the first digits of its SHA-256
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash
            raise UserError(
                f"imagenet: the weights could not be fetched ({error}); put {path.name} into "
                f"{path.parent}, or give the path of a .pth file"
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(prefix):
        raise UserError(f"{path}: SHA-256 {digest[:8]}…, expected {prefix}…: remove it")
    return path
