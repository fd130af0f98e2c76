"""Data for the checks of sources: the plugin's own sample set, or what the author's options name."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maemm import registry
from maemm.config.messages import MISSING
from maemm.config.options import options_of
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.testing.case import Case
from maemm.testing.outcome import DoesNotApply

COUNT = 24  # samples that a writer is asked for, where it can be asked
_written: dict[tuple[str, str], Path] = {}


def sample_set(case: Case) -> Path | None:
    """A folder with the plugin's sample set, written once in this process; None where it brings none."""
    sets = case.plugin.samples
    name = next((one for one in (case.part, case.signal, *sets) if one in sets), None)
    if name is None:
        return None
    key = (case.package, name)
    if key not in _written:
        if not _written:
            home = Path(tempfile.mkdtemp(prefix="maemm-check-"))
            atexit.register(shutil.rmtree, home, ignore_errors=True)
        else:
            home = next(iter(_written.values())).parent
        writer = registry.find("samples", name)
        folder = home / f"{len(_written)}-{name}"
        writer(folder, **({"count": COUNT} if "count" in options_of(writer) else {}))
        _written[key] = folder
    return _written[key]


def given_root(case: Case) -> str | None:
    """The data for a source: ``root`` among the options given for it, or the sample set."""
    given = case.given.get(f"sources.{case.part}", {})
    if given.get("root") is not None or given.get("list") is not None:
        return given.get("root")
    folder = sample_set(case)
    return None if folder is None else str(folder)


def open_source(case: Case, root: str | None = None) -> Source:
    """The source under check. Raises :class:`DoesNotApply` where there are no data for it."""
    given = dict(case.given.get(f"sources.{case.part}", {}))
    given.pop("root", None)
    opener = registry.find("sources", case.part)
    asked = [name for name, one in options_of(opener).items() if one.default is MISSING and name not in given]
    if asked:
        raise DoesNotApply(f"it must be told {', '.join(asked)}; give options for sources.{case.part}")
    try:
        return opener(given_root(case) if root is None else root, given.pop("list", None), **given)
    except MaemmError as error:
        if root is not None:
            raise
        hint = f"give options={{'sources.{case.part}': {{'root': FOLDER}}}}, or a sample set in the manifest"
        raise DoesNotApply(f"there are no data for it ({error}); {hint}") from None


def same(one: Any, other: Any) -> bool:
    """Whether two raw samples are equal, whatever they are made of; NaN equals NaN."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, type(other)) and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "__dict__") and type(one) is type(other):
        return same(vars(one), vars(other))
    return bool(one == other)
