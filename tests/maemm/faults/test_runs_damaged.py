"""A run folder is opened by one function for training and every verb: what is damaged is passed over, or refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm.contract.errors import MaemmError
from maemm.tasks.finetune.recipe import recipe_for
from maemm.weights.checkpoints import find_checkpoint

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
    "train": {"steps": 4, "batch": 8, "lr": 0.01, "warmup_epochs": 0, "ema": 0.5, "save_every": 2, "keep": 9},
}
TUNING = {"train.epochs": 1, "train.warmup_epochs": 0, "train.batch": 8, "data.validation": 0.25}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two checkpoints and an average, its labelled data, and a fine-tuned run."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    np.savez(folder / "few.npz", x=rng.integers(0, 256, (16, 8, 8, 3), np.uint8), y=np.arange(16) % 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
        recipe = {**RECIPE, "out": str(folder / "run")}
        data = str(folder / "few.npz")
        maemm.pretrain(recipe, **{"data.root": data})
        options = {**TUNING, "data.classes": 2, "out": str(folder / "tuned")}
        maemm.finetune(folder / "run", data, echo=lambda line: None, **options)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run."""
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture
def tuned(trained, tmp_path):
    """A copy of the fine-tuned run."""
    return shutil.copytree(trained / "tuned", tmp_path / "tuned")


def last(run):
    return max((run / "checkpoints").glob("step-*"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def same(model, path):
    state = load_file(path)
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


HARMS = {
    "weights": (lambda step: flip(step / "ema.safetensors"), "SHA-256"),
    "short": (lambda step: cut(step / "ema.safetensors"), "bytes, not"),
    "no average": (lambda step: (step / "ema.safetensors").unlink(), "ema.safetensors is missing"),
    "no meta": (lambda step: (step / "meta.json").unlink(), "meta.json is missing"),
    "cut meta": (lambda step: cut(step / "meta.json"), "meta.json cannot be read"),
    "other meta": (lambda step: (step / "meta.json").write_text("[1, 2]"), "meta.json cannot be read"),
    "no stamps": (lambda step: (step / "meta.json").write_text('{"step": 4, "format": 1, "files": {}}'), "list"),
    "a folder": (lambda step: [(step / "meta.json").unlink(), (step / "meta.json").mkdir()], "meta.json cannot be"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_passed_over_in_one_line(run, harm, capsys):
    damage, reason = HARMS[harm]
    damage(last(run))
    model = maemm.load(run)
    said = capsys.readouterr().err
    assert same(model, run / "checkpoints/step-000002/ema.safetensors")
    assert said.count("\n") == 1 and reason in said and "falling back to step-000002" in said
    with pytest.raises(MaemmError, match=r"step-000004 is damaged \(.*\); give its run"):
        maemm.load(run / "checkpoints/step-000004")


def test_weights_do_not_need_the_optimiser(run, capsys):
    (last(run) / "optimizer.pt").unlink()
    assert same(maemm.load(run), last(run) / "ema.safetensors") and not capsys.readouterr().err


def test_a_file_of_a_checkpoint_is_checked_too(run):
    for name in ("model", "ema"):
        file = last(run) / f"{name}.safetensors"
        flip(file)
        with pytest.raises(MaemmError, match=rf"{name}.safetensors is damaged \(.*SHA-256"):
            maemm.load(file)
    moved = shutil.copy(last(run) / "model.safetensors", run / "mine.safetensors")
    maemm.load(moved)  # nothing says what it should hold


@pytest.mark.parametrize(
    "verb",
    [
        lambda run, data, out: maemm.load(run),
        lambda run, data, out: maemm.embed(run, data, out / "x.npz"),
        lambda run, data, out: maemm.knn(run, data),
        lambda run, data, out: maemm.probe(run, data),
        lambda run, data, out: maemm.score(run, data),
        lambda run, data, out: maemm.evaluate(run, data),
        lambda run, data, out: maemm.retrieve(run, data),
        lambda run, data, out: maemm.reconstruct(run, data, out / "x.png"),
        lambda run, data, out: maemm.diagnose(run, data, out / "x.html"),
        lambda run, data, out: maemm.export(run, out / "x.safetensors", to="safetensors"),
        lambda run, data, out: maemm.convert(run, out / "x.safetensors"),
        lambda run, data, out: recipe_for(run, data, {"data.classes": 2}),
        lambda run, data, out: maemm.pretrain(RECIPE, **{"data.root": data, "out": str(out / "new"), "init": str(run)}),
        lambda run, data, out: maemm.pretrain(str(run), **{"train.steps": 6}),
    ],
)
def test_no_verb_uses_damaged_weights(run, trained, tmp_path, verb):
    for step in (run / "checkpoints").glob("step-*"):
        flip(step / "ema.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MaemmError, match=r"all 2 checkpoints of the run are damaged \(.*SHA-256.*\); "):
        verb(run, str(trained / "few.npz"), tmp_path)
    assert sorted(path for path in tmp_path.iterdir() if path.name != "new") == before


def test_damaged_best_weights_give_way_to_the_last_ones(tuned, capsys):
    best, steps = tuned / "best", last(tuned)
    assert find_checkpoint(tuned) == best / "model.safetensors"
    assert "files" in json.loads((best / "meta.json").read_text())
    flip(best / "model.safetensors")
    assert find_checkpoint(tuned) == steps / "model.safetensors"
    said = capsys.readouterr().err
    assert "best is damaged (model.safetensors does not have the SHA-256" in said and said.count("\n") == 1
    with pytest.raises(MaemmError, match="best is damaged"):
        maemm.load(best)
    cut(best / "model.safetensors")
    (best / "meta.json").unlink()  # as older versions left it: without a stamp
    assert find_checkpoint(tuned) == steps / "model.safetensors"
    assert "best is damaged (model.safetensors cannot be read)" in capsys.readouterr().err
    (best / "model.safetensors").unlink()
    assert find_checkpoint(tuned) == steps / "model.safetensors" and "best is damaged" in capsys.readouterr().err


def test_best_weights_without_a_stamp_are_used_as_before(tuned, capsys):
    """Of older versions, and where a run was killed between its two files."""
    about = json.loads((tuned / "best/meta.json").read_text())
    del about["files"]
    (tuned / "best/meta.json").write_text(json.dumps(about))
    assert find_checkpoint(tuned) == tuned / "best/model.safetensors" and not capsys.readouterr().err


def test_a_run_that_writes_in_the_meantime(run, capsys, monkeypatch):
    """A checkpoint that is pruned while it is looked at is not damaged: there is a newer one."""
    from maemm.weights import checkpoints

    steps, read = run / "checkpoints", checkpoints._meta

    def prune(folder):
        if not (steps / "step-000006").exists():
            shutil.copytree(steps / "step-000004", steps / "step-000006")
            meta = json.loads((steps / "step-000006/meta.json").read_text())
            (steps / "step-000006/meta.json").write_text(json.dumps({**meta, "step": 6}))
            for name in ("step-000002", "step-000004"):
                shutil.rmtree(steps / name)
        return read(folder)

    monkeypatch.setattr(checkpoints, "_meta", prune)
    assert find_checkpoint(run).parent.name == "step-000006" and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda folder: None, "holds no checkpoint; give a run folder"),
        (lambda folder: (folder / "recipe.yaml").write_text("{}"), "holds no checkpoint yet"),
        (lambda folder: (folder / "checkpoints/.step-000002.tmp").mkdir(parents=True), "not written to its end"),
        (lambda folder: (folder / "notes.txt").write_text("mine"), "holds no checkpoint; give a run folder"),
        (lambda folder: (folder / "checkpoints/step-000002").mkdir(parents=True), "meta.json is missing"),
    ],
)
def test_folders_that_hold_nothing_to_load(tmp_path, prepare, text):
    prepare(tmp_path)
    with pytest.raises(MaemmError, match=text) as error:
        maemm.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {type: nonsense}", "nonsense"),
        ("- a list", "is not a mapping"),
        ("modalities: {image: {sise: 8}}", "sise"),
        ("", "is empty"),
    ],
)
def test_a_stored_recipe_is_checked_like_any_recipe(run, trained, text, message):
    (run / "recipe.yaml").write_text(text)
    data = str(trained / "few.npz")
    for verb in (
        lambda: maemm.pretrain({**RECIPE, "out": str(run)}, **{"data.root": data}),
        lambda: maemm.pretrain(str(run)),
        lambda: recipe_for(run, data, {}),
    ):
        with pytest.raises(MaemmError, match=message) as error:
            verb()
        assert "recipe.yaml" in str(error.value) and "another recipe" not in str(error.value)


def test_weights_that_are_pruned_before_they_are_read(run, monkeypatch, capsys):
    from maemm.weights import loading

    steps, find, read = run / "checkpoints", find_checkpoint(run), loading.read_file

    def prune(path):
        if path == find and path.exists():
            (steps / "step-000004").rename(steps / "step-000006")
            meta = json.loads((steps / "step-000006/meta.json").read_text())
            (steps / "step-000006/meta.json").write_text(json.dumps({**meta, "step": 6}))
        return read(path)

    monkeypatch.setattr(loading, "read_file", prune)
    assert same(maemm.load(run), steps / "step-000006/ema.safetensors") and not capsys.readouterr().err
