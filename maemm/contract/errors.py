"""The error that users are meant to see, and the closest match for a mistyped name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED_NAMES = 12  # that many names still fit on one line


class MaemmError(Exception):
    """Something the user can fix.

    The text is one line: what is wrong, where in brackets, and after a semicolon what to do.
    The command line prints it after ``maemm: error:`` and exits with status 2, without a traceback.
    """


class RunEnds(MaemmError):
    """No sample is at fault: raised while one is read, it ends the run, where other exceptions make it unreadable."""


class NotInstalled(RunEnds):
    """A package that a part needs is missing."""


class DataLost(RunEnds):
    """The storage that holds the samples is gone, or is not what it was."""


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most similar to ``name``, ignoring case, or None if none is similar."""
    by_folded = {candidate.casefold(): candidate for candidate in sorted({str(c) for c in candidates})}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def advice(name: str, candidates: Iterable[str], hint: str = "") -> str:
    """What to do about an unknown ``name``: the end of a message, after the semicolon.

    The closest candidate if there is one, else ``hint``, else a list of the candidates.
    """
    names = sorted({str(candidate) for candidate in candidates})
    match = nearest(name, names)
    if match is not None:
        return f"did you mean {match!r}?"
    if hint:
        return hint
    if not names:
        return "there are none"
    shown = ", ".join(names[:LISTED_NAMES])
    return f"known: {shown}" + (f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else "")
