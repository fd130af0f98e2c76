"""The reading guide of docs/architecture.md names the files that take part in a training step, in order."""

from __future__ import annotations

import os
import re
import sys
from itertools import count
from pathlib import Path

import torch

from maemm import config, registry
from maemm.data.loader import Loader
from maemm.tasks.pretrain.run import train_recipe

REPOSITORY = Path(__file__).parents[2]
HOMES = {f"{os.path.realpath(REPOSITORY / folder)}{os.sep}": folder for folder in ("maemm", "plugins")}


def guide() -> list[str]:
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split("## Reading guide")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.M)


def files_of_a_step(tmp_path: Path, monkeypatch) -> list[str]:
    """Files of the repository in the order in which the second step of a small run first calls into them."""
    registry.find("samples", "image")(tmp_path / "data")
    overrides = {
        "data.root": str(tmp_path / "data"), "out": str(tmp_path / "run"), "data.workers": 0,
        "train.steps": 3, "train.epochs": None, "train.warmup_epochs": 0, "train.log_every": 1000,
    }  # fmt: skip
    recipe = config.load("image/mae_tiny_cpu", overrides, training=True)
    files: dict[str, None] = {}

    def note(frame, event, argument):
        if event == "call":
            path = os.path.realpath(frame.f_code.co_filename)
            for home, folder in HOMES.items():
                if path.startswith(home):
                    files[f"{folder}/{path[len(home) :]}"] = None

    steps = Loader.steps

    def traced(*arguments):
        batches = steps(*arguments)
        try:
            for number in count():  # from when the second step wants its samples to when the third does
                sys.setprofile(note if number == 1 else None)
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                yield batch
        finally:
            sys.setprofile(None)
            batches.close()

    monkeypatch.setattr(Loader, "steps", traced)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_recipe(recipe, echo=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    return list(files)


def test_the_guide_names_the_files_of_a_step(tmp_path, monkeypatch):
    assert guide() == files_of_a_step(tmp_path, monkeypatch)
