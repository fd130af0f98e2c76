"""torch.compile in training: where it is safe, equal blocks once, and never in silence another way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.build import build_masking, build_modalities
from maemm.model.model import Model
from maemm.model.repeated import compile_blocks, repeated_blocks
from maemm.train.state import MicroBatches, TrainState
from maemm.train.step import rehearse

Setting = bool | Literal["auto", "blocks"]

MOST_SHAPES = 16  # of the tokens of a run: every one is compiled, and a cold start must end
MOST_GRAPHS = 8 * MOST_SHAPES  # of a function, as encoder, decoder and streams share the code of their blocks


@dataclass(frozen=True)
class Sizes:
    """In how many sizes the tokens of a run come, and are visible and predicted."""

    count: int | None  # at most; None: any number
    why_any: str = ""  # where it is None

    @property
    def refusal(self) -> str | None:
        """Why such steps are not compiled, if they are not."""
        if self.count is None:
            return f"{self.why_any}, and every size would be compiled"
        if self.count <= MOST_SHAPES:
            return None
        return f"batches come in up to {self.count:,} sizes, more than the {MOST_SHAPES} that are compiled"


def sizes_of(recipe: dict[str, Any]) -> Sizes:
    """The sizes of batches (``Modality.token_shapes``) times those of plans for them (``Masking.shapes``).

    Plans are asked about the tokens of an example. Raises :class:`MaemmError` for plans that can never be drawn.
    """
    count, tokens = 1, {}
    for name, modality in build_modalities(recipe).items():
        shapes = modality.token_shapes()
        if shapes is None:
            return Sizes(None, f"batches of {name} come in any number of sizes")
        count *= shapes
        try:
            tokens[name] = modality.tokenize(modality.example(1, Rng(("sizes",))))
        except MaemmError:
            return Sizes(None, f"{name} has no example() that tells its tokens")
    of_plans = build_masking(recipe).shapes(tokens)
    if of_plans is None:
        return Sizes(None, "the masking hides any number of tokens in a step")
    return Sizes(count * of_plans)


def wanted(setting: Setting, model: Model, device: torch.device) -> bool:
    """Whether ``train.compile`` asks for compilation: ``auto`` on CUDA, where tokens and plans have few sizes.

    Raises :class:`MaemmError` where another setting asks for it and they have too many.
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    refusal = sizes_of(model.recipe).refusal
    if refusal is not None and setting != "auto":
        raise MaemmError(f"{refusal} (train.compile); give them few sizes, or set train.compile=false")
    return refusal is None


def on_gpu(setting: Setting, recipe: dict[str, Any]) -> str:
    """In words: whether ``train.compile`` compiles the steps of a recipe on a GPU, and why not."""
    if setting is False:
        return "not compiled (train.compile: false)"
    sizes = sizes_of(recipe)
    if sizes.refusal is not None:
        return f"not compiled, as {sizes.refusal}"
    return "compiled, as all batches have one size" if sizes.count == 1 else f"compiled, in {sizes.count} sizes"


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
