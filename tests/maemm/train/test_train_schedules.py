import json
import math
from pathlib import Path

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train.schedules import learning_rate, peak_lr

TABLE = json.loads((Path(__file__).parents[2] / "golden/mae/lr_table.json").read_text())
STEPS_PER_EPOCH = 312  # of ImageNet at 4096; the table's fractions are whole steps of it


@pytest.mark.parametrize("name", TABLE)
def test_published_table(name):
    entry = TABLE[name]
    train = {"base_lr": entry["blr"], "batch": entry["batch"], "min_lr": entry["min_lr"]}
    train["warmup_epochs"] = entry["warmup_epochs"]
    lr = learning_rate(train, STEPS_PER_EPOCH, entry["epochs"] * STEPS_PER_EPOCH)
    assert peak_lr(train) == pytest.approx(entry["lr_max"], rel=1e-15)
    assert len(entry["rows"]) >= 10
    for epoch, expected in entry["rows"]:
        step = round(epoch * STEPS_PER_EPOCH)
        assert step / STEPS_PER_EPOCH == pytest.approx(epoch, abs=1e-12)
        assert lr(step) == pytest.approx(expected, rel=1e-9, abs=1e-18), epoch


def rates(steps=8, per_epoch=2, **train):
    lr = learning_rate({"lr": 1.0, "warmup_epochs": 0, **train}, per_epoch, steps)
    return [lr(step) for step in range(steps)]


def test_lr_is_taken_as_it_is_and_base_lr_is_scaled():
    assert peak_lr({"lr": 0.5, "base_lr": 0.1, "batch": 512}) == 0.5
    assert peak_lr({"lr": None, "base_lr": 0.1, "batch": 512}) == 0.2
    with pytest.raises(MaemmError, match="train.base_lr"):
        peak_lr({"batch": 512})


def test_constant_and_step():
    assert rates(schedule="constant", warmup_epochs=1) == [0, 0.5, 1, 1, 1, 1, 1, 1]
    assert rates(schedule={"type": "step", "milestones": [1, 3], "gamma": 0.5}) == [
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
    ]


def test_per_epoch():
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert rates(lr_per="epoch") == pytest.approx(expected)


def test_published_schedule_of_point_mae():
    """timm's cosine without warmup prefix, stepped behind each epoch with that epoch's number."""
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-6, warmup_lr_init=1e-6, warmup_t=10)
    train = {"lr": 1e-3, "warmup_epochs": 10, "warmup_lr": 1e-6, "min_lr": 1e-6, "lr_per": "epoch_before"}
    ours = learning_rate({**train, "schedule": {"type": "cosine", "over": 300, "from_start": True}}, 2, 602)
    for epoch in range(301):
        assert ours(2 * epoch) == ours(2 * epoch + 1) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        theirs.step(epoch)
    assert ours(2) == 1e-6 and ours(4) == pytest.approx(1.009e-4) and ours(22) == pytest.approx(9.97e-4, rel=1e-3)


def test_a_cosine_over_fewer_epochs_stays_at_its_end():
    found = rates(schedule={"type": "cosine", "over": 2, "min_lr": 0.25})
    assert found[4:] == [0.25] * 4 and found[0] == 1 and found[1] > found[2] > found[3]


def test_warmup_begins_where_it_is_told():
    assert rates(schedule="constant", warmup_epochs=2, warmup_lr=0.2)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_mistakes():
    with pytest.raises(MaemmError, match="unknown schedule 'cosin'"):
        rates(schedule="cosin")
    with pytest.raises(MaemmError, match="milestones"):
        rates(schedule="step")
