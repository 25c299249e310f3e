"""The nodes of a Ray cluster: found, asked what they are, and given one worker each."""

import contextlib
import logging
import math
import os
import platform
import socket
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxexp.base.errors import UnavailableError, UserError
from jaxexp.base.numbers import is_int
from jaxexp.cluster import probing
from jaxexp.cluster.worker import Worker

IDLE_SECONDS = 30.0  # that workers keep their nodes, and what they have compiled, after a run
ANSWERS_SECONDS = 5.0  # that an address may take to answer,
NODE_SECONDS = 60.0  # and a node, which has to start a process for it
ACCELERATORS = ("TPU", "GPU")  # as Ray names them; a node without any has its cores
PLATFORMS = ("tpu", "gpu", "cpu")  # the fastest first


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str  # address and host name, for people
    platform: str  # "cpu", "gpu" or "tpu"
    devices: int
    cores: int
    memory: float  # bytes of the host

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Node | None":
        """Of what Ray says; None of a node that has nothing to train on."""
        resources = found["Resources"]
        cores = int(resources.get("CPU", 0))
        kind = next((k for k in ACCELERATORS if resources.get(k, 0) >= 1), "CPU")
        devices = int(resources.get(kind, 0))
        if devices < 1:
            return None
        name = f"{found['NodeManagerAddress']} ({found['NodeManagerHostname']})"
        return cls(found["NodeID"], name, kind.lower(), devices, cores, resources.get("memory", 0))

    @property
    def resources(self) -> dict[str, Any]:
        """What its worker asks of Ray: all that the node has."""
        own: dict[str, Any] = {"num_cpus": self.cores}
        if self.platform == "gpu":
            own["num_gpus"] = self.devices
        if self.platform == "tpu":
            own["resources"] = {"TPU": self.devices}
        return own


class Cluster:
    """A connection to a Ray cluster; `joined` makes it.

    Raises UnavailableError where Ray is not installed, and UserError where there is no cluster at
    the address, or none of its nodes can train.
    """

    def __init__(self, address: str) -> None:
        """`address` is "auto", HOST:PORT, or ray://HOST:PORT."""
        self.address = address
        self.ray = _ray()
        _check_address(address)
        if self.ray.is_initialized():
            there = self.ray.get_runtime_context().gcs_address
            if address not in ("auto", there):
                raise UserError(
                    f"cluster={address!r}: this process is connected to {there} already"
                )
        else:
            try:
                self.ray.init(
                    address=address, namespace="jaxexp", log_to_driver=False,
                    logging_level=logging.ERROR, configure_logging=False,
                )  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"cluster={address!r}: no Ray cluster answers there ({reason}); "
                    "`ray start --head` begins one on this machine"
                ) from error
        self._entered = self.ray.get_runtime_context().get_node_id()
        self.fit: set[str] = set()  # ids of the nodes that have been checked
        self.processors: dict[str, str] = {}  # of those, by id
        self._actors: dict[str, Any] = {}
        self._leaving: threading.Timer | None = None
        self._some_nodes()

    @property
    def is_connected(self) -> bool:
        """Whether this process is still connected to this cluster, and not to another one since."""
        own = self.ray.is_initialized() and self.ray.get_runtime_context().get_node_id()
        return bool(own == self._entered)

    @property
    def size(self) -> int:
        """How many nodes can train now."""
        return len(self.nodes())

    @property
    def platform(self) -> str:
        """Of the devices that train: of mixed nodes, those that have the fastest ones do."""
        return self._some_nodes()[0].platform

    @property
    def devices(self) -> int:
        """How many every node has."""
        return min(node.devices for node in self._some_nodes())

    def memory_of(self, devices: object) -> tuple[float, ...]:
        """Bytes that may be used on each of so many devices of a node; None for all of them.

        Raises UserError for devices that not every node has.
        """
        if devices is None:
            devices = self.devices
        if not is_int(devices) or not 1 <= devices <= self.devices:
            raise UserError(
                f"devices={devices!r}: expected 1 to {self.devices}, the {self.platform} devices "
                "that every node of the cluster has"
            )
        if self.platform != "cpu":
            return (math.inf,) * int(devices)
        return (min(node.memory / node.devices for node in self.nodes()),) * int(devices)

    def _some_nodes(self) -> list[Node]:
        nodes = self.nodes()
        if not nodes:
            raise UserError(
                f"cluster={self.address!r}: none of its nodes has a core or an accelerator"
            )
        return nodes

    def nodes(self) -> list[Node]:
        """Those that are alive and of the kind that trains, in an order that stays."""
        found = [Node.of(own) for own in self.ray.nodes() if own["Alive"]]
        alive = sorted((own for own in found if own is not None), key=lambda node: node.id)
        fastest = min((PLATFORMS.index(node.platform) for node in alive), default=0)
        return [node for node in alive if node.platform == PLATFORMS[fastest]]

    def leaving(self) -> set[str]:
        """Ids of nodes that are about to be taken away, as Ray has been told."""
        # Ray promises nothing about this, and behind ray:// it is not there.
        with contextlib.suppress(AttributeError, self.ray.exceptions.RayError, RuntimeError):
            return {*self.ray._private.state.state.get_draining_nodes()}
        return set()

    def ask(self, node: Node, libraries: Sequence[str]) -> Any:
        """Ask a node what it is; `check` reads the answer, which takes a second."""
        with by_value([probing]):
            asked = self.ray.remote(probing.describe).options(
                num_cpus=0, scheduling_strategy=self._on(node)
            )
            return asked.remote([*libraries])

    def check(self, node: Node, answer: Any, expected: Mapping[str, str]) -> None:
        """Raise UserError, which names the node, where it has not the expected versions."""
        try:
            said = self.ray.get(answer, timeout=NODE_SECONDS)
        except self.ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"node {node.name}: does not answer ({reason})") from error
        wanted = {"python": platform.python_version(), **expected}
        differs = [
            f"{name} {said['versions'][name]} instead of {version}"
            for name, version in wanted.items()
            if said["versions"][name] != version
        ]
        if differs:
            raise UserError(
                f"node {node.name}: has {', '.join(differs)}; expected the versions of this "
                "machine on every node"
            )
        if said["error"]:
            raise UserError(f"node {node.name}: cannot import jaxexp ({said['error']})")
        self.fit.add(node.id)
        self.processors[node.id] = said["processor"]

    def worker(self, node: Node) -> Any:
        """The worker of a node, which is started where there is none."""
        if self._leaving:
            self._leaving.cancel()
        if node.id not in self._actors:
            made = self.ray.remote(Worker).options(
                **node.resources,
                max_concurrency=4,
                max_restarts=0,
                scheduling_strategy=self._on(node),
                runtime_env={"env_vars": {"JAX_NUM_CPU_DEVICES": str(max(1, node.cores))}},
            )
            self._actors[node.id] = made.remote()
        return self._actors[node.id]

    def lose(self, node: Node) -> None:
        """Forget the worker of a node that is gone, and end it where it is not."""
        if own := self._actors.pop(node.id, None):
            with contextlib.suppress(Exception):
                self.ray.kill(own)

    def rest(self) -> None:
        """End all workers soon, unless there is another run: others may want to use the nodes."""
        self._leaving = threading.Timer(IDLE_SECONDS, self.close)
        self._leaving.daemon = True
        self._leaving.start()

    def close(self) -> None:
        """End all workers."""
        if self._leaving:
            self._leaving.cancel()
        for own in self._actors.values():
            with contextlib.suppress(Exception):  # whoever is gone already
                own.__ray_terminate__.remote()
        self._actors = {}

    def _on(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)


_joined: dict[str, Cluster] = {}


def joined(address: str) -> Cluster:
    """The cluster at an address, connected to once.

    Raises UnavailableError and UserError as `Cluster` does.
    """
    known = _joined.get(address)
    if known is None or not known.is_connected:
        known = _joined[address] = Cluster(address)
    return known


def _check_address(address: object) -> None:
    """Raise UserError unless something listens there: Ray itself would wait for minutes."""
    wrong = UserError(f"cluster={address!r}: expected 'auto', HOST:PORT or ray://HOST:PORT")
    if not isinstance(address, str):
        raise wrong
    found = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if found == "auto":
        return
    host, _, port = found.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise wrong
    try:
        socket.create_connection((host, int(port)), ANSWERS_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cluster={address!r}: nothing answers at {found} ({error}); `ray start --head` begins "
            "a cluster"
        ) from error


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UnavailableError(
            "cluster: Ray is not installed; pip install 'jaxexp[cluster]' brings it"
        ) from error
    module: ModuleType = ray
    return module


def own_modules() -> list[ModuleType]:
    """Modules of the user's own files, which nodes cannot import."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib",
                                                          "platlib")]  # fmt: skip
    installed.append(Path(__file__).resolve().parents[1])
    made = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or not isinstance(module, ModuleType):
            continue
        path = Path(file).resolve()
        if not any(folder in path.parents for folder in installed):
            made.append(module)
    return made


@contextlib.contextmanager
def by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    """What these modules define is sent along, not looked up by name where it arrives."""
    from ray import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()  # type: ignore[no-untyped-call]
    added = [module for module in modules if module.__name__ not in before]
    for module in added:
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]
