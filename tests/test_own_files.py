"""Sweep files of a user's own, with data, models and losses that nobody here has thought of."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_cli import command, write_csvs

import jaxexp as jx
from jaxexp.api.checks import check_saved
from jaxexp.cli import begun, exporting, library, prediction
from jaxexp.cli import main as cli
from jaxexp.cli.command import Command
from jaxexp.reproduce import vision
from jaxexp.results import models
from jaxexp.results.dataset import load, save
from jaxexp.spec.values import text

REGRESSION = """
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxexp as jx


@dataclass(frozen=True, kw_only=True)
class Bump(jx.Trial):
    width: int = jx.static(8, at_least=1)


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(self.width)(x)))[:, 0]


def problem(inputs):
    x_Nx1 = np.random.default_rng(0).uniform(-1, 1, (96, 1)).astype(np.float32)
    task = jx.supervised(
        module=lambda trial: Net(trial.width),
        loss=lambda prediction, y: (prediction - y) ** 2,
        metrics={"r2": jx.metrics.r2},
    )
    return jx.Problem(task, jx.arrays(x_Nx1, np.sin(3 * x_Nx1[:, 0]), name="a bump"))


points = [(1e-1, 0), (1e-1, 1), (1e-1, 2), (1e-2, 0), (1e-2, 1)]
sweep = jx.Sweep(Bump(epochs=3, batch_size=32), {("learning_rate", "seed"): points})
"""
FAILING = """
import jaxexp as jx
from jaxexp.reproduce.places import problem


def draw(results):
    jx.figures.curves(results)
    return results["no such thing"]


sweep = jx.Sweep(
    jx.MLPTrial(epochs=1, depth=1, batch_size=64),
    questions=(
        jx.Question(
            row="1", title="One", question="Why?", reference="", draw=draw,
            answer=lambda results: "Therefore.",
        ),
    ),
)
"""


BEGINNING = """
import jaxexp as jx
from jaxexp.reproduce.places import problem

sweep = jx.Sweep(jx.MLPTrial(epochs=1, depth=1, batch_size=64))
"""


def told(capsys, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What a command says, on standard output and beside it."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == code, err
    assert "Traceback" not in err
    return out, err.replace("\n", " ")


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> Path:
    """A run of a file of a user's own: neither places nor classes, no accuracy, no test split."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "bump.py").write_text(REGRESSION)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(folder / "bump.py"), "--out", str(folder / "run")])
    assert stopped.value.code == 0
    return folder / "run"


def test_ones_own_problem_ends_with_a_page(regression):
    page = (regression / "report.html").read_text()
    assert "a bump" in page
    assert "lowest validation loss" in page
    assert "highest validation r2" in page
    for word in ("longitude", "places", "countr", "accuracy"):
        assert word not in page
    with xr.open_dataset(regression / "results" / "bump.nc") as dataset:
        assert dataset["split"].values.tolist() == ["train", "validation"]
        assert json.loads(dataset.attrs["metrics"]) == ["loss", "r2"]
        assert "classes" not in dataset.attrs
    assert len(list((regression / "models" / "bump").iterdir())) == 5


@pytest.mark.nightly
def test_ones_own_run_is_drawn_again(regression, capsys):
    before = (regression / "report.html").read_bytes()
    told(capsys, "report", str(regression))
    assert (regression / "report.html").read_bytes() == before


@pytest.mark.usefixtures("no_figures")
def test_ones_own_run_is_resumed(regression, tmp_path, capsys):
    """As if it had been stopped before its results were written."""
    content = json.loads((regression / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"finished": False}))
    told(capsys, "resume", str(tmp_path))
    with (
        xr.open_dataset(regression / "results" / "bump.nc") as one,
        xr.open_dataset(tmp_path / "results" / "bump.nc") as other,
    ):
        for name in ("loss", "r2", "step_loss"):
            np.testing.assert_array_equal(one[name], other[name])


def test_lost_results_of_a_complete_run_are_trained_again(
    regression, tmp_path, capsys, monkeypatch
):
    shutil.copytree(regression, tmp_path / "run")
    (tmp_path / "run" / "results" / "bump.nc").write_bytes(b"CDF")
    _, err = told(capsys, "show", str(tmp_path / "run"), code=2)
    assert f"`jaxexp resume {tmp_path / 'run'}` trains the sweep again" in err
    resumed = []
    monkeypatch.setattr(begun, "run_in", lambda command, path, *_, **__: resumed.append(path))
    told(capsys, "resume", str(tmp_path / "run"))
    assert resumed == [tmp_path / "run"]


def test_lost_results_of_a_study_are_not(regression, tmp_path, capsys):
    content = json.loads((regression / "run.json").read_text())
    content["search"] = {"sampler": "optuna", "trials": 2, "seed": 0}
    (tmp_path / "run.json").write_text(json.dumps(content))
    _, err = told(capsys, "resume", str(tmp_path), code=2)
    assert f"the results of bump are damaged or gone: `jaxexp search … --out {tmp_path} --f" in err


@pytest.mark.nightly
@pytest.mark.usefixtures("no_figures")
def test_the_results_of_a_file_that_is_gone_are_drawn_all_the_same(regression, tmp_path, capsys):
    content = (regression / "run.json").read_text().replace("bump.py", "gone/bump.py")
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "results").mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "results" / "bump.nc").write_bytes((regression / "results/bump.nc").read_bytes())
    _, err = told(capsys, "report", str(tmp_path))
    assert "no such sweep file; its results are drawn as those of any sweep" in err
    assert "lowest validation loss" in (tmp_path / "report.html").read_text()


@pytest.mark.nightly
def test_predictions_of_a_regression_are_those_of_the_best_setting(regression, tmp_path, capsys):
    """The one that the page calls the best: by loss, as nothing is classified, over the seeds."""
    (tmp_path / "new.csv").write_text("position\n-0.5\n0\n0.25\n")
    out, err = told(capsys, "predict", str(regression), str(tmp_path / "new.csv"))
    source = library.load_source(str(regression.parent / "bump.py"))
    results = jx.run(source.sweep, *source.problem(jx.Inputs()), progress=False)
    best = results.best_setting()
    wanted = results.predict([[-0.5], [0.0], [0.25]], best)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == [f"{tmp_path / 'new.csv'}:{i}" for i in (2, 3, 4)]
    np.testing.assert_allclose([float(row[1]) for row in rows], wanted, rtol=1e-4, atol=1e-6)
    assert f"learning rate {best.trial.learning_rate}, seed {best.trial.seed}, validation" in err
    seeds = 3 if best.trial.learning_rate == 0.1 else 2
    assert f"over {seeds} seeds, of which this one has the median loss" in err
    page = (regression / "report.html").read_text()
    assert "over 2 to 3 seeds" in page
    first = re.findall(r"<td[^>]*>([^<]*)</td>", page[page.index("Both settings by") :])[:3]
    assert list(map(float, first)) == [1, best.trial.learning_rate, seeds]
    luckiest = results.best().trial
    first = re.findall(r"<td[^>]*>([^<]*)</td>", page[page.index("All 5 trials by") :])[:3]
    assert list(map(float, first)) == [1, luckiest.learning_rate, luckiest.seed]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_columns_are_the_same_in_any_normal_form_of_unicode(forms, tmp_path):
    trained, written = (unicodedata.normalize(form, "höhe") for form in forms)
    (tmp_path / "new.csv").write_text(f"c,{written}\n1,2\n", encoding="utf-8")
    like = np.zeros((1, 2), np.float32)
    task = jx.MLPClassification()
    made, lines = prediction._read(tmp_path / "new.csv", [trained, "c"], task, like, print)
    assert made.tolist() == [[2, 1]]
    assert lines == [2]


def test_features_that_are_one_name_in_a_table_are_refused(tmp_path):
    (tmp_path / "new.csv").write_text("a,c\n1,2\n")
    like, task = np.zeros((1, 2), np.float32), jx.MLPClassification()
    with pytest.raises(jx.UserError, match=r"new.csv: the features 'a', ' a' are one name in a"):
        prediction._read(tmp_path / "new.csv", ["a", " a"], task, like, print)


def test_words_for_bools_are_numbers_beside_numbers(tmp_path):
    (tmp_path / "new.csv").write_text("a\ntrue\n0\nFALSE\n")
    like, task = np.zeros((1, 1), np.float32), jx.MLPClassification()
    made, _ = prediction._read(tmp_path / "new.csv", ["a"], task, like, print)
    assert made.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n", "line 1: the columns are a, b, expected 1 column of numbers"),
        ("a\n1\nx\n", "line 3: a is 'x', expected a number"),
        ("a\n", "no rows after the header"),
        ("0.5\n1\n", "line 1: there are numbers in the header (0.5), expected the names"),
        ("\ufeff -5e-1\n", "line 1: there are numbers in the header (-5e-1), expected"),
        ("NA,,2.5\n1,2,3\n", "line 1: there are numbers in the header (2.5), expected the na"),
        ("a\n\n1\n\nx\n", "line 5: a is 'x', expected a number"),
        (
            "a\n1\n2,3\n",
            "line 3: fields in the row, split by commas: 2, expected 1 as in the header",
        ),
        (
            "a,b\n1\n",
            "line 2: fields in the row, split by commas: 1, expected 2 as in the header",
        ),
        (
            "a\n1,2\n",
            "line 2: fields in the row, split by commas: 2, expected 1 as in the header",
        ),
        ('a\n""\n', "line 2: a is '', expected a number"),
        ("a\n1\nTrue\nyes\n", "line 4: a is 'yes', expected a number"),
        ("a\n1e39\n", "line 2: a is '1e39', expected a number that float32 holds"),
        ("", "the file is empty, expected a header with 1 column of numbers"),
        (None, "no such file, expected a CSV file with 1 column of numbers"),
    ],
)
def test_tables_that_cannot_be_predicted(table, message, tmp_path):
    file = tmp_path / "new.csv"
    if table is not None:
        file.write_text(table)
    with pytest.raises(jx.UserError) as refused:
        prediction._read(file, None, jx.MLPClassification(), np.zeros((1, 1), np.float32), print)
    assert message in str(refused.value)
    assert str(file) in str(refused.value)


def test_columns_of_bools_are_read_as_pandas_reads_them(tmp_path):
    (tmp_path / "new.csv").write_text("a,b\nTrue,2\nFALSE,3\n")
    columns = tmp_path / "new.csv", ["a", "b"]
    made, _ = prediction._read(*columns, jx.MLPClassification(), np.zeros((1, 2), "f"), print)
    assert made.tolist() == [[1, 2], [0, 3]]
    looked_up = jx.supervised(init=lambda trial, rng, x: {}, apply=lambda t, p, x: x, loss=min)
    with pytest.raises(jx.UserError, match="line 2: a is 'True', expected a number"):
        prediction._read(*columns, looked_up, np.zeros((1, 2), np.int32), print)


@pytest.mark.parametrize("features", [None, ["a", "b"]])
@pytest.mark.parametrize("split", [";", "\t"])
@pytest.mark.parametrize("row", ["1{}2", "1,5{}2"])
def test_tables_that_commas_do_not_split(row, split, features, tmp_path):
    file = tmp_path / "new.csv"
    file.write_text(f"a{split}b\n{row.format(split)}\n")
    with pytest.raises(jx.UserError) as refused:
        prediction._read(file, features, jx.MLPClassification(), np.zeros((1, 2)), print)
    header = f"a{split}b"
    assert f"line 1: the header is {header!r}, expected names split by commas" in str(refused.value)


@pytest.mark.parametrize(
    ("parts", "named"), [(dict, r"a dict \(mean, sd\)"), (list, r"a list \(0, 1\)")]
)
def test_rows_of_predictions_that_are_no_array_are_refused(parts, named, tmp_path):
    (tmp_path / "new.csv").write_text("a\n1\n2\n")
    task = jx.supervised(
        init=lambda trial, rng, x: {"w": jnp.ones(1)},
        apply=lambda trial, params, x: (
            {"mean": x @ params["w"], "sd": x[:, 0]} if parts is dict else [x @ params["w"], x]
        ),
        loss=lambda prediction, y: y,
    )
    planned = SimpleNamespace(task=task, data=jx.arrays([[0.0], [1.0]], [0.0, 1.0], validation=1))
    about = {"attrs": {}, "task": {}}
    model = models.Model(tmp_path / "a.npz", about, {"params/w": np.ones(1, np.float32)})
    with pytest.raises(jx.UserError, match=rf"new.csv: the model predicts {named}, expected an"):
        prediction._of_tables(model, jx.Trial(), planned, [tmp_path / "new.csv"], print)


def test_predictions_that_are_no_finite_numbers_are_told(tmp_path):
    (tmp_path / "new.csv").write_text("a\n1\n-1\n")
    task = jx.supervised(
        init=lambda trial, rng, x: jnp.ones(1),
        apply=lambda trial, params, x: jnp.log(x) @ params,
        loss=lambda prediction, y: y,
    )
    data = jx.arrays([[1.0], [2.0]], [0.0, 1.0], validation=1)
    planned, told = SimpleNamespace(task=task, data=data), []
    model = models.Model(
        tmp_path / "a.npz", {"attrs": {}, "task": {}}, {"params": np.ones(1, np.float32)}
    )
    assert model.variables().params is model.arrays["params"]
    files = [tmp_path / "new.csv"]
    made = prediction._of_tables(model, jx.Trial(), planned, files, told.append)
    assert [own.label for own in made] == ["0", "nan"]
    assert "1 of 2 predictions are no finite numbers" in told


@dataclass(frozen=True)
class Saving(jx.MLPClassification):
    shifts: tuple[object, ...] = ()
    saved_fields = ("shifts",)


def test_a_model_gives_back_what_its_task_took_from_the_data(tmp_path):
    task = Saving(shifts=((0.5, 2), (True, None, "a")))
    about = json.loads(json.dumps({"task": {"shifts": task.shifts, "gone": 1}}))
    assert models.Model(tmp_path / "a.npz", about, {}).bound(Saving()) == task


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    task = jx.MLPClassification(np.int64(2), (np.float32(0.1),), (np.float64(0.1),))
    task = task.bind(jx.arrays([[0.0], [1.0], [2.0]], [0, 1, 1], validation=1))
    check_saved(task)
    trial, variables = jx.MLPTrial(), jx.Variables({"w": np.ones(1)})
    record = SimpleNamespace(
        trial=trial, final=trial, variables=variables, metrics={}, running=(), diverged_epoch=0
    )
    models.save(tmp_path, "own", record, {}, task)
    model = models.load(tmp_path / "own" / f"{trial.id}.npz")
    assert model.bound(jx.MLPClassification()) == task


def test_two_arrays_of_one_name_are_not_saved(tmp_path):
    trial, params = jx.MLPTrial(), {"a": {"b": np.ones(1)}, "a/b": np.zeros(1)}
    record = SimpleNamespace(trial=trial, variables=jx.Variables(params))
    with pytest.raises(jx.UserError, match="two arrays are 'params/a/b', expected paths that"):
        models.save(tmp_path, "own", record, {}, jx.MLPClassification())


@dataclass(frozen=True)
class Unsaved(Saving):
    found: int = field(default=1, init=False)
    saved_fields = ("found",)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Saving(shifts=(1, (2.5j,))), "Saving.*'shifts' holds 2.5j, a complex, expected a number"),
        (Unsaved(), "Unsaved.*'found', expected a field of a dataclass that __init__ takes"),
    ],
)
def test_fields_that_models_would_not_give_back_are_refused(task, message):
    with pytest.raises(jx.UserError, match=f"^{message}"):
        check_saved(task)


@dataclass(frozen=True, kw_only=True)
class NamedTrial(jx.Trial):
    names: tuple[str, ...] = ("a-b", "c")  # which text does not give back


def test_the_trial_of_a_study_has_its_own_values_from_the_base():
    base = NamedTrial()
    space = jx.search.Space(base, {"learning_rate": jx.search.loguniform(1e-4, 1)})
    wanted = base.replace(learning_rate=0.5, seed=3)
    about = {"initial": {name: text(value) for name, value in wanted.values().items()}}
    source = library.Source(jx.Sweep(base), "", space=space)
    assert prediction._trials(source, SimpleNamespace(about=about)) == [wanted]


def test_a_table_that_cannot_be_predicted_is_told(regression, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("a\nx\n")
    _, err = told(capsys, "predict", str(regression), str(tmp_path / "new.csv"), code=2)
    assert f"{tmp_path / 'new.csv'}, line 2: a is 'x', expected a number" in err


def test_rows_are_told_by_their_lines_and_columns_without_names_by_their_order(
    regression, tmp_path, capsys
):
    (tmp_path / "new.csv").write_text("\nposition\n-0.5\n\n0\n")
    out, err = told(capsys, "predict", str(regression), str(tmp_path / "new.csv"))
    rows = [line.partition("\t")[0] for line in out.splitlines()]
    assert rows == [f"{tmp_path / 'new.csv'}:{i}" for i in (3, 5)]
    assert "the model knows no names: its inputs are position, in this order" in err


@pytest.mark.nightly
def test_a_column_that_stands_twice_is_refused(classified, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("u,v,u\n1,2,3\n")
    _, err = told(capsys, "predict", str(classified), str(tmp_path / "new.csv"), code=2)
    assert "line 1: column u is repeated in 'u', 'v', 'u', expected the columns u, v, each" in err


@pytest.mark.nightly
def test_values_far_outside_of_those_trained_on_are_told(classified, tmp_path, capsys):
    """As of rows that are not scaled as the sweep's file scales its examples."""
    (tmp_path / "new.csv").write_text("u,v\n0.5,1\n50,0.5\n-20,0.5\n2.5,0.5\n")
    _, err = told(capsys, "predict", str(classified), str(tmp_path / "new.csv"))
    assert f"{tmp_path / 'new.csv'}: values far outside of those in training: u in 2 of 4 " in err
    assert re.search(r"rows \(−20 to 50, in training −[01]\S* to [12]\S*\); if the sweep's", err)
    assert "scales its examples, scale rows likewise" in err
    (tmp_path / "new.csv").write_text("u,v\n0.5,1\n2.5,0.5\n")
    _, err = told(capsys, "predict", str(classified), str(tmp_path / "new.csv"))
    assert "far outside" not in err
    (tmp_path / "new.csv").write_text("u,v\n0.5,1\n3e38,3e38\n")
    out, err = told(capsys, "predict", str(classified), str(tmp_path / "new.csv"), code=2)
    assert f"{tmp_path / 'new.csv'}:3: the probabilities of its classes are NaN (1 of 2 ex" in err
    assert not out


def test_values_beside_a_constant_are_far_where_their_digits_show_it():
    trained = np.array([[7.0, 0.0], [7.0, 1.0]], np.float32)
    close, other = np.array([[7.000001, 0.5]], np.float32), np.array([[7.05, 0.5]], np.float32)
    assert prediction._far_outside(["const", "x"], close, trained) == ""
    told = prediction._far_outside(["const", "x"], other, trained)
    assert told == "const in 1 of 1 row (7.05, in training 7)"


def test_fractions_are_read_where_the_model_computes_with_whole_numbers_as_with_floats(tmp_path):
    (tmp_path / "new.csv").write_text("n,m\n4.5,1\n")
    like = np.zeros((1, 2), np.int32)
    made, _ = prediction._read(
        tmp_path / "new.csv", ["n", "m"], jx.MLPClassification(), like, print
    )
    assert made.tolist() == [[4.5, 1]]
    looked_up = jx.supervised(init=lambda trial, rng, x: {}, apply=lambda t, p, x: x, loss=min)
    with pytest.raises(jx.UserError, match=r"n is '4.5', expected a whole number that int32 holds"):
        prediction._read(tmp_path / "new.csv", ["n", "m"], looked_up, like, print)


def test_a_function_that_predicts_may_yield_predictions_and_nothing_else(
    regression, capsys, monkeypatch
):
    sources, made = Command.sources, jx.Prediction("a.jpg", "cat", 0.9)

    def predicting(predict):
        return lambda self: [dataclasses.replace(own, predict=predict) for own in sources(self)]

    monkeypatch.setattr(Command, "sources", predicting(lambda model, files: iter([made])))
    out, _ = told(capsys, "predict", str(regression), "a.jpg")
    assert out.startswith("a.jpg\tcat\t")
    monkeypatch.setattr(Command, "sources", predicting(lambda model, files: [tuple(made)]))
    _, err = told(capsys, "predict", str(regression), "a.jpg", code=2)
    assert "bump: predict(model, files) gives ('a.jpg', 'cat', 0.9), expected a jx.Pred" in err


def test_a_file_of_another_kind_than_the_models_read(regression, capsys):
    _, err = told(capsys, "predict", str(regression), "cat.jpg", code=2)
    assert "cat.jpg: expected models of a sweep whose file defines `predict(model, files)`" in err
    assert "for files other than tables, whose names end in .csv; this run has none" in err
    _, err = told(capsys, "predict", str(regression), "--export", "w.pth", code=2)
    assert "--export w.pth: expected models of a sweep whose file defines `export(model, " in err
    _, err = told(capsys, "predict", str(regression), "a.csv", "cat.jpg", code=2)
    assert "cat.jpg: expected a name in .csv, as a.csv, or images alone" in err


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> Path:
    """CSV files in the report's layout of what are no places."""
    folder = tmp_path_factory.mktemp("moons")
    for i, name in enumerate(("train", "validation", "test")):
        rng = np.random.default_rng(i)
        angle_N, y_N = rng.uniform(0, np.pi, 120), rng.integers(0, 2, 120)
        side_N = 1 - 2 * y_N
        x_Nx2 = np.stack([side_N * np.cos(angle_N) + y_N, side_N * np.sin(angle_N) + y_N / 2], 1)
        rows = [f"{x},{y},{'ab'[label]}" for (x, y), label in zip(x_Nx2, y_N, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["u,v,moon", *rows]) + "\n")
    return folder


def test_tables_of_another_kind_are_never_taken_for_places(moons, capsys, tmp_path):
    """They are refused: neither drawn on a map nor compared with the report."""
    line = ["run", "learning_rate", "--data", str(moons), "--out", str(tmp_path / "run")]
    _, err = told(capsys, *line, code=2)
    assert f"{moons}/train.csv, line 1: column long is missing in 'u', 'v', 'moon'" in err
    assert not list(tmp_path.iterdir())


MOONS = """
import pandas as pd

import jaxexp as jx


def problem(inputs):
    splits = {}
    for name in ("train", "validation", "test"):
        table = pd.read_csv(inputs.data / f"{name}.csv")
        splits[name] = (table[["u", "v"]], table["moon"])
    held_out = {name: splits[name] for name in ("validation", "test")}
    return jx.Problem(
        jx.MLPClassification(), jx.arrays(*splits["train"], **held_out, name="two moons")
    )


sweep = jx.Sweep(
    jx.MLPTrial(epochs=4, depth=2, width=8, batch_size=30, features="standardised"),
    {"learning_rate": [1e-2, 1e-3]},
)
"""


@pytest.fixture(scope="module")
def classified(moons, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classified")
    (folder / "moons.py").write_text(MOONS)
    line = ["run", str(folder / "moons.py"), "--data", str(moons), "--out", str(folder / "run")]
    with pytest.raises(SystemExit) as stopped:
        cli.main(line)
    assert stopped.value.code == 0
    return folder / "run"


def test_classes_of_tables_of_ones_own_are_shown_without_a_map(classified):
    page = (classified / "report.html").read_text()
    assert "two moons" in page
    assert "accuracy" in page
    for word in ("longitude", "latitude", "places", "The report"):
        assert word not in page


@pytest.mark.nightly
def test_predict_from_any_folder_with_relative_paths(classified, moons, tmp_path, capsys):
    """In a process of its own, elsewhere; and the same in this one."""
    (tmp_path / "new.csv").write_bytes((moons / "test.csv").read_bytes())
    (tmp_path / "there").symlink_to(classified)
    done = command("predict", "there", "new.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[:2]] == ["new.csv:2", "new.csv:3"]
    source = library.load_source(str(classified.parent / "moons.py"))
    results = jx.run(source.sweep, *source.problem(jx.Inputs(data=moons)), progress=False)
    best = results.best()  # the page's: without questions, it ranks by loss
    x_Nx2 = results.data.test.x
    assert [row[1] for row in rows] == results.predict(x_Nx2, best).tolist()
    probability_N = results.predict_proba(x_Nx2, best).max(1)
    np.testing.assert_allclose([float(row[2]) for row in rows], probability_N, atol=1e-4)
    assert f"learning rate {best.trial.learning_rate}, " in done.stderr
    assert "validation loss" in done.stderr


@pytest.fixture
def elsewhere(classified, moons, tmp_path) -> Path:
    """The same run, moved with its file and its data."""
    shutil.copytree(classified, tmp_path / "run")
    shutil.copytree(moons, tmp_path / "data")
    shutil.copy(classified.parent / "moons.py", tmp_path / "moons.py")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["inputs"]["data"] = str(tmp_path / "data")
    content["sweeps"] = [str(tmp_path / "moons.py")]
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    (tmp_path / "new.csv").write_bytes((moons / "test.csv").read_bytes())
    return tmp_path


def change(elsewhere: Path, file: str, old: str, new: str) -> list[str]:
    """Change a file; returns how to predict with the models of the run."""
    for path in elsewhere.glob(file):
        path.write_text(path.read_text().replace(old, new))
    return ["predict", str(elsewhere / "run"), str(elsewhere / "new.csv")]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("data/*.csv", ",a\n", ",c\n", "its classes were a, b, are b, c"),
        ("moons.py", '["u", "v"]', '["v", "u"]', "file of sweep moons was "),
        pytest.param(
            "moons.py",
            "import jaxexp",
            "import  jaxexp",
            "file of sweep moons was ",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_names_are_those_that_the_model_was_trained_with(
    file, old, new, message, classified, elsewhere, capsys
):
    line = ["predict", str(classified), str(elsewhere / "new.csv")]
    expected, _ = told(capsys, *line)
    line = change(elsewhere, file, old, new)
    _, err = told(capsys, *line, code=2)
    assert f"{elsewhere / 'run'}: not what the model was trained with: {message}" in err
    assert told(capsys, *line, "--force")[0] == expected


def test_a_model_under_the_name_of_another_is_refused(elsewhere, capsys):
    one, other = sorted((elsewhere / "run/models/moons").iterdir())
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    _, err = told(capsys, *change(elsewhere, "nothing", "", ""), code=2)
    assert ".npz: the model of another trial, with learning_rate 0.0" in err


def test_a_model_of_another_run_is_refused(elsewhere, capsys):
    """Its trial has the same name, and measured other numbers."""
    file = elsewhere / "run/results/moons.nc"
    results = load(file)
    results["loss"][..., -1, -1] += 1e-6
    save(results, file)
    _, err = told(capsys, *change(elsewhere, "nothing", "", ""), code=2)
    assert ".npz: the model of another run of this trial, with test loss 0." in err


def test_a_feature_by_another_name_is_told(elsewhere, capsys):
    change(elsewhere, "data/*.csv", "u,v,moon", "w,v,moon")
    line = change(elsewhere, "moons.py", '"u"', '"w"')
    content = json.loads((elsewhere / "run" / "run.json").read_text())
    del content["made_with"]["file of sweep moons"]
    (elsewhere / "run" / "run.json").write_text(json.dumps(content))
    _, err = told(capsys, *line, code=2)
    assert "its features were u, v, are w, v" in err


@pytest.mark.nightly
def test_other_rows_elsewhere_change_no_prediction(classified, elsewhere, capsys):
    expected, before = told(capsys, "predict", str(classified), str(elsewhere / "new.csv"))
    line = change(elsewhere, "nothing", "", "")
    assert told(capsys, *line) == (expected, before)
    found, err = told(capsys, *change(elsewhere, "data/train.csv", "1", "2"))
    assert found == expected
    assert "data of moons was " in err
    (elsewhere / "new.csv").write_text("u,v\n50,0.5\n")
    _, err = told(capsys, *line)
    assert "far outside of those in the data as they are now: u in 1 of 1 row (50, in the da" in err
    assert "in training" not in err


@pytest.mark.nightly
def test_an_error_in_ones_own_figure_is_one_line_and_the_page_is_there(tmp_path, capsys):
    data = write_csvs(tmp_path / "data", 300)
    (tmp_path / "mine.py").write_text(FAILING)
    line = ["run", str(tmp_path / "mine.py"), "--data", str(data), "--out", str(tmp_path / "run")]
    out, err = told(capsys, *line, code=4)
    assert out.strip() == str(tmp_path / "run" / "report.html")
    number = FAILING.splitlines().index('    return results["no such thing"]') + 1
    assert "error: `draw` of question 1 failed: KeyError" in err
    assert f"(mine.py, line {number})" in err
    assert err.count("error:") == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Therefore." in page
    assert "`draw` of question 1 failed" in page or "<code>draw</code>" in page
    told(capsys, "report", str(tmp_path / "run"), code=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import jaxexp as jx\nsweep = jx.Sweep(jx.MLPTrial())",
            "mine.py: expected it to define `problem(inputs)`",
        ),
        (
            "import jaxexp as jx\nproblem = 3\nsweep = jx.Sweep(jx.MLPTrial())",
            "mine.py: problem is 3, expected a function",
        ),
        (
            "import jaxexp as jx\ndef problem(inputs): return 3\nsweep = jx.Sweep(jx.MLPTrial())",
            "mine: problem(inputs) returned int, expected jaxexp.Problem(task, data)",
        ),
        (
            "import jaxexp as jx\nfrom jaxexp.reproduce.places import problem\n"
            "sweep = jx.Sweep(jx.MLPTrial(), {'lr': [0.1]})",
            "mine.py: unknown hyperparameter 'lr': did you mean learning_rate",
        ),
    ],
)
def test_files_that_are_no_sweeps_are_refused(content, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(content)
    _, err = told(capsys, "run", str(tmp_path / "mine.py"), "--out", str(tmp_path / "run"), code=2)
    assert message in err
    assert not (tmp_path / "run").exists()


BESIDE = """
import jaxexp as jx
import beside_file
from beside_package import part
from jaxexp.reproduce.places import problem


def width():
    import beside_late

    return beside_file.WIDTH * part.TWO * beside_late.ONE


sweep = jx.Sweep(jx.MLPTrial(epochs=1, depth=1, batch_size=64, width=width()))
"""


@pytest.fixture
def beside(tmp_path, monkeypatch) -> Path:
    """A sweep file that imports modules beside it, at its top, in a function, and of a package."""
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "beside_package").mkdir()
    for name, content in {
        "mine.py": BESIDE, "beside_file.py": "from beside_other import WIDTH", "unused.py": "",
        "beside_other.py": "WIDTH = 4", "beside_late.py": "ONE = 1",
        "beside_package/__init__.py": "", "beside_package/part.py": "TWO = 2",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content + "\n")
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("beside_")]:
        del sys.modules[module]


def test_a_file_imports_modules_beside_it(beside, tmp_path_factory, monkeypatch, capsys):
    """From another folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("other"))
    out, _ = told(capsys, "plan", str(beside / "mine.py"), "--programs", "exact")
    assert "1 trial in 1 program" in out


@pytest.mark.parametrize(
    "changed",
    ["beside_file.py", "beside_other.py", "beside_late.py", "beside_package/part.py", "mine.py"],
)
def test_the_digest_of_a_file_covers_the_modules_beside_it(changed, beside):
    before = library.load_source(str(beside / "mine.py")).digest
    (beside / "unused.py").write_text("changed = True\n")
    assert library.load_source(str(beside / "mine.py")).digest == before
    path = beside / changed
    path.write_text(path.read_text() + "# changed\n")
    assert library.load_source(str(beside / "mine.py")).digest != before


@pytest.mark.nightly
def test_modules_beside_a_file_are_sent_to_nodes_that_have_no_such_file(beside, tmp_path):
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    nodes = pytest.importorskip("jaxexp.cluster.nodes")
    assert library.load(str(beside / "mine.py")).base.width == 8
    made = library._execute(beside / "mine.py")
    with nodes.by_value(nodes.own_modules()):
        sent = cloudpickle.dumps((made.beside_file, made.part))
    code = (
        "import pickle, sys; file, part = pickle.load(sys.stdin.buffer); "
        "print(file.WIDTH * part.TWO)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"8"], done.stderr


@pytest.mark.parametrize("name", ["problem", "check", "estimate"])
def test_an_error_in_a_function_of_a_file_is_told_with_its_line(name, tmp_path, capsys):
    arguments = "sweep, inputs" if name == "estimate" else "inputs"
    function = f"def {name}({arguments}):\n    raise ValueError('my data is\\ngone')\n"
    (tmp_path / "mine.py").write_text(f"{BEGINNING}\n{function}")
    line = [str(tmp_path / "mine.py"), "--out", str(tmp_path / "run")]
    _, err = told(capsys, "run", *line, code=2)
    place = f"(mine.py, line {3 + len(BEGINNING.splitlines())})"
    assert f"mine: {name}({arguments}) failed: ValueError: my data is gone {place}" in err
    if name == "problem":
        assert not (tmp_path / "run").exists()
        _, err = told(capsys, "plan", line[0], code=2)
        assert f"ValueError: my data is gone {place}" in err


UNREAD = (
    BEGINNING
    + """
import numpy as np


def problem(inputs):
    size = inputs.images and 1
    return jx.Problem(jx.MLPClassification(), jx.arrays(np.zeros((99, 2)), [0, 1, 2] * 33))
"""
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: expected none, as mine does not read it"),
        (["--weights", "nope.pth"], "nope.pth: expected none, as mine does not read it"),
        (["--image-size", "100"], "--image-size 100: expected none, as mine does not read it"),
        (["--skip-broken"], "--skip-broken: expected none, as mine does not read it"),
    ],
)
@pytest.mark.parametrize("kind", ["run", "plan", "search"])
def test_what_a_file_does_not_read_is_refused(kind, arguments, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(UNREAD)
    line = [kind, str(tmp_path / "mine.py"), "--images", "read", *arguments]
    line += [] if kind == "plan" else ["--out", str(tmp_path / "run")]
    line += (
        ["--trials", "4", "--set", "learning_rate=loguniform(1e-3,1)"] if kind == "search" else []
    )
    _, err = told(capsys, *line, code=2)
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "epochs", "--images", "nowhere"], "--images nowhere: expected none, as epochs"),
        (["plan", "epochs", "--section", "9"], "--section 9: expected with `jaxexp plan reproduce"),
        (["reproduce", "--section", "6", "--images", "a"], "--images a: expected none, as section"),
        (["reproduce", "--section", "7", "--data", "a"], "--data a: expected none, as section 7"),
        (["plan", "reproduce", "--section", "6", "--skip-broken"], "--skip-broken: expected none,"),
    ],
)
def test_what_is_not_read_is_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vision, "missing_libraries", list)
    assert message in told(capsys, *arguments, code=2)[1]
    assert not list(tmp_path.iterdir())


def test_json_holds_every_digit_of_small_numbers(tmp_path):
    table = pd.DataFrame({"loss": [1.23456789e-15, np.nan, np.inf], "width": [8, 16, 32]})
    exporting.export(table, tmp_path / "a.json", "json")
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"loss": 1.23456789e-15, "width": 8}, {"loss": None, "width": 16},
        {"loss": None, "width": 32},
    ]  # fmt: skip


def test_a_table_is_not_written_over_another(regression, tmp_path, capsys):
    same = [str(tmp_path / "same.out"), "--json", str(tmp_path / "." / "same.out")]
    _, err = told(capsys, "export", str(regression), "--csv", *same, code=2)
    assert f"--csv {same[0]} and --json {same[2]}: expected different files" in err
    assert not list(tmp_path.iterdir())


SEEDS = BEGINNING.replace("batch_size=64)", "batch_size=64), {'seed': [0, 1]}")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (BEGINNING, ["--set", "seed=0,1", "--seed", "7"], "--seed 7: expected without --set seed"),
        (BEGINNING, ["--set", "seed=3", "--seeds", "2"], "--seeds 2: expected without --set seed"),
        (SEEDS, ["--seed", "7"], "--seed 7: mine has seeds of its own: expected none, or --set s"),
        (SEEDS, ["--seeds", "1"], "--seeds 1: mine has seeds of its own: expected none, or --set"),
        (
            BEGINNING + "def estimate(sweep, inputs): 1 / 0\n",
            ["--seeds", "2"],
            "--seeds 2: another library fits the models of mine",
        ),
    ],
)
def test_seeds_that_are_asked_for_twice_are_refused(content, arguments, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(content)
    for command_ in (["plan"], ["run", "--out", str(tmp_path / "run")]):
        _, err = told(capsys, *command_, str(tmp_path / "mine.py"), *arguments, code=2)
        assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
@pytest.mark.usefixtures("no_figures")
def test_all_seeds_that_are_asked_for_train(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(BEGINNING)
    data = write_csvs(tmp_path / "data", 300)
    line = [str(tmp_path / "mine.py"), "--data", str(data), "--seed", "5", "--seeds", "3"]
    told(capsys, "run", *line, "--out", str(tmp_path / "run"))
    with xr.open_dataset(tmp_path / "run" / "results" / "mine.nc") as dataset:
        assert dataset["seed"].values.tolist() == [5, 6, 7]
    (tmp_path / "mine.py").write_text(SEEDS)
    out, _ = told(capsys, "plan", *line[:3], "--set", "seed=7")
    assert "1 trial in 1 program" in out


def test_a_flag_that_jax_refuses_is_told_by_name(tmp_path, capsys):
    """As JAX raises it when a file is the first to import it."""
    raised = """raise ValueError('Invalid value "x" for JAX flag jax_num_cpu_devices')"""
    (tmp_path / "mine.py").write_text(raised)
    _, err = told(capsys, "plan", str(tmp_path / "mine.py"), code=2)
    assert "error: JAX_NUM_CPU_DEVICES='x': expected a value that JAX takes" in err
    assert "mine.py" not in err


def test_a_hyperparameter_by_its_short_name_is_hinted_at(capsys):
    _, err = told(capsys, "run", "epochs", "--set", "lr=0.1", code=2)
    assert "'lr': did you mean learning_rate" in err


def test_runs_of_an_earlier_version_are_refused_by_its_name(tmp_path, capsys):
    content = {"format": 2, "sweeps": ["epochs"], "made_with": {"jaxexp": "0.0.9"}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    for line in (["report"], ["resume"], ["predict"]):
        own = [*line, str(tmp_path), *(["a.csv"] if line == ["predict"] else [])]
        _, err = told(capsys, *own, code=2)
        assert "run.json: written in format 2, by jaxexp 0.0.9; this jaxexp reads format 3" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
