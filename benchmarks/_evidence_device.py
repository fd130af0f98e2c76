"""What a device can be asked: its rates, its peak memory, its kernels, and where it lets the host wait."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _evidence_process import Place
from _machine import about

from maemm.train.flops import named_peak

SYNCHRONISING = "synchronizing CUDA operation"  # what torch warns of


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, count: int, *, warm: int = 1) -> float:
    """Mean seconds of a call, the device's work included."""
    for _ in range(warm):
        work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / count


def machine(settings: dict, place: Place) -> dict[str, Any]:
    """Name, versions, FLOP/s of a square matrix product (bf16 on a GPU, float32 on a CPU) and bytes/s of a copy."""
    device = torch.device(place.device)
    gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if gpu else (512, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * side**3 / seconds_of(lambda: a @ b, device, 20 if gpu else 3, warm=3)
    x = torch.randn(2**28 if gpu else 2**20, device=device)
    y = torch.empty_like(x)
    copied = 2 * x.numel() * x.element_size() / seconds_of(lambda: y.copy_(x), device, 10)
    answer = about(device) | {"device": device.type, "threads": torch.get_num_threads(), "cpus": available_cpus()}
    answer |= {"matmul_tflops": rate / 1e12, "copy_gb_per_s": copied / 1e9, "cuda": torch.version.cuda}
    if gpu:
        properties = torch.cuda.get_device_properties(device)
        answer |= {"memory_gib": properties.total_memory / 2**30, "capability": [properties.major, properties.minor]}
        answer |= {"peak_tflops": named_peak(answer["machine"], bf16=True)}
    return answer


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Waits:
    """Where torch said that the host waits for the device."""

    def __init__(self, caught: list[warnings.WarningMessage]):
        self._caught = caught

    def clear(self) -> None:
        """Forget what was seen so far."""
        self._caught.clear()

    def counts(self) -> dict[str, int]:
        """{file and line: how often}."""
        ours = (w for w in self._caught if SYNCHRONISING in str(w.message))
        return dict(Counter(f"{'/'.join(w.filename.split('/')[-3:])}:{w.lineno}" for w in ours))


@contextmanager
def waits(device: torch.device) -> Iterator[Waits]:
    """Where the host waits for the device within the block. Of a CPU nothing is known, and none is seen."""
    if device.type != "cuda":
        yield Waits([])
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield Waits(caught)
        finally:
            torch.cuda.set_sync_debug_mode(before)


def profile(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """One call of ``work``: kernels and the seconds that they take (None on a CPU), and compiled regions entered."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    synchronize(device)
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        synchronize(device)
    events = profiler.events()
    regions = sum(event.name.startswith("Torch-Compiled Region") for event in events)
    if not gpu:
        return {"kernels": None, "kernel_seconds": None, "compiled_regions": regions}
    on_device = [
        event for event in events
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("ProfilerStep", "Optimizer.", "Torch-Compiled Region"))
    ]  # fmt: skip
    copies = [event for event in on_device if event.name.startswith(("Memcpy", "Memset"))]
    seconds = sum(event.time_range.elapsed_us() for event in on_device) / 1e6
    return {
        "kernels": len(on_device) - len(copies),
        "copies": len(copies),
        "kernel_seconds": seconds,
        "compiled_regions": regions,
    }
