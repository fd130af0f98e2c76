"""Edit lists of mp4 files: what a cut without re-encoding writes, put into files that tests made."""

import struct


def with_edits(data, edits, track=0):
    """``data`` of an mp4 whose index comes last, with the edits [(seconds shown, second of the media)] of a track.

    A second of -1 is a pause before the media.
    """
    boxes = _boxes(data)
    at, size = next((start, length) for kind, start, length in boxes if kind == b"moov")
    assert at + size == len(data)  # what stands behind the index would move
    moov = data[at + 8 : at + size]
    scale = struct.unpack_from(">I", moov, moov.index(b"mvhd") + 4 + 12)[0]
    parts, number = [], 0
    for kind, start, length in _boxes(moov):
        box = moov[start : start + length]
        if kind == b"trak":
            box = _edited(box, edits, scale) if number == track else box
            number += 1
        parts.append(box)
    return data[:at] + _box(b"moov", b"".join(parts))


def _edited(trak, edits, scale):
    inner = trak[8:]
    media = next(inner[start : start + length] for kind, start, length in _boxes(inner) if kind == b"mdia")
    own = struct.unpack_from(">I", media, media.index(b"mdhd") + 4 + 12)[0]
    rows = [
        struct.pack(">IiI", round(shown * scale), -1 if start < 0 else round(start * own), 0x10000)
        for shown, start in edits
    ]
    elst = _box(b"elst", struct.pack(">II", 0, len(rows)) + b"".join(rows))
    kept = [inner[start : start + length] for kind, start, length in _boxes(inner) if kind != b"edts"]
    kept.insert(1, _box(b"edts", elst))  # behind tkhd
    return _box(b"trak", b"".join(kept))


def _boxes(data):
    """[(kind, start, bytes)] of the boxes that ``data`` is made of."""
    boxes, at = [], 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        boxes.append((kind, at, length))
        at += length
    return boxes


def _box(kind, body):
    return struct.pack(">I4s", len(body) + 8, kind) + body
