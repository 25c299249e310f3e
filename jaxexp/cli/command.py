"""What was asked of the command line, checked, and planned."""

import dataclasses
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from jaxexp.base.errors import UserError
from jaxexp.base.files import matches
from jaxexp.cli import library
from jaxexp.cli.inputs import Inputs
from jaxexp.cli.library import Source
from jaxexp.cli.searching import Search
from jaxexp.planning.plan import check_mode
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.values import Written

if TYPE_CHECKING:
    from jaxexp.api import PlannedRun
    from jaxexp.search.batches import Training


QUICK_EPOCHS = 2


Json: TypeAlias = Any  # a value of `run.json` that nobody has checked yet


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for: all that decides the numbers of a run, but the machine."""

    sweeps: tuple[str, ...]  # names, or absolute paths of files
    title: str
    summary: str = ""
    reference: str = ""  # what the page calls somebody else's figures
    settings: dict[str, list[str]] = field(default_factory=dict)
    programs: str = "auto"
    memory: float | None = None  # GB
    devices: int | None = None  # to use, of those there are
    cluster: str | None = None  # the address of a Ray cluster whose nodes train; decides no number
    nodes: int | None = None  # for which its trials are cut into programs
    seed: int | None = None
    seeds: dict[str, int] = field(default_factory=dict)  # of each sweep, from `seed` on; else 1
    quick: bool = False
    search: Search | None = None  # of a space that the settings describe, in place of the axes
    inputs: Inputs = field(default_factory=Inputs)
    checkpoint_every: float = 30.0  # seconds; decides no number
    checkpoints: str | None = None  # a folder or URL; that of the run directory, if not given
    log: tuple[str, ...] = ()  # what else the results are written for; decides no number

    def with_nodes(self) -> Self:
        """With the nodes and the devices of its cluster, for which it is planned ever after."""
        if self.cluster is None or self.nodes is not None:
            return self
        from jaxexp.cluster import nodes

        joined = nodes.joined(self.cluster)
        return dataclasses.replace(self, nodes=joined.size, devices=self.devices or joined.devices)

    def sources(self) -> list[Source]:
        """The sweeps as they will run, every value checked."""
        return [self._prepare(library.load_source(name)) for name in self.sweeps]

    def _prepare(self, source: Source) -> Source:
        if self.search is not None:
            return self._prepare_search(source, self.search)
        self._check_seeds(source)
        self._check_values(source.sweep)
        settings = {name: list(map(Written, values)) for name, values in self.settings.items()}
        sweep = source.sweep.set(settings)
        if self.seed is not None:
            sweep = sweep.set({"seed": [self.seed]})
        several = self.seeds.get(sweep.name, 1)
        # What another library fits has no seed of ours.
        if several > 1 and not source.estimate and "seed" not in self.settings:
            first = sweep.base.seed
            sweep = sweep.set({"seed": range(first, first + several)})
        if self.quick:
            sweep = sweep.shorten(QUICK_EPOCHS)
        sweep = self._with_image_size(sweep)
        sweep.trials()  # checks every value
        return dataclasses.replace(source, sweep=sweep)

    def _check_seeds(self, source: Source) -> None:
        """Refuse to train others than the seeds of the sweep's file, if not set in their place."""
        name = source.sweep.name
        several = self.seeds.get(name)
        own = any("seed" in axis for axis in source.sweep.axes) and "seed" not in self.settings
        for option, given in (("--seed", self.seed), ("--seeds", several)):
            if own and given is not None:
                raise UserError(
                    f"{option} {given}: {name} has seeds of its own: expected none, or --set "
                    "seed=VALUE in their place"
                )
        # Of the sweeps of the report, some are trained with several seeds and some are not.
        if source.estimate and several is not None and len(self.sweeps) == 1:
            raise UserError(
                f"--seeds {several}: another library fits the models of {name}, which draws "
                "nothing: expected none"
            )

    def _check_values(self, sweep: Sweep) -> None:
        """Hint at what is meant by `--set depth=4,width=8`."""
        for name, values in self.settings.items():
            for value in values:
                other, equals, _ = value.partition("=")
                if equals and other.strip() in sweep.base.fields():
                    raise UserError(
                        f"--set {name}={','.join(values)}: expected a --set of its own for each "
                        f"hyperparameter: --set {name}={values[0]} --set {value}"
                    )

    def _prepare_search(self, source: Source, search: Search) -> Source:
        given = Sweep(source.sweep.base, name=source.sweep.name, record=source.sweep.record)
        if source.problem is None:
            raise UserError(f"{given.name}: another library fits its models; nothing is searched")
        given = self._with_image_size(given)
        if self.quick:
            if "epochs" in self.settings:
                raise UserError("--set epochs: expected without --quick, which decides them")
            given = given.shorten(QUICK_EPOCHS)
        made = search.sweep(given, self.settings)
        made.sweep.trials()
        return dataclasses.replace(source, **made._asdict())

    def _with_image_size(self, sweep: Sweep) -> Sweep:
        """That of the images, which the inputs decide."""
        if "image_size" not in sweep.base.fields():
            return sweep
        if "image_size" in self.settings:
            raise UserError("--set image_size: expected it as --image-size")
        return sweep.set({"image_size": [self.inputs.image_size]})

    def as_json(self) -> dict[str, object]:
        """For `run.json`: `from_json` makes the command of it again."""
        given = {own.name: vars(self.inputs)[own.name] for own in dataclasses.fields(self.inputs)}
        inputs = {
            name: str(value.resolve()) if isinstance(value, Path) else value
            for name, value in given.items()
        }
        lists = {"sweeps": list(self.sweeps), "log": list(self.log)}
        search = None if self.search is None else vars(self.search)
        return {**vars(self), **lists, "inputs": inputs, "search": search}

    @classmethod
    def from_json(cls, made: Mapping[str, Json], file: Path) -> Self:
        """Raises UserError, which names the file, where it is not what `as_json` returned."""
        try:
            return cls._from_json(made)
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{file}: not the run.json of a run ({error})") from error

    @classmethod
    def _from_json(cls, made: Mapping[str, Json]) -> Self:
        own = {f.name: made[f.name] for f in dataclasses.fields(cls) if f.name in made}
        inputs = dict(own.get("inputs", {}))
        for name in {"data", "images"} & inputs.keys():
            inputs[name] = None if inputs[name] is None else Path(inputs[name])
        own |= {name: tuple(own.get(name, ())) for name in ("sweeps", "log")}
        own |= {"inputs": Inputs(**inputs)}
        own |= {"search": Search(**own["search"]) if own.get("search") else None}
        command = cls(**own)
        parts = (command, command.inputs, *([command.search] if command.search else []))
        for part in parts:
            for name, hint in typing.get_type_hints(type(part)).items():
                if not matches(vars(part)[name], hint):
                    raise TypeError(f"{name} is {reprlib.repr(vars(part)[name])}")
        command.check()
        return command

    def check(self) -> None:
        """Raise UserError for an option that is none."""
        check_mode(self.programs)
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise UserError(f"memory={self.memory}: expected gigabytes, a number above 0")


def stages(sources: Iterable[Source]) -> list[list[Source]]:
    """Sweeps on the same problem run as one plan; the stages run one after another."""
    made: dict[object, list[Source]] = {}
    for source in sources:
        made.setdefault((source.problem, source.estimate), []).append(source)
    return list(made.values())


def plan_stage(stage: list[Source], command: Command, target: str | None = None) -> "PlannedRun":
    """The checked plan of the sweeps of a stage, for the devices here or for a target."""
    from jaxexp import api  # JAX takes a second to start

    problem = stage[0].problem
    assert problem is not None
    with library.calling(stage[0].sweep, "problem(inputs)", problem):
        made = problem(command.inputs)
    if not isinstance(made, api.Problem):
        raise UserError(
            f"{stage[0].sweep.name}: problem(inputs) returned {type(made).__name__}, expected "
            "jaxexp.Problem(task, data)"
        )
    return api.plan(
        [source.sweep for source in stage],
        *made,
        target=target,
        stopping=stage[0].stopping,  # of a search, which is alone in its stage
        **plan_options(command),
    )


def plan_options(command: Command) -> "Training":
    """Of `jaxexp.plan`, for whatever the command trains."""
    memory = None if command.memory is None else command.memory * 1e9
    return {
        "devices": command.devices, "programs": command.programs, "memory": memory,
        "cluster": command.cluster, "nodes": command.nodes,
    }  # fmt: skip
