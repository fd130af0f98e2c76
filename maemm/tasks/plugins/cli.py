"""``maemm plugins``, ``maemm plugins show NAME``, ``new NAME`` and ``check NAME``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from maemm import registry
from maemm.config.options import describe
from maemm.contract.errors import MaemmError, advice
from maemm.registry import DiscoveredPlugin
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "plugins",
    "[show NAME | new NAME | check NAME]",
    "list plugins; show the options of one, write a new one, check one",
)

ACTIONS = ("ls", "show", "new", "check")
ROLES_WITHOUT_OPTIONS = ("weights", "samples")
EPILOG = """show: NAME is a plugin or a part
new: writes the package maemm-NAME, which works as it is
check: NAME is a plugin, or the folder of one; options of its parts: sonar.size=64, or maskings.NAME.ratio=0.5"""


def run(argv: list[str], flags: Namespace) -> int:
    """List the plugins, show one plugin or one part with its options, write a new one, or check one."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--axes", type=int, metavar="N", help="new: a grid of 1, 2 or 3 axes (default: 2)")
    parser.add_argument("--set", action="store_true", dest="as_set", help="new: a set of elements with coordinates")
    parser.add_argument("--into", metavar="DIR", help="new: the folder to write the package in (default: this one)")
    parser.add_argument("--all", action="store_true", dest="every", help="check: a row for every check")
    args, (action, name), overrides = parser.parse(argv, 0, 2)
    action = "ls" if action == "list" else action
    if overrides and action != "check":
        raise MaemmError(f"plugins does not accept {overrides[0]!r}; leave it out")
    if action != "new" and (args.axes is not None or args.as_set or args.into is not None):
        raise MaemmError("--axes, --set and --into belong to: maemm plugins new NAME")
    if action != "check" and args.every:
        raise MaemmError("--all belongs to: maemm plugins check NAME")
    if action in (None, "ls") and name is None:
        _list(flags.json)
        return 0
    if action not in ACTIONS[1:]:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if name is None:
        if action == "new":
            raise MaemmError("new needs a name; write: maemm plugins new NAME")
        raise MaemmError(f"{action} needs a name; known: {', '.join(plugin.name for plugin in registry.all_plugins())}")
    if action == "check":
        from maemm.tasks.plugins import check

        return check.run(name, overrides, flags, args.every)
    if action == "show":
        _show(name, flags.json)
    else:
        _new(name, args, flags.json)
    return 0


def _list(as_json: bool) -> None:
    plugins = registry.all_plugins()
    if as_json:
        print_json([_plugin_as_dict(plugin) for plugin in plugins], indent=2)
        return
    width, lines = max(len(plugin.name) for plugin in plugins), []
    for discovered in plugins:
        name, plugin = f"{discovered.name:<{width}}", discovered.plugin
        if plugin is None:
            lines.append(f"{name}  broken   {discovered.error}\n{'':<{width}}           ({discovered.origin})")
            continue
        lines.append(f"{name}  {plugin.version:<7}  {plugin.summary}  ({discovered.origin})")
        for role in registry.ROLES:
            if parts := getattr(plugin, role):
                lines.append(f"{'':<{width}}           {role}: {', '.join(parts)}")
    print_result("\n".join([*lines, "", "Options of a plugin's parts: maemm plugins show NAME"]))


def _plugin_as_dict(discovered: DiscoveredPlugin) -> dict[str, Any]:
    plugin = discovered.plugin
    about = {} if plugin is None else {"version": plugin.version, "summary": plugin.summary}
    parts = {} if plugin is None else {role: list(getattr(plugin, role)) for role in registry.ROLES}
    return {
        "name": discovered.name,
        "origin": discovered.origin,
        "error": discovered.error,
        **about,
        "parts": parts,
    }


def _show(name: str, as_json: bool) -> None:
    parts = [_part_as_dict(role, part) for role, part in _parts_called(name)]
    if as_json:
        print_json(parts, indent=2)
        return
    lines = []
    for part in parts:
        lines.append(f"{registry.SINGULAR[part['role']]} {part['name']}  {part['summary']}")
        if part["error"]:
            lines.append(f"    cannot be used: {part['error']}")
        width = max((len(option["name"]) for option in part["options"]), default=0)
        for option in part["options"]:
            text = f"    {option['name']:<{width}}  {option['type']}  [{option['default']}]  {option['doc']}"
            lines.append(text.rstrip())
        lines.append("")
    print_result("\n".join(lines))


def _parts_called(name: str) -> Iterator[tuple[str, str]]:
    """(role, part) of all parts of the plugin called ``name``, or of all parts of that name."""
    plugins = registry.all_plugins()
    if any(plugin.name == name for plugin in plugins):
        plugin = registry.get(name).plugin
        assert plugin is not None  # registry.get raises for a broken one
        yield from ((role, part) for role, part, _ in plugin.parts())
        return
    parts = [(role, part) for plugin in plugins if plugin.plugin for role, part, _ in plugin.plugin.parts()]
    if not any(part == name for _, part in parts):
        names = {plugin.name for plugin in plugins} | {part for _, part in parts}
        raise MaemmError(f"unknown plugin or part {name!r}; {advice(name, names)}")
    yield from dict.fromkeys((role, part) for role, part in parts if part == name)


def _part_as_dict(role: str, name: str) -> dict[str, Any]:
    """A part with its options, or with the reason why it cannot be imported."""
    try:
        part = registry.find(role, name)
        options = [] if role in ROLES_WITHOUT_OPTIONS else describe(part)
    except MaemmError as error:
        return {"role": role, "name": name, "summary": "", "error": str(error), "options": []}
    rows = [
        {"name": option.name, "type": option.type, "default": option.shown_default, "doc": option.doc}
        for option in options
    ]
    summary = next(iter((part.__doc__ or "").strip().splitlines()), "")
    return {"role": role, "name": name, "summary": summary, "error": None, "options": rows}


def _new(name: str, args: Namespace, as_json: bool) -> None:
    if args.as_set and args.axes is not None:
        raise MaemmError("--axes and --set are both given; a set of elements has no axes, leave one out")
    from maemm.tasks.plugins.scaffold import new

    folder = new(name, args.into or ".", axes=args.axes or 2, as_set=args.as_set)
    if as_json:
        print_json({"folder": str(folder)})
        return
    package = f"maemm_{name}"
    print_result(
        f"{folder}: a package that works as it is. Next:\n"
        f"  pip install -e {folder}\n"
        f"  maemm plugins check {name}\n"
        f"  maemm pretrain {name}/tiny data.root=FOLDER      FOLDER: .npy or .npz files with a sample each\n"
        f"Edit {package}/modality.py (what a sample is) and {package}/sources.py (how files are read)."
    )
