"""Masks along a curve: the orders of the golden file, their properties on any grid, and what each mode shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Tokens
from maemm.contract.positions import lattice
from maemm.model.masking.curves import CURVES, order_of
from maemm.model.masking.scan import Scan
from maemm.registry.make import make

GOLDEN = load_file(Path(__file__).parents[1] / "golden/variants/scan_orders.safetensors")
MASKS = [key.split("/") for key in GOLDEN if key.startswith("visible_")]


def tokens_of(grid, batch=3, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 1), lattice(grid)[None], grid, valid)


def rng(batch=3, step=0):
    return Rng((0, step), range(batch), batch)


def sides(text):
    return tuple(map(int, text.split("x")))


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("order/")])
def test_orders_are_those_of_the_golden_file(key):
    _, name, grid = key.split("/")
    assert order_of(name, sides(grid)).tolist() == GOLDEN[key].tolist()


@pytest.mark.parametrize(("mode", "name", "grid"), MASKS)
def test_masks_are_those_of_the_golden_file(mode, name, grid, monkeypatch):
    expected, tokens = GOLDEN[f"{mode}/{name}/{grid}"], tokens_of(sides(grid))
    if mode == "visible_window17":  # the random place is 17 in all rows
        start = (17 + 0.5) / tokens.count
        monkeypatch.setattr(Rng, "uniform", lambda self, *args, device="cpu": torch.full((len(self.rows), 1), start))
    masking = make("maskings", {"type": "scan", "order": name, "mode": mode.removeprefix("visible_").rstrip("17")})
    plan = masking.plan("x", tokens, rng()).check("x", tokens)
    assert plan.visible.tolist() == [expected.tolist()] * 3
    assert torch.equal(torch.cat([plan.visible, plan.predict], 1).sort(1).values, tokens.all_indices())


GRIDS = [(1,), (7,), (8,), (1, 1), (1, 5), (5, 1), (5, 8), (13, 4), (2, 30), (2, 3, 4), (5, 1, 3), (3, 1, 1), (4, 7, 6)]


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_is_visited_once(name, grid):
    order = order_of(name, grid)
    assert sorted(order) == list(range(np.prod(grid))) and order.dtype == np.int64


def jumps(name, grid):
    cells = np.column_stack(np.unravel_index(order_of(name, grid), grid))
    return int((np.abs(np.diff(cells, axis=0)).sum(1) != 1).sum())


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("zigzag", GRIDS + [(6, 5, 4)]),
        ("hilbert", [(9,), (16, 16), (2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ("hilbert_general", [(9,), (8, 14), (14, 8), (3, 8, 14), (9, 9, 9)]),
        ("peano", [(9,), (27, 27), (3, 3, 3), (9, 9, 9)]),
        ("spiral", [(5, 8), (14, 14), (9, 9)]),
    ],
)
def test_steps_go_to_a_neighbour(name, grids):
    assert [jumps(name, grid) for grid in grids] == [0] * len(grids)


@pytest.mark.parametrize("grid", [(9,), (9, 9), (9, 9, 9)])
def test_the_middle_comes_first_on_a_spiral(grid):
    order = order_of("spiral", grid)
    for radius in range(5):
        inside = order[: (2 * radius + 1) ** len(grid)]
        cells = np.column_stack(np.unravel_index(inside, grid))
        assert np.abs(cells - 4).max() == radius
    assert order[-1] == 0


def test_blocks_of_a_curve_in_space_are_runs():
    for side in (2, 4):
        cells = np.column_stack(np.unravel_index(order_of("hilbert", (8, 8, 8)), (8, 8, 8)))
        blocks = [tuple(cell // side) for cell in cells]
        assert sum(a != b for a, b in zip(blocks, blocks[1:], strict=False)) == (8 // side) ** 3 - 1


# --------------------------------------------------------------------------------------------------------------- modes
@pytest.mark.parametrize("order", CURVES)
@pytest.mark.parametrize("mode", ["prefix", "window", "stride"])
@pytest.mark.parametrize("grid", [(20,), (5, 8), (3, 4, 5)])
def test_counts_are_exact_in_every_mode(order, mode, grid):
    tokens = tokens_of(grid)
    for ratio in (0.0, 0.3, 0.75, 0.99, 1.0):
        plan = Scan(order=order, mode=mode, ratio=ratio).plan("x", tokens, rng()).check("x", tokens)
        assert plan.visible.shape[1] == int(tokens.count * (1 - ratio))
        assert torch.equal(torch.cat([plan.visible, plan.predict], 1).sort(1).values, tokens.all_indices())


def test_what_the_modes_draw():
    tokens = tokens_of((8, 8), 40)
    window = Scan(order="hilbert").plan("x", tokens, rng(40)).visible
    place = torch.from_numpy(order_of("hilbert", (8, 8))).argsort()[window].sort(1).values
    gaps = (place - place.roll(1, 1)).remainder(64)
    assert ((gaps == 1).sum(1) == 15).all() and len({tuple(row) for row in window.tolist()}) > 20
    part = Scan(order="hilbert").plan("x", tokens_of((8, 8), 2), Rng((0, 0), [3, 9], 40)).visible
    assert torch.equal(part, window[[3, 9]])
    assert Scan().mode == "prefix" and Scan(order="peano").mode == "window"
    plain, shifted = (Scan(order="zigzag", mode="stride", phase=k).plan("x", tokens_of((16,)), rng()) for k in (0, 3))
    assert plain.visible[0].tolist() == [0, 4, 8, 12] and shifted.visible[0].tolist() == [3, 7, 11, 15]


@pytest.mark.parametrize("mode", ["prefix", "window", "stride"])
def test_padded_rows_follow_the_curve_of_their_own_tokens(mode):
    valid = torch.ones(3, 16, dtype=torch.bool)
    valid[1, 5:9], valid[2] = False, False
    tokens = tokens_of((4, 4), valid=valid)
    plan = Scan(order="zigzag", mode=mode, ratio=0.5).plan("x", tokens, rng()).check("x", tokens)
    assert plan.visible_valid.sum(1).tolist() == [8, 6, 0] and plan.predict_valid.sum(1).tolist() == [8, 6, 0]
    assert valid[1][plan.visible[1][plan.visible_valid[1]]].all()
    if mode != "window":
        own = [k for k in order_of("zigzag", (4, 4)).tolist() if not 5 <= k < 9]
        expected = own[:6] if mode == "prefix" else own[::2]
        assert plan.visible[1][plan.visible_valid[1]].tolist() == sorted(expected)


def test_a_curve_is_made_once(monkeypatch):
    masking, tokens = Scan(), tokens_of((5, 5))
    masking.plan("x", tokens, rng())
    monkeypatch.setattr("maemm.model.masking.scan.order_of", None)
    masking.plan("x", tokens, rng())


def test_what_cannot_be_done_is_refused():
    with pytest.raises(MaemmError, match="these are on no grid .*modalities.x.masking"):
        Scan().plan("x", Tokens(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1)), rng(1))
    with pytest.raises(MaemmError, match="a grid of 4 axes"):
        Scan().plan("x", tokens_of((2, 2, 2, 2)), rng())
    for order in ("hilbert", "peano"):
        with pytest.raises(MaemmError, match="too many.*use hilbert_general"):
            Scan(order=order).plan("x", tokens_of((2, 20000)), rng())
    Scan(order="hilbert_general").plan("x", tokens_of((2, 20000)), rng())
    with pytest.raises(MaemmError, match="phase is for mode stride, not prefix"):
        Scan(phase=1)
    for options in ({"order": "hilber"}, {"mode": "windows"}, {"phase": -1}, {"ratio": 1.5}, {"ratio": [0.9, 0.5]}):
        with pytest.raises(MaemmError, match=f"masking.{next(iter(options))}"):
            check(Scan, options, "masking")
