"""Search spaces and samplers: what they draw, that they repeat it, and what they refuse."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.search import (
    Space,
    choice,
    distribution,
    grid,
    integers,
    loguniform,
    parse,
    random,
    sobol,
    uniform,
)
from jaxexp.spec.values import float32

SAMPLERS = [random, sobol]
MLP = jx.MLPTrial(epochs=3)


def values(sweep: jx.Sweep, name: str) -> list:
    return [getattr(trial, name) for trial in sweep.trials()]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (uniform(0.1, 0.3), scipy.stats.uniform(0.1, 0.2)),
        (loguniform(1e-4, 1), scipy.stats.loguniform(1e-4, 1)),
        (scipy.stats.gamma(2, scale=0.01), scipy.stats.gamma(2, scale=0.01)),
    ],
)
def test_samples_have_the_distribution_that_is_asked_for(sampler, own, expected):
    drawn = values(sampler(Space(MLP, {"learning_rate": own}), 500), "learning_rate")
    assert scipy.stats.kstest(drawn, expected.cdf).pvalue > 0.01
    other = scipy.stats.uniform(0, 0.3) if own == uniform(0.1, 0.3) else scipy.stats.norm(0.1)
    assert scipy.stats.kstest(drawn, other.cdf).pvalue < 1e-6  # it would have been noticed


def counted(own, draws=20_000) -> dict:
    drawn = [own.ppf(u) for u in np.random.default_rng(0).random(draws)]
    return dict(zip(*np.unique(drawn, return_counts=True), strict=True))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (integers(3, 7), dict.fromkeys(range(3, 8), 1 / 5)),
        (integers(8, 128, step=40), dict.fromkeys((8, 48, 88, 128), 1 / 4)),
        (integers(1, 4, log=True), {n: math.log((n + 0.5) / (n - 0.5), 9) for n in range(1, 5)}),
        (choice([2, 3, 5]), dict.fromkeys((2, 3, 5), 1 / 3)),
    ],
)
def test_whole_numbers_and_choices_are_as_probable_as_they_say(own, expected):
    found = counted(own)
    assert found.keys() == expected.keys()
    frequencies = [20_000 * expected[value] for value in found]
    assert scipy.stats.chisquare(list(found.values()), frequencies).pvalue > 0.01


@given(
    st.integers(-50, 50), st.integers(1, 60), st.integers(1, 5), st.floats(0, 1, exclude_max=True)
)
def test_whole_numbers_stay_within_their_bounds(low, count, step, u):
    own = integers(low, low + count * step, step=step)
    assert own.ppf(u) in range(low, low + count * step + 1, step)
    assert (own.ppf(0), own.ppf(1 - 2**-53)) == (low, low + count * step)


@given(
    st.floats(1e-30, 1e30), st.floats(1.001, 1e6), st.floats(0, 1), st.sampled_from(["lin", "log"])
)
def test_numbers_stay_within_their_bounds(low, factor, u, kind):
    own = (uniform if kind == "lin" else loguniform)(low, low * factor)
    assert low <= own.ppf(u) <= low * factor
    assert own.ppf(0.25) <= own.ppf(0.75)


def large_space(order: int = 1) -> Space:
    axes = {
        "learning_rate": loguniform(1e-4, 1e-1),
        ("depth", "width"): [(1, 64), (3, (8, 4, 2)), (2, 16)],
        "batch_size": integers(16, 64, log=True),
        "epochs": [1, 2],
        "batch_norm": choice([True, False]),
        "optimizer": ["adam", "sgd"],
        "momentum": uniform(0, 0.99).when(optimizer="sgd"),
        "seed": integers(0, 1000),
    }
    return Space(MLP, dict([*axes.items()][::order]))


def drawn(sampler, order=1, seed=3) -> list[str]:
    return [trial.id for trial in sampler(large_space(order), 20, seed=seed).trials()]


def test_the_same_seed_draws_the_same_points_in_any_process():
    """And in whatever order the space is written down."""
    for sampler in SAMPLERS:
        assert drawn(sampler) == drawn(sampler, order=-1)
        assert drawn(sampler) != drawn(sampler, seed=4)
    code = "from tests.test_search import SAMPLERS, drawn; print(*map(drawn, SAMPLERS), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(drawn(sampler)) for sampler in SAMPLERS]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_everything_that_can_be_an_axis_can_be_sampled(sampler):
    sweep = sampler(large_space(), 60)
    assert {(t.depth, t.width) for t in sweep.trials()} == {(1, 64), (3, (8, 4, 2)), (2, 16)}
    assert {t.batch_norm for t in sweep.trials()} == {True, False}
    assert all(16 <= t.batch_size <= 64 for t in sweep.trials())
    momentum = {t.optimizer: {u.momentum for u in sweep.trials() if u.optimizer == t.optimizer}
                for t in sweep.trials()}  # fmt: skip
    assert momentum["adam"] == {0.0}
    assert len(momentum["sgd"]) > 10


def test_more_points_begin_with_those_of_fewer_and_more_names_leave_the_others():
    few, many = (values(random(large_space(), n), "learning_rate") for n in (5, 9))
    assert many[:5] == few
    alone = Space(MLP, {"learning_rate": loguniform(1e-4, 1e-1)})
    assert values(random(alone, 5), "learning_rate") == few


@pytest.mark.parametrize("n", [7, 64])
def test_sobol_covers_more_evenly_than_chance(n):
    """Of a power of two, every part of an equal cut has as many points."""
    space = Space(MLP, {"learning_rate": uniform(0.5, 1.5), "weight_decay": uniform(0, 1)})
    drawn = [(t.learning_rate - 0.5, t.weight_decay) for t in sobol(space, n).trials()]
    assert len(drawn) == n
    if n == 64:
        cells = {(int(8 * x), int(8 * y)) for x, y in drawn}
        assert len(cells) == 64


def test_points_are_a_sweep_with_one_dimension_and_seeds():
    sweep = random(large_space_without_seed(), 4, seeds=3)
    assert list(sweep.dims) == ["sample", "seed"]
    assert sweep.shape == (4, 3)
    assert sorted({t.seed for t in sweep.trials()}) == [7, 8, 9]
    with pytest.raises(UserError, match="seeds=2: `seed` is searched already"):
        random(large_space(), 4, seeds=2)


def large_space_without_seed() -> Space:
    axes = {k: v for k, v in large_space().axes.items() if k != ("seed",)}
    return Space(MLP.replace(seed=7), axes)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_points_are_drawn_until_they_differ(sampler):
    space = Space(MLP, {"optimizer": ["adam", "sgd"], "momentum": choice([0.5, 0.9]).when(
        optimizer="sgd")})  # fmt: skip
    found = {(t.optimizer, t.momentum) for t in sampler(space, 3).trials()}
    assert found == {("adam", 0.0), ("sgd", 0.5), ("sgd", 0.9)}
    with pytest.raises(UserError, match="trials=4: the last 10,000 points drawn were among the 3"):
        sampler(space, 4)
    with pytest.raises(UserError, match="trials=7: the space has 6 points at most"):
        sampler(space, 7)


def test_numbers_are_those_of_float32_in_few_digits():
    """What is one number inside a program is one point."""
    drawn = values(random(Space(MLP, {"learning_rate": uniform(1, 1.000001)}), 5), "learning_rate")
    assert len({float32(value) for value in drawn}) == 5
    with pytest.raises(UserError, match="drawn were among"):
        random(Space(MLP, {"learning_rate": uniform(1, 1.000001)}), 50)
    with pytest.raises(UserError, match="the bounds are the same in float32"):
        uniform(1, 1 + 1e-9)


def test_options_of_many_digits_are_those_that_conditions_name():
    rates = np.geomspace(1e-3, 1e-1, 4).tolist()
    space = Space(MLP, {"learning_rate": rates,
                        "momentum": choice([0.5]).when(learning_rate=rates[1])})  # fmt: skip
    found = [(trial.learning_rate, trial.momentum) for trial in grid(space, 1).trials()]
    assert found == [(rate, 0.5 if rate == rates[1] else 0.0) for rate in rates]
    with pytest.raises(UserError, match="stands there twice"):
        Space(MLP, {"learning_rate": [0.1, np.float32(0.1)]})


def test_a_grid_is_the_product_with_both_ends():
    space = Space(MLP, {"learning_rate": loguniform(1e-4, 1), "width": integers(8, 128, log=True),
                        "optimizer": ["adam", "sgd"]})  # fmt: skip
    sweep = grid(space, {"learning_rate": 5, "width": 3})
    assert sorted(set(values(sweep, "learning_rate"))) == [1e-4, 1e-3, 1e-2, 1e-1, 1]
    assert sorted(set(values(sweep, "width"))) == [8, 32, 128]
    assert sweep.shape == (30,)
    assert grid(space, 1).shape == (2,)
    assert sorted(values(grid(Space(MLP, {"depth": integers(1, 3)}), 9), "depth")) == [1, 2, 3]
    held = Space(MLP, {"optimizer": ["adam", "sgd"], "momentum": uniform(0, 0.8).when(
        optimizer="sgd")})  # fmt: skip
    assert sorted((t.optimizer, t.momentum) for t in grid(held, 3).trials()) == [
        ("adam", 0.0), ("sgd", 0.0), ("sgd", 0.4), ("sgd", 0.8),
    ]  # fmt: skip
    for points, message in [(0, "points=0: expected a whole number, at least 1"),
                            ({"width": 2}, "points: learning_rate is missing"),
                            ({"depth": 2}, "points: 'depth': expected some of learning_rate, opt"),
                            (10_000, "expected fewer")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            grid(space, points)


def test_conditions_on_conditions():
    axes = {
        "optimizer": ["adam", "sgd", "adamw"],
        "batch_norm": choice([True]).when(optimizer=["sgd", "adamw"]),
        "weight_decay": uniform(0.1, 0.2).when(batch_norm=True, optimizer="adamw"),
    }
    for trial in random(Space(MLP, axes), 20).trials():
        assert trial.batch_norm == (trial.optimizer != "adam")
        assert (trial.weight_decay > 0) == (trial.optimizer == "adamw")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "with at least one"),
        ([("width", [1])], "expected a dict of names"),
        ({"widht": [1]}, "unknown hyperparameter 'widht': did you mean width"),
        ({"width": []}, r"width: choice\(\[\]\): expected at least one value"),
        ({"width": 3}, "width: 3: expected a distribution, such as"),
        ({"width": "8"}, "width: '8': expected a distribution, such as"),
        ({"width": [8, "8"]}, "width: choice.*: 8 stands there twice"),
        ({"width": uniform(8, 64)}, r"width: uniform\(8, 64\): width=.*: expected a whole number"),
        ({"width": integers(0, 8)}, r"width: integers\(0, 8\): width=0: expected a number at leas"),
        ({"learning_rate": uniform(0, 1)}, "learning_rate=0.0: expected a number above 0"),
        ({"learning_rate": uniform(-1, 1)}, "learning_rate=-1.0: expected a number above 0"),
        ({"learning_rate": scipy.stats.norm(0, 1)}, "scipy.stats.norm.*expected a number above 0"),
        ({"momentum": uniform(0, 1)}, "momentum=1.0: expected a number at least 0 and below 1"),
        ({"optimizer": ["adam", "lion"]}, "optimizer='lion': expected one of adam, adamw, sgd"),
        ({("depth", "width"): [(1, 2), 3]}, "depth × width: expected 2 values, got 3"),
        ({("depth", "width"): integers(1, 2)}, "expected a list of tuples of 2 values"),
        ({("depth", "width"): [(1, 2)], "width": [3]}, "width stands more than once in the space"),
        ({"momentum": uniform(0, 0.9).when(optimiser="sgd")}, "momentum: when optimiser: unknown"),
        ({"momentum": uniform(0, 0.9).when(optimizer="sgd")},
         "momentum: when optimizer=sgd: optimizer is fixed at adam, and never this"),
        ({"momentum": uniform(0, 0.9).when(optimizer="sgd"), "optimizer": ["adam", "adamw"]},
         r"when optimizer=sgd: optimizer is choice\(\[adam, adamw\]\), and never this"),
        ({"momentum": uniform(0, 0.9).when(optimizer="lion")}, "optimizer='lion': expected one of"),
        ({"momentum": uniform(0, 0.9).when(width=9), "width": integers(8, 16, step=2)},
         "when width=9: width is integers.*never this"),
        ({"momentum": uniform(0, 0.9).when(weight_decay=1.5), "weight_decay": integers(1, 3)},
         "when weight_decay=1.5: weight_decay is integers.*never this"),
        ({"width": choice([8]).when(depth=2), "depth": choice([2, 3]).when(width=8)},
         "the conditions of depth and width ask for each other"),
        ({"width": choice([8]).when(width=8)}, "the conditions of width ask for each other"),
    ],
)  # fmt: skip
def test_spaces_that_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        Space(MLP, axes)


@dataclass(frozen=True, kw_only=True)
class LayersTrial(jx.Trial):
    hidden: int | tuple[int, ...] = 4
    blocks: tuple[tuple[int, ...], ...] = ((1,),)
    one: str = "a"
    two: str = "b"
    one_two: str = "c"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"hidden": [4, (4,)]}, r"hidden: 4 and \(4,\) are both written '4'"),
        ({"blocks": choice([((1, 2), (3,)), ((1,), (2, 3))])}, "are both written '1-2-3'"),
        ({("hidden", "seed"): [(4, 0), ((4,), 1)]}, "hidden: 4 and"),
        ({("one", "two"): [("a-b", "c"), ("a", "b-c")]}, "one × two: .* both written 'a-b-c'"),
        (
            {"hidden": choice([(4,), (8, 8)]).when(optimizer="sgd"), "optimizer": ["adam", "sgd"]},
            "hidden: 4 and",
        ),
    ],
)
def test_options_that_are_written_alike_are_refused(axes, message):
    """A study of Optuna holds what is written: it trained the first of them alone."""
    with pytest.raises(UserError, match=message):
        Space(LayersTrial(), axes)


def test_dimensions_have_names_of_their_own():
    axes = {("one", "two"): [("a", "b"), ("c", "d")]}
    with pytest.raises(UserError, match=r"one × two .* hyperparameter one_two: .*\('one', 'two'\)"):
        jx.Sweep(LayersTrial(), axes)
    assert jx.Sweep(LayersTrial(), axes, dim_names={("one", "two"): "both"}).dims.keys() == {"both"}
    assert jx.Sweep(LayersTrial(), {"one": ["a"]}, dim_names={"one": "own"}).dims.keys() == {"own"}


def test_tuples_of_tuples_are_given_in_python():
    with pytest.raises(UserError, match=r"blocks='1-2': expected tuple.*in Python: text does not"):
        LayersTrial().replace(blocks="1-2")
    assert LayersTrial().replace(blocks=[[1, 2]]).blocks == ((1, 2),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(1, 1), r"uniform\(1, 1\): expected low below high"),
        (lambda: uniform(2, 1), r"uniform\(2, 1\): expected low below high"),
        (lambda: uniform(0, math.inf), "expected two finite numbers"),
        (lambda: uniform("0", 1), "expected two finite numbers"),
        (lambda: loguniform(0, 1), "expected low above 0, for its logarithm"),
        (lambda: loguniform(-1, 1), "expected low above 0, for its logarithm"),
        (lambda: integers(1, 1), "expected low below high"),
        (lambda: integers(1.0, 3), "low=1.0: expected a whole number"),
        (lambda: integers(1, 8, step=2), "step=2: expected a step that divides 7"),
        (lambda: integers(0, 8, log=True), "with log=True, expected low at least 1 and step=1"),
        (lambda: choice([]), "expected at least one value"),
        (lambda: choice("adam"), "expected a list of values"),
        (lambda: uniform(0, 1).when(), "expected a condition"),
        (lambda: uniform(0, 1).when(a=[]), "expected at least one value"),
        (lambda: uniform(0, 1).when(a=1).when(a=2), "is given twice"),
        (lambda: Space(None, {"width": [1]}), "expected a trial"),
        (lambda: random(MLP, 3), "expected a jaxexp.search.Space"),
        (lambda: random(large_space(), 0), "trials=0: expected a whole number, at least 1"),
        (lambda: random(large_space(), 2.0), "trials=2.0: expected a whole number"),
        (lambda: sobol(large_space(), 2, seed=-1), "seed=-1: expected a whole number, at least 0"),
        (lambda: sobol(large_space(), 2, seeds=0), "seeds=0: expected a whole number, at least 1"),
        (lambda: jx.Sweep(MLP, {"width": [1]}, dim_names={"depth": "d"}), "is no axis"),
        (lambda: jx.Sweep(MLP, {"width": [1]}, dim_names={("width",): "depth"}), "expected a name"),
        (
            lambda: jx.Sweep(MLP, {"width": [1]}, dim_names={"width": "w", ("width",): "loss"}),
            "expected each axis once",
        ),
        (
            lambda: jx.Sweep(MLP, {"width": [1]}, dim_names={("width",): "loss"}),
            "more than one dim",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_numbers_of_numpy_are_numbers():
    drawn = integers(np.int64(8), np.int32(16), step=np.int64(4))
    assert repr(drawn) == repr(integers(8, 16, step=4))
    assert repr(uniform(np.float32(0.5), np.int64(1))) == repr(uniform(0.5, 1))
    assert repr(loguniform(np.float64(0.5), np.float32(1))) == repr(loguniform(0.5, 1))
    arguments = {"trials": np.int64(4), "seed": np.int64(1), "seeds": np.uint8(2)}
    for sampler in SAMPLERS:
        assert sampler(large_space_without_seed(), **arguments).shape == (4, 2)
    with pytest.raises(UserError, match="expected a whole number"):
        integers(np.bool_(True), 3)
    with pytest.raises(UserError, match="expected two finite numbers"):
        uniform(np.bool_(False), 1)


def test_values_that_do_not_fit_together_are_told_before_anything_trains():
    space = Space(MLP, {"batch_norm": [True], "batch_size": [1, 2]})
    with pytest.raises(UserError, match="batch_size=1: batch norm needs at least 2"):
        random(space, 2)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("uniform(0, 0.5)", uniform(0, 0.5)),
        ("loguniform(1e-4,1)", loguniform(1e-4, 1)),
        (" integers( 8 , 128 ) ", integers(8, 128)),
        ("integers(8,128,log)", integers(8, 128, log=True)),
        ("integers(8,128,step=8)", integers(8, 128, step=8)),
        ("choice(relu,tanh)", choice(["relu", "tanh"])),
        ("64-32-16,8,()", choice(["64-32-16", "8", "()"])),
        ("a[0],b(c[1])", choice(["a[0]", "b(c[1])"])),
        ("uniform(0,0.9) when optimizer=sgd", uniform(0, 0.9).when(optimizer="sgd")),
        ("1,2 when optimizer=sgd|adam, depth=3",
         choice(["1", "2"]).when(optimizer=["sgd", "adam"], depth="3")),
    ],
)  # fmt: skip
def test_distributions_as_text(written, expected):
    assert parse(written) == expected
    assert hash(parse(written)) == hash(expected)


def test_text_becomes_the_type_of_the_hyperparameter():
    space = Space(MLP, {"width": parse("8,16"), "batch_norm": parse("on,off"),
                        "momentum": parse("uniform(0,0.9) when batch_norm=on")})  # fmt: skip
    for trial in random(space, 20).trials():
        assert trial.width in (8, 16)
        assert (trial.momentum > 0) == trial.batch_norm


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("loguniform(1e-4)", "expected two numbers, LOW and HIGH"),
        ("loguniform(1e-4,x)", "'x': expected a number"),
        ("loguniform(1e-4,1.2.3)", "'1.2.3': expected a number"),
        ("integers(1,２０)", "'２０': expected a number"),
        ("integers(1,8,step=２)", "'step=２': expected log or step=N"),
        ("normal(0,1)", "normal is unknown; expected uniform"),
        ("uniform(0,1", r"expected uniform\(LOW,HIGH\)"),
        ("uniform(0,1)(2)", "expected uniform"),
        ("choice([max,mean])", r"choice\(\[max,mean\]\)': expected uniform"),
        ("[0.1,0.01]", "expected uniform"),
        ("a,1)(2,b", "expected uniform"),
        ("integers(1,2.5)", "expected whole numbers"),
        ("integers(1,8,lag)", "'lag': expected log or step=N"),
        ("integers(1,8,log,log)", "each once"),
        ("1,,2", "a value is missing"),
        ("", "a value is missing"),
        ("1,2 when optimizer", "expected NAME=VALUE"),
        ("1,2 when a=1,a=2", "expected NAME=VALUE"),
        ("__import__('os')", "expected uniform|unknown"),
        (3, "expected text"),
    ],
)
def test_text_that_is_refused(written, message):
    with pytest.raises(UserError, match=message):
        parse(written)


def test_frozen_distributions_of_scipy_are_values():
    one, other = (distribution(scipy.stats.beta(2, b)) for b in (5, 6))
    assert one == distribution(scipy.stats.beta(2, 5)) != other
    assert len({one, other, distribution(scipy.stats.beta(2, 5))}) == 2
    drawn = values(random(Space(MLP, {"depth": scipy.stats.randint(2, 5)}), 3), "depth")
    assert sorted(drawn) == [2, 3, 4]
    with pytest.raises(UserError, match="trials=4: the space has 3 points at most"):
        random(Space(MLP, {"depth": scipy.stats.randint(2, 5)}), 4)


def test_conditions_on_floats_hold_for_whole_numbers():
    space = Space(MLP, {"momentum": uniform(0.1, 0.9).when(weight_decay=2),
                        "weight_decay": integers(1, 3)})  # fmt: skip
    found = {(t.weight_decay, t.momentum > 0) for t in random(space, 20).trials()}
    assert found == {(1.0, False), (2.0, True), (3.0, False)}


def test_distributions_of_scipy_are_their_tables_too_and_written_alike_in_any_process():
    def one(*values):
        return scipy.stats.rv_discrete(values=(values, [0.5, 0.25, 0.25]))()

    assert distribution(one(1, 2, 3)) == distribution(one(1, 2, 3)) != distribution(one(1, 2, 4))
    counts = scipy.stats.rv_histogram(([1, 2], [0, 1, 2]), density=False)()
    for own in (one(1, 2, 3), counts, scipy.stats.loguniform(1e-4, 1)):
        assert "0x" not in repr(distribution(own))


def test_arrays_are_lists_of_values():
    pairs = np.array([[1, 8], [2, 16]])
    drawn = random(Space(MLP, {("depth", "width"): pairs}), 2).trials()
    assert sorted([trial.depth, trial.width] for trial in drawn) == pairs.tolist()
    widths = Space(MLP, {"depth": np.array([2]), "width": [np.array([8, 16])]})
    assert values(random(widths, 1), "width") == [(8, 16)]
    for several in (np.array([1, 2]), range(1, 3)):
        assert uniform(0, 1).when(depth=several) == uniform(0, 1).when(depth=[1, 2])
    eight_first = {8, 1}
    assert uniform(0, 1).when(depth=eight_first) == uniform(0, 1).when(depth=[1, 8])


@dataclass(frozen=True, kw_only=True)
class OwnTrial(jx.Trial):
    l2: float = jx.traced(0.0, at_least=0, at_most=1)


def test_declared_bounds_of_ones_own_hyperparameters_count():
    with pytest.raises(UserError, match=r"l2=1\.5: expected a number at least 0 and at most 1"):
        Space(OwnTrial(), {"l2": uniform(0, 1.5)})
    assert random(Space(OwnTrial(), {"l2": uniform(0, 1)}), 3).shape == (3,)


@pytest.mark.nightly
def test_results_know_under_which_conditions_a_hyperparameter_does_something():
    axes = {"optimizer": ["adam", "sgd"], "momentum": uniform(0, 0.9).when(optimizer="sgd")}
    base = jx.MLPTrial(epochs=1, depth=1, batch_size=8)
    data = jx.arrays([[0.0], [1.0]] * 8, [0, 1] * 8)
    ds = jx.run(random(Space(base, axes), 2), data=data, progress=False).dataset
    assert json.loads(ds.attrs["conditions"]) == {"momentum": {"optimizer": ["sgd"]}}
