"""Rules of the built model: features, number formats, meta builds, saving, equal seeds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from maemm.contract import Preprocessed
from maemm.testing.case import ROWS, WIDTH, Case, check
from maemm.weights import load, save

MODEL_PARTS = ("modalities", "encoders", "decoders", "objectives", "targets")


@check("modalities", "encoders")
def features_are_repeatable(case: Case) -> None:
    """model.embed gives (B, D) and (B, N, D), finite, and the same again in evaluation mode."""
    model, batch = case.model(), {case.signal: case.example()}
    count = model.modalities[case.signal].tokenize(batch[case.signal]).count
    width = model.encoder.dim if case.role == "encoders" else WIDTH
    for tokens, expected in ((False, (ROWS, width)), (True, (ROWS, count, width))):
        one, again = (model.embed(batch, tokens=tokens)[case.signal] for _ in range(2))
        change = "keep one latent per token"
        case.require(tuple(one.shape) == expected, "the features' shape", tuple(one.shape), expected, change)
        case.require(one.isfinite().all(), "features are finite", "NaN or infinity", "finite values", "fix embed()")
        case.equal(again, one, "features are the same again", "switch dropout off where self.training is False")


@check(*MODEL_PARTS)
def bf16_keeps_losses_in_float32(case: Case) -> None:
    """Under bf16 autocast losses stay float32, finite and near those of float32."""
    model = case.model()
    inputs = case.planned(model)
    plain = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs)
    kinds = {str(out.loss[case.signal].dtype), *(str(one.sum.dtype) for one in out.parts.values())}
    change = "compute losses and targets with .float() values"
    case.require(kinds == {"torch.float32"}, "losses under bf16", ", ".join(sorted(kinds)), "torch.float32", change)
    gap, allowed = (out.total - plain.total).abs(), 0.1 * (1 + plain.total.abs())
    case.require(gap <= allowed, "the loss under bf16", f"{out.total:.4g}", f"{plain.total:.4g} within 10 %", change)


@check(*MODEL_PARTS)
def float64_works(case: Case) -> None:
    """A model in float64 takes float64 signals."""
    model, example = case.model().double(), case.example()
    out = model({case.signal: replace(example, x=example.x.double())}, rng=case.rng())
    kind, change = out.pred[case.signal].dtype, "name no dtype between embed() and the prediction"
    case.require(kind == torch.float64, "predictions of a float64 model", kind, "torch.float64", change)
    case.require(out.total.isfinite(), "the loss of a float64 model", out.total, "a finite one", change)


@check(*MODEL_PARTS, "heads")
def meta_build_works(case: Case) -> None:
    """A model can be built on the meta device, where nothing is computed: no part names a device."""
    with torch.device("meta"):
        model = case.model()
    real = [name for name, one in model.named_parameters() if not one.is_meta]
    change = "make parameters without device="
    case.require(not real, "a meta build", f"real parameters {', '.join(real[:3])}", "meta ones only", change)


@check(*MODEL_PARTS)
def save_and_load_are_exact(case: Case) -> None:
    """A saved and loaded model has the same tensors and gives bit-identical outputs."""
    model = case.model()
    inputs = case.planned(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        again = load(path)
    one, other = model.state_dict(), again.state_dict()
    change = "register every tensor that matters as a parameter or buffer, and set the rest from the options"
    case.require(one.keys() == other.keys(), "saved names", sorted(one.keys() ^ other.keys()), "the same", change)
    for name in one:
        case.equal(other[name], one[name], f"saved tensor {name}", change)
    first, second = model(inputs), again(inputs)
    case.equal(second.pred[case.signal], first.pred[case.signal], "predictions after saving and loading", change)
    case.equal(second.total, first.total, "the loss after saving and loading", change)


@check(*MODEL_PARTS, "heads")
def equal_seeds_give_equal_models(case: Case) -> None:
    """Two builds under one seed have equal weights, and evaluate equally."""
    one, other = case.model(), case.model()
    change = "initialise with torch's own generator, which the seed sets"
    for name, tensor in one.state_dict().items():
        case.equal(other.state_dict()[name], tensor, f"equal seeds give equal {name}", change)
    example: Preprocessed = case.example()
    first, second = (model({case.signal: example}, rng=case.rng()).total for model in (one, other))
    case.equal(second, first, "equal seeds give equal losses", change)
