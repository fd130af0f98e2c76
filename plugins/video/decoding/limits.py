"""How much of a video is taken into memory."""

from __future__ import annotations

MOST_BYTES = 2**31  # of one clip: a file may claim any size


def check_bytes(frames: int, height: int, width: int) -> None:
    """Raises ValueError for clips that no memory holds."""
    if frames * height * width * 3 > MOST_BYTES:
        raise ValueError(f"a clip of {frames} x {height} x {width} pixels is more than {MOST_BYTES >> 30} GiB")
