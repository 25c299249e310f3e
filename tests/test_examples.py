"""The examples of the documentation run, and give what a plain loop over optax gives."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import TaskFunctions, train_alone

import jaxexp as jx

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parent.parent / "docs" / "examples"
EXAMPLES = ("digits_cnn", "regression", "schedules", "plain_jax", "ensemble")


def adam(trial: jx.Trial, steps: int) -> optax.GradientTransformation:
    return optax.adam(trial.learning_rate)


def adam_or_sgd(trial: jx.Trial, steps: int) -> optax.GradientTransformation:
    return {"adam": optax.adam, "sgd": optax.sgd}[trial.optimizer](trial.learning_rate)


def cross_entropy(trial: jx.Trial, logits: Any, label: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def two_layers(params: Any, x: Any) -> jax.Array:
    first, last = params["layers_0"], params["layers_2"]
    return jnp.tanh(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]


def functions(example: ModuleType) -> TaskFunctions:
    """What the example trains, in functions that jaxexp has no part in."""
    match example.__name__:
        case "digits_cnn":
            return TaskFunctions(
                lambda trial, params, x: example.ConvNet(trial.channels).apply(
                    {"params": params}, x
                ),
                cross_entropy,
                adam,
            )
        case "regression":
            return TaskFunctions(
                lambda trial, params, x: two_layers(params, x)[:, 0],
                lambda trial, prediction, y: optax.huber_loss(prediction, y, delta=trial.delta),
                adam,
            )
        case "schedules":
            return TaskFunctions(
                lambda trial, params, x: two_layers(params, x),
                cross_entropy,
                example.optimizer,
            )
        case "plain_jax":
            return TaskFunctions(
                example.apply,
                lambda trial, logit, label: optax.sigmoid_binary_cross_entropy(logit, label),
                adam_or_sgd,
            )
        case "ensemble":
            task = example.results.task
            return TaskFunctions(
                lambda trial, params, x: task.predict(trial, jx.Variables(params, {}), x),
                cross_entropy,
                adam,
            )
    raise AssertionError(example)


@pytest.fixture(params=EXAMPLES)
def example(request, tmp_path, monkeypatch):
    """The module, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(request.param, FOLDER / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)
    spec.loader.exec_module(module)
    return module


def test_an_example_gives_what_a_plain_loop_gives(example):
    results, data = example.results, example.data
    if example.__name__ == "regression":
        assert "r2" in Path("huber.html").read_text().lower()
    own, trials = functions(example), results.sweep.trials()
    axes = [name for axis in results.sweep.axes for name in axis]
    for trial in trials[-1:]:
        start = results.task.init(trial, jax.random.key(trial.seed), data.arrays()).params
        params, losses = train_alone(own, trial, data, start)
        found = results.trial(**{name: getattr(trial, name) for name in axes})
        for split, loss in losses.items():
            at_end = found.curves["loss"].sel(split=split, epoch=trial.epochs)
            assert float(at_end) == pytest.approx(loss, abs=1e-5), (trial, split)
        assert jax.tree.structure(found.params) == jax.tree.structure(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, params)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name):
    """Lines between the imports and the results, blank ones and all."""
    body = ast.parse((FOLDER / f"{name}.py").read_text()).body
    imports = max(i for i, node in enumerate(body) if isinstance(node, ast.Import | ast.ImportFrom))
    results = next(
        node
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "results"
    )
    assert ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert results.lineno - body[imports].end_lineno - 1 <= 25


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)
