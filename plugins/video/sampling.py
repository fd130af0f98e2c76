"""Which frames of a video make a clip."""

from __future__ import annotations

import numpy as np


def by_stride(count: int, frames: int, stride: int, place: float) -> np.ndarray:
    """(frames,) int64 of ``count`` frames: every ``stride``-th from a start; ``place`` in [0, 1) chooses the start.

    The start is uniform in 0 .. count - frames * stride, as in VideoMAE. A shorter video starts at 0 and repeats the
    last frame that the steps reach.
    """
    start = int(place * (max(count - frames * stride, 0) + 1))
    reached = (count - 1 - start) // stride
    return start + stride * np.minimum(np.arange(frames), reached)


def by_time(times: np.ndarray, frames: int, fps: float, place: float) -> np.ndarray:
    """(frames,) int64: the frames that are shown at ``fps`` equal steps of time.

    ``times`` (count,) are the seconds at which frames appear, ascending, at any distances. The start is uniform among
    those with which the clip ends within the video; a shorter video repeats its last frame.
    """
    last = times[-1] - times[-2] if len(times) > 1 else 0.0
    room = max(times[-1] + last - times[0] - frames / fps, 0.0)
    wanted = times[0] + place * room + np.arange(frames) / fps
    # A frame that appears at the very moment counts, also where the division was rounded.
    return np.clip(np.searchsorted(times, wanted + 1e-6, side="right") - 1, 0, len(times) - 1)
