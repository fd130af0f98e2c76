"""What a model that has diverged predicts reaches no encoder: pictures, animations, players and views."""

import math

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from PIL import Image

import maemm
from maemm import MaemmError, Rng
from maemm.contract import Tokens
from maemm.data.encodable import encodable
from maemm.ui.pictures import DIVERGED, make_rows, put_together, save_pictures
from maemm_plugins.audio.frontend import FilterBank
from maemm_plugins.audio.samples import write_wav
from maemm_plugins.audio.sound import encoded, player, to_wave

SMALL = {
    "encoder": {"type": "vit", "dim": 12, "depth": 1, "heads": 2, "prefix": 0},
    "decoder": {"type": "full", "dim": 12, "depth": 1, "heads": 2, "prefix": "none"},
}
MODALITIES = {
    "image": {"size": 16, "patch": 8},
    "audio": {"size": [32, 32], "patch": 16},
    "video": {"size": [4, 16, 16], "patch": [2, 8, 8]},
    "signal": {"size": 64, "patch": 8, "channels": 2},
    "pointcloud": {"groups": 8, "group_size": 6, "points": 48, "width": 16},
}
BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38]


def model_of(name):
    torch.manual_seed(0)
    return maemm.build({**SMALL, "modalities": {name: MODALITIES[name]}})


def batch_of(model, rows=2):
    return {
        name: modality.example(rows, Rng(("test", 0), range(rows), rows)) for name, modality in model.modalities.items()
    }


# ------------------------------------------------------------------------------------------------ one function
def test_values_are_made_fit_for_an_encoder():
    x = torch.tensor([0.5, *BAD])
    assert encodable(x, -1, 1).tolist() == [0.5, 0, 1, -1, 1, -1]
    kept = encodable(x, -1, 1, math.nan)
    assert kept[1].isnan() and kept[[0, 2, 3]].tolist() == [0.5, 1, -1]


# ------------------------------------------------------------------------------------------------ sound
@pytest.mark.parametrize("bad", BAD)
def test_an_mp3_of_anything(bad):
    """LAME aborts the process for NaN: "calc_energy: Assertion `el >= 0' failed"."""
    wave = np.full(16000, 0.1, np.float32)
    wave[3000:9000] = bad
    kind, data = encoded(wave, 16000)
    assert kind == "mpeg" and len(data) > 500
    kind, _ = encoded(np.full(16000, bad, np.float32), 16000)
    assert kind == "mpeg"


@pytest.mark.parametrize("bad", [*BAD, 1e5, 200.0])
def test_a_spectrogram_of_anything_becomes_sound(bad):
    bank = FilterBank(16000, 32)
    spectrogram = torch.zeros(1, 40, 32)
    spectrogram[:, 10:20] = bad
    assert to_wave(spectrogram, bank).isfinite().all()
    assert "audio/mpeg" in player({"input": torch.zeros(1, 40, 32), "reconstruction": spectrogram}, bank)


@pytest.mark.parametrize("bad", BAD)
def test_a_wav_of_anything(tmp_path, bad):
    write_wav(tmp_path / "a.wav", np.array([0.5, bad, -0.5], np.float32), 8000)
    x = soundfile.read(tmp_path / "a.wav")[0]
    assert np.allclose(x[[0, 2]], [0.5, -0.5], atol=1e-4) and abs(x[1]) in (0, pytest.approx(1, abs=1e-4))


# ------------------------------------------------------------------------------------------------ every modality
@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("factor", [1e20, math.inf])
def test_pictures_of_a_model_that_has_diverged(tmp_path, name, factor):
    """Weights so large that predictions overflow: all is written, without a warning."""
    model = model_of(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "decoder" in key and parameter.ndim > 1:
                parameter.mul_(factor if math.isfinite(factor) else 1e30)
            if not math.isfinite(factor) and "decoder" in key and parameter.ndim == 1:
                parameter[0] = factor
    path = save_pictures(model, batch_of(model), tmp_path / "a.png", count=2, interactive=True)
    with Image.open(path) as image:
        image.load()
        assert min(image.size) > 20


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("bad", [math.nan, -math.inf, 3e38])
def test_any_signal_is_drawn(name, bad):
    model = model_of(name)
    modality = model.modalities[name]
    tokens = modality.tokenize(batch_of(model)[name])
    values = tokens.values.clone().float()
    values[:, :2] = bad
    signal = put_together(modality, tokens, (values, tokens.all_indices(), tokens.valid))
    assert not signal.isinf().any() and signal.nan_to_num().abs().max() < 1e6
    figure = Figure(figsize=(2, 2), dpi=60)
    modality.plot(figure.add_subplot(), signal[0])
    figure.canvas.draw()


# ------------------------------------------------------------------------------------------------ reconstruct
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_reconstruct_says_that_weights_are_not_finite(tmp_path, bad):
    for number in range(3):
        Image.new("RGB", (16, 16), (number * 60, 90, 30)).save(tmp_path / f"{number}.png")
    model = model_of("image")
    maemm.reconstruct(model, tmp_path, tmp_path / "good.png", count=2)
    with torch.no_grad():
        next(iter(model.encoder.parameters())).view(-1)[0] = bad
    with pytest.raises(MaemmError, match=r"weights are not finite numbers \(.*encoder") as caught:
        maemm.reconstruct(model, tmp_path, tmp_path / "bad.png", count=2)
    assert "\n" not in str(caught.value) and not (tmp_path / "bad.png").exists()


def test_reconstruct_of_finite_weights_that_predict_nothing(tmp_path):
    Image.new("RGB", (16, 16), (60, 90, 30)).save(tmp_path / "a.png")
    model = model_of("image")
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.fill_(3e38)
    rows = make_rows(model, batch_of(model))
    assert rows["image"].note == DIVERGED and not rows["image"].columns
    with pytest.raises(MaemmError, match="nothing that the model predicts is a finite number"):
        maemm.reconstruct(model, tmp_path, tmp_path / "bad.png", count=1)


# ------------------------------------------------------------------------------------------------ padding of sets
class Copies:
    """A modality of sets: the signal is coordinates beside values."""

    def untokenize(self, values, tokens, index=None):
        return torch.cat([tokens.coords, values], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padding_of_a_set_has_no_place(dtype):
    coords = torch.rand(2, 5, 2) + 1
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    coords = (coords * valid[..., None]).to(dtype)  # padded with zeros
    tokens = Tokens(torch.rand(2, 5, 1), coords, valid=valid)
    signal = put_together(Copies(), tokens, (tokens.values, tokens.all_indices(), valid))
    assert signal[1, 2:].isnan().all() and signal[valid].isfinite().all()
    assert (signal[..., :2].nan_to_num(9).abs().sum(-1) > 0).all()  # nothing lies at the origin
    hidden = put_together(Copies(), tokens, (tokens.values[:, :1], torch.zeros(2, 1, dtype=torch.long), None))
    assert hidden[0, 1:, :2].isfinite().all() and hidden[0, 1:, 2].isnan().all()  # what is hidden keeps its place
