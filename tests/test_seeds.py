"""Means over seeds, their spread, and whether the best setting leads by more than it."""

import numpy as np
import pytest
import xarray as xr
from datasets import dataset

from jaxexp.base.errors import UserError
from jaxexp.results import seeds, select

SEEDS = [3, 4, 5, 6]


def swept(loss_SxK, **options) -> xr.Dataset:
    """Widths × seeds, with these losses."""
    widths = [8, 16, 32][: len(loss_SxK)]
    return dataset({"width": widths, "seed": SEEDS}, loss=np.array(loss_SxK), **options)


LOSS = [[0.5, 0.6, 0.5, 0.6], [0.2, 0.3, 0.2, 0.3], [0.31, 0.28, 0.31, 0.4]]


def test_means_and_standard_deviations_are_those_of_numpy():
    ds = swept(LOSS)
    means = seeds.average(ds)
    assert select.axes(means) == ("width",)
    assert "seed" not in means.coords
    np.testing.assert_allclose(means["seconds"], ds["seconds"].values.mean(axis=1))
    assert "seconds_std" not in means  # shares of what was measured for all seeds at once
    for name in ("loss", "accuracy", "step_loss"):
        values = ds[name].values.astype(float)
        np.testing.assert_allclose(means[name], values.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(means[f"{name}_std"], values.std(axis=1, ddof=1), atol=1e-7)
    assert means["seeds"].values.tolist() == [4, 4, 4]
    assert means["diverged_seeds"].values.tolist() == [0, 0, 0]
    assert "trial_id" not in means


def test_diverged_seeds_are_left_out_and_counted():
    ds = swept(LOSS, diverged=[[0, 0, 3, 0], [0] * 4, [2, 3, 2, 4]])
    means = seeds.average(ds)
    own = ds["loss"].isel(width=0, seed=[0, 1, 3]).values
    np.testing.assert_allclose(means["loss"].isel(width=0), own.mean(axis=0), rtol=1e-6)
    assert means["diverged_seeds"].values.tolist() == [1, 0, 4]
    assert means["diverged_epoch"].values.tolist() == [0, 0, 4]
    ranked = select.rank(means)
    assert ranked["width"].tolist() == [16, 8, 32]
    assert ranked["status"].tolist() == ["finished", "finished", "diverged in epoch 4, step 61"]
    assert "width 8 (1 of 4 seeds diverged)" in [name for name, _ in select.points(means)]
    curve = means["loss"].isel(width=2).sel(split="validation")
    assert np.isfinite(curve.values).tolist() == [True, True, True, False, False, False]


def test_a_setting_with_a_diverged_seed_is_never_the_best_while_another_is_whole():
    ds = swept(LOSS, diverged=[[0] * 4, [0, 0, 0, 1], [0] * 4])
    assert select.best(seeds.average(ds))[0] == "width 32"


def test_words_and_tables_show_the_spread():
    means = seeds.average(swept(LOSS))
    value = means["loss"].isel(width=1, epoch=-1).sel(split="validation")
    sentence = select.best_in_words(means)
    assert f"{float(value):.4f} ± 0.0577 nats" in sentence
    assert "(mean ± standard deviation over 4 seeds): width 16." in sentence
    _, best = select.best(means)
    assert select.outcome(best) == f"{float(value):.3f} ± 0.058 nats"
    table = select.table(means)
    assert table["± validation loss (nats)"].iloc[0] == pytest.approx(0.0577, abs=1e-4)


def test_one_seed_has_no_spread():
    ds = swept(LOSS).isel(seed=[0])
    assert not seeds.several(ds)
    means = seeds.average(ds)
    assert np.isnan(means["loss_std"]).all()
    assert "±" not in select.best_in_words(means)
    assert str(seeds.lead(ds)).endswith("The next is width 32.")


def test_a_lead_counts_wins_and_has_the_interval_of_a_paired_bootstrap():
    found = seeds.lead(swept(LOSS))
    gain = np.array(LOSS[2]) - np.array(LOSS[1])
    assert (found.best, found.second, found.settings) == ("width 16", "width 32", 3)
    assert (found.seeds, found.wins) == (4, 3)
    assert found.difference == pytest.approx(gain.mean(), abs=1e-6)
    # Every mean of four gains lies on a grid; its exact distribution has 4**4 equal cases.
    every = np.array(np.meshgrid(*[gain] * 4)).reshape(4, -1).mean(axis=0)
    assert found.low == pytest.approx(np.percentile(every, 2.5), abs=0.01)
    assert found.high == pytest.approx(np.percentile(every, 97.5), abs=0.01)
    assert found.clear == (found.low > 0)


def test_a_lead_smaller_than_the_spread_is_called_one():
    close = seeds.lead(swept([[0.2, 0.4, 0.3, 0.1], [0.4, 0.2, 0.1, 0.31]]))
    assert not close.clear
    assert "within the spread of the seeds" in str(close)
    wide = seeds.lead(swept([[0.2, 0.4, 0.3, 0.1], [0.5, 0.7, 0.6, 0.4]]))
    assert wide.clear
    assert str(wide).startswith("It is the best with 4 of 4 seeds. It leads width 16 by 0.3 (95 %")


def test_where_higher_is_better():
    accuracy = np.array([[0.9, 0.8, 0.9, 0.9], [0.7, 0.85, 0.7, 0.7]])
    ds = swept([[1.0] * 4, [1.0] * 4], values={"accuracy": accuracy})
    found = seeds.lead(ds, "accuracy", "test")
    assert (found.best, found.wins) == ("width 8", 3)
    assert found.difference == pytest.approx(0.1375, abs=1e-6)


def test_of_two_settings_with_one_finished_there_is_no_lead():
    assert seeds.lead(swept(LOSS[:2], diverged=[[1] * 4, [0] * 4])) is None


def test_the_typical_trial_is_the_median():
    ds = swept([[0.5, 0.6, 0.4, 0.7], [0.2, 0.3, 0.25, 0.1]], diverged=[[0] * 4, [0, 0, 0, 2]])
    middle = seeds.typical(ds)
    assert middle["seed"].values.tolist() == [3, 5]  # of four, the better one in the middle
    assert select.axes(middle) == ("width",)
    one = seeds.typical(dataset({"seed": SEEDS}, loss=[0.5, 0.6, 0.4, 0.7]))
    assert int(one["seed"]) == 3


def test_seeds_alone():
    ds = dataset({"seed": SEEDS}, loss=[0.5, 0.6, 0.4, 0.7])
    means = seeds.average(ds)
    assert select.axes(means) == ()
    assert seeds.lead(ds) is None
    assert "± 0.1291 nats" in select.best_in_words(means)


def test_without_an_axis_of_seeds_results_are_their_own_means():
    zipped = dataset({"rate_seed": {"learning_rate": [0.1, 0.2], "seed": [1, 2]}})
    for results in (dataset(), zipped):
        assert not seeds.several(results)
        assert seeds.average(results) is results
        assert seeds.typical(results) is results
        assert seeds.lead(results) is None
        assert seeds.best_in_words(results, digits=4) == select.best_in_words(results)


def test_the_lead_over_a_setting_that_is_asked_for():
    found = seeds.lead(swept(LOSS), over={"width": 8})
    assert (found.best, found.second) == ("width 16", "width 8")
    assert found.difference == pytest.approx(0.3, abs=1e-6)
    assert seeds.lead(swept(LOSS), over={"width": 16}) is None  # the best itself
    with pytest.raises(UserError, match="no trial has width = 7"):
        seeds.lead(swept(LOSS), over={"width": 7})
