"""What a model does before the graph: guides of the masking, plans, what targets and objectives compute once for all.

Functions of a :class:`~maemm.model.model.Model`, without gradient and outside of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from maemm.contract import FirstAttention, ModalityInput, Objective, Plan, Preprocessed, Tokens
from maemm.contract.rng import Rng

Batch = dict[str, Preprocessed]
TokensOf = dict[str, Tokens]
Inputs = dict[str, ModalityInput]


def plan_sets(model: Any, preprocessed: Batch, tokens: TokensOf, rng: Rng, *, bf16: bool) -> list[Inputs]:
    """All plans of each sample, each for a forward pass of its own, with what was computed for all of them.

    ``bf16``: networks that targets and objectives ask run in that precision.
    """
    plans = model.masking(tokens, rng, guides(model, preprocessed, tokens, rng.progress, bf16))
    computed = precompute(model, preprocessed, tokens, bf16=bf16)
    planned = [
        drawn(model, computed(plan), rng.fold_in("decoder", number))
        for number, plan in enumerate(plans if isinstance(plans, list) else [plans])
    ]
    return [_disturbed(model, inputs, rng, number) for number, inputs in enumerate(planned)]


def precompute(
    model: Any, preprocessed: Batch, tokens: TokensOf, *, bf16: bool = False
) -> Callable[[Mapping[str, Plan]], Inputs]:
    """What targets and objectives compute once for all plans; -> a function from plans to the inputs of a pass."""
    computed = _of_targets(model, preprocessed, tokens, bf16)
    computed_by = _of_objectives(model, preprocessed, tokens, bf16)

    def inputs(plans: Mapping[str, Plan]) -> Inputs:
        return {
            name: ModalityInput(tokens[name], plans[name], x, computed.get(name), computed_by=computed_by.get(name, {}))
            for name, x in preprocessed.items()
        }

    return inputs


def drawn(model: Any, inputs: Inputs, rng: Rng | None) -> Inputs:
    """The inputs with the random numbers of the decoder, which it draws in training alone."""
    if rng is None or model.decoder is None or not model.training:
        return inputs
    numbers = model.decoder.draw(inputs, rng)
    return {name: replace(x, drawn=numbers[name]) if name in numbers else x for name, x in inputs.items()}


def _disturbed(model: Any, inputs: Inputs, rng: Rng, number: int) -> Inputs:
    """The inputs of a set of plans as objectives change them, which they do in training alone."""
    if model.training:
        for name, objective in model.objectives.items():
            inputs = objective.disturb(model, inputs, rng.fold_in("disturb", name, number))
    return inputs


@torch.no_grad()
def _of_targets(model: Any, preprocessed: Batch, tokens: TokensOf, bf16: bool) -> dict[str, Any]:
    """{modality: what its target computed}; a target that serves several modalities is called once."""
    computed: dict[str, Any] = {}
    for target in dict.fromkeys(model.targets.values()):
        names = [name for name, other in model.targets.items() if other is target]
        served = {name: preprocessed[name] for name in names if name in preprocessed}
        if served:
            with _autocast(served, target, bf16):
                computed |= target.precompute(model, all_visible(served, tokens))
    return computed


@torch.no_grad()
def _of_objectives(model: Any, preprocessed: Batch, tokens: TokensOf, bf16: bool) -> dict[str, dict[str, Any]]:
    """{modality: {objective: what it computed}}."""
    computed: dict[str, dict[str, Any]] = {}
    for objective_name, objective in model.objectives.items():
        if type(objective).precompute is not Objective.precompute:
            with _autocast(preprocessed, objective, bf16):
                values = objective.precompute(model, all_visible(preprocessed, tokens))
            for name, value in values.items():
                computed.setdefault(name, {})[objective_name] = value
    return computed


def _autocast(batch: Batch, part: Any, bf16: bool) -> Any:
    """bf16 for what a target or an objective asks of a network, where that is the precision and it allows it."""
    device = next(iter(batch.values())).x.device.type
    enabled = part.autocast and (bf16 or torch.is_autocast_enabled(device))
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


# ----------------------------------------------------------------------------------------------------------- guides
def guides(model: Any, preprocessed: Batch, tokens: TokensOf, progress: float, bf16: bool) -> dict[str, Any] | None:
    """{modality: what the encoder computes for the masking, in the order of tokens}; None where it asks nothing."""
    wanted = {name: model.masking.guide_of(name, progress) for name in preprocessed}
    kinds = {kind for kind in wanted.values() if kind is not None}
    if not kinds:
        return None
    inputs = model.without_decoded(all_visible(preprocessed, tokens))
    device = next(iter(preprocessed.values())).x.device.type
    result: dict[str, Any] = {}
    with evaluating(model.encoder, model.modalities), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for kind in sorted(kinds):
            computed = model.encoder.guide(inputs, model.modalities, kind)
            of_kind = [name for name, asked in wanted.items() if asked == kind]
            result |= {name: _in_order_of_tokens(computed[name], tokens[name]) for name in of_kind}
    return result


def _in_order_of_tokens(guide: Any, tokens: Tokens) -> Any:
    """What an encoder computed of all visible tokens, valid ones first -> in the order of tokens; what stands where
    they are not valid is of no use."""
    if tokens.valid is None:
        return guide
    index = (tokens.valid.cumsum(1) - 1).clamp(min=0)
    if isinstance(guide, FirstAttention):
        return guide.at(index)
    return guide.gather(1, index.view(*index.shape, *(1,) * (guide.ndim - 2)).expand(-1, -1, *guide.shape[2:]))


def all_visible(preprocessed: Batch, tokens: TokensOf) -> Inputs:
    """The inputs of a pass that hides nothing."""
    return {
        name: ModalityInput(tokens[name], Plan.all_visible(tokens[name]), preprocessed[name]) for name in preprocessed
    }


@contextmanager
def evaluating(*parts: Any) -> Iterator[None]:
    """Parts in evaluation mode within the block; modules that were in training mode return to it."""
    modules = [module for part in parts for module in part.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
