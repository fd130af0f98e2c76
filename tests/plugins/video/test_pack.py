"""Packed videos: small, quick to decode, with the same frames at the same times."""

import csv
import json
import shutil

import numpy as np
import pytest

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.data.pack import pack
from maemm_plugins.video.decoding import FrameFolder, VideoFile
from maemm_plugins.video.decoding.watchdog import Decoder
from maemm_plugins.video.pack import Videos
from maemm_plugins.video.sources import open_videos

av = pytest.importorskip("av")
HERE = Decoder(seconds=None)


@pytest.fixture
def home(tmp_path, videos):
    for name, of in (("a/one.mp4", "bframes"), ("b/two.avi", "mpeg4"), ("b/bad.mp4", "noise")):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[of], path)
    return tmp_path


def packed(home, name, **options):
    return pack(home / "raw", home / name, Videos(seconds=None, **options))


@pytest.mark.parametrize(("codec", "group"), [("mpeg4", 1), ("mpeg4", 4), ("h264", 4)])
def test_videos_are_packed_small_and_with_short_groups(home, codec, group):
    done = packed(home, "packed", side=32, codec=codec, group=group)
    assert (done.written, done.there, [one.id for one in done.bad]) == (2, 0, ["b/bad.mp4"])
    before, after = (VideoFile(str(home / p), HERE) for p in ("raw/a/one.mp4", "packed/a/one.mp4"))
    assert len(after) == len(before) == 40 and np.allclose(after.times, before.times, atol=1e-3)
    assert after.frames_at([0]).shape == (1, 32, 44, 3)  # 42.7 wide, and even
    with av.open(str(home / "packed/a/one.mp4")) as container:
        assert container.streams.video[0].codec_context.name == codec
        packets = [p for p in container.demux(video=0) if p.size]
    assert [p.pts for p in packets] == sorted(p.pts for p in packets)  # no B-frames
    assert sum(p.is_keyframe for p in packets) == 40 // group


def test_a_pack_of_h264_from_before_there_was_a_choice_continues(home):
    """Its settings were these, without a codec; those of today's default are told from them."""
    packed(home, "packed", codec="h264")
    (home / "packed/a/one.mp4").unlink()
    record = json.loads((home / "packed/.pack.json").read_text())
    assert {key: record[key] for key in record if key != "source"} == {
        "kind": "video", "side": 256, "group": 4, "every": 1, "quality": 21,
    }  # fmt: skip
    assert packed(home, "packed", codec="h264").written == 1
    with pytest.raises(MaemmError, match="a pack with other settings .codec: None -> mpeg4"):
        packed(home, "packed")


@pytest.mark.parametrize("codec", ["mpeg4", "h264"])
def test_the_same_pictures_at_the_same_times(home, videos, picture, codec):
    shutil.copy(videos["variable"], home / "raw" / "variable.mp4")
    packed(home, "packed", side=None, codec=codec)
    before, after = (VideoFile(str(home / p / "variable.mp4"), HERE) for p in ("raw", "packed"))
    assert np.allclose(after.times - after.times[0], before.times - before.times[0], atol=1e-4)
    assert np.abs(after.frames_at([7])[0].astype(int) - picture(7)).mean() < 12


@pytest.mark.parametrize("every", [1, 2])
def test_pictures_keep_their_times(home, videos, every):
    """So that sampling by fps takes the same frames of the pack as of the original, whatever frame_rate says."""
    shutil.copy(videos["variable"], home / "raw" / "variable.mp4")
    packed(home, "packed", kind="frames", every=every)
    before, after = VideoFile(str(home / "raw/variable.mp4"), HERE), FrameFolder(str(home / "packed/variable"), fps=25)
    assert (after.times == before.times[::every]).all()


def test_times_that_do_not_fit_the_pictures(home):
    packed(home, "packed", kind="frames")
    folder = home / "packed/a/one"
    (folder / "000039.jpg").unlink()
    assert np.allclose(FrameFolder(str(folder), fps=10).times, np.arange(39) / 10)  # as without them
    written = folder / ".times.npy"
    for times in (np.arange(39)[::-1] / 10, np.full(39, np.nan), np.zeros((39, 1)), np.zeros(39, complex)):
        np.save(written, times)
        with pytest.raises(ValueError, match="ascending seconds; remove it, or pack the video again"):
            FrameFolder(str(folder))
    np.save(written, np.array([Trap()] * 39), allow_pickle=True)
    for data in (written.read_bytes(), b"", b"no array", b"PK\3\4 no archive"):
        written.write_bytes(data)
        with pytest.raises(ValueError, match="ascending seconds"):
            FrameFolder(str(folder))


class Trap:
    """What must not be unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_frames_are_packed_as_pictures(home):
    packed(home, "frames", kind="frames", side=24, every=2)
    source = open_videos(str(home / "frames"))
    assert [source.name(i) for i in range(len(source))] == ["a/one", "b/two"] and source.label(1) == 1
    video = FrameFolder(str(home / "frames" / "a" / "one"))
    assert len(video) == 20 and video.frames_at([3]).shape == (1, 24, 32, 3)


@pytest.mark.parametrize("kind", ["video", "frames"])
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_lists_of_the_originals_work_on_packs(home, kind, ending):
    """Also where the list lies beside the originals."""
    packed(home, "packed", kind=kind, side=16)
    path = home / "raw" / f"train.{ending}"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="," if ending == "csv" else " ").writerows([["b/two.avi", 0], ["a/one.mp4", 1]])
    source = open_videos(str(home / "packed"), str(path), seconds=None)
    frames = [source.read(i, _draw()).raw["video"].frames_at([0]) for i in (0, 1)]
    assert [one.shape[1] for one in frames] == [16, 16] and source.label(1) == 1


def _draw():
    from maemm.contract.rng import Rng

    return Rng((0, 0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"side": 0}, "side must be int >= 2"),
        ({"group": -1}, "group must be int >= 1"),
        ({"every": 0}, "every must be int >= 1"),
        ({"quality": 60}, "quality is 60 .* 1 to 31 for mpeg4"),
        ({"codec": "h264", "quality": 60}, "quality is 60 .* 0 to 51 for h264"),
        ({"kind": "frames", "quality": 0}, "1 to 100 for frames"),
    ],
)
def test_wrong_options_are_one_line(options, text):
    with pytest.raises(MaemmError, match=text):
        Videos(**check(Videos, options, "pack"))
