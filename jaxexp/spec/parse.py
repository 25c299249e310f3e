"""Distributions from text, as given on the command line."""

import re
from collections.abc import Callable, Sequence

from jaxexp.base.errors import UserError
from jaxexp.spec.distributions import Distribution, choice, integers, loguniform, uniform
from jaxexp.spec.values import Written, to_float


def parse(written: str) -> Distribution:
    """A distribution from text, as given on the command line.

    `uniform(0,0.9)`, `loguniform(1e-4,1)`, `integers(8,128)`, `integers(8,128,log)`,
    `integers(8,128,step=8)`, `choice(relu,tanh)`, or values `0.1,0.01`. Adding ` when
    optimizer=sgd` or ` when optimizer=adam|adamw` to any of them makes it conditional.

    Raises:
        UserError: for any other text, saying what was expected.

    >>> print(parse("loguniform(1e-4,1)"))
    loguniform(0.0001, 1)
    >>> print(parse("integers(8, 128, log) when optimizer=sgd"))
    integers(8, 128, log=True) when optimizer=sgd
    """
    if not isinstance(written, str):
        raise UserError(f"{written!r}: expected text, such as 'loguniform(1e-4,1)'")
    body, when, condition = written.partition(" when ")
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", body)
    if match is None:
        made: Distribution = choice(_parts(written, body))
    else:
        name, inside = match.groups()
        if name not in _PARSERS:
            raise UserError(f"{written!r}: {name} is unknown; expected {_EXPECTED}")
        made = _PARSERS[name](written, _parts(written, inside))
    return made.when(**_conditions(written, condition)) if when else made


_EXPECTED = (
    "uniform(LOW,HIGH), loguniform(LOW,HIGH), integers(LOW,HIGH[,log][,step=N]), choice(A,B,…) or "
    "values A,B,…"
)


def _parts(written: str, inside: str) -> list[str]:
    parts: list[str] = [Written(part.strip()) for part in inside.split(",")]
    if not all(parts):
        raise UserError(f"{written!r}: a value is missing; expected {_EXPECTED}")
    if not all(map(_is_balanced, parts)):
        raise UserError(f"{written!r}: expected {_EXPECTED}")
    return parts


def _is_balanced(part: str) -> bool:
    """Whether all brackets are balanced: as in `a[0]` and `()`, but not in `(1` or `1)(2`."""
    inner = re.sub(r"\([^][()]*\)|\[[^][()]*\]", "", part)
    return _is_balanced(inner) if inner != part else not re.search(r"[][()]", part)


def _numbers(written: str, parts: Sequence[str]) -> tuple[float, float]:
    if len(parts) != 2:
        raise UserError(f"{written!r}: expected two numbers, LOW and HIGH")
    return _number(written, parts[0]), _number(written, parts[1])


def _number(written: str, part: str) -> float:
    try:
        return to_float(part)
    except ValueError:
        raise UserError(f"{written!r}: {part!r}: expected a number") from None


def _parsed_integers(written: str, parts: Sequence[str]) -> Distribution:
    options: dict[str, int] = {}
    for part in parts[2:]:
        step = re.fullmatch(r"step\s*=\s*([0-9]+)", part)
        name, value = ("step", int(step[1])) if step else ("log", 1)
        if (not step and part not in ("log", "log=True", "log=true")) or name in options:
            raise UserError(f"{written!r}: {part!r}: expected log or step=N, each once")
        options[name] = value
    low, high = _numbers(written, parts[:2])
    if not (low.is_integer() and high.is_integer()):
        raise UserError(f"{written!r}: expected whole numbers LOW and HIGH")
    return integers(int(low), int(high), log="log" in options, step=options.get("step", 1))


_PARSERS: dict[str, Callable[[str, Sequence[str]], Distribution]] = {
    "uniform": lambda written, parts: uniform(*_numbers(written, parts)),
    "loguniform": lambda written, parts: loguniform(*_numbers(written, parts)),
    "integers": _parsed_integers,
    "choice": lambda written, parts: choice(parts),
}


def _conditions(written: str, text: str) -> dict[str, object]:
    made: dict[str, object] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([^=]+?)\s*", part)
        if match is None or match[1] in made:
            raise UserError(f"{written!r}: {part!r}: expected NAME=VALUE or NAME=VALUE|VALUE")
        made[match[1]] = [Written(value.strip()) for value in match[2].split("|")]
    return made
