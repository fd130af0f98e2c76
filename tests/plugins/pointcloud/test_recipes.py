"""Schedule and weight decay of the published recipes; tests/test_recipes.py has what holds for every recipe."""

import pytest
import torch

import maemm
from maemm import config
from maemm.model.build import build_model
from maemm.train.optim import parameter_groups
from maemm.train.schedules import learning_rate

PUBLISHED = {"pointcloud/point_mae": (29_006_432, 1e-3), "pointcloud/pcp_mae": (29_498_848, 5e-4)}


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
    drawn = model.plan({"pointcloud": torch.randn(2, 128, 3)}, maemm.Rng((0,), range(2), 2))["pointcloud"].plan
    assert drawn.visible.shape == (2, 26) and drawn.predict.shape == (2, 38)
