"""Words for messages: names that strangers chose, what a file is, what an object holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_LONGEST = 80  # characters of a name in a message


def printable(name: Any, limit: int = _LONGEST) -> str:
    """A name from a file as one short line: control characters are escaped."""
    text = name if isinstance(name, str) else repr(name)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def some_of(names: Iterable[str], count: int = 3) -> str:
    """The first names, for messages."""
    names = list(names)
    return ", ".join(map(printable, names[:count])) + (", ..." if len(names) > count else "")


def content_of(value: Any) -> str:
    """What an object out of a pickle is: "a list of 2, of dict", "a tensor (2, 3)", "a dict of model, epoch"."""
    if isinstance(value, Tensor):
        return f"a single tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {some_of(map(printable, value), 6)}" if value else "an empty dict"
    if isinstance(value, (list, tuple, set)):
        kinds = sorted({type(item).__name__ for item in list(value)[:100]})
        return f"a {type(value).__name__} of {len(value)}" + (f" ({some_of(kinds)})" if kinds else "")
    if value is None or isinstance(value, (bool, int, float)):
        return f"the value {printable(value)}"
    return f"one object of type {printable(type(value).__name__)}"


def kind_of_file(path: Path, head: bytes) -> tuple[str, str]:
    """(what a file is that holds no weights, what to do), from its first bytes."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = start[:100].lower()
    if not head:
        return "is empty", "get the file again"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights themselves", "run git lfs pull there, or download the file"
    if lower.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<")):
        return "is a web page, not weights", "download the file itself, not the page that shows it"
    if not start.strip(b"\0"):
        return "holds nothing but zeros", "get the file again: the download was broken off"
    for magic, title in _MAGIC.items():
        if head.startswith(magic):
            return f"is {title}, not weights of PyTorch", "give a .safetensors file, or one that torch.save wrote"
    if head[257:262] == b"ustar":
        return "is a tar archive, not weights", "unpack it, and give the file inside"
    if lower.startswith((b"{", b"[")):
        return "is JSON text, not weights", "give the file that holds the tensors"
    return (
        f"is no file of weights (it begins with {printable(bytes(head[:12]))})",
        "give a .safetensors file, or one that torch.save wrote",
    )


_MAGIC = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x89HDF": "an HDF5 file (Keras or TensorFlow)",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF file",
}
