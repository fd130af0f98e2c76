"""Seeded command lines with mistakes in them: every verb, its words, flags and settings; see :mod:`fuzz_bench`.

All paths are relative: a command runs in a copy of a small workplace (:func:`workplace`), so that the words of a case
are all that is needed to run it again.
"""

from __future__ import annotations

import inspect
import io
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import maemm
from maemm.__main__ import main
from maemm.config.schema import DataConfig, TrainConfig, keys_of
from maemm.tasks import VERBS
from tests.maemm.faults.fuzz import Case

RECIPE = """\
modalities:
  image: {size: 8, patch: 4, masking: {type: random, ratio: 0.5}}
encoder: {type: vit, dim: 16, depth: 1, heads: 2}
decoder: {type: full, dim: 16, depth: 1, heads: 2}
data: {workers: 0, root: few.npz}
train: {steps: 4, batch: 8, lr: 0.01, warmup_epochs: 0, ema: 0.5, save_every: 2, keep: 9}
"""
TUNING = {"train.epochs": 1, "train.warmup_epochs": 0, "train.batch": 8, "data.validation": 0.25, "data.classes": 2}
SAMPLES = 16

RIGHT: dict[str, list[list[str]]] = {  # command lines that work
    "demo": [[], ["out=demo"]],
    "config": [["ls"], ["show", "tiny.yaml", "train.batch=4"], ["cat", "tiny.yaml"], ["show", "run", "--json"]],
    "plugins": [["ls"], ["show", "image"], ["new", "thing", "--axes", "1", "--into", "nothing"], ["show", "random"]],
    "show": [["few.npz", "--recipe", "tiny.yaml", "--count", "1", "-o", "x.png"]],
    "data": [
        ["check", "few.npz", "--recipe", "tiny.yaml", "-o", "x.csv"],
        ["stats", "few.npz", "--recipe", "run", "--workers", "0"],
        ["pack", "clips", "packed", "--as", "video", "--workers", "0"],
        ["pack", "pictures", "shards", "--as", "shards", "--recipe", "tiny.yaml", "--workers", "0", "--samples", "2"],
        ["index", "shards", "--workers", "0"],
    ],
    "estimate": [["tiny.yaml", "--data", "100"], ["tiny.yaml", "data.root=few.npz", "--gpu", "l40s", "--gpus", "2"]],
    "pretrain": [["tiny.yaml", "few.npz", "out=new"], ["run"], ["tiny.yaml", "data.root=few.npz", "out=run"]],
    "reconstruct": [["run", "few.npz", "-o", "x.png", "count=1"]],
    "embed": [["run", "few.npz", "-o", "x.npz"], ["w.safetensors", "few.npz", "-o", "x.safetensors", "--tokens"]],
    "knn": [["run", "few.npz", "-k", "3", "--folds", "2", "--seeds", "1"]],
    "probe": [["run", "few.npz", "--folds", "2", "--seeds", "1", "--pool", "max"]],
    "finetune": [["run", "few.npz", "out=new", "data.classes=2", "train.epochs=1", "train.warmup_epochs=0"]],
    "evaluate": [["tuned", "few.npz", "--batch", "5"], ["tuned", "few.npz", "-o", "x.json", "--per-class"]],
    "retrieve": [["run", "few.npz", "--pair", "image,image"]],
    "score": [["run", "few.npz", "-o", "x.csv", "--plans", "1"], ["run", "few.npz", "-o", "x.npz"]],
    "diagnose": [["run", "few.npz", "--samples", "16", "--alone", "--ratios", "0.5", "-o", "x.html"]],
    "modalities": [["run", "few.npz", "-o", "x", "samples=8"], ["run", "--inputs", "image", "visible=0.5"]],
    "parity": [["tiny.yaml", "few.npz", "--steps", "10", "--seeds", "2", "--change", "train.clip_grad=1"]],
    "ablate": [
        ["tiny.yaml", "few.npz", "--set", "decoder.depth=1,2", "--steps", "2", "--seeds", "1", "--measures", "knn"],
        ["tiny.yaml", "--set", "masking=random,scan:spiral", "--seeds", "1", "--measures", "none", "-o", "x"],
    ],
    "runs": [
        ["ls", "."],
        ["ls", "run"],
        ["best", ".", "--by", "loss"],
        ["compare", "run", "other", "--page", "x.html"],
    ],
    "convert": [["run", "x.safetensors"], ["w.pth", "x.safetensors", "heads=2", "decoder_heads=2", "norm_pix=true"]],
    "export": [["run", "--to", "safetensors", "-o", "x.safetensors"], ["run", "--to", "timm", "-o", "y.safetensors"]],
}
PLACES = (
    "few.npz", "run", "tuned", "other", "tiny.yaml", "w.safetensors", "w.pth", "pictures", "pictures/0.png",
    "nothing", "empty", "text.txt", "pipe", "pipe.npz", "pipe.csv", "pipe.yaml", "zero", "zero.csv", "full",
    "loop", "dangling", "missing", "missing/x", "few.npz/x", "run/recipe.yaml", "run/checkpoints",
    "run/checkpoints/step-000002", "run/metrics.jsonl", "run/.lock", ".", "..", "./", "nothing/x.npz", "~",
    "~/x.npz", "~nobody_here/x", "few.npz#0", "x.npz", "x.csv", "x.json", "x.html", "x.png", "x.txt", "x", ".x",
    "x.", "x.safetensors", "x.pth", "x.pt2", "list.csv", "list.txt", "names.csv", "big.csv",
)  # fmt: skip
WORDS = (
    "", " ", "-", "--", "---", "-x", "--x", "--=", "=", "=x", "x=", "a=b=c", ".=1", "..", "a..b=1", "x" * 300,
    "y" * 20_000, "\x00", "a\x00b", "a\nb", "\t", "\x1b[31m", "\u202eabc", "ä", "é.npz", "日本", "🦒", "\udcff",
    "a\udc80=1", "*", "?", "[x", "%s", "{x}", "$HOME", "0", "-1", "1e999", "nan", "inf", "none", "null", "true",
    "[]", "{}", "[1,2", "{a: 1}", "&a", "*a", "!!x", "'", '"', "a,b", ",", "1,2", "+", "mean", "cls", "before",
    "image", "timm", "hf", "mae", "random", "linear", "published", "attentive", "safetensors", "--help",
    "--version", "--json", "ls", "check", "new", "show",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "-1", "-5", "0.5", "1e3", "1e-300", "1e400", "nan", "inf", "-inf", "1_0", "0x10", "٣",
    " 2", "+2", "1.0", "1e1", "2,3", "true", "",
)  # fmt: skip
HUGE = ("1000000000", "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "9" * 5000)
MORE_WORK = {"--seeds", "--plans", "--epochs", "train.epochs", "train.steps", "aug_repeats"}  # huge: who asks gets it


# --------------------------------------------------------------------------------------------------- the workplace
def workplace(folder: Path) -> Path:
    """Make the workplace that cases copy: data, runs, weights and recipes, all tiny."""
    from PIL import Image

    rng = np.random.default_rng(0)
    here = Path.cwd()
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        Path("tiny.yaml").write_text(RECIPE)
        np.savez("few.npz", x=rng.integers(0, 256, (SAMPLES, 8, 8, 3), np.uint8), y=np.arange(SAMPLES) % 2)
        quiet: dict[str, Any] = {"echo": lambda line: None}
        from maemm import config
        from maemm.train.loop import train

        train(config.load("tiny.yaml", {"out": "run"}, training=True), **quiet)
        narrow = {"out": "other", "encoder.dim": 8, "train.steps": 2, "train.ema": None}
        train(config.load("tiny.yaml", narrow, training=True), **quiet)
        from maemm.tasks.finetune.recipe import recipe_for

        train(recipe_for("run", "few.npz", {**TUNING, "out": "tuned"}), **quiet)
        maemm.knn("run", "few.npz", folds=2, seeds=1)  # leaves a record in the run
        model = maemm.load("run")
        shutil.copy("run/checkpoints/step-000004/ema.safetensors", "w.safetensors")
        import torch

        torch.save(published(), "w.pth")
        assert model.kind is None
        for name in ("pictures", "nothing", "clips"):
            Path(name).mkdir()
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(f"pictures/{number}.png")
        Path("clips/broken.mp4").write_bytes(b"\0" * 100)
        Path("empty").touch()
        Path("text.txt").write_text("some words\n")
        Path("list.csv").write_text("path,label\n0.png,a\n1.png,b\n")
        Path("list.txt").write_text("0.png\n\n2.png\n")
        Path("names.csv").write_text('"unclosed,1\n#x,2\n')
        Path("big.csv").write_text("x," * 200_000)
    finally:
        os.chdir(here)
    return folder


def published() -> dict[str, Any]:
    """The state dict of a tiny model in a published layout."""
    from tests.maemm.faults.weights_cases import published

    return published()


def copied(folder: Path, copy: Path) -> Path:
    """A copy of the workplace, with what lies about in folders and is no file."""
    shutil.copytree(folder, copy / "here", symlinks=True)
    here, home = copy / "here", copy / "home"
    home.mkdir()
    for name in ("pipe", "pipe.npz", "pipe.csv", "pipe.yaml"):
        os.mkfifo(here / name)
    links = {"zero": "/dev/zero", "zero.csv": "/dev/zero", "full": "/dev/full", "loop": "loop", "dangling": "nowhere"}
    for name, target in links.items():
        (here / name).symlink_to(target)
    return here


# ------------------------------------------------------------------------------------------------------ the cases
def commands(seed: int, count: int) -> Iterator[Case]:
    """Command lines of all verbs, each with one to three mistakes."""
    for number in range(count):
        yield command(seed, number)


def command(seed: int, number: int) -> Case:
    """The command line ``number`` of a seed."""
    draw = random.Random(f"command {seed} {number}")
    verb = VERBS[number % len(VERBS)]
    words = [verb, *draw.choice(RIGHT[verb])]
    notes = []
    for _ in range(draw.choice((1, 1, 1, 1, 2))):
        changes = (_replace, _add_flag, _change_value, _add_setting, _leave_out, _repeat, _insert, _swap)
        change = draw.choices(changes, (4, 6, 6, 4, 2, 1, 1, 1))[0]
        notes.append(change.__name__.strip("_"))
        words = change(list(words), verb, draw)
    if draw.random() < 0.1:
        words.append("--json")
    if words[0] == "demo" and len(words) == 1:
        words.append("out=")
    return Case(number, f"{', '.join(notes)}: {words!r}"[:600], words)


@cache
def flags_of(verb: str) -> list[tuple[str, bool]]:
    """(flag, whether a value follows) of a verb, as its help says."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main([verb, "--help"])
    flags = []
    for line in text.getvalue().partition("flags of every verb")[0].splitlines():
        if match := re.match(r"  (-[\w-]+)( [^-\s]\S*)?(?:, (--[\w-]+)( \S+)?)?", line):
            flags += [(flag, bool(match[2] or match[4])) for flag in (match[1], match[3]) if flag]
    return [flag for flag in flags if flag[0] not in ("-h", "--help")]


@cache
def keys() -> list[str]:
    """Keys of settings: of recipes, of published weights, and parameters of the Python functions of all verbs."""
    from maemm.weights.foreign import setting_names

    functions = [function for verb in VERBS if callable(function := getattr(maemm, verb, None))]
    names = [name for function in functions for name in inspect.signature(function).parameters]
    names += [f"data.{key.name}" for key in keys_of(DataConfig)] + [f"train.{key.name}" for key in keys_of(TrainConfig)]
    names += ["modalities.image.size", "modalities.image.masking.ratio", "encoder.dim", "decoder.depth", "head.classes"]
    names += [
        "encoder",
        "modalities",
        "data",
        "train",
        "out",
        "name",
        "init",
        "test.data.list",
        "workers",
        "list",
        "source",
    ]
    return sorted({*names, *setting_names(), "checkpoint_key"})


def _odd(draw: random.Random, name: str = "") -> str:
    pools: list[tuple[str, ...]] = [PLACES, WORDS, NUMBERS, NUMBERS, NUMBERS]
    if name not in MORE_WORK:
        pools.append(HUGE)
    return draw.choice(draw.choice(pools))


def _replace(words: list[str], verb: str, draw: random.Random) -> list[str]:
    if len(words) < 2:
        return _insert(words, verb, draw)
    place = draw.randrange(1, len(words))
    words[place] = draw.choice(PLACES) if draw.random() < 0.6 else _odd(draw, words[place - 1])
    return words


def _add_flag(words: list[str], verb: str, draw: random.Random) -> list[str]:
    other = verb if draw.random() < 0.7 else draw.choice(VERBS)
    flags = flags_of(other)
    if not flags:
        return _insert(words, verb, draw)
    flag, takes_value = draw.choice(flags)
    new = [flag] if not takes_value or draw.random() < 0.1 else [flag, _odd(draw, flag)]
    if len(new) == 2 and draw.random() < 0.3:
        new = ["=".join(new)]
    place = draw.randint(1, len(words))
    return [*words[:place], *new, *words[place:]]


def _change_value(words: list[str], verb: str, draw: random.Random) -> list[str]:
    places = [n for n in range(2, len(words)) if words[n - 1].startswith("-") or "=" in words[n]]
    if not places:
        return _add_flag(words, verb, draw)
    place = draw.choice(places)
    key, sign, _ = words[place].partition("=")
    words[place] = f"{key}={_odd(draw, key)}" if sign else _odd(draw, words[place - 1])
    return words


def _add_setting(words: list[str], verb: str, draw: random.Random) -> list[str]:
    key = draw.choice(keys())
    words.insert(draw.randint(1, len(words)), f"{key}={_odd(draw, key)}")
    return words


def _leave_out(words: list[str], verb: str, draw: random.Random) -> list[str]:
    if len(words) > 1:
        del words[draw.randrange(1, len(words))]
    return words


def _repeat(words: list[str], verb: str, draw: random.Random) -> list[str]:
    word = draw.choice(words)
    words.insert(draw.randint(1, len(words)), word)
    return words


def _insert(words: list[str], verb: str, draw: random.Random) -> list[str]:
    words.insert(draw.randint(0 if draw.random() < 0.1 else 1, len(words)), _odd(draw))
    return words


def _swap(words: list[str], verb: str, draw: random.Random) -> list[str]:
    first, second = (draw.randrange(len(words)) for _ in range(2))
    words[first], words[second] = words[second], words[first]
    return words
