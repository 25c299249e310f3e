"""What is refused of sweeps, tasks and options, before anything is planned."""

import dataclasses
import functools
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxexp.api.inspector import Inspector
from jaxexp.base.errors import UserError
from jaxexp.base.numbers import checked_int
from jaxexp.base.words import type_of
from jaxexp.nn.classification import MLPClassification
from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial, Trial
from jaxexp.spec.values import text
from jaxexp.training import evaluation
from jaxexp.training.checks import is_laid_out, plain_value
from jaxexp.training.masks import COMPARES, FILLING, SIZED
from jaxexp.training.task import Task
from jaxexp.training.updates import padded_names

ALWAYS_READ = {"epochs", "batch_size", "seed", "matmul_precision"}  # by the engine


def check_read(sweep: Sweep, inspector: Inspector) -> None:
    """Raise UserError for a hyperparameter that was set, or varies, and that nothing reads."""
    trials = sweep.trials()
    read = ALWAYS_READ.union(*(inspector(trial).reads for trial in trials))
    read |= {"fold"} if inspector.data.folds is not None else set()
    for name, declared in sweep.base.fields().items():
        values = {getattr(trial, name) for trial in trials}
        if name not in read and values != {declared.default}:
            why = (
                f"{type(inspector.task).__name__} never reads it: the numbers would be those of "
                "trials without it"
            )
            if name == "fold":
                why = "the data have no folds: expected those of jx.folds(data, N)"
            raise UserError(f"{name} is set to {' or '.join(sorted(map(str, values)))}, but {why}")


def check_records(sweep: Sweep, task: Task, inspector: Inspector) -> None:
    """Raise UserError for what is to be recorded, and that nothing can be recorded of."""
    if "predictions" in sweep.record and type(task).predictions is Task.predictions:
        raise UserError(
            f"record='predictions' of sweep {sweep.name!r}: {type(task).__name__} defines none"
        )
    if "predictions" in sweep.record:
        _check_predictions(sweep, task, inspector)
    if "gradient_norms" in sweep.record and not all(
        inspector(trial).cost.layers for trial in sweep.trials()
    ):
        raise UserError(
            f"record='gradient_norms' of sweep {sweep.name!r}: no array of parameters has two axes "
            "or more, and so there are no layers"
        )


def _check_predictions(sweep: Sweep, task: Task, inspector: Inspector) -> None:
    said = f"record='predictions' of sweep {sweep.name!r}: {type(task).__name__}"
    if not task.prediction_dims:
        raise UserError(f"{said}.prediction_dims is empty, expected the dimensions of each")
    found, coords = inspector.predicted(sweep.trials()[0]), inspector.data.coords
    for name, dims in task.prediction_dims.items():
        if missing := [dim for dim in dims if dim not in coords]:
            raise UserError(
                f"{said}.prediction_dims[{name!r}] has {missing[0]!r}, expected dimensions of "
                f"Data.coords ({', '.join(coords) or 'there are none'})"
            )
        shape = tuple(len(coords[dim][1]) for dim in dims)
        if found and (name not in found or not is_laid_out(found[name], shape)):
            has = f"an array of the shape {found[name]}" if name in found else "none"
            raise UserError(
                f"{said}.predictions has {has} for {name!r}, expected the shape {shape}, "
                f"{' × '.join(dims)}, or all of them flat"
            )


def check_filling(inspector: Inspector, trials: Sequence[Trial], programs: str) -> None:
    """Raise UserError for a batch to fill up, where that would change what is computed of it."""
    task, data = inspector.task, inspector.data
    sizes = sorted({trial.batch_size for trial in trials})
    size = task.evaluation_batch_size
    for trial in trials:
        mixes, examples = inspector.mixes(trial), data.counts_of(trial.fold)["train"]
        why = COMPARES.format(mixes.metric) if mixes.metric else FILLING
        of = f" of fold {trial.fold}" if data.folds is not None else ""
        counts = evaluation.evaluated_counts(data, trial.fold)
        evaluated = [(n, split) for split, n in counts.items() if n % size]
        if mixes.filling and examples % trial.batch_size:
            raise UserError(
                f"batch_size={trial.batch_size}: the last of the batches of {examples} examples"
                f"{of} would be partial, and {why}, or choose a batch size that divides {examples}"
            )
        if mixes.filling and programs == "one" and len(sizes) > 1:
            raise UserError(
                f"programs='one': a batch of {sizes[0]} would be padded to {sizes[-1]}, and "
                f"{why}, or run with programs='exact'"
            )
        if mixes.sized and programs == "one" and len(sizes) > 1:
            raise UserError(
                f"programs='one': a batch of {sizes[0]} would be padded to {sizes[-1]}, and "
                f"{SIZED}, or run with programs='exact'"
            )
        if mixes.evaluated_filling and evaluated:
            n, split = evaluated[-1]
            raise UserError(
                f"evaluation_batch_size={size}: the last of the batches of {n} {split} examples "
                f"would be partial, and {why}, or choose an evaluation_batch_size that divides "
                f"{' and '.join(str(n) for n in dict.fromkeys(counts.values()))}"
            )


def check_updates(inspector: Inspector, trials: Sequence[Trial]) -> None:
    """Raise UserError for models to pad, where they might not be updated as alone."""
    for kind in dict.fromkeys(map(type, trials)):
        own = [trial for trial in trials if type(trial) is kind]
        if why := inspector.why_not_padded(own):
            raise UserError(
                f"programs='one': models that differ in {' and '.join(padded_names(own))} would "
                f"be padded, and {why}: run with programs='auto' or 'exact'"
            )


def check_task(task: Task) -> None:
    """Raise UserError for attributes and methods of a task that are not what they should be.

    Methods are read off its type, too, which an attribute of one of their names would hide.
    """
    methods = {name: own for name, own in vars(Task).items() if inspect.isfunction(own)}
    fields: set[str] = set()
    if dataclasses.is_dataclass(task):
        fields = {field.name for field in dataclasses.fields(task)}
    cached = {n for n in methods if isinstance(getattr(type(task), n), functools.cached_property)}
    for name in ({*vars(task)} - cached).union(fields) & methods.keys():
        raise UserError(
            f"{type(task).__name__}.{name} is a field or an attribute, and hides the method "
            f"jaxexp.Task.{name}: expected another name for it, and a method `{name}` that calls it"
        )
    for name, declared in methods.items():
        if getattr(type(task), name) is not declared:
            _check_method(f"{type(task).__name__}.{name}", getattr(task, name), declared)
    checked_int("evaluation_batch_size", task.evaluation_batch_size, least=1)
    for name in ("metrics", "prediction_dims"):
        value = getattr(task, name)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{name}={value!r}: expected a dict whose keys are names")


def _check_method(where: str, own: Callable[..., object], declared: Callable[..., object]) -> None:
    """Raise UserError for one that does not take what jaxexp gives the declared one."""
    _, *taken = inspect.signature(declared).parameters.values()
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in taken]
    try:  # a decorator's own, which is what is called
        signature = inspect.signature(own, follow_wrapped=False)
    except ValueError:  # as of some that are written in C
        return
    by_name = [p.name for p in bare if p.kind is p.KEYWORD_ONLY]
    try:
        signature.bind(*bare[: len(bare) - len(by_name)], **dict.fromkeys(by_name))
    except TypeError as error:
        expected = inspect.Signature(bare)
        raise UserError(f"{where}: {error}, expected a method that takes {expected}") from None


def check_saved(task: Task) -> None:
    """Raise UserError for what a bound task cannot save with its models, and get back."""
    fields = getattr(task, "__dataclass_fields__", {})
    given = {name for name, own in fields.items() if own.init}
    for name in task.saved_fields:
        said = f"{type(task).__name__}.saved_fields: {name!r}"
        if name not in given:
            raise UserError(f"{said}, expected a field of a dataclass that __init__ takes")
        for value in _values(getattr(task, name)):
            if value is not None and type(plain_value(value)) not in (bool, int, float, str):
                raise UserError(
                    f"{said} holds {reprlib.repr(value)}, {type_of(value)}, expected a number, "
                    "text, None or a tuple of these"
                )


def _values(value: object) -> Iterator[object]:
    """Those in a tuple of tuples."""
    if isinstance(value, tuple):
        for each in value:
            yield from _values(each)
    else:
        yield value


def check_pads(task: Task, trials: Sequence[Trial]) -> None:
    """Raise UserError for hyperparameters to pad, where the task does not pad its model."""
    if type(task).crop is not Task.crop:
        return
    for name, declared in {n: d for t in trials for n, d in t.fields().items()}.items():
        padded = declared.kind in (Kind.SIZE, Kind.CHOICE) and name not in Trial.fields()
        values = {getattr(trial, name) for trial in trials if name in trial.fields()}
        if padded and len(values) > 1:
            raise UserError(
                f"{name} is declared with jaxexp.{declared.kind.value}, so that trials with "
                f"{' and '.join(sorted(map(text, values)))} may share a program, but "
                f"{type(task).__name__} pads no model (it defines no `crop`): declare it with "
                "jaxexp.static, or run with programs='exact'"
            )


def checked_task(task: Task | None, trials: Sequence[Trial]) -> Task:
    """The task, or the usual one of MLPs; raises UserError for what is none."""
    if task is None and all(isinstance(trial, MLPTrial) for trial in trials):
        return MLPClassification()
    if not isinstance(task, Task):
        names = ", ".join(sorted({type(trial).__name__ for trial in trials}))
        raise UserError(
            f"task={short(task)}: expected a jaxexp.Task that trains {names}; "
            "jaxexp.supervised(module=…, loss=…) makes the usual one"
        )
    return task


def short(value: object) -> str:
    """What a message says of a value that may be large: its type."""
    return "None" if value is None else type_of(value)
