"""``maemm config ls | show RECIPE [key=value ...] | cat RECIPE``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from maemm import config
from maemm.config import reader
from maemm.config.layers import flatten
from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result
from maemm.ui.text import columns

VERB = Verb(
    "config", "ls | show RECIPE [key=value ...] | cat RECIPE", "list recipes, show one resolved, print its file"
)

ACTIONS = ("ls", "show", "cat")
_WIDTH = 60  # of the column of values, at most


def run(argv: list[str], flags: Namespace) -> int:
    """List recipes, show one resolved with the origin of every value, or print its file."""
    _, (action, recipe), overrides = verb_parser(VERB).parse(argv, 1, 2)
    action = "ls" if action == "list" else action
    if action not in ACTIONS:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if (action == "ls") != (recipe is None):
        expected = "no recipe" if action == "ls" else "a recipe"
        raise MaemmError(f"{action} needs {expected}; write: maemm {VERB.usage}")
    if overrides and action != "show":
        raise MaemmError(f"{action} does not accept {overrides[0]!r}; use: maemm config show")
    if recipe is None:
        _list(flags.json)
    elif action == "show":
        _show(recipe, overrides, flags.json)
    else:
        name, path = config.locate(recipe)
        text = reader.text_of(path, name)
        if flags.json:
            print_json({"name": recipe, "text": text})
        else:
            print_result(text.removesuffix("\n"))
    return 0


def _list(as_json: bool) -> None:
    summaries = {name: config.summary(path) for name, path in config.packaged().items()}
    if as_json:
        print_json([{"name": name, "summary": text} for name, text in summaries.items()], indent=2)
        return
    width = max((len(name) for name in summaries), default=0)
    print_result("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in summaries.items()))


def _show(recipe: str, overrides: list[str], as_json: bool) -> None:
    resolved = config.resolve(recipe, overrides, training=True)
    if as_json:
        origins = {key: resolved.origin(key) for key in flatten(resolved.values)}
        stages = {name: stage.values for name, stage in resolved.stages.items()}
        print_json({"recipe": resolved.values, "origins": origins, **({"stages": stages} if stages else {})}, indent=2)
        return
    rows = list(_rows(resolved.values, resolved))
    width = min(max(len(text) for text, _ in rows), _WIDTH)
    lines = [f"{text:<{width}}  # {origin}" if origin else text for text, origin in rows]
    if resolved.stages:  # as comments: what is printed stays a recipe
        table = config.stage_rows({name: stage.values for name, stage in resolved.stages.items()})
        lines += ["", *(f"# {line}" for line in columns(table))]
        lines.append("# one of them, resolved: the same command with stage=NAME")
    print_result("\n".join(lines))


def _rows(
    values: Mapping[str, Any], resolved: config.Resolved, key: str = "", depth: int = 0
) -> Iterator[tuple[str, str]]:
    """(line of YAML, where its value was written) of every key."""
    for name, value in values.items():
        full_key = f"{key}.{name}" if key else name
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{name}:", ""
            yield from _rows(value, resolved, full_key, depth + 1)
        else:
            text = config.dump({name: value}).strip()
            yield from ((f"{'  ' * depth}{line}", resolved.origin(full_key)) for line in text.splitlines())
