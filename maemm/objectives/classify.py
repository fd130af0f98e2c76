"""Supervised classification: the objective of fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maemm.contract import Objective, Output, Plan, Prepared, Term
from maemm.draws import Draw, seeded
from maemm.errors import MaemmError


class Classify(Objective):
    """Cross entropy of the head's logits, nothing hidden.

    Mixup, CutMix and random erasing are timm's, on any batch that is one tensor of equal samples: CutMix and erasing
    treat the last two axes as a picture and all before them as channels. The defaults mix nothing; MAE's fine-tuning
    has mixup 0.8, cutmix 1, smoothing 0.1, erase 0.25 (appendix A.1).

    Options
        weight: of the term in the loss
        smoothing: label smoothing
        mixup: alpha of mixup; 0: none
        cutmix: alpha of CutMix; 0: none
        mix_probability: of mixing a batch at all
        mix_switch: probability of CutMix where both are on
        erase: probability that a box of a sample is replaced by noise
        class_weights: factor of the loss by class
    """

    masked = False

    def __init__(
        self,
        name: str,
        *,
        weight: float = 1.0,
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        mix_switch: float = 0.5,
        erase: float = 0.0,
        class_weights: list[float] | None = None,
    ):
        super().__init__()
        for key, value in (("smoothing", smoothing), ("mix_probability", mix_probability), ("erase", erase)):
            if not 0 <= value <= 1:
                raise MaemmError(f"{key} is {value} (objectives.{name}.{key}); give 0 to 1")
        if min(mixup, cutmix) < 0:
            raise MaemmError(f"mixup {mixup}, cutmix {cutmix} (objectives.{name}); give 0 or more")
        self.name, self.weight, self.smoothing, self.erase = name, weight, smoothing, erase
        self.mixup, self.cutmix, self.mix_probability, self.mix_switch = mixup, cutmix, mix_probability, mix_switch
        self.class_weights = class_weights

    # ---- before the forward pass
    def batch(
        self, prepared: dict[str, Prepared], labels: Tensor | None, draw: Draw, model: nn.Module
    ) -> tuple[dict[str, Prepared], Tensor | None]:
        """Erase and mix. Partners are from the same micro-batch. Raises :class:`MaemmError` for missing labels."""
        if model.head is None:
            raise MaemmError("the recipe has no head to classify with (head); add head: {type: linear, classes: N}")
        _check_labels(labels, model.head.classes)
        if self.erase:
            prepared = {name: self._erased(name, one, draw) for name, one in prepared.items()}
        if self.mixup or self.cutmix:
            return self._mixed(prepared, labels, draw, model.head.classes)
        return prepared, labels

    def _erased(self, name: str, one: Prepared, draw: Draw) -> Prepared:
        from timm.data.random_erasing import RandomErasing

        planes = _planes(name, one)
        erasing = RandomErasing(self.erase, mode="pixel", device=str(planes.device))
        kept = []
        for row, plane in zip(draw.rows, planes, strict=True):
            with seeded(*draw.key, "erase", name, row):
                kept.append(erasing(plane.clone()))
        return replace(one, x=torch.stack(kept).reshape(one.x.shape))

    def _mixed(
        self, prepared: dict[str, Prepared], labels: Tensor, draw: Draw, classes: int
    ) -> tuple[dict[str, Prepared], Tensor | None]:
        from timm.data import Mixup

        if len(labels) % 2:
            raise MaemmError(
                f"mixing needs an even number of samples at a time, got {len(labels)} (train.batch, train.micro_batch)"
            )
        mixing = Mixup(
            self.mixup, self.cutmix, None, self.mix_probability, self.mix_switch, "batch", True, self.smoothing,
            classes,
        )  # fmt: skip
        found, soft = {}, labels
        for name, one in prepared.items():
            planes = (_planes if self.cutmix else _values)(name, one).clone()
            with seeded(*draw.key, "mix", draw.rows[0]):  # the same for all modalities of a sample
                mixed, soft = mixing(planes, labels.to(planes.device))
            found[name] = replace(one, x=mixed.reshape(one.x.shape))
        return found, soft

    # ---- the loss
    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        out.logits = model.head(model, out.inputs)
        if out.labels is None:
            return {}
        streams = list(out.logits.values()) if isinstance(out.logits, dict) else [out.logits]
        losses = [self._loss(one.float(), out.labels) for one in streams]
        return {
            self.name: Term(sum(losses[1:], losses[0]) / len(losses), self.counts(out.plans)[self.name], self.weight)
        }

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over samples. Labels that were mixed are smooth already."""
        with torch.autocast(logits.device.type, enabled=False):
            weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
            smoothing = self.smoothing if labels.ndim == 1 else 0.0
            return cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=smoothing)

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        plan = next(iter(plans.values()))
        return {self.name: torch.tensor(float(plan.visible.shape[0]), device=plan.visible.device)}

    def figures(self, out: Output) -> dict[str, Term]:
        """Accuracy of the logits; of the mean over streams where several answer."""
        logits = out.logits
        if isinstance(logits, dict):
            logits = torch.stack(list(logits.values())).mean(0)
        right = (logits.argmax(1) == out.labels).float()
        return {"accuracy": Term(right.sum(), torch.tensor(float(len(right)), device=right.device))}


def _check_labels(labels: Tensor | None, classes: int) -> None:
    """Labels as the loader gives them, on the host: an index out of range would end a GPU's work without a word."""
    if labels is None or bool((labels < 0).any()):
        raise MaemmError(
            "samples have no labels to learn from (data.root); give a folder per class, or a list or an array file "
            "with labels, and set data.classes"
        )
    if int(labels.max()) >= classes:
        raise MaemmError(
            f"a label is {int(labels.max())}, the head has {classes} outputs, which count from 0 (head.classes); raise "
            "it, or mend the labels"
        )


def _values(name: str, one: Prepared) -> Tensor:
    if one.valid is not None and not bool(one.valid.all()):
        raise MaemmError(f"samples of {name!r} differ in size, so they cannot be mixed (objectives); set mixup to 0")
    return one.x


def _planes(name: str, one: Prepared) -> Tensor:
    """(B, C, ..., H, W) -> (B, C * ..., H, W)."""
    x = _values(name, one)
    if x.ndim < 4:
        raise MaemmError(f"samples of {name!r} have no two axes to cut boxes from; set cutmix and erase to 0")
    return x.reshape(x.shape[0], -1, *x.shape[-2:])
