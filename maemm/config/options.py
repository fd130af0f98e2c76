"""The options of a part: its constructor's keyword-only parameters, checked by their names and type hints.

There is no second schema. What a hint says beside the type (bounds, that a part stands there) is in
:mod:`maemm.contract.options`. A constructor that ends in ``**rest`` passes what it does not name to the next
constructor in the method resolution order, so that the options of that one are options of the part too.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from typing_extensions import NotRequired, Required, TypedDict

from maemm import registry
from maemm.config.messages import MISSING, Origin, join, type_text, validate, value_text
from maemm.contract.errors import MaemmError
from maemm.contract.options import PartOf


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

    def inner(self) -> list[Option]:
        """The keys of an option that is a mapping with keys of its own (a pydantic model), or a list of such, as
        ``NAME.KEY``."""
        return [
            Option(
                f"{self.name}.{name}",
                field_hint(field),
                MISSING if field.is_required() else field.default,
                field.description or "",
            )
            for model in _models(self.hint)
            for name, field in model.model_fields.items()
        ]


def field_hint(field: FieldInfo) -> Any:
    """The type hint of a pydantic field, with its constraints."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that a value of a hint may be."""
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        yield hint
    base = typing.get_origin(hint)
    if base is Annotated or base is typing.Union or base is types.UnionType:
        for arm in typing.get_args(hint)[: 1 if base is Annotated else None]:
            yield from _models(arm)
    elif inspect.isclass(base) and issubclass(base, Sequence) and typing.get_args(hint):
        yield from _models(typing.get_args(hint)[0])  # each of a list


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
    """The options of a part as a list, each before its inner ones, for ``maemm plugins show``."""
    return [shown for option in options_of(part).values() for shown in (option, *option.inner())]


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
    types_of = {option.name: (option.type, option.default) for option in describe(part)}
    try:
        adapter = _adapter(part)
    except PydanticUserError as error:
        raise MaemmError(
            f"a type hint of {_name(part)} cannot be checked ({error.message.split('. ')[0]}); fix the plugin"
        ) from error
    # strict: that of the adapter does not reach into the models of inner options.
    checked, wrong = validate(partial(adapter.validate_json, strict=True), options, where, types_of, origin, hint)
    for name, option in options_of(part).items():
        for marker, spec, key, default in _inner_parts(option.hint, options.get(name), join(where, name)):
            wrong += part_problems(marker.role, spec, key, origin, marker.default or default, marker.besides)
    return checked, wrong


def part_problems(
    role: str,
    spec: Any,
    where: str,
    origin: Origin | None = None,
    default: str | None = None,
    besides: Collection[str] = (),
) -> list[str]:
    """The mistakes of a part as it stands in a recipe, a name or {type: NAME, options}, a line for each.

    ``default``: its name where there is none; ``besides``: keys that are no options of it.
    """
    origin = origin or (lambda key: "")

    def mistake(text: str, key: str, todo: str) -> list[str]:
        return [f"{text}{f' ({origin(key)})' if origin(key) else ''}; {todo}"]

    spec = {"type": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping):
        text = f"{where} must be a name or a mapping, got {value_text(spec)}"
        return mistake(text, where, "write {type: NAME, ...}")
    name = spec.get("type", default)
    if not isinstance(name, str):
        text = f"{where} has no type" if name is None else f"{where}.type must be a name, got {value_text(name)}"
        return mistake(text, where, f"known {registry.PLURAL[role]}: {', '.join(registry.names(role))}")
    try:
        part = registry.find(role, name)
    except MaemmError as error:
        text, _, todo = str(error).partition("; ")
        return mistake(f"{text} at {where}", join(where, "type"), todo or f"choose another {registry.SINGULAR[role]}")
    options = {key: option for key, option in spec.items() if key != "type" and key not in besides}
    try:
        return problems(part, options, where, origin, f"see: maemm plugins show {name}")[1]
    except MaemmError as error:  # a mistake of the plugin
        return [str(error)]


def _inner_parts(
    hint: Any, value: Any, where: str, default: str | None = None
) -> Iterator[tuple[PartOf, Any, str, str | None]]:
    """(marker, spec, dotted key, the key's last name) of every part in the value of an option."""
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        markers = [item for item in args[1:] if isinstance(item, PartOf)]
        if markers and isinstance(value, (str, Mapping)):
            yield markers[0], value, where, default
        else:
            yield from _inner_parts(args[0], value, where, default)
    elif base is typing.Union or base is types.UnionType:
        for arm in args:
            yield from _inner_parts(arm, value, where, default)
    elif base is not None and len(args) == 2 and isinstance(value, Mapping):
        for name, item in value.items():
            yield from _inner_parts(args[1], item, join(where, str(name)), str(name))


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
