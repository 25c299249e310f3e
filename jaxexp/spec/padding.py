"""Lifting: letting trials of different shapes and choices share one compiled program.

A hyperparameter that XLA would have to know becomes a number inside the program: a size is padded
to the largest of the batch (`Size`), and of several options all are computed and one is taken
(`Choice`). A model reads its sizes with `largest` and `value` and takes its choices with `choose`,
which also work on plain values: it is written once, and costs nothing where nothing is lifted.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxexp.spec.trial import Trial


@dataclass(frozen=True)
class Size:
    """A whole number that differs between the trials of a program, or one for each layer."""

    value: Any  # of this trial: a traced int32, or (layers,) where some trial has a tuple
    smallest: int
    largest: int


@dataclass(frozen=True)
class Choice:
    """One of several options, taken inside the program."""

    index: Any  # of this trial: a traced int32
    options: tuple[Any, ...]


def value(size: Any) -> Any:
    """The number itself: an int, or traced if it is lifted."""
    return size.value if isinstance(size, Size) else size


def largest(size: Any) -> int:
    """The largest of the program: what arrays are padded to."""
    return size.largest if isinstance(size, Size) else size


def smallest(size: Any) -> int:
    """The smallest of the program."""
    return size.smallest if isinstance(size, Size) else size


def choose(choice: Any, function: Callable[[Any], Any]) -> Any:
    """`function(option)` of the option taken; pytrees of equal structure if it is lifted."""
    if not isinstance(choice, Choice):
        return function(choice)
    import jax

    results = [function(option) for option in choice.options]
    return jax.tree.map(lambda *cases: jax.lax.select_n(choice.index, *cases), *results)


@dataclass(frozen=True)
class Shape:
    """All that XLA has to know of a program's trials: equal shapes compile once."""

    like: Trial  # holds what the trials have in common
    traced: tuple[str, ...]
    sizes: tuple[tuple[str, int, int], ...]  # name, smallest, largest
    lengths: tuple[tuple[str, int], ...]  # of the longest tuple, where a size is one for each layer
    choices: tuple[tuple[str, tuple[Any, ...]], ...]  # name, options

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Shape":
        """The shape in which these trials, of one class, share a program."""
        fields = trials[0].fields()
        values = {name: [getattr(trial, name) for trial in trials] for name in fields}
        kinds = {name: field.metadata["kind"] for name, field in fields.items()}
        traced = [n for n, k in kinds.items() if k == "traced" and not _off(fields[n], values[n])]
        differs = {name: len(set(own)) > 1 for name, own in values.items()}
        sizes = [n for n, k in kinds.items() if k == "size" and differs[n]]
        choices = [n for n, k in kinds.items() if k == "choice" and differs[n]]
        others = [n for n, k in kinds.items() if k == "length"]
        lifted: dict[str, Any] = {
            n: fields[n].default for n in (*traced, *sizes, *choices, *others)
        }
        every = {n: list(map(_each, values[n])) for n in sizes}
        flat = {n: list(itertools.chain.from_iterable(each)) for n, each in every.items()}
        return cls(
            like=dataclasses.replace(trials[0], **lifted),
            traced=tuple(traced),
            sizes=tuple((n, min(flat[n]), max(flat[n])) for n in sizes),
            lengths=tuple((n, most) for n in sizes if (most := max(map(len, every[n]))) > 1),
            choices=tuple((n, tuple(sorted(set(values[n])))) for n in choices),
        )

    @property
    def pads_model(self) -> bool:
        """Whether a hyperparameter of the model itself is lifted, not only those of any trial."""
        return any(name not in Trial.fields() for name, *_ in (*self.sizes, *self.choices))

    def leaves(self, trials: Sequence[Trial]) -> dict[str, np.ndarray]:
        """What differs between the trials, (T,) each, or (T, layers) for sizes of each layer.

        Floats are float32, all else is int32.
        """
        options, lengths = dict(self.choices), dict(self.lengths)
        names = (*self.traced, *(name for name, *_ in self.sizes), *options)
        values = {name: [getattr(t, name) for t in trials] for name in names}
        for name, length in lengths.items():  # a shorter one goes on with its last size
            rows = [_each(value) for value in values[name]]
            values[name] = [(*row, *row[-1:] * (length - len(row))) for row in rows]
        return {name: _leaf(values[name], options.get(name)) for name in names}

    def trial(self, leaves: Mapping[str, Any]) -> Trial:
        """The trial of one row of the leaves, to be used inside a compiled function."""
        own: dict[str, Any] = {name: leaves[name] for name in self.traced}
        own |= {name: Size(leaves[name], low, high) for name, low, high in self.sizes}
        own |= {name: Choice(leaves[name], options) for name, options in self.choices}
        return dataclasses.replace(self.like, **own)

    def bound(self) -> Trial:
        """A trial that does at least the work of each: the largest sizes, the dearest options."""
        sizes: dict[str, Any] = {name: high for name, _, high in self.sizes}
        bound = dataclasses.replace(self.like, **sizes)
        for name, options in self.choices:
            made = [dataclasses.replace(bound, **{name: option}) for option in options]
            bound = max(made, key=lambda trial: trial.cost().multiplications)
        return bound


def _each(size: Any) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,)


def _off(field: dataclasses.Field, values: list[Any]) -> bool:
    """Whether a traced hyperparameter has, in every trial, the value that switches it off."""
    return field.metadata["off"] is not None and set(values) == {field.metadata["off"]}


def _leaf(values: list[Any], options: tuple[Any, ...] | None) -> np.ndarray:
    if options is not None:
        return np.array([options.index(value) for value in values], np.int32)
    return np.array(values, np.float32 if isinstance(values[0], float) else np.int32)
