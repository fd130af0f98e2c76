"""Pictures and sound from video files in one pass: aligned, counted where something is wrong."""

import importlib.util
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from maemm import MaemmError, Rng, config
from maemm.config.options import check
from maemm.data.single_pass import each
from maemm.model.build import build_modalities
from maemm_plugins.cav.movies import open_movies

spec = importlib.util.spec_from_file_location("movie_files", Path(__file__).with_name("movie_files.py"))
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("movies")
    files.write(home / "ok.mp4")
    files.write(home / "longer.mp4", frames=70, sound=2.8)
    files.write(home / "no_sound.mp4", sound=0)
    files.write(home / "no_picture.mp4", frames=0)
    files.write(home / "short_sound.mp4", sound=0.3)
    files.write(home / "silent.mp4", silent=True)
    (home / "empty.mp4").write_bytes(b"")
    (home / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    whole = (home / "ok.mp4").read_bytes()
    (home / "cut.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    return home


def one(home, name, rng=0, **options):
    return open_movies(str(home / f"{name}.mp4"), None, **options).read(0, Rng((rng,)))


def number(pixels):
    """Of the frame that a picture came from."""
    return (pixels.astype(float).mean(axis=(-1, -2, -3)) - 20) / 3


# ------------------------------------------------------------------------------------------------- healthy files
def test_pictures_clips_and_sound_of_the_same_moments(home):
    for rng in range(6):
        raw = one(home, "ok", rng, video="video", seconds=0.8, fps=25).raw
        assert raw["video"].shape == (20, 32, 48, 3) and raw["image"].shape == (32, 48, 3)
        first = number(raw["video"])
        assert np.allclose(np.diff(first), 1, atol=0.7)
        assert any(np.array_equal(raw["image"], frame) for frame in raw["video"])
        wave = raw["audio"]
        assert wave.rate == 16000 and 0.8 * 16000 <= wave.length <= 0.85 * 16000 + 1024
        # The sound grows with time: its level tells at which second it was taken.
        level = np.abs(wave.read(0, 3200)).max() * 3 / 0.2 - 0.2
        assert level == pytest.approx(first[0] / 25, abs=0.12)


def test_stretches_are_drawn_anew_and_the_same_for_the_same_draw(home):
    source = open_movies(str(home / "longer.mp4"), None, seconds=0.8)
    numbers = {round(float(number(source.read(0, Rng((i,))).raw["image"]))) for i in range(12)}
    assert len(numbers) > 4
    again, same = (source.read(0, Rng((3,))).raw for _ in range(2))
    assert np.array_equal(again["image"], same["image"])
    assert np.array_equal(again["audio"].samples, same["audio"].samples)


def test_the_whole_file_without_seconds(home):
    raw = one(home, "ok", video="video").raw
    assert raw["video"].shape[0] == 50 and raw["audio"].length == pytest.approx(32000, abs=1100)


def test_frames_are_taken_by_their_time(home):
    half = one(home, "ok", image=None, audio=None, video="clip", fps=12.5).raw
    assert [*half] == ["clip"] and np.allclose(number(half["clip"]), np.arange(0, 50, 2), atol=0.7)
    more = one(home, "ok", image=None, audio=None, video="clip", fps=50).raw["clip"]
    assert len(more) == 100 and np.array_equal(more[0], more[1])


def test_views_are_spread_over_the_file(home):
    source = open_movies(str(home / "ok.mp4"), None, tta_views=5)
    numbers = [float(number(source.tta_view(0, i).raw["image"])) for i in range(source.tta_views)]
    assert np.allclose(numbers, [5, 15, 25, 35, 45], atol=0.8)
    middle = open_movies(str(home / "ok.mp4"), None, seconds=1.0).tta_view(0, 0).raw["image"]
    assert float(number(middle)) == pytest.approx(24.5, abs=1.2)


def test_a_box_and_blocks_of_pixels(home):
    raw = one(home, "ok", box=[8, 16, 16, 24], shrink=4, at=0.0).raw["image"]
    assert raw.shape == (4, 6, 3)
    with pytest.raises(ValueError, match="the box .* does not fit into frames of 32 x 48"):
        one(home, "ok", box=[20, 0, 16, 16])
    with pytest.raises(ValueError, match="too small .data.source.shrink"):
        one(home, "ok", shrink=40)


def test_the_cache_gives_the_same_and_is_made_anew_for_another_file(home, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes((home / "ok.mp4").read_bytes())
    options = {"video": "video", "seconds": 0.8, "fps": 25, "cache": str(tmp_path / "cache")}
    fresh = open_movies(str(path), None, **options)
    raws = [fresh.read(0, Rng((1,))).raw for _ in range(2)]
    plain = open_movies(str(path), None, **{**options, "cache": None}).read(0, Rng((1,))).raw
    for raw in raws:
        assert np.array_equal(raw["image"], plain["image"]) and np.array_equal(raw["video"], plain["video"])
        assert np.allclose(raw["audio"].samples[:12000], plain["audio"].samples[:12000], atol=1e-3)
    (stored,) = (tmp_path / "cache").glob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:1000])  # half a file, as a killed machine leaves it
    assert np.array_equal(fresh.read(0, Rng((1,))).raw["image"], plain["image"])
    path.write_bytes((home / "longer.mp4").read_bytes())
    assert len(fresh.read(0, Rng((1,))).raw["video"]) == 20
    assert len([*(tmp_path / "cache").glob("*.safetensors")]) == 2
    assert fresh.fingerprint() == open_movies(str(path), None, **{**options, "cache": None}).fingerprint()


# ------------------------------------------------------------------------------------------------- odd files
@pytest.mark.parametrize("cache", [None, "cache"])
def test_what_a_file_lacks_its_sample_lacks(home, tmp_path, cache):
    kept = None if cache is None else str(tmp_path / cache)
    assert [*one(home, "no_sound", cache=kept).raw] == ["image"]
    assert [*one(home, "no_picture", cache=kept).raw] == ["audio"]
    with pytest.raises(ValueError, match="no track for any of these modalities"):
        one(home, "no_picture", audio=None, cache=kept)


@pytest.mark.parametrize(
    "name, says",
    [
        ("empty", "empty file"),
        ("noise", "not a readable video"),
        ("cut", "not a readable video"),
        ("missing", "data.root cannot be opened"),
    ],
)
def test_broken_files_say_why(home, name, says):
    with pytest.raises((ValueError, MaemmError), match=says):
        one(home, name)


def test_sound_that_ends_before_the_picture(home):
    with pytest.raises(ValueError, match="its sound ends before second 1.44, where the frames begin"):
        open_movies(str(home / "short_sound.mp4"), None, seconds=0.4, at=0.5)._opened(
            str(home / "short_sound.mp4"), 0.9, 0.5
        )
    kept = one(home, "short_sound").raw["audio"]
    assert kept.length < 0.4 * 16000  # as long as it is: padding is the modality's, with a mask


def recipe(**audio):
    return config.load(
        {
            "modalities": {
                "audio": {"size": [48, 32], "patch": [8, 32], "crop": "head", **audio},
                "image": {"size": [16, 24], "patch": 8, "channels": 1, "crop": None},
            },
            "encoder": {"type": "streams", "dim": 16, "depth": 1, "heads": 2, "streams": ["audio", "image"]},
        }
    )


def test_every_odd_file_is_counted_with_its_reason(home):
    source = open_movies(str(home), None, seconds=0.4, at=0.5)
    batches = [*each(source, build_modalities(recipe()), batch=16)]
    reasons = {bad.id: bad.reason for one in batches for bad in one.bad}
    assert sorted(id for one in batches for id in one.ids) == ["longer.mp4", "ok.mp4"] + (
        ["short_sound.mp4"] if "short_sound.mp4" not in reasons else []
    )
    for name, says in {
        "no_sound": "the sample has no 'audio', only 'image'",
        "no_picture": "the sample has no 'image', only 'audio'",
        "silent": "silent: all samples",
        "empty": "empty file",
        "noise": "not a readable video",
        "cut": "not a readable video",
    }.items():
        assert says in reasons[f"{name}.mp4"], name
    allowed = [*each(source, build_modalities(recipe(silent="keep")), batch=16, missing="allow")][0]
    assert {"no_sound.mp4", "no_picture.mp4", "silent.mp4"} <= set(allowed.ids)
    present = {name: dict(zip(allowed.ids, here.tolist(), strict=True)) for name, here in allowed.present.items()}
    assert not present["audio"]["no_sound.mp4"] and not present["image"]["no_picture.mp4"]
    assert present["audio"]["silent.mp4"] and present["image"]["no_sound.mp4"]


def test_sound_shorter_than_a_token_is_a_reason(home, tmp_path):
    files.write(tmp_path / "short.mp4", sound=0.07)
    batch = next(each(open_movies(str(tmp_path), None), build_modalities(recipe()), batch=4))
    assert "s are too short; one patch takes" in batch.bad[0].reason


def test_lists_and_folders(home, tmp_path):
    for name in ("one/a", "two/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").write_bytes((home / "ok.mp4").read_bytes())
    source = open_movies(str(tmp_path), None)
    assert source.classes == ["one", "two"] and [source.label(i) for i in range(2)] == [0, 1]
    listed = tmp_path / "list.txt"
    listed.write_text("two/b.mp4\n")
    source = open_movies(str(tmp_path), str(listed))
    assert len(source) == 1 and source.read(0, Rng((0,))).id == "two/b.mp4"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"seconds": 0}, "seconds must be float > 0"),
        ({"fps": -1.0}, "fps must be float > 0"),
        ({"shrink": 0}, "shrink must be int >= 1"),
        ({"at": 1.5}, "at must be 0 <= float <= 1"),
        ({"box": [1, 2, 3]}, "box must be .int >= 0"),
        ({"box": [0, 0, 0, 3]}, "box must be"),
        ({"image": None, "audio": None}, "one modality or more"),
        ({"image": "audio"}, "each another name"),
    ],
)
def test_impossible_options_are_refused(home, options, says):
    with pytest.raises(MaemmError, match=says):
        open_movies(str(home), None, **check(open_movies, options, "data.source"))
    with pytest.raises(MaemmError, match="no videos are given"):
        open_movies(None)


def shared(tmp_path, tar, *names):
    """Files of one of the shared archives."""
    path = SHARED / "data" / tar
    if not path.is_file():
        pytest.skip("the shared data are not here")
    with tarfile.open(path) as archive:
        for name in names:
            archive.extract(name, tmp_path, filter="data")
    return tmp_path / Path(names[0]).parent


ODD = {
    "v_ok": None,
    "v_audio_only": "no 'image', only 'audio'",
    "v_video_only": "no 'audio', only 'image'",
    "v_truncated": "cannot be decoded after|ends too early: ",
    "v_truncated_no_moov": "not a readable video",
    "v_zero_bytes": "empty file",
    "v_noise": "not a readable video",
    "v_rotated90": None,
    "v_vfr": None,
    "v_one_frame": "no 'audio', only 'image'",
    "v_odd_161x121_yuv444": "no 'audio', only 'image'",
}


def test_awkward_files(tmp_path):
    home = shared(tmp_path, "odd.tar", *(f"odd/{name}.mp4" for name in [*ODD, "v_short_audio"]))
    batches = [*each(open_movies(str(home), None, at=0.5), build_modalities(recipe()), batch=16)]
    reasons = {bad.id.removesuffix(".mp4"): bad.reason for one in batches for bad in one.bad}
    assert {id.removesuffix(".mp4") for one in batches for id in one.ids} >= {k for k, says in ODD.items() if not says}
    for name, says in ODD.items():
        assert says is None or re.search(says, reasons[name]), (name, reasons.get(name))
    short = one(home, "v_short_audio").raw["audio"]
    assert short.length == pytest.approx(16384, abs=1100)
    turned, plain = one(home, "v_rotated90").raw["image"], one(home, "v_ok").raw["image"]
    assert turned.shape[:2] == plain.shape[1::-1]
    irregular = one(home, "v_vfr", video="video", fps=25).raw["video"]
    assert len(irregular) > 100  # 4.5 seconds by their time stamps, not 75 frames


def test_a_real_clip(tmp_path):
    home = shared(tmp_path, "grid.tar", "grid/s1/bbaf2n.mp4")
    raw = open_movies(str(home), None, video="video", seconds=2.4, fps=25, shrink=4).tta_view(0, 0).raw
    assert raw["video"].shape == (60, 32, 40, 3) and raw["audio"].length >= 2.4 * 16000
