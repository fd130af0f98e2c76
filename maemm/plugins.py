"""Plugins: the manifest that each one gives, how they are found, and how a part is looked up by name.

A manifest is an object of strings, so that listing plugins imports neither torch nor any reader of files::

    plugin = Plugin(name="sonar", version="0.1.0", contract=1, summary="side-scan sonar",
                    modalities={"sonar": "modality:Sonar"}, sources={"sonar": "sources:open_sonar"})

Found in this order: the core's own parts, the bundled plugins, installed packages with the entry point group
``maemm.plugins``, and the folders of ``--plugin PATH`` (``MAEMM_PLUGIN_PATH``, which reaches worker processes).
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from maemm.errors import MaemmError
from maemm.nearest import advice

CONTRACT = 1  # maemm.contract.CONTRACT_VERSION, which cannot be read here without importing torch
GROUP = "maemm.plugins"
HOME = "maemm_plugins"  # the package of the bundled plugins, to which local folders are added
VARIABLE = "MAEMM_PLUGIN_PATH"
ROLES = (
    "modalities",
    "sources",
    "maskings",
    "encoders",
    "decoders",
    "targets",
    "objectives",
    "heads",
    "weights",
    "packs",
    "samples",
)
SINGULAR = {role: role[:-1] for role in ROLES} | {
    "modalities": "modality",
    "weights": "weights kind",
    "samples": "sample set",
}
PLURAL = {role: role for role in ROLES} | {"weights": "weights kinds", "samples": "sample sets"}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Plugin:
    """The manifest of a plugin. Each role maps names to ``"module:Name"``, relative to the manifest's package.

    Raises :class:`MaemmError` when it is made for another contract or when a name or an object is malformed.
    """

    name: str
    version: str
    contract: int
    summary: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    maskings: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    decoders: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    packs: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, str] = field(default_factory=dict)
    demo: str | None = None  # the recipe that ``maemm demo`` runs
    files: Mapping[str, str] = field(default_factory=dict)  # {recipe: ".ply .xyz"}: what show takes for such files
    deviations: Mapping[str, str] = field(default_factory=dict)  # {"check[part]": why that rule is not for that part}

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise MaemmError(f"plugin name {self.name!r} is not a plain name; use letters, digits and _")
        if self.contract != CONTRACT:
            raise MaemmError(
                f"plugin {self.name!r} is made for contract {self.contract!r}, this maemm has {CONTRACT}; "
                "install matching versions"
            )
        for one in fields(self)[:4]:
            if one.name != "contract" and not isinstance(getattr(self, one.name), str):
                raise MaemmError(f"plugin {self.name!r}: {one.name} must be a text")
        if self.demo is not None and not isinstance(self.demo, str):
            raise MaemmError(f"plugin {self.name!r}: demo must be the name of a recipe")
        self._check_files()
        self._check_deviations()
        for role in ROLES:
            self._check_role(role, getattr(self, role))

    def _check_files(self) -> None:
        good = isinstance(self.files, Mapping)  # all() is this module's own
        good = good and not any(not isinstance(one, str) for pair in self.files.items() for one in pair)
        if not good or any(one[0] != "." or one.lower() != one for text in self.files.values() for one in text.split()):
            raise MaemmError(f"plugin {self.name!r}: files must be a dict of recipe: '.ending .ending', in lower case")

    def _check_deviations(self) -> None:
        texts = self.deviations.items() if isinstance(self.deviations, Mapping) else [(None, None)]
        for rule, reason in texts:
            if not isinstance(rule, str) or not isinstance(reason, str) or not reason.strip():
                raise MaemmError(f"plugin {self.name!r}: deviations must be a dict of 'check[part]': reason")

    def _check_role(self, role: str, parts: Any) -> None:
        if not isinstance(parts, Mapping):
            raise MaemmError(f"plugin {self.name!r}: {role} must be a dict of name: 'module:Name'")
        for name, target in parts.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise MaemmError(f"plugin {self.name!r}: {role} has the name {name!r}; use letters, digits and _")
            if not isinstance(target, str) or not _OBJECT.fullmatch(target):
                raise MaemmError(f"plugin {self.name!r}: {role}.{name} is {target!r}; write 'module:Name'")

    def parts(self) -> Iterator[tuple[str, str, str]]:
        """(role, name, "module:Name") of everything it brings."""
        for role in ROLES:
            for name, target in getattr(self, role).items():
                yield role, name, target


@dataclass(frozen=True)
class Found:
    """A plugin that was found, or what is left of it when it could not be imported."""

    name: str
    package: str  # import name of the manifest's package
    origin: str  # where it comes from, in words
    plugin: Plugin | None  # None: broken, see ``error``
    error: str | None = None


CORE = Plugin(
    name="core",
    version=str(CONTRACT),
    contract=CONTRACT,
    summary="parts that fit any modality",
    sources={"paired": "data.paired:open_paired"},
    maskings={
        "random": "masking.random:Random",
        "block": "masking.block:Block",
        "inverse_block": "masking.block:InverseBlock",
        "several": "masking.several:Several",
    },
    encoders={"vit": "encoders.vit:ViT", "streams": "encoders.streams:Streams"},
    decoders={"full": "decoders.full:Full"},
    objectives={
        "classify": "objectives.classify:Classify",
        "reconstruct": "objectives.reconstruct:Reconstruct",
        "contrastive": "objectives.contrastive:Contrastive",
    },
    heads={"linear": "heads:Linear", "probe": "heads:Probe"},
)


# ------------------------------------------------------------------------------------------------- discovery
def all() -> list[Found]:
    """Every plugin in order of discovery, the core first. Broken ones are listed with the reason.

    Of two plugins with one name neither can be used, since nobody knows which is meant; the others can.
    """
    found = list(_discovered(os.environ.get(VARIABLE, "")))
    origins: dict[str, list[str]] = {}
    for one in found:
        origins.setdefault(one.name, []).append(one.origin)
    return [one if len(origins[one.name]) == 1 or one is found[0] else _twin(one, origins[one.name]) for one in found]


def _twin(one: Found, origins: list[str]) -> Found:
    error = f"two plugins are called {one.name!r} ({' and '.join(origins)}); remove or rename one"
    return Found(one.name, one.package, one.origin, None, error)


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
def _discovered(variable: str) -> tuple[Found, ...]:
    core = Found("core", "maemm", "maemm", CORE)
    return (core, *_bundled(), *_installed(), *_folders(variable))


def _bundled() -> Iterator[Found]:
    try:
        home = importlib.import_module(HOME).__path__[0]
    except ModuleNotFoundError as error:
        raise MaemmError(f"the bundled plugins are not installed ({error}); run: pip install -e .") from None
    for name in _packages_in(home):
        yield _import(f"{HOME}.{name}", Path(home) / name, "bundled")


def _installed() -> Iterator[Found]:
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda one: one.name):
        dist = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
        origin = f"installed: {dist}"
        try:
            plugin = point.load()
        except MaemmError as error:
            yield Found(point.name, point.module, origin, None, str(error))
        except (Exception, SystemExit) as error:  # whatever a foreign package does on import
            yield Found(point.name, point.module, origin, None, _reason(error))
        else:
            yield _checked(plugin, point.name, point.module, origin)


def _folders(variable: str) -> Iterator[Found]:
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


def _import(package: str, folder: Path, origin: str) -> Found:
    name = folder.name
    if not _NAME.fullmatch(name):
        return Found(name, package, origin, None, f"folder name {name!r} is not a plain name; rename it")
    try:
        module = importlib.import_module(package)
    except MaemmError as error:
        return Found(name, package, origin, None, str(error))
    except (Exception, SystemExit) as error:  # one broken plugin must not take the others with it
        return Found(name, package, origin, None, _reason(error))
    if Path(module.__file__ or "").resolve().parent != folder.resolve():
        # Another folder of that name came first: the same name twice, which all() reports with both origins.
        return Found(name, package, origin, None, f"hidden by {module.__file__}")
    return _checked(getattr(module, "plugin", None), name, package, origin)


def _checked(plugin: Any, name: str, package: str, origin: str) -> Found:
    if not isinstance(plugin, Plugin):
        return Found(name, package, origin, None, "no manifest; its __init__.py must say plugin = Plugin(...)")
    return Found(plugin.name, package, origin, plugin)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --------------------------------------------------------------------------------------------------- look-up
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
            raise MaemmError(f"{what} cannot be imported ({error}); mend the plugin ({found.origin})") from error
        raise MaemmError(f"{what} needs the package {missing!r}; run: pip install {missing}") from error
    except AttributeError as error:
        raise MaemmError(f"{what} cannot be imported ({error}); mend the plugin ({found.origin})") from error
    except MaemmError:
        raise
    except (Exception, SystemExit) as error:
        raise MaemmError(f"{what} cannot be imported ({_reason(error)}); mend the plugin ({found.origin})") from error


def where(role: str, name: str) -> tuple[Found, str]:
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


def get(name: str) -> Found:
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


def forget() -> None:
    """Look for plugins again at the next call, also for those whose files have changed."""
    _discovered.cache_clear()
    importlib.invalidate_caches()
