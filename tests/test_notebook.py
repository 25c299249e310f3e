import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parent.parent / "notebooks"
FIGURES = {"quickstart": 2, "report": 1, "own_model": 1, "plan": 0, "optuna": 1}
FIGURES |= {"scikit_learn": 2, "search": 2}


def told(name: str) -> str:
    """What a notebook prints, its figures counted."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    assert drawn == FIGURES[name]
    return "".join(output.get("text", "") for output in outputs)


def test_the_quickstart():
    text = told("quickstart")
    assert "24 trials in 1 program" in text
    assert "best by validation accuracy" in text
    assert float(re.search(r"([\d.]+) of the test digits are right", text)[1]) > 0.9


@pytest.mark.nightly
def test_the_report_with_error_bars():
    text = told("report")
    assert "20 trials" in text
    gains = re.search(r"seed by seed: \[(.*)\]", text)[1].split()
    assert len(gains) == 5
    first, *_, last = re.findall(r"validation accuracy ([\d.]+) ± ([\d.]+)", text)
    assert float(last[0]) > float(first[0]) > 0.1
    assert float(last[1]) > 0


def test_an_own_model():
    text = told("own_model")
    assert "12 trials in 1 program" in text
    left, right = map(float, re.findall(r"([\d.]+) on the (?:left|right)", text))
    assert left < 0.15 < right < 0.4


def test_reading_a_plan():
    text = told("plan")
    plans = re.findall(r"^(\d+) trials in (\d+) programs? ", text, re.MULTILINE)
    counts = [tuple(map(int, plan)) for plan in plans]
    assert counts[0] == (16, 1)  # numbers share a program
    assert counts[1] == (6, 1)  # few trials of other widths are padded
    assert 1 < counts[2][1] <= 3  # many are not
    assert counts[3:] == [(6, 3), (96, 1), (12, 3), (8, 1)]
    assert "(and 4 of fewer)" in text


@pytest.mark.nightly
def test_a_study_of_optuna():
    pytest.importorskip("optuna")
    text = told("optuna")
    assert "128 trials in" in text
    states = {state: int(n) for n, state in re.findall(r"^(\d+) ([A-Z]+)$", text, re.MULTILINE)}
    assert sum(states.values()) == 128
    assert states["PRUNED"] > states["COMPLETE"] > 0
    assert float(re.search(r"([\d.]+) of the test digits are right", text)[1]) > 0.9


@pytest.mark.nightly
def test_four_ways_to_search():
    text = told("search")
    found = re.findall(r"^(\w+): (\d+) trials, (\d+) epochs, .* accuracy ([\d.]+)$", text, re.M)
    assert [(name, int(trials), int(epochs)) for name, trials, epochs, _ in found] == [
        ("random", 81, 2187), ("halving", 81, 243), ("Hyperband", 49, 357), ("population", 9, 243),
    ]  # fmt: skip
    assert min(float(accuracy) for *_, accuracy in found) > 0.95
    assert "16 copies" in text
    assert len(re.findall(r": ([\d.]+) of the test digits are right", text)) == 4


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stem in FIGURES
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.nightly
def test_a_search_of_scikit_learn():
    text = told("scikit_learn")
    assert len(re.findall(r"80 fits in [\d.]+ s", text)) == 2
    assert float(re.search(r"([\d.]+) of the test digits are right", text)[1]) > 0.94
