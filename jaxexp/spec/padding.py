"""Padding: how trials of different sizes and choices share one compiled program.

A hyperparameter that XLA would have to know becomes a number inside the program: a size is padded
to the largest of the batch (`Size`); if there are several options, all are computed and one is
taken (`Choice`). A model reads its sizes with `largest` and `value` and its choices with `choose`.
These also work on plain values, so that a model is written only once, and costs nothing extra if
nothing is padded.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NoReturn, TypeAlias, TypeVar, overload

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.spec.hyperparameters import Hyperparameter, Kind
from jaxexp.spec.trial import Trial, with_values
from jaxexp.spec.values import Value, text

if TYPE_CHECKING:
    from jax import Array

T = TypeVar("T")
R = TypeVar("R")
Traced: TypeAlias = "bool | int | float | Array"  # a number that may be traced in a program


class _Unknown:
    """Refuses what Python cannot know of a value that differs by trial: `==` would be False."""

    name: str  # of the hyperparameter

    def _refuse(self, *_: object) -> NoReturn:
        raise UserError(
            f"{self.name}: which value a trial has is not known to Python where trials share a "
            "program; compute with jaxexp.spec.padding.value of a size and choose of an option, "
            "declare it with jaxexp.static, or run with programs='exact'"
        )

    def __bool__(self) -> bool:
        self._refuse()

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
    __int__ = __index__ = __float__ = __str__ = __format__ = _refuse


@dataclass(frozen=True, eq=False)
class Size(_Unknown):
    """A whole number that differs between the trials of a program, or one for each layer."""

    name: str
    value: "Array"  # of this trial: a traced int32, or (layers,) if some trial has a tuple
    smallest: int
    largest: int
    # Whether trials train one after another, so that a branch (`jax.lax.cond`) costs nothing if a
    # trial does not take it; side by side, all branches are computed.
    branches: bool = False

    def __bool__(self) -> bool:
        """True, as for a number, if no value in the program can be 0; otherwise refused."""
        return True if self.smallest > 0 or self.largest < 0 else self._refuse()


@dataclass(frozen=True, eq=False)
class Choice(_Unknown, Generic[T]):
    """One of several options, taken inside the program."""

    name: str
    index: "Array"  # of this trial: a traced int32
    options: tuple[T, ...]


def value(size: T | Size) -> "T | Array":
    """The number itself: a plain value, or traced if the program pads it."""
    return size.value if isinstance(size, Size) else size


def largest(size: int | Size) -> int:
    """The largest size in the program, to which arrays are padded."""
    return size.largest if isinstance(size, Size) else size


def smallest(size: int | Size) -> int:
    """The smallest size in the program."""
    return size.smallest if isinstance(size, Size) else size


@overload
def choose(choice: Choice[T], function: Callable[[T], R]) -> R: ...
@overload
def choose(choice: T, function: Callable[[T], R]) -> R: ...
def choose(choice: T | Choice[T], function: Callable[[T], R]) -> R:
    """`function(option)` for the option taken; pytrees of equal structure are selected by leaf."""
    if not isinstance(choice, Choice):
        return function(choice)
    import jax

    results = [function(option) for option in choice.options]
    taken: R = jax.tree.map(lambda *cases: jax.lax.select_n(choice.index, *cases), *results)
    return taken


@dataclass(frozen=True)
class ProgramSpec:
    """All that XLA has to know about a program's trials: equal specs compile once."""

    like: Trial  # holds what the trials have in common
    traced: tuple[str, ...]
    sizes: tuple[tuple[str, int, int], ...]  # name, smallest, largest
    lengths: tuple[tuple[str, int], ...]  # of the longest tuple, for sizes with one value per layer
    choices: tuple[tuple[str, tuple[Value, ...]], ...]  # name, options

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "ProgramSpec":
        """The spec of a program that these trials, all of one class, can share.

        Raises UserError if they differ in a static hyperparameter.
        """
        fields = trials[0].fields()
        values = {name: [getattr(trial, name) for trial in trials] for name in fields}
        differs = {name: len(set(own)) > 1 for name, own in values.items()}

        def of_kind(kind: Kind) -> list[str]:
            return [n for n, field in fields.items() if field.kind is kind and differs[n]]

        for name in of_kind(Kind.STATIC):
            some = ", ".join(dict.fromkeys(map(text, values[name])))
            raise UserError(f"{name} is static: trials with {some} cannot share a program")
        traced = [
            n
            for n, field in fields.items()
            if field.kind is Kind.LENGTH
            or (field.kind is Kind.TRACED and not _off(field, values[n]))
        ]
        sizes, choices = of_kind(Kind.SIZE), of_kind(Kind.CHOICE)
        neutral = {n: fields[n].default for n in (*traced, *sizes, *choices)}
        every = {n: list(map(each_layer, values[n])) for n in sizes}
        flat = {n: list(itertools.chain.from_iterable(each)) for n, each in every.items()}
        return cls(
            like=with_values(trials[0], **neutral),
            traced=tuple(traced),
            sizes=tuple((n, min(flat[n]), max(flat[n])) for n in sizes),
            lengths=tuple((n, most) for n in sizes if (most := max(map(len, every[n]))) > 1),
            choices=tuple((n, tuple(sorted(set(values[n]), key=_order))) for n in choices),
        )

    @property
    def pads_model(self) -> bool:
        """Whether a hyperparameter of the model itself is padded, not just one of any trial."""
        return any(name not in Trial.fields() for name, *_ in (*self.sizes, *self.choices))

    def leaves(self, trials: Sequence[Trial]) -> dict[str, np.ndarray]:
        """What differs between the trials: (T,) each, or (T, layers) for sizes with one per layer.

        Floats are float32, everything else is int32.
        """
        options, lengths = dict(self.choices), dict(self.lengths)
        names = (*self.traced, *(name for name, *_ in self.sizes), *options)
        values = {name: [getattr(t, name) for t in trials] for name in names}
        for name, length in lengths.items():  # shorter tuples repeat their last size
            rows = [each_layer(value) for value in values[name]]
            values[name] = [(*row, *row[-1:] * (length - len(row))) for row in rows]
        fields = self.like.fields()
        return {name: _leaf(fields[name], values[name], options.get(name)) for name in names}

    def trial(self, leaves: "Mapping[str, Array]", *, branches: bool = False) -> Trial:
        """The trial for one row of the leaves, to be used inside a compiled function.

        `branches` is that of `Size`.
        """
        own: dict[str, object] = {name: leaves[name] for name in self.traced}
        own |= {n: Size(n, leaves[n], low, high, branches) for n, low, high in self.sizes}
        own |= {n: Choice(n, leaves[n], options) for n, options in self.choices}
        return with_values(self.like, **own)


def bounds(spec: ProgramSpec) -> list[Trial]:
    """Trials with the largest sizes and all rates on, one for each combination of options.

    Each of the program's trials takes at most as much work as one of them.
    """
    most: dict[str, Value] = {name: high for name, _, high in spec.sizes}
    fields = spec.like.fields()
    most |= {n: fields[n].on for n in spec.traced if fields[n].off is not None}
    made = [with_values(spec.like, **most)]
    for name, options in spec.choices:
        made = [with_values(trial, **{name: option}) for trial in made for option in options]
    return made


def each_layer(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the layers as a tuple, of one element if they have one size in common."""
    return size if isinstance(size, tuple) else (size,)


def _order(option: Value) -> tuple[str, int | float | str]:
    """A key that sorts options by type, and within a type by value or else by text."""
    return type(option).__name__, option if isinstance(option, int | float | str) else text(option)


def _off(field: Hyperparameter, values: Sequence[Value]) -> bool:
    """Whether a traced hyperparameter is switched off in every trial."""
    return field.off is not None and set(values) == {field.off}


def _leaf(
    field: Hyperparameter, values: Sequence[Value], options: tuple[Value, ...] | None
) -> np.ndarray:
    if options is not None:
        return np.array([options.index(value) for value in values], np.int32)
    return np.array(values, np.float32 if field.hint is float else np.int32)
