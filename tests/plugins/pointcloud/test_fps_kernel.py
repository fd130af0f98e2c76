"""The Triton kernel of farthest point sampling, as far as it can be held without a GPU."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from maemm_plugins.pointcloud import grouping
from tests.pretended_gpu.device import gpu

# Triton decides when it is imported whether it interprets, so this takes a process of its own.
INTERPRETED = """
import itertools
import torch
from maemm_plugins.pointcloud import fps_triton, grouping

fps_triton._BLOCK = 32  # several blocks
generator = torch.Generator().manual_seed(0)
plain = (torch.rand(3, 70, 3, generator=generator) * 4).round()  # many ties
valid = torch.rand(3, 70, generator=generator) < 0.8
nan, infinite, huge = plain.clone(), plain.clone(), plain.clone() * 1e20  # squares overflow to infinity
nan[0, 40, 1] = nan[1, 0] = nan[2, 69, 0] = torch.nan
infinite[0, 40, 1] = infinite[1, 3, 0] = torch.inf  # inf - inf is a NaN, whose sign differs between machines
for x, mask, skip in itertools.product((plain, nan, infinite, huge), (None, valid, valid & False), (False, True)):
    planes = x.transpose(1, 2).contiguous()
    first = torch.zeros(3, dtype=torch.long) if mask is None else mask.byte().argmax(1)
    nearest = grouping._candidates(planes, mask, skip)
    expected = grouping._sample(planes, nearest.clone(), first, 20)
    index, gap = fps_triton.sample(planes, nearest, first, 20)
    assert torch.equal(index, expected[0]), (index, expected[0])
    assert torch.equal(gap.nan_to_num(nan=-3.0), expected[1].nan_to_num(nan=-3.0))
"""

# Compiled for a target that is not here: to machine code, by Triton's own assembler.
AHEAD_OF_TIME = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from maemm_plugins.pointcloud import fps_triton

signature = dict(planes="*fp32", nearest="*fp32", first="*i64", index="*i64", gap="*fp32", total="i32", count="i32")
for block, warps in ((1, 1), (1024, 8), (4096, 16)):
    source = ASTSource(fps_triton._farthest, {**signature, "BLOCK": "constexpr"}, {"BLOCK": block})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    kernel = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})
    assert len(kernel.asm["cubin"]) > 1000
    assert "fma.rn" not in kernel.asm["ptx"]  # fused multiply-adds round differently
    assert "bar.sync" in kernel.asm["ptx"] or warps == 1
"""


def run(code, *words, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_kernel_in_tritons_interpreter():
    """Equal to the loop in torch with ties, padding, NaN, infinite and overflowing distances."""
    pytest.importorskip("triton")
    done = run(INTERPRETED, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernel_compiles_ahead_of_time(capability, tmp_path):
    pytest.importorskip("triton")
    done = run(AHEAD_OF_TIME, capability, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_without_a_c_compiler_the_loop_takes_its_place(monkeypatch):
    """Triton looks for a compiler when a kernel is first used."""

    def cannot_be_compiled(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore lines")

    x = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0))
    expected = grouping.farthest_points(x, 8)
    monkeypatch.setattr(grouping, "_failed_kernel", [])
    with gpu():
        monkeypatch.setattr(grouping, "_kernel", lambda: None if grouping._failed_kernel else cannot_be_compiled)
        with pytest.warns(UserWarning, match="cannot be compiled .Failed to find C compiler.*CC") as caught:
            index, gap = grouping.farthest_points(x.to("cuda", non_blocking=True), 8)
        assert "more lines" not in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            grouping.farthest_points(x.to("cuda", non_blocking=True), 8)
        assert torch.equal(index.cpu(), expected[0]) and torch.equal(gap.cpu(), expected[1])


def test_too_little_memory_is_not_taken_for_a_missing_compiler(monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(grouping, "_failed_kernel", [])
    with gpu():
        monkeypatch.setattr(grouping, "_kernel", lambda: too_large)
        with pytest.raises(torch.OutOfMemoryError):
            grouping.farthest_points(torch.rand(2, 50, 3).to("cuda", non_blocking=True), 8)
    assert not grouping._failed_kernel
