"""Clips as pictures that move."""

import base64
import io

import pytest
import torch
from PIL import Image

from maemm.ui.pictures import save_pictures
from maemm_plugins.video import show
from maemm_plugins.video.modality import Video


def frames(piece):
    data = base64.b64decode(piece.partition("data:image/webp;base64,")[2].partition('"')[0])
    picture = Image.open(io.BytesIO(data))
    found = []
    for number in range(picture.n_frames):
        picture.seek(number)
        found.append(torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
                     .reshape(picture.height, picture.width, 3).float() / 255)  # fmt: skip
    return torch.stack(found), len(data)


def test_all_columns_and_samples_move_together():
    """Two samples below each other, two columns: a ramp in time, and the same with its first half hidden."""
    ramp = torch.linspace(0, 1, 8)[None, None, :, None, None].expand(2, 3, 8, 16, 24).clone()
    hidden = ramp.clone()
    hidden[:, :, :4] = torch.nan
    piece = show.animation({"input": ramp, "seen & guessed": hidden})
    assert "seen &amp; guessed" in piece and piece.startswith("<div") and "http" not in piece
    moving, _ = frames(piece)
    assert len(moving) == 8 and moving.shape[1] == 33 * moving.shape[2] // 49
    left, right = moving[:, :, : moving.shape[2] * 2 // 5], moving[:, :, moving.shape[2] * 3 // 5 :]
    edge = moving.shape[1] * 2 // 5
    assert torch.allclose(left[:, :edge].mean((1, 2, 3)), torch.linspace(0, 1, 8), atol=0.05)
    assert torch.allclose(right[:, :edge].mean((1, 2, 3))[:4], torch.full((4,), 0.6), atol=0.05)
    assert torch.allclose(right[:, -edge:].mean((1, 2, 3))[4:], torch.linspace(0, 1, 8)[4:], atol=0.05)


def test_large_and_noisy_clips_stay_small():
    noise = torch.rand(2, 3, 8, 160, 160, generator=torch.Generator().manual_seed(0))
    _, size = frames(show.animation({name: noise for name in "abc"}))
    assert size <= show.LARGEST


def test_still_pictures_do_not_move():
    assert show.animation({"input": torch.zeros(2, 3, 1, 8, 8)}) is None and show.animation({}) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_the_report_gets_the_piece(tmp_path, channels):
    from maemm.config import load
    from maemm.contract.rng import Rng
    from maemm.model.build import build_model

    shrunk = {"modalities.video.channels": channels, "modalities.video.mean": [0.5] * channels,
              "modalities.video.std": [0.25] * channels}  # fmt: skip
    model = build_model(load("video/videomae_tiny_cpu", shrunk))
    modality = model.modalities["video"]
    assert isinstance(modality, Video)
    save_pictures(model, {"video": modality.example(2, Rng((0, "e")))}, tmp_path / "a.png", interactive=True)
    moving, size = frames((tmp_path / "a.html").read_text())
    assert len(moving) == 8 and moving.max() > 0.9 and size < 500_000


def test_reconstruct_writes_it_beside_the_strip(tmp_path, videos):
    from maemm import reconstruct
    from maemm.config import load
    from maemm.model.build import build_model

    for number in range(2):
        (tmp_path / f"{number}.mp4").write_bytes(videos["plain"].read_bytes())
    model = build_model(load("video/videomae_tiny_cpu", {"data.source": "video"}))
    made = reconstruct(model, tmp_path, tmp_path / "out" / "a.png", count=2)
    assert made.view == tmp_path / "out" / "a.view.html" and str(made.view) in str(made)
    moving, _ = frames(made.view.read_text())
    assert len(moving) == 8 and made.path.stat().st_size > 1000
