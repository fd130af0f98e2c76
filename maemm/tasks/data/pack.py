"""``maemm data pack``: which packer is for somebody's files, and what its options are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from maemm import registry
from maemm.config.guess import guess
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.data.pack import Packed, Packer, pack


def data_pack(
    data: str | os.PathLike,
    out: str | os.PathLike,
    packer: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Packed:
    """Rewrite the files of ``data``, a folder or a file, to the folder ``out``; see :func:`maemm.data.pack.pack`.

    ``packer``: a name of the manifests' role ``packs``; None: the one for files of such endings. ``options`` are that
    packer's. ``workers``: None: a process per CPU core. Raises :class:`MaemmError`.
    """
    made = open_packer(data, packer, options or {})
    return pack(data, out, made, workers=_cores() if workers is None else workers, on_progress=on_progress)


def open_packer(data: str | os.PathLike, name: str | None, options: Mapping[str, Any]) -> Packer:
    """The packer called ``name``, or the one for ``data``. Raises :class:`MaemmError`."""
    name = name or _fitting(data)
    kind = registry.find("packs", name)
    return kind(**check(kind, options, "pack"))


def _fitting(data: str | os.PathLike) -> str:
    recipe, ending = guess(data)
    for one in registry.all():
        if one.plugin is None or recipe not in one.plugin.files:
            continue
        if len(one.plugin.packs) == 1:
            return next(iter(one.plugin.packs))
        break
    known = ", ".join(registry.names("packs")) or "none"
    raise MaemmError(f"no packed form is known for {ending or 'these'} files ({data}); choose one with --as: {known}")


def _cores() -> int:
    """Processes for all cores that this one may use; 0, this process, where there is one core."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count if count > 1 else 0
