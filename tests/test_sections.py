"""Questions answered from results: those of the sweeps that ship, and of any sweep at all."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from datasets import REGRESSION, dataset, grid, of_sweep, population
from matplotlib.figure import Figure
from nights import at_night

from jaxexp.cli import library
from jaxexp.report import figures, page, sections
from jaxexp.report.importance import importance
from jaxexp.results import select
from jaxexp.spec.sweep import Comparison, Question, Sweep, Verdict
from jaxexp.spec.trial import MLPTrial

STEPS = 3  # an epoch
SWEEPS = Path(__file__).parents[1] / "sweeps"
NAMES = [n for n in library.names() if "jx.MLPTrial(" in (SWEEPS / f"{n}.py").read_text()]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made in full, of few dots."""
    monkeypatch.setattr(figures, "to_png", partial(figures.to_png, dpi=30))


def forget(name: str, png: bytes) -> None:
    """Keep no figure."""


def answered(
    sweep: Sweep, diverged: dict[int, int], *, draw: bool = True
) -> list[sections.Section]:
    """The sections of a sweep of which some trials, by place, diverged in some epoch."""
    if not draw:
        plain = tuple(replace(q, draw=lambda results: []) for q in sweep.questions)
        sweep = replace(sweep, questions=plain)
    return sections.of_sweep(sweep, of_sweep(sweep, diverged), forget)


@pytest.mark.parametrize("name", NAMES)
def test_a_diverged_trial_is_told_and_never_best(name):
    """Every other one in its first epoch, the others in their fifth; of many trials, some."""
    sweep = library.load(name)
    trials = len(sweep.trials())
    places = np.unique(np.linspace(0, trials - 1, 4).astype(int)) if trials > 1 else ()
    for i, place in enumerate(places):
        end = min((1, 5)[i % 2], sweep.trials()[place].epochs)
        for section in answered(sweep, {place: end}, draw=False):
            [note] = section.notes
            assert note.startswith(f"1 of {trials} trials diverged: ")
            assert note.endswith(f"diverged in epoch {end}, step {STEPS * (end - 1) + 1}.")
            assert not re.search(r"\bnan\b|\binf\b|\b1\.000\b", section.answer)


@pytest.mark.parametrize("name", at_night(NAMES, *NAMES[1:]))
def test_figures_of_a_sweep_with_a_diverged_trial_are_drawn(name):
    for section in answered(library.load(name), {0: 1}):
        assert section.figures


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", NAMES)
def test_where_all_diverged_no_number_is_told(name):
    sweep = library.load(name)
    everything = dict.fromkeys(range(len(sweep.trials())), 1)
    for section in answered(sweep, everything):
        assert section.answer == "Every trial diverged."
        assert section.figures


@pytest.mark.parametrize("name", NAMES)
def test_where_none_diverged_there_is_no_note(name):
    sweep = library.load(name)
    for section in answered(sweep, {}, draw=False):
        assert not section.notes
        assert "diverged" not in section.answer


def test_a_sweep_without_questions_is_answered_in_general():
    sweep = Sweep(base=MLPTrial(epochs=3), axes={"width": [4, 8]}, name="my_widths")
    [section] = answered(sweep, {0: 2})
    assert (section.row, section.title) == ("my_widths", "my widths")
    assert section.answer == (
        "The lowest validation loss after the last epoch is 0.8598 nats: width 8. "
        "The same trial has the highest validation accuracy, 0.3895."
    )
    assert section.notes == ["1 of 2 trials diverged: width 4 diverged in epoch 2, step 4."]
    assert len(section.figures) == 3  # the curves of both metrics, and both by width


class TestInGeneral:
    def section(self, ds: xr.Dataset) -> sections.Section:
        kept: list[str] = []
        made = sections.in_general(ds, lambda name, png: kept.append(name))
        assert len(kept) == len(made.figures)
        html = page.render([made], page.Meta(title="t", summary="s", facts=page.run_facts([ds])))
        assert "nan" not in re.sub(r'src="[^"]*"|<script.*?</script>', "", html, flags=re.S)
        assert all(picture.interactive for picture in made.figures)
        assert all(picture.alt.endswith((".", ")")) for picture in made.figures)
        return made

    @pytest.mark.usefixtures("undrawn")
    def test_no_page_calls_a_rate_the_best_that_a_member_dropped(self) -> None:
        made = self.section(population(loss=[0.2, 0.4, 0.6, 0.1]))
        assert made.question == "How do the 4 members of this population compare?"
        assert "0.1220 nats: final learning rate 2.5e-5. The same trial" in made.answer
        assert made.lead.startswith("Members copied one another")
        assert [list(table)[1] for table in made.tables.values()] == ["final learning rate"]

    @pytest.mark.nightly
    def test_a_population_has_a_lineage(self) -> None:
        captions = [picture.caption for picture in self.section(population()).figures]
        [lineage] = [caption for caption in captions if "became a copy of" in caption]
        assert len(captions) == 3  # curves of both metrics, and none by a rate that changed
        assert lineage.endswith("began as member 0 (learning rate 0.0001) and is no copy.")

    @pytest.mark.nightly
    @pytest.mark.usefixtures("undrawn")
    def test_a_search_by_another_metric_is_ranked_by_it(self) -> None:
        rising = {"accuracy": np.linspace(0.5, 0.9, 18)}
        made = self.section(grid(18, values=rising, ranked_by="accuracy"))
        assert made.answer.startswith("The highest validation accuracy after the last epoch is ")
        assert " The lowest validation loss after the last epoch is " in made.answer
        assert made.lead.startswith("With 2 of 2 seeds, learning rate 0.001, width 64 ")
        assert all(" by validation accuracy after the last epoch, best" in c for c in made.tables)
        for table in made.tables.values():
            assert (table["validation accuracy"].diff().dropna() <= 0).all()
        own = [picture.alt for picture in made.figures]
        assert own[0].startswith("Validation accuracy by epoch")
        assert not any(alt.startswith("Validation loss") for alt in [own[0], *own[2:]])
        assert not any("The lowest validation loss" in alt for alt in own[2:])

    @pytest.mark.usefixtures("undrawn")
    def test_of_a_search_by_another_metric_the_lineage_is_that_of_its_best(self) -> None:
        values = {"accuracy": [0.2, 0.9, 0.4, 0.3]}
        ds = population(loss=[0.2, 0.4, 0.6, 0.5], values=values, ranked_by="accuracy")
        made = self.section(ds)
        [lineage] = [p for p in made.figures if "became a copy of" in p.caption]
        told = "the best by validation accuracy began as member 1 (learning rate 0.001)"
        assert told in lineage.caption
        assert told in lineage.alt
        assert figures.lineage(ds).axes[0].get_ylabel() == "validation accuracy"

    @pytest.mark.nightly
    def test_a_regression_without_classes_or_accuracy(self) -> None:
        lost = np.where(np.arange(48) % 7 == 2, 3, 0)
        made = self.section(grid(48, metrics=REGRESSION, diverged=lost))
        assert made.answer == (
            "The lowest validation loss after the last epoch is 0.2667 ± 0.0521 m² (mean ± "
            "standard deviation over 2 seeds): learning rate 0.1, width 16, optimizer sgd. "
            "The same setting has the highest validation r2, 0.7614."
        )
        assert made.lead.startswith("It is the best with 1 of 2 seeds. Its lead over")
        diverged, importance = made.notes
        assert diverged == "7 of 48 trials diverged, in epoch 3."
        assert importance.endswith("R² is −0.19. The forest explains too little to be trusted.")
        assert len(made.figures) == 8  # metrics; coordinates, a pair, and three axes, not the seed
        settings, trials = made.tables.items()
        assert settings[0] == (
            "The best 20 of 24 settings by validation loss after the last epoch, best first: "
            "mean ± standard deviation over 2 seeds"
        )
        assert len(settings[1]) == 20
        assert trials[0] == "All 48 trials by validation loss after the last epoch, best first"
        assert list(trials[1])[:7] == [
            "rank", "learning rate", "width", "optimizer", "seed", "training loss (m²)",
            "validation loss (m²)",
        ]  # fmt: skip
        assert len(trials[1]) == 48

    @pytest.mark.usefixtures("undrawn")
    def test_a_training_split_alone_is_called_training(self) -> None:
        made = self.section(dataset(splits=["train"]))
        assert made.answer.startswith("The lowest training loss after the last epoch is 0.2020")
        told = [made.answer, *made.tables]
        assert not any("validation" in text or "test" in text for text in told)

    @pytest.mark.usefixtures("undrawn")
    def test_ties_are_said(self) -> None:
        made = self.section(dataset(values={"accuracy": 0.5}))
        assert made.answer.endswith(
            "All 3 trials have the same validation accuracy after the last epoch: 0.4780."
        )

    def test_one_trial_and_one_whose_axis_has_one_value(self) -> None:
        assert self.section(dataset({})).answer.startswith("The validation loss after")
        assert len(self.section(dataset({"width": [4]})).figures) == 1

    @pytest.mark.nightly
    def test_seeds_alone_and_everything_diverged(self) -> None:
        assert len(self.section(dataset({"seed": [0, 1, 2]})).figures) == 3
        made = self.section(dataset(diverged=[1, 2, 3]))
        assert made.answer == "Every trial diverged."

    @pytest.mark.nightly
    @pytest.mark.usefixtures("undrawn")
    def test_settings_are_compared_by_their_means_over_the_folds(self) -> None:
        loss = [[0.1, 0.7, 0.9], [0.4, 0.4, 0.5]]
        made = self.section(dataset({"learning_rate": [0.1, 0.01], "fold": range(3)}, loss=loss))
        assert made.question == "Which learning rate is best, of 6 trials?"
        assert "over 3 folds): learning rate 0.01." in made.answer
        assert made.lead.startswith("It is the best with 2 of 3 folds.")
        alone = self.section(dataset({"fold": range(3)}))
        assert alone.question == "How do the 3 trials of this sweep compare?"

    @pytest.mark.nightly
    def test_a_random_search(self) -> None:
        rng = np.random.default_rng(0)
        points = {"learning_rate": 10 ** rng.uniform(-5, 0, 40), "width": rng.integers(4, 99, 40)}
        made = self.section(dataset({"point": points}, loss=-np.log10(points["learning_rate"])))
        assert len(made.figures) == 5  # two metrics, what matters, two axes
        assert made.figures[2].caption.endswith("Learning rate matters most.")
        assert made.lead == "There is one seed of each: other seeds may rank them otherwise."

    @pytest.mark.nightly
    def test_three_hyperparameters_are_parallel_coordinates(self) -> None:
        rng = np.random.default_rng(0)
        points = {name: rng.integers(1, 99, 24) for name in ("width", "depth", "batch_size")}
        made = self.section(dataset({"point": points}))
        assert any(p.alt.startswith("Parallel coordinates of 24 trials") for p in made.figures)

    @pytest.mark.usefixtures("undrawn")
    def test_a_quick_run_is_said(self) -> None:
        assert self.section(dataset(quick=2)).quick == 2


class TestFailures:
    def broken(self, **parts: Callable[[Any], Any]) -> sections.Section:
        question = {
            "row": "1", "title": "t", "question": "q", "reference": "",
            "draw": lambda results: [Figure()], "answer": lambda results: "It is so.",
        } | parts  # fmt: skip
        sweep = Sweep(base=MLPTrial(), questions=(Question(**question), Question(
            row="2", title="t", question="q", reference="", draw=lambda results: [Figure()],
            answer=lambda results: "All is well.",
        )))  # fmt: skip
        made, whole = sections.of_sweep(sweep, dataset({}), forget)
        assert (whole.answer, whole.errors, len(whole.figures)) == ("All is well.", [], 1)
        assert page.render([made, whole], page.Meta(title="t", summary="s"))
        return made

    def test_a_draw_that_raises_keeps_the_answer(self) -> None:
        def draw(results):
            return results.attrs["no such"]

        line = draw.__code__.co_firstlineno + 1
        made = self.broken(draw=draw)
        failed = "`draw` of question 1 failed: KeyError: 'no such'"
        assert made.errors == [f"{failed} (test_sections.py, line {line})"]
        assert made.notes == made.errors
        assert (made.answer, made.figures) == ("It is so.", [])

    def test_what_is_raised_inside_the_library_names_the_users_line(self) -> None:
        def draw(results):
            return [figures.curves(results, "r2")]

        [error] = self.broken(draw=draw).errors
        line = draw.__code__.co_firstlineno + 1
        assert error == (
            "`draw` of question 1 failed: metric='r2': these results have loss, accuracy "
            f"(test_sections.py, line {line})"
        )

    def test_a_verdict_is_kept_and_one_that_raises_is_noted(self) -> None:
        verdict = Verdict(True, "so they do.")
        assert self.broken(verdict=lambda results: verdict).verdict == verdict
        made = self.broken(verdict=lambda results: 1 / 0, reference="0.5")
        assert made.verdict is None
        assert made.judgement[1] == "the comparison failed"
        assert made.errors[0].startswith("`verdict` of question 1 failed: ZeroDivisionError")
        [error] = self.broken(verdict=lambda results: True).errors
        assert "expected a jaxexp.Verdict, got True" in error

    def test_a_figure_of_the_users_own_is_a_still_picture(self) -> None:
        [picture] = self.broken().figures
        assert picture.interactive is None
        assert picture.alt == "t, figure 1: q"

    def test_an_answer_and_a_table_that_raise(self) -> None:
        made = self.broken(answer=lambda results: 1 / 0, table=lambda results: results["gone"])
        assert [error.partition(" failed: ")[0] for error in made.errors] == [
            "`answer` of question 1", "`table` of question 1",
        ]  # fmt: skip
        assert (
            made.answer == "There is no answer: the function that makes it failed, as noted below."
        )
        assert len(made.figures) == 1

    @pytest.mark.parametrize(
        ("part", "value", "expected"),
        [("answer", None, "expected a sentence, got None"),
         ("draw", [1], "expected matplotlib figures, got an int"),
         ("draw", None, "TypeError"),
         ("table", [1], "expected pandas data frames, got a list")],
    )  # fmt: skip
    def test_a_value_of_another_type_is_named(self, part, value, expected) -> None:
        [error] = self.broken(**{part: lambda results: value}).errors
        assert error.startswith(f"`{part}` of question 1 failed: {expected}")

    def test_one_figure_and_several_tables_are_fine(self) -> None:
        table = pd.DataFrame({"a": [[1, 2], None]})
        made = self.broken(draw=lambda r: Figure(), table=lambda r: {"One": table, "Two": table})
        assert (len(made.figures), list(made.tables), made.errors) == (1, ["One", "Two"], [])

    def test_a_full_disk_is_no_fault_of_the_question(self) -> None:
        def keep(name, png):
            raise OSError("no space left on device")

        with pytest.raises(OSError, match="no space"):
            sections.in_general(dataset(), keep)


def made(diverged: int = 0, **attrs: str) -> xr.Dataset:
    return xr.Dataset({"loss": ((), 1.0), "seconds": 2.0, "diverged_epoch": diverged}, attrs=attrs)


given: list = []
SHIPPED = Comparison(
    sweeps=("one_a", "two", "three"),
    questions=(
        Question(
            row="9", title="t", question="q", draw=lambda results: [], reference="",
            answer=lambda results: given.append(results) or "It is so.",
        ),
    ),
)  # fmt: skip


def compared(**datasets: xr.Dataset) -> list[sections.Section]:
    given.clear()
    return sections.of_comparisons(datasets, forget, [SHIPPED])


def test_a_comparison_gets_its_sweeps_in_order_and_no_others():
    datasets = {name: made() for name in ("other", "three", "one_a", "two")}
    [section] = compared(**datasets)
    assert list(given[0]) == ["one_a", "two", "three"]
    assert given[0]["two"] is datasets["two"]
    assert section.answer == "It is so."
    assert section.seconds == 6


def test_what_is_missing_is_named_in_the_answer():
    [section] = compared(three=made(), one_a=made())
    assert section.answer == "It is so. Not in this run, and so left out: two."
    assert compared(three=made()) == []
    assert compared(other=made(), else_=made()) == []


def test_notes_stand_once_and_name_the_sweep_of_a_diverged_trial():
    notes = json.dumps(["few images"])
    [section] = compared(one_a=made(diverged=2, notes=notes), two=made(notes=notes))
    assert section.notes == [
        "few images", "1 of 2 trials diverged: one a, single trial diverged in epoch 2.",
    ]  # fmt: skip
    [section] = compared(one_a=made(diverged=2), two=made(diverged=1))
    assert section.answer.startswith("Every trial diverged. Not in this")


def test_comparisons_that_ship_compare_sweeps_by_their_file_names():
    [detectors] = library.comparisons()
    assert detectors.sweeps == (
        "boosted_trees", "scratch", "probing", "probing_sklearn", "fine_tuning",
    )  # fmt: skip
    assert [question.row for question in detectors.questions] == ["7.6", "7.7"]


@pytest.mark.nightly
@pytest.mark.usefixtures("undrawn")
def test_the_lead_names_its_setting_behind_a_sentence_on_another():
    loss = np.array([[0.2, 0.2], [0.6, 0.61]])
    axes = {"width": [8, 16], "seed": [0, 1]}
    same = sections.in_general(dataset(axes, loss=loss), forget)
    assert same.lead.startswith("It is the best with 2 of 2 seeds. It leads width 16 by ")
    other = sections.in_general(dataset(axes, loss=loss, values={"accuracy": loss}), forget)
    assert other.answer.endswith(": width 16.")
    assert other.lead.startswith("With 2 of 2 seeds, width 8 is the best. It leads width 16 by ")


class TestConditionalHyperparameters:
    """Momentum does nothing in the trials of Adam, all of which have the base trial's value."""

    def searched(self) -> xr.Dataset:
        rng = np.random.default_rng(0)
        sgd = rng.random(60) < 0.5
        points = {
            "optimizer": np.where(sgd, "sgd", "adam"),
            "momentum": np.where(sgd, rng.uniform(0.1, 0.99, 60), 0.0),
            "learning_rate": 10 ** rng.uniform(-4, 0, 60),
        }
        return dataset(
            {"sample": points}, loss=1.0 + sgd + 0.1 * rng.random(60),
            conditions=json.dumps({"momentum": {"optimizer": ["sgd"]}}),
        )  # fmt: skip

    def test_they_are_named_only_where_they_apply(self) -> None:
        ds = self.searched()
        assert "momentum" not in select.best_in_words(ds)
        table = select.table(ds)
        adam = table["optimizer"] == "adam"
        assert table["momentum"].isna().tolist() == adam.tolist()
        names = [name for name, _ in select.points(ds)]
        assert ["momentum" in name for name in names] == ["sgd" in name for name in names]

    def test_figures_show_the_trials_that_have_them(self) -> None:
        ds = self.searched()
        count = int((ds["optimizer"] == "sgd").sum())
        figure = figures.final_by(ds, "momentum")
        points, *rest = (line for line in figure.axes[0].lines if line.get_label() != "each trial")
        assert not rest
        assert points.get_label().startswith("best ")  # the ring: nothing is joined
        assert (
            f"The {count} of 60 trials in which momentum has an effect"
            in (figure.interactive["layout"]["meta"]["note"])
        )
        momentum = figures.parallel(ds).interactive["data"][0]["dimensions"][1]
        assert momentum["ticktext"][0] == "–"
        assert momentum["values"].count(momentum["tickvals"][0]) == 60 - count

    def test_a_value_that_stands_for_the_condition_is_not_important(self) -> None:
        found = importance(self.searched())
        assert found.table["name"].iloc[0] == "optimizer"
        drops = dict(zip(found.table["name"], found.table["drop"], strict=True))
        assert drops["optimizer"] > 0.8
        assert abs(drops["momentum"]) < 0.05


def test_a_unit_with_a_full_stop_ends_no_sentence():
    metrics = {"loss": ("lower", "deg. C"), "r2": ("higher", "")}
    short = sections.in_general(dataset(metrics=metrics), forget).short_answer
    assert short.endswith("deg.\N{NO-BREAK SPACE}C: learning rate 0.01.")


def test_the_summary_has_the_first_sentence_whatever_is_in_it_and_follows():
    ds = dataset({"optimizer": ["Dr. Who", "Mr. X", "plain"]}, loss=[0.1, 0.2, 0.3])
    ds["accuracy"][...] = 0.5
    ds["accuracy"][2] = 0.4
    section = sections.in_general(ds, forget)
    assert ". 2 of 3 trials tie at" in section.answer
    assert section.short_answer.endswith("nats: optimizer Dr.\N{NO-BREAK SPACE}Who.")


def test_numbers_written_as_text_are_as_important_as_numbers():
    counts, rates = [2, 4, 8, 16, 32, 64, 128], [0.1, 0.2]
    losses = np.add.outer(np.arange(7), [0, 0.5])
    ds = dataset({"units": list(map(str, counts)), "learning_rate": rates}, loss=losses)
    numbers = dataset({"units": counts, "learning_rate": rates}, loss=losses)
    assert str(importance(ds)) == str(importance(numbers))


def test_numbers_that_came_twice_by_chance_are_not_joined():
    rng = np.random.default_rng(0)
    points = {"width": [8, 8, 16, 32, 64], "dropout": rng.uniform(0, 0.5, 5)}
    figure = figures.final_by(dataset({"sample": points}), "width")
    labels = [str(line.get_label()) for line in figure.axes[0].lines]
    assert not any(label.startswith(("mean", "best of")) or label == "best" for label in labels)
