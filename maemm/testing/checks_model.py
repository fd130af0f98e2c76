"""Rules of the built model: features, dtypes, meta builds, saving and loading, equal seeds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from maemm.testing.case import ROWS, Case, check
from maemm.weights import load, save

MODEL_PARTS = ("modalities", "encoders", "decoders", "objectives", "targets")


@check(*MODEL_PARTS, needs=["forward_fits", "target_of_some_is_part_of_all"])
def features_are_repeatable(case: Case) -> None:
    """In evaluation mode model.embed gives (B, D), or (B, C) of latent tokens, and (B, N, D), finite; features and loss
    are the same each time."""
    model, batch = case.model(), {case.signal: case.example()}
    count, width = case.modality_of(model).tokenize(batch[case.signal]).count, model.encoder.dim
    still = "switch dropout off where self.training is False"
    latents = model.encoder.latent_shape
    pooled = latents[1] if latents is not None and model.encoder.pool == "latents" else width
    for tokens, expected in ((False, (ROWS, pooled)), (True, (ROWS, count, width))):
        first, second = (model.embed(batch, tokens=tokens)[case.signal] for _ in range(2))
        change = "keep one latent per token"
        case.require(tuple(first.shape) == expected, "the features' shape", tuple(first.shape), expected, change)
        case.require(first.isfinite().all(), "features are finite", "NaN or infinity", "finite values", "fix embed()")
        case.equal(second, first, "features are repeatable", still)
    inputs = case.planned(model)
    first, second = (model(inputs).total for _ in range(2))
    case.equal(second, first, "the loss is repeatable", still)


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def bf16_keeps_losses_in_float32(case: Case) -> None:
    """Under bf16 autocast losses stay float32, finite and close to those without autocast."""
    model = case.model()
    inputs = case.planned(model)
    plain = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs)
    dtypes = {str(out.loss[case.signal].dtype), *(str(term.sum.dtype) for term in out.parts.values())}
    change = "compute losses and targets with .float() values"
    case.require(dtypes == {"torch.float32"}, "losses under bf16", ", ".join(sorted(dtypes)), "torch.float32", change)
    gap, allowed = (out.total - plain.total).abs(), 0.1 * (1 + plain.total.abs())
    case.require(gap <= allowed, "the loss under bf16", f"{out.total:.4g}", f"{plain.total:.4g} within 10 %", change)


@check(*MODEL_PARTS, needs=["forward_fits"])
def float64_works(case: Case) -> None:
    """A float64 model accepts float64 signals and predicts in float64."""
    model, example = case.model().double(), case.example()
    (inputs, *_) = model.plan_sets({case.signal: replace(example, x=example.x.double())}, case.rng())
    out = model(inputs)
    dtype, change = out.pred[case.signal].dtype, "cast to no dtype between embed() and the prediction"
    case.require(dtype == torch.float64, "predictions of a float64 model", dtype, "torch.float64", change)
    case.require(out.total.isfinite(), "the loss of a float64 model", out.total, "a finite one", change)


@check(*MODEL_PARTS, "heads", needs=["model_is_built"])
def meta_build_works(case: Case) -> None:
    """A model can be built on the meta device: no part makes tensors on a device of its own."""
    with torch.device("meta"):
        model = case.model()
    real = [name for name, p in model.named_parameters() if not p.is_meta]
    change = "make parameters without device="
    case.require(not real, "a meta build", f"real parameters {', '.join(real[:3])}", "meta ones only", change)


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def save_and_load_are_exact(case: Case) -> None:
    """A saved and loaded model has the same tensors and gives bit-identical outputs."""
    model = case.model()
    inputs = case.planned(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        again = load(path)
    saved, loaded = model.state_dict(), again.state_dict()
    change = "register every tensor that matters as a parameter or buffer, and set the rest from the options"
    case.require(saved.keys() == loaded.keys(), "saved names", sorted(saved.keys() ^ loaded.keys()), "the same", change)
    for name in saved:
        case.equal(loaded[name], saved[name], f"saved tensor {name}", change)
    first, second = model(inputs), again(inputs)
    case.equal(second.pred[case.signal], first.pred[case.signal], "predictions after saving and loading", change)
    case.equal(second.total, first.total, "the loss after saving and loading", change)


@check(*MODEL_PARTS, "heads", needs=["model_is_built", "features_are_repeatable"])
def equal_seeds_give_equal_models(case: Case) -> None:
    """Two builds under one seed have equal weights and equal losses."""
    models = case.model(), case.model()
    change = "initialise with torch's default generator, which the seed sets"
    states = [model.state_dict() for model in models]
    for name, value in states[0].items():
        case.equal(states[1][name], value, f"equal seeds give equal {name}", change)
    example = case.example()
    first, second = (model({case.signal: example}, rng=case.rng()).total for model in models)
    case.equal(second, first, "equal seeds give equal losses", change)
