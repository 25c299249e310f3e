"""Choosing, naming and ranking the trials of any task's results."""

import json
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from datasets import REGRESSION, dataset, grid, population

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.cli import tables
from jaxexp.report import figures
from jaxexp.results import seeds, select

R2 = {"r2": [0.9, 0.2, -0.5]}


def test_the_highest_r2_is_best_and_the_lowest_worst():
    ds = dataset(metrics=REGRESSION, values=R2)
    assert select.best(ds, "r2")[0] == "learning rate 0.01"
    assert select.worst(ds, "r2")[0] == "learning rate 1"
    assert select.best(ds, "mae")[0] == "learning rate 0.01"
    ds["r2"].attrs["direction"] = "lower"
    assert select.best(ds, "r2")[0] == "learning rate 1"


def test_an_unknown_metric_or_split_is_named_with_those_that_exist():
    ds = dataset(metrics=REGRESSION, splits=["train", "validation"])
    asked = [select.rank, select.best, select.worst, select.ties, select.table]
    for ask in asked:
        with pytest.raises(UserError, match=r"metric='accuracy': .* have loss, r2, mae"):
            ask(ds, "accuracy")
        with pytest.raises(UserError, match=r"split='test': .* have train, validation"):
            ask(ds, "r2", "test")
    with pytest.raises(UserError, match="metric='seconds'"):
        select.final(ds, "seconds")
    with pytest.raises(UserError, match="split='test'"):
        select.outcome(select.point(ds, 0)[1], "r2", "test")


def test_without_a_validation_split_the_training_split_decides():
    ds = dataset(splits=["train"])
    assert select.default_split(ds) == "train"
    assert select.rank(ds)["value"].iloc[0] == pytest.approx(0.2 + 0.8 * np.exp(-6), rel=1e-5)
    told = select.best_in_words(ds)
    assert told.startswith("The lowest training loss after the last epoch is 0.2020 nats: ")


def test_axes_are_those_that_the_results_name():
    ds = dataset({"depth_width": {"depth": [1, 6], "width": [4, 8]}, "latitude": [1.0, 2.0]})
    assert select.axes(ds) == ("depth_width", "latitude")  # a name of the user's own
    assert select.hyperparameters(ds) == ("depth", "width", "latitude")
    assert select.axes(ds.isel(latitude=0)) == ("depth_width",)
    assert select.label(ds.isel(latitude=0, depth_width=1)) == "depth 6, width 8, latitude 1"
    old = dataset()
    del old.attrs["axes"], old.attrs["metrics"]
    assert select.axes(old) == ("learning_rate",)
    assert select.metrics(old) == ("loss", "accuracy")


def test_ties_go_to_the_lower_loss_and_are_told():
    losses = [0.9, 0.3, 0.3, 0.5, 0.1]
    rates = {"learning_rate": [1.0, 0.1, 0.01, 0.001, 1e-5]}
    ds = dataset(rates, loss=losses, values={"accuracy": [0.6, 0.6, 0.6, 0.5, 0.4]})
    assert list(select.rank(ds, "accuracy").index) == [1, 2, 0, 3, 4]
    assert select.ties(ds, "accuracy") == [
        "learning rate 0.1", "learning rate 0.01", "learning rate 1",
    ]  # fmt: skip
    told = select.best_in_words(ds, "accuracy")
    assert told == (
        "3 of 5 trials tie at the highest validation accuracy after the last epoch, 0.5780: "
        "learning rate 0.1; learning rate 0.01; learning rate 1."
    )
    assert select.ties(ds) == ["learning rate 1e-5"]
    same = dataset(rates, values={"accuracy": 0.52}, metrics={"loss": ("lower", ""),
                   "accuracy": ("higher", "")}, splits=["train"], epochs=50)  # fmt: skip
    told = select.best_in_words(same, "accuracy")
    assert told == "All 5 trials have the same training accuracy after the last epoch: 0.5200."
    many = dataset(rates, values={"accuracy": [0.6] * 4 + [0.1]})
    assert select.best_in_words(many, "accuracy").endswith("learning rate 0.01; and 1 more.")


@pytest.mark.parametrize("direction", ["higher", "lower"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_ranks_best(direction, broken):
    ds = dataset(metrics={"loss": ("lower", ""), "auc": (direction, "")})
    ds["auc"][0] = broken
    ds["diverged_epoch"][2] = 4
    assert list(select.rank(ds, "auc").index) == [1, 0, 2]  # finished, finished, diverged
    assert select.ties(ds, "auc") == ["learning rate 0.001"]
    extreme = {"higher": "highest", "lower": "lowest"}[direction]
    if not np.isnan(broken) and (broken > 0) == (direction == "higher"):
        extreme += " finite"
    said = select.best_in_words(ds, "auc")
    assert said.startswith(f"The {extreme} validation auc after the last epoch is ")


def test_where_nothing_is_finite_no_trial_is_called_best():
    ds = dataset(metrics=REGRESSION)
    ds["r2"][:] = np.nan
    assert select.best_in_words(ds, "r2") == (
        "No trial has a finite validation r2 after the last epoch."
    )
    assert select.best_in_words(dataset(diverged=1)) == "Every trial diverged."
    assert select.best_in_words(dataset({}, diverged=1)) == "The trial diverged."


def test_a_rank_has_the_hyperparameters():
    ranked = select.rank(dataset({"depth_width": {"depth": [1, 6], "width": [4, 8]}}))
    assert list(ranked) == ["trial", "depth", "width", "value", "epoch", "status"]
    assert ranked[["depth", "width"]].to_numpy().tolist() == [[1, 4], [6, 8]]


def test_a_table_has_every_metric_on_every_split():
    ds = dataset({"width": [4, 8, 16]}, metrics=REGRESSION, splits=["train", "test"],
                 diverged=[0, 2, 0])  # fmt: skip
    made = select.table(ds)
    assert list(made) == [
        "rank", "width", "training loss (m²)", "test loss (m²)", "training r2", "test r2",
        "training mae (m)", "test mae (m)", "status",
    ]  # fmt: skip
    assert made["rank"].fillna(0).tolist() == [1, 2, 0]
    assert made["width"].tolist() == [4, 16, 8]
    assert np.isnan(made["test r2"].iloc[2])
    assert "status" not in select.table(dataset())
    assert len(select.table(grid(48), most=20)) == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.004, "−0.004"), (-1e-5, "−1e-5"), (-12, "−12"), (-106_897, "−106,897"), (-0.0, "0"),
     (1e29, "1e29"), (1e-5, "1e-5"), (None, "none"), ((64, 32), "64-32"), (-np.inf, "−inf"),
     (-1234.6, "−1235")],
)  # fmt: skip
def test_numbers(value, text):
    assert select.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.99999, "0.99999"), (np.float32(0.99999), "0.99999"), (-0.123456, "−0.123456"),
     (0.1234567, "0.1235"), (1 / 3, "0.3333"), (1e-5, "1e-5"), (1234.5, "1234.5"), (16, "16"),
     (-12345.5, "−12,345.5"), (1000.0, "1000"), (123456.7, "123,457"), (1e7, "1e7"),
     (True, "on"), (None, "none"), (np.nan, "–"), (np.inf, "inf"), ((64, 32), "64-32")],
)  # fmt: skip
def test_values_of_hyperparameters_are_shown_as_they_were_given(value, text):
    assert select.setting(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(603.4, "603"), (99.7, "100"), (99.4, "99"), (-600.0, "−600"), (0.0603, "0.06"),
     (1234.5, "1234"), (2e7, "2e7")],
)  # fmt: skip
def test_numbers_of_few_digits_keep_those_of_whole_numbers(value, text):
    assert select.number(value, 2) == text


@pytest.mark.parametrize(
    ("value", "span", "digits", "text"),
    [(35.7123, 1.64, 0, "35.71"), (5.523, 0.06, 0, "5.523"), (12_345.67, 0.4, 0, "12,345.67"),
     (-0.001, 100, 0, "0"), (25.0, 1.0, 0, "25"), (1.01e-5, 2e-6, 0, "1.01e-5"),
     (-2e12, 2e12, 0, "−2e12"), (1.0, 0.5, 3, "1.000"), (25.2931, 0.018, 3, "25.2931"),
     (0.0004, 10, 3, "0.0004"), (1234.5, 0.3, 3, "1234.50"), (0.56, 1e12, 3, "0.560"),
     (0.5, 0.0, 0, "0.5000"), (float("inf"), 1.0, 0, "inf")],
)  # fmt: skip
def test_numbers_within_a_range_show_where_they_lie(value, span, digits, text):
    assert select.within(value, span, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (-0.25, "−0.2500"), (1e-5, "1e-5"), (0.0, "0.0000"), (48_211.3, "48,211"),
     (3e-4, "3e-4"), (np.inf, "inf")],
)  # fmt: skip
def test_decimals_never_hide_a_number(value, text):
    assert select.decimals(value) == text.replace("3e-4", "0.0003")


def test_differences_and_counts():
    assert select.signed(-0.004) == "−0.004"
    assert select.signed(0.0123) == "+0.012"
    assert [select.count(n, "program") for n in (0, 1, 2)] == [
        "0 programs", "1 program", "2 programs",
    ]  # fmt: skip


def test_units_come_from_the_results():
    ds = dataset(metrics=REGRESSION)
    trial = select.point(ds, 0)[1]
    assert select.outcome(trial, "loss") == "0.222 m²"
    assert select.outcome(trial, "mae", "train") == "0.202 m"
    assert select.outcome(dataset({}, loss=1e-5, metrics={"loss": ("lower", "")}, epochs=60,
                                  splits=["train"])) == "1e-5"  # fmt: skip


def test_final_is_the_end_of_the_epoch_and_not_the_running_mean():
    ds = dataset()
    last = select.final(ds).sel(split="train")
    np.testing.assert_allclose(last, ds["loss"].isel(epoch=-1).sel(split="train"))
    assert (last.values < ds["running_loss"].isel(epoch=-1).values).all()


def test_many_divergences_are_counted():
    ds = grid(48, diverged=np.where(np.arange(48).reshape(4, 3, 2, 2) % 7, 0, 3))
    assert select.divergence_note({"": ds}) == "7 of 48 trials diverged, in epoch 3."
    ds["diverged_epoch"][0, 0, 0, 0] = 1
    assert select.divergence_note({"": ds}) == "7 of 48 trials diverged, in epochs 1 to 3."
    assert select.divergence_note({"": dataset({}, diverged=2)}) == (
        "1 of 1 trial diverged: single trial diverged in epoch 2, step 21."
    )


def test_where_compares_floats_as_float32():
    ds = dataset({"learning_rate": np.float32([0.1, 0.01])})
    assert select.where(ds, learning_rate=0.1).sizes["learning_rate"] == 1
    ds = dataset({"learning_rate": [0.1, 0.01]})
    assert select.where(ds, learning_rate=float(np.float32(0.01))).sizes["learning_rate"] == 1


def test_floats_that_are_one_in_float32_are_told_apart_where_one_is_equal():
    """As those of a static hyperparameter are: each has a program of its own."""
    tolerances = [0.0, 1e-50, 1.0]
    pairs = [(value, 1.0) for value in tolerances]
    for values, written in (
        (tolerances, tolerances), (tolerances, ["0", "1e-50", "1", "None"]),
        (pairs, ["0-1", "1e-50-1", "1-1"]),
    ):  # fmt: skip
        ds = dataset({"tol": written})
        for own, value in zip(written, values, strict=False):
            assert select.where(ds, tol=value)["tol"].values.tolist() == [own]
    trial = make_dataclass("T", [("tol", float, 0.0)], bases=(jx.Trial,), frozen=True, kw_only=True)
    results = SimpleNamespace(sweep=jx.Sweep(trial(), {"tol": tolerances}), _at=lambda at: at)
    assert [jx.Results.trial(results, tol=value) for value in tolerances] == [0, 1, 2]


@pytest.mark.parametrize("names", [("learning_rate", "width"), ("width", "learning_rate")])
def test_traced_floats_are_one_where_float32_has_them_so(names):
    points = {"learning_rate": [0.1 + 0.2, 0.3], "width": [4, 5]}
    ds = dataset({"point": points}, traced='["learning_rate"]')
    assert select.where(ds, learning_rate=0.3).sizes["point"] == 2
    axes = {tuple(points): [*zip(*points.values(), strict=True)]}
    results = SimpleNamespace(sweep=jx.Sweep(jx.MLPTrial(), axes), _at=lambda at: at)
    for place, width in enumerate(points["width"]):
        given = {name: {"learning_rate": 0.3, "width": width}[name] for name in names}
        assert select.where(ds, **given)["width"].values.tolist() == [width]
        assert jx.Results.trial(results, **given) == place


@pytest.mark.parametrize("names", [("tol", "width"), ("width", "tol")])
def test_what_a_value_is_depends_on_no_other_that_is_selected(names):
    ds = dataset({"point": {"tol": [1e-50, 0.0], "width": [4, 5]}})
    for width, found in ((5, [0.0]), (4, None)):
        given = {name: {"tol": 0.0, "width": width}[name] for name in names}
        settings = [f"{name}={value}" for name, value in given.items()]
        if found:
            assert select.where(ds, **given)["tol"].values.tolist() == found
            assert tables.where(ds, settings)["tol"].values.tolist() == found
            continue
        with pytest.raises(jx.UserError, match=f"no trial has {names[1]} = "):
            select.where(ds, **given)
        with pytest.raises(jx.UserError, match=f"no trial has {names[1]} = "):
            tables.where(ds, settings)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_selected_split_is_ranked_as_in_all_of_them(split):
    ds = grid(48)
    alone = ds.sel(split=split)
    for own in (ds, alone):
        assert select.final(own).dims == (*select.axes(ds), "split")
    expected = select.rank(ds, "accuracy", split)
    np.testing.assert_array_equal(select.rank(alone, "accuracy")["value"], expected["value"])
    assert select.best_in_words(alone) == select.best_in_words(ds, split=split)
    assert select.table(alone).columns[-1].startswith(select.metric_words("accuracy", split))


def test_selected_epochs_are_ranked_by_the_last_of_them():
    ds = dataset({"width": [4, 8, 16]}, trained=[6, 2, 4])
    expected = {"slice": [3, 2, 3], "one": [1, 1, 1]}
    for name, own in {"slice": ds.isel(epoch=slice(0, 3)), "one": ds.isel(epoch=0)}.items():
        ranked = select.rank(own).sort_index()
        assert ranked["epoch"].tolist() == expected[name]
        at = [ds["loss"].sel(split="validation").isel(width=i, epoch=epoch - 1).item()
              for i, epoch in enumerate(expected[name])]  # fmt: skip
        np.testing.assert_array_equal(ranked["value"], at)


def test_where_names_what_does_not_vary_and_what_is_not_there():
    ds = dataset({"learning_rate": [1e-5, 0.1]})
    with pytest.raises(UserError, match=r"no trial has learning_rate = 0.2; there are 1e-5, 0.1"):
        select.where(ds, learning_rate=0.2)
    with pytest.raises(UserError, match=r"width does not vary here; .*: learning_rate"):
        select.where(ds, width=4)
    with pytest.raises(UserError, match=r"= '0.1', which is text; there are 1e-5, 0.1"):
        select.where(ds, learning_rate="0.1")


def test_where_takes_a_float_as_it_is_shown_unless_two_are_shown_so():
    rates = [0.00018805946, 0.5098574, 0.50985742, 12345.678]
    ds = dataset({"learning_rate": rates})
    for shown in (0.0001881, 12346, 0.5098574):
        made = select.where(ds, learning_rate=shown)["learning_rate"].values
        np.testing.assert_allclose(made, shown, rtol=1e-3)
        assert len(made) == 1
    assert len(select.where(ds, learning_rate=0.50985741)["learning_rate"]) == 2  # in float32
    two = dataset({"learning_rate": [0.50985012, 0.50989012, 0.1]})
    with pytest.raises(
        UserError, match=r"learning_rate = 0.5099: expected one of 0.50985012, 0.50989012"
    ):
        select.where(two, learning_rate=0.5099)
    for other in (0.00018, 0.000188, 0.00018811):  # others, that round to what is shown or less
        with pytest.raises(UserError, match="no trial has learning_rate"):
            select.where(ds, learning_rate=other)


def test_a_sweep_of_many_trials_is_ranked_at_once():
    ds = dataset({"point": {"learning_rate": np.geomspace(1e-5, 1, 3000), "seed": np.arange(3000)}})
    assert select.rank(ds).index[0] == 0
    assert select.best(ds)[0] == "learning rate 1e-5, seed 0"
    assert json.loads(ds.attrs["axes"]) == ["point"]


def test_trials_that_tie_have_the_same_rank():
    made = select.table(dataset(values={"accuracy": [0.5, 0.5, 0.2]}), "accuracy")
    assert made["rank"].tolist() == [1, 1, 3]


class TestStoppedTrials:
    """Of a run with a stopping rule, whose first two trials ended early."""

    def stopped(self, best: list[int] | None, **axes: list[int]) -> xr.Dataset:
        axes = axes or {"width": [8, 16, 32]}
        ds = dataset(axes, loss=[0.2, 0.5, 0.8], trained=[2, 4, 6], stopping="a rule")
        return ds if best is None else ds.assign(best_epoch=(tuple(axes), best))

    def test_the_best_epoch_is_not_called_the_last(self) -> None:
        ds = self.stopped([1, 2, 4])
        told = select.best_in_words(ds)
        assert told.startswith("The lowest validation loss at each trial's best epoch is 0.51")
        assert select.best_in_words(ds.isel(width=0)).startswith(
            "The validation loss at its best epoch is "
        )
        cut = [select.measured_when(ds.isel(epoch=slice(0, n))) for n in (1, 2, 4)]
        best = "at each trial's best epoch"
        assert cut == [f"{best}, up to epoch 1", f"{best}, up to epoch 2", best]
        assert select.measured_when(ds.isel(width=2, epoch=0)) == "after epoch 1"
        means = seeds.average(self.stopped([1, 2, 4], seed=[0, 1, 2]))
        assert select.measured_when(means.isel(epoch=slice(0, 4))) == "after epoch 4"
        note = select.stopping_note(ds)
        assert note == (
            "2 of 3 trials stopped early, after 2 to 4 epochs, and the results are those of each "
            "trial's best epoch."
        )
        label = figures.final_by(ds, "width").axes[0].get_ylabel()
        assert label.startswith("loss (nats)\nat each trial's best epoch")
        assert select.measured_when(self.stopped(None)) == "after the last epoch"
        assert select.measured_when(seeds.average(self.stopped([1, 2, 4], seed=[0, 1, 2]))) == (
            "at each trial's best epoch"
        )

    def test_their_curves_end_with_a_bar(self) -> None:
        figure = figures.curves(self.stopped(None))
        lines = {str(line.get_label()): line for line in figure.axes[0].lines}
        assert [line.get_marker() for line in lines.values()] == ["|", "|", "None"]
        assert lines["width 16"].get_markevery() == [3]
        assert (
            "a bar ends the curve of a trial"
            in figure.interactive["layout"]["meta"]["note"].lower()
        )

    def test_the_curve_of_a_setting_ends_with_its_last_seed(self) -> None:
        ds = dataset(
            {"width": [8, 16], "seed": [0, 1]}, trained=[[2, 3], [6, 4]], stopping="a rule"
        )
        means = seeds.average(ds.assign(best_epoch=(("width", "seed"), [[1, 2], [4, 3]])))
        known = np.isfinite(means["loss"].sel(split="train"))
        assert known.sum("epoch").values.tolist() == [3, 6]
        assert select.stopped(means).values.tolist() == [True, False]
        kept = [ds["loss"].sel(split="train", epoch=e)[0, k] for k, e in enumerate((1, 2))]
        expected = float(sum(kept)) / 2
        assert float(select.final(means)[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_numbers_beside_none_and_tuples_are_numbers():
    ds = dataset({"clip": ["None", "10.0", "0.5", "2.0"]})
    assert select.distinct(ds, "clip") == ["0.5", "2.0", "10.0", "None"]
    assert select.where(ds, clip=10)["clip"].values.tolist() == ["10.0"]
    assert select.where(ds, clip=None)["clip"].values.tolist() == ["None"]
    ds = dataset({"shape": ["16", "8-4", "4", "16-4", "relu"]})
    assert select.distinct(ds, "shape") == ["4", "16", "8-4", "16-4", "relu"]
    assert select.where(ds, shape=(8, 4))["shape"].values.tolist() == ["8-4"]


def test_means_are_settings_and_not_trials():
    ds = dataset({"width": [8, 16, 32], "seed": [0, 1]}, loss=0.5)
    means = seeds.average(ds)
    assert select.best_in_words(means).startswith("All 3 settings have the same validation loss")
    for figure in (figures.final_by(ds, "width"), figures.splits(ds), figures.parallel(ds)):
        assert "3 settings" in figure.alt
        assert "trial" not in figure.alt
    means["loss"][0] += 1
    assert "2 of 3 settings tie at the lowest" in select.best_in_words(means)


def test_the_capitals_and_underscores_of_a_users_name_are_kept():
    assert select.words("learning_rate") == "learning rate"
    assert select.words("loss of $x_1$") == "loss of $x_1$"
    assert figures.final_by(dataset(metrics={"loss": ("lower", ""), "mAP": ("higher", "")}),
                            "learning_rate", "mAP").alt.startswith("mAP after")  # fmt: skip


def test_members_of_a_population_are_named_by_what_they_had_in_the_end():
    """The last one begins with a rate of 0.1, and ends with a quarter of another's 0.0001."""
    ds = population(loss=[0.2, 0.4, 0.6, 0.1])
    label, best = select.best(ds)
    assert label == select.label(best, ["learning_rate"]) == "final learning rate 2.5e-5"
    assert "final learning rate 2.5e-5" in select.best_in_words(ds)
    ranked, table = select.rank(ds), select.table(ds)
    assert ranked["learning_rate"].tolist() == [2.5e-5, 1e-4, 1e-3, 1e-2]
    assert table["final learning rate"].tolist() == [2.5e-5, 1e-4, 1e-3, 1e-2]
    assert "learning rate" not in table
    assert select.distinct(ds, "learning_rate") == [2.5e-5, 1e-4, 1e-3, 1e-2]
    assert select.where(ds, learning_rate=2.5e-5)["learning_rate"].values.tolist() == [0.1]
    with pytest.raises(
        UserError, match=r"no trial ends with learning_rate = 0.1; there are 0.0001,"
    ):
        select.where(ds, learning_rate=0.1)
    for name in ("final_learning_rate", "initial_learning_rate"):
        expected = f"{name}: expected learning_rate, which selects by the values that trials end"
        with pytest.raises(UserError, match=expected):
            select.where(ds, **{name: 0.1})
    at_first = select.label(select.point(ds.isel(epoch=[0]), 3)[1], ["learning_rate"])
    assert at_first == "final learning rate 0.1"  # of the epochs that are there
    assert figures.final_by(ds, "learning_rate").axes[0].get_xlabel() == "final learning rate"


def test_members_that_began_with_the_same_values_are_not_averaged():
    ds = population().assign_coords(
        learning_rate=("sample", [0.1, 0.1, 0.01, 0.01]), seed=("sample", [0, 1, 2, 3])
    )
    assert not seeds.several(ds)
    assert seeds.several(ds.drop_vars(["parent", "own_learning_rate"]))
