"""What is predicted and minimised: targets and objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from maemm.contract.data import ModalityInput, Model, Output, Plan, Preprocessed, Term
from maemm.contract.errors import MaemmError
from maemm.contract.means import mean_of_counted
from maemm.contract.modality import Modality
from maemm.contract.rng import Rng


class Target(nn.Module, ABC):
    """Replaces a modality's own target: features of a frozen network, HOG, latents of a moving average.

    Positional parameters: ``names``, the modalities that it serves (those with equal ``target`` options share one), and
    ``encoder_dim``. Its parameters and buffers are part of every checkpoint.
    """

    side_inputs: Sequence[str] = ()  # what it needs of each of its modalities, see :meth:`Modality.side_input`
    whole_samples: bool = False  # True: where the source has it, it is of samples as they are read without augmentation
    autocast: bool = False  # True: :meth:`precompute` may run in the precision of the forward pass (bf16)

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        """Called once before :meth:`output_dim`, with its modalities, which have no parameters yet: what follows from
        their sizes and patches."""

    @abstractmethod
    def output_dim(self) -> int:
        """O: number of values that are predicted for a token, all levels together."""

    def target_dim(self) -> int:
        """T: number of values of a token's target: 1 where it is the index of a class. By default O."""
        return self.output_dim()

    def stored_options(self) -> dict[str, Any]:
        """Options beside those of the recipe with which its checkpoints are built again where files that it was made of
        are not there: sizes that were read from them. By default none."""
        return {}

    def connect(self, model: Model) -> None:
        """Called once, when the model is complete: a teacher copies its modalities and its encoder."""

    def reset(self, model: Model) -> None:
        """Called where the model's weights were replaced by those of ``init``: a moving average begins at them."""

    def before_training(self, steps: int) -> None:
        """Called when training begins or goes on; ``steps``: of the whole training, for schedules of averages."""

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        """{modality: value that :meth:`forward` finds in ``ModalityInput.computed``}, such as a teacher's latents.

        Called once for all plans of a micro-batch, without gradient, outside any compiled graph. ``inputs`` are its
        modalities with nothing hidden, a row per sample.
        """
        return {}

    @abstractmethod
    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        """Targets of the tokens ``index`` (R, M) -> (R, M, T) float32, without gradient."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of each predicted token: (R, M, O), (R, M, T) -> (R, M) float32. By default the mean squared error."""
        return (pred.float() - target).square().mean(-1)

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor | None:
        """Loss of the best constant prediction, (R, M) float32 as :meth:`loss`; see :meth:`Modality.baseline`."""
        if type(self).loss is not Target.loss:
            return None
        return self.loss(mean_of_counted(target, counted).expand_as(target), target)

    def after_step(self, model: Model, step: int, bad: Tensor) -> None:
        """Called after each optimiser step, counted from 0, to update moving averages.

        ``bad`` (bool, on the device): nothing was updated, so nothing may move; use it there, the host must not wait.
        """


@dataclass(frozen=True)
class Phase:
    """A second optimisation inside a step, with its own parameters: the discriminator of GAN-MAE.

    After the main update :meth:`Objective.phase_loss` is minimised for ``parameters``, which the main optimiser leaves
    alone, and for ``shared`` ones, which both optimisers train, each with its own moments. Where the step is bad, or
    the gradient of the phase is not finite, the phase changes nothing; the main update of a good step stays. As in
    the main optimiser, parameters with at most one axis have no weight decay.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: str | Mapping[str, Any] = "adamw"  # like train.optimizer
    lr_scale: float = 1.0  # times the learning rate of the step
    shared: Sequence[nn.Parameter] = ()  # those of the encoder, where it is a part of the discriminator


class Objective(nn.Module, ABC):
    """Computes terms of the loss from the model's output.

    Positional parameters: ``name``, its key below ``objectives`` in the recipe, with which names of its terms begin.
    """

    coupled: bool = False  # True: samples affect each other, so that micro-batches do not add up exactly
    masked: bool = True  # False: no masked forward pass needed; if that holds for all objectives, nothing is hidden
    hide: bool = False  # True: hide tokens in training even if ``masked`` is False
    autocast: bool = False  # of its :meth:`precompute`, as :attr:`Target.autocast`
    # {modality, or * for all of them: what it needs of it}, see :meth:`Modality.side_input`
    side_inputs: Mapping[str, Sequence[str]] = {}
    whole_samples: bool = False  # as :attr:`Target.whole_samples`

    def connect(self, model: Model) -> None:
        """Called once, when the model is complete: create what depends on its parts, a head on ``model.encoder.dim``.

        Parameters that exist afterwards are trained and stored with the model.
        """

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        """{modality: value that it finds in ``ModalityInput.computed_by[name]``}, such as a teacher's latents.

        As :meth:`Target.precompute`, with ``inputs`` of all modalities of the batch.
        """
        return {}

    def disturb(self, model: Model, inputs: dict[str, ModalityInput], rng: Rng) -> dict[str, ModalityInput]:
        """The inputs of one set of plans, with what the encoder sees in place of their tokens (``seen``, of the same
        shapes), or with random numbers that the objective needs itself (``drawn_by``, beside those of others).

        Called in training only, outside any compiled graph. Targets stay those of ``tokens``. By default nothing.
        """
        return inputs

    def over_batch(self, model: Model, inputs: Sequence[dict[str, ModalityInput]]) -> dict[str, Any]:
        """{modality: value that it finds in ``ModalityInput.of_batch[name]``}: what its loss needs to know of all
        micro-batches of a step, such as statistics of their features (``model.encode_rows``).

        Called in each step before its first forward pass, with the ``inputs`` of one set of plans of all micro-batches
        of this rank, without gradient and in the precision of the forward pass. Statistics of batch normalisation stay
        as they are. An objective that has this may have any number of micro-batches although it is ``coupled``.
        """
        return {}

    def condition(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """{modality: (R, 1, D of the decoder) that is added to the decoder's tokens}, visible ones and mask tokens.

        Called in each forward pass, with gradient. Only decoders with ``takes_condition`` can. By default nothing.
        """
        return {}

    @abstractmethod
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        """{term name: sum and count, scalars in float32}; a term of one modality is called ``OBJECTIVE.MODALITY``."""

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """{term name: its value for the best constant prediction}, None where that is not known; called without
        gradient. Terms that are left out have the baseline of their modality, see :meth:`Modality.baseline`."""
        return {}

    def batch(
        self, preprocessed: dict[str, Preprocessed], labels: Tensor | None, rng: Rng, model: Model
    ) -> tuple[dict[str, Preprocessed], Tensor | None]:
        """Change a training batch and its labels before it is tokenised, as mixup does.

        Labels are (B,) int64 with -1 for none, or (B, L) if multi-label, see :mod:`maemm.data.labels`.
        """
        return preprocessed, labels

    def answers(self, out: Output) -> dict[str, Tensor]:
        """What :meth:`metrics` needs of one validation batch: {name: (B, ...)}.

        Floating point values are averaged over the views of a sample.
        """
        return {}

    def metrics(self, answers: dict[str, Tensor]) -> dict[str, float]:
        """Metrics other than the loss, such as accuracy, from the :meth:`answers` of a whole validation."""
        return {}

    @abstractmethod
    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        """{term name: count, a scalar} from the plans alone: the training loop needs them before the first backward."""

    def after_step(self, model: Model, step: int, bad: Tensor) -> None:
        """Called after each optimiser step, to update moving averages; ``bad`` as in :meth:`Target.after_step`."""

    def unused_parameters(self, model: Model) -> Iterable[nn.Parameter]:
        """Parameters of the model that its loss does not depend on; those that no objective uses are not trained.

        By default none.
        """
        return ()

    def phases(self, model: Model) -> Sequence[Phase]:
        """Its own optimisations inside a step, by default none."""
        return ()

    def phase_loss(self, phase: str, out: Output, model: Model) -> Term:
        """The loss of a phase, for one forward pass; predictions in ``out`` carry no gradient.

        It runs in the precision of the forward pass, with random numbers of its own.
        """
        raise MaemmError(f"{type(self).__name__} has no phase_loss() for its phase {phase!r}; add it")
