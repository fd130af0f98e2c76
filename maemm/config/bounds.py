"""The bounds of a type hint in words: ``Annotated[int, Ge(1)]`` is ``int >= 1``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf, Predicate
from pydantic.fields import FieldInfo


def with_bounds(text: str, metadata: Iterable[Any]) -> str:
    """The words of a type, and those of what stands beside it in ``Annotated``; what is no constraint is left out."""
    lower = upper = ""
    ends: list[str] = []
    least = most = None
    for constraint in constraints(metadata):
        if isinstance(constraint, (Ge, Gt)):
            lower = f"{'>=' if isinstance(constraint, Ge) else '>'} {_value(constraint)}"
        elif isinstance(constraint, (Le, Lt)):
            upper = f"{'<=' if isinstance(constraint, Le) else '<'} {_value(constraint)}"
        elif isinstance(constraint, MinLen):
            least = constraint.min_length
        elif isinstance(constraint, MaxLen):
            most = constraint.max_length
        elif isinstance(constraint, MultipleOf):
            ends.append(f"a multiple of {constraint.multiple_of}")
        elif isinstance(constraint, Predicate):
            ends.append(predicate_text(constraint))
    if (lower or upper) and " | " in text:
        text = f"({text})"
    if lower and upper:
        sign, number = lower.split(" ")
        text = f"{number} {sign.replace('>', '<')} {text} {upper}"
    elif lower or upper:
        text = f"{text} {lower or upper}"
    if least is not None and least == most and text.endswith(", ...]"):
        text = f"[{', '.join([text[1:-6]] * most)}]"
    elif least is not None or most is not None:
        ends.insert(0, _length(least, most))
    return ", ".join([text, *ends])


def constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    """Each single constraint: those of ``Interval``, ``Len`` and pydantic's ``Field`` one by one."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from constraints(item.metadata)
        elif isinstance(item, GroupedMetadata):
            yield from constraints(item)
        else:
            yield item


def predicate_text(predicate: Predicate) -> str:
    """The summary of the docstring of a predicate's function, or its name."""
    summary = (getattr(predicate.func, "__doc__", None) or "").strip().split("\n\n")[0]
    return " ".join(summary.split()).rstrip(".") or getattr(predicate.func, "__name__", "of some kind")


def _value(constraint: Any) -> str:
    return next(str(getattr(constraint, name)) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name))


def _length(least: int | None, most: int | None) -> str:
    if most is None:
        return f"{least} or more"
    return f"{least or 0} to {most} of them"
