"""Recognises `table[arange(B), index]` in programs, where each example looks up in its own row."""

import numpy as np
from jax.extend import core as jax_core

from jaxexp.training import jaxprs
from jaxexp.training.jaxprs import Atom


def in_own_rows(program: jax_core.ClosedJaxpr) -> jax_core.ClosedJaxpr:
    """The same program, with rows paired with the examples rather than looked up by number.

    It computes the same, but shows that no example meets another, while numbers of rows might be
    any.
    """
    held = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    made: jax_core.ClosedJaxpr = program.replace(jaxpr=_rewritten(program.jaxpr, held))
    return made


def _rewritten(jaxpr: jax_core.Jaxpr, held: dict[jax_core.Var, object]) -> jax_core.Jaxpr:
    places = _Places(jaxpr, held)
    eqns, changed = [], False
    for eqn in jaxpr.eqns:
        made = [eqn]
        if eqn.primitive.name == "gather":
            made = places.paired(eqn) or made
        elif eqn.primitive.name in ("jit", "pjit"):
            called = eqn.params["jaxpr"]
            own = in_own_rows(called)
            if own.jaxpr is not called.jaxpr:
                made = [eqn.replace(params={**eqn.params, "jaxpr": own})]
        changed |= made != [eqn]
        eqns += made
    if not changed:
        return jaxpr
    made_anew: jax_core.Jaxpr = jaxpr.replace(eqns=jaxprs.needed(eqns, jaxpr.outvars))
    return made_anew


class _Places:
    """Which values of a program hold each element's own place along an axis."""

    def __init__(self, jaxpr: jax_core.Jaxpr, held: dict[jax_core.Var, object]) -> None:
        self.held = held
        self.made_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}

    def maker(self, atom: Atom) -> jax_core.JaxprEqn | None:
        return None if isinstance(atom, jax_core.Literal) else self.made_by.get(atom)

    def axis(self, atom: Atom) -> int | None:
        """The axis along which `atom` counts from 0; None if that is not evident."""
        value = self.value(atom)
        if value is not None:
            counts = value.ndim == 1 and value.dtype.kind in "iu"
            return 0 if counts and np.array_equal(value, np.arange(len(value))) else None
        eqn = self.maker(atom)
        if eqn is None:
            return None
        name, params = eqn.primitive.name, eqn.params
        if name == "iota":
            along: int = params["dimension"]
            return along if _counts_to(atom, along) else None
        if name == "convert_element_type":
            kept = self.axis(eqn.invars[0])
            return kept if kept is not None and _counts_to(atom, kept) else None
        if name == "broadcast_in_dim":
            own = self.axis(eqn.invars[0])
            if own is None:
                return None
            to: int = params["broadcast_dimensions"][own]
            return to if jaxprs.shape(atom)[to] == jaxprs.shape(eqn.invars[0])[own] else None
        if name == "select_n":  # places below 0 would count from the end
            below, place, _ = eqn.invars
            return self.axis(place) if self.never(below, place) else None
        return None

    def value(self, atom: Atom) -> np.ndarray | None:
        """The value of a constant; None for anything else."""
        value = atom.val if isinstance(atom, jax_core.Literal) else self.held.get(atom)
        return None if value is None else np.asarray(value)

    def never(self, below: Atom, place: Atom) -> bool:
        """Whether `below` is False everywhere, or says where `place` is less than 0."""
        if (value := self.value(below)) is not None:
            return not value.any()
        eqn = self.maker(below)
        if eqn is None or eqn.primitive.name != "lt" or eqn.invars[0] is not place:
            return False
        zero = self.value(eqn.invars[1])
        return zero is not None and not zero.any()

    def paired(self, gather: jax_core.JaxprEqn) -> list[jax_core.JaxprEqn] | None:
        """The lookup with rows paired with the indices; None if it is of another kind."""
        table, index = gather.invars
        numbers, last = gather.params["dimension_numbers"], len(jaxprs.shape(index)) - 1
        joined = self.maker(index)
        if numbers.operand_batching_dims or joined is None:
            return None
        if joined.primitive.name != "concatenate" or joined.params["dimension"] != last:
            return None
        if any(jaxprs.shape(part)[last] != 1 for part in joined.invars):
            return None
        pairs: list[tuple[int, int]] = []
        rest: list[tuple[int, Atom]] = []
        for of_table, part in zip(numbers.start_index_map, joined.invars, strict=True):
            axis = self.axis(part)
            if (
                axis not in (None, last)
                and jaxprs.shape(index)[axis] == jaxprs.shape(table)[of_table]
                and of_table in numbers.collapsed_slice_dims
                and axis not in (of_index for _, of_index in pairs)
            ):
                pairs.append((of_table, axis))
            else:
                rest.append((of_table, part))
        if not pairs or not rest:
            return None
        pairs.sort()
        own = {of_table for of_table, _ in pairs}
        params = {
            **gather.params,
            "dimension_numbers": numbers._replace(
                collapsed_slice_dims=tuple(d for d in numbers.collapsed_slice_dims if d not in own),
                start_index_map=tuple(of_table for of_table, _ in rest),
                operand_batching_dims=tuple(of_table for of_table, _ in pairs),
                start_indices_batching_dims=tuple(of_index for _, of_index in pairs),
            ),
        }
        parts = [part for _, part in rest]
        if len(parts) == 1:
            return [gather.replace(invars=[table, *parts], params=params)]
        shape = (*jaxprs.shape(index)[:last], len(parts))
        short = jax_core.Var(index.aval.update(shape=shape))
        return [
            joined.replace(invars=parts, outvars=[short]),
            gather.replace(invars=[table, short], params=params),
        ]


def _counts_to(atom: Atom, axis: int) -> bool:
    """Whether its type can hold the number of every place along an axis."""
    dtype = np.dtype(getattr(atom.aval, "dtype", float))
    return dtype.kind in "iu" and jaxprs.shape(atom)[axis] - 1 <= np.iinfo(dtype).max
