"""Lists of clips with stored frames, and frames of videos."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.data.shots import balancing, labels_of
from maemm.data.single_pass import each
from maemm_plugins.cav.sources import open_clips, open_frames

spec = importlib.util.spec_from_file_location("test_movies", Path(__file__).with_name("test_movies.py"))
movies = importlib.util.module_from_spec(spec)
spec.loader.exec_module(movies)

LABELS = 'index,mid,display_name\n0,/m/a,"Dog, barking"\n1,/m/b,Rain\n2,/m/c,Bell\n'


def store(home, ids=("one", "two", "three"), frames=3, labels=("/m/a", "/m/b", "/m/a,/m/c")):
    """A list with its sounds and frames; frame i of clip k is grey level 40 k + 10 i."""
    from PIL import Image

    rows = []
    for k, id in enumerate(ids):
        (home / "wav").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k).uniform(-0.5, 0.5, 16000)
        soundfile.write(home / "wav" / f"{id}.wav", noise, 16000)
        for i in range(frames):
            (home / "video" / f"frame_{i}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (40 * k + 10 * i,) * 3).save(
                home / "video" / f"frame_{i}" / f"{id}.jpg", quality=100
            )
        rows.append({"video_id": id, "wav": f"wav/{id}.wav", "video_path": "video", "labels": labels[k], "extra": 1})
    (home / "labels.csv").write_text(LABELS)
    return write(home, rows)


def write(home, rows):
    (home / "list.json").write_text(json.dumps({"data": rows}))
    return str(home / "list.json")


def rows_of(home):
    return json.loads((home / "list.json").read_text())["data"]


def clips(home, **options):
    return open_clips(None, str(home / "list.json"), **{"frames": 3, "labels": str(home / "labels.csv"), **options})


# ------------------------------------------------------------------------------------------------- clips
def test_a_sound_with_one_of_its_frames(tmp_path):
    store(tmp_path)
    source = clips(tmp_path, frame=2)
    assert len(source) == 3 and source.name(1) == "two" and source.classes == ["Dog, barking", "Rain", "Bell"]
    sample = source.read(1, Rng((0,)))
    assert set(sample.raw) == {"audio", "image"} and sample.id == "two" and sample.label in (1, (1,))
    assert sample.raw["audio"].length == 16000 and abs(int(sample.raw["image"].mean()) - 60) < 3
    renamed = clips(tmp_path, audio="ear", image="eye", frame=0).read(0, Rng((0,)))
    assert set(renamed.raw) == {"ear", "eye"}


def test_a_random_frame_in_training_and_all_of_them_as_views(tmp_path):
    store(tmp_path)
    source = clips(tmp_path)
    levels = {round(float(source.read(0, Rng((i,))).raw["image"].mean()) / 10) for i in range(30)}
    assert levels == {0, 1, 2}
    tta_views = [round(float(source.tta_view(0, i).raw["image"].mean()) / 10) for i in range(source.tta_views)]
    assert tta_views == [0, 1, 2] and clips(tmp_path, frame=1).tta_views == 1


def test_labels_of_clips_with_several_and_their_weights(tmp_path):
    store(tmp_path)
    labels = labels_of(clips(tmp_path))
    assert labels.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    # Published: the sum over a clip's labels of 1000 / (count + 0.01), the same up to a factor and the 0.01.
    assert np.allclose(balancing(labels), [0.5, 1.0, 1.5])


def bad(home, **options):
    batch = next(each(clips(home, frame=1, **options), movies.build_modalities(movies.recipe()), batch=8))
    return {one.id: one.reason for one in batch.bad}, batch.ids


def test_what_is_wrong_with_a_clip_is_counted_with_its_reason(tmp_path):
    ids = ("ok", "no_frame", "no_sound", "silent", "short", "bad_frame", "unknown", "long")
    store(tmp_path, ids, labels=("/m/a",) * 6 + ("/m/zzz", "/m/b"))
    frame = tmp_path / "video" / "frame_1"
    (frame / "no_frame.jpg").unlink()
    (frame / "bad_frame.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "wav" / "no_sound.wav").unlink()
    soundfile.write(tmp_path / "wav" / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "wav" / "short.wav", np.full(500, 0.1) * np.arange(500) / 500, 16000)
    soundfile.write(tmp_path / "wav" / "long.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000)
    reasons, ids = bad(tmp_path)
    assert ids == ["ok", "long"]  # different lengths meet in one batch
    for name, says in {
        "no_frame": "its frame 1 cannot be read",
        "bad_frame": "its frame 1 cannot be read.*JPEG",
        "no_sound": "No such file",
        "silent": "silent: all samples",
        "short": "too short; one patch takes",
        "unknown": "its label '/m/zzz' is not in the label file",
    }.items():
        assert re.search(says, reasons[name]), (name, reasons[name])


@pytest.mark.parametrize("key", ["wav", "video_id", "video_path"])
def test_entries_without_a_key_are_refused_with_their_number(tmp_path, key):
    store(tmp_path)
    rows = rows_of(tmp_path)
    del rows[1][key]
    write(tmp_path, rows)
    with pytest.raises(MaemmError, match=f"entry 1 of the list has no '{key}'"):
        clips(tmp_path)
    rows[1][key] = 3
    write(tmp_path, rows)
    with pytest.raises(MaemmError, match=f"entry 1 of the list has no '{key}'"):
        clips(tmp_path)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ('{"data": []}', "names no sound"),
        ("[1]", "entry 0 of the list has no 'wav'"),
    ],
)
def test_lists_that_are_none(tmp_path, text, says):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(MaemmError, match=says):
        open_clips(None, str(tmp_path / "list.json"))


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "empty"),
        ("mid,name\n/m/a,Dog\n", "lacks columns"),
        ("index,mid,display_name\n0,/m/a,Dog\n0,/m/b,Cat\n", "not 0 to 1, each once"),
        ("index,mid,display_name\nx,/m/a,Dog\n", "lacks columns"),
    ],
)
def test_label_files_that_are_none(tmp_path, text, says):
    store(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(MaemmError, match=says):
        clips(tmp_path)


def test_impossible_options(tmp_path):
    store(tmp_path)
    with pytest.raises(MaemmError, match="there is no frame"):
        clips(tmp_path, frame=3)
    for options in ({"frame": -1}, {"frames": 0}):
        with pytest.raises(MaemmError, match="must be int >= "):
            check(open_clips, options, "data.source")
    with pytest.raises(MaemmError, match="no clips are given"):
        open_clips(str(tmp_path))
    with pytest.raises(MaemmError, match="data.list cannot be opened"):
        open_clips(None, str(tmp_path / "none.json"))


def test_the_fingerprint_follows_the_list(tmp_path):
    store(tmp_path)
    first = clips(tmp_path).fingerprint()
    assert clips(tmp_path).fingerprint() == first != clips(tmp_path, frame=1).fingerprint()
    write(tmp_path, rows_of(tmp_path)[:2])
    assert clips(tmp_path).fingerprint() != first


# ------------------------------------------------------------------------------------------------- frames
def test_a_frame_of_each_video(tmp_path):
    movies.files.write(tmp_path / "a.mp4")
    source = open_frames(str(tmp_path), at=0.5, videos={"seconds": None})
    sample = source.read(0, Rng((0,)))
    assert [*sample.raw] == ["image"] and float(movies.number(sample.raw["image"])) == pytest.approx(25, abs=1)
    anew = open_frames(str(tmp_path), name="face", videos={"seconds": None})
    numbers = {round(float(movies.number(anew.read(0, Rng((i,))).raw["face"]))) for i in range(10)}
    assert len(numbers) > 4
    with pytest.raises(MaemmError, match="at must be 0 <= float <= 1"):
        check(open_frames, {"at": 2.0}, "data.source")


def test_videos_without_pictures_say_so(tmp_path):
    movies.files.write(tmp_path / "sound.mp4", frames=0)
    with pytest.raises(ValueError, match="no picture"):
        open_frames(str(tmp_path), at=0.5, videos={"seconds": None}).read(0, Rng((0,)))
