"""The result of ``maemm estimate``: numbers, as a record and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from maemm.tasks.estimate.ledger import Sums
from maemm.tasks.estimate.length import Length
from maemm.tasks.estimate.sharing import BESIDE, exposed
from maemm.train.gpus import NETWORK_GBS, NODE, USABLE_SHARE, Gpu
from maemm.ui.text import aligned

GB = 1e9


class Parameters(NamedTuple):
    """Of a part of the model."""

    trained: int
    frozen: int


class Tokens(NamedTuple):
    """Of a sample; visible ones as often as the encoder passes over them."""

    all: float
    visible: float
    predicted: float


class Shared(NamedTuple):
    """What a way to share the model over GPUs takes, of one GPU."""

    state: int  # bytes of weights, gradients, moments, averages
    peak: int  # bytes
    sent: tuple[float, float]  # bytes of a step, and those of them that go to other nodes
    seconds: float  # that they take


@dataclass
class Estimate:
    """Of one training, or of a stage of one. Bytes, seconds and operations are of one GPU unless noted."""

    name: str
    gpu: Gpu
    gpus: int
    bf16: bool
    parallel: str  # as the recipe has it
    recompute: bool  # activation checkpointing, as the recipe has it
    batch: int  # samples of a step of all GPUs
    length: Length
    parameters: dict[str, Parameters]
    flops: dict[str, Sums]  # of a micro-batch by part
    again: int  # operations of a micro-batch that activation checkpointing does again
    tokens: Tokens
    memory: dict[bool, dict[str, int]]  # {with activation checkpointing: bytes by part}
    peak: dict[bool, int]  # {with activation checkpointing: bytes at once}
    fits: dict[bool, int | None]  # {with activation checkpointing: samples of a micro-batch, at most}
    shared: dict[str, Shared]  # by train.parallel
    suggestion: tuple[str, str]  # train.parallel, why
    computing: float  # seconds of computation in a step
    efficiency: float  # operations of the model over what the GPU could have done in that time
    how: str  # where that is from
    sample_bytes: float  # of storage
    size_note: str  # where that is from
    assumed: list[str]

    # ---- what follows
    @property
    def step_seconds(self) -> float:
        """Of a step, with what the exchange between GPUs adds."""
        return self.computing + exposed(self.computing, self.shared[self.parallel].seconds)

    @property
    def seconds(self) -> float:
        """Of the training."""
        return self.step_seconds * self.length.steps

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs."""
        return self.batch / self.step_seconds

    @property
    def sample_flops(self) -> tuple[float, float]:
        """(forward, backward) of a sample."""
        rows = self.length.rows
        return sum(x.forward for x in self.flops.values()) / rows, sum(x.backward for x in self.flops.values()) / rows

    def record(self) -> dict[str, Any]:
        """For programs: bytes, seconds, operations."""
        rows, again = self.length.rows, self.again / self.length.rows
        forward, backward = self.sample_flops
        seen = self.length.steps * self.batch
        shared = self.shared[self.parallel]
        return {
            "name": self.name,
            "gpu": asdict(self.gpu),
            "gpus": self.gpus,
            "precision": "bf16" if self.bf16 else "fp32",
            "parallel": self.parallel,
            "activation_checkpointing": self.recompute,
            "batch": self.batch,
            "micro_batch": rows,
            "accumulation": self.length.accumulation,
            "parameters": {key: x._asdict() for key, x in self.parameters.items()},
            "flops_of_a_sample": {
                "by_part": {k: {"forward": x.forward / rows, "backward": x.backward / rows} for k, x in self._parts()},
                "forward": forward,
                "backward": backward,
                "again": again,
            },
            "flops_of_a_step": {
                "kept": (forward + backward) * self.batch,
                "activation_checkpointing": (forward + backward + again) * self.batch,
            },
            "tokens_of_a_sample": self.tokens._asdict(),
            "memory": {
                ("activation_checkpointing" if key else "kept"): {"parts": parts, "peak": self.peak[key]}
                for key, parts in self.memory.items()
            },
            "micro_batch_that_fits": {
                ("activation_checkpointing" if key else "kept"): rows for key, rows in self.fits.items()
            },
            "sharing": {
                kind: {
                    "state": x.state,
                    "peak": x.peak,
                    "sent": x.sent[0],
                    "sent_to_other_nodes": x.sent[1],
                    "seconds": x.seconds,
                }
                for kind, x in self.shared.items()
            },
            "suggestion": {"parallel": self.suggestion[0], "why": self.suggestion[1]},
            "step_seconds": self.step_seconds,
            "computing_seconds": self.computing,
            "exchange_seconds": shared.seconds,
            "efficiency": self.efficiency,
            "efficiency_is": self.how,
            "samples": self.length.samples,
            "steps": self.length.steps,
            "seconds": self.seconds,
            "gpu_hours": self.seconds * self.gpus / 3600,
            "samples_seen": seen,
            "tokens_seen": seen * self.tokens.all,
            "visible_tokens_seen": seen * self.tokens.visible,
            "storage": {
                "bytes_of_a_sample": self.sample_bytes,
                "is": self.size_note,
                "bytes_per_second": self.sample_bytes * self.samples_per_second,
            },
            "assumed": self.assumed,
        }

    def _parts(self) -> list[tuple[str, Sums]]:
        """Parts that compute products, the largest first."""
        parts = [(key, x) for key, x in self.flops.items() if x.forward + x.backward]
        return sorted(parts, key=lambda part: -part[1].forward - part[1].backward)

    # ---- as text
    def __str__(self) -> str:
        gpu = self.gpu
        peak = f"bf16 {gpu.bf16:g}" if self.bf16 else f"TF32 {gpu.tf32:g}"
        sections = [
            [f"{self.name} on {self.gpus} x {gpu.key} ({gpu.memory:g} GB, {peak} TFLOP/s)"],
            self._parameter_lines(),
            self._flop_lines(),
            self._memory_lines(),
            self._sharing_lines(),
            self._time_lines(),
            ["assumed", *(f"  {line}" for line in self._all_assumed())],
        ]
        return "\n".join(line for section in sections for line in section)

    def _parameter_lines(self) -> list[str]:
        rows = [["parameters", "trained", "frozen"]]
        rows += [[f"  {key}", f"{x.trained:,}", f"{x.frozen:,}"] for key, x in self.parameters.items()]
        sums = [sum(x[number] for x in self.parameters.values()) for number in range(2)]
        return aligned([*rows, ["  all", *(f"{count:,}" for count in sums)]])

    def _flop_lines(self) -> list[str]:
        rows = [["GFLOP of a sample", "forward", "backward"]]
        samples, (forward, backward) = self.length.rows, self.sample_flops
        rows += [[f"  {k}", _giga(x.forward / samples), _giga(x.backward / samples)] for k, x in self._parts()]
        rows.append(["  all", _giga(forward), _giga(backward)])
        step, again = (forward + backward) * self.batch, self.again / samples * self.batch
        return [
            *aligned(rows),
            f"  a step of {self.batch:,} samples: {step / 1e12:,.4g} TFLOP, with activation checkpointing "
            f"{(step + again) / 1e12:,.4g}",
            f"  tokens of a sample: {self.tokens.all:,.4g}, {self.tokens.visible:,.4g} pass the encoder, "
            f"{self.tokens.predicted:,.4g} are predicted",
        ]

    def _memory_lines(self) -> list[str]:
        rows = [[f"memory of one GPU, GB ({self.parallel})", "activations kept", "computed again"]]
        rows += [[f"  {key}", *(_gb(self.memory[again][key]) for again in (False, True))] for key in self.memory[False]]
        rows.append(["  at once", *(_gb(self.peak[again]) for again in (False, True))])
        rows.append(["  samples at a time that fit", *(_fitting(self.fits[again]) for again in (False, True))])
        micro = f"{self.length.rows:,} samples at a time, {_times(self.length.accumulation)} a step"
        chosen = "computed again" if self.recompute else "kept"
        return [*aligned(rows), f"  the recipe: {micro}, activations {chosen}"]

    def _sharing_lines(self) -> list[str]:
        rows = [["train.parallel", "state GB", "at once GB", "sent in a step GB", "to other nodes GB", "ms"]]
        for kind, x in self.shared.items():
            sizes = (x.state, x.peak, *x.sent)
            rows.append([f"  {kind}", *(_gb(size) for size in sizes), f"{1000 * x.seconds:,.3g}"])
        return [*aligned(rows), f"  suggested: {self.suggestion[0]}, as {self.suggestion[1]}"]

    def _time_lines(self) -> list[str]:
        length, exchange = self.length, self.shared[self.parallel].seconds
        seen = length.steps * self.batch
        samples = "" if length.samples is None else f" of {length.samples:,} samples"
        hours = self.seconds * self.gpus / 3600
        tokens, visible = seen * self.tokens.all, seen * self.tokens.visible
        rate = self.samples_per_second
        return [
            "time",
            f"  a step {_duration(self.step_seconds)}: computing {_duration(self.computing)} at "
            f"{100 * self.efficiency:.3g} % of the peak ({self.how}), exchange {_duration(exchange)}",
            f"  {length.steps:,} steps{samples}: {_duration(self.seconds)}, {hours:,.4g} GPU hours",
            f"  seen: {seen:,} samples, {tokens:.3g} tokens, {visible:.3g} of them pass the encoder",
            f"  storage must give {_size(self.sample_bytes * rate)}/s: {rate:,.4g} "
            f"samples/s of {_size(self.sample_bytes)} ({self.size_note})",
        ]

    def _all_assumed(self) -> list[str]:
        gpu = self.gpu
        lines = [
            f"rates of the data sheet; {gpu.link:g} GB/s to GPUs of a node ({gpu.link_name}, {NODE} GPUs), "
            f"{NETWORK_GBS:g} GB/s of a GPU to other nodes",
            f"exchange goes on beside computing, up to {100 * BESIDE:.0f} % of its time; storage and loading keep up",
            f"{100 * USABLE_SHARE:.0f} % of the memory can be used",
            "not counted: preprocessing and mixing of samples, and the memory that compiled blocks save",
        ]
        return lines + self.assumed


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _gb(count: float) -> str:
    size = count / GB
    return f"{size:,.2f}" if size >= 1 else f"{size:.2g}"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.4g}"


def _fitting(rows: int | None) -> str:
    return "none" if rows is None else f"{rows:,}"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} bytes"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"
