"""Objects and functions that may do otherwise are told apart; those that do the same are not."""

import dataclasses
import functools
import importlib
import logging
import math
import subprocess
import sys
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxexp as jx
from jaxexp.base.contents import content, is_own
from jaxexp.execution.control import Control

AT, LOG, LOCK = 1, logging.getLogger("rules"), threading.Lock()


class Ends:
    """A rule that does nothing; others differ from it in what a method reads."""

    def stop(self, epoch, trials, curves):
        return np.full(len(trials), epoch == 3)


def closing_over(k):
    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return np.full(len(trials), epoch == k)

    return Rule()


def calling(k):
    def last():
        return k

    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return [(lambda trial: epoch == last())(trial) for trial in trials]

    return Rule()


def inheriting(k):
    class Base:
        at = k

    class Rule(Base, Ends):
        def stop(self, epoch, trials, curves):
            return np.full(len(trials), epoch == self.at)

    return Rule()


def by_default(k):
    class Rule(Ends):
        def stop(self, epoch, trials, curves, at=k):
            return np.full(len(trials), epoch == at)

    return Rule()


def by_name(k):
    class Rule(Ends):
        def stop(self, epoch, trials, curves, *, at=k):
            return np.full(len(trials), epoch == at)

    return Rule()


def decorated(k):
    class Rule(Ends):
        @property
        def at(self):
            return k

        @staticmethod
        def costs():
            return k

    return Rule()


def compiled(k):
    @jax.jit
    def of(x):
        return jnp.where(x > k, x, 0.0)

    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return np.asarray(of(curves("loss")))

    return Rule()


def with_library_closure(k):
    schedule = optax.linear_schedule(1.0, 0.0, k)

    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return curves("loss")[:, -1] > schedule(epoch)

    return Rule()


def of_a_class(k):
    class Limits(NamedTuple):
        first: int = k

    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return np.full(len(trials), epoch == Limits().first)

    return Rule()


def with_slots(k):
    class Rule(Ends):
        __slots__ = ("at",)

    made = Rule()
    made.at = k
    return made


def with_an_object(k):
    class Limit:
        def __init__(self):
            self.at = k

    class Rule(Ends):
        def __init__(self):
            self.limit = Limit()

    return Rule()


def holding_a_function(k):
    class Rule(Ends):
        def __init__(self):
            self.at = functools.partial(lambda a, b: a + b, k)

    return Rule()


MAKERS = [
    closing_over, calling, inheriting, by_default, by_name, decorated, compiled,
    with_library_closure, of_a_class, with_slots, with_an_object, holding_a_function,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_a_rule_is_told_from_one_that_decides_otherwise(make):
    one, same, other = (Control(make(k)).identity for k in (1, 1, 2))
    assert one == same != other


class ByGlobal(Ends):
    def stop(self, epoch, trials, curves):
        LOG.info("asked after %d", epoch)
        return np.full(len(trials), epoch == AT and math.pi > 3)


def test_globals_that_a_rule_reads_count(monkeypatch):
    before = Control(ByGlobal()).identity
    monkeypatch.setitem(globals(), "MAKERS", [])
    assert Control(ByGlobal()).identity == before
    monkeypatch.setitem(globals(), "AT", 2)
    assert Control(ByGlobal()).identity != before


def test_what_a_rule_reads_of_a_module_of_the_users_own_counts(tmp_path, monkeypatch):
    (tmp_path / "limits_of_rules.py").write_text("AT, OTHER = 1, iter(())\n\ndef last(): return AT")
    monkeypatch.syspath_prepend(tmp_path)
    limits = importlib.import_module("limits_of_rules")

    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return np.full(len(trials), epoch == limits.last())

    before = Control(Rule()).identity
    limits.AT = 2
    assert Control(Rule()).identity != before
    assert all(map(is_own, ("limits_of_rules", "__main__")))
    assert not any(map(is_own, ("numpy", "jaxexp.api", "math", "sys", "json", "scipy.special")))


def locked(epoch):
    with LOCK:
        return epoch


def reading(function):
    class Rule(Ends):
        def stop(self, epoch, trials, curves):
            return function(epoch)

    return Rule()


def importing(epoch):
    import small_results

    return small_results


def test_what_cannot_be_compared_is_refused_by_name():
    for function, message in (
        (locked, "Rule holds a lock as LOCK, which cannot be compared"),
        (importing, "Rule holds the module small_results as a whole, which cannot"),
    ):
        with pytest.raises(jx.UserError, match=message):
            _ = Control(reading(function)).identity


def test_a_rule_whose_text_says_all_may_read_what_cannot_be_compared():
    def rule(k):
        @dataclasses.dataclass(frozen=True)
        class Rule(Ends):
            at: int = 0
            seen: list = dataclasses.field(default_factory=list, repr=False)

            def stop(self, epoch, trials, curves):
                return locked(k)

        return Rule

    one, same, other = (Control(rule(k)()).identity for k in (1, 1, 2))
    assert one == same != other != Control(rule(2)(at=3)).identity


@dataclasses.dataclass(repr=False)
class Protocols(jx.StoppingRule):
    asked: list = dataclasses.field(default_factory=list)

    def stop(self, epoch, trials, curves):
        return super().__repr__(), type(self), ByGlobal, jx.MLPTrial(), functools.reduce


def test_rules_that_inherit_from_the_librarys():
    assert Control(Protocols()).identity == Control(Protocols()).identity
    assert Control(Protocols([1])).identity != Control(Protocols()).identity


MANY_KINDS = """
import enum
import numpy as np
from jaxexp.base.contents import content

class Mode(enum.Enum):
    FAST = 1

    def runs(self):
        return self, Mode, {"a", "b", "c"}, {"d", "e", "f"}

held = Mode.FAST, Mode, frozenset("abc"), ..., NotImplemented, np.exp, str.lower, [].append, len
more = np.ones(2), slice(2), lambda x: x in {"g", "h", "i"}, {Mode.FAST: {"j", "k"}}
text = content((held, more))
"""


def test_text_is_the_same_in_every_process():
    own = {"__name__": "__main__"}
    exec(MANY_KINDS, own)
    command = [sys.executable, "-c", f"{MANY_KINDS}\nprint(text)"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == own["text"]


def test_what_holds_itself_ends():
    itself = []
    itself.append(itself)
    with pytest.raises(TypeError, match="a list that is nested too deeply"):
        content(itself)
