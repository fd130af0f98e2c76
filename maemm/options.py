"""The options of a part: its constructor's keyword-only parameters, checked by their names and type hints.

There is no second schema. A constructor that ends in ``**rest`` hands what it does not name to the next
constructor in the order of inheritance, whose options therefore count too.
"""

from __future__ import annotations

import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import NotRequired, Required, TypedDict

from maemm.errors import MaemmError
from maemm.nearest import advice, nearest

MISSING = inspect.Parameter.empty
Origin = Callable[[str], str]  # dotted key -> where it was written, for messages; "" where unknown


@dataclass(frozen=True)
class Option:
    """One option of a part."""

    name: str
    hint: Any
    default: Any  # MISSING: must be given
    doc: str = ""

    @property
    def type(self) -> str:
        return type_text(self.hint)

    @property
    def shown_default(self) -> str:
        if self.default is MISSING:
            return "required"
        return self.default if isinstance(self.default, str) else value_text(self.default)


# ------------------------------------------------------------------------------------------------- reading
@cache
def options_of(part: Any) -> dict[str, Option]:
    """{name: option} of a class or a function, in the order in which they are written.

    Raises :class:`MaemmError` when a type hint cannot be resolved: that is the part's mistake, not the user's.
    """
    found: dict[str, Option] = {}
    docs = _docs(part)
    for function in _constructors(part):
        hints = _hints(part, function)
        for name, one in inspect.signature(function).parameters.items():
            if one.kind is one.KEYWORD_ONLY and name not in found:
                found[name] = Option(name, hints.get(name, Any), one.default, docs.get(name, ""))
    return found


def describe(part: Any) -> list[Option]:
    """The options of a part for ``maemm plugins show``: name, type, default and one line of text each."""
    return list(options_of(part).values())


def _constructors(part: Any) -> list[Callable[..., Any]]:
    """The functions whose keyword-only parameters are the part's options."""
    if not inspect.isclass(part):
        return [part]
    chain = []
    for cls in part.__mro__:
        init = cls.__dict__.get("__init__")
        if not inspect.isfunction(init):
            continue
        chain.append(init)
        if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(init).parameters.values()):
            break
    return chain


def _hints(part: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """Hints of the keyword-only parameters; other hints may name what is imported for type checkers alone."""
    function = inspect.unwrap(function)
    kinds = inspect.signature(function).parameters
    wanted = {name: one.annotation for name, one in kinds.items() if one.kind is one.KEYWORD_ONLY}
    given = types.SimpleNamespace(__annotations__={name: one for name, one in wanted.items() if one is not MISSING})
    try:
        return typing.get_type_hints(given, function.__globals__, include_extras=True)
    except Exception as error:
        raise MaemmError(f"a type hint of {_name(part)} cannot be resolved ({error}); mend the plugin") from error


def _docs(part: Any) -> dict[str, str]:
    """``name: text`` lines below a line "Options" in the docstrings of a class and of its bases."""
    found: dict[str, str] = {}
    classes = part.__mro__ if inspect.isclass(part) else [part]
    for one in classes:
        for name, text in _section(inspect.cleandoc(one.__doc__ or "").splitlines()).items():
            found.setdefault(name, text)
    return found


def _section(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    inside, indent, last = False, 0, ""
    for line in lines:
        text = line.strip()
        if text.rstrip(":") == "Options":
            inside, last = True, ""
        elif inside and text and set(text) != {"-"}:
            name, colon, rest = text.partition(":")
            depth = len(line) - len(line.lstrip())
            if last and depth > indent:
                found[last] += " " + text
            elif colon and name.strip("`").isidentifier():
                last, indent = name.strip("`"), depth
                found[last] = rest.strip()
            else:
                inside = False
        elif inside and not text and found:
            inside = False
    return found


# ------------------------------------------------------------------------------------------------ checking
def check(part: Any, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The given options with their values in the hinted types (lists become tuples), or all that is wrong.

    ``where`` is the dotted key of the part, for messages. Raises :class:`MaemmError`, one line per problem.
    """
    checked, wrong = problems(part, options, where)
    if wrong:
        raise MaemmError("\n".join(wrong))
    return checked


def problems(
    part: Any, options: Mapping[str, Any], where: str, origin: Origin | None = None, hint: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Like :func:`check`, but returns the problems as lines. ``hint`` says where the options are listed."""
    known = options_of(part)
    try:
        adapter = _adapter(part)
    except PydanticUserError as error:
        raise MaemmError(
            f"a type hint of {_name(part)} cannot be checked ({error.message.split('. ')[0]}); mend the plugin"
        ) from error
    types_of = {name: (one.type, one.default) for name, one in known.items()}
    return validate(adapter.validate_json, options, where, types_of, origin, hint)


@cache
def _adapter(part: Any) -> TypeAdapter[Any]:
    keys = {
        name: Required[one.hint] if one.default is MISSING else NotRequired[one.hint]
        for name, one in options_of(part).items()
    }
    schema = TypedDict("Options", keys)  # type: ignore[operator]  # made at run time
    schema.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(schema)


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


def _name(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"


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
