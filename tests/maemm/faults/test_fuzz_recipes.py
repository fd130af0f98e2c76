"""Broken recipes: each works, or ends in lines for its user; none hangs, none takes the memory of the machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from maemm import config, registry
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.train.loop import train
from tests.maemm.faults import fuzz

SEED = 20
MEMORY = 3 * 10**9  # bytes that this machine seems to have
KINDS = ("audio", "image", "pointcloud", "signal", "video")
MOST_PARAMETERS, MOST_VALUES, MOST_TOKENS = 2_000_000, 2_000_000, 4_000  # of what is trained for a step


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, str]:
    """{kind: folder of a few samples}."""
    roots = {kind: tmp_path_factory.mktemp("samples") / kind for kind in KINDS}
    for kind, root in roots.items():
        registry.find("samples", kind)(root, count=8)
    return {kind: str(root) for kind, root in roots.items()}


@pytest.fixture
def small_machine(monkeypatch):
    for module in ("maemm.model.size", "maemm.data.order", "maemm.train.setup"):
        monkeypatch.setattr(f"{module}.machine_memory", lambda: MEMORY)


def run(value: Any, folder: Path, samples: dict[str, str]) -> None:
    """Read the recipe, build its model and, where that is small, take a step."""
    if isinstance(value, str):
        file = folder / "r.yaml"
        file.write_text(value, encoding="utf-8", errors="surrogateescape")
        value = file
    recipe = config.load(value, training=True)
    again = config.load({**recipe, "out": None, "name": None}, training=False)
    assert config.dump({**again, "out": None, "name": None}) == config.dump({**recipe, "out": None, "name": None})
    model = build_model(recipe)
    if not is_small(model):
        return
    recipe["train"] |= {"steps": 1, "epochs": None, "compile": False}  # compiling takes a minute
    recipe["data"] |= {"workers": 0, "list": None}
    kinds = {spec.get("type", name) for name, spec in recipe["modalities"].items()}
    kind = next(iter(kinds))
    source = (recipe["data"]["source"] or {}).get("type", kind)
    if len(recipe["modalities"]) > 1 or source not in (kind, f"{kind}_samples") or recipe["data"]["mix"]:
        step_of_examples(model)
        return
    recipe["data"]["root"] = samples[kind]
    recipe.pop("init", None)
    train({**recipe, "out": str(folder / "run")}, echo=lambda line: None)


def is_small(model: Any) -> bool:
    repeats = getattr(model.masking, "masks_per_sample", 1)
    sizes = [modality.sample_size() or (0, 0) for modality in model.modalities.values()]
    values = max(max(numbers, tokens * 48) for tokens, numbers in sizes) * repeats
    tokens = sum(tokens for tokens, _ in sizes)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters < MOST_PARAMETERS and values < MOST_VALUES and tokens < MOST_TOKENS


def step_of_examples(model: Any) -> None:
    """Forward and backward of two random samples."""
    if not model.masked or model.decoder is None:
        return
    rng = Rng(("fuzz",), range(2), 2)
    out = model({name: modality.example(2, rng) for name, modality in model.modalities.items()}, rng=rng)
    losses = [term.weight * term.mean for term in out.parts.values()]
    sum(losses[1:], losses[0]).backward()


def check(case: fuzz.Case, folder: Path, samples: dict[str, str]) -> str:
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of odd sizes; what matters is how it ends
        return fuzz.outcome(case, lambda value: run(value, folder, samples))


def run_all(count: int, tmp_path: Path, samples: dict[str, str]) -> list[str]:
    before = fuzz.peak_memory()
    said = [check(case, tmp_path / str(case.number), samples) for case in fuzz.recipes(SEED, count)]
    assert fuzz.peak_memory() - before < MEMORY
    return said


def test_fifty_broken_recipes(tmp_path, samples, small_machine):
    said = run_all(50, tmp_path, samples)
    assert 5 <= said.count("") <= 40, "some must be refused and some must train"


@pytest.mark.slow
def test_five_hundred_broken_recipes(tmp_path, samples, small_machine):
    said = run_all(500, tmp_path, samples)
    assert 50 <= said.count("") <= 400


def test_cases_are_the_same_every_time():
    first, again = (fuzz.recipe(3, number) for _ in range(2) for number in (7,))
    assert str(first) == str(again) and repr(first.value) == repr(again.value)
    assert str(fuzz.recipe(4, 7)) != str(first)


def test_what_is_no_line_for_a_user_is_told():
    case = fuzz.Case(1, "note", None)

    def internal(value: Any) -> None:
        raise ValueError("x")

    def hangs(value: Any) -> None:
        while True:
            torch.zeros(1)

    def unreadable(value: Any) -> None:
        raise config.MaemmError("a\x00b; c")

    for run_it in (internal, hangs, unreadable):
        with pytest.raises(AssertionError, match="case 1: note"):
            fuzz.outcome(case, run_it, seconds=0.2)
