"""Results as labelled arrays, and the file that holds them."""

import dataclasses
import enum
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import xarray as xr

import jaxexp
from jaxexp.base.errors import UserError
from jaxexp.execution.records import TrialRecord
from jaxexp.report import figures
from jaxexp.results import select
from jaxexp.results.dataset import load, save, to_dataset
from jaxexp.results.facts import facts, host_facts
from jaxexp.results.seeds import average
from jaxexp.spec import values
from jaxexp.spec.sweep import RECORDS, Sweep
from jaxexp.spec.trial import MLPTrial
from jaxexp.training.checks import OWN_ATTRIBUTES

SPLITS = ["train", "validation", "test"]


def made_up(trial: MLPTrial) -> TrialRecord:
    """A record whose numbers tell where they come from; two steps an epoch."""
    E, L = trial.epochs, trial.depth + 1
    base = trial.seed + 1000 * trial.widths[0]
    epoch_E = np.arange(1, E + 1, dtype=np.float32)
    return TrialRecord(
        trial=trial,
        metrics={
            split: {"loss": base + 10 * i + epoch_E, "accuracy": epoch_E / 100}
            for i, split in enumerate(SPLITS)
        },
        running={"loss": base + epoch_E / 2, "accuracy": epoch_E / 200},
        step_loss=base + np.arange(2 * E, dtype=np.float32),
        gradient_norms=epoch_E[:, None] * np.arange(L, dtype=np.float32),
        predictions={"region": np.arange(6, dtype=np.int16) + trial.seed},
        variables=None,
        seconds=0.5,
        compile_seconds=0.25,
    )


def dataset(problem, axes, record=RECORDS, **base) -> xr.Dataset:
    sweep = Sweep(base=MLPTrial(**{"epochs": 2, "depth": 1} | base), axes=axes, record=record)
    records = {trial: made_up(trial) for trial in sweep.trials()}
    return to_dataset(sweep, records, *problem, {"device": "abacus"})


def test_dimensions_and_values(problem):
    results = dataset(problem, {"width": [8, 16], "seed": [0, 1, 2]})
    assert dict(results.sizes) == {
        "width": 2, "seed": 3, "epoch": 2, "split": 3, "step": 4, "layer": 2,
        "latitude": 2, "longitude": 3,
    }  # fmt: skip
    assert results.loss.dims == ("width", "seed", "epoch", "split")
    assert results.loss.sel(width=16, seed=2, epoch=1, split="test") == 16_023
    assert results.accuracy.sel(width=8, seed=0, epoch=2, split="train") == np.float32(0.02)
    assert results.step_loss.sel(width=8, seed=1, step=4) == 8_004
    assert results.gradient_norm.sel(width=8, seed=1, epoch=2, layer=1) == 2
    assert results.region.dims == ("width", "seed", "latitude", "longitude")
    assert results.region.dtype == np.int16
    np.testing.assert_array_equal(results.region.sel(width=8, seed=1), [[1, 2, 3], [4, 5, 6]])
    assert list(results.split) == SPLITS
    assert list(results.epoch) == [1, 2]
    assert list(results.step) == [1, 2, 3, 4]
    assert list(results.layer) == [0, 1]
    assert (results.steps_per_epoch == 2).all()
    assert (results.diverged_epoch == 0).all()
    assert (results.diverged_step == 0).all()
    assert results.seconds.sum() == 6 * 0.5


def test_a_divergence_is_stored_with_epoch_and_step(problem):
    sweep = Sweep(base=MLPTrial(epochs=3, depth=1), axes={"width": [8, 16]})
    records = {trial: made_up(trial) for trial in sweep.trials()}
    diverged = records[sweep.trials()[1]]
    diverged.step_loss[3:] = np.nan  # the second step of the second epoch
    for metrics in diverged.metrics.values():
        metrics["loss"][1:] = np.nan
    results = to_dataset(sweep, records, *problem, {})
    assert results.diverged_epoch.values.tolist() == [0, 2]
    assert results.diverged_step.values.tolist() == [0, 4]
    assert results.diverged_step.dtype.kind == "i"


def test_attributes(problem):
    results = dataset(problem, {"width": [8, 16]}, seed=4)
    assert results.attrs["trials"] == 2
    assert json.loads(results.attrs["seeds"]) == [4]
    assert json.loads(results.attrs["axes"]) == ["width"]
    assert {"learning_rate", "seed"} < {*json.loads(results.attrs["traced"])}
    assert json.loads(results.attrs["metrics"]) == ["loss", "accuracy"]
    assert results.attrs["data"] == "rings"
    assert json.loads(results.attrs["examples"]) == {"train": 203, "validation": 57, "test": 61}
    assert results.attrs["data_fingerprint"] == problem.data.fingerprint
    assert json.loads(results.attrs["classes"]) == list(problem.data.classes)
    assert results.attrs["train_evaluation"] == "all 203 training examples"
    assert results.attrs["train_seconds"] == 1
    assert results.attrs["compile_seconds"] == 0.5
    assert results.attrs["device"] == "abacus"
    assert json.loads(results.attrs["base"])["seed"] == 4


def test_attributes_of_data_are_kept_by_names_that_results_do_not_use(problem, tmp_path):
    sweep = Sweep(MLPTrial(epochs=2, depth=1), {"seed": [0, 1]})
    records = {trial: made_up(trial) for trial in sweep.trials()}
    kept = {"data": "ours", "of": ["a", "b"], "n": 3, "shares": [0.5, 1.0], "big": np.float32(2)}
    data = dataclasses.replace(problem.data, attrs=kept, notes=["by hand"])
    results = to_dataset(sweep, records, problem.task, data, host_facts("alone", sweep))
    save(results, tmp_path / "results.nc")
    found = load(tmp_path / "results.nc").attrs
    assert {name: np.array(found[name]).tolist() for name in kept} == kept
    assert json.loads(found["notes"]) == ["by hand"]
    own = found.keys() | average(results).attrs.keys()
    own |= facts(SimpleNamespace(programs=[], trials=0), [], "abacus", 1).keys()
    for path in Path(jaxexp.__file__).parent.rglob("*.py"):
        if "reproduce" not in path.parts:
            use = r'(?:[^_]attrs(?:\.get\(|\[)|environment\[)"(\w+)"|assign_attrs\((\w+)='
            own |= {a or b for a, b in re.findall(use, path.read_text("utf-8"))}
    elsewhere = {"units", "direction", "hyperparameters", "seed"}  # variables, tables, old files
    assert own - kept.keys() - elsewhere <= OWN_ATTRIBUTES


def test_seeds_are_all_that_there_are(problem):
    results = dataset(problem, {"seed": [3, 1, 2], "width": [8, 16]})
    assert json.loads(results.attrs["seeds"]) == [1, 2, 3]
    assert "seed" not in results.attrs


def test_every_metric_has_its_direction_and_its_unit(problem):
    results = dataset(problem, {"seed": [0, 1]})
    for name, attrs in {
        "loss": {"direction": "lower", "units": "nats"},
        "accuracy": {"direction": "higher", "units": ""},
    }.items():
        assert results[name].attrs == results[f"running_{name}"].attrs == attrs
        assert results[name].dims == ("seed", "epoch", "split")
        assert results[f"running_{name}"].dims == ("seed", "epoch")
    assert results.running_loss.sel(seed=1, epoch=2) == 16_002
    assert results.seconds.attrs["units"] == "device-seconds"
    sweep = Sweep(MLPTrial(epochs=2, depth=1), timed=True)
    timed = to_dataset(sweep, {sweep.base: made_up(sweep.base)}, *problem, {})
    assert "share" in results.seconds.attrs["long_name"]
    assert "alone" in timed.seconds.attrs["long_name"]


def test_rates_given_as_text_are_a_coordinate_of_numbers(problem):
    results = dataset(problem, {"learning_rate": ["1e-2", "1e-3"]}, record=())
    assert results.learning_rate.dtype == float
    assert results.loss.sel(learning_rate=1e-3, epoch=1, split="train") == 16_001


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Sampling(str, enum.Enum):  # noqa: UP042  # such as people have
    FEW = "a"
    MANY = "b"


class Size(enum.IntEnum):
    SMALL = 4
    LARGE = 8


@dataclass(frozen=True, kw_only=True)
class ModeTrial(MLPTrial):
    mode: Mode = Mode.FAST
    clip: float | None = None
    sampling: Sampling = Sampling.FEW
    size: Size = Size.SMALL
    noise: Literal[0, 0.5] = 0
    bits: Literal[False, 2] = False


def test_values_of_any_kind_are_coordinates_that_save_and_load(problem, tmp_path):
    sweep = Sweep(ModeTrial(epochs=2, depth=1), {"mode": list(Mode), "clip": [None, 0.5]})
    records = {trial: made_up(trial) for trial in sweep.trials()}
    results = to_dataset(sweep, records, *problem, {})
    assert results["mode"].values.tolist() == ["FAST", "SLOW"]
    assert results["clip"].values.tolist() == ["None", "0.5"]
    assert json.loads(results.attrs["base"])["mode"] == "FAST"
    save(results, tmp_path / "results.nc")
    xr.testing.assert_identical(load(tmp_path / "results.nc"), results)


def test_members_of_enums_and_options_of_several_types_are_told_apart_as_they_are_written(problem):
    zipped = {("sampling", "seed"): [(own, seed) for own in Sampling for seed in range(2)]}
    axes = {"size": list(Size), "noise": [0, 0.5], "bits": [False, 2], **zipped}
    when = {"learning_rate": {"sampling": [Sampling.MANY], "noise": [0], "bits": [False]}}
    sweep = Sweep(ModeTrial(epochs=2, depth=1), axes, conditions=when)
    results = to_dataset(sweep, {trial: made_up(trial) for trial in sweep.trials()}, *problem, {})
    assert {name: results[name].values.tolist() for name in ("size", "noise", "bits")} == {
        "size": ["SMALL", "LARGE"], "noise": ["0", "0.5"], "bits": ["False", "2"],
    }  # fmt: skip
    assert results["sampling"].values.tolist() == ["FEW", "FEW", "MANY", "MANY"]
    assert json.loads(results.attrs["base"])["sampling"] == "FEW"
    assert average(results)["seeds"].shape == (2, 2, 2, 2)
    assert select.applies(results, "learning_rate").sum() == 2 * 2
    chosen = select.where(results, sampling=Sampling.MANY, size=Size.SMALL, noise=0, bits=False)
    assert chosen["loss"].shape[:4] == (1, 1, 1, 2)
    assert select.setting(Size.SMALL) == "SMALL"
    assert values.text(enum.Flag("Parts", "X Y")(0)) == "0"
    assert values.convert(Literal[Size.SMALL, "x"], "SMALL") is Size.SMALL


def test_splits_that_are_missing_are_left_out(problem):
    data = dataclasses.replace(problem.data, test=None)
    sweep = Sweep(MLPTrial(epochs=2, depth=1))
    records = {sweep.base: made_up(sweep.base)}
    results = to_dataset(sweep, records, problem.task, data, {})
    assert list(results.split) == ["train", "validation"]
    assert json.loads(results.attrs["axes"]) == []


def test_only_what_the_sweep_records(problem):
    assert not {"gradient_norm", "region", "layer"} & set(dataset(problem, {}, record=()).variables)


def test_shorter_trials_are_filled_up(problem):
    results = dataset(problem, {("epochs", "seed"): [(1, 5), (3, 6)]}, record=("gradient_norms",))
    assert results.loss.dims == ("epochs_seed", "epoch", "split")
    assert list(results.epochs.values) == [1, 3]
    assert list(results.seed.values) == [5, 6]
    assert results.epochs.dims == results.seed.dims == ("epochs_seed",)
    missing = [[False, True, True], [False] * 3]
    np.testing.assert_array_equal(np.isnan(results.loss.sel(split="train")), missing)
    np.testing.assert_array_equal(np.isnan(results.gradient_norm.sel(layer=0)), missing)
    np.testing.assert_array_equal(np.isnan(results.step_loss), np.repeat(missing, 2, axis=1))
    assert list(results.epochs_trained.values) == [1, 3]


def test_gradient_norms_of_different_depths_are_filled_up(problem):
    results = dataset(problem, {"depth": [1, 3]}, record=("gradient_norms",))
    assert results.gradient_norm.dims == ("depth", "epoch", "layer")
    norms = [[0, 2, np.nan, np.nan], [0, 2, 4, 6]]
    np.testing.assert_array_equal(results.gradient_norm.sel(epoch=2), norms)


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"width": [8, 16], "seed": [0, 1]},
        {"batch_norm": [False, True], "activation": ["relu", "tanh"]},
        {("features", "residual", "learning_rate"): [("raw", True, 0.1), ("sines", False, 1)]},
    ],
)
def test_a_file_holds_what_was_saved(problem, tmp_path, axes):
    results = dataset(problem, axes)
    path = tmp_path / "results.nc"
    save(results, path)
    xr.testing.assert_identical(load(path), results)
    with xr.open_dataset(path) as opened:  # as anybody opens it
        xr.testing.assert_identical(opened.load(), results)
    for name in ("batch_norm", "residual"):
        if name in results.coords:
            assert load(path)[name].dtype == bool
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file(problem, tmp_path, monkeypatch):
    path = tmp_path / "results.nc"
    old = dataset(problem, {"seed": [0]})
    save(old, path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(hashlib, "file_digest", full)  # when all but the seal is written
    with pytest.raises(OSError, match="no space"):
        save(dataset(problem, {"seed": [1]}), path)
    xr.testing.assert_identical(load(path), old)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", [None, b"", b"not a results file", b"\x89HDF\r\n\x1a\n" + bytes(99)]
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "results.nc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.nc: not a results file"):
        load(path)


def test_widths_of_each_layer_are_text_that_saves_and_loads(problem, tmp_path):
    shapes = [(3, (64, 32, 16)), (3, (16, 16, 16)), (1, 8)]
    results = dataset(problem, {("depth", "width"): shapes}, record=("gradient_norms",))
    save(results, tmp_path / "widths.nc")
    again = load(tmp_path / "widths.nc")
    for ds in (results, again):
        assert ds.width.values.tolist() == ["64-32-16", "16-16-16", "8"]
        names = [name for name, _ in select.points(ds)]
        assert names == ["depth 3, width 64-32-16", "depth 3, width 16-16-16", "depth 1, width 8"]
        for value, label in (((64, 32, 16), "64-32-16"), ("64-32-16", "64-32-16"), (8, "8")):
            assert select.where(ds, width=value).width.values.tolist() == [label]
        figures.curves(ds, "loss")
        assert sorted(select.rank(ds)["trial"]) == sorted(names)
    xr.testing.assert_identical(results.width.astype(str), again.width.astype(str))
    alone = dataset(problem, {}, depth=2, width=(4, 2))
    assert json.loads(alone.attrs["base"])["width"] == "4-2"


@dataclass(frozen=True, kw_only=True)
class HiddenTrial(MLPTrial):
    hidden: tuple[int, ...] = (4,)


def test_an_empty_tuple_is_a_value_that_saves_and_loads(problem, tmp_path):
    sweep = Sweep(HiddenTrial(epochs=2, depth=1), {"hidden": [(), (8,), (8, 4)]})
    records = {trial: made_up(trial) for trial in sweep.trials()}
    save(to_dataset(sweep, records, *problem, {"device": "abacus"}), tmp_path / "hidden.nc")
    again = load(tmp_path / "hidden.nc")
    assert again.hidden.values.tolist() == ["()", "8", "8-4"]
    for value in ((), "()"):
        assert select.where(again, hidden=value).hidden.values.tolist() == ["()"]
    assert sweep.set({"hidden": again.hidden.values.tolist()}).trials() == sweep.trials()


def test_final_by_widths_of_each_layer(problem):
    results = dataset(problem, {"width": [(64, 32), 16]}, record=(), depth=2)
    [ax] = figures.final_by(results, "width").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["16", "64-32"]
