"""``maemm data pack``: find the packer for some files, and run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from maemm import registry
from maemm.config.guess import guess
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.data.pack import Packed, Packer, pack
from maemm.tasks._shared.data_objects import path_of


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

    ``packer``: a name of the role ``packs``; None: the one for files with such endings. ``options``: of that packer.
    ``workers``: None: a process for each CPU core that this process may use; 0: this process. Raises
    :class:`MaemmError`.
    """
    data = path_of(data, "packing")
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if cores > 1 else 0
    return pack(data, out, open_packer(data, packer, options or {}), workers=workers, on_progress=on_progress)


def open_packer(data: str | os.PathLike, name: str | None, options: Mapping[str, Any]) -> Packer:
    """The packer called ``name``, or the one for ``data``. Raises :class:`MaemmError`."""
    name = name or _packer_for(data)
    packer = registry.find("packs", name)
    return packer(**check(packer, options, "pack"))


def _packer_for(data: str | os.PathLike) -> str:
    """The only packer of the plugin whose recipe fits the files."""
    recipe, ending = guess(data)
    for discovered in registry.all_plugins():
        if discovered.plugin is not None and recipe in discovered.plugin.files:
            if len(discovered.plugin.packs) == 1:
                return next(iter(discovered.plugin.packs))
            break
    names = ", ".join(registry.names("packs")) or "none"
    raise MaemmError(f"there is no packer for {ending or 'these'} files ({data}); choose one with --as: {names}")
