"""Batch normalisation that ignores padding."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxexp.nn.parameters import parameter
from jaxexp.spec.padding import Traced


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` and `BatchNorm2d` over the examples that the mask selects.

    The biased variance is used to normalise, and the unbiased one in the running average (Ioffe
    and Szegedy, 2015, and PyTorch's documentation).

    Attributes:
        channel_axis: the channel axis of the input: -1 for (B, ..., C), 0 for (C, B).
        padded: whether channels past `width` are padding: their scales start at 0, as biases do,
            and are never read.
        epsilon: what is added to the variance.
        update: the share of a new batch in the running statistics.
    """

    channel_axis: int = -1
    padded: bool = False
    epsilon: float = 1e-5
    update: float = 0.1

    @nn.compact
    def __call__(self, x: Array, mask_B: Array, width: Traced = 0, *, train: bool) -> Array:
        """The input normalised per channel: by the batch in training, else by running statistics.

        The examples lie along the first axis that is not the channel axis.
        """
        channel = self.channel_axis % x.ndim
        others = tuple(axis for axis in range(x.ndim) if axis != channel)
        channels = x.shape[channel]
        if self.padded:
            own_C = jnp.arange(channels) < width
            scale_C = parameter(self, "scale", _ones_at, (channels,), own_C)
            scale_C = jnp.where(own_C, scale_C, 1)
        else:
            scale_C = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias_C = parameter(self, "bias", nn.initializers.zeros, (channels,))
        if self.padded:
            bias_C = jnp.where(own_C, bias_C, 0)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean_C, var_C = running_mean.value, running_var.value
        if train:
            mask_B = mask_B.astype(x.dtype)
            mask = jnp.expand_dims(mask_B, [a for a in range(x.ndim) if a != others[0]])
            each = x.size // (channels * x.shape[others[0]])  # values per channel of one example
            n = jnp.maximum(mask_B.sum(), 1) * each  # all zero when a trial has no steps left
            mean_C = (x * mask).sum(others) / n
            var_C = (jnp.square(x - jnp.expand_dims(mean_C, others)) * mask).sum(others) / n
            if not self.is_initializing():
                unbiased_C = var_C * n / jnp.maximum(n - 1, 1)  # a single value has variance 0
                running_mean.value += self.update * (mean_C - running_mean.value)
                running_var.value += self.update * (unbiased_C - running_var.value)
        factor_C = scale_C * jax.lax.rsqrt(var_C + self.epsilon)
        centred = x - jnp.expand_dims(mean_C, others)
        return centred * jnp.expand_dims(factor_C, others) + jnp.expand_dims(bias_C, others)


def _ones_at(key: Array, shape: tuple[int, ...], own_C: Array) -> Array:
    return jnp.where(own_C, nn.initializers.ones(key, shape), 0)
