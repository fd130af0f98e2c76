"""``embed --latents`` and ``reconstruct --latents``: from samples to latent tokens, to a file, and back."""

import json
import math

import numpy as np
import pytest
import torch

import maemm
from maemm import MaemmError
from maemm import __main__ as cli
from maemm.model.build import build_model
from maemm.tasks.reconstruct.round_trip import psnr_of
from maemm_plugins.image.modality import Image

SIZES = {"dim": 48, "depth": 1, "heads": 4}
MODALITIES = {
    "image": {"type": "image", "size": 16, "patch": 8, "normalize": "none", "mean": [0.5] * 3, "std": [0.5] * 3},
    "signal": {"type": "signal", "size": 32, "patch": 8, "channels": 2, "normalize": "none", "scale": "none"},
}


def weights_of(folder, *names, **encoder):
    torch.manual_seed(0)
    recipe = {
        "modalities": {name: MODALITIES[name] for name in names},
        "encoder": {"type": "latent", "latents": 3, "latent_dim": 5, **SIZES, **encoder},
        "decoder": {"type": "latent", **SIZES},
    }
    path = folder / "weights.safetensors"
    maemm.save(build_model(recipe), path)
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(5):
        np.save(folder / f"{number}.npy", generator.integers(0, 256, (16, 16, 3), np.uint8))
    return folder


def out_of(capsys, *words):
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_from_pictures_to_a_file_and_back(tmp_path, pictures, ending, capsys):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    weights, file, picture = weights_of(tmp_path, "image"), tmp_path / f"latents.{ending}", tmp_path / "decoded.png"
    text = out_of(capsys, "embed", weights, pictures, "--latents", "-o", file, "data.workers=0", "--batch", 2)
    assert text.startswith("5 embeddings (image 3 x 5)")
    text = out_of(capsys, "reconstruct", weights, file, "--latents", "-o", picture, "count=4")
    assert text.startswith(f"4 samples: decoded -> {picture}") and picture.stat().st_size > 1000


def test_stored_latents_are_those_of_the_model(tmp_path, pictures):
    weights = weights_of(tmp_path, "image")
    maemm.embed(weights, pictures, tmp_path / "latents.npz", latents=True, workers=0, batch=2)
    stored = np.load(tmp_path / "latents.npz")
    model = maemm.load(weights)
    pixels = np.stack([np.load(file) for file in sorted(pictures.iterdir())])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = model.embed(x, latents=True)["image"]
    assert np.allclose(stored["image"], latents.numpy(), atol=1e-5) and json.loads(str(stored["about"]))["latents"]
    assert model.decode(torch.from_numpy(stored["image"]))["image"].shape == x.shape


def test_originals_beside_what_is_decoded(tmp_path, pictures, capsys):
    weights, picture = weights_of(tmp_path, "image"), tmp_path / "round.png"
    text = out_of(capsys, "reconstruct", weights, pictures, "--latents", "-o", picture, "count=3")
    assert text.startswith("3 samples: input | decoded, PSNR of image ") and picture.stat().st_size > 1000
    record = json.loads(
        out_of(capsys, "--json", "reconstruct", weights, pictures, "--latents", "-o", picture, "count=3")
    )
    assert len(record["psnr"]["image"]) == 3 and all(0 < value < 20 for value in record["psnr"]["image"])


def test_signals_too(tmp_path):
    rows = [
        np.sin(np.arange(32) * (0.1 + 0.05 * number) + np.arange(2)[:, None]).astype("float32") for number in range(4)
    ]
    signals = np.stack(rows)
    weights = weights_of(tmp_path, "signal")
    made = maemm.embed(weights, signals, tmp_path / "signals.npz", latents=True)
    assert made.shapes == {"signal": (3, 5)}
    done = maemm.reconstruct(weights, tmp_path / "signals.npz", tmp_path / "signals.png", latents=True, count=2)
    assert done.shown == ["array#0", "array#2"] and done.path.stat().st_size > 1000
    done = maemm.reconstruct(weights, signals, tmp_path / "round.png", latents=True)
    assert len(done.psnr["signal"]) == 4 and all(math.isfinite(value) for value in done.psnr["signal"])


def test_the_ratio_of_signal_and_noise():
    modality = Image(size=8, patch=4, mean=[0.5] * 3, std=[0.5] * 3)
    true = torch.zeros(2, 3, 8, 8)
    decoded = true + 0.2  # 0.1 of a range of 1, as pixels
    assert psnr_of(modality, decoded, true) == pytest.approx([20.0, 20.0], abs=1e-4)
    decoded[1] = 7.0  # cut to white
    assert psnr_of(modality, decoded, true)[1] == pytest.approx(20 * math.log10(2), abs=1e-4)
    true[0, :, 4:] = torch.nan  # of what is there
    assert psnr_of(modality, decoded, true)[0] == pytest.approx(20.0, abs=1e-4)


def test_what_is_no_file_of_latents_is_refused(tmp_path, pictures, capsys):
    weights = weights_of(tmp_path, "image")
    maemm.embed(weights, pictures, tmp_path / "features.npz", workers=0)
    maemm.embed(weights, pictures, tmp_path / "latents.npz", latents=True, workers=0)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "latents.npz").read_bytes()[:300])
    other = tmp_path / "other"
    other.mkdir()
    fewer, plain = weights_of(other, "image", latents=2), tmp_path / "plain"
    plain.mkdir()
    torch.manual_seed(0)
    modality = {"image": MODALITIES["image"]}
    recipe = {"modalities": modality, "encoder": {"type": "vit", **SIZES}, "decoder": {"type": "full", **SIZES}}
    maemm.save(build_model(recipe), plain / "plain.safetensors")
    for model, data, message in (
        (weights, tmp_path / "features.npz", "holds features, and no latent tokens"),
        (weights, tmp_path / "broken.npz", "cannot be read"),
        (fewer, tmp_path / "latents.npz", r"latent tokens are \(B, 2, 5\) in this model"),
        (plain / "plain.safetensors", pictures, "ViT has no latent tokens to decode"),
    ):
        with pytest.raises(MaemmError, match=message):
            maemm.reconstruct(model, data, tmp_path / "x.png", latents=True)
    with pytest.raises(MaemmError, match="ViT has no latent tokens"):
        maemm.embed(plain / "plain.safetensors", pictures, tmp_path / "x.npz", latents=True, workers=0)
    assert not (tmp_path / "x.npz").exists() and not (tmp_path / "x.png").exists()
    assert (
        cli.main(["embed", weights, str(pictures), "--latents", "--pool", "mean", "-o", str(tmp_path / "x.npz")]) != 0
    )
    assert "have no pool" in capsys.readouterr().err


def test_latents_of_a_graph_are_those_of_the_model(tmp_path):
    weights = weights_of(tmp_path, "image", rotary="mixed")
    exported = maemm.export(weights, tmp_path / "latents.pt2", to="torch", output="latents")
    assert max(exported.differences.values()) < 1e-5
    graph = torch.export.load(tmp_path / "latents.pt2").module()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], maemm.load(weights).embed(x, latents=True)["image"], rtol=0, atol=1e-5)
    plain = {"type": "vit", **SIZES}
    model = build_model({"modalities": {"image": MODALITIES["image"]}, "encoder": plain, "decoder": None})
    with pytest.raises(MaemmError, match="has no latent tokens; export features or tokens"):
        maemm.export(model, tmp_path / "x.pt2", to="torch", output="latents")


class Pairs(torch.utils.data.Dataset):
    """Pictures with signals."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        drawn = np.random.default_rng(index)
        return {
            "image": drawn.integers(0, 256, (16, 16, 3), np.uint8),
            "signal": drawn.standard_normal((2, 32)).astype("float32"),
        }


def test_modalities_with_one_file_of_latents(tmp_path):
    weights = weights_of(tmp_path, "image", "signal")
    made = maemm.embed(weights, Pairs(), tmp_path / "joint.npz", latents=True)
    assert made.shapes == {"joint": (3, 5)}
    done = maemm.reconstruct(weights, tmp_path / "joint.npz", tmp_path / "joint.png", latents=True, count=2)
    assert len(done.shown) == 2
    done = maemm.reconstruct(weights, Pairs(), tmp_path / "round.png", latents=True)
    assert {name: len(values) for name, values in done.psnr.items()} == {"image": 4, "signal": 4}


def test_sounds_of_any_length_need_themselves(tmp_path):
    audio = {"type": "audio", "normalize": "none", "size": [64, 64], "patch": [16, 16]}
    torch.manual_seed(0)
    sides = {"type": "latent", **SIZES}
    model = build_model({"modalities": {"audio": audio}, "encoder": {**sides, "latents": 3}, "decoder": sides}).eval()
    model.modalities["audio"].token_shapes = lambda: None
    x = {"audio": model.modalities["audio"].example(2, maemm.Rng((0, "x"), range(2), 2))}
    inputs, latents = model.encode(x)
    with pytest.raises(MaemmError, match="have no usual size, .*; give the samples, or the inputs"):
        model.decode(latents)
    assert model.decode(latents, inputs)["audio"].shape == x["audio"].x.shape
