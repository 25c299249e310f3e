"""What more or fewer programs would take: the table, its figure, and `jaxexp plan --figure`."""

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_merging import DIGITS, NetTrial, planned, points, seconds

import jaxexp as jx
from jaxexp.cli import main as cli
from jaxexp.planning import merging
from jaxexp.planning.plan import tradeoff
from jaxexp.planning.tradeoff import Grouping
from jaxexp.spec.sweep import Sweep

DATA = jx.arrays([[0.0], [1.0], [2.0], [3.0]] * 500, [0, 0, 1, 1] * 500)


def of(trials, **options) -> tuple[list[Grouping], int | None]:
    sweeps = [Sweep(trial, name=str(i)) for i, trial in enumerate(trials)]
    return tradeoff(sweeps, DIGITS, **options)


def total(grouping: Grouping) -> float:
    return grouping.train_seconds + grouping.compile_seconds


def assert_as_planned(grouping: Grouping, plan) -> None:
    estimates = [program.estimate for program in plan.programs]
    training = sum(own.seconds for own in estimates)
    assert grouping.programs == len(plan.programs)
    assert grouping.train_seconds == pytest.approx(training)
    assert grouping.compile_seconds == pytest.approx(sum(own.compile_seconds for own in estimates))
    padding = sum(own.seconds * own.padding for own in estimates) / training
    assert grouping.padding == pytest.approx(padding, abs=1e-9)


@pytest.mark.parametrize("epochs", [5, 50])
def test_groupings_run_from_one_program_for_each_size_to_one_for_all(epochs):
    trials = points(60, epochs=epochs)
    groupings, chosen = of(trials)
    assert [own.programs for own in groupings] == list(range(60, 0, -1))
    for place, mode in ((0, "exact"), (chosen, "auto"), (-1, "one")):
        assert_as_planned(groupings[place], planned(trials, mode=mode))
    assert seconds(planned(trials)) <= 1.05 * min(map(total, groupings))
    # Where trials train one after another, merging may save work, too; not in the end.
    assert groupings[-1].train_seconds > groupings[0].train_seconds
    assert groupings[-1].padding > groupings[0].padding == pytest.approx(0)


def test_batches_that_are_computed_whole_are_estimated_whole():
    """Dropout is a number inside the program, and decides all the same."""
    trials = points(6, epochs=50, dropout=0.2)
    groupings, _ = of(trials)
    made = planned(trials, mode="one")
    assert made.programs[0].microbatch is None
    assert_as_planned(groupings[-1], made)


def test_the_mode_decides_what_is_chosen():
    trials = points(5, epochs=50)
    assert of(trials, mode="exact")[1] == 0
    assert of(trials, mode="one")[1] == 4
    options = [*trials, *(trial.replace(activation="tanh") for trial in trials)]
    assert of(options, mode="one")[1] is None  # they are one program that no merging leads to


def test_kinds_that_are_never_merged_are_counted_together():
    trials = [
        NetTrial(width=width, activation=activation, epochs=epochs)
        for activation, epochs in (("relu", 1), ("tanh", 200))
        for width in (8, 20, 64)
    ]
    groupings, chosen = of(trials)
    assert [own.programs for own in groupings] == [6, 5, 4, 3, 2]
    assert chosen is not None
    assert_as_planned(groupings[chosen], planned(trials))
    assert_as_planned(groupings[0], planned(trials, mode="exact"))


def test_trials_that_are_timed_keep_their_programs():
    alone = Sweep(jx.MLPTrial(), {"width": [4, 5]}, name="timed", timed=True)
    groupings, _ = tradeoff([alone, Sweep(jx.MLPTrial(), {"width": [8, 9]})], DIGITS)
    assert [own.programs for own in groupings] == [4, 3]


def test_of_too_many_sizes_the_first_step_is_a_large_one(monkeypatch):
    trials = points(200, epochs=50)
    monkeypatch.setattr(merging, "MOST", 32)
    groupings, chosen = of(trials)
    programs = [own.programs for own in groupings]
    assert programs[0] == 200
    assert programs[1] < 100
    assert programs[1:] == list(range(programs[1], 0, -1))
    assert chosen is not None
    assert_as_planned(groupings[chosen], planned(trials))


def widths(*values: int, **options) -> jx.PlannedRun:
    return jx.plan(jx.Sweep(jx.MLPTrial(epochs=40), {"width": values}), data=DATA, **options)


def test_the_table_of_a_plan():
    made = widths(8, 16, 256)
    table = made.tradeoff()
    assert table["programs"].tolist() == [3, 2, 1]
    assert (table["seconds"] == table["train_seconds"] + table["compile_seconds"]).all()
    chosen = table[table["chosen"]]
    assert chosen["programs"].tolist() == [len(made.plan.programs)]
    estimated = sum(p.estimate.seconds + p.estimate.compile_seconds for p in made.plan.programs)
    assert chosen["seconds"].tolist() == pytest.approx([estimated])
    for mode, row in (("exact", [True, False, False]), ("one", [False, False, True])):
        assert widths(8, 16, 256, programs=mode).tradeoff()["chosen"].tolist() == row


def test_a_plan_for_other_hardware_counts_its_compilations():
    made = widths(8, 16)
    there = dataclasses.replace(made, plan=dataclasses.replace(made.plan, backend="tpu"))
    assert there.tradeoff()["compile_seconds"].max() > made.tradeoff()["compile_seconds"].max()


def lines(ax) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()))
        for line in ax.lines
    }


def test_the_figure_has_the_numbers_of_the_table():
    table = widths(8, 16, 256).tradeoff()
    figure = jx.figures.tradeoff(table)
    above, below = figure.axes
    drawn = lines(above)
    for label, column in (
        ("in all", "seconds"), ("training, with padding", "train_seconds"),
        ("compiling", "compile_seconds"),
    ):  # fmt: skip
        x, y = drawn[label]
        assert x == [3, 2, 1]
        np.testing.assert_array_equal(y, table[column])
    np.testing.assert_array_equal(below.lines[0].get_ydata(), table["padding"])
    [chosen] = table[table["chosen"]].itertuples()
    assert drawn["as planned"] == ([chosen.programs], [chosen.seconds])
    assert lines(below)["as planned"][1] == [chosen.padding]
    assert f"As planned: {chosen.programs} program" in figure.alt
    assert figure.interactive is not None


def made_up(programs: list[int]) -> pd.DataFrame:
    training = 1000 / np.array(programs)
    compiling = 3.0 * np.array(programs)
    return pd.DataFrame({
        "programs": programs, "train_seconds": training, "compile_seconds": compiling,
        "seconds": training + compiling, "padding": 1 - np.array(programs) / max(programs),
        "chosen": False,
    })  # fmt: skip


def test_what_is_not_known_is_not_drawn():
    figure = jx.figures.tradeoff(made_up([600, 3, 2, 1]))
    assert "none for 4 to 599 programs" in figure.get_suptitle()
    assert "as planned" not in lines(figure.axes[0])
    x, y = lines(figure.axes[0])["in all"]
    assert [height for at, height in zip(x, y, strict=True) if np.isnan(height)]
    assert figure.axes[0].get_xscale() == "log"
    jx.figures.to_png(figure, dpi=50)


def test_nothing_is_traded_where_no_two_programs_can_be_merged():
    with pytest.raises(jx.UserError, match="the plan has 1 program, of which no two can be merged"):
        jx.figures.tradeoff(widths(8).tradeoff())


def here(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLAN = ["plan", "depth_width", "--quick"]


@pytest.mark.nightly
def test_a_plan_is_drawn_into_a_file(place, capsys):
    assert here(*PLAN, "--figure", "a.png") == 0
    assert "7 trials in" in capsys.readouterr().out
    with Image.open(place / "a.png") as image:
        assert image.width > image.height > 100
    assert here(*PLAN, "--figure", "a.SVG") == 0
    assert here(*PLAN, "--figure", "b.svg") == 0
    assert (place / "a.SVG").read_bytes() == (place / "b.svg").read_bytes()
    assert ET.parse(place / "b.svg").getroot().tag.endswith("svg")
    assert "As planned: " in (place / "b.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "a.pdf"], "--figure a.pdf: expected a name that ends with .png or .svg"),
        (["--figure", "a"], "--figure a: expected a name that ends with .png or .svg"),
        (["--figure", "no/a.png"], "--figure no/a.png: expected a folder that is there, no is not"),
        (["--figure", "folder.png"], "--figure folder.png: expected a file, this is a folder"),
        (
            ["--set", "seed=0,1", "--figure", "a.png"],
            "--figure a.png: the plan has 1 program, of which no two can be merged: there is "
            "nothing to trade",
        ),
    ],
)
def test_bad_figures_are_told(arguments, message, place, capsys):
    (place / "folder.png").mkdir()
    name = "epochs" if "--set" in arguments else "depth_width"
    assert here("plan", name, "--quick", *arguments) == 2
    told = capsys.readouterr()
    assert message in told.err.replace("\n", " ")
    assert not told.out
    assert [path.name for path in place.iterdir()] == ["folder.png"]


def test_several_plans_are_no_figure(place, capsys):
    pytest.importorskip("sklearn")
    assert here("plan", "reproduce", "--quick", "--figure", "a.png") == 2
    assert "--figure a.png: expected one plan to draw, there are" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_told(place, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxexp.cli.drawing.write_whole", full)
    assert here(*PLAN, "--figure", "a.png") == 2
    assert "a.png: cannot be written (No space left on device)" in capsys.readouterr().err
