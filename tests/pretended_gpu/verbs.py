"""Every verb that runs a model, on a model and a few samples: {name: function -> numbers}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maemm.contract import Source
from maemm.data.paired import Paired
from maemm.data.subset import Subset
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.tasks._shared.embedding import features, raw_values
from maemm.tasks.demo.pairs import retrieval
from maemm.tasks.diagnose.run import diagnose
from maemm.tasks.embed.run import embed
from maemm.tasks.evaluate.run import evaluate
from maemm.tasks.export.run import export
from maemm.tasks.knn.run import knn
from maemm.tasks.probe.run import probe
from maemm.tasks.reconstruct.run import reconstruct
from maemm.tasks.retrieve.run import retrieve
from maemm.tasks.score.run import score_data
from maemm.train.distributed import DistContext
from maemm.train.measuring import measure
from maemm.train.validation import validate

from .recipes import Samples, Uneven, shrunk

Verb = Callable[[Model, Source, Path, int], Any]


def _embed(**options: bool) -> Verb:
    def run(model: Model, source: Source, folder: Path, batch: int) -> Any:
        embed(model, source, folder / "features.npz", batch=batch, **options)
        with np.load(folder / "features.npz") as stored:
            return {name: stored[name] for name in stored.files if stored[name].dtype.kind in "fib"}

    return run


def _score(model: Model, source: Source, folder: Path, batch: int) -> Any:
    scored = score_data(model, source, folder / "scores.csv", plans=2, batch=batch, pictures=2)
    return scored.scores.samples, scored.scores.tokens, picture(scored.pictures)


def _diagnose(model: Model, source: Source, folder: Path, batch: int) -> Any:
    options = {"samples": len(source), "ratios": (0.5, 0.75), "clusters": 2}
    record = diagnose(model, source, folder / "page.html", batch=batch, **options).record()
    return {key: value for key, value in record.items() if key != "about"}


def _probe(model: Model, source: Source, folder: Path, batch: int) -> Any:
    options = {"folds": 2, "seeds": 1, "epochs": 2, "protocols": ["published", "attentive"]}
    return [cell.values for cell in probe(model, source, batch=batch, out=folder / "probe.json", **options).cells]


def _knn(model: Model, source: Source, folder: Path, batch: int) -> Any:
    comparison = knn(model, source, batch=batch, folds=2, seeds=1, out=folder / "knn.json")
    return [cell.values for cell in comparison.cells]


def _evaluate(model: Model, source: Source, folder: Path, batch: int) -> Any:
    return evaluate(model, source, batch=batch, out=folder / "answers.json").logits


def _reconstruct(model: Model, source: Source, folder: Path, batch: int) -> Any:
    return picture(reconstruct(model, source, folder / "picture.png", count=2).path)


def _round_trip(model: Model, source: Source, folder: Path, batch: int) -> Any:
    embed(model, source, folder / "latents.npz", batch=batch, latents=True)
    stored = reconstruct(model, folder / "latents.npz", folder / "stored.png", count=2, latents=True)
    shown = reconstruct(model, source, folder / "picture.png", count=2, latents=True)
    return picture(stored.path), picture(shown.path), shown.psnr


def _export(model: Model, source: Source, folder: Path, batch: int) -> Any:
    before = {name: (x.device, x.dtype) for name, x in model.state_dict().items()}
    model.train()
    exported = export(model, folder / "model.safetensors", to="safetensors", whole=True, force=True)
    assert {name: (x.device, x.dtype) for name, x in model.state_dict().items()} == before and model.training
    return exported.differences


def _demo(model: Model, source: Source, folder: Path, batch: int) -> Any:
    shown = retrieval(model, source, [*model.modalities])
    assert all(row["query"] for row in shown["rows"])
    return shown["samples"], [[answer["id"] for answer in row["nearest"]] for row in shown["rows"]]


def picture(path: Path | None) -> np.ndarray:
    """A PNG, coarse: a line that is drawn a pixel further is no difference."""
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image.convert("L").reduce(8), np.float32) / 255


VERBS: dict[str, Verb] = {
    "validate": lambda model, source, folder, batch: validate(
        model, source, {**model.recipe, "train": {**model.recipe["train"], "micro_batch": batch}}
    ),
    "monitor": lambda model, source, folder, batch: measure(
        model, source, {**model.recipe, "train": {**model.recipe["train"], "micro_batch": batch}}, ranks=DistContext()
    ),
    "embed": _embed(),
    "embed tokens": _embed(tokens=True),
    "embed latents": _embed(latents=True),
    "raw values": lambda model, source, folder, batch: [
        x.x for x in features(model, source, batch=batch, embed=raw_values).values()
    ],
    "score": _score,
    "diagnose": _diagnose,
    "knn": _knn,
    "probe": _probe,
    "reconstruct": _reconstruct,
    "round trip": _round_trip,
    "export": _export,
    "evaluate": _evaluate,
    "retrieve": lambda model, source, folder, batch: retrieve(model, source, batch=batch, baselines=True).record(),
    "demo": _demo,
}


def model_of(name: str, changes: Mapping[str, Any] | None = None) -> Model:
    """The shrunk recipe's model, always with the same weights, on the CPU."""
    recipe = shrunk(name, {"train.precision": "fp32", "data.workers": 0, **(changes or {})})
    torch.manual_seed(0)
    return build_model(recipe).eval()


def source_of(model: Model, samples: Samples, count: int) -> Source:
    """``count`` samples of what a model reads, from the first of each class to the last."""
    names = list(model.modalities)
    if len(names) == 1:
        source = samples.source(model.recipe["modalities"][names[0]].get("type", names[0]))
    else:
        parts = {name: samples.source(name) for name in names}
        count_all = len(parts[names[0]])
        source = Paired(
            parts, [str(row) for row in range(count_all)], [(row,) * len(names) for row in range(count_all)]
        )
    return Subset(Uneven(source) if samples.uneven else source, [row * len(source) // count for row in range(count)])


def numbers(value: Any) -> list[np.ndarray]:
    """All numbers in something nested, in order; texts as their bytes."""
    if isinstance(value, Mapping):
        return [x for key in sorted(value) for x in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [x for item in value for x in numbers(item)]
    if isinstance(value, Tensor):
        return [value.numpy()]
    if isinstance(value, str):
        return [np.frombuffer(value.encode(), np.uint8)]
    return [] if value is None else [np.asarray(value)]
