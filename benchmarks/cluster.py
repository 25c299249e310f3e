"""A grid on a cluster of two nodes of this machine: as one plan, and by Ray Tune, trial by trial.

Ray Tune trains the same model by the same code, one trial in an actor. It may keep its actors, so
that each compiles once.
"""

import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import ray
from ray import tune
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

import jaxexp as jx
from jaxexp.cluster import nodes
from jaxexp.reproduce.places import problem

BASE = jx.MLPTrial(batch_size=256)
NODES = 2


def compare(*, quick: bool = False) -> None:
    """Time both, and what a program costs beyond its training; print a table."""
    trials, epochs, rounds = (4, 1, 1) if quick else (256, 10, 3)
    data = problem(jx.Inputs()).data
    rates = np.geomspace(1e-4, 1e-1, trials).tolist()
    sweep = jx.Sweep(BASE.replace(epochs=epochs), {"learning_rate": rates})
    console = Console(width=None if sys.stdout.isatty() else 130)
    with _cluster() as address, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        console.print(
            f"{trials} learning rates, depth 6, width 16, {epochs} epochs of "
            f"{data.counts['train']:,} places in batches of 256; {NODES} nodes of 1 core on this "
            f"machine, JAX {jax.__version__}, Ray {ray.__version__}",
            highlight=False,
        )
        with console.status("") as status:
            status.update("one plan")
            found = {"jaxexp, one plan": _rounds(lambda: _ours(sweep, data, address), rounds)}
            nodes.joined(address).close()  # Tune wants the cores
            status.update("Ray Tune")
            theirs = _timed(lambda: _tune(rates, epochs, data))
            found["Ray Tune, a trial per actor"] = (theirs, (theirs,))
            status.update("overhead of a program")
            overhead = _overhead(data, address, 2 if quick else 6, rounds)
    made = Table(caption=f"A program takes {overhead:.2f} s longer on a node than in this process.")
    for title in ("", "first time, s", "again, s", "spread", "ms per trial and epoch", "×"):
        made.add_column(title, justify="right" if title else "left")
    best = statistics.median(found["jaxexp, one plan"][1])
    for name, (first, again) in found.items():
        seconds = statistics.median(again)
        made.add_row(
            name, f"{first:.1f}", f"{seconds:.1f}", f"{min(again):.1f}–{max(again):.1f}",
            f"{1000 * seconds / trials / epochs:.2f}", f"{seconds / best:.1f}",
        )  # fmt: skip
    console.print(made)


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _rounds(function: Any, rounds: int) -> tuple[float, tuple[float, ...]]:
    """Seconds of the first time, with compilation, and of the others."""
    return _timed(function), tuple(_timed(function) for _ in range(rounds))


def _ours(sweep: jx.Sweep, data: jx.Data, address: str) -> jx.Results:
    return jx.run(sweep, data=data, cluster=address, progress=False)


class _Trial(tune.Trainable):
    """One trial; the next one of the same actor finds it compiled."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        self.data, self.epochs = given["data"], given["epochs"]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.rate = new_config["learning_rate"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # nothing goes on from it

    def step(self) -> dict[str, Any]:
        trial = BASE.replace(epochs=self.epochs, learning_rate=self.rate)
        results = jx.run(jx.Sweep(trial), data=self.data, devices=1, progress=False)
        return {"loss": float(results["loss"].values.flat[-1]), "done": True}


def _tune(rates: list[float], epochs: int, data: jx.Data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_Trial, data=data, epochs=epochs), {"cpu": 1}),
            param_space={"learning_rate": tune.grid_search(rates)},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
    assert not results.errors, results.errors[0]
    assert len(results) == len(rates)


def _overhead(data: jx.Data, address: str, programs: int, rounds: int) -> float:
    """Seconds that a program takes longer on a node of one core than here, on one core.

    Of programs that differ in a width, several on each of the nodes, compiled before.
    """
    widths = list(range(8, 8 + NODES * programs))
    base, rates = BASE.replace(epochs=2), [0.01, 0.001]
    sweep = jx.Sweep(base, {"width": widths, "learning_rate": rates})
    on_nodes = jx.plan(sweep, data=data, cluster=address, programs="exact")
    half = jx.plan(
        jx.Sweep(base, {"width": widths[::NODES], "learning_rate": rates}), data=data, devices=1,
        programs="exact",
    )  # fmt: skip
    differences = []
    for _ in range(rounds + 1):
        there = _timed(lambda: jx.run(on_nodes, progress=False))
        here = _timed(lambda: jx.run(half, progress=False))
        differences.append((there - here) / programs)
    return statistics.median(differences[1:])
