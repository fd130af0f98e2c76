"""Published layouts: key lists, the way back, refusals, our own format."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import maemm
from maemm import MaemmError
from maemm.model.build import build_model
from maemm.tasks.convert.run import convert

GOLDEN = Path(__file__).parents[2] / "golden" / "mae"
SIZES = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}
TINY = {"heads": 4, "decoder_heads": 3}


def state_of(name):
    return {k[6:]: v for k, v in load_file(GOLDEN / f"{name}.safetensors").items() if k.startswith("state/")}


def shapes_in(value):
    """{key: shape} anywhere inside a key list."""
    found = {}
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, list) and all(isinstance(n, int) for n in inner):
                found[key] = tuple(inner)
            elif isinstance(inner, dict) and "shape" in inner:
                found[key] = tuple(inner["shape"])
            else:
                found |= shapes_in(inner)
    return found


def recipe_of(size, tuned=False):
    dim, depth, heads, patch = SIZES[size]
    recipe = {
        "modalities": {"image": {"type": "image", "size": 224, "patch": patch}},
        "encoder": {"type": "vit", "dim": dim, "depth": depth, "heads": heads, "final_norm": not tuned},
        "decoder": None if tuned else {"type": "full", "dim": 512, "depth": 8, "heads": 16},
    }
    if tuned:
        recipe["head"] = {"type": "linear", "classes": 1000}
    return recipe


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("use", ["pretrain", "finetune"])
def test_key_lists_are_met_exactly(size, use):
    content = json.loads((GOLDEN / f"keys_vit_{size}_{use}.json").read_text())
    content.pop("meta", None)
    wanted = shapes_in(content)
    with torch.device("meta"):
        model = build_model(recipe_of(size, use == "finetune"))
        written = maemm.registry.find("weights", "mae")().write(model, {})
    assert {k: tuple(v.shape) for k, v in written.items()} == wanted
    if use == "pretrain" and size == "base":
        assert sum(p.numel() for p in model.parameters()) == 111_655_680
        assert sum(v.numel() for v in written.values()) == 111_907_840


@pytest.mark.parametrize(
    "name, kind, known",
    [
        ("mae_tiny_norm", "mae", {**TINY, "norm_pix": True}),
        ("mae_tiny_raw", "mae", {"heads": 6, "decoder_heads": 5, "norm_pix": False}),
        ("pixio_tiny", "pixio", {**TINY, "norm_pix": True}),
        ("hf_vitmae", "hf_vitmae", {**TINY, "norm_pix": True}),
        ("pixio_encoder_tiny", "pixio", {"heads": 4}),
    ],
)
def test_there_and_back_is_the_identity(name, kind, known):
    state = state_of(name)
    model = maemm.load(state, **known)  # the kind is recognised
    assert model.kind == kind
    back = maemm.registry.find("weights", kind)().write(model, model.extras)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_names_in_memory_of_transformers_fit_too():
    state = state_of("hf_vitmae")
    table = {row[0]: row[1] for row in json.loads((GOLDEN / "hf_name_map.json").read_text())["rows"]}
    model = maemm.load({table[k]: v for k, v in state.items()}, norm_pix=True, **TINY)
    x = torch.randn(1, 3, 32, 32)
    other = maemm.load(state, norm_pix=True, **TINY)
    assert torch.equal(model.embed({"image": x})["image"], other.embed({"image": x})["image"])


@pytest.mark.parametrize("case", ["square", "rect"])
def test_pixio_features(case):
    data = load_file(GOLDEN / "pixio_encoder_tiny.safetensors")
    model = maemm.load(state_of("pixio_encoder_tiny"), kind="pixio", heads=4)
    batch = {"image": data[f"x_{case}"]}
    with torch.no_grad():
        _, latents = model.encode(batch, layers=[0, 1])
    assert (latents.layers[0]["image"] - data[f"{case}/block0/patch_tokens"]).abs().max() < 1e-5
    assert (latents.tokens["image"] - data[f"{case}/block1/patch_tokens_norm"]).abs().max() < 1e-5
    assert (latents.prefix["image"] - data[f"{case}/block1/cls_tokens_norm"]).abs().max() < 1e-5


def test_fine_tuning_order_of_the_norm():
    data = load_file(GOLDEN / "mae_embed.safetensors")
    model = maemm.load(state_of("mae_tiny_norm"), **TINY)
    after = model.embed({"image": data["x"]}, norm="after")["image"]
    assert (after - data["norm_of_mean_tokens"]).abs().max() < 1e-5


def test_wrappers_and_prefixes(tmp_path):
    state = state_of("mae_tiny_norm")
    wrapped = {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    torch.save(wrapped, tmp_path / "x.pth")
    model = maemm.load(tmp_path / "x.pth", **TINY)
    assert model.kind == "mae"


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda p: torch.save({"model": Evil()}, p), "not unpickled"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.write_bytes(b"nonsense" * 100), "cannot be read|not unpickled"),
        (lambda p: torch.save({"a": 1}, p), "no tensors"),
        (lambda p: torch.save({"a": torch.ones(2)}, p), "match no kind of checkpoint"),
        (lambda p: None, "no such weights"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, make, what):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.pth")
    with pytest.raises(MaemmError, match=what) as caught:
        maemm.load(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


def without(key):
    return {k: v for k, v in state_of("mae_tiny_norm").items() if k != key}


@pytest.mark.parametrize(
    "state, known, what",
    [
        (without("blocks.1.attn.qkv.bias"), TINY, "1 missing .*qkv.bias"),
        ({**without(""), "surprise": torch.ones(1)}, TINY, "1 unexpected .*surprise"),
        ({**without(""), "norm.weight": torch.ones(7)}, TINY, "another shape .*norm.weight"),
        (without(""), {}, "heads="),
        (without(""), {"heads": 4}, "decoder_heads="),
        (without(""), {**TINY, "hats": 1}, "mae.hats.*did you mean"),
        (without("blocks.0.mlp.fc1.weight"), TINY, "mlp.fc1.weight is missing"),
        (without(""), {**TINY, "heads": 5}, "multiple of 5 heads"),
        (state_of("mae_finetune"), {"heads": 4}, "pool="),
    ],
)
def test_partial_matches_are_refused(state, known, what):
    with pytest.raises(MaemmError, match=what):
        maemm.load(state, kind="mae", **known)


def test_encoder_only_weights_embed_but_do_not_reconstruct():
    state = {k: v for k, v in state_of("mae_tiny_norm").items() if "decoder" not in k and k != "mask_token"}
    model = maemm.load(state, heads=4)
    x = {"image": torch.randn(2, 3, 32, 32)}
    assert model.embed(x)["image"].shape == (2, 32)
    with pytest.raises(MaemmError, match="no decoder"):
        model(x, rng=maemm.Rng((0,), range(2), 2))


def test_norm_pix_is_never_guessed():
    model = maemm.load(state_of("mae_tiny_norm"), **TINY)
    with pytest.raises(MaemmError, match="norm_pix"):
        model({"image": torch.randn(2, 3, 32, 32)}, rng=maemm.Rng((0,), range(2), 2))


def test_our_own_format_and_convert(tmp_path):
    save_file(state_of("mae_tiny_norm"), tmp_path / "published.safetensors")
    convert(tmp_path / "published.safetensors", tmp_path / "ours.safetensors", norm_pix=True, **TINY)
    model = maemm.load(tmp_path / "ours.safetensors")
    first = maemm.load(tmp_path / "published.safetensors", norm_pix=True, **TINY)
    x = {"image": torch.randn(2, 3, 32, 32)}
    rng = maemm.Rng((0,), range(2), 2)
    assert torch.equal(model(x, rng=rng).total, first(x, rng=rng).total)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", to="mae")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(back[k], v) for k, v in state_of("mae_tiny_norm").items())
    with pytest.raises(MaemmError, match="exists"):
        convert(tmp_path / "ours.safetensors", tmp_path / "back.pth")


def test_convert_on_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    save_file(state_of("mae_tiny_norm"), tmp_path / "published.safetensors")
    before = sorted(tmp_path.iterdir())

    def full(state, path, **_):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maemm.weights.own.save_file", full)
    with pytest.raises(MaemmError, match="No space left on device"):
        convert(tmp_path / "published.safetensors", tmp_path / "ours.safetensors", norm_pix=True, **TINY)
    assert sorted(tmp_path.iterdir()) == before


def test_weights_have_the_rights_of_other_files(tmp_path):
    save_file(state_of("mae_tiny_norm"), tmp_path / "published.safetensors")
    convert(tmp_path / "published.safetensors", tmp_path / "ours.safetensors", norm_pix=True, **TINY)
    (tmp_path / "other").touch()
    assert (tmp_path / "ours.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
