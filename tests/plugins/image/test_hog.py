"""HOG against an independent derivation in NumPy, against reference tensors where they are at hand, and in models."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import maemm
from maemm import config
from maemm.contract import MaemmError, Rng
from maemm_plugins.image.hog import HOG, gaussian

SHARED = (
    Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[3] / "shared"))
    / "golden/variants/hog_target.safetensors"
)


def by_hand(picture: np.ndarray, patch: int, cell: int, bins: int, window: int) -> np.ndarray:
    """(C, H, W) -> (N, C * bins * cells): one pixel after another."""
    channels, height, width = picture.shape
    sums = np.zeros((channels, bins, height // cell, width // cell))
    offsets = (np.arange(max(window, 1)) - (window - 1) / 2) / max(window / 2, 0.5)
    weights = np.exp(-(offsets**2) / 2)
    square = np.outer(weights, weights)
    square /= square.sum()
    for c, channel in enumerate(np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="reflect")):
        for i in range(height):
            for j in range(width):
                three = channel[i : i + 3, j : j + 3]
                across = three[:, 0] @ (1, 2, 1) - three[:, 2] @ (1, 2, 1)
                down = (1, 2, 1) @ three[0] - (1, 2, 1) @ three[2]
                k = int(np.floor(np.arctan2(across, down) / np.pi * bins)) % bins
                weight = square[i % window, j % window] if window else 1.0
                sums[c, k, i // cell, j // cell] += np.hypot(across, down) * weight
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    cells = patch // cell
    tokens = sums.reshape(channels, bins, height // patch, cells, width // patch, cells)
    return tokens.transpose(2, 4, 0, 1, 3, 5).reshape(height // patch * (width // patch), -1)


@pytest.mark.parametrize(
    ("sides", "patch", "cell", "bins", "window"),
    [
        ((16, 24), 8, 4, 9, 16),
        ((16, 16), 8, 8, 7, 0),
        ((20, 12), 4, 2, 5, 6),
    ],  # odd: on the border gradients lie on the edges of even bins
)
def test_it_is_the_histogram_of_gradients(sides, patch, cell, bins, window):
    # Odd numbers of bins: gradients of the border lie on the edge between two even ones.
    picture = np.random.default_rng(0).normal(size=(3, *sides))
    target = HOG(["image"], 8, cell=cell, bins=bins, window=window).double()
    received = target.of_tokens(torch.from_numpy(picture)[None], (patch, patch))[0]
    expected = torch.from_numpy(by_hand(picture, patch, cell, bins, window))
    torch.testing.assert_close(received.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not SHARED.is_file(), reason="the reference tensors are not here")
def test_it_is_the_published_one():
    from safetensors.torch import load_file

    golden = load_file(SHARED)
    assert torch.equal(gaussian(16), golden["gaussian_kernel"])
    for picture, patch, window, key in (
        ("image_224", 16, 16, "hog_224"),
        ("image_112", 8, 16, "hog_112"),
        ("image_112", 8, 0, "hog_112_no_window"),
    ):
        received = HOG(["image"], 8, window=window).of_tokens(golden[picture].float(), (patch, patch))
        torch.testing.assert_close(received, golden[key], rtol=0, atol=1e-5)


def model_of(modalities, **overrides):
    base = {
        "modalities": modalities,
        "encoder": {"type": "vit", "dim": 24, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 24, "depth": 1, "heads": 2},
    }
    torch.manual_seed(0)
    return maemm.build(config.load(base, overrides))


def test_a_model_predicts_it_for_any_grid_and_for_frames_of_clips():
    image = {"size": [32, 48], "patch": 8, "target": {"type": "hog", "cell": 4, "bins": 6}}
    out = model_of({"image": image})(torch.randn(2, 3, 32, 48), rng=Rng((0, 0), range(2), 2))
    assert out.pred["image"].shape == out.target["image"].shape == (2, 18, 3 * 6 * 4)
    assert out.target["image"].abs().max() <= 1

    video = {"size": [4, 16, 16], "patch": [2, 8, 8], "target": {"type": "hog", "cell": 8}}
    model = model_of({"video": video})
    clip = torch.randn(1, 3, 4, 16, 16)
    whole = model.targets["video"].of_tokens(clip, (2, 8, 8))
    assert whole.shape == (1, 2 * 2 * 2, 3 * 9 * 2)
    frames = [model.targets["video"].of_tokens(clip[:, :, t], (8, 8)).unflatten(-1, (3, 9)) for t in range(4)]
    expected = torch.stack([torch.cat(frames[:4:2], 1), torch.cat(frames[1::2], 1)], -1).flatten(2)
    torch.testing.assert_close(whole, expected)
    assert model(clip, rng=Rng((0, 0), range(1), 1)).total.isfinite()


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ({"image": {"size": 32, "patch": 8, "target": {"type": "hog", "cell": 3}}}, "not a multiple of cells of 3"),
        ({"pointcloud": {"target": "hog"}}, "HOG is of pictures and clips"),
    ],
)
def test_what_has_no_cells_is_refused(modality, message):
    with pytest.raises(MaemmError, match=message):
        model_of(modality)
