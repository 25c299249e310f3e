"""Search spaces: a base trial, and a distribution for each hyperparameter that is searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jaxexp.base.errors import UserError
from jaxexp.spec.distributions import Choice, Conditional, Distribution, distribution
from jaxexp.spec.hyperparameters import check_range
from jaxexp.spec.sweep import Axis
from jaxexp.spec.trial import Trial, hyperparameters
from jaxexp.spec.values import Value, check_texts, short, text

Axes: TypeAlias = Mapping[str | Axis, object]


@dataclass(frozen=True)
class Space:
    """The hyperparameters to search, and the distributions of their values.

    Args:
        base: the trial that gives all other hyperparameters their values.
        axes: for each name a distribution (`jaxexp.search.uniform`, `loguniform`, `integers`,
            `choice`, or a frozen one of `scipy.stats`) or a list of values; for a tuple of names a
            list of tuples of values that belong together.

    Raises:
        UserError: for unknown names, values that a hyperparameter cannot take or that lie outside
            its declared range, options that are written the same way, and conditions that can never
            hold.

    >>> from jaxexp.spec.distributions import integers, loguniform, uniform
    >>> from jaxexp.spec.trial import MLPTrial
    >>> space = Space(
    ...     MLPTrial(epochs=10),
    ...     {
    ...         "learning_rate": loguniform(1e-4, 1e-1),
    ...         "width": integers(8, 128, log=True),
    ...         "optimizer": ["adam", "sgd"],
    ...         "momentum": uniform(0, 0.99).when(optimizer="sgd"),
    ...     },
    ... )
    >>> space.point({"learning_rate": 0, "width": 0, "optimizer": 0.9, "momentum": 0.5})
    {'learning_rate': 0.0001, 'momentum': 0.495, 'optimizer': 'sgd', 'width': 8}
    """

    base: Trial
    axes: Axes

    def __post_init__(self) -> None:
        """Turn the axes into distributions and check them."""
        if not isinstance(self.base, Trial):
            raise UserError(f"base={self.base!r}: expected a trial, such as MLPTrial(epochs=10)")
        hyperparameters(type(self.base))
        if not isinstance(self.axes, Mapping) or not self.axes:
            raise UserError(
                f"axes={self.axes!r}: expected a dict of names and their distributions, with at "
                "least one"
            )
        made: dict[Axis, Distribution] = {}
        for key, values in self.axes.items():
            names = (key,) if isinstance(key, str) else key
            if not isinstance(names, tuple) or not names:
                raise UserError(f"axes: {key!r}: expected the name of a hyperparameter, or several")
            for name in names:
                self.base.check_name(name)
                if any(name in other for other in made) or names.count(name) > 1:
                    raise UserError(f"{name} stands more than once in the space")
            made[names] = self._checked(names, values)
        # Sorted, so that the order in which a space is written down decides nothing.
        object.__setattr__(self, "axes", dict(sorted(made.items())))
        self._order()

    @property
    def distributions(self) -> dict[Axis, Distribution]:
        """The distribution of each axis: of one name, or of several that belong together."""
        return dict(self.axes)  # type: ignore[arg-type]  # as `__post_init__` leaves them

    @property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters that are searched, sorted."""
        return tuple(sorted(name for axis in self.distributions for name in axis))

    @property
    def conditions(self) -> dict[str, dict[str, tuple[object, ...]]]:
        """For hyperparameters with conditions, the values that they require of others."""
        return {
            name: dict(own.conditions)
            for axis, own in self.distributions.items()
            if isinstance(own, Conditional)
            for name in axis
        }

    @property
    def count(self) -> float:
        """The largest number of points: infinite with a continuous distribution."""
        count = 1.0
        for own in self.distributions.values():
            count *= own.count + isinstance(own, Conditional)
        return count

    def point(self, quantiles: Mapping[str, float]) -> dict[str, Value]:
        """The values at a quantile in [0, 1) for each axis (under its first name if it has more).

        A hyperparameter whose conditions do not hold has the value of the base trial.
        """
        taken = {
            axis: (own.distribution if isinstance(own, Conditional) else own).ppf(
                quantiles[axis[0]]
            )
            for axis, own in self.distributions.items()
        }
        return self.resolve(taken)

    def resolve(self, taken: Mapping[Axis, object]) -> dict[str, Value]:
        """The values of a point from one for each axis, drawn as if all conditions held."""
        values = self.base.values()
        for axis in self._order():
            own, given = self.distributions[axis], taken[axis]
            if isinstance(own, Conditional) and not own.holds(values):
                continue
            each: Sequence[Any] = given if len(axis) > 1 else (given,)  # type: ignore[assignment]
            inner = own.distribution if isinstance(own, Conditional) else own
            drawn = not isinstance(inner, Choice)  # options are converted, and stay as they are
            values |= {
                n: self._value(n, v) if drawn else v for n, v in zip(axis, each, strict=True)
            }
        return {name: values[name] for name in self.names}

    def trial(self, values: Mapping[str, Value]) -> Trial:
        """The trial of a point; raises UserError if its values do not fit together."""
        made = self.base.replace(**self.base.values() | dict(values))
        made.check()
        return made

    def __str__(self) -> str:
        """One line for each axis."""
        return "\n".join(f"{' × '.join(axis)}: {own}" for axis, own in self.distributions.items())

    def _value(self, name: str, value: object) -> Value:
        """A drawn value in the type of the hyperparameter; floats as short as float32 allows."""
        if isinstance(value, float) and not float(value).is_integer():
            value = short(value)
        return self.base.convert(name, value)

    def _checked(self, names: Axis, values: object) -> Distribution:
        written = " × ".join(names)
        try:
            own = distribution(values)
        except UserError as error:
            raise UserError(f"{written}: {error}") from None
        inner = own.distribution if isinstance(own, Conditional) else own
        if isinstance(inner, Choice):
            inner = self._checked_choice(names, inner, isinstance(own, Conditional))
        elif len(names) > 1:
            raise UserError(f"{written}: {inner}: expected a list of tuples of {len(names)} values")
        else:
            [name] = names
            for value in (*inner.values(), inner.ppf(0.31415)):  # a fraction, if there are any
                self._check_value(name, value, f"{name}: {inner}: ")
        if not isinstance(own, Conditional):
            return inner
        conditions = tuple(
            (name, tuple(self._check_value(name, v, f"{written}: when {name}: ") for v in wanted))
            for name, wanted in own.conditions
        )
        return Conditional(inner, conditions)

    def _checked_choice(self, names: Axis, own: Choice, conditional: bool) -> Choice:
        options: list[object] = []
        fields, seen = self.base.fields(), set[tuple[Value, ...]]()
        found: dict[tuple[str, str], Value] = {}
        if conditional:  # elsewhere they are as in the base
            check_texts(found, {name: getattr(self.base, name) for name in names})
        for option in own.options:
            each = option if len(names) > 1 else (option,)
            if not isinstance(each, tuple) or len(each) != len(names):
                raise UserError(
                    f"{' × '.join(names)}: expected {len(names)} values, got {option!r}"
                )
            pairs = zip(names, each, strict=True)
            values = tuple(self._check_value(name, value, "") for name, value in pairs)
            made = values if len(names) > 1 else values[0]
            inside = tuple(fields[n].in_program(v) for n, v in zip(names, values, strict=True))
            if inside in seen:
                raise UserError(f"{' × '.join(names)}: {own}: {option} stands there twice")
            check_texts(found, dict(zip(names, values, strict=True)))
            check_texts(found, {" × ".join(names): made})  # as a study of Optuna holds them
            options.append(made)
            seen.add(inside)
        return Choice(tuple(options))

    def _check_value(self, name: str, value: object, where: str) -> Value:
        try:
            self.base.check_name(name)
            declared = self.base.fields()[name]
            made = self.base.convert(name, value)
            check_range(declared, made)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        return made

    def _order(self) -> list[Axis]:
        """The axes, each after those that its conditions refer to.

        Raises UserError for a cycle, and for conditions that can never hold.
        """
        left, order = self.distributions, list[Axis]()
        of = {name: axis for axis in left for name in axis}
        while left:
            waits = {
                axis: [of[n] for n, _ in own.conditions if n in of and of[n] in left]
                if isinstance(own, Conditional)
                else []
                for axis, own in left.items()
            }
            ready = [axis for axis in left if not waits[axis]]
            if not ready:
                cycle = " and ".join(" × ".join(axis) for axis in left)
                raise UserError(f"the conditions of {cycle} ask for each other")
            for axis in ready:
                own = left.pop(axis)
                if isinstance(own, Conditional):
                    self._check_conditions(axis, own, of)
                order.append(axis)
        return order

    def _check_conditions(self, axis: Axis, own: Conditional, of: Mapping[str, Axis]) -> None:
        for name, wanted in own.conditions:
            for value in wanted:
                if not self._can_be(name, value, of):
                    there = f"is {self.distributions[of[name]]}" if name in of else "is fixed at "
                    there += "" if name in of else text(getattr(self.base, name))
                    raise UserError(
                        f"{' × '.join(axis)}: when {name}={text(value)}: {name} {there}, and never "
                        "this"
                    )

    def _can_be(self, name: str, value: object, of: Mapping[str, Axis]) -> bool:
        if name not in of:
            return bool(getattr(self.base, name) == value)
        axis, own = of[name], self.distributions[of[name]]
        if len(axis) > 1:
            inner = own.distribution if isinstance(own, Conditional) else own
            assert isinstance(inner, Choice)
            at = axis.index(name)
            found = any(option[at] == value for option in inner.options)  # type: ignore[index]
        else:
            found = own.has(value)
        return found or (isinstance(own, Conditional) and getattr(self.base, name) == value)
