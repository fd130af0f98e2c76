"""Check values by pydantic and report each mistake as one line: the key, what it must be, where it was set."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ValidationError

from maemm.config.bounds import with_bounds
from maemm.config.values import plain
from maemm.contract.errors import MaemmError, advice, nearest

MISSING = inspect.Parameter.empty
Origin = Callable[[str], str]  # dotted key -> where it was set, for messages; "" if unknown

# pydantic's errors that the type in words, with its bounds, explains better than pydantic's own sentence
_SAID_BY_TYPE = (
    "greater_than",
    "less_than",
    "too_short",
    "too_long",
    "multiple_of",
    "predicate_failed",
    "finite_number",
)


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
    errors = [(_path(details["loc"], values, details["type"]), details) for details in error.errors(include_url=False)]
    # Of a union, the mistakes inside a mapping say more than that it is neither of the other types.
    inside = {path[0] for path, _ in errors if _named(path[1:])}
    for names, details in errors:
        if names and names[0] in inside and not _named(names[1:]):
            continue
        path, named = ".".join(map(str, names)), _named(names)
        if details["type"] == "extra_forbidden":
            lines.setdefault(path, _unknown(path, named, where, types, origin, hint))
            continue
        key = next((key for key in keys if named == key or named.startswith(key + ".")), named)
        place = names[: _length(names, key)]
        full, (type_words, default) = join(where, *map(str, place)), types.get(key, ("", MISSING))
        if details["type"] == "missing" and place == names:
            lines.setdefault(full, f"{full} is missing{_in(origin(where))}; add {full}, {type_words}")
            continue
        by_type = details["type"].endswith(("_type", "_parsing")) or details["type"].startswith(_SAID_BY_TYPE)
        by_type = by_type or len(details["loc"]) > key.count(".") + 1
        requirement = f"must be {type_words}" if type_words and by_type else _requirement(details["msg"])
        value: Any = values
        for name in place:
            if isinstance(value, Mapping):
                value = value.get(name)
            elif isinstance(value, (list, tuple)) and isinstance(name, int):
                value = value[name]
        todo = "; give another" if default is MISSING else f"; the default is {value_text(default)}"
        lines.setdefault(full, f"{full} {requirement}, got {value_text(value)}{_in(origin(full))}{todo}")
    return list(lines.values())


def _named(path: list[int | str]) -> str:
    """A path as a dotted key without the places in lists: ``generators.0.blocks`` is described as generators.blocks."""
    return ".".join(step for step in path if isinstance(step, str))


def _length(path: list[int | str], key: str) -> int:
    """How many steps of a path lead to a described key; the place in a list that it holds is none of them."""
    return next(n for n in range(len(path) + 1) if _named(path[:n]) == key)


def _path(location: tuple[int | str, ...], values: Any, kind: str) -> list[int | str]:
    """pydantic's location of a mistake without the names of the types of a union, which stand between its keys."""
    path: list[int | str] = []
    for number, step in enumerate(location):
        missing = kind == "missing" and number == len(location) - 1
        if isinstance(values, Mapping) and (step in values or missing):
            values = values.get(step)
        elif isinstance(values, (list, tuple)) and isinstance(step, int):
            values = values[step] if step < len(values) else None  # one that is missing
        else:
            continue
        path.append(step)
    return path


def _unknown(path: str, named: str, where: str, types: Mapping[str, Any], origin: Origin, hint: str) -> str:
    full, (parent, _, last) = join(where, path), path.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in types if key.rpartition(".")[0] == named.rpartition(".")[0]]
    siblings = [key for key in siblings if key != last]  # of another kind of mapping, where it has a meaning
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
        return with_bounds(type_text(args[0]), args[1:])
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
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write thousands of digits
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
