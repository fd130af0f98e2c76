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
from maemm.data.atomic import cause_of, write_text
from maemm.data.bad_samples import reason_of
from maemm.tasks._shared.run_page import write_page
from maemm.tasks._shared.stages_page import write_stages_page
from maemm.train.run_folder import stages_begun
from maemm.ui.streams import warn
from maemm.weights.checkpoints import run_of


def save_record(
    record: Mapping[str, Any], verb: str, weights: Any, out: str | os.PathLike | None, *, bf16: bool = False
) -> Path | None:
    """Write metrics to ``out``, or beside a run as ``evaluate/VERB-TIME.json``; None where ``weights`` are no run.

    ``bf16``: the network ran in bf16, which the record says. Raises :class:`MaemmError` where ``out`` cannot be
    written. The record beside a run is a side product: where it cannot be kept (a run folder that may only be read), a
    warning says so and the result is None.
    """
    path = os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else None
    if out is None and (path is None or not (run_of(expanded(path)) / "checkpoints").is_dir()):
        return None
    versions = {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"verb": verb, "what": "a model" if path is None else path}
    about |= {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions, "machine": platform.machine()}
    about |= {"precision": "bf16"} if bf16 else {}
    text = json.dumps({**about, **record}, indent=1) + "\n"
    if out is not None:
        return write_text(expanded(out), text, "the metrics", advice="choose another -o")
    assert path is not None
    free = run_of(expanded(path)) / "evaluate" / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    try:
        free = _reserve(free)
        return write_text(free, text, "the metrics")
    except (OSError, MaemmError) as error:
        warn(f"the record was not kept ({free.parent}: {cause_of(error)}); add -o FILE to keep it elsewhere")
        return None
    finally:
        with suppress(OSError):
            if not free.stat().st_size:  # reserved, and not written: on Ctrl-C too
                free.unlink()


def _reserve(path: Path) -> Path:
    """Create the file, under a name with a number where it exists: two calls may end in the same second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = path if number == 1 else path.with_stem(f"{path.stem}_{number}")  # sorted behind it
        try:
            free.touch(exist_ok=False)
        except FileExistsError:
            continue
        return free
    raise AssertionError("count() does not end")


def refresh_page(record: Path | None) -> None:
    """Write the report of the run that ``record`` belongs to again, where it has one."""
    if record is None or not (record.parent.parent / "report.html").is_file():
        return
    run = record.parent.parent
    try:
        write_page(run)
        if run.name in stages_begun(run.parent):  # a stage, which the page of the whole shows too
            write_stages_page(run.parent)
    except Exception as error:  # the metrics are saved, and the next training writes the page again
        warn(f"the report was not written again ({reason_of(error)})")
