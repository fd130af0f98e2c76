"""``maemm plugins check NAME|PATH [part.option=value ...]``: the conformance suite as a table."""

from __future__ import annotations

import importlib
import shutil
import warnings
from argparse import Namespace
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from maemm import registry
from maemm.config import reader
from maemm.config.names import shown
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError, advice
from maemm.registry import DiscoveredPlugin
from maemm.testing import Check, Result, checks_of
from maemm.testing.suite import result_of
from maemm.ui.streams import print_json, print_result

FAILED = 1  # exit status where a rule is not kept
_NOT_PLUGINS = ("tests", "test", "docs", "examples", "build", "dist")  # packages beside the plugin's in a project
_NARROWEST, _WIDEST = 60, 116  # of the lines that are printed, in characters
_FEW = 3  # checks that are named where they do not apply for one reason; of more, the number is printed


def run(name: str, overrides: list[str], flags: Namespace, every: bool = False) -> int:
    """Check an installed plugin, or the one in a folder. Returns 0, or 1 where a rule is not kept.

    ``every``: print a row for every check, not only for those that have not passed.
    """
    discovered, options = find(name), _part_options(overrides)
    assert discovered.plugin is not None  # find raises for a broken one
    checks = checks_of(discovered.plugin, options, discovered.package)
    results: list[Result] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, between the rows of the table
        if flags.json:
            results = [result_of(check) for check in checks]
        else:
            print_result(f"{discovered.name} {discovered.plugin.version} ({discovered.origin}): {len(checks)} checks\n")
            groups = [list(group) for _, group in groupby(checks, lambda check: check.where)]
            width = max(len(_title(group, groups)) for group in groups)
            for group in groups:
                print(f"{_title(group, groups):<{width}}", end="  ", flush=True)
                here = [result_of(check) for check in group]
                results += here
                print_result("\n".join([_counts(here), *_rows(group, here, checks, every)]))
    if flags.json:
        record = {
            "plugin": discovered.name,
            "origin": discovered.origin,
            "failed": sum(result.outcome == "failed" for result in results),
            "checks": [asdict(result) | {"outcome": result.outcome} for result in results],
        }
        print_json(record, indent=2)
    else:
        print_result(f"\n{len(results)} checks: {_counts(results, always=('passed', 'failed'))}")
    return FAILED if any(result.outcome == "failed" for result in results) else 0


def _title(group: list[Check], groups: list[list[Check]]) -> str:
    """Which part a group of checks is about."""
    return group[0].where or ("the manifest" if group is groups[0] else "all parts together")


def _counts(results: list[Result], always: tuple[str, ...] = ()) -> str:
    """``31 passed, 1 failed, 18 skipped``; of the outcomes ``always`` also that there are 0."""
    counts = Counter(result.outcome for result in results)
    words = {"by design": "not kept by design"}
    outcomes = ("passed", "failed", "skipped", "not applicable", "by design")
    counted = [outcome for outcome in outcomes if counts[outcome] or outcome in always]
    return ", ".join(f"{counts[outcome]} {words.get(outcome, outcome)}" for outcome in counted)


def _rows(group: list[Check], results: list[Result], checks: list[Check], every: bool) -> list[str]:
    """The rows of the table below the line of a part."""
    width = max(len(check.name) for check in checks)
    rows, reasons = [], defaultdict(list)
    for check, result in zip(group, results, strict=True):
        if result.outcome == "failed":
            rows += _failure(check, result, checks)
        elif result.outcome == "by design":
            rows += _wrapped(f"  {result.check}  by design: ", result.deviates)
        elif every:
            text = result.message.removeprefix("does not apply: ") if not result.applies else ""
            text = f"n/a: {text}" if text else result.message or result.outcome
            rows += _wrapped(f"  {result.check:<{width}}  ", text)
        elif not result.applies and result.used:
            reasons[result.message.removeprefix("does not apply: ")].append(result.check)
    for reason, names in reasons.items():
        rows += _wrapped(f"  n/a: {', '.join(names) if len(names) <= _FEW else f'{len(names)} checks'}: ", reason)
    return rows


def _failure(check: Check, result: Result, checks: list[Check]) -> list[str]:
    """A failed check: the rule, what is wrong, what to change, and how many checks were skipped for it."""
    rows = [f"  {result.check}  FAILED"]
    for title, text in (("rule:", result.rule), ("found:", result.found), ("change:", result.change)):
        rows += _wrapped(f"      {title:<8}", text)
    skipped = sum(other.depends_on(check) for other in checks)
    if skipped:
        rows.append(f"      {skipped} {'check' if skipped == 1 else 'checks'} that depend on it: skipped")
    return rows


def _wrapped(start: str, text: str) -> list[str]:
    """Lines of text that fit the terminal, behind ``start`` or, where that is long, below it."""
    columns = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    indent = " " * (len(start) if len(start) <= 14 else 6)
    return wrap(start + text, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


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
