"""Layers of a recipe and how they merge: a base, a file, overrides. Each key remembers where it was set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maemm.config import reader
from maemm.config.messages import join
from maemm.config.values import plain
from maemm.contract.errors import MaemmError

KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*", re.ASCII)  # a dotted key
OVERRIDE = re.compile(KEY.pattern + "=", re.ASCII)  # the beginning of an override on the command line

SECTIONS = ("modalities", "objectives", "data", "train", "stages")  # keys that hold others and are no parts themselves

# Keys that exclude each other: a later layer wins, within one layer it is an error (maemm.config.check).
EXCLUSIVE = (("train.epochs", "train.steps"), ("train.lr", "train.base_lr"))


@dataclass
class Layer:
    """Nested values, and where each dotted key was set ("FILE, line N", "override")."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a dotted key, None if it is not set."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def origin(self, key: str) -> str:
        """Where a key, or else the closest key above it, was set; "" if unknown."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    def set(self, key: str, value: Any, origin: str) -> None:
        """Set one dotted key. Setting an option of a part given as a name turns it into ``{type: NAME}`` first."""
        *parents, last = key.split(".")
        values = self.values
        for depth, name in enumerate(parents, start=1):
            inner = values.get(name)
            if isinstance(inner, str):
                inner = {"type": inner}
            elif inner is not None and not isinstance(inner, dict):
                raise MaemmError(f"{join(*parents[:depth])} is not a mapping ({origin} {key}); set it as a whole")
            values[name] = inner = {} if inner is None else inner
            values = inner
        values[last] = value
        self.forget(key)
        self.origins[key] = origin

    def forget(self, key: str) -> None:
        """Drop the origins of a key and of all keys below it."""
        self.origins = {k: origin for k, origin in self.origins.items() if not f"{k}.".startswith(f"{key}.")}

    def over(self, base: Layer) -> Layer:
        """This layer merged over ``base``, as a new one."""
        merged = Layer(dict(base.values), dict(base.origins))
        stages = self.values.get("stages")
        for prefix in ("", *(f"stages.{name}." for name in (stages if isinstance(stages, dict) else ()))):
            for pair in EXCLUSIVE:
                for key, other in ((prefix + a, prefix + b) for a, b in (pair, pair[::-1])):
                    if self.get(key) is not None and self.get(other) is None and base.get(other) is not None:
                        merged.values = _merge(merged.values, _nested(other, None))
                        merged.origins[other] = f"replaced by {key}"
        replaced: list[str] = []
        merged.values = _merge(merged.values, self.values, replaced=replaced)
        for key in replaced:
            merged.forget(key)
            below = (origin for k, origin in self.origins.items() if k.startswith(f"{key}."))
            merged.origins[key] = self.origins.get(key) or next(below, self.origin(key))
        merged.origins |= self.origins
        return merged


def _nested(key: str, value: Any) -> dict[str, Any]:
    """ "a.b" -> {"a": {"b": value}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merge(
    base: dict[str, Any], new: dict[str, Any], key: str = "", replaced: list[str] | None = None
) -> dict[str, Any]:
    """``new`` merged over ``base``. Mappings are merged, other values replaced; so is a part by one of another type.

    The dotted keys (below ``key``) of what was replaced are appended to ``replaced``.
    """
    merged = dict(base)
    for name, value in new.items():
        full, old = join(key, name), base.get(name)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"type": old}
        if isinstance(old, dict):
            old_type = old.get("type", name)
            if isinstance(value, str) and value == old_type:
                continue  # the same part, named again: keep its options
            if isinstance(value, dict) and value.get("type", old_type) == old_type:
                merged[name] = _merge(old, value, full, replaced)
                continue
        merged[name] = value
        if replaced is not None:
            replaced.append(full)
    return merged


def from_file(values: dict[str, Any], lines: Mapping[str, int], name: str) -> Layer:
    """A layer from :func:`maemm.config.reader.read` of the file ``name``."""
    return Layer(values, {key: f"{name}, line {line}" for key, line in lines.items()})


def from_overrides(overrides: Mapping[str, Any] | Iterable[str] | None) -> Layer:
    """A layer from ``{"train.epochs": 10}`` or from ``["train.epochs=10"]``, whose values are read as YAML."""
    layer = Layer()
    if overrides is None:
        return layer
    if isinstance(overrides, Mapping):
        pairs = [(_checked_key(key), plain(value, str(key))) for key, value in overrides.items()]
    else:
        pairs = [_parse_override(word) for word in overrides]
    for key, value in pairs:
        if key in SECTIONS and isinstance(value, str):  # elsewhere a text stands for a part's type
            raise MaemmError(f"{key} is a section (override {key}={value}); set a key of it: {key}.KEY={value}")
        layer.set(key, value, "override")
        layer.origins |= dict.fromkeys(_keys_below(value, key), "override")
    return layer


def _parse_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals:
        raise MaemmError(f"override {word!r} has no value; write key=value, such as train.epochs=10")
    return _checked_key(key), reader.value(text, key)


def _checked_key(key: Any) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise MaemmError(f"{key!r} is not a key; write dotted names, such as train.epochs=10")
    return key


def _keys_below(value: Any, key: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    keys = []
    for name, inner in value.items():
        keys += [join(key, name), *_keys_below(inner, join(key, name))]
    return keys


def flatten(values: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Nested mappings -> {dotted key: value}; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, join(key, name))
        else:
            flat[join(key, name)] = value
    return flat
