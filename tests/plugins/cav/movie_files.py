"""Small videos with sound: frames that tell their number, a sound whose pitch tells the moment."""

import numpy as np
import pytest

av = pytest.importorskip("av")

RATE = 16000


def picture(number, height=32, width=48):
    """A grey level that grows by 3 a frame."""
    return np.full((height, width, 3), 20 + 3 * number, np.uint8)


def tone(seconds, rate=RATE):
    """Amplitude grows with time, so that a part of it tells where it stood."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.2 * t / 3 * np.sin(2 * np.pi * 400 * t)).astype(np.float32)


def write(path, frames=50, sound=2.0, size=(32, 48), silent=False, first=0):
    """``frames`` from the number ``first`` on at 25 a second, and ``sound`` seconds; 0: without that track."""
    with av.open(str(path), "w") as container:
        video = audio = None
        if frames:
            video = container.add_stream("libx264", rate=25, options={"g": "10", "crf": "1", "threads": "1"})
            video.height, video.width, video.pix_fmt = *size, "yuv420p"
        if sound:
            audio = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + number, *size), format="rgb24")
            container.mux(video.encode(frame))
        if sound:
            wave = np.zeros(round(sound * RATE), np.float32) if silent else tone(sound)
            for start in range(0, len(wave) - 1023, 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATE, start
                container.mux(audio.encode(frame))
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode())
    return path
