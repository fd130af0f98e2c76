"""What a recipe of fine-tuning and its data must agree on."""

import json
from importlib import import_module

import numpy as np
import pytest

from maemm import __main__ as cli
from maemm.config import dump
from maemm.contract.errors import MaemmError
from maemm.data.open import open_parts
from maemm.tasks._shared.inputs import open_part
from maemm.tasks.evaluate.run import evaluate
from maemm.tasks.finetune import trials
from maemm.tasks.finetune.recipe import recipe_for
from maemm.tasks.finetune.run import finetune, label_efficiency, repeated
from maemm.train.distributed import DistContext
from maemm.train.setup import make_order

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
    order = make_order(recipe, source, DistContext())
    assert order.steps_per_epoch == 3
    drawn = [one.index for step in range(300) for one in order.micro_batches(step)[0]]
    labels = [source.label(i) for i in drawn]
    assert None not in labels and abs(sum(labels) / len(labels) - 0.5) < 0.05


def test_a_batch_is_no_larger_than_the_few_labels(world, tmp_path):
    path, data = bare(world, tmp_path, 4, batch=6), world.data(samples=40)
    assert recipe_for(path, data, {"data.shots": 1, "train.epochs": 1})["train"]["batch"] == 2
    assert recipe_for(path, data, {"data.shots": 5})["train"]["batch"] == 6  # that of the recipe
    assert recipe_for(path, data, {"data.shots": 1, "train.batch": 3})["train"]["batch"] == 3


def quiet(text):
    return None


def test_a_network_of_several_modalities_needs_a_recipe(world):
    two = {"modalities": {"marks": {}, "more": {"type": "marks"}}}
    from maemm.weights import save

    save(world.model(**two), world.folder / "two.safetensors")
    with pytest.raises(MaemmError, match="has several modalities .marks, more., and a linear head reads one of them"):
        recipe_for(world.folder / "two.safetensors", world.data(), {})


def test_class_weights_of_another_number_are_told(world):
    options = {**QUICK, "objectives.classify.class_weights": [1.0, 2.0]}
    with pytest.raises(MaemmError, match="2 class_weights are given for 4 outputs of the head"):
        finetune(world.run(), world.data(samples=16), echo=quiet, **options)


# ------------------------------------------------------------------------------------------------ several runs
def test_every_seed_is_a_run(world, capsys):
    run, data, test = world.run(), world.data(samples=24), world.data("test", samples=12, seed=1, bad=[2])
    words = [f"{key}={value}" for key, value in QUICK.items()]
    assert cli.main(["finetune", run, data, *words, "--test", test, "--seeds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (cell,) = told["results"]
    assert told["seeds"] == 2 and np.shape(cell["values"]) == (2, 1) and cell["std"] is not None
    assert told["data"] == {"labelled": 11, "skipped": 1} and told["bad_samples"][0]["id"] == "002"
    runs = world.folder / "run-runs/runs"
    assert sorted(one.name for one in runs.iterdir()) == ["fine-tuned-seed-0", "fine-tuned-seed-1"]
    assert "seed: 1" in (runs / "fine-tuned-seed-1/recipe.yaml").read_text()
    assert "Several runs" in (world.folder / "run-runs/report.html").read_text()


def test_every_fold_is_asked_of_a_run_that_left_it_out(world):
    run, data = world.run(), world.data(samples=24, unlabelled=[5])
    found, folder = repeated(run, data, folds=2, scratch=True, echo=quiet, **QUICK)
    (cell,) = found.cells
    assert cell.features == "from scratch" and np.shape(cell.values) == (1, 2) and found.folds == 2
    assert found.data["labelled"] == 23 == cell.confusion.sum() and not found.warnings
    rows = []
    for number in (1, 2):
        text = (folder / f"runs/from-scratch-seed-0-fold-{number}/recipe.yaml").read_text()
        assert f"fold: {number}/2" in text and "init:" not in text
        recipe = recipe_for(run, data, {**QUICK, "data.fold": f"{number}/2"})
        rows.append({source.name(i) for source in open_parts(recipe) for i in range(len(source))})
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 23  # of two folds each is what the other learns from


def test_groups_make_folds_of_fine_tuning(world):
    recipe = recipe_for(world.run(), world.data(samples=24), QUICK)
    overrides = trials.Splits(groups=r"^0(\d)").overrides(lambda: recipe)
    assert overrides == [{"data.fold": f"{i}/3", "data.groups": r"^0(\d)"} for i in (1, 2, 3)]


def test_the_run_with_the_most_labels_is_looked_at(world):
    data = world.data(samples=24)
    found, _ = label_efficiency(world.run(), data, test=data, shots=["all", "1"], echo=quiet, **QUICK)
    assert found.warnings[0].startswith("24 of 24 test samples have the content of a training sample")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "3"], "--seeds needs --test DATA, or --folds or --groups"),
        (["--folds", "2", "--test", "t.json"], "several runs need one way to evaluate them"),
        (["--folds", "1"], "1 folds leave no test part"),
        (["--seeds", "0", "--folds", "2"], "0 seeds give no metrics"),
        (["--groups", "["], "is not a regular expression"),
        (["test.source.split=test"], "test.source.split is given without a test part; add --test DATA"),
        (["--test", "t.json", "test.sorce=x"], "'test.sorce' means nothing here; known: test.list, test.source"),
        (["--test", "t.json", "test.source.split=x"], "split"),
        (["--test", "gone.json"], "gone.json"),
    ],
)
def test_what_several_runs_cannot_be(world, capsys, monkeypatch, words, message):
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr("maemm.tasks.pretrain.run.train_recipe", lambda *args, **rest: pytest.fail("it was trained"))
    world.data("t", samples=4)
    assert cli.main(["finetune", world.run(), world.data(samples=16), "train.epochs=1", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said


def test_a_test_part_of_the_same_file(world):
    """Options of the source are changed one by one; the others stay as in the recipe."""
    seen = []

    class Opened(list):
        classes, multilabel, tta_views = None, False, 1

    def opener(root, list=None, *, split="train", points=3):
        seen.append((root, split, points))
        return Opened()

    recipe = {**world.recipe(), "data": {"root": "a", "source": {"type": "marks", "split": "train", "points": 9}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maemm.registry.find", lambda role, name: opener)
        open_part(recipe, "b", {"source.split": "test"})
    assert seen == [("b", "test", 9)] and recipe["data"]["source"]["split"] == "train"


def test_only_one_of_several_processes_asks(world, capsys, monkeypatch):
    """The others train, and end without a word, a figure or a file."""
    monkeypatch.setattr("maemm.train.distributed.start", lambda *arguments: DistContext(rank=1))
    monkeypatch.setattr("maemm.tasks.pretrain.run.train_recipe", lambda recipe, **rest: world.folder / "tuned")
    for module in (trials, import_module("maemm.tasks.evaluate.run")):
        monkeypatch.setattr(module, "evaluate", lambda *args, **rest: pytest.fail("it was asked"))
    run, data, test = world.run(), world.data(samples=16), world.data("test", samples=8)
    for more in ([], ["--shots", "1"], ["--seeds", "2"]):
        assert cli.main(["finetune", run, data, "train.epochs=1", "--test", test, *more, "--json"]) == 0
    assert not capsys.readouterr().out and not (world.folder / "run-labels").exists()
    assert repeated(run, data, folds=2)[0] is None


@pytest.mark.slow
def test_two_processes_make_one_table(world):
    import os
    import subprocess
    import sys

    words = [world.run(), world.data(samples=24), *(f"{key}={value}" for key, value in QUICK.items())]
    words += ["--folds", "2", "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "maemm", "finetune", *words]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 1 and np.shape(told[0]["results"][0]["values"]) == (1, 2)
