"""Every shipped recipe builds, and takes two steps when shrunk; the published ones have their schedule and decay."""

from pathlib import Path

import pytest
import torch

import maemm
from maemm import config
from maemm.build import build_model
from maemm.train.optim import parameter_groups
from maemm.train.schedules import learning_rate

FOLDER = Path(__file__).parents[3] / "configs/pointcloud"
NAMES = sorted(f"pointcloud/{path.stem}" for path in FOLDER.glob("*.yaml"))
PUBLISHED = {"pointcloud/point_mae": (29_006_432, 1e-3), "pointcloud/pcp_mae": (29_498_848, 5e-4)}


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_when_shrunk(name):
    recipe = config.load(name, {"encoder.dim": 24, "encoder.depth": 1, "encoder.heads": 2, "decoder.dim": 24,
                                "decoder.depth": 1, "decoder.heads": 2, "modalities.pointcloud.width": 32})  # fmt: skip
    torch.manual_seed(0)
    model = build_model(recipe)
    batch = {"pointcloud": model.modalities["pointcloud"].example(2, maemm.Draw((0, "example")))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        total = model(batch, draw=maemm.Draw((0, 0), range(2), 2)).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    recipe = config.load(name)
    with torch.device("meta"):
        model = build_model(recipe)
    count, peak = PUBLISHED[name]
    assert sum(one.numel() for one in model.parameters()) == count
    train, per_epoch = recipe["train"], 327  # 41,952 clouds in batches of 128, the rest of an epoch left out
    assert train["epochs"] == 301 and train["batch"] == 128
    lr = learning_rate(train, per_epoch, 301 * per_epoch)
    rates = [lr(epoch * per_epoch) for epoch in range(301)]
    assert rates[:2] == [1e-6, 1e-6] and max(rates) == rates[11] == pytest.approx(0.99726 * peak, rel=1e-3)
    assert rates[2] == pytest.approx(1e-6 + (peak - 1e-6) / 10) and rates[300] < 1.1e-6
    groups = parameter_groups(model, 0.05, train["no_decay"])
    plain = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    matrices = {name for name, one in model.named_parameters() if one.ndim > 1} & plain
    hidden = {"encoder.hidden_position"} if "pcp" in name else set()
    assert matrices == {"decoder.mask_token"} | hidden
    drawn = model.plan({"pointcloud": torch.randn(2, 128, 3)}, maemm.Draw((0,), range(2), 2))["pointcloud"].plan
    assert drawn.visible.shape == (2, 26) and drawn.predict.shape == (2, 38)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_what_it_reproduces_and_the_command(name):
    lines = (FOLDER.parent / f"{name}.yaml").read_text().splitlines()
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert f"maemm pretrain {name}" in head or "maemm demo" in head
