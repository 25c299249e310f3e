"""Which trials are of one kind: they agree in what a program has to know to be compiled."""

import functools
from collections.abc import Callable, Sequence

from jaxexp.spec.hyperparameters import Kind
from jaxexp.spec.trial import Trial, with_values


def without_epochs(trials: Sequence[Trial]) -> Callable[[Trial], Trial]:
    """A function that makes trials equal if, among these, they differ only in their epochs."""
    if len({trial.epochs for trial in trials}) <= 1:
        return lambda trial: trial
    return functools.cache(lambda trial: with_values(trial, epochs=1))


@functools.cache
def _read_by_xla(kind: type[Trial]) -> tuple[tuple[str, ...], tuple[tuple[str, object], ...]]:
    """Names of what XLA would have to know; names of what can be off, with the value for off."""
    known, can_be_off = list[str](), list[tuple[str, object]]()
    for name, declared in kind.fields().items():
        if declared.kind is Kind.TRACED:
            if declared.off is not None:
                can_be_off.append((name, declared.off))
        elif declared.kind is not Kind.LENGTH:
            known.append(name)
    return tuple(known), tuple(can_be_off)


def static_values(trial: Trial) -> tuple[tuple[str, object], ...]:
    """The values that XLA would have to know: trials that agree here share a program unpadded.

    For a traced value that can be off, whether it is on.
    """
    known, can_be_off = _read_by_xla(type(trial))  # type: ignore[arg-type]  # classes have hashes
    return (
        *[(name, getattr(trial, name)) for name in known],
        *[(name, getattr(trial, name) != off) for name, off in can_be_off],
    )


def unpadded(trial: Trial) -> tuple[object, ...]:
    """A key that is equal for trials that may share a program if their sizes are padded."""
    own = (
        getattr(trial, name)
        for name, declared in trial.fields().items()
        if declared.kind in (Kind.STATIC, Kind.CHOICE)
    )
    return (type(trial), *own)


def static_key(trial: Trial) -> tuple[object, ...]:
    """A key that is equal for trials whose steps cost the same and read the same values."""
    return (type(trial), *static_values(trial))
