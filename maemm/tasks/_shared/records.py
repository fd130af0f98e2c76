"""Figures written as JSON, beside the run that they belong to, whose page then shows them."""

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

from maemm.contract.errors import MaemmError
from maemm.contract.version import __version__
from maemm.tasks._shared.run_page import write_page


def save_record(record: Mapping[str, Any], verb: str, what: Any, out: str | os.PathLike | None) -> Path | None:
    """Write figures to ``out``, or beside a run as ``evaluate/VERB-TIME.json``; None where there is no run."""
    if out is None:
        run = Path(what) if isinstance(what, (str, os.PathLike)) else None
        if run is None or not (run / "checkpoints").is_dir():
            return None
        out = _unused(run / "evaluate" / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    out = Path(out)
    versions = {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"verb": verb, "what": os.fspath(what) if isinstance(what, (str, os.PathLike)) else "a model"}
    about |= {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions, "machine": platform.machine()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**about, **record}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MaemmError(f"cannot write the figures ({out}: {error.strerror}); choose another -o") from error
    return out


def _unused(path: Path) -> Path:
    """The path, or one with a number behind it: two calls may end in one second. The file is there then."""
    for number in count(1):
        one = path if number == 1 else path.with_stem(f"{path.stem}_{number}")  # sorted behind it
        try:
            one.parent.mkdir(parents=True, exist_ok=True)
            one.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError:
            pass  # told when the figures are written
        return one


def refresh_page(written: Path | None) -> None:
    """Write the page of the run anew that the figures belong to, where it has one."""
    if written is None or not (written.parent.parent / "report.html").is_file():
        return
    with suppress(MaemmError):  # the figures are there; a page that cannot be written is told by the next training
        write_page(written.parent.parent)
