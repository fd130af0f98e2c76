"""Limit of the memory that a clip may use."""

from __future__ import annotations

MOST_BYTES = 2**31  # of one clip; a broken file may claim any size


def check_bytes(frames: int, height: int, width: int) -> None:
    """Raises ValueError for clips of more than ``MOST_BYTES``."""
    if frames * height * width * 3 > MOST_BYTES:
        raise ValueError(f"a clip of {frames} x {height} x {width} pixels is more than {MOST_BYTES >> 30} GiB")
