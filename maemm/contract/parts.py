"""The parts that a plugin brings, as base classes. See :mod:`maemm.contract` for the letters in shapes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from maemm.contract.data import Label, Latents, ModalityInput, Output, Plan, Preprocessed, Sample, Term, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.contract.validity import validity_by_trial

# maemm.model.model.Model, which the contract does not import. Parts may annotate their methods with the real class.
Model: TypeAlias = Any


def mean_over_known(errors: Tensor, known: Tensor | None) -> Tensor:
    """Errors (R, M, O) -> their mean over the known values (R, M); 0 where a token has none."""
    if known is None:
        return errors.mean(-1)
    return torch.where(known, errors, 0.0).sum(-1) / known.sum(-1).clamp(min=1)


def mean_of_counted(target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
    """Targets (R, M, O) with weights (R, M) -> their mean (O,), of known values where ``known`` (R, M, O) is given."""
    if known is None:
        return (target * counted[..., None]).sum((0, 1)) / counted.sum().clamp(min=1e-12)
    weights = counted[..., None] * known
    return (torch.where(known, target, 0.0) * weights).sum((0, 1)) / weights.sum((0, 1)).clamp(min=1e-12)


class Source(ABC):
    """Where samples come from. Runs in worker processes: keep it light and picklable, open files in ``read``.

    A plugin registers a function ``open(root: str | None, list: str | None, *, name: str = MODALITY, ...) -> Source``,
    or a class with such a constructor: it receives ``data.root`` and ``data.list``, then its options. ``name`` is the
    key of ``Sample.raw``: the modality that the samples are for. A recipe may call it differently, and ``paired``
    combines several sources.
    """

    classes: Sequence[str] | None = None  # names of the labels; None: no labels
    multilabel: bool = False  # True: a sample may have several labels, each label is a tuple
    tta_views: int = 1  # number of views of a sample that ``tta_view`` offers

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int, rng: Rng) -> Sample:
        """Read one sample. If it cannot be read, raise any exception: its text is logged as the reason."""

    def name(self, index: int) -> str:
        """How messages and logs identify a sample that could not be read: a path, ``file#index``. Reads nothing."""
        return f"sample {index}"

    def label(self, index: int) -> Label | None:
        """The label of a sample, None if it has none. By default reads the sample."""
        return self.read(index, Rng(("label", index))).label

    def tta_view(self, index: int, number: int) -> Sample:
        """View ``number`` (of ``tta_views``) of a sample. A classifier averages its outputs over all views."""
        return self.read(index, Rng(("view", index)))

    def files(self) -> Iterable[str | bytes | os.PathLike[str]]:
        """The files or folders that hold the samples: cached features are stale once one of them has changed.

        By default those of the sources among its attributes. If there are none, ``data.root`` is used instead.
        """
        for attribute in vars(self).values():
            if isinstance(attribute, Source):
                yield from attribute.files()

    def fingerprint(self) -> str:
        """A text that changes when the data change: it guards exact resuming. By default the number of samples."""
        return f"{type(self).__name__}:{len(self)}"


class Modality(nn.Module, ABC):
    """A kind of signal. It has no parameters before :meth:`connect`, so that it is cheap to send to workers.

    Use :class:`maemm.model.batchnorm.BatchNorm` for batch normalisation. It couples samples, so that a batch cannot be
    split into micro-batches unless the modality has the option ``per_micro_batch`` and it is true.
    """

    tta_views: int = 1  # number of samples that ``load_tta_views`` makes of one
    aligned_with: str | None = None  # the modality whose random numbers it uses too: same crop, same flip (``align``)
    side_inputs: Sequence[str] = ()  # what objectives and targets want made in the worker, see :meth:`side_input`

    # ---- in the worker, one sample
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Any]:
        """What a source read -> tensors and numbers of one sample (uint8 where possible, to be quick to copy).

        ``rng=None``: no augmentation; where the signal is longer than a sample, a fixed part of it.
        """
        return {"x": torch.as_tensor(raw)}

    def side_input(self, name: str, loaded: Mapping[str, Any], rng: Rng | None) -> Tensor:
        """What an objective or a target requests by ``name``, made in the worker from one loaded sample.

        It is not called for what the source has itself, in :attr:`Sample.sides`. They find it, batched, in
        ``Preprocessed.info[name]`` (B, ...): a map of regions (R-MAE), a caption.
        """
        raise MaemmError(
            f"{type(self).__name__} makes no side input {name!r}; read it beside the samples "
            f"(data.source: {{type: beside, arrays: {{{name}: FILE}}}}), or add it to side_input()"
        )

    def moves(self) -> bool:
        """Whether augmentation cuts, mirrors or moves the signal, so that what is stored for the tokens of the whole
        sample (:attr:`Sample.sides`) is not that of the tokens that the model gets. By default not known: False."""
        return False

    def load_tta_views(self, raw: Any) -> list[dict[str, Any]]:
        """``tta_views`` samples made of what was read once: a classifier averages its outputs over them.

        They must be the same every time. By default :meth:`load` without augmentation.
        """
        return [self.load(raw, None)]

    def collate(self, samples: list[dict[str, Any]]) -> Any:
        """Samples -> one raw batch (a dict of tensors with the same keys for every batch). Pads where sizes differ."""
        return torch.utils.data.default_collate(samples)

    # ---- on the device, batched
    def preprocess(self, raw: Any, rng: Rng | None) -> Preprocessed:
        """Raw batch -> what the model sees, x (B, ...) float. ``rng=None``: no augmentation."""
        return Preprocessed(raw["x"].float())

    @abstractmethod
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """Cut x (B, ...) into tokens (B, N, ...), without parameters. Derives ``valid`` (B, N) from that of x."""

    # ---- in the model
    @abstractmethod
    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        """Create the parameters; called once by ``maemm.build``. ``decoder_dim=None``: there is no decoder.

        What only the decoder needs goes into a submodule called ``decoder``.
        """

    @abstractmethod
    def output_dim(self) -> int:
        """O: number of values that the decoder predicts for a token."""

    @abstractmethod
    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Embed the tokens ``index`` (R, V), and only those -> (R, V, D)."""

    @abstractmethod
    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        """Positions of the tokens ``index`` (R, V) -> (R or 1, V, D), D that of ``role``: "encoder" or "decoder"."""

    @abstractmethod
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """What predictions of the tokens ``index`` (R, M) are compared with: (R, M, O) float32."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of each predicted token: (R, M, O) twice -> (R, M) float32. By default the mean squared error.

        ``known`` (R, M, P) bool is passed where ``Tokens.known`` is set: other values are in no loss.
        """
        return mean_over_known((pred.float() - target).square(), known)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Loss of the best constant prediction: targets (R, M, O), weights (R, M) -> (R, M) float32, as :meth:`loss`.

        Logs show it beside the loss ("mean-predictor"). By default that of the mean target, the best one for squared
        errors. A modality with a loss of its own overrides it too; without that it is None, and logs say so.
        """
        if type(self).loss is not Modality.loss:
            return None
        return self.loss(mean_of_counted(target, counted, known).expand_as(target), target, known)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Undo the target's normalisation with the tokens' own statistics: (R, M, O) -> like ``tokens.values``.

        NaN for values that embed() sees but that are in no target.
        """
        return pred

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor | None:
        """Values (R, M, ...) of the tokens ``index`` (None: all) -> signal (R, ...), R rows of a plan of ``tokens``.

        The rest of the signal is NaN (on a grid) or left out (of a set). None: there is no inverse.
        """
        return None

    def plot(self, axes: Any, signal: Tensor) -> None:
        """Draw the signal of one sample, as :meth:`untokenize` returns it, on a matplotlib ``Axes``; NaN is hidden."""
        raise MaemmError(f"{type(self).__name__} has no plot(); add one to get pictures")

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """HTML for the report page that does more than a picture: plays a sound, rotates a shape.

        ``columns``: the signals that :meth:`plot` would draw, all samples at once: caption -> (R, ...). The page has no
        network access and may hold several such pieces; keep each to some hundred kB. None: pictures are enough.
        """
        return None

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        """A small random preprocessed batch, x (B, ...): for tests and builds on the ``meta`` device."""
        raise MaemmError(f"{type(self).__name__} has no example(); add one to be checked and shown")

    def sample_shape(self) -> tuple[int, ...] | None:
        """Shape of one preprocessed sample (without B) with these options: the input of an exported graph.

        By default that of :meth:`example`. None: samples have no usual size.
        """
        return tuple(self.example(1, Rng(("shape",))).x.shape[1:])

    def token_shapes(self) -> int | None:
        """How many shapes the tokens of batches may have in training, in which all batches have equally many samples.

        Every shape is compiled by itself. By default 1: a modality whose batches grow with their longest sample says
        otherwise. None: any number.
        """
        return 1

    def sample_size(self) -> tuple[int, int] | None:
        """(tokens, numbers) of one preprocessed sample with these options, computed without making one.

        Recipes whose samples cannot fit the memory of the machine are refused by it. None: not known.
        """
        return None

    def validity(self, x: Tensor) -> Tensor | None:
        """All True, in the shape of ``Preprocessed.valid`` for x (B, ...). None: :meth:`preprocess` never gives one.

        Where it is not None, an exported graph takes ``valid`` beside ``x``, as the input ``NAME_valid``, and is
        compared with the model on padded samples. By default it is tried out: whether :meth:`example` has ``valid``;
        else whether :meth:`collate` and :meth:`preprocess` give one for {"x": ...} of two sizes or with a NaN; where
        they need other keys, whether :meth:`tokenize` passes ``valid`` on. Override it where that is wrong.
        """
        return validity_by_trial(self, x)

    # ---- what ``maemm show`` and ``maemm data`` report
    def describe(self, raw: Any) -> dict[str, Any]:
        """Facts about what a source read, by name: numbers are reported as ranges, texts are counted.

        By default the shape and dtype of its arrays. Useful facts: height, seconds, sampling rate, channels.
        """
        facts: dict[str, Any] = {}
        for key, value in raw.items() if isinstance(raw, Mapping) else [("", raw)]:
            if hasattr(value, "shape") and hasattr(value, "dtype"):
                facts[f"{key} shape".strip()] = " x ".join(map(str, value.shape)) or "one number"
                facts[f"{key} type".strip()] = str(value.dtype).removeprefix("torch.")
        return facts

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """Undo the options ``mean`` and ``std``: preprocessed (..., C, *size) -> the unit in which they are given."""
        return signal

    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """(C, n) values of each channel before ``mean`` and ``std``, NaN where padded: the input of statistics.

        None: this modality is not normalised by channel.
        """
        return None


class Masking(ABC):
    """Draws a plan for every modality of a batch. No positional parameters."""

    # What the encoder computes first and passes as ``guides``, see :meth:`Encoder.guide`
    guide: Literal["attention", "features", "first_attention"] | None = None

    @property
    def static(self) -> bool:
        """Whether plans for tokens of one shape have one shape in all steps, so that a step may be compiled."""
        return True

    @abstractmethod
    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        """{modality: Tokens} -> {modality: Plan}, visible (R, V) and predict (R, M). All randomness comes from ``rng``.

        A list holds several plans of different sizes for the same samples (V-JEPA 2): each is a forward pass with its
        own terms and counts, and the loss is their mean. ``guides``: {modality: what the encoder computed}, in the
        order of ``tokens``, of those for which :meth:`guide_of` asks.
        """

    def guide_of(self, name: str, progress: float) -> str | None:
        """What the encoder computes of the modality ``name`` when the fraction ``progress`` of the training is done.

        By default :attr:`guide`. None: nothing, which costs nothing: before guidance begins, or where it has no share.
        """
        return self.guide

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        """{modality: lines} about the plans that ``rng`` gives, for ``maemm show``: what was drawn for the whole batch,
        what equal counts cost. By default nothing."""
        return {}


class PerModalityMasking(Masking):
    """Masking that treats each modality by itself.

    Shapes of a plan may depend on N, and on what the host draws for the whole batch, never on the data, even where
    ``tokens.valid`` makes rows ragged:
    ``maemm.model.masking.counts`` turns a random order (``plan_from_order``) or a choice of hidden tokens
    (``plan_from_hidden``) into such a plan.
    """

    @abstractmethod
    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """Tokens (B, N, ...) of the modality ``name`` -> visible (R, V) and predict (R, M), each row sorted."""

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        """:meth:`plan` of each modality: visible (R, V) and predict (R, M)."""
        return {name: self.plan(name, modality_tokens, rng) for name, modality_tokens in tokens.items()}


class Encoder(nn.Module, ABC):
    """Visible tokens -> latents.

    Positional parameters: ``modalities``, the list of their names.
    """

    dim: int  # D
    norm: nn.Module  # the final norm, which pooling may apply later
    reads_predict: bool = False  # True: ``plan.predict`` changes its latents, so that rows cannot share a pass
    # What ``Latents.layers`` holds: the output of a block, or ("ffn") that of its feed-forward part before the residual
    # (data2vec). A target sets it on its own copy of the encoder; ``has_ffn_features`` says whether it may.
    layer_features: Literal["block", "ffn"] = "block"
    has_ffn_features: bool = False

    @abstractmethod
    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        """Embed and encode ``plan.visible`` of each modality: ``Latents.tokens`` (R, V, D) each, in that order.

        ``layers``: blocks, from 0, whose outputs are returned in ``Latents.layers`` too. ``norm=False``: skip the final
        norm.
        """

    def norm_of(self, name: str) -> nn.Module:
        """The final norm of a modality's features; override it where each stream has its own."""
        return self.norm

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates: 0 (embedding), block i: i + 1, depth + 1 for the rest."""
        raise MaemmError(f"{type(self).__name__} has no layer_of(); layer decay needs it")

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """{term name: count, a scalar} of the terms in ``Latents.terms``, from the plans alone."""
        return {}

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict[str, Any]:
        """What a masking needs to know of all tokens, in the order of ``plan.visible``: "features" (B, N, D), the
        "attention" (B, N) that each receives in the last block, or :class:`FirstAttention`, "first_attention".

        ``inputs`` hide nothing; called in eval mode, without gradient. Raises :class:`MaemmError` if it has none.
        """
        raise MaemmError(
            f"the masking needs {kind!r} of {type(self).__name__}, which has no such guide(); choose another "
            "masking or encoder"
        )


class Decoder(nn.Module, ABC):
    """Latents and mask tokens -> predictions.

    Positional parameters: ``outputs``, {modality: O, values of a predicted token}; ``encoder_dim``, D of the latents;
    ``prefix_count``, P prefix tokens of the encoder.
    """

    dim: int | None  # D of the decoder; None: it needs no positions
    decoded_dim: int | None = None  # D of ``Latents.decoded``, which it sets for objectives with a layer of their own
    encoder_options: Mapping[str, Any] = {}  # options that the encoder must have for it

    @abstractmethod
    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        """{modality: predictions (R, M, O)} in the order of ``plan.predict``."""

    def draw(self, inputs: dict[str, ModalityInput], rng: Rng) -> dict[str, Tensor]:
        """{modality: random numbers that :meth:`forward` finds in ``ModalityInput.drawn``}, such as noise (R, N, D).

        Called in training only, with the plans, outside any compiled graph. By default none.
        """
        return {}


class Target(nn.Module, ABC):
    """Replaces a modality's own target: features of a frozen network, HOG, latents of a moving average.

    Positional parameters: ``names``, the modalities that it serves (those with equal ``target`` options share one), and
    ``encoder_dim``. Its parameters and buffers are part of every checkpoint.
    """

    side_inputs: Sequence[str] = ()  # what it needs of each of its modalities, see :meth:`Modality.side_input`
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
    alone.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: str | Mapping[str, Any] = "adamw"  # like train.optimizer
    lr_scale: float = 1.0  # times the learning rate of the step


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

    def connect(self, model: Model) -> None:
        """Called once, when the model is complete: create what depends on its parts, a head on ``model.encoder.dim``.

        Parameters that exist afterwards are trained and stored with the model.
        """

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        """{modality: value that it finds in ``ModalityInput.computed_by[name]``}, such as a teacher's latents.

        As :meth:`Target.precompute`, with ``inputs`` of all modalities of the batch.
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
        """The loss of a phase; predictions in ``out`` carry no gradient."""
        raise MaemmError(f"{type(self).__name__} has no phase_loss() for its phase {phase!r}; add it")


class Head(nn.Module, ABC):
    """The classifier of a fine-tuned model: encoder -> logits.

    Positional parameters: ``encoder_dim``, D of the latents.
    """

    classes: int  # number of classes

    def unused_parameters(self, model: Model, stream: str | None = None) -> Iterable[nn.Parameter]:
        """Parameters of the model that its output (or its output ``stream``) does not depend on. By default none."""
        return ()

    @abstractmethod
    def features(self, model: Model, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """The input of the last layer, (B, F), or {stream: (B, F)}."""

    @abstractmethod
    def forward(self, model: Model, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """Logits (B, classes), or {stream: (B, classes)} where several streams each give some."""
