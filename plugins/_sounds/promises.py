"""What the headers of sound files promise about their length, and whether the file keeps it."""

from __future__ import annotations

import mmap
import re
import struct
from typing import Any

MAX_MISSING_BYTES = 1024  # bytes that may be missing at the end of a file: writers count their padding differently
_STREAMED = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # lengths written by programs that stream
MOST_SAMPLES = 2**48  # libsndfile says more where it does not know
_LAST_PAGES = 65536 + 307  # bytes that surely hold an Ogg page: the longest and a bit
_SEARCHED = 2**24  # bytes of an Ogg file that are searched whole for further streams
_SAMPLED = 16  # places of a longer one that are looked at


# ------------------------------------------------------------------------------------------------- cut off?
def truncation_reason(path: bytes, size: int) -> str | None:
    """Why the file is truncated, or says less than it holds, which libsndfile does not report; None: no sign of it."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return _wav_cut(file, size)
        if head[:4] == b"OggS":
            file.seek(max(0, size - _LAST_PAGES))
            return _ogg_cut(file.read())
    if head[:4] == b"fLaC":
        return _flac_cut(path)
    if head[:4] in (b"FORM", b".snd", b"RF64", b"riff"):
        return _logged_cut(path)
    return None


def _wav_cut(file: Any, size: int) -> str | None:
    position = 12
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        end = position + 8 + length
        if kind != b"data":
            position = end + length % 2
            continue
        if length in _STREAMED:
            return None
        if end - size > MAX_MISSING_BYTES:
            return f"the file is cut off: {end - size} of {length} bytes of sound are missing"
        file.seek(end + length % 2)
        after = file.read(4)
        if size - end > MAX_MISSING_BYTES and any(after) and not re.fullmatch(rb"[ -~]{4}", after):
            return f"the header counts {length} bytes of sound, {size - end} more follow that it does not mention"
        return None
    return None


def _ogg_cut(tail: bytes) -> str | None:
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "the file is cut off inside a page"
    return None if page[5] & 4 else "the file is cut off: its last page is not marked as the end"


def _flac_cut(path: bytes) -> str | None:
    """A file that has its last sample is whole; finding it takes a fifth of a millisecond."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if not 0 < file.frames < MOST_SAMPLES:  # not recorded: packets are counted
                return None
            file.seek(file.frames - 1)
            return None if len(file.read(1)) else "the file is cut off: its last sample is missing"
    except soundfile.LibsndfileError:
        return "the file is cut off or damaged: its last sample cannot be decoded"


def _logged_cut(path: bytes) -> str | None:
    """AIFF, AU, RF64 and W64: libsndfile reads what there is, and only its log tells what the header promises."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            log = file.extra_info
    except soundfile.LibsndfileError:
        return None  # whoever opens it says why
    for promised, there in re.findall(r": (\d+) \(should be (\d+)\)", log):
        if int(promised) not in _STREAMED and int(promised) - int(there) > MAX_MISSING_BYTES:
            return f"the file is cut off: the header promises {int(promised):,} bytes, there are {int(there):,}"
    return None


# ----------------------------------------------------------------------------------------------- MP3
def length_is_recorded(path: bytes) -> bool:
    """Whether an MP3's first frame records how long it is (Xing, Info or VBRI), in bytes that fit the file.

    Without it libsndfile guesses from the first frame. The bytes do not fit where streams were put one behind the
    other, or the file was cut.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        start = _behind_tags(file)
        file.seek(start)
        frame = file.read(4096)
        end = size - _tags_at_end(file, size)
    if len(frame) < 40 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return False
    mpeg1, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
    at = 4 + (17 if mpeg1 and mono else 32 if mpeg1 else 9 if mono else 17)  # behind the side information
    if frame[at : at + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(frame[at + 4 : at + 8], "big")
        if flags & 3 != 3:
            return False
        counted = int.from_bytes(frame[at + 12 : at + 16], "big")
    elif frame[36:40] == b"VBRI":
        counted = int.from_bytes(frame[46:50], "big")
    else:
        return False
    return abs(end - start - counted) <= MAX_MISSING_BYTES


def _behind_tags(file: Any) -> int:
    """Where the first frame begins, behind ID3v2 tags and their padding."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        start += 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        start += 10 * bool(head[5] & 0x10)  # a footer
    file.seek(start)
    padding = file.read(65536)
    return start + len(padding) - len(padding.lstrip(b"\0"))


def _tags_at_end(file: Any, size: int) -> int:
    """Bytes of ID3v1 and APE tags behind the last frame."""
    tags = 0
    file.seek(max(0, size - 128))
    if file.read(3) == b"TAG":
        tags = 128
    file.seek(max(0, size - tags - 32))
    footer = file.read(32)
    if footer[:8] == b"APETAGEX":
        tags += int.from_bytes(footer[12:16], "little") + 32 * bool(footer[23] & 0x80)  # and its header
    return tags


# ----------------------------------------------------------------------------------------------- Ogg
_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")  # a page that begins a stream


def chained(path: bytes) -> bool:
    """Whether an Ogg file is several streams one behind the other: a stream begins after pages of another.

    Up to 16 MB are searched for such pages; of longer files the numbers of pages at some places are compared.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        behind = 0  # the pages that begin the streams of the first link stand together
        while _FIRST_PAGE.match(data, behind):
            behind += _page_bytes(data, behind)
        if len(data) <= _SEARCHED:
            return _FIRST_PAGE.search(data, behind) is not None
        places = [int(place) for place in range(behind, len(data), (len(data) - behind) // _SAMPLED)]
        pages = [at for at in (data.find(b"OggS\0", place) for place in places) if 0 <= at < len(data) - 27]
        serials = {data[at + 14 : at + 18] for at in (*pages, 0)}
        numbers = [int.from_bytes(data[at + 18 : at + 22], "little") for at in pages]
    return len(serials) > 1 or numbers != sorted(numbers)


def _page_bytes(data: mmap.mmap, at: int) -> int:
    segments = data[at + 26] if at + 27 <= len(data) else 0
    return 27 + segments + sum(data[at + 27 : at + 27 + segments])
