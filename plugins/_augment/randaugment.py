"""RandAugment (Cubuk et al. 2019) on uint8 images and clips, through timm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded

_WORDS = re.compile(r"rand(-(m\d+(\.\d+)?|n\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|w\d+|p\d+(\.\d+)?|t\w+))*")
_SHIFT = 0.45  # of the shorter side: the largest translation in timm's recipes


class RandAugment:
    """The policy of a timm string such as ``rand-m9-mstd0.5-inc1`` (magnitude 9 with std 0.5).

    ``mean``: of the pixels 0 .. 1, per channel, the fill colour. ``kernel``: bicubic or bilinear. ``where``: the
    option's key, for messages. Raises :class:`MaemmError` for a string that is no policy.
    """

    def __init__(self, text: str, mean: Sequence[float], kernel: str, where: str):
        self.text, self.kernel = text, kernel
        self.fill = tuple(min(255, round(255 * value)) for value in mean)
        try:
            if not _WORDS.fullmatch(text):
                raise ValueError("rand, then -m9, -n2, -mstd0.5, -mmax10, -inc1 in any number")
            _policy(text, self.fill, 100, kernel)
        except Exception as error:  # timm asserts, and converts numbers
            raise MaemmError(
                f"randaugment {text!r} names no policy ({where}: {error}); write one such as rand-m9-mstd0.5-inc1"
            ) from None

    def __call__(self, frames: np.ndarray, rng: Rng) -> np.ndarray:
        """(T, H, W, 3) uint8 -> the same shape, all frames augmented alike. Raises ValueError for other images."""
        if frames.dtype != np.uint8 or frames.shape[-1] != 3:
            raise ValueError("RandAugment is for 8-bit RGB pictures; set randaugment to null")
        policy = _policy(self.text, self.fill, int(min(frames.shape[1:3]) * _SHIFT), self.kernel)
        augmented = []
        for frame in frames:
            with seeded(*rng.key, "randaugment"):  # the same draws for every frame
                augmented.append(np.asarray(policy(Image.fromarray(frame))))
        return np.stack(augmented)

    def on_tensor(self, x: Tensor, rng: Rng) -> Tensor:
        """(3, H, W) uint8 -> the same."""
        frame = np.ascontiguousarray(x.permute(1, 2, 0).numpy())
        return torch.from_numpy(self(frame[None], rng)[0]).permute(2, 0, 1)


@lru_cache(maxsize=64)
def _policy(text: str, fill: tuple[int, ...], shift: int, kernel: str) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    interpolation = Image.Resampling.BICUBIC if kernel == "bicubic" else Image.Resampling.BILINEAR
    return rand_augment_transform(text, {"translate_const": shift, "img_mean": fill, "interpolation": interpolation})
