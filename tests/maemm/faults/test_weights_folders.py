"""Folders of transformers: one file or several, .safetensors or .bin, every setting of config.json read or refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import maemm
from maemm import MaemmError
from tests.maemm.faults.weights_cases import published, refused, tiny_model

CONFIG = {
    "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_eps": 1e-6, "image_size": 16,
    "patch_size": 8, "num_channels": 3, "qkv_bias": True, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "mask_ratio": 0.5, "norm_pix_loss": True,
    "dtype": "float32", "transformers_version": "5.0.0",
}  # fmt: skip
X = {"image": torch.linspace(-2, 2, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}


@pytest.fixture(scope="module")
def state():
    return published("hf_vitmae")


def folder(path, state, how="model.safetensors", config=CONFIG):
    """A folder as ``save_pretrained`` writes it; ``how``: its weights file, or the index of two."""
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    ending = ".safetensors" if "safetensors" in how else ".bin"
    save = save_file if ending == ".safetensors" else torch.save
    if not how.endswith(".json"):
        save(state, path / how)
        return path
    keys, stem = sorted(state), how.split(".")[0]
    names = {key: f"{stem}-0000{1 + (i % 2)}-of-00002{ending}" for i, key in enumerate(keys)}
    for name in set(names.values()):
        save({key: state[key] for key in keys if names[key] == name}, path / name)
    (path / how).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return path


def same(model, other=None):
    other = other or tiny_model()
    with torch.no_grad():
        return torch.equal(model.embed(X)["image"], other.embed(X)["image"])


FILES = ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize("how", FILES)
def test_every_way_to_store_a_folder(tmp_path, state, how):
    model = maemm.load(folder(tmp_path / "f", state, how))
    assert model.kind == "hf_vitmae" and same(model) and model.modalities["image"].normalize == "patch"
    assert model.recipe["modalities"]["image"]["masking"]["ratio"] == 0.5
    back = maemm.registry.find("weights", "hf_vitmae")().write(model, model.extras)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert same(maemm.load(tmp_path / "f" / how))  # the file itself: the config.json beside it counts


@pytest.mark.parametrize("how", FILES)
def test_an_encoder_whose_names_have_no_prefix(tmp_path, state, how):
    bare = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    for name, extra in (("ViTMAEModel", {}), ("ViTModel", {"pooler.dense.weight": torch.ones(16, 16)})):
        config = {**CONFIG, "architectures": [name]}
        model = maemm.load(folder(tmp_path / name, {**bare, **extra}, how, config))
        assert model.decoder is None and same(model)
        back = maemm.registry.find("weights", "hf_vitmae")().write(model, model.extras)
        assert set(back) == set(bare) | set(extra)


def classifier(state):
    encoder = {key: value for key, value in state.items() if key.startswith("vit.")}
    return {**encoder, "classifier.weight": torch.eye(7, 16), "classifier.bias": torch.zeros(7)}


def test_a_classifier_reads_the_class_token(tmp_path, state):
    config = {**CONFIG, "architectures": ["ViTForImageClassification"], "model_type": "vit", "encoder_stride": 16}
    config |= {"id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": None}
    model = maemm.load(folder(tmp_path / "f", classifier(state), config=config))
    with torch.no_grad():
        prefix = tiny_model().encode(X)[1].prefix["image"][:, 0]
        logits = model.logits(X)
    logits = logits["image"] if isinstance(logits, dict) else logits
    assert torch.allclose(logits, prefix[:, :7], atol=1e-6)
    back = maemm.registry.find("weights", "hf_vitmae")().write(model, model.extras)
    assert all(torch.equal(back[key], value) for key, value in classifier(state).items())
    mean = maemm.build({**model.recipe, "head": {"type": "linear", "classes": 3, "pool": "mean", "norm": "after"}})
    refused(lambda: maemm.registry.find("weights", "hf_vitmae")().write(mean, {}), "class token")


def test_a_model_without_bias_of_queries_keys_and_values(tmp_path, state):
    without = {key: v for key, v in state.items() if not key.endswith(("query.bias", "key.bias", "value.bias"))}
    model = maemm.load(folder(tmp_path / "f", without, config={**CONFIG, "qkv_bias": False}))
    assert model.encoder.blocks[0].attn.qkv.bias is None and model.decoder.blocks[0].attn.qkv.bias is None
    refused(lambda: maemm.load(folder(tmp_path / "g", without)), "qkv_bias true, the weights false")


ANOTHER_MODEL = {
    "hidden_act": ["relu", "gelu_new", "quick_gelu", "gelu_pytorch_tanh", None, 3, ["gelu"]],
    "hidden_size": [32, "16", None, 16.5],
    "num_hidden_layers": [3, 1],
    "num_attention_heads": [3, 0, -2, "2", 2.5, True],
    "intermediate_size": [128],
    "layer_norm_eps": ["1e-6"],
    "image_size": [32, [16, 32], 0, -16],
    "patch_size": [16, [8, 16]],
    "num_channels": [1],
    "qkv_bias": [False, 1],
    "decoder_hidden_size": [16],
    "decoder_num_hidden_layers": [2],
    "decoder_num_attention_heads": [3],
    "norm_pix_loss": ["yes"],
    "mask_ratio": [2, -1],
    "architectures": [["ViTMAEForSomethingElse"], "ViTMAEModel", 3],
    "model_type": ["videomae", "bert", 3],
    "pruned_heads": [{"0": [1]}],
    "quantization_config": [{"bits": 8}],
    "auto_map": [{"AutoModel": "code.Model"}],
    "is_decoder": [True],
    "rope_theta": [1e4],
    "a\x1b[1m\n": [1],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in ANOTHER_MODEL.items() for value in values])
def test_settings_of_another_model_are_refused(tmp_path, state, key, value):
    refused(lambda: maemm.load(folder(tmp_path / "f", state, config={**CONFIG, key: value})))


SAME_MODEL = {
    "hidden_act": "gelu_python", "image_size": [16, 16], "patch_size": [8, 8], "hidden_dropout_prob": 0.1,
    "initializer_range": 1, "_name_or_path": "x", "rope_theta": None, "id2label": {"0": "a"}, "torch_dtype": "float16",
    "architectures": None, "pruned_heads": {}, "output_attentions": True,
}  # fmt: skip


@pytest.mark.parametrize("key", SAME_MODEL)
def test_settings_that_change_nothing(tmp_path, state, key):
    assert same(maemm.load(folder(tmp_path / "f", state, config={**CONFIG, key: SAME_MODEL[key]})))


def test_what_config_leaves_out_is_what_transformers_takes(tmp_path, state):
    less = {key: value for key, value in CONFIG.items() if key not in ("num_attention_heads", "layer_norm_eps")}
    refused(lambda: maemm.load(folder(tmp_path / "f", state, config=less)), "multiple of 12 heads")
    model = maemm.load(tmp_path / "f", heads=2)  # what is given counts more
    assert model.encoder.blocks[0].norm1.eps == 1e-12


def test_broken_folders(tmp_path, state):
    whole = folder(tmp_path / "a", state, FILES[2])
    (shard := next(whole.glob("*00001-of*"))).unlink()
    refused(lambda: maemm.load(whole), shard.name)
    save_file({"x": torch.ones(2)}, shard)
    refused(lambda: maemm.load(whole), "does not hold what the index says")
    for index in ({"weight_map": {"a": "../other.bin"}}, {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": []}, {}):
        (whole / FILES[2]).write_text(json.dumps(index))
        refused(lambda: maemm.load(whole))
    for text in ("", "[", "[]", "3", "[" * 100_000):
        (whole / FILES[2]).write_text(text)
        refused(lambda: maemm.load(whole))
    only = folder(tmp_path / "b", state)
    (only / "model.safetensors").rename(only / "tf_model.h5")
    refused(lambda: maemm.load(only), "tf_model.h5, for another framework")
    (only / "tf_model.h5").unlink()
    refused(lambda: maemm.load(only), "config.json but no weights")
    for text in ("", "{", "[" * 100_000, "\xff"):
        (only / "config.json").write_text(text, encoding="latin1")
        refused(lambda: maemm.load(only), "config.json")
    (only / "config.json").unlink()
    with pytest.raises(MaemmError, match="holds no checkpoint"):
        maemm.load(only)


def test_a_config_for_a_layout_that_has_none(tmp_path):
    path = folder(tmp_path / "f", published("mae"), config={"architecture": "vit_tiny", "model_args": {"x": 1}})
    refused(lambda: maemm.load(path), "read without the config.json", str(path / "model.safetensors"))
    settings = {"heads": 2, "decoder_heads": 2}
    assert maemm.load(path / "model.safetensors", **settings).kind == "mae"


def test_a_shard_alone_is_not_enough(tmp_path, state):
    path = folder(tmp_path / "f", state, FILES[2])
    for shard in path.glob("*.safetensors"):
        refused(lambda shard=shard: maemm.load(shard, heads=2, decoder_heads=2))


def test_a_pickle_with_code_in_a_folder(tmp_path, monkeypatch, state):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch evil-was-here",))

    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "f", {**state, "x": Evil()}, "pytorch_model.bin")
    refused(lambda: maemm.load(path), "is not unpickled")
    assert not (tmp_path / "evil-was-here").exists()


# --------------------------------------------------------------------------------------------------- video
VIDEO_RECIPE = {
    "modalities": {"video": {"type": "video", "size": [4, 16, 16], "patch": [2, 8, 8], "position": "flat"}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2, "prefix": 0, "eps": 1e-12},
}
VIDEO = {
    "model_type": "videomae", "architectures": ["VideoMAEModel"], "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16, "patch_size": 8, "num_frames": 4,
    "tubelet_size": 2, "num_channels": 3, "qkv_bias": True, "hidden_act": "gelu", "use_mean_pooling": False,
    "norm_pix_loss": True,
}  # fmt: skip


@pytest.mark.parametrize("how", FILES)
def test_folders_of_videomae(tmp_path, how):
    from maemm.model.build import build_model

    torch.manual_seed(0)
    model = build_model(VIDEO_RECIPE).eval()
    for block in model.encoder.blocks:  # keys have no bias there
        block.attn.qkv.bias.data[16:32] = 0
    state = {k: v.clone() for k, v in maemm.registry.find("weights", "hf_videomae")().write(model, {}).items()}
    x = {"video": torch.linspace(-1, 1, 3 * 4 * 16 * 16).reshape(1, 3, 4, 16, 16)}
    for key, value in (("whole", state), ("bare", {k.removeprefix("videomae."): v for k, v in state.items()})):
        loaded = maemm.load(folder(tmp_path / key, value, how, VIDEO))
        with torch.no_grad():
            assert torch.allclose(loaded.embed(x)["video"], model.embed(x)["video"], atol=1e-6)
    if how == FILES[0]:
        for key, value in (
            ("hidden_act", "relu"), ("num_frames", 3), ("tubelet_size", 4), ("qkv_bias", False), ("qv_bias", False),
            ("use_mean_pooling", True), ("num_attention_heads", 3), ("patch_size", 4), ("new_setting", 1),
            ("model_type", "vit_mae"), ("num_frames", "four"), ("image_size", None), ("hidden_size", 32),
        ):  # fmt: skip
            path = folder(tmp_path / "other", state, how, {**VIDEO, key: value})
            refused(lambda path=path: maemm.load(path))


# ------------------------------------------------------------------------------------- transformers itself
def test_transformers_answers_alike(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16)
    config = transformers.ViTConfig(**sizes, patch_size=8, num_labels=7)
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "f", max_shard_size="10KB")
    logits = maemm.load(tmp_path / "f").logits(X)
    with torch.no_grad():
        assert torch.allclose(logits["image"] if isinstance(logits, dict) else logits, theirs(X["image"]).logits)
