"""``maemm plugins check NAME|PATH [part.option=value ...]``: the conformance suite as a table."""

from __future__ import annotations

import importlib
import warnings
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from maemm import registry
from maemm.config import reader
from maemm.config.names import shown
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError, advice
from maemm.registry import DiscoveredPlugin
from maemm.testing import Result, checks_of
from maemm.testing.suite import result_of
from maemm.ui.streams import print_json, print_result

FAILED = 1  # exit status where a rule is not kept
_NOT_PLUGINS = ("tests", "test", "docs", "examples", "build", "dist")  # packages beside the plugin's in a project
_WIDTH = 116  # of lines about a failure


def run(name: str, overrides: list[str], flags: Namespace) -> int:
    """Check an installed plugin, or the one in a folder. Returns 0, or 1 where a rule is not kept."""
    discovered, options = find(name), _part_options(overrides)
    assert discovered.plugin is not None  # find raises for a broken one
    checks = checks_of(discovered.plugin, options, discovered.package)
    if not flags.json:
        print_result(f"{discovered.name} {discovered.plugin.version} ({discovered.origin}): {len(checks)} checks")
    results: list[Result] = []
    width, part = max(len(check.name) for check in checks), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, between the rows of the table
        for check in checks:
            results.append(result_of(check))
            if flags.json:
                continue
            if check.where != part:
                part = check.where
                print_result(f"\n{part or 'the manifest'}")
            print_result(_result_text(results[-1], width))
    counts = Counter(_outcome(result) for result in results)
    if flags.json:
        record = {
            "plugin": discovered.name,
            "origin": discovered.origin,
            "failed": counts["failed"],
            "checks": [asdict(result) for result in results],
        }
        print_json(record, indent=2)
    else:
        summary = f"{counts['passed']} passed, {counts['failed']} failed, {counts['not applicable']} not applicable"
        by_design = f", {counts['by design']} not kept by design" if counts["by design"] else ""
        print_result(f"\n{len(results)} checks: {summary}{by_design}")
    return FAILED if counts["failed"] else 0


def _outcome(result: Result) -> str:
    if not result.applies:
        return "not applicable"
    if result.deviates:
        return "by design"
    return "passed" if result.passed else "failed"


def _result_text(result: Result, width: int) -> str:
    """A row of the table; ``width``: of the column of names."""
    outcome = _outcome(result)
    text = {
        "not applicable": f"n/a     {result.message.removeprefix('does not apply: ')}",
        "by design": f"by design: {result.deviates}",
        "passed": "passed",
        "failed": "FAILED",
    }[outcome]
    lines = [f"  {result.check:<{width}}  {text}"]
    if outcome == "failed":
        problem = result.message.removesuffix(f"; {result.change}")
        for title, detail in (("rule:", result.rule), ("found:", problem), ("change:", result.change)):
            indent = f"      {title:<8}"
            lines.append(
                fill(detail, _WIDTH, initial_indent=indent, subsequent_indent=" " * 14, break_on_hyphens=False)
            )
    return "\n".join(lines)


def _part_options(overrides: list[str]) -> dict[str, dict[str, Any]]:
    """``["sonar.size=64"]`` -> {"sonar": {"size": 64}}. Raises :class:`MaemmError` for a key without a part."""
    options: dict[str, dict[str, Any]] = {}
    for word in overrides:
        key, _, text = word.partition("=")
        part, _, option = key.rpartition(".")
        if not part:
            raise MaemmError(f"{word!r} names no part; write part.option=value, such as sonar.size=64")
        options.setdefault(part, {})[option] = reader.value(text, key)
    return options


# -------------------------------------------------------------------------------------------------- finding it
def find(name: str) -> DiscoveredPlugin:
    """A plugin by its name, or by the folder of its package or project.

    Raises :class:`MaemmError` where there is none, and for a plugin that cannot be imported.
    """
    path = expanded(name)
    names = [plugin.name for plugin in registry.all_plugins()]
    if name in names:
        return registry.get(name)
    if not path.exists():
        raise MaemmError(f"no plugin and no folder is called {name!r}; {advice(name, names)}")
    folder = _package_in(path)
    plugin = _plugin_in(folder)
    if plugin is None:
        registry.add_path(folder)
        plugin = _plugin_in(folder)
    if plugin is None:
        raise MaemmError(f"{shown(folder)} cannot be used as a plugin; see: maemm plugins")
    if plugin.plugin is None:
        raise MaemmError(f"plugin {plugin.name!r} ({plugin.origin}) cannot be used: {plugin.error}")
    return plugin


def _plugin_in(folder: Path) -> DiscoveredPlugin | None:
    """The plugin whose manifest lies in ``folder``, installed or not."""
    for plugin in registry.all_plugins():
        if plugin.origin == f"folder: {folder}":
            return plugin
        try:
            manifest = Path(importlib.import_module(plugin.package).__file__ or "")
        except (Exception, SystemExit):  # whatever a broken plugin does on import
            continue
        if manifest.resolve().parent == folder:
            return plugin
    return None


def _package_in(path: Path) -> Path:
    """The folder of the manifest: ``path``, or the only package in a project's folder or in its ``src``."""
    if not path.is_dir():
        raise MaemmError(f"{path} is not a folder; give the folder of a plugin, or its name")
    path = path.resolve()
    if (path / "__init__.py").is_file():
        return path
    for parent in (path, path / "src"):
        packages = [file.parent for file in sorted(parent.glob("[!._]*/__init__.py"))]
        packages = [package for package in packages if package.name not in _NOT_PLUGINS]
        if len(packages) == 1:
            return packages[0]
        if packages:
            names = ", ".join(package.name for package in packages)
            raise MaemmError(f"{path} holds several packages ({names}); give the folder of one")
    raise MaemmError(f"{path} holds no package; give the folder with the manifest's __init__.py")
