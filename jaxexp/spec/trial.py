"""A trial: one training run, described by its hyperparameters alone.

Each hyperparameter has a `Kind`, which says how trials that differ in it can share a program. A
field of a subclass without a declaration is static: trials that differ in it never share one.

Nothing here imports JAX: describing a sweep starts at once.
"""

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from jaxexp.base.errors import UserError
from jaxexp.base.files import digest
from jaxexp.base.words import did_you_mean
from jaxexp.spec.hyperparameters import (
    Hyperparameter,
    Kind,
    check_range,
    choice,
    declare,
    size,
    static,
    traced,
)
from jaxexp.spec.names import COLUMNS, RESULTS, refuse_taken
from jaxexp.spec.values import Hint, Value, check_hint, convert, expected, name_of, plain, text

TrialT = TypeVar("TrialT", bound="Trial")
PRECISIONS = ("float32", "tf32", "bfloat16")  # of products: see jaxexp.training.precision


class _SignatureOfInit:
    """Makes `inspect`, and so editors, show the signature of `__init__`, not of `__new__`."""

    def __get__(self, instance: object, cls: type) -> inspect.Signature:
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # of this class alone
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def _check_arguments(cls: "type[Trial]", names: Iterable[str]) -> None:
    """Raise UserError for names that are not arguments of the class's constructor."""
    known = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in names:
        if name not in known:
            cls.check_name(name)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every training run has: a length, a batch size, an optimizer, a seed.

    Subclass it, as a frozen dataclass, to add the hyperparameters of a model:

    >>> @dataclass(frozen=True, kw_only=True)
    ... class NetTrial(Trial):
    ...     channels: int = 16  # each value has a program of its own
    ...     l2: float = traced(0.0, at_least=0)  # a number inside the program
    >>> NetTrial(channels=8, learning_rate=0.01).channels
    8

    In your own functions, `epochs` is a JAX scalar, like anything declared with `traced`: trials of
    any length share a program. An optimizer that has to know the length can ask for its number of
    steps. `batch_size` is a plain int, unless `programs="one"` forces trials of several batch sizes
    into a program.
    """

    epochs: int = declare(50, Kind.LENGTH, at_least=1)
    batch_size: int = size(256)
    optimizer: str = choice("adam", ("adam", "adamw", "sgd"))
    learning_rate: float = traced(1e-3, above=0)
    momentum: float = traced(0.0, at_least=0, below=1)  # of sgd
    weight_decay: float = traced(0.0, at_least=0)  # of adamw
    seed: int = traced(0, at_least=0, below=2**31)
    fold: int = traced(0, at_least=0)  # which fold to train on, for data with folds
    matmul_precision: str = static("float32", choices=PRECISIONS)  # of the factors of products

    if not typing.TYPE_CHECKING:  # type checkers use the signature of `__init__`
        __signature__ = _SignatureOfInit()

        def __new__(cls, *args, **values):
            """Refuse unknown names as a sweep does, instead of with Python's TypeError."""
            if not values.keys() <= cls.__dataclass_fields__.keys():
                _check_arguments(cls, values)
            return super().__new__(cls)

    @classmethod
    def fields(cls) -> dict[str, Hyperparameter]:
        """The hyperparameters by name, in the order of definition.

        Raises UserError for a class whose fields cannot be hyperparameters.
        """
        return hyperparameters(cls)

    def values(self) -> dict[str, Value]:
        """The value of every hyperparameter, by name."""
        return {name: getattr(self, name) for name in self.fields()}

    @functools.cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that identify the content: equal trials have equal ids."""
        content = {name: plain(self.convert(name, own)) for name, own in self.values().items()}
        for name, value in ADDED.items():
            if content[name] == value:
                del content[name]
        return digest(json.dumps([type(self).__name__, content], sort_keys=True))

    def replace(self, **values: object) -> Self:
        """A copy with other values; the name and type of each are checked."""
        converted: dict[str, Any] = {k: self.convert(k, v) for k, v in values.items()}
        return dataclasses.replace(self, **converted)

    @classmethod
    def convert(cls, name: str, value: object) -> Value:
        """`value`, parsed if it is text, as the type of hyperparameter `name`.

        Raises UserError for a name that does not exist or a value of another type.
        """
        cls.check_name(name)
        hint = cls.fields()[name].hint
        try:
            return convert(hint, value)
        except (ValueError, TypeError, OverflowError, KeyError):
            raise UserError(f"{name}={value!r}: expected {expected(hint)}") from None

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raise UserError, suggesting similar names, unless `name` is a hyperparameter."""
        if name not in cls.fields():
            meant = ABBREVIATIONS.get(str(name), str(name))
            hint = did_you_mean(meant if meant in cls.fields() else str(name), cls.fields(), 0.5)
            known = ", ".join(cls.fields())
            hint = f": {hint}" if hint else " "
            raise UserError(f"unknown hyperparameter {name!r}{hint}(there are: {known})")

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        fields = self.fields()
        for name, declared in fields.items():
            check_range(declared, getattr(self, name))
        for name in self.__dict__.keys() - fields.keys():
            if not isinstance(getattr(type(self), name, None), functools.cached_property):
                raise UserError(
                    f"{type(self).__name__}.{name} is set, but is no hyperparameter: inside a "
                    "program it would be that of one trial; make it a property"
                )


# What the engine itself reads, with the types and kinds that it supports.
ENGINE: dict[str, set[tuple[type, Kind]]] = {
    "epochs": {(int, Kind.LENGTH)},
    "batch_size": {(int, Kind.SIZE), (int, Kind.STATIC)},
    "seed": {(int, Kind.TRACED), (int, Kind.STATIC)},
    "fold": {(int, Kind.TRACED)},
    "matmul_precision": {(str, Kind.STATIC)},
}


def may_be_static(name: str) -> bool:
    """Whether the hyperparameter `name` may be declared as static."""
    return name not in ENGINE or Kind.STATIC in {kind for _, kind in ENGINE[name]}


# Hyperparameters that were added later: at these values, the ids of trials are as they were before.
ADDED = {"fold": 0, "matmul_precision": "float32"}
OPTIMIZER = ("learning_rate", "momentum", "weight_decay")
ABBREVIATIONS = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "wd": "weight_decay",
    "opt": "optimizer",
    "n_epochs": "epochs",
    "random_state": "seed",
}
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "identity")
FEATURES = ("raw", "standardised", "sines")  # inputs unchanged, standardised, or as sines


@dataclass(frozen=True, kw_only=True)
class MLPTrial(Trial):
    """One training run of a multi-layer perceptron.

    `width` is the number of units in every hidden layer, or a tuple with one number per layer, from
    first to last: (64, 32, 16) with depth=3, or "64-32-16" as text. A tuple of equal numbers
    becomes that number, so both ways of writing a network give the same trial.

    >>> MLPTrial(depth=2, width=(8, 8)).width
    8
    """

    depth: int = size(6, at_most=10_000, skipped=True)  # hidden layers
    width: int | tuple[int, ...] = size(16, at_most=100_000)
    activation: str = choice("relu", ACTIVATIONS)
    batch_norm: bool = choice(False)
    residual: bool = choice(False)
    features: str = choice("raw", FEATURES)
    dropout: float = traced(0.0, off=0.0, at_least=0, below=1)
    label_smoothing: float = traced(0.0, off=0.0, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Replace widths that are all equal by one number."""
        own = self.width
        if isinstance(own, tuple) and own and own == own[:1] * self.depth:
            object.__setattr__(self, "width", own[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """The units of each hidden layer, from first to last."""
        return self.width if isinstance(self.width, tuple) else (self.width,) * self.depth

    def check(self) -> None:
        """Raise UserError unless every value lies in its range and the values fit together."""
        super().check()
        if isinstance(self.width, tuple):
            written = f"width={text(self.width)}"
            if len(self.width) != self.depth:
                raise UserError(f"{written}: {len(self.width)} widths for depth={self.depth}")
            if self.residual:
                raise UserError(f"{written}: a residual connection needs layers of equal width")
        if self.batch_norm and self.batch_size == 1:
            raise UserError("batch_size=1: batch norm needs at least 2 examples in a batch")


def with_values(trial: TrialT, **values: object) -> TrialT:
    """A copy of a trial with other values, unchecked: they may be traced by a program."""
    made = object.__new__(type(trial))
    # Only the hyperparameters: cached properties would be those of another trial.
    fields = type(trial).__dataclass_fields__
    made.__dict__.update({k: v for k, v in trial.__dict__.items() if k in fields})
    made.__dict__.update(values)
    return made


def hyperparameters(cls: type[Trial]) -> dict[str, Hyperparameter]:
    """The hyperparameters of a class, even if a field is named `fields`; see `Trial.fields`."""
    return _fields(cls)  # type: ignore[arg-type]  # a class is hashable


@functools.cache
def _fields(cls: type[Trial]) -> dict[str, Hyperparameter]:
    _check_decorated(cls)
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise UserError(f"{cls.__name__}: an annotation cannot be read ({error})") from None
    made = {}
    for field in dataclasses.fields(cls):
        made[field.name] = _field(cls, field, hints[field.name])
    return made


def _check_decorated(cls: type[Trial]) -> None:
    for base in cls.__mro__:
        if base is Trial:
            break
        if not issubclass(base, Trial):
            continue
        params = vars(base).get("__dataclass_params__")
        compared = params is not None and params.eq and base.__hash__ is not None
        if params is None or not params.frozen or not compared or vars(base).get("__slots__"):
            raise UserError(
                f"{base.__name__}: expected a frozen dataclass; write "
                "@dataclass(frozen=True, kw_only=True) above the class, without eq or slots"
            )
        for name, value in vars(base).items():  # a declaration needs an annotation to be a field
            if isinstance(value, dataclasses.Field) or (
                name not in inspect.get_annotations(base) and name in Trial.__dataclass_fields__
            ):
                raise UserError(
                    f"{base.__name__}.{name}: expected a type, as in `{name}: float = …`"
                )


def _field(cls: type[Trial], field: dataclasses.Field[Value], hint: Hint) -> Hyperparameter:
    where = f"{cls.__name__}.{field.name}"
    found = field.metadata
    if "kind" not in found:  # not declared here: as in the class it comes from
        for base in cls.__mro__[1:]:
            own = vars(base).get("__dataclass_fields__", {}).get(field.name)
            if own is not None and "kind" in own.metadata:
                found = own.metadata
                break
    declared = dict(found)
    kind = declared.setdefault("kind", Kind.STATIC)
    if not isinstance(kind, Kind):
        known = ", ".join(str(k) for k in Kind)
        raise UserError(f"{where}: kind is {kind!r}, expected one of {known}")
    if field.name == "epochs" and kind is not Kind.LENGTH:
        raise UserError(
            f"{where}: declared as {kind.value}, expected a default alone, `epochs: int = 5`; "
            "trials of any length share a program, in which `epochs` is a JAX scalar; an optimizer "
            "is given the number of its steps, and what else Python has to know is a "
            "hyperparameter of your own, of another name"
        )
    if kind is Kind.LENGTH and field.name != "epochs":
        raise UserError(
            f"{where}: only `epochs` is the length of a trial; expected jaxexp.traced, static, "
            "size or choice"
        )
    refuse_taken(where, field.name, RESULTS | COLUMNS | _methods())
    if not (field.init and field.compare and field.hash is not False):
        raise UserError(
            f"{where}: expected a plain default, or one of jaxexp.traced, static, size and choice; "
            "a field that is not compared, or not set, would make trials one"
        )
    if field.name in ENGINE and (hint, kind) not in ENGINE[field.name]:
        expected = name_of(next(iter(ENGINE[field.name]))[0])
        raise UserError(
            f"{where}: {name_of(hint)}, declared as {kind.value}; expected {expected}, declared as "
            "in jaxexp.Trial"
        )
    if field.name == "matmul_precision":
        choices = cast("tuple[str, ...]", declared.get("choices") or ("any text",))
        for each in choices:
            if each not in PRECISIONS:
                raise UserError(f"{where}: {each!r}, expected one of {', '.join(PRECISIONS)}")
    if field.name in OPTIMIZER and kind in (Kind.SIZE, Kind.CHOICE):
        raise UserError(f"{where}: declared as {kind.value}, expected jaxexp.traced or static")
    check_hint(where, hint)
    if kind is Kind.TRACED and hint not in (int, float):
        raise UserError(f"{where}: expected int or float, as it is traced, not {name_of(hint)}")
    if kind is Kind.SIZE and hint not in (int, int | tuple[int, ...]):
        raise UserError(f"{where}: expected int, as it is a size, not {name_of(hint)}")
    if field.default is dataclasses.MISSING:
        raise UserError(f"{where}: expected a default value")
    keys = {f.name for f in dataclasses.fields(Hyperparameter)}
    rest = {k: v for k, v in declared.items() if k in keys and k not in ("name", "hint", "default")}
    return Hyperparameter(name=field.name, hint=hint, default=field.default, **rest)


def _methods() -> dict[str, str]:
    """The names of a trial's attributes other than its hyperparameters."""
    own = (name for name in dir(Trial) if name not in Trial.__dataclass_fields__)
    return dict.fromkeys(own, "a trial")
