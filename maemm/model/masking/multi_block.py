"""Multi-block masking (I-JEPA, V-JEPA 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from torch import Tensor

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Interval, NonNegativeInt, Positive, PositiveFraction
from maemm.contract.rng import Rng
from maemm.model.masking import block_targets, block_unions
from maemm.model.masking.block_targets import BlockTargets
from maemm.model.masking.block_unions import Box, Generator
from maemm.model.masking.counts import packed
from maemm.model.masking.rectangles import Blocks, batch_rng, frames_rows_columns, indices


class MultiBlock(Masking):
    """Predict rectangles of the grid from a context of rectangles: I-JEPA's masks, or with ``generators`` V-JEPA 2's.

    I-JEPA (section 3; src/masks/multiblock.py): target blocks at random places, a row of the plan each, and contexts
    less what the targets cover; all targets of a context share one pass of the encoder. V-JEPA 2
    (src/masks/multiseq_multiblock3d.py): the union of ``blocks`` boxes is predicted from the rest, a set of plans for
    each generator. Sizes are those of a step, the same for all samples; places are those of a sample. Grids have 1 to 3
    axes; of three, the first is time: I-JEPA's blocks span all of it. Along an axis alone a block is an interval.
    As published, I-JEPA's blocks never reach the last row and column, and on square grids its context is always the
    same square at the top left.

    ``count: exact`` (default) gives every sample the same numbers of tokens, which depend on the step alone: in a
    context as many as nine in ten draws have (or ``keep``), the rest left out at random. The first of 20 draws with
    enough is used; where none has, cells outside the block fill it up, then cells of targets, which do not count in the
    loss. V-JEPA 2's predicted tokens are counted in the same way. ``count: official`` cuts all lists to the shortest
    of the micro-batch, the lowest indices first: the published rule, by which a plan changes with the batch, with
    micro-batches and with the number of ranks, and the end of the grid is lost. Padded batches need ``exact``; their
    rows have less where the chosen tokens are not valid.

    Options
        targets: target blocks of a sample
        target_scale: their area, a fraction of the grid
        aspect: their height / width
        contexts: context blocks of a sample
        context_scale: their area, a fraction of the grid
        min_keep: a block is drawn again while it has no more tokens than this
        allow_overlap: contexts keep what targets cover
        keep: exact counts: fraction of the tokens in each context; null: what nine in ten draws have
        generators: V-JEPA 2's sets of plans, a mapping for each, instead of the options above: [{blocks: 8},
            {blocks: 2, scale: [0.7, 0.7]}] is the published recipe
        count: exact, or official: cut to the shortest of the micro-batch
    """

    def __init__(
        self,
        *,
        targets: Blocks = 4,
        target_scale: Interval[PositiveFraction] = (0.15, 0.2),
        aspect: Interval[Positive] = (0.75, 1.5),
        contexts: Blocks = 1,
        context_scale: Interval[PositiveFraction] = (0.85, 1.0),
        min_keep: NonNegativeInt = 10,
        allow_overlap: bool = False,
        keep: PositiveFraction | None = None,
        generators: Annotated[Sequence[Generator], Len(1)] | None = None,
        count: Literal["exact", "official"] = "exact",
    ):
        self.targets, self.contexts, self.min_keep, self.allow_overlap = targets, contexts, min_keep, allow_overlap
        self.target_scale, self.aspect, self.context_scale = _range(target_scale), _range(aspect), _range(context_scale)
        self.keep, self.count = keep, count
        self.generators = [Generator(**x) if isinstance(x, Mapping) else x for x in generators or ()]
        if self.generators:
            self._refuse_options_of_targets()
        if count == "official" and any(x is not None for x in (keep, *(each.keep for each in self.generators))):
            raise MaemmError("keep is for exact counts, not count: official (masking.keep); leave out one of them")

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        """As many as sizes can be drawn, or fewer, where counts are exact: some have equal counts."""
        if self.count == "official":
            return None
        return math.prod(len(self._exact_counts(name, x)) for name, x in tokens.items())

    def _exact_counts(self, name: str, tokens: Tokens) -> set[tuple[int, int]]:
        """All (visible, predicted) that plans may have."""
        grid, where = frames_rows_columns(name, tokens, "multi_block"), f"modalities.{name}.masking"
        if self.generators:
            return {
                block_unions.exact_counts(generator, grid, box)
                for generator in self.generators
                for box in block_unions.boxes(generator, grid)
            }
        blocks = self._blocks(grid)
        targets, contexts = block_targets.all_sizes(blocks)
        return {
            (self._keep(blocks, (target, context), where), target[0] * target[1])
            for target in targets
            for context in contexts
        }

    def _refuse_options_of_targets(self) -> None:
        for name, default in (MultiBlock.__init__.__kwdefaults__ or {}).items():
            value = getattr(self, name)
            if name not in ("generators", "count") and value != default:
                raise MaemmError(
                    f"{name} is for blocks that are predicted one by one, which generators replace (masking.{name}); "
                    f"leave out {name}, or generators"
                )

    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        drawn = {name: self._drawn(name, x, rng) for name, x in tokens.items()}
        sets = [{name: of[number].plan for name, of in drawn.items()} for number in range(len(self.generators) or 1)]
        return sets if len(sets) > 1 else sets[0]

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        return {name: [x.note for x in self._drawn(name, values, rng)] for name, values in tokens.items()}

    def _drawn(self, name: str, tokens: Tokens, rng: Rng) -> list[_Drawn]:
        grid = frames_rows_columns(name, tokens, "multi_block")
        if self.count == "official" and tokens.valid is not None:
            raise MaemmError(
                f"count: official cuts lists of equal grids, this batch has padding (modalities.{name}.masking); set "
                "count: exact"
            )
        where = f"modalities.{name}.masking"
        if self.generators:
            uniforms = batch_rng(rng).floats(f"mask/{name}/size", 3)  # all generators use the same, as published
            return [
                self._of_union(generator, number, grid, (uniforms[0], uniforms[1], uniforms[2]), name, tokens, rng)
                for number, generator in enumerate(self.generators)
            ]
        blocks = self._blocks(grid)
        block_targets.refuse_impossible(blocks, where)
        return [self._of_targets(blocks, name, tokens, rng, where)]

    # ---- I-JEPA
    def _blocks(self, grid: Box) -> BlockTargets:
        return BlockTargets(
            grid,
            self.targets,
            self.target_scale,
            self.aspect,
            self.contexts,
            self.context_scale,
            self.min_keep,
            self.allow_overlap,
        )

    def _of_targets(self, blocks: BlockTargets, name: str, tokens: Tokens, rng: Rng, where: str) -> _Drawn:
        target, context = batch_rng(rng).floats(f"mask/{name}/size", 2)
        sizes = blocks.sizes((target, context))
        device, frames = tokens.values.device, blocks.grid[0]
        if self.count == "official":
            contexts, targets = block_targets.official(blocks, sizes, name, rng)
            before = contexts.sum(-1)
            keep = int(before.min())
        else:
            keep = self._keep(blocks, sizes, where)
            contexts, targets, before = block_targets.exact(blocks, sizes, keep, name, rng, device)
        predicted = sizes[0][0] * sizes[0][1]
        overlaps = self.allow_overlap or self.count == "official"
        plan = plan_of_blocks(indices(contexts, keep), indices(targets, predicted), blocks, tokens.valid, overlaps)
        size, block = (" x ".join(map(str, x)) for x in sizes)
        blocks_text = f"targets {self.targets} x ({size}), contexts {self.contexts} x ({block})"
        return _Drawn(plan.to(device), blocks_text, self.count, before * frames, keep * frames)

    def _keep(self, blocks: BlockTargets, sizes: tuple[tuple[int, int], tuple[int, int]], where: str) -> int:
        """Places of every context, where counts are exact."""
        rows, columns = blocks.area
        keep = max(block_targets.usual_context(blocks, sizes), blocks.least)
        if self.keep is not None:
            keep = max(round(self.keep * rows * columns), 1)
        most = rows * columns - (0 if self.allow_overlap else sizes[0][0] * sizes[0][1])
        if keep > most:
            raise MaemmError(
                f"a context of {keep} places does not fit the {most} of {rows} x {columns} that a target leaves "
                f"({where}); lower {'min_keep' if self.keep is None else 'keep'}, or target_scale"
            )
        return keep

    # ---- V-JEPA 2
    def _of_union(
        self,
        generator: Generator,
        number: int,
        grid: Box,
        uniforms: tuple[float, float, float],
        name: str,
        tokens: Tokens,
        rng: Rng,
    ) -> _Drawn:
        block_unions.refuse_impossible(generator, grid, f"modalities.{name}.masking.generators.{number}")
        box, device, purpose = generator.box(grid, uniforms), tokens.values.device, f"{name}/{number}"
        if self.count == "official":
            hidden = block_unions.official(generator, grid, box, purpose, rng)
            counts = block_unions.official_counts(generator, hidden)
            context, target, before = ~hidden, hidden, (~hidden).sum(-1)
        else:
            counts = block_unions.exact_counts(generator, grid, box)
            context, target, before = block_unions.exact(generator, grid, box, counts, purpose, rng, device)
        visible, predict = generator.lists(context, target, counts)
        seen = predict.shape[1] if generator.inv_block else visible.shape[1]
        plan = _plan(visible, predict, tokens.valid)
        blocks_text = f"boxes {generator.blocks} x ({' x '.join(map(str, box))})"
        return _Drawn(plan.to(device), blocks_text, self.count, before, seen)


@dataclass(frozen=True)
class _Drawn:
    """One set of plans, and how it came about."""

    plan: Plan
    blocks: str
    count: str
    before: Tensor  # tokens of each context before counts were made equal
    context: int  # tokens of each context

    @property
    def note(self) -> str:
        """A line for ``maemm show``; it waits for the device."""
        before = self.before.float()
        lost, added = (float(x.clamp(min=0).mean()) for x in (before - self.context, self.context - before))
        text = (
            f"{self.blocks}; context of {self.context:,} tokens, of {before.min():,.0f} to {before.max():,.0f} before "
            f"counts were made equal ({lost:,.1f} lost and {added:,.1f} added on average); "
            f"{self.plan.predict.shape[1]:,} to predict; count: {self.count}"
        )
        if self.count == "exact":
            return text
        return f"{text}, here for a batch of {len(before)}; it changes with the batch and the number of ranks"


def plan_of_blocks(
    contexts: Tensor, targets: Tensor, blocks: BlockTargets, valid: Tensor | None, overlaps: bool
) -> Plan:
    """Places of contexts (B, C, K) and of targets (B, n, M) -> a row for each context and target of each sample.

    Rows are ordered by context, then target, then sample; those of a context share a pass of the encoder. ``overlaps``:
    predicted tokens count in the loss even where they are visible, as in published code.
    """
    frames, rows, columns = blocks.grid
    (batch, c, _), n = contexts.shape, targets.shape[1]
    time = torch.arange(frames, device=contexts.device)[:, None] * (rows * columns)
    contexts, targets = ((x[:, :, None] + time).flatten(2).transpose(0, 1) for x in (contexts, targets))
    visible = contexts[:, None].expand(-1, n, -1, -1).flatten(0, 2)
    predict = targets[None].expand(c, -1, -1, -1).flatten(0, 2)
    samples = torch.arange(batch, device=visible.device)
    passes = torch.arange(c * batch, device=visible.device).view(c, 1, batch).expand(-1, n, -1).flatten()
    first = (torch.arange(c, device=visible.device)[:, None] * (n * batch) + samples).flatten()
    plan = _plan(visible, predict, valid, samples.repeat(c * n))
    counted = plan.counted
    if overlaps:
        counted = torch.ones_like(counted) if plan.predict_valid is None else plan.predict_valid.float()
    return replace(plan, counted=counted, passes=passes, first=first)


def _plan(visible: Tensor, predict: Tensor, valid: Tensor | None, rows: Tensor | None = None) -> Plan:
    """Indices (R, V) and (R, M) -> a plan, without the tokens that are not valid."""
    if valid is None:
        return Plan(visible, predict, rows=rows)
    valid = valid if rows is None else valid[rows]
    count = valid.shape[1]
    visible, visible_valid = packed(visible, valid.gather(1, visible), visible.shape[1], count)
    predict, predict_valid = packed(predict, valid.gather(1, predict), predict.shape[1], count)
    return Plan(visible, predict, visible_valid=visible_valid, predict_valid=predict_valid, rows=rows)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
