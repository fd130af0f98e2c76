import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from maemm.config import options
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins._images.boxes import DRAWS, random_box
from maemm_plugins.image.modality import IMAGENET_MEAN, IMAGENET_STD, Image
from maemm_plugins.image.preprocess import crop_resize

BICUBIC = v2.InterpolationMode.BICUBIC
RANGE = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}


def picture(height=50, width=70, channels=3, seed=0):
    smooth = np.random.default_rng(seed).random((height // 5, width // 5, channels)).repeat(5, 0).repeat(5, 1)
    return (smooth * 255).astype(np.uint8)


def chw(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def rng(seed=0, rows=1):
    return Rng((seed,), range(rows), rows)


def undo(image, preprocessed):
    """Pixels 0 .. 255 of a prepared batch."""
    return image.denormalize_input(preprocessed.x) * 255


# -------------------------------------------------------------------------------------------------- crop boxes
def boxes(height, width, count, **limits):
    uniform = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(0)).tolist()
    return np.array([random_box(one, height, width, **{**RANGE, **limits}) for one in uniform])


def test_boxes_follow_torchvisions_distribution():
    height, width, count = 100, 140, 4000
    ours = boxes(height, width, count)
    transform = v2.RandomResizedCrop(8, **RANGE)
    blank = torch.zeros(1, height, width, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([blank]) for _ in range(count)]
    theirs = np.array([[one[key] for key in ("top", "left", "height", "width")] for one in params])
    for k in range(4):
        sides = np.sort(ours[:, k]), np.sort(theirs[:, k])
        assert np.abs(sides[0] - sides[1]).mean() < 2.5  # the distance between the two distributions, in pixels
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    area, aspect = ours[:, 2] * ours[:, 3] / (height * width), ours[:, 3] / ours[:, 2]
    assert 0.19 < area.min() < 0.22 and area.max() > 0.9
    assert 0.73 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.37


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 300)])
def test_boxes_where_none_fits_are_torchvisions(height, width):
    limits = {"scale": (0.99, 1.0), "ratio": (3 / 4, 4 / 3)}
    blank = torch.zeros(1, height, width, dtype=torch.uint8)
    params = v2.RandomResizedCrop(8, **limits).make_params([blank])
    expected = tuple(params[key] for key in ("top", "left", "height", "width"))
    assert tuple(boxes(height, width, 1, **limits)[0]) == expected


# ------------------------------------------------------------------------------------------------ in the worker
def test_a_training_crop_is_torchvisions_resized_crop():
    image, raw = Image(size=32, patch=8), picture()
    for seed in range(5):
        top, left, height, width = random_box(rng(seed).uniform("crop", DRAWS)[0].tolist(), 50, 70, **RANGE)
        expected = F.resized_crop(chw(raw), top, left, height, width, [32, 32], BICUBIC, antialias=True)
        found = image.load(raw, rng(seed))["x"]
        assert found.dtype == torch.uint8 and torch.equal(found, expected)


def test_evaluation_is_resize_and_centre_crop():
    raw = picture(300, 415)
    expected = v2.Compose([v2.Resize(256, BICUBIC, antialias=True), v2.CenterCrop(224)])(chw(raw))
    assert torch.equal(Image().load(raw, None)["x"], expected)
    raw = raw.transpose(1, 0, 2).copy()
    expected = v2.Compose([v2.Resize(384, BICUBIC, antialias=True), v2.CenterCrop(384)])(chw(raw))
    assert torch.equal(Image(size=384).load(raw, None)["x"], expected)


def test_evaluation_of_other_shapes():
    raw = picture()
    same = Image(size=(50, 70), patch=10)
    assert torch.equal(same.load(raw, None)["x"], chw(raw))
    for size in ((40, 64), (64, 40), (8, 120)):
        assert Image(size=size, patch=8).load(raw, None)["x"].shape == (3, *size)


def test_one_pixel_becomes_a_picture():
    raw = np.full((1, 1, 3), 77, np.uint8)
    image = Image(size=16, patch=8)
    assert (image.load(raw, None)["x"] == 77).all() and (image.load(raw, rng())["x"] == 77).all()


def test_crop_options():
    raw = picture()
    centre, whole = Image(size=32, patch=8, crop="center"), Image(size=32, patch=8, crop=None)
    assert torch.equal(centre.load(raw, rng())["x"], centre.load(raw, None)["x"])
    expected = F.resize(chw(raw), [32, 32], BICUBIC, antialias=True)
    assert torch.equal(whole.load(raw, rng())["x"], expected) and torch.equal(whole.load(raw, None)["x"], expected)
    narrow = Image(size=32, patch=8, crop={"scale": (1.0, 1.0), "ratio": (1.4, 1.4)})
    assert torch.equal(narrow.load(raw, rng())["x"], expected)


def test_grey_and_colour():
    grey, colour = picture(channels=1), picture()
    three, one, five = (Image(size=32, patch=8, channels=n) for n in (3, 1, 5))
    x = three.load(grey, rng())["x"]
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
    assert five.load(grey, rng())["x"].shape == (5, 32, 32)
    flat = np.zeros((32, 32, 3), np.uint8) + np.array([100, 50, 200], np.uint8)
    assert (one.load(flat, None)["x"] == round(100 * 0.299 + 50 * 0.587 + 200 * 0.114)).all()
    with pytest.raises(ValueError, match="has 3 channels, the model takes 5"):
        five.load(colour, rng())
    with pytest.raises(ValueError, match="has 5 channels, the model takes 3"):
        three.load(picture(channels=5), rng())
    assert five.load(picture(channels=5), rng())["x"].shape == (5, 32, 32)


def test_sixteen_bits_keep_their_precision():
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1)
    image = Image(size=64, patch=8, channels=1, flip=False)
    x = image.load(ramp, None)["x"]
    assert x.dtype == torch.float32 and len(x.unique()) == 4096
    batch = image.collate([{"x": x}, image.load((ramp // 257).astype(np.uint8), None)])
    deep, shallow = image.denormalize_input(image.preprocess(batch, None).x)
    assert (deep - shallow).abs().max() <= 1 / 255 and deep.min() >= -1e-6 and deep.max() <= 1 + 1e-6


def test_floats_are_taken_as_they_are():
    raw = np.random.default_rng(0).random((32, 32, 2)).astype(np.float32)
    plain = Image(size=32, patch=8, channels=2)
    assert torch.equal(plain.load(raw, None)["x"], chw(raw))
    with pytest.raises(ValueError, match="not 0 to 1; set mean and std"):
        plain.load(raw * 255, rng())
    given = Image(size=32, patch=8, channels=2, mean=[1000, 10], std=[200, 5], flip=False)
    preprocessed = given.preprocess({"x": given.load(raw * 2000, None)["x"][None]}, None)
    assert torch.allclose(preprocessed.x[0, 0], (chw(raw)[0] * 2000 - 1000) / 200)


# ------------------------------------------------------------------------------------------------ on the device
def test_prepare_normalises():
    image = Image(size=32, patch=8)
    x = torch.stack([chw(picture(40, 40, seed=i))[:, :32, :32] for i in range(2)])
    mean, std = (torch.tensor(one)[:, None, None] for one in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (x.float() / 255 - mean) / std
    preprocessed = image.preprocess({"x": x}, None)
    assert preprocessed.x.dtype == torch.float32 and torch.allclose(preprocessed.x, expected, atol=1e-6)
    assert torch.allclose(undo(image, preprocessed), x.float(), atol=1e-3)


def test_half_of_a_batch_is_flipped_whatever_the_split():
    image = Image(size=32, patch=8)
    x = chw(picture(35, 35))[None, :, :32, :32].expand(64, -1, -1, -1)
    whole = image.preprocess({"x": x}, rng(3, 64)).x
    straight = image.preprocess({"x": x}, None).x
    turned = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(whole, straight, strict=True)]
    kept = [bool(torch.equal(a, b)) for a, b in zip(whole, straight, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True)) and 16 < sum(turned) < 48
    part = Rng((3,), range(20, 30), 64)
    assert torch.equal(image.preprocess({"x": x[20:30]}, part).x, whole[20:30])
    assert torch.equal(Image(size=32, patch=8, flip=False).preprocess({"x": x}, rng(3, 64)).x, straight)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (7, 90)])
def test_crops_on_the_device_are_antialiased_as_torchs(kernel, size):
    x = torch.stack([chw(picture(50, 70, seed=i)) for i in range(4)]).float()
    cut = torch.tensor([[0, 0, 50, 70], [3, 5, 20, 31], [49, 69, 1, 1], [10, 0, 40, 11]])
    found = crop_resize(x, cut, size, kernel)
    for i, (top, left, height, width) in enumerate(cut.tolist()):
        mode = v2.InterpolationMode(kernel)
        expected = F.resized_crop(x[i], top, left, height, width, list(size), mode, antialias=True)
        assert torch.allclose(found[i], expected, atol=2e-2)


def test_device_crop_equals_the_workers_crop():
    # Little contrast: between its two passes the worker's kernel cuts what overshoots 0 or 255.
    raw, options = picture(60, 60) // 3 + 80, {"size": 32, "patch": 8, "flip": False}
    worker, device = Image(**options), Image(**options, device_crop=True)
    stored = device.load(raw, rng())["x"]
    assert torch.equal(stored, chw(raw))
    for one in (rng(5), None):
        expected = worker.preprocess({"x": worker.load(raw, one)["x"][None]}, None)
        found = device.preprocess({"x": stored[None]}, one)
        difference = undo(worker, expected) - undo(device, found)
        assert difference.abs().max() < 1.1  # the worker rounds to whole grey levels


def test_device_crops_differ_between_rows_and_not_between_splits():
    image = Image(size=32, patch=8, device_crop=True)
    x = chw(picture(35, 35))[None, :, :32, :32].expand(6, -1, -1, -1)
    whole = image.preprocess({"x": x}, rng(1, 6)).x
    assert not torch.equal(whole[0], whole[1])
    assert torch.allclose(image.preprocess({"x": x[2:5]}, Rng((1,), range(2, 5), 6)).x, whole[2:5], atol=1e-6)
    assert torch.equal(
        image.preprocess({"x": x[:1]}, None).x[0], Image(size=32, patch=8).preprocess({"x": x[:1]}, None).x[0]
    )


@pytest.mark.gpu
def test_prepare_on_a_gpu_equals_the_cpu():
    image = Image(size=32, patch=8, device_crop=True)
    x = torch.stack([chw(picture(50, 70, seed=i)) for i in range(6)])
    for one in (rng(1, 6), None):
        with torch.autocast("cuda", torch.bfloat16):
            found = image.preprocess({"x": x.cuda()}, one).x
        assert torch.allclose(found.cpu(), image.preprocess({"x": x}, one).x, atol=2e-3)


def test_device_crop_wants_one_size():
    image = Image(size=32, patch=8, device_crop=True)
    with pytest.raises(MaemmError, match="differ in size .*; set device_crop to false"):
        image.collate([image.load(picture(), rng()), image.load(picture(55, 70), rng())])


# ---------------------------------------------------------------------------------------- the modality as a whole
def test_tokens_and_pictures():
    image = Image(size=32, patch=8)
    preprocessed = image.preprocess({"x": chw(picture(35, 35))[None, :, :32, :32]}, None)
    tokens = image.tokenize(preprocessed)
    assert tokens.values.shape == (1, 16, 192)
    assert torch.equal(image.untokenize(tokens.values, tokens), preprocessed.x)
    assert image.example(4, rng(rows=4)).x.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_drawing_undoes_the_normalisation_and_shows_what_is_hidden(channels):
    class Axes:
        def set_axis_off(self):
            pass

        def imshow(self, pixels, **options):
            self.pixels = pixels

    image, axes = Image(size=32, patch=8, channels=channels), Axes()
    raw = picture(35, 35, channels)[:32, :32]
    signal = image.preprocess({"x": chw(raw)[None]}, None).x[0]
    signal[:, :8] = torch.nan
    image.plot(axes, signal)
    shown = raw[8:, :, :3] if channels >= 3 else raw[8:, :, :1].repeat(3, -1)
    assert np.allclose(axes.pixels[8:] * 255, shown, atol=1e-3) and np.allclose(axes.pixels[:8], 0.6)


def test_drawing_on_true_axes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image(size=32, patch=8)
        axes = Figure().subplots()
        image.plot(axes, torch.randn(3, 32, 32))
    assert len(axes.images) == 1


def test_nothing_of_the_data_statistics_is_stored():
    image = Image(size=32, patch=8)
    image.preprocess({"x": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, None)
    assert not image.state_dict()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mean": [0.5]}, "mean has 1 numbers for 3 channels"),
        ({"std": [1, 1, 0]}, "std must be [float > 0, ...]"),
        ({"crop": {"scale": (0.5, 0.2)}}, "crop.scale"),
        ({"crop": {"scale": (0, 1)}}, "crop.scale"),
        ({"crop": {"ratio": (0, 1)}}, "crop.ratio"),
        ({"crop": "middle"}, "crop must be {scale, ratio} | 'center' | null"),
        ({"center": 0.0}, "center must be 0 < float <= 1"),
        ({"size": (8, 8, 8)}, "two axes"),
        ({"size": 30}, "30"),
    ],
)
def test_options_that_make_no_sense(given, says):
    with pytest.raises(MaemmError) as error:
        Image(**options.check(Image, {"size": 32, "patch": 8, **given}, "modalities.image"))
    assert says in str(error.value)


def test_options_as_a_recipe_writes_them():
    given = {"size": [32, 64], "patch": 8, "crop": {"scale": [0.5, 1.0]}, "mean": [0.5, 0.5, 0.5], "normalize": "patch"}
    image = Image(**options.check(Image, given, "modalities.image"))
    assert image.crop.scale == (0.5, 1.0) and image.size == (32, 64)
    described = {one.name: one for one in options.describe(Image)}
    assert all(one.doc for one in described.values()) and {"crop", "position", "normalize"} <= set(described)
    for wrong in ({"crop": {"scales": [0.5, 1.0]}}, {"crop": "middle"}, {"flip": 1}, {"croop": None}):
        with pytest.raises(MaemmError):
            options.check(Image, wrong, "modalities.image")
