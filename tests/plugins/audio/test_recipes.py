"""The published numbers of AudioMAE's recipe; tests/test_recipes.py has what holds for every recipe."""

import pytest
import torch

import maemm
from maemm import config


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
    from maemm.model.masking.random import Random

    plan = Random(ratio=audio["masking"]["ratio"]).plan("audio", Tokens(tokens, tokens), maemm.Rng((0,)))
    assert plan.visible.shape[1] == 102
