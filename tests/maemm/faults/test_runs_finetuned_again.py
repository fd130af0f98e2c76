"""A fine-tuned run is where another fine-tuning begins; with its own folder and data it goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import maemm
from maemm import config
from maemm.contract.errors import MaemmError
from maemm.tasks.finetune.recipe import recipe_for, scratch_or_tuned_recipe

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
    "train": {"epochs": 1, "batch": 4, "lr": 0.01, "warmup_epochs": 0},
    "out": "pre",
}
SHORT = {"train.batch": 4, "train.warmup_epochs": 0, "train.epochs": 1}
STILL = {**SHORT, "train.base_lr": None, "train.lr": 1e-12, "train.min_lr": 0.0}
KEY = "encoder.blocks.0.mlp.fc1.weight"


def draw(folder, classes):
    rng = np.random.default_rng(0)
    for index in range(24):
        place = Path(folder) / classes[index % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{index}.npy", rng.integers(0, 256, (8, 8, 3), np.uint8))


def tune(weights, data=None, **changes):
    return maemm.finetune(weights, data, echo=lambda line: None, **changes)


def weight(weights, key=KEY):
    return maemm.load(weights).state_dict()[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The current folder: a pre-trained run ``pre``, ``first`` fine-tuned on two classes, and data of three."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
        draw("two", "ab")
        draw("three", "xyz")
        maemm.pretrain(RECIPE, **{"data.root": "two"})
        tune("pre", "two", **{**SHORT, "train.epochs": 3, "train.base_lr": 1.0, "out": "first"})
        yield folder


def test_it_begins_with_what_was_learned(runs):
    tune("first", "two", **STILL, out="second")
    pre, first, second = (weight(name) for name in ("pre", "first", "second"))
    assert torch.allclose(second, first, atol=1e-9) and not torch.allclose(first, pre, atol=1e-4)
    folder = max(Path("first/checkpoints").glob("step-*"))
    tune(folder, "two", **STILL, out="of-checkpoint")
    recipes = [config.load(name) for name in ("second", "of-checkpoint")]
    for recipe, init in zip(recipes, ("first", str(folder)), strict=True):
        assert recipe.pop("init") == init
        recipe.pop("out"), recipe.pop("name")
    assert recipes[0] == recipes[1]


def test_other_classes_get_a_new_head(runs):
    tune("first", "three", **STILL)  # in a folder of its own
    assert weight("first-finetune", "head.linear.weight").shape[0] == 3
    assert torch.allclose(weight("first-finetune"), weight("first"), atol=1e-9)
    assert config.load("first-finetune")["data"]["classes"] == ["x", "y", "z"]
    assert config.load("first")["data"]["root"] == "two"


def test_its_own_folder_goes_on(runs):
    before = config.load("first")["train"]["epochs"]
    for data, changes in ((None, {}), ("two", {}), (None, {"out": "first"}), ("two", {"out": "./first"})):
        recipe = recipe_for("first", data, changes)
        assert recipe["init"] == "pre" and Path(recipe["out"]) == Path("first")
    tune("first", **{"train.epochs": before + 1, "out": "first"})
    last = [json.loads(line) for line in Path("first/metrics.jsonl").read_text().splitlines()][-1]
    assert last["epoch"] == before + 1


def test_from_scratch_and_pre_trained_runs_as_before(runs):
    assert "init" not in scratch_or_tuned_recipe("first", None, {}, scratch=True)
    again = scratch_or_tuned_recipe("first", "three", {}, scratch=True)
    assert "init" not in again and again["out"] == "first-finetune-scratch" and again["head"]["classes"] == 3
    assert recipe_for("pre", "three", {"out": "elsewhere"})["init"] == "pre"


def test_several_modalities_keep_their_recipe(runs, monkeypatch):
    """Their head reads all of them, so the recipe is that of the run."""
    spec = RECIPE["modalities"]["image"]
    parts = {name: {"type": "image", "root": "two"} for name in ("left", "right")}
    stored = config.load(
        {
            **RECIPE,
            "modalities": {"left": {"type": "image", **spec}, "right": {"type": "image", **spec}},
            "decoder": None,
            "objectives": {"classify": {"class_weights": [1.0, 2.0]}},
            "head": {"type": "linear", "classes": 2},
            "data": {"classes": ["a", "b"], "source": {"type": "paired", "parts": parts}},
            "out": "joint",
        }
    )
    Path("joint").mkdir()
    Path("joint/recipe.yaml").write_text(config.dump(stored))
    parts = {name: {"type": "image", "root": "three"} for name in ("left", "right")}
    recipe = recipe_for("joint", None, {"out": "again", "data.source": {"type": "paired", "parts": parts}})
    assert recipe["init"] == "joint" and recipe["head"]["classes"] == 3
    assert recipe["data"]["classes"] == ["x", "y", "z"] and "class_weights" not in recipe["objectives"]["classify"]


def test_without_labels_it_says_so(runs):
    np.save("plain.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(MaemmError, match="the data have no labels"):
        tune("first", "plain.npy", out="third")
