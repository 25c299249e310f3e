"""Trials and sweeps: what they mean, and what they refuse."""

import dataclasses

import numpy as np
import pytest

from jaxexp.base.errors import UserError
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial, Trial

DEPTHS_WIDTHS = [(1, 64), (6, 16)]


def values(sweep: Sweep, *names: str) -> list[tuple]:
    return [tuple(getattr(trial, name) for name in names) for trial in sweep.trials()]


def test_product_of_axes_last_fastest():
    sweep = Sweep(base=MLPTrial(epochs=7), axes={"learning_rate": [0.1, 0.2], "seed": [0, 1, 2]})
    assert sweep.shape == (2, 3)
    assert values(sweep, "learning_rate", "seed", "epochs") == [
        (rate, seed, 7) for rate in (0.1, 0.2) for seed in (0, 1, 2)
    ]


def test_zipped_axes_move_together():
    axes = {("depth", "width"): DEPTHS_WIDTHS, "seed": [0, 1]}
    sweep = Sweep(base=MLPTrial(), axes=axes)
    assert list(sweep.dims) == ["depth_width", "seed"]
    assert values(sweep, "depth", "width", "seed") == [
        (1, 64, 0),
        (1, 64, 1),
        (6, 16, 0),
        (6, 16, 1),
    ]


def test_values_may_be_rows_of_arrays():
    zipped = Sweep(MLPTrial(), {("depth", "width"): np.array(DEPTHS_WIDTHS)})
    assert values(zipped, "depth", "width") == DEPTHS_WIDTHS
    widths = Sweep(MLPTrial(depth=2), {"width": np.array([[8, 16], [16, 8]])})
    assert values(widths, "width") == [((8, 16),), ((16, 8),)]


def test_no_axis_is_one_trial():
    sweep = Sweep(base=MLPTrial(width=3))
    assert (sweep.shape, sweep.trials()) == ((), [MLPTrial(width=3)])


def test_sweep_cannot_be_changed_from_outside():
    rates, axes = [0.1, 0.2], {}
    axes["learning_rate"] = rates
    sweep = Sweep(base=MLPTrial(), axes=axes)
    trials = sweep.trials()
    rates.append(0.3)
    axes["seed"] = [0, 1]
    assert sweep.trials() == trials
    with pytest.raises(dataclasses.FrozenInstanceError):
        sweep.axes = {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        sweep.base.epochs = 1


def test_text_becomes_the_type_of_the_hyperparameter():
    text = {"learning_rate": ["1e-2"], "depth": ["3"], "batch_norm": ["on"], "activation": ["tanh"]}
    sweep = Sweep(base=MLPTrial()).set(text)
    assert sweep.trials() == [
        MLPTrial(learning_rate=0.01, depth=3, batch_norm=True, activation="tanh")
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seed": [4]}, [(1, 64, 0.1, 4), (1, 64, 0.2, 4), (6, 16, 0.1, 4), (6, 16, 0.2, 4)]),
        ({"learning_rate": [0.3]}, [(1, 64, 0.3, 0), (6, 16, 0.3, 0)]),
        ({"learning_rate": [0.1], "seed": [1, 2]},
         [(1, 64, 0.1, 1), (1, 64, 0.1, 2), (6, 16, 0.1, 1), (6, 16, 0.1, 2)]),
        ({"width": [9], "learning_rate": [0.1]}, [(1, 9, 0.1, 0), (6, 9, 0.1, 0)]),
    ],
)  # fmt: skip
def test_set(settings, expected):
    axes = {("depth", "width"): DEPTHS_WIDTHS, "learning_rate": [0.1, 0.2]}
    sweep = Sweep(base=MLPTrial(), axes=axes)
    assert values(sweep.set(settings), "depth", "width", "learning_rate", "seed") == expected
    assert sweep.axes == Sweep(base=MLPTrial(), axes=axes).axes  # a copy was changed


@pytest.mark.parametrize("key", ["width", ("width",)])
def test_a_width_for_each_layer(key):
    sweep = Sweep(base=MLPTrial(depth=3), axes={key: [(64, 32, 16), (16, 16, 16), 8]})
    assert values(sweep, "width") == [((64, 32, 16),), (16,), (8,)]
    assert values(dataclasses.replace(sweep, name="same"), "width") == values(sweep, "width")
    assert values(sweep.set({"width": ["3-2-1", "4"]}), "width") == [((3, 2, 1),), (4,)]
    assert values(sweep.set({"width": ["3-2-1"]}), "width") == [((3, 2, 1),)]
    both = Sweep(base=MLPTrial()).set({"width": ["64-32"], "depth": ["2"]})
    assert values(both, "width", "depth") == [((64, 32), 2)]


def test_equal_widths_are_the_trial_of_one_width():
    written = MLPTrial(depth=3, width=(16, 16, 16))
    assert written == MLPTrial(depth=3) == MLPTrial(depth=3).replace(width="16-16-16")
    assert written.id == MLPTrial(depth=3).id
    assert (written.widths, MLPTrial(depth=2, width=(3, 4)).widths) == ((16, 16, 16), (3, 4))
    assert MLPTrial(depth=2, width=(3, 4)).id != MLPTrial(depth=2, width=(4, 3)).id


def test_set_several_values_of_a_zipped_axis_is_refused():
    sweep = Sweep(base=MLPTrial(), axes={("depth", "width"): DEPTHS_WIDTHS})
    with pytest.raises(UserError, match="width is zipped with depth: give it one value"):
        sweep.set({"width": [8, 16]})


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, [5]),
        ({"epochs": [2, 50, 100]}, [2, 5]),
        ({("batch_size", "epochs"): [(1, 1), (16, 10), (128, 50)]}, [1, 5, 5]),
    ],
)
def test_shorten(axes, expected):
    sweep = Sweep(base=MLPTrial(), axes=axes)
    assert [trial.epochs for trial in sweep.shorten(5).trials()] == expected
    assert sweep.shorten(1000).trials() == sweep.trials()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"learning_rat": [1]},
            "unknown hyperparameter 'learning_rat': did you mean learning_rate",
        ),
        ({"seed": []}, "axis seed is empty"),
        ({"seed": [0, 1, 0]}, "has the trial seed=0 twice"),
        ({"seed": [1, "1"]}, "has the trial seed=1 twice"),
        ({"seed": [0], ("seed", "depth"): [(1, 2)]}, "seed stands in more than one axis"),
        ({("depth", "width"): [(1, 2), (3,)]}, r"depth × width: expected 2 values, got \(3,\)"),
        ({("depth", "width"): [1]}, "depth × width: expected 2 values, got 1"),
        ({"depth": [(1, 2)]}, r"depth=\(1, 2\): expected a whole number"),
        ({"depth": [1.5]}, "depth=1.5: expected a whole number"),
        ({"depth": ["deep"]}, "depth='deep': expected a whole number"),
        ({"depth": [True]}, "depth=True: expected a whole number"),
        ({"learning_rate": [None]}, "learning_rate=None: expected a finite number"),
        ({"learning_rate": [float("nan")]}, "learning_rate=nan: expected a finite number"),
        ({"learning_rate": ["inf"]}, "learning_rate='inf': expected a finite number"),
        ({"batch_norm": ["maybe"]}, "batch_norm='maybe': expected on or off"),
        ({"epochs": [float("inf")]}, "epochs=inf: expected a whole number"),
        ({"learning_rate": [0]}, "learning_rate=0.0: expected a number above 0"),
        ({"learning_rate": [-1e-3]}, "learning_rate=-0.001: expected a number above 0"),
        ({"epochs": [0]}, "epochs=0: expected a number at least 1"),
        ({"batch_size": [0]}, "batch_size=0: expected a number at least 1"),
        ({"depth": [0]}, "depth=0: expected a number at least 1"),
        ({"width": [0]}, "width=0: expected a number at least 1"),
        ({"width": [(64, 32, 16)]}, "width=64-32-16: 3 widths for depth=6"),
        ({"width": ["64-32-16"]}, "width=64-32-16: 3 widths for depth=6"),
        ({"width": [(16,)]}, "width=16: 1 widths for depth=6"),
        ({("depth", "width"): [(2, (3, 0))]}, "width=3-0: expected numbers at least 1 and at most"),
        ({"width": ["64-32-"]}, "width='64-32-': expected a whole number or whole numbers as"),
        ({"width": [()]}, r"width=\(\): expected at least one number"),
        ({"width": [(3, 2.5)]}, r"width=\(3, 2.5\): expected a whole number or whole numbers"),
        (
            {("depth", "width", "residual"): [(2, (3, 4), True)]},
            "width=3-4: a residual connection needs layers of equal width",
        ),
        ({("depth", "width"): [(2, (5, 5)), (2, 5)]}, "has the trial depth=2, width=5 twice"),
        ({"depth": [10_001]}, "depth=10001: expected a number at least 1 and at most 10000"),
        ({"width": [100_001]}, "width=100001: expected a number at least 1 and at most 100000"),
        ({"seed": [-1]}, "seed=-1: expected a number at least 0 and below"),
        ({"seed": [2**31]}, "seed=2147483648: expected a number at least 0 and below"),
        ({"weight_decay": [-0.1]}, "weight_decay=-0.1: expected a number at least 0"),
        ({"momentum": [-0.1]}, "momentum=-0.1: expected a number at least 0 and below 1"),
        ({"momentum": [1]}, "momentum=1.0: expected a number at least 0 and below 1"),
        ({"optimizer": ["lion"]}, "optimizer='lion': expected one of adam, adamw, sgd"),
        ({"activation": ["step"]}, "activation='step': expected one of relu, "),
        ({"features": ["cosines"]}, "features='cosines': expected one of raw, standardised, sines"),
        ({("batch_norm", "batch_size"): [(True, 1)]}, "batch_size=1: batch norm needs at least 2"),
    ],
)
def test_refused(axes, message):
    with pytest.raises(UserError, match=message):
        Sweep(base=MLPTrial(), axes=axes).trials()


def test_the_largest_and_smallest_values_are_accepted():
    axes = {
        ("optimizer", "momentum", "weight_decay"): [("sgd", 0.0, 0), ("adamw", 0, 0.0)],
        "seed": [0, 2**31 - 1],
        "depth": [1, 10_000],
        "width": [1, 100_000],
    }
    trials = Sweep(base=MLPTrial(epochs=1, batch_size=1, learning_rate=1e-30), axes=axes).trials()
    assert len(trials) == 16


def test_the_base_trial_is_checked_and_converted_too():
    with pytest.raises(UserError, match="depth=0"):
        Sweep(base=MLPTrial(depth=0)).trials()
    (trial,) = Sweep(base=MLPTrial(learning_rate=1)).trials()
    assert type(trial.learning_rate) is float
    assert trial.id == MLPTrial(learning_rate=1.0).id


def test_unknown_record():
    with pytest.raises(UserError, match="record='weights': expected some of gradient_norms, pred"):
        Sweep(base=MLPTrial(), record=("weights",))


def test_id_is_the_content():
    assert MLPTrial(seed=3).id == MLPTrial().replace(seed="3").id
    ids = {
        MLPTrial().replace(**{name: value}).id
        for name, value in {"seed": 1, "depth": 7, "learning_rate": 0.1, "batch_norm": True}.items()
    }
    assert len({MLPTrial().id, Trial().id} | ids) == 6
    # Stable over sessions and versions of Python; a change of it is a change of every id.
    assert Trial().id == "ec0928813d73017d"


def test_rates_given_as_text_are_numbers_at_once():
    sweep = Sweep(
        MLPTrial(), {"learning_rate": ["1e-2", "0.001"], ("depth", "width"): [("2", "8")]}
    )
    assert sweep.axes[("learning_rate",)] == ((0.01,), (0.001,))
    assert sweep.axes[("depth", "width")] == ((2, 8),)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"activation": "relu"}, "axis activation: 'relu' is no list; expected a list of values"),
        ({"learning_rate": 0.1}, "axis learning_rate: 0.1 is one value; expected a list"),
        ({"seed": {1, 2}}, r"axis seed: \{1, 2\} is no list"),
        ({1: [2]}, "axis 1: expected the name of a hyperparameter, or a tuple of names"),
        ({(): [2]}, r"axis \(\): expected the name"),
        ({"lr": [0.1]}, "unknown hyperparameter 'lr': did you mean learning_rate"),
        ([("seed", [1])], "expected a dict of names and their values"),
    ],
)
def test_axes_of_the_wrong_form_are_refused_at_once(axes, message):
    with pytest.raises(UserError, match=message):
        Sweep(MLPTrial(), axes)


def test_a_base_that_is_no_trial_is_refused():
    for base in (None, MLPTrial, {"epochs": 3}):
        with pytest.raises(UserError, match="expected a trial, such as MLPTrial"):
            Sweep(base)
    with pytest.raises(UserError, match=r"record='predictions': expected a tuple, \('pred"):
        Sweep(MLPTrial(), record="predictions")
