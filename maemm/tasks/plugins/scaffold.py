"""``maemm plugins new NAME``: a small package that works as it is, made from the files in ``templates``.

The templates are a plugin that is called ``plugname`` with a class ``PlugName``: valid Python, in which the two names
and a few numbers are replaced.
"""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from maemm import registry
from maemm.contract.errors import MaemmError

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"core", "joint", "maemm", "test", "tests"}  # "joint" is the shared prefix of several modalities
_GRIDS = {  # axes: (side, patch, sides in words)
    1: (128, 8, "length"),
    2: (32, 4, "height, width"),
    3: (16, 4, "depth, height, width"),
}


def new(name: str, into: str | os.PathLike = ".", *, axes: int = 2, as_set: bool = False) -> Path:
    """Write the package ``maemm-NAME`` below the folder ``into`` and return its folder.

    ``axes``: 1, 2 or 3 axes of a grid; ``as_set``: a set of elements with coordinates instead. All files or none are
    written. Raises :class:`MaemmError` for a name that cannot be used, a folder that exists or cannot be written.
    """
    if axes not in _GRIDS:
        raise MaemmError(f"a grid has 1, 2 or 3 axes, got {axes} (--axes); use --set for elements with coordinates")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    files = _files("set" if as_set else "grid")
    _check_name(name, class_name, files)
    wanted = _replacements(name, class_name, axes, as_set)
    folder = Path(into).expanduser() / f"maemm-{name.replace('_', '-')}"
    texts = {_replaced(str(path), wanted): _replaced(text, wanted) for path, text in files.items()}
    _write(folder, texts)
    return folder


def _files(kind: str) -> dict[Path, str]:
    """{path inside the package: text} of the templates of one kind."""
    found = {}
    for home in (TEMPLATES / "common", TEMPLATES / kind):
        for file in sorted(home.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found[file.relative_to(home)] = file.read_text(encoding="utf-8")
    return found


def _check_name(name: str, class_name: str, files: dict[Path, str]) -> None:
    todo = "choose another name"
    if not _NAME.fullmatch(name) or name.endswith("_"):
        raise MaemmError(f"{name!r} is no name for a plugin; use small letters, digits and _, beginning with a letter")
    used = set(re.findall(r"\w+", " ".join(text for path, text in files.items() if path.suffix == ".py")))
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in _RESERVED or class_name in used:
        raise MaemmError(f"{name!r} is a reserved word; {todo}")
    from torch.nn import ModuleDict  # in which modalities stand by name

    if hasattr(ModuleDict(), name):
        raise MaemmError(f"{name!r} is a reserved word of torch modules; {todo}")
    for one in registry.all():
        if one.name == name:
            raise MaemmError(f"there is a plugin {name!r} ({one.origin}); {todo}")
    for role in ("modalities", "sources", "samples"):
        if name in registry.names(role):
            raise MaemmError(
                f"there is a {registry.SINGULAR[role]} {name!r} ({registry.where(role, name)[0].origin}); {todo}"
            )
    if find_spec(f"maemm_{name}") is not None:
        raise MaemmError(f"there is a package maemm_{name} in this environment; {todo}")


def _replacements(name: str, class_name: str, axes: int, as_set: bool) -> dict[str, str]:
    side, patch, sides = _GRIDS[axes]
    layout = "an array of elements x (coordinates, features)" if as_set else f"an array (channels, {sides})"
    return {
        "plugname": name,
        "PlugName": class_name,
        "SIDES": sides,
        "LAYOUT": layout,
        "axes = 2\n": f"axes = {axes}\n",
        "Sequence[int] = 32,": f"Sequence[int] = {side},",
        "Sequence[int] = 4,": f"Sequence[int] = {patch},",
        "SHAPE = (1, 32, 32)": f"SHAPE = {(1, *(side,) * axes)}",
        "maemm-plugname": f"maemm-{name.replace('_', '-')}",
    }


def _replaced(text: str, wanted: dict[str, str]) -> str:
    for old in sorted(wanted, key=len, reverse=True):  # the package's name before the plugin's inside it
        text = text.replace(old, wanted[old])
    return text


def _write(folder: Path, texts: dict[str, str]) -> None:
    """All files or none: they are written beside, and the folder is renamed."""
    if folder.exists() or folder.is_symlink():
        raise MaemmError(f"{folder} exists; choose another name or another --into, or remove it")
    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        made = beside / folder.name  # inside, since mkdtemp makes a folder that is closed to others
        for path, text in texts.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text, encoding="utf-8")
        os.rename(made, folder)
    except OSError as error:
        raise MaemmError(f"cannot write {folder} ({error.strerror or error}); choose another --into") from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
