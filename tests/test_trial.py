"""Hyperparameters of a user's own: their kinds, their types, and what is refused by name."""

import copy
import dataclasses
import enum
import inspect
import pathlib
import pickle
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

import jaxexp as jx
from jaxexp.base.errors import UserError
from jaxexp.spec.hyperparameters import Kind, choice, size, static, traced
from jaxexp.spec.padding import ProgramSpec
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import Trial
from jaxexp.spec.values import Written


class Schedule(enum.Enum):
    FLAT = "flat"
    COSINE = "cosine"


class Step(enum.Enum):
    ONE = 1


class Name(enum.StrEnum):
    PAIR = "64-32"


@dataclass(frozen=True, kw_only=True)
class NetTrial(Trial):
    batch_size: int = 4  # a new default; the kind is that of the field it takes the place of
    channels: int = 8  # nothing declared
    scale: float = traced(1.0, above=0, at_most=8)
    clip: float | None = None
    schedule: Schedule = Schedule.FLAT
    pool: Literal["mean", "max", 3] = "mean"
    kernels: tuple[int, ...] = static((3, 3), at_least=1)
    pair: tuple[str, float] = ("a", 0.5)
    mode: str = static("plain", choices=("plain", "fancy"))
    pooling: str | None = "max"
    crop: Literal["none", "half"] | None = None
    betas: tuple[float, ...] | None = (0.9, 0.5)
    acts: tuple[str | None, ...] = ("relu",)
    norm: Literal[None, "batch"] = None
    stop: bool | str = "auto"
    taken: tuple[str, ...] | Step | Literal["all", 1, 3] = "all"
    nested: tuple[tuple[int, ...], ...] = ((1, 2), (3,))


def test_kinds():
    kinds = {name: field.kind for name, field in NetTrial.fields().items()}
    own = ("channels", "clip", "schedule", "pool", "kernels", "pair", "mode", "matmul_precision")
    own += ("pooling", "crop", "betas", "acts", "norm", "stop", "taken", "nested")
    assert {name for name, kind in kinds.items() if kind is Kind.STATIC} == set(own)
    assert kinds["batch_size"] is Kind.SIZE
    assert kinds["scale"] is kinds["learning_rate"] is kinds["seed"] is Kind.TRACED
    assert kinds["optimizer"] is Kind.CHOICE
    assert kinds["epochs"] is Kind.LENGTH


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("clip", None, None),
        ("clip", "none", None),
        ("clip", 1, 1.0),
        ("clip", "0.5", 0.5),
        ("schedule", Schedule.COSINE, Schedule.COSINE),
        ("schedule", "COSINE", Schedule.COSINE),
        ("schedule", "cosine", Schedule.COSINE),
        ("pool", "max", "max"),
        ("pool", "3", 3),
        ("pool", 3, 3),
        ("kernels", "5-3-1", (5, 3, 1)),
        ("kernels", [5], (5,)),
        ("kernels", (), ()),
        ("kernels", "()", ()),
        ("pair", ("b", 1), ("b", 1.0)),
        ("channels", "16", 16),
        ("mode", "fancy", "fancy"),
        ("pooling", "none", "none"),
        ("pooling", Written("none"), None),
        ("pooling", Written("None"), None),
        ("pooling", Written("nonesuch"), "nonesuch"),
        ("pooling", np.str_("none"), "none"),
        ("crop", Written("none"), "none"),
        ("crop", Written("None"), None),
        ("betas", Written("none"), None),
        ("acts", Written("none-relu"), (None, "relu")),
        ("acts", "none-relu", ("none", "relu")),
        ("acts", np.str_("none-relu"), ("none", "relu")),
        ("kernels", Name.PAIR, (64, 32)),
        ("nested", Written("()"), ()),
        ("norm", Written("none"), None),
        ("norm", "None", None),
        ("stop", "off", "off"),
        ("stop", Written("off"), False),
        ("stop", Written("late"), "late"),
        ("taken", "all", "all"),
        ("taken", Written("all"), "all"),
        ("taken", Written("3"), 3),
        ("taken", 1, 1),
        ("taken", Written("ONE"), Step.ONE),
        ("taken", Written("age-sex"), ("age", "sex")),
        ("betas", "0.9-1e-5", (0.9, 1e-5)),
        ("betas", "-1e-05--1.E-3-2E3", (-1e-5, -1e-3, 2000.0)),
    ],
)
def test_values_of_every_type_are_taken(name, given, expected):
    [trial] = Sweep(NetTrial(), {name: [given]}).trials()
    found = getattr(trial, name)
    assert (found, type(found)) == (expected, type(expected))
    [again] = Sweep(NetTrial()).set({name: [given]}).trials()
    assert again == trial
    assert again.id == trial.id


def test_every_value_makes_another_id():
    values = {"clip": 0.5, "schedule": "COSINE", "pool": 3, "kernels": (3,), "pair": ("a", 1)}
    trials = [NetTrial(), *(NetTrial().replace(**{k: v}) for k, v in values.items())]
    assert len({trial.id for trial in trials}) == len(trials)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip": ["much"]}, "clip='much': expected a finite number or none"),
        ({"schedule": ["linear"]}, "schedule='linear': expected one of FLAT, COSINE"),
        ({"pool": ["sum"]}, "pool='sum': expected one of mean, max, 3"),
        ({"pair": [("a",)]}, r"pair=\('a',\): expected tuple"),
        ({"mode": ["odd"]}, "mode='odd': expected one of plain, fancy"),
        ({"scale": [0]}, "scale=0.0: expected a number above 0 and at most 8"),
        ({"scale": [1e-46]}, "scale=1e-46: expected a number that is 0 or between"),
        ({"scale": [8.0000001]}, r"scale=8\.0000001: expected a number above 0 and at most 8$"),
        ({"momentum": [0.99999999]}, "momentum=0.99999999: expected .* below 1, as float32 has it"),
        ({"kernels": [(3, 0)]}, "kernels=3-0: expected numbers at least 1"),
        ({"kernels": [""]}, "kernels='': expected whole numbers as in 64-32-16"),
        ({"channel": [3]}, "unknown hyperparameter 'channel': did you mean channels"),
        ({"zzz": [3]}, r"unknown hyperparameter 'zzz' \(there are: "),
    ],
)
def test_other_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sweep(NetTrial(), values).trials()


def test_an_empty_tuple_is_no_size():
    for trial in (jx.MLPTrial(width=()), jx.MLPTrial().replace(width="()")):
        with pytest.raises(UserError, match=r"width=\(\): expected at least one number"):
            trial.check()


def test_trials_that_differ_in_a_static_value_share_no_program():
    trials = [NetTrial(), NetTrial(channels=16)]
    with pytest.raises(UserError, match="channels is static: trials with 8, 16 cannot share a pro"):
        ProgramSpec.of(trials)
    assert ProgramSpec.of([NetTrial(), NetTrial(scale=2.0, batch_size=8)]).sizes == (
        ("batch_size", 4, 8),
    )


def make(hint, default=dataclasses.MISSING, name="extra", **options):
    """A class of trials with one field more."""
    values = {} if default is dataclasses.MISSING else {name: default}
    made = type("OddTrial", (Trial,), {"__annotations__": {name: hint}, **values})
    return dataclass(**{"frozen": True, "kw_only": True} | options)(made)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (lambda: make(float, dataclasses.field(default=0.0, metadata={"kind": "tracd"})),
         r"OddTrial.extra: kind is 'tracd', expected one of Kind.TRACED"),
        (lambda: make(float, dataclasses.field(default=0.0, metadata={"kind": "traced"})),
         r"OddTrial.extra: kind is 'traced', expected one of Kind.TRACED"),
        (lambda: make(int, dataclasses.field(default=1, metadata={"kind": Kind.LENGTH})),
         "OddTrial.extra: only `epochs` is the length of a trial"),
        (lambda: make(int, static(3), name="epochs"),
         "OddTrial.epochs: declared as static, expected a default alone, .* is a JAX scalar; an "
         "optimizer is given the number of its steps, and what else .* of another name"),
        (lambda: make(pathlib.Path, pathlib.Path()), "of type Path is not supported"),
        (lambda: make(tuple, ()), r"type tuple is not supported; expected .*tuple\[int, \.\.\.\]"),
        (lambda: make(dict, None), "hyperparameter of type dict is not supported"),
        (lambda: make(list[int], None), r"of type list\[int\] is not supported; expected int"),
        (lambda: make(np.ndarray | None, None), "hyperparameter of type ndarray is not supported"),
        (lambda: make("Missing", 1), "OddTrial: an annotation cannot be read"),
        (lambda: make(float | None, traced(0.0)), "extra: expected int or float, as it is traced"),
        (lambda: make(bool, traced(0)), "extra: expected int or float, as it is traced, not bool"),
        (lambda: make(float, size(1)), "extra: expected int, as it is a size, not float"),
        (lambda: make(int), "OddTrial.extra: expected a default value"),
        (lambda: type("Bare", (Trial,), {"extra": 1, "__annotations__": {"extra": int}}),
         "Bare: expected a frozen dataclass; write @dataclass"),
        (lambda: dataclass(frozen=True)(type("NoHint", (Trial,), {"seed": 3})),
         "NoHint.seed: expected a type, as in `seed: float"),
        (lambda: type("NoHint", (NetTrial,), {"rate": traced(0.1)}), "NoHint: expected a frozen"),
    ],
)  # fmt: skip
def test_classes_that_would_train_something_else_are_refused(cls, message):
    with pytest.raises(UserError, match=message):
        cls().fields()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"learning_rate": [1e39]},
            r"learning_rate=1e\+39: expected a number that is 0 or between",
        ),
        ({"learning_rate": [1e-50]}, "learning_rate=1e-50: expected a number that is 0 or between"),
        ({"epochs": [2**31]}, "epochs=2147483648: expected a whole number below 2147483648"),
        ({"batch_size": [2**40]}, "batch_size=1099511627776: expected a whole number below 2147"),
        ({"salt": [-(2**40)]}, "salt=-1099511627776: expected a whole number below 2147483648 in"),
    ],
)
def test_numbers_that_a_program_of_32_bits_would_change_are_refused(values, message):
    cls = make(int, traced(0), name="salt")
    with pytest.raises(UserError, match=message):
        Sweep(cls(), values).trials()
    assert Sweep(
        cls(), {"salt": [-(2**31) + 1, 2**31 - 1], "learning_rate": [1e-30, 1e30]}
    ).trials()


def test_a_choice_may_hold_options_of_several_types():
    cls = make(int | str, choice("auto", ("auto", 3, 1)))
    sweep = Sweep(cls(), {"extra": ["auto", 1, 3]})
    spec = ProgramSpec.of(sweep.trials())
    assert spec.choices == (("extra", (1, 3, "auto")),)
    assert spec.leaves(sweep.trials())["extra"].tolist() == [2, 0, 1]


class Powers(jx.Task):
    """Whose loss is a number made of the trial's own values, one for each example."""

    def init(self, trial, rng, data):
        return jx.Variables(jnp.zeros(trial.channels))

    def apply(self, trial, variables, batch, *, rng, mask, train):
        offset = 0.0 if trial.clip is None else trial.clip
        bonus = {Schedule.FLAT: 0, Schedule.COSINE: 1000}[trial.schedule]
        value = 10 * trial.channels + trial.scale + offset + bonus
        return jx.Outputs(batch * value + 0 * variables.params.sum())


def test_every_value_of_ones_own_fields_arrives_in_its_program():
    """A field without a declaration has a program for each value, and none is taken for another."""
    kinds = [(None, Schedule.FLAT), (0.5, Schedule.COSINE)]
    axes = {"channels": [1, 2], "scale": [1.0, 2.0], ("clip", "schedule"): kinds}
    sweep = Sweep(NetTrial(epochs=1, optimizer="sgd"), axes)
    data = jx.Data(np.ones(8, np.float32))
    planned = jx.plan(sweep, Powers(), data)
    assert len(planned.plan.programs) == 4
    results = jx.run(planned, progress=False)
    for trial, loss in zip(sweep.trials(), results["loss"].values.ravel(), strict=True):
        expected = 10 * trial.channels + trial.scale + (trial.clip or 0)
        assert loss == expected + 1000 * (trial.schedule is Schedule.COSINE)


def test_the_signature_is_that_of_the_hyperparameters():
    """As an editor or a notebook shows it, and copies and pickles work."""
    names = [*jx.Trial.fields(), "depth"]
    assert list(inspect.signature(jx.MLPTrial).parameters)[: len(names)] == names
    trial = jx.MLPTrial(depth=2)
    assert trial == pickle.loads(pickle.dumps(trial)) == copy.deepcopy(trial)


def test_equal_trials_have_equal_ids():
    made = jx.MLPTrial(learning_rate=1, width=np.int64(8), dropout=-0.0)
    assert made == jx.MLPTrial(learning_rate=1.0, width=8)
    assert made.id == jx.MLPTrial(learning_rate=1.0, width=8).id


def test_a_class_that_constructs_its_trials_itself_is_asked_for_its_own_names():
    @dataclass(frozen=True, init=False)
    class Doubled(jx.Trial):
        twice: float = 2.0

        def __init__(self, once: float = 1.0):
            super().__init__()
            object.__setattr__(self, "twice", 2 * once)

    assert Doubled(once=3.0).twice == 6.0
    with pytest.raises(jx.UserError, match="unknown hyperparameter 'lr'"):
        Doubled(lr=3.0)


@dataclass(frozen=True, kw_only=True)
class LayersTrial(Trial):
    hidden: int | tuple[int, ...] = 4
    blocks: tuple[tuple[int, ...], ...] = ((1,),)
    names: tuple[str, ...] = ("a",)
    label: str | None = None
    schedule: Schedule | str = Schedule.FLAT


@pytest.mark.parametrize(
    ("axes", "written"),
    [
        ({"hidden": [4, 8, (4,)]}, r"hidden: 4 and \(4,\) are both written '4'"),
        ({("hidden", "seed"): [(4, 0), (4, 1), ((4,), 0)]}, r"hidden: 4 and \(4,\) are both"),
        ({"blocks": [((1, 2), (3,)), ((1,), (2, 3))]}, "are both written '1-2-3'"),
        ({"names": [("a-b", "c"), ("a", "b-c")]}, "are both written 'a-b-c'"),
        ({"schedule": [Schedule.FLAT, "FLAT"]}, "and 'FLAT' are both written 'FLAT'"),
    ],
)
def test_values_that_are_written_alike_are_refused(axes, written):
    """Results hold what is written: they were averaged as seeds of one setting."""
    with pytest.raises(UserError, match=written):
        Sweep(LayersTrial(), axes)
    (values,) = axes.values()
    for value in values:
        Sweep(LayersTrial(), {next(iter(axes)): [value]}).trials()
