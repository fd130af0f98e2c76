"""``maemm plugins``, ``maemm plugins show NAME``, ``new NAME`` and ``check NAME``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator

from maemm import registry
from maemm.contract.errors import MaemmError, advice
from maemm.registry import DiscoveredPlugin
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb(
    "plugins",
    "[show NAME | new NAME | check NAME]",
    "list plugins; show the options of one, write a new one, check one",
)

WITH_OPTIONS = tuple(role for role in registry.ROLES if role not in ("weights", "samples"))


ACTIONS = ("ls", "show", "new", "check")
EPILOG = """show: NAME is a plugin or a part
new: writes the package maemm-NAME, which works as it is
check: NAME is a plugin, or the folder of one; options of its parts: sonar.size=64, or maskings.NAME.ratio=0.5"""


def run(argv: list[str], flags: Namespace) -> int:
    """List the plugins, show one plugin or one part with its options, write a new one, or check one."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--axes", type=int, metavar="N", help="new: a grid of 1, 2 or 3 axes (default: 2)")
    parser.add_argument("--set", action="store_true", dest="as_set", help="new: a set of elements with coordinates")
    parser.add_argument("--into", metavar="DIR", help="new: the folder to write the package in (default: this one)")
    args = parser.parse_intermixed_args(argv)
    (action, name), overrides = split(args.words, 0, 2, VERB.usage)
    if overrides and action != "check":
        raise MaemmError(f"plugins takes no {overrides[0]!r}; leave it out")
    if action != "new" and (args.axes is not None or args.as_set or args.into is not None):
        raise MaemmError("--axes, --set and --into belong to: maemm plugins new NAME")
    if action in (None, "ls") and name is None:
        return _list(flags.json)
    if action not in ACTIONS[1:]:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if name is None:
        known = "" if action == "new" else f"; known: {', '.join(one.name for one in registry.all())}"
        raise MaemmError(f"{action} needs a name{known or '; write: maemm plugins new NAME'}")
    if action == "show":
        return _show(name, flags.json)
    if action == "new":
        from maemm.tasks.plugins import new as plugins_new

        return plugins_new.run(name, args, flags)
    from maemm.tasks.plugins import check as plugins_check

    return plugins_check.run(name, overrides, flags)


def _list(as_json: bool) -> int:
    found = registry.all()
    if as_json:
        print(json.dumps([_as_dict(one) for one in found], indent=2))
        return 0
    width = max(len(one.name) for one in found)
    for one in found:
        if one.plugin is None:
            print(f"{one.name:<{width}}  broken   {one.error}\n{'':<{width}}           ({one.origin})")
            continue
        print(f"{one.name:<{width}}  {one.plugin.version:<7}  {one.plugin.summary}  ({one.origin})")
        for role in registry.ROLES:
            if getattr(one.plugin, role):
                print(f"{'':<{width}}           {role}: {', '.join(getattr(one.plugin, role))}")
    print("\nOptions of a plugin's parts: maemm plugins show NAME")
    return 0


def _as_dict(one: DiscoveredPlugin) -> dict[str, object]:
    parts = {role: list(getattr(one.plugin, role)) for role in registry.ROLES} if one.plugin else {}
    about = {"version": one.plugin.version, "summary": one.plugin.summary} if one.plugin else {}
    return {"name": one.name, "origin": one.origin, "error": one.error, **about, "parts": parts}


def _show(name: str, as_json: bool) -> int:
    parts = [_described(role, part) for role, part in _chosen(name)]
    if as_json:
        print(json.dumps(parts, indent=2))
        return 0
    for one in parts:
        print(f"{registry.SINGULAR[one['role']]} {one['name']}  {one['summary']}")
        if one["error"]:
            print(f"    cannot be used: {one['error']}")
        width = max((len(option["name"]) for option in one["options"]), default=0)
        for option in one["options"]:
            print(f"    {option['name']:<{width}}  {option['type']}  [{option['default']}]  {option['doc']}".rstrip())
        print()
    return 0


def _chosen(name: str) -> Iterator[tuple[str, str]]:
    """(role, part) of everything that a plugin brings, or of all parts of that name."""
    found = registry.all()
    if any(one.name == name for one in found):
        yield from ((role, part) for role, part, _ in registry.get(name).plugin.parts())
        return
    owned = [(role, part) for one in found if one.plugin for role, part, _ in one.plugin.parts()]
    if not any(part == name for _, part in owned):
        known = {one.name for one in found} | {part for _, part in owned}
        raise MaemmError(f"unknown plugin or part {name!r}; {advice(name, known)}")
    yield from dict.fromkeys((role, part) for role, part in owned if part == name)


def _described(role: str, name: str) -> dict[str, object]:
    """A part in words; one that cannot be imported says why and leaves the others alone."""
    from maemm.config.options import describe

    try:
        part = registry.find(role, name)
        options = describe(part) if role in WITH_OPTIONS else []
    except MaemmError as error:
        return {"role": role, "name": name, "summary": "", "error": str(error), "options": []}
    summary = next(iter((part.__doc__ or "").strip().splitlines()), "")
    rows = [{"name": one.name, "type": one.type, "default": one.shown_default, "doc": one.doc} for one in options]
    return {"role": role, "name": name, "summary": summary, "error": None, "options": rows}
