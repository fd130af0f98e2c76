"""How plugins are found: the core's own parts, the bundled plugins, installed packages with the entry point group
``maemm.plugins``, and the folders of ``--plugin PATH`` (``MAEMM_PLUGIN_PATH``, which reaches worker processes).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

_extra: list[DiscoveredPlugin] = []  # see :func:`with_plugins`


@dataclass(frozen=True)
class DiscoveredPlugin:
    """A plugin that was found, or what is left of it when it could not be imported."""

    name: str
    package: str  # import name of the manifest's package
    origin: str  # where it comes from, in words
    plugin: Plugin | None  # None: broken, see ``error``
    error: str | None = None


def all() -> list[DiscoveredPlugin]:
    """Every plugin in order of discovery, the core first. Broken ones are listed with the reason.

    Of two plugins with one name neither can be used, since nobody knows which is meant; the others can.
    """
    found = [*_discovered(os.environ.get(VARIABLE, "")), *_extra]
    origins: dict[str, list[str]] = {}
    for one in found:
        origins.setdefault(one.name, []).append(one.origin)
    return [one if len(origins[one.name]) == 1 or one is found[0] else _twin(one, origins[one.name]) for one in found]


def _twin(one: DiscoveredPlugin, origins: list[str]) -> DiscoveredPlugin:
    error = f"two plugins are called {one.name!r} ({' and '.join(origins)}); remove or rename one"
    return DiscoveredPlugin(one.name, one.package, one.origin, None, error)


@contextmanager
def with_plugins(*more: DiscoveredPlugin) -> Iterator[None]:
    """Within the block, further plugins in this process, for those whose name is free: a manifest that is checked."""
    taken = {plugin.name for plugin in all()}
    before = list(_extra)
    _extra.extend({plugin.name: plugin for plugin in more if plugin.name not in taken}.values())
    try:
        yield
    finally:
        _extra[:] = before


def add_path(path: str | Path) -> None:
    """Add a plugin folder, or a folder of plugins, for this process and its workers (``--plugin PATH``)."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise MaemmError(f"--plugin {path} is no folder; give the folder that holds the plugin's __init__.py")
    if not (folder / "__init__.py").is_file() and not _packages_in(str(folder)):
        raise MaemmError(f"--plugin {path} holds no __init__.py; give the folder that holds the plugin's manifest")
    entries = [one for one in os.environ.get(VARIABLE, "").split(os.pathsep) if one]
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
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda one: one.name):
        dist = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
        origin = f"installed: {dist}"
        try:
            plugin = point.load()
        except MaemmError as error:
            yield DiscoveredPlugin(point.name, point.module, origin, None, str(error))
        except (Exception, SystemExit) as error:  # whatever a foreign package does on import
            yield DiscoveredPlugin(point.name, point.module, origin, None, reason_of(error))
        else:
            yield _checked(plugin, point.name, point.module, origin)


def _folders(variable: str) -> Iterator[DiscoveredPlugin]:
    if not variable:
        return
    search = importlib.import_module(HOME).__path__
    seen: set[Path] = set()
    for entry in (os.path.abspath(one) for one in variable.split(os.pathsep) if one):
        folder = Path(entry)
        single = (folder / "__init__.py").is_file()
        parent = str(folder.parent if single else folder)
        if parent not in search:
            search.append(parent)
        for name in [folder.name] if single else _packages_in(parent):
            path = Path(parent) / name
            if path not in seen:  # a plugin and the folder that holds it may both be given
                seen.add(path)
                yield _import(f"{HOME}.{name}", path, f"folder: {path}")


def _packages_in(folder: str) -> list[str]:
    """Names of the packages in a folder; those that start with _ or . are not plugins."""
    if not os.path.isdir(folder):
        return []
    names = sorted(one for one in os.listdir(folder) if one[0] not in "._")
    return [one for one in names if os.path.isfile(os.path.join(folder, one, "__init__.py"))]


def _import(package: str, folder: Path, origin: str) -> DiscoveredPlugin:
    name = folder.name
    if not NAME.fullmatch(name):
        return DiscoveredPlugin(name, package, origin, None, f"folder name {name!r} is not a plain name; rename it")
    try:
        module = importlib.import_module(package)
    except MaemmError as error:
        return DiscoveredPlugin(name, package, origin, None, str(error))
    except (Exception, SystemExit) as error:  # one broken plugin must not take the others with it
        return DiscoveredPlugin(name, package, origin, None, reason_of(error))
    if Path(module.__file__ or "").resolve().parent != folder.resolve():
        # Another folder of that name came first: the same name twice, which all() reports with both origins.
        return DiscoveredPlugin(name, package, origin, None, f"hidden by {module.__file__}")
    return _checked(getattr(module, "plugin", None), name, package, origin)


def _checked(plugin: Any, name: str, package: str, origin: str) -> DiscoveredPlugin:
    if not isinstance(plugin, Plugin):
        return DiscoveredPlugin(
            name, package, origin, None, "no manifest; its __init__.py must say plugin = Plugin(...)"
        )
    return DiscoveredPlugin(plugin.name, package, origin, plugin)


def reason_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def forget() -> None:
    """Look for plugins again at the next call, also for those whose files have changed."""
    _discovered.cache_clear()
    importlib.invalidate_caches()
