"""Tar files in the layout of WebDataset: the files of a sample are neighbours whose names differ in the ending alone.

``dog/7.jpg``, ``dog/7.cls``: the sample ``dog/7``. Its key is all before the first dot of the file's name.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import IO, Any, NamedTuple
from urllib.parse import unquote

_BLOCK = 512  # headers and contents fill whole blocks


class Span(NamedTuple):
    """One sample of a tar file."""

    key: str
    start: int  # the first byte of its first header
    stop: int  # where the next sample begins, or behind its last block
    check: int  # CRC-32 of these bytes
    label: bytes | None  # the content of its .cls


def spans(archive: Any) -> Iterator[Span]:
    """The samples of a whole tar file in memory (bytes or a map of a file), in order.

    Members that are no files, such as folders, and hidden files (``._7.jpg``) are passed over. Raises ValueError for
    what is no tar file, for one that is cut off, and where a sample has two members of one ending, or members that are
    no neighbours.
    """
    key, start, stop, end, label = None, 0, 0, 0, None
    before: dict[str, set[str]] = {}  # endings of the samples so far
    endings: set[str] = set()
    view = memoryview(archive)
    try:
        with closing(tarfile.open(fileobj=io.BytesIO(archive) if isinstance(archive, bytes) else archive)) as file:
            for member in file:
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                if not member.isreg() or _is_hidden(member.name):
                    continue
                if member.offset_data + member.size > len(view):
                    raise ValueError(f"the file is cut off in {member.name}")
                own, ending = split_name(member.name)
                if own != key:
                    if key is not None:
                        stop = member.offset
                        yield Span(key, start, stop, zlib.crc32(view[start:stop]), label)
                    key, start, label, endings = own, member.offset, None, set()
                    if ending not in before.setdefault(own, endings):
                        _refuse_strangers(own, before[own])
                if ending in endings:
                    raise ValueError(f"{member.name} comes twice")
                endings.add(ending)
                stop = end
                if ending == "cls":
                    label = bytes(view[member.offset_data : member.offset_data + member.size])
        if view[end : end + _BLOCK] != bytes(_BLOCK):  # the library ends silently at a header that it cannot read
            raise ValueError(f"the file is cut off or damaged behind {key or 'its beginning'}")
        if key is not None:
            yield Span(key, start, stop, zlib.crc32(view[start:stop]), label)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"no whole tar file: {error}") from error
    finally:
        view.release()


def members(span: bytes) -> tuple[str, dict[str, bytes]]:
    """The bytes of one sample -> (its key, {ending: content}). Raises ValueError where they are damaged."""
    if (plain := _plain_members(span)) is not None:
        return plain
    key, contents = None, {}
    try:
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as file:
            for member in file:
                if member.isreg() and not _is_hidden(member.name):
                    key, ending = split_name(member.name)
                    contents[ending] = span[member.offset_data : member.offset_data + member.size]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"the sample is damaged in its shard: {error}") from error
    if key is None:
        raise ValueError("the shard holds no file at the place of the sample")
    return key, contents


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _refuse_strangers(key: str, endings: set[str]) -> None:
    if endings:
        raise ValueError(f"the files of {key} are no neighbours; write it with sorted names (tar --sort=name)")


def _plain_members(span: bytes) -> tuple[str, dict[str, bytes]] | None:
    """:func:`members` where all headers are of plain files, in a sixth of the time; None: the library has to look."""
    key, contents, at = "", {}, 0
    while at + _BLOCK <= len(span):
        header = span[at : at + _BLOCK]
        size = header[124:136].rstrip(b" \0")
        if header[156:157] != b"0" or size.strip(b"01234567") or not size:
            return None
        name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
        path = (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")
        start, length = at + _BLOCK, int(size, 8)
        if _is_hidden(path):
            return None
        key, ending = split_name(path)
        contents[ending] = span[start : start + length]
        at = start + -(-length // _BLOCK) * _BLOCK
    return (key, contents) if contents and at == len(span) else None


def split_name(path: str) -> tuple[str, str]:
    """``a/b.image.JPG`` -> (``a/b``, ``image.jpg``). ``%2E`` in a key stands for a dot."""
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    return unquote(f"{folder}{slash}{stem}"), ending.lower()


def member_name(key: str, ending: str) -> str:
    """The name that :func:`split_name` takes apart, for any key."""
    folder, slash, stem = key.rpartition("/")
    return f"{folder.replace('%', '%25')}{slash}{stem.replace('%', '%25').replace('.', '%2E')}.{ending}"


def write(file: IO[bytes], samples: Iterator[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write ``(key, {ending: content})`` as a tar file; -> samples. The same samples give the same bytes."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key, contents in samples:
            for ending, content in contents.items():
                member = tarfile.TarInfo(member_name(key, ending))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            count += 1
    return count
