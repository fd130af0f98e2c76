"""Reconstructions that are to look like the sample to a frozen network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import layer_norm

import maemm
from maemm import config
from maemm.contract import MaemmError, Preprocessed, Rng
from maemm.contract.patches import patchify, unpatchify
from maemm.data.loader import Batch
from maemm.model.build import build_model
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

BASE = {
    "modalities": {
        "image": {"size": 32, "patch": 8, "crop": "center", "flip": False, "masking": {"type": "random", "ratio": 0.5}}
    },
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
    "train": {"epochs": 4, "batch": 4, "lr": 1e-2, "warmup_epochs": 1},
    "out": "unused",
}
NET = "test_resnet"  # timm's smallest convolutional network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a frozen network."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(timm.create_model(NET, pretrained=False, num_classes=0).state_dict(), path)
    return path


def spec_of(weights=None, **options):
    target = (
        "teacher" if weights is None else {"type": "picture_teacher", "model": NET, "weights": str(weights), "size": 32}
    )
    return {"type": "perceptual", "target": target, **options}


def student(spec, **overrides):
    torch.manual_seed(0)
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return build_model(config.load(BASE, {"objectives": {"reconstruct": {}, "looks": spec}, **overrides})).eval()


def pictures(rows=3):
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def output_of(model, rows=3):
    return model({"image": pictures(rows)}, rng=Rng((0, 0), range(rows), rows))


def with_predictions(out, model, pred):
    """The term of other predictions (R, M, P)."""
    return model.objectives["looks"](replace(out, pred={"image": pred}), model)["looks.image"]


# ------------------------------------------------------------------------------------------------- what is compared
@pytest.mark.parametrize("normalize", ["patch", "none"])
def test_the_picture_is_put_together_from_both(normalize):
    model = student(spec_of(), modalities__image__normalize=normalize)
    out = output_of(model)
    x, pred = out.inputs["image"], torch.randn_like(out.pred["image"])
    composed = model.objectives["looks"].composed(model, "image", x, pred).preprocessed.x
    patches = patchify(pictures(), (8, 8))
    for row in range(3):
        for place, index in enumerate(x.plan.predict[row].tolist()):
            own, made = patches[row, index], pred[row, place]
            scale = (own.var() + 1e-6).sqrt() if normalize == "patch" else 1.0
            patches[row, index] = made * scale + (own.mean() if normalize == "patch" else 0.0)
    assert torch.allclose(composed, unpatchify(patches, (4, 4), (8, 8)), atol=1e-5)


@pytest.mark.parametrize("normalize", ["patch", "none"])
def test_right_predictions_cost_nothing_and_others_do(normalize, weights):
    for spec in (spec_of(), spec_of(weights), spec_of(weights, layers=[0, 2], loss="l1", normalize=False)):
        model = student(spec, modalities__image__normalize=normalize)
        out = output_of(model)
        right = with_predictions(out, model, out.target["image"]).mean.item()
        assert right < 1e-4 * out.terms["looks.image"].item() and out.terms["looks.image"].item() > 1e-3


def test_features_are_those_of_the_network(weights):
    """Of two stages of timm's network, on pixels that this test normalises itself."""
    model = student(spec_of(weights, layers=[1, 2]))
    out = output_of(model)
    net = timm.create_model(NET, pretrained=False, num_classes=0, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    composed = model.objectives["looks"].composed(model, "image", out.inputs["image"], out.pred["image"])

    def features(x):
        x = (model.modalities["image"].denormalize_input(x) - mean) / std
        maps = net.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
        return [layer_norm(y.flatten(2).mT, y.shape[1:2]) for y in maps]

    with torch.no_grad():
        pairs = zip(features(composed.preprocessed.x), features(pictures()), strict=True)
        expected = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
    assert out.terms["looks.image"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gradient_goes_through_hidden_tokens_alone():
    """Predictions of visible tokens (VideoMAE V2) are not seen, and the frozen network gets no gradient."""
    model = student(spec_of())
    plan = maemm.Plan(torch.arange(8).expand(2, -1), torch.arange(4, 14).expand(2, -1))
    out = model({"image": pictures(2)}, plans={"image": plan})
    pred = out.pred["image"].detach().requires_grad_()
    with_predictions(out, model, pred).mean.backward()
    moved = pred.grad.abs().amax((0, 2)) > 0
    assert moved.tolist() == [False] * 4 + [True] * 6
    network = model.objectives["looks"].target.network_on(torch.device("cpu"))
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_several_plans_share_the_features_of_the_sample():
    masks = {"type": "multi_mask", "masks_per_sample": 2, "masking": {"type": "random", "ratio": 0.5}}
    model = student(spec_of(), masking=masks)
    out = output_of(model)
    assert out.parts["looks.image"].count.item() == 6
    assert [len(x) for x in out.inputs["image"].computed_by["looks"]] == [3]
    assert with_predictions(out, model, out.target["image"]).mean.item() < 1e-6
    single = student(spec_of())
    single.load_state_dict(model.state_dict())
    plan, total = out.plans["image"], 0.0
    for row, sample in enumerate(plan.rows.tolist()):
        own = maemm.Plan(plan.visible[row : row + 1], plan.predict[row : row + 1])
        total += single({"image": pictures()[sample : sample + 1]}, plans={"image": own}).terms["looks.image"].item()
    assert out.terms["looks.image"].item() == pytest.approx(total / 6, rel=1e-4)


# --------------------------------------------------------------------------------------------------- in training
def test_a_step_lowers_it_and_baselines_know_it(weights):
    recipe = config.load(
        BASE, {"objectives": {"reconstruct": {"weight": 0.0}, "looks": spec_of(weights, layers=[1])}}, training=True
    )
    state = make_train_state(recipe, 40, 1, DistContext())
    state.optimizer.param_groups[0]["lr"] = 5e-3
    values = []
    for step in range(30):
        x = {"x": torch.linspace(0, 255, 4 * 3 * 32 * 32).view(4, 3, 32, 32).to(torch.uint8)}
        batch = Batch({"image": x}, [""] * 4, None, [0, 1, 2, 3], [], step, 0)
        result = take_step(state, plan_micro_batches(state, step, [batch]), baseline=not step)
        values.append(result.terms["looks.image"].item())
        if not step:
            assert 0 < result.baselines["looks.image"].item() < 10
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_a_checkpoint_holds_no_network(weights, tmp_path):
    model = student(spec_of(weights))
    output_of(model)  # opens the network
    assert {key for key in model.state_dict() if "looks" in key} == {"objectives.looks.target.fingerprint"}
    maemm.save(model, tmp_path / "model.safetensors")
    again = maemm.load(tmp_path / "model.safetensors")
    assert output_of(again).terms["looks.image"].item() == pytest.approx(output_of(model).terms["looks.image"].item())


# --------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("spec", "overrides", "words"),
    [
        (spec_of(target="hog"), {}, r"hog is no frozen network \(objectives\.looks\.target\)"),
        (spec_of(modalities=["clip"]), {}, r"'clip' is no modality.*objectives\.looks\.modalities"),
        (spec_of(), {"modalities__image__target": "hog"}, r"not what is predicted.*objectives\.looks\.modalities"),
    ],
)
def test_what_cannot_be_compared_is_refused(spec, overrides, words):
    with pytest.raises(MaemmError, match=words):
        student(spec, **overrides)


def test_layers_that_are_not_there_are_refused(weights):
    for spec in (spec_of(layers=[7]), spec_of(weights, layers=[7])):
        with pytest.raises(MaemmError, match=r"has no (blocks|layers) \[7\] \(layers\)"):
            output_of(student(spec))


def test_without_predictions_there_is_nothing_to_compare():
    model = build_model(config.load(BASE, {"objectives": {"looks": spec_of()}, "decoder": None}))
    assert model.embed({"image": Preprocessed(pictures())})["image"].shape == (3, 16)
