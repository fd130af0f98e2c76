"""The filter bank against torchaudio's Kaldi functions, and the published spectrograms."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchaudio.compliance.kaldi import fbank

from maemm import MaemmError
from maemm_plugins.audio import frontend
from maemm_plugins.audio.frontend import FilterBank
from maemm_plugins.audio.modality import Audio

SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared")) / "golden" / "audiomae"
SETS = {"audioset": 1024, "esc50": 512, "speechcommands": 128}


def kaldi(wave, rate=16000, mels=128):
    return fbank(
        wave[None], htk_compat=True, sample_frequency=rate, use_energy=False, window_type="hanning",
        num_mel_bins=mels, dither=0.0, frame_shift=10,
    )  # fmt: skip


def waves(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("batch, samples", [(1, 400), (7, 4800), (3, 16000), (2, 160_000)])
@pytest.mark.parametrize("rate, mels", [(16000, 128), (16000, 64), (8000, 40), (44100, 128)])
def test_equals_kaldi(batch, samples, rate, mels):
    if samples < rate * 0.025:
        return
    x = waves(batch, samples)
    expected = torch.stack([kaldi(one, rate, mels) for one in x])
    found = FilterBank(rate, mels)(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("block", [1, 7, 64, 300, 10_000])
def test_blocks_change_nothing(block, monkeypatch):
    x = waves(3, 9000)
    expected = FilterBank()(x)
    monkeypatch.setattr(frontend, "CPU_BLOCK", block)
    assert (FilterBank()(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("seconds, frames", [(0.3, 28), (1, 98), (5, 498), (10, 998), (0.02, 0)])
def test_frames(seconds, frames):
    bank = FilterBank()
    assert bank.frames(round(seconds * 16000)) == frames == bank(waves(1, round(seconds * 16000))).shape[1]
    assert bank.frames(bank.samples(frames)) == frames


def test_silence_and_offset():
    assert (FilterBank()(torch.zeros(1, 1600)) + 15.942385).abs().max() < 1e-5
    x = waves(1, 8000)
    assert (FilterBank()(x + 0.5) - FilterBank()(x)).abs().max() < 0.1  # each frame's mean is taken off


@pytest.mark.parametrize("rate, mels", [(16000, 3), (30, 128), (60, 128)])
def test_what_makes_no_bank(rate, mels):
    with pytest.raises(MaemmError, match="no filter bank"):
        FilterBank(rate, mels)


# ------------------------------------------------------------------------------------------- published spectrograms
@pytest.fixture(scope="module")
def golden():
    if not (SHARED / "fbank.safetensors").is_file():
        pytest.skip("the published spectrograms are not here; set MAEMM_SHARED")
    return load_file(SHARED / "fbank.safetensors")


def near(found, expected, logmel):
    """Equal to 1e-4, and in bands far below the loudest of their frame to the rounding of the FFT, which differs from
    one processor to the other: an error of eps times the loudest amplitude. Kaldi's own functions differ so too."""
    below = logmel.amax(-1, keepdim=True) - logmel
    allowed = 1e-4 + 2 * torch.finfo(torch.float32).eps * (below / 2).exp()
    gap = (found - expected).abs()
    assert (gap <= allowed).all() and (gap <= 1e-4).float().mean() > 0.98


@pytest.mark.parametrize("length", ["0.3s", "1.0s", "2.5s"])
def test_published_filter_banks(golden, length):
    wave, expected = golden[f"wave_{length}"].reshape(1, -1), golden[f"fbank_{length}"]
    near(FilterBank()(wave - wave.mean())[0], expected, expected)


@pytest.mark.parametrize("length", ["0.3s", "1.0s", "2.5s"])
@pytest.mark.parametrize("name", SETS)
def test_published_spectrograms(golden, name, length):
    wave, key = golden[f"wave_{length}"].reshape(-1), f"audiomae_{name}_{length}"
    if key not in golden:
        pytest.skip("no such case")
    audio = Audio(size=[SETS[name], 128], constants=name, pad="seen", crop="head")
    found = audio.preprocess({"wave": wave[None], "samples": [len(wave)]}, None)
    assert found.valid is None
    near(found.x[0], golden[key], audio.denormalize_input(golden[key]))


def test_published_cavmae_spectrogram(golden):
    wave = golden["wave_2.5s"].reshape(-1)
    audio = Audio(size=[1024, 128], constants="cavmae", pad="seen")
    found = audio.preprocess({"wave": wave[None], "samples": [len(wave)]}, None).x[0]
    near(found, golden["cavmae_2.5s"], audio.denormalize_input(golden["cavmae_2.5s"]))


def test_padding_is_not_silence():
    audio = Audio(size=[1024, 128], pad="seen")
    x = audio.preprocess({"wave": waves(1, 16000), "samples": [16000]}, None).x
    assert (x[0, 98:] - 4.2677393 / (2 * 4.5689974)).abs().max() < 1e-6
