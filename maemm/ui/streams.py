"""The streams of a command, none of which is taken for granted.

What a verb computes must not depend on who reads its output: stdout and stderr may be closed, the reader of a pipe may
leave, a terminal may go away, the encoding may know no umlaut. Progress, log lines and warnings are then dropped; only
the result that a verb prints at the end (:func:`print_result`) reports that it could not be written.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_LONGEST_WORD = 300  # letters of one word of a message; names of files are shorter
_results: TextIO | None = None  # where results go within :func:`guarded`


class _Nowhere(io.TextIOBase):
    """A stream that drops what is written."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return False


class Lenient:
    """A text stream whose writes never raise. ``error``: the first failure, after which what is written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write ``text``, with escapes for what the encoding of the stream does not have."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except Exception as error:  # of a pipe, a closed file, or whatever a notebook puts in its place
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except Exception as error:
            self._give_up(error)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        self.error = self.error or error
        # What is left in the buffer of the stream is flushed when the interpreter ends, and must not fail there.
        with suppress(Exception):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        self._stream = cast(TextIO, _Nowhere())


@contextmanager
def guarded(as_json: bool = False) -> Iterator[None]:
    """Within the block no use of ``sys.stdout`` and ``sys.stderr`` fails.

    ``as_json``: results alone go to stdout. All else that is written there, also by C libraries and by worker
    processes, goes to stderr.
    """
    global _results
    _occupy_descriptors()
    before, results_before = (sys.stdout, sys.stderr), _results
    output, errors = (cast(TextIO, Lenient(stream or cast(TextIO, _Nowhere()))) for stream in before)
    sys.stdout, sys.stderr, _results = output, errors, output
    saved = _take_stdout(before[0]) if as_json else None
    if as_json:
        sys.stdout = errors
        if saved is not None:
            encoding = before[0].encoding
            _results = cast(TextIO, Lenient(open(saved, "w", encoding=encoding, closefd=False)))  # noqa: SIM115
    try:
        yield
    finally:
        for stream in (_results, output, errors):
            stream.flush()
        sys.stdout, sys.stderr = before
        _results = results_before
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def print_result(text: object) -> None:
    """Print the result of a verb. Raises OSError where it cannot be written, BrokenPipeError for a pipe without reader.

    Within :func:`guarded`, otherwise this is ``print``.
    """
    if _results is None:
        print(text)
        return
    print(text, file=_results, flush=True)
    error = getattr(_results, "error", None)
    if error is not None:
        raise error if isinstance(error, OSError) else BrokenPipeError(str(error))


def print_json(record: object, indent: int | None = None) -> None:
    """:func:`print_result` of a record as JSON; numbers that JSON does not have (NaN, infinity) are null."""
    print_result(json.dumps(_finite(record), indent=indent, allow_nan=False))


def readable(line: str) -> str:
    """A line for people, whatever words and names it repeats: long ones are cut, control characters are escaped."""
    words = [word if len(word) <= _LONGEST_WORD else f"{word[:60]}...{word[-20:]}" for word in line.split(" ")]
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in " ".join(words)
    )


def warn(text: str) -> None:
    """A line on stderr that begins with "maemm: warning: "; dropped where it cannot be written."""
    stream = sys.stderr
    if stream is not None:
        with suppress(OSError, ValueError):
            text = "\n".join(map(readable, text.split("\n")))
            print(f"maemm: warning: {text}", file=stream, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at this stream; False where there is none."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _occupy_descriptors() -> None:
    """Open what is closed of the first three descriptors, or the next file would get its number, and C's error text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def _take_stdout(stream: TextIO | None) -> int | None:
    """Let descriptor 1 be that of stderr and return the old one; None where ``stream`` is not descriptor 1."""
    try:
        if stream is None or stream.fileno() != 1:
            return None
        stream.flush()
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    saved = os.dup(1)
    os.dup2(2, 1)
    return saved
