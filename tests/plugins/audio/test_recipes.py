"""Every shipped recipe builds, has the published number of parameters, and takes two steps when shrunk."""

from pathlib import Path

import pytest
import torch

import maemm
from maemm import config
from maemm.build import build_model

FOLDER = Path(__file__).parents[3] / "configs" / "audio"
NAMES = sorted(f"audio/{p.stem}" for p in FOLDER.glob("*.yaml"))
TRAINED = {"audio/audiomae_base": 136_336_128, "audio/audiomae_esc50": 136_336_128}


@pytest.mark.parametrize("name", NAMES)
def test_builds_on_meta(name):
    with torch.device("meta"):
        model = maemm.build(name)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == TRAINED.get(name, count) and count > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_when_shrunk(name):
    recipe = config.load(name, {"encoder.dim": 16, "encoder.depth": 1, "encoder.heads": 2,
                                "decoder.dim": 16, "decoder.depth": 2, "decoder.heads": 2})  # fmt: skip
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


def test_the_published_numbers():
    recipe = config.load("audio/audiomae_base", {})
    train, audio = recipe["train"], recipe["modalities"]["audio"]
    assert train["base_lr"] * train["batch"] / 256 == pytest.approx(4e-4)
    assert (train["epochs"], train["warmup_epochs"], train["optimizer"]["weight_decay"]) == (33, 3, 1e-4)
    with torch.device("meta"):
        model = maemm.build("audio/audiomae_base")
    assert model.decoder.window == (4, 4) and [block.shift for block in model.decoder.blocks[:2]] == [(0, 0), (2, 0)]
    tokens = torch.empty(1, 512, 1)
    from maemm.contract import Tokens
    from maemm.masking.random import Random

    plan = Random(ratio=audio["masking"]["ratio"]).plan("audio", Tokens(tokens, tokens), maemm.Draw((0,)))
    assert plan.visible.shape[1] == 102


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_what_it_reproduces_and_the_command(name):
    text = (FOLDER.parent / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"maemm pretrain {name}" in head or "maemm demo" in head
