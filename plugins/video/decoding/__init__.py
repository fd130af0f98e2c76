"""Decode videos in a process that can be killed.

``video`` is the interface to the rest of the plugin; ``readers`` decode files; ``watchdog`` and ``child`` are the two
ends of the decoding process. Nothing here imports torch, so that the process starts quickly.
"""

from .video import FrameFolder, Video, VideoFile

__all__ = ["FrameFolder", "Video", "VideoFile"]
