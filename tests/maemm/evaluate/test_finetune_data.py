"""What a recipe of fine-tuning and its data must agree on."""

import pytest

from maemm.config import dump
from maemm.errors import MaemmError
from maemm.evaluate.evaluate import evaluate
from maemm.evaluate.finetune import finetune, recipe_for
from maemm.train.distributed import Team
from maemm.train.start import make_order, open_parts

QUICK = {"train.epochs": 1, "train.batch": 4, "train.warmup_epochs": 0, "train.log_every": 1}


def bare(world, tmp_path, classes, batch=4):
    """A recipe of fine-tuning that knows no names of classes."""
    recipe = recipe_for(world.run(), world.data(samples=16), QUICK)
    recipe["data"]["classes"], recipe["data"]["validation"] = None, None
    recipe["head"]["classes"], recipe["train"]["batch"] = classes, batch
    (tmp_path / "bare.yaml").write_text(dump(recipe))
    return tmp_path / "bare.yaml"


def test_a_recipe_takes_the_names_of_its_datas_classes(world, tmp_path):
    recipe = recipe_for(bare(world, tmp_path, 4), world.data(samples=16))
    assert recipe["data"]["classes"] == ["a", "b", "c", "d"]
    out = finetune(tmp_path / "bare.yaml", world.data(samples=16), echo=lambda text: None)
    assert evaluate(out, world.data("test", samples=4, classes=["b", "a"])).classes == ("a", "b", "c", "d")


def test_a_head_of_another_number_of_outputs_is_told(world, tmp_path):
    with pytest.raises(MaemmError, match="the data have 4 classes, the head 1000 outputs; set head.classes=4"):
        recipe_for(bare(world, tmp_path, 1000), world.data(samples=16))
    assert recipe_for(tmp_path / "bare.yaml", world.data(samples=16), {"head.classes": 4})["data"]["classes"]


def test_few_labels_and_balanced_epochs(world):
    data = world.data(samples=40, classes=["a", "b"], unlabelled=[4, 6, 8])
    recipe = recipe_for(world.run(), data, {**QUICK, "data.shots": 3})
    assert recipe["data"]["validation"] is None  # few labels are few labels
    source, held_out = open_parts(recipe)
    assert len(source) == 6 and held_out is None and sorted(source.label(i) for i in range(6)) == [0] * 3 + [1] * 3
    recipe = recipe_for(world.folder / "run", data, {**QUICK, "data.balance": True, "data.epoch": 12})
    source, _ = open_parts(recipe)
    order = make_order(recipe, source, Team())
    assert order.steps_per_epoch == 3
    drawn = [one.index for step in range(300) for one in order.micro_batches(step)[0]]
    labels = [source.label(i) for i in drawn]
    assert None not in labels and abs(sum(labels) / len(labels) - 0.5) < 0.05


def test_a_batch_is_no_larger_than_the_few_labels(world, tmp_path):
    path, data = bare(world, tmp_path, 4, batch=6), world.data(samples=40)
    assert recipe_for(path, data, {"data.shots": 1, "train.epochs": 1})["train"]["batch"] == 2
    assert recipe_for(path, data, {"data.shots": 5})["train"]["batch"] == 6  # that of the recipe
    assert recipe_for(path, data, {"data.shots": 1, "train.batch": 3})["train"]["batch"] == 3
