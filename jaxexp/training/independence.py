"""How far examples reach within a traced function that is given a batch, proven from its jaxpr.

Some examples of a batch are *others*: those that only fill it up, say, or any that one likes. Of
every array the proof follows where others may change it: at places along axes on which the examples
lie, and of these only at their own. What is masked has one and the same value there, so that sums
over examples may be free of others. What no rule here speaks of is not known; that does not say
that others change it, and is left to computing (see `masks`).

JAX's parameters of operations change among its versions: where one is missed, nothing is proven.
"""

import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core as jax_core

from jaxexp.training import jaxprs

Axis: TypeAlias = int | None
MIXED = -1  # an axis that is none: places of others among the rest
EVERYWHERE = -1  # a value that is known of all places
Rule: TypeAlias = "Callable[[_Operation], Axis]"


class Spread(enum.IntEnum):
    """Whether others change more than their own places."""

    NO = 0  # proven
    UNKNOWN = 1  # to this module
    YES = 2  # a sum over examples, say, others among them


class Reach(NamedTuple):
    """Where others may change an array."""

    axes: frozenset[int] = frozenset()  # along which examples lie: at the places of others alone,
    spread: Spread = Spread.NO  # if it is not more than that
    known: Mapping[int, Any] = {}  # values that are the same at all others' places of an axis
    masked: frozenset[int] = frozenset()  # axes along which a mask may have put such values

    def value(self, axis: int) -> Any:
        """That at others' places of an axis; None if it is not known."""
        return self.known.get(axis, self.known.get(EVERYWHERE))


CLEAN = Reach()
EXAMPLES = Reach(frozenset([0]))
# Others are those where it is False.
MASK = Reach(known={0: np.bool_(False)}, masked=frozenset([0]))
UNKNOWN = Reach(spread=Spread.UNKNOWN)


def reaches(
    program: jaxprs.Program, given: Sequence[Reach], *, differentiated: bool,
    size: int | None = None, anywhere: bool = False, own_draws: bool = False,
) -> list[Reach]:  # fmt: skip
    """How far others reach in each output of a program, of how far they do in its inputs.

    Of a program that is `differentiated`, backward passes which are the user's own prove nothing.
    With a `size`, the number of examples, which no other axis has, others are examples past a
    smaller number: what the program makes of itself for each is followed, too, if it begins with
    the same elements whatever their number; if examples may be `anywhere` in a batch, then if all
    of its elements are the same. With `own_draws`, random numbers of each example are taken to be
    the same whatever their number: is all that others change which ones are drawn?
    """
    return _Proof(differentiated, size, anywhere, own_draws).outputs(program, list(given))


def _either(one: Reach, other: Reach) -> Reach:
    """Of an array that is one or the other."""
    known = {
        axis: one.value(axis)
        for axis in {*one.known, *other.known}
        if one.value(axis) is not None and _equal(one.value(axis), other.value(axis))
    }
    spread = max(one.spread, other.spread)
    return Reach(one.axes | other.axes, spread, known, one.masked | other.masked)


def _equal(one: Any, other: Any) -> bool:
    return other is not None and bool(one == other)


class _Proof:
    def __init__(
        self, differentiated: bool, size: int | None, anywhere: bool, own_draws: bool
    ) -> None:
        self.differentiated, self.size = differentiated, size
        self.anywhere, self.own_draws = anywhere, own_draws

    def outputs(self, program: jaxprs.Program, given: Sequence[Reach]) -> list[Reach]:
        jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
        found: dict[jax_core.Var, Reach] = dict(zip(jaxpr.invars, given, strict=True))
        found |= {v: self._listed(jaxprs.shape(v)) for v in jaxpr.constvars}

        def reach(value: jax_core.Var | jax_core.Literal) -> Reach:
            if not isinstance(value, jax_core.Literal):
                return found.get(value, CLEAN)
            plain = np.ndim(value.val) == 0 and isinstance(value.aval, jax.core.ShapedArray)
            return Reach(known={EVERYWHERE: np.asarray(value.val)[()]}) if plain else CLEAN

        for eqn in jaxpr.eqns:
            found.update(zip(eqn.outvars, self._made(eqn, [*map(reach, eqn.invars)]), strict=True))
        return [reach(v) for v in jaxpr.outvars]

    def _made(self, eqn: jax_core.JaxprEqn, given: list[Reach]) -> list[Reach]:
        """What one operation makes of it."""
        name = eqn.primitive.name
        spread = max((own.spread for own in given), default=Spread.NO)
        unknown = [Reach(spread=max(spread, Spread.UNKNOWN))] * len(eqn.outvars)
        plain = all(isinstance(v.aval, jax.core.ShapedArray) for v in (*eqn.invars, *eqn.outvars))
        if not plain or "callback" in name:  # references, or the host, may remember other examples
            return unknown
        if name in PASSED_ON and len(given) == len(unknown):
            return given
        untouched = all(own == CLEAN for own in given)
        if untouched and (self.size is None or name not in NESTED):
            return [self._created(eqn, jaxprs.shape(v)) for v in eqn.outvars]
        control = {"scan": self._scan, "while": self._while, "cond": self._cond}
        try:
            if name in control:
                return control[name](eqn.params, given) or unknown
            if name in CALLS or (name.startswith("custom_vjp") and not self.differentiated):
                [called] = jaxprs.inner(eqn.params)
                return self.outputs(called, given)
            if spread:
                return [Reach(spread=spread)] * len(eqn.outvars)
            return [self._result(eqn, given, jaxprs.shape(v)) for v in eqn.outvars]
        except (KeyError, AttributeError, IndexError, TypeError, ValueError):
            return unknown  # parameters as another version of JAX has them

    def _result(self, eqn: jax_core.JaxprEqn, given: list[Reach], out: jaxprs.Shape) -> Reach:
        """One result of an operation that is given nothing which is spread."""
        name, shapes = eqn.primitive.name, [jaxprs.shape(v) for v in eqn.invars]
        known = self._known(eqn, given, shapes, out)
        taken = self._taken(eqn, given)
        rule = APART.get(name) or ALIKE.get(name)

        def moved(i: int, axis: int) -> int:
            if rule is None:
                return MIXED
            alone: list[Axis] = [axis if i == j else None for j in range(len(given))]
            to = rule(_Operation(alone, axis, shapes, out, eqn.params))
            whole = to is not None and to != MIXED and out[to] == shapes[i][axis]
            return to if to is not None and whole else MIXED

        masks = {moved(i, axis) for i, own in enumerate(given) for axis in own.masked}
        masked = frozenset(range(len(out)) if rule is None and masks else masks - {MIXED})
        if not any(taken):
            made = self._created(eqn, out)
            return made._replace(known=known, masked=masked) if not made.spread else made
        if rule is None:
            return UNKNOWN
        axes, spread = set[int](), Spread.NO
        for i, own in enumerate(taken):
            for axis in own:
                to = moved(i, axis)
                if to != MIXED:
                    axes.add(to)
                elif self._counts(eqn, given, i, axis):
                    sure = name in JOINING and not self._may_be_masked(eqn, given, i, axis)
                    spread = max(spread, Spread.YES if sure else Spread.UNKNOWN)
        if spread:
            return Reach(spread=spread)
        made = Reach(frozenset(axes), known=known, masked=masked)
        if self.size is not None:
            return made
        # As many as there are, others may be anything; what is known of them is always the same.
        return made._replace(axes=frozenset(a for a in axes if made.value(a) is None))

    def _taken(self, eqn: jax_core.JaxprEqn, given: list[Reach]) -> list[frozenset[int]]:
        """The axes along which others reach what of each argument counts."""
        every = [own.axes for own in given]
        if eqn.primitive.name != "select_n" or self.size is not None:
            return every
        picked = {axis: given[0].value(axis) for axis in frozenset().union(*every)}
        if jaxprs.shape(eqn.invars[0]) != jaxprs.shape(eqn.outvars[0]):
            return every
        return [  # of the cases, what is picked there
            frozenset(a for a in own if picked[a] is None or int(picked[a]) == i - 1)
            for i, own in enumerate(every)
        ]

    def _counts(self, eqn: jax_core.JaxprEqn, given: list[Reach], i: int, axis: int) -> bool:
        """Whether others count among what is joined along an axis that goes, or is run over."""
        name, value = eqn.primitive.name, given[i].value(axis)
        beside = _beside(eqn, i, axis)
        if beside is not None:
            other = given[1 - i].value(beside)
            return not any(v is not None and v == 0 for v in (value, other))
        if value is None or name not in NEUTRAL:
            return True
        of_bits = name in ("reduce_and", "reduce_or") and value.dtype != bool
        return of_bits or not bool(value == NEUTRAL[name])

    def _may_be_masked(self, eqn: jax_core.JaxprEqn, given: list[Reach], i: int, axis: int) -> bool:
        """Whether others may have been made not to count, in a way that is not followed."""
        beside = _beside(eqn, i, axis)
        return axis in given[i].masked or (beside is not None and beside in given[1 - i].masked)

    def _known(
        self,
        eqn: jax_core.JaxprEqn,
        given: list[Reach],
        shapes: list[jaxprs.Shape],
        out: jaxprs.Shape,
    ) -> dict[int, Any]:
        """Values of the result at others' places."""
        name = eqn.primitive.name
        if name in VALUES and all(len(shape) in (len(out), 0) for shape in shapes):
            axes = {axis for own in given for axis in own.known}
            dtypes = [getattr(v.aval, "dtype") for v in (*eqn.invars, *eqn.outvars)]  # noqa: B009
            made = {
                axis: _computed(name, [own.value(axis) for own in given], dtypes) for axis in axes
            }
            return {axis: value for axis, value in made.items() if value is not None}
        if name not in PLACING or len(given) != 1:
            return {}
        rule, known = ALIKE[name], {}
        for axis, value in given[0].known.items():
            if name == "reduce_sum" and value != 0:
                continue
            if axis == EVERYWHERE:
                known[EVERYWHERE] = value
                continue
            to = rule(_Operation([axis], axis, shapes, out, eqn.params))
            if to not in (None, MIXED) and out[to] == shapes[0][axis]:
                known[to] = value
        return known

    def _sized(self, shape: jaxprs.Shape) -> Reach:
        """Of an array that lies in the order of the examples, if it has as many elements."""
        places = [i for i, n in enumerate(shape) if self.size and n and n % self.size == 0]
        if any(shape[i] != self.size for i in places):
            return UNKNOWN
        return Reach(frozenset(places))

    def _listed(self, shape: jaxprs.Shape) -> Reach:
        """The same, if its elements may differ."""
        made = self._sized(shape)
        return UNKNOWN if self.anywhere and made.axes else made

    def _created(self, eqn: jax_core.JaxprEqn, shape: jaxprs.Shape) -> Reach:
        """Of what is made of nothing that others reach."""
        made, name = self._sized(shape), eqn.primitive.name
        if not made.axes or name == "broadcast_in_dim":
            return made
        if name == "iota":
            return self._listed(shape) if eqn.params["dimension"] in made.axes else made
        if self.anywhere:
            return UNKNOWN
        if self.own_draws and name.startswith("random_"):
            return made
        # Random numbers are functions of their place, counted along the axes.
        fry = name.startswith("random_") and "key<fry>" in str(eqn.invars[0].aval)
        counted = fry and bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
        return made if counted and made.axes == {0} else UNKNOWN

    def _scan(self, params: Mapping[str, Any], given: list[Reach]) -> list[Reach]:
        consts, carries = params["num_consts"], params["num_carry"]
        if self.size and params["length"] and params["length"] % self.size == 0:
            return []  # as many turns as there are examples
        fixed, carry, xs = given[:consts], given[consts:][:carries], given[consts + carries :]
        # A turn is given a slice along axis 0; where that holds the examples, turns are examples.
        each = [_along_turns(own) for own in xs]
        while True:
            made = self.outputs(params["jaxpr"], [*fixed, *carry, *each])
            joined = [*map(_either, carry, made[:carries])]
            if joined == carry:
                break
            carry = joined
        return carry + [_shifted(own, 1) for own in made[carries:]]

    def _while(self, params: Mapping[str, Any], given: list[Reach]) -> list[Reach]:
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body = given[:n_cond], given[n_cond:][:n_body]
        carry = given[n_cond + n_body :]
        while True:
            made = self.outputs(params["body_jaxpr"], [*of_body, *carry])
            joined = [*map(_either, carry, made)]
            if joined == carry:
                break
            carry = joined
        [ends] = self.outputs(params["cond_jaxpr"], [*of_cond, *carry])
        return [] if ends.spread or ends.axes else carry

    def _cond(self, params: Mapping[str, Any], given: list[Reach]) -> list[Reach]:
        made = [self.outputs(branch, given[1:]) for branch in params["branches"]]
        if params.get("branches_platforms"):  # the same function, in several ways
            return min(made, key=lambda own: [each.spread for each in own])
        joined = [functools.reduce(_either, own) for own in zip(*made, strict=True)]
        spread = given[0].spread if not given[0].axes else Spread.UNKNOWN
        return [own._replace(spread=max(own.spread, spread)) for own in joined]


def _shifted(own: Reach, by: int) -> Reach:
    """Of an array with another axis before the rest, or without the first."""
    known = {axis if axis == EVERYWHERE else axis + by: v for axis, v in own.known.items()}
    axes, masked = (frozenset(axis + by for axis in each) for each in (own.axes, own.masked))
    return Reach(axes, own.spread, known, masked)


def _along_turns(own: Reach) -> Reach:
    if 0 in own.axes or 0 in own.known or 0 in own.masked:
        return Reach(spread=max(own.spread, Spread.UNKNOWN))
    return _shifted(own, -1)


def _beside(eqn: jax_core.JaxprEqn, i: int, axis: int) -> Axis:
    """The axis of the other factor with which a product is summed over this one."""
    if eqn.primitive.name != "dot_general":
        return None
    contracted, _ = eqn.params["dimension_numbers"]
    if axis not in contracted[i]:
        return None
    other: int = contracted[1 - i][list(contracted[i]).index(axis)]
    return other


def _computed(name: str, known: Sequence[Any], dtypes: Sequence[Any]) -> Any:
    """A value that is made of others, some of which may not be known; None if it is not known.

    Of what NumPy and XLA compute alike, in any bit; `dtypes` are those of the others and its own.
    """
    values: list[Any] = [
        value if value is None else np.asarray(value).astype(dtype)[()]
        for value, dtype in zip(known, dtypes, strict=False)
    ]
    if name == "select_n":
        return None if values[0] is None else values[1 + int(values[0])]
    if (absorbed := _absorbed(name, values)) is not None:
        return absorbed
    if any(value is None for value in values):
        return None
    if name in EXACT and values[0] not in (0, np.inf, -np.inf):
        return None
    if name == "convert_element_type" and dtypes[-1].kind in "iu" and dtypes[0].kind not in "biu":
        return None  # not all floats are whole numbers
    with np.errstate(all="ignore"):
        made = VALUES[name](*values)
    if made is None or made != made:
        return None
    return np.asarray(made).astype(dtypes[-1])[()]


class _Operation(NamedTuple):
    """One result of an operation, of which one argument is given examples along one axis."""

    given: Sequence[Axis]  # None of all other arguments
    axis: int
    shapes: Sequence[jaxprs.Shape]  # of what is given
    out: jaxprs.Shape
    params: Mapping[str, Any]


# Rules for arrays that lie alike. An axis that is not as long as the batch is none: `_result`.


def _kept(op: _Operation) -> Axis:
    """A slice as long as the whole axis is the whole axis, in order."""
    return op.axis


def _updated(op: _Operation) -> Axis:
    """The whole axis, or it would matter where on it."""
    return op.axis if op.shapes[0][op.axis] == op.shapes[1][op.axis] else MIXED


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
    side = 0 if op.given[0] is not None else 1
    paired, summed = list(batch[side]), list(contracted[side])
    if op.axis in paired:
        return paired.index(op.axis)
    if op.axis in summed:
        return MIXED
    free = [i for i in range(len(op.shapes[side])) if i not in (*paired, *summed)]
    before = len(paired) if side == 0 else len(op.out) - len(free)
    return before + free.index(op.axis)


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


def _absorbed(name: str, values: Sequence[Any]) -> Any:
    """What decides a result alone, whatever finite number the other is."""
    for i, value in enumerate(values):
        if value is None:
            continue
        infinite = value.dtype.kind == "f" and np.isinf(value)
        if (
            (name in ("and", "or") and value.dtype == bool and value == (name == "or"))
            or (name == "mul" and value == 0)
            or (name == "div" and i == 0 and value == 0 and value.dtype.kind == "f")
            or (name == "add" and infinite)
        ):
            return value
        if name == "sub" and infinite:
            return value if i == 0 else np.negative(value)
    return None


JOINING = {
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "dot_general",
    "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
    "reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_xor", "sort", "top_k",
}  # fmt: skip
NEUTRAL = {
    "reduce_and": True, "reduce_max": -np.inf, "reduce_min": np.inf, "reduce_or": False,
    "reduce_prod": 1, "reduce_sum": 0,
}  # fmt: skip
PLACING = {
    "broadcast_in_dim", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_sum",
    "reshape", "rev", "slice", "squeeze", "transpose",
}  # fmt: skip
EXACT: dict[str, Callable[..., Any]] = {  # of 0 and infinities
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt,
    "tanh": np.tanh,
}  # fmt: skip
VALUES: dict[str, Callable[..., Any]] = EXACT | {
    "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and,
    "convert_element_type": np.asarray, "copy": lambda a: a, "div": lambda *_: None,
    "eq": np.equal,
    "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
    "max": np.maximum, "min": np.minimum, "mul": np.multiply, "ne": np.not_equal,
    "neg": np.negative, "not": np.invert, "or": np.bitwise_or, "select_n": np.asarray,
    "sign": np.sign, "square": np.square, "stop_gradient": lambda a: a, "sub": np.subtract,
}  # fmt: skip
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
