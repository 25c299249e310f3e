"""What objects hold and what functions do, as text that is the same in every process."""

import builtins
import collections
import dataclasses
import dis
import enum
import functools
import importlib.util
import inspect
import logging
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxexp.base.files import digest

_PLAIN = bool | int | float | complex | str | bytes | enum.Enum
_IN_C = (
    types.MethodDescriptorType, types.ClassMethodDescriptorType, types.WrapperDescriptorType,
)  # fmt: skip
# Of a class: where its objects keep a field, which says nothing more than its name.
_FIELDS = (
    types.MemberDescriptorType, types.GetSetDescriptorType,
    type(vars(collections.namedtuple("_Pair", "first"))["first"]),
)  # fmt: skip
_OUTSIDE = ("GLOBAL", "GLOBALS", "NAME", "DEREF", "CLASSDEREF")  # operations that load from there
_INSTALLED = [
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
] + [Path(__file__).resolve().parents[1]]


def content(value: object, *, lenient: bool = False) -> str:
    """Text, equal for objects that hold the same, and for functions that do the same.

    Functions and classes of the user's own count with their code and what that reads from outside:
    globals, closures, defaults, attributes of classes, other functions. Those of libraries count by
    their names. Raises TypeError, with what it is, for what cannot be compared; where `lenient`,
    its type stands for it.

    >>> content(lambda x: x + 1) == content(lambda y: y + 1) != content(lambda x: x + 2)
    True
    >>> content({"numbers": iter([1])})
    Traceback (most recent call last):
      ...
    TypeError: a list_iterator as numbers
    """
    try:
        return _Writer(lenient)(value)
    except RecursionError as error:
        raise TypeError(f"a {type(value).__name__} that is nested too deeply") from error


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file is of a library, Python and jaxexp among them, and not the user's own."""
    path = Path(file).resolve()
    return any(folder in path.parents for folder in _INSTALLED) or not {
        "site-packages", "dist-packages",
    }.isdisjoint(path.parts)  # fmt: skip


def is_own(module: str) -> bool:
    """Whether a module of this name is one of the user's own files, or a notebook."""
    root = module.partition(".")[0]
    found = sys.modules.get(module) or sys.modules.get(root)
    if found is not None:
        file = getattr(found, "__file__", None)
    else:
        spec = importlib.util.find_spec(root) if root else None
        file = spec.origin if spec and spec.has_location else None
    return not is_installed(file) if file else root not in sys.stdlib_module_names


class _Writer:
    """Writes objects; those that may hold themselves, once each."""

    def __init__(self, lenient: bool) -> None:
        self._lenient = lenient
        self._written: list[object] = []  # kept, so that no other object has the id of one
        self._number: dict[int, int] = {}
        self._name: object = None  # of what is being written, where it has one

    def __call__(self, value: object) -> str:
        if value is None or isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, types.CodeType):
            return self((value.co_code, value.co_exceptiontable, value.co_names, value.co_consts))
        if isinstance(value, types.ModuleType) and not is_own(value.__name__):
            return f"module {value.__name__}"
        if name := _name_in_library(value):
            return name
        if isinstance(value, types.FunctionType | type):
            return self._once(value)
        if inner := _wrapped(value):
            return self._named(type(value).__name__, inner.items())
        return self._object(value)

    def _named(self, kind: str, parts: Iterable[tuple[object, object]]) -> str:
        """In short, whatever the parts are: text within text would grow with every quote."""
        outer, made = self._name, [kind]
        for name, part in parts:
            self._name = name
            made += [self(name), self(part)]
        self._name = outer
        return digest(*made)

    def _once(self, value: object) -> str:
        """In full, or, where that is done or under way, by a number."""
        if id(value) in self._number:
            return f"number {self._number[id(value)]}"
        self._number[id(value)] = len(self._written)
        self._written.append(value)
        if isinstance(value, type):
            return self._named(f"class {value.__qualname__}", _members(value))
        if isinstance(value, types.FunctionType):
            return self._named("function", _parts(value))
        return self(object.__getstate__(value))

    def _object(self, value: object) -> str:
        """What is no function."""
        own = is_own(type(value).__module__)
        kind = self(type(value)) if own else type(value).__name__
        if isinstance(value, dict | types.MappingProxyType):
            return self._named(kind, value.items())
        if isinstance(value, tuple | list):
            return digest(kind, *map(self, value))
        if isinstance(value, set | frozenset):
            return digest(kind, *sorted(map(self, value)))
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return self._named(kind, [(name, getattr(value, name, None)) for name in names])
        constant = value is Ellipsis or value is NotImplemented
        if constant or isinstance(value, slice | range | np.dtype):
            return f"{kind} {value!r}"
        if isinstance(value, logging.Logger):
            return f"{kind} {value.name}"
        if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = np.asarray(value)
            if not array.dtype.hasobject:
                return f"{kind} {array.dtype} {array.shape} {digest(array.tobytes())}"
        elif own and not isinstance(value, types.ModuleType):
            return digest(kind, self._once(value))
        what = f"a {type(value).__name__}"
        if isinstance(value, types.ModuleType):
            what = f"the module {value.__name__} as a whole"
        elif isinstance(self._name, str):
            what += f" as {self._name}"
        if not self._lenient:
            raise TypeError(what)
        return what


def _members(cls: type) -> Iterator[tuple[str, object]]:
    """What decides what the methods of a class do."""
    if issubclass(cls, enum.Enum):
        yield from cls.__members__.items()
    for own in cls.__mro__:
        if name := _name_in_library(own):
            yield "", name
            continue
        for name, value in sorted(vars(own).items()):
            if _decides(own, name, value):
                yield name, value


def _name_in_library(value: object) -> str | None:
    """The name that a library has for it; None if it is no function or class of one."""
    name = getattr(value, "__qualname__", None)
    modules = [getattr(value, "__module__", None)]
    if isinstance(value, np.ufunc):
        name, modules = value.__name__, ["numpy", "scipy.special"]
    elif isinstance(value, _IN_C):
        modules = [value.__objclass__.__module__]
    for module in modules:
        if isinstance(module, str) and isinstance(name, str) and not is_own(module):
            found: object = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is value:
                return f"{module}.{name}"
    return None


def _wrapped(value: object) -> dict[str, object]:
    """The parts of what calls a function; {} of anything else."""
    match value:
        case property():
            return {"get": value.fget, "set": value.fset, "delete": value.fdel}
        case functools.partial():
            return {"function": value.func, "arguments": value.args, "named": value.keywords}
        case functools.cached_property():
            return {"function": value.func}
        case staticmethod() | classmethod():
            return {"function": value.__func__}
        case types.MethodType():
            return {"function": value.__func__, "of": value.__self__}
        case types.BuiltinMethodType() | types.MethodWrapperType():
            return {"name": value.__name__, "of": value.__self__}
    if not is_own(type(value).__module__) and callable(value) and hasattr(value, "__wrapped__"):
        return {"function": value.__wrapped__}  # as jax.jit and functools.cache leave it
    return {}


def _decides(cls: type, name: str, value: object) -> bool:
    """Whether a member of a class may decide what its methods do."""
    if isinstance(value, _FIELDS) or name == "_abc_impl":
        return False
    if not (name.startswith("__") and name.endswith("__")):
        return not (issubclass(cls, enum.Enum) and not inspect.isroutine(value))
    if not isinstance(value, types.FunctionType | staticmethod | classmethod | property):
        return False
    code = getattr(inspect.unwrap(getattr(value, "__func__", value)), "__code__", None)  # type: ignore[arg-type]
    generated = code is not None and code.co_filename == "<string>"
    return not (generated and dataclasses.is_dataclass(cls))  # its fields say the same


def _parts(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """All that decides what a function returns, but its arguments."""
    yield "code", function.__code__
    yield "defaults", function.__defaults__
    yield "named defaults", function.__kwdefaults__
    yield "attributes", vars(function)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: cell.cell_contents for name, cell in cells if not _is_empty(cell)}
    there = {**vars(builtins), **function.__globals__}
    for code in _codes(function.__code__):
        yield from _read_by(code, closed, there)


def _read_by(
    code: types.CodeType, closed: Mapping[str, object], there: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
    """What code reads from outside; of one's own modules, the attributes that it names."""
    name, value = "", None
    for op in dis.get_instructions(code):
        if op.opname == "EXTENDED_ARG":
            continue
        own = isinstance(value, types.ModuleType) and is_own(value.__name__)
        if own and op.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name, value = f"{name}.{op.argval}", getattr(value, op.argval, None)
            continue
        if name:
            yield name, value
        name, value = "", None
        if op.opname == "IMPORT_NAME" and is_own(op.argval):
            yield f"import {op.argval}", types.ModuleType(op.argval)  # found when it is called
        if op.opname.startswith("LOAD_") and op.opname.endswith(_OUTSIDE):
            scope = closed if op.opname.endswith("DEREF") else there
            if op.argval in scope:
                name, value = op.argval, scope[op.argval]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
