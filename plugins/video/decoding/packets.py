"""Packets of a container, before anything is decoded: how many are stored, and time stamps that go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av

OPTIONS = {"protocol_whitelist": "file"}  # a playlist disguised as a video must not open URLs


def stored_packets(path: str) -> int:
    """Packets of the first video stream that the file holds, also those that its edit list leaves out."""
    count = 0
    try:
        with av.open(path, options={**OPTIONS, "ignore_editlist": "1"}) as container:
            for packet in container.demux(container.streams.video[0]):
                count += bool(packet.size) and not packet.is_corrupt
    except (av.error.FFmpegError, EOFError):
        pass  # those so far are there
    return count


class Timeline:
    """Time stamps that go on where files were put one behind the other and the stamps step back.

    All streams of a container are moved alike, so that sound stays with its picture. ``broken``: whether any stamp
    stepped back, so that seeking by time would not find the moved frames.
    """

    def __init__(self) -> None:
        self.broken = False
        self._offsets = [Fraction(0)]  # seconds, of each of the files
        self._part: dict[int, int] = {}  # which file each stream is in
        self._last: dict[int, int] = {}  # decoding time stamp of each stream, as stored
        self._reached: dict[int, tuple[int, Any]] = {}  # where each stream ends in its file: (stamp, its time base)
        self._end = Fraction(0)  # seconds, moved: where the files before end

    def moved(self, packets: Iterable[Any]) -> Iterator[Any]:
        """``packets`` in the order of the file, with their time stamps moved."""
        for packet in packets:
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is not None and packet.size:
                self._move(packet, stamp)
            yield packet

    def _move(self, packet: Any, stamp: int) -> None:
        # Whole numbers alone for every packet: fractions took a tenth of the time of a clip.
        stream, length = packet.stream.index, packet.duration or 0
        part = self._part.setdefault(stream, 0)
        # Stamps are rounded: only a step of more than a frame is one.
        if stream in self._last and stamp < self._last[stream] - length:
            self.broken = True
            self._end = max(self._end, *(self._moved_end(other) for other in self._reached))
            del self._reached[stream]
            part = self._part[stream] = part + 1
            if part == len(self._offsets):
                self._offsets.append(self._end - stamp * Fraction(packet.time_base))
        self._last[stream] = stamp
        end, base = self._reached.get(stream) or (stamp + length, packet.time_base)
        self._reached[stream] = max(end, stamp + length), base
        if offset := self._offsets[part]:
            ticks = round(offset / Fraction(base))
            if packet.pts is not None:
                packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks

    def _moved_end(self, stream: int) -> Fraction:
        end, base = self._reached[stream]
        return end * Fraction(base) + self._offsets[self._part[stream]]
