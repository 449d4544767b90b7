"""The scripts of both commands of the README touch nothing that is not theirs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT


def run(script: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(script), *map(str, arguments)]
    python = sys._base_executable  # type: ignore[attr-defined]
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_quickstart_leaves_a_folder_of_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    ended = run(ROOT / "scripts/quickstart.sh", "--work", tmp_path)
    assert ended.returncode == 2
    assert f"{tmp_path} has files that this script did not make" in ended.stderr
    assert os.listdir(tmp_path) == ["bin"]


@pytest.mark.parametrize("updates", ["0", "00", "many", "-1"])
def test_the_quickstart_refuses_what_is_no_number_of_updates(updates: str) -> None:
    ended = run(ROOT / "scripts/quickstart.sh", "--updates", updates)
    assert ended.returncode == 2
    assert f"--updates '{updates}' must be a whole number of at least 1" in ended.stderr


def test_an_environment_that_is_not_the_scripts_is_left_alone(tmp_path: Path) -> None:
    for name in ("scripts/environment.sh", "constraints.txt", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    ended = run(tmp_path / "scripts/environment.sh")
    assert ended.returncode == 1
    assert ".venv is not one that this script made" in ended.stderr
    assert os.listdir(tmp_path / ".venv") == ["bin"]
