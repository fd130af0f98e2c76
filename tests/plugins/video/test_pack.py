"""Packs: smaller, faster to decode, whole or absent, and resumed."""

import shutil

import numpy as np
import pytest

from maemm.errors import MaemmError
from maemm_plugins.video import pack
from maemm_plugins.video.decoding import FrameFolder, VideoFile
from maemm_plugins.video.decoding.watchdog import Decoder
from maemm_plugins.video.pack import Form, pack_folder
from maemm_plugins.video.sources import open_videos

HERE = Decoder(seconds=None)


@pytest.fixture
def home(tmp_path, videos):
    for name, of in (("a/one.mp4", "bframes"), ("b/two.avi", "mpeg4"), ("b/bad.mp4", "noise")):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[of], path)
    return tmp_path


def test_videos_are_packed_small_and_with_short_groups(home):
    av = pytest.importorskip("av")
    seen = []
    done = pack_folder(home / "raw", home / "packed", Form(side=32, group=4), decoder=HERE,
                       on_progress=lambda n, total: seen.append((n, total)))  # fmt: skip
    assert (done.written, done.there, [one.id for one in done.bad]) == (2, 0, ["b/bad.mp4"])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in (home / "packed").rglob("*") if p.is_file()) == ["one.mp4", "two.mp4"]
    before, after = (VideoFile(str(home / p), HERE) for p in ("raw/a/one.mp4", "packed/a/one.mp4"))
    assert len(after) == len(before) == 40 and np.allclose(after.times, before.times, atol=1e-3)
    assert after.take([0]).shape == (1, 32, 44, 3)  # 42.7 wide, and even
    with av.open(str(home / "packed/a/one.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert [p.pts for p in packets] == sorted(p.pts for p in packets)  # no B-frames
        assert sum(p.is_keyframe for p in packets) == 10
    again = pack_folder(home / "raw", home / "packed", Form(side=32, group=4), decoder=HERE)
    assert (again.written, again.there, len(again.bad)) == (0, 2, 1)


def test_frames_are_packed_as_pictures(home):
    pack_folder(home / "raw", home / "frames", Form("frames", side=24, every=2), decoder=HERE)
    source = open_videos(str(home / "frames"))
    assert [source.name(i) for i in range(len(source))] == ["a/one", "b/two"] and source.label(1) == 1
    video = FrameFolder(str(home / "frames" / "a" / "one"))
    assert len(video) == 20 and video.take([3]).shape == (1, 24, 32, 3)


def test_an_interrupted_run_leaves_no_half_a_file(home, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pack.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(home / "raw", home / "packed", Form(side=32), decoder=HERE)
    assert not [p for p in (home / "packed").rglob("*") if p.is_file()]


def test_what_cannot_be_packed_is_said(home, tmp_path):
    with pytest.raises(MaemmError, match="among those to pack"):
        pack_folder(home / "raw", home / "raw" / "packed")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MaemmError, match="no video below"):
        pack_folder(tmp_path / "nothing", tmp_path / "x")
