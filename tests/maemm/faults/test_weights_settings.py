"""What weights do not record can be given everywhere; the ending of a name is the format that is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import maemm
from maemm.__main__ import main
from maemm.train.initialize import initialize_from
from tests.maemm.faults.weights_cases import RECIPE, TINY, published, refused, tiny_model


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Eight pictures in two classes, and the tiny model's weights as mae.pth, in the current folder."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index in range(8):
        path = tmp_path / f"few/{'ab'[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * index, 255 * (index % 2), 100)).save(path)
    torch.save({"model": published()}, "mae.pth")
    return "few"


def run(capsys, *words):
    """(status, stdout, stderr) of a command."""
    capsys.readouterr()
    status = main(list(words))
    output = capsys.readouterr()
    assert "internal:" not in output.err, output.err
    return status, output.out, output.err


# ------------------------------------------------------------------------------------------ heads, given anywhere
@pytest.mark.parametrize("word", ["heads=2", "init.heads=2"])
def test_finetune_is_told_what_weights_do_not_record(pictures, word):
    from maemm.tasks.finetune.recipe import recipe_for

    recipe = recipe_for("mae.pth", pictures, [word, "out=ft"])  # no decoder_heads: there will be no decoder
    assert recipe["init"] == {"weights": "mae.pth", "heads": 2}
    assert recipe["encoder"]["heads"] == 2 and recipe["decoder"] is None
    model = maemm.build({key: recipe[key] for key in ("modalities", "encoder", "decoder", "objectives", "head")})
    initialize_from(model, recipe["init"])
    assert torch.equal(model.encoder.prefix, tiny_model().encoder.prefix)


def test_finetune_says_how(pictures, capsys):
    status, _, error = run(capsys, "finetune", "mae.pth", pictures, "out=ft")
    assert status == 2 and "give heads= (in a recipe init.heads=)" in error and "maemm convert" in error
    status, _, error = run(capsys, "finetune", "mae.pth", pictures, "out=ft", "haeds=2")
    assert status == 2 and "did you mean 'heads'?" in error
    maemm.convert("mae.pth", "own.safetensors", **TINY)
    status, _, error = run(capsys, "finetune", "own.safetensors", pictures, "out=ft", "heads=2")
    assert status == 2 and "heads is already in the recipe" in error


def test_a_finetuning_runs_with_what_it_was_told(pictures, capsys):
    words = ["train.epochs=1", "train.warmup_epochs=0", "data.workers=0", "train.batch=4", "data.validation=null"]
    assert run(capsys, "finetune", "mae.pth", pictures, "heads=2", "out=ft", *words)[0] == 0
    stored = maemm.load("ft")
    assert stored.head is not None and stored.encoder.blocks[0].attn.num_heads == 2
    assert run(capsys, "finetune", "mae.pth", pictures, "heads=2", "out=ft", *words)[0] == 0  # it continues


@pytest.mark.parametrize(
    "init",
    [
        {"weights": "mae.pth", "heads": 2, "decoder_heads": 2},
        {"type": "mae.pth", "heads": 2, "decoder_heads": 2},
        {"weights": "mae.pth", "kind": "mae", "heads": 2, "decoder_heads": 2, "checkpoint_key": "model"},
    ],
)
def test_init_takes_settings(pictures, init):
    from maemm import config

    recipe = config.load({**RECIPE, "init": init})
    assert recipe["init"]["weights"] == "mae.pth" and "type" not in recipe["init"]
    model = maemm.build(RECIPE)
    initialize_from(model, recipe["init"])
    assert all(torch.equal(value, tiny_model().state_dict()[key]) for key, value in model.state_dict().items())


def test_init_beside_overrides(pictures):
    from maemm import config

    recipe = config.load({**RECIPE, "init": "mae.pth"}, ["init.heads=2", "init.decoder_heads=2"])
    assert recipe["init"] == {"weights": "mae.pth", "heads": 2, "decoder_heads": 2}
    assert config.load(recipe, ["init=other.pth"])["init"] == "other.pth"
    for wrong in ({}, {"heads": 2}, {"weights": 3}, [], 3, ""):
        refused(lambda wrong=wrong: config.load({**RECIPE, "init": wrong}), "init must be")


def test_a_decoder_is_asked_for_only_where_it_is_used(pictures, capsys):
    for words in (
        ["embed", "mae.pth", pictures, "-o", "f.npz", "heads=2", "--json"],
        ["knn", "mae.pth", pictures, "heads=2", "--folds", "2"],
    ):
        status, _, error = run(capsys, *words)
        assert status == 0, error
    status, _, error = run(capsys, "reconstruct", "mae.pth", pictures, "heads=2")
    assert status == 2 and "give decoder_heads=" in error
    refused(lambda: maemm.convert("mae.pth", "x.safetensors", heads=2), "decoder_heads")  # nothing is left out
    model = maemm.build({**RECIPE, "decoder": RECIPE["decoder"]})
    refused(lambda: initialize_from(model, {"weights": "mae.pth", "heads": 2}), "init.decoder_heads=")


@pytest.mark.parametrize("heads", [0, -1, 3, 5, 10**9])
def test_numbers_of_heads_that_cannot_be(heads):
    refused(lambda: maemm.load(published(), **{**TINY, "heads": heads}))
    refused(lambda: maemm.load(published(), **{**TINY, "decoder_heads": heads}))


@pytest.mark.parametrize("size", [0, -8, 7, [16], [16, 16, 16], [10**9, 10**9], 10**12])
def test_sizes_that_cannot_be(size):
    refused(lambda: maemm.load(published(), **TINY, size=size))


# ------------------------------------------------------------------------------------ the ending is the format
@pytest.mark.parametrize(
    "name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w", "w.onnx", "w.safetensor", "folder/", "w.PTH"]
)
def test_our_format_has_one_ending(tmp_path, name):
    maemm.save(tiny_model(), tmp_path / "own.safetensors")
    out = tmp_path / name
    refused(lambda: maemm.convert(tmp_path / "own.safetensors", out), ".safetensors")
    assert not out.exists()
    if out.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt"):
        refused(lambda: maemm.save(tiny_model(), out), ".safetensors")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w.safetensors", "W.SAFETENSORS"])
def test_a_published_layout_is_written_as_its_name_says(tmp_path, name):
    maemm.save(tiny_model(), tmp_path / "own.safetensors")
    maemm.convert(tmp_path / "own.safetensors", tmp_path / name, to="mae")
    if "safetensors" in name.lower():
        state = load_file(tmp_path / name)
    else:
        state = torch.load(tmp_path / name, weights_only=True)["model"]
    assert all(torch.equal(state[key], value) for key, value in published().items())
    assert maemm.load(tmp_path / name, **TINY).kind == "mae"


@pytest.mark.parametrize("name", ["w", "w.onnx", "w.txt", "w.h5"])
def test_other_endings_are_refused(tmp_path, name):
    maemm.save(tiny_model(), tmp_path / "own.safetensors")
    refused(lambda: maemm.convert(tmp_path / "own.safetensors", tmp_path / name, to="mae"), name)
    refused(lambda: maemm.export(tmp_path / "own.safetensors", tmp_path / name, to="timm"), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.safetensors"]


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.safetensors"])
def test_timm_reads_what_was_written_for_it(tmp_path, name):
    import timm  # noqa: F401  named by the call

    made = maemm.export(tiny_model(), tmp_path / name, to="timm")
    assert made.checked_with == "timm" and max(made.differences.values()) < 1e-5
    state = load_file(tmp_path / name) if name.endswith("safetensors") else torch.load(tmp_path / name)
    assert "blocks.0.attn.qkv.weight" in state
    eval(made.call)


def test_what_is_a_folder_and_what_is_a_file(tmp_path):
    model = tiny_model()
    for name in ("x.safetensors", "x.pth", "x.onnx", "x.BIN"):
        refused(lambda name=name: maemm.export(model, tmp_path / name, to="hf"), "writes a folder")
    (tmp_path / "file").write_text("mine")
    refused(lambda: maemm.export(model, tmp_path / "file", to="hf", force=True), "is a file")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.pth/mine").write_text("mine")
    refused(lambda: maemm.export(model, tmp_path / "folder.pth", to="timm", force=True), "other files")
    refused(
        lambda: maemm.export(model, tmp_path / "X.SAFETENSORS", to="timm"), ".safetensors"
    )  # timm reads no such name
    assert (tmp_path / "file").read_text() == (tmp_path / "folder.pth/mine").read_text() == "mine"


# ----------------------------------------------------------------------------------------- headers of our own files
def with_header(path, header, state=None):
    model = tiny_model()
    values = {key: value.clone() for key, value in model.state_dict().items()} if state is None else state
    save_file(values, path, metadata={"maemm": header if isinstance(header, str) else json.dumps(header)})
    return path


def changed(*keys, to):
    """The tiny model's header with one value of the recipe changed."""
    recipe = json.loads(json.dumps(tiny_model().recipe))
    inner = recipe
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return {"recipe": recipe, "kind": None}


HEADERS = {
    "no JSON": "{",
    "empty": "",
    "a list": [1],
    "a text": '"text"',
    "a number": 3,
    "null": None,
    "nothing": {},
    "deep": "[" * 100_000,
    "recipe empty": {"recipe": {}},
    "recipe null": {"recipe": None},
    "recipe list": {"recipe": [1]},
    "kind": {"recipe": RECIPE, "kind": [1]},
    "kind dict": {"recipe": RECIPE, "kind": {"a": 1}},
    "depth huge": changed("encoder", "depth", to=10**9),
    "depth negative": changed("encoder", "depth", to=-1),
    "depth text": changed("encoder", "depth", to="2"),
    "dim huge": changed("encoder", "dim", to=10**6),
    "dim beyond": changed("encoder", "dim", to=10**18),
    "dim zero": changed("encoder", "dim", to=0),
    "heads": changed("encoder", "heads", to=0),
    "ratio": changed("encoder", "mlp_ratio", to=1e12),
    "decoder huge": changed("decoder", "depth", to=10**7),
    "decoder wide": changed("decoder", "dim", to=2**40),
    "prefix huge": changed("encoder", "prefix", to=10**12),
    "encoder null": changed("encoder", to=None),
    "encoder list": changed("encoder", to=[]),
    "encoder type": changed("encoder", "type", to="nonsense"),
    "encoder type list": changed("encoder", "type", to=["vit"]),
    "unknown option": changed("encoder", "x", to=1),
    "modalities list": changed("modalities", to=[1]),
    "modalities empty": changed("modalities", to={}),
    "modality null": changed("modalities", "image", to=None),
    "size huge": changed("modalities", "image", "size", to=10**9),
    "size list": changed("modalities", "image", "size", to=[16, 16, 16]),
    "patch": changed("modalities", "image", "patch", to=0),
    "classes huge": changed("head", to={"type": "linear", "classes": 10**12}),
    "objectives": changed("objectives", to=[1]),
    "control": changed("encoder", "type", to="\x1b[2J\n"),
    "long": changed("encoder", "type", to="x" * 10**6),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_stored_recipe_is_checked_like_any_recipe(tmp_path, case):
    path = with_header(tmp_path / "x.safetensors", HEADERS[case])
    refused(lambda: maemm.load(path))
    refused(lambda: maemm.convert(path, tmp_path / "out.safetensors"))
    assert not (tmp_path / "out.safetensors").exists()


OTHER_TYPES = {
    "int64": lambda x: x.long(), "int8": lambda x: x.to(torch.int8), "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64), "float8": lambda x: x.to(torch.float8_e5m2),
    "nan": lambda x: x * float("nan"), "infinite": lambda x: x + float("inf"), "flat": lambda x: x.reshape(1, -1),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_TYPES)
@pytest.mark.parametrize("which", ["all", "encoder.norm.bias"])
def test_other_numbers_in_our_own_files(tmp_path, case, which):
    model = tiny_model()
    state = {
        key: OTHER_TYPES[case](value) if which in ("all", key) else value.clone()
        for key, value in model.state_dict().items()
    }
    path = with_header(tmp_path / "x.safetensors", {"recipe": model.recipe, "kind": None}, state)
    refused(lambda: maemm.load(path))


def test_half_precision_in_our_own_files(tmp_path):
    model = tiny_model()
    state = {key: value.half() for key, value in model.state_dict().items()}
    loaded = maemm.load(with_header(tmp_path / "x.safetensors", {"recipe": model.recipe, "kind": None}, state))
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())


def test_a_lost_header_and_another_kind(tmp_path):
    model = tiny_model()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    refused(lambda: maemm.load(tmp_path / "x.safetensors"), "lost the recipe")
    maemm.save(model, tmp_path / "own.safetensors")
    refused(lambda: maemm.load(tmp_path / "own.safetensors", kind="mae"), "leave kind out")
    refused(lambda: maemm.load(tmp_path / "own.safetensors", checkpoint_key="model"), "leave it out")
