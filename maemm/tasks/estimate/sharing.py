"""What ranks share: the memory of one GPU, and the bytes that travel in a step, with ddp, fsdp or hsdp."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from maemm.model.model import Model
from maemm.model.repeated import repeated_blocks
from maemm.tasks.estimate.imagined import Counted
from maemm.train.gpus import NETWORK_GBS, NODE, Gpu

BESIDE = 2 / 3  # of the time of computation: the backward pass, beside which ranks exchange gradients


@dataclass(frozen=True)
class Blocks:
    """Bytes in float32 of what is gathered at once where weights are sharded."""

    largest: int  # of one block
    outside: int  # of all that is in no block, and stays whole from the forward to the backward pass


def blocks_of(model: Model) -> Blocks:
    """Of the weights of a model."""
    blocks = repeated_blocks(model)
    inside = {id(x) for block in blocks for x in block.parameters()}
    outside = {id(x): x for x in model.parameters() if id(x) not in inside}
    return Blocks(max((_size(block) for block in blocks), default=0), sum(x.nbytes for x in outside.values()))


def _size(module: nn.Module) -> int:
    return sum(x.nbytes for x in module.parameters())


@dataclass(frozen=True)
class Sharing:
    """``kind`` on ``gpus`` ranks. ``bf16``: blocks are gathered in bf16."""

    kind: str
    gpus: int
    bf16: bool
    shard: int = NODE  # ranks that share a copy, with hsdp

    @property
    def shards(self) -> int:
        """Ranks over which weights, gradients, moments and averages are divided."""
        if self.kind == "ddp":
            return 1
        return self.gpus if self.kind == "fsdp" else min(self.shard, self.gpus)

    def memory(self, counted: Counted, blocks: Blocks, inputs: int, accumulates: bool) -> tuple[dict[str, int], int]:
        """(bytes of one GPU by part, all that is there at once at most); ``inputs``: of all micro-batches of a step.

        Gradients come while activations go: without accumulation the most at once is less than the sum of all parts.
        """
        shards, gradients, temporary = self.shards, counted.gradients, counted.temporary
        parts = {
            "weights": counted.weights // shards,
            "gradients": gradients // shards,
            "moments": counted.moments // shards,
            "averages and teachers": counted.averages // shards,
        }
        if shards == 1:
            parts["weights in bf16"] = counted.cast
        else:  # two blocks, as one is gathered while the other computes, and a gradient that is not divided yet
            gathered = 2 * blocks.largest // (2 if self.bf16 else 1) + blocks.outside
            parts["gathered weights"] = gathered + blocks.largest
            if accumulates:  # no exchange before the last micro-batch: gradients are whole until then
                parts["gradients"] = gradients
        parts |= {"inputs": inputs, "activations": counted.activations}
        if accumulates:
            parts["largest temporary"] = temporary
            return parts, sum(parts.values())
        late = min(temporary, gradients)  # of gradients, at the peak
        parts["largest temporary"] = temporary - late
        return parts, sum(parts.values()) - parts["gradients"] + late // shards

    def sent(self, counted: Counted, accumulation: int) -> tuple[float, float]:
        """(bytes that a GPU sends in a step, those of them that go to another node), by ring algorithms.

        A ring through several nodes leaves each of them once: over the network goes what one GPU sends, shared among
        the network cards of the node.
        """
        n, gradients = self.gpus, counted.gradients
        crosses = 1 / NODE if n > NODE else 0.0
        if self.kind == "ddp":
            sent = 2 * (n - 1) / n * gradients
            return sent, sent * crosses
        weights, shards = counted.weights * (0.5 if self.bf16 else 1.0), self.shards
        sent = (shards - 1) / shards * (2 * accumulation * weights + gradients)
        if self.kind == "fsdp":
            return sent, sent * crosses
        groups = n // shards
        outside = 2 * (groups - 1) / groups * gradients / shards
        return sent + outside, outside

    def seconds(self, counted: Counted, accumulation: int, gpu: Gpu, network: float = NETWORK_GBS) -> float:
        """Of the exchange in a step, at ``gpu.link`` GB/s in a node and ``network`` GB/s of a GPU to other nodes."""
        sent, outside = self.sent(counted, accumulation)
        if self.kind == "hsdp":  # one after the other: within the node, then between nodes
            return (sent - outside) / (gpu.link * 1e9) + outside / (network * 1e9)
        return max(sent / (gpu.link * 1e9), outside / (network * 1e9))


def exposed(compute: float, exchange: float) -> float:
    """Seconds that a step is longer for the exchange, which goes on beside the backward pass."""
    return max(0.0, exchange - BESIDE * compute)
