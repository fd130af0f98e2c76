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


def by_segments(count: int, frames: int, places: np.ndarray | None = None) -> np.ndarray:
    """(frames,) int64: one frame of each of ``frames`` equal segments (TSN; VideoMAE on Something-Something).

    ``places`` (frames,) in [0, 1) choose within the segments; None: their middles.
    """
    places = np.full(frames, 0.5) if places is None else places
    return np.minimum(((np.arange(frames) + places) * count / frames).astype(np.int64), count - 1)


def views_by_stride(count: int, frames: int, stride: int, tta_views: int) -> list[np.ndarray]:
    """Windows of every ``stride``-th frame, evenly placed over the whole video (VideoMAE's test on dense sets)."""
    every = np.arange(0, count, stride)
    every = np.pad(every, (0, max(0, frames - len(every))), mode="edge")
    step = (len(every) - frames) / max(tta_views - 1, 1)
    first = [int(step * view) for view in range(tta_views)] if tta_views > 1 else [(len(every) - frames) // 2]
    return [every[start : start + frames] for start in first]


def views_by_segments(count: int, frames: int, tta_views: int) -> list[np.ndarray]:
    """Of ``tta_views`` frames in each of ``frames`` segments, view i takes the i-th.

    VideoMAE tests on SSv2 with two, the start and the middle. A single view takes the middles.
    """
    if tta_views == 1:
        return [by_segments(count, frames)]
    tick = count / frames
    every = np.sort([int(tick * (x + view / tta_views)) for x in range(frames) for view in range(tta_views)])
    return [np.minimum(every[view::tta_views], count - 1) for view in range(tta_views)]
