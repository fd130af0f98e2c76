"""Find the file of a recipe: by a packaged name (``image/tiny``), a path (``my.yaml``) or a run folder."""

from __future__ import annotations

from importlib import import_module, resources
from pathlib import Path

from maemm import registry
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError, advice

RECIPE = "recipe.yaml"  # of a run folder
STUDIES = "studies"  # a folder beside recipes, whose files are no recipes: see maemm ablate
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def packaged() -> dict[str, Path]:
    """{"plugin/recipe": file} of all recipes that come with maemm and with plugins, sorted by name.

    Recipes for steps after pre-training are one folder deeper: ``plugin/finetune/recipe``, ``plugin/probe/recipe``.

    Raises :class:`MaemmError` where two files have the same name.
    """
    recipes: dict[str, Path] = {}
    for prefix, folder in _folders():
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]):
            if file.parent.name == STUDIES:
                continue
            name = f"{prefix}/{file.relative_to(folder).with_suffix('').as_posix()}"
            if name in recipes:
                raise MaemmError(f"two recipes are called {name!r} ({recipes[name]} and {file}); rename one")
            recipes[name] = file
    return dict(sorted(recipes.items()))


def studies() -> dict[str, Path]:
    """{"plugin/studies/name": file} of the studies of ``maemm ablate`` that come with maemm and with plugins."""
    files = [(prefix, file) for prefix, folder in _folders() for file in sorted(folder.glob(f"{STUDIES}/*.yaml"))]
    return dict(sorted((f"{prefix}/{STUDIES}/{file.stem}", file) for prefix, file in files))


def _folders() -> list[tuple[str, Path]]:
    """(plugin, folder of its recipes) of maemm's own recipes and of all plugins."""
    try:
        home = Path(str(resources.files("maemm_configs")))
    except ModuleNotFoundError as error:
        raise MaemmError(f"the packaged recipes are not installed ({error}); run: pip install -e .") from None
    folders = [(path.name, path) for path in sorted(home.iterdir()) if path.is_dir() and path.name[0] not in "._"]
    for plugin in registry.all_plugins():
        if plugin.plugin is not None and plugin.name != "core":
            module = import_module(plugin.package)
            folders += [(plugin.name, Path(path) / "configs") for path in getattr(module, "__path__", [])]
    return folders


def locate(recipe: str | Path) -> tuple[str, Path]:
    """(name for messages, file) of a recipe: a packaged name, a YAML file, or a run folder.

    Raises :class:`MaemmError` with the closest name for anything else.
    """
    text = str(recipe)
    recipes = packaged()
    if text in recipes:
        return text, recipes[text]
    path = expanded(text)
    if path.is_dir():
        if not (path / RECIPE).is_file():
            raise MaemmError(f"{text} holds no {RECIPE}; give a recipe, a YAML file or a run folder")
        return shown(path / RECIPE), path / RECIPE
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise MaemmError(f"no file {text}; names of packaged recipes have no extension, see: maemm config ls")
        return shown(path), path
    if path.suffix in _WEIGHTS:
        raise MaemmError(f"{text} holds weights, not a recipe; give a recipe, a YAML file or a run folder")
    if path.exists():
        raise MaemmError(f"{text} is not a recipe; recipes end in .yaml")
    matches = [name for name in recipes if name.rpartition("/")[2] == text]
    todo = f"did you mean {matches[0]!r}?" if matches else advice(text, recipes, "see: maemm config ls")
    raise MaemmError(f"unknown recipe {text!r}; {todo}")


def shown(path: Path) -> str:
    """A path for messages: relative if it is below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def summary(path: Path) -> str:
    """The first comment line of a recipe file, which says what it is for."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line[1:].strip() for line in file if line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise MaemmError(f"cannot read {path} ({error}); check the file") from None
    return next((line for line in lines if line), "")
