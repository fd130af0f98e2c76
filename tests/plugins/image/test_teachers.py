"""Networks of other libraries as teachers of pictures, against what those libraries compute."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import interpolate, layer_norm

from maemm import config
from maemm.contract import MaemmError, Rng
from maemm.model.build import build_model

NETS = {
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.5, 0.6]


def student(**target):
    torch.manual_seed(0)
    modalities = {"image": {"size": 32, "patch": 8, "target": {"type": "picture_teacher", **target}}}
    return build_model(config.load({"modalities": modalities, **NETS})).eval()


def target_of(model, x):
    return model(x, rng=Rng((0, 0), range(len(x)), len(x)))


def expected_of(model, x, out, side, mean, std, tokens):
    """The features of pixels that this test normalises and resizes itself, at the predicted tokens of the student."""
    pixels = model.modalities["image"].denormalize_input(x)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    pictures = interpolate((pixels - mean) / std, (side, side), mode="bicubic", antialias=True)
    with torch.no_grad():
        features = tokens(pictures)
    grid = int(features.shape[1] ** 0.5)
    maps = interpolate(features.unflatten(1, (grid, grid)).permute(0, 3, 1, 2), (4, 4), mode="bicubic")
    whole = layer_norm(maps.flatten(2).transpose(1, 2), maps.shape[1:2])
    return whole.gather(1, out.plans["image"].predict[..., None].expand(-1, -1, maps.shape[1]))


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 224), ("resnet18", 224)])
def test_timm_by_name_with_a_file(name, side, tmp_path):
    """Tokens behind a class token, and a map of a network without tokens."""
    import timm

    torch.manual_seed(2)
    net = timm.create_model(name, num_classes=0).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model, x = student(model=name, weights=str(tmp_path / "weights.pth")), torch.randn(1, 3, 32, 32)
    out = target_of(model, x)

    def tokens(pictures):
        features = net.forward_features(pictures)
        return features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)

    cfg = net.pretrained_cfg
    expected = expected_of(model, x, out, side, cfg["mean"], cfg["std"], tokens)
    torch.testing.assert_close(out.target["image"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "CLIPVision"])
def test_folders_of_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
    torch.manual_seed(2)
    net = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    net.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    model, x = student(library="transformers", model=str(tmp_path)), torch.randn(2, 3, 32, 32)
    out = target_of(model, x)

    def tokens(pictures):
        state = net(pixel_values=pictures).last_hidden_state
        if kind == "CLIPVision":  # its state has had no norm
            state = getattr(net, "vision_model", net).post_layernorm(state)
        return state[:, 1:]

    expected = expected_of(model, x, out, 48, MEAN, STD, tokens)
    torch.testing.assert_close(out.target["image"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"model": "no_such_net"}, "timm cannot make the teacher no_such_net"),
        ({"library": "transformers", "model": "x", "weights": "y"}, "is for timm's models"),
        ({"library": "transformers", "model": "nowhere"}, "transformers"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(target, message):
    with pytest.raises(MaemmError, match=message) as refused:
        student(**target)
    assert "\n" not in str(refused.value)
