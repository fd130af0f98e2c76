"""Decoding behind one small interface: when frames are shown, and the pixels of some of them.

The number of frames is counted from the packets of the file, never taken from its header, and packets are told
apart by their time stamps. One thread each: workers are what runs in parallel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import av
import numpy as np

from .limits import check_bytes

_OPTIONS = {"protocol_whitelist": "file"}  # a play list posing as a video must not open addresses
_EXACT = {"mp4", "mov"}  # containers whose header says exactly how many frames there are
_INDEXED = {"mp4", "mov", "matroska", "webm", "avi"}  # where seeking arrives at a key frame; others start at frame 0
_LOST = 0.25  # share of the frames asked for that may be missing (frames that are never shown, as in VP8)
_SHORT = 0.1  # share of frames by which other containers' headers may be wrong

av.logging.set_level(None)  # FFmpeg tells its troubles on stderr, thousands of lines of them


class AvReader:
    """PyAV: seek to the key frame before, decode up to the last frame wanted, convert only those wanted.

    Between two wanted frames, decoding goes on at the last key frame before the second, if there is one. Frames that
    no other depends on are skipped where they are not wanted. ``partial`` reads what is there of a file
    that ends too early. Raises ValueError, OSError (FFmpeg's errors are OSErrors or ValueErrors).
    """

    def __init__(self, path: str, partial: bool = False):
        self.path = path
        with _Opened(path) as (container, stream):
            self._stamps, keys = _stamps(container, stream)
            kinds = set(container.format.name.split(","))
            self._keys = keys if kinds & _INDEXED else keys[:0]
            promised, base, self._size = stream.frames, float(stream.time_base), (stream.height, stream.width)
            tolerance = 0 if kinds & _EXACT else _SHORT * promised
        if not len(self._stamps):
            raise ValueError("has no frame that can be read")
        if len(self._stamps) < promised - tolerance and not partial:
            raise ValueError(
                f"ends too early: {len(self._stamps)} of {promised} frames can be read (data.source.partial: true)"
            )
        self.times = self._stamps * base

    def frames_at(self, index: list[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB of the frames of an ascending list without repeats, rotated as the file asks."""
        wanted = self._stamps[index]
        key = self._keys[self._keys <= wanted[0]][-1:]
        if len(key) and key[0] > self._stamps[0]:
            with _Opened(self.path) as (container, stream):
                container.seek(int(key[0]), stream=stream)
                first = next(container.demux(stream), None)
                if first is not None and first.is_keyframe and first.pts == key[0]:
                    return self._decoded(wanted, container, stream, first)
        with _Opened(self.path) as (container, stream):  # from the start: slower, but never wrong
            return self._decoded(wanted, container, stream)

    def _decoded(self, wanted: np.ndarray, container: Any, stream: Any, first: Any = None) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        last = None
        check_bytes(len(wanted), stream.height, stream.width)
        packets = container.demux(stream) if first is None else chain([first], container.demux(stream))
        for frame in _frames(_needed(packets, wanted, self._keys), stream.codec_context, set(wanted.tolist())):
            if frame.pts is None:
                continue
            missing = [stamp for stamp in wanted[len(found) :].tolist() if stamp <= frame.pts]
            for stamp in missing:
                shown = frame if stamp == frame.pts or last is None else last
                found[stamp] = _pixels(shown, found)
            last = frame
            if len(found) == len(wanted):
                break
        return self._stacked(wanted.tolist(), found)

    def _stacked(self, wanted: list[int], found: dict[int, np.ndarray]) -> np.ndarray:
        lost = sum(stamp not in found for stamp in wanted)
        if lost > _LOST * len(wanted) or not found:
            raise ValueError(f"{lost} of {len(wanted)} frames asked for cannot be decoded")
        frames = []
        for stamp in wanted:
            frames.append(found[stamp] if stamp in found else frames[-1])
        return np.stack(frames)


class _Opened:
    """A container and its first video stream, as a context."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        try:
            self.container = av.open(self.path, options=_OPTIONS)
        except EOFError:  # FFmpeg's, which is neither OSError nor ValueError
            raise ValueError("has no frame that can be read") from None
        try:
            streams = [one for one in self.container.streams.video if one.codec_context is not None]
            if not streams:
                raise ValueError(f"has no picture{', only sound' if self.container.streams.audio else ''}")
            streams[0].codec_context.thread_count = 1
            streams[0].codec_context.thread_type = "NONE"
            return self.container, streams[0]
        except BaseException:
            self.container.close()
            raise

    def __exit__(self, *_: Any) -> None:
        self.container.close()


def _stamps(container: Any, stream: Any) -> tuple[np.ndarray, np.ndarray]:
    """Time stamps of all frames that are shown, and of the key frames among them: (n,) and (k,) int64, ascending.

    No key frames where one comes behind a frame that is shown later: such files are read from the start.
    """
    stamps, keys, ordered, last = [], [], True, -np.inf
    try:
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None and not packet.is_discard and not packet.is_corrupt:
                if packet.is_keyframe:
                    ordered = ordered and stamp > last
                    keys.append(stamp)
                last = max(last, stamp)
                stamps.append(stamp)
    except (av.error.FFmpegError, EOFError):
        pass  # what could be read counts, and is compared with what the header promises
    return np.unique(np.array(stamps, np.int64)), np.unique(np.array(keys if ordered else [], np.int64))


def _needed(packets: Iterable[Any], wanted: np.ndarray, keys: np.ndarray) -> Iterator[Any]:
    """Packets without those that no wanted frame needs, from one up to the next key frame; None in their place.

    A frame needs only packets that come before its own, from a key frame on that is shown no later than itself.
    """
    unmet, end, gap = sorted(wanted.tolist(), reverse=True), np.inf, False
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and len(keys):
            end = next(iter(keys[np.searchsorted(keys, packet.pts, side="right") :].tolist()), np.inf)
        if packet.size and packet.pts is not None and unmet and unmet[-1] >= end:
            gap = True
            continue
        if packet.pts in unmet:
            unmet.remove(packet.pts)
        if gap:
            yield None
            gap = False
        yield packet


def _frames(packets: Iterable[Any], context: Any, wanted: set[int]) -> Iterator[Any]:
    """Decoded frames in the order in which they are shown; unwanted ones may be missing."""
    damaged = 0
    for packet in packets:
        if packet is None:  # what follows is a key frame: the decoder hands out what it holds and begins anew
            yield from _drained(context)
            continue
        if packet.size:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        try:
            yield from context.decode(packet if packet.size else None)
        except EOFError:
            return
        except av.error.InvalidDataError:  # a damaged packet; frames that are missing are counted
            damaged += 1
            if damaged > 1000:
                return


def _drained(context: Any) -> Iterator[Any]:
    with suppress(EOFError, av.error.FFmpegError):
        yield from context.decode(None)
    context.flush_buffers()


def _pixels(frame: Any, found: dict[int, np.ndarray]) -> np.ndarray:
    """RGB of a frame, in the size of those found before (some files change it), turned as the file asks."""
    width, height = frame.width, frame.height
    turns = frame.rotation // 90 % 4
    if found:
        height, width = next(iter(found.values())).shape[:2]
        if turns % 2:
            height, width = width, height
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, turns) if turns else pixels


class DecordReader(AvReader):
    """decord for the pixels. Frames are counted as by :class:`AvReader`, which also takes over where counts differ.

    So it does where decord fails, as on GIFs: its messages name files of the machine that it was built on.
    """

    def frames_at(self, index: list[int]) -> np.ndarray:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        check_bytes(len(index), *self._size)
        with suppress(decord.DECORDError):
            reader = decord.VideoReader(self.path, num_threads=1)  # with more it fails on VP9
            # Its batches of turned frames fail.
            if len(reader) == len(self._stamps) and reader[index[0]].shape[:2] == self._size:
                return reader.get_batch(index).asnumpy()
        return super().frames_at(index)


class TorchcodecReader(AvReader):
    """torchcodec, which needs FFmpeg's libraries in the system. Otherwise like :class:`DecordReader`."""

    def frames_at(self, index: list[int]) -> np.ndarray:
        from torchcodec.decoders import VideoDecoder

        check_bytes(len(index), *self._size)
        with suppress(RuntimeError):
            decoder = VideoDecoder(self.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            if decoder.metadata.num_frames == len(self._stamps):
                return decoder.get_frames_at(index).data.numpy()
        return super().frames_at(index)


READERS = {"av": AvReader, "decord": DecordReader, "torchcodec": TorchcodecReader}
