"""Where an axis of an argument ends up in the results of each of JAX's operations.

The parameters of operations differ between versions of JAX: if one is missing, a rule fails, and
nothing is proven of the operation.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from jaxexp.training import jaxprs

Axis: TypeAlias = int | None
MIXED = -1  # not an axis of the result: its places are mixed with those of others
Rule: TypeAlias = "Callable[[Operation], Axis]"


class Operation(NamedTuple):
    """One result of an operation, one of whose arguments holds examples along one axis."""

    given: Sequence[Axis]  # None for all other arguments
    axis: int
    shapes: Sequence[jaxprs.Shape]  # of all arguments
    out: jaxprs.Shape
    params: jaxprs.Params


# Rules for arrays whose axes correspond. `_result` discards an axis whose length changes.


def _kept(op: Operation) -> Axis:
    """A slice as long as the whole axis is the whole axis, in order."""
    return op.axis


def _updated(op: Operation) -> Axis:
    """Only the whole axis may be updated, or else it would matter where."""
    return op.axis if op.shapes[0][op.axis] == op.shapes[1][op.axis] else MIXED


def _elementwise(op: Operation) -> Axis:
    """Axes stay in place if all arguments but scalars have as many; an axis of 1 is broadcast."""
    same = all(len(shape) in (len(op.out), 0) for shape in op.shapes)
    return op.axis if same else MIXED


def _along(op: Operation) -> Axis:
    """Operations that run along one or several axes, which remain."""
    names = ("axis", "dimension", "dimensions")
    [along] = [op.params[name] for name in names if name in op.params]
    along = along if isinstance(along, tuple | list) else (along,)
    return MIXED if op.axis in along else op.axis


def _reduced(op: Operation) -> Axis:
    """Operations that reduce one or several axes, which disappear."""
    [gone] = [op.params[name] for name in ("axes", "dimensions") if name in op.params]
    return MIXED if op.axis in gone else op.axis - sum(each < op.axis for each in gone)


def _unstack(op: Operation) -> Axis:
    gone: int = op.params["axis"]
    return MIXED if op.axis == gone else op.axis - (gone < op.axis)


def _stack(op: Operation) -> Axis:
    new: int = op.params["axis"]
    return op.axis + (new <= op.axis)


def _broadcast_in_dim(op: Operation) -> Axis:
    to: int = op.params["broadcast_dimensions"][op.axis]
    return to


def _reshape(op: Operation) -> Axis:
    """An axis survives if it keeps its length, and the number of elements of the axes before it."""
    [shape] = op.shapes
    if 0 in shape or op.params.get("dimensions") is not None:
        return MIXED
    for to, size in enumerate(op.out):
        if size == shape[op.axis] and math.prod(op.out[:to]) == math.prod(shape[: op.axis]):
            return to
    return MIXED


def _transpose(op: Operation) -> Axis:
    return list(op.params["permutation"]).index(op.axis)


def _pad(op: Operation) -> Axis:
    return op.axis if tuple(op.params["padding_config"][op.axis]) == (0, 0, 0) else MIXED


def _window(op: Operation) -> Axis:
    """Windows of one example each."""
    sizes = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    single = all((op.params.get(name) or (1,) * len(op.out))[op.axis] == 1 for name in sizes)
    return op.axis if single and tuple(op.params["padding"][op.axis]) == (0, 0) else MIXED


def _top_k(op: Operation) -> Axis:
    return MIXED if op.axis == op.params.get("axis", len(op.out) - 1) else op.axis


def _matrices(op: Operation) -> Axis:
    """Operations on matrices, which are the last two axes."""
    return op.axis if op.axis < min(map(len, op.shapes)) - 2 else MIXED


def _fft(op: Operation) -> Axis:
    return op.axis if op.axis < len(op.out) - len(op.params["fft_lengths"]) else MIXED


# Rules for arrays whose axes have different roles.


def _dot_general(op: Operation) -> Axis:
    """Results have the batch axes, then the free ones of the left factor, then of the right."""
    contracted, batch = op.params["dimension_numbers"]
    side = 0 if op.given[0] is not None else 1
    paired, summed = list(batch[side]), list(contracted[side])
    if op.axis in paired:
        return paired.index(op.axis)
    if op.axis in summed:
        return MIXED
    free = [i for i in range(len(op.shapes[side])) if i not in (*paired, *summed)]
    before = len(paired) if side == 0 else len(op.out) - len(free)
    return before + free.index(op.axis)


def _conv(op: Operation) -> Axis:
    numbers = op.params["dimension_numbers"]
    own = op.given[0] == numbers.lhs_spec[0] and op.given[1] is None
    to: int = numbers.out_spec[0]
    return to if own and op.params["batch_group_count"] == 1 else MIXED


def _gather(op: Operation) -> Axis:
    """Examples look up in a common table, or each in its own; or a part is taken of each."""
    numbers, (table, index) = op.params["dimension_numbers"], op.given
    paired = list(getattr(numbers, "operand_batching_dims", ()))
    of_index = list(getattr(numbers, "start_indices_batching_dims", ()))
    looked_up = [i for i in range(len(op.out)) if i not in numbers.offset_dims]
    if table is None:
        vector = len(op.shapes[1]) - 1  # along which an index lies
        return MIXED if index == vector else looked_up[op.axis]
    if table in paired:
        own: int = looked_up[of_index[paired.index(table)]]
        return own
    if table in numbers.start_index_map:
        return MIXED
    gone = (*numbers.collapsed_slice_dims, *paired)
    kept = [i for i in range(len(op.shapes[0])) if i not in gone]
    to: int = numbers.offset_dims[kept.index(table)]
    return to


ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh
    digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
    imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul mulhi name ne
    neg nextafter not or polygamma population_count pow random_gamma_grad real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    xor zeta
"""
ALIKE: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("dynamic_slice", "slice", "tile"), _kept),
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _along),
    **dict.fromkeys(("concatenate", "rev", "sort", "split"), _along),
    **dict.fromkeys(("argmax", "argmin", "reduce", "squeeze"), _reduced),
    **dict.fromkeys(("reduce_and", "reduce_max", "reduce_min", "reduce_or"), _reduced),
    **dict.fromkeys(("reduce_prod", "reduce_sum", "reduce_xor"), _reduced),
    **dict.fromkeys(("random_bits", "random_clone", "random_fold_in", "random_gamma"), _kept),
    **dict.fromkeys(("random_seed", "random_split", "random_unwrap", "random_wrap"), _kept),
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min"), _window),
    **dict.fromkeys(("reduce_window_sum", "select_and_gather_add"), _window),
    **dict.fromkeys(("cholesky", "eigh", "lu", "qr", "svd", "triangular_solve"), _matrices),
    "broadcast_in_dim": _broadcast_in_dim,
    "dynamic_update_slice": _updated,
    "fft": _fft,
    "pad": _pad,
    "reshape": _reshape,
    "stack": _stack,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
APART: dict[str, Rule] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "gather": _gather,
}
