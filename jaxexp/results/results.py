"""The results of a sweep: curves, the best trial, trained parameters, predictions."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.words import type_of
from jaxexp.results import seeds, select
from jaxexp.results.models import check_defined
from jaxexp.results.select.labels import trial_in_words
from jaxexp.results.select.ranks import matches
from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial, with_values
from jaxexp.spec.values import text
from jaxexp.training import precision
from jaxexp.training.arrays import inputs
from jaxexp.training.checks import (
    check_rows,
    checked_leaf,
    children_of,
    dtype_kind,
    map_leaves,
    refuse_names,
    refuse_where,
    shape_like,
    structure_of,
)
from jaxexp.training.data import Data
from jaxexp.training.task import TRIED, PyTree, Task, Variables

# Predictions, and probabilities or None.
Predicted: TypeAlias = tuple[PyTree, PyTree]
Predict: TypeAlias = Callable[[Mapping[str, object], Variables, PyTree], Predicted]


@dataclass(frozen=True, eq=False)
class TrialResult:
    """One trial of a sweep.

    Attributes:
        trial: its hyperparameters; for a member of a population, those of the epoch that its
            parameters come from.
        curves: its part of the dataset: every metric by epoch and split, and more.
        variables: its trained parameters and state; None if they were not kept.
        initial: the hyperparameters that it began with, as the sweep has them.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> sweep = jx.Sweep(jx.MLPTrial(epochs=2, depth=1, batch_size=8), {"seed": range(4)})
    >>> best = jx.run(sweep, data=data, progress=False).best()
    >>> best.params["first"]["affine"]["kernel"].shape
    (16, 1)
    """

    trial: Trial
    curves: xr.Dataset
    variables: Variables | None
    initial: Trial

    @property
    def params(self) -> PyTree:
        """The trained parameters; raises UserError if they were not kept.

        For a linen module these are the "params" collection alone: its outputs are
        `module.apply({"params": trial.params, **trial.variables.state}, x)`.
        """
        if self.variables is None:
            raise UserError("the parameters were not kept: run with keep_params=True")
        return self.variables.params

    def __repr__(self) -> str:
        """The hyperparameters, the initial values of those that changed, and the final losses."""
        last = select.final(self.curves, "loss")
        losses = ", ".join(f"{s.item()} {float(last.sel(split=s)):.4g}" for s in last["split"])
        names = [n for n in self.trial.fields() if select.changed(self.curves, n)]
        values = {select.words(name): getattr(self.initial, name) for name in names}
        began = f", began with {trial_in_words(values)}" if names else ""
        return f"TrialResult({self.trial}{began}, loss: {losses})"


class Results:
    """What a sweep leaves behind.

    `dataset` is an `xarray.Dataset` with a dimension for each axis, and `results["loss"]` is one of
    its variables; `jaxexp.results.dataset.to_dataset` describes them all.

    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, ["no", "no", "yes", "yes"] * 8)
    >>> sweep = jx.Sweep(jx.MLPTrial(epochs=60, depth=1, batch_size=8), {"seed": range(4)})
    >>> results = jx.run(sweep, data=data, progress=False)
    >>> results["accuracy"].sizes["seed"], results.predict([[0.0], [3.0]]).tolist()
    (4, ['no', 'yes'])
    """

    def __init__(
        self, dataset: xr.Dataset, sweep: Sweep, task: Task, data: Data,
        variables: Mapping[str, Variables],
    ) -> None:  # fmt: skip
        """`variables` holds those that were kept, by trial id."""
        self.dataset, self.sweep, self.task, self.data = dataset, sweep, task, data
        self._variables = variables
        self._compiled: dict[Trial, Predict] = {}

    def __getstate__(self) -> dict[str, object]:
        """The state without the compiled functions, which cannot be pickled."""
        return {**vars(self), "_compiled": {}}

    def kept(self) -> Mapping[str, Variables]:
        """The trained parameters and states that were kept, by trial id."""
        return self._variables

    def __getitem__(self, name: str) -> xr.DataArray:
        """A variable of the dataset."""
        if name not in self.dataset:
            raise KeyError(f"{name!r}: expected one of {', '.join(map(str, self.dataset))}")
        return self.dataset[name]

    def __repr__(self) -> str:
        """The sweep and its best trials."""
        ranked = self.table().head(5)
        head = f"Results of {self.sweep.name!r}, {len(self.sweep.trials())} trials"
        return f"{head}\n{ranked.to_string()}"

    def table(self, metric: str = "loss", split: str | None = None) -> pd.DataFrame:
        """All trials, the best by `metric` on `split` first; see `jaxexp.select.rank`."""
        return select.rank(self.dataset, metric, *([] if split is None else [split]))

    def best(self, metric: str = "loss", split: str | None = None) -> TrialResult:
        """The best single trial by `metric`, in the metric's own direction, at its last epoch.

        `split` defaults to the validation split if there is one, otherwise to the training split.
        A diverged trial is the best only if all diverged. Among trials that differ only in seed or
        fold, the best is also the luckiest: `best_setting` compares their means instead.

        Raises UserError for an unknown metric or split.
        """
        return self._at(int(self.table(metric, split).index[0]))

    def best_setting(self, metric: str = "loss", split: str | None = None) -> TrialResult:
        """The trial with the median loss in the setting with the best mean over seeds and folds.

        It shows what these hyperparameters can be expected to give with another seed. The means are
        those of `jaxexp.seeds.average`; without seeds or folds to average, this is `best`.

        Raises UserError for an unknown metric or split.
        """
        wanted = seeds.best(self.dataset, metric, split)[1]["trial_id"].item()
        ids = [trial.id for trial in self.sweep.trials()]
        return self._at(ids.index(wanted))

    def trial(self, **values: object) -> TrialResult:
        """The trial whose hyperparameters have these values: `results.trial(width=16, seed=3)`.

        In a population, these are the values that members began with; the seed alone identifies a
        member. Raises UserError unless exactly one trial matches.
        """
        trials = self.sweep.trials()
        wanted = {name: self.sweep.base.convert(name, value) for name, value in values.items()}
        fields = self.sweep.base.fields()
        those = [
            matches(
                [getattr(trial, name) for trial in trials], value,
                traced=fields[name].kind is Kind.TRACED,
            )
            for name, value in wanted.items()
        ]  # fmt: skip
        found = [place for place in range(len(trials)) if all(own[place] for own in those)]
        if len(found) != 1:
            said = ", ".join(f"{name}={text(value)}" for name, value in wanted.items())
            axes = ", ".join(name for axis in self.sweep.axes for name in axis)
            have = f"have {said}" if said else "were trained"
            raise UserError(
                f"{len(found)} of {len(trials)} trials {have}, expected one: they differ in "
                f"{axes or 'nothing'}"
            )
        return self._at(found[0])

    def params(self, **values: object) -> PyTree:
        """The trained parameters of the trial that `trial` finds.

        For a linen module, add the level "params" when you apply it: `module.apply({"params":
        results.params(…)}, x)`. Batch statistics and the like are in `trial(…).variables.state`.
        """
        return self.trial(**values).params

    def predict(self, X: PyTree, trial: TrialResult | None = None) -> PyTree:
        """What a trial, by default the `best` by loss, predicts for inputs like the training data.

        Returns the predicted class of each input, (N,), by name if the classes have names. Without
        classes, it returns the prediction (N, ...): an array, or the dict or other tree of arrays
        that the model makes. `jaxexp.supervised` says which predictions are logits of classes.

        Raises UserError for inputs of another shape, for parameters that were not kept, and for
        inputs whose class probabilities are NaN.
        """
        prediction, probability_NxC = self._apply(X, trial)
        if probability_NxC is None:
            return prediction
        check_defined(lambda row: f"X: row {row}", probability_NxC.max(1))
        label_N: np.ndarray = probability_NxC.argmax(1)
        names = self.data.classes
        return label_N if names is None else np.array(names)[label_N]

    def predict_proba(self, X: PyTree, trial: TrialResult | None = None) -> np.ndarray:
        """The probability of each class, (N, C); NaN where the model's outputs are NaN.

        Raises UserError if there are no classes, for inputs of another shape, and for parameters
        that were not kept.
        """
        _, probability_NxC = self._apply(X, trial)
        if probability_NxC is None:
            raise UserError("these trials predict no classes, and so no probabilities")
        return np.asarray(probability_NxC)

    def _apply(self, X: PyTree, chosen: TrialResult | None) -> Predicted:
        chosen = self.best() if chosen is None else chosen
        if not isinstance(chosen, TrialResult) or not self._has(chosen):
            raise UserError(
                f"trial is {type_of(chosen)}, expected a trial of these results, as "
                "results.trial(…) or results.best(…) returns it"
            )
        if chosen.variables is None:
            raise UserError("the parameters were not kept: run with keep_params=True")
        x = like_training(self.task, self.data, X)
        return apply(self.task, chosen.trial, chosen.variables, x, self._compiled)

    def _has(self, found: TrialResult) -> bool:
        """Whether it was trained in this run: another run's may have equal hyperparameters."""
        own = found.initial in self.sweep.trials()
        return own and found.variables is self._variables.get(found.initial.id)

    def _at(self, place: int) -> TrialResult:
        trial = self.sweep.trials()[place]
        index = np.unravel_index(place, self.sweep.shape) if self.sweep.shape else ()
        point = self.dataset.isel(dict(zip(self.sweep.dims, map(int, index), strict=True)))
        ended = trial_in_the_end(trial, point)
        return TrialResult(ended, point, self._variables.get(trial.id), trial)


def trial_in_the_end(trial: Trial, point: xr.Dataset) -> Trial:
    """The trial with the hyperparameters of the epoch that its parameters come from.

    Use them for anything computed with those parameters: they differ from the initial ones if they
    changed during training. `point` is the trial's part of a dataset.
    """
    names = [name for name in trial.fields() if select.changed(point, name)]
    values = {name: select.in_the_end(point, name).item() for name in names}
    return with_values(trial, **{n: trial.convert(n, value) for n, value in values.items()})


def apply(
    task: Task, trial: Trial, variables: Variables, x: PyTree,
    compiled: dict[Trial, Predict] | None = None,
) -> Predicted:  # fmt: skip
    """Predictions and class probabilities (None without classes) for N inputs, in batches.

    `compiled` caches compiled functions, for all trials that can share them.
    """
    traced = _traced(trial)
    predict = _compiled_for(task, trial, {} if compiled is None else compiled)
    n = len(jax.tree.leaves(x)[0])
    size = min(task.evaluation_batch_size, 1 << (n - 1).bit_length())
    parts = []
    for start in range(0, n, size):
        # Batches are padded to one of few sizes, so that other numbers of inputs rarely recompile.
        index_B = np.minimum(np.arange(start, start + size), n - 1)
        with precision.asked(trial.matmul_precision):
            made = predict(traced, variables, jax.tree.map(lambda a: a[index_B], x))  # noqa: B023
        parts.append(jax.tree.map(lambda a: np.asarray(a)[: n - start], made))  # noqa: B023
    joined: Predicted = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return joined


def _traced(trial: Trial) -> dict[str, object]:
    """The values that may differ between trials that share a compiled predict function."""
    return {
        name: getattr(trial, name)
        for name, declared in trial.fields().items()
        if declared.kind is Kind.TRACED and declared.off is None
    }


def _compiled_for(task: Task, trial: Trial, compiled: dict[Trial, Predict]) -> Predict:
    """A function of traced values, variables and inputs, compiled once for all such trials."""
    alike = with_values(trial, **{n: trial.fields()[n].default for n in _traced(trial)})

    def predict(traced: Mapping[str, object], variables: Variables, x: PyTree) -> Predicted:
        of_x = functools.partial(task.predict, with_values(alike, **traced), variables)
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((TRIED, *a.shape[1:]), a.dtype), x)
        _check_each(TRIED, jax.eval_shape(of_x, like))  # `x` could match by chance
        prediction = of_x(x)
        _check_each(len(jax.tree.leaves(x)[0]), prediction)
        return prediction, task.probabilities(prediction)

    return compiled.setdefault(alike, jax.jit(precision.rounded(predict, trial.matmul_precision)))


def _check_each(n: int, prediction: PyTree) -> None:
    """Raise UserError if an array of a prediction does not have one row for each of n inputs."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(prediction):
        if (shape := jnp.shape(leaf))[:1] != (n,):
            raise UserError(
                f"the prediction{jax.tree_util.keystr(path)}, tried with {n} inputs, has the shape "
                f"{shape}, expected ({n}, ...): one for each"
            )


def input_dtype(task: Task, trained: np.dtype) -> np.dtype:
    """The dtype that a task trained on inputs of the dtype `trained` takes to predict."""
    floats = dtype_kind(trained) == "f" or not task.takes_fractions()
    return trained if floats else np.dtype(np.float32)


def like_training(task: Task, data: Data, X: PyTree) -> PyTree:
    """Inputs with the structure and shapes of the training inputs, (N, ...), and the task's dtypes.

    Arrays of the same kind of dtype as trained on are taken as they are, anything else goes through
    `inputs`; then both are converted.

    Raises UserError for inputs that do not fit.
    """
    if not hasattr(data.train, "x"):
        return X
    x = data.train.x
    made = {
        path: _leaf_like(task, path, leaf, like, data.names_of(f"x{path[1:]}"))
        for path, leaf, like in _beside(X, x, "X")
    }
    tree = map_leaves(lambda path, _: made[path], x, "X")
    check_rows("X", tree)
    return tree


def _beside(X: PyTree, x: PyTree, path: str) -> Iterator[tuple[str, PyTree, np.ndarray]]:
    """The path and value of each leaf, with the training input at the same place."""
    wanted = children_of(x, path)
    if wanted is None:
        yield path, X, x
        return
    given = children_of(X, path)
    if given is None:
        raise UserError(f"{path}: {type_of(X)}, expected {structure_of(x)}, as trained on")
    below = dict(given)
    refuse_names(path, tuple(sorted(below)), tuple(sorted(name for name, _ in wanted)))
    for name, like in wanted:
        yield from _beside(below[name], like, name)


def _leaf_like(
    task: Task, where: str, value: PyTree, x: np.ndarray, features: tuple[str, ...] | None
) -> np.ndarray:
    if isinstance(value, np.ndarray | jax.Array) and dtype_kind(value.dtype) == dtype_kind(x.dtype):
        made = checked_leaf(where, value, rows=True)  # as `Data` checks what it is given by hand
    else:
        made = inputs(where, value, features, flat=x.ndim == 1)
    if made.shape[1:] != x.shape[1:]:
        raise UserError(
            f"{where}: the shape is {made.shape}, expected {shape_like(x.shape)}, as trained on"
        )
    return _cast(where, made, input_dtype(task, x.dtype))


def _cast(where: str, made: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert to a dtype; refuses floats for whole numbers, and values that it cannot hold."""
    if made.dtype == dtype:
        return made
    kind = dtype_kind(dtype)
    if kind in "iu" and dtype_kind(made.dtype) == "f":
        raise UserError(
            f"{where}: floats or bools, expected whole numbers ({dtype}), as trained on"
        )
    with np.errstate(over="ignore"):
        cast = made.astype(dtype)
    lost = ~np.isfinite(cast) if kind == "f" else cast != made
    refuse_where(where, lost, made, f"a number that {dtype} holds, as trained on")
    return cast
