"""What a recipe may hold: texts, numbers, true, false, null, lists and mappings, in plain Python types."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from maemm.contract.errors import MaemmError

MAX_DEPTH = 50  # of mappings and lists in each other; a recipe has a few
MAX_KEY = 200  # characters of a key
MAX_TEXT = 10_000  # characters of a text; a longer one is data passed by mistake
BITS = 64  # of a whole number, with its sign
LEAST, MOST = 1e-37, 1e38  # sizes of other numbers: what single precision holds with all its digits


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A value in the types of YAML and JSON: tuples become lists, paths text, NumPy's scalars Python's.

    Raises :class:`MaemmError` for any other type, for numbers that are not finite or have more than 64 bits, for long
    texts and for what is nested too deeply.
    """
    shown = where or "the recipe"
    if depth > MAX_DEPTH:
        raise MaemmError(f"{shortened(shown)} is nested more than {MAX_DEPTH} deep; a recipe has a few levels")
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise MaemmError(f"{shown} has the key {key!r}; keys are texts, put it in quotes")
            if len(key) > MAX_KEY:
                raise MaemmError(f"{shown} has a key of {len(key):,} characters ({shortened(key)!r}); shorten it")
        return {
            str(key): plain(item, f"{where}.{key}" if where else str(key), depth + 1) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    if isinstance(value, PurePath):
        return checked(str(value), where)
    numpy = sys.modules.get("numpy")  # where nobody has imported it, no value is of its types
    if numpy is not None and isinstance(value, numpy.generic):
        value = float(value) if isinstance(value, numpy.longdouble) else value.item()
    for kind in (bool, int, float, str):  # bool first, since it is an int; subclasses become the plain type
        if isinstance(value, kind):
            return checked(kind(value), where)
    if value is None:
        return None
    raise MaemmError(
        f"{shown} is a {type(value).__name__}; recipes hold texts, numbers, true, false, null, lists and mappings"
    )


def checked(value: bool | int | float | str, where: str) -> bool | int | float | str:
    """A scalar. Raises :class:`MaemmError` where it is not finite, has too many bits or is too long."""
    if isinstance(value, float) and not math.isfinite(value):
        raise MaemmError(f"{where} is {value}; give a finite number")
    if isinstance(value, float) and value and not LEAST <= abs(value) <= MOST:
        raise MaemmError(
            f"{where} is {value}, which 32 bits cannot hold; give a number from {LEAST:g} to {MOST:g}, or 0"
        )
    if isinstance(value, int) and value.bit_length() >= BITS:
        raise MaemmError(f"{where} is a number of {value.bit_length()} bits; give one of less than {BITS}")
    if isinstance(value, str):
        refuse_undecodable(value, where)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise MaemmError(
            f"{where} is a text of {len(value):,} characters ({shortened(value)!r}); give at most {MAX_TEXT:,}"
        )
    return value


def shortened(text: str, limit: int = 60) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


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
