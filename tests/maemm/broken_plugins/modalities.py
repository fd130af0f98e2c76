"""Modalities that break one rule each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maemm.contract import Preprocessed, Tokens
from maemm.contract.rng import Rng
from maemm.testing.toy_signal import Signal


class Restless(Signal):
    """Its examples ignore ``rng``."""

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        return Preprocessed(torch.rand(batch, self.channels, *self.size))


class InPlace(Signal):
    """Scales its input in place."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        preprocessed.x.mul_(0.5)
        return super().tokenize(preprocessed)


class WrongGrid(Signal):
    """Its lattice has fewer cells than there are tokens."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        return replace(super().tokenize(preprocessed), grid=(1, 1))


class Streaming(Signal):
    """Uses the global random state in tokenize()."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        torch.rand(1)
        return super().tokenize(preprocessed)


class AnyShape(Signal):
    """Reshapes every input to its own shape."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        return super().tokenize(Preprocessed(preprocessed.x.reshape(-1, self.channels, *self.size)))


class Mirrored(Signal):
    """Its untokenize() reverses the order of values."""

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        return super().untokenize(values, tokens, index).flip(-1)


class Unrestored(Signal):
    """Forgets the normalisation on the way back."""

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return pred


class Wider(Signal):
    """Its output_dim() is one more than its target has."""

    def output_dim(self) -> int:
        return super().output_dim() + 1


class Together(Signal):
    """Its target of a token depends on the other tokens of ``index``."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        values = tokens.gather(index).float()
        return values - values.mean(1, keepdim=True)


class RowLoss(Signal):
    """One loss per row instead of one per token."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        return super().loss(pred, target).mean(1, keepdim=True)


class NeedsHidden(Signal):
    """Returns one target for an empty index."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().target(tokens, index if index.shape[1] else tokens.all_indices()[:, :1])


class Blank(Signal):
    """Its plot() leaves the axes empty."""

    def plot(self, axes: Any, signal: Tensor) -> None:
        axes.set_axis_off()


class Eager(Signal):
    """Has parameters before connect(), which every worker would copy."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)


class Mixed(Signal):
    """Each embedded token depends on the others that are embedded with it."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        x = super().embed(tokens, index)
        return x + x.mean(1, keepdim=True)


class Counted(Signal):
    """Numbers the tokens of ``index`` instead of using their positions."""

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return super().position(tokens, torch.arange(index.shape[1]).expand_as(index), role)


class Peeking(Signal):
    """Adds the mean of the whole signal, hidden tokens included, to each token's values."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        rows = tokens.values if tokens.rows is None else tokens.values[tokens.rows]
        return self.embedding(tokens.gather(index) + rows.mean((1, 2))[:, None, None])


class Batchwise(Signal):
    """Subtracts the mean over the batch."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        x = super().embed(tokens, index)
        return x - x.mean(0, keepdim=True)


class FirstPlan(Signal):
    """Ignores which sample each plan row belongs to."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        rows = torch.arange(index.shape[0]).clamp(max=tokens.batch - 1)
        return self.embedding(tokens.values[rows[:, None], index])


class HalfPadded(Signal):
    """Treats partly valid tokens as valid."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        if preprocessed.valid is None:
            return tokens
        cells = functional.max_pool2d(preprocessed.valid.float(), self.patch)
        return replace(tokens, valid=cells.flatten(1) > 0)


class AlwaysDropout(Signal):
    """Drops values in evaluation mode too."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return functional.dropout(super().embed(tokens, index), 0.5, training=True)


class HalfLoss(Signal):
    """Its loss has the dtype of the prediction."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        return super().loss(pred, target).to(pred.dtype)


class Float32Only(Signal):
    """Casts to float32 in front of its embedding."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return self.embedding(tokens.gather(index).float())


class OnTheCPU(Signal):
    """Makes a parameter with ``device=``."""

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        super().connect(encoder_dim, decoder_dim)
        self.bias = nn.Parameter(torch.zeros(encoder_dim, device="cpu"))


class Unsaved(Signal):
    """Keeps a random table that is neither parameter nor buffer."""

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        super().connect(encoder_dim, decoder_dim)
        self.table = torch.randn(encoder_dim)

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().embed(tokens, index) + self.table


class OwnSeed(Signal):
    """Initialises from the clock."""

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        super().connect(encoder_dim, decoder_dim)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.embedding.weight, generator=generator)


class Lonely(Signal):
    """Has a parameter that nothing uses."""

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        super().connect(encoder_dim, decoder_dim)
        self.unused = nn.Parameter(torch.zeros(encoder_dim))


class MovingTarget(Signal):
    """Its target is random, so that nothing can be learned."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return torch.randn(*index.shape, self.output_dim())


class Asking(Signal):
    """Reads values of tensors in the forward pass."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        x = super().embed(tokens, index)
        return x if float(x.abs().max()) < 1e6 else x * 0


class Chosen(Signal):
    """Chooses values by a boolean index, whose size the host waits for."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        x = super().embed(tokens, index)
        mask = x > 1e6
        return x + x[mask].sum()


class Emptied(Signal):
    """Forgets values that it predicts."""

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        back = super().denormalize_target(pred, tokens, index)
        return torch.cat([back[..., :-1], torch.full_like(back[..., -1:], torch.nan)], -1)


class WholeOnly(Signal):
    """denormalize_target() fails on a part of the tokens."""

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return super().denormalize_target(pred, tokens, tokens.all_indices())


MODALITIES: dict[str, type[Signal]] = {
    "example_is_repeatable": Restless,
    "tokenize_keeps_its_input": InPlace,
    "tokens_agree": WrongGrid,
    "randomness_is_counter_based": Streaming,
    "wrong_shape_is_named": AnyShape,
    "untokenize_is_the_inverse": Mirrored,
    "denormalize_target_is_the_inverse": Unrestored,
    "target_fits_the_output": Wider,
    "target_of_some_is_part_of_all": Together,
    "loss_is_per_token": RowLoss,
    "nothing_predicted_is_legal": NeedsHidden,
    "plot_works_without_a_screen": Blank,
    "worker_gets_it_cheaply": Eager,
    "embed_of_some_is_part_of_all": Mixed,
    "position_of_some_is_part_of_all": Counted,
    "hidden_tokens_do_not_leak": Peeking,
    "a_row_alone_is_the_row_in_a_batch": Batchwise,
    "several_plans_of_a_sample": FirstPlan,
    "padding_changes_nothing": HalfPadded,
    "features_are_repeatable": AlwaysDropout,
    "bf16_keeps_losses_in_float32": HalfLoss,
    "float64_works": Float32Only,
    "meta_build_works": OnTheCPU,
    "save_and_load_are_exact": Unsaved,
    "equal_seeds_give_equal_models": OwnSeed,
    "every_parameter_learns": Lonely,
    "one_batch_is_learned": MovingTarget,
    "forward_waits_for_nothing": Asking,
    "pictures_are_written": WholeOnly,
}
