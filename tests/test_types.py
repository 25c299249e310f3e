"""A user's file: `mypy --strict` accepts it, with the types that jaxexp declares, and it runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import users_file

pytestmark = pytest.mark.integration


@pytest.mark.nightly  # `mypy` reads the file whenever it checks the package
def test_mypy_accepts_a_users_file(tmp_path):
    """A copy, apart from this repository and its settings."""
    shutil.copy(users_file.__file__, tmp_path)
    check = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    name = Path(users_file.__file__).name
    done = subprocess.run([*check, name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_users_file_runs(tmp_path):
    table = users_file.main(tmp_path)
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 4
