"""The sample set: sounds of the objects, which a spectrogram can tell apart."""

import json
import wave

import numpy as np
import pytest

from maemm import Rng
from maemm_plugins._objects.objects import SHAPES, make_object
from maemm_plugins._objects.sound import PARTIALS, ring
from maemm_plugins.audio import samples
from maemm_plugins.audio.modality import Audio


def test_ordinary_files_written_once(tmp_path):
    root = tmp_path / "set"
    samples.write(root, count=12)
    files = sorted(root.glob("*/*.wav"))
    assert len(files) == 12 and {f.parent.name for f in files} == set(SHAPES)
    with wave.open(str(files[0])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 16000)
    stamp = files[0].stat().st_mtime_ns
    samples.write(root, count=12)
    assert files[0].stat().st_mtime_ns == stamp
    records = json.loads((root / ".objects.json").read_text())
    assert records[3]["shape"] == make_object(3).shape
    source = samples.open_samples(str(root))
    assert source.classes == sorted(SHAPES)
    audio = Audio(size=[96, 64], patch=8)
    preprocessed = audio.preprocess(
        audio.collate([audio.load(source.read(i, Rng((0,))).raw["audio"], None) for i in range(12)]), None
    )
    assert preprocessed.valid is None and preprocessed.x.shape == (12, 96, 64) and preprocessed.x.isfinite().all()


@pytest.mark.parametrize("index", range(6))
def test_a_sound_rings_at_its_pitch_and_dies(index):
    thing = make_object(index)
    sound = ring(thing, 1.0)
    assert set(PARTIALS) == set(SHAPES) and np.array_equal(sound, ring(thing, 1.0))
    assert 0.3 < np.abs(sound).max() <= 1
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    near = spectrum[int(thing.pitch) - 12 : int(thing.pitch) + 13].max()
    assert near > 0.5 * spectrum.max()
    assert np.square(sound[:400]).mean() < 1e-4  # silence, but for the room, before the blow
    assert np.square(sound[-1600:]).mean() < np.square(sound).max() / 8


def test_without_data_the_set_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "write", lambda root, **rest: _few(root))
    assert len(samples.open_samples(None)) == 6 and (tmp_path / "runs/samples/audio").is_dir()


_write = samples.write


def _few(root):
    _write(root, count=6)
