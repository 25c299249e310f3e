"""Population-based training: trials go on as copies of better ones, with other hyperparameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int, is_number
from jaxexp.base.words import count
from jaxexp.execution.rules import Change, Curves
from jaxexp.spec.distributions import Choice, Conditional, Distribution, Scipy
from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.names import refuse_taken
from jaxexp.spec.samplers import members
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial


@dataclass(frozen=True)
class PBT:
    """Population-based training: `jaxexp.run(PBT(space, …), task, data)`.

    Jaderberg et al., "Population based training of neural networks" (2017). Every `interval`
    epochs, the worst members of a population copy the parameters and optimizer state of members
    drawn from the best (exploit, by truncation selection), with hyperparameters near theirs
    (explore): each is drawn again from the space with probability `resample`, and otherwise
    multiplied by 0.8 or 1.2 within the space (for a choice, the previous or next option is taken;
    whole numbers are rounded to their steps and change by at least one).

    All members train as one program, and states are copied on the devices. Hyperparameters have to
    be numbers inside the program: learning rates, weight decay, dropout …, declared with
    `jaxexp.traced`. A member's seed, which shuffles its examples, stays its own: several can begin
    at one point, where a space has few. In the results, `parent` says for each epoch which member
    each one copied, and `own_learning_rate` and the like which values it had; the coordinate
    `learning_rate` is the value that it began with. `TrialResult.trial` has the final values, which
    its predictions use, and `TrialResult.initial` those that it began with.

    Args:
        space: what is searched, and the base trial of all members.
        population: the number of members.
        metric: what they are compared by: "loss" or a metric of the task.
        interval: epochs between two exchanges.
        quantile: the share of the worst that copy, and of the best that are copied.
        resample: the probability that a hyperparameter is drawn again.
        split: by default the validation split if there is one, otherwise the training split.
        seed: decides the first values, who copies whom, and what is changed.

    Raises:
        UserError: for invalid numbers, and for hyperparameters that need their own program.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> space = jx.search.Space(
    ...     jx.MLPTrial(epochs=4, depth=1, batch_size=8),
    ...     {"learning_rate": jx.search.loguniform(1e-4, 1e-1)},
    ... )
    >>> results = jx.run(PBT(space, population=8), data=data, progress=False)
    >>> int((results["parent"] >= 0).any("sample").sum())  # after each epoch but the last
    3
    """

    space: Space
    population: int = 16
    metric: str = "loss"
    interval: int = 1
    quantile: float = 0.25
    resample: float = 0.25
    split: str | None = None
    seed: int = 0
    of_every_trial: ClassVar[bool] = True
    sweep: Sweep = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Draw the population, and raise UserError for what cannot be."""
        if not isinstance(self.space, Space):
            raise UserError(f"space={self.space!r}: expected a jaxexp.search.Space")
        for name, least in (("population", 2), ("interval", 1), ("seed", 0)):
            object.__setattr__(self, name, checked_int(name, getattr(self, name), least))
        for name, most in (("quantile", 0.5), ("resample", 1.0)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= most:
                raise UserError(f"{name}={value!r}: expected a number from 0 to {most:g}")
            object.__setattr__(self, name, float(value))
        if self._copies < 1:
            raise UserError(
                f"quantile={self.quantile}: of {self.population} members that is less than one"
            )
        for axis, own in self.space.distributions.items():
            self._check(axis, own)
        # The members differ in their seeds, too: those that copy one another do not stay equal.
        names = self.space.names
        points = [
            (*(point[name] for name in names), self.space.base.seed + i)
            for i, point in enumerate(members(self.space, self.population, seed=self.seed))
        ]
        sweep = Sweep(
            self.space.base, {(*names, "seed"): points}, name="pbt",
            dim_names={(*names, "seed"): "sample"},
        )  # fmt: skip
        object.__setattr__(self, "sweep", sweep)

    def _check(self, axis: tuple[str, ...], own: Distribution) -> None:
        fields = self.space.base.fields()
        if len(axis) > 1 or isinstance(own, Conditional):
            raise UserError(
                f"{' × '.join(axis)}: {own}: a population changes each hyperparameter by itself; "
                "expected a distribution of one, without conditions"
            )
        [name] = axis
        if name in ("seed", "fold") or fields[name].kind is not Kind.TRACED:
            raise UserError(
                f"{name}: a trial cannot change it while it trains; expected numbers inside the "
                "program, such as the learning rate, or what is declared with jaxexp.traced"
            )
        both = {f"{when}_{name}": f"tables of changes to {name}" for when in ("initial", "final")}
        for other in fields:
            refuse_taken(f"{type(self.space.base).__name__}.{other}", other, both)

    @property
    def changed(self) -> tuple[str, ...]:
        """The hyperparameters that members change."""
        return self.space.names

    @property
    def _copies(self) -> int:
        """How many copy, and are copied."""
        return int(self.population * self.quantile)

    def check(self, trials: Sequence[Trial], curves: Curves, steps: np.ndarray) -> None:
        """Raise UserError for a metric or split that there is not, and for other trials."""
        curves.check(self.metric, self.split)
        if set(trials) != set(self.sweep.trials()):
            raise UserError(
                f"{count(len(trials), 'trial')} of another sweep: expected the population of this "
                "search, as in jaxexp.run(search, task, data)"
            )

    def stop(self, epoch: int, trials: Sequence[Trial], curves: Curves) -> np.ndarray:
        """None."""
        return np.zeros(len(trials), bool)

    def change(
        self, epoch: int, trials: Sequence[Trial], curves: Curves, values: Mapping[str, np.ndarray]
    ) -> Change | None:
        """Which members go on as copies of which, and with what; every `interval` epochs.

        `values` are the hyperparameters that they have now, (T,) each.
        """
        if epoch % self.interval:
            return None
        rng = np.random.default_rng([self.seed, epoch])
        cost_T = curves.costs(self.metric, self.split)[:, -1]
        order = np.lexsort((np.arange(len(trials)), cost_T))
        copies = min(self._copies, len(trials) // 2)
        source = np.arange(len(trials))
        worst = order[len(order) - copies :]
        source[worst] = rng.choice(order[:copies], copies)
        made = {}
        for (name,), own in self.space.distributions.items():
            made[name] = values[name][source]
            made[name][worst] = [self._near(own, v, rng) for v in made[name][worst].tolist()]
        return Change(source, made)

    def _near(self, own: Distribution, value: float, rng: np.random.Generator) -> float:
        """A value near this one, or any other of the space."""
        anew, up, quantile = rng.random() < self.resample, rng.random() < 0.5, rng.random()
        if anew:
            return float(own.ppf(quantile))  # type: ignore[arg-type]  # of a number
        if isinstance(own, Choice):
            options = sorted(map(float, own.options))  # type: ignore[arg-type]
            nearest = int(np.argmin(np.abs(np.array(options) - value)))
            return options[min(max(nearest + (1 if up else -1), 0), len(options) - 1)]
        ends = [float(end) for end in own.values()]  # type: ignore[arg-type]
        if isinstance(own, Scipy) and own.step:
            return own.away(value, 0.2, up=up)
        if own.step:
            return _step_away(value, own.step, min(ends), max(ends), up=up)
        return min(max(value * (1.2 if up else 0.8), min(ends)), max(ends))


def _step_away(value: float, step: int, low: float, high: float, *, up: bool) -> float:
    """A whole number a fifth away, in steps from `low`, and at least by one of them."""
    steps = max(1, round(abs(value) * 0.2 / step))
    place = round((value - low) / step) + (steps if up else -steps)
    return low + step * min(max(place, 0), round((high - low) / step))
