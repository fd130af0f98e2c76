"""train.residual: the type of the sums between blocks under bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maemm import config
from maemm.contract.errors import MaemmError
from maemm.model.repeated import repeated_blocks
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from tests.pretended_gpu.recipes import Samples, shrunk

IMAGE, CAV = "image/mae_tiny_cpu", "cav/cav_mae_tiny_cpu"
OTHERS = ["pointcloud/point_mae_tiny_cpu", "image/data2vec2_tiny_cpu"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples"))


def step(name: str, samples: Samples, **train) -> tuple[set, list[Tensor]]:
    """({types of what enters and leaves blocks}, gradients) of a step."""
    recipe = shrunk(name, {f"train.{key}": value for key, value in train.items()})
    state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
    types, gradients = set(), {}
    for block in repeated_blocks(state.model):
        inner = getattr(block, "norm1", None)  # what the block itself begins with
        if inner is not None:
            inner.register_forward_pre_hook(lambda module, args: types.add(args[0].dtype))
            block.register_forward_hook(lambda module, args, out: types.add(out.dtype))
    for key, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, key=key: gradients.__setitem__(key, gradient.float()))
    result = take_step(state, plan_micro_batches(state, 0, [samples.batch(recipe, 0)]))
    assert result.total.isfinite()
    return types, [gradients[key] for key in sorted(gradients)]


@pytest.mark.parametrize("name", [IMAGE, CAV, *OTHERS])
@pytest.mark.parametrize("residual", ["fp32", "bf16"])
def test_sums_between_blocks(name, residual, samples):
    types, _ = step(name, samples, precision="bf16", residual=residual)
    assert types == {torch.float32 if residual == "fp32" else torch.bfloat16}


def test_without_bf16_it_changes_nothing(samples):
    _, plain = step(IMAGE, samples, precision="fp32")
    types, same = step(IMAGE, samples, precision="fp32", residual="bf16")
    assert types == {torch.float32} and all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


def test_auto_is_as_it_was(samples):
    types, gradients = step(IMAGE, samples, precision="bf16")
    same_types, same = step(IMAGE, samples, precision="bf16", residual="bf16")
    assert types == same_types == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert step(CAV, samples, precision="bf16")[0] == {torch.float32}


@pytest.mark.parametrize("name", [IMAGE])
def test_float32_is_nearer(name, samples):
    exact = step(name, samples, precision="fp32")[1]

    def error(residual: str) -> float:
        gradients = step(name, samples, precision="bf16", residual=residual)[1]
        off = sum(float((a - b).square().sum()) for a, b in zip(gradients, exact, strict=True))
        return (off / sum(float(b.square().sum()) for b in exact)) ** 0.5

    assert error("fp32") < error("bf16") < 0.1


def test_it_goes_with_recomputed_activations(samples):
    _, gradients = step(IMAGE, samples, precision="bf16", residual="fp32")
    types, same = step(IMAGE, samples, precision="bf16", residual="fp32", activation_checkpointing=True)
    assert types == {torch.float32} and all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


def test_other_words_are_refused():
    with pytest.raises(MaemmError, match="train.residual"):
        config.load(IMAGE, {"train.residual": "fp16"})
