"""A part by its role and name."""

from __future__ import annotations

import importlib
from typing import Any

from maemm.contract.errors import MaemmError, advice
from maemm.registry.discovery import HOME, DiscoveredPlugin, all, reason_of
from maemm.registry.manifest import ROLES, SINGULAR


def find(role: str, name: str) -> Any:
    """The class (or function) called ``name`` in a role: ``find("encoders", "vit")``. Imports it when asked for.

    Raises :class:`MaemmError`: unknown name (with the nearest), two plugins that claim it, a broken plugin,
    a missing package.
    """
    found, target = where(role, name)
    module, attribute = target.split(":")
    what = f"{SINGULAR[role]} {name!r} of plugin {found.name!r}"
    try:
        return getattr(importlib.import_module(f"{found.package}.{module}"), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in {"maemm", HOME, found.package.split(".")[0]}:
            raise MaemmError(f"{what} cannot be imported ({error}); fix the plugin ({found.origin})") from error
        raise MaemmError(f"{what} needs the package {missing!r}; run: pip install {missing}") from error
    except AttributeError as error:
        raise MaemmError(f"{what} cannot be imported ({error}); fix the plugin ({found.origin})") from error
    except MaemmError:
        raise
    except (Exception, SystemExit) as error:
        raise MaemmError(f"{what} cannot be imported ({reason_of(error)}); fix the plugin ({found.origin})") from error


def where(role: str, name: str) -> tuple[DiscoveredPlugin, str]:
    """The plugin that brings the part ``name``, and its "module:Name". Imports no part."""
    if role not in ROLES:
        raise MaemmError(f"unknown role {role!r}; {advice(role, ROLES)}")
    owners = [
        (one, getattr(one.plugin, role)[name]) for one in all() if one.plugin and name in getattr(one.plugin, role)
    ]
    if len(owners) > 1:
        origins = " and ".join(f"{one.name} ({one.origin})" for one, _ in owners)
        raise MaemmError(f"{SINGULAR[role]} {name!r} is claimed by two plugins: {origins}; remove one")
    if not owners:
        raise MaemmError(_unknown(role, name))
    return owners[0]


def names(role: str) -> list[str]:
    """Names of all parts in a role, sorted."""
    return sorted({name for one in all() if one.plugin for name in getattr(one.plugin, role)})


def get(name: str) -> DiscoveredPlugin:
    """The plugin called ``name``; raises :class:`MaemmError` when there is none or when it is broken."""
    known = {one.name: one for one in reversed(all())}  # the core before one that has its name
    if name not in known:
        raise MaemmError(f"unknown plugin {name!r}; {advice(name, known)}")
    if known[name].plugin is None:
        raise MaemmError(f"plugin {name!r} ({known[name].origin}) cannot be used: {known[name].error}")
    return known[name]


def _unknown(role: str, name: str) -> str:
    text = f"unknown {SINGULAR[role]} {name!r}; {advice(name, names(role))}"
    broken = [one for one in all() if one.error]
    own = [one for one in broken if one.name == name]
    if own:  # a plugin's main part usually has its name
        return f"{SINGULAR[role]} {name!r} is missing since its plugin ({own[0].origin}) is broken: {own[0].error}"
    if broken:
        text += f" (broken plugins: {', '.join(one.name for one in broken)}; see maemm plugins)"
    return text
