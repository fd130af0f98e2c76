"""Classes of tokens belong to the view that the encoder sees: crops, mirrored pictures, another resolution."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import save_file
from torch.nn.functional import interpolate

import maemm
from maemm import config
from maemm.contract import MaemmError, Preprocessed, Rng
from maemm.data.loader import Loader
from maemm.data.open import open_source
from maemm.data.order import ShuffledBatches
from maemm.model.build import build_modalities, build_model

SIDE, COUNT = 4, 6  # tokens along an axis, samples


def recipe(root="none", source="image", **image):
    defaults = {"size": 32, "patch": 8, "crop": "center", "flip": True, "center": 1.0, "normalize": "none"}
    return {
        "modalities": {"image": {**defaults, "masking": {"type": "random", "ratio": 0.5}, **image}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
        "data": {"root": str(root), "source": source, "workers": 0},
        "train": {"epochs": 1, "batch": COUNT},
    }


@pytest.fixture
def pictures(tmp_path):
    """Pictures whose patches are each of one grey value, and their ids: those values divided by 16."""
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(SIDE * SIDE), (COUNT, 1)), axis=1)
    (tmp_path / "pictures").mkdir()
    for number, row in enumerate(ids.reshape(COUNT, SIDE, SIDE)):
        pixels = (16 * row).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Picture.fromarray(pixels).convert("RGB").save(tmp_path / "pictures" / f"{number}.png")
    np.save(tmp_path / "codes.npy", ids)
    return tmp_path


def batches(spec, steps):
    """The training's batches of a recipe with codes or without, one of all samples for each step."""
    loader = Loader(open_source(spec), build_modalities(spec), ShuffledBatches(COUNT, COUNT, seed=0), seed=0)
    return list(loader.batches(0, steps))


# ---------------------------------------------------------------------------------------------- a tokenizer in the loop
def greys(tmp_path, values=12):
    """A codebook whose entry n is a patch of the n-th of 16 grey values, in the model's units."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = ((16 * torch.arange(16.0)[:, None] / 255) - mean) / std
    save_file({"codebook": colours.repeat(1, values // 3).contiguous()}, tmp_path / f"greys{values}.safetensors")
    return str(tmp_path / f"greys{values}.safetensors")


def views(model, count=COUNT, step=0, size=48):
    """Random pictures through ``load`` and ``preprocess``, as training has them; and their plan's inputs."""
    modality = model.modalities["image"]
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    pixels = pixels.repeat(size // 6, 1).repeat(size // 6, 2).repeat(3, 3)
    loaded = [modality.load(x, Rng((0, step, row, 0)).fold_in("image")) for row, x in enumerate(pixels)]
    rng = Rng((0, step), range(count), count)
    batch = model.preprocess({"image": modality.collate(loaded)}, rng)
    return model.plan(batch, rng)["image"]


@pytest.mark.parametrize("crop", ["center", {"scale": [0.3, 0.8]}])
@pytest.mark.parametrize("size", [None, 16, [64, 32], 48])
def test_a_codebook_sees_the_view_of_the_encoder(crop, size, tmp_path):
    """The ids of the very crop, mirrored or not, in any resolution; with the values of the patches there."""
    sides = (32, 32) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    patch = tuple(side // SIDE for side in sides)
    file = greys(tmp_path, 3 * patch[0] * patch[1])
    target = {"type": "codebook", "file": file, "size": size}
    model = build_model(config.load(recipe(crop=crop, target=target), {})).train()
    inputs = views(model)
    x = inputs.preprocessed.x
    if sides != (32, 32):
        x = interpolate(x, sides, mode="bicubic", antialias=True)
    patches = x.unfold(2, patch[0], patch[0]).unfold(3, patch[1], patch[1])  # (B, 3, 4, 4, p, q)
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(COUNT, SIDE * SIDE, -1)
    entries = model.targets["image"].codebook
    assert torch.equal(inputs.computed, torch.cdist(patches, entries).argmin(-1))
    assert inputs.computed.unique().numel() > 3
    mirrored = inputs.preprocessed.info["mirrored"]
    assert mirrored.any() and not mirrored.all()
    others = views(model, step=1)
    assert not torch.equal(inputs.computed, others.computed)  # another epoch, another view
    model({"image": inputs}).total.backward()


def test_a_codebook_of_a_network_sees_the_view_too():
    """Its features at another size are those of the resized view; ids follow."""
    features = {"type": "teacher", "size": 16}
    spec = recipe(crop={"scale": [0.3, 0.8]}, target={"type": "codebook", "vocab": 5, "features": features})
    model = build_model(config.load(spec, {})).train()
    inputs = views(model)
    target = model.targets["image"]
    resized = interpolate(inputs.preprocessed.x, (16, 16), mode="bicubic", antialias=True)
    tokens = target.features.held.network.model.embed({"image": resized}, tokens=True)["image"]  # 2 x 2
    whole = interpolate(tokens.unflatten(1, (2, 2)).permute(0, 3, 1, 2), (SIDE, SIDE), mode="bicubic")
    whole = torch.nn.functional.layer_norm(whole.flatten(2).transpose(1, 2), (16,))
    assert torch.equal(inputs.computed, target.nearest(whole))


def test_other_modalities_in_another_resolution():
    signal = {"size": 64, "patch": 8, "tokens": "time", "channels": 2, "shift": 0}
    video = {"size": [4, 16, 16], "patch": [2, 8, 8], "crop": "center", "target": {"size": [8, 16]}}
    for name, options, last in (("signal/tiny_cpu", signal, (32,)), ("video/videomae_tiny_cpu", video, (8, 16))):
        key = name.split("/")[0]
        target = {"type": "codebook", "vocab": 6, "size": 32, **options.pop("target", {})}
        overrides = {f"modalities.{key}.{option}": value for option, value in options.items()}
        model = maemm.build(name, **overrides, **{f"modalities.{key}.target": target})
        modality = model.modalities[key]
        x = modality.example(2, Rng((0,))).x
        inputs = model.plan({key: x}, Rng((0,), range(2), 2))[key]
        flat = x.reshape(-1, 1, *(x.shape[-2:] if len(last) > 1 else (1, x.shape[-1])))
        new = interpolate(flat, last if len(last) > 1 else (1, *last), mode="bicubic", antialias=True)
        new = new.view(*x.shape[: -len(last)], *last)
        other = copy.copy(modality)
        other.size = (*modality.size[: -len(last)], *last)
        other.patch = tuple(side // cells for side, cells in zip(other.size, modality.grid, strict=True))
        tokens = other.tokenize(Preprocessed(new))
        expected = model.targets[key].nearest(other.target(tokens, tokens.all_indices()))
        assert tokens.count == inputs.tokens.count and torch.equal(inputs.computed, expected)


def test_sizes_that_do_not_fit_are_refused():
    def build(**target):
        return build_model(config.load(recipe(target={"type": "codebook", "vocab": 4, **target}), {}))

    with pytest.raises(MaemmError, match="sides 18 x 18 are no multiple of the 4 x 4 tokens of 'image'"):
        build(size=18)
    with pytest.raises(MaemmError, match=r"size has 3 sides, of 'image' the last 2 can be resized \(target.size\)"):
        build(size=[8, 8, 8])
    with pytest.raises(MaemmError, match=r"set the size of the features \(target.features.size\)"):
        build(size=16, features="teacher")
    with pytest.raises(MaemmError, match="'pointcloud' has no pictures, clips or signals that could be resized"):
        spec = {"type": "codebook", "vocab": 4, "size": 8}
        maemm.build("pointcloud/point_mae_tiny_cpu", **{"modalities.pointcloud.target": spec})


# ------------------------------------------------------------------------------------------------- ids from a file
def with_codes(folder, **image):
    source = {"type": "beside", "source": "image", "arrays": {"codes": str(folder / "codes.npy")}}
    return recipe(folder / "pictures", source, target={"type": "codes", "vocab": 16}, **image)


def test_ids_of_a_file_are_mirrored_with_the_pictures(pictures):
    """Through the loader of training: each id is that of the grey value which its token shows."""
    spec = config.load(with_codes(pictures), {})
    model = build_model(spec).train()
    for step, batch in enumerate(batches(spec, 2)):
        rng = Rng((0, step), batch.rows, COUNT)
        inputs = model.plan(model.preprocess(batch.raw, rng, side_inputs=batch.side_inputs), rng)["image"]
        mirrored = inputs.preprocessed.info["mirrored"]
        assert mirrored.any() and not mirrored.all()
        shown = model.modalities["image"].denormalize_input(inputs.preprocessed.x)[:, 0, ::8, ::8]
        assert torch.equal(inputs.computed, (shown.flatten(1) * 255 / 16).round().long())
        assert not torch.equal(inputs.computed, batch.side_inputs["image"]["codes"])
        model({"image": inputs}).total.backward()
    whole = model.preprocess(batch.raw, None, side_inputs=batch.side_inputs)
    assert torch.equal(model.plan(whole, rng)["image"].computed, batch.side_inputs["image"]["codes"])


@pytest.mark.parametrize(
    "name, options, wanted",
    [
        ("image/mae_tiny_cpu", {}, "set crop: center"),
        ("image/mae_tiny_cpu", {"crop": "center", "randaugment": "rand-m9-mstd0.5-inc1"}, "set randaugment: null"),
        ("video/videomae_tiny_cpu", {"crop": "multiscale"}, "set crop: center"),
        ("audio/audiomae_tiny_cpu", {"crop": "random", "roll": True}, "set crop: center, roll: false"),
        ("audio/audiomae_tiny_cpu", {"crop": "head", "roll": False, "mixup": 0.5}, "set mixup: 0"),
        ("signal/tiny_cpu", {"shift": 3}, "set shift: 0"),
        ("pointcloud/point_mae_tiny_cpu", {}, "set augment: null"),
    ],
)
@pytest.mark.parametrize("place", ["target", "objective"])
def test_what_moves_samples_at_random_is_refused(name, options, wanted, place):
    key = name.split("/")[0]
    overrides = {f"modalities.{key}.{option}": value for option, value in options.items()}
    if place == "target":
        overrides[f"modalities.{key}.target"] = "codes"
    else:
        overrides["objectives"] = {"reconstruct": {}, "words": {"type": "predict", "target": "codes"}}
    with pytest.raises(MaemmError, match=f"is cropped, moved or mixed at random.*{wanted}"):
        maemm.build(name, **overrides)


def test_of_long_recordings_the_same_part_is_read_each_time(tmp_path):
    """An array longer than a sample is cut in the middle, as without augmentation, and not where there are no codes."""
    np.save(tmp_path / "long.npy", np.random.default_rng(0).normal(size=(COUNT, 1, 400)).astype(np.float32))
    np.save(tmp_path / "codes.npy", np.zeros((COUNT, 10), int))
    plain = {
        "modalities": {"signal": {"size": 200, "patch": 20, "scale": "none"}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
        "data": {"root": str(tmp_path / "long.npy"), "source": "signal", "workers": 0},
        "train": {"epochs": 2, "batch": COUNT},
    }
    source = {"type": "beside", "source": "signal", "arrays": {"codes": str(tmp_path / "codes.npy")}}
    for target, count in ((None, 2 * COUNT), ({"type": "codes", "vocab": 2}, COUNT)):
        spec = config.load(plain, {"modalities.signal.target": target, **({"data.source": source} if target else {})})
        parts = {row.numpy().tobytes() for batch in batches(spec, 2) for row in batch.raw["signal"]["x"]}
        assert len(parts) == count


def test_ids_are_mirrored_with_clips_too():
    model = maemm.build("video/videomae_tiny_cpu", **{"modalities.video.crop": "center", "modalities.video.flip": True})
    modality = model.modalities["video"]
    frames, height, width = modality.size
    raw = {"x": torch.zeros(8, frames, height, width, 3, dtype=torch.uint8), "sides": [(height, width)] * 8}
    preprocessed = modality.preprocess(raw, Rng((1,), range(8), 8))
    tokens = modality.tokenize(preprocessed)
    ids = torch.arange(tokens.count).expand(8, -1)
    followed, mirrored = modality.follow(ids, tokens, preprocessed), preprocessed.info["mirrored"]
    assert mirrored.any() and not mirrored.all()
    assert torch.equal(followed[~mirrored], ids[~mirrored])
    turned = ids.unflatten(1, tokens.grid).flip(-1).flatten(1)
    assert torch.equal(followed[mirrored], turned[mirrored])
    assert torch.equal(modality.follow(ids, tokens, modality.preprocess(raw, None)), ids)
