from itertools import pairwise

import pytest
import torch

from maemm.config.options import check
from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins.signal.maskings import Channel, ChannelTime, PerChannel, TimeBlock
from maemm_plugins.signal.modality import Signal

ROWS, CHANNELS, STEPS = 40, 5, 12
DRAW = Rng((0,), range(ROWS), ROWS)


def tokens(valid=None, channels=CHANNELS, kind="channel_time"):
    names = [f"c{i}" for i in range(channels)]
    modality = Signal(size=STEPS * 4, patch=4, channels=names, tokens=kind)
    return modality.tokenize(Preprocessed(torch.randn(ROWS, channels, STEPS * 4), valid))


def ragged():
    """Every row has its own channels and its own length."""
    g = torch.Generator().manual_seed(0)
    channels = torch.rand(ROWS, CHANNELS, generator=g) < 0.6
    channels[:, 0] = True
    lengths = torch.randint(1, STEPS + 1, (ROWS,), generator=g)
    valid = channels[:, :, None] & (torch.arange(STEPS) < lengths[:, None])[:, None]
    return valid.repeat_interleave(4, 2), channels.sum(1), lengths


def lattice(plan, role, one: Tokens):
    """(R, channels, steps) bool of what a plan shows or predicts, without padding."""
    index, ok = getattr(plan, role), getattr(plan, f"{role}_valid")
    found = torch.zeros(ROWS, one.count + 1, dtype=torch.bool)
    found.scatter_(1, index if ok is None else index.masked_fill(~ok, one.count), True)
    return found[:, :-1].view(ROWS, *(1, *one.grid)[-2:])


def runs(row):
    """Lengths of the hidden stretches of one row of steps."""
    edges = torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
    return [stop - start for start, stop in zip(edges[::2], edges[1::2], strict=True)]


ALL = [TimeBlock(ratio=0.5), TimeBlock(ratio=0.7, span=2), TimeBlock(span=1), Channel(), ChannelTime(), PerChannel()]


@pytest.mark.parametrize("masking", ALL, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'span', '')}")
def test_plans_are_legal_and_leave_out_what_is_not_valid(masking):
    for one in (tokens(), tokens(ragged()[0])):
        plan = masking.plan("signal", one, DRAW)
        plan.check("signal", one)
        shown, hidden = lattice(plan, "visible", one), lattice(plan, "predict", one)
        valid = torch.ones_like(shown) if one.valid is None else one.valid.view_as(shown)
        assert torch.equal(shown ^ hidden, valid) and not (shown & hidden).any()
        assert shown.flatten(1).any(1).all()
        if one.valid is None:
            assert plan.visible_valid is None and plan.visible.shape[1] + plan.predict.shape[1] == one.count


def test_time_block_hides_one_stretch_in_all_channels():
    one = tokens()
    hidden = lattice(TimeBlock(ratio=0.5).plan("signal", one, DRAW), "predict", one)
    assert (hidden == hidden[:, :1]).all()
    assert [runs(row) for row in hidden[:, 0]] == [[6]] * ROWS
    assert hidden[:, 0].float().mean(0).min() > 0  # every step is hidden at times, the ends too


def test_spans_have_their_length_and_the_count_is_exact():
    one = tokens()
    hidden = lattice(TimeBlock(ratio=0.6, span=3).plan("signal", one, DRAW), "predict", one)[:, 0]
    assert (hidden.sum(1) == STEPS - int(STEPS * 0.4)).all()  # 8: two of 3, one of 2
    assert {length for row in hidden for length in runs(row)} <= {2, 3, 5, 6, 8}  # neighbours may touch
    assert len({tuple(row.tolist()) for row in hidden}) > 15
    single = lattice(TimeBlock(ratio=0.6, span=1).plan("signal", one, DRAW), "predict", one)[:, 0]
    assert (single.sum(1) == 8).all()


def test_ragged_time_blocks_keep_a_share_of_what_a_row_has():
    valid, _, lengths = ragged()
    one = tokens(valid)
    hidden = lattice(TimeBlock(ratio=0.5).plan("signal", one, DRAW), "predict", one).any(1)
    assert hidden.sum(1).tolist() == [n - max(1, int(n * 0.5)) for n in lengths.tolist()]
    assert all(len(runs(row)) <= 1 for row in hidden)


def test_channel_hides_whole_channels():
    one = tokens()
    hidden = lattice(Channel(ratio=0.4).plan("signal", one, DRAW), "predict", one)
    assert (hidden.any(2) == hidden.all(2)).all() and (hidden.any(2).sum(1) == 2).all()
    assert hidden.any(2).float().mean(0).min() > 0.1
    valid, channels, _ = ragged()
    one = tokens(valid)
    hidden = lattice(Channel(ratio=0.5).plan("signal", one, DRAW), "predict", one)
    assert hidden.any(2).sum(1).tolist() == [n - max(1, int(n * 0.5)) for n in channels.tolist()]


def test_channel_time_hides_both_with_exact_counts():
    one = tokens()
    plan = ChannelTime(ratio=0.5, channels=0.4).plan("signal", one, DRAW)
    shown = lattice(plan, "visible", one)
    assert plan.visible.shape[1] == 3 * 6
    assert (shown.any(2).sum(1) == 3).all() and (shown.any(1).sum(1) == 6).all()


def test_per_channel_counts_are_equal_and_the_draws_are_not():
    one = tokens()
    shown = lattice(PerChannel(ratio=0.75).plan("signal", one, DRAW), "visible", one)
    assert (shown.sum(2) == 3).all() and (shown != shown[:, :1]).any()


def test_a_part_of_a_batch_and_full_rows_among_ragged_ones_get_the_same_plan():
    valid = ragged()[0]
    valid[:5] = True
    for masking in ALL:
        whole, mixed = tokens(), tokens(valid)
        a, b = (masking.plan("signal", one, DRAW) for one in (whole, mixed))
        assert torch.equal(lattice(a, "visible", whole)[:5], lattice(b, "visible", mixed)[:5])
        assert a.visible.shape == b.visible.shape  # shapes do not depend on the data


def test_rows_without_anything_valid_show_and_predict_nothing():
    valid = torch.ones(ROWS, CHANNELS, STEPS * 4, dtype=torch.bool)
    valid[1] = False
    one = tokens(valid)
    for masking in ALL:
        plan = masking.plan("signal", one, DRAW)
        assert not plan.visible_valid[1].any() and plan.counted[1].sum() == 0


def test_tokens_over_all_channels():
    one = tokens(kind="time")
    for masking in (TimeBlock(ratio=0.5), PerChannel(ratio=0.5)):
        assert masking.plan("signal", one, DRAW).visible.shape == (ROWS, 6)
    for masking in (Channel(), ChannelTime()):
        with pytest.raises(MaemmError, match="no channel to hide"):
            masking.plan("signal", one, DRAW)
    with pytest.raises(MaemmError, match="no channel to hide"):
        Channel().plan("signal", tokens(channels=1), DRAW)


def test_wrong_options():
    for wrong in ({"ratio": 1.5}, {"span": 0}):
        with pytest.raises(MaemmError):
            check(TimeBlock, wrong, "masking")
    with pytest.raises(MaemmError):
        check(ChannelTime, {"channels": -0.1}, "masking")


def test_spans_are_spread_evenly():
    one = tokens()
    shares = (
        torch.stack(
            [
                lattice(TimeBlock(ratio=0.5, span=2).plan("signal", one, Rng((i,), range(ROWS), ROWS)), "predict", one)
                for i in range(20)
            ]
        )[:, :, 0]
        .float()
        .mean((0, 1))
    )
    assert shares.min() > 0.33 and shares.max() < 0.68, list(pairwise(shares.tolist()))
