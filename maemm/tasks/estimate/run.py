"""What a training costs, said before it runs: operations, memory, time and what storage must give."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from maemm import config
from maemm.config.messages import value_text
from maemm.contract.errors import MaemmError, advice
from maemm.data.bad_samples import reason_of
from maemm.model.model import Model
from maemm.tasks.estimate.imagined import Counted, Imagined
from maemm.tasks.estimate.ledger import Sums
from maemm.tasks.estimate.length import length_of
from maemm.tasks.estimate.result import Estimate, Parameters, Shared, Tokens
from maemm.tasks.estimate.sharing import Sharing, blocks_of
from maemm.train import compiling
from maemm.train.gpus import GPUS, NODE, USABLE_SHARE, Gpu
from maemm.train.setup import refuse_micro_batches
from maemm.train.sharding import PARALLEL

COMPILED = 0.86  # of an eager step's time, with compiled blocks: the median of benchmarks/compiled.py
MOST_GPUS, MOST_SAMPLES = 10**6, 10**15
ROOM = 0.5  # of the usable memory that weights, gradients, moments and averages may take before they are shared


def estimate(
    recipe: str | os.PathLike | Mapping[str, Any],
    *,
    gpu: str = "h100",
    gpus: int = 1,
    data: int | None = None,
    efficiency: float | None = None,
    sample_bytes: float | None = None,
    **overrides: Any,
) -> list[Estimate]:
    """What the training of a recipe costs on ``gpus`` of the kind ``gpu``: one estimate for each of its stages.

    No GPU is needed, and no data where ``data``, their number of samples, is given (of ``data.mix``: of each set).
    ``efficiency``: share of the peak in (0, 1], None: modelled. ``sample_bytes``: bytes of a sample in storage, None:
    as in the data, or a byte for each number of a sample. ``overrides`` are dotted keys of the recipe. Raises
    :class:`MaemmError` for what is wrong with the recipe, and where the number of samples is neither told nor counted.
    """
    name = os.fspath(recipe) if isinstance(recipe, os.PathLike) else recipe
    return compute(
        name, overrides, gpu=gpu, gpus=gpus, data=data, efficiency=efficiency, sample_bytes=sample_bytes
    )  # fmt: skip


def compute(
    recipe: str | Mapping[str, Any],
    overrides: Any,
    *,
    gpu: str = "h100",
    gpus: int = 1,
    data: int | None = None,
    efficiency: float | None = None,
    sample_bytes: float | None = None,
) -> list[Estimate]:
    """:func:`estimate`, where no override can meet a parameter of the same name."""
    chosen = next((row for row in GPUS if row.key == gpu.lower()), None)
    if chosen is None:
        raise MaemmError(f"no GPU {gpu!r} is in the table (--gpu); {advice(gpu, [row.key for row in GPUS])}")
    for key, value, most in (("--gpus", gpus, MOST_GPUS), ("--data", data, MOST_SAMPLES)):
        if value is not None and not 1 <= value <= most:
            raise MaemmError(f"{key} is {value_text(value)}; give a number from 1 to {most:,}")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise MaemmError(f"--efficiency is {efficiency:g}; give a share of the peak above 0 and up to 1, such as 0.4")
    if sample_bytes is not None and not 0 < sample_bytes < math.inf:
        raise MaemmError(f"--sample-bytes is {sample_bytes:g}; give the bytes of a sample in storage, above 0")
    resolved = config.load(recipe, overrides, training=True)
    stages = config.stages_of(resolved) or {"": resolved}
    title = resolved.get("name") or (recipe if isinstance(recipe, str) else "recipe")
    return [
        _Estimation(f"{title}, stage {stage}" if stage else str(title), values, chosen, gpus, data).result(
            efficiency, sample_bytes
        )
        for stage, values in stages.items()
    ]


class _Estimation:
    """Of one recipe without stages."""

    def __init__(self, name: str, recipe: dict[str, Any], gpu: Gpu, gpus: int, samples: int | None):
        train = recipe["train"]
        self.name, self.recipe, self.gpu, self.gpus = name, recipe, gpu, gpus
        self.bf16 = train.get("precision", "auto") != "fp32"
        self.recompute = bool(train.get("activation_checkpointing"))
        self.length = length_of(recipe, gpus, samples)
        self.accumulates = self.length.accumulation > 1
        self.imagined = Imagined(recipe, bf16=self.bf16, gpu=gpu, accumulates=self.accumulates)
        self.model = self.imagined.state.model
        self.blocks = blocks_of(self.model)
        self.own = self.length.rows * self.length.accumulation
        self.counted = {again: self._steps(self.length.rows, again) for again in (False, True)}
        other = self.length.rows // 2 or 2  # a second size: memory grows evenly with samples
        self.others = {again: self._steps(other, again) for again in (False, True)}

    def _steps(self, rows: int, recompute: bool) -> list[Counted]:
        """A step of each kind."""
        try:
            return [
                self.imagined.step(rows, recompute=recompute, accumulates=self.accumulates, names=kind.modalities)
                for kind in self.length.kinds
            ]
        except MaemmError:
            raise
        except Exception as error:  # of torch or of a plugin, whose part asks for values
            if "overflow" in str(error).lower():
                raise MaemmError(
                    f"a step of {rows:,} samples makes more numbers than can be counted (train.batch); lower it"
                ) from None
            raise MaemmError(
                f"a step cannot be counted on shapes alone ({reason_of(error)}); find the part that reads values with "
                "--traceback"
            ) from error

    def result(self, efficiency: float | None, sample_bytes: float | None) -> Estimate:
        length, gpu, recompute = self.length, self.gpu, self.recompute
        flops = self._flops(False)
        parallel = self.recipe["train"].get("parallel") or "ddp"
        shared = {kind: self._shared(kind) for kind in PARALLEL}
        done = _operations(self._flops(recompute)) * length.accumulation
        needed = _operations(flops) * length.accumulation
        peak = (gpu.bf16 if self.bf16 else gpu.tf32) * 1e12
        if efficiency is not None:
            computing, how = done / (peak * efficiency), "as told"
        else:
            eager, how = self._seconds(recompute), "modelled"
            compiled = compiling.on_gpu(self.recipe["train"]["compile"], self.recipe).startswith("compiled")
            computing = eager * (COMPILED if compiled else 1.0)
            how += ", blocks compiled" if compiled else ", not compiled"
        memory = {again: self._memory(parallel, again) for again in (False, True)}
        return Estimate(
            name=self.name,
            gpu=gpu,
            gpus=self.gpus,
            bf16=self.bf16,
            parallel=parallel,
            recompute=recompute,
            batch=self.recipe["train"]["batch"],
            length=length,
            parameters=_parameters(self.model),
            flops=flops,
            again=_operations(self._flops(True)) - _operations(flops),
            tokens=self._tokens(),
            memory={again: parts for again, (parts, _) in memory.items()},
            peak={again: most for again, (_, most) in memory.items()},
            fits={again: self._fits(parallel, again) for again in (False, True)},
            shared=shared,
            suggestion=self._suggestion(shared),
            computing=computing,
            efficiency=needed / (computing * peak),
            how=how,
            sample_bytes=sample_bytes or length.sample_bytes or self._numbers(),
            size_note="as told"
            if sample_bytes
            else "as its files"
            if length.sample_bytes
            else "a byte for each number",
            assumed=self._assumed(),
        )

    # ---- operations and time
    def _flops(self, recompute: bool) -> dict[str, Sums]:
        """Of a micro-batch by part, the mean over kinds of steps."""
        parts: dict[str, Sums] = {}
        for kind, counted in zip(self.length.kinds, self.counted[recompute], strict=True):
            for label, sums in counted.parts.items():
                total = parts.setdefault(label, Sums())
                total.forward += round(kind.share * sums.forward)
                total.backward += round(kind.share * sums.backward)
        return parts

    def _seconds(self, recompute: bool) -> float:
        """Of a step of one GPU, eager."""
        return sum(
            kind.share
            * (counted.update.seconds + self.length.accumulation * sum(x.seconds for x in counted.parts.values()))
            for kind, counted in zip(self.length.kinds, self.counted[recompute], strict=True)
        )

    def _tokens(self) -> Tokens:
        rows = [(kind.share, self.imagined.tokens(kind.modalities)) for kind in self.length.kinds]
        return Tokens(*(sum(share * counts[number] for share, counts in rows) for number in range(3)))

    def _numbers(self) -> float:
        """Numbers of a sample as the model gets it, the mean over kinds of steps."""
        return sum(kind.share * self.imagined.numbers(kind.modalities) for kind in self.length.kinds)

    # ---- memory
    def _at(self, number: int, recompute: bool, rows: int) -> Counted:
        """A step of a kind with another number of samples, on the line through two that were counted."""
        return self.counted[recompute][number].at(rows, self.others[recompute][number])

    def _memory(self, parallel: str, recompute: bool, rows: int | None = None) -> tuple[dict[str, int], int]:
        """({part: bytes}, most at once) of the kind of step that takes most."""
        rows = self.length.rows if rows is None else rows
        sharing = self._sharing(parallel)
        results = []
        for number in range(len(self.length.kinds)):
            counted, whole = self._at(number, recompute, rows), self._at(number, recompute, self.own)
            results.append(sharing.memory(counted, self.blocks, whole.inputs, rows < self.own))
        return max(results, key=lambda result: result[1])

    def _sharing(self, kind: str) -> Sharing:
        return Sharing(kind, self.gpus, self.bf16, self.recipe["train"].get("shard") or NODE)

    @property
    def usable(self) -> float:
        """Bytes."""
        return self.gpu.memory * 1e9 * USABLE_SHARE

    def _fits(self, parallel: str, recompute: bool) -> int | None:
        """The largest micro-batch that train.micro_batch accepts and that fits; None: not even one sample."""
        repeats = self.recipe["data"].get("aug_repeats") or 1
        sizes = [rows for rows in _divisors(self.own) if rows % repeats == 0]
        try:
            refuse_micro_batches(self.model, 2)
        except MaemmError:
            sizes = [self.own]
        return next((rows for rows in sizes if self._memory(parallel, recompute, rows)[1] <= self.usable), None)

    def _shared(self, kind: str) -> Shared:
        sharing, counted = self._sharing(kind), self.counted[self.recompute][0]
        parts, most = self._memory(kind, self.recompute)
        state = sum(parts[key] for key in ("weights", "moments", "averages and teachers"))
        sent = sharing.sent(counted, self.length.accumulation)
        seconds = sharing.seconds(counted, self.length.accumulation, self.gpu)
        return Shared(state + counted.gradients // sharing.shards, most, sent, seconds)

    def _suggestion(self, shared: Mapping[str, Shared]) -> tuple[str, str]:
        """(train.parallel, why)."""
        room, gpu = ROOM * self.usable, f"{self.gpu.memory:g} GB"
        state = {kind: f"{x.state / 1e9:.3g} GB" for kind, x in shared.items()}
        whole = f"weights, gradients, moments and averages take {state['ddp']} of {gpu}"
        if self.gpus == 1:
            fits = "and fit" if shared["ddp"].state <= self.usable else "and do not fit: take more GPUs"
            return "ddp", f"one GPU shares nothing; {whole} {fits}"
        if shared["ddp"].state <= room:
            return "ddp", f"{whole}, so that each GPU holds all and only gradients travel"
        if self.gpus > NODE and self.gpus % NODE == 0 and shared["hsdp"].state <= room:
            return "hsdp", f"{whole}, over the {NODE} GPUs of a node {state['hsdp']}, and gathers stay in the node"
        enough = "" if shared["fsdp"].state <= self.usable else ", which does not fit either: take more GPUs"
        return "fsdp", f"{whole}, over all {self.gpus} GPUs {state['fsdp']}{enough}"

    # ---- notes
    def _assumed(self) -> list[str]:
        notes = []
        shapes = {name: modality.token_shapes() for name, modality in self.model.modalities.items()}
        ragged = [name for name, count in shapes.items() if count != 1]
        if ragged:
            notes.append(f"every sample of {', '.join(ragged)} is as long as the recipe lets it be")
        sizes = compiling.sizes_of(self.recipe)
        if sizes.count != 1 and not ragged:
            many = f"{sizes.count:,} sizes" if sizes.count else "any number of sizes"
            notes.append(
                f"masks come in {many}: one with the median of tokens is counted, in the middle of the training"
            )
        if len(self.length.kinds) > 1:
            sets = ", ".join(
                f"{' + '.join(kind.modalities or ())} in {100 * kind.share:.0f} % of the steps"
                for kind in self.length.kinds
            )
            notes.append(f"{sets}; memory is that of the larger")
        if self.recipe.get("init"):
            notes.append("weights of init are not read, and have the shapes of the recipe")
        return notes


def _divisors(number: int) -> list[int]:
    """The largest first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)}, reverse=True)


def _operations(parts: Mapping[str, Sums]) -> int:
    return sum(part.forward + part.backward for part in parts.values())


def _parameters(model: Model) -> dict[str, Parameters]:
    """Numbers of parameters by part, what is shared counts for the first."""
    seen: set[int] = set()
    parts: dict[str, nn.Module | None] = {"encoder": model.encoder, "decoder": model.decoder, "head": model.head}
    for group in ("modalities", "targets", "objectives"):
        parts |= {f"{group}.{name}": module for name, module in getattr(model, group).items()}
    counts = {}
    for key, module in [*parts.items(), ("rest", model)]:
        own = [] if module is None else [x for x in module.parameters() if id(x) not in seen]
        seen |= {id(x) for x in own}
        trained = sum(x.numel() for x in own if x.requires_grad)
        if own:
            counts[key] = Parameters(trained, sum(x.numel() for x in own) - trained)
    return counts
