"""Arguments of the functions that users call."""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar, cast

from jaxexp.base.errors import UserError
from jaxexp.base.words import did_you_mean
from jaxexp.spec.trial import MLPTrial

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def refuses_unknown_arguments(function: FunctionT) -> FunctionT:
    """Refuse arguments of unknown names with a hint, instead of Python's TypeError."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: object, **named: object) -> object:
        for name in named:
            if name in known:
                continue
            hint = did_you_mean(name, known)
            if not hint and name in MLPTrial.fields():
                hint = f"it is a hyperparameter, as in jaxexp.Sweep(jaxexp.Trial({name}=…)) "
            raise UserError(
                f"jaxexp.{function.__name__}: unknown argument {name!r}: {hint}"
                f"(there are: {', '.join(known)})"
            )
        return function(*args, **named)

    return cast(FunctionT, checked)
