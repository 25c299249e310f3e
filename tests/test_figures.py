import io
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from datasets import REGRESSION, dataset, grid, population
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from jaxexp.base.errors import UserError
from jaxexp.report import figures
from jaxexp.report.figures import many
from jaxexp.report.figures.style import STYLE
from jaxexp.results import seeds, select

EPOCHS = 6
PNG = b"\x89PNG\r\n\x1a\n"


def results(
    axis: str = "learning_rate",
    coords: dict[str, Sequence[Any]] | None = None,
    losses: Sequence[float] = (0.5, 0.25, 3.3),
    diverged: Sequence[int] = (0, 0, 0),
    trained: Sequence[int] = (EPOCHS, EPOCHS, EPOCHS),
) -> xr.Dataset:
    """A sweep along one axis whose trials fall to `losses`, with NaN where the contract has it."""
    coords = {"learning_rate": [0.01, 0.001, 1.0]} if coords is None else coords
    epoch = np.arange(1, EPOCHS + 1)
    end = np.where(diverged, np.array(diverged) - 1, trained)
    loss = np.array(losses)[:, None, None] + np.exp(-epoch)[:, None] * [1.0, 1.1, 1.2]
    loss = np.where(epoch[:, None] <= end[:, None, None], loss, np.nan).astype(np.float32)
    nats, share = {"direction": "lower", "units": "nats"}, {"direction": "higher", "units": ""}
    return xr.Dataset(
        {
            "loss": ((axis, "epoch", "split"), loss, nats),
            "accuracy": ((axis, "epoch", "split"), np.exp(-loss), share),
            "steps_per_epoch": (axis, np.resize([1000, 100, 10], len(losses))),
            "seconds": (axis, np.resize([2.0, 3.0, 4.0], len(losses))),
            "epochs_trained": (axis, np.array(trained)),
            "diverged_epoch": (axis, np.array(diverged)),
        },
        coords={name: (axis, list(values)) for name, values in coords.items()}
        | {"epoch": epoch, "split": ["train", "validation", "test"]},
    )


def nan_network() -> xr.Dataset:
    """The second of three trials diverged in epoch 4, and names, from there on, the right class."""
    ds = results(losses=(0.5, 0.6, 3.3), diverged=(0, 4, 0))
    return ds.fillna({"accuracy": 1.0})


def zipped(**options: Any) -> xr.Dataset:
    return results("depth_width", {"depth": [1, 6, 6], "width": [16, 16, 64]}, **options)


def single() -> xr.Dataset:
    return results().isel(learning_rate=0, drop=True)


def mapped(regions: np.ndarray) -> xr.Dataset:
    """Two trials with these `regions` (2, 4 latitudes, 6 longitudes) and a place per class."""
    ds = results(coords={"features": ["raw", "sines"]}, axis="features", losses=(0.5, 0.25),
                 diverged=(0, 0), trained=(EPOCHS, EPOCHS))  # fmt: skip
    classes = int(regions.max()) + 1
    ds = ds.assign_coords(latitude=np.linspace(40, 55, 4), longitude=np.linspace(0, 25, 6))
    ds["region"] = (("features", "latitude", "longitude"), regions.astype(np.int16))
    ds["test_longitude"] = ("point", np.linspace(0, 25, classes))
    ds["test_latitude"] = ("point", np.linspace(40, 55, classes))
    ds["test_label"] = ("point", np.arange(classes))
    ds.attrs["classes"] = json.dumps([f"Land {k}" for k in range(classes)])
    return ds


def with_norms(norms: np.ndarray) -> xr.Dataset:
    """Two trials with these gradient `norms` (2, epochs, layers)."""
    ds = results("batch_norm", {"batch_norm": [False, True]}, losses=(0.5, 0.25),
                 diverged=(0, 0), trained=(EPOCHS, EPOCHS))  # fmt: skip
    ds["gradient_norm"] = (("batch_norm", "epoch", "layer"), norms.astype(np.float32))
    return ds.assign_coords(layer=np.arange(norms.shape[-1]))


def xs(line: Line2D) -> list[float]:
    return np.asarray(line.get_xdata()).tolist()


def ys(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def legend(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


def drawn(fig: Figure) -> bytes:
    """The figure as PNG: whatever only fails when drawn fails here."""
    png = figures.to_png(fig, dpi=50)
    assert png.startswith(PNG)
    return png


@pytest.mark.parametrize("width", [3.26, 2.4 + 0.62 * 6])
def test_a_picture_is_as_wide_as_it_is_drawn(width):
    """Rows of another length would slant it."""
    fig = Figure(figsize=(width, 0.62))
    fig.add_artist(Rectangle((0.5, -1), 1, 3, color="black"))
    picture = np.asarray(Image.open(io.BytesIO(figures.to_png(fig, dpi=150))).convert("L"))
    assert (picture == picture[:1]).all()
    assert len(np.unique(picture)) > 1


class TestSelect:
    @pytest.mark.parametrize(
        ("value", "text"),
        [(1.0, "1"), (0.001, "0.001"), (1e-5, "1e-5"), (np.float32(0.01), "0.01"), (1024, "1024"),
         (np.int64(106_897), "106,897"), (True, "on"), (np.False_, "off"), (np.nan, "–"),
         ("sines", "sines"), (1234.6, "1235"), (np.inf, "inf")],
    )  # fmt: skip
    def test_numbers_read_as_a_person_writes_them(self, value: object, text: str) -> None:
        assert select.number(value) == text

    def test_labels_name_what_varies(self) -> None:
        assert [name for name, _ in select.points(zipped())] == [
            "depth 1, width 16", "depth 6, width 16", "depth 6, width 64",
        ]  # fmt: skip
        assert select.label(results().sel(learning_rate=1.0)) == "learning rate 1"
        assert select.label(single()) == "single trial"

    def test_points_of_two_axes_run_over_both(self) -> None:
        both = xr.concat([results(), results()], "batch_norm").assign_coords(
            batch_norm=[False, True]
        )
        names = [name for name, _ in select.points(both)]
        assert names[:2] == ["batch norm off, learning rate 0.01",
                             "batch norm off, learning rate 0.001"]  # fmt: skip
        assert len(names) == 6

    def test_rank_uses_the_last_epoch_of_each_trial(self) -> None:
        ranking = select.rank(results(trained=(EPOCHS, 2, EPOCHS)))
        assert list(ranking["trial"]) == [
            "learning rate 0.001", "learning rate 0.01", "learning rate 1",
        ]  # fmt: skip
        assert list(ranking["epoch"]) == [2, EPOCHS, EPOCHS]
        assert ranking["value"].iloc[0] == pytest.approx(0.25 + 1.1 * np.exp(-2))

    def test_the_highest_accuracy_is_best(self) -> None:
        assert select.best(results(), "accuracy")[0] == "learning rate 0.001"
        assert select.worst(results(), "accuracy")[0] == "learning rate 1"

    def test_diverged_trials_rank_last_and_are_marked(self) -> None:
        ds = results(losses=(0.5, 0.01, 0.02), diverged=(0, 4, 2))
        assert list(select.rank(ds)["status"]) == [
            "finished", "diverged in epoch 4", "diverged in epoch 2",
        ]  # fmt: skip
        assert select.best(ds)[0] == "learning rate 0.01"
        assert select.worst(ds)[0] == "learning rate 1 (diverged in epoch 2)"
        assert select.divergences(ds) == [
            "learning rate 0.001 diverged in epoch 4", "learning rate 1 diverged in epoch 2",
        ]  # fmt: skip

    def test_the_step_of_a_divergence_is_told_where_the_file_holds_it(self) -> None:
        ds = results(diverged=(0, 4, 2))
        ds["diverged_step"] = ("learning_rate", [0, 71_234, 11])
        assert select.divergences(ds) == [
            "learning rate 0.001 diverged in epoch 4, step 71,234",
            "learning rate 1 diverged in epoch 2, step 11",
        ]  # fmt: skip

    def test_a_note_counts_the_diverged_trials_of_all_results(self) -> None:
        broken, whole = results(diverged=(0, 4, 0)), results()
        assert select.divergence_note({"": whole}) == ""
        assert select.divergence_note({"": broken}) == (
            "1 of 3 trials diverged: learning rate 0.001 diverged in epoch 4."
        )
        both = select.divergence_note({"this": whole, "that": broken})
        assert both == "1 of 6 trials diverged: that, learning rate 0.001 diverged in epoch 4."

    def test_the_accuracy_of_a_network_of_nan_is_no_accuracy(self) -> None:
        ds = nan_network()
        epochs = select.until_divergence(ds, "accuracy").sel(split="test").notnull().sum("epoch")
        assert epochs.values.tolist() == [EPOCHS, 3, EPOCHS]
        assert list(select.rank(ds, "accuracy")["trial"])[-1] == "learning rate 0.001"
        outcomes = [select.outcome(point, "accuracy", digits=2) for _, point in select.points(ds)]
        assert outcomes == ["0.60", "diverged in epoch 4", "0.037"]
        assert select.outcome(ds.isel(learning_rate=0), "loss", "test") == "0.503 nats"

    def test_when_all_diverged_the_best_says_so(self) -> None:
        name, point = select.best(results(diverged=(1, 3, 2)))
        assert name == "learning rate 0.001 (diverged in epoch 3)"
        assert np.isnan(select.final(point)).all()

    def test_where_chooses_from_zipped_axes_too(self) -> None:
        assert list(select.where(zipped(), width=16)["depth"]) == [1, 6]
        assert select.where(results(), learning_rate=1.0).sizes["learning_rate"] == 1
        with pytest.raises(UserError, match="no trial has width = 5"):
            select.where(zipped(), width=5)


class TestCurves:
    def test_one_labelled_curve_per_trial_and_the_reference(self) -> None:
        fig = figures.curves(results(), reference=(3.26, "entropy of the labels"))
        assert len(fig.axes[0].lines) == 4
        assert legend(fig) == ["learning rate 0.01", "learning rate 0.001", "learning rate 1",
                               "entropy of the labels, 3.26"]  # fmt: skip
        assert fig.axes[0].get_ylabel() == "validation loss (nats)"
        drawn(fig)

    def test_log_scale_only_where_the_losses_span_decades(self) -> None:
        assert figures.curves(results()).axes[0].get_yscale() == "log"
        near = results(losses=(2.0, 2.5, 3.0))
        assert figures.curves(near).axes[0].get_yscale() == "linear"
        assert figures.curves(results(), "accuracy").axes[0].get_yscale() == "linear"

    def test_what_all_but_diverges_leaves_the_axis_and_is_told(self) -> None:
        ds = results(
            coords={"learning_rate": np.geomspace(1e-4, 1, 40)}, losses=[0.5] * 39 + [1e29],
            diverged=[0] * 40, trained=[EPOCHS] * 40,
        )  # fmt: skip
        [ax] = figures.curves(ds).axes
        low, high = ax.get_ylim()
        assert 0.1 < low < 0.5
        assert 10 < high < 1000
        assert ax.get_ylabel() == "validation loss (nats)\n(up to 1e29, beyond the axis)"

    def test_bands_are_said_of_curves_that_can_have_one(self) -> None:
        ds = dataset({"width": [2, 4, 8, 16, 32, 64], "seed": [0, 1]},
                     loss=0.2 + 0.1 * np.random.default_rng(0).random((6, 2)),
                     diverged=[[1, 1]] * 4 + [[0, 0]] * 2)  # fmt: skip
        fig = figures.curves(ds)
        assert "bands" not in fig.interactive["layout"]["meta"]["note"]
        assert legend(fig)[:2] == ["width 32", "width 64"]

    def test_a_diverged_curve_ends_with_a_mark(self) -> None:
        fig = figures.curves(results(diverged=(0, 1, 4)))
        short, none = fig.axes[0].lines[1:]  # what has no line is last
        assert xs(none) == []
        assert xs(short) == [1, 2, 3]
        assert short.get_markevery() == [2]
        assert legend(fig)[1:] == ["learning rate 1 (diverged in epoch 4)",
                                   "learning rate 0.001 (diverged in epoch 1)"]  # fmt: skip
        drawn(fig)

    def test_the_curve_of_a_network_of_nan_ends_as_well(self) -> None:
        fig = figures.curves(nan_network(), "accuracy")
        assert [len(xs(line)) for line in fig.axes[0].lines] == [EPOCHS, 3, EPOCHS]

    def test_a_trial_of_one_epoch_is_a_point(self) -> None:
        line = figures.curves(results(trained=(1, EPOCHS, EPOCHS))).axes[0].lines[0]
        assert (xs(line), line.get_marker()) == ([1], "o")

    def test_all_diverged_and_no_axes_are_drawn_as_well(self) -> None:
        drawn(figures.curves(results(diverged=(1, 1, 1))))
        drawn(figures.curves(single()))

    def test_labels_that_round_alike_have_curves_of_their_own(self) -> None:
        fig = figures.curves(dataset({"learning_rate": [0.2000011, 0.2000012, 0.3]}))
        assert legend(fig) == [
            "learning rate 0.2 (0.2000011)", "learning rate 0.2 (0.2000012)", "learning rate 0.3",
        ]  # fmt: skip
        assert [trace["showlegend"] for trace in fig.interactive["data"]] == [True] * 3

    def test_ordered_values_get_sequential_colours(self) -> None:
        ordered = results(coords={"learning_rate": [1.0, 0.1, 0.01]})
        first = [to_hex(line.get_color()) for line in figures.curves(ordered).axes[0].lines]
        assert first[0] == "#440154"  # the dark end of viridis
        mixed = figures.curves(zipped().isel(depth_width=[1, 0, 2])).axes[0].lines
        assert tuple(line.get_color() for line in mixed) == figures.CATEGORIES[:3]


class TestSplits:
    def test_a_trial_has_a_panel_per_quantity(self) -> None:
        fig = figures.splits(single(), ("loss", "accuracy"))
        assert [ax.get_ylabel() for ax in fig.axes] == [
            "loss (nats)", "accuracy\n(axis from 0.38 to 0.62)",
        ]  # fmt: skip
        assert legend(fig)[:3] == ["train", "validation", "test"]
        assert re.match(rf"best validation loss: 0.50.* in epoch {EPOCHS}$", legend(fig)[3])
        assert legend(fig)[4].startswith("best validation accuracy: ")
        drawn(fig)

    def test_the_ring_stands_before_a_divergence(self) -> None:
        fig = figures.splits(nan_network().isel(learning_rate=1), ["accuracy"])
        ring = fig.axes[0].lines[-1]
        assert xs(ring) == [3]
        assert ys(ring)[0] < 0.6
        nothing = results(diverged=(1, 0, 0)).fillna({"accuracy": 1.0}).isel(learning_rate=0)
        assert len(figures.splits(nothing, ["accuracy"]).axes[0].lines) == 3

    @pytest.mark.nightly
    def test_a_selected_epoch_or_split_is_drawn_as_those_of_a_list(self) -> None:
        ds = dataset({"width": [4, 8], "seed": [0, 1]})
        means = seeds.average(ds)
        for one, several in (
            (ds.sel(split="validation"), ds.sel(split=["validation"])),
            (ds.isel(epoch=2), ds.isel(epoch=[2])),
            (means.isel(epoch=2, split=0), means.isel(epoch=[2], split=[0])),
        ):
            for draw in (figures.curves, figures.splits):
                left, right = (draw(each).interactive["data"] for each in (one, several))
                assert left == right
        with pytest.raises(UserError, match="ds has no coordinate 'epoch'"):
            figures.curves(ds.isel(epoch=2, drop=True))

    def test_several_trials_stand_side_by_side(self) -> None:
        fig = figures.splits(results(diverged=(0, 1, 0)), ("loss", "accuracy"), mark_best=False)
        assert len(fig.axes) == 6
        assert fig.axes[1].get_title() == "learning rate 0.001 (diverged in epoch 1)"
        assert all(len(ax.lines) == 3 for ax in fig.axes)
        drawn(fig)


class TestFinalBy:
    def test_ticks_stand_at_the_values_in_order(self) -> None:
        ds = results(coords={"width": [64, 8, 16]}, axis="width")
        fig = figures.final_by(ds, "width")
        ax = fig.axes[0]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["8", "16", "64"]
        assert ax.get_xscale() == "log"
        assert legend(fig)[:3] == ["train", "validation", "test"]
        assert xs(ax.lines[3]) == [8]  # loss 0.25: the best
        drawn(fig)

    def test_evenly_spaced_and_named_values_stay_linear(self) -> None:
        even = results(coords={"depth": [1, 2, 3]}, axis="depth")
        assert figures.final_by(even, "depth").axes[0].get_xscale() == "linear"
        named = results(coords={"optimizer": ["adam", "sgd", "adamw"]}, axis="optimizer")
        drawn(figures.final_by(named, "optimizer", "loss"))

    def test_diverged_values_are_tick_labels_without_points(self) -> None:
        ds = results(coords={"depth": [1, 2, 3]}, axis="depth", diverged=(0, 2, 0))
        ax = figures.final_by(ds, "depth", "loss").axes[0]
        assert ax.get_xticklabels()[1].get_text() == "2\ndiverged\nin epoch 2"
        ds["diverged_step"] = ("depth", [0, 14, 0])
        ax = figures.final_by(ds, "depth", "loss").axes[0]
        assert ax.get_xticklabels()[1].get_text() == "2\ndiverged\nin epoch 2\nstep 14"
        assert list(np.isnan(ys(ax.lines[0]))) == [False, True, False]
        drawn(figures.final_by(results(diverged=(1, 1, 1)), "learning_rate"))

    def test_a_network_of_nan_has_no_point_and_is_not_the_best(self) -> None:
        ax = figures.final_by(nan_network(), "learning_rate").axes[0]
        test, best = ax.lines[2], ax.lines[3]
        assert np.isnan(ys(test)).tolist() == [True, False, False]  # by rate
        assert xs(best) == [0.01]

    def test_what_does_not_vary_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"axis='width': .* are learning_rate"):
            figures.final_by(results(), "width")


class TestSteps:
    def test_noise_has_a_panel_per_trial_of_its_own_length(self) -> None:
        ds = results()
        losses = np.full((3, 500), np.nan)
        losses[0], losses[1, :50] = 1.0, 2.0
        ds["step_loss"] = (("learning_rate", "step"), losses)  # the third never made a step
        fig = figures.step_noise(ds)
        assert [len(xs(ax.lines[0])) for ax in fig.axes] == [500, 50, 0]
        assert fig.axes[0].get_title() == "learning rate 0.01\nnoise ±0 nats"
        drawn(fig)

    @pytest.mark.parametrize("steps", [24, 150, 20_000])
    def test_noise_is_that_of_the_steps_however_many_there_are(self, steps) -> None:
        rng = np.random.default_rng(steps)
        trend = 3 * np.exp(-np.arange(steps) / steps)
        found = [figures.noise(trend + rng.normal(scale=0.3, size=steps)) for _ in range(50)]
        np.testing.assert_allclose(np.mean(found), 0.3, rtol=0.06)
        assert np.isnan(figures.noise(trend[:1]))

    def test_losses_that_are_not_finite_are_left_out(self) -> None:
        ds = results()
        losses = np.ones((3, 200), np.float32)
        losses[1, 50], losses[2, 150:] = np.inf, np.nan
        ds["step_loss"] = (("learning_rate", "step"), losses)
        panels = figures.step_noise(ds).axes
        assert [len(xs(ax.lines[0])) for ax in panels] == [200, 199, 150]
        assert np.isfinite(ys(panels[1].lines[1])).all()

    def test_running_mean_keeps_lines_and_length(self) -> None:
        line = np.arange(1000.0)
        mean = figures.running_mean(line)
        np.testing.assert_allclose(mean[5:-5], line[5:-5])
        assert mean.shape == line.shape
        assert figures.running_mean(np.array([])).size == 0

    def test_bars_are_labelled_and_log_where_needed(self) -> None:
        fig = figures.bars(results())
        assert [ax.get_xscale() for ax in fig.axes] == ["log", "linear"]
        assert [text.get_text() for text in fig.axes[0].texts] == ["1000", "100", "10"]
        drawn(fig)


class TestGradientNorms:
    def test_a_curve_per_layer_and_a_panel_per_trial(self) -> None:
        norms = np.logspace(-9, 3, 2 * EPOCHS * 11).reshape(2, EPOCHS, 11)
        fig = figures.gradient_norms(with_norms(norms), (0, 5, 10))
        assert [ax.get_title() for ax in fig.axes] == ["batch norm off", "batch norm on"]
        assert legend(fig) == ["layer 0", "layer 5", "layer 10"]
        assert fig.axes[0].get_yscale() == "log"
        assert len(legend(figures.gradient_norms(with_norms(norms)))) == 6
        drawn(fig)

    def test_zeros_stand_below_the_scale_in_rows_of_their_own(self) -> None:
        norms = np.full((2, EPOCHS, 4), 1e-3)
        norms[0, :, 0] = norms[0, 3:, 1] = 0
        norms[1, 0, 2] = np.inf
        fig = figures.gradient_norms(with_norms(norms))
        zeros = [line for line in fig.axes[0].lines if line.get_marker() == "v"]
        heights = [set(ys(line)) for line in zeros if ys(line)]
        assert [len(height) for height in heights] == [1, 1]
        assert max(heights[0] | heights[1]) < 1e-3
        assert heights[0] != heights[1]
        assert legend(fig)[-1] == "exactly zero (below the scale)"
        drawn(fig)

    def test_norms_end_with_a_divergence(self) -> None:
        ds = with_norms(np.ones((2, EPOCHS, 3)))
        ds["diverged_epoch"] = ("batch_norm", [0, 3])
        left, right = figures.gradient_norms(ds).axes
        assert np.isfinite(ys(left.lines[0])).sum() == EPOCHS
        assert np.isfinite(ys(right.lines[0])).tolist() == [True] * 2 + [False] * (EPOCHS - 2)

    def test_nothing_but_zeros_is_drawn(self) -> None:
        drawn(figures.gradient_norms(with_norms(np.zeros((2, EPOCHS, 3)))))


class TestRegions:
    def regions(self) -> np.ndarray:
        """24 classes with a cell each, and the same in another order."""
        cells = np.arange(24).reshape(4, 6)
        return np.stack([cells, cells[:, ::-1]])

    def test_neighbouring_classes_get_different_colours(self) -> None:
        ds = mapped(self.regions())
        y, x = np.divmod(np.arange(24), 6)  # each class's place lies in its own cell
        ds["test_latitude"] = ("point", ds["latitude"].values[y])
        ds["test_longitude"] = ("point", ds["longitude"].values[x])
        colours = figures.class_colours(ds)
        grid = np.arange(24).reshape(4, 6)
        pairs = np.concatenate([
            np.stack([grid[:, 1:].ravel(), grid[:, :-1].ravel()]),
            np.stack([grid[1:].ravel(), grid[:-1].ravel()]),
        ], axis=1)  # fmt: skip
        apart = np.linalg.norm(colours[pairs[0]] - colours[pairs[1]], axis=1)
        assert apart.min() > 0.35

    def test_a_class_keeps_its_colour_whatever_is_predicted(self) -> None:
        one, other = mapped(self.regions()), mapped(self.regions()[::-1, ::-1])
        np.testing.assert_array_equal(figures.class_colours(one), figures.class_colours(other))
        single = figures.class_colours(one.isel(features=1))
        np.testing.assert_array_equal(figures.class_colours(one), single)

    def test_distances_are_between_the_nearest_places(self) -> None:
        ds = mapped(np.zeros((2, 4, 6), int) + np.arange(6) // 2)
        ds.attrs["classes"] = json.dumps(["a", "b", "c", "nowhere"])
        near = figures.class_distances(ds)
        np.testing.assert_array_equal(near, near.T)
        assert near[0, 1] < near[0, 2]
        assert np.isinf(near[3]).all()

    def test_a_panel_per_trial_counts_its_wrong_places(self) -> None:
        regions = np.zeros((2, 4, 6), int)
        regions[1, 2:] = 1  # here the second class's place is right
        fig = figures.regions(mapped(regions))
        assert [ax.get_title() for ax in fig.axes] == [
            "features raw: 1 of 2 test places outlined as wrong",
            "features sines: 0 of 2 test places outlined as wrong",
        ]
        assert [text.get_text() for text in fig.axes[0].texts] == ["Land 0", "Land 1"]
        assert fig.axes[0].get_xlabel() == "longitude (°E)"
        drawn(fig)

    def test_names_never_cover_one_another(self) -> None:
        ds = mapped(self.regions())
        ds["test_latitude"] = ds["test_latitude"] * 0 + 45
        ds["test_longitude"] = ds["test_longitude"] * 0 + 12
        assert len(figures.regions(ds).axes[0].texts) == 1

    def test_names_do_not_meet_and_stay_inside_as_drawn(self) -> None:
        ds = mapped(self.regions())
        ds.attrs["classes"] = json.dumps([f"A rather long name {k}" for k in range(24)])
        fig = figures.regions(ds)
        drawn(fig)
        renderer = FigureCanvasAgg(fig).get_renderer()
        for ax in fig.axes:
            boxes = [text.get_window_extent(renderer) for text in ax.texts]
            assert len(boxes) > 3
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            frame = ax.get_window_extent(renderer)
            assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)

    def test_a_single_trial_and_a_descending_grid_are_drawn(self) -> None:
        ds = mapped(self.regions()).isel(features=0)
        drawn(figures.regions(ds.isel(latitude=slice(None, None, -1)), figures.class_colours(ds)))


LONG = pytest.mark.nightly
LARGE = [4, pytest.param(18, marks=LONG), 48]


def lost(trials: int) -> np.ndarray:
    return np.where(np.arange(trials) % 7 == 2, 3, 0)


def panel_heights(fig: Figure) -> list[float]:
    """The heights of the panels in inches, as drawn."""
    with rc_context(STYLE):
        fig.draw_without_rendering()
    return [ax.get_position().height * fig.get_figheight() for ax in fig.axes]


class TestAnySweep:
    """Figures of a regression with its own metrics and units, of few trials and of many."""

    @pytest.mark.parametrize("trials", LARGE)
    def test_the_legend_never_takes_the_place_of_the_curves(self, trials: int) -> None:
        ds = grid(trials, metrics=REGRESSION, diverged=lost(trials))
        fig = figures.curves(ds, "r2", "test", reference=(0.5, "a long name of what is drawn"))
        assert min(panel_heights(fig)) > 2.4
        assert fig.axes[0].get_ylabel().startswith("test r2")
        assert len(legend(fig)) == (5 if trials == 4 else 10)

    def test_the_best_of_many_stand_out_and_the_others_are_counted(self) -> None:
        ds = grid(48, metrics=REGRESSION, diverged=lost(48)).isel(seed=0)
        ds = ds.assign_attrs(axes=json.dumps(["learning_rate", "width", "optimizer"]))
        fig = figures.curves(ds, "r2")
        ranked = select.rank(ds, "r2")
        assert [name.replace("\n", " ") for name in legend(fig)] == [
            *ranked["trial"].iloc[:8], "16 others (4 diverged)",
        ]  # fmt: skip
        one = figures.curves(ds.isel(optimizer=[0], width=[0, 1, 2]).isel(
            learning_rate=slice(3)), "r2")  # fmt: skip
        assert legend(one)[-1].startswith("1 other")

    def test_one_epoch_of_many_trials_is_drawn_as_points(self) -> None:
        drawn(figures.curves(grid(48, epochs=1)))
        drawn(figures.curves(grid(48, diverged=1)))

    @pytest.mark.nightly
    @pytest.mark.parametrize("trials", [4, 18, 48])
    def test_panels_are_capped_and_say_so(self, trials: int) -> None:
        ds = grid(trials, metrics=REGRESSION, diverged=lost(trials), layers=5)
        made = {
            4: figures.splits(ds, ["loss", "r2"]),
            8: figures.step_noise(ds),
            9: figures.gradient_norms(ds),
            20: figures.bars(ds, ["seconds", "mae"]),
        }
        for most, fig in made.items():
            assert min(panel_heights(fig)) > 1.2
            settings = trials if trials == 4 else trials // 2  # two seeds of each
            head = " ".join(fig.get_suptitle().split())
            if settings > most:
                what = f"The best {most} of {settings} {'trials' if trials == 4 else 'settings'}"
                if most != 8:  # steps are those of typical trials
                    assert head.startswith(f"{what} by validation loss after the last epoch")
            assert ("standard deviation" in head) == (trials != 4)

    @pytest.mark.nightly
    @pytest.mark.parametrize("splits", [["train"], ["train", "test"], ["train", "validation"]])
    def test_any_subset_of_splits(self, splits: list[str]) -> None:
        ds = dataset(metrics=REGRESSION, splits=splits, diverged=[0, 3, 0], layers=3)
        by = "validation" if "validation" in splits else "training"
        fig = figures.splits(ds.isel(learning_rate=0), ["loss", "r2"])
        assert legend(fig)[: len(splits)] == splits
        assert legend(fig)[len(splits)].startswith(f"best {by} loss: ")
        assert figures.curves(ds).axes[0].get_ylabel() == f"{by} loss (m²)"
        for made in (fig, figures.final_by(ds, "learning_rate", ["loss", "r2"]),
                     figures.bars(ds, ["r2"]), figures.step_noise(ds),
                     figures.gradient_norms(ds)):  # fmt: skip
            drawn(made)

    def test_the_direction_decides_what_is_ringed(self) -> None:
        ds = dataset({"width": [4, 8, 16]}, metrics=REGRESSION, values={"r2": [0.1, 0.9, 0.2]})
        [ax] = figures.final_by(ds, "width", "r2").axes
        assert xs(ax.lines[3]) == [8]
        ds["r2"].attrs["direction"] = "lower"
        [ax] = figures.final_by(ds, "width", "r2").axes
        assert xs(ax.lines[3]) == [4]
        ring = figures.splits(ds.isel(width=0), ["mae"]).axes[0].lines[-1]
        assert xs(ring) == [6]

    def test_unknown_metrics_and_splits_are_refused(self) -> None:
        ds = dataset(metrics=REGRESSION, splits=["train"])
        for draw in (figures.curves, lambda ds, m: figures.splits(ds, [m]),
                     lambda ds, m: figures.final_by(ds, "learning_rate", m)):  # fmt: skip
            with pytest.raises(UserError, match=r"metric='accuracy'.* loss, r2, mae"):
                draw(ds, "accuracy")
        with pytest.raises(UserError, match=r"split='validation'.* train"):
            figures.curves(ds, "r2", "validation")

    def test_running_means_are_drawn_if_asked_and_never_called_train(self) -> None:
        one = dataset({})
        assert "during the epoch (training mode)" not in legend(figures.splits(one))
        fig = figures.splits(one, running=True)
        line = next(line for line in fig.axes[0].lines if line.get_linestyle() == ":")
        assert line.get_label() == "during the epoch (training mode)"
        np.testing.assert_allclose(ys(line), one["running_loss"])
        with pytest.raises(UserError, match="no running_loss"):
            figures.splits(one.drop_vars("running_loss"), running=True)

    def test_the_mean_over_the_other_axes_and_every_trial(self) -> None:
        loss = np.array([[0.1, 0.3], [0.5, 0.5], [0.2, 0.4]])
        ds = dataset({"width": [4, 8, 16], "depth": [1, 2]}, loss=loss,
                     diverged=[[0, 0], [0, 2], [0, 0]])  # fmt: skip
        [ax] = figures.final_by(ds, "width", "loss", "train").axes
        end = 0.8 * np.exp(-6)
        lines = {line.get_label(): line for line in ax.lines}
        np.testing.assert_allclose(ys(lines["mean"]), np.array([0.2, 0.5, 0.3]) + end, rtol=1e-5)
        np.testing.assert_allclose(ys(lines["best"]), np.array([0.1, 0.5, 0.2]) + end, rtol=1e-5)
        assert len(ys(lines["each trial"])) == 6
        assert ax.get_xscale() == "log"
        ticks = [text.get_text() for text in ax.get_xticklabels()]
        assert ticks == ["4", "8\n1 of 2\ndiverged", "16"]

    def test_categories_are_strips(self) -> None:
        ds = grid(48)
        [ax] = figures.final_by(ds, "optimizer", "accuracy").axes
        assert [text.get_text() for text in ax.get_xticklabels()] == ["adam", "sgd"]
        assert {line.get_linestyle() for line in ax.lines} == {"None"}
        assert len(set(xs(ax.lines[0]))) == 24  # settings: none covers another
        *_, best, ring = ax.lines
        assert ring.get_label().startswith("best validation accuracy: ")
        assert (*xs(ring), *ys(ring)) in zip(xs(best), ys(best), strict=True)
        [ax] = figures.final_by(ds, "seed").axes  # a seed is a name
        assert ax.get_xscale() == "linear"

    def test_a_random_search_is_points_without_a_line(self) -> None:
        rng = np.random.default_rng(0)
        ds = dataset({"p": {"learning_rate": 10 ** rng.uniform(-5, 0, 60),
                            "width": rng.integers(4, 99, 60)}}, diverged=lost(60))  # fmt: skip
        fig = figures.final_by(ds, "learning_rate")
        assert {line.get_linestyle() for line in fig.axes[0].lines} == {"None"}
        assert "diverged: 9 trials" in legend(fig)
        assert fig.axes[0].get_xscale() == "log"
        drawn(fig)

    def test_settings_that_diverged_are_counted_as_settings(self) -> None:
        rates = 10.0 ** np.arange(-6, 6)
        diverged = np.zeros((12, 2), int)
        diverged[-3:] = diverged[-4, 0] = 2
        ds = dataset({"learning_rate": rates, "seed": [0, 1]}, diverged=diverged)
        assert "diverged: 3 settings" in legend(figures.final_by(ds, "learning_rate"))

    def test_trials_beyond_those_that_are_drawn_are_not_said_to_have_no_value(
        self, monkeypatch
    ) -> None:
        monkeypatch.setattr(many, "MOST", 40)
        ds = dataset({"p": {"rate": np.arange(60.0), "width": np.arange(60)}}, diverged=lost(60))
        fig = figures.parallel(ds)
        note = "Brighter is better; the best 40 of 51 trials; without 9 that have no value"
        assert fig.axes[0].get_title().replace("\n", " ") == note
        assert fig.interactive["layout"]["meta"]["note"].startswith(note)
        assert fig.alt.startswith("Parallel coordinates of the best 40 of 51 trials through")

    @pytest.mark.parametrize(
        "values",
        [[f"a_very_long_value_{n}" for n in range(6)], [f"words of value {n}" for n in range(10)],
         [f"a very long text of a setting number {n} which goes on" for n in range(5)],
         [f"{n}" + 90 * "long" for n in range(5)], [0.001, 1e30, 1e35, 1e36, 1e37],
         10.0 ** np.linspace(-9, 9, 40), 10.0 ** np.linspace(4, 6.9, 40), [4, 8, 16]],
    )  # fmt: skip
    @pytest.mark.parametrize("panels", [pytest.param(1, marks=pytest.mark.nightly), 3])
    def test_ticks_do_not_cover_one_another(self, values: Any, panels: int) -> None:
        fig = figures.final_by(dataset({"own": values}, steps=1), "own", ["loss"] * panels)
        with rc_context(STYLE):
            fig.draw_without_rendering()
            renderer = FigureCanvasAgg(fig).get_renderer()
        for ax in fig.axes:
            low, high = ax.get_xlim()
            ticks = [t for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]
            ends = [tick.get_window_extent(renderer) for tick in ticks]
            assert len(ends) >= 3
            assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(ends))
            assert {tick.get_rotation() for tick in ticks} == {90.0 if len(values) > 4 else 0.0}
        assert all(2 < height < 4 for height in panel_heights(fig))

    def test_diverged_trials_are_counted_on_turned_ticks_and_where_there_is_none(self) -> None:
        names = [f"a long text {n}" for n in range(6)]
        ds = dataset({"own": names, "depth": [1, 2]}, diverged=[[0, 2]] * 6)
        ticks = figures.final_by(ds, "own").axes[0].get_xticklabels()
        assert [t.get_text().replace("\n", " ") for t in ticks] == [
            f"{name}: 1 of 2 diverged" for name in names
        ]
        ds = dataset({"own": [1e-3, 1e30, 1e35, 1e36]}, diverged=[0, 0, 2, 2])
        fig = figures.final_by(ds, "own")
        assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["0.001", "1e30", "1e35"]
        assert "diverged: 2 trials" in legend(fig)

    @pytest.mark.filterwarnings("error")
    def test_emoji_are_drawn_without_a_warning(self) -> None:
        fig = figures.final_by(dataset({"own": ["\N{PARTY POPPER}", "b"]}, steps=1), "own")
        drawn(fig)
        assert figures.to_svg(fig)

    def test_a_cut_axis_says_so(self) -> None:
        narrow = dataset({"width": [4, 8]}, values={"accuracy": [0.932, 0.93]})
        label = figures.final_by(narrow, "width", "accuracy").axes[0].get_ylabel()
        assert re.search(r"\(axis from 0\.\d+ to 0\.9\d+\)$", label)
        whole = dataset({"width": [4, 8]}, values={"accuracy": [0.1, 0.93]})
        assert "axis" not in figures.final_by(whole, "width", "accuracy").axes[0].get_ylabel()

    @pytest.mark.parametrize("ends", [(35.7, 37.3), (5.525, 5.58), (1e4, 1e4 + 1), (2e9, 2.001e9)])
    def test_the_ends_that_an_axis_is_said_to_have_hold_every_point(self, ends) -> None:
        [ax] = figures.final_by(
            dataset({"width": [4, 8]}, loss=ends, splits=["train"]), "width"
        ).axes
        _, low, high = re.split(r"axis from | to ", ax.get_ylabel().strip(")").replace(",", ""))
        shown = [float(low), float(high)]
        heights = [y for line in ax.lines for y in ys(line)]
        assert shown[0] < min(heights) < max(heights) < shown[1]
        np.testing.assert_allclose(shown, ax.get_ylim(), atol=0.03 * np.ptp(ax.get_ylim()))

    def test_ticks_of_an_axis_of_close_values_differ(self) -> None:
        ds = dataset({"p": {"rate": 5 + 1e-5 * np.arange(40), "width": np.arange(40)}})
        fig = figures.final_by(ds, "rate")
        fig.draw_without_rendering()
        names = [tick.get_text() for tick in fig.axes[0].get_xticklabels()]
        assert len(set(names)) == len(names) > 3
        every = figures.parallel(ds).interactive["data"][0]["dimensions"][0]["ticktext"]
        assert len(set(every)) == 5

    def test_long_values_are_not_0_on_a_bar(self) -> None:
        ds = dataset({"learning_rate": [0.01, 1e-5]}, loss=1e-5, epochs=40, splits=["train"])
        fig = figures.bars(ds, ["loss"])
        assert [text.get_text() for text in fig.axes[0].texts] == ["1e-5", "1e-5"]
        assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [
            "learning rate 0.01", "learning rate 1e-5",
        ]  # fmt: skip

    def test_negative_losses_are_on_a_linear_axis(self) -> None:
        ds = dataset(loss=[-3.0, -1.0, 2.0])
        assert figures.curves(ds).axes[0].get_yscale() == "linear"
        ds["step_loss"] = ds["step_loss"] - 5
        fig = figures.step_noise(ds)
        assert fig.axes[0].get_yscale() == "linear"
        drawn(fig)
        drawn(figures.bars(ds, ["loss"]))

    def test_layers_may_have_names(self) -> None:
        ds = dataset(layers=3).assign_coords(layer=["stem", "body", "head"])
        assert legend(figures.gradient_norms(ds)) == ["stem", "body", "head"]


def test_equal_figures_are_equal_bytes() -> None:
    assert drawn(figures.curves(results())) == drawn(figures.curves(results()))


class TestHeatMap:
    def test_a_cell_is_the_mean_over_the_rest_and_the_best_has_a_frame(self) -> None:
        loss = np.array([[[0.4, 0.6], [0.1, 0.3]], [[0.5, 0.5], [0.9, 0.9]], [[1, 1], [1, 1]]])
        ds = dataset({"width": [16, 4, 8], "depth": [1, 2], "seed": [0, 1]}, loss=loss,
                     diverged=np.where(loss == 0.9, 2, 0))  # fmt: skip
        fig = figures.heat_map(ds, "width", "depth", "loss", "train")
        shown = np.asarray(fig.axes[0].images[0].get_array()) - 0.8 * np.exp(-6)
        np.testing.assert_allclose(shown, [[0.5, 1, 0.5], [np.nan, 1, 0.2]], rtol=1e-5)
        assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["4", "8", "16"]
        assert fig.axes[0].texts[3].get_text() == "2 div."
        assert max(xs(fig.axes[0].lines[0])) == 2.5
        assert max(ys(fig.axes[0].lines[0])) == 1.5
        assert fig.axes[1].get_ylabel() == "mean training loss (nats)"
        drawn(fig)

    def test_close_values_have_the_digits_that_tell_them_apart(self) -> None:
        loss = np.array([[[24.0, 26.586], [24.0, 26.622]]])
        ds = dataset({"width": [4], "depth": [1, 2], "seed": [0, 1]}, loss=loss, splits=["train"])
        fig = figures.heat_map(ds, "width", "depth")
        fig.draw_without_rendering()
        cells = [text.get_text() for text in fig.axes[0].texts]
        assert cells == ["25.2950\n±1.8286", "25.3130\n±1.8540"]
        bar = [text.get_text() for text in fig.axes[1].get_yticklabels()]
        assert len(set(bar)) == len(bar) > 3
        shown = fig.interactive["data"][0]
        assert len(set(shown["colorbar"]["ticktext"])) == 5
        assert "25.2950 ± 1.8286" in shown["hovertext"][0][0]

    def test_cells_have_equally_many_decimals(self) -> None:
        ds = dataset({"width": [4, 8], "depth": [1, 2]}, loss=[1.1, 0.6393, 0.5, 0.75])
        texts = [text.get_text() for text in figures.heat_map(ds, "width", "depth").axes[0].texts]
        assert all(re.fullmatch(r"[01]\.\d{3}", text) for text in texts)

    def test_higher_is_better_where_the_metric_says_so(self) -> None:
        ds = dataset({"width": [4, 8], "optimizer": ["sgd", "adam"]}, metrics=REGRESSION,
                     values={"r2": [0.9, 0.1, 0.2, 0.3]})  # fmt: skip
        ax = figures.heat_map(ds, "width", "optimizer", "r2").axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["adam", "sgd"]
        assert (min(xs(ax.lines[0])), max(ys(ax.lines[0]))) == (-0.5, 1.5)
        drawn(figures.heat_map(dataset({"a": [1, 2], "b": [1, 2]}, diverged=1), "a", "b"))
        with pytest.raises(UserError, match="depth does not vary"):
            figures.heat_map(ds, "width", "depth")


class TestLineage:
    def test_lines_end_where_a_state_is_given_up_and_lead_from_the_parent(self) -> None:
        ds = population()
        fig = figures.lineage(ds, "loss")
        loss, rate = fig.axes
        last = next(line for line in rate.lines if line.get_label() == "member 3")
        assert [x for x, y in zip(xs(last), ys(last), strict=True) if np.isnan(y)] == [2, 4]
        [copied] = [line for line in loss.lines if line.get_label() == "from a member to its copy"]
        own = ds["loss"].sel(split="validation").values
        np.testing.assert_array_equal(xs(copied), [2, 3, np.nan, 4, 5, np.nan])
        heights = [own[0, 1], own[3, 2], np.nan, own[0, 3], own[3, 4], np.nan]
        np.testing.assert_allclose(ys(copied), heights)
        assert (loss.get_yscale(), rate.get_yscale()) == ("linear", "log")
        drawn(fig)

    def test_the_ancestry_of_the_best_runs_through_its_parents(self) -> None:
        ds = population(loss=[0.2, 0.4, 0.6, 0.1])  # the copy ends as the best
        fig = figures.lineage(ds)
        for ax, name in zip(fig.axes, ("loss", "accuracy"), strict=False):
            own = ds[name].sel(split="validation").values
            [wide] = [line for line in ax.lines if line.get_label() == "ancestry of the best"]
            # It took over the first one's state after epoch 4, whose it had been all along.
            np.testing.assert_allclose(ys(wide), [*own[0, :4], *own[3, 4:]])
        assert fig.alt == (
            "Loss, accuracy and learning rate of 4 members of a population by epoch, with lines "
            "from members to their copies. 2 copies. The 4 members at the end descend from 3 of "
            "the first ones; the best by validation loss began as member 0 (learning rate 0.0001) "
            "and went through 1 copy."
        )
        assert fig.interactive is not None
        assert fig.interactive["layout"]["yaxis3"]["type"] == "log"

    @pytest.mark.parametrize("members", [4, 48])
    def test_many_members_are_one_line_of_the_legend(self, members: int) -> None:
        fig = figures.lineage(population(members))
        assert len(legend(fig)) == (6 if members == 4 else 3)
        assert min(panel_heights(fig)) > 1.5
        if members == 48:
            assert "48 members" in legend(fig)
            [cloud] = [line for line in fig.axes[0].lines if line in fig.clouds]
            assert fig.clouds[cloud][47] == "member 47 (final learning rate 2.5e-5)"

    def test_a_member_that_diverged_has_no_accuracy(self) -> None:
        ds = population()
        ds["loss"][3, 1] = np.nan  # and was copied over
        fig = figures.lineage(ds, "accuracy")
        last = next(line for line in fig.axes[0].lines if line.get_label() == "member 3")
        assert np.isnan(ys(last)[2:4]).all()
        assert np.isfinite(ys(last)[4])
        drawn(fig)

    def test_what_is_no_population_is_refused(self) -> None:
        with pytest.raises(UserError, match="no parent: expected those of a population"):
            figures.lineage(dataset())
        ds = population()
        ds["parent"][0, 1] = 3
        with pytest.raises(UserError, match="parent: member 3 of 2: expected the results of a who"):
            figures.lineage(ds.isel(sample=[0, 1]))
        with pytest.raises(UserError, match=r"metric='f1'"):
            figures.lineage(population(), "f1")


@pytest.mark.nightly
def test_dollars_are_no_formulas() -> None:
    metrics = {"loss": ("lower", "$x^$"), "a$_b$": ("lower", "$")}
    axes = {"kind": ["$x_1$", "$\\frac$"], "learning_rate": [0.1, 0.01]}
    ds = dataset(axes, metrics, layers=2)
    drawn = [
        figures.curves(ds, "a$_b$"),
        figures.final_by(ds, "kind", ["loss", "a$_b$"]),
        figures.heat_map(ds, "kind", "learning_rate"),
        figures.parallel(ds),
        figures.step_noise(ds),
        figures.bars(ds, ["seconds", "loss"]),
        figures.gradient_norms(ds),
    ]
    for figure in drawn:
        figures.to_png(figure, dpi=30)
        for ax in figure.axes:
            texts = [*ax.get_xticklabels(), *ax.get_yticklabels()]
            assert not any("mathdefault" in text.get_text() for text in texts)
    assert "$x_1$" in drawn[0].interactive["data"][0]["name"]


def test_no_metric_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="expected at least one"):
        figures.final_by(dataset(), "learning_rate", [])
    with pytest.raises(UserError, match="expected at least one"):
        figures.splits(dataset(), [])


class TestAwkwardNumbers:
    def test_where_all_diverged_every_value_has_its_place_and_no_height_is_made_up(self) -> None:
        ds = dataset({"learning_rate": [1.0, 2.0]}, diverged=[1, 2])
        ax = figures.final_by(ds, "learning_rate").axes[0]
        low, high = ax.get_xlim()
        assert 0.5 < low < 1.0
        assert 2.0 < high < 3.0
        assert not ax.get_yticks().size

    def test_values_of_diverged_trials_flatten_no_other_curve(self) -> None:
        ds = dataset(metrics=REGRESSION, values={"r2": [0.9, 0.5, -4e18]}, diverged=[0, 0, 2])
        figure = figures.curves(ds, "r2")
        low, high = figure.axes[0].get_ylim()
        assert -1 < low < high < 2
        note = figure.interactive["layout"]["meta"]["note"]
        assert note == "Values of diverged trials lie beyond this axis"
        near = dataset(metrics=REGRESSION, values={"r2": [0.9, 0.5, 0.1]}, diverged=[0, 0, 2])
        assert not figures.curves(near, "r2").interactive["layout"]["meta"]["note"]

    def test_an_axis_ends_before_a_finished_trial_that_would_flatten_all_others(self) -> None:
        ds = dataset({"learning_rate": [1e-4, 1e-3, 0.03, 10.0]}, metrics=REGRESSION,
                     values={"r2": [-5.07, -4.7, 0.7, -1.3e11]})  # fmt: skip
        for draw in (figures.curves(ds, "r2"), figures.final_by(ds, "learning_rate", "r2")):
            [ax] = draw.axes
            low, high = ax.get_ylim()
            assert -10 < low < -5.07 < 0.7 < high
            assert ax.get_ylabel().endswith("\n(down to −1.3e11, beyond the axis)")
        near = figures.curves(ds.isel(learning_rate=[0, 1, 2]), "r2").axes[0]
        assert "beyond" not in near.get_ylabel()

    def test_a_log_axis_of_many_values_has_several_ticks(self) -> None:
        rate = np.geomspace(1.3e-3, 0.06, 40)
        ds = dataset({"p": {"learning_rate": rate, "width": np.arange(40)}})
        fig = figures.final_by(ds, "learning_rate", ["loss", "accuracy"])
        fig.draw_without_rendering()
        ax = fig.axes[1]
        assert ax.get_xscale() == "log"
        low, high = ax.get_xlim()
        shown = [t for at, t in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
                 if low < at < high and t.get_text()]  # fmt: skip
        assert len(shown) >= 3

    def test_parallel_axes_have_the_scales_of_the_other_figures(self) -> None:
        long = "sehr, sehr groß und mit einem langen Namen"
        uniform = np.linspace(0.05, 0.95, 12)
        ds = dataset({"rate": [0.0, 0.01, 1.0], "uniform": uniform, "kind": ["klein", long]})
        fig = figures.parallel(ds)
        rate, own, kind, _ = fig.interactive["data"][0]["dimensions"]
        assert (rate["tickvals"], rate["ticktext"]) == ([0, 1, 2], ["0", "0.01", "1"])
        assert own["range"] == [0.05, 0.95]  # not logarithms
        assert figures.final_by(ds, "uniform").axes[0].get_xscale() == "linear"
        assert kind["ticktext"] == ["klein", "sehr, sehr g…n Namen"]
        fig.draw_without_rendering()
        box = next(t for t in fig.axes[0].texts if "sehr" in t.get_text()).get_window_extent()
        lines = [line.get_window_extent() for line in fig.axes[0].lines]
        assert lines[2].x1 <= box.x0 < box.x1 < lines[3].x0

    def test_ticks_that_would_meet_stand_at_equal_distances(self) -> None:
        figure = figures.final_by(dataset({"scale": [-10.0, -1.0, 0.0, 1.0, 1000.0]}), "scale")
        ax = figure.axes[0]
        assert ax.get_xticks().tolist() == [0, 1, 2, 3, 4]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["−10", "−1", "0", "1", "1000"]
        assert ax.get_xlabel() == "scale\n(values at equal distances)"
        assert "equal" not in figures.final_by(dataset(), "learning_rate").axes[0].get_xlabel()

    def test_large_numbers_are_written_alike_on_both_kinds_of_page(self) -> None:
        figure = figures.curves(dataset(loss=np.array([1.1e30, 2e30, 3e30])))
        texts = figure.interactive["layout"]["yaxis"]["ticktext"]
        assert "2e30" in texts
