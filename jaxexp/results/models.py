"""The trained models of a run: one file each, which also describes the model.

The files are `models/SWEEP/TRIAL_ID.npz`, in NumPy's own format with a digest at the end. Each
appears whole or not at all, and a damaged one is refused.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxexp.base.errors import UserError
from jaxexp.base.files import read_sealed, write_whole
from jaxexp.base.words import count
from jaxexp.execution.records import TrialRecord
from jaxexp.results import seeds, select
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import text
from jaxexp.training.checks import plain_value
from jaxexp.training.data import Attributes
from jaxexp.training.task import PyTree, Task, Variables

ABOUT = "about"  # the name of the description among the arrays


class Prediction(NamedTuple):
    """One prediction: the example's name, its class or value, and the class's probability.

    >>> Prediction("image.png", "cat", 0.9).label
    'cat'
    """

    example: str
    label: str
    probability: float | None


def check_defined(name: Callable[[int], str], probability_N: np.ndarray) -> None:
    """Refuse examples without a most probable class: `argmax` would turn NaN into some class.

    `name` returns what an error message calls the example in a row.
    """
    if len(lost := np.flatnonzero(np.isnan(probability_N))):
        raise UserError(
            f"{name(int(lost[0]))}: the probabilities of its classes are NaN ({len(lost):,} of "
            f"{count(len(probability_N), 'example')}), expected inputs like those trained on, and "
            "a model that has not diverged"
        )


class About(TypedDict):
    """What a saved model says about itself."""

    sweep: str
    trial: dict[str, str]
    initial: dict[str, str]
    metrics: dict[str, dict[str, float]]
    diverged: bool
    attrs: Attributes
    task: dict[str, object]
    dtypes: dict[str, str]


@dataclass(frozen=True)
class Model:
    """A saved model.

    `about` holds "sweep"; "trial", its hyperparameters (for a member of a population, those of the
    epoch that its parameters come from); "initial", the hyperparameters that it began with;
    "metrics" after the last epoch, by name and split; "diverged"; "attrs", the attributes of its
    training data; "task", what its task took from that data (the task's `saved_fields`); and
    "dtypes", those of arrays whose dtype is not one of NumPy's own, such as bfloat16.

    >>> model = Model(Path("model.npz"), {"sweep": "rates"}, {"params/w": np.zeros(3)})
    >>> model.variables().params
    {'w': array([0., 0., 0.])}
    """

    path: Path
    about: About
    arrays: Mapping[str, np.ndarray]

    def variables(self, like: Variables | None = None) -> Variables:
        """Parameters and state, as nested dicts (or one array) or in the structure of `like`.

        `like` may hold only shapes. Raises UserError if the arrays do not fit it.
        """
        if like is None:
            return Variables(_nested(self.arrays, "params"), _nested(self.arrays, "state"))
        named = _named(like)
        shapes = {name: leaf.shape for name, leaf in named.items()}
        if shapes != {name: array.shape for name, array in self.arrays.items()}:
            raise UserError(f"{self.path}: the model is not one of this task")
        leaves = [self.arrays[name] for name in named]
        made: Variables = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return made

    def bound(self, task: Task) -> Task:
        """The task as it was bound to the model's training data, not to the data at hand now."""
        saved = self.about["task"]
        own = {name: _as_tuples(saved[name]) for name in task.saved_fields if name in saved}
        return dataclasses.replace(task, **own) if own else task  # type: ignore[type-var]


def _as_tuples(value: object) -> object:
    """A field of a task, with tuples again where JSON has lists."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def save(folder: Path, sweep: str, record: TrialRecord, attrs: Attributes, task: Task) -> None:
    """Save one trial's parameters and state, and a description of them, below `folder`.

    Raises UserError if they cannot be written.
    """
    assert record.variables is not None
    arrays = {name: np.asarray(leaf) for name, leaf in _named(record.variables).items()}
    about: About = {
        "sweep": sweep,
        "trial": _texts(record.final),
        "initial": _texts(record.trial),
        "metrics": {
            name: {split: float(own[name][-1]) for split, own in record.metrics.items()}
            for name in record.running
        },
        "diverged": record.diverged_epoch > 0,
        "attrs": json.loads(json.dumps(dict(attrs), default=str)),
        "task": {name: getattr(task, name) for name in task.saved_fields},
        # NumPy writes these as bytes without the name of their dtype.
        "dtypes": {name: a.dtype.name for name, a in arrays.items() if a.dtype.kind == "V"},
    }
    path = folder / sweep / f"{record.trial.id}.npz"
    content = io.BytesIO()
    arrays[ABOUT] = np.array(json.dumps(about, default=plain_value))
    # Without allow_pickle=False, which NumPy before 2.2 would save as one more array.
    np.savez(content, **arrays)  # type: ignore[arg-type]  # the stubs take an array for it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getbuffer(), seal=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: the model could not be written ({reason})") from error


def load(path: Path) -> Model:
    """Read a model into memory; raises UserError if it cannot be read or is damaged."""
    try:
        with np.load(io.BytesIO(read_sealed(path)), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        about: About = json.loads(str(arrays.pop(ABOUT)))
        if not isinstance(about, dict) or not isinstance(about["attrs"], dict):
            raise ValueError("it says nothing about itself")
        # Files of earlier versions lack it: they had no populations.
        about.setdefault("initial", about["trial"])
        about.setdefault("task", {})  # missing there too
        for name, dtype in about.setdefault("dtypes", {}).items():
            arrays[name] = arrays[name].view(jnp.dtype(dtype))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a model that jaxexp has saved, or damaged ({error})"
        ) from error
    return Model(path, about, arrays)


def best(
    folder: Path, results: Sequence[tuple[str, xr.Dataset]], metric: str | None = None
) -> tuple[Model, str]:
    """The model of the setting that reports call the best, and why it is.

    `metric` defaults to the accuracy if every sweep with models has one, else to the loss; it is
    compared on the validation split if there is one. Trials that differ only in seed or fold are
    compared by their mean, and the model is that of the trial with the median loss. If several
    sweeps tie, the first one counts. Raises UserError if there is no model, or if all diverged.
    """
    with_models = [(n, ds) for n, ds in results if any((folder / n).glob("*.npz"))]
    if not with_models:
        raise UserError(
            f"{folder}: no models; the run has kept none, or they were deleted; train it anew"
        )
    metrics = [select.metrics(ds) for _, ds in with_models]
    metric = metric or ("accuracy" if all("accuracy" in own for own in metrics) else "loss")
    found = []
    for name, ds in with_models:
        setting, trial = seeds.best(ds, metric)
        if select.status(setting) == "finished":
            split = select.default_split(ds)
            value, loss = (
                float(select.final(setting, own).sel(split=split)) for own in (metric, "loss")
            )
            missing = int(select.undefined(setting, metric).sel(split=split))
            found.append((not np.isfinite(value), missing, value, loss, name, setting, trial))
    if not found:
        raise UserError(f"{folder}: every model in it diverged while it was trained")
    sign = -1 if select.direction(with_models[0][1], metric) == "higher" else 1
    *_, name, setting, trial = min(found, key=lambda f: (f[0], f[1], sign * f[2], f[3]))
    model = load(folder / name / f"{trial['trial_id'].item()}.npz")
    if model.about["sweep"] != name:
        raise UserError(f"{model.path}: the model of sweep {model.about['sweep']}, not of {name}")
    split = select.default_split(setting)
    why = f"{split} {metric} {select.outcome(setting, metric, split, digits=4)}"
    if "seeds" in setting and int(setting["seeds"]) > 1:
        over = select.count_replicates(setting, int(setting["seeds"]))
        if select.missing_in_words(setting, metric, split):  # `outcome` says over how many
            why += f"; of {over} this one has the median loss"
        else:
            why += (
                f" (mean ± standard deviation over {over}, of which this one has the median loss)"
            )
    return model, why


def _texts(trial: Trial) -> dict[str, str]:
    return {name: text(value) for name, value in trial.values().items()}


def _named(variables: Variables) -> dict[str, jax.Array]:
    """Leaves by path, such as "params/layer/kernel"."""
    paths, _ = jax.tree_util.tree_flatten_with_path(variables)
    named: dict[str, jax.Array] = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise UserError(
                f"parameters: two arrays are {name!r}, expected paths that differ where / stands "
                "between their keys"
            )
        named[name] = leaf
    return named


def _nested(arrays: Mapping[str, np.ndarray], root: str) -> PyTree:
    made: dict[str, PyTree] = {}
    for name, array in arrays.items():
        first, *keys = name.split("/")
        if first != root:
            continue
        if not keys:
            return array
        inner = made
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = array
    return made
