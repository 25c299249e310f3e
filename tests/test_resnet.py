"""torchvision is the oracle: the same weights and images give the same network, in and out."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from nights import at_night
from torch_resnet import SMALL, as_torch, compiled, images, make, torch, torchvision, variables

from jaxexp.base.errors import UserError
from jaxexp.nn import conv as convolution
from jaxexp.nn.residual import BLOCKS, ResNet, resnet
from jaxexp.nn.weights import from_flax, load, to_flax

F = torch.nn.functional

ROUTES = convolution.ROUTES
CONVOLUTIONS = {  # images (B, H, W, C), kernel size, outputs, stride
    "3x3": ((2, 8, 8, 5), 3, 4, 1),
    "3x3, odd sizes": ((3, 7, 5, 4), 3, 6, 1),
    "3x3, tiny": ((2, 2, 3, 4), 3, 5, 1),
    "3x3, one pixel": ((2, 1, 1, 4), 3, 5, 1),
    "3x3, stride 2": ((2, 8, 8, 4), 3, 5, 2),
    "3x3, stride 2, odd": ((2, 7, 5, 4), 3, 5, 2),
    "1x1, stride 2": ((2, 8, 7, 4), 1, 5, 2),
    "7x7, stride 2": ((2, 13, 16, 3), 7, 4, 2),
}


@functools.cache
def trained_like(depth: int = 18, outputs: int = 3):
    """torchvision's network and the same in Flax."""
    model = make(BLOCKS[depth], outputs)
    return model, variables(model)


def close(ours, theirs, rtol: float, name: str = "") -> None:
    """Equal to `rtol` of the largest element: sums of many terms round relative to those."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_and_their_gradients(case, route):
    shape, size, outputs, stride = CONVOLUTIONS[case]
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(size, size, shape[-1], outputs))
    dy = rng.normal(size=(shape[0], -(-shape[1] // stride), -(-shape[2] // stride), outputs))

    def both(x, kernel, dy):
        y, pull = jax.vjp(lambda x, k: convolution.conv(x, k, stride, route), x, kernel)
        return [y, *pull(dy)]

    with jax.enable_x64(True):
        ours = compiled(both)(x, kernel, dy)
    inputs = (as_torch(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
    y_torch = F.conv2d(*(i.requires_grad_() for i in inputs), stride=stride, padding=size // 2)
    y_torch.backward(as_torch(dy))
    for our, their, axes in zip(
        ours,
        (y_torch.detach(), inputs[0].grad, inputs[1].grad),
        ((0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0)),
        strict=True,
    ):
        close(our, their.numpy().transpose(axes), 1e-13)


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["3x3", "3x3, odd sizes"])
def test_convolutions_an_image_at_a_time(monkeypatch, case):
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 1)
    jax.clear_caches()  # a chunk's size is fixed when a function is traced
    test_convolutions_and_their_gradients(case, "matmul")
    jax.clear_caches()


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 5, 3), (1, 1, 2, 3)])
def test_max_pool_and_its_gradient(shape):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, size=shape).astype(np.float32)  # with many equal maxima, and below zero
    y, pull = jax.vjp(convolution.max_pool, x)
    dy = rng.normal(size=y.shape).astype(np.float32)
    x_torch = as_torch(x).requires_grad_()
    y_torch = F.max_pool2d(x_torch, 3, stride=2, padding=1)
    y_torch.backward(as_torch(dy))
    np.testing.assert_array_equal(y, y_torch.detach().numpy().transpose(0, 2, 3, 1))
    dx = x_torch.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pull(dy)[0], dx, rtol=1e-6, atol=1e-6)  # sums of up to 4, reordered


def everything(model, flax, x):
    """Logits, pooled features, and the activations after each block, in evaluation mode."""
    names = ("__call__", "features")
    keep = functools.partial(model.apply, capture_intermediates=lambda _, name: name in names)
    logits, seen = compiled(keep)(flax, x, jnp.ones(len(x)))
    seen = seen["intermediates"]
    blocks = {name.replace("_", "."): v["__call__"][0] for name, v in seen.items() if "_" in name
              and name.startswith("layer")}  # fmt: skip
    return logits, seen["features"][0], blocks


def everything_torch(model, x):
    """The same of torchvision's network, images and activations as it has them."""
    blocks = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: blocks.update({name: out}))
        for name, module in model.named_modules()
        if name.startswith("layer") and name.count(".") == 1
    ]
    with torch.no_grad():
        logits = model(as_torch(x)).numpy()
        features = model.avgpool(list(blocks.values())[-1]).flatten(1).numpy()
    for hook in hooks:
        hook.remove()
    return logits, features, {n: v.numpy().transpose(0, 2, 3, 1) for n, v in blocks.items()}


@pytest.mark.parametrize(
    ("depth", "route", "size", "width"),
    [
        (18, "lax", 64, 64),
        (18, "matmul", 45, 70),
        pytest.param(18, "matmul", 64, 64, marks=pytest.mark.nightly),
        pytest.param(18, "matmul", 224, 224, marks=pytest.mark.nightly),
        pytest.param(34, "lax", 32, 32, marks=pytest.mark.nightly),
    ],
)
def test_evaluation(depth, route, size, width):
    (model, flax), x = trained_like(depth), images(size, batch=2, width=width)
    logits, features, blocks = everything(resnet(depth, 3, route), flax, x)
    theirs = everything_torch(model, x)
    assert np.abs(theirs[0]).max() > 0.1
    np.testing.assert_allclose(logits, theirs[0], rtol=0, atol=1e-4)
    assert features.shape == (2, 512)
    np.testing.assert_allclose(features, theirs[1], rtol=0, atol=1e-4)
    assert list(theirs[2]) == sorted(blocks)
    for name, activation in blocks.items():
        close(activation, theirs[2][name], 1e-5, name)
    again = resnet(depth, 3, route).apply(flax, features, method="head")
    np.testing.assert_allclose(again, logits, rtol=0, atol=1e-6)  # alone or inside, the same sums


def step_torch(model, x, y, learning_rate):
    """Gradients, and weights and statistics after one step of Adam, in training mode."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    loss = F.binary_cross_entropy_with_logits(model(as_torch(x))[:, 0], torch.from_numpy(y))
    loss.backward()
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    optimizer.step()
    return loss.item(), gradients, {n: v.numpy().copy() for n, v in model.state_dict().items()}


def step_flax(model, flax, x, y, weight_B, learning_rate):
    """The same, on the examples of weight 1."""

    def loss(params):
        logits, new = model.apply(
            {**flax, "params": params}, x, weight_B, train=True, mutable=["batch_stats"]
        )
        loss_B = optax.sigmoid_binary_cross_entropy(logits[:, 0], y)
        return (loss_B * weight_B).sum() / weight_B.sum(), new["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(flax["params"])
    adam = optax.adam(learning_rate)
    updates, _ = adam.update(grads, adam.init(flax["params"]))
    return value, grads, optax.apply_updates(flax["params"], updates), stats


@pytest.mark.parametrize("route", at_night(ROUTES, "lax"))
@pytest.mark.parametrize("blocks", [SMALL, pytest.param((1, 1, 1, 1), marks=pytest.mark.nightly)])
def test_a_step_of_fine_tuning(blocks, route):
    rate = 1e-3
    x = images(40, batch=6).astype(np.float64)
    y = (np.arange(6) % 2).astype(np.float64)
    with jax.enable_x64(True):
        model = ResNet(blocks, 1, route)
        step = compiled(functools.partial(step_flax, model, learning_rate=rate))
        for examples in (6, 4):  # a whole batch, and one that examples of weight 0 fill up
            theirs = make(blocks, 1).double()
            weight_B = (np.arange(6) < examples).astype(np.float64)
            ours = step(variables(theirs), x, y, weight_B)
            check_step(ours, step_torch(theirs, x[:examples], y[:examples], rate), rate)


def check_step(ours, theirs, rate: float) -> None:
    """Loss, gradients, weights and running statistics, in float64."""
    loss, grads, params, stats = ours
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-12)
    gradients = from_flax(grads, {})
    assert set(gradients) == set(theirs[1])
    for name, gradient in gradients.items():
        close(gradient, theirs[1][name], 1e-9, name)
    for name, value in from_flax(params, stats).items():
        # Adam's first step is rate * sign(gradient) but where gradients are as small as its 1e-8.
        tolerance = 1e-12 if "running" in name else 1e-3 * rate
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(value, theirs[2][name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.nightly
def test_gradients_in_float32_agree_between_the_routes():
    flax = variables(make(SMALL, 3))
    x, y, weight_B = images(32, batch=6), np.arange(6) % 2, jnp.ones(6)
    made = [
        compiled(functools.partial(step_flax, ResNet(SMALL, 3, r), learning_rate=1e-3))(
            flax, x, y, weight_B
        )
        for r in ROUTES
    ]
    np.testing.assert_allclose(made[0][0], made[1][0], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(made[0][1]))
    for one, other in zip(*(jax.tree.leaves(step[1]) for step in made), strict=True):
        # Rounding flips single units of ReLU, whose gradient is then another.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * largest)


def test_one_program_for_several_networks_gives_what_each_gives_alone(devices):
    model = ResNet((1,), 2, "matmul")
    x, weight_B = images(16, batch=4), jnp.array([1.0, 1, 1, 0])
    init = compiled(jax.vmap(lambda key: model.init(key, x, weight_B)))
    flax = init(jax.random.split(jax.random.key(0), 2))

    def loss(params, stats):
        logits, new = model.apply(
            {"params": params, "batch_stats": stats}, x, weight_B, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return (jnp.square(logits).sum(1) * weight_B).sum(), new

    one = jax.value_and_grad(loss, has_aux=True)
    (alone, _), grads = compiled(one)(
        *jax.tree.map(lambda a: a[0], (flax["params"], flax["batch_stats"]))
    )
    mesh = jax.sharding.Mesh(np.array(devices[:2]), "trials")
    spec = jax.sharding.PartitionSpec("trials")
    spread = jax.shard_map(
        lambda p, s: jax.lax.map(lambda a: one(*a), (p, s)),
        mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    for together in (jax.vmap(one), spread):
        (losses, _), all_grads = compiled(together)(flax["params"], flax["batch_stats"])
        np.testing.assert_allclose(losses[0], alone, rtol=1e-5)
        assert abs(losses[1] - alone) > 1e-3 * alone
        close(all_grads["fc"]["kernel"][0], grads["fc"]["kernel"], 1e-4)
        close(all_grads["conv1"]["kernel"][0], grads["conv1"]["kernel"], 1e-2)


@pytest.mark.nightly
def test_initial_weights_are_distributed_as_in_torchvision():
    x = jnp.zeros((1, 32, 32, 3))
    drawn = compiled(ResNet((1, 1, 1, 1), 100, "lax").init)(jax.random.key(0), x, jnp.ones(1))
    ours = from_flax(drawn["params"], drawn["batch_stats"])
    torch.manual_seed(0)
    resnets = torchvision.models.resnet
    theirs = resnets.ResNet(resnets.BasicBlock, [1, 1, 1, 1], num_classes=100).state_dict()
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        their = theirs[name].numpy()
        assert array.shape == their.shape, name
        if name.startswith("fc") or array.ndim == 4:
            # Kolmogorov and Smirnov's test, of 14 arrays; the seeds are fixed: no lottery.
            pair = (array.ravel()[:20_000], their.ravel()[:20_000])
            assert scipy.stats.ks_2samp(*pair).pvalue > 1e-4, name
        else:
            np.testing.assert_array_equal(array, their, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 50}, "depth=50: expected one of 18, 34"),
        ({"outputs": 0}, "outputs=0: expected a whole number at least 1"),
        ({"route": "fft"}, "route='fft': expected one of lax, matmul"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        resnet(**options)


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 3, 64, 64)])
def test_images_of_another_shape(shape):
    with pytest.raises(UserError, match=r"expected \(batch, height, width, 3\)"):
        resnet(18, 1).init(jax.random.key(0), jnp.zeros(shape), jnp.ones(shape[0]))


def test_the_trained_file():
    folder = os.environ.get("JAXEXP_SHARED")
    if not folder:
        pytest.skip("JAXEXP_SHARED names no folder with weights/resnet18-cifar6.pth")
    weights = load(Path(folder) / "weights" / "resnet18-cifar6.pth")
    model = make(BLOCKS[18], 6)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    params, stats = to_flax(weights)
    x = images(64, batch=4)
    with torch.no_grad():
        theirs = model(as_torch(x)).numpy()
    ours = compiled(resnet(18, 6, "matmul").apply)(
        {"params": params, "batch_stats": stats}, x, jnp.ones(4)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
