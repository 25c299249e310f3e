"""A differentiable loop over the first layers of a stack, as many as a traced number says.

`jax.lax.scan` has a fixed length, and JAX cannot differentiate loops of any other: what their
layers keep for the gradients would have no fixed size. Here there is room for all the layers.

Shapes: L layers; an array with the suffix _L has a leading layer axis.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jaxexp.training.trees import PyTree


class Layers(NamedTuple):
    """What the layers are given, as trees of arrays; only `params_L` has gradients."""

    shared: PyTree  # read by all layers
    params_L: PyTree
    own_L: PyTree
    made_L: PyTree  # what `made` is for layers that are not reached


# Takes `shared`, the input, `params` and `own`. Returns the output, shaped like the input, and what
# else the layer makes, as in `made_L`, which has no gradient.
Layer: TypeAlias = Callable[[PyTree, Array, PyTree, PyTree], tuple[Array, PyTree]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def first_layers(layer: Layer, count: Array, x: Array, layers: Layers) -> tuple[Array, PyTree]:
    """Apply the first `count` layers to x: the output of the last, and what each has made.

    The result is what `jax.lax.scan` would return for these layers alone. The other layers take no
    time, and their gradients are zero. Inputs and products are kept for the gradients; everything
    else is recomputed.
    """

    def apply(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        x, made_L = carry
        params, own = _at(i, (layers.params_L, layers.own_L))
        x, made = layer(layers.shared, x, params, own)
        return x, _put(i, made_L, made)

    applied: tuple[Array, PyTree] = jax.lax.fori_loop(0, count, apply, (x, layers.made_L))
    return applied


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Kept:
    """What the backward pass needs from the forward pass."""

    count: Array
    layers: Layers
    arrays_L: list[Array]  # the arrays in `pullback` that are not in `layers`
    # The gradient function of one layer: its structure, and where each of its arrays is among what
    # the layer is given, or None if it is not there.
    pullback: jax.tree_util.PyTreeDef = field(metadata={"static": True})
    places: tuple[int | None, ...] = field(metadata={"static": True})


def _forward(
    layer: Layer, count: Array, x: Array, layers: Layers
) -> tuple[tuple[Array, PyTree], _Kept]:
    found: list[tuple[jax.tree_util.PyTreeDef, tuple[int | None, ...]]] = []

    def differentiated(
        shared: PyTree, x: Array, params: PyTree, own: PyTree
    ) -> tuple[Array, PyTree, list[Array]]:
        products_kept = jax.checkpoint(
            layer, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable
        )
        x, pullback, made = jax.vjp(
            lambda x, params: products_kept(shared, x, params, own), x, params, has_aux=True
        )
        arrays, structure = jax.tree.flatten(pullback)
        given = {id(a): i for i, a in enumerate(jax.tree.leaves((shared, params, own)))}
        places = tuple(given.get(id(a)) for a in arrays)
        found.append((structure, places))
        return x, made, [a for a, place in zip(arrays, places, strict=True) if place is None]

    own_of_first = _at(0, (layers.params_L, layers.own_L))
    *_, kept = jax.eval_shape(differentiated, layers.shared, x, *own_of_first)
    length = len(jax.tree.leaves(layers.params_L)[0])
    arrays_L = [jnp.zeros((length, *a.shape), a.dtype) for a in kept]

    def apply(
        i: Array, carry: tuple[Array, PyTree, list[Array]]
    ) -> tuple[Array, PyTree, list[Array]]:
        x, made_L, arrays_L = carry
        params, own = _at(i, (layers.params_L, layers.own_L))
        x, made, arrays = differentiated(layers.shared, x, params, own)
        return x, _put(i, made_L, made), _put(i, arrays_L, arrays)

    x, made_L, arrays_L = jax.lax.fori_loop(0, count, apply, (x, layers.made_L, arrays_L))
    return (x, made_L), _Kept(count, layers, arrays_L, *found[-1])


def _backward(layer: Layer, kept: _Kept, grads: tuple[Array, PyTree]) -> tuple[None, Array, Layers]:
    layers = kept.layers

    def pull_back(j: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        dx, dparams_L = carry
        i = kept.count - 1 - j
        given = jax.tree.leaves((layers.shared, _at(i, (layers.params_L, layers.own_L))))
        own = iter(_at(i, kept.arrays_L))
        arrays = [next(own) if place is None else given[place] for place in kept.places]
        dx, dparams = jax.tree.unflatten(kept.pullback, arrays)(dx)
        return dx, _put(i, dparams_L, dparams)

    nothing_L = jax.tree.map(jnp.zeros_like, layers.params_L)
    dx, dparams_L = jax.lax.fori_loop(0, kept.count, pull_back, (grads[0], nothing_L))
    return None, dx, Layers(None, dparams_L, None, None)


first_layers.defvjp(_forward, _backward)


def _at(i: int | Array, tree_L: PyTree) -> PyTree:
    return jax.tree.map(lambda a_L: jax.lax.dynamic_index_in_dim(a_L, i, keepdims=False), tree_L)


def _put(i: Array, tree_L: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda a_L, a: jax.lax.dynamic_update_index_in_dim(a_L, a, i, 0), tree_L, tree
    )
