"""Means over seeds, their spread, and whether the best setting leads by more than it."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from datasets import dataset

from jaxexp.base.errors import UserError
from jaxexp.report import figures
from jaxexp.results import compare, seeds, select

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


AUC = [[0.99, np.nan, np.nan, 0.95], [0.8, 0.85, 0.8, 0.82], [np.nan] * 4]


def undefined(name="seed", auc=AUC, **options) -> xr.Dataset:
    """Widths × seeds or folds, with a metric that is NaN for some."""
    metrics = {"loss": ("lower", "nats"), "auc": ("higher", "")}
    axes = {"width": [8, 16, 32][: len(auc)], name: SEEDS}
    loss = np.array(LOSS[: len(auc)])
    return dataset(axes, metrics, loss=loss, values={"auc": np.array(auc)}, **options)


def test_means_over_seeds_for_which_a_metric_is_undefined_say_so_and_rank_behind():
    means = seeds.average(undefined())
    assert means["auc_undefined"].isel(epoch=-1).sel(split="test").values.tolist() == [2, 0, 4]
    assert "loss_undefined" not in means
    assert select.rank(means, "auc")["width"].tolist() == [16, 8, 32]
    assert select.rank(means)["width"].tolist() == [16, 32, 8]  # the loss is known for all
    table = select.table(means, "auc")
    assert table["rank"].tolist()[:2] == [1, 2]
    assert table["rank"].isna().tolist() == [False, False, True]
    assert table["seeds without validation auc"].tolist() == [0, 2, 4]
    assert seeds.in_words(means) == "4 seeds (fewer where undefined)"
    said = seeds.best_in_words(undefined(), "auc")
    assert "after the last epoch, of the settings that miss the fewest seeds, is 0.796 ±" in said
    assert "(mean ± standard deviation over 4 seeds): width 16." in said
    better = "The next is width 8, which is better over the seeds known for both, by 0.16 (95 %"
    assert better in said
    assert said.endswith("Student's t, seed by seed), which is within their spread.")
    twice = undefined(auc=[[0.99, 0.991, 0.99, np.nan], [0.8, 0.802, 0.8, 0.82], [np.nan] * 4])
    assert seeds.best_in_words(twice, "auc").endswith("Student's t, seed by seed).")
    assert seeds.lead(undefined(), "auc").difference == pytest.approx(-0.16, abs=1e-6)


def test_a_mean_over_fewer_folds_says_over_how_many():
    auc = [[0.9, np.nan, 0.8, np.nan], [0.7, np.nan, 0.8, np.nan]]
    ds = undefined("fold", auc)
    said = seeds.best_in_words(ds, "auc")
    assert "(mean ± standard deviation over 2 of 4 folds, undefined in 2): width 8." in said
    assert "It is the best with 1 of 2 folds." in said
    setting = seeds.best(ds, "auc")[0]
    assert select.outcome(setting, "auc").endswith(" (over 2 of 4 folds, undefined in 2)")
    one = undefined("fold", [[0.9] + [np.nan] * 3, [0.7] + [np.nan] * 3])
    said = select.best_in_words(seeds.average(one), "auc")
    assert said.endswith("is 0.8780 (over 1 of 4 folds, undefined in 3): width 8.")


def test_a_setting_without_a_value_is_behind_one_of_which_a_seed_diverged():
    ds = undefined(auc=[[np.nan] * 4, [0.8, 0.85, 0.8, 0.82]], diverged=[[0] * 4, [0, 0, 0, 2]])
    assert select.best(seeds.average(ds), "auc")[0] == "width 16 (1 of 4 seeds diverged)"


def test_epochs_that_no_trial_of_a_setting_trained_are_not_undefined():
    means = seeds.average(swept(LOSS, trained=[[6] * 4, [3] * 4, [6] * 4]))
    assert "loss_undefined" not in means


def test_the_first_of_a_table_has_the_first_rank():
    means = seeds.average(swept(LOSS, diverged=[[0] * 4, [0, 0, 0, 1], [0] * 4]))
    assert select.table(means)["rank"].tolist() == [1, 2, 3]
    assert select.table(means)["width"].tolist() == [32, 8, 16]


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


def test_a_lead_counts_wins_and_has_the_t_interval_of_paired_differences():
    found = seeds.lead(swept(LOSS))
    gain = np.array(LOSS[2]) - np.array(LOSS[1])
    assert (found.best, found.second, found.settings) == ("width 16", "width 32", 3)
    assert (found.seeds, found.wins) == (4, 3)
    assert found.difference == pytest.approx(gain.mean(), abs=1e-6)
    own = scipy.stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((own.low, own.high), abs=1e-6)
    assert found.clear == (found.low > 0)
    assert found.interval.endswith(", Student's t, seed by seed)")


@pytest.mark.parametrize("n", [2, 5])
def test_of_equal_settings_one_is_clearly_better_as_rarely_as_the_interval_says(n):
    """In 5 % of draws, of which 1000 have a standard error of 0.7 %: normal, or far from it."""
    rng = np.random.default_rng(0)
    draws = {
        "normal": (rng.normal(size=(1000, n)), 0.07),
        "with outliers": (rng.standard_t(3, size=(1000, n)), 0.07),
        "skewed": (rng.exponential(size=(1000, n)) - 1, 0.15),
    }
    for name, (gains, most) in draws.items():
        half_R = np.array([seeds._half_width([pd.Series(gain)]) for gain in gains])
        mean_R = gains.mean(1)
        assert 0.02 < (abs(mean_R) > half_R).mean() < most, name
        assert (mean_R > half_R).mean() < 0.04, name


ALONE = [pytest.param(*own, marks=pytest.mark.nightly) for own in ((1, 0), (0, 1))]


@pytest.mark.parametrize(("of_seeds", "of_folds"), [(0, 0), *ALONE, (1, 1)])
def test_pairs_of_seeds_and_folds_are_not_taken_for_independent(of_seeds, of_folds):
    """Of equal settings, one is clearly better in 5 % of draws at most, or 1000 have 0.7 % more."""
    rng = np.random.default_rng(0)
    shape, pairs = (4, 3), pd.MultiIndex.from_product([range(4), range(3)])
    gains = rng.normal(size=(1000, *shape)) * 0.3
    gains += of_seeds * rng.normal(size=(1000, 4, 1)) + of_folds * rng.normal(size=(1000, 1, 3))
    half_R = np.array([seeds._half_width([pd.Series(gain.ravel(), pairs)]) for gain in gains])
    assert (abs(gains.mean((1, 2))) > half_R).mean() < 0.07


def test_each_seed_in_a_fold_of_its_own_is_as_seeds_alone():
    gain = [0.1, 0.3, 0.2, 0.5]
    pairs = pd.MultiIndex.from_arrays([range(4), range(4)])
    assert seeds._half_width([pd.Series(gain, pairs)]) == seeds._half_width([pd.Series(gain)])


def test_of_one_difference_or_equal_ones_no_spread_is_known():
    assert np.isnan(seeds._half_width([pd.Series([0.5])]))
    assert np.isnan(seeds._half_width([pd.Series([0.5, 0.5])]))
    coarse = seeds.lead(swept([[0.25, 0.5, 0.25, 0.5], [0.5, 0.75, 0.5, 0.75]]))
    assert not coarse.clear
    assert "leads" not in str(coarse)
    near_one = swept([[0.97, 0.98, 0.96, 0.99], [0.96, 0.97, 0.95, 0.98]])
    assert np.isnan(seeds.lead(near_one.astype(np.float32)).low)


def test_means_of_best_epochs_are_those_and_curves_are_what_was_measured():
    ds = swept(LOSS, trained=[[4, 6, 6, 5], [6] * 4, [6] * 4])
    best = np.array([[2, 6, 3, 1], [6] * 4, [4] * 4])
    ds = ds.assign(best_epoch=(("width", "seed"), best))
    means = seeds.average(ds)
    own = select.final(ds)
    np.testing.assert_allclose(select.final(means), own.mean("seed"), rtol=1e-6)
    np.testing.assert_allclose(select.spread(means), own.std("seed", ddof=1), rtol=1e-5)
    measured = ds["loss"].sel(width=8, split="train")
    after = own.sel(width=8, split="train", seed=SEEDS[0])
    curve = means["loss"].sel(width=8, split="train")
    assert float(curve.sel(epoch=4)) == pytest.approx(float(measured.sel(epoch=4).mean()))
    at_five = [float(after), *measured.sel(epoch=5).values[1:]]
    assert float(curve.sel(epoch=5)) == pytest.approx(np.mean(at_five))

    alone = seeds.average(ds.sel(split="validation"))
    np.testing.assert_allclose(
        select.final(alone).squeeze("split"), own.sel(split="validation").mean("seed"), rtol=1e-6
    )
    assert "loss" in seeds.average(ds.sel(epoch=2))


def test_settings_with_one_seed_in_common_are_compared_as_unpaired():
    loss = [0.2, 0.3, 0.5, 0.6, 0.55]
    axes = {"run": {"width": [8, 8, 16, 16, 16], "seed": [0, 1, 1, 2, 3]}}
    found = seeds.lead(dataset(axes, loss=loss))
    assert not found.paired
    assert found.low < found.difference < found.high


def test_a_lead_smaller_than_the_spread_is_called_one():
    close = seeds.lead(swept([[0.2, 0.4, 0.3, 0.1], [0.4, 0.2, 0.1, 0.31]]))
    assert not close.clear
    assert "within the spread of the seeds" in str(close)
    wide = seeds.lead(swept([[0.2, 0.4, 0.3, 0.1], [0.5, 0.71, 0.6, 0.39]]))
    assert wide.clear
    assert str(wide).startswith("It is the best with 4 of 4 seeds. It leads width 16 by 0.3 (95 %")


def test_the_best_on_average_may_be_the_best_with_no_seed():
    loss = [[0.3, 0.31, 0.3, 0.3], [0.1, 0.1, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1]]
    found = seeds.lead(swept(loss))
    assert str(found).startswith("It is the best with none of 4 seeds.")
    assert found.told("Another.").startswith("With none of 4 seeds is width 8 the best.")


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


def test_without_seeds_to_average_results_are_their_own_means():
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
    with pytest.raises(UserError, match="over: width=16 is the best setting itself"):
        seeds.lead(swept(LOSS), over={"width": 16})
    with pytest.raises(UserError, match="no trial has width = 7"):
        seeds.lead(swept(LOSS), over={"width": 7})


# Seeds zipped with other hyperparameters: random points, each trained with several.

POINTS = {"learning_rate": [0.1, 0.2, 0.1, 0.3, 0.1, 0.3], "seed": [0, 0, 1, 1, 2, 0]}
ZIPPED_LOSS = [[0.3, 0.5, 0.2, 0.7, 0.4, 0.6], [0.9, 0.1, 0.8, 0.2, 0.7, 0.3]]


def zipped(loss=ZIPPED_LOSS, points=POINTS, **options) -> xr.Dataset:
    """Widths × random points of a rate and a seed: 3 seeds at 0.1, 1 at 0.2, 2 at 0.3."""
    return dataset({"width": [8, 16], "learning_rate_seed": points}, loss=loss, **options)


def test_a_zipped_seed_is_averaged_as_an_axis_of_seeds_is():
    """The same trials, laid out as a product and as points in any order."""
    own = {"learning_rate": [0.1, 0.2], "seed": [0, 1, 2]}
    loss = np.arange(12.0).reshape(2, 2, 3) ** 1.5 / 50
    lost = np.array([[[0, 0, 3], [0, 0, 0]], [[2, 4, 3], [0, 0, 0]]])
    product = dataset({"width": [8, 16], **own}, loss=loss, diverged=lost, layers=2)
    order = [4, 0, 2, 5, 1, 3]
    points = [(rate, seed) for rate in own["learning_rate"] for seed in own["seed"]]
    rates, drawn = zip(*(points[i] for i in order), strict=True)
    mixed = dataset(
        {"width": [8, 16], "learning_rate_seed": {"learning_rate": rates, "seed": drawn}},
        loss=loss.reshape(2, 6)[:, order], diverged=lost.reshape(2, 6)[:, order], layers=2,
    )  # fmt: skip
    assert seeds.several(mixed)
    expected, found = seeds.average(product), seeds.average(mixed).sortby("learning_rate")
    for name in ("seconds", "trial_id"):  # which are by place
        expected, found = (ds.drop_vars(name, errors="ignore") for ds in (expected, found))
    xr.testing.assert_allclose(found, expected, rtol=1e-6)
    assert set(found.coords) == set(expected.coords)
    assert select.axes(found) == ("width", "learning_rate")
    assert found.attrs["settings"] == 4
    middle = seeds.typical(mixed).sortby("learning_rate")
    some = np.array([[True, True], [False, True]])  # of three that diverged, any is typical
    assert (
        middle["seed"].values[some].tolist() == seeds.typical(product)["seed"].values[some].tolist()
    )
    lead, same = seeds.lead(mixed, over={"width": 16}), seeds.lead(product, over={"width": 16})
    assert lead == same


def test_settings_have_different_numbers_of_seeds():
    ds = zipped()
    means = seeds.average(ds)
    assert means["learning_rate"].values.tolist() == [0.1, 0.2, 0.3]
    assert means["seeds"].values.tolist() == [[3, 1, 2]] * 2
    assert seeds.in_words(ds) == seeds.in_words(means) == "1 to 3 seeds"
    own = ds["loss"].isel(learning_rate_seed=[0, 2, 4]).values
    at = means.sel(learning_rate=0.1)
    np.testing.assert_allclose(at["loss"], own.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(at["loss_std"], own.std(axis=1, ddof=1), atol=1e-7)
    assert np.isnan(means["loss_std"].sel(learning_rate=0.2)).all()
    table = select.table(means)
    assert table["seeds"].tolist() == [1, 2, 3, 1, 2, 3]
    assert "seeds" not in select.table(seeds.average(swept(LOSS)))
    best = seeds.best_in_words(ds)
    assert best.endswith(
        "width 16, learning rate 0.2. It is the best with 1 of 1 seed. The next is "
        "width 16, learning rate 0.3."
    )


def test_the_typical_trial_of_each_point():
    middle = seeds.typical(zipped())
    assert select.axes(middle) == ("width", "learning_rate")
    # Of two the better one; at width 16 the losses of 0.1 fall with the seed.
    assert middle["seed"].values.tolist() == [[0, 0, 0], [1, 0, 1]]
    assert middle["learning_rate"].values.tolist() == [0.1, 0.2, 0.3]
    names = [name for name, _ in select.points(middle)]
    assert names[3] == "width 16, learning rate 0.1"


def test_the_best_setting_and_its_typical_trial():
    """The luckiest seed, 0.1 at width 16, belongs to a setting that is not the best."""
    luckiest = [[0.3, 0.5, 0.2, 0.7, 0.4, 0.6], [0.9, 0.25, 0.01, 0.2, 0.9, 0.25]]
    setting, trial = seeds.best(zipped(luckiest))
    assert (int(setting["width"]), float(setting["learning_rate"])) == (16, 0.3)
    assert (int(setting["seeds"]), int(trial["seed"])) == (2, 1)
    accurate = {"accuracy": np.array(luckiest)}
    setting, trial = seeds.best(zipped(values=accurate), "accuracy")
    assert float(setting["learning_rate"]) == 0.3
    assert int(setting["width"]) == int(trial["width"]) == 8


def test_a_point_whose_seed_diverged_is_typical_by_another():
    lost = [[0, 0, 0, 0, 2, 0], [1, 0, 2, 0, 3, 0]]
    middle = seeds.typical(zipped(diverged=lost))
    assert middle["seed"].values[0].tolist() == [1, 0, 0]
    assert int(middle["diverged_epoch"][1, 0]) > 0  # no other is left


def test_settings_with_other_seeds_are_compared_unpaired():
    points = {"learning_rate": [0.1] * 4 + [0.2] * 3, "seed": range(7)}
    loss = np.array([0.1, 0.2, 0.15, 0.12, 0.5, 0.6, 0.7])
    ds = dataset({"learning_rate_seed": points}, loss=loss)
    found = seeds.lead(ds)
    assert (found.paired, found.seeds, found.best) == (False, 0, "learning rate 0.1")
    gain = loss[4:].mean() - loss[:4].mean()
    assert found.difference == pytest.approx(gain, abs=1e-6)
    welch = scipy.stats.ttest_ind(loss[4:], loss[:4], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=1e-6)
    assert str(found).startswith("It leads learning rate 0.2 by 0.458 (95 % interval 0.2")
    assert "Welch's t, over the seeds of each)" in str(found)


def test_one_seed_of_each_point_is_nothing_to_average():
    ds = dataset({"rate_seed": {"learning_rate": [0.1, 0.2, 0.3], "seed": [0, 1, 2]}})
    assert not seeds.several(ds)
    assert seeds.average(ds) is ds
    assert seeds.in_words(ds) == "1 seed"


def test_a_zipped_seed_beside_an_axis_of_the_remaining_name():
    """The dimension keeps its name where that of the others is taken, or it has a name."""
    named = {"learning_rate": [0.1, 0.1, 0.2], "seed": [0, 1, 0]}
    assert select.axes(seeds.average(dataset({"point": named}))) == ("point",)
    points = {"a": [1, 1, 2], "b": [1, 1, 1], "seed": [0, 1, 0]}
    ds = dataset({"a_b": [5, 6], "a_b_seed": points})
    means = seeds.average(ds)
    assert select.axes(means) == ("a_b", "a_b_seed")
    assert means["seeds"].values.tolist() == [[2, 1]] * 2
    assert select.hyperparameters(means) == ("a_b", "a", "b")


def test_a_seed_that_stopped_early_keeps_its_last_value():
    ds = swept(LOSS[:1], trained=[[2, 6, 3, 6]])
    means = seeds.average(ds)
    last = select.final(ds).sel(split="validation").values
    assert int(means["epochs_trained"][0]) == 6
    mean = float(select.final(means).sel(split="validation")[0])
    assert mean == pytest.approx(last.mean(), abs=1e-6)
    second = ds["loss"].sel(epoch=2).mean("seed")
    np.testing.assert_allclose(means["loss"].sel(epoch=2), second, rtol=1e-6)
    beside = ds["running_loss"].values
    kept = [beside[0, seed, end - 1] for seed, end in enumerate([2, 6, 3, 6])]
    np.testing.assert_allclose(means["running_loss"].sel(epoch=6), [np.mean(kept)], rtol=1e-6)


# Learning rates × folds × seeds: the first rate has the easiest fold, the second the best mean.
FOLDED = np.array([[[0.1, 0.2], [0.7, 0.8], [0.9, 0.8]], [[0.4, 0.3], [0.4, 0.5], [0.5, 0.4]]])
RATES = [0.1, 0.01]


def test_the_best_setting_has_the_best_mean_over_folds_and_seeds():
    ds = dataset({"learning_rate": RATES, "fold": range(3), "seed": range(2)}, loss=FOLDED)
    means = seeds.average(ds)
    assert select.axes(means) == ("learning_rate",)
    assert not {"fold", "seed"} & set(means.coords)
    for name in ("loss", "step_loss"):
        own = ds[name].transpose("fold", "seed", *means[name].dims).values
        own = own.reshape(-1, *own.shape[2:]).astype(float)
        np.testing.assert_allclose(means[name], own.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(means[f"{name}_std"], own.std(axis=0, ddof=1), atol=1e-6)
    setting, trial = seeds.best(ds)
    assert (float(setting["learning_rate"]), float(trial["learning_rate"])) == (0.01, 0.01)
    assert (int(trial["fold"]), int(trial["seed"])) in ((0, 0), (1, 0), (2, 1))  # the median
    assert seeds.in_words(ds) == seeds.in_words(means) == "2 seeds × 3 folds"
    said = seeds.best_in_words(ds)
    assert "over 2 seeds × 3 folds): learning rate 0.01." in said
    assert "It is the best with 4 of 6 seed-fold pairs." in said


def test_a_lead_over_a_float_is_found_as_float32_has_it():
    ds = dataset({"learning_rate": np.float32(RATES), "fold": range(3)}, loss=FOLDED[:, :, 0])
    assert seeds.lead(ds, over={"learning_rate": 0.1}).second == "learning rate 0.1"


def test_the_best_setting_of_a_selected_split_is_that_of_all():
    ds = dataset({"learning_rate": RATES, "fold": range(3)}, loss=FOLDED[:, :, 0])
    alone = ds.sel(split="validation")
    assert seeds.best_in_words(alone) == seeds.best_in_words(ds)
    assert seeds.best(alone)[1]["fold"] == seeds.best(ds)[1]["fold"]


def test_a_setting_says_how_many_of_its_pairs_diverged():
    diverged = np.zeros(FOLDED.shape, int)
    diverged[0, 1, 0] = 2
    axes = {"learning_rate": RATES, "fold": range(3), "seed": range(2)}
    means = seeds.average(dataset(axes, loss=FOLDED, diverged=diverged))
    named = [name for name, _ in select.points(means)]
    assert named[0] == "learning rate 0.1 (1 of 6 seed-fold pairs diverged)"


def test_folds_alone_are_averaged_and_paired():
    ds = dataset({"learning_rate": RATES, "fold": range(3)}, loss=FOLDED[:, :, 0])
    assert seeds.several(ds)
    ds["steps_per_epoch"].values[:, 0] = 19  # the first fold is the shorter one
    assert select.axes(seeds.average(ds)) == ("learning_rate",)
    assert seeds.average(ds)["steps_per_epoch"].values.tolist() == [20, 20]
    assert "over 3 folds): learning rate 0.01." in seeds.best_in_words(ds)
    lead = seeds.lead(ds)
    assert (lead.seeds, lead.wins, lead.replicate, lead.paired) == (3, 2, "fold", True)
    assert "within the spread of the folds" in str(lead)


def test_folds_of_points_with_seeds_of_their_own_are_averaged():
    points = {"learning_rate": [0.1, 0.1, 0.01, 0.01], "seed": [0, 1, 2, 3]}
    loss = FOLDED.transpose(0, 2, 1).reshape(4, 3)
    ds = dataset({"sample": points, "fold": range(3)}, loss=loss)
    means = seeds.average(ds)
    assert select.axes(means) == ("sample",)
    assert means["learning_rate"].values.tolist() == RATES
    np.testing.assert_allclose(means["loss_std"].isel(epoch=-1, split=0), [0.343, 0.075], atol=1e-3)
    assert means["seeds"].values.tolist() == [6, 6]
    assert seeds.in_words(ds) == "6 seed-fold pairs"
    assert seeds.best(ds)[1]["learning_rate"] == 0.01


def test_answer_table_and_figures_agree_where_the_lowest_mean_lost_a_seed():
    ds = swept(LOSS, diverged=[[0] * 4, [0, 0, 0, 1], [0] * 4])
    means = seeds.average(ds)
    told = seeds.best_in_words(ds)
    assert told.startswith(
        "The lowest validation loss after the last epoch of settings without a diverged seed is "
    )
    assert (
        "): width 32. The mean of width 16 is lower, 0.255 nats, but 1 of 4 seeds diverged" in told
    )
    table = select.table(means)
    assert table["width"].tolist() == [32, 8, 16]
    assert table["rank"].tolist() == [1, 2, 3]
    figure = figures.final_by(ds, "width")
    [ring] = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("best ")]
    assert ring.get_xdata() == [32]


def test_the_frame_of_a_map_is_on_no_cell_that_lost_a_trial():
    rates = {"learning_rate": [0.1, 0.01], "width": [8, 16], "seed": [0, 1]}
    loss = np.array([[[0.1, 0.1], [0.5, 0.5]], [[0.3, 0.3], [0.4, 0.4]]])
    diverged = np.zeros((2, 2, 2), int)
    diverged[0, 0, 1] = 2
    figure = figures.heat_map(
        dataset(rates, loss=loss, diverged=diverged), "width", "learning_rate"
    )
    assert "the best cell is 0.3" in figure.alt
    shape = figure.interactive["layout"]["shapes"][0]
    assert (shape["x0"], shape["y0"]) == (-0.5, -0.5)


def test_a_setting_that_lost_a_seed_does_not_tie_with_one_that_did_not():
    same = [[0.2] * 4, [0.2] * 4, [0.2] * 4]
    means = seeds.average(swept(same, diverged=[[0] * 4, [0, 0, 0, 1], [0] * 4]))
    assert select.ties(means) == ["width 8", "width 32"]
    assert select.table(means)["rank"].tolist() == [1, 1, 3]


def hit(counts_SxK, of: int = 50) -> xr.Dataset:
    """Widths × seeds that classify so many examples in the end; the last has least loss."""
    counts_SxK = np.array(counts_SxK)
    loss = np.linspace(0.9, 0.1, len(counts_SxK))[:, None] + 0 * counts_SxK
    axes = {"width": [8, 16, 32][: len(loss)], "seed": range(loss.shape[1])}
    ds = dataset(axes, loss=loss)
    ds["accuracy"][...] = (counts_SxK / of)[..., None, None]
    return ds


def test_means_that_differ_by_rounding_tie():
    ds = hit([[40, 40, 46], [40, 41, 45]])
    means = seeds.average(ds)
    assert len(set(means["accuracy"].values[:, -1, 1])) == 2
    assert select.rank(means, "accuracy")["width"].tolist() == [16, 8]
    assert select.ties(means, "accuracy") == ["width 16", "width 8"]
    lead = seeds.lead(ds, "accuracy")
    assert lead.difference == 0
    assert "ties with width 8 over the seeds known for both: the difference is 0 (" in str(lead)
    said = seeds.best_in_words(ds, "accuracy")
    assert said.startswith("Both settings have the same")
    assert compare.baselines({"net": ds}, "accuracy", "validation")["width"].tolist() == [16]
    # Of other sums, the means of equal ones differ across a power of two or a place of rounding.
    for right, of in (
        ([[105, 135, 142], [120, 123, 139]], 150),
        ([[124, 127, 128, 128, 137, 143], [121, 126, 129, 130, 135, 146]], 150),
        ([[47, 48, 50], [46, 49, 50]], 50),
    ):
        ds = hit(right, of)
        assert len(select.ties(seeds.average(ds), "accuracy")) == 2
        assert seeds.lead(ds, "accuracy").difference == 0
        best = select.rank(seeds.average(ds), "accuracy")["width"].iloc[0]
        assert compare.baselines({"net": ds}, "accuracy", "validation")["width"].tolist() == [best]
    losses = dataset({"width": [8, 16], "seed": [0, 1]}, loss=[[1e6 + 0.5] * 2, [1e6] * 2])
    assert select.ties(seeds.average(losses)) == ["width 16"]
    few = seeds.best_in_words(hit([[40, 40, 46], [40, 41, 45], [1, 2, 3]]), "accuracy")
    assert few.startswith("2 of 3 settings tie at the highest")
    assert "fewest" not in few


@pytest.mark.nightly
def test_settings_that_lose_fewer_seeds_stand_first_and_answer_and_frame_agree():
    axes = {"width": [8, 16], "depth": [1, 2], "seed": [0, 1, 2]}
    loss = np.array([[0.5, 0.2], [0.7, 0.8]])[..., None] + np.zeros(3)
    lost = np.array([[1, 2], [2, 2]])[..., None] > np.arange(3)
    ds = dataset(axes, loss=loss, diverged=lost * 1)
    said = seeds.best_in_words(ds)
    assert "of the settings of which the fewest seeds diverged is 0.522" in said
    assert "The mean of width 8, depth 2 is lower, 0.222 nats, but 2 of 3 seeds diverged" in said
    assert framed(ds, "loss") == (8, 1)
    # A metric that is undefined for a seed of all but the best, of which one diverged.
    auc = {"loss": ("lower", ""), "auc": ("higher", "")}
    lost = np.zeros((2, 2, 3), int)
    lost[0, 0, 0] = 1
    ds = dataset(axes, auc, diverged=lost)
    ds["auc"][...] = np.array([[0.9, 0.8], [0.7, 0.6]])[..., None, None, None]
    ds["auc"][{"seed": 1}] = np.nan
    ds["auc"][{"width": 0, "depth": 0, "seed": 1}] = 0.9
    assert framed(ds, "auc") == (8, 2)
    # One diverged of each, and the metric is undefined for one besides where it is the highest.
    ds["diverged_epoch"][:, :, 0] = 1
    ds["auc"][...] = np.array([[0.9, 0.8], [0.7, 0.6]])[..., None, None, None]
    ds["auc"][{"width": 0, "depth": 0, "seed": 1}] = np.nan
    said = seeds.best_in_words(ds, "auc")
    assert "of the settings that miss the fewest seeds, is 0.800" in said
    # Single trials that tie: the one with the lower loss.
    alone = dataset({"width": [8, 16], "depth": [1, 2]}, loss=[[0.9, 0.4], [0.3, 0.5]])
    alone["accuracy"][...] = 0.5
    assert framed(alone, "accuracy") == (16, 1)


def framed(ds, metric):
    """The width and the depth of the cell that a map frames: those of the best setting."""
    [frame] = figures.heat_map(ds, "width", "depth", metric).interactive["layout"]["shapes"]
    cell = (ds["width"].values[int(frame["x1"])], ds["depth"].values[int(frame["y1"])])
    best = seeds.best(ds, metric)[0]
    assert cell == (best["width"], best["depth"])
    return cell


def test_a_lead_is_over_the_setting_that_is_asked_for_where_labels_are_alike():
    rates = [0.12345612, 0.12345678, 0.3]
    loss = np.array([0.3, 0.6, 0.2])[:, None] + np.array([0, 0.01, 0.03])
    ds = dataset({"learning_rate": rates, "seed": [0, 1, 2]}, loss=loss)
    assert seeds.lead(ds, over={"learning_rate": rates[1]}).difference == pytest.approx(0.4)
    assert seeds.lead(ds, over={"learning_rate": rates[0]}).difference == pytest.approx(0.1)
