"""A frozen tokenizer: the class of a token is the nearest entry of a codebook."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from maemm.config.options import check
from maemm.config.paths import check_regular, expanded
from maemm.contract import Modality, ModalityInput, Preprocessed, Target
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality, as_tuple
from maemm.contract.options import NonNegativeInt, PartOf, PositiveInt
from maemm.contract.rng import seeded
from maemm.model.model import Model
from maemm.model.targets.codes import Classes, Vocabulary
from maemm.registry import find
from maemm.registry.make import make, part_of

_AT_ONCE = 2**25  # distances that are computed together


class Codebook(Classes):
    """The class of a token is the entry of a codebook that is nearest to it, by Euclidean distance.

    What is compared is the modality's own target, such as normalised patches, or another target: the features of a
    frozen teacher. The codebook is part of every checkpoint. Without a file it is a random one of directions, behind a
    random projection (BEST-RQ, Chiu et al. 2022, section 3.1): it learns nothing, needs no training, and still groups
    tokens that are alike. It sees the very view that the encoder sees: the same crop, mirrored or not.

    Options
        file: .safetensors with the tensor codebook (vocab, values of a token), such as centres of k-means; null: random
        features: the target whose values are compared, a name or {type: name, options}; null: the modality's own
        vocab: entries of a random codebook, or of the one that a checkpoint holds
        width: values of an entry of a random codebook
        size: a second view of the same crop is compared, resized so that its last two sides (of signals the last one)
            are these, and cut into as many tokens: 112 beside 224 (BEiT); null: what the encoder sees. A frozen network
            has a size of its own (target.features.size)
        seed: of a random codebook
    """

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        *,
        file: str | None = None,
        features: Annotated[str | dict[str, Any], PartOf("targets")] | None = None,
        vocab: Vocabulary = 8192,
        width: PositiveInt = 16,
        seed: NonNegativeInt = 0,
        size: PositiveInt | Sequence[PositiveInt] | None = None,
    ):
        super().__init__()
        if size is not None and features is not None:
            raise MaemmError(
                "size is of the modality's own values, and features are compared (target: codebook); set the size of "
                "the features (target.features.size)"
            )
        self.size = size
        self.names, self.file, self.vocab, self.width, self.seed = names, file, vocab, width, seed
        self.spec = features
        self.features: Target | None = None
        if features is not None:
            kind, options = part_of(features)
            check(find("targets", kind), options, "target.features")
            self.features = make("targets", features, names, encoder_dim, where="target.features")
            self.side_inputs, self.autocast = find("targets", kind).side_inputs, self.features.autocast

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        if self.features is not None:
            self.features.prepare(modalities)
        views = {name: self._view(name, modality) for name, modality in modalities.items()}
        sizes = {self.features.target_dim()} if self.features else {x.output_dim() for x in views.values()}
        if len(sizes) > 1:
            raise MaemmError(
                f"the tokens of {', '.join(modalities)} have different numbers of values (target: codebook); give each "
                "its own codebook, with another seed"
            )
        (size,) = sizes
        projection, entries = self._random(size) if self.file is None else (None, self._read(self.file, size))
        self.vocab, self.filled = len(entries), not entries.isnan().any() if not entries.is_meta else True
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", entries)
        self.projection: Tensor | None
        self.codebook: Tensor

    def _random(self, size: int) -> tuple[Tensor, Tensor]:
        with seeded("codebook", self.seed):
            projection = nn.init.xavier_normal_(torch.empty(size, self.width))
            return projection, normalize(torch.randn(self.vocab, self.width), dim=-1)

    def _read(self, file: str, size: int) -> Tensor:
        path = expanded(file)
        if not path.exists():  # a checkpoint holds the entries and how many they are
            return torch.full((self.vocab, size), torch.nan)
        try:
            check_regular(path)
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise MaemmError(f"the codebook cannot be read ({path}: {reason}); give a safetensors file") from None
        entries = tensors.get("codebook", next(iter(tensors.values())) if len(tensors) == 1 else None)
        if entries is None or entries.ndim != 2 or entries.shape[1] != size or len(entries) < 2:
            shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in list(tensors.items())[:3])
            raise MaemmError(
                f"the codebook does not fit tokens of {size} values ({path}: {shapes or 'no tensor'}); store it as "
                f"codebook (vocab, {size})"
            )
        return entries.float()

    def stored_options(self) -> dict[str, Any]:
        features = {} if self.features is None else self.features.stored_options()
        if not features:
            return {"vocab": self.vocab}
        kind, options = part_of(self.spec)
        return {"vocab": self.vocab, "features": {"type": kind, **options, **features}}

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.filled = True

    def connect(self, model: Model) -> None:
        if self.features is not None:
            self.features.connect(model)

    @torch.no_grad()
    def ids(self, model: Model, name: str, inputs: ModalityInput) -> Tensor:
        if not self.filled:
            raise MaemmError(f"the codebook is not there ({self.file}; target: codebook); give the path of the file")
        index = inputs.tokens.all_indices()
        if self.features is None:
            modality, tokens = model.modalities[name], inputs.tokens
            if self.size is not None:
                modality = self._view(name, modality)
                tokens = modality.tokenize(_resized(name, inputs.preprocessed, modality.size))
            values = modality.target(tokens, index)
        else:
            values = self.features(inputs, index)
        return self.nearest(values)

    def _view(self, name: str, modality: Any) -> Any:
        """The modality of the second view, with as many tokens; without ``size`` the modality itself."""
        if self.size is None:
            return modality
        if not isinstance(modality, GridModality) or modality.sample_shape() != (modality.channels, *modality.size):
            raise MaemmError(
                f"{name!r} has no pictures, clips or signals that could be resized (target.size: {self.size}); leave "
                "size out"
            )
        own = list(modality.size)
        count = min(2, len(own)) if isinstance(self.size, int) else len(self.size)
        if count > min(2, len(own)):
            raise MaemmError(
                f"size has {count} sides, of {name!r} the last {min(2, len(own))} can be resized (target.size); give "
                "as many"
            )
        sides = as_tuple(self.size, count)
        own[len(own) - count :] = sides
        view = copy.copy(modality)
        if any(side % cells for side, cells in zip(own, modality.grid, strict=True)):
            raise MaemmError(
                f"sides {' x '.join(map(str, sides))} are no multiple of the {' x '.join(map(str, modality.grid))} "
                f"tokens of {name!r} (target.size); choose a multiple"
            )
        view.size = tuple(own)
        view.patch = tuple(side // cells for side, cells in zip(own, modality.grid, strict=True))
        return view

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        if self.features is not None:
            computed = self.features.precompute(model, inputs)
            inputs = {name: replace(x, computed=computed.get(name)) for name, x in inputs.items()}
        return super().precompute(model, inputs)

    def nearest(self, values: Tensor) -> Tensor:
        """Values (B, N, P) -> the index of the nearest entry of each (B, N) int64."""
        values = values.to(self.codebook.dtype)
        if self.projection is not None:
            values = normalize(values @ self.projection, dim=-1)
        squares = self.codebook.square().sum(-1)
        rows = max(1, _AT_ONCE // (values.shape[1] * self.vocab))
        parts = values.split(rows)  # |x|^2 is the same for all entries
        return torch.cat([(squares - 2 * part @ self.codebook.T).argmin(-1) for part in parts])

    def reset(self, model: Model) -> None:
        if self.features is not None:
            self.features.reset(model)

    def before_training(self, steps: int) -> None:
        if self.features is not None:
            self.features.before_training(steps)

    def after_step(self, model: Model, step: int, bad: Tensor) -> None:
        if self.features is not None:
            self.features.after_step(model, step, bad)


def _resized(name: str, preprocessed: Preprocessed, sides: tuple[int, ...]) -> Preprocessed:
    """x (B, C, *size) -> (B, C, *sides), bicubic and antialiased along the last two axes (of signals the last one)."""
    x = preprocessed.x
    if preprocessed.valid is not None:
        raise MaemmError(f"samples of {name!r} are padded and cannot be resized (target.size); leave size out")
    flat = x.flatten(0, -3) if len(sides) > 1 else x.flatten(0, 1)[:, None]  # (B * ..., H, W)
    new = sides[-2:] if len(sides) > 1 else (1, *sides)
    flat = interpolate(flat[:, None].float(), new, mode="bicubic", antialias=True)
    return Preprocessed(flat.view(*x.shape[:2], *sides))
