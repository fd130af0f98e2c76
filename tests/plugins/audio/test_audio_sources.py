"""Folders, lists, manifests, long recordings and awkward files."""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches
from maemm_plugins.audio.modality import Audio
from maemm_plugins.audio.read import Recording, _opened
from maemm_plugins.audio.samples import write_wav
from maemm_plugins.audio.sources import open_audio

SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared")) / "data"
SMALL = {"size": [96, 32], "patch": 16}


def noise(seconds=0.5, rate=16000, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (round(seconds * rate), channels)).astype(np.float32)


def put(path, seconds=0.5, **rest):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, **rest), rest.get("rate", 16000))
    return path


def read_all(source, **modality):
    """(ids that could be read, {name: reason} of those that could not)."""
    loader = Loader(
        source, {"audio": Audio(**SMALL, **modality)}, SequentialBatches(len(source), 4), seed=0, substitute=False
    )
    batches = list(loader.batches(0, -(-len(source) // 4)))
    return [i for b in batches for i in b.ids], {bad.id: bad.reason for b in batches for bad in b.bad}


# ------------------------------------------------------------------------------------------------ what is found
def test_a_folder_of_class_folders(tmp_path):
    for name in ("dog/1.wav", "cat/2.flac", "cat/.hidden.wav", "cat/notes.txt"):
        put(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    source = open_audio(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["cat/2.flac", "dog/1.wav"]
    assert source.classes == ["cat", "dog"] and [source.read(i, Rng((0,))).label for i in (0, 1)] == [0, 1]


def test_a_flat_folder_and_a_single_file(tmp_path):
    put(tmp_path / "a.wav"), put(tmp_path / "b.wav", seed=1)
    source = open_audio(str(tmp_path))
    assert len(source) == 2 and source.classes is None and source.read(0, Rng((0,))).label is None
    one = open_audio(str(tmp_path / "b.wav"))
    assert len(one) == 1 and one.read(0, Rng((0,))).raw["audio"].length == 8000


def test_a_table_as_esc50_has_it(tmp_path):
    for i in range(3):
        put(tmp_path / "audio" / f"1-{i}.wav", seed=i)
    rows = "filename,fold,target,category\n1-0.wav,1,4,dog\n1-2.wav,1,0,rain\n"
    (tmp_path / "esc50.csv").write_text(rows.replace("\\\n", "\n"))
    source = open_audio(str(tmp_path / "audio"), str(tmp_path / "esc50.csv"))
    assert [source.name(i) for i in range(len(source))] == ["1-0.wav", "1-2.wav"]
    assert [source.read(i, Rng((0,))).label for i in (0, 1)] == [4, 0]


def write_json(path, rows):
    path.write_text(json.dumps({"data": rows}))
    return str(path)


LABELS = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/02zsn,"Female"\n'


def test_json_of_ast_with_its_label_file(tmp_path):
    put(tmp_path / "a.flac"), put(tmp_path / "b.wav")
    rows = [
        {"wav": "a.flac", "labels": "/m/05zppz", "video_id": "x"},
        {"wav": "b.wav", "labels": "/m/09x0r,/m/02zsn"},
        {"wav": "b.wav", "labels": "/m/unheard"},
        {"wav": "gone.wav", "labels": ""},
    ]
    (tmp_path / "labels.csv").write_text(LABELS)
    source = open_audio(None, write_json(tmp_path / "x.json", rows), labels=str(tmp_path / "labels.csv"))
    assert source.classes == ["Speech", "Male speech, man speaking", "Female"]
    assert source.multilabel and [source.read(i, Rng((0,))).label for i in (0, 1)] == [(1,), (0, 2)]
    assert [source.label(i) for i in range(4)] == [(1,), (0, 2), (), ()]
    ids, bad = read_all(source)
    assert ids == ["a.flac", "b.wav"]
    assert "'/m/unheard' is not in the label file" in bad["b.wav"] and "No such file" in bad["gone.wav"]


def test_json_without_a_label_file(tmp_path):
    put(tmp_path / "a.wav")
    rows = [{"wav": str(tmp_path / "a.wav"), "labels": "rain"}, {"wav": "a.wav", "labels": "dog"}]
    source = open_audio(None, write_json(tmp_path / "x.json", rows))
    assert source.classes == ["dog", "rain"] and [source.label(i) for i in (0, 1)] == [1, 0]
    assert not read_all(source)[1]
    none = open_audio(write_json(tmp_path / "y.json", [{"wav": "a.wav"}]))
    assert none.classes is None and none.label(0) is None


@pytest.mark.parametrize(
    "text, what",
    [
        ("{", "no JSON"),
        ("{}", "names no sound"),
        ('{"data": [{"labels": "x"}]}', "entry 0 of the list has no 'wav'"),
        ('{"data": [{"wav": "a.wav", "labels": [1]}]}', "entry 0 of the list has labels"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_broken_json(tmp_path, text, what):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(MaemmError, match=what) as caught:
        open_audio(None, str(tmp_path / "x.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, what",
    [("mid,name\n1,2\n", "lacks columns"), ("index,mid,display_name\n0,a,b\n2,c,d\n", "not 0 to 1"), ("", "is empty")],
)
def test_broken_label_files(tmp_path, text, what):
    (tmp_path / "l.csv").write_text(text)
    path = write_json(tmp_path / "x.json", [{"wav": "a.wav", "labels": "a"}])
    with pytest.raises(MaemmError, match=what):
        open_audio(None, path, labels=str(tmp_path / "l.csv"))


def test_fairseq_manifest(tmp_path):
    put(tmp_path / "deep/a.wav")
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\ndeep/a.wav\t8000\ndeep/gone.wav\t100\n")
    source = open_audio(None, str(tmp_path / "train.tsv"))
    ids, bad = read_all(source)
    assert ids == ["deep/a.wav"] and list(bad) == ["deep/gone.wav"] and source.classes is None


def test_a_tsv_table_is_no_manifest(tmp_path):
    put(tmp_path / "a.wav")
    (tmp_path / "x.tsv").write_text("path\tlabel\na.wav\train\n")
    assert open_audio(None, str(tmp_path / "x.tsv")).classes == ["rain"]


@pytest.mark.parametrize(
    "split, names",
    [("all", "yes/a yes/b no/c no/d"), ("train", "yes/a"), ("validation", "yes/b no/d"), ("testing", "no/c")],
)
def test_speech_commands(tmp_path, split, names):
    for name in ("yes/a", "yes/b", "no/c", "no/d", "_background_noise_/rain"):
        put(tmp_path / f"{name}.wav")
    (tmp_path / "validation_list.txt").write_text("yes/b.wav\nno/d.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/c.wav\n")
    source = open_audio(str(tmp_path), split=split)
    assert {source.name(i) for i in range(len(source))} == {f"{name}.wav" for name in names.split()}
    if split == "all":
        assert source.classes == ["no", "yes"]


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda p: (None, None), "no sounds are given"),
        (lambda p: (str(p), None), "no sound below the folder"),
        (lambda p: (str(p / "gone"), None), "cannot be opened"),
        (lambda p: (None, str(p)), "data.list is a folder"),
        (lambda p: (str(put(p / "a.wav")), str(p / "a.wav")), "data.root is no folder"),
        (lambda p: (str(Path(__file__)), None), "no known kind"),
    ],
)
def test_nothing_to_read(tmp_path, make, what):
    with pytest.raises(MaemmError, match=what):
        open_audio(*make(tmp_path))


def test_wrong_options(tmp_path):
    put(tmp_path / "a.wav")
    with pytest.raises(MaemmError, match="slide"):
        check(open_audio, {"slide": 0}, "data.source")
    with pytest.raises(MaemmError, match="validation_list"):
        open_audio(str(tmp_path), split="train")


# ------------------------------------------------------------------------------------------------ long recordings
def test_only_the_part_that_a_sample_takes_is_read(tmp_path, monkeypatch):
    ramp = np.linspace(-1, 1, 60 * 16000, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, 16000, subtype="FLOAT")
    raw = open_audio(str(tmp_path)).read(0, Rng((0,))).raw["audio"]
    read, file = [], _opened
    original = type(_opened(*_arguments(tmp_path / "long.wav"))).read
    monkeypatch.setattr(
        type(file(*_arguments(tmp_path / "long.wav"))),
        "read",
        lambda self, at, n: read.append(n) or original(self, at, n),
    )
    starts = {round(Audio(**SMALL).load(raw, Rng((0, i)))["wave"][0].item(), 3) for i in range(10)}
    assert len(starts) == 10 and max(read) <= 96 * 160 + 400


_BYTES = Path("/proc/self/io")


@pytest.mark.skipif(not _BYTES.exists(), reason="this system does not tell how many bytes were read")
@pytest.mark.parametrize("kind, rate, most", [("wav", 8000, 300_000), ("flac", 4000, 300_000), ("ogg", 2000, 300_000)])
def test_of_half_an_hour_only_five_seconds_are_read(tmp_path, kind, rate, most):
    """Bytes of opening, seeking to the middle and reading 5 s."""
    part = noise(10.0, rate=rate)[:, 0]
    with soundfile.SoundFile(tmp_path / f"long.{kind}", "w", rate, 1) as file:
        for _ in range(180):
            for at in range(0, len(part), 8000):  # libsndfile's Vorbis writer overflows its stack on large blocks
                file.write(part[at : at + 8000])
    source = open_audio(str(tmp_path))
    put(tmp_path / "other/short.wav", 0.5, rate=rate)
    Audio(size=[16, 64]).load(Recording.open(tmp_path / "other/short.wav"), None)  # imports are read too
    before = _bytes_read()
    raw = source.read(0, Rng((0,))).raw["audio"]
    assert (raw.length, raw.seconds) == (30 * 60 * rate, 1800)
    wave = Audio(size=[512, 64], crop="center").load(raw, None)["wave"]
    assert len(wave) == 511 * 160 + 400 and _bytes_read() - before < most < (tmp_path / f"long.{kind}").stat().st_size
    begin = raw.length // 2 + 321
    assert np.corrcoef(raw.read(begin, 4000)[:, 0], np.resize(part, raw.length)[begin : begin + 4000])[0, 1] > 0.9


def _bytes_read():
    return int(_BYTES.read_text().split("rchar: ")[1].split()[0])


def _arguments(path):
    status = os.stat(path)
    return os.fsencode(path), status.st_mtime_ns, status.st_size, os.getpid()


def test_sliding_windows(tmp_path):
    put(tmp_path / "a.wav", 2.5), put(tmp_path / "b.flac", 0.4)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    source = open_audio(str(tmp_path), slide=1.0, hop=0.5)
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a.wav@0s", "a.wav@0.5s", "a.wav@1s", "a.wav@1.5s", "b.flac@0s", "broken.wav@0s"]
    whole = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    part = source.read(3, Rng((0,))).raw["audio"]
    assert np.array_equal(part.read(0, part.length)[:, 0], whole[24000:40000])
    ids, bad = read_all(source)
    assert len(ids) == 5 and list(bad) == ["broken.wav@0s"]
    last = open_audio(str(tmp_path / "a.wav"), slide=1.0)  # 0, 1 and, ending with the recording, 1.5
    assert len(last) == 3 and last.read(2, Rng((0,))).raw["audio"].first == 24000


def test_recordings_and_sources_travel_to_processes(tmp_path):
    put(tmp_path / "a.wav")
    for source in (open_audio(str(tmp_path)), open_audio(str(tmp_path), slide=0.2)):
        one, other = (s.read(0, Rng((0,))).raw["audio"] for s in (source, pickle.loads(pickle.dumps(source))))
        assert pickle.loads(pickle.dumps(one)) == other and np.array_equal(one.read(0, 99), other.read(0, 99))
        assert source.fingerprint() == pickle.loads(pickle.dumps(source)).fingerprint()


def test_a_changed_file_is_opened_anew(tmp_path):
    path = put(tmp_path / "a.wav", 0.5)
    assert Recording.open(path).length == 8000
    path.unlink()
    assert Recording.open(put(path, 0.25)).length == 4000


def test_small_sets_are_decoded_once(tmp_path, monkeypatch):
    put(tmp_path / "a.ogg", 2.0), put(tmp_path / "b.wav", 0.5)
    (tmp_path / "cut.flac").write_bytes(b"nothing")
    plain, kept = open_audio(str(tmp_path)), open_audio(str(tmp_path), memory=True)
    expected = [Audio(**SMALL).load(plain.read(i, Rng((0,))).raw["audio"], Rng((i,)))["wave"] for i in (0, 1)]
    for _ in range(2):  # the second time the files are gone
        found = [Audio(**SMALL).load(kept.read(i, Rng((0,))).raw["audio"], Rng((i,)))["wave"] for i in (0, 1)]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        for name in ("a.ogg", "b.wav"):
            (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="not a readable sound"):
        kept.read(2, Rng((0,)))
    assert len(pickle.dumps(kept)) < 5000 and kept.fingerprint() == plain.fingerprint()
    with pytest.raises(MaemmError, match="slide"):
        open_audio(str(tmp_path), memory=True, slide=1.0)


# ------------------------------------------------------------------------------------------------ kinds of files
@pytest.mark.parametrize(
    "subtype, gap", [("PCM_U8", 1 / 127), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("FLOAT", 0), ("DOUBLE", 0)]
)
def test_any_number_of_bits(tmp_path, subtype, gap):
    x = noise()
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype=subtype)
    assert np.abs(Recording.open(tmp_path / "a.wav").read(0, 8000) - x).max() <= gap


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "aiff", "au", "caf"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_kind_of_file(tmp_path, kind, channels):
    put(tmp_path / f"a.{kind}", 1.0, rate=44100, channels=channels)
    wave = Audio(**SMALL).load(Recording.open(tmp_path / f"a.{kind}"), None)["wave"]
    assert len(wave) == 95 * 160 + 400 and 0.01 < wave.std() < 0.3


def test_content_decides_not_the_name(tmp_path):
    put(tmp_path / "a.wav").rename(tmp_path / "a.mp3")
    assert Recording.open(tmp_path / "a.mp3").length == 8000


def test_names_that_are_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    os.rename(put(tmp_path / "a.wav"), name)
    ids, bad = read_all(open_audio(str(tmp_path)))
    assert ids == ["caf\\xe9.wav"] and not bad


def test_broken_files_are_counted_and_named(tmp_path):
    good = put(tmp_path / "good.wav", 1.0)
    data = good.read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound at all, only words, more than forty-four of them")
    (tmp_path / "head.wav").write_bytes(data[:44])
    put(tmp_path / "none.wav", 0)
    put(tmp_path / "short.wav", 0.02)
    write_wav(tmp_path / "silent.wav", np.zeros(16000), 16000)
    x = noise(1.0)
    x[8000:8004] = np.nan
    soundfile.write(tmp_path / "nan.wav", x, 16000, subtype="FLOAT")
    ogg = put(tmp_path / "cut.ogg", 3.0, rate=16000)
    ogg.write_bytes(ogg.read_bytes()[: ogg.stat().st_size // 2])
    flac = put(tmp_path / "cut.flac", 1.0)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    ids, bad = read_all(open_audio(str(tmp_path)))
    assert ids == ["good.wav"]
    reasons = {
        "cut.wav": "cut off", "zero.wav": "empty", "head.wav": "cut off", "none.wav": "no samples",
        "short.wav": "too short", "silent.wav": "silent", "nan.wav": "4 samples are not finite", "cut.ogg": "cut off",
        "link.wav": "No such file",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert reason in bad[name], (name, bad[name])
    assert {"text.wav", "cut.flac"} <= set(bad) and all("\n" not in one for one in bad.values())


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ValueError, match="not an ordinary file"):
        Recording.open(tmp_path / "pipe.wav")


def test_what_there_is_of_a_cut_file_may_be_read(tmp_path):
    path = put(tmp_path / "cut.wav", 2.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ids, bad = read_all(open_audio(str(tmp_path), truncated="read"))
    assert ids == ["cut.wav"] and not bad


def test_lengths_that_a_stream_could_not_know(tmp_path):
    path = put(tmp_path / "stream.wav")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert Recording.open(path).read(0, 9000).shape == (8000, 1)


def test_awkward_files_of_the_shared_set(tmp_path):
    import tarfile

    if not (SHARED / "odd.tar").is_file():
        pytest.skip("the awkward files are not here; set MAEMM_SHARED")
    with tarfile.open(SHARED / "odd.tar") as tar:
        tar.extractall(tmp_path, [m for m in tar.getmembers() if m.name.startswith("odd/a_")], filter="data")
    ids, bad = read_all(open_audio(str(tmp_path / "odd")))
    good = "44k1.wav 5ch.wav 8k.wav f32.wav mp3.mp3 ok.flac ok_16k.wav s24.wav u8.wav wav_named.mp3"
    assert ids == [f"a_{name}" for name in good.split()]
    assert len(bad) == 8 and "11 samples" in bad["a_nan.wav"] and "cancel" in bad["a_stereo_opposite.wav"]


def test_sound_of_video_files(tmp_path):
    import tarfile

    pytest.importorskip("av")
    if not (SHARED / "odd.tar").is_file():
        pytest.skip("the awkward files are not here; set MAEMM_SHARED")
    with tarfile.open(SHARED / "odd.tar") as tar:
        tar.extractall(tmp_path, [m for m in tar.getmembers() if m.name.startswith("odd/v_")], filter="data")
    source = open_audio(str(tmp_path / "odd"), extensions=["mp4"])
    ids, bad = read_all(source)
    assert {"v_ok.mp4", "v_audio_only.mp4", "v_short_audio.mp4"} <= set(ids)
    assert "no sound (streams: video h264)" in bad["v_video_only.mp4"] and "v_zero_bytes.mp4" in bad
    whole = Recording.open(tmp_path / "odd/v_ok.mp4")
    part = whole.part(1.0, 2.0)
    near = np.corrcoef(whole.read(0, 32000)[16000:, 0], part.read(0, 16000)[:, 0])[0, 1]
    assert part.length == 16000 and near > 0.99  # seeking lands on the same samples
