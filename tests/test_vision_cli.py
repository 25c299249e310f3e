"""Section 7 as a user meets it: a run on a folder of small images, its models, and bad input."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from small_images import COUNTS, SIZE, write_images
from torch_resnet import SMALL, make, small_networks, torch, torchvision

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.cli import main as cli
from jaxexp.cli import sections
from jaxexp.execution.records import TrialRecord
from jaxexp.reproduce import answers, backbone, vision
from jaxexp.reproduce.images.decode import Transform, read_image
from jaxexp.reproduce.report import SECTIONS
from jaxexp.reproduce.trials import ImageTrial, ProbeTrial
from jaxexp.results import models

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("xgboost", reason="XGBoost is not installed")

pytestmark = pytest.mark.integration
ROWS = ["7.1", "7.2", "7.3", "7.4", "7.5"]


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """A small ResNet 18; decoded images go into a folder of the tests'."""
    own = tmp_path_factory.mktemp("cache")
    with small_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxexp.reproduce.images.loading.user_cache_path", lambda _: own)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pth(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(make(SMALL, 3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def reproduced(folder, pth, tmp_path_factory) -> Path:
    """`jaxexp reproduce --section 7`, on one device: each of its programs compiles once."""
    out = tmp_path_factory.mktemp("reproduce") / "run"
    line = ["reproduce", "--section", "7", "--out", str(out), "--images", str(folder)]
    line += ["--weights", str(pth), "--image-size", str(SIZE), "--devices", "1", "--seeds", "1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(line)
    assert stopped.value.code == 0
    return out


@pytest.mark.nightly
def test_the_whole_network_in_a_process_of_its_own(folder, tmp_path):
    torch.save(make((2, 2, 2, 2), 3).state_dict(), tmp_path / "random.pth")
    line = [sys.executable, "-m", "jaxexp", "reproduce", "--section", "7", "--out", "run"]
    line += ["--images", str(folder), "--weights", "random.pth", "--image-size", str(SIZE)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path("run/report.html")
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f">{row}<" in re.sub(r"\s+", "", page) for row in ROWS)
    line = [sys.executable, "-m", "jaxexp", "predict", "run", "--export", "best.pth"]
    subprocess.run(line, check=True, timeout=300, cwd=tmp_path)
    network = torchvision.models.resnet18(num_classes=1)
    weights = torch.load(tmp_path / "best.pth", weights_only=True)
    network.load_state_dict(weights, strict=True)


def fails(capsys, *arguments: str) -> tuple[int, str]:
    """The exit status of a command, and all that it has said, on one line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return stopped.value.code, " ".join((told.err + told.out).split())


def test_every_row_is_answered(reproduced):
    page = (reproduced / "report.html").read_text()
    for row in ROWS:
        assert f">{row}<" in re.sub(r"\s+", "", page), row
    for figure in ("0.735", "0.5225", "0.7250", "0.7300", "0.7750"):  # the report's own
        assert figure in page


@pytest.mark.parametrize("name", SECTIONS["7"].sweeps)
def test_all_results_have_one_layout(reproduced, folder, name):
    with xr.open_dataset(reproduced / "results" / f"{name}.nc") as dataset:
        axes = ("learning_rate",) if dataset.attrs["trials"] == 5 else ()
        assert dataset["loss"].dims == dataset["accuracy"].dims == (*axes, "epoch", "split")
        assert dataset["probability"].dims == (*axes, "image")
        assert dataset.sizes["image"] == 2 * COUNTS["test"]
        labels = dataset["test_label"].values
        assert [Path(file).parent.name for file in dataset["test_file"].values] == [
            ("dark", "light")[label] for label in labels
        ]
        for file in dataset["test_file"].values:
            assert (folder / str(file)).is_file()
        right = (dataset["probability"] > 0.5) == dataset["test_label"]
        accuracy = dataset["accuracy"].sel(epoch=1, split="test").drop_vars(["epoch", "split"])
        xr.testing.assert_allclose(right.mean("image"), accuracy.astype(float), atol=1e-6)
        p_N = np.clip(dataset["probability"].astype(float), 1e-7, 1 - 1e-7)
        entropy = -np.log(xr.where(dataset["test_label"] == 1, p_N, 1 - p_N)).mean("image")
        finite = np.isfinite(entropy) & (dataset["loss"].sel(epoch=1, split="test") < 2)
        wanted = dataset["loss"].sel(epoch=1, split="test").drop_vars(["epoch", "split"])
        xr.testing.assert_allclose(entropy.where(finite), wanted.where(finite).astype(float), 1e-3)
        assert json.loads(dataset.attrs["classes"]) == ["dark", "light"]
        assert dataset.attrs["images"] == str(folder)
        assert dataset.attrs["image_size"] == (64 if name == "boosted_trees" else SIZE)
        assert {"transform", "device", "started", "wall_seconds", "plan"} <= dataset.attrs.keys()


def test_libraries_are_named_by_version(reproduced):
    for name, library in (("boosted_trees", "xgboost"), ("probing_sklearn", "sklearn")):
        with xr.open_dataset(reproduced / "results" / f"{name}.nc") as dataset:
            assert dataset.attrs[library]
            assert dataset.attrs["programs"] == 0


def test_every_model_that_is_trained_is_kept(reproduced):
    for sweep, base in (
        ("scratch", ImageTrial(image_size=SIZE)),
        ("fine_tuning", ImageTrial(image_size=SIZE, pretrained=True)),
        ("probing", ProbeTrial()),
    ):
        own = {dataclasses.replace(base, learning_rate=10.0**-k).id for k in range(1, 6)}
        assert {path.stem for path in (reproduced / "models" / sweep).iterdir()} == own
    kept = sorted(path.name for path in (reproduced / "models").iterdir())
    assert kept == ["fine_tuning", "probing", "scratch"]
    assert not (reproduced / "checkpoints").exists()


@pytest.mark.parametrize("sweep", ["scratch", "fine_tuning"])
def test_predict_says_what_the_run_has_said(reproduced, folder, sweep, capsys, tmp_path):
    """The same probabilities; and the exported weights give them in torchvision."""
    with xr.open_dataset(reproduced / "results" / f"{sweep}.nc") as dataset:
        accuracy = dataset["accuracy"].sel(epoch=1, split="validation")
        best, _ = models.best(reproduced / "models", [(sweep, dataset)])
        found = best.about["metrics"]["accuracy"]["validation"]
        assert found == pytest.approx(float(accuracy.max()))
        trial = dataset.sel(learning_rate=float(best.about["trial"]["learning_rate"]))
        files = [str(folder / str(file)) for file in trial["test_file"].values[::5]]
        probability_N = trial["probability"].values[::5].astype(float)
        geometry = json.loads(dataset.attrs["transform"])
    exported = tmp_path / "best.pth"
    run = str(reproduced)
    code, told = fails(capsys, "predict", run, *files, "--sweep", sweep, "--export", str(exported))
    assert code == 0
    for file, p in zip(files, probability_N, strict=True):
        assert re.search(rf"{re.escape(file)} {('dark', 'light')[int(p > 0.5)]} ", told)
        found = float(re.search(rf"{re.escape(file)} \w+ ([0-9.]+)", told)[1])
        assert found == pytest.approx(max(p, 1 - p), abs=1e-3)
    assert f"model: {sweep}" in told
    network = make(SMALL, 1)
    network.load_state_dict(torch.load(exported, weights_only=True), strict=True)
    resize = geometry["resize"]
    transform = Transform(tuple(resize) if isinstance(resize, list) else resize, geometry["crop"])
    x = torch.tensor(np.stack([transform(read_image(Path(file))) for file in files]))
    scale = [torch.tensor(geometry[name]) for name in ("mean", "std")]
    with torch.no_grad():
        logit = network(((x / 255 - scale[0]) / scale[1]).permute(0, 3, 1, 2))[:, 0]
    np.testing.assert_allclose(torch.sigmoid(logit), probability_N, atol=1e-3)


def test_predict_takes_relative_paths_in_any_folder(reproduced, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder / "test")
    run = os.path.relpath(reproduced)
    assert not os.path.isabs(run)
    code, told = fails(capsys, "predict", run, "dark/0.png", "light/1.png")
    assert code == 0
    assert re.search(r"dark/0\.png (dark|light) 0\.\d+ light/1\.png (dark|light) 0\.\d+", told)


def test_the_page_can_be_drawn_again(reproduced, capsys):
    assert fails(capsys, "report", str(reproduced))[0] == 0


def offline(*_, **__):
    raise urllib.error.URLError("no network")


def test_without_imagenet_weights_the_other_rows_are_there(folder, capsys, tmp_path, monkeypatch):
    """Only what needs no training: the sweeps that do are trained above."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    few = ("boosted_trees", "probing", "probing_sklearn", "fine_tuning")
    section = dataclasses.replace(SECTIONS["7"], sweeps=few)
    monkeypatch.setitem(cli.SECTIONS, "7", section)
    backbone.load.cache_clear()
    out = tmp_path / "run"
    code, told = fails(
        capsys, "reproduce", "--section", "7", "--images", str(folder), "--out", str(out),
        "--image-size", "32",
    )  # fmt: skip
    assert code == 3
    page = (out / "report.html").read_text()
    for name in few[1:]:
        assert f"not run: {name}" in told
        assert name.replace("_", " ") in page
    assert "could not be fetched" in page
    assert [path.stem for path in (out / "results").iterdir()] == ["boosted_trees"]
    assert json.loads((out / "run.json").read_text())["missing"].keys() == set(few[1:])


def test_a_sweep_alone_without_its_weights_ends_with_3(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    backbone.load.cache_clear()
    monkeypatch.chdir(tmp_path)
    code, told = fails(capsys, "run", "probing", "--images", str(folder), "--image-size", "32")
    assert code == 3
    assert "put resnet18-f37072fd.pth into" in told
    assert not list(tmp_path.glob("runs/*/results/*"))


def test_without_the_libraries_section_6_is_run_alone(capsys, monkeypatch):
    monkeypatch.setattr(vision, "missing_libraries", lambda: ["XGBoost"])
    assert sections.asked_sections(None) == ("6",)
    assert "section 7 needs pip install 'jaxexp[vision]'" in capsys.readouterr().err
    assert sections.asked_sections("6") == ("6",)
    with pytest.raises(UserError, match="--section 7: needs XGBoost: pip install 'jaxexp"):
        sections.asked_sections("7")
    monkeypatch.undo()
    assert sections.asked_sections(None) == sections.asked_sections("all") == ("6", "7")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "--section", "8"], "--section '8': expected one of 6, 7, all"),
        (["run", "scratch", "--images", "nowhere"], "nowhere: no such folder"),
        (["run", "scratch", "--set", "image_size=32"], "expected it as --image-size"),
        (["run", "scratch", "--set", "pretrained=on"], "no weights to start from"),
        (["run", "probing", "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["reproduce", "--section", "7", "--weights", "nowhere.pth"], "nowhere.pth: no such"),
        (["run", "boosted_trees", "--set", "learning_rate=1"], "learning_rate=1.0: this model"),
        (["predict", "nowhere", "a.jpg"], "nowhere: not a run directory"),
        (["predict", "nowhere"], "expected images or CSV files, or --export"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_any_work(
    arguments, message, folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "--images" not in arguments and arguments[0] != "predict":
        arguments = [*arguments, "--images", str(folder), "--image-size", "32"]
    code, told = fails(capsys, *arguments)
    assert code == 2
    assert message in told
    assert not list(tmp_path.iterdir())


def test_three_classes_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "images", ("a", "b", "c"))
    code, told = fails(capsys, "run", "scratch", "--images", str(folder), "--image-size", "32")
    assert code == 2
    assert "3 classes (a, b, c), expected two" in told


def test_predict_tells_what_it_lacks(reproduced, capsys, tmp_path):
    run = str(reproduced)
    (tmp_path / "text.jpg").write_text("no image")
    code, told = fails(capsys, "predict", run, str(tmp_path / "text.jpg"))
    assert (code, "text.jpg: is not an image" in told) == (2, True)
    code, told = fails(capsys, "predict", run, "nowhere.jpg")
    assert (code, "nowhere.jpg: no such file" in told) == (2, True)
    code, told = fails(capsys, "predict", run, "a.jpg", "--sweep", "probing")
    assert code == 2
    assert (
        "a.jpg: expected models of a sweep whose file defines `predict(model, files)`, for files "
        "other than tables, whose names end in .csv; this run has those of scratch, fine_tuning"
    ) in told
    code, told = fails(capsys, "predict", run, "a.jpg", "--sweep", "epochs")
    assert code == 2
    assert "--sweep 'epochs': expected one of boosted_trees, scratch, probing, " in told


# Saved models


def keep(folder: Path, sweep: str, **trials: tuple[float, float, float]) -> tuple[str, xr.Dataset]:
    """Save a model for each (learning rate, accuracy, loss); returns the results of the sweep."""
    made = []
    for rate, accuracy, loss in trials.values():
        metrics = {
            split: {"loss": np.array([loss]), "accuracy": np.array([accuracy])}
            for split in ("train", "validation", "test")
        }
        record = TrialRecord(
            trial=ImageTrial(learning_rate=rate),
            metrics=metrics,
            running=metrics["train"],
            step_loss=np.array([loss]),
            gradient_norms=None,
            predictions={},
            variables=jx.Variables(
                {"fc": {"kernel": np.full((1, 3), rate, np.float32)}},
                {"scale": np.arange(3, dtype=jnp.bfloat16)},
            ),
            seconds=0.0,
            compile_seconds=0.0,
        )
        attrs = {"share": np.float64(0.5), "classes": ["a", "b"]}
        models.save(folder, sweep, record, attrs, jx.MLPClassification(std=(1.0, 0.5)))
        made.append(record)
    rates, accuracies, losses = map(np.array, zip(*trials.values(), strict=True))
    dims = ("learning_rate", "epoch", "split")
    full = {"loss": losses, "accuracy": accuracies}
    return sweep, xr.Dataset(
        {name: (dims, np.repeat(v, 3).reshape(-1, 1, 3)) for name, v in full.items()}
        | {
            "epochs_trained": ("learning_rate", np.ones(len(rates), int)),
            "diverged_epoch": ("learning_rate", [r.diverged_epoch for r in made]),
            "trial_id": ("learning_rate", [r.trial.id for r in made]),
        },
        coords={
            "learning_rate": rates,
            "epoch": [1],
            "split": ["train", "validation", "test"],
        },
    )


def test_the_best_model_is_chosen_and_comes_back(tmp_path):
    one = keep(tmp_path, "one", a=(0.1, 0.6, 0.5), b=(0.2, 0.9, 0.5))
    two = keep(tmp_path, "two", a=(0.3, 0.7, 0.5), b=(0.4, 1.0, np.nan))  # diverged
    best, why = models.best(tmp_path, [one, two])
    assert best.about["trial"]["learning_rate"] == "0.2"
    assert best.about["attrs"] == {"share": 0.5, "classes": ["a", "b"]}
    assert why == "validation accuracy 0.9000"
    params, state = best.variables()
    np.testing.assert_array_equal(params["fc"]["kernel"], np.full((1, 3), 0.2, np.float32))
    np.testing.assert_array_equal(state["scale"], np.arange(3, dtype=jnp.bfloat16), strict=True)
    bound = best.bound(jx.MLPClassification(classes=2, std=(3.0, 4.0)))
    assert (bound.classes, bound.std) == (None, (1.0, 0.5))
    assert models.best(tmp_path, [two])[0].about["trial"]["learning_rate"] == "0.3"
    shutil.copy(best.path, tmp_path / "two" / f"{two[1]['trial_id'].values[0]}.npz")
    with pytest.raises(UserError, match=r"\.npz: the model of sweep one, not of two"):
        models.best(tmp_path, [two])


@pytest.mark.parametrize("losses", [(0.7, 0.6, 0.6), (0.6, 0.6, 0.7), (np.nan, 0.7, 0.7)])
def test_of_models_that_tie_the_one_is_chosen_that_the_page_names(tmp_path, losses):
    trials = {
        name: (rate, 0.5, loss)
        for name, rate, loss in zip("abc", (0.1, 0.2, 0.3), losses, strict=True)
    }
    name, dataset = keep(tmp_path, "one", **trials)
    best, _ = models.best(tmp_path, [(name, dataset)])
    rate = best.about["trial"]["learning_rate"]
    assert jx.select.best(dataset, "accuracy")[0] == f"learning rate {rate}"
    dataset["seconds"] = dataset["epochs_trained"] * 1.0
    assert f"learning rate {rate}:" in answers.answer(dataset.assign_attrs(sweep="one"))


def test_a_model_is_replaced_by_the_same_trial_trained_again(tmp_path):
    keep(tmp_path, "one", a=(0.1, 0.6, 0.5))
    again = keep(tmp_path, "one", a=(0.1, 0.8, 0.5))
    about = models.best(tmp_path, [again])[0].about
    assert about["metrics"]["accuracy"]["validation"] == 0.8


def test_no_models_and_diverged_models_are_told(tmp_path):
    lost = keep(tmp_path / "models", "one", a=(0.1, 1.0, np.inf))
    with pytest.raises(UserError, match="no models; the run has kept none, or they were deleted"):
        models.best(tmp_path / "others", [lost])
    with pytest.raises(UserError, match="every model in it diverged"):
        models.best(tmp_path / "models", [lost])


def test_a_damaged_model_is_told(tmp_path):
    one = keep(tmp_path, "one", a=(0.1, 0.6, 0.5))
    [file] = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:99] + b"?" + whole[100:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="not a model that jaxexp has saved, or damaged"):
            models.best(tmp_path, [one])
