"""Recipes: numbers and words of YAML, layers over each other, where each value comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from maemm import config
from maemm.config import reader

pytestmark = pytest.mark.usefixtures("toy")


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_yaml_numbers_and_words():
    text = "a: 1e-4\nb: [no, 1:30, 2024-01-01, 010, 0x1f, 1., -2E3, ~, true, '1e-4']\nc:\n"
    values, lines = reader.parse(text, "x.yaml")
    words = ["no", "1:30", "2024-01-01", 10, 31, 1.0, -2000.0, None, True, "1e-4"]
    assert values == {"a": 1e-4, "b": words, "c": None}
    assert lines == {"a": 1, "b": 2, "c": 3}


def test_dump_reads_back_alike_here_and_in_other_readers():
    values = {"a": [1e-8, "1e-4", "no", "null", "", True, None, 3], "b": {"c": "ä: #x", "d": [], "e": {}}, "f": "1:30"}
    text = config.dump({**values, "g": (1, 2)})
    assert reader.parse(text, "x")[0] == yaml.safe_load(text) == {**values, "g": [1, 2]}


def test_names_summaries_and_defaults():
    assert config.summary(config.packaged()["toy/tiny"]) == "The smallest recipe."
    recipe = config.load("toy/tiny", training=True)
    assert recipe["modalities"]["toy"] == {
        "type": "toy",
        "size": 16,
        "masking": {"type": "random", "ratio": 0.5},
        "target": None,
    }
    assert recipe["encoder"] == {"type": "vit", "dim": 32, "depth": 2, "heads": 2}  # options stay as given
    assert recipe["objectives"] == {"reconstruct": {"type": "reconstruct"}}
    assert recipe["train"]["base_lr"] == 1e-3 and recipe["train"]["lr"] is None
    assert recipe["train"]["optimizer"] == {"type": "adamw"} and recipe["train"]["schedule"] == {"type": "cosine"}
    assert recipe["data"]["max_bad_fraction"] == 0.05
    assert (recipe["out"], recipe["name"]) == ("runs/toy/tiny", "toy/tiny")


def test_a_resolved_recipe_resolves_to_itself():
    recipe = config.load("toy/tiny", training=True)
    assert config.load(recipe, training=True) == recipe
    os.makedirs("runs/x")
    write("runs/x/recipe.yaml", config.dump(recipe))
    again = config.load("runs/x", training=True)
    assert config.diff(recipe, again) == ["out: 'runs/toy/tiny' -> 'runs/x'"]


def test_overrides_as_words_and_as_a_dictionary():
    words = ["train.epochs=10", "modalities.toy.masking=block", "modalities.toy.patch=[2, 4]", "decoder=null", "out=r"]
    recipe = config.load("toy/tiny", words)
    assert recipe["train"]["epochs"] == 10 and recipe["decoder"] is None and recipe["out"] == "r"
    assert recipe["modalities"]["toy"]["masking"] == {"type": "block"}  # another type: the options are gone
    assert recipe["modalities"]["toy"]["patch"] == [2, 4]
    given = {"train": {"epochs": 10}, "modalities.toy.masking": {"type": "block"}, "modalities.toy.patch": (2, 4)}
    assert config.load("toy/tiny", {**given, "decoder": None, "out": "r"}) == recipe


def test_an_option_of_a_part_given_by_name():
    write("r.yaml", "modalities: {toy: {masking: random}}\nencoder: vit\n")
    recipe = config.load("r.yaml", ["modalities.toy.masking.ratio=0.9", "encoder.depth=3"])
    assert recipe["modalities"]["toy"]["masking"] == {"type": "random", "ratio": 0.9}
    assert recipe["encoder"] == {"type": "vit", "depth": 3}
    assert recipe["out"] == "runs/r"


def test_naming_the_same_part_again_keeps_its_options():
    assert config.load("toy/tiny", ["encoder=vit", "encoder.depth=4"])["encoder"]["dim"] == 32
    assert config.load("toy/tiny", ["modalities.toy.masking=random"])["modalities"]["toy"]["masking"]["ratio"] == 0.5


def test_the_later_of_two_rivals_wins():
    recipe = config.load("toy/tiny", ["train.steps=5", "train.lr=0.1"])
    train = recipe["train"]
    assert (train["epochs"], train["steps"], train["base_lr"], train["lr"]) == (None, 5, None, 0.1)
    assert config.resolve("toy/tiny", ["train.lr=0.1"]).origin("train.base_lr") == "replaced by train.lr"


def test_base_and_origins():
    write("above.yaml", "modalities: {toy: {size: 8}}\nencoder: {type: vit, dim: 4}\ntrain: {epochs: 1}\n")
    write("my.yaml", "_base_: above.yaml\n\nmodalities:\n  toy:\n    patch: 2\nencoder:\n  dim: 8\n")
    found = config.resolve("my.yaml", ["train.batch=3"])
    assert found.values["modalities"]["toy"]["size"] == 8 and found.values["encoder"]["dim"] == 8
    origins = {
        "modalities.toy.size": "above.yaml, line 1",
        "modalities.toy.patch": "my.yaml, line 5",
        "encoder.dim": "my.yaml, line 7",
        "train.batch": "override",
        "train.seed": "default",
    }
    assert {key: found.origin(key) for key in origins} == origins


def test_a_packaged_recipe_as_base_and_a_modality_taken_out():
    write("my.yaml", "_base_: toy/tiny\nmodalities: {toy: null, other: {size: 4}, third: {same_as: other}}\n")
    recipe = config.load("my.yaml", training=True)
    assert list(recipe["modalities"]) == ["other", "third"]
    assert recipe["modalities"]["third"]["same_as"] == "other"
    assert config.load(recipe, training=True) == recipe


def test_diff_names_the_keys():
    old, new = config.load("toy/tiny"), config.load("toy/tiny", ["encoder.depth=24", "encoder.heads=4"])
    assert config.diff(old, new) == ["encoder.depth: 2 -> 24", "encoder.heads: 2 -> 4"]
    assert config.diff(old, old) == []
