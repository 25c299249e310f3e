"""Several sweeps side by side: ranking, means over seeds, disagreements, figures and page."""

import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from datasets import REGRESSION, dataset, population

from jaxexp.base.errors import UserError
from jaxexp.cli import library, pages, rundir
from jaxexp.report import figures, sections
from jaxexp.reproduce.images import picture
from jaxexp.results import compare, select


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made in full, of few dots."""
    monkeypatch.setattr(figures, "to_png", partial(figures.to_png, dpi=30))


RATES = [0.1, 0.01, 0.001]
CLASSES = ["generated", "real"]
IMAGES = 8
FILES = sorted(f"test/{CLASSES[i % 2]}/{i:03d}" for i in range(IMAGES))
LABELS = np.array([file.startswith("test/real") for file in FILES]).astype(np.int16)


def baseline(
    test: Any,
    axes: dict[str, Sequence[Any]] | None = None,
    diverged: Any = 0,
    probability: Any = 0.5,
    **attrs: object,
) -> xr.Dataset:
    """One epoch of runs over `axes` whose test accuracies are `test`.

    Accuracies on train and validation lie 0.2 and 0.1 above; losses are 1 minus the accuracy. A
    diverged run has no loss, but the finite accuracy that a network of NaN has.
    """
    axes = {} if axes is None else axes
    shape = tuple(len(values) for values in axes.values())
    test, diverged = np.broadcast_to(test, shape), np.broadcast_to(diverged, shape)
    accuracy = test[..., None, None] + np.array([0.2, 0.1, 0.0])
    loss = np.where(diverged[..., None, None] > 0, np.nan, 1 - accuracy)
    probability = np.broadcast_to(probability, (*shape, IMAGES))
    return xr.Dataset(
        {
            "loss": ((*axes, "epoch", "split"), loss),
            "accuracy": ((*axes, "epoch", "split"), accuracy),
            "probability": ((*axes, "image"), probability.astype(np.float32)),
            "seconds": (tuple(axes), np.full(shape, 2.0)),
            "epochs_trained": (tuple(axes), np.ones(shape, int)),
            "diverged_epoch": (tuple(axes), diverged),
            "diverged_step": (tuple(axes), diverged * 7),
        },
        coords={
            **axes, "epoch": [1], "split": ["train", "validation", "test"],
            "test_file": ("image", FILES), "test_label": ("image", LABELS),
        },
        attrs={"classes": json.dumps(CLASSES), "images": "", "image_size": 16} | attrs,
    )  # fmt: skip


def rated(test: Any, **options: Any) -> xr.Dataset:
    return baseline(test, {"learning_rate": RATES}, **options)


def seeded(test: Any, **options: Any) -> xr.Dataset:
    return baseline(test, {"learning_rate": RATES, "seed": [0, 1]}, **options)


class TestRuns:
    def test_all_runs_of_all_baselines_stand_in_order(self) -> None:
        results = {"trees": baseline(0.7), "net": rated([0.6, 0.75, 0.5])}
        table = compare.runs(results)
        assert list(table["run"]) == [
            "net, learning rate 0.01",
            "trees",
            "net, learning rate 0.1",
            "net, learning rate 0.001",
        ]
        assert list(table.index) == [1, 2, 3, 4]
        assert list(table["test"]) == [0.75, 0.7, 0.6, 0.5]
        np.testing.assert_allclose(table["validation"], table["test"] + 0.1)
        np.testing.assert_allclose(table["loss"], 1 - table["test"])
        assert np.isnan(table.loc[2, "learning_rate"])
        points = list(select.points(results["net"]))
        assert points[table.loc[1, "place"]][0] == "learning rate 0.01"

    def test_a_diverged_run_has_no_accuracy_and_stands_last(self) -> None:
        results = {"net": rated([0.6, 0.99, 0.5], diverged=[0, 1, 0]), "trees": baseline(0.1)}
        table = compare.runs(results)
        assert table.iloc[-1][["run", "status"]].tolist() == [
            "net, learning rate 0.01", "diverged in epoch 1, step 7",
        ]  # fmt: skip
        assert table.iloc[-1][["train", "validation", "test", "loss"]].isna().all()
        assert list(compare.finished(table)["test"]) == [0.6, 0.5, 0.1]

    def test_equal_accuracies_are_ranked_by_loss(self) -> None:
        ds = rated(0.5)
        ds["loss"][:, 0, 2] = [0.3, 0.1, 0.2]
        assert list(compare.runs({"net": ds})["learning_rate"]) == [0.01, 0.001, 0.1]

    def test_whole_numbers_stay_whole_where_some_have_none(self) -> None:
        table = compare.runs({"net": seeded(0.5), "trees": baseline(0.7)})
        assert table["seed"].dtype == "Int64"
        assert table["seed"].isna().sum() == 1
        assert compare.settings({"a": rated(0.5), "b": seeded(0.5)}) == ["learning_rate", "seed"]

    def test_baselines_without_any_axis(self) -> None:
        table = compare.runs({"one": baseline(0.5), "two": baseline(0.6)})
        assert list(table["run"]) == ["two", "one"]


class TestAnyMetric:
    def results(self) -> dict[str, xr.Dataset]:
        one = dataset({"width": [4, 8]}, metrics=REGRESSION, loss=[0.2, 0.6],
                      values={"r2": [0.9, 0.3]})  # fmt: skip
        other = dataset({"seed": [0, 1]}, metrics=REGRESSION, loss=[0.3, 0.4],
                        values={"r2": [0.5, 0.7]}, splits=["train", "validation"])  # fmt: skip
        return {"one": one, "other": other}

    def test_the_metric_and_split_that_all_have(self) -> None:
        results = self.results()
        assert compare.metric_and_split(results) == ("r2", "validation")
        assert compare.metric_and_split({"one": results["one"]}) == ("r2", "test")
        table = compare.runs(results)
        assert list(table["run"]) == [
            "one, width 4", "other, seed 1", "other, seed 0", "one, width 8",
        ]  # fmt: skip
        assert table["test"].isna().tolist() == [False, True, True, False]

    def test_lower_is_better_where_the_metric_says_so(self) -> None:
        table = compare.runs(self.results(), "loss", "train")
        assert list(table["run"])[:2] == ["one, width 4", "other, seed 0"]
        best = compare.baselines(self.results(), "loss", "train")
        assert list(best["baseline"]) == ["one", "other"]
        assert best["width"].iloc[0] == 4
        assert best["spread"].iloc[1] == pytest.approx(0.1 / np.sqrt(2), rel=1e-4)

    def test_what_one_does_not_have_is_named(self) -> None:
        with pytest.raises(UserError, match=r"split='test': the results of other have train"):
            compare.runs(self.results(), "loss", "test")
        with pytest.raises(UserError, match=r"metric='auc': the results of one have loss, r2"):
            compare.baselines(self.results(), "auc")
        with pytest.raises(UserError, match="at least one sweep"):
            compare.runs({})

    def test_nan_is_never_first(self) -> None:
        results = self.results()
        results["one"]["r2"][0] = np.nan
        assert compare.runs(results)["run"].iloc[-1] == "one, width 4"


class TestBaselines:
    def test_the_best_setting_of_each_is_the_mean_over_its_seeds(self) -> None:
        test = [[0.9, 0.1], [0.6, 0.7], [0.5, 0.5]]  # one lucky seed is not the best setting
        table = compare.baselines({"trees": baseline(0.5), "net": seeded(test)})
        assert list(table["baseline"]) == ["net", "trees"]
        net = table.iloc[0]
        assert net[["learning_rate", "seeds", "diverged"]].tolist() == [0.01, 2, "0 of 6"]
        assert net["test"] == pytest.approx(0.65)
        assert net["train"] == pytest.approx(0.85)
        assert net["loss"] == pytest.approx(0.35)
        assert net["spread"] == pytest.approx(0.1 / np.sqrt(2))  # n - 1
        assert np.isnan(table.iloc[1]["spread"])

    def test_a_setting_of_which_a_seed_diverged_is_not_the_best(self) -> None:
        test, diverged = [[0.9, 0.99], [0.6, 0.6], [0.5, 0.5]], [[0, 1], [0, 0], [0, 0]]
        table = compare.baselines({"net": seeded(test, diverged=diverged)})
        assert table.iloc[0][["learning_rate", "diverged"]].tolist() == [0.01, "1 of 6"]

    def test_where_each_diverged_there_is_no_number(self) -> None:
        results = {"net": rated(0.9, diverged=1), "trees": baseline(0.5)}
        table = compare.baselines(results)
        assert list(table["baseline"]) == ["trees", "net"]
        assert table.iloc[1][["learning_rate", "test", "spread", "loss"]].isna().all()
        assert table.iloc[1]["diverged"] == "3 of 3"

    def test_runs_of_which_the_metric_is_undefined_are_not_counted_and_rank_behind(self) -> None:
        table = compare.baselines({"net": seeded([[0.9, np.nan], [0.6, 0.7], [0.5, 0.5]])})
        assert table.iloc[0][["learning_rate", "seeds"]].tolist() == [0.01, 2]
        assert "undefined" not in table
        results = {"net": seeded([[0.9, np.nan]] * 3), "trees": baseline(0.5)}
        table = compare.baselines(results)
        assert list(table["baseline"]) == ["trees", "net"]
        assert table.iloc[1][["seeds", "undefined"]].tolist() == [1, 1]
        assert table.iloc[1]["test"] == pytest.approx(0.9)

    def test_infinite_metrics_rank_behind_finite_ones(self) -> None:
        results = {"net": seeded([[np.inf, 0.9], [0.6, 0.7], [0.5, 0.5]])}
        assert compare.runs(results)["test"].tolist()[:2] == [0.9, 0.7]
        table = compare.baselines(results)
        assert table.iloc[0][["learning_rate", "seeds"]].tolist() == [0.01, 2]
        results |= {"inf": baseline(np.inf, {"seed": [0, 1]})}
        assert list(compare.baselines(results)["baseline"]) == ["net", "inf"]

    def test_folds_repeat_a_setting_as_seeds_do(self) -> None:
        test = [[0.9, 0.1], [0.6, 0.7], [0.5, 0.5]]  # one easy fold is not the best setting
        net = baseline(test, {"learning_rate": RATES, "fold": [0, 1]})
        table = compare.baselines({"net": net})
        assert "fold" not in table
        assert table.iloc[0][["learning_rate", "seeds"]].tolist() == [0.01, 2]
        assert table.iloc[0]["test"] == pytest.approx(0.65)

    def test_each_member_of_a_population_is_a_setting(self) -> None:
        ds = population(loss=[0.2, 0.4, 0.6, 0.1]).assign_coords(seed=("sample", range(4)))
        ds["own_learning_rate"][...] = 0.1  # in the end all have copied one
        grid = dataset({"width": [4, 8], "seed": [0, 1]}, loss=[[0.5, 0.7], [0.9, 0.9]])
        table = compare.baselines({"pbt": ds, "grid": grid}, "loss")
        assert table[["baseline", "seeds"]].values.tolist() == [["pbt", 1], ["grid", 2]]
        assert table.loc[0, ["seed", "learning_rate"]].tolist() == [3, 0.1]
        assert table["seed"].isna().tolist() == [False, True]
        assert table["width"].tolist()[1:] == [4]


class TestDisagreements:
    # Four images of class 0, four of class 1; gains: 0.6, 0.5, 0.5, 0.3; 0.2, 0.8, -, -.
    RIGHT = np.array([0.1, 0.2, 0.2, 0.4, 0.6, 0.9, 0.4, 0.9])
    WRONG = np.array([0.7, 0.7, 0.7, 0.7, 0.4, 0.1, 0.1, 0.8])

    def told(self, count: int = 5) -> compare.Disagreements:
        right, wrong = (baseline(0.5, probability=p) for p in (self.RIGHT, self.WRONG))
        return compare.disagreements(right, wrong, count)

    def test_images_that_one_gets_right_and_the_other_wrong_by_gain(self) -> None:
        found = self.told()
        assert list(found.images.index) == [FILES[i] for i in (5, 0, 1, 2, 3)]
        assert (found.found, found.total) == (6, IMAGES)
        assert list(found.images["label"]) == [1, 0, 0, 0, 0]
        np.testing.assert_allclose(found.images["right"], [0.9, 0.9, 0.8, 0.8, 0.6], rtol=1e-6)
        np.testing.assert_allclose(found.images["wrong"], [0.1, 0.3, 0.3, 0.3, 0.3], rtol=1e-6)

    def test_the_order_of_the_images_does_not_matter(self) -> None:
        right, wrong = (baseline(0.5, probability=p) for p in (self.RIGHT, self.WRONG))
        turned = right.isel(image=slice(None, None, -1))
        assert compare.disagreements(turned, wrong).images.equals(self.told().images)
        assert compare.disagreements(right, wrong.isel(image=slice(2))).total == 2

    def test_fewer_or_none_are_as_many_as_there_are(self) -> None:
        assert list(self.told(2).images.index) == [FILES[5], FILES[0]]
        same = baseline(0.5, probability=self.RIGHT)
        found = compare.disagreements(same, same)
        assert (len(found.images), found.found) == (0, 0)

    def test_a_half_is_no_prediction_of_class_1(self) -> None:
        half, dog = baseline(0.5), baseline(0.5, probability=0.9)
        assert set(compare.disagreements(half, dog).images["label"]) == {0}


class TestFigures:
    def test_a_bar_for_each_baseline_and_the_report_beside_it(self) -> None:
        test = [[0.7, 0.7], [0.5, 0.8], [0.5, 0.5]]
        results = {"trees": baseline(0.5), "net": seeded(test), "lost": rated(0.9, diverged=1)}
        fig = figures.ranking(compare.baselines(results), {"net": 0.75}, chance=0.5)
        ax = fig.axes[0]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.7, 0.5, 0])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["net", "trees", "lost"]
        told = [text.get_text() for text in ax.texts]
        assert told == ["0.7000 ± 0.0000", "0.5000", "diverged: 3 of 3"]
        report = next(line for line in ax.lines if line.get_marker() == "|")
        np.testing.assert_array_equal(report.get_xdata(), [0.75, np.nan, np.nan])
        assert figures.to_png(fig)

    def panel(self, ds: xr.Dataset, **reference: tuple[float, float]) -> Any:
        table = compare.runs({"net": ds, "trees": baseline(0.5)})
        fig = figures.accuracy_by(table, "learning_rate", reference, chance=0.5)
        assert figures.to_png(fig)
        [ax] = fig.axes
        return {line.get_label(): line for line in ax.lines} | {"ax": ax}

    def test_accuracy_by_rate_is_a_line_and_the_report_a_mark(self) -> None:
        panel = self.panel(rated([0.6, 0.7, 0.5]), net=(0.01, 0.72))
        assert panel["ax"].get_xscale() == "log"
        assert panel["test"].get_xydata().tolist() == [[0.001, 0.5], [0.01, 0.7], [0.1, 0.6]]
        np.testing.assert_allclose(panel["validation"].get_ydata(), [0.6, 0.8, 0.7])
        assert panel["the report (test)"].get_xydata().tolist() == [[0.01, 0.72]]
        assert "test, each seed" not in panel
        assert "diverged" not in panel

    def test_seeds_are_points_and_the_line_their_mean(self) -> None:
        panel = self.panel(seeded([[0.6, 0.7], [0.5, 0.5], [0.4, 0.5]]))
        np.testing.assert_allclose(panel["test"].get_ydata(), [0.45, 0.5, 0.65])
        assert sorted(panel["test, each seed"].get_ydata()) == [0.4, 0.5, 0.5, 0.5, 0.6, 0.7]

    def test_where_a_seed_diverged_the_line_has_a_gap_and_a_mark(self) -> None:
        diverged = [[0, 1], [0, 0], [1, 1]]
        panel = self.panel(seeded([[0.6, 1], [0.5, 0.5], [1, 1]], diverged=diverged))
        np.testing.assert_array_equal(panel["test"].get_ydata(), [np.nan, 0.5, np.nan])
        assert sorted(panel["diverged"].get_xdata()) == [0.001, 0.1]
        assert sorted(text.get_text() for text in panel["ax"].texts) == ["1 of 2", "2 of 2"]
        assert np.nanmax(panel["test, each seed"].get_ydata()) == 0.6

    def test_pictures_stand_in_a_row_and_one_may_be_gone(self) -> None:
        images = [np.full((4, 6, 3), 200, np.uint8), None]
        fig = figures.pictures(images, ["cat", "dog"], ["best: 0.9", "best: 0.8"], "above: class")
        assert [ax.get_title() for ax in fig.axes] == ["cat", "dog"]
        assert [ax.get_xlabel() for ax in fig.axes] == ["best: 0.9", "best: 0.8"]
        assert [len(ax.images) for ax in fig.axes] == [1, 0]
        assert "gone" in fig.axes[1].texts[0].get_text()
        assert figures.to_png(fig)


class TestPictures:
    def test_of_a_folder(self, tmp_path: Path) -> None:
        Image = pytest.importorskip("PIL.Image", reason="Pillow comes with the extra `vision`")
        pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        Image.fromarray(np.zeros((80, 800, 3), np.uint8)).save(tmp_path / "wide.png")
        (tmp_path / "text.png").write_text("no image")
        np.testing.assert_array_equal(picture(str(tmp_path), "a.png"), pixels)
        wide = picture(str(tmp_path), "wide.png")
        assert wide is not None
        assert wide.shape == (32, 320, 3)
        assert picture(str(tmp_path), "text.png") is None
        assert picture(str(tmp_path), "nothing.png") is None

    def test_of_the_embedded_images(self) -> None:
        pytest.importorskip("sklearn", reason="scikit-learn comes with the extra `vision`")
        image = picture("", "test/real/003")
        assert image is not None
        assert image.shape == (64, 64, 3)

    def test_without_the_libraries_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        assert picture("", "test/real/003") is None
        assert picture("folder", "test/real/003.png") is None


SWEEPS = ("boosted_trees", "scratch", "probing", "probing_sklearn", "fine_tuning")


def section7(**options: Any) -> dict[str, xr.Dataset]:
    """Results of the five sweeps; fine-tuning at 0.01 is best, from scratch at 0.001 worst."""
    good, bad = LABELS * 0.8 + 0.1, 0.9 - LABELS * 0.8
    probability = np.stack([good * 0 + 0.5, good, bad])
    return {
        "boosted_trees": baseline(0.7, **options),
        "scratch": rated([0.55, 0.5, 0.4], probability=probability, **options),
        "probing": rated([0.6, 0.65, 0.6], **options),
        "probing_sklearn": baseline(0.72, **options),
        "fine_tuning": rated([0.7, 0.775, 0.74], probability=probability, **options),
    }


def answered(results: dict[str, xr.Dataset], draw: bool = False) -> dict[str, sections.Section]:
    """Figures are made; pictures of them, if asked for."""
    kept: list[str] = []
    shipped = library.comparisons()
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr(figures, "to_png", lambda fig, **_: b"")
        made = sections.of_comparisons(results, lambda name, png: kept.append(name), shipped)
    assert len(kept) == sum(len(section.figures) for section in made)
    return {section.row: section for section in made}


@cache
def whole() -> dict[str, sections.Section]:
    """Of all five sweeps, none of them changed."""
    return answered(section7(), draw=True)


class TestDetectors:
    def test_the_baselines_are_named_in_order(self) -> None:
        answer = whole()["7.6"].answer
        assert "the best baseline is Fine-tuning (0.7750), then Linear probing, " in answer
        assert "; then From scratch (0.5500). Always naming" in answer

    def test_the_verdict_is_on_the_first_and_the_last(self) -> None:
        every = [q for c in library.comparisons() for q in c.questions]
        [question] = [q for q in every if q.row == "7.6"]
        assert question.verdict(section7()) == (True, "best is Fine-tuning, worst From scratch.")
        other = section7() | {"boosted_trees": baseline(0.9)}
        assert question.verdict(other).agrees is False
        assert question.verdict({"boosted_trees": baseline(0.9)}).agrees is None

    def test_a_diverged_run_is_counted_and_neither_best_nor_worst(self) -> None:
        results = section7()
        results["fine_tuning"] = rated([0.7, 0.775, 0.99], diverged=[0, 0, 1])
        results["scratch"] = rated([0.55, 0.5, 0.1], diverged=[0, 0, 1])
        section, samples = answered(results).values()
        assert (section.row, samples.row) == ("7.6", "7.7")
        assert section.notes[0].startswith("2 of 11 trials diverged: scratch, learning rate 0.001")
        assert "the best baseline is Fine-tuning (0.7750), then " in section.answer
        assert "0.99" not in section.answer
        assert "worst of those that finished (From scratch, learning rate 0.01)" in samples.answer
        _, runs = section.tables.values()
        assert runs["rank"].isna().tolist() == [False] * 9 + [True] * 2
        assert set(runs["diverged"]) == {"", "in epoch 1, step 7"}

    def test_the_tables_quote_the_report_at_the_same_rate(self) -> None:
        best, runs = whole()["7.6"].tables.values()
        own = best.set_index("baseline")["report"].to_dict()
        assert own == {
            "XGBoost": 0.735, "From scratch": 0.5225, "Linear probing": 0.725,
            "Linear probing, scikit-learn": 0.73, "Fine-tuning": 0.775,
        }  # fmt: skip
        tuned = runs[runs["baseline"] == "Fine-tuning"].set_index("learning rate")["report"]
        assert tuned.dropna().to_dict() == {0.001: 0.775}
        assert len(runs) == 11

    @pytest.mark.nightly
    def test_seeds_give_a_mean_and_a_spread(self) -> None:
        results = section7() | {"scratch": seeded([[0.5, 0.6], [0.3, 0.3], [0.2, 0.2]])}
        section = answered(results)["7.6"]
        best, runs = section.tables.values()
        row = best.set_index("baseline").loc["From scratch"]
        assert row["test acc"] == pytest.approx(0.55)
        assert row["± test acc"] == pytest.approx(0.1 / 2**0.5)
        assert "From scratch (0.5500 ± 0.0707, 2 seeds)" in section.answer
        assert "seed" in runs
        assert "seeds" not in whole()["7.6"].tables

    def test_samples_are_those_of_the_best_and_the_worst(self) -> None:
        section = whole()["7.7"]
        assert section.answer.startswith(
            f"Of {IMAGES} test images, the best run (Fine-tuning, learning rate 0.01) gets "
            f"{IMAGES} right that the worst of those that finished (From scratch, learning rate "
            "0.001) gets wrong. The 5 shown"
        )
        assert len(section.figures) == 1
        [table] = section.tables.values()
        assert list(table.index) == FILES[:5]  # equal gains: in the order of the files
        assert list(table["class"]) == ["generated"] * 4 + ["real"]
        assert (table["its probability by the best"] == 0.9).all()
        assert (table["by the worst"] == 0.1).all()

    @pytest.mark.nightly
    def test_fewer_than_five_samples_or_none(self) -> None:
        results = section7()
        results["scratch"]["probability"][2, 3:] = LABELS[3:] * 0.8 + 0.1
        section = answered(results)["7.7"]
        assert section.answer.endswith("Fewer than five: all are shown.")
        assert len(section.figures) == 1
        results["scratch"]["probability"][:] = LABELS
        section = answered(results)["7.7"]
        assert "gets 0 right" in section.answer
        assert section.answer.endswith("Fewer than five: none can be shown.")
        assert not section.figures

    @pytest.mark.nightly
    def test_images_that_are_gone_leave_text(self, tmp_path: Path) -> None:
        section = answered(section7(images=str(tmp_path / "moved")), draw=True)["7.7"]
        assert len(section.figures) == 1

    def test_missing_sweeps_are_named_and_the_rest_compared(self) -> None:
        results = section7()
        few = {name: results[name] for name in ("boosted_trees", "scratch")}
        made = answered(few)
        for section in made.values():
            left_out = "Not in this run, and so left out: probing, probing sklearn, fine tuning."
            assert section.answer.endswith(left_out)
        assert "the best baseline is XGBoost (" in made["7.6"].answer

    def test_estimators_alone(self) -> None:
        results = section7()
        made = answered({name: results[name] for name in ("boosted_trees", "probing_sklearn")})
        assert made["7.6"].answer.startswith("By the mean test accuracy of its best setting, the ")
        assert len(made["7.6"].figures) == 1

    @pytest.mark.nightly
    def test_all_diverged_but_one_or_all(self) -> None:
        lost = {name: ds.assign(diverged_epoch=ds["diverged_epoch"] + 1)
                for name, ds in section7().items()}  # fmt: skip
        made = answered(lost)
        assert {section.answer for section in made.values()} == {"Every trial diverged."}
        made = answered(lost | {"boosted_trees": baseline(0.7)})
        assert made["7.7"].answer == "Fewer than two runs finished."
        assert made["7.6"].answer == (
            "The baselines of which a setting finished: XGBoost (0.7000)."
        )


@pytest.mark.nightly
def test_a_run_directory_shows_the_comparison_beside_its_sweeps(tmp_path: Path) -> None:
    results = section7(
        plan="p", plan_trials=11, programs=3, wall_seconds=9.0, devices=1, device="cpu",
        data="d", data_fingerprint="f", seed=0, jaxexp="1", jax="1",
        started="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    command = {"sweeps": list(SWEEPS), "missing": {"fine_tuning": "no weights"}}
    del results["fine_tuning"]
    with rundir.RunDirectory.create(tmp_path / "run", command, force=False) as run:
        drawn = pages.compare(run, results)
        page = pages.write(run, drawn, list(results.values())).read_text()
    assert sorted(path.name for path in run.figures.iterdir()) == [
        "7.6-1.png", "7.6-2.png", "7.7-1.png",
    ]  # fmt: skip
    assert page.count("data:image/png;base64,") == 3
    assert "no weights" in page
    assert 'id="row-7.7"' in page


def test_sections_of_any_name_have_an_order():
    rows = ["6.10", "6.2", "6.²", "x"]
    assert sorted(rows, key=pages._row_key) == ["x", "6.²", "6.2", "6.10"]
