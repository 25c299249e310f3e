"""Two-dimensional convolutions and max pooling, for accelerators and for CPUs.

`route="lax"` is XLA's convolution. `route="matmul"` turns most of the work into matrix products.
XLA's CPU backend runs those near the processor's peak, whereas its convolutions, and above all
their gradients, can be ten times slower:

- 3x3 kernels of stride 1 use Winograd's F(2x2, 3x3) (Lavin and Gray, 2016): each tile of 4x4 inputs
  gives 2x2 outputs with 16 products instead of 36. Rounding errors are about as large as those of a
  direct convolution;
- other 3x3 and 1x1 kernels, and images of fewer than 4 pixels a side, are shifted slices side by
  side (im2col) times one matrix;
- the 7x7 stem uses XLA's convolution, which is as fast there, except for the gradient of its
  kernel, which takes a second inside a loop and is computed as matrix products instead.

Shapes: N images, H x W pixels, C channels in, O channels out, K x K kernels, T tiles, h x w pixels
out. Images are NHWC, kernels KxKxCxO. Padding is K // 2 zeros on each side, as in ResNets.
"""

import functools
from collections.abc import Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxexp.training.platform import platform
from jaxexp.training.precision import rounds

ROUTES = ("lax", "matmul")
CHUNK_BYTES = 1 << 22  # of transformed tiles in a chunk, to stay in a core's or the shared cache

# Y = A [(G g G') * (B d B')] A' for a 3x3 kernel g, 4x4 inputs d and 2x2 outputs Y.
B_4x4 = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G_4x3 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A_2x4 = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

Grid: TypeAlias = list[list[Array]]  # arrays of equal shape in rows and columns


def default_route() -> str:
    """The route for the platform that is being traced for; else for JAX's default backend."""
    return "matmul" if platform() == "cpu" else "lax"


def conv(x_NxHxWxC: Array, kernel_KxKxCxO: Array, stride: int, route: str) -> Array:
    """`torch.nn.functional.conv2d` with padding K // 2, (N, H, W, C) to (N, h, w, O)."""
    size = kernel_KxKxCxO.shape[0]
    if route == "matmul" and (size, stride) == (7, 2):
        return stem_conv(x_NxHxWxC, kernel_KxKxCxO)
    if route == "lax" or size > 3:
        return lax_conv(x_NxHxWxC, kernel_KxKxCxO, stride)
    tiles = size == 3 and stride == 1 and min(x_NxHxWxC.shape[1:3]) >= 4
    if tiles and not rounds():  # rounding must apply to the convolution's own factors
        return winograd(x_NxHxWxC, kernel_KxKxCxO)
    return columns_conv(x_NxHxWxC, kernel_KxKxCxO, stride)


def lax_conv(x_NxHxWxC: Array, kernel_KxKxCxO: Array, stride: int) -> Array:
    """XLA's convolution."""
    padding = (kernel_KxKxCxO.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x_NxHxWxC, kernel_KxKxCxO, (stride, stride), (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def columns_conv(x_NxHxWxC: Array, kernel_KxKxCxO: Array, stride: int) -> Array:
    """The convolution as one matrix product."""
    size = kernel_KxKxCxO.shape[0]
    shifted = [slice_ for row in _shifted(x_NxHxWxC, size, stride) for slice_ in row]
    cols_NxhxwxKKC = jnp.concatenate(shifted, axis=-1)
    return _product(cols_NxhxwxKKC, kernel_KxKxCxO.reshape(-1, kernel_KxKxCxO.shape[-1]))


def _shifted(x_NxHxWxC: Array, size: int, stride: int, fill: float = 0) -> Grid:
    """What each tap of a kernel sees of the images padded with `fill`, (N, h, w, C) each."""
    height, width = x_NxHxWxC.shape[1:3]
    rows, cols = (stride * (-(-n // stride) - 1) + 1 for n in (height, width))
    pad = (size // 2,) * 2
    padded = jnp.pad(x_NxHxWxC, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
    return [
        [padded[:, i : i + rows : stride, j : j + cols : stride] for j in range(size)]
        for i in range(size)
    ]


def _product(x: Array, matrix_CxO: Array) -> Array:
    """(..., C) to (..., O), as a product of two matrices."""
    return (_flat(x) @ matrix_CxO).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def stem_conv(x_NxHxWxC: Array, kernel_7x7xCxO: Array) -> Array:
    """The convolution of a 7x7 kernel at stride 2."""
    return lax_conv(x_NxHxWxC, kernel_7x7xCxO, 2)


def _stem_backward(saved: tuple[Array, Array], dy_NxhxwxO: Array) -> tuple[Array, Array]:
    """The gradients; with 2x2 pixels folded into channels, an 8x8 kernel has only 4x4 taps."""
    x_NxHxWxC, kernel = saved
    images, height, width, channels = x_NxHxWxC.shape
    rows, cols = dy_NxhxwxO.shape[1:3]
    after = (2 * rows + 3 - height, 2 * cols + 3 - width)
    padded = jnp.pad(x_NxHxWxC, ((0, 0), (3, after[0]), (3, after[1]), (0, 0)))
    deep = padded.reshape(images, rows + 3, 2, cols + 3, 2, channels).swapaxes(2, 3)
    deep = deep.reshape(images, rows + 3, cols + 3, 4 * channels)
    taps = jnp.concatenate([deep[:, :, j : j + cols] for j in range(4)], axis=-1)
    taps = lax.optimization_barrier(taps)  # slices of it are slow if fused with it
    products = jnp.stack([_flat(taps[:, i : i + rows]).T @ _flat(dy_NxhxwxO) for i in range(4)])
    taps_8x8 = products.reshape(4, 4, 2, 2, channels, -1).swapaxes(1, 2)
    dkernel = taps_8x8.reshape(8, 8, channels, -1)[:7, :7]
    _, pull = jax.vjp(lambda x: lax_conv(x, kernel, 2), x_NxHxWxC)  # not needed in training
    return *pull(dy_NxhxwxO), dkernel


stem_conv.defvjp(lambda x, kernel: (stem_conv(x, kernel), (x, kernel)), _stem_backward)


def _flat(x: Array) -> Array:
    """(..., C) to a matrix with C columns."""
    return x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def winograd(x_NxHxWxC: Array, kernel_3x3xCxO: Array) -> Array:
    """The convolution of a 3x3 kernel at stride 1, a chunk of images at a time."""
    kernels = _sandwich(G_4x3, [list(row) for row in kernel_3x3xCxO])

    def convolve(x_nxHxWxC: Array) -> Array:
        inputs = _input_tiles(x_nxHxWxC)
        products = [
            [_product(v, u) for v, u in zip(*rows, strict=True)]
            for rows in zip(inputs, kernels, strict=True)
        ]
        return _interleave(_sandwich(A_2x4, products), *x_nxHxWxC.shape[1:3])

    chunks = _chunks(x_NxHxWxC, *kernel_3x3xCxO.shape[2:])
    y = convolve(chunks[0])[None] if len(chunks) == 1 else lax.map(convolve, chunks)
    return y.reshape(*x_NxHxWxC.shape[:3], -1)


def _winograd_forward(x_NxHxWxC: Array, kernel_3x3xCxO: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd(x_NxHxWxC, kernel_3x3xCxO), (x_NxHxWxC, kernel_3x3xCxO)


def _winograd_backward(saved: tuple[Array, Array], dy_NxHxWxO: Array) -> tuple[Array, Array]:
    x_NxHxWxC, kernel_3x3xCxO = saved
    flipped_3x3xOxC = kernel_3x3xCxO[::-1, ::-1].swapaxes(2, 3)
    return winograd(dy_NxHxWxO, flipped_3x3xOxC), _kernel_gradient(x_NxHxWxC, dy_NxHxWxO)


winograd.defvjp(_winograd_forward, _winograd_backward)


def _kernel_gradient(x_NxHxWxC: Array, dy_NxHxWxO: Array) -> Array:
    """The gradient of a 3x3 kernel from the images and the gradient of the outputs."""
    channels = (x_NxHxWxC.shape[-1], dy_NxHxWxO.shape[-1])

    def gradient(total: Grid, chunk: tuple[Array, Array]) -> tuple[Grid, None]:
        inputs, outputs = _input_tiles(chunk[0]), _sandwich(A_2x4.T, _output_tiles(chunk[1]))
        return [
            [total[i][j] + _flat(inputs[i][j]).T @ _flat(outputs[i][j]) for j in range(4)]
            for i in range(4)
        ], None

    zeros = [[jnp.zeros(channels, x_NxHxWxC.dtype)] * 4] * 4
    chunks = (_chunks(x_NxHxWxC, *channels), _chunks(dy_NxHxWxO, *channels))
    if len(chunks[0]) == 1:
        total, _ = gradient(zeros, (chunks[0][0], chunks[1][0]))
    else:
        total, _ = lax.scan(gradient, zeros, chunks)
    return jnp.stack([jnp.stack(row) for row in _sandwich(G_4x3.T, total)])


def _chunks(x_NxHxWxC: Array, inputs: int, outputs: int) -> Array:
    """The images in chunks of equal size, whose tiles take at most CHUNK_BYTES if possible."""
    images, height, width = x_NxHxWxC.shape[:3]
    tiles = -(-height // 2) * -(-width // 2)
    most = max(1, CHUNK_BYTES // (16 * tiles * max(inputs, outputs) * x_NxHxWxC.dtype.itemsize))
    size = max(n for n in range(1, min(most, images) + 1) if images % n == 0)
    return x_NxHxWxC.reshape(-1, size, *x_NxHxWxC.shape[1:])


def _input_tiles(x_nxHxWxC: Array) -> Grid:
    """The 4x4 elements of every tile, transformed: (n, h, w, C) each, for h x w tiles."""
    height, width = x_nxHxWxC.shape[1:3]
    padded = jnp.pad(x_nxHxWxC, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    rows, cols = height + height % 2 - 1, width + width % 2 - 1
    tiles = [[padded[:, i : i + rows : 2, j : j + cols : 2] for j in range(4)] for i in range(4)]
    return _sandwich(B_4x4, tiles)


def _output_tiles(dy_nxHxWxO: Array) -> Grid:
    """The 2x2 elements of every tile, (n, h, w, O) each, zero past the images."""
    odd = [(0, size % 2) for size in dy_nxHxWxO.shape[1:3]]
    padded = jnp.pad(dy_nxHxWxO, ((0, 0), *odd, (0, 0)))
    return [[padded[:, i::2, j::2] for j in range(2)] for i in range(2)]


def _interleave(parts: Grid, height: int, width: int) -> Array:
    """The images whose pixels of even and odd rows and columns are the 2x2 `parts`."""
    images, rows, cols, channels = parts[0][0].shape
    y = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)
    return y.reshape(images, 2 * rows, 2 * cols, channels)[:, :height, :width]


def _sandwich(matrix: np.ndarray, grid: Grid) -> Grid:
    """matrix @ grid @ matrix.T, where the grid's elements are arrays."""
    left = [[_combine(row, col) for col in zip(*grid, strict=True)] for row in matrix]
    return [[_combine(col, row) for col in matrix] for row in left]


def _combine(factors: np.ndarray, arrays: Iterable[Array]) -> Array:
    """The sum of factors times arrays, without the terms that are zero."""
    terms = [
        a if factor == 1 else -a if factor == -1 else float(factor) * a
        for factor, a in zip(factors, arrays, strict=True)
        if factor
    ]
    return functools.reduce(jnp.add, terms)


@jax.custom_vjp
def max_pool(x_NxHxWxC: Array) -> Array:
    """`torch.nn.MaxPool2d(3, stride=2, padding=1)`: (N, H, W, C) to (N, h, w, C).

    The gradient goes to the first of equal maxima, as in PyTorch. It needs no scatter, unlike the
    gradient of `reduce_window` in XLA.
    """
    return _max_pool_forward(x_NxHxWxC)[0]


def _max_pool_forward(x_NxHxWxC: Array) -> tuple[Array, tuple[Array, Array]]:
    taps = [tap for row in _shifted(x_NxHxWxC, 3, 2, -jnp.inf) for tap in row]
    best, where = taps[0], jnp.zeros(taps[0].shape, jnp.int8)
    for k, tap in enumerate(taps[1:], start=1):
        where = jnp.where(tap > best, jnp.int8(k), where)
        best = jnp.maximum(best, tap)
    return best, (where, x_NxHxWxC)


def _max_pool_backward(saved: tuple[Array, Array], dy_NxhxwxC: Array) -> tuple[Array]:
    where, x_NxHxWxC = saved
    rows, cols = dy_NxhxwxC.shape[1:3]
    after = ((0, 0), (0, 1), (0, 1), (0, 0))
    dy, where = jnp.pad(dy_NxhxwxC, after), jnp.pad(where, after)

    def part(*taps: tuple[int, int, int]) -> Array:
        """The sum of gradients from taps k of the windows i rows and j columns further on."""
        chosen = (
            jnp.where(
                where[:, i : i + rows, j : j + cols] == k, dy[:, i : i + rows, j : j + cols], 0
            )
            for k, i, j in taps
        )
        return functools.reduce(jnp.add, chosen)

    parts = [
        [part((4, 0, 0)), part((5, 0, 0), (3, 0, 1))],
        [part((7, 0, 0), (1, 1, 0)), part((8, 0, 0), (6, 0, 1), (2, 1, 0), (0, 1, 1))],
    ]
    return (_interleave(parts, *x_NxHxWxC.shape[1:3]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
