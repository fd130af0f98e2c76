"""Whose operations they are: the parts of a model tell a ledger when they are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from maemm.model.model import Model
from maemm.tasks.estimate.ledger import OTHER, UPDATE, Ledger

EMBEDDING, TARGETS, TEACHER, GUIDE = "embedding", "targets", "teacher passes", "guide of the masking"


class Forward:
    """What is held at the end of the forward pass, of the largest one."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.before: dict[str, int] = {}  # bytes by part that were there already
        self.kept: dict[str, int] = {}

    def begin(self, *_: Any) -> None:
        """Before it."""
        self.ledger.default = OTHER

    def __call__(self, *_: Any) -> None:
        self.ledger.default = UPDATE
        before = self.before
        kept = {label: size - before.get(label, 0) for label, size in self.ledger.held_by_part.items()}
        if sum(kept.values()) > sum(self.kept.values()):
            self.kept = {label: size for label, size in kept.items() if size > 0}


@contextlib.contextmanager
def by_part(model: Model, ledger: Ledger) -> Iterator[Forward]:
    """Within the block the parts of the model say whose operations they are."""
    forward = Forward(ledger)
    hooks = [model.register_forward_pre_hook(forward.begin), model.register_forward_hook(forward)]
    wrapped: list[tuple[Any, str]] = []
    try:
        for part, name, label, whole in _calls(model):
            if name not in vars(part):  # a part that has two places counts for the first
                setattr(part, name, ledger.wrapped(getattr(part, name), label, whole))
                wrapped.append((part, name))
        yield forward
    finally:
        for hook in hooks:
            hook.remove()
        for part, name in wrapped:
            delattr(part, name)


def _calls(model: Model) -> Iterator[tuple[nn.Module, str, str, bool]]:
    """(part, method, label, whether its parts inside count for it)."""
    for key in ("encoder", "decoder", "head"):
        if (part := getattr(model, key)) is not None:
            yield part, "forward", key, False
    yield model.encoder, "guide", GUIDE, True
    for modality in model.modalities.values():
        yield from ((modality, name, EMBEDDING, False) for name in ("embed", "position"))
        yield from ((modality, name, TARGETS, False) for name in ("target", "loss"))
    for target in model.all_targets():
        yield target, "precompute", TEACHER, True
        yield from ((target, name, TARGETS, False) for name in ("forward", "loss"))
    for name, objective in model.objectives.items():
        yield objective, "precompute", TEACHER, True
        yield from ((objective, method, f"objective {name}", False) for method in ("forward", "over_batch"))
