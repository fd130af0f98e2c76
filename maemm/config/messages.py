"""Check values by pydantic and report each mistake as one line: the key, what it must be, where it was set."""

from __future__ import annotations

import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ValidationError

from maemm.contract.errors import MaemmError, advice, nearest

MISSING = inspect.Parameter.empty
Origin = Callable[[str], str]  # dotted key -> where it was set, for messages; "" if unknown


def validate(
    validator: Callable[[str], Any],
    values: Mapping[str, Any],
    where: str,
    types: Mapping[str, tuple[str, Any]],
    origin: Origin | None = None,
    hint: str = "",
) -> tuple[Any, list[str]]:
    """(checked values, []) by a pydantic JSON validator, or ({}, one line for each mistake).

    By JSON, since pydantic's strict mode then accepts lists for tuples, but still not true for 1. ``where`` is the
    dotted key of ``values``; ``types`` maps each dotted key below it to its type in words and its default. ``hint``
    says where the keys are listed.
    """
    try:
        return validator(json.dumps(plain(values, where))), []
    except MaemmError as error:
        return {}, [str(error)]
    except ValidationError as error:
        return {}, _explain(error, values, where, types, origin or (lambda key: ""), hint)


def _explain(
    error: ValidationError,
    values: Mapping[str, Any],
    where: str,
    types: Mapping[str, tuple[str, Any]],
    origin: Origin,
    hint: str,
) -> list[str]:
    """One line for each wrong key: unknown (with the closest one), missing, or of a wrong type or range."""
    lines: dict[str, str] = {}
    keys = sorted(types, key=len, reverse=True)  # the longest prefix of a path first
    for details in error.errors(include_url=False):
        path = ".".join(str(part) for part in details["loc"])
        key = next((key for key in keys if path == key or path.startswith(key + ".")), path)
        if details["type"] == "extra_forbidden":
            lines.setdefault(path, _unknown(path, where, types, origin, hint))
            continue
        full, (type_words, default) = join(where, key), types.get(key, ("", MISSING))
        if details["type"] == "missing" and path == key:
            lines.setdefault(key, f"{full} is missing{_in(origin(where))}; add {full}, {type_words}")
            continue
        wrong_type = details["type"].endswith(("_type", "_parsing")) or path != key
        requirement = f"must be {type_words}" if type_words and wrong_type else _requirement(details["msg"])
        value: Any = values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else value
        todo = "" if default is MISSING else f"; the default is {value_text(default)}"
        lines.setdefault(key, f"{full} {requirement}, got {value_text(value)}{_in(origin(full))}{todo}")
    return list(lines.values())


def _unknown(path: str, where: str, types: Mapping[str, Any], origin: Origin, hint: str) -> str:
    full, (parent, _, last) = join(where, path), path.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in types if key.rpartition(".")[0] == parent]
    match = nearest(last, siblings)
    todo = f"did you mean {join(where, parent, match)!r}?" if match else advice(last, siblings, hint)
    return f"unknown key {full!r}{_in(origin(full))}; {todo}"


def _requirement(message: str) -> str:
    """pydantic's "Input should be greater than 0" -> "must be greater than 0"."""
    for start in ("Input should ", "Tuple should ", "List should ", "String should ", "Dictionary should "):
        if message.startswith(start):
            return "must " + message[len(start) :]
    return "is refused: " + message.removeprefix("Value error, ")


# --------------------------------------------------------------------------------------------------- words
def join(*keys: str) -> str:
    """A dotted key from its pieces; empty ones are left out."""
    return ".".join(key for key in keys if key)


def _in(origin: str) -> str:
    return f" ({origin})" if origin else ""


def type_text(hint: Any) -> str:
    """A type hint in the words of YAML: ``int | [int, int]``."""
    simple = {Any: "any", MISSING: "any", type(None): "null", Ellipsis: "..."}
    if hint in simple:
        return simple[hint]
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        return type_text(args[0])
    if base is Literal:
        return " | ".join(value_text(arg) for arg in args)
    if base is Union or base is types.UnionType:
        return " | ".join(dict.fromkeys(type_text(arg) for arg in args))
    if base is tuple:
        return f"[{', '.join(type_text(arg) for arg in args)}]"
    if base is not None and inspect.isclass(base) and issubclass(base, Mapping) and len(args) == 2:
        if args[1] is Any:
            return "{...}"
        return f"{{{type_text(args[0])}: {type_text(args[1])}}}"
    if base is not None and len(args) == 1:
        return f"[{type_text(args[0])}, ...]"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return "{" + ", ".join(hint.model_fields) + "}"
    return getattr(hint, "__name__", str(hint))


def value_text(value: Any, limit: int = 60) -> str:
    """A value as written in YAML, shortened to ``limit`` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(value_text(item, limit) for item in value[:limit])}]"
    elif isinstance(value, BaseModel):
        text = value_text(value.model_dump(mode="json"), limit)
    elif isinstance(value, Mapping):
        items = list(value.items())[:limit]
        text = "{" + ", ".join(f"{key}: {value_text(item, limit)}" for key, item in items) + "}"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(value: Any, where: str) -> Any:
    """A value in the types of YAML and JSON: tuples become lists, paths text.

    Raises :class:`MaemmError` for any other type and for numbers that are not finite.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise MaemmError(f"{where} has the key {key!r}; keys are texts, put it in quotes")
        return {key: plain(item, join(where, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        refuse_undecodable(value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise MaemmError(f"{where} is {value}; give a finite number")
    for kind in (bool, int, float, str):  # bool first, since it is an int; subclasses become the plain type
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise MaemmError(
        f"{where} is a {type(value).__name__}; recipes hold texts, numbers, true, false, null, lists and mappings"
    )


def refuse_undecodable(text: str, where: str) -> None:
    """Raises :class:`MaemmError` for a text that UTF-8 cannot hold, as a file name may be that is no UTF-8.

    Recipes, records and pages are UTF-8, and would have to hold it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = "".join(_escaped(letter) for letter in text)
        raise MaemmError(f"the name {shown} is not UTF-8 ({where}); rename it, or make a link to it") from None


def _escaped(letter: str) -> str:
    """A letter, or the byte of a file name that Python keeps as a lone surrogate."""
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else letter
