"""The options of a part: its constructor's keyword-only parameters, checked by their names and type hints.

There is no second schema. A constructor that ends in ``**rest`` passes what it does not name to the next
constructor in the method resolution order, so that the options of that one are options of the part too.
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
    """{name: option} of a class or a function, in the order of the source.

    Raises :class:`MaemmError` where a type hint cannot be resolved: that is the part's mistake, not the user's.
    """
    options: dict[str, Option] = {}
    docs = _docs(part)
    for function in _constructors(part):
        hints = _hints(part, function)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in options:
                options[name] = Option(name, hints.get(name, Any), parameter.default, docs.get(name, ""))
    return options


def describe(part: Any) -> list[Option]:
    """The options of a part as a list, for ``maemm plugins show``."""
    return list(options_of(part).values())


def _constructors(part: Any) -> list[Callable[..., Any]]:
    """The functions whose keyword-only parameters are the part's options."""
    if not inspect.isclass(part):
        return [part]
    chain: list[Callable[..., Any]] = []
    for cls in part.__mro__:
        init = cls.__dict__.get("__init__")
        if not inspect.isfunction(init):
            continue
        chain.append(init)
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
            break
    return chain


def _hints(part: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved hints of the keyword-only parameters. Other hints may use names imported for type checkers only."""
    function = inspect.unwrap(function)
    keywords = {k: p for k, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    annotations = {name: p.annotation for name, p in keywords.items() if p.annotation is not MISSING}
    holder = types.SimpleNamespace(__annotations__=annotations)
    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)
    except Exception as error:
        raise MaemmError(f"a type hint of {_name(part)} cannot be resolved ({error}); fix the plugin") from error


def _docs(part: Any) -> dict[str, str]:
    """{name: text} from the "Options" sections in the docstrings of a function, or of a class and its bases."""
    docs: dict[str, str] = {}
    for documented in part.__mro__ if inspect.isclass(part) else [part]:
        docs = _options_section(inspect.cleandoc(documented.__doc__ or "").splitlines()) | docs
    return docs


def _options_section(lines: list[str]) -> dict[str, str]:
    """{name: text} of the ``name: text`` lines below a line "Options"; deeper indented lines continue a text."""
    docs: dict[str, str] = {}
    inside, indent, last = False, 0, ""
    for line in lines:
        text = line.strip()
        if text.rstrip(":") == "Options":
            inside, last = True, ""
        elif inside and text and set(text) != {"-"}:
            name, colon, rest = text.partition(":")
            depth = len(line) - len(line.lstrip())
            if last and depth > indent:
                docs[last] += " " + text
            elif colon and name.strip("`").isidentifier():
                last, indent = name.strip("`"), depth
                docs[last] = rest.strip()
            else:
                inside = False
        elif inside and not text and docs:
            inside = False
    return docs


# ------------------------------------------------------------------------------------------------ checking
def check(part: Any, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``options`` with their values in the hinted types (lists become tuples).

    ``where`` is the dotted key of the part, for messages. Raises :class:`MaemmError` with one line for each mistake.
    """
    checked, wrong = problems(part, options, where)
    if wrong:
        raise MaemmError("\n".join(wrong))
    return checked


def problems(
    part: Any, options: Mapping[str, Any], where: str, origin: Origin | None = None, hint: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Like :func:`check`, but returns the mistakes as lines. ``hint`` says where the options are listed."""
    types_of = {name: (option.type, option.default) for name, option in options_of(part).items()}
    try:
        adapter = _adapter(part)
    except PydanticUserError as error:
        raise MaemmError(
            f"a type hint of {_name(part)} cannot be checked ({error.message.split('. ')[0]}); fix the plugin"
        ) from error
    return validate(adapter.validate_json, options, where, types_of, origin, hint)


@cache
def _adapter(part: Any) -> TypeAdapter[Any]:
    keys = {
        name: Required[option.hint] if option.default is MISSING else NotRequired[option.hint]
        for name, option in options_of(part).items()
    }
    typed_dict: Any = TypedDict  # for type checkers, who know the literal form only
    schema = typed_dict("Options", keys)
    schema.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(schema)


def _name(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"
