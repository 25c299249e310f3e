"""Optuna by ask and tell: a batch of suggestions trains as one plan."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from jaxexp.api import PlannedRun, plan, run
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int
from jaxexp.execution import driver
from jaxexp.execution.control import Stopping
from jaxexp.execution.listeners import Progress
from jaxexp.nn.classification import MLPClassification
from jaxexp.results.results import Results
from jaxexp.search.batches import SEEDS_TWICE, Search, Train, Training
from jaxexp.search.reports import no_experimental_warnings
from jaxexp.search.resuming import Folder
from jaxexp.search.suggestions import Suggest, Suggestions, import_optuna, suggestions
from jaxexp.spec.spaces import Space
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Value, check_texts
from jaxexp.training.data import Data
from jaxexp.training.task import Task, directions

if TYPE_CHECKING:
    import optuna as op
    from optuna.distributions import BaseDistribution


def optuna(
    study: "op.Study",
    space: "Space | tuple[Trial, Mapping[str, BaseDistribution]] | Suggest",
    task: Task | None = None,
    data: Data | None = None,
    *,
    trials: int,
    batch: int = 64,
    metric: str | Sequence[str] = "loss",
    split: str | None = None,
    seeds: int = 1,
    prune: bool | None = None,
    report_every: int = 1,
    checkpoint_dir: str | Path | None = None,
    progress: bool | Progress | None = None,
    keep_params: bool = True,
    devices: int | Sequence[jax.Device] | None = None,
    programs: str = "auto",
    memory: float | None = None,
    cluster: str | None = None,
    nodes: int | None = None,
) -> Results:
    """Train what an Optuna study suggests, a batch of suggestions at once, and tell it.

    The study stays the user's: any sampler, any pruner, any storage. Each of its trials ends in one
    of Optuna's states: COMPLETE with the value after its last epoch, PRUNED, or FAIL if the loss
    diverged. Every epoch's value is an intermediate value, with the epoch, from 1, as its step. A
    suggestion that is repeated is trained once, and its result is told to each of its trials; one
    that was pruned is trained again.

    Args:
        study: what `optuna.create_study` or `optuna.load_study` returns.
        space: a `jaxexp.search.Space`; or a base trial and a dict of Optuna's distributions by the
            names of hyperparameters; or a function of an `optuna.Trial` that returns a trial.
        task: as for `jaxexp.plan`, and so are `data`, `devices`, `programs`, `memory`, `cluster`
            and `nodes`.
        data: see there.
        trials: how many more to train, like Optuna's `n_trials`, starting with those that the same
            call has left running when it ended or its process died. With `checkpoint_dir`, the
            total number.
        batch: how many are suggested, and trained, at once.
        metric: "loss" or a metric of the task, whose direction must be the study's; several for a
            study with several objectives.
        split: where the metric is measured; by default the validation split if there is one,
            otherwise the training split.
        seeds: the number of consecutive seeds with which each suggestion is trained, starting at
            its trial's seed. The study is told the mean.
        prune: whether the study's pruner is asked; by default if there is one objective.
        report_every: the number of epochs between reports to the study, each of which asks its
            pruner.
        checkpoint_dir: a folder for checkpoints and the sampler's state. The same call resumes an
            interrupted search from it, with the suggestions that it would have had.
        progress: as for `jaxexp.run`, and so is `keep_params`.
        keep_params: see there.
        devices: see there.
        programs: see there.
        memory: see there.
        cluster: see there. The study stays in this process: if its pruner is asked, all programs of
            a batch wait for it every `report_every` epochs.
        nodes: see there.

    Returns:
        Results of a sweep over all points that were trained: they lie along the dimension "sample",
        as those of `jaxexp.search.random`, and the seeds, if there are several, along "seed".

    Raises:
        UserError: an invalid argument, a study with another direction or other parameters, an
            unknown metric or split, a folder of another search, or values that do not fit together;
            all before training starts. Invalid suggestions of a function, and values of three or
            more parameters that do not fit together, are found when they are suggested. Then, as
            after an error in training, the trials of the batch have been told FAIL, and with
            `checkpoint_dir` the same call continues with others. After any other error, it
            continues with the same ones.

    >>> import optuna as op
    >>> import jaxexp as jx
    >>> data = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 8, [0, 0, 1, 1] * 8)
    >>> op.logging.set_verbosity(op.logging.WARNING)
    >>> study = op.create_study(direction="maximize", sampler=op.samplers.RandomSampler(seed=0))
    >>> rates = {"learning_rate": op.distributions.FloatDistribution(1e-4, 1, log=True)}
    >>> base = jx.MLPTrial(epochs=3, depth=1, batch_size=8)
    >>> options = {"trials": 6, "batch": 3, "metric": "accuracy", "progress": False}
    >>> results = optuna(study, (base, rates), data=data, **options)
    >>> len(study.trials), results["accuracy"].sizes["sample"]
    (6, 6)
    """
    import_optuna()
    trials = checked_int("trials", trials)
    if not isinstance(checkpoint_dir, str | Path | None):
        raise UserError(f"checkpoint_dir={checkpoint_dir!r}: expected the path of a folder")
    if "://" in str(checkpoint_dir):
        raise UserError(
            f"checkpoint_dir={checkpoint_dir!r}: expected a folder, which one process at a time "
            "can lock: the sampler's state is kept there"
        )

    def train(planned: PlannedRun, kept: str | None, stopping: Stopping) -> Results:
        made: Results = run(
            planned, progress=progress, keep_params=keep_params, stopping=stopping,
            checkpoint_dir=None if kept is None or checkpoint_dir is None
            else Path(checkpoint_dir) / kept,
        )  # fmt: skip
        return made

    training: Training = {
        "devices": devices, "programs": programs, "memory": memory, "cluster": cluster,
        "nodes": nodes,
    }  # fmt: skip
    search = prepared(
        study, space, task, data, train, training, batch=batch, metric=metric, split=split,
        seeds=seeds, prune=prune, report_every=report_every,
    )  # fmt: skip
    if checkpoint_dir is None:
        return search.run(trials)
    with Folder.held(Path(checkpoint_dir), search.identity) as search.folder:
        return search.run(trials)


def prepared(
    study: "op.Study",
    space: "Space | tuple[Trial, Mapping[str, BaseDistribution]] | Suggest",
    task: Task | None,
    data: Data | None,
    train: Train,
    training: Training,
    *,
    batch: int,
    metric: str | Sequence[str],
    split: str | None = None,
    seeds: int = 1,
    prune: bool | None = None,
    report_every: int = 1,
) -> Search:
    """A search that has asked for nothing yet, and trains its batches with `train`.

    See `optuna` for the other arguments; raises UserError for what cannot be.
    """
    import_optuna()
    batch, seeds = checked_int("batch", batch), checked_int("seeds", seeds)
    report_every = checked_int("report_every", report_every)
    if not isinstance(prune, bool | None):
        raise UserError(f"prune={prune!r}: expected True, False or None")
    _check_study(study)
    made = suggestions(space)
    _check_seeds(made, seeds)
    made.check(study)
    bound = _bound(made, task, data, training)
    assert data is not None  # or `_bound` has refused it
    metrics = _metrics(study, bound, metric)
    split = _split(data, split)
    if study.metric_names is None:
        with no_experimental_warnings():
            study.set_metric_names([f"{split} {name}" for name in metrics])
    return Search(
        study, made, bound, data, batch, metrics, split, seeds, _prunes(study, prune),
        report_every, training, train,
    )  # fmt: skip


def _check_study(study: "op.Study") -> None:
    import optuna as op

    if not isinstance(study, op.Study):
        raise UserError(f"study={study!r}: expected an optuna.Study, as optuna.create_study makes")
    try:
        study.get_trials(deepcopy=False)
    except Exception as error:  # those of the database that it is in
        raise UserError(f"study={study.study_name!r}: its storage fails: {error}") from error


def _check_seeds(made: Suggestions, seeds: int) -> None:
    if seeds > 1 and "seed" in made.names:
        raise UserError(SEEDS_TWICE.format(seeds))


def _bound(made: Suggestions, task: Task | None, data: Data | None, training: Training) -> Task:
    """The task for the data; raises UserError for a space that cannot be trained on them."""
    examples = made.examples()
    if not examples:
        if not isinstance(data, Data) or not isinstance(task, Task | None):
            plan(Sweep(Trial()), task, data)  # which says so
        assert data is not None
        return (MLPClassification() if task is None else task).bind(data)
    planned = plan(Sweep(examples[0]), task, data, **training)
    written: dict[tuple[str, str], Value] = {}
    for trial in examples:
        trial.check()
        check_texts(written, trial.values())
    made.check_pairs()
    driver.check(examples, planned.task, planned.data)
    return planned.task


def _metrics(study: "op.Study", task: Task, metric: str | Sequence[str]) -> tuple[str, ...]:
    """The metric of each objective; raises UserError where they are not those of the study."""
    metrics = (metric,) if isinstance(metric, str) else tuple(metric)
    there = directions(task)
    for name in metrics:
        if name not in there:
            raise UserError(f"metric={name!r}: expected one of {', '.join(there)}")
    if len(metrics) != len(study.directions):
        raise UserError(
            f"metric={metric!r}: expected {len(study.directions)}, as many as the study "
            f"{study.study_name!r} has directions"
        )
    for name, direction in zip(metrics, study.directions, strict=True):
        expected = "minimize" if there[name] == "lower" else "maximize"
        if direction.name.lower() != expected:
            raise UserError(
                f"study={study.study_name!r}: its direction is {direction.name.lower()}, and of "
                f"{name} {there[name]} is better: expected {expected}"
            )
    return metrics


def _split(data: Data, split: str | None) -> str:
    if split is None:
        return "validation" if "validation" in data.counts else "train"
    if split not in data.counts:
        raise UserError(f"split={split!r}: expected one of {', '.join(data.counts)}")
    return split


def _prunes(study: "op.Study", prune: bool | None) -> bool:
    """Whether the pruner is asked; with several objectives, Optuna has no pruning."""
    from optuna.pruners import MedianPruner, NopPruner

    several = len(study.directions) > 1
    # A median pruner is what a study has whose user has said nothing.
    own = not isinstance(study.pruner, NopPruner) and type(study.pruner) is not MedianPruner
    if several and (prune or (own and prune is None)):
        what = "prune=True" if prune else f"study: its pruner is {type(study.pruner).__name__}"
        raise UserError(
            f"{what}: Optuna prunes no study of {len(study.directions)} objectives; expected "
            "prune=False"
        )
    return not several if prune is None else prune
