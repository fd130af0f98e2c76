"""Heads of fine-tuned models: against the published formulas written out in another way."""

import pytest
import torch
from torch.nn import functional as F

import maemm
from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.model.build import build_model

SMALL = {"type": "pointcloud", "groups": 12, "group_size": 6, "points": None, "width": 32}


def model_with(head, **encoder):
    recipe = {
        "modalities": {"pointcloud": SMALL},
        "encoder": {"type": "vit", "dim": 24, "depth": 3, "heads": 2, "qkv_bias": False, "eps": 1e-5,
                    "position_every_block": True, **encoder},
        "decoder": None,
        "head": head,
    }  # fmt: skip
    with seeded("heads"):
        model = build_model(recipe)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def parts():
    head = {"type": "point_parts", "classes": 7, "categories": 4, "layers": [0, 2]}
    return model_with(head, prefix=0, prefix_position="none")


def batch_of(count=2, points=40, seed=0, **info):
    x = torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed))
    return {"pointcloud": maemm.Preprocessed(x, info=info)}


def norm(x, layer):
    """Batch normalisation of (B, N, C) with running statistics."""
    return (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias


def by_the_published_formulas(model, x, category):
    head, modality = model.head, model.modalities["pointcloud"]
    tokens = modality.tokenize(maemm.Preprocessed(x))
    every = tokens.all_indices()
    latents, place = modality.embed(tokens, every), modality.position(tokens, every, "encoder")
    taken = []
    for number, block in enumerate(model.encoder.blocks):
        latents = block(latents + place)
        if number in head.layers:
            taken.append(model.encoder.norm(latents))
    seen = torch.cat(taken, -1)
    distance = torch.cdist(x, tokens.coords, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    near, index = distance.sort(-1)
    weight = 1 / (near[..., :3] + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    picked = torch.stack([one[i] for one, i in zip(seen, index[..., :3], strict=True)])
    point = torch.cat([x, (picked * weight[..., None]).sum(2)], -1)
    for layer, bn in ((head.spread, head.spread_norm), (head.point, head.point_norm)):
        point = norm(layer(point), bn).relu()
    kind = F.leaky_relu(norm(F.one_hot(category, 4).float() @ head.category.weight.T, head.category_norm), 0.2)
    whole = torch.cat([seen.amax(1), seen.mean(1), kind], -1)[:, None].expand(-1, x.shape[1], -1)
    point = norm(head.mix(torch.cat([point, whole], -1)), head.mix_norm).relu()
    return F.log_softmax(head.last(norm(head.narrow(point), head.narrow_norm).relu()), -1)


def test_part_segmentation_follows_the_published_formulas(parts):
    category = torch.tensor([3, 1])
    batch = batch_of(category=category)
    with torch.no_grad():
        found = parts.eval().logits(batch)
        expected = by_the_published_formulas(parts, batch["pointcloud"].x, category)
    assert found.shape == (2, 40, 7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 40))


def test_padding_changes_no_part(parts):
    """A cloud alone is the cloud padded in a batch."""
    x = batch_of(points=40)["pointcloud"].x
    valid = torch.arange(40) < torch.tensor([40, 25])[:, None]
    padded = maemm.Preprocessed(x, valid, {"category": torch.tensor([0, 2])})
    with torch.no_grad():
        found = parts.eval().logits({"pointcloud": padded})[1, :25]
        alone = parts.logits({"pointcloud": maemm.Preprocessed(x[1:, :25], info={"category": torch.tensor([2])})})[0]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "category", [None, torch.tensor([0, 4]), torch.tensor([0, -1]), torch.tensor([1]), torch.tensor([0.0, 1.0])]
)
def test_a_wrong_category_is_told(parts, category):
    info = {} if category is None else {"category": category}
    with pytest.raises(MaemmError, match="category"):
        parts.logits(batch_of(**info))


def test_a_missing_layer_is_told():
    model = model_with({"type": "point_parts", "classes": 2, "categories": 0, "layers": [0, 7]}, prefix=0)
    with pytest.raises(MaemmError, match=r"no blocks \[7\]"):
        model.logits(batch_of())


def test_heads_learn():
    """A few steps on one batch, in training mode, with every parameter of the head moving."""
    category = torch.tensor([0, 1, 2, 3])
    for head, prefix in (
        ({"type": "point_classifier", "classes": 3, "dropout": 0.0}, 1),
        ({"type": "point_parts", "classes": 3, "categories": 4, "layers": [0, 2], "dropout": 0.0}, 0),
    ):
        model = model_with(head, prefix=prefix, prefix_position="learned" if prefix else "none").train()
        batch = batch_of(4, category=category)
        wanted = torch.randint(0, 3, (4,) if prefix else (4, 40), generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(25):
            loss = F.cross_entropy(model.logits(batch).flatten(0, -2), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())
