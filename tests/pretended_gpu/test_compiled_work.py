"""What Inductor would launch on an H100 in place of eager blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .device import gpu
from .inductor import Graph, lowered
from .recipes import Samples, counted_step, shrunk
from .work import Work, counted

pytestmark = pytest.mark.slow  # Inductor starts in seconds


def work_of(name: str, samples: Samples, **train) -> tuple[Work, list[Graph]]:
    """The counts of a step, and what was compiled for it."""
    recipe = shrunk(name, {f"train.{key}": value for key, value in train.items()})
    with gpu(values=False) as seen, counted(seen) as work, lowered(seen, work) as graphs:
        counted_step(recipe, samples, seen, work)
    return work, graphs


@pytest.mark.parametrize("setting", ["blocks", True])
def test_a_compiled_step_launches_less_and_moves_less(setting, samples):
    eager, none = work_of("image/mae_tiny_cpu", samples, compile=False)
    work, graphs = work_of("image/mae_tiny_cpu", samples, compile=setting)
    assert not none and {graph.backward for graph in graphs} == {False, True}
    # Blocks of encoder and decoder, two of each: once in the rehearsal, once in each step.
    assert [graph.calls for graph in graphs] == ([6] * 4 if setting == "blocks" else [3] * 2)
    assert work.launches < 0.9 * eager.launches and work.bytes < 0.95 * eager.bytes
    assert work.seconds() < eager.seconds()
    assert work.flops == eager.flops
    for kind in ("product", "attention", "update"):  # what the compiler leaves as it is
        assert work.kinds[kind].launches == eager.kinds[kind].launches


@pytest.mark.parametrize("name", ["image/mae_tiny_cpu", "video/videomae_tiny_cpu"])
def test_nothing_but_weights_and_their_gradients_is_cast(name, samples):
    """Casts of activations, such as those around layer norms, are parts of other kernels."""
    _, graphs = work_of(name, samples, compile="blocks")
    operations = [operation for graph in graphs for operation in graph.operations]
    sizes = {6 * side * other for side in (1, 48) for other in (48, 144, 192)}  # bytes in fp32 and in bf16
    casts = [operation for operation in operations if operation.kind == "cast"]
    assert casts and {operation.bytes for operation in casts} <= sizes
    assert any(operation.kind == "norm" for operation in operations)


def test_what_is_fused():
    """A layer norm, a linear layer and GELU: one kernel before the product and one behind it."""
    layers = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128, bias=False), nn.GELU())
    with gpu(values=False) as seen, counted(seen) as work, lowered(seen, work) as graphs:
        layers = layers.to("cuda")
        x = torch.randn(32, 64, device="cuda", requires_grad=True)
        compiled = torch.compile(layers, fullgraph=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = compiled(x)
            work.clear()
            out = compiled(x)
    forward = graphs[0]
    assert out.shape == (32, 128) and out.dtype is torch.bfloat16 and forward.calls == 2
    assert [operation.kind for operation in forward.operations if operation.eager is None] == [
        "norm",
        "cast",  # of the weight
        "elementwise",
    ]
    assert work.launches == 4 and work.flops == work.kinds["product"].flops == 2 * 32 * 64 * 128
    assert work.kinds["cast"].bytes == 6 * 64 * 128
    assert work.kinds["elementwise"].bytes == 2 * 2 * 32 * 128  # reads and writes bf16
