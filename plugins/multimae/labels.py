"""Label maps: the class of every pixel, embedded as words are, predicted by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.means import mean_over_known
from maemm.contract.options import PositiveInt, Rate
from maemm.contract.rng import Rng

from .modality import Map
from .read import channels_last

MOST_CLASSES = 30_000  # signed 16 bits hold their numbers
_BYTE = 255  # of up to 255 classes: what says in a byte that the class is not known


class LabelMap(Map):
    """Label maps (B, 1, height, width) of the picture: a class for every pixel.

    Classes are embedded, and the embeddings of a patch are projected to a token (MultiMAE's semantic adapter; published
    with 133 classes, ``embedding`` 64, on maps of a quarter of the picture's size: ``stride`` 4). The decoder predicts
    scores of all classes for every pixel of a hidden patch. Maps are resized to the nearest value. Pixels of unknown
    class are in no loss, and add nothing to their token.

    Options
        size: height and width of the picture that the model sees, one number or two
        patch: height and width of a patch on the picture, one number or two
        stride: pixels of the picture for one of the map
        classes: number of classes; pixels hold 0 .. classes - 1
        embedding: width of the embedding of a class
        ignore: a value that means an unknown class, often 255; null: there is none
        unknown: what to do about other values: refuse the sample as unreadable, or ignore them, as unknown classes
        smoothing: of the labels in the loss
        colours: of the classes in pictures, [[red, green, blue], ...] from 0 to 255; null: those of Pascal VOC
    """

    key = "label_map"

    def __init__(
        self,
        *,
        classes: Annotated[int, Ge(2), Le(MOST_CLASSES)],
        embedding: PositiveInt = 64,
        stride: PositiveInt = 4,
        ignore: int | None = None,
        unknown: Literal["refuse", "ignore"] = "refuse",
        smoothing: Rate = 0.0,
        colours: Sequence[Sequence[Annotated[int, Ge(0), Le(255)]]] | None = None,
        gaps: bool = False,
        **maps: Any,
    ):
        for option in ("mean", "std", "normalize", "interpolation", "loss", "channels"):
            if option in maps:
                raise MaemmError(f"classes have no {option} (modalities.{self.key}.{option}); leave it out")
        gaps = gaps or ignore is not None or unknown == "ignore"
        super().__init__(stride=stride, channels=1, interpolation="nearest", normalize="none", gaps=gaps, **maps)
        if ignore is not None and 0 <= ignore < classes:
            raise MaemmError(
                f"{ignore} is one of the {classes} classes (modalities.{self.key}.ignore); give another value, or null"
            )
        self.classes, self.width, self.ignore, self.unknown, self.smoothing = (
            classes, embedding, ignore, unknown, smoothing,
        )  # fmt: skip
        table = voc_colours(classes) if colours is None else np.asarray(colours)
        if table.shape != (classes, 3):
            raise MaemmError(
                f"colours are {table.shape} numbers for {classes} classes (modalities.{self.key}.colours); give three "
                "for each"
            )
        self.colours = torch.from_numpy(table.astype(np.float32) / 255)

    # ---- in the worker
    def _check_range(self, raw: np.ndarray) -> None:
        if raw.ndim != 3 or raw.shape[2] != 1:
            raise ValueError(f"has shape {raw.shape}, a label map is (height, width, 1): a class for every pixel")
        if raw.dtype.kind == "f" and not np.array_equal(raw, np.floor(raw)):
            raise ValueError("holds values that are no whole numbers, which classes are")
        if self.unknown == "refuse":
            wrong = (raw < 0) | (raw >= self.classes)
            if self.ignore is not None:
                wrong &= raw != self.ignore
            if wrong.any():
                raise ValueError(
                    f"{int(wrong.sum()):,} pixels have {raw[wrong].flat[0]:g}, which is none of the {self.classes} "
                    f"classes (modalities.{self.key}.classes); set ignore, or unknown: ignore"
                )

    def _pixels(self, raw: np.ndarray) -> Tensor:
        """(H, W, 1) -> (1, H, W), uint8 or int16."""
        known = (raw >= 0) & (raw < self.classes)
        if self.classes <= _BYTE:
            x = np.where(known, raw, _BYTE).astype(np.uint8)
        else:
            x = np.where(known, raw, -1).astype(np.int16)
        return torch.from_numpy(x).permute(2, 0, 1)

    def _resized(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return super()._resized(x.float(), size).to(x.dtype) if tuple(x.shape[1:]) != tuple(size) else x

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, 1, H, W)} -> numbers of classes in float32, mirrored; pixels of unknown class are not valid."""
        x, info = self._moved(raw["x"], rng)
        x = x.float()
        if not self.gaps:
            return Preprocessed(x, info=info)
        valid = (x >= 0) & (x < self.classes)
        return Preprocessed(torch.where(valid, x, 0.0), valid, info)

    # ---- model
    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        super().connect(encoder_dim, decoder_dim)
        self.class_embedding = nn.Embedding(self.classes, self.width)
        nn.init.trunc_normal_(self.class_embedding.weight, std=0.02)
        self.embedding = nn.Linear(self.values_dim() * self.width, encoder_dim)
        nn.init.xavier_uniform_(self.embedding.weight)

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        classes = tokens.gather(index).long().clamp(0, self.classes - 1)
        embedded = self.class_embedding(classes)  # (R, V, P, width)
        known = tokens.gather_known(index)
        if known is not None:
            embedded = embedded * known[..., None]
        return self.embedding(embedded.flatten(-2))

    # ---- target
    def output_dim(self) -> int:
        return self.values_dim() * self.classes

    def target_dim(self) -> int:
        return self.values_dim()

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Numbers of classes (R, M, P) float32."""
        return tokens.gather(index).float().clamp(0, self.classes - 1)  # what stands for unknown pixels is in no loss

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Cross-entropy of scores (R, M, P * classes), the mean over the pixels of a token: (R, M) float32."""
        scores = pred.float().reshape(-1, self.classes)
        errors = F.cross_entropy(scores, target.long().reshape(-1), reduction="none", label_smoothing=self.smoothing)
        return mean_over_known(errors.view(target.shape), known)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor | None:
        """The best constant scores are the frequencies of the classes at each pixel of a patch."""
        pixels = target.shape[-1]
        weights = counted[..., None].expand_as(target)
        weights = (weights if known is None else weights * known).reshape(-1, pixels)
        place = target.long().reshape(-1, pixels) + self.classes * torch.arange(pixels, device=target.device)
        sums = target.new_zeros(pixels * self.classes).scatter_add(0, place.flatten(), weights.flatten())
        shares = sums.view(pixels, self.classes) / sums.view(pixels, self.classes).sum(1, keepdim=True).clamp(min=1e-12)
        constant = shares.clamp(min=1e-12).log().flatten()
        return self.loss(constant.expand(*target.shape[:2], -1), target, known)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """The likeliest class of each pixel (R, M, P); numbers of classes stay as they are."""
        if pred.shape[-1] == self.values_dim():
            return pred.float()
        return pred.unflatten(-1, (-1, self.classes)).argmax(-1).float()

    # ---- pictures, statistics and tests
    def denormalize_input(self, signal: Tensor) -> Tensor:
        return signal.float()

    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """Classes are not normalised."""
        return None

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        uniform = rng.uniform("example", batch, 1, *self.size)[0]
        return Preprocessed((uniform * self.classes).floor())

    def describe(self, raw: np.ndarray) -> dict[str, Any]:
        """Height and width in pixels, data type, how many classes a map holds."""
        height, width, _ = channels_last(raw).shape
        return {"height": height, "width": width, "type": str(raw.dtype), "classes": len(np.unique(raw))}

    def plot(self, axes: Any, signal: Tensor) -> None:
        """A map of classes (1, H, W) in their colours; what is hidden or unknown is grey."""
        values = signal.detach().float().cpu()[0]
        known = values.isfinite()
        pixels = self.colours[values.nan_to_num(0.0).round().long().clamp(0, self.classes - 1)]
        axes.set_axis_off()
        axes.imshow(torch.where(known[..., None], pixels, torch.tensor(0.6)).numpy(), interpolation="nearest")


def voc_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: the colours of Pascal VOC, whose number's bits are spread over red, green and blue."""
    number = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((number >> channel) & 1) << (7 - bit)).astype(np.uint8)
        number = number >> 3
    return colours
