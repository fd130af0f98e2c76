"""From what a person writes (a packaged name, ``my.yaml``, ``runs/photos``) to a recipe file."""

from __future__ import annotations

from importlib import import_module, resources
from pathlib import Path

from maemm import registry
from maemm.contract.errors import MaemmError, advice

RECIPE = "recipe.yaml"  # of a run folder
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def packaged() -> dict[str, Path]:
    """{"plugin/recipe": file} of all recipes that come with maemm and with plugins, sorted by name.

    Those of what comes after pre-training lie a folder deeper: ``plugin/finetune/recipe``, ``plugin/probe/recipe``.

    Raises :class:`MaemmError` when two files claim one name.
    """
    found: dict[str, Path] = {}
    for prefix, folder in _folders():
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]):
            name = f"{prefix}/{file.relative_to(folder).with_suffix('').as_posix()}"
            if name in found:
                raise MaemmError(f"two recipes are called {name!r} ({found[name]} and {file}); rename one")
            found[name] = file
    return dict(sorted(found.items()))


def _folders() -> list[tuple[str, Path]]:
    try:
        home = Path(str(resources.files("maemm_configs")))
    except ModuleNotFoundError as error:
        raise MaemmError(f"the packaged recipes are not installed ({error}); run: pip install -e .") from None
    folders = [(one.name, one) for one in sorted(home.iterdir()) if one.is_dir() and one.name[0] not in "._"]
    for one in registry.all():
        if one.plugin is not None and one.name != "core":
            module = import_module(one.package)
            folders += [(one.name, Path(path) / "configs") for path in getattr(module, "__path__", [])]
    return folders


def locate(what: str | Path) -> tuple[str, Path]:
    """(name to show, file) of a recipe: a packaged name, a YAML file, or a run folder.

    Raises :class:`MaemmError` with the nearest names for what is none of these.
    """
    text = str(what)
    recipes = packaged()
    if text in recipes:
        return text, recipes[text]
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / RECIPE).is_file():
            raise MaemmError(f"{text} holds no {RECIPE}; give a recipe, a YAML file or a run folder")
        return shown(path / RECIPE), path / RECIPE
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise MaemmError(f"no file {text}; packaged recipes have no ending, see: maemm config ls")
        return shown(path), path
    if path.suffix in _WEIGHTS:
        raise MaemmError(f"{text} holds weights, not a recipe; give a recipe, a YAML file or a run folder")
    if path.exists():
        raise MaemmError(f"{text} is no recipe; recipes end in .yaml")
    raise MaemmError(f"unknown recipe {text!r}; {_advice(text, list(recipes))}")


def _advice(text: str, recipes: list[str]) -> str:
    same = [name for name in recipes if name.rpartition("/")[2] == text]
    return f"did you mean {same[0]!r}?" if same else advice(text, recipes, "see: maemm config ls")


def shown(path: Path) -> str:
    """A path as messages show it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def summary(path: Path) -> str:
    """The first comment line of a recipe: what it is."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line[1:].strip() for line in file if line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise MaemmError(f"cannot read {path} ({error}); check the file") from None
    return next((line for line in lines if line), "")
