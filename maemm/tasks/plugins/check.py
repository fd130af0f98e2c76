"""``maemm plugins check NAME|PATH [part.option=value ...]``: the conformance suite as a table."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from maemm import registry
from maemm.config import reader
from maemm.config.names import shown
from maemm.contract.errors import MaemmError, advice
from maemm.registry import DiscoveredPlugin

if TYPE_CHECKING:
    from maemm.testing import Result

FAILED = 1
_NO_PLUGINS = ("tests", "test", "docs", "examples", "build", "dist")


def run(what: str, overrides: list[str], flags: Namespace) -> int:
    """Check an installed plugin or the one in a folder. Returns 0, or 1 where a rule is not kept."""
    found, options = find(what), _options(overrides)
    from maemm.testing import checks_of
    from maemm.testing.suite import result_of

    checks = checks_of(found.plugin, options, found.package)
    width = max(len(one.name) for one in checks)
    if not flags.json:
        print(f"{found.name} {found.plugin.version} ({found.origin}): {len(checks)} checks")
    results, part = [], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries; the table must stay readable
        for check in checks:
            result = result_of(check)
            results.append(result)
            if flags.json:
                continue
            if check.where != part:
                part = check.where
                print(f"\n{part or 'the manifest'}")
            print(_lines(result, width))
            sys.stdout.flush()
    failed = [one for one in results if not one.passed]
    if flags.json:
        print(json.dumps(_as_dict(found, results), indent=2))
    else:
        print(f"\n{_sum(results)}")
    return FAILED if failed else 0


def _lines(result: Result, width: int) -> str:
    name = f"  {result.check:<{width}}  "
    if not result.applies:
        return f"{name}n/a     {result.message.removeprefix('does not apply: ')}"
    if result.deviates:
        return f"{name}by design: {result.deviates}"
    if result.passed:
        return f"{name}passed"
    found = result.message.removesuffix(f"; {result.change}")
    rows = [("rule", result.rule), ("found", found), ("change", result.change)]
    return "\n".join([f"{name}FAILED", *(_wrapped(title, text) for title, text in rows)])


def _wrapped(title: str, text: str) -> str:
    return fill(text, 116, initial_indent=f"      {title + ':':<8}", subsequent_indent=" " * 14, break_on_hyphens=False)


def _sum(results: list[Result]) -> str:
    failed = sum(not one.passed for one in results)
    silent = sum(not one.applies for one in results)
    design = sum(bool(one.deviates) for one in results)
    passed = len(results) - failed - silent - design
    kept = f"{passed} passed, {failed} failed, {silent} not applicable"
    return f"{len(results)} checks: {kept}" + (f", {design} not kept by design" if design else "")


def _as_dict(found: DiscoveredPlugin, results: list[Result]) -> dict[str, Any]:
    failed = sum(not one.passed for one in results)
    rows = [asdict(one) for one in results]
    return {"plugin": found.name, "origin": found.origin, "failed": failed, "checks": rows}


def _options(overrides: list[str]) -> dict[str, dict[str, Any]]:
    """``["sonar.size=64"]`` -> {"sonar": {"size": 64}}."""
    found: dict[str, dict[str, Any]] = {}
    for word in overrides:
        key, _, text = word.partition("=")
        part, _, option = key.rpartition(".")
        if not part:
            raise MaemmError(f"{word!r} names no part; write part.option=value, such as sonar.size=64")
        found.setdefault(part, {})[option] = reader.value(text, key)
    return found


# -------------------------------------------------------------------------------------------------- finding it
def find(what: str) -> DiscoveredPlugin:
    """A plugin by its name, or by the folder of its package or of its project.

    Raises :class:`MaemmError` for what is neither, and for a plugin that cannot be imported.
    """
    path = Path(what).expanduser()
    if any(one.name == what for one in registry.all()) or not path.exists():
        try:
            return registry.get(what)
        except MaemmError as error:
            if not str(error).startswith("unknown"):
                raise
            known = [one.name for one in registry.all()]
            raise MaemmError(f"no plugin and no folder is called {what!r}; {advice(what, known)}") from None
    folder = _package_in(path)
    one = _at(folder)
    if one is None:
        registry.add_path(folder)
        one = _at(folder)
    if one is None:
        raise MaemmError(f"{shown(folder)} cannot be used as a plugin; see: maemm plugins")
    if one.plugin is None:
        raise MaemmError(f"plugin {one.name!r} ({one.origin}) cannot be used: {one.error}")
    return one


def _at(folder: Path) -> DiscoveredPlugin | None:
    """The plugin whose manifest lies in a folder, installed or not."""
    for one in registry.all():
        if one.origin == f"folder: {folder}":
            return one
        try:
            home = Path(importlib.import_module(one.package).__file__ or "").resolve().parent
        except (Exception, SystemExit):  # a broken plugin, whatever it does
            continue
        if home == folder:
            return one
    return None


def _package_in(path: Path) -> Path:
    """The folder of the manifest: this one, or the only package in a project's folder or in its ``src``."""
    if not path.is_dir():
        raise MaemmError(f"{path} is no folder; give the folder of a plugin, or its name")
    path = path.resolve()
    if (path / "__init__.py").is_file():
        return path
    for above in (path, path / "src"):
        inside = [one.parent for one in sorted(above.glob("[!._]*/__init__.py")) if one.parent.name not in _NO_PLUGINS]
        if len(inside) == 1:
            return inside[0]
        if inside:
            names = ", ".join(one.name for one in inside)
            raise MaemmError(f"{path} holds several packages ({names}); give the folder of one")
    raise MaemmError(f"{path} holds no package; give the folder with the manifest's __init__.py")
