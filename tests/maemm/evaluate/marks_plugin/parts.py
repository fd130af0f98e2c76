"""Waves of 8 x 8 whose direction is their class; what is odd about a data set stands in a JSON file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maemm.contract import Preprocessed, Sample, Source
from maemm.contract.grid import GridModality
from maemm.contract.rng import Rng

DEFAULTS = {
    "samples": 40,
    "classes": ["a", "b", "c", "d"],
    "named": True,
    "bad": [],
    "nan": [],
    "unlabelled": [],
    "seed": 0,
    "noise": 0.3,
    "prefix": "",
    "multilabel": False,
    "tta_views": 1,
}


class Marks(GridModality):
    """One channel.

    Options
        size: sides
        patch: sides of a patch
        ragged: samples of an odd index are shorter
        votes: views of a sample, the later ones turned upside down more and more
    """

    def __init__(self, *, size: int = 8, patch: int = 4, ragged: bool = False, votes: int = 1, **rest: Any):
        super().__init__(size=size, patch=patch, channels=1, **rest)
        self.ragged, self.tta_views = ragged, votes

    def load(self, raw: np.ndarray, rng: Rng | None) -> dict:
        return {"x": torch.from_numpy(raw)}

    def load_tta_views(self, raw: np.ndarray) -> list:
        return [
            {"x": torch.from_numpy((raw * (1 - 2 * k / self.tta_views)).astype(np.float32))}
            for k in range(self.tta_views)
        ]

    def preprocess(self, raw: dict, rng: Rng | None) -> Preprocessed:
        x = raw["x"].float()
        if not self.ragged:
            return Preprocessed(x)
        valid = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
        valid[1::2, 4:] = False
        return Preprocessed(x, valid)


class Source_(Source):
    """Class i % classes, drawn from the seed and i."""

    def __init__(self, options: dict):
        self.options = options
        self.classes = options["classes"] if options["named"] else None
        self.multilabel, self.tta_views = options["multilabel"], options["tta_views"]

    def __len__(self) -> int:
        return self.options["samples"]

    def name(self, index: int) -> str:
        return f"{self.options['prefix']}{index:03d}"

    def fingerprint(self) -> str:
        return json.dumps(self.options)

    def read(self, index: int, rng: Rng) -> Sample:
        o = self.options
        if index in o["bad"]:
            raise ValueError("broken on purpose")
        label = index % len(o["classes"])
        # The name of the class is what is seen, so that data sets with other classes fit together.
        angle = np.pi * (ord(o["classes"][label][0]) - ord("a")) / 4
        noise = np.random.default_rng([o["seed"], index]).standard_normal((8, 8))
        y, x = np.mgrid[0:8, 0:8]
        wave = np.sin(1.2 * (np.cos(angle) * x + np.sin(angle) * y)) + o["noise"] * noise
        wave = np.full_like(wave, np.nan) if index in o["nan"] else wave
        known = None if index in o["unlabelled"] else label
        if self.multilabel and known is not None:  # every third sample has the next class too, as a second wave
            known = (known, (known + 1) % len(self.options["classes"])) if index % 3 == 0 else (known,)
        return Sample({"marks": wave[None].astype(np.float32)}, self.name(index), known)

    def tta_view(self, index: int, number: int) -> Sample:
        sample = self.read(index, Rng(("view", index)))
        if number in self.options.get("lost", []) and index == 1:
            raise ValueError("this view is gone")
        return Sample({"marks": sample.raw["marks"] * (1 - number)}, sample.id, sample.label)


def open_marks(root: str | None, list: str | None = None) -> Source:
    """``root``: a JSON file of options, or nothing."""
    return Source_({**DEFAULTS, **(json.loads(Path(root).read_text()) if root else {})})
