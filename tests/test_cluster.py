"""Plans on the nodes of a Ray cluster, two on this machine: the same bits, whatever dies."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import numpy as np
import optax
import psutil
import pytest
import yaml
from flax import linen as nn
from test_resume import assert_same_results, wait_for
from test_search_cli import STUDY, SWEEP, here, killed, search, start, study_of

import jaxexp as jx
from jaxexp.base.errors import InterruptedRunError, UnavailableError
from jaxexp.cluster import nodes as cluster_nodes
from jaxexp.cluster.engine import Engine, _Station
from jaxexp.execution.listeners import Silent
from jaxexp.planning.nodes import Queue
from jaxexp.planning.programs import Program

ray = pytest.importorskip("ray", reason="needs jaxexp[cluster]")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # Ray leaves sockets and files to Python
]
EPOCHS = 4
LONG = 600  # epochs, of programs that something is done to while they train


@dataclass(frozen=True, kw_only=True)
class NetTrial(jx.Trial):
    """Of a user's own file: nodes cannot import it."""

    channels: int = jx.static(4)


def module(trial):
    return nn.Sequential([nn.Dense(trial.channels), nn.relu, nn.Dense(3)])


TASK = jx.supervised(
    module=module,
    loss=optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": jx.metrics.accuracy},
)
AXES = {"channels": [3, 4, 5], "learning_rate": [0.1, 0.01], "seed": range(2)}


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    try:
        yield made
    finally:
        cluster_nodes.joined(made.address).close()
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def two(cluster):
    """With two nodes, whatever the test before has done to them."""
    while len(cluster.list_all_nodes()) < 2:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    return jx.arrays(x, (x[:, 0] > 0) + (x[:, 1] > 0).astype(int), validation=0.2)


def sweep(epochs=EPOCHS, **axes):
    return jx.Sweep(NetTrial(epochs=epochs, batch_size=32), {**AXES, **axes})


class Watch(Silent):
    """Does something once, when a program has trained so many epochs; remembers what is told."""

    def __init__(self, epochs=0, act=lambda: None):
        self.epochs, self.act, self.notes, self.first = epochs, act, [], {}
        self.done, self.last, self.lost = False, {}, []

    def moved(self, program, epochs):
        self.first.setdefault(program.id, epochs)
        if epochs < self.last.get(program.id, 0.0):
            self.lost.append(self.last[program.id] - epochs)
        self.last[program.id] = epochs
        if not self.done and 0 < self.epochs <= epochs < program.epochs:
            self.done = True
            self.act()

    def note(self, text):
        self.notes.append(text)


def same(results, expected):
    for name in ("loss", "accuracy", "running_loss", "step_loss", "epochs_trained"):
        np.testing.assert_array_equal(results[name].values, expected[name].values, err_msg=name)
    assert results.kept().keys() == expected.kept().keys()
    for name, variables in expected.kept().items():
        jax.tree.map(np.testing.assert_array_equal, results.kept()[name], variables)


def workers():
    """The processes of workers, which Ray names after their class."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::Worker" in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


def test_every_number_is_that_of_one_machine(two, data):
    planned = jx.plan(sweep(), TASK, data, cluster=two.address)
    assert (planned.plan.nodes, planned.plan.devices) == (2, 1)
    found = jx.run(planned, progress=False)
    same(found, jx.run(sweep(), TASK, data, devices=1, progress=False))
    assert found.dataset.attrs["nodes"] == 2


@pytest.mark.nightly
def test_nodes_have_the_options_of_jax_of_this_process(two, data):
    before = jx.run(sweep(), TASK, data, cluster=two.address, progress=False)
    jax.config.update("jax_random_seed_offset", 7)
    try:
        found = jx.run(sweep(), TASK, data, cluster=two.address, progress=False)
        same(found, jx.run(sweep(), TASK, data, devices=1, progress=False))
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    assert not np.array_equal(found["loss"], before["loss"])


def test_at_rungs_the_programs_of_all_nodes_are_compared(two, data):
    search = jx.search.Halving(metric="loss", factor=2, first=1)
    on_nodes = jx.run(sweep(), TASK, data, stopping=search, cluster=two.address, progress=False)
    here = jx.run(sweep(), TASK, data, stopping=search, devices=1, progress=False)
    same(on_nodes, here)
    assert len(set(here["epochs_trained"].values.flat)) > 1


@pytest.mark.nightly
@pytest.mark.parametrize("pruner", ["none", "threshold"])
def test_a_study_is_told_what_it_is_told_of_one_machine(two, data, pruner):
    op = pytest.importorskip("optuna")
    op.logging.set_verbosity(op.logging.WARNING)
    space = (NetTrial(epochs=EPOCHS, batch_size=32), {
        "learning_rate": op.distributions.FloatDistribution(1e-4, 1.0, log=True),
        "channels": op.distributions.IntDistribution(3, 4),
    })  # fmt: skip

    def searched(**options):
        study = op.create_study(
            sampler=op.samplers.TPESampler(seed=0),
            # Of each trial alone: in which order they are judged decides nothing.
            pruner=op.pruners.NopPruner() if pruner == "none"
            else op.pruners.ThresholdPruner(upper=1.1),
        )  # fmt: skip
        found = jx.search.optuna(
            study, space, TASK, data, trials=9, batch=6, progress=False, **options
        )
        return study, found

    (on_nodes, found), (here, expected) = searched(cluster=two.address), searched(devices=1)
    same(found, expected)
    told = [
        [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in own.trials]
        for own in (on_nodes, here)
    ]
    assert told[0] == told[1]
    assert all(values for *_, values in told[0])
    states = {state for _, state, *_ in told[0]}
    assert states == ({"COMPLETE"} if pruner == "none" else {"COMPLETE", "PRUNED"})


@pytest.mark.nightly
def test_a_study_whose_driver_is_killed_ends_with_the_same_bits(two, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SWEEP)
    line = [*search(*STUDY), "--trials", "14", "--batch", "11", "--set", "epochs=400"]
    line += ["--checkpoint-every", "0.1", "--cluster", two.address, "--out"]
    assert here(*line, "whole") == 0
    cluster_nodes.joined(two.address).close()
    process = start(tmp_path, *line, "killed", "--checkpoints", f"file://{tmp_path}/kept")
    wait_for(lambda: any((tmp_path / "kept/batch-0001").glob("*/*")), process)
    killed(process, signal.SIGKILL)
    assert here("resume", "killed") == 0
    assert_same_results(tmp_path / "killed", tmp_path / "whole")
    own, other = study_of(tmp_path / "killed"), study_of(tmp_path / "whole")
    assert [(t.params, t.value) for t in own.trials] == [(t.params, t.value) for t in other.trials]


@pytest.mark.nightly
def test_long_programs_are_cut_so_that_every_node_has_work(two, data, monkeypatch):
    monkeypatch.setattr("jaxexp.planning.plan.LEAST_SECONDS", 0.0)
    own = sweep(channels=[4], seed=range(8))
    planned = jx.plan(own, TASK, data, cluster=two.address)
    assert len(planned.plan.programs) >= 8
    same(jx.run(planned, progress=False), jx.run(planned_here(own, data), progress=False))


def planned_here(own, data):
    """The same programs on this machine."""
    return jx.plan(own, TASK, data, devices=1, nodes=2)


@pytest.mark.parametrize("what", ["node", pytest.param("worker", marks=pytest.mark.nightly)])
def test_what_dies_is_trained_elsewhere_from_its_last_snapshot(two, data, tmp_path, what):
    def kill_node():
        two.remove_node(two.list_all_nodes()[-1], allow_graceful=False)

    def kill_worker():
        workers()[0].kill()

    own = sweep(LONG, channels=[3, 4], learning_rate=[0.1])
    watch = Watch(LONG // 4, kill_node if what == "node" else kill_worker)
    found = jx.run(
        own, TASK, data, cluster=two.address, progress=watch, checkpoint_dir=tmp_path / "kept",
        checkpoint_every=0.2,
    )  # fmt: skip
    assert watch.done
    assert any("is lost" in note for note in watch.notes)
    same(found, jx.run(own, TASK, data, devices=1, progress=False))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(24))
def test_nodes_killed_at_random_moments(two, data, tmp_path, reference, seed):
    """Of three nodes, one or two; their raylets and workers with SIGKILL, or a worker alone."""
    rng = np.random.default_rng(seed)
    third = two.add_node(num_cpus=1)
    two.wait_for_nodes()
    own, expected = reference

    def kill():
        for _ in range(rng.integers(1, 3)):
            if rng.random() < 0.7:
                two.remove_node(two.list_all_nodes()[-1], allow_graceful=False)
            elif alive := workers():
                alive[rng.integers(len(alive))].kill()

    watch = Watch(int(rng.integers(1, LONG - 20)), kill)
    try:
        found = jx.run(
            own, TASK, data, cluster=two.address, progress=watch, checkpoint_dir=tmp_path / "kept",
            checkpoint_every=float(rng.uniform(0.1, 2)),
        )  # fmt: skip
    finally:
        if third in two.list_all_nodes():
            two.remove_node(third)
    assert watch.done
    same(found, expected)


@pytest.fixture(scope="module")
def reference(data):
    own = sweep(LONG, channels=[3, 4, 5], learning_rate=[0.1])
    return own, jx.run(own, TASK, data, devices=1, progress=False)


@pytest.mark.nightly
def test_a_node_that_joins_gets_work(two, data):
    third = []
    watch = Watch(LONG // 4, lambda: third.append(two.add_node(num_cpus=1)))
    own = sweep(LONG, channels=range(3, 9), learning_rate=[0.1])
    try:
        jx.run(own, TASK, data, cluster=two.address, progress=watch)
    finally:
        two.remove_node(*third)
    assert any("has joined" in note for note in watch.notes)


@pytest.mark.nightly
def test_a_node_that_is_about_to_be_taken_away_hands_its_programs_back(two, data):
    """Without checkpoints: nothing is trained again."""
    node = two.list_all_nodes()[-1]

    def drain():
        subprocess.run(
            [
                shutil.which("ray"), "drain-node", "--address", two.address,
                "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message", "a test", "--deadline-remaining-seconds", "60",
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    own = sweep(4 * LONG, channels=[3, 4], learning_rate=[0.1])
    watch = Watch(10, drain)
    try:
        found = jx.run(own, TASK, data, cluster=two.address, progress=watch)
    finally:
        two.remove_node(node, allow_graceful=False)
    assert any("is about to be taken away" in note for note in watch.notes)
    assert not watch.lost
    same(found, jx.run(own, TASK, data, devices=1, progress=False))


@pytest.mark.nightly
def test_an_interrupted_run_goes_on_from_its_checkpoints(two, data, tmp_path):
    own = sweep(LONG, channels=[3, 4], learning_rate=[0.1])
    options = {"checkpoint_dir": tmp_path / "kept", "checkpoint_every": 0.2}

    class StopError(Exception):
        pass

    def stop():
        raise StopError

    with pytest.raises(StopError):
        jx.run(own, TASK, data, cluster=two.address, progress=Watch(LONG // 2, stop), **options)
    watch = Watch()
    found = jx.run(own, TASK, data, cluster=two.address, progress=watch, **options)
    assert max(watch.first.values()) > 0
    same(found, jx.run(own, TASK, data, devices=1, progress=False))


def on_a_node():
    return any("ray::" in part for part in psutil.Process().cmdline())


def refusing(trial):
    if trial.channels == 5 and on_a_node():
        raise jx.UserError("channels=5: expected fewer")
    return module(trial)


def deadly(trial):
    if trial.channels == 5 and on_a_node():
        os._exit(1)
    return module(trial)


def with_module(function):
    return jx.supervised(module=function, loss=optax.softmax_cross_entropy_with_integer_labels)


def test_an_error_on_a_node_is_raised_here(two, data):
    with pytest.raises(jx.UserError, match="channels=5: expected fewer"):
        jx.run(sweep(), with_module(refusing), data, cluster=two.address, progress=False)
    jx.run(sweep(1), TASK, data, cluster=two.address, progress=False)  # nodes are as before


@pytest.mark.nightly
def test_a_program_that_ends_every_worker_is_named(two, data):
    with pytest.raises(jx.UserError, match=r"channels=5.* ended the workers of 3 nodes"):
        jx.run(sweep(), with_module(deadly), data, cluster=two.address, progress=False)


BROKEN = {
    "another version": ("jaxexp-0.0.1.dist-info/METADATA", "Name: jaxexp\nVersion: 0.0.1\n",
                        "jaxexp 0.0.1 instead of"),
    "no JAX": ("jax/__init__.py", "raise ImportError('no jax here')",
               "its worker does not start (ImportError: no jax here)"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_node_that_is_not_fit_is_named(two, data, tmp_path, file, content, message):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(content)
    node = two.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    two.wait_for_nodes()
    try:
        with pytest.raises(jx.UserError, match=r"^node \S+ \(.*\): .*" + re.escape(message)):
            # Others could be done with a short one before this node's worker has begun.
            jx.run(sweep(20 * LONG), TASK, data, cluster=two.address, progress=False)
    finally:
        two.remove_node(node)


def test_a_node_on_which_jax_finds_other_devices_is_named(two):
    engine = Engine(cluster_nodes.joined(two.address), {})
    node = cluster_nodes.Node("id", "10.0.0.7 (far)", "gpu", 8, 64, 1e9)
    engine._check_devices(node, {"platform": "gpu", "devices": 8})
    with pytest.raises(jx.UserError, match=r"10\.0\.0\.7 \(far\): JAX finds 1 device .* 8 gpus"):
        engine._check_devices(node, {"platform": "cpu", "devices": 1})


@pytest.fixture
def engine(two):
    made = Engine(cluster_nodes.joined(two.address), {})
    made._ray, made._progress = ray, Watch()
    return made


def test_nodes_with_fewer_devices_than_programs_need_are_not_used(engine):
    """A program would wait for ever."""
    engine._least = 2
    engine._look_for_nodes()
    names = [node.name for node in engine.cluster.nodes()]
    assert engine._progress.notes == [
        f"node {name}: has 1 device of the 2 that a program needs; it is not used" for name in names
    ]
    assert not engine._asked
    assert len(engine._refused) == 2


def test_it_is_told_that_programs_wait_for_a_node_with_more_devices(engine, monkeypatch):
    """One with fewer trains what it can."""
    small, large = jx.MLPTrial(seed=0), jx.MLPTrial(seed=1)
    programs = [Program((small,), devices=(0,)), Program((large,), devices=(0, 1), alone=True)]
    trainings = [types.SimpleNamespace(program=program, snapshot=None) for program in programs]
    monkeypatch.setattr(engine, "_look_for_nodes", lambda: None)
    engine._work, engine._own_modules, engine._deaths = None, [], {}
    [node, _] = engine.cluster.nodes()
    assert not Engine(engine.cluster, {}, programs)._is_small(node)
    station = _Station(node, MagicMock(), [0], ray.put([]), ready=True)
    engine._stations[node.id] = station
    stop = MagicMock(**{"is_set.side_effect": [False, True]})
    station.actor.stop.remote.side_effect = station.running.clear
    with pytest.raises(InterruptedRunError):
        list(engine.train([trainings], [], 1, stop))
    [begun] = station.actor.begin.remote.call_args_list
    assert begun.args[:2] == (programs[0], [0])
    message = "no node with 2 devices is left: waiting for one to join the cluster"
    assert engine._progress.notes == [message]


@pytest.mark.parametrize("late", [True, False])
def test_a_run_goes_on_without_a_node_that_joins_and_is_not_fit(engine, late):
    @ray.remote(num_cpus=0)
    def prepare():
        raise jx.UserError("does not see /kept")

    [node, _] = engine.cluster.nodes()
    engine._stations[node.id] = _Station(node, None, [], prepare.remote(), late)
    message = f"node {node.name}: does not see /kept"
    expected = contextlib.nullcontext() if late else pytest.raises(jx.UserError, match="not see")
    with expected:
        while engine._stations:
            assert not list(engine._answers())
    assert engine._progress.notes == ([f"{message}; it is not used"] if late else [])
    assert engine._refused == ({node.id} if late else set())


def test_a_node_whose_worker_dies_again_and_again_is_not_used(engine):
    engine._queue, [node, _] = Queue(), engine.cluster.nodes()
    for _ in range(3):
        assert not engine._progress.notes
        engine._stations[node.id] = station = _Station(node, None, [], None, late=True)
        engine._lose(station)
    assert "has died 3 times before it was ready; it is not used" in engine._progress.notes[0]
    assert engine._refused == {node.id}


WRONG = {
    "here": "expected 'auto', HOST:PORT or ray://HOST:PORT",
    "localhost:port": "expected 'auto'",
    "localhost:1": "nothing answers at localhost:1",
    7: "expected 'auto'",
}


@pytest.mark.parametrize("address", WRONG)
def test_an_address_without_a_cluster_is_refused(data, address):
    with pytest.raises(jx.UserError, match=re.escape(WRONG[address])):
        jx.plan(sweep(), TASK, data, cluster=address)


def test_devices_that_not_every_node_has_are_refused(two, data):
    with pytest.raises(jx.UserError, match="devices=2: expected 1 to 1, the cpu devices"):
        jx.plan(sweep(), TASK, data, cluster=two.address, devices=2)


def test_a_cluster_that_the_process_has_left_for_another_is_not_used(monkeypatch):
    at = {"gcs_address": "other:1", "get_node_id": lambda: "there"}
    ray = SimpleNamespace(
        is_initialized=lambda: True, get_runtime_context=lambda: SimpleNamespace(**at)
    )
    known = object.__new__(cluster_nodes.Cluster)
    known.ray, known._entered = ray, "here"
    monkeypatch.setattr(cluster_nodes, "_joined", {"here:1": known})
    monkeypatch.setattr(cluster_nodes, "_ray", lambda: ray)
    monkeypatch.setattr(cluster_nodes, "_check_address", lambda address: None)
    with pytest.raises(jx.UserError, match="this process is connected to other:1 already"):
        cluster_nodes.joined("here:1")


def test_without_ray_the_extra_is_named(data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setattr(cluster_nodes, "_joined", {})
    with pytest.raises(UnavailableError, match=r"jaxexp\[cluster\]"):
        jx.plan(sweep(), TASK, data, cluster="auto")


PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "cluster.md"


def test_the_files_of_the_documentation_can_be_read():
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    blocks = [block for language, block in found if not language]
    scripts = [block for block in blocks if block.startswith("#!/bin/bash")]
    manifests = [yaml.safe_load(block) for block in blocks if block.startswith("apiVersion")]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    [job] = manifests
    assert job["spec"]["entrypoint"].startswith("jaxexp run learning_rate --cluster auto")
