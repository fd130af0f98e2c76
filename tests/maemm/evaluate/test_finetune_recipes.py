"""Recipes of what comes after pre-training: published numbers, a step when shrunk, weights that they begin with."""

from pathlib import Path

import pytest
import torch

from maemm import config
from maemm.config import packaged
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.train.distributed import DistContext
from maemm.train.initialize import initialize_from
from maemm.train.optim import parameter_groups
from maemm.train.schedules import learning_rate, peak_lr
from maemm.train.setup import make_train_state
from maemm.train.state import MicroBatches
from maemm.train.step import take_step

NAMES = sorted(name for name in packaged() if name.split("/")[1] in ("finetune", "probe"))
#: samples of a step, epochs, warmup, peak learning rate, its end, layer decay, drop path, weight decay
PUBLISHED = {
    "image/finetune/mae_base": (1024, 100, 5, 2e-3, 1e-6, 0.65, 0.1, 0.05),
    "image/finetune/mae_large": (1024, 50, 5, 4e-3, 1e-6, 0.75, 0.2, 0.05),
    "image/finetune/mae_huge": (1024, 50, 5, 4e-3, 1e-6, 0.75, 0.3, 0.05),
    "image/probe/mae_base": (16384, 90, 10, 6.4, 0.0, None, 0.0, 0.0),
    "image/probe/mae_large": (16384, 50, 10, 6.4, 0.0, None, 0.0, 0.0),
    "image/probe/mae_huge": (16384, 50, 10, 6.4, 0.0, None, 0.0, 0.0),
    "video/finetune/videomae_small_k400": (384, 150, 5, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.05),
    "video/finetune/videomae_base_k400": (384, 75, 5, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.05),
    "video/finetune/videomae_base_k400_800": (512, 100, 5, 2e-3, 2e-6, 0.75, 0.1, 0.05),
    "video/finetune/videomae_huge_k400": (512, 50, 5, 2e-3, 2e-5, 0.75, 0.2, 0.05),
    "video/finetune/videomae_large_k400": (128, 35, 5, 1e-3, 5e-7, 0.75, 0.1, 0.05),
    "video/finetune/videomae_small_ssv2": (384, 40, 5, 1.5e-3, 1.5e-6, 0.7, 0.1, 0.05),
    "video/finetune/videomae_base_ssv2": (384, 30, 5, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.05),
    "video/finetune/videomae_base_ssv2_800": (512, 50, 5, 1e-3, 1e-6, 0.75, 0.1, 0.05),
    "video/finetune/videomae_base_ucf101": (128, 100, 5, 2.5e-4, 5e-6, 0.7, 0.2, 0.05),
    "audio/finetune/audiomae_base_as20k": (32, 60, 4, 1.25e-4, 1e-6, 0.75, 0.1, 5e-4),
    "audio/finetune/audiomae_base_as2m": (256, 100, 10, 2e-4, 1e-6, 0.75, 0.1, 5e-4),
    "pointcloud/finetune/point_mae_modelnet40": (32, 301, 10, 5e-4, 1e-6, None, 0.1, 0.05),
    "pointcloud/finetune/point_mae_modelnet40_8k": (32, 301, 10, 5e-4, 1e-6, None, 0.1, 0.05),
    "pointcloud/finetune/point_mae_scanobjectnn": (32, 301, 10, 5e-4, 1e-6, None, 0.1, 0.05),
    "pointcloud/finetune/point_mae_modelnet40_fewshot": (32, 151, 10, 5e-4, 1e-6, None, 0.1, 0.05),
    "cav/finetune/cav_mae_as20k": (36, 15, 0, 5e-5, 0.0, None, 0.0, 5e-7),
    "cav/finetune/cav_mae_as2m": (48, 10, 0, 1e-5, 0.0, None, 0.0, 5e-7),
    "cav/finetune/cav_mae_vggsound": (48, 10, 0, 1e-4, 0.0, None, 0.0, 5e-7),
}
#: recipe of pre-training whose weights it begins with
BEFORE = {
    "image/finetune/mae_base": "image/mae_base",
    "image/probe/mae_base": "image/mae_base",
    "image/finetune/mae_tiny_cifar10": "image/mae_tiny_cifar10",
    "image/finetune/mae_tiny_cpu": "image/mae_tiny_cpu",
    "video/finetune/videomae_base_k400": "video/videomae_base",
    "video/finetune/videomae_base_ucf101": "video/videomae_base_ucf101",
    "video/finetune/videomae_tiny_cpu": "video/videomae_tiny_cpu",
    "audio/finetune/audiomae_base_as20k": "audio/audiomae_base",
    "audio/finetune/audiomae_base_esc50": "audio/audiomae_base",
    "audio/finetune/audiomae_tiny_esc10": "audio/audiomae_tiny_esc10",
    "audio/finetune/audiomae_tiny_cpu": "audio/audiomae_tiny_cpu",
    "pointcloud/finetune/point_mae_modelnet40": "pointcloud/point_mae",
    "pointcloud/finetune/point_mae_tiny_modelnet10": "pointcloud/point_mae_tiny_modelnet10",
    "cav/finetune/cav_mae_as20k": "cav/cav_mae_base",
    "cav/finetune/cav_mae_tiny_cpu": "cav/cav_mae_tiny_cpu",
    "multimae/finetune/base": "multimae/base",
    "multimae/finetune/tiny_cpu": "multimae/tiny_cpu",
}


def shrunk(name, **more):
    recipe = config.load(name)
    small = {"encoder.dim": 24, "encoder.depth": 1, "encoder.heads": 2}
    if recipe.get("decoder"):
        small |= {"decoder.dim": 24, "decoder.depth": 1, "decoder.heads": 2}
    if name.startswith("video"):
        small["modalities.video.size"] = [4, 32, 32]
    if name.startswith("pointcloud"):
        small |= {"modalities.pointcloud.width": 32, "modalities.pointcloud.groups": 32}
    return config.load(name, {**small, **more})


@pytest.mark.parametrize("name", NAMES)
def test_one_step_when_shrunk(name):
    recipe = shrunk(name, **{"train.batch": 4, "train.micro_batch": None, "train.compile": False})
    train_state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=1)
    for group in train_state.optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]
    before = {key: value.clone() for key, value in train_state.model.state_dict().items()}
    rng = Rng((0, 0), range(4), 4)
    batch = {key: one.example(4, rng) for key, one in train_state.model.modalities.items()}
    classify, labels = train_state.model.objectives["classify"], torch.arange(4)
    if classify.loss == "sigmoid":
        labels = torch.tensor([[0, 3], [1, -1], [-1, -1], [2, 1]])
    batch, known = classify.batch(batch, labels, rng, train_state.model)
    planned = train_state.model.plan(batch, rng)
    result = take_step(train_state, MicroBatches(0, [planned], train_state.model.counts(planned), [["a"] * 4], [known]))
    assert torch.isfinite(result.total) and not result.bad
    moved = {key for key, value in train_state.model.state_dict().items() if not torch.equal(value, before[key])}
    trains = {key for key, one in train_state.model.named_parameters() if one.requires_grad}
    assert any(key.startswith("head.") for key in moved)
    assert any(key.startswith("encoder.") for key in moved) == any(key.startswith("encoder.") for key in trains)
    seen = planned[next(iter(planned))]
    assert (seen.plan.visible.shape[1] < seen.tokens.count) == classify.hide


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_numbers(name):
    recipe = config.load(name)
    train = recipe["train"]
    found = (
        train["batch"] // recipe["data"]["aug_repeats"], train["epochs"], train["warmup_epochs"], peak_lr(train),
        train["min_lr"], train["layer_decay"], recipe["encoder"].get("drop_path", 0.0),
        train["optimizer"]["weight_decay"],
    )  # fmt: skip
    assert found == pytest.approx(PUBLISHED[name])
    assert recipe["init"] is None if "init" in recipe else True
    views = {key: one.get("tta_views") for key, one in recipe["modalities"].items()}
    if name.startswith("video"):
        assert views["video"] == ([2, 3] if "ssv2" in name else [5, 3])
        assert recipe["modalities"]["video"]["flip"] is ("ssv2" not in name)
    if name.startswith("pointcloud"):
        cloud = recipe["modalities"]["pointcloud"]
        assert cloud["votes"] == 10 and train["clip_grad"] == 10
        assert cloud["normalize_cloud"] == ("none" if "scanobjectnn" in name else "unit_sphere")
        with torch.device("meta"):
            groups = parameter_groups(build_model(recipe), 0.05, train["no_decay"])
        plain = {one for group in groups if not group["weight_decay"] for one in group["names"]}
        assert "encoder.prefix" in plain and "encoder.prefix_position" not in plain  # published: cls_pos decays


def test_videomae_sees_copies_and_drops_answers_as_published():
    """(augmented copies of each video, dropout before the last layer)"""
    found = {}
    for name in PUBLISHED:
        if "videomae" in name:
            recipe = config.load(name)
            found[name.rpartition("videomae_")[2]] = recipe["data"]["aug_repeats"], recipe["head"]["dropout"]
    assert found == {
        "small_k400": (2, 0.0), "base_k400": (2, 0.0), "base_k400_800": (1, 0.0), "large_k400": (2, 0.0),
        "huge_k400": (2, 0.5), "small_ssv2": (2, 0.0), "base_ssv2": (2, 0.0), "base_ssv2_800": (1, 0.0),
        "base_ucf101": (2, 0.5),
    }  # fmt: skip


def test_the_rate_of_cav_mae_is_halved_each_epoch_from_the_fifth():
    train = config.load("cav/finetune/cav_mae_as20k")["train"]
    rate = learning_rate(train, 10, 150)
    rates = [rate(10 * epoch) / 5e-5 for epoch in range(15)]
    assert rates[:7] == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.25]) and rates[14] == pytest.approx(0.5**10)
    assert train["head_lr_scale"] == 100 and train["average"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_reproduces_and_the_command(name):
    lines = Path(packaged()[name]).read_text().splitlines()
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert f"maemm finetune {name}" in head and (name not in PUBLISHED or "Expected" in head)


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_begins_with_the_weights_of_its_pre_training(name):
    before = build_model(shrunk(BEFORE[name]))
    model = build_model(shrunk(name))
    initialize_from(model, before)
    assert torch.equal(model.state_dict()["encoder.blocks.0.mlp.fc1.weight" if "cav" not in name else
                                          next(key for key in model.state_dict() if key.endswith("mlp.fc1.weight"))],
                       before.state_dict()[next(key for key in before.state_dict() if key.startswith("encoder.")
                                                and key.endswith("mlp.fc1.weight"))])  # fmt: skip
    batch = {key: one.example(2, Rng((0,), range(2), 2)) for key, one in model.modalities.items()}
    with torch.no_grad():
        found = model.eval().logits(batch)
    assert all(torch.isfinite(one).all() for one in (found.values() if isinstance(found, dict) else [found]))


def test_every_tiny_recipe_is_among_those_that_begin_with_weights():
    assert {name for name in NAMES if "tiny" in name} <= set(BEFORE)
