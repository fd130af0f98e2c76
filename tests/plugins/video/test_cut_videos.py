"""Videos that were cut without re-encoding, and files one behind the other: the frames are those that are shown."""

from fractions import Fraction

import numpy as np
import pytest

from maemm import Rng
from maemm_plugins.cav.sources import open_frames
from maemm_plugins.video.decoding.readers import READERS, DecordReader
from maemm_plugins.video.sources import open_videos
from tests.plugins.edit_lists import with_edits

av = pytest.importorskip("av")

CUTS = {  # (seconds shown, second of the media): at a key frame, within a group, without the end, two parts, one twice
    "start": [(1.0, 0.4)],
    "within": [(0.8, 0.56)],
    "end": [(1.0, 0.0)],
    "parts": [(0.4, 0.2), (0.4, 1.0)],
    "twice": [(0.4, 0.2), (0.4, 0.2)],
    "pause": [(0.2, -1), (0.8, 0.56)],
}


@pytest.fixture(scope="module")
def cuts(videos, tmp_path_factory):
    """{name: path} of cut videos, without and with B-frames."""
    home = tmp_path_factory.mktemp("cuts")
    made = {}
    for kind in ("plain", "bframes"):
        for name, edits in CUTS.items():
            made[kind, name] = home / f"{kind}_{name}.mp4"
            made[kind, name].write_bytes(with_edits(videos[kind].read_bytes(), edits))
    return made


def shown(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def readers():
    return [name for name in READERS if name == "av" or _there(name)]


def _there(name):
    try:
        __import__(name)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


@pytest.mark.parametrize("backend", readers())
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("kind", ["plain", "bframes"])
def test_frames_of_a_cut_are_those_that_are_shown(cuts, kind, name, backend):
    whole = shown(cuts[kind, name])
    reader = READERS[backend](str(cuts[kind, name]), False)
    assert len(reader.times) == len(whole) < 40 and (np.diff(reader.times) > 0).all()
    for index in ([0], [len(whole) - 1], [1, len(whole) // 2, len(whole) - 2], list(range(len(whole)))):
        assert (reader.frames_at(index) == whole[index]).all()


@pytest.mark.parametrize("name", CUTS)
def test_a_folder_of_cuts_is_read_by_every_source(cuts, name, tmp_path):
    path = cuts["plain", name]
    video = open_videos(str(path)).read(0, Rng((0,))).raw["video"]
    assert len(video) == len(shown(path))
    image = open_frames(str(path), at=1.0).read(0, Rng((0,))).raw["image"]
    assert (image == shown(path)[-1]).all()


def test_a_cut_that_also_ends_too_early(videos, cuts, tmp_path):
    """What the edit list leaves out does not excuse what is missing."""
    data = with_edits(videos["plain"].read_bytes(), CUTS["end"])
    front = tmp_path / "front.mp4"
    source = tmp_path / "x.mp4"
    source.write_bytes(data)
    with (
        av.open(str(source), options={"ignore_editlist": "1"}) as old,
        av.open(str(front), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    whole = front.read_bytes()
    at = whole.index(b"mdat")
    front.write_bytes(whole[: at + (len(whole) - at) // 2])
    with pytest.raises(ValueError, match=r"ends too early: \d+ of 40"):
        READERS["av"](str(front), False)
    assert len(READERS["av"](str(front), True).times) < 40


def stream_of(path, first, picture, count=20, codec="mpeg2video"):
    """A file of ``count`` frames from the number ``first`` on, in the format of its ending."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10", "threads": "1", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(first, first + count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number - first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("backend", readers())
@pytest.mark.parametrize("ending, codec", [("mpg", "mpeg2video"), ("ts", "mpeg2video"), ("ts", "libx264")])
def test_files_one_behind_the_other(tmp_path, picture, ending, codec, backend):
    """The second begins at the time of the first again: its frames come behind, none takes another's place."""
    parts = [stream_of(tmp_path / f"{i}.{ending}", 20 * i, picture, codec=codec) for i in range(3)]
    path = tmp_path / f"all.{ending}"
    path.write_bytes(b"".join(parts))
    reader = READERS[backend](str(path), False)
    assert 57 <= len(reader.times) <= 60 and (np.diff(reader.times) > 0).all()
    assert reader.times[-1] - reader.times[0] == pytest.approx(60 / 25, abs=0.25)
    frames = reader.frames_at([2, 12, 25, 32, 45, 52])
    numbers = [int(np.argmin([np.abs(f.astype(int) - picture(n)).mean() for n in range(60)])) for f in frames]
    assert np.abs(np.array(numbers) - [2, 12, 25, 32, 45, 52]).max() <= 60 - len(reader.times)


def test_frames_that_share_one_moment_are_counted(videos, tmp_path):
    """An index whose frames take no time (a muxer's mistake) does not pass as a video of one frame."""
    data = bytearray(videos["plain"].read_bytes())
    at = data.index(b"stts") + 16  # version, number of entries, count, delta
    data[at : at + 4] = bytes(4)
    (tmp_path / "x.mp4").write_bytes(data)
    for reader in (READERS["av"], DecordReader):
        try:
            assert len(reader(str(tmp_path / "x.mp4"), False).times) == 40
        except ValueError as error:
            assert "have the time stamps of others" in str(error)
