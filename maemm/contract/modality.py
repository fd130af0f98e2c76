"""What is particular to a signal: how it is loaded, cut into tokens, embedded, predicted and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.data import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.means import mean_of_counted, mean_over_known
from maemm.contract.rng import Rng
from maemm.contract.validity import validity_by_trial


class Modality(nn.Module, ABC):
    """A kind of signal. It has no parameters before :meth:`connect`, so that it is cheap to send to workers.

    Use :class:`maemm.model.batchnorm.BatchNorm` for batch normalisation. It couples samples, so that a batch cannot be
    split into micro-batches unless the modality has the option ``per_micro_batch`` and it is true.
    """

    tta_views: int = 1  # number of samples that ``load_tta_views`` makes of one
    aligned_with: str | None = None  # the modality whose random numbers it uses too: same crop, same flip (``align``)
    aligned_options: Sequence[str] = ()  # options that modalities aligned with each other must have alike: crop, flip
    # Smallest and largest value that a signal can have after :meth:`denormalize_input`; None: any
    value_range: tuple[float, float] | None = None
    side_inputs: Sequence[str] = ()  # what objectives and targets want made in the worker, see :meth:`side_input`
    whole_samples: bool = False  # what sources have of these belongs to samples as :meth:`load` reads them with None

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

    def side_picture(self, name: str, value: Tensor, preprocessed: Preprocessed) -> Tensor | None:
        """A side input (B, ...) as signals that :meth:`plot` can draw, for ``maemm show``. None: it is no picture."""
        return None

    def moves(self) -> Sequence[str]:
        """Options by which augmentation cuts, moves or mixes samples, so that what is stored for the tokens of the
        whole sample (:attr:`Sample.sides`) is not that of the tokens that the model gets; each as it must be set for
        that: ``["crop: center"]``. By default none. What :meth:`follow` does too is none of them. Where such things
        are wanted :meth:`load` is called without random numbers, and takes the same part of a long signal each time."""
        return ()

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

    def follow(self, stored: Tensor, tokens: Tokens, preprocessed: Preprocessed) -> Tensor:
        """What is stored for the tokens of whole samples (B, N) -> for the tokens that :meth:`preprocess` made:
        mirrored where it mirrored a sample. By default as it is."""
        return stored

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

    def target_dim(self) -> int:
        """T: number of values of a token's target, where :meth:`loss` compares it with other than O values, such as
        the numbers of classes with scores. By default O."""
        return self.output_dim()

    @abstractmethod
    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Embed the tokens ``index`` (R, V), and only those -> (R, V, D)."""

    @abstractmethod
    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        """Positions of the tokens ``index`` (R, V) -> (R or 1, V, D), D that of ``role``: "encoder" or "decoder"."""

    @abstractmethod
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """What predictions of the tokens ``index`` (R, M) are compared with: (R, M, T) float32."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of each predicted token: (R, M, O), (R, M, T) -> (R, M) float32. By default the mean squared error.

        ``known`` (R, M, P) bool is passed where ``Tokens.known`` is set: other values are in no loss.
        """
        return mean_over_known((pred.float() - target).square(), known)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Loss of the best constant prediction: targets (R, M, T), weights (R, M) -> (R, M) float32, as :meth:`loss`.

        Logs show it beside the loss ("mean-predictor"). By default that of the mean target, the best one for squared
        errors. A modality with a loss of its own overrides it too; without that it is None, and logs say so.
        """
        if type(self).loss is not Modality.loss:
            return None
        return self.loss(mean_of_counted(target, counted, known).expand_as(target), target, known)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Undo the target's normalisation with the tokens' own statistics: (R, M, O), or targets (R, M, T), -> like
        ``tokens.values``.

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
