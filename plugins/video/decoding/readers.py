"""Decoders with one interface: the times of all frames, and the pixels of some of them.

Frames are counted from the packets of the file, never taken from its header, and identified by their time stamps. Each
reader uses one thread: parallelism comes from workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .limits import check_bytes
from .packets import OPTIONS, Timeline, stored_packets

_EXACT = {"mp4", "mov"}  # containers whose header has the exact number of frames
_INDEXED = {
    "mp4",
    "mov",
    "matroska",
    "webm",
    "avi",
}  # containers in which seeking finds key frames; others are read from the start
_LOST = 0.25  # fraction of the requested frames that may be missing (frames that are never shown, as in VP8)
_SHORT = 0.1  # fraction of frames by which other containers' headers may be wrong, or that may repeat a time stamp
_ONE_THREAD = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}  # not in old releases

av.logging.set_level(None)  # FFmpeg writes thousands of warnings to stderr


class AvReader:
    """PyAV: seek to the key frame before the first requested frame, decode to the last, convert only those requested.

    Between two requested frames, decoding skips to the last key frame before the second, if there is one. Other frames
    that no frame depends on are not decoded. ``partial`` reads what there is of a file that ends too early. Raises
    ValueError or OSError (FFmpeg's errors are one of them).
    """

    def __init__(self, path: str, partial: bool = False):
        self.path = path
        self._file = _Opened(path)
        with self._file as (container, stream):
            scan = _Scan(container, stream)
            formats = set(container.format.name.split(","))
            self._file.stays_open = scan.whole and bool(formats & _INDEXED)  # for the first seek: opening costs 1 ms
            declared, base, self._size = stream.frames, float(stream.time_base), (stream.height, stream.width)
        self._stamps, self._joined = scan.stamps, scan.joined
        self._keys = scan.keys if formats & _INDEXED else scan.keys[:0]
        if not len(self._stamps):
            raise ValueError("has no frame that can be read")
        tolerance = 0 if formats & _EXACT else _SHORT * declared
        if not partial and scan.stored < declared - tolerance:
            # Edit lists leave frames out: those behind the last one that is shown do not even arrive as packets.
            stored = stored_packets(path)
            if stored < declared - tolerance:
                there = min(stored, len(self._stamps))
                raise ValueError(
                    f"ends too early: {there} of {declared} frames can be read (data.source.partial: true)"
                )
        if declared and (repeated := scan.shown - len(self._stamps)) > _SHORT * scan.shown:
            raise ValueError(f"{repeated} of {scan.shown} frames have the time stamps of others")
        self.times = self._stamps * base

    def frames_at(self, index: list[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB of the frames ``index``, ascending without repeats, rotated as the file says."""
        stamps = self._stamps[index]
        key = self._keys[self._keys <= stamps[0]][-1:]
        if len(key) and key[0] > self._stamps[0]:
            with self._file as (container, stream):
                container.seek(int(key[0]), stream=stream)
                first = next(container.demux(stream), None)
                if first is not None and first.is_keyframe and first.pts == key[0]:
                    return self._decode(stamps, container, stream, first)
        self._file.close()
        with self._file as (container, stream):  # from the start: slower, but never wrong
            return self._decode(stamps, container, stream)

    def _decode(self, stamps: np.ndarray, container: Any, stream: Any, first: Any = None) -> np.ndarray:
        """The frames with these time stamps; ``first``: a packet that was already read."""
        images: dict[int, np.ndarray] = {}  # by time stamp
        last, colours = None, _Colours()
        check_bytes(len(stamps), stream.height, stream.width)
        packets = container.demux(stream) if first is None else chain([first], container.demux(stream))
        packets = Timeline().moved(packets) if self._joined else packets
        for frame in _frames(_needed(packets, stamps, self._keys), stream.codec_context, set(stamps.tolist())):
            if frame.pts is None:
                continue
            for stamp in stamps[len(images) :].tolist():
                if stamp <= frame.pts:
                    images[stamp] = colours.of(frame if stamp == frame.pts or last is None else last)
            last = frame
            if len(images) == len(stamps):
                break
        lost = len(stamps) - len(images)
        if lost > _LOST * len(stamps) or not images:
            raise ValueError(f"{lost} of {len(stamps)} requested frames cannot be decoded")
        frames: list[np.ndarray] = []
        for stamp in stamps.tolist():
            frames.append(images[stamp] if stamp in images else frames[-1])
        return np.stack(frames)


class _Opened:
    """Context manager of a container and its first video stream. With ``stays_open`` the next ``with`` has the same."""

    def __init__(self, path: str):
        self.path, self.stays_open = path, False
        self._opened: tuple[Any, Any] | None = None

    def __enter__(self) -> tuple[Any, Any]:
        if self._opened is None:
            self._opened = self._open()
        self.stays_open = False
        return self._opened

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None or not self.stays_open:
            self.close()

    def close(self) -> None:
        """Close it, where it is open."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    def _open(self) -> tuple[Any, Any]:
        try:
            container = av.open(self.path, options=OPTIONS)
        except EOFError:  # FFmpeg's, which is neither OSError nor ValueError
            raise ValueError("has no frame that can be read") from None
        try:
            streams = [stream for stream in container.streams.video if stream.codec_context is not None]
            if not streams:
                raise ValueError(f"has no picture{', only sound' if container.streams.audio else ''}")
            streams[0].codec_context.thread_count = 1
            streams[0].codec_context.thread_type = "NONE"
            return container, streams[0]
        except BaseException:
            container.close()
            raise


class _Scan:
    """What the packets of a file say: ``stamps`` of the frames that are shown, and of the key frames among them.

    Both are (n,) int64, ascending; there are no ``keys`` if one comes after a frame that is shown later, or if time
    stamps step back (``joined``): such files are read from the start. ``stored`` packets are there, of which ``shown``
    are not left out by an edit list. ``whole``: the file was read to its end without an error.
    """

    def __init__(self, container: Any, stream: Any):
        stamps, keys, ordered, last = [], [], True, -np.inf
        self.stored, self.whole = 0, False
        timeline = Timeline()
        try:
            for packet in timeline.moved(container.demux(stream)):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if not packet.size or stamp is None or packet.is_corrupt:
                    continue
                self.stored += 1
                if packet.is_discard:
                    continue
                if packet.is_keyframe:
                    ordered = ordered and stamp > last
                    keys.append(stamp)
                last = max(last, stamp)
                stamps.append(stamp)
            self.whole = True
        except (av.error.FFmpegError, EOFError):
            pass  # the frames so far count; the reader compares their number with the header's
        self.joined, self.shown = timeline.broken, len(stamps)
        self.stamps = np.unique(np.array(stamps, np.int64))
        self.keys = np.unique(np.array(keys if ordered and not self.joined else [], np.int64))


def _needed(packets: Iterable[Any], stamps: np.ndarray, keys: np.ndarray) -> Iterator[Any]:
    """Packets without runs, up to the next key frame, that no frame of ``stamps`` needs; None in place of each run.

    A frame needs only packets before its own, from a key frame on that is shown no later than the frame.
    """
    remaining, end, gap = sorted(stamps.tolist(), reverse=True), np.inf, False
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and len(keys):
            end = next(iter(keys[np.searchsorted(keys, packet.pts, side="right") :].tolist()), np.inf)
        if packet.size and packet.pts is not None and remaining and remaining[-1] >= end:
            gap = True
            continue
        if packet.pts in remaining:
            remaining.remove(packet.pts)
        if gap:
            yield None
            gap = False
        yield packet


def _frames(packets: Iterable[Any], context: Any, stamps: set[int]) -> Iterator[Any]:
    """Decoded frames in display order; those not in ``stamps`` may be missing."""
    damaged = 0
    for packet in packets:
        if packet is None:  # a key frame follows: flush the decoder
            with suppress(EOFError, av.error.FFmpegError):
                yield from context.decode(None)
            context.flush_buffers()
            continue
        if packet.size:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in stamps else "NONREF"
        try:
            yield from context.decode(packet if packet.size else None)
        except EOFError:
            return
        except av.error.InvalidDataError:  # a damaged packet; _decode counts the frames that are missing
            damaged += 1
            if damaged > 1000:
                return


class _Colours:
    """RGB of the frames of one request, by one converter.

    PyAV's ``VideoFrame.to_ndarray`` makes a converter for each frame, with a thread for each core: six times the work
    for the same pixels.
    """

    def __init__(self) -> None:
        self.converter = VideoReformatter()
        self.size: tuple[int, int] | None = None  # of the first frame; some files change it

    def of(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8, rotated as the file says."""
        width, height = frame.width, frame.height
        turns = frame.rotation // 90 % 4
        if self.size is not None:
            height, width = self.size[::-1] if turns % 2 else self.size
        converted = self.converter.reformat(frame, width, height, "rgb24", **_ONE_THREAD)
        pixels = converted.to_ndarray()
        pixels = np.rot90(pixels, turns) if turns else pixels
        self.size = self.size or pixels.shape[:2]
        return pixels


class DecordReader(AvReader):
    """decord for the pixels; :class:`AvReader` counts frames, and decodes if decord's count differs or decord fails.

    decord fails on GIFs, for example. Its messages name files of the machine on which it was built.
    """

    def frames_at(self, index: list[int]) -> np.ndarray:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        check_bytes(len(index), *self._size)
        with suppress(decord.DECORDError):
            reader = decord.VideoReader(self.path, num_threads=1)  # with more it fails on VP9
            # It fails on batches of rotated frames.
            count = 0 if self._joined else len(reader)
            if count == len(self._stamps) and reader[index[0]].shape[:2] == self._size:
                return reader.get_batch(index).asnumpy()
        return super().frames_at(index)


class TorchcodecReader(AvReader):
    """Like :class:`DecordReader`, with torchcodec, which needs FFmpeg's shared libraries."""

    def frames_at(self, index: list[int]) -> np.ndarray:
        from torchcodec.decoders import VideoDecoder

        check_bytes(len(index), *self._size)
        with suppress(RuntimeError):
            decoder = VideoDecoder(self.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            if decoder.metadata.num_frames == len(self._stamps) and not self._joined:
                return decoder.get_frames_at(index).data.numpy()
        return super().frames_at(index)


READERS = {"av": AvReader, "decord": DecordReader, "torchcodec": TorchcodecReader}
