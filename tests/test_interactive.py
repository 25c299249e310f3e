"""The interactive twins of figures: Plotly's JSON, and what it holds."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from datasets import REGRESSION, dataset, grid, of_sweep
from matplotlib.colors import to_hex

from jaxexp.cli import library
from jaxexp.report import figures
from jaxexp.report.figures import packing, traces
from jaxexp.report.importance import importance


def seeded() -> xr.Dataset:
    loss = [[0.2, 0.4], [0.5, 0.5]]
    return dataset({"width": [4, 8], "seed": [0, 1]}, loss=loss, layers=3)


def twin(fig: figures.ReportFigure) -> dict[str, Any]:
    """The twin, which Plotly takes as it is, and which JSON can hold."""
    assert fig.interactive is not None
    assert fig.alt
    go.Figure(fig.interactive)  # raises ValueError for what Plotly does not know
    return json.loads(json.dumps(fig.interactive, allow_nan=False))


def named(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in spec["data"] if trace.get("showlegend")}


DRAWN: list[Callable[[xr.Dataset], figures.ReportFigure]] = [
    figures.curves,
    lambda ds: figures.splits(ds, ["loss", "accuracy"], running=True),
    lambda ds: figures.final_by(ds, "width", ["loss", "accuracy"]),
    figures.step_noise,
    lambda ds: figures.bars(ds, ["seconds", "loss"]),
    figures.gradient_norms,
    figures.parallel,
]


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("seeds", [False, True])
def test_every_figure_has_a_twin_that_plotly_takes(draw, seeds):
    ds = seeded() if seeds else dataset({"width": [4, 8, 16]}, layers=3, diverged=[0, 3, 0])
    twin(draw(ds))
    twin(draw(ds.assign(diverged_epoch=ds["diverged_epoch"] * 0 + 1)) if draw is not
         figures.parallel else draw(ds))  # fmt: skip


def test_curves_have_the_names_numbers_and_colours_of_the_picture():
    ds = dataset({"width": [4, 8, 16]})
    fig = figures.curves(ds, "accuracy")
    traces = named(twin(fig))
    assert list(traces) == ["width 4", "width 8", "width 16"]
    for line, trace in zip(fig.axes[0].lines, traces.values(), strict=True):
        assert trace["line"]["color"] == to_hex(line.get_color())
        np.testing.assert_allclose(trace["y"], line.get_ydata(), rtol=1e-4)
        assert trace["hovertemplate"].startswith(f"<b>{trace['name']}</b><br>epoch %{{x}}")


def test_means_over_seeds_have_bands_of_their_standard_deviation():
    spec = twin(figures.curves(seeded(), split="train"))
    assert spec["layout"]["meta"]["note"] == "Mean of 2 seeds ± standard deviation"
    [band] = [t for t in spec["data"] if t.get("fill") and t["legendgroup"] == "width 4"]
    assert min(y for y in band["y"] if y) == pytest.approx(
        0.3 - 0.1414 + 0.8 * np.exp(-6), abs=2e-3
    )
    mean = named(spec)["width 4"]
    assert mean["y"][-1] == pytest.approx(0.3 + 0.8 * np.exp(-6), abs=1e-4)
    bars = twin(figures.final_by(seeded(), "width"))
    assert named(bars)["train"]["error_y"]["array"] == pytest.approx([0.14142, 0], abs=1e-4)
    assert "error_x" in twin(figures.bars(seeded(), ["loss"]))["data"][0]


def test_seeds_alone_are_a_mean_a_band_and_a_cloud():
    spec = twin(figures.curves(dataset({"seed": [0, 1, 2]})))
    assert sorted(named(spec)) == ["each seed", "mean"]
    cloud = named(spec)["each seed"]["meta"]
    assert cloud["names"] == ["seed 0", "seed 1", "seed 2"]
    assert len(cloud["y"]) == 3


def test_noise_of_several_seeds_is_that_of_single_runs_and_has_a_spread():
    ds = dataset({"width": [4, 8], "seed": [0, 1, 2]}, splits=["train"], steps=100)
    scale = xr.DataArray([1.0, 2.0, 3.0], dims="seed")
    ds["step_loss"] = ds["step_loss"] * 0 + scale * (-1.0) ** ds["step"]
    fig = figures.step_noise(ds)
    # Differences of 2, 4, 6: their root mean squares are twice, the noise √2 times 1, 2, 3.
    assert [ax.get_title() for ax in fig.axes] == [
        "width 4, seed 1\nnoise 2.8 ± 1.4 nats", "width 8, seed 1\nnoise 2.8 ± 1.4 nats",
    ]  # fmt: skip
    assert "the seed with the median loss" in " ".join(fig.get_suptitle().split())


def test_maps_of_several_seeds_are_those_of_the_typical_one():
    ds = of_sweep(library.load("sines"), {})
    three = xr.concat([ds, ds, ds], "seed").assign_coords(seed=[0, 1, 2])
    three = three.assign_attrs(axes=json.dumps(["features", "seed"]))
    three["loss"] = three["loss"] + xr.DataArray([0.0, 2.0, 1.0], dims="seed")
    right = xr.DataArray([1, 1, 0], dims="seed")  # the last is in the middle: all one class
    three["region"] = (three["region"] * right).transpose("features", "seed", ...)
    for name in ("test_label", "test_longitude", "test_latitude"):
        three = three.assign_coords({name: ds[name]})
    fig = figures.regions(three)
    assert [ax.get_title() for ax in fig.axes] == [
        "features raw, seed 2: 1 of 2 test places outlined as wrong",
        "features sines, seed 2: 1 of 2 test places outlined as wrong",
    ]


def test_a_cloud_names_each_of_its_curves_and_is_thinned():
    rng = np.random.default_rng(0)
    loss = rng.uniform(size=1_000)
    ds = dataset({"width": np.arange(1_000)}, loss=loss, epochs=100)
    spec = twin(figures.curves(ds))
    assert len(named(spec)) == 9
    cloud = named(spec)["992 others"]["meta"]
    assert "width 0" in [*cloud["names"], *named(spec)]
    assert sum(map(len, cloud["y"])) <= traces.CLOUD
    assert cloud["x"][0] == 1
    assert cloud["x"][-1] == 100


def test_long_curves_keep_their_extremes():
    y = np.random.default_rng(0).normal(size=100_000)
    y[77_777] = 50
    kept = packing.thinned(y)
    assert len(kept) <= packing.MOST
    assert 77_777 in kept
    assert packing.thinned(y[:100]).tolist() == list(range(100))


def test_names_are_no_markup():
    ds = dataset({"optimizer": ["<b>", "sgd"]})
    assert "optimizer &lt;b&gt;" in named(twin(figures.curves(ds)))


def test_a_heat_map_says_its_values_and_frames_the_best():
    ds = grid(18, metrics=REGRESSION, diverged=np.where(np.arange(18) == 4, 2, 0))
    fig = figures.heat_map(ds, "width", "learning_rate")
    spec = twin(fig)
    cells = spec["data"][0]
    assert "width 8<br>learning rate 0.001<br>" in cells["hovertext"][0][0]
    assert " ± " in cells["hovertext"][0][0]
    assert sum("1 diverged" in text for row in cells["hovertext"] for text in row) == 1
    [frame] = spec["layout"]["shapes"]
    z = np.array(cells["z"], float)
    row, column = np.unravel_index(np.nanargmin(z), z.shape)
    assert (frame["x0"], frame["y0"]) == (column - 0.5, row - 0.5)


def test_numbers_that_are_close_for_their_size_stay_apart():
    near = [123456.1, 123456.2, 123456.4]
    ds = dataset({"n": [100_001, 100_002, 100_003]}, loss=near)
    spec = twin(figures.final_by(ds, "n"))
    assert np.ptp(spec["layout"]["yaxis"]["range"]) > 0.3
    assert spec["layout"]["xaxis"]["tickvals"] == ds["n"].values.tolist()
    points = spec["data"][0]
    assert points["x"] == ds["n"].values.tolist()
    np.testing.assert_allclose(points["y"], ds["loss"].values[:, -1, 0])
    curves = named(twin(figures.curves(ds))).values()
    assert len({trace["y"][-1] for trace in curves}) == 3
    value = twin(figures.parallel(ds))["data"][0]["dimensions"][-1]
    assert len(set(value["values"])) == len(set(value["tickvals"])) == 3
    ds = dataset({"width": [4, 8], "depth": [1, 2]}, loss=[[1e5, 1e5 + 1], [1e5 + 2, 1e5 + 3]])
    [cells, _] = twin(figures.heat_map(ds, "width", "depth"))["data"]
    assert len({*cells["z"][0], *cells["z"][1]}) == 4
    assert len(set(cells["colorbar"]["tickvals"])) == 5
    assert packing.rounded([0.123456, 12.3456, np.nan]) == [0.12346, 12.346, None]


def test_maps_hold_class_and_place_and_say_what_is_pale():
    ds = of_sweep(library.load("sines"), {})
    spec = twin(figures.regions(ds))
    area, right, wrong, labels = spec["data"][:4]
    assert area["meta"]["classes"][:2] == ["Here", "There"]
    assert area["z"]["shape"] == "2, 3"
    assert (right["text"], wrong["text"]) == (["Here", "There"], [])
    assert labels["text"] == ["Here", "There"]
    assert "no test place within 1.5°" in spec["layout"]["meta"]["note"]


def test_cells_far_from_every_place_are_pale():
    ds = of_sweep(library.load("sines"), {}).isel(features=0)
    wide = ds.assign_coords(longitude=[0.0, 10.0, 20.0], test_longitude=("point", [0.0, 10.0]))
    grid = figures.regions(ds).interactive["data"][0]  # a map of two degrees: all is near
    assert unpacked(grid).max() < 2
    far = figures.regions(wide).interactive["data"][0]
    assert (unpacked(far) >= 2).tolist() == [[False, False, True]] * 2


def unpacked(area: dict[str, Any]) -> np.ndarray:
    shape = [int(n) for n in area["z"]["shape"].split(",")]
    return np.frombuffer(base64.b64decode(area["z"]["bdata"]), area["z"]["dtype"]).reshape(shape)


class TestImportance:
    def points(self, trials: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {"width": rng.uniform(1, 99, trials), "depth": rng.uniform(1, 99, trials)}

    def test_what_decides_the_loss_matters_most(self) -> None:
        points = self.points(100)
        found = importance(dataset({"p": points}, loss=2 + points["depth"] / 99))
        assert found is not None
        assert found.table["name"].tolist() == ["depth", "width"]
        assert found.r2 > 0.9
        assert found.table["drop"].iloc[0] > 0.5 > 10 * abs(found.table["drop"].iloc[1])
        assert "Breiman 2001" in str(found)
        assert str(found).endswith("Depth matters most.")

    def test_it_is_the_same_in_any_unit(self) -> None:
        rng = np.random.default_rng(0)
        points = {"width": rng.uniform(1, 9, 40), "dropout": rng.uniform(0, 0.5, 40)}
        ds = dataset({"point": points}, loss=1 + points["width"] / 9)
        small = ds.assign(loss=(1e-9 * ds["loss"]).assign_attrs(ds["loss"].attrs))
        first, second = importance(ds), importance(small)
        assert second.trusted
        np.testing.assert_allclose(second.table["drop"], first.table["drop"], rtol=0.05, atol=0.01)

    def test_of_noise_it_says_that_it_cannot_be_trusted(self) -> None:
        noise = np.random.default_rng(1).uniform(1, 2, 60)
        found = importance(dataset({"p": self.points(60)}, loss=noise))
        assert found is not None
        assert not found.trusted
        assert str(found).endswith("The forest explains too little to be trusted.")

    def test_too_few_finished_trials_are_not_asked(self) -> None:
        assert importance(dataset({"p": self.points(11)})) is None
        lost = np.where(np.arange(15) < 4, 2, 0)
        assert importance(dataset({"p": self.points(15)}, diverged=lost)) is None
        assert importance(dataset({"width": list(range(1, 30))})) is None
