"""From what an Optuna study suggests to a trial."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

from jaxexp.base.errors import UserError
from jaxexp.spec.distributions import (
    Choice,
    Conditional,
    Distribution,
    Integers,
    LogUniform,
    Uniform,
)
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Axis
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Value, text

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

INSTALL = "pip install 'jaxexp[optuna]'"
MOST_PAIRS = 10_000  # of values of two parameters, that are looked at
Suggest: TypeAlias = "Callable[[optuna.Trial], Trial]"
Distributions: TypeAlias = "Mapping[str, BaseDistribution]"


@dataclass(frozen=True)
class Suggestions:
    """How trials are made of what a study suggests.

    `base`, the `distributions` of parameters, the `names` of hyperparameters and the `conditions`
    of some are what is known before a study is asked; of a function, nothing.
    """

    suggest: Suggest
    base: Trial | None = None
    distributions: Distributions = field(default_factory=dict)
    names: tuple[str, ...] = ()
    conditions: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)

    def examples(self) -> list[Trial]:
        """Trials with the least and the greatest value of each parameter, or each of its choices.

        The first has the first of all; of a function, nothing is known.
        """
        from optuna.trial import FixedTrial

        if self.base is None:
            return []
        first = {name: ends(own)[0] for name, own in self.distributions.items()}
        corners = [
            first | {name: value} for name, own in self.distributions.items() for value in ends(own)
        ]
        made = [self.suggest(cast("optuna.Trial", FixedTrial(corner))) for corner in corners]
        return list(dict.fromkeys(made))

    def check_pairs(self) -> None:
        """Raise UserError where values of two parameters do not fit together.

        Of a function, nothing is known, and of two long lists not every pair is looked at.
        """
        from optuna.trial import FixedTrial

        values = {name: ends(own) for name, own in self.distributions.items()}
        first = {name: own[0] for name, own in values.items()}
        for one, other in itertools.combinations(values, 2):
            if len(values[one]) * len(values[other]) <= MOST_PAIRS:
                for pair in itertools.product(values[one], values[other]):
                    point = first | dict(zip((one, other), pair, strict=True))
                    self.suggest(cast("optuna.Trial", FixedTrial(point))).check()

    def check(self, study: "optuna.Study") -> None:
        """Raise UserError for a study of other parameters."""
        from optuna.distributions import check_distribution_compatibility

        if self.base is None:
            return
        for trial in study.get_trials(deepcopy=False):
            for name, before in trial.distributions.items():
                if name not in self.distributions:
                    raise UserError(
                        f"study={study.study_name!r}: its trial {trial.number} has the parameter "
                        f"{name!r}, expected those of the space: {', '.join(self.distributions)}"
                    )
                now = self.distributions[name]
                try:
                    check_distribution_compatibility(before, now)
                except ValueError:
                    raise UserError(
                        f"study={study.study_name!r}: {name} of its trial {trial.number} is from "
                        f"{before}, which Optuna does not mix with {now} of the space"
                    ) from None


def suggestions(space: object) -> Suggestions:
    """Of a space, of a base trial and distributions, or of a function of an Optuna trial.

    Raises UserError for anything else.
    """
    if isinstance(space, Space):
        return _of_space(space)
    if isinstance(space, tuple) and len(space) == 2 and isinstance(space[1], Mapping):
        return _of_distributions(*space)
    if callable(space):
        return Suggestions(_checked(cast(Suggest, space)))
    raise UserError(
        f"space={space!r}: expected a jaxexp.search.Space, a base trial and a dict of Optuna's "
        "distributions, or a function of an Optuna trial that returns a trial"
    )


def _of_distributions(base: Trial, distributions: Distributions) -> Suggestions:
    import_optuna()
    from optuna.distributions import BaseDistribution

    if not isinstance(base, Trial):
        raise UserError(f"space: the base is {base!r}, expected a trial, as MLPTrial()")
    if not distributions:
        raise UserError("space: no hyperparameter, expected the distribution of at least one")
    for name, own in distributions.items():
        base.check_name(name)
        if not isinstance(own, BaseDistribution):
            raise UserError(f"space: {name}={own!r}, expected one of optuna.distributions")

    def suggest(trial: "optuna.Trial") -> Trial:
        values = {name: suggested(trial, name, own) for name, own in distributions.items()}
        return base.replace(**values)

    return Suggestions(suggest, base, distributions, tuple(distributions))


def _of_space(space: Space) -> Suggestions:
    """Its parameters have the names of its axes: "depth_width" of two that belong together."""
    import_optuna()
    axes = space.distributions
    of = {name: axis for axis in axes for name in axis}
    distributions = {"_".join(axis): _distribution(axis, own) for axis, own in axes.items()}
    if len(distributions) < len(axes):
        names = ["_".join(axis) for axis in axes]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"space: more than one parameter of a study would be named {twice!r}")

    def suggest(trial: "optuna.Trial") -> Trial:
        values: dict[str, Value] = {}
        seen: set[Axis] = set()

        def add(axis: Axis) -> None:
            """What the axis depends on first, then its own values, if its conditions hold."""
            if axis in seen:
                return
            seen.add(axis)
            own, name = axes[axis], "_".join(axis)
            if isinstance(own, Conditional):
                for other, _ in own.conditions:
                    if other in of:
                        add(of[other])
                if not own.holds(space.base.values() | values):
                    return
            option = suggested(trial, name, distributions[name])
            inner = own.distribution if isinstance(own, Conditional) else own
            if isinstance(inner, Choice):
                option = next(made for made in inner.options if _option(made) == option)  # type: ignore[assignment]
            values.update(zip(axis, option if len(axis) > 1 else (option,), strict=True))  # type: ignore[arg-type]

        for axis in axes:
            add(axis)
        return space.base.replace(**space.base.values() | values)

    return Suggestions(suggest, space.base, distributions, tuple(of), space.conditions)


def _distribution(axis: Axis, own: Distribution) -> "BaseDistribution":
    """Optuna's of the same values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    inner = own.distribution if isinstance(own, Conditional) else own
    if isinstance(inner, Uniform | LogUniform):
        return FloatDistribution(inner.low, inner.high, log=isinstance(inner, LogUniform))
    if isinstance(inner, Integers):
        return IntDistribution(inner.low, inner.high, log=inner.log, step=inner.step)
    if isinstance(inner, Choice):
        return CategoricalDistribution([_option(option) for option in inner.options])
    raise UserError(
        f"{' × '.join(axis)}: {inner}: Optuna's samplers know no such distribution, expected "
        "uniform, loguniform, integers or choice"
    )


def _option(value: object) -> bool | int | float | str | None:
    """As Optuna stores it: what is no number, text or None becomes text."""
    return value if isinstance(value, bool | int | float | str | None) else text(value)


def _checked(suggest: Suggest) -> Suggest:
    def checked(trial: "optuna.Trial") -> Trial:
        try:
            made = suggest(trial)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            raise UserError(
                "space: the function called study.stop(), which Optuna knows in Study.optimize "
                "alone; expected optuna.TrialPruned for a trial that is not to be trained, and "
                "fewer `trials` for a search that is to end"
            ) from error
        if not isinstance(made, Trial):
            raise UserError(f"space: the function returned {made!r}, expected a trial")
        return made

    return checked


def suggested(trial: "optuna.Trial", name: str, own: "BaseDistribution") -> Value:
    """The value that a study suggests for a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(own, FloatDistribution):
        return trial.suggest_float(name, own.low, own.high, step=own.step, log=own.log)
    if isinstance(own, IntDistribution):
        return trial.suggest_int(name, own.low, own.high, step=own.step, log=own.log)
    return trial.suggest_categorical(name, cast(CategoricalDistribution, own).choices)


def ends(own: "BaseDistribution") -> tuple[Value, ...]:
    """The least and the greatest value of a distribution, or all that it chooses from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(own, FloatDistribution | IntDistribution):
        return own.low, own.high
    return cast(CategoricalDistribution, own).choices


def import_optuna() -> None:
    """Raise UserError, which says how to install it, where Optuna cannot be imported."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"Optuna cannot be imported ({error}): {INSTALL}") from error
