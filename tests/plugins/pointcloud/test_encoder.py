"""PCP-MAE's encoder: two streams in one sequence, hidden centres that are predicted and never given."""

import pytest
import torch

import maemm
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded
from maemm.model.build import build_model


def recipe(center_weight=0.1, **modality):
    blocks = {"dim": 48, "depth": 2, "heads": 2, "qkv_bias": False, "eps": 1e-5}
    return {
        "modalities": {
            "pointcloud": {"type": "pointcloud", "groups": 12, "group_size": 6, "points": None, "width": 64,
                           "position": "sincos", "masking": {"type": "random", "ratio": 0.5}, **modality}
        },
        "encoder": {"type": "pcp", "center_weight": center_weight, **blocks},
        "decoder": {"type": "full", **blocks, "prefix": "none", "project": "none", "position_every_block": True},
    }  # fmt: skip


def make(**options):
    with seeded("pcp"):
        return build_model(recipe(**options))


def planned(model, rows=2, valid=None):
    preprocessed = model.modalities["pointcloud"].example(rows, Rng(("pcp",), range(rows), rows))
    preprocessed = maemm.Preprocessed(preprocessed.x, valid)
    return model.plan({"pointcloud": preprocessed}, Rng((0,), range(rows), rows))


def moved(inputs, index, by=1.0):
    """The same with the centres ``index`` moved, and no point of any group."""
    one = inputs["pointcloud"]
    coords = one.tokens.coords.clone()
    coords[torch.arange(len(index))[:, None], index] += by
    tokens = type(one.tokens)(one.tokens.values, coords, valid=one.tokens.valid)
    return {"pointcloud": type(one)(tokens, one.plan, one.preprocessed)}


@torch.no_grad()
def test_hidden_centres_are_not_given():
    """Where hidden groups stand changes no prediction, only the error of the predicted centres."""
    model = make().eval()
    inputs = planned(model)
    plan = inputs["pointcloud"].plan
    out, other = model(inputs), model(moved(inputs, plan.predict))
    assert torch.equal(other.pred["pointcloud"], out.pred["pointcloud"])
    assert torch.equal(other.encoded["pointcloud"], out.encoded["pointcloud"])
    assert other.terms["centers"] != out.terms["centers"]
    assert not torch.equal(model(moved(inputs, plan.visible)).pred["pointcloud"], out.pred["pointcloud"])


def test_the_reconstruction_does_not_teach_the_centres():
    model = make()
    out = model(planned(model))
    out.parts["reconstruct.pointcloud"].mean.backward(retain_graph=True)
    assert all(one.grad is None for one in model.encoder.centers.parameters())
    out.parts["centers"].mean.backward()
    assert all(one.grad is not None for one in model.encoder.centers.parameters())
    assert out.total.item() == pytest.approx((out.terms["reconstruct.pointcloud"] + 0.1 * out.terms["centers"]).item())


@torch.no_grad()
def test_a_ragged_row_is_the_row_alone():
    model = make().eval()
    valid = torch.arange(18) < torch.tensor([18, 9])[:, None]
    inputs = planned(model, valid=valid)
    one = inputs["pointcloud"]
    out = model(inputs)
    seen, hidden = one.plan.visible_valid[1], one.plan.predict_valid[1]
    alone = maemm.Plan(one.plan.visible[1:, seen], one.plan.predict[1:, hidden])
    preprocessed = maemm.Preprocessed(one.preprocessed.x[1:, :9], valid[1:, :9])
    other = model({"pointcloud": preprocessed}, plans={"pointcloud": alone})
    for name, where in (("encoded", seen), ("pred", hidden)):
        found = getattr(out, name)["pointcloud"][1][where]
        torch.testing.assert_close(found, getattr(other, name)["pointcloud"][0], rtol=1e-4, atol=1e-5)
    assert out.parts["centers"].count == one.plan.counted.sum()


def test_features_need_no_hidden_groups():
    model = make().eval()
    x = planned(model)["pointcloud"].preprocessed.x
    inputs, latents = model.encode({"pointcloud": x}, layers=[0])
    assert latents.tokens["pointcloud"].shape == (2, 12, 48) and latents.layers[0]["pointcloud"].shape == (2, 12, 48)
    assert latents.terms["centers"].sum == 0 and latents.terms["centers"].count == 0


def test_hidden_centres_are_learned():
    """With a weight that leaves them the steps: far below the error of predicting their mean."""
    model = make(center_weight=100.0).train()
    inputs = planned(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(180):
        out = model(inputs)
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    one = inputs["pointcloud"]
    spread = model.modalities["pointcloud"].code(one.tokens, one.plan.predict).var((0, 1)).mean()
    assert out.terms["centers"] < 0.2 * spread


def test_mistakes():
    two = recipe()
    two["modalities"]["other"] = two["modalities"]["pointcloud"]
    with pytest.raises(MaemmError, match="encoder pcp accepts one modality, got pointcloud, other"):
        build_model(two)
    image = recipe() | {"modalities": {"image": {"type": "image", "size": 16, "patch": 4}}}
    model = build_model(image)
    with pytest.raises(MaemmError, match="predicts centres, which 'image' does not have"):
        model({"image": torch.zeros(1, 3, 16, 16)}, rng=Rng((0,), range(1), 1))
