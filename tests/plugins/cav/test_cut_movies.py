"""Movies that were cut without re-encoding, put one behind the other, or begin at another second than 0."""

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from maemm import Rng
from maemm_plugins.audio.read import Recording
from maemm_plugins.cav.movies import open_movies
from maemm_plugins.video.decoding.watchdog import call
from tests.plugins.cav.movie_files import RATE, picture, tone, write
from tests.plugins.edit_lists import with_edits

av = pytest.importorskip("av")


def number_of(frame):
    """The number of a picture, by its grey level."""
    return round((float(frame.mean()) - 20) / 3)


def moment_of(wave, window=1600):
    """The second at which a part of the tone begins, by its amplitude."""
    return float(np.abs(wave.samples[:window, 0]).max()) / 0.2 * 3


def cut(folder, seconds, start, name="a.mp4"):
    whole = write(folder / f"whole_{name}")
    data = whole.read_bytes()
    whole.unlink()
    for track in (0, 1):
        data = with_edits(data, [(seconds, start)], track)
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("start", [0.4, 0.56, 0.0])
def test_a_cut_movie_has_the_frames_and_the_sound_that_are_shown(tmp_path, start):
    cut(tmp_path, 1.0, start)
    raw = open_movies(str(tmp_path), video="video").read(0, Rng((0,))).raw
    numbers = [number_of(frame) for frame in raw["video"]]
    first = round(start * 25) - (2 if start else 0)  # the media time counts the delay of B-frames too
    assert len(numbers) >= 23 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert abs(numbers[0] - first) <= 2
    assert raw["audio"].length / RATE == pytest.approx(1.0, abs=0.1)
    assert moment_of(raw["audio"]) == pytest.approx(start + 0.1, abs=0.15)


def test_intervals_of_a_cut_movie_lie_within_it(tmp_path):
    cut(tmp_path, 1.2, 0.56)
    source = open_movies(str(tmp_path), video="video", seconds=0.4)
    first = set()
    for seed in range(6):
        raw = source.read(0, Rng((seed,))).raw
        numbers = [number_of(frame) for frame in raw["video"]]
        first.add(numbers[0])
        assert len(numbers) == 10 and numbers[0] >= 12 and numbers[-1] <= 44
        assert moment_of(raw["audio"]) == pytest.approx(numbers[0] / 25 + 0.1, abs=0.15)
    assert len(first) > 2


def test_a_cut_movie_in_the_cache(tmp_path):
    cut(tmp_path, 1.0, 0.4)
    sources = [open_movies(str(tmp_path), video="video", cache=cache) for cache in (None, str(tmp_path / "cache"))]
    first, second = (source.read(0, Rng((1,))).raw for source in sources)
    assert (first["video"] == second["video"]).all() and (first["audio"].samples == second["audio"].samples).all()


def stream(path, first=0, frames=40, offset=0.0):
    """Frames from the number ``first`` on with their sound, whose time stamps begin at ``offset`` seconds."""
    options = {"output_ts_offset": str(offset), "avoid_negative_ts": "disabled"}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("mpeg2video", rate=25, options={"g": "5", "threads": "1"})
        video.height, video.width, video.pix_fmt, video.bit_rate = 32, 48, "yuv420p", 2_000_000
        audio = container.add_stream("mp2", rate=RATE, layout="mono")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        wave = (tone((first + frames) / 25)[round(first / 25 * RATE) :] * 32767).astype(np.int16)
        for start in range(0, len(wave) - 1151, 1152):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1152], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        for track in (video, audio):
            container.mux(track.encode())
    return path.read_bytes()


@pytest.mark.parametrize("ending", ["mpg", "ts"])
def test_movies_one_behind_the_other(tmp_path, ending):
    parts = [stream(tmp_path / f"{i}.{ending}", 30 * i, 30) for i in range(2)]
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / f"a.{ending}").write_bytes(b"".join(parts))
    source = open_movies(str(folder), video="video", extensions=[ending])
    numbers = [number_of(frame) for frame in source.read(0, Rng((0,))).raw["video"]]
    assert len(numbers) >= 57 and numbers == sorted(numbers) and numbers[-1] >= 58
    part = open_movies(str(folder), video="video", audio=None, seconds=0.4, extensions=[ending])
    first = [number_of(part.read(0, Rng((seed,))).raw["video"][0]) for seed in range(8)]
    assert max(first) > 30 and min(first) < 30 and len({*first}) > 3


@pytest.mark.parametrize("ending, offset", [("ts", 3600.0), ("mkv", 5.0), ("mkv", -1.0)])
def test_a_movie_that_begins_at_another_second(tmp_path, ending, offset):
    """Recordings of broadcasts begin at the time of day; frames before 0 are shown too."""
    folder = tmp_path / "all"
    folder.mkdir()
    stream(folder / f"a.{ending}", offset=offset)
    whole = open_movies(str(folder), video="video", extensions=[ending]).read(0, Rng((0,))).raw
    assert len(whole["video"]) >= 39 and whole["audio"].length / RATE == pytest.approx(1.6, abs=0.15)
    source = open_movies(str(folder), video="video", seconds=0.4, extensions=[ending])
    first = set()
    for seed in range(6):
        raw = source.read(0, Rng((seed,))).raw
        numbers = [number_of(frame) for frame in raw["video"]]
        first.add(numbers[0])
        assert len(numbers) >= 9 and numbers == sorted(numbers)
        assert moment_of(raw["audio"]) == pytest.approx(numbers[0] / 25 + 0.1, abs=0.2)
    assert len(first) > 2


@pytest.mark.parametrize("ending, offset", [("ts", 3600.0), ("mkv", 5.0)])
def test_the_sound_of_a_movie_that_begins_at_another_second(tmp_path, ending, offset):
    stream(tmp_path / f"a.{ending}", offset=offset)
    recording = Recording.open(tmp_path / f"a.{ending}")
    assert recording.seconds == pytest.approx(1.6, abs=0.15)
    whole, part = recording.read(0, recording.length), recording.read(16000, 4000)
    assert np.corrcoef(whole[16000:20000, 0], part[:, 0])[0, 1] > 0.95  # Matroska rounds to milliseconds


# ------------------------------------------------------------------------------------------------ the watchdog
def test_movies_are_decoded_in_the_process_that_may_be_killed(tmp_path, monkeypatch):
    """The same frames and sound with and without it, and none of it happens in the worker."""
    write(tmp_path / "a.mp4")
    options = {"video": "video", "seconds": 0.8}
    here = open_movies(str(tmp_path), decode_seconds=None, **options).read(0, Rng((3,))).raw
    monkeypatch.setattr(av, "open", None)
    there = open_movies(str(tmp_path), **options).read(0, Rng((3,))).raw
    assert (here["video"] == there["video"]).all() and (here["audio"].samples == there["audio"].samples).all()
    there["video"][:] = 0  # writable, as from the worker itself


@pytest.mark.parametrize(
    "function, program, seconds, reason",
    [
        (subprocess.call, "cat", 0.5, "took longer than 0.5 s and was killed"),  # it waits for input that never comes
        (partial(os.execl, shutil.which("false")), "false", 30, "the decoder died of exit status 1"),
    ],
)
def test_a_decoder_that_hangs_or_dies_costs_one_file(tmp_path, function, program, seconds, reason):
    with pytest.raises(OSError, match=reason):
        call(function, shutil.which(program), seconds=seconds)
    write(tmp_path / "a.mp4")
    assert open_movies(str(tmp_path)).read(0, Rng((0,))).raw["image"].shape == (32, 48, 3)


def test_what_runs_in_that_process_imports_no_torch():
    code = "import sys, maemm_plugins.cav.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_movie_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="not a regular file"):
        open_movies(str(tmp_path / "a.mp4")).read(0, Rng((0,)))
