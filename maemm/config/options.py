"""The options of a part: its constructor's keyword-only parameters, checked by their names and type hints.

There is no second schema. A constructor that ends in ``**rest`` hands what it does not name to the next
constructor in the order of inheritance, whose options therefore count too.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from typing_extensions import NotRequired, Required, TypedDict

from maemm.config.messages import MISSING, Origin, type_text, validate, value_text
from maemm.contract.errors import MaemmError


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
        raise MaemmError(f"a type hint of {_name(part)} cannot be resolved ({error}); fix the plugin") from error


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
            f"a type hint of {_name(part)} cannot be checked ({error.message.split('. ')[0]}); fix the plugin"
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


def _name(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"
