"""Pictures through latent tokens and back: PSNR of held-out pictures beside what as many numbers give otherwise.

    python benchmarks/latents.py --out benchmarks/results/latents.json

Trains ``image/maetok_tiny_cpu`` on four fifths of the sample set (some minutes on one core; a run that is there is not
trained again) and decodes the others: by the trained network, with and without a mask, by an untrained one, by the
principal components of the training pictures, by a thumbnail that is enlarged again, and by the mean colour. PSNR is
that of each picture in 0 .. 1, cut to that range; mean and standard error over pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _machine import about
from torch import Tensor

import maemm
from maemm import config
from maemm.contract import Source
from maemm.data.open import open_parts
from maemm.data.single_pass import each
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.tasks.reconstruct.round_trip import psnr_of

RECIPE, NAME = "image/maetok_tiny_cpu", "image"
FRACTION = 0.2  # of the sample set, held out


def pictures_of(model: Model, source: Source) -> Tensor:
    """(n, C, H, W) as the model sees them, without augmentation."""
    batches = each(source, dict(model.modalities))
    return torch.cat([model.preprocess({NAME: batch.raw[NAME]})[NAME].x for batch in batches])


@torch.inference_mode()
def decoded(model: Model, pictures: Tensor, ratio: float = 0.0) -> Tensor:
    """What the latents of pictures (n, C, H, W) give back; ``ratio``: how much of them is hidden from the encoder."""
    recipe = {**model.recipe, "masking": {"type": "predict_all", "masking": {"type": "random", "ratio": ratio}}}
    masking, parts = build_model(recipe).masking, []
    for number, x in enumerate(pictures.split(64)):
        model.masking = masking
        inputs = model.plan(x, maemm.Rng(("latents", number), range(len(x)), len(x)))
        latents = model.predict(inputs).latents
        assert latents is not None
        parts.append(model.decode(latents)[NAME])
    return torch.cat(parts)


def components(train: Tensor, test: Tensor, count: int) -> Tensor:
    """Pictures by their first ``count`` principal components, fitted on ``train``: each costs ``count`` numbers."""
    rows, mean = train.flatten(1).double(), train.flatten(1).double().mean(0)
    basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:count]
    return (((test.flatten(1).double() - mean) @ basis.T) @ basis + mean).float().view_as(test)


def thumbnails(pictures: Tensor, numbers: int) -> Tensor:
    """Pictures reduced to at most ``numbers`` values and enlarged again (area, bicubic)."""
    side = math.isqrt(numbers // pictures.shape[1])
    small = F.interpolate(pictures, size=side, mode="area")
    return F.interpolate(small, size=pictures.shape[-1], mode="bicubic", align_corners=False)


def row(name: str, numbers: int, model: Model, restored: Tensor, pictures: Tensor) -> dict[str, Any]:
    """A line of the table: mean PSNR in dB and its standard error."""
    values = np.array(psnr_of(model.modalities[NAME], restored, pictures))
    error = values.std(ddof=1) / math.sqrt(len(values))
    return {"pictures from": name, "numbers": numbers, "psnr": round(values.mean(), 3), "error": round(error, 3)}


def measure(recipe: dict[str, Any], trained: Model) -> list[dict[str, Any]]:
    """The rows of the table for the held-out pictures of a recipe."""
    train_source, held_out = open_parts(recipe)
    assert held_out is not None
    train, test = (pictures_of(trained, source) for source in (train_source, held_out))
    assert trained.encoder.latent_shape is not None
    count, width = trained.encoder.latent_shape
    budget = count * width
    torch.manual_seed(0)
    untrained = build_model(recipe).eval()
    rows = [
        row("latents, trained", budget, trained, decoded(trained, test), test),
        row("latents, trained, half of the patches hidden", budget, trained, decoded(trained, test, 0.5), test),
        row("latents, untrained", budget, trained, decoded(untrained, test), test),
    ]
    for number in sorted({budget, min(budget, 64), min(budget, 16)}, reverse=True):
        most = min(number, len(train) - 1)
        rows.append(row(f"{most} principal components", most, trained, components(train, test, most), test))
    rows.append(row("a thumbnail", 3 * math.isqrt(budget // 3) ** 2, trained, thumbnails(test, budget), test))
    rows.append(row("the mean colour", 3, trained, test.mean((2, 3), keepdim=True).expand_as(test), test))
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", default="runs/maetok_tiny_latents", help="folder of the run, which is trained or goes on"
    )
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe")
    arguments = parser.parse_args(words)
    overrides = [f"data.validation={FRACTION}", f"out={arguments.run}", *arguments.overrides]
    recipe = config.load(RECIPE, overrides, training=True)
    maemm.pretrain(recipe)
    rows = measure(recipe, maemm.load(arguments.run))
    for line in rows:
        print(f"{line['pictures from']:48} {line['numbers']:5} numbers  {line['psnr']:6.2f} +- {line['error']:.2f} dB")
    facts = about() | {"recipe": RECIPE, "overrides": arguments.overrides, "epochs": recipe["train"]["epochs"]}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps({"about": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
