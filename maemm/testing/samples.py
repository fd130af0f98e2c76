"""Data for the checks of sources: the plugin's own sample set, or what the author's options name."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maemm import registry
from maemm.config.messages import MISSING
from maemm.config.options import options_of
from maemm.contract import Modality, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.registry import Plugin
from maemm.testing.outcome import DoesNotApply
from maemm.testing.toy import SIGNAL

COUNT = 24  # samples to write, if the writer has the option ``count``
_written: dict[tuple[str, str], Path] = {}


class Part:
    """The part of a plugin that is checked, with the author's options."""

    def __init__(self, plugin: Plugin, package: str, role: str, part: str, options: Mapping[str, Mapping[str, Any]]):
        self.plugin, self.package, self.role, self.part, self.options = plugin, package, role, part, options
        # Other parts are checked on the plugin's own first modality, or on the suite's toy.
        self.signal = part if role == "modalities" else next(iter(plugin.modalities), SIGNAL)


def sample_set(part: Part) -> Path | None:
    """A folder with the plugin's sample set, written once in this process; None if the plugin has none."""
    sets = part.plugin.samples
    name = next((name for name in (part.part, part.signal, *sets) if name in sets), None)
    if name is None:
        return None
    key = (part.package, name)
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


def data_root(part: Part) -> str | None:
    """The data for a source: ``root`` in its options, or the sample set."""
    options = part.options.get(f"sources.{part.part}", {})
    if options.get("root") is not None or options.get("list") is not None:
        return options.get("root")
    folder = sample_set(part)
    return None if folder is None else str(folder)


def open_source(part: Part, root: str | None = None) -> Source:
    """The source under check. Raises :class:`DoesNotApply` if there are no data for it."""
    options = dict(part.options.get(f"sources.{part.part}", {}))
    options.pop("root", None)
    opener = registry.find("sources", part.part)
    unset = [key for key, option in options_of(opener).items() if option.default is MISSING and key not in options]
    if unset:
        raise DoesNotApply(f"it needs {', '.join(unset)}; give options for sources.{part.part}")
    try:
        return opener(data_root(part) if root is None else root, options.pop("list", None), **options)
    except MaemmError as error:
        if root is not None:
            raise
        hint = f"set sources.{part.part}.root to a folder, or add a sample set to the manifest"
        raise DoesNotApply(f"there are no data for it ({error}); {hint}") from None


def loaded_samples(part: Part, modality: Modality, rows: int, key: int = 0) -> list[dict[str, Any]] | None:
    """``rows`` samples of the part's modality from the plugin's first source that has some, as ``load`` returns them
    without augmentation; None: the plugin has no data."""
    for name in part.plugin.sources:
        try:
            source = open_source(Part(part.plugin, part.package, "sources", name, part.options))
        except DoesNotApply:
            continue
        numbers = [(key * rows + row) % len(source) for row in range(rows)]
        raws = [source.read(number, Rng(("conformance", 0, number, 0))).raw for number in numbers]
        if all(part.signal in raw for raw in raws):
            return [modality.load(raw[part.signal], None) for raw in raws]
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two raw samples, of arrays, tensors, containers or objects, are equal; NaN equals NaN."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, type(b)) and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "__dict__") and type(a) is type(b):
        return same(vars(a), vars(b))
    return bool(a == b)
