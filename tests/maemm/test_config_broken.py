"""Broken recipes: each gets one clear line, status 2 and no traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from maemm import config
from maemm.__main__ import main
from maemm.contract.errors import MaemmError

pytestmark = pytest.mark.usefixtures("toy")


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


BAD_YAML = {
    "empty": ("", "is empty"),
    "list": ("- a\n", "is not a mapping (line 1)"),
    "twice": ("a: 1\nb:\n  c: 1\n  c: 2\n", "key 'b.c' is given twice (bad.yaml, lines 3 and 4); remove one"),
    "alias": ("a: &x [1]\nb: *x\n", "uses an alias (line 1)"),
    "laughs": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "uses an alias"),
    "recursion": ("a: &a [*a]\n", "uses an alias"),
    "object": ("a: !!python/object/apply:os.system [echo]\n", "has the YAML tag"),
    "tag": ("a: !!int x\n", "has the YAML tag"),
    "open": ("a: [1,\n", "not valid YAML"),
    "tab": ("a:\n\tb: 1\n", "line 2, column 1"),
    "nul": ("a: \0", "not valid YAML"),
    "deep": ("[" * 2000, "nested too deeply"),
    "deep mapping": ("".join(" " * i + "a:\n" for i in range(200)), "nested too deeply"),
    "key": ("1: 2\n", "'1' is not a key (bad.yaml, line 1)"),
    "dotted": ("train.epochs: 2\n", "'train.epochs' is not a key"),
    "documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "huge": ("a: 1\n" * 300_000, "is larger than 1000 kB"),
}


@pytest.mark.parametrize("kind", BAD_YAML)
def test_bad_yaml_is_one_line_and_quick(kind, capsys):
    text, message = BAD_YAML[kind]
    write("bad.yaml", text)
    start = time.monotonic()
    assert main(["config", "show", "bad.yaml"]) == 2
    assert time.monotonic() - start < 10
    error = capsys.readouterr().err
    assert error.startswith("maemm: error: ") and message in error and error.count("\n") == 1


def test_unreadable_files(capsys):
    with open("latin.yaml", "wb") as file:
        file.write(b"a: \xff\xfe\x00")
    os.mkdir("empty")
    os.mkdir("folder.yaml")
    write("notes.txt", "hello")
    write("weights.pth", "")
    for what, message in {
        "latin.yaml": "latin.yaml is not UTF-8 text (byte 3)",
        "empty": "empty holds no recipe.yaml",
        "folder.yaml": "folder.yaml holds no recipe.yaml",
        "none.yaml": "no file none.yaml",
        "notes.txt": "notes.txt is not a recipe; recipes end in .yaml",
        "weights.pth": "weights.pth holds weights, not a recipe",
        "tiny": "unknown recipe 'tiny'; did you mean 'toy/tiny'?",
        "toy/tinny": "unknown recipe 'toy/tinny'; did you mean 'toy/tiny'?",
    }.items():
        assert main(["config", "show", what]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


GOOD = """\
modalities:
  toy: {size: 16, masking: {type: random, ratio: 0.5}}
encoder: {type: vit, dim: 32}
decoder: {type: full, dim: 16}
train:
  epochs: 3
data: {workers: 0}
"""
BROKEN = {
    "unknown key": (
        ("epochs: 3", "epoch: 3"),
        "unknown key 'train.epoch' (r.yaml, line 6); did you mean 'train.epochs'?",
    ),
    "key at the wrong level": (
        ("data: {", "epochs: 2\ndata: {"),
        "unknown key 'epochs' (r.yaml, line 7); did you mean 'train.epochs'?",
    ),
    "unknown section": (("encoder:", "encodr:"), "unknown key 'encodr' (r.yaml, line 3); did you mean 'encoder'?"),
    "wrong type": (
        ("epochs: 3", "epochs: many"),
        "train.epochs must be int >= 1 | null, got 'many' (r.yaml, line 6); the default is null",
    ),
    "truth for a number": (
        ("workers: 0", "workers: true"),
        "data.workers must be 0 <= int <= 1024, got true (r.yaml, line 7)",
    ),
    "range": (("epochs: 3", "epochs: 3\n  batch: -1"), "train.batch must be int >= 1, got -1 (r.yaml, line 7)"),
    "nan": (("epochs: 3", "epochs: 3\n  lr: .nan"), "nan; give a finite number"),
    "part option": (
        ("dim: 32", "dims: 32"),
        "unknown key 'encoder.dims' (r.yaml, line 3); did you mean 'encoder.dim'?",
    ),
    "part option type": (
        ("ratio: 0.5", "ratio: high"),
        "{mean, std, low, high} | {start, end, over, shape}, got 'high' (r.yaml, line 2)",
    ),
    "part name": (
        ("type: vit", "type: vitt"),
        "unknown encoder 'vitt' at encoder (r.yaml, line 3); did you mean 'vit'?",
    ),
    "no type": (("type: full, ", ""), "decoder has no type (r.yaml, line 4); known decoders: conv, cross,"),
    "type of type": (("type: vit", "type: 3"), "encoder.type must be a name, got 3"),
    "part as number": (("{type: full, dim: 16}", "7"), "decoder must be a name or a mapping, got 7 (r.yaml, line 4)"),
    "modality": (
        ("  toy:", "  toi:"),
        "unknown modality 'toi' at modalities.toi (r.yaml, line 2); did you mean 'toy'?",
    ),
    "modality option": (("size: 16", "sise: 16"), "unknown key 'modalities.toy.sise' (r.yaml, line 2); did you mean"),
    "no modalities": (
        ("  toy: {size: 16, masking: {type: random, ratio: 0.5}}", "  {}"),
        "has no modalities (r.yaml, line 1)",
    ),
    "modalities as list": (
        ("modalities:\n  toy: {size: 16, masking: {type: random, ratio: 0.5}}", "modalities: [toy]"),
        "modalities must be a mapping, got ['toy']",
    ),
    "no encoder": (("encoder: {type: vit, dim: 32}\n", ""), "r.yaml has no encoder; add encoder: {type: NAME}"),
    "same_as nowhere": (
        ("encoder:", "  b: {same_as: toi}\nencoder:"),
        "modalities.b.same_as is 'toi', which is not a modality of this recipe (r.yaml, line 3); did you mean 'toy'?",
    ),
    "same_as itself": (
        ("encoder:", "  b: {same_as: b}\nencoder:"),
        "modalities.b.same_as is 'b', which is not a modality",
    ),
    "same_as chain": (("encoder:", "  b: {same_as: toy}\n  c: {same_as: b}\nencoder:"), "which itself shares another"),
    "beside same_as": (
        ("encoder:", "  b: {same_as: toy, size: 3}\nencoder:"),
        "modalities.b.size cannot be set beside same_as",
    ),
    "objective": (("data:", "objectives: {reconstrukt: {}}\ndata:"), "unknown objective 'reconstrukt'"),
    "two rates": (
        ("epochs: 3", "epochs: 3\n  lr: 1\n  base_lr: 1"),
        "train.lr and train.base_lr are both given (r.yaml, line 8); leave one out",
    ),
    "two lengths": (("epochs: 3", "epochs: 3\n  steps: 4"), "train.epochs and train.steps are both given"),
    "no length": (("epochs: 3", "batch: 3"), "neither train.epochs nor train.steps is given (r.yaml, line 5)"),
    "train as number": (("train:\n  epochs: 3", "train: 3"), "train must be a mapping, got 3"),
    "optimizer": (
        ("epochs: 3", "epochs: 3\n  optimizer: adamx"),
        "unknown optimizer 'adamx' at train.optimizer (r.yaml, line 7); did you mean 'adam'?",
    ),
    "optimizer option": (
        ("epochs: 3", "epochs: 3\n  optimizer: {betas: [1]}"),
        "train.optimizer.betas must be [0 <= float < 1, 0 <= float < 1], got [1]",
    ),
    "precision": (
        ("epochs: 3", "epochs: 3\n  precision: fp16"),
        "train.precision must be 'auto', 'fp32' or 'bf16', got 'fp16'",
    ),
    "source": (("workers: 0", "source: {type: toy, strict: 1}"), "data.source.strict must be bool, got 1"),
    "out": (("data:", "out: [x]\ndata:"), "out must be the name of a folder, got ['x']"),
    "base": (("data:", "_base_: nowhere\ndata:"), "_base_ (r.yaml, line 7): unknown recipe 'nowhere'"),
    "base of base": (
        ("data:", "_base_: child.yaml\ndata:"),
        "child.yaml, the _base_ of r.yaml, has a _base_ of its own",
    ),
    "base list": (("data:", "_base_: [a, b]\ndata:"), "_base_ must be the name of a recipe, got ['a', 'b']"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_recipe_gets_one_clear_line(kind, capsys):
    (old, new), message = BROKEN[kind]
    assert old in GOOD
    write("child.yaml", "_base_: toy/tiny\n")
    write("r.yaml", GOOD.replace(old, new))
    assert main(["pretrain", "r.yaml"]) == 2
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert len(lines) == (2 if kind == "unknown section" else 1), error  # without its section there is no encoder
    assert lines[0].startswith("maemm: error: ") and message in lines[0] and out == ""
    assert not os.path.exists("runs")


def test_the_recipe_that_was_broken_is_good():
    write("r.yaml", GOOD)
    assert config.load("r.yaml", training=True)["train"]["epochs"] == 3


def test_all_mistakes_at_once(capsys):
    write(
        "r.yaml",
        GOOD.replace("epochs: 3", "epoch: 3").replace("type: vit", "type: vitt").replace("size: 16", "size: x"),
    )
    assert main(["config", "show", "r.yaml", "decoder.depth=no"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("maemm: error: ") for line in lines)
    assert "decoder.depth must be 1 <= int <= 500, got 'no' (override)" in "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epochs="], None),  # null: taken away
        (["train.epochs=[1"], "not valid YAML: "),
        (["train.epochs.x=1"], "train.epochs must be int >= 1 | null, got {x: 1} (override)"),
        (["train.epoch=1"], "unknown key 'train.epoch' (override); did you mean 'train.epochs'?"),
        (["_base_=toy/tiny"], "_base_ is only allowed in a file (override)"),
        (["train.epochs=1", "extra"], "unexpected argument"),
    ],
)
def test_broken_overrides(words, message, capsys):
    assert main(["config", "show", "toy/tiny", *words]) == 2
    error = capsys.readouterr().err
    assert (message or "neither train.epochs nor train.steps is given") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "overrides", "message"),
    [
        (3, None, "not int"),
        ({"modalities": {"toy": object()}}, None, "modalities.toy is a object"),
        ({1: 2}, None, "the key 1"),
        ("toy/tiny", {"train..epochs": 1}, "'train..epochs' is not a key"),
        ("toy/tiny", ["train.epochs"], "has no value"),
        ("toy/tiny", {3: 1}, "3 is not a key"),
        ({"modalities": {"toy": {}}, "encoder": "vit", "train": {"epochs": 1}}, None, "the recipe has no out"),
    ],
)
def test_mistakes_from_python(what, overrides, message):
    with pytest.raises(MaemmError) as caught:
        config.load(what, overrides, training=True)
    assert message in str(caught.value)


def test_two_recipes_of_one_name(toy, tmp_path, monkeypatch):
    """A folder of the packaged recipes may not claim the name that a plugin's own folder has."""
    from maemm.config import names

    (tmp_path / "home" / "toy").mkdir(parents=True)
    (tmp_path / "home" / "toy" / "tiny.yaml").write_text(GOOD)
    monkeypatch.setattr(names.resources, "files", lambda package: tmp_path / "home")
    with pytest.raises(MaemmError, match="two recipes are called 'toy/tiny' .*; rename one"):
        config.packaged()
