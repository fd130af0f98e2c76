"""A joint budget shared out by a Dirichlet distribution: exact sums, shares, subsets, samples that lack something."""

import math

import pytest
import torch

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import lattice
from maemm.contract.rng import Rng
from maemm.model.masking.dirichlet import Dirichlet, draw_subset, largest_remainders, log_gamma_variates
from maemm.model.masking.predict_all import PredictAll

ROWS = 4000
PUBLISHED = {"rgb": 196, "depth": 196, "semseg": 196}


def tokens_of(counts, rows=ROWS, valid=None):
    return {
        name: Tokens(torch.zeros(rows, n, 1), lattice((n,))[None], (n,), (valid or {}).get(name))
        for name, n in counts.items()
    }


def rng_of(rows=ROWS, key=0):
    return Rng(("dirichlet", key), range(rows), rows)


def seen(plans):
    return torch.stack([plan.visible_valid.sum(1) for plan in plans.values()], 1)


@pytest.mark.parametrize("count", ["exact", "official"])
@pytest.mark.parametrize(
    ("counts", "budget"), [(PUBLISHED, 98), ({"a": 16, "b": 9, "c": 25}, 30), ({"a": 16, "b": 16}, 31), ({"a": 9}, 4)]
)
def test_every_row_sees_the_budget(count, counts, budget):
    tokens = tokens_of(counts, 64)
    plans = Dirichlet(budget=budget, count=count, concentration=0.5)(tokens, rng_of(64))
    assert seen(plans).sum(1).eq(budget).all()
    for name, plan in plans.items():
        plan.check(name, tokens[name])
        whole = torch.cat([plan.visible.masked_fill(~plan.visible_valid, 999),
                           plan.predict.masked_fill(~plan.predict_valid, 999)], 1).sort(1).values  # fmt: skip
        assert torch.equal(whole[:, : counts[name]], torch.arange(counts[name]).expand(64, -1))  # each token once
        assert whole[:, counts[name] :].eq(999).all() and torch.equal(plan.counted, plan.predict_valid.float())


@pytest.mark.parametrize("count", ["exact", "official"])
def test_shares_are_those_of_the_distribution(count):
    plans = Dirichlet(budget=98, count=count)(tokens_of(PUBLISHED), rng_of())
    fraction = seen(plans) / 98
    assert (fraction.mean(0) - 1 / 3).abs().max() < 0.015
    assert (fraction.std(0) - math.sqrt(1 / 18)).abs().max() < 0.012  # of Dirichlet(1, 1, 1)
    assert (fraction.eq(0).float().mean(0) - 0.0094).abs().max() < 0.006  # of 20,000 published draws


@pytest.mark.parametrize("concentration", [0.3, 2.5, {"rgb": 2.0, "depth": 0.5}])
def test_concentrations(concentration):
    masking, tokens = Dirichlet(budget=98, concentration=concentration), tokens_of(PUBLISHED)
    share = masking.shares(tokens, rng_of())
    a = torch.tensor([concentration] * 3 if isinstance(concentration, float) else [2.0, 0.5, 1.0])
    total = a.sum()
    assert (share.mean(0) - a / total).abs().max() < 0.02
    assert (share.var(0) - a * (total - a) / (total**2 * (total + 1))).abs().max() < 0.01
    assert (share.sum(1) - 1).abs().max() < 1e-5


def test_gamma_variates():
    for shape in (0.2, 1.0, 4.0):
        values = log_gamma_variates(torch.full((ROWS, 2), shape), "test", rng_of()).exp()
        assert values.mean().item() == pytest.approx(shape, rel=0.06)
        assert values.var().item() == pytest.approx(shape, rel=0.15)
    tiny = log_gamma_variates(torch.full((ROWS, 1), 1e-5), "test", rng_of())
    assert tiny.isfinite().all() and (tiny < -50).float().mean() > 0.99


@pytest.mark.parametrize("count", ["exact", "official"])
def test_subsets_first(count):
    plans = Dirichlet(budget=98, count=count, subsets=True)(tokens_of(PUBLISHED), rng_of())
    number = (seen(plans).gt(0) * torch.tensor([1, 2, 4])).sum(1)
    assert (number.bincount(minlength=8)[1:] / ROWS - 1 / 7).abs().max() < 0.03 and not number.eq(0).any()


def test_subset_of_what_is_present():
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    drawn = torch.stack([draw_subset(torch.full((4,), u), present) for u in torch.linspace(0, 0.999, 211)])
    for row, subsets in enumerate((7, 3, 1, 1)):
        sets = drawn[:, row].unique(dim=0)
        assert len(sets) == subsets and not (sets & ~present[row]).any()
        counts = drawn[:, row].long().mul(torch.tensor([1, 2, 4])).sum(1).bincount()
        assert counts[counts > 0].max() - counts[counts > 0].min() <= 1


@pytest.mark.parametrize("count", ["exact", "official"])
@pytest.mark.parametrize("subsets", [False, True])
def test_samples_that_lack_a_modality_share_the_budget_over_the_others(count, subsets):
    rows = 300
    absent = torch.arange(rows)[:, None] % 2 == 0
    valid = {"depth": ~absent.expand(rows, 16), "semseg": torch.ones(rows, 16, dtype=torch.bool)}
    valid["semseg"][7, 3:] = False  # a padded one
    tokens = tokens_of({"rgb": 16, "depth": 16, "semseg": 16}, rows, valid)
    masking = Dirichlet(budget=20, count=count, subsets=subsets)
    plans = masking(tokens, rng_of(rows))
    assert seen(plans).sum(1).eq(20).all()
    assert not plans["depth"].visible_valid[absent[:, 0]].any() and not plans["depth"].counted[absent[:, 0]].any()
    for name, plan in plans.items():
        if name in valid:
            assert valid[name].gather(1, plan.visible)[plan.visible_valid].all()
            assert valid[name].gather(1, plan.predict)[plan.predict_valid].all()
    nothing = {name: torch.zeros(rows, 16, dtype=torch.bool) for name in tokens}
    nothing["rgb"][:, :5] = True
    plans = masking(tokens_of({"rgb": 16, "depth": 16, "semseg": 16}, rows, nothing), rng_of(rows))
    assert seen(plans).tolist() == [[5, 0, 0]] * rows  # less than the budget is there


def test_a_rank_draws_what_one_process_would():
    masking = Dirichlet(budget=98, concentration=0.7, subsets=True)
    whole = masking(tokens_of(PUBLISHED, 8), Rng((3, 1), range(8), 8))
    half = masking(tokens_of(PUBLISHED, 4), Rng((3, 1), range(1, 8, 2), 8))
    for name in PUBLISHED:
        assert torch.equal(whole[name].visible[1::2], half[name].visible)


def test_largest_remainders():
    share = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    assert largest_remainders(share, 7).tolist() == [[4, 2, 1], [3, 2, 2], [7, 0, 0]]


def test_all_tokens_predicted_and_counted():
    masking = PredictAll(masking={"type": "dirichlet", "budget": 6})
    plans = masking(tokens_of({"a": 8, "b": 8}, 5), rng_of(5))
    for plan in plans.values():
        assert torch.equal(plan.predict, torch.arange(8).expand(5, -1)) and plan.counted.eq(1).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(MaemmError, match=r"budget of 16 leaves none of the 16 tokens of a, b hidden"):
        Dirichlet(budget=16)(tokens_of({"a": 8, "b": 8}, 2), rng_of(2))
    with pytest.raises(MaemmError, match=r"'dept' takes no part in the budget.*did you mean 'depth'"):
        Dirichlet(budget=9, concentration={"dept": 2.0})(tokens_of(PUBLISHED, 2), rng_of(2))
