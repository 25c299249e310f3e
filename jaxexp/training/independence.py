"""Which results of a traced function take each example of a batch by itself, proven from its jaxpr.

Of every array the proof follows the axis on which the examples lie: an element at place b of it
depends on example b alone, whatever the values are. What no rule here speaks of is not proven; that
does not say that examples influence one another, and is left to computing (see `masks`).

JAX's parameters of operations change among its versions: where one is missed, nothing is proven.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend import core as jax_core

from jaxexp.training import jaxprs

# None: depends on no example. An axis: example b alone decides what lies at b of it.
Axis: TypeAlias = int | None
MIXED = -1  # perhaps several examples
Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = "Callable[[_Operation], Axis]"


def axes_of(
    program: jaxprs.Program, given: Sequence[Axis], *, differentiated: bool, size: int | None = None
) -> list[Axis]:
    """The axis of the examples in each output of a program, of those in its inputs.

    Of a program that is `differentiated`, backward passes which are the user's own prove nothing.
    With a `size`, the number of examples, which no other axis has: what the program makes of itself
    for each example has an axis, too, if it begins with the same elements in a larger batch.
    """
    return _Proof(differentiated, size).outputs(program, list(given))


def _shape(value: jax_core.Var | jax_core.Literal) -> Shape:
    shape: Shape = getattr(value.aval, "shape", ())
    return shape


def _joined(*axes: Axis) -> Axis:
    """Of an array that is one or the other, or made of all, element by element."""
    found = {axis for axis in axes if axis is not None}
    return (found.pop() if len(found) == 1 else MIXED) if found else None


class _Proof:
    def __init__(self, differentiated: bool, size: int | None) -> None:
        self.differentiated, self.size = differentiated, size

    def outputs(self, program: jaxprs.Program, given: Sequence[Axis]) -> list[Axis]:
        jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
        axes: dict[jax_core.Var, Axis] = dict(zip(jaxpr.invars, given, strict=True))
        axes |= {v: self._sized(_shape(v)) for v in jaxpr.constvars}

        def axis(value: jax_core.Var | jax_core.Literal) -> Axis:
            return None if isinstance(value, jax_core.Literal) else axes.get(value)

        for eqn in jaxpr.eqns:
            made = self._made(eqn, [axis(v) for v in eqn.invars])
            axes.update(zip(eqn.outvars, made, strict=True))
        return [axis(v) for v in jaxpr.outvars]

    def _made(self, eqn: jax_core.JaxprEqn, given: list[Axis]) -> list[Axis]:
        """What one operation makes of it."""
        name = eqn.primitive.name
        unknown: list[Axis] = [MIXED] * len(eqn.outvars)
        plain = all(isinstance(v.aval, jax.core.ShapedArray) for v in (*eqn.invars, *eqn.outvars))
        if not plain or "callback" in name:  # references, or the host, may remember other examples
            return unknown
        if all(axis is None for axis in given) and (self.size is None or name not in NESTED):
            return [self._created(eqn, _shape(v)) for v in eqn.outvars]
        if name in PASSED_ON and len(given) == len(unknown):
            return given
        control = {"scan": self._scan, "while": self._while, "cond": self._cond}
        try:
            if name in control:
                return control[name](eqn.params, given) or unknown
            if name in CALLS or (name.startswith("custom_vjp") and not self.differentiated):
                [called] = jaxprs.inner(eqn.params)
                return self.outputs(called, given)
            rule = APART.get(name) or ALIKE.get(name)
            joined = _joined(*given)
            if rule is None or joined is None or MIXED in given:
                return unknown
            if joined == MIXED and name not in APART:
                return unknown
            shapes: list[Shape] = [_shape(v) for v in eqn.invars]
            outs = [_shape(v) for v in eqn.outvars]
            made = [rule(_Operation(given, joined, shapes, out, eqn.params)) for out in outs]
        except (KeyError, AttributeError, IndexError, TypeError, ValueError):
            return unknown  # parameters as another version of JAX has them
        examples = {n[axis] for n, axis in zip(shapes, given, strict=True) if axis is not None}
        whole = [
            axis is None or axis == MIXED or {*out[axis : axis + 1]} == examples
            for axis, out in zip(made, outs, strict=True)
        ]
        return [axis if own else MIXED for axis, own in zip(made, whole, strict=True)]

    def _sized(self, shape: Shape) -> Axis:
        """Of an array that lies in the order of the examples, if it has as many elements."""
        places = [i for i, n in enumerate(shape) if self.size and n and n % self.size == 0]
        if not places:
            return None
        return places[0] if [shape[i] for i in places] == [self.size] else MIXED

    def _created(self, eqn: jax_core.JaxprEqn, shape: Shape) -> Axis:
        """Of what is made of nothing that has an axis."""
        axis, name = self._sized(shape), eqn.primitive.name
        if axis is None or name in ("iota", "broadcast_in_dim"):
            return axis
        # Random numbers are functions of their place, counted along the axes.
        fry = name.startswith("random_") and "key<fry>" in str(eqn.invars[0].aval)
        counted = fry and bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
        return axis if counted and axis == 0 else MIXED

    def _scan(self, params: Mapping[str, Any], given: list[Axis]) -> list[Axis]:
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry, xs = given[:consts], given[consts:][:carries], given[consts + carries :]
        # A turn is given a slice along axis 0; where that holds the examples, turns are examples.
        each = [None if axis is None else MIXED if axis < 1 else axis - 1 for axis in xs]
        while True:
            made = self.outputs(params["jaxpr"], [*fixed, *carry, *each])
            joined = [_joined(a, b) for a, b in zip(carry, made[:carries], strict=True)]
            if joined == carry:
                break
            carry = joined
        return carry + [axis if axis in (None, MIXED) else axis + 1 for axis in made[carries:]]

    def _while(self, params: Mapping[str, Any], given: list[Axis]) -> list[Axis]:
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body = given[:n_cond], given[n_cond:][:n_body]
        carry = given[n_cond + n_body :]
        while True:
            made = self.outputs(params["body_jaxpr"], [*of_body, *carry])
            joined = [_joined(a, b) for a, b in zip(carry, made, strict=True)]
            if joined == carry:
                break
            carry = joined
        [ends] = self.outputs(params["cond_jaxpr"], [*of_cond, *carry])
        return carry if ends is None else []

    def _cond(self, params: Mapping[str, Any], given: list[Axis]) -> list[Axis]:
        if given[0] is not None:
            return []
        made = [self.outputs(branch, given[1:]) for branch in params["branches"]]
        return [_joined(*axes) for axes in zip(*made, strict=True)]


class _Operation(NamedTuple):
    """One result of an operation that is given examples along one axis or more."""

    given: Sequence[Axis]  # none of them MIXED
    axis: int  # that of all that have one, or MIXED
    shapes: Sequence[Shape]  # of what is given
    out: Shape
    params: Mapping[str, Any]


# Rules for arrays that lie alike. A result whose axis is not as long as the batch is none: `_made`.


def _kept(op: _Operation) -> Axis:
    """A slice as long as the whole axis is the whole axis, in order."""
    return op.axis


def _elementwise(op: _Operation) -> Axis:
    """Of axes in the same places, but for scalars; an axis of 1 is broadcast."""
    same = all(len(shape) in (len(op.out), 0) for shape in op.shapes)
    return op.axis if same else MIXED


def _along(op: _Operation) -> Axis:
    """Over an axis that remains, or several."""
    names = ("axis", "dimension", "dimensions")
    [along] = [op.params[name] for name in names if name in op.params]
    along = along if isinstance(along, tuple | list) else (along,)
    return MIXED if op.axis in along else op.axis


def _reduced(op: _Operation) -> Axis:
    """Over axes that go."""
    [gone] = [op.params[name] for name in ("axes", "dimensions") if name in op.params]
    return MIXED if op.axis in gone else op.axis - sum(each < op.axis for each in gone)


def _unstack(op: _Operation) -> Axis:
    gone: int = op.params["axis"]
    return MIXED if op.axis == gone else op.axis - (gone < op.axis)


def _stack(op: _Operation) -> Axis:
    new: int = op.params["axis"]
    return op.axis + (new <= op.axis)


def _broadcast_in_dim(op: _Operation) -> Axis:
    to: int = op.params["broadcast_dimensions"][op.axis]
    return to


def _reshape(op: _Operation) -> Axis:
    """The axis survives where as many elements lie before it, and it is as long."""
    [shape] = op.shapes
    if 0 in shape or op.params.get("dimensions") is not None:
        return MIXED
    for to, size in enumerate(op.out):
        if size == shape[op.axis] and math.prod(op.out[:to]) == math.prod(shape[: op.axis]):
            return to
    return MIXED


def _transpose(op: _Operation) -> Axis:
    return list(op.params["permutation"]).index(op.axis)


def _pad(op: _Operation) -> Axis:
    return op.axis if tuple(op.params["padding_config"][op.axis]) == (0, 0, 0) else MIXED


def _window(op: _Operation) -> Axis:
    """Windows of one example each."""
    sizes = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    single = all((op.params.get(name) or (1,) * len(op.out))[op.axis] == 1 for name in sizes)
    return op.axis if single and tuple(op.params["padding"][op.axis]) == (0, 0) else MIXED


def _top_k(op: _Operation) -> Axis:
    return MIXED if op.axis == op.params.get("axis", len(op.out) - 1) else op.axis


def _matrices(op: _Operation) -> Axis:
    """Of matrices, which the last two axes are."""
    return op.axis if op.axis < min(map(len, op.shapes)) - 2 else MIXED


def _fft(op: _Operation) -> Axis:
    return op.axis if op.axis < len(op.out) - len(op.params["fft_lengths"]) else MIXED


# Rules for arrays whose axes have parts of their own.


def _dot_general(op: _Operation) -> Axis:
    """Results have the batch axes, then the free ones of the left factor, then of the right."""
    contracted, batch = op.params["dimension_numbers"]
    places: list[Axis] = []
    for side, axis in enumerate(op.given):
        if axis is None:
            continue
        paired, summed = list(batch[side]), list(contracted[side])
        if axis in paired:
            places.append(paired.index(axis))
            continue
        if axis in summed or op.given[1 - side] is not None:
            return MIXED  # a sum over examples, or each of one factor with each of the other
        free = [i for i in range(len(op.shapes[side])) if i not in (*paired, *summed)]
        before = len(paired) if side == 0 else len(op.out) - len(free)
        places.append(before + free.index(axis))
    return _joined(*places)


def _conv(op: _Operation) -> Axis:
    numbers = op.params["dimension_numbers"]
    own = op.given[0] == numbers.lhs_spec[0] and op.given[1] is None
    to: int = numbers.out_spec[0]
    return to if own and op.params["batch_group_count"] == 1 else MIXED


def _gather(op: _Operation) -> Axis:
    """A table looked up by each example, or each example's own, or parts of the examples."""
    numbers, (table, index) = op.params["dimension_numbers"], op.given
    paired = list(getattr(numbers, "operand_batching_dims", ()))
    of_index = list(getattr(numbers, "start_indices_batching_dims", ()))
    looked_up = [i for i in range(len(op.out)) if i not in numbers.offset_dims]
    if table in paired:
        own = of_index[paired.index(table)]
        return looked_up[own] if index in (None, own) else MIXED
    if table is None:
        vector = len(op.shapes[1]) - 1  # along which an index lies
        return MIXED if index is None or index == vector else looked_up[index]
    if index is not None or table in numbers.start_index_map:
        return MIXED
    gone = (*numbers.collapsed_slice_dims, *paired)
    kept = [i for i in range(len(op.shapes[0])) if i not in gone]
    to: int = numbers.offset_dims[kept.index(table)]
    return to


CALLS = {
    "call", "checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit", "pjit", "remat",
    "remat2",
}  # fmt: skip
NESTED = {*CALLS, "cond", "custom_vjp_call", "scan", "while"}
PASSED_ON = ("device_put", "optimization_barrier")  # one for one
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
    **dict.fromkeys(("dynamic_slice", "dynamic_update_slice", "slice", "tile"), _kept),
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
