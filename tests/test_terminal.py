"""What the terminal says: progress, tables, exports, and mistakes told in a line."""

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer.main
from filelock import FileLock
from rich.console import Console
from small_results import (
    SWEEP,
    accuracy,
    call,
    forget,
    lines_with,
    loss,
    results,
    words,
    write_run,
    write_sweep,
)

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.base.words import duration
from jaxexp.cli import comparing, exporting, library, rundir, tables
from jaxexp.cli import main as cli
from jaxexp.execution.progress import Ranking, TerminalProgress, going_on
from jaxexp.planning.programs import Estimate, Plan, Program
from jaxexp.reproduce.report import SECTIONS

# Progress


class Clock:
    """A time that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(
    *programs: Program,
    sweeps: tuple[jx.Sweep, ...] = (),
    devices: int = 1,
    terminal: bool = False,
    best: int = 1,
) -> tuple[TerminalProgress, Clock, StringIO]:
    clock, out = Clock(), StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False, markup=False)
    ranking = Ranking("accuracy", "validation", higher=True)
    plan = Plan(programs, devices)
    return TerminalProgress(plan, console, sweeps, ranking, clock, best), clock, out


def program(sweep: jx.Sweep, seconds: float = 10.0, compiling: float = 2.0, device: int = 0):
    cost = Estimate(seconds=seconds, compile_seconds=compiling)
    return Program(tuple(sweep.trials()), devices=(device,), estimate=cost)


RATES = jx.Sweep(jx.MLPTrial(epochs=10), {"learning_rate": [1e-2, 1e-5]}, name="rates")
SHAPES = jx.Sweep(jx.MLPTrial(epochs=2), {"width": [8, 16, 32]}, name="shapes")


def test_the_percentage_is_that_of_the_epochs_beside_it():
    """Whatever the estimates: a program that costs ten times as much has as many epochs."""
    dear, cheap = program(RATES, seconds=100), program(SHAPES, seconds=1)
    progress, _, _ = shown(dear, cheap, sweeps=(RATES, SHAPES))
    assert progress.done() == ("0 of 26 epochs", 0)
    progress.moved(dear, 9.4)
    assert progress.done() == ("18.8 of 26 epochs", 72)
    for epochs in np.linspace(0.01, 2, 60):
        progress.moved(cheap, float(epochs))
        written, percent = progress.done()
        done, total = map(float, re.fullmatch(r"([\d.]+) of (\d+) epochs", written).groups())
        assert percent == int(100 * done / total + 1e-9)
    progress.moved(dear, 9.9999)
    assert progress.done()[1] == 99
    progress.moved(dear, 10)
    assert progress.done() == ("26 of 26 epochs", 100)


def test_what_is_trained_once_more_is_counted_once():
    """Also where another trial ends then, and where all have ended."""
    one = program(RATES)
    progress, _, _ = shown(one)
    for place in (0, 1):
        progress.moved(one, 4)
        progress.stopped(one, 4, np.array([place]))
        assert progress.done() == ("8 of 14 epochs", 57)
        progress.moved(one, 1)
        assert progress.done() == ("2 of 20 epochs", 10)
    for _ in range(2):
        progress.stopped(one, 4, np.array([0, 1]))
        assert progress.done() == ("8 of 8 epochs", 100)


def test_trials_of_several_lengths_count_their_own_epochs():
    one = program(jx.Sweep(jx.MLPTrial(), {"epochs": [2, 10]}))
    progress, _, _ = shown(one)
    assert progress.done() == ("0 of 12 epochs", 0)
    progress.moved(one, 5)
    assert progress.done() == ("7 of 12 epochs", 58)
    progress.stopped(one, 5, np.array([1]))
    assert progress.done() == ("7 of 7 epochs", 100)
    assert progress.what() == "trained"


def test_two_epochs_are_never_none_of_two():
    one = program(jx.Sweep(jx.MLPTrial(epochs=2)))
    progress, _, _ = shown(one)
    progress.moved(one, 1.88)
    assert progress.done() == ("1.88 of 2 epochs", 94)


def test_it_says_what_compiles_and_what_trains():
    rates, shapes = program(RATES), program(SHAPES)
    progress, clock, _ = shown(rates, shapes, sweeps=(RATES, SHAPES))
    progress.compiling(rates)
    assert progress.what() == "compiling rates"
    clock.now = 1
    progress.moved(rates, 1)
    progress.compiling(shapes)
    assert progress.what() == "training rates, compiling 1 program"
    progress.moved(shapes, 1)
    assert progress.what() == "training rates, shapes"
    progress.moved(rates, 10)
    assert progress.what() == "training shapes"
    progress.moved(shapes, 2)
    assert progress.what() == "trained rates, shapes"


def test_the_time_to_go_is_an_estimate_until_the_speed_is_seen():
    rates = program(RATES, seconds=10, compiling=2)
    progress, clock, _ = shown(rates, sweeps=(RATES,))
    assert progress.to_go() == "estimated 12 s"
    progress.compiling(rates)
    clock.now = 5  # compiling takes longer than estimated
    progress.moved(rates, 0.1)
    clock.now = 25  # and so does training: 20 s for an epoch
    progress.moved(rates, 1.1)
    assert progress.remaining() == (pytest.approx(8.9 * 20), True)
    assert progress.to_go() == "about 2 min 58 s to go"
    clock.now = 35  # half of the next epoch, one hopes
    assert progress.remaining()[0] == pytest.approx(8.9 * 20 - 10)


def test_what_has_not_begun_is_expected_to_be_as_slow_as_what_has():
    first, second = program(RATES, seconds=10, compiling=2), program(SHAPES, seconds=4, compiling=1)
    progress, clock, _ = shown(first, second, sweeps=(RATES, SHAPES))  # one after the other
    progress.compiling(first)
    clock.now = 6  # three times as long as estimated
    progress.moved(first, 0.0)
    clock.now = 26  # twice as long
    progress.moved(first, 10)
    assert progress.remaining() == (pytest.approx(4 * 2 + 1 * 3), True)


def compiled(progress, *programs):
    """They are about to train."""
    for own in programs:
        progress.compiling(own)
        progress.moved(own, 0.0)


def test_programs_side_by_side_take_as_long_as_the_longest():
    first, second = program(RATES), program(SHAPES, device=1)
    progress, clock, _ = shown(first, second, sweeps=(RATES, SHAPES), devices=2)
    compiled(progress, first, second)
    clock.now = 3
    progress.moved(first, 1)
    progress.moved(second, 1)
    assert progress.remaining()[0] == pytest.approx(9 * 3)


def test_what_shares_a_device_is_faster_when_the_other_has_ended():
    cost = Estimate(seconds=10, compile_seconds=2)
    long, short = program(RATES), Program(tuple(SHAPES.trials()), devices=(0, 1), estimate=cost)
    progress, clock, _ = shown(long, short, sweeps=(RATES, SHAPES), devices=2)
    compiled(progress, long, short)
    clock.now = 6
    progress.moved(long, 1)
    progress.moved(short, 1)
    # At this speed 54 s and 6 s; but each would be twice as fast alone.
    assert progress.remaining()[0] == pytest.approx(54 / 2 + 6 / 2)


def test_the_speed_is_that_of_the_last_seconds():
    """A program may run alone for a while, and then beside others that slow it down."""
    rates = program(RATES)
    progress, clock, _ = shown(rates, sweeps=(RATES,))
    progress.compiling(rates)
    for epochs in range(6):  # a second each
        progress.moved(rates, epochs)
        clock.now += 1
    for epochs in (6, 7):  # 20 s each
        clock.now += 19
        progress.moved(rates, epochs)
        clock.now += 1
    clock.now -= 1
    assert progress.remaining()[0] == pytest.approx(3 * 20)


def test_the_best_so_far_is_named_with_its_sweep():
    rates, shapes = program(RATES), program(SHAPES)
    progress, _, _ = shown(rates, shapes, sweeps=(RATES, SHAPES))
    assert progress.best() == ""
    values = {"rates": np.array([0.5, 0.75]), "shapes": np.array([0.1, np.nan, 0.2])}
    asked = []

    def value(name):
        return lambda metric, split: asked.append((metric, split)) or values[name]

    progress.measured(rates, 1, value("rates"))
    progress.measured(shapes, 1, value("shapes"))
    assert progress.best() == "best now: validation accuracy 0.75 (rates, learning rate 1e-5)"
    assert asked == [("accuracy", "validation"), ("loss", "validation")] * 2
    values["shapes"] = np.array([0.1, 0.9, 0.2])
    progress.measured(shapes, 2, value("shapes"))  # the last epoch: looked at, however soon
    assert progress.best() == "best now: validation accuracy 0.9 (shapes, width 16)"


def test_metrics_are_not_looked_at_all_the_time():
    rates, looked = program(RATES), []
    progress, clock, _ = shown(rates, sweeps=(RATES,))
    for epoch in range(1, 11):
        clock.now += 0.2
        progress.measured(rates, epoch, lambda *_: looked.append(1) or np.zeros(2))
    assert 3 <= len(looked) / 2 <= 5  # the metric, and the loss


def test_of_equal_trials_the_one_with_the_lower_loss_is_the_best_so_far():
    """As the table in the end has them."""
    rates = program(RATES)
    progress, _, _ = shown(rates, sweeps=(RATES,))
    values = {"accuracy": np.array([0.5, 0.5]), "loss": np.array([np.nan, 2.0])}
    progress.measured(rates, 10, lambda metric, _: values[metric])
    assert progress.best().endswith("(learning rate 1e-5)")


def test_a_member_of_a_population_is_named_by_what_it_had_when_it_was_measured():
    rates = program(RATES)
    progress, _, _ = shown(rates, sweeps=(RATES,), best=2)
    progress.changed(rates, {"learning_rate": np.float32([0.25, 1e-5])})
    progress.measured(rates, 10, lambda *_: np.array([0.75, 0.5]))
    progress.changed(rates, {"learning_rate": np.float32([0.75, 1e-5])})
    assert progress.best().endswith("(learning rate 0.25)")
    assert list(progress.table().columns[-1].cells) == ["0.25", "1e-5"]


def test_programs_that_no_sweep_needs_do_not_count():
    """Those of a resumed run whose results are there already."""
    rates, shapes = program(RATES), program(SHAPES)
    progress, _, _ = shown(rates, shapes, sweeps=(SHAPES,))
    progress.moved(shapes, 2)
    assert progress.done() == ("6 of 6 epochs", 100)


def test_plain_lines_where_there_is_no_terminal():
    rates = program(RATES)
    progress, clock, out = shown(rates, sweeps=(RATES,))
    with progress:
        progress.compiling(rates)
        for tick in range(1, 101):
            clock.now += 0.9
            progress.moved(rates, tick / 10)
    lines = out.getvalue().splitlines()
    assert lines[0] == "compiling rates: 2 trials in 1 program, estimated 12 s"
    assert len(lines) == 11
    assert "\x1b" not in out.getvalue()
    assert lines[5].startswith("training rates: 2 trials, 10 of 20 epochs (50 %); about 45 s to go")
    assert lines[-1] == "trained rates: 2 trials, 20 of 20 epochs (100 %)"


def test_a_terminal_is_shown_all_of_it_at_once():
    rates = program(RATES)
    progress, clock, out = shown(rates, sweeps=(RATES,), terminal=True)
    progress.compiling(rates)
    progress.moved(rates, 0)
    clock.now = 8
    progress.moved(rates, 4)
    progress.measured(rates, 4, lambda *_: np.array([0.5, 0.25]))
    progress.console.print(progress)
    told = words(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()))
    assert "training rates" in told
    assert "8 of 20 epochs (40 %)" in told
    assert "8 s so far · about 12 s to go best now: validation accuracy 0.5" in told


def test_a_search_shows_a_table_of_the_best():
    shapes = program(SHAPES)
    progress, _, out = shown(shapes, sweeps=(SHAPES,), terminal=True, best=2)
    assert progress.table() is None
    progress.compiling(shapes)
    progress.moved(shapes, 1)
    progress.measured(shapes, 1, lambda *_: np.array([0.5, np.nan, 0.75]))
    progress.console.print(progress)
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()).splitlines()
    head = next(i for i, line in enumerate(lines) if "best now" in line)
    assert lines[head].split() == ["best", "now", "validation", "accuracy", "epoch", "width"]
    assert [line.split() for line in lines[head + 1 : head + 3]] == [
        ["1", "0.75", "1", "32"],
        ["2", "0.5", "1", "8"],
    ]


def test_durations_are_never_none():
    assert [duration(s) for s in (0, 59.2, 60, 3599, 7200)] == [
        "1 s", "1 min 0 s", "1 min 0 s", "59 min 59 s", "2 h 0 min",
    ]  # fmt: skip


def test_what_cannot_tell_how_far_it_is_says_that_it_goes_on():
    out = StringIO()
    with going_on("fitting [a] tree", Console(file=out, width=80), every=0.05):
        until = time.monotonic() + 30
        while out.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    first, *still, last = out.getvalue().splitlines()
    assert first == "fitting [a] tree …"
    assert set(still) == {"still fitting [a] tree: 1 s so far"}
    assert last == "done fitting [a] tree: 1 s"


def test_training_tells_what_it_measures():
    """The values are those of the results, and nobody has to listen."""

    class Watch:
        def __init__(self):
            self.told = {}

        def compiling(self, program):
            pass

        def moved(self, program, epochs):
            pass

        def note(self, text):
            pass

    class Listens(Watch):
        def measured(self, program, epoch, value):
            for split in ("train", "validation"):
                self.told[epoch, split] = value("accuracy", split), value("loss", split)

    X = np.arange(40.0).reshape(-1, 1)
    sweep = jx.Sweep(jx.MLPTrial(epochs=2, depth=1, width=4, batch_size=8), {"seed": [0, 1]})
    data, listens = jx.arrays(X, (X[:, 0] > 20).astype(int), validation=0.25), Listens()
    made = jx.run(sweep, data=data, progress=listens)
    for (epoch, split), (own_accuracy, own_loss) in listens.told.items():
        there = made.dataset.sel(epoch=epoch, split=split)
        np.testing.assert_array_equal(own_accuracy, there["accuracy"])
        np.testing.assert_array_equal(own_loss, there["loss"])
    assert len(listens.told) == 4
    jx.run(sweep, data=data, progress=Watch())


# A run, from the first line to the last


@pytest.mark.usefixtures("no_figures")
def test_a_run_ends_with_a_table_and_the_path_alone_on_standard_output(tmp_path):
    sweep, out = write_sweep(tmp_path / "mine.py"), tmp_path / "run"
    code, stdout, told = call("run", sweep, "--out", out)
    assert code == 0
    assert stdout == f"{out / 'report.html'}\n"
    fitting, fitted = (
        told.index("fitting mine, 6 trials, on the host"),
        told.index("done fitting mine"),
    )
    table = told.index("mine: the best 5 of 6 trials by validation loss after the last epoch")
    assert fitting < fitted < table < told.index("done in")
    assert lines_with(told, " 1 ", "0.01", "on", "0.0400")


GONE = """
import jaxexp as jx
def check(inputs):
    raise jx.UnavailableError("the weights are behind the moon")
"""


def of_section_6(monkeypatch, *sweeps: Path) -> None:
    section = dataclasses.replace(SECTIONS["6"], sweeps=tuple(map(str, sweeps)))
    monkeypatch.setitem(cli.SECTIONS, "6", section)


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_run_is_told_at_the_start_and_the_rest_runs(tmp_path, monkeypatch):
    first = write_sweep(tmp_path / "first.py")
    last = write_sweep(tmp_path / "last.py", GONE)
    of_section_6(monkeypatch, first, last)
    out = tmp_path / "run"
    code, stdout, told = call("reproduce", "--section", "6", "--out", out)
    assert code == 3
    assert told.startswith("not run: last: the weights are behind the moon\n")
    assert told.count("not run: last") == 1
    assert told.index("part 1 of 2: first") < told.index("done fitting first")
    assert "fitting last" not in told
    assert stdout.strip() == str(out / "report.html")
    assert json.loads((out / "run.json").read_text())["missing"].keys() == {"last"}
    assert "behind the moon" in (out / "report.html").read_text()
    assert "complete but for last" in call("runs", tmp_path)[1]

    last.write_text(last.read_text().replace("raise jx", "return jx"))  # they are there now
    code, _, told = call("resume", out, "--force")
    assert code == 0
    assert "done fitting last" in told
    assert "fitting first" not in told
    assert lines_with(told, "first", "learning rate 0.01, batch norm on", "0.0400 nats")
    assert lines_with(told, "last", "learning rate 0.01, batch norm on", "0.0400 nats")


def test_a_sweep_that_cannot_run_alone_leaves_nothing_behind(tmp_path):
    sweep, out = write_sweep(tmp_path / "mine.py", GONE), tmp_path / "run"
    code, stdout, told = call("run", sweep, "--out", out)
    assert (code, stdout) == (3, "")
    assert "behind the moon" in told
    assert not (out / "run.json").exists()


# Looking at runs


@pytest.fixture(scope="module")
def rates(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("rates") / "rates", results())


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run of two sweeps."""
    shapes = jx.Sweep(SWEEP.base, {"learning_rate": [1e-2], "width": [8, 16]}, name="shapes")
    return write_run(tmp_path_factory.mktemp("two") / "two", results(), results(shapes))


@pytest.fixture(scope="module")
def places(rates, two, tmp_path_factory) -> dict[str, Path]:
    """Runs that can be shown, and that cannot."""
    folder = tmp_path_factory.mktemp("places")
    empty, torn = write_run(folder / "empty"), write_run(folder / "torn", results())
    (torn / "results" / "rates.nc").write_bytes(b"no netCDF")
    other = write_run(folder / "other", results(better=0.01))
    return {"run": rates, "two": two, "empty": empty, "torn": torn, "other": other}


def test_show_ranks_as_each_metric_wants(rates):
    code, told, _ = call("show", rates)
    assert code == 0
    assert "all 6 trials by validation loss after the last epoch (lower is better)" in told
    rows = [line.split() for line in told.splitlines() if re.match(r" +[\d–]", line)]
    assert [row[:3] for row in rows[:4]] == [
        ["1", "0.01", "on"], ["2", "0.01", "off"], ["3", "1e-5", "on"], ["4", "1e-5", "off"],
    ]  # fmt: skip
    assert rows[0][3:6] == ["0.0400", "0.0500", "0.7800"]
    assert "– 1 on" in " ".join(rows[4])
    assert "diverged in epoch 2" in " ".join(rows[4])

    _, told, _ = call("show", rates, "--by", "accuracy", "--split", "train", "--top", "2")
    assert "the best 2 of 6 trials by training accuracy" in told
    assert "(higher is better)" in told
    rows = [line.split() for line in told.splitlines() if re.match(r" +\d", line)]
    assert [row[1:4] for row in rows] == [["1e-5", "on", "0.9050"], ["1e-5", "off", "0.9050"]]


def printed(columns, *parts):
    """On a terminal of so many columns, or (None) where output is none."""
    out = StringIO()
    out.isatty = lambda: columns is not None
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", str(columns or 80))
        tables.show(*parts, file=out)
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


@pytest.mark.parametrize("columns", [None, 240, 80, 24])
def test_tables_of_any_width_cut_neither_numbers_nor_names(columns):
    names = ["a" * 50 + "b", "a" * 50 + "c"]
    rates = ("learning_rate", [-1.0625, 12345.5, 4.318e-8])
    ds = results().assign_coords(batch_norm=names, learning_rate=rates)
    ds = ds.assign_coords({f"penalty_{n}": rates for n in range(6)}).assign_attrs(base="{}")
    told = printed(columns, tables.best_trials(ds), "a line")
    assert "…" not in told
    assert {told.count(own) for own in ("−1.0625", "12,345.5", "4.318e-8")} == {14}
    assert [told.count(own) for own in names] == [3, 3]
    assert ("  penalty 0 = −1.0625\n" in told) == (columns in (80, 24))
    assert told.endswith("a line\n")


def test_texts_of_tables_are_wrapped_and_numbers_are_not():
    made = tables.titled("A title")
    made.add_column("run")
    made.add_column("the best of all", justify="right")
    made.add_row("learning rate 0.01, of some words " + "x" * 40, "1.0610 ± 0.0143")
    told = printed(45, made)
    assert lines_with(told, "1.0610 ± 0.0143")
    assert "=" not in told
    assert (told.count("x"), told.count("…")) == (40, 0)
    assert max(map(len, told.splitlines())) <= 45


def test_long_texts_of_the_best_trials_are_wrapped():
    texts = ("batch_norm", ["some words " + "x" * 60, "other words"])
    told = printed(100, tables.best_trials(results().assign_coords(batch_norm=texts)))
    assert " = " not in told
    assert lines_with(told, " 1 ", "0.01", " some words ", "0.0400")


@pytest.mark.parametrize("columns", [None, 8])
def test_control_characters_in_tables_are_escaped(columns):
    made = tables.titled("")
    made.add_column("note", justify="right")
    made.add_row("a\x1b[31m\tb\nc\x07\ud800\u202e \N{PARTY POPPER}")
    escaped = r"a\x1b[31m\tb\nc\x07\ud800\u202e " + "\N{PARTY POPPER}"
    assert printed(columns, made).count(escaped) == 1


def test_trials_that_tie_have_the_rank_of_the_page(tmp_path):
    ds = results()
    ds["loss"].loc[{"batch_norm": True}] = ds["loss"].sel(batch_norm=False)
    _, told, _ = call("show", write_run(tmp_path / "run", ds))
    ranks = [line.split()[0] for line in told.splitlines() if re.match(r" +[\d–]", line)]
    assert ranks == ["1", "1", "3", "3", "–", "–"]


def test_show_some_trials(rates):
    _, told, _ = call("show", rates, "--where", "learning_rate=1e-5", "--where", "batch_norm=off")
    rows = [line.split() for line in told.splitlines() if re.match(r" +\d", line)]
    assert [row[1:3] for row in rows] == [["1e-5", "off"]]
    assert "rates, learning_rate=1e-5, batch_norm=off: " in told


def test_numbers_are_read_as_tables_show_them():
    ds = results().assign_coords(learning_rate=[-12345.5, 123456.7, -2e-5])
    for shown, own in [("123,457", 123456.7), ("−2e-5", -2e-5), ("−12,345.5", -12345.5)]:
        assert tables.where(ds, [f"learning_rate={shown}"])["learning_rate"].values == [own]
    with pytest.raises(UserError, match="learning_rate=1,5: expected one number"):
        tables.where(ds, ["learning_rate=1,5"])


def test_values_are_read_as_set_reads_them():
    ds = results()
    for written, own in [("on", True), ("1", True), ("no", False)]:
        assert tables.where(ds, [f"batch_norm={written}"])["batch_norm"].values == [own]
    ds = ds.assign_coords(learning_rate=["max", "None", "mean"])
    assert tables.where(ds, ["learning_rate=none"])["learning_rate"].values == ["None"]
    ds = ds.assign_coords(learning_rate=["max", "None", "none"])  # of a Literal
    assert tables.where(ds, ["learning_rate=none"])["learning_rate"].values == ["none"]
    ds = ds.assign_coords(learning_rate=["0.9-1e-05", "None", "2.0"])  # of tuples
    for written, own in [("0.9-1e-5", "0.9-1e-05"), ("2", "2.0")]:
        assert tables.where(ds, [f"learning_rate={written}"])["learning_rate"].values == [own]
    with pytest.raises(UserError, match=r"no trial has learning_rate = 9-1; there are 0.9-1e"):
        tables.where(ds, ["learning_rate=9-1"])


@pytest.mark.parametrize(
    ("there", "written", "own"),
    [
        (["True", "None", "False"], "on", "True"),
        (["10000", "None", "-1"], "10,000", "10000"),
        (["10000", "None", "-1"], "−1", "-1"),
        (["0.1--0.2", "()", "None"], "0.1-−0.2", "0.1--0.2"),
        (["10000", "None", "-1"], "1_0000", None),
        (["10000", "None", "-1"], "-\N{FULLWIDTH DIGIT ONE}", None),
        (["1_0", "a", "b"], "10", None),  # text, which looks like a number
        (["007", "1_0", "2024-01"], "7", None),
        (["8", "64-32", "auto"], "8.0", "8"),
        (["auto", "10.0", "1e-05"], "1e-5", "1e-05"),
    ],
)
def test_numbers_are_read_among_text(there, written, own):
    ds = results().assign_coords(learning_rate=there)
    if own is not None:
        assert tables.where(ds, [f"learning_rate={written}"])["learning_rate"].values == [own]
        return
    with pytest.raises(UserError, match=f"no trial has learning_rate = {written}; there"):
        tables.where(ds, [f"learning_rate={written}"])


def test_show_several_sweeps_or_one(two):
    _, told, _ = call("show", two)
    assert lines_with(told, "rates", "learning rate 0.01, batch norm on", "0.0400 nats", " 6 ")
    assert lines_with(told, "shapes", "learning rate 0.01, width 8", "0.0600 nats", " 2 ")
    _, told, _ = call("show", two, "shapes")
    assert "shapes: both trials" in told
    assert "batch norm" not in told


def test_of_several_seeds_the_mean_decides(tmp_path):
    """One seed of the worse rate is the best trial of all."""
    sweep = jx.Sweep(SWEEP.base, {"learning_rate": [1e-2, 1e-5], "seed": [0, 1]}, name="seeds")
    ds = results(sweep)
    ds["loss"].loc[{"learning_rate": 1e-2, "epoch": 3, "split": "validation"}] = [0.25, 0.5]
    ds["loss"].loc[{"learning_rate": 1e-5, "epoch": 3, "split": "validation"}] = [0.125, 0.75]
    _, told, _ = call("show", write_run(tmp_path / "run", ds, results()))
    [line] = lines_with(told, " seeds ", "validation loss")
    assert "learning rate 0.01 " in line
    assert "0.3750 ± 0.1768 nats" in line


def test_show_averages_over_seeds_inside_random_points(tmp_path):
    points = [(1e-2, 0), (1e-2, 1), (1e-2, 2), (1e-5, 0), (1e-5, 1)]
    sweep = jx.Sweep(SWEEP.base, {("learning_rate", "seed"): points}, name="points")
    ds = results(sweep)
    ds["loss"].loc[{"epoch": 3, "split": "validation"}] = [0.25, 0.5, 0.75, 0.125, 0.25]
    ds["diverged_epoch"][1] = 3
    run = write_run(tmp_path / "run", ds)
    _, told, _ = call("show", run)
    assert "both settings, mean ± standard deviation over 2 to 3 seeds, by validation" in told
    rows = [line.split() for line in told.splitlines() if re.match(r" +\d", line)]
    assert [row[:6] for row in rows] == [
        ["1", "1e-5", "2", "0.1875", "±", "0.0884"], ["2", "0.01", "3", "0.5000", "±", "0.3536"],
    ]  # fmt: skip
    assert " ".join(rows[0]).endswith("finished")
    assert " ".join(rows[1]).endswith("1 of 3 seeds diverged")
    _, told, _ = call("show", run, "--each-seed", "--top", "1")
    assert lines_with(told, " 1 ", "1e-5", " 0 ", "0.1250")
    assert "best of 5 trials by validation loss" in told
    _, told, _ = call("show", run, "--where", "seed=0")
    assert "both trials" in told
    _, told, _ = call("show", run, "--where", "learning_rate=0.01", "--by", "accuracy")
    assert "learning_rate=0.01: the one setting, mean ± standard deviation over 3 seeds, by" in told
    _, told, _ = call("compare", run, write_run(tmp_path / "other", results(SWEEP, better=1)))
    assert lines_with(told, "points", "learning rate 1e-5", "0.1875 ± 0.0884 nats")


def test_compare_puts_runs_side_by_side(rates, two, tmp_path):
    better = results(better=0.01, jax="0.0.1", data_fingerprint="other")
    other = write_run(tmp_path / "other", better, seed=7, settings={"epochs": ["3"]})
    code, told, _ = call("compare", rates, other)
    assert code == 0
    assert lines_with(told, str(rates), "learning rate 0.01, batch norm on", "0.0400 nats")
    [line] = lines_with(told, str(other), "learning rate 0.01, batch norm on", "0.0300 nats")
    assert line.split()[-1] == "−0.0100"
    settings, made_with = told.split("settings that differ")[1].split("versions, devices")
    assert lines_with(settings, "seed", "–", "7")
    assert lines_with(settings, "settings", "epochs=3")
    assert lines_with(made_with, "jax ", "0.0.1")
    assert lines_with(made_with, "data fingerprint", "other")
    assert "numpy" not in made_with

    _, told, _ = call("compare", rates, two)
    assert lines_with(told, str(rates), "not in this run")
    assert "versions, devices, files and data that differ: none" in told
    assert "no sweep is in two" not in told

    wider = jx.Sweep(SWEEP.base, {"width": [4, 8], "learning_rate": [1e-2]}, name="wider")
    without = write_run(tmp_path / "without", results(wider))
    _, told, _ = call("compare", rates, other, without)
    settings = told.split("settings that differ")[1].split("versions, devices")[0]
    assert lines_with(settings, "seed", "–", "7")
    assert not lines_with(settings, "rates:")
    _, told, _ = call("compare", rates, without)
    assert "no sweep is in two of these runs" in told


def test_compare_lists_files_and_tasks_that_differ_of_the_same_sweep(rates, tmp_path):
    runs = [rates]
    for name, digest in (("before", "1111"), ("after", "2222")):
        own = {"file of sweep rates": digest, "task of rates": f"{digest}0", "task of x": "3333"}
        more = {"file of sweep other": digest} if name == "after" else {}
        runs.append(write_run(tmp_path / name, results()))
        file = runs[-1] / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"made_with": own | more}))
    _, told, _ = call("compare", *runs)
    assert lines_with(told, "file of sweep rates", "–", "1111", "2222")
    assert lines_with(told, "task of rates", "–", "11110", "22220")
    assert "task of x" not in told
    assert "sweep other" not in told


@pytest.mark.nightly
def test_compare_tells_values_apart_that_are_shown_alike_or_paired_otherwise(tmp_path):
    rate = 0.0012345678
    pairs = {"close": [(rate, 4), (rate, 8), (0.5, 8)], "paired": [(rate, 4), (0.5, 4), (0.5, 8)],
             "other": [(0.0012345123, 4), (0.5, 8)]}  # fmt: skip
    base = SWEEP.base.replace(learning_rate=1e-2)
    made = {
        name: results(jx.Sweep(base, {("weight_decay", "width"): own}, name="zipped"))
        for name, own in pairs.items()
    }
    runs = {name: write_run(tmp_path / name, ds) for name, ds in made.items()}
    _, told, _ = call("compare", runs["close"], runs["other"])
    assert lines_with(told, "zipped: weight decay", "0.0012345678, 0.5", "0.0012345123, 0.5")
    assert "with width" not in told
    _, told, _ = call("compare", runs["close"], runs["paired"])
    points = ("0.001235 with 4, 0.001235 with 8, 0.5 with 8", "0.001235 with 4, 0.5 with 4, 0.5 w")
    assert lines_with(told, "zipped: weight decay with width", *points)
    again = write_run(tmp_path / "again", made["close"])
    assert "settings that differ: none" in call("compare", runs["close"], again)[1]


def test_compare_judges_each_zipped_axis_by_itself_whatever_the_order_of_trials():
    def differing(*axes, **changed):
        runs = {str(n): {"zipped": results(jx.Sweep(SWEEP.base.replace(
            learning_rate=1e-2, **(changed if n else {})), own, name="zipped"))}
            for n, own in enumerate(axes)}  # fmt: skip
        told = printed(None, *comparing.compared(runs, {run: {} for run in runs}))
        return told.split("settings that differ")[1].split("versions, devices")[0]

    pairs, crossed = [(0.25, 4), (0.5, 8)], [(0.5, 4), (0.25, 8)]
    both, zipped = ("weight_decay", "width"), "weight decay with width"
    told = differing({both: pairs}, {both: crossed}, batch_size=16)
    assert lines_with(told, "zipped: batch size", "16")
    assert lines_with(told, f"zipped: {zipped}", "0.25 with 4, 0.5 with 8", "0.5 with 4, 0.25")
    assert zipped not in differing({both: pairs}, {both: [(0.25, 4), (0.125, 8)]})
    seeds = {"seed": [0, 1]}
    same = differing({both: pairs} | seeds, {both: pairs[::-1], "seed": [1, 0]})
    assert same.strip() == ": none"


@pytest.mark.nightly
def test_compare_gives_no_difference_of_a_mean_to_a_trial(rates, tmp_path):
    seeded = jx.Sweep(SWEEP.base, {"learning_rate": [1e-2], "seed": [0, 1]}, name="rates")
    means = [write_run(tmp_path / name, results(seeded)) for name in ("a", "b")]
    _, told, _ = call("compare", rates, *means)
    assert [lines_with(told, str(run), "±")[0].split()[-1] for run in means] == ["–", "–"]
    _, told, _ = call("compare", *means, rates)
    best = [lines_with(told, str(run), "nats")[0].split()[-1] for run in (means[1], rates)]
    assert best == ["0", "–"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_exported_rows_are_read_back(kind, rates, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    file, last = tmp_path / f"rows.{kind}", tmp_path / f"last.{kind}"
    code, stdout, _ = call("export", rates, f"--{kind}", file)
    assert (code, stdout) == (0, f"{file}\n")
    assert call("export", rates, f"--{kind}", last, "--final")[0] == 0
    read = getattr(pd, f"read_{kind}")
    options = {"dtype": {"trial_id": str}} if kind != "parquet" else {}
    rows = read(file, **options)
    assert len(rows) == 6 * 3 * 2
    for trial in SWEEP.trials():
        own = rows[rows["trial_id"] == trial.id]
        assert set(own["learning_rate"]) == {trial.learning_rate}
        assert set(own["batch_norm"]) == {trial.batch_norm}
        assert set(own["width"]) == {16}
        assert set(own["sweep"]) == {"rates"}
        for row in own.itertuples():
            gone = trial.learning_rate == 1.0 and row.epoch > 1
            wanted = np.nan if gone else loss(trial, row.epoch, row.split)
            assert row.loss == pytest.approx(wanted, nan_ok=True)
            wanted = np.nan if gone else accuracy(trial, row.epoch, row.split)
            assert row.accuracy == pytest.approx(wanted, nan_ok=True)
    final = read(last, **options)
    assert len(final) == 6
    best = final[final["trial_id"] == SWEEP.trials()[2].id].iloc[0]
    assert best["validation_loss"] == pytest.approx(0.04)
    assert best["train_accuracy"] == pytest.approx(0.78)
    assert final["diverged_epoch"].tolist() == [2, 2, 0, 0, 0, 0]
    assert final["epochs_trained"].tolist() == [3] * 6


def test_trials_of_different_lengths_and_sweeps_are_exported(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    lengths = jx.Sweep(SWEEP.base, {"learning_rate": [0.01], "epochs": [1, 3]}, name="lengths")
    base = SWEEP.base.replace(depth=2)
    widths = jx.Sweep(base, {"learning_rate": [0.01], "width": [4, (8, 4)]}, name="widths")
    run = write_run(tmp_path / "run", results(lengths), results(widths))
    for kind in ("csv", "parquet"):
        file = tmp_path / f"rows.{kind}"
        assert call("export", run, f"--{kind}", file)[0] == 0
        rows = getattr(pd, f"read_{kind}")(file)
        assert rows.groupby(["sweep", "epochs"]).size().to_dict() == {
            ("lengths", 1): 2, ("lengths", 3): 6, ("widths", 3): 12,
        }  # fmt: skip
        assert set(rows.loc[rows["sweep"] == "widths", "width"].astype(str)) == {"4", "8-4"}
    assert call("export", run, "--csv", tmp_path / "one.csv", "--sweep", "widths")[0] == 0
    assert set(pd.read_csv(tmp_path / "one.csv")["sweep"]) == {"widths"}


def test_hyperparameters_of_every_exported_sweep_stand_first():
    first = results()
    other = first.rename(accuracy="recall")
    other.attrs |= {"metrics": '["loss", "recall"]', "base": '{"own": 1}'}
    columns = list(exporting.rows({"first": first, "other": other}, final=True))
    assert columns.index("own") < columns.index("epochs_trained") < columns.index("train_recall")


@pytest.mark.nightly
def test_runs_are_listed_with_their_state(tmp_path, rates):
    write_run(tmp_path / "whole", results())
    write_run(tmp_path / "broken-off", results(), finished=False)
    write_run(tmp_path / "begun", finished=False)
    forget(write_run(tmp_path / "old", results()), format=2)
    (write_run(tmp_path / "torn", results()) / "run.json").write_text("{")
    damaged = write_run(tmp_path / "scratched", results()) / "results" / "rates.nc"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    busy = write_run(tmp_path / "busy", results(), finished=False)
    (busy / rundir.HOLDER).write_text("process 7 on here")
    killed = write_run(tmp_path / "killed", results(), finished=False)
    (killed / rundir.HOLDER).write_text("process 8 on here")
    (tmp_path / "notes").mkdir()
    with FileLock(busy / rundir.LOCK):
        code, told, _ = call("runs", tmp_path)
    assert code == 0
    states = {"whole": "complete", "broken-off": "interrupted", "begun": "interrupted"}
    states |= {"old": "written by another version", "torn": "damaged", "scratched": "damaged"}
    states |= {"busy": "running (process 7 on here)", "killed": "interrupted"}
    for name, state in states.items():
        [line] = lines_with(told, f" {name} ")
        assert state in line, name
    [line] = lines_with(told, " whole ", " 6 ")
    assert "rates, learning rate 0.01, batch norm on: validation loss 0.0400 nats" in line
    assert "notes" not in told


def test_trials_that_sweeps_share_are_counted_once(tmp_path):
    axes = {"learning_rate": [1e-2], "batch_norm": [True], "seed": [0, 1]}
    other = jx.Sweep(SWEEP.base, axes, name="other")
    write_run(tmp_path / "shared", results(plan_id="a"), results(other, plan_id="a"))
    write_run(tmp_path / "apart", results(plan="a"), results(other, plan="a"))
    told = call("runs", tmp_path)[1]
    assert lines_with(told, " shared ", " 7 ")
    assert lines_with(told, " apart ", " 8 ")


def test_a_run_without_results_says_how_to_go_on(tmp_path):
    killed = write_run(tmp_path / "of mine", finished=False)
    (killed / rundir.HOLDER).write_text("process 8 on here")  # as a run that was killed leaves it
    code, _, told = call("show", killed)
    assert code == 2
    assert f"the run is interrupted; `jaxexp resume '{killed}'` goes on" in words(told)
    with FileLock(killed / rundir.LOCK):
        _, _, told = call("show", killed)
    assert "no results to report on yet: the run is running (process 8 on here)" in words(told)
    complete = write_run(tmp_path / "complete")
    _, _, told = call("show", complete)
    wanted = f"no results to report on: they are gone; `jaxexp resume {complete}` trains them again"
    assert wanted in words(told)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{run}", "--by", "f1"], "--by 'f1': these results have loss, accuracy"),
        (["show", "{two}", "--by", "f1"], "--by 'f1': these results have loss, accuracy"),
        (["show", "{run}", "--split", "test"], "--split 'test': these results have train, valid"),
        (["show", "{run}", "shapes"], "sweep 'shapes': this run has results of rates"),
        (["show", "{run}", "--where", "width=3"], "width does not vary here; the hyperparameters"),
        (["show", "{run}", "--where", "learning_rate=2"], "no trial has learning_rate = 2.0; ther"),
        (["show", "{run}", "--where", "learning_rate=x"], "learning_rate=x: expected one number"),
        (["show", "{run}", "--where", "learning_rate=1_0"], "rate=1_0: expected one number"),
        (["show", "{run}", "--where", "batch_norm=2"], "--where batch_norm=2: expected on or off"),
        (["show", "{run}", *("--where", "batch_norm=on") * 2], "batch_norm is given twice, expec"),
        (["show", "{run}", "--where", "width"], "--where 'width': expected KEY=VALUE"),
        (["show", "{two}", "--where", "width=8"], "several sweeps, name one of rates, shapes"),
        (["show", "{two}", "--top", "3"], "--top: this run has several sweeps, name one of rates"),
        (["show", "{two}", "--each-seed"], "--each-seed: this run has several sweeps, name one"),
        (["show", "{run}", "--top", "0"], "Invalid value for '--top'"),
        (["show", "nowhere"], "nowhere: not a run directory"),
        (["show", "{empty}"], "no results to report on"),
        (["show", "{torn}"], "rates.nc: not a results file"),
        (["report", "{torn}"], "torn` trains the sweep again"),
        (["compare", "{run}"], "expected two runs or more"),
        (["compare", "{run}", "{run}"], "one is given twice"),
        (["compare", "{run}", "nowhere"], "nowhere: not a run directory"),
        (["compare", "{run}", "{two}", "--by", "f1"], "--by 'f1': these results have loss, acc"),
        (["export", "{run}"], "expected --csv FILE, --parquet FILE or --json FILE"),
        (["export", "{run}", "--csv", "nowhere/a.csv"], "nowhere/a.csv: cannot be written"),
        (["export", "{run}", "--csv", "a", "--sweep", "b"], "--sweep 'b': this run has results of"),
        (["export", "{torn}", "--csv", "a"], "rates.nc: not a results file"),
        (["export", "{run}", "--csv", "{run}/run.json"], "run.json: a file of the run, expected"),
        (["export", "{run}", "--json", "{run}/results/../models/a"], "a: a file of the run, ex"),
        (["runs", "nowhere"], "nowhere: not a folder of runs"),
        (["runs", "{run}"], "holds no runs: it is a run itself, see jaxexp show"),
        (["bench", "--images", "a"], "--images: expected with --vision"),
        (["bench", "--vision", "--width", "8"], "--width: expected without --vision"),
        (["bench", "--sklearn", "--no-peers"], "--peers/--no-peers: expected without --sklearn"),
        (["bench", "--cluster", "--data", "a"], "--data: expected without --cluster"),
        (["plan", "boosted_trees"], "boosted_trees: another library fits its models; there is not"),
        (["bench", "--vision", "--images", "nowhere"], "nowhere: no such folder"),
        (["bench", "--quick"], "--quick: expected with --optuna or --sklearn or --searches"),
        (["bench", "--searches", "--vision"], "--searches: expected without --vision"),
        (["bench", "--searches", "--optuna"], "--searches: expected without --optuna"),
        (["bench", "--sklearn", "--vision"], "--sklearn: expected without --vision"),
        (["bench", "--searches", "--data", "nowhere"], "nowhere"),
        (["run", "reproduce"], "reproduce is a command, not a sweep: use `jaxexp reproduce`"),
        (
            ["run", "epochs", "--set", "learning_rate=1, epochs=2"],
            "learning_rate=1,epochs=2: expected a --set of its own for each hyperparameter: --set "
            "learning_rate=1 --set epochs=2",
        ),
        (["run", "epochs", "--set", "lr=1"], "unknown hyperparameter 'lr': did you mean learning"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, told = call(*(argument.format(**places) for argument in arguments))
    assert (code, stdout) == (2, "")
    assert message in words(told)
    if not message.startswith("Invalid"):  # which Typer draws a box around
        assert told.count("\n") == 1


def test_a_table_beside_the_files_of_a_run_is_written(tmp_path):
    run = write_run(tmp_path / "run", results())
    for _ in range(2):
        assert call("export", run, "--csv", run / "rates.csv")[0] == 0


@pytest.mark.nightly
def test_a_page_is_drawn_where_its_figures_are_gone(tmp_path, rates):
    run = write_run(tmp_path / "run", results())
    shutil.rmtree(run / "figures", ignore_errors=True)
    code, _, told = call("report", run)
    assert code == 0, told
    assert list((run / "figures").iterdir())


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["--version"], ["show", "{run}"]])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("buffering", [1, -1])
def test_where_nothing_can_be_written_it_is_told_in_a_line(
    arguments, encoding, buffering, rates, monkeypatch, capsys
):
    with open("/dev/full", "w", buffering, encoding=encoding) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main([argument.replace("{run}", str(rates)) for argument in arguments])
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert "error: standard output cannot be written" in told
    if encoding == "ascii" and arguments[0] == "show":
        assert "ascii lacks \\u2013; PYTHONIOENCODING=utf-8 has it" in words(told)
    assert "Traceback" not in told


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "arguments",
    [["list"], ["--version"], ["show", "{run}"], ["compare", "{run}", "{other}"], ["runs", "{at}"],
     ["run", "{sweep}", "--out", "{out}"]],
)  # fmt: skip
@pytest.mark.parametrize("closed", [("stdout",), ("stdin", "stdout", "stderr")])
def test_what_is_written_to_a_closed_stream_is_dropped(
    arguments, closed, places, tmp_path, monkeypatch
):
    """As with `>&-`: Python has None in its place."""
    places = places | {
        "at": places["run"].parent, "sweep": write_sweep(tmp_path / "mine.py"),
        "out": tmp_path / "run",
    }  # fmt: skip
    for name in closed:
        monkeypatch.setattr(f"sys.{name}", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main([argument.format(**places) for argument in arguments])
    assert not stopped.value.code
    for name in closed:
        getattr(sys, name).close()


def test_an_export_that_fails_leaves_what_was_there(tmp_path):
    class Full:
        def __str__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "rows.csv"
    file.write_text("of before")
    file.chmod(0o600)
    with pytest.raises(UserError, match=r"rows.csv: cannot be written \(No space left on device\)"):
        exporting.export(pd.DataFrame({"a": [1, Full()]}), file, "csv")
    assert [own.read_text() for own in tmp_path.iterdir()] == ["of before"]
    (tmp_path / "link.csv").symlink_to(file)
    exporting.export(pd.DataFrame({"a": [1]}), tmp_path / "link.csv", "csv")
    assert file.read_text() == "a\n1\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_rows_on_standard_output_are_all_that_is_there(rates, capfd):
    assert call("export", rates, "--json", "/dev/stdout", "--final")[:2] == (0, "")
    assert len(json.loads(capfd.readouterr().out)) == len(SWEEP.trials())


def test_rows_are_exported_into_pipes_until_their_reader_has_gone(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)

    def reader():
        with pipe.open("rb") as file:
            read.append(file.readline())

    thread = threading.Thread(target=reader)
    thread.start()
    with pytest.raises(BrokenPipeError):
        exporting.export(pd.DataFrame({"a": np.arange(100_000)}), pipe, "csv")
    thread.join()
    assert read == [b"a\n"]


def test_parquet_without_its_library_is_told(rates, tmp_path, monkeypatch):
    def missing(self, *_, **__):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    code, _, told = call("export", rates, "--parquet", tmp_path / "a.parquet")
    assert code == 2
    assert "--parquet: needs pyarrow, which is not installed: pip install 'jaxexp[export]'" in told


# Help and completion

COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_no_types_of_flags(command):
    code, told, _ = call(command, "--help")
    assert code == 0
    assert f" jaxexp {command}" in told
    assert "<bool>" not in told
    assert "needs jaxexp)" not in words(told)  # an extra that was taken for markup


def test_help_names_every_command():
    told = call("--help")[1]
    assert "<bool>" not in told
    assert {"show", "compare", "export", "runs"} < set(COMMANDS)
    for name in (*COMMANDS, "--install-completion", "--show-completion"):
        assert f" {name} " in told


def test_the_shell_completes_sweeps(two, tmp_path, monkeypatch):
    def completions(line: str) -> list[str]:
        monkeypatch.setenv("_JAXEXP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        out = StringIO()
        with redirect_stdout(out), pytest.raises(SystemExit):
            cli.app(prog_name="jaxexp")
        return out.getvalue().split()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "batches.py").touch()
    assert completions("jaxexp run bat") == ["batch_norm", "batch_size", "batches.py"]
    assert completions("jaxexp plan prob") == ["probing", "probing_sklearn"]
    assert completions(f"jaxexp show {two} sh") == ["shapes"]


def test_every_section_of_the_report_is_known_to_the_shell():
    assert {name for own in SECTIONS.values() for name in own.sweeps} <= set(library.names())
