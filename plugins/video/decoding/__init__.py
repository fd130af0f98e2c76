"""Videos as frames: what a worker opens, and how files are decoded in a process that may be killed.

``video`` is what the rest of the plugin sees, ``readers`` decode files, ``watchdog`` and ``child`` put a process
between the two. Nothing here imports torch, so that the process starts quickly.
"""

from .video import FrameFolder, Video, VideoFile

__all__ = ["FrameFolder", "Video", "VideoFile"]
