"""Small videos of every kind, written once for all tests."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")


def picture(number, height=48, width=64):
    """A frame that tells its number: a smooth pattern that moves, so that codecs do little to it."""
    y, x = np.mgrid[0:height, 0:width]
    wave = [127 + 100 * np.sin((x * (c + 1) + y * 2 + 9 * number) / 17 + c) for c in range(3)]
    return np.stack(wave, -1).astype(np.uint8)


def write(path, count=40, height=48, width=64, codec="libx264", gop=10, bframes=0, pixels="yuv420p", times=None):
    """A video of ``count`` pictures; ``times``: their time stamps in hundredths of a second."""
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "bf": str(bframes)} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=options | {"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path):
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for number in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_header(path):
    """A file with a stream of pictures and no picture in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path


def rotate(source, path):
    """A copy of an mp4 file whose display matrix turns the picture by 90 degrees."""
    data = bytearray(source.read_bytes())
    track = data.index(b"tkhd")
    matrix = track + 4 + 4 + 4 * 5 + 8 + 8  # version 0: flags, five numbers, reserved, layer .. volume
    turned = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[matrix : matrix + 36] = b"".join(one.to_bytes(4, "big", signed=True) for one in turned)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session", name="picture")
def picture_of():
    """The function that made the frames of all these videos."""
    return picture


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """{name: path} of healthy and of broken files."""
    home = tmp_path_factory.mktemp("videos")
    made = {
        "plain": write(home / "plain.mp4"),
        "bframes": write(home / "bframes.mp4", bframes=3, gop=15),
        "mpeg4": write(home / "mpeg4.avi", codec="mpeg4"),
        "odd": write(home / "odd.mp4", height=49, width=61, pixels="yuv444p"),
        "one": write(home / "one.mp4", count=1),
        "variable": write(home / "variable.mp4", count=20, times=np.cumsum([4 + 13 * (i % 3) for i in range(20)])),
        "sound": write_sound(home / "sound.m4a").rename(home / "sound.mp4"),
    }
    whole = made["plain"].read_bytes()
    moov = whole.index(b"moov") - 4
    made["rotated"] = rotate(made["plain"], home / "rotated.mp4")
    for name, data in {
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(5000),
        "no_index": whole[:moov],
        "text": b"this is no video\n" * 20,
    }.items():
        made[name] = home / f"{name}.mp4"
        made[name].write_bytes(data)
    for name, ending in (("no_frame", "avi"), ("no_frame_mkv", "mkv")):
        made[name] = write_header(home / f"{name}.{ending}")
    made["truncated"] = _front(made["plain"], home)
    made["wrong_name"] = home / "wrong_name.mp4"
    made["wrong_name"].write_bytes(made["mpeg4"].read_bytes())
    return made


def _front(source, home):
    """An mp4 with its index in front, of which the last half of the pictures is cut off."""
    whole = home / "front.mp4"
    with av.open(str(source)) as given, av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    data = whole.read_bytes()
    start = data.index(b"mdat")
    path = home / "truncated.mp4"
    path.write_bytes(data[: start + (len(data) - start) // 2])
    whole.unlink()
    return path


@pytest.fixture(scope="session")
def python():
    """Run code in a new process: (status, output)."""

    def run(code, **more):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **more)
        return done.returncode, done.stdout + done.stderr

    return run
