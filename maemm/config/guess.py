"""Which recipe fits a file or a folder that came without one: the manifests' ``files`` say it by endings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from maemm import registry
from maemm.contract.errors import MaemmError

_LOOKED_AT = 5000  # files of a folder
_STRAY = 0.1  # a recipe with fewer files than this share of the most frequent one is passed over


def guess(data: str | os.PathLike) -> tuple[str, str]:
    """(recipe, the ending that it was chosen by) for a file, or for most files of a folder.

    Raises :class:`MaemmError` where nothing is there, no recipe fits, or several do.
    """
    path = Path(data).expanduser()
    try:
        is_folder = os.path.isdir(path)
        path.stat()
    except (OSError, ValueError) as error:
        raise MaemmError(
            f"the data cannot be opened ({data}: {getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    met = Counter(islice(_endings(path), _LOOKED_AT)) if is_folder else Counter([_ending(path.name)])
    known = _known()
    counts: Counter[str] = Counter()
    for ending, count in met.items():
        counts.update({recipe: count for recipe, endings in known.items() if ending in endings})
    return _chosen(counts, str(data), met, known)


def _chosen(counts: Counter[str], data: str, met: Counter[str], known: dict[str, list[str]]) -> tuple[str, str]:
    if not counts:
        shown = " ".join(ending or "no ending" for ending, _ in met.most_common(5)) or "no files"
        fits = ", ".join(known) or "none"
        raise MaemmError(
            f"no recipe is known for these data ({data}: {shown}); choose one with --recipe, such as: {fits}"
        )
    most = max(counts.values())
    fitting = sorted(recipe for recipe, count in counts.items() if count > _STRAY * most)
    if len(fitting) > 1:
        each = ", ".join(f"{recipe} {counts[recipe]:,}" for recipe in fitting)
        raise MaemmError(f"several recipes fit these data ({data}: {each} files); choose one with --recipe")
    return fitting[0], next(ending for ending, _ in met.most_common() if ending in known[fitting[0]])


def _known() -> dict[str, list[str]]:
    """{recipe: endings} of all plugins."""
    found: dict[str, list[str]] = {}
    for one in registry.all():
        for recipe, endings in (one.plugin.files if one.plugin else {}).items():
            found.setdefault(recipe, []).extend(endings.split())
    return found


def _endings(folder: Path) -> Iterator[str]:
    """Of the files below a folder, in the order of their names; hidden ones are left out."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if one[0] != ".")
        yield from (_ending(one) for one in sorted(files) if one[0] != ".")


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
