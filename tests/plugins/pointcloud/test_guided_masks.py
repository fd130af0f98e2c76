"""Masks that the encoder guides, on sets: groups of ragged clouds."""

import pytest
import torch

from maemm import config
from maemm.contract import Preprocessed, Rng
from maemm.model.build import build_model

SMALL = {
    "modalities.pointcloud.groups": 16,
    "modalities.pointcloud.group_size": 4,
    "modalities.pointcloud.points": None,
    "encoder.dim": 24,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "decoder.dim": 24,
    "decoder.heads": 2,
    "decoder.depth": 1,
}
MASKINGS = {
    "attention": {"type": "attention", "ratio": 0.6, "num_per_query": 4},
    "a subset": {"type": "attention", "ratio": 0.6, "noise": "subset", "share": 0.5, "heads": "random"},
    "clusters": {"type": "clusters", "ratio": 0.6, "begin": 0.0},
}


def model_of(masking):
    torch.manual_seed(0)
    return build_model(
        config.load("pointcloud/point_mae_tiny_cpu", {**SMALL, "modalities.pointcloud.masking": masking})
    )


def clouds():
    torch.manual_seed(1)
    x, valid = torch.randn(4, 40, 3), torch.ones(4, 40, dtype=torch.bool)
    valid[1, 9:], valid[2, 1:] = False, False
    x[3, 5:] = x[3, 4:5]  # five distinct points, in a cloud of 40
    return {"pointcloud": Preprocessed(torch.where(valid[..., None], x, 0.0), valid)}


@pytest.mark.parametrize("name", MASKINGS)
def test_valid_groups_are_hidden_and_nothing_else_moves(name):
    model = model_of(MASKINGS[name]).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = model.plan(clouds(), Rng((0, 0), range(4), 4, 0.5))["pointcloud"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # running statistics too
    assert all(module.training for module in model.modules())
    tokens, plan = inputs.tokens, inputs.plan
    have = tokens.valid.sum(1)
    assert have.tolist() == [16, 9, 1, 5]
    for row, count in enumerate(have.tolist()):
        shown = plan.visible[row][plan.visible_valid[row]].tolist()
        hidden = plan.predict[row][plan.predict_valid[row]].tolist()
        assert sorted(shown + hidden) == tokens.valid[row].nonzero()[:, 0].tolist()
        assert len(shown) == int(count * (1 - 0.6))
    chance = model_of({"type": "random", "ratio": 0.6, "count": "floor_visible"})
    plain = chance.plan(clouds(), Rng((0, 0), range(4), 4))["pointcloud"].plan
    assert plain.visible.shape == plan.visible.shape and not torch.equal(plain.visible, plan.visible)
    out = model(clouds(), rng=Rng((0, 0), range(4), 4, 0.5))
    out.total.backward()
    assert out.total.isfinite()


def test_attention_is_that_of_the_first_block():
    model = model_of(MASKINGS["attention"]).eval()
    inputs, seen = model.with_all_visible(clouds()), []
    hook = model.encoder.blocks[0].attn.qkv.register_forward_hook(lambda module, arguments, out: seen.append(out))
    with torch.no_grad():
        model.encoder(inputs, model.modalities)
        hook.remove()
        guide = model.encoder.guide(inputs, model.modalities, "first_attention")["pointcloud"]
    queries, keys, _ = seen[0].view(4, 16, 3, 2, 12).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(guide.scores(), queries @ keys.transpose(-2, -1) * 12**-0.5, rtol=1e-4, atol=1e-6)
    plan = model.plan(clouds(), Rng((0, 0), range(4), 4))["pointcloud"].plan
    noise = Rng((0, 0), range(4), 4).uniform("mask/pointcloud/queries", 16)
    for row, count in enumerate([16, 9, 1, 5]):  # groups that are valid come first
        asking = noise[row, :count].argsort()[: round(16 * 0.6 / 4)]
        sums = guide.scores()[row, :, asking, :count].softmax(-1).mean(0).sum(0)
        expected = sums.topk(count - int(count * (1 - 0.6))).indices
        assert set(plan.predict[row][plan.predict_valid[row]].tolist()) == set(expected.tolist())
