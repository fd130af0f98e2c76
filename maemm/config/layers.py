"""Layers of a recipe laid over each other: a base, a file, overrides. Each key remembers where it was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maemm.config import reader
from maemm.config.messages import join, plain
from maemm.contract.errors import MaemmError

OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=", re.ASCII)  # how a word on the command line begins
KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*", re.ASCII)

# Two ways to say one thing: the later layer wins, within one layer it is an error (maemm.config.check).
RIVALS = (("train.epochs", "train.steps"), ("train.lr", "train.base_lr"))


@dataclass
class Layer:
    """Nested values, and for each dotted key where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a dotted key, None where there is none."""
        found: Any = self.values
        for one in key.split("."):
            found = found.get(one) if isinstance(found, dict) else None
        return found

    def origin(self, key: str) -> str:
        """Where a key, or the nearest one above it, was written; "" if unknown."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    def set(self, key: str, value: Any, origin: str) -> None:
        """Set one dotted key. A part given as a bare name becomes a mapping when an option of it is set."""
        *above, last = key.split(".")
        values = self.values
        for depth, one in enumerate(above):
            inner = values.get(one)
            if isinstance(inner, str):
                inner = {"type": inner}
            elif inner is not None and not isinstance(inner, dict):
                raise MaemmError(f"{join(*above[: depth + 1])} is no mapping ({origin} {key}); set it as a whole")
            values[one] = inner = {} if inner is None else inner
            values = inner
        values[last] = value
        self.forget(key)
        self.origins[key] = origin

    def forget(self, key: str) -> None:
        """Drop the origins of a key and of all below it."""
        self.origins = {one: origin for one, origin in self.origins.items() if not f"{one}.".startswith(f"{key}.")}

    def over(self, base: Layer) -> Layer:
        """This layer laid over ``base``."""
        merged = Layer(dict(base.values), dict(base.origins))
        for pair in RIVALS:
            for mine, other in (pair, pair[::-1]):
                if self.get(mine) is not None and self.get(other) is None and base.get(other) is not None:
                    merged.values = _merge(merged.values, {"train": {other.removeprefix("train."): None}})
                    merged.origins[other] = f"replaced by {mine}"
        replaced: list[str] = []
        merged.values = _merge(merged.values, self.values, replaced=replaced)
        for key in replaced:
            merged.forget(key)
            below = (origin for one, origin in self.origins.items() if one.startswith(f"{key}."))
            merged.origins[key] = self.origins.get(key) or next(below, self.origin(key))
        merged.origins |= self.origins
        return merged


def _merge(
    base: dict[str, Any], new: dict[str, Any], key: str = "", replaced: list[str] | None = None
) -> dict[str, Any]:
    """``new`` over ``base``: mappings merge, all else is replaced, a part of another type too."""
    found = dict(base)
    for name, value in new.items():
        full, old = join(key, name), base.get(name)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"type": old}
        if isinstance(old, dict) and isinstance(value, str) and _type(old, name) == value:
            continue  # the same part, named again: its options stay
        if isinstance(old, dict) and isinstance(value, dict) and _type(value, _type(old, name)) == _type(old, name):
            found[name] = _merge(old, value, full, replaced)
        else:
            found[name] = value
            if replaced is not None:
                replaced.append(full)
    return found


def _type(part: dict[str, Any], default: Any) -> Any:
    return part.get("type", default)


def from_file(text_values: dict[str, Any], lines: Mapping[str, int], shown: str) -> Layer:
    """A layer from a file that was read."""
    return Layer(text_values, {key: f"{shown}, line {line}" for key, line in lines.items()})


def from_overrides(overrides: Mapping[str, Any] | Iterable[str] | None) -> Layer:
    """A layer from ``{"train.epochs": 10}`` or from ``["train.epochs=10"]``, whose values are read as YAML."""
    layer = Layer()
    if overrides is None:
        return layer
    if isinstance(overrides, Mapping):
        pairs = [(_checked(key), plain(value, str(key))) for key, value in overrides.items()]
    else:
        pairs = [_pair(word) for word in overrides]
    for key, value in pairs:
        layer.set(key, value, "override")
        for below in _keys_below(value, key):
            layer.origins[below] = "override"
    return layer


def _pair(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals:
        raise MaemmError(f"override {word!r} has no value; write key=value, such as train.epochs=10")
    return _checked(key), reader.value(text, key)


def _checked(key: Any) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise MaemmError(f"{key!r} is no key; write dotted names, such as train.epochs=10")
    return key


def _keys_below(value: Any, key: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [one for name, inner in value.items() for one in (join(key, name), *_keys_below(inner, join(key, name)))]


def flatten(values: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Nested mappings -> {dotted key: value}; lists and empty mappings count as values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, join(key, name))
        else:
            found[join(key, name)] = value
    return found
