"""Input of any content: an answer that is right or a UserError, nothing else."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_results import dataset

from jaxexp.base.errors import UserError
from jaxexp.base.files import SEAL, matches, read_sealed, write_whole
from jaxexp.cli import rundir, starting
from jaxexp.cli.command import Command
from jaxexp.cli.inputs import Inputs
from jaxexp.reproduce.tables import load_places
from jaxexp.results.dataset import load, save
from jaxexp.spec.sweep import Sweep
from jaxexp.spec.trial import MLPTrial

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# Near the right ones, so that they come further than to the first check.
CELLS = st.sampled_from(["1", "-1.5", "7.0", "nan", "1e400", "", " ", '"', '"a,b"', "é", "0x1"])
LINES = st.lists(CELLS, min_size=1, max_size=5).map(",".join)
TABLES = st.lists(LINES | st.just(",long,lat,country"), max_size=6).map("\n".join)


@fuzz
@given(header=st.sampled_from([",long,lat,country\n", ""]), table=TABLES | st.text(), end=TABLES)
@example(header=",long,lat,country\n", table="0,1,2,3\n1,2,3,4\n", end="")
def test_csv_files(tmp_path, header, table, end):
    content = (header + table + end).encode("utf-8", "surrogatepass")
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_bytes(content)
    try:
        places = load_places(tmp_path)
    except UserError:
        return
    for split in (places.train, places.validation, places.test):
        assert split.x_Nx2.shape == (len(split.y_N), 2)
        assert np.isfinite(split.x_Nx2).all()
        assert set(split.y_N.tolist()) == set(range(len(places.classes)))


NAMES = st.sampled_from(list(MLPTrial.fields())) | st.text(max_size=20)
NUMBERS = (st.integers() | st.floats()).map(str)
VALUES = NUMBERS | st.sampled_from(["on", "relu", "adam", "1e-3", "9" * 5000]) | st.text(max_size=9)
SETTINGS = st.tuples(NAMES, st.lists(VALUES, min_size=1, max_size=3)).map(
    lambda pair: f"{pair[0]}={','.join(pair[1])}"
)


@fuzz
@given(st.lists(SETTINGS | st.text(max_size=30), min_size=1, max_size=3))
@example(["learning_rate=0.1,1e-2", "width=4"])
def test_settings(texts):
    base = MLPTrial(batch_size=32)
    try:
        trials = Sweep(base=base).set(starting.parse_settings(texts)).trials()
    except UserError:
        return
    given_values = {text.split("=")[0].strip(): text.split("=", 1)[1].split(",") for text in texts}
    assert len(trials) == math.prod(map(len, given_values.values()))
    for name, values in given_values.items():
        kind = type(getattr(base, name))
        if kind in (int, float):
            assert {getattr(trial, name) for trial in trials} == set(map(kind, values))
    others = base.fields().keys() - given_values.keys()
    assert all(getattr(trial, name) == getattr(base, name) for trial in trials for name in others)


COMMAND = Command(
    sweeps=("epochs", "learning_rate"),
    title="A title",
    settings={"width": ["8"]},
    memory=1.5,
    seed=3,
    inputs=Inputs(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def recalled(folder):
    """As `jaxexp resume` recalls a command, up to where it would begin to work."""
    directory = rundir.RunDirectory(folder)
    found = directory.command()
    command = Command.from_json(found, folder / "run.json")
    command.sources()
    directory.check_same({"jax": "0"}, force=True)
    return command


def written(folder, content: bytes):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(content)
    return folder


def run_json() -> dict:
    made = {"format": rundir.FORMAT, "finished": False, "made_with": {}, **COMMAND.as_json()}
    return json.loads(json.dumps(made))


@fuzz
@given(changes=st.dictionaries(st.sampled_from([*run_json()]), JSON, min_size=1, max_size=3))
@example(changes={"sweeps": []})
@example(changes={"sweeps": ["a" * 5000 + ".py"]})
@example(changes={"sweeps": ["\0.py"]})
@example(changes={"seed": 1e999})
@example(changes={"settings": {"width": "8"}})
@example(changes={"settings": {"width": []}})
@example(changes={"made_with": {"jax": 1}})
@example(changes={"inputs": [["data", 1]]})
@example(changes={"format": 10**400})
def test_run_json_with_other_values(tmp_path, changes):
    folder = written(tmp_path / "run", json.dumps(run_json() | changes).encode())
    try:
        command = recalled(folder)
    except UserError:
        return
    assert matches(command.sweeps, tuple[str, ...])
    assert [source.sweep.trials() for source in command.sources()]


@pytest.mark.parametrize(
    ("name", "value"), [("programs", "two"), ("memory", -5), ("memory", math.inf)]
)
def test_bad_values_of_run_json_name_it(tmp_path, name, value):
    folder = written(tmp_path / "run", json.dumps(run_json() | {name: value}).encode())
    with pytest.raises(UserError, match=rf"run\.json: not .*{name}=.*: expected"):
        recalled(folder)


@pytest.mark.parametrize("name", [*run_json()])
def test_whoever_reads_run_json_is_told_of_other_types(tmp_path, name):
    made = run_json() | {name: [[1, {"a": 2}]]}
    with pytest.raises(UserError, match=rf"run\.json: not .* \({name} is \[\[1, "):
        rundir.RunDirectory(written(tmp_path / "run", json.dumps(made).encode())).command()
    if name not in ("format", "sweeps"):
        with pytest.raises(UserError, match="written in format 2"):
            recalled(written(tmp_path / "run", json.dumps(made | {"format": 2}).encode()))


@pytest.mark.parametrize("name", ["format", "sweeps"])
def test_what_run_json_lacks_is_named(tmp_path, name):
    made = {key: value for key, value in run_json().items() if key != name}
    with pytest.raises(UserError, match=rf"run\.json: not .* \({name} is missing\)"):
        recalled(written(tmp_path / "run", json.dumps(made).encode()))


@fuzz
@given(drop=st.sets(st.sampled_from([*run_json()])))
def test_run_json_without_some_keys(tmp_path, drop):
    made = {name: value for name, value in run_json().items() if name not in drop}
    try:
        command = recalled(written(tmp_path / "run", json.dumps(made).encode()))
    except UserError:
        assert drop & {"format", "sweeps", "title"}
        return
    for name in vars(COMMAND).keys() - drop:
        assert getattr(command, name) == getattr(COMMAND, name)


def test_run_json_as_it_was(tmp_path):
    assert recalled(written(tmp_path / "run", json.dumps(run_json()).encode())) == COMMAND


OF_TEXT = """
from dataclasses import dataclass
import jaxexp as jx

@dataclass(frozen=True, kw_only=True)
class OwnTrial(jx.Trial):
    reg: str | None = "l2"

sweep, problem = jx.Sweep(OwnTrial()), lambda inputs: None
"""


def test_none_as_it_was_typed_is_none_of_run_json(tmp_path):
    (tmp_path / "own.py").write_text(OF_TEXT)
    command = Command(sweeps=(str(tmp_path / "own.py"),), title="", settings={"reg": ["none"]})
    [source] = Command.from_json(json.loads(json.dumps(command.as_json())), tmp_path).sources()
    assert source.sweep.base.reg is None


@fuzz
@given(content=st.binary() | JSON.map(json.dumps).map(str.encode) | st.just(b"[" * 100_000))
def test_what_is_no_run_json(tmp_path, content):
    with pytest.raises(UserError, match=r"run\.json"):
        recalled(written(tmp_path / "run", content))


@pytest.fixture(scope="module")
def results(problem, tmp_path_factory):
    """A results file, and what it holds."""
    path = tmp_path_factory.mktemp("results") / "results.nc"
    expected = dataset(problem, {"seed": [0, 1]})
    save(expected, path)
    return path.read_bytes(), expected


@fuzz
@given(data=st.data())
def test_results_files(results, tmp_path, data):
    """Changed bytes are never read as other numbers, and HDF5 never sees them."""
    path, (content, expected) = tmp_path / "results.nc", results
    place = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 9))
    rest = data.draw(st.sampled_from([content[place + length :], content[place:], b""]))
    path.write_bytes(content[:place] + data.draw(st.binary(max_size=9)) + rest)
    try:
        found = load(path)
    except UserError:
        return
    assert path.read_bytes() == content
    xr.testing.assert_identical(found, expected)


@fuzz
@given(content=st.binary() | st.just(SEAL), other=st.binary())
def test_seals(tmp_path, content, other):
    path = tmp_path / "file"
    write_whole(path, content, seal=True)
    assert read_sealed(path) == content
    assert list(tmp_path.iterdir()) == [path]
    for changed in (path.read_bytes() + other, path.read_bytes()[1:], other + path.read_bytes()):
        path.write_bytes(changed)
        try:
            assert read_sealed(path) == content
        except ValueError:
            continue
        assert not other
