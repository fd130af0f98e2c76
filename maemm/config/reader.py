"""Read and write YAML: safely, with the line of every key, and with plain values as in YAML 1.2.

PyYAML follows YAML 1.1, where ``1e-4`` is a text, ``no`` is false, ``1:30`` is 90 and ``2024-01-01`` a date.
Aliases are refused: recipes do not need them, and a few lines of them can expand to gigabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from maemm.config.paths import check_regular
from maemm.config.values import MAX_DEPTH, MAX_KEY, checked, shortened
from maemm.contract.errors import MaemmError

MAX_BYTES = 1_000_000  # a recipe has a few kilobytes; a larger file is data passed by mistake

_TAG = "tag:yaml.org,2002:"
_CORE = {  # YAML 1.2 core schema: {type: (pattern of its texts, their first characters)}
    "null": (r"null|Null|NULL|~|", "nN~"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` and YAML 1.1 readers read alike: ambiguous texts are quoted; no aliases."""

    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE.items():
    _starts = [*_first, ""] if _name == "null" else list(_first)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _starts)


def _represent_list(dumper: _Dumper, value: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


def read(path: Path, shown: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A recipe file -> its values, and the line (from 1) of every dotted key.

    ``shown`` is the file's name in messages. Raises :class:`MaemmError` for anything but one plain mapping.
    """
    return parse(text_of(path, shown), shown)


def text_of(path: Path, shown: str) -> str:
    """The text of a recipe file. Raises :class:`MaemmError` where it is none."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MaemmError(f"cannot read {shown} ({error.strerror or error}); check the path") from None
    if len(data) > MAX_BYTES:
        raise MaemmError(f"{shown} is larger than {MAX_BYTES // 1000} kB; give a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MaemmError(f"{shown} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def parse(text: str, shown: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The text of a recipe -> its values, and the line of every dotted key."""
    node = _compose(text, shown)
    if node is None:
        raise MaemmError(f"{shown} is empty; a recipe needs modalities, encoder and train")
    if not isinstance(node, yaml.MappingNode):
        raise MaemmError(f"{shown} is not a mapping (line {_line(node)}); write key: value lines")
    converter = _Converter(shown)
    return converter.mapping(node, "", 0), converter.lines


def value(text: str, key: str) -> Any:
    """The value of an override ``key=value``, read as YAML."""
    shown = f"override {key}={text}"
    node = _compose(text, shown)
    return None if node is None else _Converter(shown).value(node, "", 0)


def dump(values: dict[str, Any]) -> str:
    """Values -> YAML text that :func:`parse` reads back to the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110)


def _compose(text: str, shown: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}, line {mark.line + 1}, column {mark.column + 1}" if mark else shown
        raise MaemmError(f"not valid YAML: {error.problem or error.context} ({where}); fix the line") from None
    except yaml.YAMLError as error:
        raise MaemmError(f"not valid YAML: {' '.join(str(error).split())} ({shown}); fix the file") from None
    except RecursionError:
        raise MaemmError(f"{shown} is nested too deeply; a recipe has a few levels") from None
    finally:
        if loader is not None:
            loader.dispose()


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


class _Converter:
    """Converts YAML nodes to values and records the line of every dotted key."""

    def __init__(self, shown: str):
        self.shown = shown
        self.lines: dict[str, int] = {}
        self.seen: set[int] = set()  # ids of nodes, to detect aliases

    def value(self, node: yaml.Node, key: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MaemmError(f"{self.shown} is nested too deeply (line {_line(node)}); a recipe has a few levels")
        if id(node) in self.seen:
            raise MaemmError(f"{self.shown} uses an alias (line {_line(node)}); write the value out")
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, f"{key}.{index}", depth + 1) for index, item in enumerate(node.value)]
        return self.scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = self.name(name_node)
            full = f"{key}.{name}" if key else name
            if name in values:
                lines = f"lines {self.lines[full]} and {_line(name_node)}"
                raise MaemmError(f"key {full!r} is given twice ({self.shown}, {lines}); remove one")
            self.lines[full] = _line(name_node)
            values[name] = self.value(value_node, full, depth + 1)
        return values

    def name(self, node: yaml.Node) -> str:
        where = f"{self.shown}, line {_line(node)}"
        if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str":
            text = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            raise MaemmError(f"{shortened(text)!r} is not a key ({where}); keys are texts")
        if "." in node.value or not node.value:
            raise MaemmError(f"{shortened(node.value)!r} is not a key ({where}); write nested keys one below the other")
        if len(node.value) > MAX_KEY:
            raise MaemmError(
                f"a key has {len(node.value):,} characters ({shortened(node.value)!r}, {where}); shorten it"
            )
        return node.value

    def scalar(self, node: yaml.Node, key: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        plain = isinstance(node, yaml.ScalarNode) and (kind == "str" or kind in _CORE)
        if not plain or (kind != "str" and not re.fullmatch(_CORE[kind][0], text)):
            where = f"{self.shown}, line {_line(node)}"
            raise MaemmError(f"{key or 'the value'} has the YAML tag {node.tag!r} ({where}); write a plain value")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        where = f"{key or 'the value'} ({self.shown}, line {_line(node)})"
        if kind == "int":
            if len(text) > 300:  # Python refuses to read thousands of digits
                raise MaemmError(f"{where} is a number of {len(text):,} digits; give one of less than 64 bits")
            return checked(int(text, 0 if text[:2] in ("0o", "0x") else 10), where)
        # Python's float() reads inf and nan without YAML's leading point. They are refused where they are used.
        return checked(text, where) if kind == "str" else float(re.sub(r"\.(?=[inIN])", "", text))
