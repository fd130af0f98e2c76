"""A small batch of the samples that a recipe describes, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, Preprocessed
from maemm.contract.rng import Rng
from maemm.data.labels import stack


def small_batch(modality: Modality, size: int, rng: Rng) -> Preprocessed:
    """A batch of whole samples of the size that the recipe says."""
    example = modality.example(size, rng)
    shape = modality.sample_shape()
    if shape is not None and tuple(example.x.shape[1:]) != shape and example.valid is None:
        repeats = [1, *(-(-wanted // has) for wanted, has in zip(shape, example.x.shape[1:], strict=True))]
        example = replace(example, x=example.x.repeat(repeats)[(slice(None), *map(slice, shape))].contiguous())
    sides: dict[str, Tensor] = {}
    for name in modality.side_inputs:
        try:
            sides[name] = torch.stack([modality.side_input(name, {"x": x}, rng) for x in example.x])
        except Exception:  # it comes from the source: a number for each token
            tokens = modality.tokenize(example)
            sides[name] = torch.zeros(tokens.batch, tokens.count, dtype=torch.int64)
    return replace(example, info={**example.info, **sides})


def small_labels(recipe: Mapping[str, Any], size: int) -> Tensor | None:
    """A label for each sample, where the recipe classifies."""
    if not recipe.get("head"):
        return None
    many = any((spec or {}).get("loss") == "sigmoid" for spec in (recipe.get("objectives") or {}).values())
    return stack([(0,) if many else 0] * size)
