"""Exports of video models: transformers' own classes answer as ours do, and timm has no place for them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError
from maemm.tasks.export.run import export

GOLDEN = Path(__file__).parents[2] / "golden" / "videomae"
CASES = [
    ("hf_videomae", {"heads": 4, "decoder_heads": 2}, "VideoMAEForPreTraining"),
    ("videomae_tiny", {"heads": 4, "decoder_heads": 2}, "VideoMAEForPreTraining"),
    ("hf_videomae_cls", {"heads": 4}, "VideoMAEForVideoClassification"),
]


def golden(name, known):
    content = load_file(GOLDEN / f"{name}.safetensors")
    state = {k[6:]: v for k, v in content.items() if k.startswith("state/")}
    return maemm.load(state, size=list(content["x"].shape[2:]), **known), content["x"]


@pytest.mark.parametrize("name, known, title", CASES)
def test_a_folder_for_transformers_comes_back(tmp_path, monkeypatch, name, known, title):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, x = golden(name, known)
    made = export(model, tmp_path / "folder", to="hf")
    assert "maemm.load" in made.checked_with and max(made.differences.values()) < 1e-5
    config = json.loads((tmp_path / "folder/config.json").read_text())
    assert config["architectures"] == [title] and config["num_frames"] == x.shape[2]
    back = maemm.load(tmp_path / "folder")
    with torch.no_grad():
        if model.head is None:
            assert torch.allclose(back.embed({"video": x})["video"], model.embed({"video": x})["video"], atol=1e-5)
        else:
            assert torch.allclose(back.logits({"video": x}), model.logits({"video": x}), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name, known, title", CASES)
def test_transformers_answers_alike(tmp_path, name, known, title):
    transformers = pytest.importorskip("transformers")
    made = export(golden(name, known)[0], tmp_path / "folder", to="hf")
    assert made.checked_with == "hf" and max(made.differences.values()) < 1e-5
    _, told = getattr(transformers, title).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]


def test_timm_has_no_place_for_videos(tmp_path):
    model, _ = golden(*CASES[0][:2])
    with pytest.raises(MaemmError, match=r"holds images alone, this model has video.*choose --to hf, safetensors"):
        export(model, tmp_path / "vit.safetensors", to="timm")
