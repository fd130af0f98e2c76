"""Runs of several stages: what each begins with, where they go on, what is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import config
from maemm.contract import MaemmError
from maemm.tasks._shared.stages_page import write_stages_page
from maemm.tasks.finetune.recipe import recipe_for
from maemm.tasks.show.run import show
from maemm.train import stages as stages_module
from maemm.train.loop import Run
from maemm.weights.checkpoints import run_of

CLASSIFY = {
    "encoder": {"final_norm": False, "drop_path": 0.2},
    "decoder": None,
    "objectives": {"reconstruct": None, "classify": {"smoothing": 0.1}},
    "head": {"type": "linear", "classes": 3},
    "data": {"source": {"labels": 3}, "validation": 0.25},
    "train": {"epochs": 2, "lr": 2e-3},
}
STAGES = {"mae": {"train": {"epochs": 2}}, "classify": CLASSIFY}


def staged(toys, out=None, stages=None, **overrides):
    return toys.recipe(out, stages=stages or STAGES, train__save_every=3, train__warmup_epochs=0, **overrides)


def weights(folder):
    """{stage: weights of its last checkpoint}, and of the best."""
    found = {}
    for stage in ("mae", "classify"):
        last = sorted((Path(folder) / stage / "checkpoints").glob("step-*"))[-1]
        found[stage] = {key: value.clone() for key, value in load_file(last / "model.safetensors").items()}
    best = Path(folder) / "classify/best/model.safetensors"
    return {**found, "best": {key: value.clone() for key, value in load_file(best).items()}}


def same(toys, one, other):
    """Weights, and the logs but for times."""
    for (stage, ours), theirs in zip(weights(one).items(), weights(other).values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [], stage
    for stage in ("mae", "classify"):
        assert toys.metrics(Path(one) / stage) == toys.metrics(Path(other) / stage)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and what it said."""
    from maemm import registry

    from .conftest import PLUGIN, Toys

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, str(PLUGIN))
        patch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda model, batch, path, **rest: path)
        registry.clear_cache()
        toys, before = Toys(tmp_path_factory.mktemp("whole")), torch.get_num_threads()
        torch.set_num_threads(1)
        folder = toys.train(staged(toys))
        torch.set_num_threads(before)
    registry.clear_cache()
    return folder, toys.lines


# ------------------------------------------------------------------------------------------------- what it leaves
def test_each_stage_is_a_run_that_begins_with_the_one_before(toys, whole):
    folder, lines = whole
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        "classify",
        "mae",
        "recipe.yaml",
        "report.html",
    ]
    first, second = (folder / stage for stage in ("mae", "classify"))
    assert [line for line in lines if line.startswith("stage ")] == ["stage 1 of 2: mae", "stage 2 of 2: classify"]
    assert f"begins with the weights of {first}: encoder 26, modalities.toy 2 tensors loaded" in "\n".join(
        lines
    ) or any(line.startswith(f"begins with the weights of {first}: ") for line in lines)
    init = json.loads((second / "init.json").read_text())
    assert {key.split(".")[0] for key in init["loaded"]} == {"encoder", "modalities"}
    assert {key.split(".")[0] for key in init["initial"]} == {"head"}
    assert {key.split(".")[0] for key in init["left_over"]} >= {"decoder", "encoder"}  # its final norm
    recipe = config.load(second)
    assert recipe["data"]["classes"] == ["class 0", "class 1", "class 2"] and recipe["init"] == str(first)
    assert recipe["train"]["lr"] == 2e-3 and config.load(first)["train"]["lr"] == 1e-3
    assert "Finished the stages mae, classify" in lines[-1]


def test_the_first_features_of_a_stage_are_the_last_of_the_one_before(toys, whole, tmp_path):
    """Without drop path and with the same norm: MAWS hands over an encoder, not a guess."""
    stages = {"mae": {"train": {"epochs": 1}}, "more": {"train": {"steps": 1, "lr": 1e-30}}}
    folder = toys.train(staged(toys, stages=stages))
    old, new = maemm.load(folder / "mae"), maemm.load(folder / "more")
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(old.embed(x)["toy"], new.embed(x)["toy"])


def test_verbs_take_the_last_stage_that_has_weights(toys, whole, tmp_path):
    folder, _ = whole
    model = maemm.load(folder)
    assert model.head is not None and run_of(folder) == folder / "classify"
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "classify")
    assert maemm.load(copy).head is None and run_of(copy) == copy / "mae"
    shutil.rmtree(copy / "mae")
    with pytest.raises(MaemmError, match="holds no checkpoint yet; train it"):
        maemm.load(copy)
    assert run_of(tmp_path) == tmp_path and run_of(folder / "mae") == folder / "mae"


def test_fine_tuning_begins_with_the_last_stage_or_goes_on_with_it(toys, whole):
    folder, _ = whole
    again = recipe_for(folder, None)
    assert again["out"] == str(folder / "classify") and again["init"] == str(folder / "mae")
    other = recipe_for(folder, None, {"out": "elsewhere", "data.root": "other", "data.classes": 3})
    assert other["init"] == str(folder / "classify") and other["out"] == "elsewhere"


def test_show_lists_the_stages(toys, tmp_path):
    recipe = staged(toys)
    shown = show("toys", tmp_path / "show.html", recipe=recipe, count=2)
    text = shown.path.read_text()
    assert "<h2>Stages</h2>" in text and "what the model of stage mae gets" in text and ">classify<" in text
    chosen = show("toys", tmp_path / "one.html", recipe=recipe, count=2, overrides={"stage": "classify"})
    assert "<h2>Stages</h2>" not in chosen.path.read_text() and chosen.opened.recipe["head"]["classes"] == 3


def test_the_page_shows_the_borders(toys, whole):
    folder, _ = whole
    page = write_stages_page(folder).read_text()
    for text in (
        "Loss of all stages",
        "8 of 8 steps",
        "6 of 6 steps",
        "classify/report.html",
        "begins with the weights of",
    ):
        assert text in page, text
    assert page.count("soft dashed") >= 1


# ------------------------------------------------------------------------------------------------- going on
class Killed(BaseException):
    """As if the process was gone: nothing catches it."""


def test_a_run_that_stops_anywhere_goes_on_exactly(toys, whole, monkeypatch):
    """In the first stage; when that has ended; in the second before its first checkpoint, and behind it."""
    folder, _ = whole
    recipe, broken = staged(toys, toys.out / "broken"), toys.out / "broken"
    step, train = Run._train_step, stages_module.train

    def stop_at(stage, number):
        def stopping(run, micro_batches):
            if run.folder.path.name == stage and micro_batches.step == number:
                raise Killed
            step(run, micro_batches)

        def beginning(stage_recipe, **options):
            if number is None and Path(stage_recipe["out"]).name == stage:
                raise Killed
            return train(stage_recipe, **options)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Run, "_train_step", stopping)
            patch.setattr(stages_module, "train", beginning)
            toys.train(recipe)

    def checkpoints(stage):
        return sorted(path.name for path in (broken / stage / "checkpoints").glob("step-*"))

    stop_at("mae", 4)
    assert checkpoints("mae") == ["step-000003"]
    stop_at("classify", None)  # the border
    assert checkpoints("mae")[-1] == "step-000008" and not (broken / "classify").exists()
    stop_at("classify", 2)
    assert f"{broken / 'mae'} is finished (8 steps)" in toys.lines and not checkpoints("classify")
    stop_at("classify", 4)
    assert checkpoints("classify") == ["step-000003"]
    mae = toys.weights(broken / "mae")
    for path in (broken / "mae/checkpoints").glob("*/*"):
        path.unlink()  # what is over is not read any more
    toys.train(recipe)
    assert "stage 1 of 2: mae is finished" in toys.lines
    ours = weights(folder)
    assert [key for key, value in mae.items() if not torch.equal(value, ours["mae"][key])] == []
    for name, folder_of in (("classify", "checkpoints/step-000006"), ("best", "best")):
        theirs = load_file(broken / "classify" / folder_of / "model.safetensors")
        assert [key for key, value in theirs.items() if not torch.equal(value, ours[name][key])] == [], name
    for stage in ("mae", "classify"):
        assert toys.metrics(folder / stage) == toys.metrics(broken / stage)
    toys.train(recipe)
    assert any("classify is finished (6 steps); raise train.epochs" in line for line in toys.lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["epoch 1/2  step 2 ", "epoch 2/2  step 5 ", "Finished 8 steps", "stage 2 of 2", "keeps its own", "accuracy"],
)
def test_killed(toys, whole, text):
    """kill -9 of another process, as soon as it has said ``text``."""
    folder, _ = whole
    recipe = staged(toys, toys.out / "broken", data__source__delay=0.002)
    other = toys.start(recipe)
    other.until(text, 120)
    other.kill()
    toys.train(recipe)
    same(toys, folder, toys.out / "broken")


@pytest.mark.slow
def test_two_processes_equal_one(toys, whole):
    """Also killed in the second stage and started again."""
    folder, _ = whole
    stages = {"mae": STAGES["mae"], "classify": {**CLASSIFY, "encoder": {"final_norm": False}}}
    one = toys.train(staged(toys, toys.out / "one", stages))
    recipe = staged(toys, toys.out / "two", stages, data__source__delay=0.002)
    pair = toys.start(recipe, 2)
    pair[0].until("accuracy", 120)
    for rank in pair:
        rank.kill()
    pair = toys.start(recipe, 2)
    assert [rank.wait(120) for rank in pair] == [0, 0], pair[0].said()
    ours, theirs = weights(one), weights(toys.out / "two")
    for stage, values in ours.items():
        for key, value in values.items():
            if not key.endswith("qkv.bias"):
                torch.testing.assert_close(theirs[stage][key], value, rtol=1e-3, atol=1e-4, msg=f"{stage}: {key}")


# ------------------------------------------------------------------------------------------------- what is refused
def test_what_would_fail_at_the_border_fails_at_the_start(toys):
    def refused(match, **stages):
        with pytest.raises(MaemmError, match=match):
            toys.train(staged(toys, stages={**STAGES, **stages}))
        assert not (toys.out / "mae" / "checkpoints").exists()

    refused("stage classify: .*encoder.blocks.2", classify={**CLASSIFY, "encoder": {"depth": 3, "final_norm": False}})
    refused(
        "stage classify: .*head 4 outputs; set head.classes=3",
        classify={**CLASSIFY, "head": {"classes": 4, "type": "linear"}},
    )
    refused("stage classify: .*in 'encodr'", classify={**CLASSIFY, "init": {"parts": ["encodr"]}})
    refused("stage classify: .*shots", classify={**CLASSIFY, "data": {"source": {"labels": 3}, "shots": 1000}})


def test_changes_of_what_is_over_are_refused(toys, whole, tmp_path):
    folder, _ = whole
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    longer = {**STAGES, "mae": {"train": {"epochs": 3}}}
    with pytest.raises(MaemmError, match=r"stage mae: it is over, as classify has begun .*train.epochs: 2 -> 3"):
        toys.train(staged(toys, copy, longer))
    with pytest.raises(MaemmError, match=r"another recipe \(train.seed: 0 -> 1\)"):
        toys.train(staged(toys, copy, train__seed=1))
    with pytest.raises(MaemmError, match="holds a run with the stages mae, classify, not first, classify"):
        toys.train(staged(toys, copy, {"first": STAGES["mae"], "classify": CLASSIFY}))
    with pytest.raises(MaemmError, match=r"holds a run of stages \(mae, classify\)"):
        toys.train(toys.recipe(copy))
    # a run that has moved goes on, and a last stage may become longer
    longer = {"mae": STAGES["mae"], "classify": {**CLASSIFY, "train": {"epochs": 3, "lr": 2e-3}}}
    toys.train(staged(toys, copy, longer))
    assert (copy / "classify/checkpoints/step-000009").is_dir()


def test_one_stage_may_be_trained_alone(toys, whole, tmp_path):
    """``stage=NAME``: in the same folder, from the same weights, and longer."""
    folder, _ = whole
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    longer = {"stage": "classify", "stages.classify.train.epochs": 3}
    assert toys.train(config.load(staged(toys, copy), longer, training=True)) == copy / "classify"
    assert (copy / "classify/checkpoints/step-000009").is_dir()
    assert config.load(copy / "classify")["data"]["classes"] == ["class 0", "class 1", "class 2"]


def test_a_run_without_stages_is_not_made_one_with(toys):
    toys.train(train__epochs=1)
    with pytest.raises(MaemmError, match="holds a run without stages"):
        toys.train(staged(toys))


def test_three_stages_and_their_weights(toys):
    """The third trains a decoder alone, on the encoder of the second; a fourth begins again with the first."""
    stages = {
        "mae": {"train": {"steps": 1}},
        "classify": {**CLASSIFY, "train": {"steps": 1}, "encoder": {}},
        "decode": {
            "train": {"steps": 2, "freeze": ["encoder", "modalities"]},
            "init": {"parts": ["encoder", "modalities.toy.embedding"]},
        },
        "again": {"train": {"steps": 1}, "init": {"stage": "mae"}},
        "fresh": {"train": {"steps": 1}, "init": None},
    }
    folder = toys.train(staged(toys, stages=stages))
    models = {name: maemm.load(folder / name).state_dict() for name in stages}
    for key, value in models["decode"].items():
        if key.startswith("encoder.") or ".embedding." in key:
            assert torch.equal(value, models["classify"][key]), key
    assert json.loads((folder / "again/init.json").read_text())["weights"] == str(folder / "mae")
    assert not (folder / "fresh/init.json").exists()
    assert run_of(folder) == folder / "fresh"
