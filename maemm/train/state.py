"""What training changes, what a step is given and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maemm.contract import ModalityInput, Output, Phase
from maemm.contract.rng import seeded
from maemm.model.model import Model
from maemm.model.precision import tf32
from maemm.train.distributed import DistContext
from maemm.train.ema import Average
from maemm.train.initialize import InitReport
from maemm.train.optim import WeightDecay, set_lr, step_unless
from maemm.train.sharding import Sharding
from maemm.train.spikes import Guard, Verdict


@dataclass
class PhaseState:
    """An optimisation of its own inside a step, see :class:`maemm.contract.Phase`."""

    objective: str  # its name in the recipe
    phase: Phase
    optimizer: Optimizer

    @property
    def name(self) -> str:
        return f"{self.objective}.{self.phase.name}"

    def step(self, train_state: TrainState, outputs: list[Output], bad: Tensor, step: int) -> None:
        """One update of its parameters, or none where ``bad``, or where their gradient is not finite.

        Sums and counts add up over micro-batches, each of which is forgotten before the next, and over ranks, as in the
        loss.
        """
        dist_context = train_state.dist_context
        parameters = [*self.phase.parameters, *self.phase.shared]
        with seeded(train_state.seed, step, "phase", self.name, dist_context.rank):
            count, gradients = self._local_sums(train_state, parameters, outputs)
        # Where nothing depends on a parameter there is no gradient, on no rank: nothing moves it.
        reached = [number for number, gradient in enumerate(gradients) if gradient is not None]
        parts = [cast(Tensor, gradients[number]).flatten() for number in reached]
        flat = dist_context.all_reduce_sum(torch.cat([count.reshape(1), *parts]))
        flat = flat[1:] / flat[0].clamp(min=1e-12)
        for number, gradient in zip(reached, flat.split([part.numel() for part in parts]), strict=True):
            parameters[number].grad = gradient.view_as(parameters[number])
        main = train_state.optimizer.param_groups[0]
        set_lr(self.optimizer, main["lr"] / main["lr_scale"])
        step_unless(self.optimizer, bad | ~torch.isfinite(flat).all())
        self.optimizer.zero_grad(set_to_none=True)

    def _local_sums(
        self, train_state: TrainState, parameters: list[nn.Parameter], outputs: list[Output]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The count of the loss on this rank, and the gradients of its sum, None where it does not depend on one."""
        model, device = train_state.model, train_state.dist_context.device.type
        count = torch.zeros((), device=train_state.dist_context.device)
        gradients: list[Tensor | None] = [None] * len(parameters)
        with tf32(device), torch.autocast(device, torch.bfloat16, enabled=train_state.bf16):
            for out in outputs:
                term = model.objectives[self.objective].phase_loss(self.phase.name, out, model)
                count = count + term.count.detach().float()
                with torch.autocast(device, enabled=False):
                    new = torch.autograd.grad(term.sum, parameters, allow_unused=True)
                gradients = [b if a is None else a if b is None else a + b for a, b in zip(gradients, new, strict=True)]
        return count, gradients


@dataclass
class TrainState:
    """What training changes, and the settings of a step."""

    model: Model
    net: nn.Module  # the same model, wrapped in DDP where there are several ranks
    optimizer: Optimizer
    dist_context: DistContext
    seed: int
    batch: int  # samples of a step on all ranks
    steps: int  # of the whole training
    bf16: bool = False
    compiled: bool = False
    clip: float | None = None  # norm to which the gradient is clipped
    weight_decay: WeightDecay | None = None  # where it changes with the step
    ema: Average | None = None
    guard: Guard | None = None  # against loss spikes
    mixed: bool = False  # steps differ in their modalities (data.mix)
    phases: list[PhaseState] = field(default_factory=list)  # optimisations besides the main one
    init: InitReport | None = None  # of the weights of ``init``, where it has begun with them
    sharding: Sharding | None = None  # where weights lie in shards on several ranks
    _whole: Model | None = None  # within gathered()

    @property
    def ema_model(self) -> Model | None:
        """The averaged model, if there is one."""
        return None if self.ema is None else self.ema.model

    @property
    def whole(self) -> Model:
        """The model with all its weights on this rank: for shards within :meth:`gathered` alone."""
        return self.model if self._whole is None else self._whole

    @contextmanager
    def gathered(self, *, averaged: bool = False) -> Iterator[Model]:
        """The model, or with ``averaged`` its average if there is one, with all its weights on every rank.

        All ranks enter the block; in it any of them may use the model alone, but for training.
        """
        model = (self.ema_model if averaged else None) or self.model
        if self.sharding is None:
            yield model
            return
        whole = self.sharding.replica.filled(model)
        assert whole is not None
        self._whole = whole
        try:
            yield whole
        finally:
            self._whole = None

    def eager(self) -> AbstractContextManager[Any]:
        """Within the block nothing is compiled: for another batch size. Setting a stance is slow, so only if needed."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()


@dataclass
class MicroBatches:
    """The micro-batches of one rank and step, ready for the model."""

    step: int
    inputs: list[dict[str, ModalityInput]]  # of each forward pass: one per micro-batch and set of plans
    counts: dict[str, Tensor]  # by term, summed over these micro-batches; of several sets of plans by "SET/TERM"
    ids: list[list[str]]  # of the samples of each forward pass
    labels: list[Tensor | None] = field(default_factory=list)  # of each forward pass
    sets: int = 1  # plans of different sizes for each sample, see :class:`maemm.contract.Masking`
    data_set: int = 0  # of a mixture: the number of the set that all samples are from


@dataclass
class StepResult:
    """What came out of a step. Tensors are scalars on the device, over all ranks and micro-batches."""

    terms: dict[str, Tensor]  # mean of each term, before its weight
    total: Tensor  # the loss
    grad_norm: Tensor
    bad: Tensor  # bool: loss or gradient was not finite, or the loss a spike, and nothing has been updated
    bad_micro: Tensor  # (forward passes,) bool: whose loss was not finite, on this rank
    baselines: dict[str, Tensor] = field(
        default_factory=dict
    )  # by modality, or by term: loss of the best constant prediction
    without_baseline: list[str] = field(default_factory=list)  # modalities, and terms, whose loss has none
    weights: dict[str, float] = field(default_factory=dict)  # of each term
    without_gradient: list[str] = field(default_factory=list)  # parameters to train that the loss did not reach
    verdict: Verdict | None = None  # of the guard against loss spikes, where there is one

    @property
    def nonfinite(self) -> Tensor:
        """bool: loss or gradient was not finite."""
        return self.bad if self.verdict is None else self.bad & ~self.verdict.spike
