"""How much of a device a run uses: operations of a step, and the most that the device could do.

The model FLOPs utilisation (MFU; Chowdhery et al. 2022, PaLM, appendix B) is the operations that the model needs for
the samples of an interval, divided by what the device could have done in that time. Operations are those of matrix
products and convolutions, two for each multiply-add, as torch counts them (``torch.utils.flop_counter``), forward and
backward, of one rank. Not counted are element-wise operations, preprocessing, the optimiser, phases of objectives, and
what is computed twice to save memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maemm.contract import Output
from maemm.contract.rng import seeded
from maemm.model.collectives import alone
from maemm.model.repeated import activations_kept
from maemm.train import gpus
from maemm.train.distributed import one_line
from maemm.train.state import MicroBatches, TrainState

_SIZE, _REPEATS = 4096, 10  # of the products that are timed where the device is not in the list


class Utilisation:
    """Operations of the steps of a run, and what they could be at most.

    ``peak_tflops``: of the device, from the recipe; None: by its name, or measured. On a CPU nothing is counted without
    it. ``log`` prints a line.
    """

    def __init__(self, train_state: TrainState, peak_tflops: float | None, log: Callable[[str], Any]):
        self.train_state, self.peak_tflops, self.log = train_state, peak_tflops, log
        self.active = peak_tflops is not None or train_state.dist_context.device.type == "cuda"
        self._of_modalities: dict[tuple[str, ...], int] = {}  # as data sets that are mixed differ
        self._flops, self._flushed_at = 0, time.monotonic()

    def add(self, micro_batches: MicroBatches) -> None:
        """Count a step, after it has been done."""
        if not self.active:
            return
        names = tuple(micro_batches.inputs[0])
        try:
            if names not in self._of_modalities:
                self._of_modalities[names] = count_flops(self.train_state, micro_batches)
            if self.peak_tflops is None:
                self.peak_tflops = _peak_tflops(self.train_state.dist_context.device, self.train_state.bf16)
        except Exception as error:  # such as a part that asks for values while shapes alone are computed
            self.active = False
            self.log(f"no MFU: the operations of a step cannot be counted ({one_line(error)[:200]})")
            return
        self._flops += self._of_modalities[names]

    def flush(self) -> dict[str, float]:
        """{"tflops", "mfu"} since the last call: TFLOP/s of one device, and as a fraction; {} where nothing counts."""
        now = time.monotonic()
        flops, seconds = self._flops, max(now - self._flushed_at, 1e-9)
        self._flops, self._flushed_at = 0, now
        if not self.active or self.peak_tflops is None:
            return {}
        return {"tflops": flops / seconds / 1e12, "mfu": flops / seconds / 1e12 / self.peak_tflops}


def count_flops(train_state: TrainState, micro_batches: MicroBatches) -> int:
    """Operations of the forward and backward passes of a step on this rank.

    The first micro-batch is passed through the model with fake tensors, which have shapes and no values: nothing is
    computed, and the model stays as it is. The others are taken to be as large.
    """
    sharding, sets, device = train_state.sharding, micro_batches.sets, train_state.dist_context.device
    model = train_state.model if sharding is None else sharding.replica.structure
    labels = micro_batches.labels or [None] * sets
    counter, fake = FlopCounterMode(display=False), FakeTensorMode(allow_non_fake_inputs=True)
    state = _fake_state(model, fake, device)
    # Attention as plain products: fused kernels are counted with what they compute twice, and not at all on a CPU.
    with (
        seeded("flops"),
        alone(),
        activations_kept(),
        train_state.eager(),
        sdpa_kernel(SDPBackend.MATH),
        fake,
        counter,
    ):
        for inputs, targets in zip(micro_batches.inputs[:sets], labels, strict=False):
            with torch.autocast(device.type, torch.bfloat16, enabled=train_state.bf16):
                out: Output = functional_call(model, state, (inputs,), {"labels": targets}, tie_weights=False)
            losses = [term.weight * term.sum for term in out.parts.values()]
            sum(losses[1:], losses[0]).backward()
    return counter.get_total_flops() * (len(micro_batches.inputs) // sets)


def _fake_state(model: nn.Module, fake: FakeTensorMode, device: torch.device) -> dict[str, Tensor]:
    """A fake tensor on the device for each parameter and buffer, under one name for each module that holds it.

    Torch's own tying of names would leave the fakes in modules that a model has under two names.
    """
    fakes: dict[int, Tensor] = {}
    state = {}
    for prefix, module in model.named_modules():
        tensors = *module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)
        for name, tensor in tensors:
            if id(tensor) not in fakes:
                with fake:
                    new = (
                        torch.empty_like(tensor, device=device) if tensor.is_meta else fake.from_tensor(tensor.detach())
                    )
                fakes[id(tensor)] = new.requires_grad_(tensor.requires_grad)
            state[name] = fakes[id(tensor)]
    return state


def _peak_tflops(device: torch.device, bf16: bool) -> float:
    """The most that a GPU can do in a second: by its name, else measured."""
    peak = named_peak(torch.cuda.get_device_properties(device).name, bf16)
    return measured_peak(device, bf16) if peak is None else peak


def named_peak(name: str, bf16: bool) -> float | None:
    """Dense TFLOP/s of a GPU of this name, in bf16 or in TF32; None where it is not in the list."""
    gpu = gpus.named(name)
    return None if gpu is None else gpu.bf16 if bf16 else gpu.tf32


def measured_peak(device: torch.device, bf16: bool) -> float:
    """TFLOP/s of large products on a GPU, which takes some milliseconds: the median of several."""
    a, b = torch.ones(2, _SIZE, _SIZE, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    a @ b
    seconds = []
    for _ in range(_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 2 * _SIZE**3 / statistics.median(seconds) / 1e12
