"""How far the examples of a batch reach within a traced function, proven from its jaxpr.

Some examples of a batch are called *others*: those that only fill it up, say, or any choice of
them. For every array, the proof follows where others may change it: along which axes the examples
lie, and whether others change only their own places there. Masking puts the same value at all of
these places, so that a sum over examples can be free of others. What no rule here covers is
unknown. That does not mean that others change it; finding out is left to computing (see `masks`).

The parameters of operations differ between versions of JAX: if one is missing, nothing is proven.
"""

import enum
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core as jax_core

from jaxexp.training import jaxprs
from jaxexp.training.folding import VALUES, Constant, Maybe, folded
from jaxexp.training.operations import ALIKE, APART, MIXED, Axis, Operation

EVERYWHERE = -1  # a value that is known at all places
ANEW = -2  # not an axis: all axes are listed, as those of a mask were not followed


class Spread(enum.IntEnum):
    """Whether others change more than their own places."""

    NO = 0  # proven
    UNKNOWN = 1  # to this module
    YES = 2  # such as a sum over examples that include others


class Reach(NamedTuple):
    """Where others may change an array."""

    axes: frozenset[int] = frozenset()  # along which others change their own places,
    spread: Spread = Spread.NO  # and whether they change more than that
    known: Mapping[int, Constant] = {}  # by axis: the value at all others' places
    # Axes along which a mask may have put such values; MIXED if such an axis has been merged, ANEW
    # if all axes are listed, as for a bool that is computed from such values.
    masked: frozenset[int] = frozenset()

    def value(self, axis: int) -> Maybe:
        """The value at others' places along an axis; None if it is not known."""
        return self.known.get(axis, self.known.get(EVERYWHERE))

    def plain(self, axis: int) -> bool:
        """Whether values there come from data; those that a mask puts there may not be finite."""
        return not self.axes_masked if axis == EVERYWHERE else axis not in self.masked

    @property
    def axes_masked(self) -> frozenset[int]:
        """The members of `masked` that are axes."""
        return frozenset(axis for axis in self.masked if axis >= 0)


CLEAN = Reach()
EXAMPLES = Reach(frozenset([0]))
# Others are the examples where the mask is False.
MASK = Reach(known={0: np.bool_(False)}, masked=frozenset([0]))
UNKNOWN = Reach(spread=Spread.UNKNOWN)
# Operations whose derivatives are not finite: for which argument, and at which of its values.
SINGULAR: dict[str, tuple[int, tuple[float, ...]]] = {
    **dict.fromkeys(("sqrt", "rsqrt", "cbrt", "log", "pow", "lgamma", "digamma"), (0, (0,))),
    **dict.fromkeys(("asin", "acos", "atanh", "erf_inv"), (0, (-1, 1))),
    "acosh": (0, (1,)), "atan2": (0, (0,)), "div": (1, (0,)), "log1p": (0, (-1,)),
}  # fmt: skip
# The same at infinities: for any of which arguments, and at which of them.
AT_INFINITY: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    **dict.fromkeys(("exp", "exp2", "expm1"), ((0,), (np.inf,))),
    **dict.fromkeys(("cos", "cosh", "integer_pow", "lgamma", "pow"), ((0,), (-np.inf, np.inf))),
    **dict.fromkeys(("sin", "sinh", "square", "tan"), ((0,), (-np.inf, np.inf))),
    **dict.fromkeys(("dot_general", "mul"), ((0, 1), (-np.inf, np.inf))),
    "div": ((0,), (-np.inf, np.inf)),
}  # fmt: skip


def reaches(
    program: jaxprs.Program, given: Sequence[Reach], *, differentiated: bool,
    size: int | None = None, anywhere: bool = False, own_draws: bool = False,
) -> list[Reach]:  # fmt: skip
    """How far others reach in each output of a program, given how far they do in its inputs.

    If a program is `differentiated`, nothing is proven of custom backward passes.

    `size` is the number of examples, a length that no other axis has. If it is given, others are
    the examples past a smaller number, and arrays that the program itself creates for the examples
    are followed, too: they must begin with the same elements whatever the number of examples or, if
    examples may be `anywhere` in a batch, have equal elements. With `own_draws`, the random numbers
    of each example are taken to be the same whatever the number of examples, to tell whether others
    change anything but these.
    """
    return _Proof(differentiated, size, anywhere, own_draws).outputs(program, list(given))


def _either(one: Reach, other: Reach) -> Reach:
    """The reach of an array that may be one or the other."""
    known = {
        axis: value
        for axis in {*one.known, *other.known}
        if (value := one.value(axis)) is not None and _equal(value, other.value(axis))
    }
    spread = max(one.spread, other.spread)
    return Reach(one.axes | other.axes, spread, known, one.masked | other.masked)


def _equal(one: Maybe, other: Maybe) -> bool:
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
        """The reach of each output of one operation."""
        name = eqn.primitive.name
        spread = max((own.spread for own in given), default=Spread.NO)
        unknown = [Reach(spread=max(spread, Spread.UNKNOWN))] * len(eqn.outvars)
        plain = all(isinstance(v.aval, jax.core.ShapedArray) for v in (*eqn.invars, *eqn.outvars))
        if not plain or "callback" in name:  # references, or the host, may remember other examples
            return unknown
        if name in jaxprs.PASSED_ON and len(given) == len(unknown):
            return given
        untouched = all(own == CLEAN for own in given)
        if untouched and (self.size is None or name not in NESTED):
            return [self._created(eqn, jaxprs.shape(v)) for v in eqn.outvars]
        control = {"scan": self._scan, "while": self._while, "cond": self._cond}
        try:
            if name in control:
                return control[name](eqn.params, given) or unknown
            if name in jaxprs.CALLS or (name.startswith("custom_vjp") and not self.differentiated):
                [called] = jaxprs.inner(eqn.params)
                return self.outputs(called, given)
            if spread:
                return [Reach(spread=spread)] * len(eqn.outvars)
            return [self._result(eqn, given, jaxprs.shape(v)) for v in eqn.outvars]
        except (KeyError, AttributeError, IndexError, TypeError, ValueError):
            return unknown  # another version of JAX has other parameters

    def _result(self, eqn: jax_core.JaxprEqn, given: list[Reach], out: jaxprs.Shape) -> Reach:
        """The reach of a result of an operation with no argument that is spread."""
        name, shapes = eqn.primitive.name, [jaxprs.shape(v) for v in eqn.invars]
        if self.differentiated and _may_be_singular(name, eqn.params, given):
            return UNKNOWN  # 0 times its derivative may be NaN
        known = self._known(eqn, given, shapes, out)
        taken = self._taken(eqn, given)
        rule = APART.get(name) or ALIKE.get(name)

        def moved(i: int, axis: int) -> int:
            if rule is None or axis < 0:
                return min(axis, MIXED)
            alone: list[Axis] = [axis if i == j else None for j in range(len(given))]
            to = rule(Operation(alone, axis, shapes, out, eqn.params))
            whole = to is not None and to != MIXED and out[to] == shapes[i][axis]
            return to if to is not None and whole else MIXED

        masked = frozenset(moved(i, axis) for i, own in enumerate(given) for axis in own.masked)
        made_anew = name != "broadcast_in_dim" and not any(own.axes for own in given)
        if masked and (rule is None or (made_anew and _dtype(eqn.outvars[0]).kind == "b")):
            # It may be a mask again, as `arange(B) < mask.sum()` is.
            masked |= {*range(len(out)), ANEW}
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
                    # Cumulating from the front may leave out others that come last.
                    sure &= not name.startswith("cum") or eqn.params["reverse"]
                    spread = max(spread, Spread.YES if sure else Spread.UNKNOWN)
        if spread:
            return Reach(spread=spread)
        if self.size is not None:
            if name.startswith("random_"):  # for each key, by its place
                drawn = self._created(eqn, out[len(shapes[0]) :])
                if drawn.spread:
                    return UNKNOWN
                axes |= {axis + len(shapes[0]) for axis in drawn.axes}
            return Reach(frozenset(axes), known=known, masked=masked)
        made = Reach(frozenset(axes), known=known, masked=masked)
        # The number of others is fixed; their values may be anything, except those that are known.
        return made._replace(axes=frozenset(a for a in axes if made.value(a) is None))

    def _taken(self, eqn: jax_core.JaxprEqn, given: list[Reach]) -> list[frozenset[int]]:
        """For each argument, the axes along which others reach the part of it that counts."""
        every = [own.axes for own in given]
        if eqn.primitive.name != "select_n" or self.size is not None:
            return every
        picked = {axis: given[0].value(axis) for axis in frozenset().union(*every)}
        if jaxprs.shape(eqn.invars[0]) != jaxprs.shape(eqn.outvars[0]):
            return every
        return [  # of each case, what is picked
            frozenset(a for a in own if (case := picked[a]) is None or int(case) == i - 1)
            for i, own in enumerate(every)
        ]

    def _counts(self, eqn: jax_core.JaxprEqn, given: list[Reach], i: int, axis: int) -> bool:
        """Whether others count in what is joined by reducing an axis, or running along it."""
        name, value = eqn.primitive.name, given[i].value(axis)
        beside = _beside(eqn, i, axis)
        if beside is not None:
            places = (axis, beside) if i == 0 else (beside, axis)
            made = _folded("mul", eqn, given, places)
            return made is None or made != 0
        if value is None or name not in NEUTRAL:
            return True
        of_bits = name in ("reduce_and", "reduce_or") and value.dtype != bool
        return of_bits or not bool(value == NEUTRAL[name])

    def _may_be_masked(self, eqn: jax_core.JaxprEqn, given: list[Reach], i: int, axis: int) -> bool:
        """Whether a mask may have excluded others in a way that is not followed."""
        beside = _beside(eqn, i, axis)
        return axis in given[i].masked or (beside is not None and beside in given[1 - i].masked)

    def _known(
        self,
        eqn: jax_core.JaxprEqn,
        given: list[Reach],
        shapes: list[jaxprs.Shape],
        out: jaxprs.Shape,
    ) -> dict[int, Constant]:
        """Known values of the result at others' places, by axis."""
        name = eqn.primitive.name
        if name in VALUES and all(len(shape) in (len(out), 0) for shape in shapes):
            axes = {axis for own in given for axis in own.known}
            made = {axis: _folded(name, eqn, given, [axis] * len(given)) for axis in axes}
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
            to = rule(Operation([axis], axis, shapes, out, eqn.params))
            if to not in (None, MIXED) and out[to] == shapes[0][axis]:
                known[to] = value
        return known

    def _sized(self, shape: jaxprs.Shape) -> Reach:
        """The reach of an array along axes as long as the batch, in the order of the examples."""
        places = [i for i, n in enumerate(shape) if self.size and n and n % self.size == 0]
        if any(shape[i] != self.size for i in places):
            return UNKNOWN
        return Reach(frozenset(places))

    def _listed(self, shape: jaxprs.Shape) -> Reach:
        """The same for an array whose elements may differ."""
        made = self._sized(shape)
        return UNKNOWN if self.anywhere and made.axes else made

    def _created(self, eqn: jax_core.JaxprEqn, shape: jaxprs.Shape) -> Reach:
        """The reach of a result whose arguments others do not reach."""
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

    def _scan(self, params: jaxprs.Params, given: list[Reach]) -> list[Reach]:
        consts, carries = params["num_consts"], params["num_carry"]
        if self.size and params["length"] and params["length"] % self.size == 0:
            return []  # as many turns as there are examples
        fixed, carry, xs = given[:consts], given[consts:][:carries], given[consts + carries :]
        # A turn is given a slice along axis 0; if examples lie there, each turn is an example.
        each = [_along_turns(own) for own in xs]
        while True:
            made = self.outputs(params["jaxpr"], [*fixed, *carry, *each])
            joined = [*map(_either, carry, made[:carries])]
            if joined == carry:
                break
            carry = joined
        return carry + [_shifted(own, 1) for own in made[carries:]]

    def _while(self, params: jaxprs.Params, given: list[Reach]) -> list[Reach]:
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

    def _cond(self, params: jaxprs.Params, given: list[Reach]) -> list[Reach]:
        made = [self.outputs(branch, given[1:]) for branch in params["branches"]]
        if params.get("branches_platforms"):  # the same function, in several ways
            return min(made, key=lambda own: [each.spread for each in own])
        joined = [functools.reduce(_either, own) for own in zip(*made, strict=True)]
        spread = given[0].spread if not given[0].axes else Spread.UNKNOWN
        return [own._replace(spread=max(own.spread, spread)) for own in joined]


def _shifted(own: Reach, by: int) -> Reach:
    """The reach of an array with a new first axis, or without its first."""
    known = {axis if axis == EVERYWHERE else axis + by: v for axis, v in own.known.items()}
    axes = frozenset(axis + by for axis in own.axes)
    masked = frozenset(axis if axis < 0 else axis + by for axis in own.masked)
    return Reach(axes, own.spread, known, masked)


def _along_turns(own: Reach) -> Reach:
    if 0 in own.axes or 0 in own.known or 0 in own.masked:
        return Reach(spread=max(own.spread, Spread.UNKNOWN))
    return _shifted(own, -1)


def _dtype(value: jaxprs.Atom) -> np.dtype:
    own: np.dtype = getattr(value.aval, "dtype")  # noqa: B009
    return own


def _folded(
    name: str, eqn: jax_core.JaxprEqn, given: Sequence[Reach], axes: Sequence[int]
) -> Maybe:
    """The value that an operation computes at others' places, along an axis of each argument."""
    dtypes = [_dtype(v) for v in (*eqn.invars, *eqn.outvars)]
    known = [own.value(axis) for own, axis in zip(given, axes, strict=True)]
    plain = [own.plain(axis) for own, axis in zip(given, axes, strict=True)]
    return folded(name, known, dtypes, plain)


def _may_be_singular(name: str, params: jaxprs.Params, given: Sequence[Reach]) -> bool:
    """Whether a mask may have put others where the derivative of an operation is not finite."""
    arguments, infinities = AT_INFINITY.get(name, ((), ()))
    for i in arguments:
        for axis in given[i].axes_masked:
            # In a product, it is the derivative by the other factor, unless that is a constant.
            fixed = name in ("div", "mul") and given[1 - i].value(axis) is not None
            if given[i].value(axis) in infinities and not fixed:
                return True
    if name == "integer_pow" and params["y"] < 0:
        name = "pow"
    if name not in SINGULAR:
        return False
    argument, points = SINGULAR[name]
    own = given[argument]
    values = [own.value(axis) for axis in own.axes_masked]
    # What is computed from a count, say, may be a mask on every axis: only known values matter.
    return any(v in points if v is not None else ANEW not in own.masked for v in values)


def _beside(eqn: jax_core.JaxprEqn, i: int, axis: int) -> Axis:
    """The axis of the other factor that a product sums along with this one, if there is one."""
    if eqn.primitive.name != "dot_general":
        return None
    contracted, _ = eqn.params["dimension_numbers"]
    if axis not in contracted[i]:
        return None
    other: int = contracted[1 - i][list(contracted[i]).index(axis)]
    return other


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
NESTED = {*jaxprs.CALLS, "cond", "custom_vjp_call", "scan", "while"}
