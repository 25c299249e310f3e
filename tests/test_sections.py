"""Questions answered from results: those of the sweeps that ship, and where trials diverge."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from jaxexp.cli import library
from jaxexp.execution.driver import Problem
from jaxexp.execution.records import TrialRecord
from jaxexp.nn.mlp import Classification
from jaxexp.report import sections
from jaxexp.results.dataset import to_dataset
from jaxexp.spec.sweep import Comparison, Question, Sweep
from jaxexp.spec.trial import MLPTrial, Trial

SPLITS = ("train", "validation", "test")
STEPS = 3  # an epoch
NAMES = [name for name in library.names() if type(library.load(name).base) is MLPTrial]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A map of six cells and two classes."""
    return Problem(
        task=Classification(2),
        data={},
        prediction_dims={"region": ("latitude", "longitude")},
        coords={
            "longitude": (("longitude",), np.linspace(0, 2, 3)),
            "latitude": (("latitude",), np.linspace(50, 51, 2)),
            "test_longitude": (("point",), np.array([0.0, 1.0])),
            "test_latitude": (("point",), np.array([50.0, 51.0])),
            "test_label": (("point",), np.array([0, 1])),
        },
        attrs={"classes": json.dumps(["Here", "There"]), "label_entropy": 0.69},
    )


def record(trial: Trial, place: int, diverged: int) -> TrialRecord:
    """Losses that fall; after divergence none, but the accuracy, by chance, is perfect."""
    epoch_E = np.arange(1, trial.epochs + 1, dtype=np.float32)
    sound_E = epoch_E < (diverged or np.inf)
    loss_E = np.where(sound_E, 0.5 + place / 10 + 1 / epoch_E, np.nan)
    layers = trial.depth + 1
    return TrialRecord(
        trial,
        metrics={
            split: {"loss": loss_E + i / 100, "accuracy": np.where(sound_E, np.exp(-loss_E), 1)}
            for i, split in enumerate(SPLITS)
        },
        step_loss=np.repeat(loss_E, STEPS) + np.tile([0, 0.1, 0], trial.epochs),
        gradient_norms=np.where(sound_E, 1 / epoch_E, np.inf)[:, None] * 0.5 ** np.arange(layers),
        predictions={"region": np.array([0, 0, 1, 1, 1, 0], np.int16)},
        params={}, state={}, seconds=1.0, compile_seconds=0.0,
    )  # fmt: skip


def answered(
    sweep: Sweep, problem: Problem, diverged: dict[int, int], *, draw: bool = True
) -> list[sections.Section]:
    """The sections of a sweep of which some trials, by place, diverged in some epoch."""
    trials = sweep.trials()
    if not draw:
        plain = tuple(replace(q, draw=lambda results: []) for q in sweep.questions)
        sweep = replace(sweep, questions=plain)
    records = {t: record(t, i, diverged.get(i, 0)) for i, t in enumerate(trials)}
    dataset = to_dataset(sweep, records, problem, {})
    return sections.of_sweep(sweep, dataset, lambda name, png: None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epoch", [1, 5])
def test_a_diverged_trial_is_told_and_never_best(name, epoch, problem):
    sweep = library.load(name)
    trials = len(sweep.trials())
    for place, trial in enumerate(sweep.trials() if trials > 1 else ()):
        end = min(epoch, trial.epochs)
        for section in answered(sweep, problem, {place: end}, draw=False):
            [note] = section.notes
            assert note.startswith(f"1 of {trials} trials diverged: ")
            assert note.endswith(f"diverged in epoch {end}, step {STEPS * (end - 1) + 1}.")
            assert not re.search(r"\bnan\b|\binf\b|\b1\.000\b", section.answer)


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_a_sweep_with_a_diverged_trial_are_drawn(name, problem):
    for section in answered(library.load(name), problem, {0: 1}):
        assert section.figures


@pytest.mark.parametrize("name", NAMES)
def test_where_all_diverged_no_number_is_told(name, problem):
    sweep = library.load(name)
    everything = dict.fromkeys(range(len(sweep.trials())), 1)
    for section in answered(sweep, problem, everything):
        assert section.answer == "Every trial diverged."
        assert section.figures


@pytest.mark.parametrize("name", NAMES)
def test_where_none_diverged_there_is_no_note(name, problem):
    sweep = library.load(name)
    for section in answered(sweep, problem, {}, draw=False):
        assert not section.notes
        assert "diverged" not in section.answer


def test_a_sweep_without_questions_is_answered_in_general(problem):
    sweep = Sweep(base=MLPTrial(epochs=3), axes={"width": [4, 8]}, name="my_widths")
    [section] = answered(sweep, problem, {0: 2})
    assert (section.row, section.title) == ("my_widths", "my widths")
    assert "0.943 nats: width 8." in section.answer  # 0.5 + 0.1 + 1/3 + 0.01 of validation
    assert section.notes == ["1 of 2 trials diverged: width 4 diverged in epoch 2, step 4."]


def made(diverged: int = 0, **attrs: str) -> xr.Dataset:
    return xr.Dataset({"loss": ((), 1.0), "seconds": 2.0, "diverged_epoch": diverged}, attrs=attrs)


@pytest.fixture
def comparing(monkeypatch) -> list:
    """Three sweeps compared by a question that keeps what it is given."""
    given: list = []
    question = Question(
        row="9", title="t", question="q", draw=lambda results: [], reference="",
        answer=lambda results: given.append(results) or "It is so.",
    )  # fmt: skip
    shipped = [Comparison(sweeps=("one_a", "two", "three"), questions=(question,))]
    monkeypatch.setattr(library, "comparisons", lambda: shipped)
    return given


def compared(**datasets: xr.Dataset) -> list[sections.Section]:
    return sections.of_comparisons(datasets, lambda name, png: None)


def test_a_comparison_gets_its_sweeps_in_order_and_no_others(comparing):
    datasets = {name: made() for name in ("other", "three", "one_a", "two")}
    [section] = compared(**datasets)
    assert list(comparing[0]) == ["one_a", "two", "three"]
    assert comparing[0]["two"] is datasets["two"]
    assert section.answer == "It is so."
    assert section.seconds == 6


def test_what_is_missing_is_named_in_the_answer(comparing):
    [section] = compared(three=made(), one_a=made())
    assert section.answer == "It is so. Left out, not being in this run: two."
    assert compared(three=made()) == []
    assert compared(other=made(), else_=made()) == []


def test_notes_stand_once_and_name_the_sweep_of_a_diverged_trial(comparing):
    notes = json.dumps(["few images"])
    [section] = compared(one_a=made(diverged=2, notes=notes), two=made(notes=notes))
    assert section.notes == [
        "few images", "1 of 2 trials diverged: one a, single trial diverged in epoch 2.",
    ]  # fmt: skip
    [section] = compared(one_a=made(diverged=2), two=made(diverged=1))
    assert section.answer.startswith("Every trial diverged. Left out")


def test_comparisons_that_ship_compare_sweeps_by_their_file_names():
    [detectors] = library.comparisons()
    assert detectors.sweeps == (
        "boosted_trees", "scratch", "probing", "probing_sklearn", "fine_tuning",
    )  # fmt: skip
    assert [question.row for question in detectors.questions] == ["7.6", "7.7"]
