"""Paths are not identity: the fingerprint of the data says whether a run may continue; ``~`` works everywhere."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import maemm
from maemm import config
from maemm.contract.errors import MaemmError
from maemm.tasks.finetune.recipe import recipe_for
from maemm.train.run_folder import compare

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
    "train": {"epochs": 1, "batch": 4, "lr": 0.01, "warmup_epochs": 0, "log_every": 1},
    "out": "run",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder and the home folder, with 8 labelled pictures of one file each in ``few``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
    for index in range(8):
        folder = tmp_path / "few" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8))
    return tmp_path


def train(**changes):
    return maemm.pretrain(RECIPE, **{key.replace("__", "."): value for key, value in changes.items()})


def steps(run="run"):
    return [json.loads(line)["step"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def as_list(place, name, folder, count=8):
    paths = [f"{'ab'[i % 2]}/{i}.npy,{'ab'[i % 2]}" for i in range(count)]
    (place / name).write_text("\n".join(["path,label", *paths]))
    return {"data.root": folder, "data.list": name}


def test_the_same_data_elsewhere_continue(place, capsys):
    train(data__root="few")
    shutil.copytree("few", "elsewhere")
    for number, root in enumerate(("elsewhere", str(place / "few"), "./few", "~/elsewhere"), start=2):
        train(data__root=root, train__epochs=number)
        assert steps() == [*range(1, 2 * number + 1)]
        assert config.load("run")["data"]["root"] == os.path.expanduser(root)
        assert "run reads the same data from another place (data.root: " in capsys.readouterr().out


def test_a_list_and_a_mixture_that_have_moved(place):
    maemm.pretrain(RECIPE, **as_list(place, "list.csv", "few"))
    shutil.move("few", "moved")
    maemm.pretrain(RECIPE, **as_list(place, "other.csv", "moved"), **{"train.epochs": 2})
    assert steps() == [1, 2, 3, 4]
    with pytest.raises(MaemmError, match=r"data\.list: 'other\.csv' -> 'short\.csv'.*bring the old data back"):
        maemm.pretrain(RECIPE, **as_list(place, "short.csv", "moved", 6), **{"train.epochs": 3})
    mix = {"data.mix": {"one": {"root": "moved"}, "two": {"root": "moved/a"}}, "out": "mixed"}
    maemm.pretrain(RECIPE, **mix)
    shutil.copytree("moved", "few")
    mix["data.mix"] = {"one": {"root": "few"}, "two": {"root": "few/a"}}
    maemm.pretrain(RECIPE, **mix, **{"train.epochs": 2})
    mix["data.mix"]["two"]["root"] = "few"
    with pytest.raises(MaemmError, match=r"data\.mix\.two\.root: 'few/a' -> 'few'"):
        maemm.pretrain(RECIPE, **mix, **{"train.epochs": 3})


def test_validation_data_that_have_moved(place):
    shutil.copytree("few/a", "held")
    train(data__root="few", data__validation="held")
    shutil.move("held", "moved")
    train(data__root="few", data__validation="moved", train__epochs=2)
    with pytest.raises(MaemmError, match=r"data\.validation: 'moved' -> 'few'"):
        train(data__root="few", data__validation="few", train__epochs=3)
    with pytest.raises(MaemmError, match=r"another recipe \(data\.validation: 'moved' -> 0\.25\)"):
        train(data__root="few", data__validation=0.25, train__epochs=3)
    meta = place / "run/checkpoints/step-000004/meta.json"
    content = json.loads(meta.read_text())
    del content["validation"]  # as older versions wrote it
    meta.write_text(json.dumps(content))
    train(data__root="few", data__validation="moved", train__epochs=3)


def test_other_data_are_refused_under_any_path(place):
    train(data__root="few")
    shutil.copytree("few", "other")
    np.save("other/a/9.npy", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(MaemmError, match=r"have changed since step 2 \(data\.root: 'few' -> 'other'; files:"):
        train(data__root="other", train__epochs=2)
    shutil.copy("other/a/9.npy", "few/a/9.npy")
    with pytest.raises(MaemmError, match=r"have changed since step 2 \(files:"):
        train(data__root="few", train__epochs=2)


def test_places_are_told_from_settings(tmp_path):
    def moved(old, new):
        return list(compare(tmp_path, old, new, lambda line: None))

    parts = {"a": {"root": "x", "list": None}, "b": {"root": "y"}}
    old = {"data": {"source": {"type": "paired", "parts": parts}}, "init": "pre"}
    new = {"data": {"source": {"type": "paired", "parts": {"a": {"root": "z", "list": "l"}, "b": {"root": "y"}}}}}
    assert moved(old, {**new, "init": "./pre"}) == ["data.source.parts.a.root", "data.source.parts.a.list"]
    for other in ({**new, "init": "else"}, {**new, "data": {"source": {"type": "paired", "by": "stem"}}}):
        with pytest.raises(MaemmError, match="another recipe"):
            moved(old, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.root": "gone"},
        {"data.root": "few/a/0.npy", "data.list": "gone.csv"},
        {"data.validation": "gone"},
        {"train.batch": 1000},
        {"modalities.image.size": 12, "modalities.image.patch": 3, "encoder.heads": 5},
        {"modalities.image.masking": {"type": "random", "ratio": 0.0}},
    ],
)
def test_a_start_that_fails_leaves_no_recipe(place, changes):
    with pytest.raises(MaemmError):
        maemm.pretrain(RECIPE, **{"data.root": "few", **changes})
    assert not (place / "run/recipe.yaml").exists()
    train(data__root="few")
    before = (place / "run/recipe.yaml").read_text()
    with pytest.raises(MaemmError):
        maemm.pretrain(RECIPE, **{"data.root": "few", "train.epochs": 5, "train.keep": 7, **changes})
    assert (place / "run/recipe.yaml").read_text() == before


def test_home_folders_in_recipes_commands_and_python(place, capsys):
    from maemm.__main__ import main

    (place / "tiny.yaml").write_text(config.dump(RECIPE))
    assert main(["pretrain", "~/tiny.yaml", "~/few", "out=~/runs/a"]) == 0
    options = {"data.root": "~/few", "init": "~/runs/a", "data.validation": "~/few", "out": "~/runs/b"}
    assert maemm.pretrain("~/tiny.yaml", **options) == place / "runs/b"
    assert main(["embed", "~/runs/b", "~/few", "-o", "~/e.npz"]) == 0
    assert main(["score", "~/runs/b", "~/few", "-o", "~/s.csv"]) == 0
    assert main(["reconstruct", "~/runs/b", "~/few", "-o", "~/r.png"]) == 0
    assert main(["convert", "~/runs/b", "~/c.safetensors"]) == 0
    assert main(["export", "~/c.safetensors", "-o", "~/x.safetensors", "--to", "safetensors"]) == 0
    assert main(["data", "check", "~/few", "-o", "~/d.csv"]) == 0
    assert main(["knn", "~/runs/b", "~/few", "--test", "~/few", "-o", "~/k.json"]) == 0
    maemm.embed("~/c.safetensors", "~/few", "~/p.npz")
    maemm.load("~/c.safetensors")
    assert recipe_for("~/runs/b", "~/few", {})["out"] == str(place / "runs/b-finetune")
    written = {"e.npz", "s.csv", "r.png", "c.safetensors", "x.safetensors", "d.csv", "k.json", "p.npz"}
    assert written <= set(os.listdir(place)) and "~" not in os.listdir(place)
    assert len(list((place / "runs/b/evaluate").glob("*"))) == 0 and (place / "runs/b/features").is_dir()
    capsys.readouterr()
    assert main(["pretrain", "tiny.yaml", "~nobody-of-that-name/few", "out=new"]) == 2
    assert "internal" not in capsys.readouterr().err
