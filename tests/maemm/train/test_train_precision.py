"""Under bf16 autocast, targets, losses and similarities are computed outside of it, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maemm.contract import Term
from maemm.model.model import Model
from maemm.model.objectives import classify
from maemm.train import step as training
from maemm.train.distributed import DistContext
from tests.pretended_gpu.recipes import RECIPES, Samples, shrunk, two_steps

FUNCTIONS = (
    "cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss", "cosine_similarity",
    "normalize",
)  # fmt: skip
QUICK = [
    "image/mae_tiny_cpu", "image/finetune/mae_tiny_cpu", "cav/cav_mae_tiny_cpu", "pointcloud/point_mae_tiny_cpu",
    "image/data2vec2_tiny_cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Spy:
    """Notes functions that are called under autocast, or return floats of less than 32 bits."""

    def __init__(self) -> None:
        self.called: set[str] = set()
        self.faults: set[str] = set()

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.called.add(name)
            if torch.is_autocast_enabled("cpu"):
                self.faults.add(f"{name} under autocast")
            result = function(*args, **kwargs)
            self.check(name, result)
            return result

        return noted

    def check(self, name: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype is not torch.float32:
            self.faults.add(f"{name} in {x.dtype}")


def spied(model: Model, spy: Spy) -> None:
    """Watch what computes targets and losses of a model."""
    for name, modality in model.modalities.items():
        for method in ("target", "loss", "baseline"):
            object.__setattr__(modality, method, spy(f"{name}.{method}", getattr(modality, method)))
    for target in model.all_targets():
        for method in ("forward", "loss", "baseline"):
            object.__setattr__(target, method, spy(f"{type(target).__name__}.{method}", getattr(target, method)))


def check(name: str, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Two steps of a recipe in bf16; returns what was watched and called."""
    spy = Spy()
    for function in FUNCTIONS:
        noted = spy(function, getattr(F, function))
        for module in (F, classify):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, noted)
    forward, minimised = Model.forward, training._loss
    models: list[Model] = []

    def watched(self: Model, *args: Any, **kwargs: Any) -> Any:
        if self not in models:
            models.append(self)
            spied(self, spy)
        assert torch.is_autocast_enabled("cpu")
        out = forward(self, *args, **kwargs)
        for part, term in out.parts.items():
            assert isinstance(term, Term)
            spy.check(part, term.sum)
        return out

    monkeypatch.setattr(Model, "forward", watched)
    monkeypatch.setattr(training, "_loss", spy("the sum of the terms", minimised))
    losses = two_steps(shrunk(name, {"train.precision": "bf16"}), samples, DistContext())
    assert all(loss.dtype is torch.float32 and loss.isfinite() for loss in losses)
    assert not spy.faults
    assert "the sum of the terms" in spy.called and len(spy.called) > 1
    return spy.called


@pytest.mark.parametrize("name", QUICK)
def test_losses_are_outside_of_autocast(name, samples, monkeypatch):
    called = check(name, samples, monkeypatch)
    assert name != "cav/cav_mae_tiny_cpu" or {"normalize", "cross_entropy", "image.loss"} <= called


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_losses_of_every_recipe_are_outside_of_autocast(name, samples, monkeypatch):
    check(name, samples, monkeypatch)


@pytest.mark.parametrize("fault", ["autocast", "type"])
def test_planted_faults_are_seen(fault, samples, monkeypatch):
    from maemm_plugins.image.modality import Image

    loss = Image.loss

    def faulty(self, pred, target, *args):
        if fault == "type":
            return loss(self, pred, target, *args).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            return F.mse_loss(pred, target, reduction="none").mean(-1)

    monkeypatch.setattr(Image, "loss", faulty)
    with pytest.raises(AssertionError, match="mse_loss under" if fault == "autocast" else "image.loss in"):
        check("image/mae_tiny_cpu", samples, monkeypatch)
