"""Every shipped video recipe builds, has the published number of parameters, and takes two steps when shrunk."""

from pathlib import Path

import pytest
import torch

import maemm
from maemm import config
from maemm.build import build_model

HOME = Path(__file__).parents[3] / "configs" / "video"
NAMES = sorted(f"video/{p.stem}" for p in HOME.glob("*.yaml"))
PUBLISHED = {
    "video/videomae_small": 24_029_376,
    "video/videomae_base": 94_210_944,
    "video/videomae_base_ucf101": 94_210_944,
    "video/videomae_v2_base": 94_210_944,
    "video/videomae_large": 342_996_992,
}


@pytest.mark.parametrize("name", NAMES)
def test_builds_on_meta(name):
    with torch.device("meta"):
        model = maemm.build(name)
    count = sum(p.numel() for p in model.parameters())
    keys = sum(p.numel() // 3 for key, p in model.named_parameters() if key.endswith("qkv.bias"))
    # VideoMAE's keys have no bias; here they have one that softmax does not see.
    assert count - (keys if name in PUBLISHED else 0) == PUBLISHED.get(name, count) and count > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_when_shrunk(name):
    shrunk = {f"{part}.{key}": n for part in ("encoder", "decoder") for key, n in (("dim", 16), ("heads", 2))}
    time, height, width = config.load(name)["modalities"]["video"]["patch"]
    size = {"modalities.video.size": [8 * time, 4 * height, 4 * width]}
    recipe = config.load(name, {**shrunk, **size, "encoder.depth": 1, "decoder.depth": 1})
    torch.manual_seed(0)
    model = build_model(recipe)
    batch = {n: m.example(2, maemm.Draw((0, "example"))) for n, m in model.modalities.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        total = model(batch, draw=maemm.Draw((0, 0), range(2), 2)).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_what_it_reproduces_and_the_command(name):
    text = (HOME / f"{name.partition('/')[2]}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"maemm pretrain {name}" in head or "maemm demo" in head


def test_dual_masking_decodes_what_was_published():
    """944 tokens reach the decoder of the v2 recipe (160 visible and 784 decoded), and 704 count in the loss."""
    with torch.device("meta"):
        masking = maemm.build("video/videomae_v2_base").masking
    tokens = maemm.contract.Tokens(torch.zeros(3, 1568, 1), torch.zeros(1, 1568, 3), (8, 14, 14))
    plan = masking({"video": tokens}, maemm.Draw((0, 0), range(3), 3))["video"]
    assert plan.visible.shape == (3, 160) and plan.predict.shape == (3, 784)
    assert plan.counted.sum(1).tolist() == [704.0] * 3
