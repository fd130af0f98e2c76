"""Decoding: the same pixels from every backend, true counts, and a process that may hang or crash."""

import importlib.util
import os
import sys
import time
import types

import numpy as np
import pytest

from maemm_plugins.video.decoding import FrameFolder, VideoFile, readers, watchdog
from maemm_plugins.video.decoding.readers import AvReader, DecordReader, TorchcodecReader
from maemm_plugins.video.decoding.watchdog import Decoder

av = pytest.importorskip("av")

HERE = Decoder(seconds=None)
HEALTHY = ["plain", "bframes", "mpeg4", "odd", "variable", "rotated", "wrong_name"]
BROKEN = {
    "empty": "0 bytes",
    "noise": "Invalid data",
    "text": "Invalid data",
    "no_index": "Invalid data",
    "truncated": r"ends too early: \d+ of 40 frames",
    "sound": "has no picture, only sound",
    "no_frame": "has no frame that can be read",
    "no_frame_mkv": "has no frame that can be read",
}


def everything(path):
    """All frames in order, by the plainest code."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", HEALTHY)
def test_any_frames_are_the_right_ones(videos, name):
    whole = everything(videos[name])
    if name == "rotated":
        whole = np.rot90(whole, -1, axes=(1, 2))
    reader = AvReader(str(videos[name]))
    assert len(reader.times) == len(whole) and (np.diff(reader.times) > 0).all()
    rng = np.random.default_rng(0)
    for _ in range(6):
        index = sorted(rng.choice(len(whole), 5, replace=False).tolist())
        assert (reader.frames_at(index) == whole[index]).all()


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv444p10le", "nv12", "gray", "rgb24", "yuva420p"])
@pytest.mark.parametrize("size", [(37, 53), (240, 320)])
def test_colours_are_those_of_the_library(name, size):
    """One converter for all frames of a request, also where a file changes its size, gives what one for each does."""
    numbers, colours = np.random.default_rng(0), readers._Colours()
    for height, width in (size, (size[0] + 3, size[1] - 5)):
        pixels = numbers.integers(0, 255, (height, width, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=name)
        assert (colours.of(frame) == frame.to_ndarray(format="rgb24", width=size[1], height=size[0])).all()


@pytest.mark.parametrize("name", HEALTHY)
def test_a_reader_gives_the_same_frames_however_often_it_is_asked(videos, name):
    """The first request goes on in the container that was opened to count the frames, later ones open another."""
    reader, asked = AvReader(str(videos[name])), [[12, 17], [12, 17], [0, 3], [16, 18]]
    answers = [reader.frames_at(index) for index in asked]
    for index, answer in zip(asked, answers, strict=True):
        assert (AvReader(str(videos[name])).frames_at(index) == answer).all()
        other = AvReader(str(videos[name]))
        other._file.close()
        assert (other.frames_at(index) == answer).all()


@pytest.mark.parametrize("name", HEALTHY)
def test_decord_and_av_are_bit_identical(videos, name):
    pytest.importorskip("decord")
    path = str(videos[name])
    index = [0, 3, 4, 11, 19]
    assert (DecordReader(path).frames_at(index) == AvReader(path).frames_at(index)).all()


def test_av_reads_what_decord_cannot(tmp_path, picture):
    """A GIF. decord's reason would be a path of the machine that it was built on."""
    from PIL import Image

    pytest.importorskip("decord")
    pictures = [Image.fromarray(picture(number)) for number in range(9)]
    pictures[0].save(tmp_path / "x.gif", save_all=True, append_images=pictures[1:], duration=100)
    video, plain = (VideoFile(str(tmp_path / "x.gif"), Decoder(name, seconds=None)) for name in ("decord", "av"))
    assert len(video) == 9 and (video.frames_at([0, 4, 8]) == plain.frames_at([0, 4, 8])).all()


def test_av_reads_what_torchcodec_cannot(videos, monkeypatch):
    class VideoDecoder:
        def __init__(self, *_, **__):
            raise RuntimeError("Failed to open.\nException raised from open at /build/src/decoder.cpp:1")

    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=VideoDecoder))
    path = str(videos["plain"])
    assert (TorchcodecReader(path).frames_at([3, 5]) == AvReader(path).frames_at([3, 5])).all()


@pytest.mark.parametrize("backend", ["av", "decord"])
@pytest.mark.parametrize("name", ["no_frame", "no_frame_mkv"])
def test_files_without_a_frame_have_one_clear_reason(videos, backend, name):
    if backend == "decord":
        pytest.importorskip("decord")
    for decoder in (Decoder(backend), Decoder(backend, seconds=None)):
        with pytest.raises(ValueError, match="^has no frame that can be read$"):
            VideoFile(str(videos[name]), decoder)


def test_torchcodec_is_asked_in_its_own_words(videos, monkeypatch):
    """Its wheels need FFmpeg in the system, so a stand-in checks the calls; where it is installed, itself."""
    path, index = str(videos["plain"]), [0, 3, 4, 11]
    whole = everything(path)
    if importlib.util.find_spec("torchcodec") is None:

        class VideoDecoder:
            def __init__(self, source, *, dimension_order, num_ffmpeg_threads, seek_mode):
                assert (source, dimension_order, num_ffmpeg_threads, seek_mode) == (path, "NHWC", 1, "exact")
                self.metadata = types.SimpleNamespace(num_frames=40, height=48, width=64)

            def get_frames_at(self, indices):
                import torch

                return types.SimpleNamespace(data=torch.from_numpy(whole[indices]))

        package = types.ModuleType("torchcodec")
        package.decoders = types.ModuleType("torchcodec.decoders")
        package.decoders.VideoDecoder = VideoDecoder
        monkeypatch.setitem(sys.modules, "torchcodec", package)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", package.decoders)
    assert (TorchcodecReader(path).frames_at(index) == whole[index]).all()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_errors(videos, name):
    with pytest.raises((ValueError, OSError), match=BROKEN[name]):
        VideoFile(str(videos[name]), HERE)


def test_time_stamps_are_those_of_the_file(videos):
    plain, variable = VideoFile(str(videos["plain"]), HERE), VideoFile(str(videos["variable"]), HERE)
    assert np.allclose(plain.times, np.arange(40) / 25) and plain.seconds == pytest.approx(1.6)
    steps = np.diff(variable.times)
    assert steps.min() < 0.06 and steps.max() > 0.25


def test_what_is_there_of_a_truncated_file(videos, picture):
    part = VideoFile(str(videos["truncated"]), Decoder(seconds=None, partial=True))
    assert 5 < len(part) < 40
    assert np.abs(part.frames_at([0, 4])[1].astype(int) - picture(4)).mean() < 12


def test_a_rotated_file_is_turned(videos):
    assert VideoFile(str(videos["rotated"]), HERE).frames_at([0]).shape == (1, 64, 48, 3)


def test_frames_may_repeat_and_are_decoded_once(videos, monkeypatch):
    video, calls = VideoFile(str(videos["plain"]), HERE), []
    monkeypatch.setattr(
        AvReader, "frames_at", lambda self, index, take=AvReader.frames_at: calls.append(index) or take(self, index)
    )
    first = video.frames_at([0, 4, 8, 8, 8])
    assert (first[2] == first[4]).all() and video.frames_at([0, 4, 8, 8, 8]) is first and calls == [[0, 4, 8]]


def test_parts_of_a_video(videos):
    whole = VideoFile(str(videos["plain"]), HERE)
    part = VideoFile(str(videos["plain"]), HERE, part=(10, 5))
    assert len(part) == 5 and (part.frames_at([0, 4]) == whole.frames_at([10, 14])).all()
    with pytest.raises(ValueError, match="the video has 40"):
        VideoFile(str(videos["plain"]), HERE, part=(30, 20))


def test_folders_of_frames(tmp_path, picture):
    from PIL import Image

    for number in (1, 2, 10):
        Image.fromarray(picture(number)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    video = FrameFolder(str(tmp_path), fps=10)
    assert len(video) == 3 and (video.frames_at([2])[0] == picture(10)).all() and video.seconds == pytest.approx(0.3)
    assert len(FrameFolder(str(tmp_path), part=(2, 2))) == 2  # numbers as they stand in the names
    Image.fromarray(picture(3, 20, 20)).save(tmp_path / "img_3.png")
    with pytest.raises(ValueError, match="differ in size"):
        FrameFolder(str(tmp_path)).frames_at([0, 2])
    with pytest.raises(ValueError, match="no frames"):
        (tmp_path / "nothing").mkdir()
        FrameFolder(str(tmp_path / "nothing"))


def test_pictures_of_16_bits_and_of_grey_are_frames(tmp_path):
    """As the pictures of the image plugin: 65535 is white."""
    from PIL import Image

    deep = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "0.png")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "1.png")
    Image.new("RGB", (4, 1), (9, 8, 7)).save(tmp_path / "2.png")
    frames = FrameFolder(str(tmp_path)).frames_at([0, 1, 2])
    assert frames.shape == (3, 1, 4, 3) and frames.dtype == np.uint8 and (frames[0] == frames[1]).all()
    assert frames[0, 0, :, 0].tolist() == [0, 1, 128, 255] and frames[2, 0, 0].tolist() == [9, 8, 7]


# ---------------------------------------------------------------------------------------------- the watchdog
@pytest.fixture
def guarded(monkeypatch, tmp_path):
    """A decoder whose process has readers that misbehave, by the file's content."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any('decoding.child' in one for one in sys.orig_argv):\n"
        "    from maemm_plugins.video.decoding import readers\n"
        "    class Odd(readers.AvReader):\n"
        "        def frames_at(self, index):\n"
        "            import ctypes\n"
        "            if 'hangs' in self.path:\n"
        "                ctypes.PyDLL(None).sleep(1000)  # in native code, holding the interpreter's lock\n"
        "            if 'crashes' in self.path:\n"
        "                ctypes.string_at(0)\n"
        "            return super().frames_at(index)\n"
        "    readers.READERS['odd'] = Odd\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    watchdog.close()
    yield tmp_path
    watchdog.close()


def test_hanging_and_crashing_decoders_cost_one_file_each(videos, guarded):
    decoder = Decoder("odd", seconds=20)
    paths = {}
    for name in ("fine", "hangs", "crashes"):
        paths[name] = guarded / f"{name}.mp4"
        paths[name].write_bytes(videos["plain"].read_bytes())
    expected = VideoFile(str(videos["plain"]), HERE).frames_at([1, 5])
    assert (VideoFile(str(paths["fine"]), decoder).frames_at([1, 5]) == expected).all()
    patient = Decoder("odd", seconds=1.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"longer than 1\.5 s and was killed"):
        VideoFile(str(paths["hangs"]), patient).frames_at([0])
    assert time.monotonic() - began < 60
    with pytest.raises(OSError, match="died of signal SIGSEGV"):
        VideoFile(str(paths["crashes"]), decoder).frames_at([0])
    assert (VideoFile(str(paths["fine"]), decoder).frames_at([1, 5]) == expected).all()


def test_the_process_decodes_as_this_one_does(videos):
    for name, index in (("plain", [0, 7, 39]), ("odd", [3, 30])):
        there, here = VideoFile(str(videos[name]), Decoder()), VideoFile(str(videos[name]), HERE)
        assert (there.times == here.times).all() and (there.frames_at(index) == here.frames_at(index)).all()
    for name, text in BROKEN.items():
        with pytest.raises((ValueError, OSError), match=text):
            VideoFile(str(videos[name]), Decoder())
    assert watchdog._current.usable()  # broken files do not harm it


def test_a_process_is_replaced_after_many_files(videos, monkeypatch):
    monkeypatch.setattr(watchdog, "_FILES", 3)
    watchdog.close()
    seen = set()
    for _ in range(5):
        VideoFile(str(videos["plain"]), Decoder())
        seen.add(watchdog._current.process.pid)
    assert len(seen) == 2
    watchdog.close()


def test_the_process_ends_with_its_parent(videos, python):
    code = (
        "import os\nfrom maemm_plugins.video.decoding import VideoFile, watchdog\n"
        f"VideoFile({str(videos['plain'])!r}, watchdog.Decoder())\n"
        "print(watchdog._current.process.pid)\nos._exit(0)\n"
    )
    status, output = python(code)
    assert status == 0
    until = time.monotonic() + 30
    while os.path.exists(f"/proc/{int(output)}") and time.monotonic() < until:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{int(output)}")


def test_absurd_sizes_are_refused(videos, monkeypatch):
    monkeypatch.setattr("maemm_plugins.video.decoding.limits.MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="more than"):
        VideoFile(str(videos["plain"]), HERE).frames_at([0, 1])
    assert set(readers.READERS) == {"av", "decord", "torchcodec"}


GROUPS = {
    "every frame a key": {"g": "1"},
    "short": {"g": "4", "bf": "0"},
    "b-frames": {"g": "8", "bf": "3", "x264-params": "b-pyramid=normal:scenecut=0"},
    "open": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_that_nobody_asks_for_are_not_decoded(tmp_path, picture, name, monkeypatch):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={**GROUPS[name], "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    whole, reader, rng, passed = everything(path), AvReader(str(path)), np.random.default_rng(0), []

    def counted(*arguments, needed=readers._needed):
        for packet in needed(*arguments):
            passed.append(packet)
            yield packet

    for _ in range(30):
        index = sorted(rng.choice(60, rng.integers(1, 6), replace=False).tolist())
        assert (reader.frames_at(index) == whole[index]).all(), index
    monkeypatch.setattr(readers, "_needed", counted)
    reader.frames_at([2, 50])
    assert sum(one is not None for one in passed) <= 2 + 2 * int(GROUPS[name]["g"])
