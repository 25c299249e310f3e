"""A sweep: a base trial, the axes along which it varies, and the questions that it answers."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeAlias, TypeVar, cast

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.spec.names import REPLICATES, RESULTS
from jaxexp.spec.trial import Trial, hyperparameters
from jaxexp.spec.values import Value, check_texts, listed, text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

Axis: TypeAlias = tuple[str, ...]  # the hyperparameters that move together along one dimension
Point: TypeAlias = tuple[Value, ...]  # a value for each of them
Values: TypeAlias = Sequence[Value | Sequence[Value]]
Axes: TypeAlias = Mapping[str | Axis, Values]
ResultsT = TypeVar("ResultsT")  # a dataset, or the datasets of several sweeps by name
RECORDS = ("gradient_norms", "predictions")


@dataclass(frozen=True, kw_only=True)
class Question(Generic[ResultsT]):
    """One row of a report: what is asked, and how the results of a sweep answer it.

    `draw`, `answer` and `table` are functions of the sweep's results (an `xarray.Dataset`; see
    `Comparison` for those of several sweeps), so that everything on the page is computed from the
    run at hand. `table` may return several, by caption. `reference` is what somebody else
    measured, quoted beside our own numbers; `verdict` computes whether ours agree with it.

    >>> question = Question(
    ...     row="1",
    ...     title="Width",
    ...     question="Which width is best?",
    ...     draw=lambda results: [],
    ...     answer=lambda results: f"The best of {results.sizes['width']} widths.",
    ...     reference="16 units.",
    ... )
    """

    row: str
    title: str
    question: str
    draw: Callable[[ResultsT], Sequence["Figure"]]
    answer: Callable[[ResultsT], str]
    reference: str
    table: Callable[[ResultsT], "pd.DataFrame | Mapping[str, pd.DataFrame]"] | None = None
    verdict: "Callable[[ResultsT], Verdict] | None" = None


class Verdict(NamedTuple):
    """Whether results agree with the reference of a question, and why.

    `agrees` is None where the two cannot be compared.

    >>> Verdict(True, "both are best at width 32.").agrees
    True
    """

    agrees: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Questions that several sweeps answer together.

    Their functions are given a mapping from the name of each of the `sweeps` to its results, in
    this order, without those that the run does not hold. A run that holds at least two answers.

    >>> Comparison(sweeps=("scratch", "fine_tuning"), questions=()).sweeps
    ('scratch', 'fine_tuning')
    """

    sweeps: tuple[str, ...]
    questions: "tuple[Question[Mapping[str, xr.Dataset]], ...]"


@dataclass(frozen=True)
class Sweep:
    """A grid of trials.

    `axes` maps the name of a hyperparameter to its values, and the sweep is their product. A tuple
    of names maps to tuples of values that move together (zipped axes, or explicit points):

    >>> from jaxexp.spec.trial import MLPTrial
    >>> sweep = Sweep(
    ...     base=MLPTrial(epochs=10),
    ...     axes={"learning_rate": [1e-2, 1e-3], ("depth", "width"): [(1, 64), (6, 16)]},
    ... )
    >>> [(t.learning_rate, t.depth, t.width) for t in sweep.trials()]
    [(0.01, 1, 64), (0.01, 6, 16), (0.001, 1, 64), (0.001, 6, 16)]

    `record` names what is kept beyond losses and metrics: "gradient_norms" and "predictions". A
    `timed` sweep measures time: its trials train one after another with nothing else running,
    except that trials that differ only in their seed share a program.

    `dim_names` names the dimension of a zipped axis in the results, for when the joined names
    ("depth_width") would be too long: `{("depth", "width"): "network"}`.

    `conditions` lists hyperparameters that matter only if others have certain values, with those
    values: `{"momentum": {"optimizer": ["sgd"]}}`. They decide what tables and figures show, not
    what is trained; those of a search space are filled in by its samplers.

    Raises UserError for a base that is not a trial, names that are not hyperparameters or occur in
    two axes, an axis without values, values of the wrong type, and different values that are
    written the same way, such as 4 and (4,), which results could not tell apart.
    """

    base: Trial
    axes: Axes = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    name: str = "sweep"
    record: tuple[str, ...] = ()
    timed: bool = False
    questions: "tuple[Question[xr.Dataset], ...]" = ()
    dim_names: Mapping[Axis, str] = dataclasses.field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Sequence[object]]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        """Normalise the axes to tuples, so that a sweep cannot be changed from outside."""
        if not isinstance(self.base, Trial):
            raise UserError(f"base={self.base!r}: expected a trial, such as MLPTrial(epochs=10)")
        hyperparameters(type(self.base))  # raises UserError if its fields cannot be that
        if not isinstance(self.axes, Mapping):
            raise UserError(f"axes={self.axes!r}: expected a dict of names and their values")
        axes: dict[Axis, tuple[Point, ...]] = {}
        for key, values in self.axes.items():
            names = _names(key)
            for name in names:
                self.base.check_name(name)
            points = _points(key, values)
            axes[names] = tuple(
                tuple(self.base.convert(n, v) for n, v in zip(names, point, strict=True))
                for point in points
            )
            self._check_float32(names, axes[names])
            found: dict[tuple[str, str], Value] = {}
            for point in axes[names]:
                check_texts(found, dict(zip(names, point, strict=True)))
        every = [name for axis in axes for name in axis]
        for name in every:
            if every.count(name) > 1:
                raise UserError(f"{name} stands in more than one axis of sweep {self.name!r}")
        dim_names = self._checked_dim_names(axes)
        dims = [dim_names.get(axis, "_".join(axis)) for axis in axes]
        for axis, dim in zip(axes, dims, strict=True):
            if len(axis) > 1 and dim in self.base.fields():
                raise UserError(
                    f"axes of sweep {self.name!r}: the dimension of {' × '.join(axis)} would have "
                    f"the name of hyperparameter {dim}: expected another in "
                    f"dim_names={{{axis!r}: 'NAME'}}"
                )
            if dims.count(dim) > 1 or dim in RESULTS:
                raise UserError(
                    f"axes of sweep {self.name!r}: more than one dimension of its results would "
                    f"be named {dim!r}"
                )
        if isinstance(self.record, str):
            raise UserError(f"record={self.record!r}: expected a tuple, ({self.record!r},)")
        for record in self.record:
            if record not in RECORDS:
                raise UserError(f"record={record!r}: expected some of {', '.join(RECORDS)}")
        self._check_options()
        self._check_conditions()
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "record", tuple(dict.fromkeys(self.record)))
        object.__setattr__(self, "questions", tuple(self.questions))
        object.__setattr__(self, "dim_names", dim_names)

    def _checked_dim_names(self, axes: Mapping[Axis, object]) -> dict[Axis, str]:
        if not isinstance(self.dim_names, Mapping):
            raise UserError(f"dim_names={self.dim_names!r}: expected a dict from axes to names")
        named = {_names(axis): name for axis, name in self.dim_names.items()}
        if len(named) < len(self.dim_names):
            raise UserError(f"dim_names={self.dim_names!r}: expected each axis once")
        for axis, name in named.items():
            if axis not in axes:
                known = ", ".join(map(repr, axes)) or "none"
                raise UserError(f"dim_names: {axis!r} is no axis; there are: {known}")
            if not isinstance(name, str) or not name.isidentifier() or name in self.base.fields():
                raise UserError(
                    f"dim_names: {name!r}: expected a name that is no hyperparameter's, such as "
                    "'sample'"
                )
        return named

    def _check_conditions(self) -> None:
        told = f"conditions={self.conditions!r}: expected {{'momentum': {{'optimizer': ['sgd']}}}}"
        if not isinstance(self.conditions, Mapping):
            raise UserError(told)
        for name, wanted in self.conditions.items():
            self.base.check_name(name)
            if not isinstance(wanted, Mapping):
                raise UserError(told)
            for other, values in wanted.items():
                self.base.check_name(other)
                if isinstance(values, str) or not isinstance(values, Sequence):
                    raise UserError(told)

    def _check_options(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise UserError(f"name={self.name!r}: expected a line of text")
        if not isinstance(self.timed, bool):
            raise UserError(f"timed={self.timed!r}: expected True or False")
        if not isinstance(self.questions, list | tuple) or not all(
            isinstance(question, Question) for question in self.questions
        ):
            raise UserError(f"questions={self.questions!r}: expected a tuple of jaxexp.Question")

    def _check_float32(self, names: Axis, points: Sequence[Point]) -> None:
        """Raise UserError for different settings that are the same inside a program."""
        fields = self.base.fields()
        found: dict[Point, dict[str, Value]] = {}
        for point in points:
            own = {n: v for n, v in zip(names, point, strict=True) if n not in REPLICATES}
            before = found.setdefault(tuple(fields[n].in_program(v) for n, v in own.items()), own)
            if before != own:
                first, second = (" × ".join(map(text, each.values())) for each in (before, own))
                raise UserError(
                    f"axis {' × '.join(own)}: {first} and {second} are the same in float32, in "
                    "which trials are trained"
                )

    @property
    def _points(self) -> dict[Axis, tuple[Point, ...]]:
        """The axes as normalised by `__post_init__`."""
        return cast("dict[Axis, tuple[Point, ...]]", self.axes)

    @property
    def dims(self) -> dict[str, tuple[Axis, tuple[Point, ...]]]:
        """The dimensions of the results, by name: their hyperparameters and the values of these."""
        return {
            self.dim_names.get(axis, "_".join(axis)): (axis, points)
            for axis, points in self._points.items()
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each dimension."""
        return tuple(len(points) for points in self.axes.values())

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that identify the trials in order, and what is recorded."""
        content = [[trial.id for trial in self.trials()], self.record, self.timed]
        return digest(json.dumps(content))

    def trials(self) -> list[Trial]:
        """Every trial once, the last axis moving fastest.

        Raises UserError for a value of the wrong type or out of its range, and for duplicates.
        """
        return list(self._trials)

    @functools.cached_property
    def _trials(self) -> tuple[Trial, ...]:
        made: dict[Trial, None] = {}
        base = self.base.replace(**self.base.values())  # checks the types of all values
        for points in itertools.product(*self._points.values()):
            names = itertools.chain.from_iterable(self._points)
            values: dict[str, Any] = dict(
                zip(names, itertools.chain.from_iterable(points), strict=True)
            )
            trial = dataclasses.replace(base, **values)
            trial.check()
            if trial in made:
                written = ", ".join(f"{name}={text(value)}" for name, value in values.items())
                raise UserError(f"sweep {self.name!r} has the trial {written} twice")
            made[trial] = None
        return tuple(made)

    def set(self, settings: Mapping[str, Sequence[object]]) -> Self:
        """A copy with other values: `{"epochs": [5], "learning_rate": [0.1, 0.01]}`.

        A single value of a hyperparameter that is not an axis goes into the base trial; several
        values make it an axis. The values of an axis are replaced. In a zipped axis, whose points
        have to stay, only one value can be set for all points.
        """
        sweep = self
        for name, values in settings.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise UserError(f"{name}={values!r}: expected a list of values, [{values!r}]")
            sweep = sweep._set_one(name, [self.base.convert(name, value) for value in values])
        return sweep

    def _set_one(self, name: str, values: list[Value]) -> Self:
        axis = next((axis for axis in self._points if name in axis), None)
        if axis is not None and len(axis) > 1:
            if len(values) != 1:
                others = ", ".join(other for other in axis if other != name)
                raise UserError(f"{name} is zipped with {others}: give it one value")
            at = axis.index(name)
            points = [(*p[:at], values[0], *p[at + 1 :]) for p in self._points[axis]]
            return dataclasses.replace(self, axes={**self.axes, axis: points})
        if axis is not None or len(values) != 1:
            points = [(value,) for value in values]
            return dataclasses.replace(self, axes={**self.axes, (name,): points})
        return dataclasses.replace(self, base=self.base.replace(**{name: values[0]}))

    def shorten(self, epochs: int) -> Self:
        """A copy whose trials train for at most `epochs` epochs, for trying things out."""
        epochs = cast(int, self.base.convert("epochs", epochs))
        if epochs < 1:
            raise UserError(f"epochs={epochs}: expected at least 1")
        if axis := next((axis for axis in self._points if "epochs" in axis), None):
            at = axis.index("epochs")
            points = [
                (*p[:at], min(cast(int, p[at]), epochs), *p[at + 1 :]) for p in self._points[axis]
            ]
            return dataclasses.replace(self, axes={**self.axes, axis: tuple(dict.fromkeys(points))})
        return dataclasses.replace(
            self, base=self.base.replace(epochs=min(self.base.epochs, epochs))
        )


def _names(key: str | Axis) -> Axis:
    names = (key,) if isinstance(key, str) else key
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"axis {key!r}: expected the name of a hyperparameter, or a tuple of names")
    return names


def _points(key: str | Axis, values: Values) -> tuple[tuple[object, ...], ...]:
    """The values of one axis as points: a tuple of values for every position along it."""
    names = _names(key)
    written = " × ".join(names)
    if isinstance(values, str | bytes | Mapping | set | frozenset):
        raise UserError(f"axis {written}: {values!r} is no list; expected a list of values")
    try:
        values = list(values)
    except TypeError:
        raise UserError(f"axis {written}: {values!r} is one value; expected a list") from None
    if not values:
        raise UserError(f"axis {written} is empty: expected at least one value")
    if isinstance(key, str):
        return tuple((value,) for value in values)
    if len(names) == 1:  # a longer tuple is a single value, such as widths
        return tuple(v if isinstance(v, tuple) and len(v) == 1 else (v,) for v in values)
    points: list[tuple[object, ...]] = []
    for value in map(listed, values):
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(names):
            raise UserError(f"axis {written}: expected {len(names)} values, got {value!r}")
        points.append(tuple(value))
    return tuple(points)
