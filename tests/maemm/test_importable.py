"""The installed package imports from every folder, also beside a folder that is called maemm (the clone's parent)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CODE = "import maemm, maemm_plugins.image, maemm_configs; print(maemm.__version__, maemm.MaemmError.__name__)"


def run(folder: Path, *command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def parent(tmp_path):
    """A folder that holds the clone under the name maemm, as after ``git clone``."""
    (tmp_path / "maemm").symlink_to(REPOSITORY, target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("inside", [".", "maemm", "maemm/tests", "maemm/maemm/ui"])
def test_from_the_parent_the_clone_its_tests_and_its_package(parent, inside):
    assert run(parent / inside, "-c", CODE).endswith("MaemmError\n")


def test_as_a_module_and_under_torchrun_from_the_parent(parent):
    assert run(parent, "-m", "maemm", "--version").startswith("maemm ")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "maemm", "--version")
    assert run(parent, *torchrun).startswith("maemm ")


def test_links_are_relative_and_point_to_the_folders():
    links = {path.name: os.readlink(path) for path in (REPOSITORY / "importable").iterdir() if path.is_symlink()}
    assert links == {"maemm": "../maemm", "maemm_plugins": "../plugins", "maemm_configs": "../configs"}
