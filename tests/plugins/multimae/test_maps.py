"""Maps beside pictures: one crop and one flip for all, label maps, sources, and files that are not what they seem."""

import os

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from maemm import MaemmError, config, registry
from maemm.contract.data import Preprocessed
from maemm.contract.rng import Rng
from maemm.model.build import build_modalities, build_model
from maemm_plugins.image.modality import Image
from maemm_plugins.multimae.depth import Depth
from maemm_plugins.multimae.labels import LabelMap, voc_colours
from maemm_plugins.multimae.modality import Map
from maemm_plugins.multimae.read import read_depth, read_labels, read_map
from maemm_plugins.multimae.samples import open_samples, write
from maemm_plugins.multimae.sources import open_maps, open_named_channels

CROP = {"scale": [0.3, 0.6], "ratio": [0.7, 1.4]}
COMMON = {"size": 32, "patch": 8, "crop": CROP, "flip": True}
PARTS = {"rgb": {"type": "image"}, "depth": {}, "semseg": {"type": "label_map"}}
LABEL = {"type": "label_map", "classes": 90, "align": "rgb"}


def recipe_of(**modalities):
    return {"modalities": modalities}


def rng_of(key, rows=1):
    return Rng(("maps", key), range(rows), rows)


# ------------------------------------------------------------------------------------------------ one crop and one flip
def aligned_batch(key, rows=6, height=48, width=64):
    """Pictures, depth and labels that all hold the same slanted ramp, loaded and preprocessed as in training."""
    recipe = recipe_of(
        rgb={"type": "image", **COMMON, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
        depth={"type": "depth", **COMMON, "align": "rgb", "trim": None},
        semseg={**LABEL, **COMMON, "stride": 2},
    )
    ramp = (np.arange(width)[None, :] + 0.5 * np.arange(height)[:, None]) / (width + height / 2)
    raw = {
        "rgb": np.repeat((ramp * 255).astype(np.float32)[..., None] / 255, 3, 2),
        "depth": ramp.astype(np.float32)[..., None],
        "semseg": (ramp * 90).astype(np.uint8)[..., None],
    }
    modalities, batch = build_modalities(recipe), {}
    for name, modality in modalities.items():
        owner = modality.aligned_with or name
        loaded = [modality.load(raw[name], Rng((key, row)).fold_in(owner)) for row in range(rows)]
        batch[name] = modality.preprocess(modality.collate(loaded), rng_of(key, rows).fold_in(owner)).x
    return batch


def test_one_crop_and_one_flip_serve_all():
    batch = aligned_batch(0)
    grey, depth, classes = batch["rgb"].mean(1), batch["depth"][:, 0], batch["semseg"][:, 0]
    torch.testing.assert_close(grey, depth, rtol=0, atol=0.01)
    halved = torch.nn.functional.avg_pool2d(depth[:, None], 2)[:, 0] * 90
    assert (classes - halved).abs().max() < 2.5 and classes.shape == (6, 16, 16)
    slopes = (grey[:, :, -1] - grey[:, :, 0]).mean(1)
    assert slopes.min() < -0.05 and slopes.max() > 0.05  # some are mirrored, some are not
    assert (grey[0] - grey[1]).abs().max() > 0.05  # and crops differ
    again = aligned_batch(0)
    assert all(torch.equal(x, again[name]) for name, x in batch.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": "center"}, "depth is aligned with rgb, and their crop differ"),
        ({"flip": False}, "their flip differ"),
        ({"center": 0.5}, "their center differ"),
        ({"size": 64}, "their frame differ"),
    ],
)
def test_modalities_that_would_not_be_aligned_are_refused(changes, words):
    with pytest.raises(MaemmError, match=words):
        build_modalities(
            recipe_of(rgb={"type": "image", **COMMON}, depth={"type": "depth", **COMMON, "align": "rgb", **changes})
        )


def test_evaluation_shows_the_same_part_of_all():
    for size in ((48, 64), (32, 32), (30, 30)):
        ramp = np.add.outer(np.arange(size[0]), np.arange(size[1])).astype(np.float32)
        image = Image(size=32, patch=8, mean=[0.0] * 3, std=[1.0] * 3, interpolation="bilinear")
        labels = LabelMap(size=32, patch=8, stride=2, classes=200)
        picture = image.load(np.repeat(ramp[..., None], 3, 2), None)["x"][0]
        classes = labels.load(ramp.astype(np.uint8)[..., None], None)["x"][0]
        halved = torch.nn.functional.avg_pool2d(picture[None, None], 2)[0, 0]
        assert (classes.float() - halved).abs().max() < 3


# ---------------------------------------------------------------------------------------------------- label maps
def labels_of(**options):
    return LabelMap(size=8, patch=4, stride=1, classes=5, embedding=3, crop=None, **options)


def test_unknown_labels():
    raw = np.zeros((8, 8, 1), np.uint8)
    raw[0, 0], raw[4:, 4:] = 200, 255
    with pytest.raises(ValueError, match="17 pixels have 200, which is none of the 5 classes"):
        labels_of().load(raw, None)
    with pytest.raises(ValueError, match="1 pixels have 200"):
        labels_of(ignore=255).load(raw, None)
    labels = labels_of(unknown="ignore")
    batch = labels.preprocess(labels.collate([labels.load(raw, None), labels.load(raw * 0 + 2, None)]), None)
    tokens = labels.tokenize(batch)
    assert tokens.known[0].sum(-1).tolist() == [15, 16, 16, 0] and tokens.valid[0].tolist() == [True, True, True, False]
    labels.connect(6, 4)
    index = tokens.all_indices()
    other = labels.tokenize(Preprocessed(torch.where(batch.valid, batch.x, 4.0), batch.valid))
    assert torch.equal(labels.embed(tokens, index), labels.embed(other, index))  # unknown pixels add nothing
    pred = torch.zeros(2, 4, labels.output_dim())
    loss = labels.loss(pred, labels.target(tokens, index), tokens.known)
    assert loss[1].tolist() == pytest.approx([np.log(5)] * 4) and loss[0, 3] == 0


def test_more_classes_than_a_byte_holds():
    labels = LabelMap(size=8, patch=4, stride=1, classes=1000, crop=None, unknown="ignore")
    raw = np.arange(64).reshape(8, 8, 1) * 16
    loaded = labels.load(raw, None)["x"]
    assert loaded.dtype == torch.int16 and loaded.max() == 992 and (loaded == -1).sum() == 1
    assert labels.load(np.full((8, 8), 999), None)["x"].eq(999).all()
    assert (
        LabelMap(size=8, patch=4, stride=1, classes=255).load(np.full((8, 8), 254, np.uint8), None)["x"].eq(254).all()
    )


def test_pictures_of_classes():
    import matplotlib.pyplot as plt

    labels = labels_of(colours=[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [0, 0, 0]])
    signal = torch.tensor([[[0.0, 1.0], [2.0, float("nan")]]])
    _, axes = plt.subplots()
    labels.plot(axes, signal)
    shown = np.asarray(axes.images[0].get_array())
    assert (
        shown[0, 0].tolist() == [1, 0, 0]
        and shown[1, 0].tolist() == [0, 0, 1]
        and shown[1, 1].tolist() == pytest.approx([0.6] * 3)
    )
    plt.close("all")
    assert voc_colours(21)[[1, 2, 15, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128]]
    scores = torch.zeros(1, 1, labels.output_dim())
    scores[0, 0, 3::5] = 1.0
    tokens = labels.tokenize(labels.example(1, rng_of(0)))
    assert labels.denormalize_target(scores, tokens, tokens.all_indices()[:, :1]).eq(3).all()


def test_the_baseline_is_the_best_constant():
    labels = labels_of()
    tokens = labels.tokenize(labels.example(6, rng_of(1, 6)))
    target = labels.target(tokens, tokens.all_indices())
    best = labels.baseline(target, torch.ones(6, 4)).mean()
    constant = torch.zeros(labels.output_dim(), requires_grad=True)
    optimizer = torch.optim.Adam([constant], 0.1)
    for _ in range(200):
        loss = labels.loss(constant.expand(6, 4, -1), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert best.item() == pytest.approx(loss.item(), abs=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LabelMap(size=8, patch=4, stride=3, classes=5), "a stride of 3 does not divide"),
        (lambda: labels_of(ignore=3), "3 is one of the 5 classes"),
        (lambda: labels_of(colours=[[1, 2, 3]]), "colours are .* numbers for 5 classes"),
        (lambda: labels_of(mean=[0.5]), "classes have no mean"),
        (lambda: labels_of(device_crop=True), "not the nearest value"),
    ],
)
def test_options_that_are_refused(make, words):
    with pytest.raises(MaemmError, match=words):
        make()


# ---------------------------------------------------------------------------------------------------------------- maps
def test_any_channels_with_gaps():
    recipe = {
        "modalities": {"bands": {"type": "map", "channels": 4, "size": 16, "patch": 4, "gaps": True, "crop": None,
                                 "mean": [1, 2, 3, 4], "std": [1, 1, 2, 2], "normalize": "none", "loss": "l1"}},
        "encoder": {"type": "vit", "dim": 8, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 8, "depth": 1, "heads": 2},
        "data": {"root": None},
    }  # fmt: skip
    model = build_model(config.load(recipe, {}))
    bands = model.modalities["bands"]
    raw = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    raw[2, :8] = np.nan
    batch = bands.preprocess(bands.collate([bands.load(raw, None)]), None)
    want = (raw[0] - 1, (raw[3] - 4) / 2)
    assert np.allclose(batch.x[0, 0], want[0]) and np.allclose(batch.x[0, 3], want[1], atol=1e-6)
    assert not batch.valid[0, 2, :8].any() and batch.valid.sum() == 4 * 256 - 128
    model({"bands": batch}, rng=Rng((0, 0))).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"has 3 channels, the model takes 4 \(modalities.map.channels\)"):
        bands.load(raw[:3], None)


def test_resized_without_mixing():
    raw = np.kron(np.array([[1.0, 2.0], [3.0, np.nan]], np.float32), np.ones((8, 8), np.float32))
    gappy = Map(size=8, patch=4, gaps=True, crop=None)
    x = gappy.load(raw, None)["x"]
    assert set(x[x.isfinite()].tolist()) == {1.0, 2.0, 3.0} and x.isnan().sum() == 16
    assert (
        Map(size=8, patch=4, crop=None, interpolation="nearest").load(np.nan_to_num(raw), None)["x"].unique().numel()
        == 4
    )


# --------------------------------------------------------------------------------------------------------------- files
def test_depth_and_labels_of_many_kinds(tmp_path):
    depth = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Picture.fromarray(depth).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", depth.astype(np.float32) / 65536)
    np.save(tmp_path / "c.npy", np.where(depth == 0, np.nan, depth).astype(np.float64))
    Picture.fromarray((depth // 256).astype(np.uint8)).save(tmp_path / "d.tif")
    assert read_depth(tmp_path / "a.png").dtype == np.uint16 and np.array_equal(
        read_depth(tmp_path / "a.png")[..., 0], depth
    )
    assert read_depth(tmp_path / "b.npy").shape == (8, 8, 1) and np.isnan(read_map(tmp_path / "c.npy")).sum() == 1
    assert read_map(tmp_path / "d.tif").dtype == np.uint8

    labels = (np.arange(64).reshape(8, 8) % 7).astype(np.uint8)
    palette = Picture.fromarray(labels).convert("P")
    palette.putpalette(voc_colours(256).tobytes())
    palette.putdata(labels.flatten().tolist())
    palette.save(tmp_path / "p.png")
    np.save(tmp_path / "l.npy", labels.astype(np.int64))
    for name in ("p.png", "l.npy"):
        assert np.array_equal(read_labels(tmp_path / name)[..., 0], labels), name
    Picture.fromarray(labels > 3).save(tmp_path / "bits.png")
    assert set(np.unique(read_labels(tmp_path / "bits.png"))) == {0, 1}
    Picture.fromarray(np.repeat(labels[..., None], 3, 2)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="has 3 channels; a label map has one number for each pixel"):
        read_labels(tmp_path / "colours.png")
    np.save(tmp_path / "floats.npy", labels.astype(np.float32))
    with pytest.raises(ValueError, match="holds float32, and classes are whole numbers"):
        read_labels(tmp_path / "floats.npy")


def test_exr_needs_a_library(tmp_path, monkeypatch):
    path = tmp_path / "z.exr"
    path.write_bytes(b"v/1\x01" + bytes(60))
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(ValueError, match=r"an EXR file; run: pip install 'maemm\[exr\]'"):
        read_depth(path)


def test_exr(tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    depth, colour = np.linspace(0, 9, 64, dtype=np.float32).reshape(8, 8), np.zeros((8, 8), np.float32)
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    with openexr.File(header, {"Z": depth, "R": colour, "G": colour + 1, "B": colour + 2}) as file:
        file.write(str(tmp_path / "z.exr"))
    assert np.array_equal(read_depth(tmp_path / "z.exr")[..., 0], depth)
    assert read_map(tmp_path / "z.exr")[0, 0].tolist() == [0, 1, 2, 0]
    (tmp_path / "broken.exr").write_bytes((tmp_path / "z.exr").read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged EXR"):
        read_depth(tmp_path / "broken.exr")


# ---------------------------------------------------------------------------------------------------- parallel folders
@pytest.fixture
def folders(tmp_path):
    write(tmp_path / "maps", count=12)
    return tmp_path / "maps"


def first(folder):
    return sorted(folder.rglob("*.png"))[0]


def test_parallel_folders(folders):
    source = open_maps(str(folders), parts=PARTS)
    assert len(source) == 12 and source.classes[0] == "cone"
    sample = source.read(0, Rng((0,)))
    shapes = {name: (x.shape, str(x.dtype)) for name, x in sample.raw.items()}
    assert shapes == {"rgb": ((64, 64, 3), "uint8"), "depth": ((64, 64, 1), "uint16"), "semseg": ((64, 64, 1), "uint8")}
    depth, labels = sample.raw["depth"][..., 0].astype(int), sample.raw["semseg"][..., 0]
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, 5} and labels.max() > 1
    assert depth[labels > 1].mean() < depth[labels == 0].mean()  # the object stands before the wall


def test_missing_files(folders):
    first(folders / "depth").unlink()
    with pytest.raises(MaemmError, match="depth lacks 1 of 12 samples"):
        open_maps(str(folders), parts=PARTS)
    assert len(open_maps(str(folders), parts=PARTS, missing="skip")) == 11
    source = open_maps(str(folders), parts=PARTS, missing="allow")
    assert len(source) == 12 and set(source.read(0, Rng((0,))).raw) == {"rgb", "semseg"}
    with pytest.raises(MaemmError, match="has a single part"):
        open_maps(str(folders), parts={"rgb": {"type": "image"}})


def test_other_sizes(folders):
    path = first(folders / "semseg")
    small = Picture.open(path).resize((32, 16), Picture.Resampling.NEAREST)
    small.save(path)
    with pytest.raises(ValueError, match="semseg is 16 x 32, rgb is 64 x 64; maps of one sample have one size"):
        open_maps(str(folders), parts=PARTS).read(0, Rng((0,)))
    resized = open_maps(str(folders), parts=PARTS, sizes="resize").read(0, Rng((0,))).raw["semseg"]
    assert resized.shape == (64, 64, 1) and np.array_equal(resized[2::4, 1::2, 0], np.asarray(small))


def test_samples_that_are_not_what_they_should_be_are_named(folders):
    """A broken file, a coloured label map, a label that is no class, depth of three channels: named, not trained on."""
    rgb = first(folders / "rgb")
    rgb.write_bytes(rgb.read_bytes()[:200])
    labels = sorted((folders / "semseg").rglob("*.png"))
    Picture.new("RGB", (64, 64)).save(labels[1])
    Picture.fromarray(np.full((64, 64), 77, np.uint8)).save(labels[2])
    Picture.new("RGB", (64, 64)).save(sorted((folders / "depth").rglob("*.png"))[3])
    recipe = config.load("multimae/tiny_cpu", {})
    source = open_samples(str(folders))
    reasons = {}
    for index in range(12):
        try:
            raw = source.read(index, Rng((0, index))).raw
            for name, modality in build_modalities(recipe).items():
                modality.load(raw[name], None)
        except ValueError as error:
            reasons[index] = str(error)
    assert set(reasons) == {0, 1, 2, 3}
    assert "one number for each pixel" in reasons[1] and "none of the 6 classes" in reasons[2]
    assert "has 3 channels, the model takes 1" in reasons[3]


# ---------------------------------------------------------------------------------------------------- named channels
def test_arrays_with_named_channels(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 5, 8, 8)).astype(np.float32)
    names, channels = ["red", "green", "blue", "nir", "height"], {"rgb": ["red", "green", "blue"], "depth": ["height"]}
    np.save(tmp_path / "all.npy", values)
    whole = open_named_channels(str(tmp_path / "all.npy"), channels=channels, names=names)
    np.savez(tmp_path / "all.npz", y=np.array([0, 1, 0]), **{name: values[:, k] for k, name in enumerate(names)})
    archive = open_named_channels(str(tmp_path / "all.npz"), channels=channels)
    for folder, save in (("npy", np.save), ("npz", None)):
        for index in range(3):
            place = tmp_path / folder / ("a", "b")[index % 2]
            place.mkdir(parents=True, exist_ok=True)
            if save:
                save(place / f"{index}.npy", values[index])
            else:
                kept = names[: 3 if index == 1 else None]
                np.savez(place / f"{index}.npz", **{name: values[index, names.index(name)] for name in kept})
    npy = open_named_channels(str(tmp_path / "npy"), channels=channels, names=names)
    npz = open_named_channels(str(tmp_path / "npz"), channels=channels)
    for source, order in ((whole, [0, 1, 2]), (archive, [0, 1, 2]), (npy, [0, 2, 1]), (npz, [0, 2])):
        for row, index in enumerate(order):
            raw = source.read(row, Rng((0,))).raw
            assert np.allclose(raw["rgb"], np.moveaxis(values[index, :3], 0, -1)) and raw["depth"].shape == (8, 8, 1)
    assert set(npz.read(2, Rng((0,))).raw) == {"rgb"}  # sample 1 lacks the height
    assert [archive.label(k) for k in range(3)] == [0, 1, 0] and npy.classes == ["a", "b"]
    assert whole.fingerprint() != archive.fingerprint() and len(list(npz.files())) == 3
    with pytest.raises(ValueError, match="has no blue, which rgb takes"):
        np.savez(tmp_path / "npz" / "a" / "0.npz", red=values[0, 0], green=values[0, 1])
        open_named_channels(str(tmp_path / "npz"), channels=channels).read(0, Rng((0,)))
    with pytest.raises(MaemmError, match=r"'infrared' is not in data.source.names"):
        open_named_channels(str(tmp_path / "all.npy"), channels={"x": ["infrared"]}, names=names)
    with pytest.raises(MaemmError, match="holds no samples of named channels"):
        open_named_channels(str(tmp_path / "all.npz"), channels={"x": ["infrared"]})


def test_the_sample_set_is_repeatable(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, count=6)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 18
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for kind in ("depth", "label_map"):
        registry.find("samples", kind)(tmp_path / kind, count=6)
        assert len(list((tmp_path / kind).rglob("*.png"))) == 6
    assert os.path.exists(tmp_path / "depth" / "cone" / "0000.png")


def test_depth_of_a_device_crop():
    """Batches of equal files may be cropped on the device; depth as pictures."""
    depth = Depth(size=16, patch=4, device_crop=True, crop={"scale": [0.5, 0.5], "ratio": [1.0, 1.0]}, trim=None)
    loaded = depth.load(np.random.default_rng(0).random((32, 32, 1)).astype(np.float32), Rng((0,)))
    assert depth.preprocess(depth.collate([loaded, loaded]), rng_of(0, 2)).x.shape == (2, 1, 16, 16)
