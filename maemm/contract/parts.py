"""The parts that a plugin brings, as base classes. See :mod:`maemm.contract` for the letters in shapes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.data import Label, Latents, ModalityInput, Output, Plan, Preprocessed, Sample, Term, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng


class Source(ABC):
    """Where samples come from. Lives in worker processes: keep it light and picklable, open files in ``read``.

    A plugin registers a function ``open(root: str | None, list: str | None, *, name: str = MODALITY, ...) -> Source``
    (or such a class): ``data.root`` and ``data.list``, then options. ``name`` is the modality that the samples are for,
    the key of ``Sample.raw``: recipes may call a modality otherwise, and ``paired`` puts several sources together.
    """

    classes: Sequence[str] | None = None  # names of the labels, where there are labels
    multilabel: bool = False  # samples may have several labels: each label is a tuple then
    tta_views: int = 1  # in how many ways ``tta_view`` reads a sample

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int, rng: Rng) -> Sample:
        """Read one sample. Whatever is wrong with it is an exception, whose text becomes the reason in the log."""

    def name(self, index: int) -> str:
        """What messages and logs call a sample that could not be read: a path, ``file#index``. Reads nothing."""
        return f"sample {index}"

    def label(self, index: int) -> Label | None:
        """The label of a sample, None where it has none. By default the sample is read for it."""
        return self.read(index, Rng(("label", index))).label

    def tta_view(self, index: int, number: int) -> Sample:
        """View ``number`` of the sample, of ``tta_views``: a classifier averages its answers over all views."""
        return self.read(index, Rng(("view", index)))

    def files(self) -> Iterable[str | bytes | os.PathLike]:
        """Files, or folders of them, behind the samples: stored features are stale when one of them has changed.

        By default those of the sources that this one holds. Where none are told, ``data.root`` stands for them.
        """
        for held in vars(self).values():
            if isinstance(held, Source):
                yield from held.files()

    def fingerprint(self) -> str:
        """Changes when the data change: guards exact resume. By default the number of samples."""
        return f"{type(self).__name__}:{len(self)}"


class Modality(nn.Module, ABC):
    """A kind of signal. Without :meth:`connect` it has no parameters, so that workers get it cheaply.

    Batch normalisation goes through :class:`maemm.model.batchnorm.BatchNorm`. It couples samples, so that a batch
    cannot be split into micro-batches unless the modality has the option ``per_micro_batch`` and it is true.
    """

    tta_views: int = 1  # how many samples ``load_tta_views`` makes of one

    # ---- in the worker, one sample
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Any]:
        """What a source read -> tensors and numbers of one sample (uint8 where it can be).

        ``rng=None``: no augmentation; where the signal is longer than a sample, a fixed part of it.
        """
        return {"x": torch.as_tensor(raw)}

    def load_tta_views(self, raw: Any) -> list[dict[str, Any]]:
        """``tta_views`` samples of what was read once: a classifier is asked about all, and its answers are averaged.

        What is drawn for them is the same each time. By default :meth:`load` without augmentation.
        """
        return [self.load(raw, None)]

    def collate(self, samples: list[dict[str, Any]]) -> Any:
        """Samples -> one raw batch (a dict of tensors, the same keys for every batch). Pads where sizes differ."""
        return torch.utils.data.default_collate(samples)

    # ---- on the device, batched
    def preprocess(self, raw: Any, rng: Rng | None) -> Preprocessed:
        """Raw batch -> what the model sees, x (B, ...) float. ``rng=None``: no augmentation."""
        return Preprocessed(raw["x"].float())

    @abstractmethod
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """Cut x (B, ...) into tokens (B, N, ...); no parameters. Element validity becomes token validity (B, N)."""

    # ---- in the model
    @abstractmethod
    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        """Make the parameters; called once by ``build``. What only the decoder needs goes under a child ``decoder``."""

    @abstractmethod
    def output_dim(self) -> int:
        """O: values that the decoder's head predicts for one token."""

    @abstractmethod
    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Embed only the tokens ``index`` (R, V) -> (R, V, D)."""

    @abstractmethod
    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        """(R, V) -> (R or 1, V, D of the role); ``role`` is "encoder" or "decoder"."""

    @abstractmethod
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """What the tokens ``index`` are compared with: (R, M, O) float32."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss per predicted token: (R, M, O) twice -> (R, M) float32. Default: mean squared error."""
        return (pred.float() - target).square().mean(-1)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Undo the target's normalisation with the tokens' own statistics: (R, M, O) -> like ``tokens.values``."""
        return pred

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor | None:
        """Values (R, M, ...) of the tokens ``index`` (all if None) -> signal (R, ...), NaN (or nothing) elsewhere.

        None: there is no inverse.
        """
        return None

    def plot(self, axes: Any, signal: Tensor) -> None:
        """Draw one sample's signal, as :meth:`untokenize` gives it, on a matplotlib ``Axes``; NaN means hidden."""
        raise MaemmError(f"{type(self).__name__} has no plot(); add one to get pictures")

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """A piece of HTML for the report page that does more than a picture: plays a sound, turns a shape.

        ``columns``: what :meth:`plot` draws, all samples at once: caption -> (R, ...). The piece stands in a page that
        has no network, perhaps beside others of its kind; some hundred kB at most. None: pictures are enough.
        """
        return None

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        """A small random prepared batch, x (B, ...): for tests and ``meta`` builds."""
        raise MaemmError(f"{type(self).__name__} has no example(); add one to be checked and shown")

    def sample_shape(self) -> tuple[int, ...] | None:
        """Shape of one prepared sample (without B) as these options have it: what an exported graph is made for.

        By default that of :meth:`example`. None: samples have no usual size.
        """
        return tuple(self.example(1, Rng(("shape",))).x.shape[1:])

    # ---- what ``maemm show`` and ``maemm data`` tell about data
    def describe(self, raw: Any) -> dict[str, Any]:
        """Facts about what a source read, by name: numbers are summed up as ranges, texts counted.

        By default shape and type of its arrays. Say what a person would ask for: height, seconds, rate, channels.
        """
        facts: dict[str, Any] = {}
        for key, one in raw.items() if isinstance(raw, Mapping) else [("", raw)]:
            if hasattr(one, "shape") and hasattr(one, "dtype"):
                facts[f"{key} shape".strip()] = " x ".join(map(str, one.shape)) or "one number"
                facts[f"{key} type".strip()] = str(one.dtype).removeprefix("torch.")
        return facts

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """Undo the options ``mean`` and ``std``: (..., C, *size) as prepared -> the unit in which they are given."""
        return signal

    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """(C, n) values of each channel before ``mean`` and ``std``, NaN where padded: what statistics are taken of.

        None: there is nothing to normalise by channels.
        """
        return None


class Masking(ABC):
    """Draws a plan for every modality of a batch."""

    guide: str | None = None  # "attention" or "features": what the encoder must tell first

    @abstractmethod
    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        """{modality: Tokens} -> {modality: Plan}, visible (R, V) and predict (R, M); all chance comes from ``rng``.

        ``guides``: {modality: what the encoder told}, where ``guide`` asks for it.
        """


class PerModalityMasking(Masking):
    """Masking that looks at one modality at a time.

    Shapes of a plan depend on N alone, never on the data, also where ``tokens.valid`` makes rows ragged:
    ``maemm.model.masking.counts`` turns a random order (``plan_from_order``) or a choice of hidden tokens
    (``plan_from_hidden``) into such a plan.
    """

    @abstractmethod
    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """Tokens (B, N, ...) of the modality ``name`` -> visible (R, V) and predict (R, M), rows sorted ascending."""

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        """:meth:`plan` of each modality: visible (R, V) and predict (R, M)."""
        return {name: self.plan(name, one, rng) for name, one in tokens.items()}


class Encoder(nn.Module, ABC):
    """Tokens -> latents, of visible tokens only."""

    dim: int  # D
    norm: nn.Module  # the final norm, for pooling before it

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

        ``layers``: blocks whose outputs are wanted too; ``norm=False``: without the final norm.
        """

    def norm_of(self, name: str) -> nn.Module:
        """The final norm of a modality's features; an encoder with a norm per stream says which."""
        return self.norm

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates: 0 (embedding) .. depth; depth + 1: the rest."""
        raise MaemmError(f"{type(self).__name__} does not say layer_of(); layer decay needs it")

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """Counts of the terms born here, a scalar each, from the plans alone."""
        return {}


class Decoder(nn.Module, ABC):
    """Latents + mask tokens -> predictions."""

    dim: int

    @abstractmethod
    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        """{modality: (R, M, O)} in the order of ``plan.predict``."""


class Target(nn.Module, ABC):
    """Replaces a modality's own target: features, HOG, latents of a moving average."""

    @abstractmethod
    def output_dim(self) -> int:
        """O: values of one token's target."""

    @abstractmethod
    def forward(self, inputs: ModalityInput) -> Tensor:
        """(R, M, O) float32, without gradient."""


class Objective(nn.Module, ABC):
    """Turns outputs into terms of the loss."""

    coupled: bool = False  # True: samples see each other, so micro-batches do not add up exactly
    masked: bool = True  # False: it needs no masked forward pass; where that holds for all, nothing is hidden
    hide: bool = False  # True: tokens are hidden in training all the same

    @abstractmethod
    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        """{term name: sum and count, scalars in float32}; a term of one modality is called ``OBJECTIVE.MODALITY``."""

    def batch(
        self, preprocessed: dict[str, Preprocessed], labels: Tensor | None, rng: Rng, model: nn.Module
    ) -> tuple[dict[str, Preprocessed], Tensor | None]:
        """Change a training batch and its labels before it is tokenised: mixing.

        Labels are (B,) int64 with -1 for none, or (B, L) where samples have several, see :mod:`maemm.data.labels`.
        """
        return preprocessed, labels

    def answers(self, out: Output) -> dict[str, Tensor]:
        """What :meth:`figures` looks at, (B, ...) by name, of one batch of a validation. Where samples have several
        views, floats are averaged over them."""
        return {}

    def metrics(self, answers: dict[str, Tensor]) -> dict[str, float]:
        """Figures of a whole validation that are no part of the loss, of all its answers: accuracy."""
        return {}

    @abstractmethod
    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        """The counts of its terms, scalars, from the plans alone: the loop needs them before the first backward."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimiser step (moving averages)."""


class Head(nn.Module, ABC):
    """Turns the encoder of a fine-tuned model into logits."""

    classes: int

    @abstractmethod
    def features(self, model: nn.Module, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """(B, F): the input of the last layer."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """(B, classes), or a dict where several streams answer."""


@dataclass(frozen=True)
class ExportedState:
    """A model in the layout of another library, and how that library takes it over."""

    state: Mapping[str, Tensor]  # under the library's names
    call: str  # Python that loads it there; {path} stands for the file or the folder
    answers: str  # what ``run`` gives: "features" as Model.embed (B, D), "tokens" (B, N, D), or "logits"
    # Loads it there: path -> (x (B, ...), as prepared -> answers). Raises ImportError where the library is missing.
    run: Callable[[str], Callable[[Tensor], Tensor]]
    config: Mapping[str, Any] | None = None  # config.json of a folder with model.safetensors; None: it is one file


class CheckpointFormat(ABC):
    """A published checkpoint layout."""

    name: str
    library: str | None = None  # the library whose own layout this is: ``maemm export --to LIBRARY`` writes it

    @abstractmethod
    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Is this that layout? Prefixes of wrappers (``module.``) are already gone."""

    @abstractmethod
    def read(
        self, state: dict[str, Tensor], **known: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """-> (recipe, state of our model, extras kept for an exact way back). ``known``: heads, norm_pix, ..."""

    @abstractmethod
    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our model -> state under the published names."""

    def exported_state(self, model: nn.Module) -> ExportedState:
        """Our model for the library. Raises :class:`MaemmError` that says what the layout has no place for."""
        raise MaemmError(f"layout {self.name!r} is of no library; use maemm convert --to {self.name}")

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of a folder in this layout -> what :meth:`read` wants to know besides the weights."""
        return {}
