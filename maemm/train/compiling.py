"""torch.compile in training: where it is safe, equal blocks once, and never in silence another way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.model.repeated import compile_blocks, repeated_blocks
from maemm.train.step import MicroBatches, TrainState, rehearse

Setting = bool | Literal["auto", "blocks"]

MOST_SHAPES = 8  # of the tokens of a run: every one is compiled, and a cold start must end
MOST_GRAPHS = 64  # of a function: torch allows 8, but encoder, decoder and streams share the code of their blocks


def wanted(setting: Setting, model: Model, device: torch.device) -> bool:
    """Whether ``train.compile`` asks for compilation: ``auto`` on CUDA, where the tokens of batches have few shapes.

    Raises :class:`MaemmError` where another setting asks for it and they have too many.
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    reason = _too_many_shapes(model)
    if reason is not None and setting != "auto":
        raise MaemmError(f"{reason} (train.compile); give them few sizes, or set train.compile=false")
    return reason is None


def _too_many_shapes(model: Model) -> str | None:
    if not model.masking.static:
        return "the masking hides another number of tokens in each step, and every number would be compiled"
    shapes = 1
    for name, modality in model.modalities.items():
        count = modality.token_shapes()
        if count is None:
            return f"batches of {name} come in any number of sizes, and every size would be compiled"
        shapes *= count
    return None if shapes <= MOST_SHAPES else f"batches come in {shapes} sizes, more than the {MOST_SHAPES} compiled"


def start(train_state: TrainState, micro_batches: MicroBatches, setting: Setting, log: Callable[[str], Any]) -> None:
    """Compile, before the first step and before DDP; leaves no trace in weights or random numbers.

    ``true`` compiles the forward pass as one graph, the other settings each block, those once that are equal. Where
    that fails, a run with ``auto`` goes on without, and says so; otherwise :class:`MaemmError` is raised.
    """
    model = train_state.model
    blocks = repeated_blocks(model)
    kinds = [type(block) for block in blocks]
    if setting is True:
        # What parts compute once, such as position tables, is computed first: the graph is then that of all steps.
        rehearse(train_state, micro_batches)
        model._compiled_call_impl = _compiled(model._call_impl, log)  # as nn.Module.compile does
    else:
        compile_blocks(blocks, lambda forward: _compiled(forward, log))
    failed = _failure(lambda: rehearse(train_state, micro_batches))
    failures = [text for text in train_state.dist_context.all_gather_object(failed) if text]
    if not failures:
        return
    if setting != "auto":
        raise MaemmError(f"torch.compile failed ({failures[0][:200]}); set train.compile=false")
    log(f"torch.compile failed, so nothing is compiled ({failures[0][:200]})")
    for block, kind in zip(blocks, kinds, strict=True):
        block.__class__ = kind
    train_state.compiled = False


@contextmanager
def compiler_settings() -> Iterator[None]:
    """Within the block, torch compiles up to :data:`MOST_GRAPHS` of one function, and keeps a false alarm to itself."""
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=MOST_GRAPHS), warnings.catch_warnings():
        # Dynamo looks at .grad of everything that enters a block.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


def _failure(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except Exception as error:
        if isinstance(error, TorchDynamoException) or type(error).__module__.startswith("torch._inductor"):
            return (str(getattr(error, "inner_exception", error)).strip() or type(error).__name__).splitlines()[0]
        raise
    return None


def _compiled(forward: Callable[..., Any], log: Callable[[str], Any]) -> Callable[..., Any]:
    """``forward`` without graph breaks; what comes in more sizes than torch compiles goes through it as it is."""
    compiled = torch.compile(forward, dynamic=False, fullgraph=True)
    said = False

    def run(*args: Any, **options: Any) -> Any:
        nonlocal said
        try:
            return compiled(*args, **options)
        except FailOnRecompileLimitHit:
            if not said:
                said = True
                log("warning: batches came in more sizes than torch compiles; those of further sizes are not compiled")
            return forward(*args, **options)

    return run
