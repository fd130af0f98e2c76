"""Stages of a recipe: how they merge, what they begin with, what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maemm import MaemmError, config
from maemm.__main__ import main

BASE = {
    "modalities": {"image": {"size": 16, "patch": 4}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "train": {"base_lr": 1e-3, "batch": 8},
    "init": "old.safetensors",
    "out": "runs/two",
}
CLASSIFY = {
    "decoder": None,
    "objectives": {"reconstruct": None, "classify": {}},
    "head": {"type": "linear", "classes": 3},
    "encoder": {"final_norm": False},
    "train": {"steps": 5, "lr": 0.1},
}
STAGES = {"mae": {"train": {"epochs": 2}}, "classify": CLASSIFY}


def recipe(stages=None, **changes):
    return {**BASE, **changes, "stages": STAGES if stages is None else stages}


def test_each_stage_is_a_recipe_of_its_own():
    values = config.load(recipe(), training=True)
    mae, classify = config.stages_of(values).values()
    assert [mae["out"], classify["out"]] == ["runs/two/mae", "runs/two/classify"]
    assert [mae["init"], classify["init"]] == ["old.safetensors", "runs/two/mae"]
    assert list(mae["objectives"]) == ["reconstruct"] and list(classify["objectives"]) == ["classify"]
    assert classify["decoder"] is None and mae["decoder"]["depth"] == 1
    assert classify["encoder"] == {**mae["encoder"], "final_norm": False}
    assert (classify["train"]["lr"], classify["train"]["base_lr"]) == (0.1, None)  # a later layer wins
    assert (mae["train"]["base_lr"], mae["train"]["batch"], mae["train"]["epochs"]) == (1e-3, 8, 2)
    assert "stages" not in mae


def test_what_is_stored_is_read_back(tmp_path):
    """Defaults that were filled in, such as the objective of a recipe with a decoder, are merged like written ones."""
    values = config.load(recipe(name="two"), training=True)
    (tmp_path / "recipe.yaml").write_text(config.dump(values))
    again = config.load(tmp_path / "recipe.yaml", training=True)
    assert config.diff(values, again) == []
    for one, other in zip(config.stages_of(values).values(), config.stages_of(again).values(), strict=True):
        assert config.diff(one, other) == []
    moved = config.load(tmp_path, training=True)  # a run folder says where it is
    assert [Path(stage["out"]).parent for stage in config.stages_of(moved).values()] == [tmp_path, tmp_path]


def test_overrides_reach_the_whole_or_one_stage(tmp_path):
    (tmp_path / "two.yaml").write_text(config.dump(recipe()))
    words = ["train.batch=4", "stages.mae.train.steps=7", "stages.classify.head.classes=5", "encoder.depth=2"]
    resolved = config.resolve(str(tmp_path / "two.yaml"), words, training=True)
    mae, classify = resolved.stages["mae"].values, resolved.stages["classify"].values
    assert (mae["train"]["steps"], mae["train"]["epochs"]) == (7, None)
    assert mae["train"]["batch"] == classify["train"]["batch"] == 4
    assert classify["head"] == {"type": "linear", "classes": 5} and classify["encoder"]["depth"] == 2
    assert resolved.origin("stages.mae.train.steps") == "override"
    assert resolved.stages["mae"].origin("train.steps") == "override"
    assert "two.yaml, line" in resolved.stages["classify"].origin("train.lr")


def test_null_takes_out_a_stage():
    values = config.load(recipe(), {"stages.mae": None}, training=True)
    assert list(config.stages_of(values)) == ["classify"]
    assert config.stages_of(values)["classify"]["init"] == "old.safetensors"  # it is the first now
    with pytest.raises(MaemmError, match="stages must map names to overrides"):
        config.load(recipe(), {"stages.mae": None, "stages.classify": None}, training=True)
    assert "stages" not in config.load(recipe(), {"stages": None, "train.epochs": 1}, training=True)


def test_one_stage_is_chosen_by_an_override():
    chosen = config.load(recipe(), {"stage": "classify"}, training=True)
    assert chosen == config.stages_of(config.load(recipe(), training=True))["classify"]
    with pytest.raises(MaemmError, match=r"no stage 'clasify' \(stage\); did you mean 'classify'"):
        config.load(recipe(), {"stage": "clasify"})
    with pytest.raises(MaemmError, match="no stage 'mae' .*; leave stage out"):
        config.load(BASE, {"stage": "mae"})


@pytest.mark.parametrize(
    "init, expected",
    [
        ({"parts": ["encoder"]}, {"weights": "runs/two/b", "parts": ["encoder"]}),
        ({"stage": "a"}, "runs/two/a"),
        ({"stage": "a", "strict": False}, {"weights": "runs/two/a", "strict": False}),
        ({"weights": "other.pth", "heads": 3}, {"weights": "other.pth", "heads": 3}),
        ("other.pth", "other.pth"),
        (None, None),
    ],
)
def test_what_a_stage_begins_with(init, expected):
    stages = {"a": {}, "b": {}, "c": {"init": init}}
    values = config.load(recipe(stages, train={"epochs": 1}), training=True)
    assert config.stages_of(values)["c"].get("init") == expected
    first = {"a": {"init": {"parts": ["encoder"]}}}
    values = config.load(recipe(first, train={"epochs": 1}), training=True)
    assert config.stages_of(values)["a"]["init"] == {"weights": "old.safetensors", "parts": ["encoder"]}


@pytest.mark.parametrize(
    "stages, match",
    [
        ({}, "stages must map names to overrides"),
        ([{"name": "mae"}], "stages must map names to overrides"),
        ({"mae": 3}, r"stages.mae must be a mapping of overrides, got 3; write stages.mae: \{train"),
        ({"checkpoints": {}}, "'checkpoints' cannot be the name of a stage"),
        ({"a/b": {}}, "'a/b' cannot be the name of a stage"),
        ({"mae": {"out": "x"}}, "stages.mae.out cannot be set; set it for the whole recipe"),
        ({"mae": {"stages": {}}}, "stages.mae.stages cannot be set"),
        ({"mae": {"train": {"epocs": 1}}}, "stage mae: unknown key 'train.epocs'; did you mean 'train.epochs'"),
        ({"mae": {}}, "stage mae: neither train.epochs nor train.steps is given"),
        ({"mae": {"encodr": {}, "train": {"epochs": 1}}}, "stage mae: unknown key 'encodr'.*did you mean 'encoder'"),
        (
            {"mae": {"train": {"epochs": 1}}, "b": {"init": {"stage": "c"}}},
            "stage b begins with 'c', which is no stage",
        ),
    ],
)
def test_mistakes(stages, match):
    with pytest.raises(MaemmError, match=match) as error:
        config.load(recipe(stages), training=True)
    assert all("; " in line for line in str(error.value).splitlines())


def test_mistakes_of_all_stages_at_once():
    stages = {"mae": {"train": {"epochs": "many"}}, "classify": {"train": {"epochs": 1}, "head": "linea"}}
    with pytest.raises(MaemmError) as error:
        config.load(recipe(stages), training=True)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["stage mae", "stage classify"]


def test_config_show(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(config.dump(recipe()))
    assert main(["config", "show", "two.yaml"]) == 0
    text = capsys.readouterr().out
    assert "# classify  5 steps   classify     runs/two/mae" in text and "stage=NAME" in text
    Path("again.yaml").write_text(text)  # what is printed is a recipe
    assert config.load("again.yaml", training=True)["stages"] == config.load("two.yaml", training=True)["stages"]
    assert main(["config", "show", "two.yaml", "stage=classify"]) == 0
    assert "init: runs/two/mae" in capsys.readouterr().out
    assert main(["config", "show", "two.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["classify"]["init"] == "runs/two/mae"
