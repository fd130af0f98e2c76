"""Discovery of plugins: the core's own parts, the bundled plugins, installed packages with the entry point group
``maemm.plugins``, and the folders of ``--plugin PATH`` (kept in ``MAEMM_PLUGIN_PATH``, which workers inherit).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.registry.core import CORE
from maemm.registry.manifest import NAME, Plugin

GROUP = "maemm.plugins"
HOME = "maemm_plugins"  # the package of the bundled plugins, to which local folders are added
VARIABLE = "MAEMM_PLUGIN_PATH"

_temporary: list[DiscoveredPlugin] = []  # see :func:`with_plugins`


@dataclass(frozen=True)
class DiscoveredPlugin:
    """A plugin that was discovered, usable or broken."""

    name: str
    package: str  # import name of the manifest's package
    origin: str  # where it comes from, for messages: "bundled", "installed: PACKAGE VERSION", "folder: PATH"
    plugin: Plugin | None  # None: broken, see ``error``
    error: str | None = None


def all_plugins() -> list[DiscoveredPlugin]:
    """All plugins in order of discovery, the core first. Broken ones have their ``error`` set.

    Two plugins of the same name are both marked as broken, since it is not known which is meant; the core is not.
    """
    core, *plugins = (*_discovered(os.environ.get(VARIABLE, "")), *_temporary)
    origins: dict[str, list[str]] = {}
    for plugin in (core, *plugins):
        origins.setdefault(plugin.name, []).append(plugin.origin)
    for index, plugin in enumerate(plugins):
        if len(origins[plugin.name]) > 1:
            both = " and ".join(origins[plugin.name])
            error = f"two plugins are called {plugin.name!r} ({both}); remove or rename one"
            plugins[index] = replace(plugin, plugin=None, error=error)
    return [core, *plugins]


@contextmanager
def with_plugins(*more: DiscoveredPlugin) -> Iterator[None]:
    """Within the block, add plugins to this process, to check a manifest; those whose name is taken are ignored."""
    taken = {plugin.name for plugin in all_plugins()}
    before = list(_temporary)
    _temporary.extend({plugin.name: plugin for plugin in more if plugin.name not in taken}.values())
    try:
        yield
    finally:
        _temporary[:] = before


def add_path(path: str | Path) -> None:
    """Add a plugin folder, or a folder of plugins, to this process and its workers (``--plugin PATH``).

    Raises :class:`MaemmError` where the folder holds no manifest.
    """
    folder = Path(os.path.expanduser(path)).resolve()
    if not folder.is_dir():
        raise MaemmError(f"--plugin {path} is not a folder; give the folder that holds the plugin's __init__.py")
    if not (folder / "__init__.py").is_file() and not _packages_in(str(folder)):
        raise MaemmError(f"--plugin {path} holds no __init__.py; give the folder that holds the plugin's manifest")
    entries = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    if str(folder) not in entries:
        os.environ[VARIABLE] = os.pathsep.join([*entries, str(folder)])


@lru_cache(maxsize=8)
def _discovered(variable: str) -> tuple[DiscoveredPlugin, ...]:
    core = DiscoveredPlugin("core", "maemm", "maemm", CORE)
    return (core, *_bundled(), *_installed(), *_folders(variable))


def _bundled() -> Iterator[DiscoveredPlugin]:
    try:
        home = importlib.import_module(HOME).__path__[0]
    except ModuleNotFoundError as error:
        raise MaemmError(f"the bundled plugins are not installed ({error}); run: pip install -e .") from None
    for name in _packages_in(home):
        yield _import(f"{HOME}.{name}", Path(home) / name, "bundled")


def _installed() -> Iterator[DiscoveredPlugin]:
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        dist = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
        origin = f"installed: {dist}"
        try:
            plugin = point.load()
        except MaemmError as error:
            yield DiscoveredPlugin(point.name, point.module, origin, None, str(error))
        except (Exception, SystemExit) as error:  # whatever a package raises when it is imported
            yield DiscoveredPlugin(point.name, point.module, origin, None, import_failure(error))
        else:
            yield _checked(plugin, point.name, point.module, origin)


def _folders(variable: str) -> Iterator[DiscoveredPlugin]:
    if not variable:
        return
    search = importlib.import_module(HOME).__path__
    seen: set[Path] = set()
    for entry in filter(None, variable.split(os.pathsep)):
        folder = Path(os.path.abspath(entry))
        single = (folder / "__init__.py").is_file()
        parent = str(folder.parent if single else folder)
        if parent not in search:
            search.append(parent)
        for name in [folder.name] if single else _packages_in(parent):
            path = Path(parent) / name
            if path not in seen:  # a plugin and its parent folder may both be given
                seen.add(path)
                yield _import(f"{HOME}.{name}", path, f"folder: {path}")


def _packages_in(folder: str) -> list[str]:
    """Names of the packages in a folder, sorted; those that start with _ or . are not plugins."""
    if not os.path.isdir(folder):
        return []
    names = sorted(name for name in os.listdir(folder) if name[0] not in "._")
    return [name for name in names if os.path.isfile(os.path.join(folder, name, "__init__.py"))]


def _import(package: str, folder: Path, origin: str) -> DiscoveredPlugin:
    name = folder.name
    if not NAME.fullmatch(name):
        return DiscoveredPlugin(name, package, origin, None, f"folder name {name!r} is not a plain name; rename it")
    try:
        module = importlib.import_module(package)
    except MaemmError as error:
        return DiscoveredPlugin(name, package, origin, None, str(error))
    except (Exception, SystemExit) as error:  # a broken plugin must not break the others
        return DiscoveredPlugin(name, package, origin, None, import_failure(error))
    if Path(module.__file__ or "").resolve().parent != folder.resolve():
        # Another folder of that name was imported first: all_plugins() reports the name twice, with both origins.
        return DiscoveredPlugin(name, package, origin, None, f"hidden by {module.__file__}")
    return _checked(getattr(module, "plugin", None), name, package, origin)


def _checked(plugin: Any, name: str, package: str, origin: str) -> DiscoveredPlugin:
    if not isinstance(plugin, Plugin):
        error = "no manifest; its __init__.py must say plugin = Plugin(...)"
        return DiscoveredPlugin(name, package, origin, None, error)
    return DiscoveredPlugin(plugin.name, package, origin, plugin)


def import_failure(error: BaseException) -> str:
    """``Type: text`` of an error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clear_cache() -> None:
    """Discover plugins again at the next call, as their files may have changed."""
    _discovered.cache_clear()
    importlib.invalidate_caches()
