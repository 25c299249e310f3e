"""A user's file: `mypy --strict` accepts it, with the types that jaxexp declares, and it runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import users_file

pytestmark = pytest.mark.integration


def test_mypy_accepts_a_users_file(tmp_path):
    """A copy, apart from this repository and its settings."""
    shutil.copy(users_file.__file__, tmp_path)
    check = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    wrong = (
        'jx.run(jx.Sweep(jx.Trial()), data=jx.arrays([[0.0]], [0])).best(3)\njx.Trial(epoch="5")\n'
    )
    (tmp_path / "wrong.py").write_text(f"import jaxexp as jx\n\n{wrong}")
    files = [Path(users_file.__file__).name, "wrong.py"]
    done = subprocess.run([*check, *files], cwd=tmp_path, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [error.split("[")[-1] for error in errors] == ["arg-type]", "call-arg]"], done.stdout
    assert all(error.startswith("wrong.py:") for error in errors)


def test_a_users_file_runs(tmp_path):
    table = users_file.main(tmp_path)
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 4
