"""Results written as JSON, beside the run that they belong to, whose page then shows them."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.contract.version import __version__
from maemm.tasks._shared.run_page import write_page


def save_record(record: Mapping[str, Any], verb: str, weights: Any, out: str | os.PathLike | None) -> Path | None:
    """Write metrics to ``out``, or beside a run as ``evaluate/VERB-TIME.json``; None where ``weights`` are no run.

    Raises :class:`MaemmError` where they cannot be written.
    """
    path = os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else None
    if out is None:
        if path is None or not (expanded(path) / "checkpoints").is_dir():
            return None
        out = _reserve(expanded(path) / "evaluate" / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    out = expanded(out)
    versions = {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"verb": verb, "what": "a model" if path is None else path}
    about |= {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions, "machine": platform.machine()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**about, **record}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MaemmError(f"cannot write the metrics ({out}: {error.strerror}); choose another -o") from error
    return out


def _reserve(path: Path) -> Path:
    """Create the file, under a name with a number where it exists: two calls may end in the same second."""
    for number in count(1):
        free = path if number == 1 else path.with_stem(f"{path.stem}_{number}")  # sorted behind it
        try:
            free.parent.mkdir(parents=True, exist_ok=True)
            free.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError:
            pass  # reported when the metrics are written
        return free
    raise AssertionError("count() does not end")


def refresh_page(record: Path | None) -> None:
    """Write the report of the run that ``record`` belongs to again, where it has one."""
    if record is None or not (record.parent.parent / "report.html").is_file():
        return
    with suppress(MaemmError):  # the metrics are saved; the next training reports a page that cannot be written
        write_page(record.parent.parent)
