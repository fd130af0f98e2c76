"""Every shipped recipe of every plugin opens with its command, builds, and takes two steps when shrunk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import maemm
from maemm import config
from maemm.model.build import build_model
from maemm.train.initialize import initialize_from

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml"))
#: trained parameters that publications state
TRAINED = {
    "image/mae_base": 111_655_680,
    "image/mae_large": 329_239_296,
    "image/mae_huge": 656_613_964,
    "image/ijepa_huge14": 652_713_984,  # published: 653,139,968 values, of which 425,984 are tables of positions
    "video/vjepa2_large": 303_885_312 + 22_084_480 - 5 * 384,  # five of the mask tokens are not trained
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


STAGED = [name for name in NAMES if config.load(name).get("stages")]


@pytest.mark.parametrize("name", STAGED)
def test_every_stage_builds_and_begins_with_one_before(name):
    """On shapes alone: each loads all of the encoder, and its data and length are its own."""
    stages, built = config.stages_of(config.load(name, training=True)), {}
    for stage, recipe in stages.items():
        with torch.device("meta"):
            built[recipe["out"]] = model = build_model(recipe)
            init = recipe.get("init")
            if not init:
                continue
            init = init if isinstance(init, dict) else {"weights": init}
            report = initialize_from(model, {**init, "weights": built[init["weights"]]})
        missing = [key for key in report.initial if key.startswith("encoder.")]
        assert report.loaded and not missing, stage
    assert len(stages) > 1


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
    """Two samples, with ids of tokens where a target reads them from files, and regions that fill the picture."""
    x = modality.example(2, maemm.Rng((0, "example")))
    count = modality.tokenize(x).count if modality.side_inputs else 0
    made = {}
    if "regions" in modality.side_inputs:
        made["regions"] = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(2, 4, *x.x.shape[2:])
    sides = {name: made.get(name, torch.arange(2 * count).view(2, -1)) for name in modality.side_inputs}
    return replace(x, info={**x.info, **sides})


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_when_shrunk(name):
    torch.manual_seed(0)
    recipe = shrunk(name)
    model = build_model(recipe)
    batch = {n: example(m) for n, m in model.modalities.items()}
    # The first layer norm of a mask token of zeros is a thousand times as steep as later.
    zeros = (recipe["decoder"] or {}).get("mask_init") == "zeros"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6 if zeros else 1e-4)
    losses = []
    for _ in range(2):
        sets = model.plan_sets(batch, maemm.Rng((0, 0), range(2), 2))
        total = sum(model(inputs).total for inputs in sets) / len(sets)
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
