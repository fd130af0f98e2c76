"""The error that users are meant to see, and the nearest known name to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

FEW = 12  # so many names still fit into one line


class MaemmError(Exception):
    """Something the user can fix.

    The text is one line: what is wrong, where in brackets, and after a semicolon what to do.
    The command line prints it behind ``maemm: error:`` and exits with status 2, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, or None."""
    names = {str(one) for one in known}
    folded = {one.casefold(): one for one in sorted(names)}
    found = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def advice(name: str, known: Iterable[str], hint: str = "") -> str:
    """What to do about an unknown ``name``: the end of a message, after the semicolon."""
    names = sorted({str(one) for one in known})
    found = nearest(name, names)
    if found is not None:
        return f"did you mean {found!r}?"
    if hint:
        return hint
    if not names:
        return "there are none"
    shown = ", ".join(names[:FEW])
    return f"known: {shown}" + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
