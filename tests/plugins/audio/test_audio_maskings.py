"""Exact counts of the maskings by time and frequency, and the published masks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Plan, Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.masking.block import InverseBlock
from maemm_plugins.audio.maskings import Frequency, Time, TimeFrequency

GOLDEN = Path(__file__).parents[2] / "golden" / "audiomae" / "masks.safetensors"


def tokens_of(grid, rows=3, valid=None, time_axis=0):
    count = grid[0] * grid[1]
    return Tokens(torch.zeros(rows, count, 1), lattice(grid)[None], grid, valid, context={"time_axis": time_axis})


def rng(rows=3, key=0):
    return Rng((key,), range(rows), rows)


def lines(plan, grid, axis):
    """The visible tokens of each row as a lattice, reduced along the other axis."""
    seen = torch.zeros(len(plan.visible), grid[0] * grid[1], dtype=torch.bool).scatter_(1, plan.visible, True)
    return seen.view(-1, *grid).any(2 - axis), seen.view(-1, *grid)


class Stored:
    """A draw that hands out published noise."""

    def __init__(self, **noise):
        self.noise = noise

    def uniform(self, purpose, *shape, device="cpu"):
        return self.noise[purpose.rpartition("/")[2]]


@pytest.mark.parametrize("time, frequency", [(0.7, 0.3), (0.6, 0.5), (0.2, 0.2), (0.2, 0.3)])
def test_published_structured_masks(time, frequency):
    data = load_file(GOLDEN)
    key = f"tf_{time}_{frequency}/"
    stored = Stored(time=data[f"{key}noise_t"], frequency=data[f"{key}noise_f"])
    expected = data[f"{key}visible"]
    plan = TimeFrequency(time=time, frequency=frequency).plan("audio", tokens_of((64, 8), len(expected)), stored)
    assert torch.equal(plan.visible, expected.sort(1).values)
    assert torch.equal(
        torch.zeros(len(expected), 512).scatter_(1, plan.predict, 1.0), data[f"{key}mask"].float().view(-1, 512)
    )


def test_published_random_masks():
    from maemm.model.masking.random import Random

    class Noise:
        def uniform(self, purpose, *shape, device="cpu"):
            return data["random/noise"]

    data = load_file(GOLDEN)
    plan = Random(ratio=0.8).plan("audio", tokens_of((64, 8), len(data["random/noise"])), Noise())
    assert torch.equal(plan.visible, data["random/visible"]) and plan.visible.shape[1] == 102


@pytest.mark.parametrize("time_axis", [0, 1])
def test_whole_lines_of_the_right_axis(time_axis):
    grid = (12, 5) if time_axis == 0 else (5, 12)
    tokens = tokens_of(grid, time_axis=time_axis)
    time, seen = lines(Time(ratio=0.5).plan("audio", tokens, rng()), grid, time_axis)
    assert (time.sum(1) == 6).all() and (seen.flatten(1).sum(1) == 30).all()
    mel, seen = lines(Frequency(ratio=0.4).plan("audio", tokens, rng()), grid, 1 - time_axis)
    assert (mel.sum(1) == 3).all() and (seen.flatten(1).sum(1) == 36).all()


def test_exact_total_count_of_cav_mae():
    """31 of 64 columns times 4 of 8 rows are 124 patches; 4 masked ones come back."""
    masking = TimeFrequency(ratio=0.75, time=0.525, frequency=0.525, count="floor_hidden")
    plan = masking.plan("audio", tokens_of((64, 8)), rng())
    assert plan.visible.shape == (3, 128) and plan.predict.shape == (3, 384)
    inner = TimeFrequency(time=0.525, frequency=0.525, count="floor_hidden").plan("audio", tokens_of((64, 8)), rng())
    assert inner.visible.shape == (3, 124)
    for row in range(3):
        assert set(inner.visible[row].tolist()) < set(plan.visible[row].tolist())


@pytest.mark.parametrize(
    "masking", [Time(), Frequency(), TimeFrequency(time=0.5, frequency=0.3), TimeFrequency(ratio=0.8)]
)
def test_ragged_batches_keep_their_shares(masking):
    grid = (10, 4)
    valid = (lattice(grid)[:, 0] < torch.tensor([[10], [5], [1]])).view(3, 40)
    tokens = tokens_of(grid, valid=valid)
    plan = masking.plan("audio", tokens, rng()).check("audio", tokens)
    for row in range(3):
        seen = set(plan.visible[row][plan.visible_valid[row]].tolist())
        hidden = set(plan.predict[row][plan.predict_valid[row]].tolist())
        assert not seen & hidden and seen | hidden == set(valid[row].nonzero()[:, 0].tolist())
    whole = masking.plan("audio", tokens_of(grid), rng())
    assert plan.visible_valid[0].sum() == whole.visible.shape[1]


def test_one_line_stays_at_least():
    plan = Time(ratio=0.9).plan("audio", tokens_of((2, 4)), rng())
    assert plan.visible.shape == (3, 4)


def test_needs_a_lattice():
    tokens = Tokens(torch.zeros(1, 8, 1), torch.zeros(1, 8, 3))
    with pytest.raises(MaemmError, match="on a grid of time"):
        Time().plan("audio", tokens, rng(1))
    with pytest.raises(MaemmError, match="ratio"):
        check(Time, {"ratio": 1.5}, "masking")


@pytest.mark.parametrize("shape", ["square", "round"])
@pytest.mark.parametrize("grid", [(64, 8), (19, 4), (1, 8)])
def test_inverse_block_shows_one_region_of_exact_size(grid, shape):
    tokens = tokens_of(grid, rows=16)
    plan = InverseBlock(ratio=0.8, shape=shape).plan("audio", tokens, rng(16)).check("audio", tokens)
    count = int(grid[0] * grid[1] * (1 - 0.8))
    assert plan.visible.shape == (16, count) and plan.predict.shape == (16, grid[0] * grid[1] - count)
    side = tokens.coords[0][plan.visible]  # (16, count, 2)
    if grid == (64, 8) and shape == "round":  # a disc of 102 of 512: far smaller than the lattice
        assert (side.amax(1) - side.amin(1))[:, 0].max() < 40


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "random", "ratio": 0.8},
        {"type": "time_frequency", "time": 0.5, "frequency": 0.5},
        {"type": "inverse_block", "ratio": 0.75},
    ],
)
@pytest.mark.parametrize("decoder", ["window", "full"])
def test_several_plans_of_one_decoded_clip(inner, decoder):
    """One batch of clips of different length, k plans of each: the loss is that of the k plans one after the other."""
    recipe = {
        "modalities": {"audio": {"size": [96, 32], "patch": 16, "masking": {
            "type": "multi_mask", "masks_per_sample": 3, "masking": inner}}},
        "encoder": {"type": "vit", "dim": 32, "depth": 1, "heads": 2},
        "decoder": {"type": decoder, "dim": 32, "depth": 2, "heads": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    model = build_model(recipe).eval()
    waves = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    waves[0, 8000:] = 0.0
    batch = model.preprocess({"audio": {"wave": waves, "samples": [8000, 16000]}}, None)
    planned = model.plan(batch, rng(2))
    plan = planned["audio"].plan
    assert plan.rows.tolist() == [0, 1, 0, 1, 0, 1] and len(plan.visible) == 6
    assert len({tuple(row.tolist()) for row in plan.visible[1::2]}) > 1  # the plans differ
    out, total = model(planned), 0.0
    out.total.backward()
    with torch.no_grad():
        for k in range(3):
            names = ("visible", "predict", "visible_valid", "predict_valid", "counted")
            one = {name: getattr(plan, name)[2 * k : 2 * k + 2] for name in names}
            total += model({"audio": replace(planned["audio"], plan=Plan(**one))}).parts["reconstruct.audio"].sum
    assert abs(total - out.parts["reconstruct.audio"].sum) < 1e-3 * total
