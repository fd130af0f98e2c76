"""Features of a frozen network as targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maemm.config.paths import expanded
from maemm.contract import Modality, ModalityInput, Target
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegativeInt, PositiveInt
from maemm.model.model import Model
from maemm.model.targets.losses import FeatureLoss, feature_baseline, feature_loss
from maemm.model.targets.rows import computed_of
from maemm.weights.teacher_networks import Named, NamedOurs, Network, untrained

# The network whose width was asked for last, until its target takes it, by what names it and the state of its files.
_at_hand: dict[tuple[Named, float], Network] = {}


class FrozenTeacher(Target):
    """Features of a frozen network that sees the whole sample: of each token after the network's final norm, layer
    normalised without parameters.

    Where the network takes another size, another mean and std, or has another grid of tokens, samples are resized
    (bicubic) and renormalised, and its features resized. It is in no checkpoint, no average and no optimiser: a
    checkpoint holds its name and a fingerprint of its weights, and a run does not continue with another one. It runs
    once for all plans of a micro-batch. ``named``: what opens it; None: an untrained network like the student.

    Options
        loss: smooth_l1 (beta 1), mse, l1 or cosine (1 - the cosine), of layer-normalised features
        size: side of the pictures that it sees; null: what it was made for
        bf16: run it under bfloat16 autocast
        seed: of an untrained network
        dim: values of its features; null: asked of the network. Checkpoints record it, so that they open without it
    """

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        named: Named | None,
        *,
        loss: FeatureLoss = "smooth_l1",
        size: PositiveInt | None = None,
        bf16: bool = False,
        seed: NonNegativeInt = 0,
        dim: PositiveInt | None = None,
    ):
        super().__init__()
        self.named, self.names, self.kind, self.size, self.bf16, self.seed = named, names, loss, size, bf16, seed
        self.held = _Held()
        self.recipe: Mapping[str, Any] = {}
        self.dim = dim or (encoder_dim if named is None else _width(named))
        self.register_buffer("fingerprint", torch.zeros(32, dtype=torch.uint8))
        self.fingerprint: Tensor

    def output_dim(self) -> int:
        return self.dim

    def stored_options(self) -> dict[str, Any]:
        return {"dim": self.dim}

    def connect(self, model: Model) -> None:
        self.recipe = model.recipe

    # ------------------------------------------------------------------------------------------------ in a step
    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        device = next(iter(inputs.values())).preprocessed.x.device
        network = self.network_on(device)
        modalities: dict[str, Modality] = dict(model.modalities)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            features = network.features(inputs, modalities, self.size)
        return {name: x.float() for name, x in features.items()}

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        return F.layer_norm(computed_of(inputs, index).float(), (self.dim,))

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """(R, M, D) twice -> (R, M) float32."""
        return feature_loss(pred, target, self.kind)

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor:
        return feature_baseline(target, counted, self.kind)

    def network_on(self, device: torch.device) -> Network:
        """The network, opened when it is first asked for."""
        return self.held.network or self._take(device)

    # ------------------------------------------------------------------------------------------- which teacher it is
    def _take(self, device: torch.device) -> Network:
        """Open the network when it is first used, and compare it with the one that the checkpoint names."""
        if self.named is None:
            network = untrained(self.recipe, self.seed)
        else:
            key = self.named.key()
            network = _at_hand.pop(key) if key in _at_hand else self.named.network()
        if network.dim != self.dim:
            raise MaemmError(
                f"{self._where()} has features of {network.dim} values, not of {self.dim} (target: teacher); leave dim "
                "out, or give the teacher of this run"
            )
        digest = network.digest()
        self._compare(bytes(self.fingerprint.tolist()), digest)
        self.fingerprint.copy_(torch.tensor(list(digest), dtype=torch.uint8))
        self.held.digest, self.held.network = digest, network.to(device)
        return network

    def _compare(self, recorded: bytes, digest: bytes) -> None:
        if any(recorded) and recorded != digest:
            raise MaemmError(
                f"{self._where()} is another teacher than that of the checkpoint (target: teacher; its weights are "
                f"{digest.hex()[:12]}, those of the checkpoint {recorded.hex()[:12]}); give the same teacher, or begin "
                "another run with out="
            )

    def _where(self) -> str:
        return "the untrained network" if self.named is None else self.named.model

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}fingerprint")
        if self.held.digest is not None and isinstance(stored, Tensor):
            self._compare(bytes(stored.tolist()), self.held.digest)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenTeacher:
        """Move the network with the model, though it is no part of it."""
        super()._apply(fn, recurse)
        if self.held.network is not None:
            self.held.network._apply(fn)
        return self


class Teacher(FrozenTeacher):
    """:class:`FrozenTeacher`, a model of maemm.

    Options
        model: run folder, exported file or published weights that maemm reads; null: an untrained network like the
            student, as a control
    """

    def __init__(self, names: list[str], encoder_dim: int, *, model: str | None = None, **rest: Any):
        named = None if model is None else NamedOurs(str(expanded(model)))
        super().__init__(names, encoder_dim, named, **rest)


class _Held:
    """Keeps the network out of the model's modules, so that it is neither saved nor trained, averaged nor copied."""

    network: Network | None = None
    digest: bytes | None = None

    def __deepcopy__(self, memo: Any) -> _Held:
        return self


def _width(named: Named) -> int:
    """The width of a network's features. It is kept for the target, which is made twice: once to learn its size."""
    key = named.key()
    if key not in _at_hand:
        _at_hand.clear()
        _at_hand[key] = named.network()
    return _at_hand[key].dim
