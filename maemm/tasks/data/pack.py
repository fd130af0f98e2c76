"""``maemm data pack`` and ``maemm data index``: rewrite files to what is faster to read, and list what lies where."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from maemm import registry
from maemm.config.guess import guess
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.data.pack import Packed, Packer, pack
from maemm.data.shards.pack import MEGABYTES, SAMPLES, PackedShards, index_shards, pack_shards, parts_of_recipe
from maemm.tasks._shared.data_objects import path_of
from maemm.tasks._shared.opened_data import Overrides, Recipe, open_data


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
    workers = _processes() if workers is None else workers
    return pack(data, out, open_packer(data, packer, options or {}), workers=workers, on_progress=on_progress)


def data_shards(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe = None,
    overrides: Overrides = None,
    *,
    megabytes: int = MEGABYTES,
    samples: int = SAMPLES,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> PackedShards:
    """Copy the samples of ``data`` to tar files with an index, see :func:`maemm.data.shards.pack.pack_shards`.

    ``recipe`` (None: the one for such files) and ``overrides`` say how the data are read, and how they are when a
    recipe reads the shards with ``data.source: shards``. Raises :class:`MaemmError`.
    """
    opened = open_data(data, recipe, overrides)
    first = opened.source.paths(0)
    parts = {} if first is None else parts_of_recipe(opened.recipe, first)
    return pack_shards(
        opened.source,
        out,
        parts,
        megabytes=megabytes,
        samples=samples,
        workers=_processes() if workers is None else workers,
        on_progress=on_progress,
    )


def data_index(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> PackedShards:
    """Make the index of tar files that exist, see :func:`maemm.data.shards.pack.index_shards`."""
    data = path_of(data, "indexing")
    return index_shards(data, out, workers=_processes() if workers is None else workers, on_progress=on_progress)


def _processes() -> int:
    """A process for each core that this one may use; 0, this process, where that is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 1 else 0


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
