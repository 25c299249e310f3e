"""Cross-validation: a trial on a fold of the data is the trial on the rows of that fold alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxexp as jx
from jaxexp.training import evaluation
from jaxexp.training.data import Data, Examples

BASE = jx.MLPTrial(epochs=3, depth=1, width=4, batch_size=16, learning_rate=0.01)


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y_N = rng.integers(0, 3, n)
    return (rng.normal(size=(n, 4)) + y_N[:, None]).astype(np.float32), y_N.astype(np.int32)


def splits_of(n: int, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    of_N = np.random.default_rng(1).permutation(n) % folds
    return [(np.flatnonzero(of_N != i), np.flatnonzero(of_N == i)) for i in range(folds)]


def test_a_fold_trains_and_validates_as_its_rows_alone():
    x, y = blobs(120)
    splits = splits_of(120, 2)  # 60 rows each
    folded = jx.folds(jx.arrays(x, y, validation=None), splits)
    axes = {"batch_size": [16, 30], "fold": range(2)}
    found = jx.run(jx.Sweep(BASE, axes), data=folded, progress=False, programs="one")
    for fold, (train, validation) in enumerate(splits):
        own = jx.arrays(x[train], y[train], validation=(x[validation], y[validation]))
        sizes = {"batch_size": axes["batch_size"]}
        alone = jx.run(jx.Sweep(BASE, sizes), data=own, progress=False, programs="exact")
        for name in ("loss", "accuracy", "step_loss", "running_loss"):
            np.testing.assert_allclose(
                found[name].sel(fold=fold).values, alone[name].values, rtol=2e-5, atol=2e-6
            )


RNG = np.random.default_rng(4)
SPLITS = [  # of 240 rows: as of groups and of time series, and two that differ by a row
    (RNG.permutation(240)[:n], np.arange(0)) for n in (17, 121, 120)
]
SPLITS = [
    (own, np.setdiff1d(np.arange(240), own)[: 20 + 5 * i]) for i, (own, _) in enumerate(SPLITS)
]
LINE_BASE = jx.Trial(epochs=3, batch_size=16, learning_rate=0.03)


def line_data(*, weights: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(0)
    x_Nx3 = rng.normal(size=(240, 3)).astype(np.float32)
    y_N = (x_Nx3 @ [1, -2, 0.5] + rng.normal(size=240)).astype(np.float32)
    return x_Nx3, y_N, rng.uniform(0.2, 3, 240).astype(np.float32) if weights else None


def line(**parts) -> jx.Task:
    return jx.supervised(**{
        "init": lambda trial, rng, x: {"w": 0.1 * jnp.ones(x.shape[-1])},
        "apply": lambda trial, params, x: x @ params["w"],
        "loss": optax.squared_error,
    } | parts)  # fmt: skip


def assert_folds_are_runs_of_their_own(base, axes, task, *, weights=False, plan=lambda made: made):
    """Every number of every fold, that of its rows alone."""
    x, y, weight = line_data(weights=weights)
    folded = jx.folds(jx.arrays(x, y, validation=None, weights=weight), SPLITS)
    sweep = jx.Sweep(base, {**axes, "fold": range(len(SPLITS))})
    planned = plan(jx.plan(sweep, task, folded, devices=1, programs="one"))
    found = jx.run(planned, progress=False)
    for fold, parts in enumerate(SPLITS):
        train, held = ((x[own], y[own]) for own in parts)
        kept = {} if weight is None else {"weights": weight[parts[0]]}
        held = held if weight is None else (*held, weight[parts[1]])
        own = jx.arrays(*train, validation=held, **kept)
        alone = jx.run(jx.Sweep(base, axes), task, own, progress=False, programs="exact")
        mine = found.dataset.sel(fold=fold)
        np.testing.assert_array_equal(mine["steps_per_epoch"], alone["steps_per_epoch"])
        for name in ("loss", "running_loss", "step_loss"):
            expected, got = alone[name].values, mine[name].values
            if name == "step_loss":
                assert np.isnan(got[..., expected.shape[-1] :]).all()
                got = got[..., : expected.shape[-1]]
            np.testing.assert_allclose(got, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("optimizer", "weights"),
    [
        ({"optimizer": "sgd"}, True),
        ({"optimizer": "sgd", "momentum": 0.9}, True),
        ({"optimizer": "adam"}, True),
    ],
)
def test_folds_of_any_size_train_as_their_rows_alone(optimizer, weights):
    base = LINE_BASE.replace(**optimizer)
    assert_folds_are_runs_of_their_own(base, {}, line(), weights=weights)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"one_by_one": True, "chunk": 1},
        {"microbatch": 5},
        {"chunk": 2},
    ],
)
def test_so_they_do_beside_other_batch_sizes_however_they_are_batched(way):
    def replaced(planned):
        (program,) = planned.plan.programs
        made = dataclasses.replace(program, **{"microbatch": None, "one_by_one": False} | way)
        return dataclasses.replace(
            planned, plan=dataclasses.replace(planned.plan, programs=(made,))
        )

    axes = {"batch_size": [5, 17]}
    assert_folds_are_runs_of_their_own(LINE_BASE, axes, line(), plan=replaced)


@pytest.mark.nightly
def test_a_schedule_is_told_the_steps_of_its_fold():
    def optimizer(trial, steps):
        return optax.adam(optax.cosine_decay_schedule(trial.learning_rate, steps))

    assert_folds_are_runs_of_their_own(LINE_BASE, {}, line(optimizer=optimizer))


def test_of_each_fold_as_many_training_examples_are_evaluated_as_of_its_rows_alone():
    x = np.arange(3000, dtype=np.float32)[:, None]
    rows = [np.arange(n) for n in (20, 600, 2900)]
    folded = jx.folds(jx.arrays(x, x[:, 0], validation=None), [(r, np.array([2999])) for r in rows])
    whole = evaluation.with_evaluation(folded)["evaluation"]
    for fold, (own, size) in enumerate(zip(rows, (20, 512, 870), strict=True)):
        member_M = whole["members"]["train"][fold]
        alone = evaluation.train_sample(jx.arrays(x[own], x[own, 0], validation=None))
        np.testing.assert_array_equal(whole["rows"][fold][member_M], alone)
        assert member_M.sum() == size == evaluation.evaluated_counts(folded, fold)["train"]
    assert evaluation.evaluated_counts(folded) == {"train": 870, "validation": 1}


def test_a_batch_larger_than_a_fold_is_refused_as_on_its_rows_alone():
    x, y, _ = line_data()
    folded = jx.folds(jx.arrays(x, y, validation=None), SPLITS)
    sweep = jx.Sweep(LINE_BASE.replace(batch_size=20), {"fold": range(3)})
    with pytest.raises(jx.UserError, match="=20: larger than the 17 training examples of fold 0"):
        jx.plan(sweep, line(), folded)
    with pytest.raises(jx.UserError, match=r"steps=7: expected at least 8, .* batch_size=16"):
        jx.run(
            jx.Sweep(LINE_BASE, {"fold": range(3)}), line(), folded, progress=False,
            stopping=jx.Budget(steps=7),
        )  # fmt: skip


@pytest.mark.nightly
def test_what_would_be_another_in_a_partial_batch_is_asked_of_each_fold():
    """A loss that compares the examples of its batch, without a mask."""

    def centred(prediction, target):
        error = prediction - target
        return (error - error.mean()) ** 2

    x, y, _ = line_data()
    every, batch = np.arange(240), LINE_BASE.replace(batch_size=20)
    sweep, task = jx.Sweep(batch, {"fold": range(2)}), line(loss=centred, evaluation_batch_size=20)
    last = every[220:]

    def folded(n: int) -> Data:
        data = jx.arrays(x, y, validation=None)
        return jx.folds(data, [(every[:200], last), (every[:n], last)])

    with pytest.raises(jx.UserError, match="batches of 110 examples of fold 1 would be partial"):
        jx.plan(sweep, task, folded(110))
    found = jx.run(sweep, task, folded(100), progress=False)
    own = jx.arrays(x[:100], y[:100], validation=(x[last], y[last]))
    alone = jx.run(jx.Sweep(batch), task, own, progress=False)
    np.testing.assert_allclose(found["loss"].sel(fold=1), alone["loss"], rtol=3e-5)


def test_folds_of_unequal_size_use_each_row_once_and_evaluate_what_is_left():
    x, y = blobs(61)
    splits = splits_of(61, 4)
    folded = jx.folds(jx.arrays(x, y, validation=None), splits)
    assert folded.counts == {"train": 46, "validation": 16}
    still = jx.Sweep(BASE.replace(optimizer="sgd", learning_rate=1e-30), {"fold": range(4)})
    found = jx.run(still, data=folded, progress=False)
    assert (found["steps_per_epoch"] == 3).all()
    for fold, (train, validation) in enumerate(splits):
        trial = found.trial(fold=fold)
        logits = found.task.predict(trial.trial, trial.variables, x)
        loss = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        for name, rows in (("train", train), ("validation", validation)):
            wanted = loss[rows, y[rows]].mean()
            last = trial.curves["loss"].sel(split=name).values[-1]
            np.testing.assert_allclose(last, wanted, rtol=1e-5)
            if name == "train":  # parameters stand still: the mean over the epoch's steps
                np.testing.assert_allclose(trial.curves["running_loss"][-1], wanted, rtol=1e-5)


@pytest.mark.nightly
def test_a_test_split_is_the_same_for_all_folds():
    x, y = blobs(100)
    data = jx.arrays(x[:80], y[:80], validation=None, test=(x[80:], y[80:]))
    folded = jx.folds(data, 4)
    assert folded.counts == {"train": 60, "validation": 20, "test": 20}
    found = jx.run(jx.Sweep(BASE, {"fold": range(4)}), data=folded, progress=False)
    for fold in range(4):
        trial = found.trial(fold=fold)
        right = np.mean(found.predict(x[80:], trial) == y[80:])
        measured = trial.curves["accuracy"].sel(split="test").values[-1]
        np.testing.assert_allclose(measured, right, rtol=1e-6)


def test_drawn_folds_hold_every_class_evenly():
    x, y = blobs(103)
    folded = jx.folds(jx.arrays(x, y, validation=None), 5, seed=3)
    every = np.concatenate([row[row >= 0] for row in folded.folds["validation"]])
    np.testing.assert_array_equal(np.sort(every), np.arange(103))
    for label in range(3):
        counts = [(y[row[row >= 0]] == label).sum() for row in folded.folds["validation"]]
        assert max(counts) - min(counts) <= 1
    for train, validation in zip(*folded.folds.values(), strict=True):
        assert not set(train) - {-1} & set(validation) - {-1}


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        (1, "folds=1: expected at least 2"),
        (30, r"folds=30: there are 2[0-9] examples of label .* folds; counts are given as floats"),
        ("abc", "folds='abc': expected how many, or pairs"),
        ([], "at least one pair"),
        ([(np.arange(3), [])], r"folds\[0\]: expected numbers of rows"),
        ([(np.arange(3), np.arange(2, 5))], "fold 0: row 2 twice, in train and in validation"),
        ([(np.array([4, 7, 4]), np.arange(2))], "fold 0: row 4 twice, in train, expected once"),
        ([(np.arange(3), np.array([99]))], "expected rows of train, 0 to 79"),
        ([np.arange(3)], r"folds\[0\]: expected a pair"),
    ],
)
def test_folds_that_cannot_be_are_refused(folds, said):
    x, y = blobs(80)
    with pytest.raises(jx.UserError, match=said):
        jx.folds(jx.arrays(x, y, validation=None), folds)


def test_folds_with_a_part_that_counts_nothing_are_refused():
    x, y = blobs(80)
    data = jx.arrays(x, y, validation=None, weights=np.arange(80) < 40)
    first, last = np.arange(40), np.arange(40, 80)
    with pytest.raises(jx.UserError, match=r"folds\['validation'\], fold 0: .* all 40 rows are 0"):
        jx.folds(data, [(first, last)])
    with pytest.raises(jx.UserError, match=r"folds\['train'\], fold 1: .* 0 \(row 40 is the first"):
        jx.folds(data, [(first[:20], first[20:]), (last, first)])
    with pytest.raises(jx.UserError, match=r"folds\['validation'\], fold [0-4]: the weights"):
        jx.folds(jx.arrays(x, y, validation=None, weights=np.arange(80) < 2), 5)
    assert jx.folds(data, 4).n_folds == 4


def test_folds_that_train_without_a_class_are_refused():
    x, y = blobs(80)
    data = jx.arrays(x, np.array(["ant", "bee", "cat"])[y], validation=None)
    every, bees = np.arange(80), np.flatnonzero(y == 1)
    few = (every[:-20], every[-20:])
    with pytest.raises(jx.UserError, match=r"fold 1: class 'bee' has none of the .* to train on"):
        jx.folds(data, [few, (np.flatnonzero(y != 1), bees)])
    without = Data(data.train._replace(y=y), classes=("ant", "bee", "cat", "dog"))
    assert jx.folds(without, [few]).n_folds == 1  # no fold can train on a dog


def test_folds_where_they_do_not_belong_are_refused():
    x, y = blobs(80)
    plain = jx.arrays(x, y, validation=None)
    folded = jx.folds(plain, 4)
    with pytest.raises(jx.UserError, match="has a validation split already"):
        jx.folds(jx.arrays(x, y), 4)
    with pytest.raises(jx.UserError, match="has folds already"):
        jx.folds(folded, 4)
    with pytest.raises(jx.UserError, match="fold=4: expected a number below 4"):
        jx.plan(jx.Sweep(BASE, {"fold": range(5)}), data=folded)
    with pytest.raises(jx.UserError, match="fold is set to 0 or 1, but"):
        jx.plan(jx.Sweep(BASE, {"fold": range(2)}), data=plain)
    with pytest.raises(jx.UserError, match="mean and standard deviation would be those of all"):
        jx.plan(jx.Sweep(BASE.replace(features="standardised")), data=folded)
    with pytest.raises(jx.UserError, match="'validation' is a split of its own"):
        Data(Examples(x, y), validation=Examples(x, y), folds=folded.folds)


@pytest.mark.nightly
def test_the_best_setting_of_folds_has_the_best_mean():
    x, y = blobs(60, seed=2)
    folded = jx.folds(jx.arrays(x, y, validation=None), 5)
    axes = {"learning_rate": [0.3, 0.01, 0.001], "fold": range(5)}
    found = jx.run(jx.Sweep(BASE, axes), data=folded, progress=False)
    loss = found["loss"].sel(split="validation").isel(epoch=-1)
    best = loss.mean("fold").idxmin("learning_rate").item()
    chosen = found.best_setting()
    own = loss.sel(learning_rate=best)
    assert chosen.trial.learning_rate == best
    assert own.sel(fold=chosen.trial.fold) == own.median()


@pytest.mark.nightly
def test_halving_keeps_or_ends_all_folds_of_a_setting():
    x, y = blobs(61)
    folded = jx.folds(jx.arrays(x, y, validation=None), 4)
    sweep = jx.Sweep(BASE, {"learning_rate": [0.1, 0.01, 0.001], "fold": range(4)})
    rule = jx.search.Halving(factor=3, first=1)
    found = jx.run(sweep, data=folded, progress=False, stopping=rule)
    assert sorted(found["epochs_trained"].values.tolist()) == [[1] * 4, [1] * 4, [3] * 4]


def test_a_run_on_folds_ends_early_and_keeps_checkpoints_of_its_folds(tmp_path):
    x, y = blobs(61)
    folded = jx.folds(jx.arrays(x, y, validation=None), 4)
    sweep = jx.Sweep(BASE, {"fold": range(4), "seed": range(2)})
    rule = jx.EarlyStopping("accuracy", patience=1)
    whole = jx.run(sweep, data=folded, progress=False, stopping=rule)
    again = jx.run(sweep, data=folded, progress=False, stopping=rule, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(whole["loss"].values, again["loss"].values)
    other = jx.folds(jx.arrays(x, y, validation=None), 4, seed=1)
    with pytest.raises(jx.UserError, match="checkpoints of another run: data was"):
        jx.run(sweep, data=other, progress=False, stopping=rule, checkpoint_dir=tmp_path)
