"""Snapshots in stores that are no folder: objects behind a URL."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_checkpoints import assert_same_bits, expected, made, one_step, resume, small  # noqa: F401

import jaxexp as jx
from jaxexp.execution import claims
from jaxexp.execution.stores import Folder, Objects, store

NAME = "in several streams"
KINDS = ["memory", "file"]


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    """Of a store of objects that is empty: in memory, as those of a cloud are, and on a disk."""
    made_url = f"{request.param}://{tmp_path}/run"
    yield made_url
    files, root = fsspec.core.url_to_fs(made_url)
    if files.exists(root):
        files.rm(root, recursive=True)


def test_a_run_resumes_from_objects_with_the_same_bits(
    url, small, devices, expected, one_step  # noqa: F811
):  # fmt: skip
    own, stops, notes = made(NAME, devices, small), 0, []
    while (records := resume(own, small, devices, url, 20, notes)) is None:
        stops += 1
    assert stops >= 3
    assert not notes
    for trial, record in records.items():
        assert_same_bits(record, expected[NAME][trial])
    there = Objects(url)
    assert all(0 < len(there.steps(program.id)) <= 2 for program in own.programs)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + b"!", lambda b: b""]
)
def test_a_damaged_object_is_told_and_the_one_before_it_used(
    url, damage, small, devices, expected, one_step  # noqa: F811
):  # fmt: skip
    own = made("on all devices", devices, small)
    assert resume(own, small, devices, url, 10) is None
    assert resume(own, small, devices, url, 10) is None
    files, root = fsspec.core.url_to_fs(url)
    last = f"{root}/{own.programs[0].id}/2"
    files.pipe_file(last, damage(files.cat_file(last)))
    notes = []
    records = resume(own, small, devices, url, notes=notes)
    assert len(notes) == 1
    assert "2: not used" in notes[0]
    for trial, record in records.items():
        assert_same_bits(record, expected["on all devices"][trial])


def test_a_store_keeps_the_last_snapshots_and_removes_all(url):
    program = "0123456789abcdef"
    there = store(url)
    assert there.is_empty()
    for step in (1, 2, 3, 10):
        there.save(program, step, {"step": step}, np.arange(step, dtype=np.uint8))
    assert sorted(there.steps(program)) == [3, 10]
    assert there.meta(program, 10) == {"step": 10}
    np.testing.assert_array_equal(there.packed(program, 10), np.arange(10))
    assert there.has(program)
    assert not there.has("other")
    there.put("identity.json", b"{}")
    assert there.read("identity.json") == b"{}"
    assert there.read("other.json") is None
    there.remove("identity.json")
    assert there.is_empty()


@pytest.mark.parametrize("at", ["{}/kept", "file://{}/kept", "memory://{}/kept"])
def test_what_a_run_has_not_written_stays_when_its_checkpoints_go(at, tmp_path):
    there, identity = store(at.format(tmp_path)), {"data": "one"}
    files, root = fsspec.core.url_to_fs(there.location)
    with claims.held(there, identity):
        process = claims.claim(there, identity)
        for folder in (there, store(f"{there.location}/batch-0001")):
            folder.save("0123456789abcdef", 1, {}, np.arange(3, dtype=np.uint8))
            folder.close()
        for name in ("thesis.txt", "2024/1", "batch-0001/notes.txt"):
            files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            files.pipe_file(f"{root}/{name}", b"mine")
        claims.remove(there, process)
    left = {path.removeprefix(f"{root}/") for path in files.find(root)}
    assert left == {"thesis.txt", "2024/1", "batch-0001/notes.txt"}
    files.rm(root, recursive=True)


def test_checkpoints_of_another_run_are_refused_behind_a_url(url):
    data = jx.arrays(np.arange(40.0)[:, None], [0, 1] * 20)
    base = jx.MLPTrial(epochs=2, depth=1, batch_size=8)
    jx.run(jx.Sweep(base), data=data, checkpoint_dir=url, progress=False)
    with pytest.raises(jx.UserError, match="checkpoints of another run"):
        jx.run(jx.Sweep(base.replace(epochs=3)), data=data, checkpoint_dir=url, progress=False)


def test_what_another_process_has_claimed_since_is_left_alone(url):
    there, identity = store(url), {"data": "one"}
    with claims.held(there, identity):
        first = claims.claim(there, identity)
        with claims.held(store(url), identity):  # objects have no locks
            second = claims.claim(there, identity)
        claims.remove(there, first)
        assert not there.is_empty()
        claims.remove(there, second)
    assert there.is_empty()


def test_a_folder_in_use_is_refused_and_nothing_is_written_into_one_of_something_else(tmp_path):
    kept, identity = tmp_path / "kept", {"data": "one"}
    with (
        claims.held(store(kept), identity),
        pytest.raises(jx.UserError, match=rf"{kept}: in use by process \d+ on "),
        claims.held(store(kept), identity),
    ):
        pass
    with claims.held(store(kept), identity):  # which the first has let go, and claimed nothing
        pass
    (tmp_path / "thesis.txt").touch()
    with (
        pytest.raises(jx.UserError, match=r"with their identity\.json, which is missing or empty"),
        claims.held(store(tmp_path), identity),
    ):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "thesis.txt"}


def test_a_process_may_end_while_it_writes_whose_the_checkpoints_are(url, tmp_path):
    kept, identity = store(tmp_path / "kept"), {"data": "one"}
    kept.put("identity.json.partial", b'{"da')
    with claims.held(kept, identity):
        claims.claim(kept, identity)
    store(url).put("identity.json", b'{"da')
    with pytest.raises(jx.UserError, match=r"identity\.json: not readable .*elsewhere, or delete"):
        claims.check(store(url), identity)


@pytest.mark.parametrize("name", ["kå ll [x]", "[", "a*b", "q?", "a{b,c}", "per%20cent#", "a|b"])
def test_a_folder_of_any_name_keeps_snapshots(name, tmp_path):
    """None is taken for a pattern; what lies in a folder that it would match is left alone."""
    packed = np.arange(5000, dtype=np.uint8)
    for folder in (tmp_path / name, tmp_path / "axb"):
        there = store(folder)
        there.save("program", 1, {"step": str(folder)}, packed)
        there.close()
    again = store(tmp_path / name)
    np.testing.assert_array_equal(again.packed("program", 1), packed)
    assert again.meta("program", 1) == {"step": str(tmp_path / name)}


def test_a_folder_that_orbax_cannot_write_is_refused_before_anything_trains(tmp_path):
    data = jx.arrays(np.arange(40.0)[:, None], [0, 1] * 20)
    sweep = jx.Sweep(jx.MLPTrial(epochs=1, batch_size=8))
    with pytest.raises(jx.UserError, match=r"a\*\*b: expected a folder for checkpoints without"):
        jx.run(sweep, data=data, checkpoint_dir=tmp_path / "a**b", progress=False)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_opened_is_refused():
    with pytest.raises(jx.UserError, match="nowhere://run: cannot be opened"):
        store("nowhere://run")
    assert isinstance(store("runs/a"), Folder)


def test_no_snapshot_or_result_is_unpickled():
    """Ray does it between nodes that trust one another; what lies in folders and stores is data."""
    package = Path(jx.__file__).parent
    files = [
        file
        for part in ("execution", "cluster", "results")
        for file in (package / part).rglob("*.py")
    ]
    assert len(files) > 20
    for file in files:
        text = file.read_text(encoding="utf-8")
        for word in ("import pickle", "pickle.load", "joblib", "allow_pickle=True", "dill"):
            assert word not in text, file
