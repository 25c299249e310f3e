"""No hyperparameter and no metric takes a name that results, means and tables use themselves."""

import re
from dataclasses import make_dataclass

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxexp as jx
from jaxexp.cli import exporting
from jaxexp.results.external import external_results
from jaxexp.spec.names import check_names

RECORDED = {"shown": ("image",), "image": ("image",)}


class Predicting(jx.MLPClassification):
    prediction_dims = {"shown": ("image",)}  # noqa: RUF012

    def predictions(self, trial, variables, data):
        return {"shown": jnp.ones(2)}


DATA = jx.Data(
    jx.Examples(np.arange(12.0, dtype=np.float32)[:, None], np.arange(12) % 2),
    jx.Examples(np.arange(4.0, dtype=np.float32)[:, None], np.arange(4) % 2),
    coords={"image": (("image",), np.arange(2))},
)
TRIAL = jx.MLPTrial(epochs=2, depth=1, width=2, batch_size=12)
SPACE = {"learning_rate": jx.search.loguniform(1e-3, 1e-1)}
FIELDS = {*TRIAL.fields()}


def trial(name: str) -> jx.MLPTrial:
    return make_dataclass("Own", [(name, int, 1)], bases=(jx.MLPTrial,), frozen=True, kw_only=True)(
        epochs=2
    )


def check(base: jx.Trial, *metrics: str) -> None:
    sweep = jx.Sweep(base, {"seed": [0, 1]}, record=("predictions",))
    check_names([sweep], ["accuracy", *metrics], [*RECORDED], DATA.counts)
    jx.search.PBT(jx.search.Space(base, SPACE), population=4)


def variables(*results: xr.Dataset) -> set[str]:
    return {str(name) for ds in results for name in ds.variables}


def columns(*results: xr.Dataset) -> set[str]:
    """Of all tables with a column for each hyperparameter, in words without units."""
    tables = [jx.select.rank(ds) for ds in results] + [jx.select.table(ds) for ds in results]
    tables += [jx.compare.runs({"own": results[0]}), jx.compare.baselines({"own": results[0]})]
    tables += [exporting.rows({"own": results[0]}, final=final) for final in (True, False)]
    names = {name for own in tables for name in (own.index.name, *own.columns) if name}
    return {re.sub(r" \(.*\)", "", name).replace(" ", "_") for name in names}


@pytest.fixture(scope="module")
def grid() -> xr.Dataset:
    """Of seeds one of which diverged, and another has no accuracy."""
    axes = {"learning_rate": [1e-3, 1e-2], "seed": [0, 1, 2]}
    sweep = jx.Sweep(TRIAL, axes, record=("predictions", "gradient_norms"))
    stopping = jx.EarlyStopping("loss", patience=1)
    ds = jx.run(sweep, Predicting(), DATA, stopping=stopping, progress=False).dataset
    ds["diverged_epoch"][0, 0] = 1
    ds["accuracy"][0, 1] = np.nan
    return ds


@pytest.fixture(scope="module")
def population() -> xr.Dataset:
    search = jx.search.PBT(jx.search.Space(TRIAL, SPACE), population=4)
    return jx.run(search, Predicting(), DATA, progress=False).dataset


@pytest.mark.nightly
def test_names_that_results_use_are_refused(grid, population):
    means = jx.seeds.average(grid)
    assert {"best_epoch", "image", "diverged_seeds", "final_loss_std"} <= variables(grid, means)
    assert {"parent", "own_learning_rate"} <= variables(population)
    stored = variables(grid, means, population)
    rows = {*exporting.rows({"own": population}, final=False)}
    shown = {name for name in columns(grid, means) | columns(population) if name.isidentifier()}
    assert {"rank", "place", "spread", "validation_loss", "initial_learning_rate"} <= shown
    check(trial("other"), "another")
    for name in sorted((stored | shown) - FIELDS - {"accuracy"}):
        with pytest.raises(jx.UserError, match=rf"\b{name}: this name stands for something else"):
            check(trial(name))
    for name in sorted((stored | rows) - {"accuracy"}):
        with pytest.raises(jx.UserError, match=rf"'{name}'\]: this name stands for something"):
            check(TRIAL, name)


def test_a_metric_has_another_name_than_a_dimension():
    sweep = jx.Sweep(TRIAL, {("learning_rate", "seed"): [(0.1, 0), (0.2, 1)]})
    with pytest.raises(jx.UserError, match=r"'learning_rate_seed'\]: .* dimensions of results"):
        check_names([sweep], ["learning_rate_seed"], [], DATA.counts)


def test_a_name_that_a_population_alone_uses_is_for_others_to_take():
    base = trial("initial_learning_rate")
    check_names([jx.Sweep(base)], ["rank"], [], DATA.counts)
    with pytest.raises(jx.UserError, match=r"Own.initial_\w+: .* changes to learning_rate"):
        jx.search.PBT(jx.search.Space(base, SPACE), population=4)


def test_results_of_other_libraries_are_held_to_the_same_names():
    sweep, problem = jx.Sweep(trial("train_accuracy")), (jx.MLPClassification(), DATA)
    with pytest.raises(jx.UserError, match=r"Own.train_accuracy: .* tables of trials"):
        external_results(sweep, problem, model="tree", metrics={}, seconds=0.0)
