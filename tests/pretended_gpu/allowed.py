"""Where the host may wait for the device all the same, and why: the whole list."""

from __future__ import annotations

from .device import Event

#: file and function -> why
ALLOWED = {
    "maemm/train/optim.py step_unless": "an optimiser that is not fused (LARS) asks whether to step",
    "tasks/_shared/baselines.py untrained": "the weights of another network go to the device, before its first batch",
    "tasks/probe/trained.py _fit_and_score": "the weights of a probe go to the device, before its first step",
    "maemm/data/transfer.py finish": "the last batch of a pass, after which nothing else is there to be done; a small "
    "number of passes, never of batches (the tests count)",
}
#: what a training step may do of these: nothing, where the optimiser is fused
IN_STEPS = ("maemm/train/optim.py step_unless",)


def is_allowed(event: Event, among: tuple[str, ...] = tuple(ALLOWED)) -> bool:
    return f"{event.file} {event.function}" in among
