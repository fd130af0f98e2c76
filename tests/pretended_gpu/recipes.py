"""Packaged recipes, shrunk, and steps of training on samples of their own kind: on the CPU or on the pretended GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from maemm import config, registry
from maemm.contract import Modality, Sample, Source
from maemm.contract.rng import Rng
from maemm.data.labels import stack
from maemm.data.loader import Batch
from maemm.model.build import build_modalities
from maemm.train.compiling import start
from maemm.train.distributed import DistContext
from maemm.train.logging import Means
from maemm.train.nonfinite import NonFiniteWatch
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

from .device import PretendedGpu
from .work import Work

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "studies"
)
BATCH = 4
SMALL = {"dim": 48, "depth": 2, "heads": 2}
INITS = ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "constant_")


def shrunk(name: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe with narrow networks; of clips with fewer frames. Everything else is as packaged."""
    recipe = config.load(name, {})
    changes: dict[str, Any] = {"train.batch": BATCH, "train.micro_batch": None, "train.compile": False}
    for part in ("encoder", "decoder"):
        changes |= {f"{part}.{key}": x for key, x in SMALL.items() if key in (recipe.get(part) or {})}
    for modality, spec in recipe["modalities"].items():
        kind = spec.get("type", modality)
        if kind == "video" and "same_as" not in spec:
            frames, *sides = spec.get("size", (16, 224, 224))
            slots = 2 * spec.get("patch", (2, 16, 16))[0]
            changes[f"modalities.{modality}.size"] = [min(frames, slots), *(min(side, 64) for side in sides)]
            if spec.get("predict_frames"):
                changes[f"modalities.{modality}.predict_frames"] = 2
    return config.load(name, {**changes, **(overrides or {})})


#: recipes of samples that may differ in size -> options that let them
RAGGED = {
    name: {"modalities.pointcloud.points": None} if name.startswith("pointcloud/") else {}
    for name in RECIPES
    if name.split("/")[0] in ("audio", "cav", "pointcloud", "signal")
}


def shortened(raw: Any, index: int, all_channels: bool = False) -> Any:
    """A sound, cloud or signal without its end: of four neighbours the first is whole, the others miss ever more.

    ``all_channels``: none of a signal is lost, for models whose tokens are of all channels.
    """
    rest = 1 - 0.2 * (index % 4)
    if isinstance(raw, Mapping):  # a signal; the last one has lost a channel too
        channels = len(raw["x"]) - (index % 4 == 3 and len(raw["x"]) > 1 and not all_channels)
        x = raw["x"][:channels, : round(rest * raw["x"].shape[1])]
        return {**raw, "x": x, "channels": raw["channels"][:channels]}
    if isinstance(raw, np.ndarray):  # of a picture only the last axis is 3; of a cloud (N, 3 + features) there are two
        return raw[: round(rest * len(raw))] if raw.ndim == 2 else raw
    return replace(raw, length=round(rest * raw.length)) if hasattr(raw, "length") else raw


class Uneven(Source):
    """A source whose samples are :func:`shortened`."""

    def __init__(self, source: Source):
        self.source, self.classes = source, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        sample = self.source.read(index, rng)
        return Sample({name: shortened(x, index) for name, x in sample.raw.items()}, sample.id, sample.label)

    def label(self, index: int) -> Any:
        return self.source.label(index)


class Samples:
    """The sample sets of all plugins, written once; ``uneven``: sounds, clouds and signals of different sizes."""

    def __init__(self, folder: Path, uneven: bool = False):
        self.folder, self.uneven, self.sources = folder, uneven, {}

    def source(self, kind: str) -> Source:
        if kind not in self.sources:
            root = self.folder / kind
            root.mkdir(parents=True, exist_ok=True)
            registry.find("samples", kind)(root)
            self.sources[kind] = registry.find("sources", kind)(str(root), name=kind)
        return self.sources[kind]

    def raw(self, recipe: dict[str, Any], name: str, modality: Modality, step: int, times: int = 1) -> Any:
        """A collated batch of one modality, augmented as in training; ``times``: how often each sample is in it."""
        spec = recipe["modalities"][name]
        kind = spec.get("type", name)
        source = self.source("image" if "same_as" in spec else kind)
        loaded = []
        for row in range(BATCH):
            rng = Rng((0, 0, step * BATCH + row, 0))
            raw = source.read((step * BATCH + row) % len(source), rng).raw[source.modality]
            if kind == "signal":  # as many channels as the model has, of its names
                names = modality.names
                length = max(raw["x"].shape[1], modality.length)
                rows = [np.resize(raw["x"][number % len(raw["x"])], length) for number in range(len(names))]
                raw = {**raw, "x": np.stack(rows), "channels": list(names)}
            all_channels = kind == "signal" and not modality.per_channel
            raw = shortened(raw, row, all_channels) if self.uneven else raw
            loaded.append(modality.load(raw, rng.fold_in(name)))
        return modality.collate(loaded * times)

    def batch(self, recipe: dict[str, Any], step: int, names: list[str] | None = None, times: int = 1) -> Batch:
        """What the loader gives to one step; ``names``: the modalities of a mixed run's data set."""
        modalities = build_modalities(recipe)
        raw = {
            name: self.raw(recipe, name, modality, step, times)
            for name, modality in modalities.items()
            if names is None or name in names
        }
        labels = None
        if recipe.get("head"):
            many = any((x or {}).get("loss") == "sigmoid" for x in (recipe.get("objectives") or {}).values())
            labels = stack(([(0, 1), (1,), (), (2, 1)] if many else [0, 1, 2, 0]) * times)
        rows = list(range(BATCH * times))
        ids = [f"sample {row}" for row in rows]
        sides = {name: _sides(modality, raw[name]) for name, modality in modalities.items() if modality.side_inputs}
        return Batch(raw, ids, labels, rows, [], step, 0, side_inputs=sides)


def _sides(modality: Modality, raw: Any) -> dict[str, Tensor]:
    """Ids of tokens, where a target reads them from files; regions of rows of pixels."""
    if "regions" in modality.side_inputs:
        labels = torch.arange(modality.size[0], dtype=torch.uint8) // 8
        return {"regions": labels.view(1, 1, -1, 1).expand(len(raw["x"]), 1, *modality.size).contiguous()}
    tokens = modality.tokenize(modality.preprocess(raw, None))
    ids = torch.arange(tokens.batch * tokens.count).view(tokens.batch, tokens.count)
    return dict.fromkeys(modality.side_inputs, ids)


def two_steps(
    recipe: dict[str, Any], samples: Samples, dist_context: DistContext, seen: PretendedGpu | None = None
) -> list[Tensor]:
    """The losses, on the device. ``seen`` is cleared before the last step, which does what any later one does."""
    state = make_train_state(recipe, 10, 1, dist_context, steps_per_epoch=5)
    means, watch = Means(dist_context.device), NonFiniteWatch(dist_context, 10, print)
    sets: list[list[str] | None] = [["image"], ["video"]] if recipe["data"].get("mix") else [None]
    losses = []
    for step in range(2 * len(sets)):
        batch = samples.batch(recipe, step, sets[step % len(sets)])
        if seen is not None:
            batch = batch.pin_memory()
            if step < 1 + len(sets):
                seen.clear()
        set_lr(state.optimizer, 1e-3)
        micro_batches = plan_micro_batches(state, step, [batch])
        result = take_step(state, micro_batches)
        means.add({"loss": result.total, "grad_norm": result.grad_norm}, result.bad)
        watch.add(step, result, micro_batches.ids)
        losses.append(result.total.detach())
    return losses


def counted_step(recipe: dict[str, Any], samples: Samples, seen: PretendedGpu, work: Work) -> dict[str, int]:
    """Count the work of a later step of a recipe, at its own batch size: the second of two, on shapes alone.

    The model is not initialised. Returns bytes: "held" before it (weights, moments), "kept" by the forward pass for the
    backward pass.
    """
    train = recipe["train"]
    rows = train.get("micro_batch") or train["batch"]
    accumulation = train["batch"] // rows
    with mock.patch.multiple("torch.nn.init", **dict.fromkeys(INITS, lambda x, *args, **kwargs: x)):
        state = make_train_state(
            recipe, 10, accumulation, DistContext(device=torch.device("cuda", 0)), steps_per_epoch=5
        )
    sets: list[list[str] | None] = [["image"], ["video"]] if recipe["data"].get("mix") else [None]
    kept: list[int] = []

    def note(model: Any, arguments: Any, out: Any) -> None:
        kept.append(work.held)

    state.model.register_forward_hook(note)
    for step in range(1 + len(sets)):
        batch = samples.batch(recipe, step, sets[step % len(sets)], rows // BATCH)
        if step == 1:
            seen.clear()
            work.clear()
            kept.clear()
            held = work.held
        set_lr(state.optimizer, 1e-3)
        micro_batches = plan_micro_batches(state, step, [batch] * accumulation)
        if not step and state.compiled:
            start(state, micro_batches, train["compile"], print)
        if step == 1:
            planned = work.held
        result = take_step(state, micro_batches)
        del micro_batches, batch, result
    return {"held": held, "kept": kept[0] - planned}
