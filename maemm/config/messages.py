"""Values checked by pydantic, and each mistake as one line: the key, what it must be, where it was written."""

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
Origin = Callable[[str], str]  # dotted key -> where it was written, for messages; "" where unknown


def validate(
    validator: Callable[[str], Any],
    values: Mapping[str, Any],
    where: str,
    known: Mapping[str, tuple[str, Any]],
    origin: Origin | None = None,
    hint: str = "",
) -> tuple[Any, list[str]]:
    """Run a pydantic JSON validator: JSON's strict mode takes lists for tuples, and never true for 1.

    ``known`` maps each dotted key below ``where`` to its type in words and its default.
    """
    try:
        return validator(json.dumps(plain(values, where))), []
    except MaemmError as error:
        return {}, [str(error)]
    except ValidationError as error:
        return {}, explain(error, values, where, known, origin or (lambda key: ""), hint)


def explain(
    error: ValidationError,
    values: Mapping[str, Any],
    where: str,
    known: Mapping[str, tuple[str, Any]],
    origin: Origin,
    hint: str = "",
) -> list[str]:
    """One line per wrong key: unknown (with the nearest), missing, or of another type or range."""
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path = ".".join(str(part) for part in one["loc"])
        key = next((name for name in _longest(known) if path == name or path.startswith(name + ".")), path)
        if one["type"] == "extra_forbidden":
            lines.setdefault(path, _unknown(path, where, known, origin, hint))
        elif one["type"] == "missing" and path == key:
            full, kind = join(where, key), known.get(key, ("", None))[0]
            lines.setdefault(key, f"{full} is missing{_in(origin(where))}; add {full}, {kind}")
        else:
            kind, default = known.get(key, ("", MISSING))
            of_type = one["type"].endswith(("_type", "_parsing")) or path != key
            demand = f"must be {kind}" if kind and of_type else _demand(one["msg"])
            lines.setdefault(key, _refused(join(where, key), demand, _at(values, key), origin, default))
    return list(lines.values())


def _refused(full: str, demand: str, value: Any, origin: Origin, default: Any) -> str:
    advised = "" if default is MISSING else f"; the default is {value_text(default)}"
    return f"{full} {demand}, got {value_text(value)}{_in(origin(full))}{advised}"


def _at(values: Any, key: str) -> Any:
    for one in key.split("."):
        values = values.get(one) if isinstance(values, Mapping) else values
    return values


def _longest(known: Mapping[str, Any]) -> list[str]:
    return sorted(known, key=len, reverse=True)


def _unknown(path: str, where: str, known: Mapping[str, Any], origin: Origin, hint: str) -> str:
    full, (parent, _, last) = join(where, path), path.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    like = nearest(last, siblings)
    todo = f"did you mean {join(where, parent, like)!r}?" if like else advice(last, siblings, hint)
    return f"unknown key {full!r}{_in(origin(full))}; {todo}"


def _demand(message: str) -> str:
    """pydantic's "Input should be greater than 0" -> "must be greater than 0"."""
    for start in ("Input should ", "Tuple should ", "List should ", "String should ", "Dictionary should "):
        if message.startswith(start):
            return "must " + message[len(start) :]
    return "is refused: " + message.removeprefix("Value error, ")


# --------------------------------------------------------------------------------------------------- words
def join(*keys: str) -> str:
    """Dotted key of its pieces, empty ones left out."""
    return ".".join(one for one in keys if one)


def _in(origin: str) -> str:
    return f" ({origin})" if origin else ""


def type_text(hint: Any) -> str:
    """A type hint as a person writes the value in YAML: ``int | [int, int]``."""
    simple = {Any: "any", MISSING: "any", type(None): "null", Ellipsis: "..."}
    if hint in simple:
        return simple[hint]
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        return type_text(args[0])
    if base is Literal:
        return " | ".join(value_text(one) for one in args)
    if base is Union or base is types.UnionType:
        return " | ".join(dict.fromkeys(type_text(one) for one in args))
    if base is tuple:
        return f"[{', '.join(type_text(one) for one in args)}]"
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
    """A value as one writes it in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(value_text(one, limit) for one in value[:limit])}]"
    elif isinstance(value, BaseModel):
        text = value_text(value.model_dump(mode="json"), limit)
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {value_text(one, limit)}" for key, one in list(value.items())[:limit]) + "}"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(value: Any, where: str) -> Any:
    """A value made of what YAML and JSON know: tuples become lists, paths text.

    Raises :class:`MaemmError` for anything else and for numbers that are not finite.
    """
    if isinstance(value, Mapping):
        return {_key(key, where): plain(one, join(where, str(key))) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, where) for one in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise MaemmError(f"{where} is {value}; give a finite number")
    for kind in (bool, int, float, str):  # bool first, since it is an int; subclasses become the plain type
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise MaemmError(f"{where} is a {type(value).__name__}; recipes hold texts, numbers, true, false, null and lists")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise MaemmError(f"{where} has the key {key!r}; keys are texts, put it in quotes")
    return key
