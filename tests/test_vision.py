"""Section 7 on images small enough to train in a test, with a network of random weights.

The networks learn nothing here: what is tested is that each trial is what it says it is.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_images import SIZE, write_images
from torch_resnet import FEATURES, SMALL, compiled, make, small_networks, torch

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.cli.inputs import Inputs
from jaxexp.cli.library import load_source
from jaxexp.nn.residual import BLOCKS
from jaxexp.reproduce import backbone, problems
from jaxexp.reproduce.images import load, middle
from jaxexp.reproduce.report import SECTIONS
from jaxexp.reproduce.tasks import LinearTask, binary_cross_entropy, in_batches
from jaxexp.reproduce.trials import EstimatorTrial, ImageTrial, ProbeTrial
from jaxexp.training import evaluation, step
from jaxexp.training.shuffle import permutation

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("xgboost", reason="XGBoost is not installed")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Decoded images go into a folder of the tests'."""
    own = tmp_path_factory.mktemp("cache")
    with small_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxexp.reproduce.images.loading.user_cache_path", lambda _: own)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def network():
    """torchvision's, of random weights and batch statistics, with a head of three classes."""
    return make(SMALL, 3).float()


@pytest.fixture(scope="module")
def pth(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inputs(folder, pth) -> Inputs:
    return Inputs(images=folder, weights=str(pth), image_size=SIZE)


def torch_images(problem, split: str):
    """The images as torchvision's network wants them, normalised by the problem's own transform."""
    x_NxHxWx3 = problem.data.splits[split].x
    x = torch.from_numpy(np.array(x_NxHxWx3)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.MEAN, backbone.STD))
    return (x - mean) / std


def torch_features(network, x):
    backbone_alone = torch.nn.Sequential(*list(network.eval().children())[:-1])
    with torch.no_grad():
        return backbone_alone(x).flatten(1).numpy()


# The loss


def test_the_loss_is_pytorchs_and_survives_any_logit():
    logits = np.array([-200, -30, -1e-3, 0, 0.5, 40, 300], np.float32)
    for label in (0, 1):
        labels = np.full(len(logits), label, np.int32)
        loss, accuracy = binary_cross_entropy(jnp.array(logits), jnp.array(labels))
        theirs = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(logits), torch.full((len(logits),), float(label)), reduction="none"
        )
        np.testing.assert_allclose(loss, theirs, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(accuracy, (logits > 0) == label)


def test_a_logit_that_is_no_number_is_wrong():
    loss, accuracy = binary_cross_entropy(jnp.full(2, jnp.nan), jnp.array([0, 1]))
    assert accuracy.tolist() == [0, 0]
    assert not np.isfinite(loss).any()


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_batches_cover_every_example_once(n):
    x_N = jnp.arange(n) + 1.0
    np.testing.assert_array_equal(in_batches(lambda x_B: x_B * 2, x_N, 4), 2 * x_N)


# Linear probing


def test_features_are_those_of_torchvision_and_leave_the_network_alone(inputs, network):
    weights = backbone.load(inputs.weights)
    before = jax.tree.map(np.array, weights.tree)
    problem = problems.probing(inputs)
    images = problems.fine_tuning(inputs)
    for split in ("train", "validation", "test"):
        found_NxF, y_N, _ = problem.data.splits[split]
        wanted_NxF = torch_features(network, torch_images(images, split))
        # Of the size of 1; as near as the tests of the network are.
        np.testing.assert_allclose(found_NxF, wanted_NxF, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(y_N, images.data.splits[split].y)
    jax.tree.map(np.testing.assert_array_equal, before, weights.tree)


@pytest.mark.nightly
def test_an_image_has_its_features_whatever_stands_beside_it(inputs):
    x_NxHxWx3 = problems.fine_tuning(inputs).data.train.x
    weights = backbone.load(inputs.weights)
    mixed_N = np.random.default_rng(1).permutation(len(x_NxHxWx3))
    made, _ = backbone.features(weights, {"a": x_NxHxWx3, "b": x_NxHxWx3[mixed_N]}, "matmul")
    np.testing.assert_array_equal(made["a"][mixed_N], made["b"])


def test_features_are_made_once(inputs, monkeypatch):
    problems.probing(inputs)
    monkeypatch.setattr(backbone, "features", None)  # would fail if it were called
    again = problems.probing(inputs)
    assert again.data.train.x.shape == (40, FEATURES)


def test_probing_is_what_pytorch_trains_on_the_same_features(inputs):
    problem = problems.probing(inputs)
    trial = ProbeTrial(learning_rate=1e-2, epochs=3, seed=5)
    sweep = jx.Sweep(base=trial, record=("predictions",))
    ours = jx.run(sweep, *problem, progress=False)
    params, _ = LinearTask().init(trial, jax.random.key(5), problem.data.arrays())
    x_NxF, y_N = map(torch.tensor, problem.data.train[:2])
    unit = torch.nn.Linear(FEATURES, 1)
    with torch.no_grad():
        unit.weight.copy_(torch.tensor(np.array(params["fc"]["kernel"])))
        unit.bias.copy_(torch.tensor(np.array(params["fc"]["bias"])))
    assert float(unit.weight.detach().abs().max()) <= FEATURES**-0.5
    adam = torch.optim.Adam(unit.parameters(), lr=1e-2)
    losses = []
    for epoch in range(3):
        order = np.array(permutation(len(y_N), 5, epoch)(jnp.arange(len(y_N))))
        for batch in np.split(order, [32]):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                unit(x_NxF[batch])[:, 0], y_N[batch].float()
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    np.testing.assert_allclose(ours["step_loss"], losses, rtol=1e-4)
    wanted = torch.sigmoid(unit(torch.tensor(problem.data.extra["shown"])))[:, 0].detach()
    np.testing.assert_allclose(ours["probability"], wanted, rtol=1e-3)


# Training all weights


def test_fine_tuning_starts_from_the_weights_with_a_head_of_its_seed(inputs, network):
    problem = problems.fine_tuning(inputs)
    x = torch_images(problem, "validation")
    features_NxF = torch_features(network, x)

    @compiled
    def start(seed, data):
        trial = ImageTrial(image_size=SIZE, pretrained=True, seed=seed)
        variables = problem.task.init(trial, jax.random.key(seed), data)
        x_N = data["validation"].x
        logits_N, _ = problem.task.logits(variables, x_N, jnp.ones(len(x_N)), train=False)
        return variables.params, logits_N

    heads = []
    for seed in (0, 1):
        params, logits_N = start(seed, problem.data.arrays())
        wanted_N = features_NxF @ params["fc"]["kernel"][0] + params["fc"]["bias"][0]
        np.testing.assert_allclose(logits_N, wanted_N, rtol=1e-4, atol=1e-4)
        heads.append(params["fc"]["kernel"])
    assert (heads[0] != heads[1]).all()


@pytest.mark.nightly
def test_a_trial_alone_equals_the_same_in_a_batch(inputs):
    """Against the pure functions of one trial, without a batch, devices or a driver."""
    task, data = problems.fine_tuning(inputs)
    sweep = jx.Sweep(
        base=ImageTrial(image_size=SIZE, pretrained=True),
        axes={"learning_rate": [1e-3, 1e-5]},
        record=("predictions",),
    )
    tuned = jx.run(sweep, task, data, progress=False).dataset  # two rates in one program
    trial = ImageTrial(image_size=SIZE, pretrained=True, learning_rate=1e-5)

    @compiled
    def alone(arrays):
        state, record = step.init(task, trial, 2, arrays)
        state, record = step.train_steps(task, trial, 2, state, record, 0, 0, 2, arrays)
        made = task.predictions(trial, state.variables, arrays)
        return record.step_loss_S, made["probability"]

    losses, probability = alone(evaluation.with_evaluation(data))
    own = tuned.sel(learning_rate=1e-5)
    # Other programs round otherwise; two steps at 1e-5 amplify little.
    np.testing.assert_allclose(own["step_loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(own["probability"], probability, rtol=1e-3)
    assert abs(own["step_loss"] - tuned["step_loss"].sel(learning_rate=1e-3)).max() > 1e-3


def test_images_of_another_size_are_refused(inputs):
    with pytest.raises(UserError, match="image_size=64: the images have 16 pixels a side"):
        jx.plan(jx.Sweep(ImageTrial(image_size=64)), *problems.scratch(inputs))


def test_pretrained_trials_need_weights(inputs):
    with pytest.raises(UserError, match="no weights to start from"):
        jx.plan(jx.Sweep(ImageTrial(image_size=SIZE, pretrained=True)), *problems.scratch(inputs))


# What is planned


@pytest.mark.nightly
def test_large_trials_run_in_programs_of_one_chunk(inputs, monkeypatch):
    """Memory follows the devices, not the grid, and no device trains copies that are dropped."""
    monkeypatch.setitem(BLOCKS, 18, (2, 2, 2, 2))
    task, data = problems.scratch(inputs)
    train = jx.Examples(*(np.resize(a, (20_000, *a.shape[1:])) for a in data.train[:2]))
    data = dataclasses.replace(data, train=train)

    def plan(seeds: int, **options):
        sweep = jx.Sweep(ImageTrial(image_size=SIZE), {"seed": range(seeds)})
        return sweep, jx.plan(sweep, task, data, memory=1e12, **options).plan

    sweep, made = plan(15)
    assert sorted(len(program.trials) for program in made.programs) == [3, 4, 4, 4]
    assert {t for program in made.programs for t in program.trials} == set(sweep.trials())
    assert all(program.filled() == len(program.trials) for program in made.programs)
    assert len(made.streams) == 1
    assert made.memory < 2 * plan(4)[1].memory
    assert len(plan(15, programs="one")[1].programs) == 1


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (EstimatorTrial(learning_rate=0.1), "learning_rate=0.1: this model is fitted with its"),
        (EstimatorTrial(epochs=2), "epochs=2: this model"),
        (ImageTrial(batch_size=1), "batch norm needs at least 2"),
        (ImageTrial(image_size=8), "image_size=8: expected a number at least 16"),
    ],
)
def test_trials_that_make_no_sense_are_refused(trial, message):
    with pytest.raises(UserError, match=message):
        trial.check()


def test_sweeps_of_one_run_have_no_trial_in_common():
    """Models and checkpoints are kept by the names of trials."""
    sweeps = [load_source(name).sweep for name in SECTIONS["7"].sweeps[1:]]
    ids = [trial.id for sweep in sweeps for trial in sweep.trials()]
    assert len(set(ids)) == len(ids) == 16


def test_a_quick_run_takes_some_images_of_either_class(inputs, monkeypatch):
    monkeypatch.setattr("jaxexp.reproduce.images.QUICK_IMAGES", 10)
    quick = Inputs(images=inputs.images, quick=True)
    found = load(quick, middle())
    assert np.bincount(found.train.y_N).tolist() == [5, 5]
    assert len(found.train.files) == len(found.train.x_NxHxWx3) == 10
    assert found.fingerprint != load(inputs, middle()).fingerprint
    assert "quick run" in problems.pixels(quick).data.notes[0]


def test_names_of_broken_files_that_are_no_text_are_in_notes_all_the_same():
    skipped = SimpleNamespace(skipped=("a\udce9.jpg",))
    assert problems._notes(Inputs(), skipped) == ["1 broken images are left out: a?.jpg"]
