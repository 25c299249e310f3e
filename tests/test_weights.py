"""Weights go out and come back; what is not a ResNet's weights is refused, and never executed."""

import functools
import os
import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_resnet import make, torch, torchvision, variables

from jaxexp.base.errors import UserError
from jaxexp.nn import weights
from jaxexp.nn.residual import BLOCKS, resnet


@functools.cache
def network(depth: int = 18, outputs: int = 2):
    return make(BLOCKS[depth], outputs)


def equal_trees(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("depth", "outputs"), [(18, 7), pytest.param(34, 2, marks=pytest.mark.nightly)]
)
def test_round_trip(tmp_path, depth, outputs):
    model = network(depth, outputs)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    params, stats = weights.to_flax(weights.load(tmp_path / "in.pth"))
    weights.save_pth(tmp_path / "out.pth", params, stats)
    fresh = getattr(torchvision.models, f"resnet{depth}")(num_classes=outputs)
    fresh.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    equal_trees(weights.to_flax(weights.load(tmp_path / "out.pth")), (params, stats))


def test_the_tree_is_the_one_that_flax_makes():
    flax = variables(network())
    made = jax.eval_shape(
        resnet(18, 2).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1)
    )
    assert jax.tree.map(jnp.shape, flax) == jax.tree.map(jnp.shape, made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(tmp_path, dtype):
    own = network().state_dict(keep_vars=True)
    half = {name: tensor.to(getattr(torch, dtype)) for name, tensor in own.items()}
    torch.save(half, tmp_path / "half.pth")
    loaded = weights.load(tmp_path / "half.pth")
    assert loaded["conv1.weight"].dtype == np.float32
    np.testing.assert_allclose(
        loaded["conv1.weight"], own["conv1.weight"].detach().numpy(), rtol=1e-2, atol=1e-4
    )


def test_another_head():
    params = variables(network())["params"]
    new = weights.replace_head(params, 5, jax.random.key(0))
    assert new["fc"]["kernel"].shape == (5, 512)
    assert new["fc"]["bias"].shape == (5,)
    assert 0.97 / 512**0.5 < np.abs(new["fc"]["kernel"]).max() <= 1 / 512**0.5
    equal_trees({**new, "fc": 0}, {**params, "fc": 0})
    assert params["fc"]["kernel"].shape == (2, 512)
    other = weights.replace_head(params, 5, jax.random.key(1))
    assert not np.array_equal(new["fc"]["kernel"], other["fc"]["kernel"])


class Planted:
    """Pickled code: unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(path, content):
    torch.save(content, path)
    return path


def cut_short(path):
    saved(path, network().state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def other_architecture():
    state = dict(network().state_dict())
    del state["bn1.bias"]
    return state | {"conv1.weight": torch.zeros(64, 3, 3, 3), "extra.weight": torch.zeros(1)}


def with_bias(value):
    state = network().state_dict()
    return state | {"layer1.0.bn1.bias": torch.full((64,), value, dtype=torch.float64)}


def with_head(change):
    state = network().state_dict()
    return state | {"fc.weight": change(state["fc.weight"])}


BAD = {
    "missing": (lambda path: path, "no such file"),
    "empty": (lambda path: write(path, b""), "damaged"),
    "text": (lambda path: write(path, b"weights, honestly\n"), "damaged"),
    "cut short": (cut_short, "damaged or cut short"),
    "a list": (lambda path: saved(path, [torch.zeros(2)]), "holds a list, not a state dict"),
    "a tensor": (lambda path: saved(path, torch.zeros(2)), "holds a Tensor, not a state dict"),
    "no weights": (lambda path: saved(path, {}), "it is empty"),
    "a checkpoint": (
        lambda path: saved(path, {"epoch": 3, "model": network().state_dict()}),
        "'epoch' is an int",
    ),
    "a module": (lambda path: saved(path, torch.nn.Linear(2, 2)), "holds Python objects"),
    "another architecture": (
        lambda path: saved(path, other_architecture()),
        r"ResNet 18 or 34.*bn1\.bias: missing, not \(64,\); "
        r"conv1\.weight: \(64, 3, 3, 3\), not \(64, 3, 7, 7\); extra\.weight: \(1,\), not there$",
    ),
    "NaN": (
        lambda path: saved(path, with_bias(float("nan"))),
        r"layer1\.0\.bn1\.bias holds nan \(64 of 64 numbers are not finite\), expected finite",
    ),
    "sparse": (
        lambda path: saved(path, with_head(torch.Tensor.to_sparse)),
        r"fc\.weight is torch\.sparse_coo, of torch\.float32 on cpu, expected a dense tensor",
    ),
    "complex": (
        lambda path: saved(path, with_head(lambda w: w.to(torch.complex64))),
        r"fc\.weight is torch\.strided, of torch\.complex64 on cpu, expected a dense tensor of fl",
    ),
    "beyond float32": (lambda path: saved(path, with_bias(1e39)), r"bn1\.bias holds inf"),
    "no resnet": (
        lambda path: saved(path, torch.nn.Linear(2, 2).state_dict()),
        r"bn1\.bias: missing, not \(64,\).* and \d+ more$",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    make_file, message = BAD[case]
    path = make_file(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as raised:
        weights.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_code_is_not_executed(tmp_path, zipped):
    planted, path = tmp_path / "planted", tmp_path / "weights.pth"
    state = {**network().state_dict(), "code": Planted(planted)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds Python objects, which are code: not loaded"):
        weights.load(path)
    assert not planted.exists()
    torch.load(path, weights_only=False)
    assert planted.exists()  # the file would have done it


def test_writing_into_no_folder(tmp_path):
    flax = variables(network())
    with pytest.raises(UserError, match="cannot be written"):
        weights.save_pth(tmp_path / "no" / "w.pth", flax["params"], flax["batch_stats"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of PyTorch's, where ImageNet's weights would be."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"


def test_imagenet_offline(cache, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"could not be fetched.*no network") as raised:
        weights.load("imagenet")
    assert cache.name in str(raised.value)
    assert str(cache.parent) in str(raised.value)
    assert ".pth" in str(raised.value)


def test_imagenet_of_another_hash(cache):
    cache.parent.mkdir(parents=True)
    torch.save(network().state_dict(), cache)
    with pytest.raises(UserError, match=r"SHA-256 .* expected f37072fd.*: remove it"):
        weights.load("imagenet")


def test_imagenet_is_fetched_with_its_hash_into_the_usual_cache(cache, monkeypatch):
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url.rpartition("/")[2], path, hash_prefix))
        torch.save(network().state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError, match="SHA-256"):  # these are not ImageNet's
        weights.load("imagenet")
    assert asked == [(cache.name, str(cache), "f37072fd")]
