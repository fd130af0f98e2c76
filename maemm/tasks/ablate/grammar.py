"""``--set KEY=V1,V2``: short names of keys and of parts -> overrides of a recipe.

A key is a whole one (``decoder.depth``) or its end, where only one key of the recipe ends so (``masking.ratio``,
``patch``). A value is YAML; where a part stands, ``NAME:ARGUMENT:...`` is short for ``{type: NAME, ...}``: an argument
is ``OPTION=VALUE``, or a value that only one option of the part accepts (``scan:spiral``, ``random:0.9``).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from maemm import registry
from maemm.config import reader
from maemm.config.check import KEYS
from maemm.config.layers import KEY
from maemm.config.messages import join, value_text
from maemm.config.options import describe, options_of
from maemm.config.schema import TRAIN_PARTS, DataConfig, TrainConfig
from maemm.config.schema import keys_of as keys_of_section
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import PartOf

# Keys that are the same in all runs of a comparison, or differ in a way of their own -> what sets them.
OWNED = {
    "train.seed": "--seeds sets it",
    "train.steps": "--steps sets it, the same for all",
    "train.epochs": "--steps sets the length, the same for all",
    "out": "--out names the folder of all runs",
    "name": "leave it out",
}
_OPEN, _CLOSE = "[{", "]}"


class Grammar:
    """The keys of a resolved recipe by their short names, and its parts by theirs."""

    def __init__(self, recipe: Mapping[str, Any]):
        self.recipe = recipe
        self.roles: dict[str, str | None] = dict(_keys(recipe))  # {dotted key: role of the part that stands there}

    def key(self, name: str) -> str:
        """The whole key of a short name. Raises :class:`MaemmError` where there is none, or several."""
        if not KEY.fullmatch(name):
            raise MaemmError(f"{name!r} is not a key (--set); write KEY=VALUE,VALUE, such as decoder.depth=1,4")
        first = name.partition(".")[0]
        # Of one modality ``masking`` is its own, unless the recipe masks all modalities together.
        own = first == "masking" and len(self.recipe["modalities"]) == 1 and not self.recipe.get("masking")
        if first in KEYS and not own:
            return name
        head, rest = name, ""
        while head:
            matches = [key for key in self.roles if key.endswith(f".{head}")]
            if len(matches) == 1:
                return join(matches[0], rest)
            if matches:
                raise MaemmError(f"{name!r} may mean {' or '.join(matches)} (--set); write the whole key")
            head, _, last = head.rpartition(".")
            rest = join(last, rest)
        raise MaemmError(f"unknown key {name!r} (--set); {advice(name, self._ends(), 'see: maemm config show RECIPE')}")

    def _ends(self) -> set[str]:
        """The last one and the last two names of every key."""
        pieces = [key.split(".") for key in self.roles]
        return {name for key in pieces for name in (key[-1], ".".join(key[-2:]), ".".join(key))}

    def words(self, word: str) -> tuple[str, list[tuple[str, Any]]]:
        """``KEY=V1,V2`` -> (whole key, [(value as it is written, value)])."""
        name, equals, text = word.partition("=")
        if not equals:
            raise MaemmError(f"--set {word!r} has no values; write KEY=VALUE,VALUE, such as decoder.depth=1,4")
        key = self.owned(self.key(name.strip()))
        texts = [text.strip() for text in split(text)]
        if "" in texts:
            raise MaemmError(f"a value is missing (--set {word}); write null for none")
        if len(set(texts)) < len(texts):
            raise MaemmError(f"a value is given twice (--set {word}); remove one")
        return key, [(text, self.value(reader.value(text, key), key)) for text in texts]

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nested mappings whose first keys may be short, and whose parts may be -> {whole key: value}.

        Keys that :data:`OWNED` names are refused.
        """
        return {self.owned(key): value for key, value in self._flat(values)}

    def _flat(self, values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            key = join(above, name) if above else self.key(name)
            if isinstance(value, Mapping) and value and "type" not in value:
                yield from self._flat(value, key)
            else:
                yield key, self.value(value, key)

    def owned(self, key: str) -> str:
        """The key, unless the comparison itself sets it."""
        if key in OWNED:
            raise MaemmError(f"{key} cannot differ between variants; {OWNED[key]}")
        return key

    # ------------------------------------------------------------------------------------------------ values
    def value(self, value: Any, key: str) -> Any:
        """``value``, with a part that is written short (``scan:spiral``) written out.

        Where it replaces a part of another type, options that both have in common stay as the recipe sets them
        (``masking.ratio``), so that the two differ in nothing that was not named.
        """
        role = self.roles.get(key)
        if role is None or not isinstance(value, str):
            return value
        name, *arguments = value.split(":")
        part = registry.find(role, name)
        options: dict[str, Any] = {}
        for argument in arguments:
            option, equals, text = argument.partition("=")
            given = reader.value(text if equals else argument, key)
            if not equals:
                option = _option_for(part, given, name, key, argument)
            if option in options:
                raise MaemmError(f"{option} is given twice ({key}={value}); give it once")
            options[option] = given
        return {"type": name, **self._kept(part, name, role, key), **options}

    def _kept(self, part: Any, name: str, role: str, key: str) -> dict[str, Any]:
        """Options of the recipe's part at ``key`` that one of another type has too, with the same type hint."""
        current = _at(self.recipe, key)
        if not isinstance(current, Mapping) or current.get("type") in (None, name):
            return {}
        old, new = options_of(registry.find(role, current["type"])), options_of(part)
        return {
            option: value
            for option, value in current.items()
            if option in old and option in new and old[option].hint == new[option].hint
        }


def split(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            pieces.append("")
            continue
        pieces[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth = max(0, depth + (letter in _OPEN) - (letter in _CLOSE))
    return pieces


def _option_for(part: Any, value: Any, name: str, key: str, argument: str) -> str:
    """The only option of a part that accepts ``value``; of texts those that list it. Raises :class:`MaemmError`."""
    matches = [
        option.name
        for option in options_of(part).values()
        if (value in _choices(option.hint) if isinstance(value, str) else _accepts(option.hint, value))
    ]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        names = ", ".join(options_of(part)) or "none"
        raise MaemmError(
            f"no option of {name!r} is {value_text(value)} ({key}={name}:{argument}); write {name}:OPTION=VALUE "
            f"(options: {names})"
        )
    raise MaemmError(
        f"{argument} may be {' or '.join(matches)} of {name!r} ({key}={name}:{argument}); write "
        f"{name}:{matches[0]}={argument}"
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values that a hint lists."""
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Literal:
        return args
    if base is Annotated:
        return _choices(args[0])
    if base is typing.Union or base is types.UnionType:
        return tuple(value for arm in args for value in _choices(arm))
    return ()


def _accepts(hint: Any, value: Any) -> bool:
    if hint is Any:
        return False
    try:
        TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    except Exception:  # a hint that cannot be checked, of which the recipe will say more
        return False
    return True


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


# ------------------------------------------------------------------------------------------- keys of a recipe
def _keys(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(dotted key, role of the part that stands there or None) of all that a resolved recipe may set."""
    for name, spec in recipe["modalities"].items():
        where = f"modalities.{name}"
        yield from _part_keys("modalities", {"type": name, **spec} if "same_as" not in spec else None, where)
        yield from _part_keys("maskings", spec.get("masking"), f"{where}.masking")
        yield from _part_keys("targets", spec.get("target"), f"{where}.target")
    for key, role in (("masking", "maskings"), ("encoder", "encoders"), ("decoder", "decoders"), ("head", "heads")):
        yield from _part_keys(role, recipe.get(key), key)
    for name, spec in (recipe.get("objectives") or {}).items():
        yield from _part_keys("objectives", spec, f"objectives.{name}")
    for section, model in (("data", DataConfig), ("train", TrainConfig)):
        yield from ((f"{section}.{option.name}", None) for option in keys_of_section(model))
    yield from _part_keys("sources", recipe["data"].get("source"), "data.source")
    for name, role in TRAIN_PARTS.items():
        yield from _part_keys(role, recipe["train"].get(name), f"train.{name}")


def _part_keys(role: str, spec: Any, where: str) -> Iterator[tuple[str, str | None]]:
    yield where, role
    if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
        return
    for option in describe(registry.find(role, spec["type"])):
        inner = _role_in(option.hint)
        if inner is None:
            yield f"{where}.{option.name}", None
        else:
            yield from _part_keys(inner, spec.get(option.name), f"{where}.{option.name}")


def _role_in(hint: Any) -> str | None:
    """The role of the part that an option holds."""
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        return next((item.role for item in args[1:] if isinstance(item, PartOf)), None) or _role_in(args[0])
    if base is typing.Union or base is types.UnionType:
        return next(filter(None, map(_role_in, args)), None)
    return None
