"""One file of weights, ours or of other code. Its content says what it is, whatever its name."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from maemm.contract.errors import MaemmError
from maemm.weights.describe import kind_of_file, printable
from maemm.weights.pickles import read_pickle

_HEAD = 512  # bytes that tell one kind of file from another
_LONGEST_HEADER = 100_000_000  # that safetensors accepts
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True)
class Content:
    """What a file holds: of safetensors the tensors by name, of a pickle whatever was saved."""

    value: Any
    metadata: dict[str, str] = field(default_factory=dict)


def check_path(path: Any) -> None:
    """Raises :class:`MaemmError` for what is no path, and for one that no system accepts."""
    if not isinstance(path, (str, os.PathLike)):
        todo = "give its state_dict()" if isinstance(path, nn.Module) else "give a path or a state dict"
        raise MaemmError(f"weights are of type {type(path).__name__}; {todo}")
    if "\0" in os.fspath(path):
        raise MaemmError(f"the path of the weights holds a zero byte ({printable(str(path))}); give another path")


def check_regular(path: Path) -> None:
    """Raises :class:`MaemmError` for what is missing and for what is no file. Opening a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MaemmError(f"no such weights: {path}; give a weights file, a run or a folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MaemmError(f"the weights cannot be opened ({path}: {reason}); check the path") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "no file")
        raise MaemmError(f"the weights are {kind}, not a file ({path}); give a weights file")


def read_file(path: Path) -> Content:
    """The content of a weights file. Raises :class:`MaemmError` for what is none, is damaged, or could run code."""
    check_regular(path)
    head = _head(path)
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return Content(read_pickle(path))
    kind, todo = kind_of_file(path, head)
    raise MaemmError(f"{path} cannot be read as weights: it {kind}; {todo}")


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file; empty for any other file, and for one that cannot be read."""
    if not path.is_file():
        return {}
    try:
        if not _is_safetensors(path, _head(path)):
            return {}
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, MaemmError):
        return {}


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise MaemmError(f"the weights cannot be opened ({path}: {error.strerror}); check the permissions") from None


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of the header in 8 bytes, then JSON."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
        return Content(load_file(path), metadata)
    except MemoryError:
        raise
    except Exception as error:  # the library raises what its header parser, torch and the system raise
        reason = printable((str(error).splitlines() or [""])[0], 120) or type(error).__name__
        raise MaemmError(
            f"{path} cannot be read as weights: its header and its content do not fit ({reason}); get the file again"
        ) from None
