"""What a compiled function does, read off the text of XLA's high-level operations (HLO)."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxexp.execution.compiling import BLOCK

NO_WORK = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "iota"}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8}
ASKS_HOST = ("infeed", "outfeed", "send", "recv", "send-to-host", "recv-from-host")


@dataclass(frozen=True)
class Steps:
    """What a compiled function does in each turn of its loop, read off the compiler's text."""

    operations: int  # of one turn of the outermost loop: kernels, copies, and what else takes time
    inner_loops: int
    data_dependent: int  # loops within a turn whose end only the data decide
    asks_host: bool
    bytes: float = 0.0  # that a turn reads and writes, as far as the text says


def computations(text: str) -> dict[str, list[str]]:
    """The computations of a compiled module's text: the lines of each, by its name.

    >>> computations("%add (x: f32[]) -> f32[] {\\n  ROOT %y = f32[] negate(x)\\n}")
    {'add': ['ROOT %y = f32[] negate(x)']}
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif " = " in line:
            lines.append(line.strip())
    return found


def _operation(line: str) -> str:
    """What an instruction does: `add` of `%a.1 = f32[2]{0} add(…)`."""
    result = line.partition(" = ")[2]
    depth = 0
    for i, letter in enumerate(result):  # the type of a tuple has blanks and brackets of its own
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and depth == 0:
            return re.split(r"[( ]", result[i + 1 :], maxsplit=1)[0]
    return ""


def read_steps(text: str, platform: str = "tpu") -> Steps:
    """What a turn of the outermost loop does; of several, of the one that does most.

    A loop inside a turn has a fixed end where its condition compares a number with a constant. A
    GPU asks its host after each turn of a loop of which its compiler does not know how many it has.
    There, steps are blocks of a known number, and what is left of them.
    """
    found = computations(text)
    turns = {
        body: int(known[1]) if (known := re.search(r"known_trip_count\W+n\W+(\d+)", line)) else 0
        for lines in found.values()
        for line in lines
        if _operation(line) == "while" and (body := _named(line, "body"))
    }

    def lines_of(name: str) -> Iterator[str]:
        """Of a computation, and of those that it calls."""
        for line in found.get(name, []):
            yield line
            if _operation(line) == "call" and (called := _named(line, "to_apply")):
                yield from lines_of(called)

    def loops(name: str) -> Iterator[tuple[str, str]]:
        """Conditions and bodies of the loops of a computation, and of the loops in these."""
        for line in lines_of(name):
            if _operation(line) == "while":
                condition, body = _named(line, "condition"), _named(line, "body")
                yield condition, body
                yield from loops(body)

    def steps(body: str) -> Steps:
        inner, own = list(loops(body)), list(lines_of(body))
        waits = sum(not _is_fixed(found, condition) for condition, _ in inner)
        every = [body, *(b for _, b in inner)]
        lines = [line for name in every for line in lines_of(name)]
        asks = any(_operation(line).startswith(ASKS_HOST) for line in lines)
        asks = asks or (platform == "gpu" and not all(turns[name] for name in every))
        work = sum(_operation(line) not in NO_WORK for line in own)
        moved = sum(turns[b] * _bytes(found, found[b]) for _, b in inner) + _bytes(found, own)
        return Steps(work, len(inner), waits, asks, moved)

    every = {body for name in found for _, body in loops(name)}
    if platform == "gpu" and BLOCK in turns.values():  # what is left of a block does the same
        every = {body for body in every if turns[body] == BLOCK}
    inner = {body for name in every for _, body in loops(name)}
    made = [steps(body) for body in sorted(every - inner)]
    return max(made, key=lambda own: own.operations, default=Steps(0, 0, 0, False))


def _bytes(found: Mapping[str, Sequence[str]], lines: Sequence[str]) -> float:
    """What the operations of a computation read and write: arguments, and results.

    Of an argument of which an operation takes no more than a part, that part.
    """
    defined = {line.partition(" = ")[0].removeprefix("ROOT ").strip("% "): line for line in lines}
    total = 0.0
    for line in lines:
        if _operation(line) in {*NO_WORK, "while"}:
            continue
        total += _size(line)
        called = found.get(_named(line, "calls"), ())
        given = _arguments(line)
        for i, name in enumerate(given):
            if name in given[:i]:
                continue
            whole = _size(defined.get(name, ""))
            parts = _parts(called, i)
            total += whole if parts is None else min(whole, parts)
    return total


def _parts(called: Sequence[str], place: int) -> float | None:
    """Bytes that a fused computation takes of an argument by slicing or gathering, if only so."""
    named = next((line for line in called if f" parameter({place})" in line), "")
    name = named.partition(" = ")[0].strip("% ")
    uses = [line for line in called if line is not named and name and name in _arguments(line)]
    taken = {"gather", "slice", "dynamic-slice"}
    if not uses or any(
        _operation(line) not in taken or _arguments(line)[0] != name for line in uses
    ):
        return None
    return sum(map(_size, uses))


def _arguments(line: str) -> list[str]:
    """The names of what an instruction is given."""
    given = line.partition(f" {_operation(line)}(")[2].partition(")")[0]
    return [name.strip("% ") for name in re.findall(r"%[\w.\-]+", given)]


def _size(line: str) -> float:
    """Bytes of an instruction's result; of all of them, where it is a tuple."""
    result = line.partition(" = ")[2].partition(f" {_operation(line)}(")[0]
    return sum(
        BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result)
    )


def _named(line: str, what: str) -> str:
    """The computation that an instruction names: `body=%this`."""
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _is_fixed(found: Mapping[str, Sequence[str]], condition: str) -> bool:
    """Whether a condition compares with a constant, so that no datum decides a loop's end."""
    lines = list(found.get(condition, []))
    called = [name for line in lines for name in re.findall(r"calls=%?([\w.\-]+)", line)]
    lines += [line for name in called for line in found.get(name, [])]
    constants = any(_operation(line) == "constant" for line in lines)
    reads = {
        match[1]
        for line in found.get(condition, [])
        if (match := re.search(r"get-tuple-element\(.*index=(\d+)", line))
    }
    return constants and len(reads) == 1
