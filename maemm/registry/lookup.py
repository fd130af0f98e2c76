"""Look up a part by its role and name."""

from __future__ import annotations

import importlib
from typing import Any

from maemm.contract.errors import MaemmError, advice
from maemm.registry.discovery import HOME, DiscoveredPlugin, all_plugins, import_failure
from maemm.registry.manifest import ROLES, SINGULAR


def find(role: str, name: str) -> Any:
    """Import and return the class (or function) called ``name`` in a role: ``find("encoders", "vit")``.

    Raises :class:`MaemmError`: unknown name (with the closest one), two plugins that provide it, a broken plugin,
    a missing package.
    """
    plugin, target = owner_of(role, name)
    module, attribute = target.split(":")
    title = f"{SINGULAR[role]} {name!r} of plugin {plugin.name!r}"
    try:
        return getattr(importlib.import_module(f"{plugin.package}.{module}"), attribute)
    except MaemmError:
        raise
    except (Exception, SystemExit) as error:  # whatever a plugin's module raises when it is imported
        reason = str(error) if isinstance(error, (ModuleNotFoundError, AttributeError)) else import_failure(error)
        if isinstance(error, ModuleNotFoundError):
            missing = (error.name or "").split(".")[0]
            if missing not in {"maemm", HOME, plugin.package.split(".")[0]}:
                raise MaemmError(f"{title} needs the package {missing!r}; run: pip install {missing}") from error
        raise MaemmError(f"{title} cannot be imported ({reason}); fix the plugin ({plugin.origin})") from error


def owner_of(role: str, name: str) -> tuple[DiscoveredPlugin, str]:
    """The plugin that provides the part ``name``, and its "module:Name". Does not import the part.

    Raises :class:`MaemmError` as :func:`find` does.
    """
    if role not in ROLES:
        raise MaemmError(f"unknown role {role!r}; {advice(role, ROLES)}")
    owners = [plugin for plugin in all_plugins() if plugin.plugin and name in getattr(plugin.plugin, role)]
    if len(owners) > 1:
        origins = " and ".join(f"{plugin.name} ({plugin.origin})" for plugin in owners)
        raise MaemmError(f"{SINGULAR[role]} {name!r} is claimed by two plugins: {origins}; remove one")
    if not owners:
        raise MaemmError(_unknown(role, name))
    return owners[0], getattr(owners[0].plugin, role)[name]


def names(role: str) -> list[str]:
    """Names of all parts in a role, sorted."""
    return sorted({name for plugin in all_plugins() if plugin.plugin for name in getattr(plugin.plugin, role)})


def get(name: str) -> DiscoveredPlugin:
    """The plugin called ``name``; raises :class:`MaemmError` where there is none or where it is broken."""
    plugins = {
        plugin.name: plugin for plugin in reversed(all_plugins())
    }  # reversed: the core wins over a plugin of its name
    if name not in plugins:
        raise MaemmError(f"unknown plugin {name!r}; {advice(name, plugins)}")
    plugin = plugins[name]
    if plugin.plugin is None:
        raise MaemmError(f"plugin {name!r} ({plugin.origin}) cannot be used: {plugin.error}")
    return plugin


def _unknown(role: str, name: str) -> str:
    """The message for a part that no plugin provides, which may be because a plugin is broken."""
    broken = [plugin for plugin in all_plugins() if plugin.error]
    for plugin in broken:
        if plugin.name == name:  # a plugin's main part usually has the plugin's name
            return f"{SINGULAR[role]} {name!r} is missing since its plugin ({plugin.origin}) is broken: {plugin.error}"
    text = f"unknown {SINGULAR[role]} {name!r}; {advice(name, names(role))}"
    if broken:
        text += f" (broken plugins: {', '.join(plugin.name for plugin in broken)}; see maemm plugins)"
    return text
