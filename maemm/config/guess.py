"""Choose a recipe for a file or folder by file endings, which manifests list in ``files``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from maemm import registry
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError

_MAX_FILES = 5000  # of a folder, that are looked at
_STRAY = 0.1  # a recipe with at most this fraction of the files of the most frequent one is ignored


def guess(data: str | os.PathLike[str]) -> tuple[str, str]:
    """(recipe, the file ending that it was chosen by) for a file, or for most files of a folder.

    Raises :class:`MaemmError` where there is no such file, no recipe fits, or several do.
    """
    path = expanded(data)
    try:
        is_folder = os.path.isdir(path)
        path.stat()
    except (OSError, ValueError) as error:
        raise MaemmError(
            f"the data cannot be opened ({data}: {getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    present = Counter(islice(_endings(path), _MAX_FILES)) if is_folder else Counter([_ending(path.name)])
    recipes: dict[str, list[str]] = {}  # {recipe: endings} of all plugins
    for plugin in registry.all_plugins():
        for recipe, endings in (plugin.plugin.files if plugin.plugin else {}).items():
            recipes.setdefault(recipe, []).extend(endings.split())
    counts: Counter[str] = Counter()  # files that fit each recipe
    for ending, count in present.items():
        counts.update({recipe: count for recipe, endings in recipes.items() if ending in endings})
    if not counts:
        shown = " ".join(ending or "no ending" for ending, _ in present.most_common(5)) or "no files"
        names = ", ".join(recipes) or "none"
        raise MaemmError(
            f"no recipe is known for these data ({data}: {shown}); choose one with --recipe, such as: {names}"
        )
    most = max(counts.values())
    fitting = sorted(recipe for recipe, count in counts.items() if count > _STRAY * most)
    if len(fitting) > 1:
        shown = ", ".join(f"{recipe} {counts[recipe]:,}" for recipe in fitting)
        raise MaemmError(f"several recipes fit these data ({data}: {shown} files); choose one with --recipe")
    return fitting[0], next(ending for ending, _ in present.most_common() if ending in recipes[fitting[0]])


def _endings(folder: Path) -> Iterator[str]:
    """Endings of the files below a folder, in the order of the files' names; hidden files are skipped."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (_ending(name) for name in sorted(files) if name[0] != ".")


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
