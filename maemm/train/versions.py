"""Which versions made a checkpoint."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from maemm import registry
from maemm.contract.version import __version__


def versions() -> dict[str, Any]:
    """Versions of what made a checkpoint, and the commit of the code where it is known."""
    found = {one.name: one.plugin.version for one in registry.all() if one.plugin is not None}
    return {
        "versions": {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "plugins": {name: version for name, version in found.items() if name != "core"},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of a checkout; None where maemm is installed as a package, or without git."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(home), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
