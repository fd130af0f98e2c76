"""Exports of image models: timm's and transformers' own classes answer as ours do."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError
from maemm.model.build import build_model
from maemm.tasks.export.run import export

GOLDEN = Path(__file__).parents[2] / "golden" / "mae"
TINY = {"heads": 4, "decoder_heads": 3}


def golden(name, **known):
    state = {k[6:]: v for k, v in load_file(GOLDEN / f"{name}.safetensors").items() if k.startswith("state/")}
    return maemm.load(state, **known)


def pictures(count, *size):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def tiny(**encoder):
    image = {"type": "image", "size": [32, 48], "patch": [8, 16], "channels": 2}
    return build_model(
        {"modalities": {"image": image}, "encoder": {"type": "vit", "dim": 32, "depth": 2, "heads": 2, **encoder}}
    ).eval()


@pytest.mark.parametrize(
    "name, known",
    [
        ("mae_tiny_norm", {**TINY, "norm_pix": True}),  # a decoder, which stays behind
        ("pixio_tiny", {**TINY, "norm_pix": True}),  # several class tokens: registers there
        ("mae_finetune", {"heads": 4, "pool": "mean"}),
        ("mae_finetune", {"heads": 4, "pool": "cls"}),
        ("hf_vitmae", {**TINY, "norm_pix": True}),  # another eps
    ],
)
def test_timm_answers_alike(tmp_path, name, known):
    import functools  # noqa: F401  what the printed call may name

    import timm  # noqa: F401

    model = golden(name, **known)
    made = export(model, tmp_path / "vit.safetensors", to="timm")
    assert made.checked_with == "timm" and max(made.differences.values()) < 1e-5
    x = pictures(2, *model.modalities["image"].size)
    with torch.no_grad():
        found = eval(made.call).eval()(x)  # the call as it is printed
        wanted = model.embed({"image": x})["image"] if model.head is None else model.logits({"image": x})
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_timm_takes_any_size_and_any_number_of_class_tokens(tmp_path, prefix):
    made = export(tiny(prefix=prefix), tmp_path / "vit.safetensors", to="timm")
    assert "img_size=(32, 48), patch_size=(8, 16), in_chans=2" in made.call and max(made.differences.values()) < 1e-5


def test_a_published_size_has_its_name_in_timm():
    from maemm_plugins.image.weights.timm import described

    image = {"type": "image", "size": 224, "patch": 16}
    with torch.device("meta"):
        model = build_model({"modalities": {"image": image}, "encoder": {"type": "vit"}})
    name, options = described(model)
    assert name == "vit_base_patch16_224" and set(options) == {"num_classes", "global_pool", "fc_norm"}


@pytest.mark.parametrize("name, known", [("hf_vitmae", TINY), ("mae_tiny_norm", TINY), ("encoder", {})])
def test_a_folder_for_transformers_comes_back(tmp_path, monkeypatch, name, known):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = (
        golden("mae_tiny_norm", **TINY, norm_pix=True) if name == "encoder" else golden(name, **known, norm_pix=True)
    )
    if name == "encoder":
        model.decoder = None
    made = export(model, tmp_path / "folder", to="hf")
    assert made.checked_with == "maemm.load, since hf is not installed" and max(made.differences.values()) == 0
    config = json.loads((tmp_path / "folder/config.json").read_text())
    assert config["model_type"] == "vit_mae" and config["image_size"] == model.modalities["image"].size[0]
    assert config["architectures"] == ["ViTMAEModel" if name == "encoder" else "ViTMAEForPreTraining"]
    back, x = maemm.load(tmp_path / "folder"), pictures(2, *model.modalities["image"].size)
    assert back.kind == "hf_vitmae"
    with torch.no_grad():
        assert torch.equal(back.embed({"image": x})["image"], model.embed({"image": x})["image"])
    if name != "encoder":
        assert back.modalities["image"].normalize == "patch" and set(back.state_dict()) >= {"decoder.mask_token"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_vitmae", "mae_tiny_norm"])
def test_transformers_answers_alike(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    made = export(golden(name, **TINY, norm_pix=True), tmp_path / "folder", to="hf")
    assert made.checked_with == "hf" and max(made.differences.values()) < 1e-5
    _, told = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]


def test_what_a_layout_has_no_place_for_is_said(tmp_path):
    with pytest.raises(MaemmError, match=r"square pictures and patches.*choose --to timm, safetensors, torch, onnx"):
        export(tiny(), tmp_path / "folder", to="hf")
    with pytest.raises(MaemmError, match="has no place for a classifier"):
        export(golden("mae_finetune", heads=4, pool="cls"), tmp_path / "folder", to="hf")
    with pytest.raises(MaemmError, match="holds a plain ViT of one modality"):
        export(tiny(position_every_block=True), tmp_path / "vit.safetensors", to="timm")
    with pytest.raises(MaemmError, match="a final norm or a classifier"):
        export(tiny(final_norm=False), tmp_path / "vit.safetensors", to="timm")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("years of work")
    with pytest.raises(MaemmError, match="is a folder with other files"):
        export(golden("hf_vitmae", **TINY), tmp_path / "folder", to="hf", force=True)
    assert (tmp_path / "folder/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("text, message", [("{", "cannot be read"), ("[]", "holds no settings")])
def test_a_broken_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MaemmError, match=message):
        maemm.load(tmp_path)
