"""Which frames of a video make a clip; (frames,) int64 each."""

from __future__ import annotations

import numpy as np


def by_stride(count: int, frames: int, stride: int, position: float) -> np.ndarray:
    """Every ``stride``-th of ``count`` frames from a start that ``position`` in [0, 1) chooses.

    The start is uniform in 0 .. count - frames * stride, as in VideoMAE. A shorter video starts at 0 and repeats the
    last frame that the steps reach.
    """
    start = int(position * (max(count - frames * stride, 0) + 1))
    reached = (count - 1 - start) // stride
    return start + stride * np.minimum(np.arange(frames), reached)


def by_time(times: np.ndarray, frames: int, fps: float, position: float) -> np.ndarray:
    """The frames that are shown at ``fps`` equally spaced moments per second.

    ``times`` (count,) are the seconds at which frames appear, ascending, not necessarily equally spaced. ``position``
    in [0, 1) chooses the start, uniform over those for which the clip ends within the video; a shorter video repeats
    its last frame.
    """
    last = times[-1] - times[-2] if len(times) > 1 else 0.0
    room = max(times[-1] + last - times[0] - frames / fps, 0.0)
    moments = times[0] + position * room + np.arange(frames) / fps
    # 1e-6: a frame that appears exactly at its moment counts despite rounding.
    return np.clip(np.searchsorted(times, moments + 1e-6, side="right") - 1, 0, len(times) - 1)


def by_segments(count: int, frames: int, offsets: np.ndarray | None = None) -> np.ndarray:
    """One frame from each of ``frames`` equal segments (TSN; VideoMAE on Something-Something).

    ``offsets`` (frames,) in [0, 1) choose within the segments; None: their middles.
    """
    offsets = np.full(frames, 0.5) if offsets is None else offsets
    return np.minimum(((np.arange(frames) + offsets) * count / frames).astype(np.int64), count - 1)


def views_by_stride(count: int, frames: int, stride: int, tta_views: int) -> list[np.ndarray]:
    """Clips of every ``stride``-th frame, evenly spaced over the video (VideoMAE's test on Kinetics)."""
    strided = np.arange(0, count, stride)
    strided = np.pad(strided, (0, max(0, frames - len(strided))), mode="edge")
    step = (len(strided) - frames) / max(tta_views - 1, 1)
    starts = [int(step * view) for view in range(tta_views)] if tta_views > 1 else [(len(strided) - frames) // 2]
    return [strided[start : start + frames] for start in starts]


def views_by_segments(count: int, frames: int, tta_views: int) -> list[np.ndarray]:
    """Of ``tta_views`` frames in each of ``frames`` segments, view i has the i-th.

    VideoMAE tests on SSv2 with two, the start and the middle. A single view has the middles.
    """
    if tta_views == 1:
        return [by_segments(count, frames)]
    tick = count / frames
    index = np.sort([int(tick * (x + view / tta_views)) for x in range(frames) for view in range(tta_views)])
    return [np.minimum(index[view::tta_views], count - 1) for view in range(tta_views)]
