"""Every shipped recipe of every plugin opens with its command, builds, and takes two steps when shrunk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import maemm
from maemm import config
from maemm.model.build import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml"))
#: trained parameters that publications state
TRAINED = {
    "image/mae_base": 111_655_680,
    "image/mae_large": 329_239_296,
    "image/mae_huge": 656_613_964,
    "image/ijepa_huge14": 652_713_984,  # published: 653,139,968 values, of which 425,984 are tables of positions
    "audio/audiomae_base": 136_336_128,
    "audio/audiomae_esc50": 136_336_128,
}
SMALL = {"dim": 48, "depth": 1, "heads": 2}


@pytest.mark.parametrize("name", NAMES)
def test_builds_on_meta(name):
    with torch.device("meta"):
        model = maemm.build(name)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == TRAINED.get(name, count) and count > 10_000


def shrunk(name):
    recipe = config.load(name)
    changes = {
        f"{part}.{key}": value
        for part in ("encoder", "decoder")
        for key, value in SMALL.items()
        if key in (recipe[part] or {})
    }
    return config.load(name, changes)


def example(modality):
    """Two samples, with ids of tokens where a target reads them from files."""
    x = modality.example(2, maemm.Rng((0, "example")))
    count = modality.tokenize(x).count if modality.side_inputs else 0
    return replace(x, info={**x.info, **{name: torch.arange(2 * count).view(2, -1) for name in modality.side_inputs}})


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_when_shrunk(name):
    torch.manual_seed(0)
    model = build_model(shrunk(name))
    batch = {n: example(m) for n, m in model.modalities.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        total = model(batch, rng=maemm.Rng((0, 0), range(2), 2)).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_what_it_reproduces_and_the_command(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"maemm pretrain {name}" in head or "maemm demo" in head
