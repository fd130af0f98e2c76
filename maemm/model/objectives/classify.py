"""Supervised classification, the objective of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maemm.contract import Objective, Output, Plan, Preprocessed, Term
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegative
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.data.labels import labelled, multi_hot
from maemm.model.metrics import mean_average_precision
from maemm.model.objectives.erasing import erase
from maemm.model.objectives.mixing import Mixing, SizeCheck, mixed_before


class Classify(Objective):
    """Cross-entropy of the head's logits.

    Mixup and CutMix are timm's, and random erasing is as timm's. They work on any modality whose samples have equal
    sizes: CutMix and erasing use the last two axes as the image and all before them as channels. By default nothing is
    mixed; MAE's fine-tuning has mixup 0.8, cutmix 1, smoothing 0.1, erase 0.25 (appendix A.1).

    Options
        weight: of the term in the loss
        loss: softmax: one label per sample; sigmoid: any number of labels, binary cross-entropy averaged over classes;
            softmax_shared: any number, which share the probability equally, as hashtags do in weak supervision (Mahajan
            et al. 2018, section 2.2; SWAG, MAWS); a sample without one has no loss
        smoothing: label smoothing
        mixup: alpha of mixup; 0: none
        cutmix: alpha of CutMix; 0: none
        mix_probability: of mixing a batch at all
        mix_switch: probability of CutMix where both are on
        erase: probability that a box of a sample is replaced with noise
        class_weights: factor of the loss for each class
        stream: which of the head's several outputs is trained, such as multimodal (CAV-MAE); null: the mean loss of all
        hide: in training hide tokens with the modalities' masking (AudioMAE, section 3.2); evaluation uses all tokens
    """

    masked = False

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        loss: Literal["softmax", "sigmoid", "softmax_shared"] = "softmax",
        smoothing: Fraction = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        mix_probability: Fraction = 1.0,
        mix_switch: Fraction = 0.5,
        erase: Fraction = 0.0,
        class_weights: list[NonNegative] | None = None,
        stream: str | None = None,
        hide: bool = False,
    ):
        super().__init__()
        self.name, self.weight, self.loss, self.smoothing, self.erase = name, weight, loss, smoothing, erase
        self.mixing = Mixing(mixup, cutmix, mix_probability, mix_switch) if mixup or cutmix else None
        self.class_weights, self.stream, self.hide = class_weights, stream, hide
        self._sizes = SizeCheck()

    # ---- before the forward pass
    def batch(
        self, preprocessed: dict[str, Preprocessed], labels: Tensor | None, rng: Rng, model: Any
    ) -> tuple[dict[str, Preprocessed], Tensor | None]:
        """Erase and mix; the partner of a sample is from the same micro-batch.

        Raises :class:`MaemmError` for missing or wrong labels, and without a head.
        """
        if model.head is None:
            raise MaemmError("the recipe has no head to classify with (head); add head: {type: linear, classes: N}")
        self._check_weights(model.head.classes)
        device = next(iter(preprocessed.values())).x.device
        labels = _checked(labels, model.head.classes, self.loss).to(device, non_blocking=True)
        if self.erase:
            preprocessed = {name: erase(name, x, rng, self.erase, self._sizes) for name, x in preprocessed.items()}
        mixed = any("mix_share" in x.info for x in preprocessed.values())
        if self.loss == "softmax" and self.mixing is None and not mixed:
            return preprocessed, labels  # the loss smooths them
        soft = multi_hot(labels, model.head.classes)
        spread: Tensor | float = self.smoothing / soft.shape[1]
        if self.loss == "softmax_shared":
            spread = spread * soft.amax(1, keepdim=True)  # a sample without a label has nothing to spread
            soft = shared(soft)
        soft = soft * (1 - self.smoothing) + spread
        soft = mixed_before(preprocessed, soft)
        return (preprocessed, soft) if self.mixing is None else self.mixing(preprocessed, soft, rng, self._sizes)

    def _check_weights(self, classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise MaemmError(
                f"{len(self.class_weights)} class_weights are given for {classes} outputs of the head (objectives."
                f"{self.name}.class_weights); give one for each"
            )

    # ---- the loss
    def forward(self, out: Output, model: Any) -> dict[str, Term]:
        out.logits = model.head(model, out.inputs)
        if out.labels is None:
            return {}
        labels = out.labels
        if self.loss != "softmax" and not labels.is_floating_point():
            labels = out.labels = multi_hot(labels, model.head.classes)
            labels = shared(labels) if self.loss == "softmax_shared" else labels
        losses = [self._loss(logits.float(), labels) for logits in self._streams(out.logits)]
        return {
            self.name: Term(sum(losses[1:], losses[0]) / len(losses), self.counts(out.plans)[self.name], self.weight)
        }

    def unused_parameters(self, model: Any) -> Iterable[nn.Parameter]:
        return () if model.head is None else model.head.unused_parameters(model, self.stream)

    def _streams(self, logits: Tensor | dict[str, Tensor]) -> list[Tensor]:
        if not isinstance(logits, dict):
            return [logits]
        if self.stream is None:
            return list(logits.values())
        if self.stream not in logits:
            raise MaemmError(
                f"the head has no output {self.stream!r} (objectives.{self.name}.stream); choose one of "
                f"{', '.join(logits)}"
            )
        return [logits[self.stream]]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over samples. Labels (B, classes) are smoothed already."""
        with torch.autocast(logits.device.type, enabled=False):
            weight = None if self.class_weights is None else small_tensor(self.class_weights, logits.device)
            if self.loss == "sigmoid":
                return binary_cross_entropy_with_logits(logits, labels, weight, reduction="none").mean(1).sum()
            smoothing = self.smoothing if labels.ndim == 1 else 0.0
            return cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=smoothing)

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        plan = next(iter(plans.values()))
        return {self.name: torch.full((), float(plan.visible.shape[0]), device=plan.visible.device)}

    # ---- metrics
    def answers(self, out: Output) -> dict[str, Tensor]:
        """Probabilities (B, classes) of the logits, averaged where the head has several outputs; and labels."""
        assert out.logits is not None and out.labels is not None  # forward() has set them, validation has labels
        logits = torch.stack(self._streams(out.logits)).mean(0)
        probabilities = logits.float().sigmoid() if self.loss == "sigmoid" else logits.float().softmax(1)
        return {"said": probabilities, "labels": out.labels}

    def metrics(self, answers: dict[str, Tensor]) -> dict[str, float]:
        """accuracy, or mAP where samples may have several labels."""
        probabilities, labels = answers["said"], answers["labels"]
        if self.loss != "softmax":
            return {"mAP": mean_average_precision(probabilities.cpu().numpy(), labels.cpu().numpy())}
        return {"accuracy": float((probabilities.argmax(1) == labels).double().mean())}


def shared(labels: Tensor) -> Tensor:
    """Labels (B, L) of 0 and 1 -> the probability of each: those of a sample share it equally; 0 where it has none."""
    return labels / labels.sum(1, keepdim=True).clamp(min=1)


def _checked(labels: Tensor | None, classes: int, loss: str) -> Tensor:
    """Check the loader's labels while they are on the CPU: on a GPU an index out of range is an assertion failure."""
    if labels is None or not bool(labelled(labels).all()):
        raise MaemmError(
            "samples have no labels to learn from (data.root); give all files in a folder per class, or a list or "
            "array with labels, and set data.classes"
        )
    if labels.ndim == 2 and loss == "softmax":
        raise MaemmError(
            "samples have several labels (data.root); set objectives.classify.loss=sigmoid, or softmax_shared for weak "
            "labels"
        )
    if int(labels.max()) >= classes:
        raise MaemmError(
            f"a label is {int(labels.max())}, the head has {classes} outputs, which count from 0 (head.classes); raise "
            "it, or fix the labels"
        )
    return labels
