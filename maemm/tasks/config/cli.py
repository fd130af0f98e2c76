"""``maemm config ls | show RECIPE [key=value ...] | cat RECIPE``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from maemm import config
from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb(
    "config", "ls | show RECIPE [key=value ...] | cat RECIPE", "list recipes, show one resolved, print its file"
)

ACTIONS = ("ls", "show", "cat")


def run(argv: list[str], flags: Namespace) -> int:
    """List recipes, show one resolved with the origin of every value, or print its file."""
    words = verb_parser(VERB).parse_intermixed_args(argv).words
    usage = VERB.usage
    (action, what), overrides = split(words, 1, 2, usage)
    if action not in ACTIONS:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if (action == "ls") != (what is None):
        raise MaemmError(f"{action} takes {'no recipe' if action == 'ls' else 'a recipe'}; write: maemm {usage}")
    if overrides and action != "show":
        raise MaemmError(f"{action} takes no {overrides[0]!r}; use: maemm config show")
    return {"ls": _ls, "show": _show, "cat": _cat}[str(action)](what, overrides, flags.json)


def _ls(what: None, overrides: list[str], as_json: bool) -> int:
    found = {name: config.summary(path) for name, path in config.packaged().items()}
    if as_json:
        print(json.dumps([{"name": name, "summary": text} for name, text in found.items()], indent=2))
        return 0
    width = max((len(name) for name in found), default=0)
    for name, text in found.items():
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _cat(what: str, overrides: list[str], as_json: bool) -> int:
    text = config.locate(what)[1].read_text(encoding="utf-8")
    print(json.dumps({"name": what, "text": text}) if as_json else text, end="" if not as_json else "\n")
    return 0


def _show(what: str, overrides: list[str], as_json: bool) -> int:
    resolved = config.resolve(what, overrides, training=True)
    if as_json:
        origins = {key: resolved.origin(key) for key, _ in _leaves(resolved.values)}
        print(json.dumps({"recipe": resolved.values, "origins": origins}, indent=2))
        return 0
    rows = list(_rows(resolved.values, resolved))
    width = min(max(len(text) for text, _ in rows), 60)
    for text, origin in rows:
        print(f"{text:<{width}}  # {origin}" if origin else text)
    return 0


def _rows(
    values: Mapping[str, Any], resolved: config.Resolved, key: str = "", depth: int = 0
) -> Iterator[tuple[str, str]]:
    """(line of YAML, where its value was written) of every key."""
    for name, value in values.items():
        full = f"{key}.{name}" if key else name
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{name}:", ""
            yield from _rows(value, resolved, full, depth + 1)
        else:
            text = config.dump({name: value}).strip()
            yield from ((f"{'  ' * depth}{line}", resolved.origin(full)) for line in text.splitlines())


def _leaves(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    from maemm.config.layers import flatten

    return list(flatten(values).items())
