"""What every result says about where it was made."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch


def about(device: torch.device | None = None) -> dict[str, Any]:
    """Date, machine and versions."""
    gpu = device is not None and device.type == "cuda"
    return {
        "date": str(date.today()),
        "machine": torch.cuda.get_device_name() if gpu else processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The CPU's name, where the system tells it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
