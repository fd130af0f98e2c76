"""Rules of shapes, which come first: almost every other check depends on them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Term
from maemm.model.model import Model
from maemm.testing.case import DECODER_WIDTH, WIDTH, Case, check

MODEL_PARTS = ("modalities", "maskings", "encoders", "decoders", "targets", "objectives")


@check(*MODEL_PARTS, "heads", needs=["part_can_be_imported"])
def model_is_built(case: Case) -> None:
    """A tiny model with the part can be built: its constructor and its connect() work."""
    case.model()


@check("modalities", needs=["tokens_agree", "model_is_built"])
def embed_fits_the_encoder(case: Case) -> None:
    """embed() of V tokens is (R, V, D), D the encoder's width."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    with torch.no_grad():
        embedded = case.modality_of(model).embed(inputs.tokens, inputs.plan.visible)
    _require_shape(case, embedded, (*inputs.plan.visible.shape, WIDTH), "embed()'s shape", "fix embed()")


@check("modalities", needs=["tokens_agree", "model_is_built"])
def position_fits_its_role(case: Case) -> None:
    """position() of V tokens is (R or 1, V, D), D the width of the encoder or of the decoder."""
    model = case.model()
    inputs, modality = case.planned(model)[case.signal], case.modality_of(model)
    for role, index, width in (
        ("encoder", inputs.plan.visible, WIDTH),
        ("decoder", inputs.plan.predict, DECODER_WIDTH),
    ):
        with torch.no_grad():
            position = modality.position(inputs.tokens, index, role)
        rows = 1 if isinstance(position, Tensor) and position.shape[:1] == (1,) else len(index)
        rule = f"position()'s shape for the {role}"
        _require_shape(case, position, (rows, index.shape[1], width), rule, "fix position()")


@check("modalities", "targets", needs=["tokens_agree", "model_is_built"])
def target_fits_the_output(case: Case) -> None:
    """The target is (R, M, target_dim()) float32, finite, without gradient; by default that is output_dim()."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    target = case.target(model, inputs, inputs.plan.predict)
    expected = (*inputs.plan.predict.shape, case.target_dim(model))
    change = "make target_dim(), by default output_dim(), the last axis of the target"
    _require_shape(case, target, expected, "target's shape", change)
    case.require(target.dtype == torch.float32, "target's dtype", target.dtype, "float32", "return target.float()")
    case.require(target.isfinite().all(), "target is finite", "NaN or infinity", "finite values", "fix the target")
    case.require(not target.requires_grad, "target has no gradient", "one", "none", "detach the target")


@check("modalities", "targets", needs=["target_fits_the_output"])
def loss_is_per_token(case: Case) -> None:
    """loss() returns (R, M) float32, finite."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    target = case.target(model, inputs, inputs.plan.predict)
    known = inputs.tokens.gather_known(inputs.plan.predict)
    if known is not None:
        require_loss_of_known(case, model)
    pred = target.new_zeros(*target.shape[:2], case.target_part(model).output_dim())
    loss = case.loss(model, pred, target, known)
    change = "return one float32 number per predicted token from loss()"
    _require_shape(case, loss, tuple(inputs.plan.predict.shape), "loss per token", change)
    case.require(loss.dtype == torch.float32, "the loss's dtype", loss.dtype, "float32", change)
    case.require(loss.isfinite().all(), "the loss is finite", "NaN or infinity", "finite values", "fix loss()")


def require_loss_of_known(case: Case, model: Model) -> None:
    """A modality whose tokens say what is known must have a loss() that takes it."""
    part = case.target_part(model)
    accepts = not isinstance(part, Modality) or len(inspect.signature(part.loss).parameters) > 2
    change = "accept known=None in loss(), and leave out what is not known"
    case.require(accepts, "loss() where values may be missing", "loss(pred, target)", "a third parameter", change)


@check(
    *MODEL_PARTS,
    needs=["plan_is_legal", "embed_fits_the_encoder", "position_fits_its_role", "loss_is_per_token", "model_is_built"],
)
def forward_fits(case: Case) -> None:
    """A forward pass gives latents (R, V, D), predictions (R, M, O), a loss per token, and terms that are finite."""
    model = case.model()
    for inputs in case.planned_sets(model):
        _require_forward(case, model, inputs)


@torch.no_grad()
def _require_forward(case: Case, model: Model, inputs: dict[str, ModalityInput]) -> None:
    out, plan = model(inputs), inputs[case.signal].plan
    width = case.target_part(model).output_dim()
    for field, expected, change in (
        ("encoded", (*plan.visible.shape, model.encoder.dim), "return a latent per visible token from the encoder"),
        ("pred", (*plan.predict.shape, width), "return a prediction per token of plan.predict from the decoder"),
        ("loss", tuple(plan.predict.shape), "return one number per predicted token from loss()"),
    ):
        value = getattr(out, field).get(case.signal)
        _require_shape(case, value, expected, f"the shape of {field}", change)
        case.require(value.isfinite().all(), f"{field} is finite", "NaN or infinity", "finite values", "fix it")
    change = "return {name: Term(sum, count)} of scalars"
    for name, term in out.parts.items():
        case.require(isinstance(term, Term), f"term {name}", type(term).__name__, "a Term", change)
        for field in ("sum", "count"):
            _require_shape(case, getattr(term, field), (), f"the {field} of term {name}", change)
    case.require(out.total.isfinite(), "the loss", float(out.total), "a finite number", "fix the terms")


def _require_shape(case: Case, value: Any, expected: tuple[int, ...], rule: str, change: str) -> None:
    received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    case.require(received == expected, rule, received, expected, change)
