"""What --log writes, read back by the libraries that it is written for."""

import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import population
from small_results import SWEEP, call, loss, results, write_sweep

from jaxexp.base.errors import UserError
from jaxexp.cli.command import Command
from jaxexp.cli.rundir import RunDirectory
from jaxexp.results import logs

pytestmark = pytest.mark.integration

BEST = "learning rate 0.01, batch norm on"
CURVE = [loss(SWEEP.trials()[2], epoch, "validation") for epoch in (1, 2, 3)]


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.filterwarnings("ignore")  # of the library
def test_tensorboard_reads_one_run_per_trial(tmp_path):
    needs("tensorboardX", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    logs.write("tensorboard", results(), tmp_path)
    folders = {path.name: path for path in (tmp_path / "rates").iterdir()}
    assert len(folders) == 6
    [best] = [p for n, p in folders.items() if n.startswith("learning_rate_0.01,batch_norm_on-")]
    read = EventAccumulator(str(best)).Reload()
    curve = [(event.step, event.value) for event in read.Scalars("validation/loss")]
    assert curve == [(e, pytest.approx(v)) for e, v in zip((1, 2, 3), CURVE, strict=True)]
    assert {"train/loss", "train/accuracy", "final/validation/loss"} <= {*read.Tags()["scalars"]}
    content = read.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["learning_rate"].number_value == 0.01
    assert given["batch_norm"].bool_value is True
    assert given["optimizer"].string_value == "adam"

    [diverged] = [p for n, p in folders.items() if n.startswith("learning_rate_1,batch_norm_on-")]
    read = EventAccumulator(str(diverged)).Reload()
    assert [event.step for event in read.Scalars("validation/loss")] == [1]
    assert "final/validation/loss" not in read.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # of the library
def test_sweeps_of_like_names_have_logs_of_their_own(tmp_path):
    needs("tensorboardX")
    sweep = replace(SWEEP, axes={"learning_rate": [1e-2]})
    for name in ("small nets", "small_nets", "small/nets"):
        logs.write("tensorboard", results(replace(sweep, name=name)), tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 3
    assert (tmp_path / "small_nets").is_dir()


@pytest.mark.filterwarnings("ignore")  # of the library
def test_mlflow_reads_one_run_per_trial_and_no_more_when_written_again(tmp_path):
    needs("mlflow", "sqlalchemy")
    from mlflow import MlflowClient

    logs.write("mlflow", results(), tmp_path)
    (tmp_path / ".written-rates").unlink()  # as if the run had been killed before it was done
    logs.write("mlflow", results(), tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rates")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(found) == len(client.search_runs([experiment.experiment_id])) == 6
    best = found[BEST]
    assert best.data.params["learning_rate"] == "0.01"
    assert best.data.params["width"] == "16"
    assert best.data.metrics["validation/loss"] == pytest.approx(CURVE[-1])
    history = client.get_metric_history(best.info.run_id, "validation/loss")
    curve = sorted((own.step, own.value) for own in history)
    assert curve == [(e, pytest.approx(v)) for e, v in zip((1, 2, 3), CURVE, strict=True)]
    assert best.info.status == "FINISHED"
    diverged = found["learning rate 1, batch norm off"]
    assert diverged.info.status == "FAILED"
    assert diverged.data.tags["status"].startswith("diverged in epoch 2")


def records(file: Path) -> list:
    """The records of an offline run: W&B's messages, in the blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, block, parts, made = file.read_bytes(), 7, 32768, b"", []
    assert content[:4] == b":W&B"
    while at < len(content):
        if block - at % block < 7:  # too little for a header: the rest of a block is empty
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            made.append(Record.FromString(parts))
            parts = b""
    return made


@pytest.mark.filterwarnings("ignore")  # of the library
def test_wandb_reads_one_offline_run_per_trial(tmp_path, monkeypatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)  # of a user who is logged in: nothing is sent
    small = SWEEP.set({"learning_rate": [1.0, 0.01], "batch_norm": [True]})
    logs.write("wandb", results(small), tmp_path)
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    read = {}
    for file in files:
        own = records(file)
        [run] = [r.run for r in own if r.WhichOneof("record_type") == "run"][:1]
        history = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
            for r in own
            if r.WhichOneof("record_type") == "history"
        ]
        config = {update.key: update.value_json for update in run.config.update}
        read[run.display_name] = run.project, config, history
    project, config, history = read[f"{BEST.partition(',')[0]}, batch norm on"]
    assert project == "rates"
    assert json.loads(config["learning_rate"]) == 0.01
    assert [row["_step"] for row in history] == [1, 2, 3]
    assert [row["validation/loss"] for row in history] == pytest.approx(CURVE)
    _, _, diverged = read["learning rate 1, batch norm on"]
    assert [row["_step"] for row in diverged] == [1]


def test_a_missing_library_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "mlflow" else find(n, *a)
    )
    sweep = write_sweep(tmp_path / "mine.py")
    code, _, told = call("run", sweep, "--out", tmp_path / "run", "--log", "mlflow")
    assert code == 2
    assert "--log mlflow: needs mlflow, which is not installed: pip install 'jaxexp[log]'" in told
    assert not (tmp_path / "run" / "results").exists()
    assert "fitting" not in told


def test_an_unknown_kind_is_told(tmp_path):
    sweep = write_sweep(tmp_path / "mine.py")
    code, _, told = call("run", sweep, "--out", tmp_path / "run", "--log", "paper")
    assert code == 2
    assert "--log 'paper': expected one of tensorboard, mlflow, wandb" in told


@pytest.fixture
def noted(monkeypatch) -> list[tuple[str, int]]:
    """Writers that write nothing, and note for what they were asked."""
    made: list[tuple[str, int]] = []

    def write(sweep, own, folder):
        made.append((sweep, len(own)))

    monkeypatch.setattr(logs, "check", lambda kinds: None)
    monkeypatch.setitem(logs.WRITERS, "tensorboard", write)
    return made


def test_a_resumed_run_logs_what_was_asked_for_and_only_once(tmp_path, noted):
    sweep, out = write_sweep(tmp_path / "mine.py"), tmp_path / "run"
    command = Command(sweeps=(str(sweep),), title="Mine", log=("tensorboard",))
    with RunDirectory.create(out, command.as_json(), force=False):
        pass
    code, _, told = call("resume", out)
    assert code == 0
    assert f"tensorboard: tensorboard --logdir {out}/logs/tensorboard\n" in told
    assert noted == [("mine", 6)]
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(content | {"finished": False}))
    assert call("resume", out)[0] == 0  # its results are there, and so are its logs
    assert noted == [("mine", 6)]
    (out / "logs" / "tensorboard" / ".written-mine").unlink()  # killed between the two
    (out / "run.json").write_text(json.dumps(content | {"finished": False}))
    assert call("resume", out)[0] == 0
    assert noted == [("mine", 6), ("mine", 6)]


@pytest.mark.nightly
def test_logs_that_cannot_be_written_do_not_lose_the_run(tmp_path, noted, monkeypatch):
    def write(sweep, own, folder):
        raise RuntimeError("no space\nleft")

    works = logs.WRITERS["tensorboard"]
    monkeypatch.setitem(logs.WRITERS, "tensorboard", write)
    sweep, out = write_sweep(tmp_path / "mine.py"), tmp_path / "run"
    code, stdout, told = call("run", sweep, "--out", out, "--log", "tensorboard")
    assert code == 4
    assert "mine could not be written for tensorboard (no space)" in told
    assert stdout.strip() == str(out / "report.html")
    assert (out / "results" / "mine.nc").is_file()
    assert f"`jaxexp report {out}` writes what is missing" in told
    assert call("report", out)[0] == 4
    monkeypatch.setitem(logs.WRITERS, "tensorboard", works)
    for _ in range(2):
        assert call("report", out)[:2] == (0, f"{out / 'report.html'}\n")
    assert noted == [("mine", 6)]


def test_what_is_written_of_a_trial():
    made = {trial.name: trial for trial in logs.trials(results())}
    best = made[BEST]
    assert best.hyperparameters["learning_rate"] == 0.01
    assert best.hyperparameters["epochs"] == 3
    epochs, values = best.curves["validation/loss"]
    assert epochs.tolist() == [1, 2, 3]
    assert values == pytest.approx(CURVE)
    assert best.final["validation/loss"] == pytest.approx(CURVE[-1])
    diverged = made["learning rate 1, batch norm on"]
    assert {name: len(own[0]) for name, own in diverged.curves.items()} == dict.fromkeys(
        ["train/loss", "validation/loss", "train/accuracy", "validation/accuracy"], 1
    )
    assert diverged.final == {}
    with pytest.raises(UserError, match="--log 'x': expected one of"):
        logs.check(["x"])


def test_of_a_population_the_last_rate_is_written_and_the_first_as_such():
    member = list(logs.trials(population().assign(trial_id=("sample", list("abcd")))))[-1]
    assert member.name == "final learning rate 2.5e-5"
    assert member.hyperparameters["learning_rate"] == 2.5e-5
    assert member.hyperparameters["initial_learning_rate"] == 0.1
