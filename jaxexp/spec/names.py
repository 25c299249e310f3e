"""The names that results, means and tables use themselves, and that users may not take."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from jaxexp.base.errors import UserError

if TYPE_CHECKING:
    from jaxexp.spec.sweep import Sweep

REPLICATES = ("seed", "fold")  # they repeat a setting, which is judged by its mean over them
# Dimensions and variables of results, means over seeds and exported rows: which of these by name.
RESULTS = {
    **dict.fromkeys(("epoch", "split", "step", "layer", "trial_id", "seconds"), "results"),
    **dict.fromkeys(("loss", "running_loss", "step_loss", "gradient_norm"), "results"),
    **dict.fromkeys(("steps_per_epoch", "epochs_trained", "best_epoch", "parent"), "results"),
    **dict.fromkeys(("diverged_epoch", "diverged_step"), "results"),
    **dict.fromkeys(("step_loss_std", "gradient_norm_std"), "means over seeds"),
    **dict.fromkeys(("seeds", "diverged_seeds"), "means over seeds"),
    "sweep": "exported rows",
}
# In tables with a column for each hyperparameter, but none named after a metric alone.
COLUMNS = dict.fromkeys(
    ("rank", "trial", "value", "status", "place", "diverged",  # `select.rank` and `table`
     "baseline", "run", "train", "validation", "test", "spread", "undefined"),  # `compare`
    "tables of trials",
)  # fmt: skip


def refuse_taken(where: str, name: str, taken: Mapping[str, str]) -> None:
    """Raise UserError if a name is taken; `taken` says, by name, where."""
    if name in taken:
        raise UserError(
            f"{where}: this name stands for something else in {taken[name]}; choose another"
        )


def check_names(
    sweeps: Iterable["Sweep"], metrics: Collection[str], recorded: Collection[str],
    splits: Collection[str],
) -> None:  # fmt: skip
    """Raise UserError for a hyperparameter, a metric or a prediction whose name is taken.

    `recorded` names the predictions and their coordinates, for sweeps that record them. `COLUMNS`
    were already refused when the class of the trials was read.
    """
    measured, columns = RESULTS | _of_metrics(metrics), _columns(metrics, splits)
    running = {name: "results" for name in metrics if name.startswith("running_")}
    for sweep in sweeps:
        kind, fields = type(sweep.base).__name__, sweep.base.fields()
        predictions = recorded if "predictions" in sweep.record else ()
        given = dict.fromkeys((n + s for n in predictions for s in ("", "_std")), "predictions")
        taken = measured | {f"own_{name}": "results of populations" for name in fields}
        for name in fields:
            refuse_taken(f"{kind}.{name}", name, taken | columns | given)
        for name in predictions:
            refuse_taken(f"predictions: {name!r}", name, taken)
        taken |= dict.fromkeys(sweep.dims, "dimensions of results")
        taken |= dict.fromkeys(fields, kind) | given | running
        taken |= {f"initial_{name}": "exported rows of populations" for name in fields}
        for name in metrics:
            refuse_taken(f"metrics[{name!r}]", name, taken)


def _of_metrics(metrics: Iterable[str]) -> dict[str, str]:
    """The names that results and means over seeds derive from those of metrics."""
    names = (
        f"{of}{metric}{beside}"
        for metric in ("loss", *metrics)
        for of in ("", "running_", "final_")
        for beside in ("", "_std", "_undefined")
        if of or beside
    )
    return dict.fromkeys(names, "results and their means over seeds")


def _columns(metrics: Iterable[str], splits: Iterable[str]) -> dict[str, str]:
    """The columns for a metric's final values in exported rows, and for what tables say of it."""
    names = (
        f"{of}{split}_{metric}"
        for metric in ("loss", *metrics)
        for split in ("training", *splits)
        for of in ("", "seeds_without_", "folds_without_")
    )
    return dict.fromkeys(names, "tables of trials")
