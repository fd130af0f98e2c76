"""``maemm plugins new NAME``: a small package that works as it is, made from the files in ``templates``.

The templates are a plugin called ``plugname`` with a class ``PlugName``: valid Python, in which the two names and a few
numbers are replaced.
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
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"core", "joint", "maemm", "test", "tests"}  # "joint" is the shared prefix of several modalities
_GRIDS = {  # {axes: (side, patch, names of the sides)}
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
    templates = _read_templates("set" if as_set else "grid")
    _check_name(name, class_name, templates)
    side, patch, sides = _GRIDS[axes]
    replacements = {
        "plugname": name,
        "PlugName": class_name,
        "SIDES": sides,
        "LAYOUT": "an array of elements x (coordinates, features)" if as_set else f"an array (channels, {sides})",
        "MISSING": "`known` of `Tokens`, set in `tokenize()`"
        if as_set
        else f"`modalities.{name}.gaps=true`, with NaN for them in the arrays",
        "axes = 2\n": f"axes = {axes}\n",
        "Sequence[PositiveInt] = 32,": f"Sequence[PositiveInt] = {side},",
        "Sequence[PositiveInt] = 4,": f"Sequence[PositiveInt] = {patch},",
        "maemm-plugname": f"maemm-{name.replace('_', '-')}",
    }
    # Longest first: the package's name before the plugin's name, which is a part of it.
    olds = sorted(replacements, key=len, reverse=True)

    def replace(text: str) -> str:
        for old in olds:
            text = text.replace(old, replacements[old])
        return text

    folder = expanded(into) / f"maemm-{name.replace('_', '-')}"
    _write(folder, {replace(str(path)): replace(text) for path, text in templates.items()})
    return folder


def _read_templates(kind: str) -> dict[Path, str]:
    """{path inside the package: text} of the templates of one kind."""
    return {
        file.relative_to(home): file.read_text(encoding="utf-8")
        for home in (TEMPLATES / "common", TEMPLATES / kind)
        for file in sorted(home.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def _check_name(name: str, class_name: str, templates: dict[Path, str]) -> None:
    """Raises :class:`MaemmError` for a name that Python, torch, a template or another plugin uses."""
    todo = "choose another name"
    if not _NAME.fullmatch(name) or name.endswith("_"):
        raise MaemmError(f"{name!r} is not valid; use lower-case letters, digits and _, beginning with a letter")
    words = set(re.findall(r"\w+", " ".join(text for path, text in templates.items() if path.suffix == ".py")))
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in _RESERVED or class_name in words:
        raise MaemmError(f"{name!r} is a reserved word; {todo}")
    from torch.nn import ModuleDict  # which holds a model's modalities by name

    if hasattr(ModuleDict(), name):
        raise MaemmError(f"{name!r} is a reserved word of torch modules; {todo}")
    for plugin in registry.all_plugins():
        if plugin.name == name:
            raise MaemmError(f"there is a plugin {name!r} ({plugin.origin}); {todo}")
    for role in ("modalities", "sources", "samples"):
        if name in registry.names(role):
            origin = registry.owner_of(role, name)[0].origin
            raise MaemmError(f"there is a {registry.SINGULAR[role]} {name!r} ({origin}); {todo}")
    if find_spec(f"maemm_{name}") is not None:
        raise MaemmError(f"there is a package maemm_{name} in this environment; {todo}")


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files or none: into a temporary folder, which is then renamed."""
    if folder.exists() or folder.is_symlink():
        raise MaemmError(f"{folder} exists; choose another name or another --into, or remove it")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        package = temporary / folder.name  # inside, since other users may not read a folder made by mkdtemp
        for path, text in texts.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(text, encoding="utf-8")
        os.rename(package, folder)
    except OSError as error:
        raise MaemmError(f"cannot write {folder} ({error.strerror or error}); choose another --into") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
