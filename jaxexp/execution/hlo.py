"""What a compiled function does, read off the text of XLA's high-level operations (HLO)."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxexp.execution.compiling import BLOCK

NO_WORK = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "iota"}
ASKS_HOST = ("infeed", "outfeed", "send", "recv", "send-to-host", "recv-from-host")


@dataclass(frozen=True)
class Steps:
    """What a compiled function does in each turn of its loop, read off the compiler's text."""

    operations: int  # of one turn of the outermost loop: kernels, copies, and what else takes time
    inner_loops: int
    data_dependent: int  # loops within a turn whose end only the data decide
    asks_host: bool
    bytes: float = 0.0  # of the device's memory that a turn reads and writes, by the text


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


def read_steps(text: str, platform: str = "tpu", *, chunked: bool = False) -> Steps:
    """What a turn of the outermost loop does; of several, of the one that does most.

    If `chunked`, the outermost loop is over chunks of trials, and a step is a turn of one inside.

    A loop inside a turn has a fixed end where the compiler says how many turns it has, or where its
    condition compares a count with a constant. A GPU asks its host after each turn of a loop of
    which its compiler does not know how many it has. There, steps are blocks of a known number, and
    what is left of them.
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

    def loops(name: str) -> Iterator[str]:
        """The loops of a computation, and the loops in these."""
        for line in lines_of(name):
            if _operation(line) == "while":
                yield line
                yield from loops(_named(line, "body"))

    def moved(name: str) -> float:
        """Bytes, with those of every turn of the loops of a computation."""
        own = list(lines_of(name))
        inner = [line for line in own if _operation(line) == "while"]
        return _bytes(found, own) + sum(
            (turns[_named(line, "body")] or _constant_turns(found, line))
            * moved(_named(line, "body"))
            for line in inner
        )

    def steps(body: str) -> Steps:
        inner, own = list(loops(body)), list(lines_of(body))
        waits = sum(not (turns[_named(own, "body")] or _is_fixed(found, own)) for own in inner)
        every = [body, *(_named(own, "body") for own in inner)]
        lines = [line for name in every for line in lines_of(name)]
        asks = any(_operation(line).startswith(ASKS_HOST) for line in lines)
        asks = asks or (platform == "gpu" and not all(turns[name] for name in every))
        work = sum(_operation(line) not in NO_WORK for line in own)
        return Steps(work, len(inner), waits, asks, moved(body))

    def inside(names: Iterable[str]) -> set[str]:
        return {_named(line, "body") for name in names for line in loops(name)}

    every = inside(found)
    if platform == "gpu" and BLOCK in turns.values():  # what is left of a block does the same
        every = {body for body in every if turns[body] == BLOCK}
    elif chunked:
        every = inside(every)
    made = [steps(body) for body in sorted(every - inside(every))]
    return max(made, key=lambda own: own.operations, default=Steps(0, 0, 0, False))


def _bytes(found: Mapping[str, Sequence[str]], lines: Sequence[str]) -> float:
    """What the operations of a computation read and write of the device's memory.

    Arguments, of which an operation takes no more than a part that part, and results, of those
    that are written in place what is new. What is kept on the chip, as TPUs do, is none of it.
    """
    defined = _defined(lines)
    total = 0.0
    for line in lines:
        operation = _operation(line)
        if operation in {*NO_WORK, "while"} or operation.endswith("-done"):
            continue
        if operation.endswith("-start"):  # a transfer: its result names both sides
            sides = _arrays(line)[:2]
            total += min(size for size, _ in sides) * sum(there for _, there in sides)
            continue
        called = found.get(_named(line, "calls"), ())
        root = next((own for own in called if own.startswith("ROOT ")), line)
        written = _written(root, _defined(called) if called else defined)
        total += min(written, _in_memory(line))
        given = _arguments(line)
        for i, name in enumerate(given):
            if name in given[:i]:
                continue
            whole = _in_memory(defined.get(name, ""))
            parameter = next((own for own in called if f" parameter({i})" in own), "")
            total += min(whole, _taken(parameter or defined.get(name, ""), called or [line]))
    return total


def _taken(line: str, lines: Sequence[str]) -> float:
    """Bytes that others of a computation take of this one's result: parts, if no more is used."""
    name, total = _name(line), 0.0
    uses = [own for own in lines if name and name in _arguments(own)]
    for own in uses:
        operation, first = _operation(own), _arguments(own)[0] == name
        if operation == "bitcast":
            total += _taken(own, lines)
        elif first and operation in {"gather", "slice", "dynamic-slice"}:
            total += _size(own)
        elif not (first and operation == "dynamic-update-slice"):
            return math.inf
    return total if uses else math.inf


def _written(line: str, defined: Mapping[str, str]) -> float:
    """Bytes of what an instruction writes: of an update in place, those of the update."""
    given = [defined.get(name, "") for name in _arguments(line)]
    if _operation(line) == "dynamic-update-slice":
        return _size(given[1])
    if _operation(line) in {"tuple", "bitcast"}:
        return sum(_written(own, defined) for own in given)
    return _size(line)


def _defined(lines: Sequence[str]) -> dict[str, str]:
    return {_name(line): line for line in lines}


def _name(line: str) -> str:
    return line.partition(" = ")[0].removeprefix("ROOT ").strip("% ")


def _arguments(line: str) -> list[str]:
    """The names of what an instruction is given."""
    given = line.partition(f" {_operation(line)}(")[2].partition(")")[0]
    return [name.strip("% ") for name in re.findall(r"%[\w.\-]+", given)]


def _size(line: str) -> float:
    """Bytes of an instruction's result; of all of them, where it is a tuple."""
    return sum(size for size, _ in _arrays(line))


def _in_memory(line: str) -> float:
    """Of these bytes, those in the device's memory."""
    return sum(size for size, there in _arrays(line) if there)


def _arrays(line: str) -> list[tuple[float, bool]]:
    """Bytes of each array of an instruction's result, and whether it is in the device's memory."""
    result = line.partition(" = ")[2].partition(f" {_operation(line)}(")[0]
    return [
        (_bits(kind) / 8 * math.prod(int(n) for n in shape.split(",") if n), "S(" not in layout)
        for kind, shape, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\]({[^}]*})?", result)
    ]


def _bits(kind: str) -> int:
    """Of a number of a kind, as it is written: `bf16`, `f8e4m3fn`, `s4`; of a token, none."""
    width = re.search(r"\d+", kind)
    return int(width[0]) if width else 8 * (kind == "pred")


def _named(line: str, what: str) -> str:
    """The computation that an instruction names: `body=%this`."""
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _constant_turns(found: Mapping[str, Sequence[str]], loop: str) -> int:
    """The number below which a loop keeps a count, which begins at 0; 0 for any other."""
    lines = _unfused(found, _named(loop, "condition"))
    numbers = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(lines))
    below = any("direction=LT" in line for line in lines)
    return int(numbers[0]) if below and len(numbers) == 1 and _is_fixed(found, loop) else 0


def _is_fixed(found: Mapping[str, Sequence[str]], loop: str) -> bool:
    """Whether a loop compares a count with a constant, so that no datum decides its end."""
    lines = _unfused(found, _named(loop, "condition"))
    if not any(_operation(line) == "constant" for line in lines):
        return False
    places = {_place(line) for line in lines} - {None}
    return len(places) == 1 and _counts(_unfused(found, _named(loop, "body")), *places)


def _unfused(found: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The lines of a computation and of its fusions, joined by copies of arguments and roots."""
    made: list[str] = []
    for line in found.get(name, ()):
        called = found.get(_named(line, "calls"), ()) if _operation(line) == "fusion" else ()
        given = {str(i): own for i, own in enumerate(_arguments(line))} if called else {}
        for own in called:
            head, _, rest = own.removeprefix("ROOT ").partition(" parameter(")
            argument = given.get(rest.partition(")")[0])
            made.append(f"{head} copy(%{argument})" if argument else own.removeprefix("ROOT "))
        head = line.partition(" fusion(")[0]
        roots = [_name(own) for own in called if own.startswith("ROOT ")]
        made += [f"{head} copy(%{root})" for root in roots] or [line]
    return made


def _counts(lines: Sequence[str], place: int | None) -> bool:
    """Whether each turn adds a constant to the whole number at a place of what a loop carries."""
    defined = _defined(lines)

    def line_of(name: str) -> str:
        line = defined.get(name, "")
        return line_of(_arguments(line)[0]) if _operation(line) in {"copy", "bitcast"} else line

    root = line_of(next((_name(line) for line in lines if line.startswith("ROOT ")), ""))
    given = _arguments(root)
    if _operation(root) != "tuple" or place is None or place >= len(given):
        return False
    after = line_of(given[place])
    before = [line_of(name) for name in _arguments(after)]
    return (
        re.search(r" = [su]\d+\[\]\S* (add|subtract)\(", after) is not None
        and any(_place(line) == place for line in before)
        and any(_operation(line) == "constant" for line in before)
    )


def _place(line: str) -> int | None:
    """The place in a tuple that an instruction takes, if it does."""
    found = re.search(r" get-tuple-element\(.*index=(\d+)", line)
    return int(found[1]) if found else None
