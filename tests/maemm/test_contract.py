"""Plans and tokens."""

import pytest
import torch

from maemm import MaemmError, Plan, Tokens


def tokens(batch=2, count=6, valid=None):
    values = torch.arange(batch * count * 3.0).reshape(batch, count, 3)
    return Tokens(values, torch.arange(count).float()[None, :, None], (count,), valid)


def plan(visible, predict, **more):
    return Plan(torch.tensor(visible), torch.tensor(predict), **more)


def test_take_follows_rows():
    one = Tokens(tokens().values, tokens().coords, rows=torch.tensor([1, 0, 1]))
    taken = one.gather(torch.tensor([[0], [5], [2]]))
    assert torch.equal(taken[:, 0], torch.stack([one.values[1, 0], one.values[0, 5], one.values[1, 2]]))


def test_take_refuses_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="rows"):
        tokens().gather(torch.zeros(3, 1, dtype=torch.long))


def test_overlap_is_not_counted():
    one = plan([[0, 2], [1, 3]], [[1, 2, 4], [3, 4, 5]])
    assert one.counted.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_padding_is_not_counted():
    valid = torch.tensor([[True, True], [True, False]])
    one = plan([[0], [0]], [[1, 2], [2, 2]], predict_valid=valid)
    assert one.counted.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    "bad, what",
    [
        (lambda: plan([[2, 0], [0, 1]], [[1], [2]]), "sorted"),
        (lambda: plan([[0, 0], [0, 1]], [[1], [2]]), "sorted"),
        (lambda: plan([[0, 9], [0, 1]], [[1], [2]]), "outside"),
        (lambda: plan([[0, 1]], [[2]]), "rows"),
        (lambda: Plan(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long)), "int64"),
        (lambda: plan([[0], [1], [2]], [[1], [2], [3]], rows=torch.tensor([0, 1, 7])), "rows point outside"),
    ],
)
def test_hand_made_plans_are_checked(bad, what):
    with pytest.raises(MaemmError, match=what):
        bad().check("thing", tokens())


def test_all_visible_puts_padding_last():
    valid = torch.tensor([[True, False, True, True, False, False], [True] * 6])
    one = Plan.all_visible(tokens(valid=valid))
    assert one.visible[0].tolist() == [0, 2, 3, 3, 3, 3]
    assert one.visible_valid[0].tolist() == [True] * 3 + [False] * 3
    assert one.predict.shape == (2, 0)
