"""TIFF of many bands, of floats and of 64 bits; what Pillow would drop or refuse; and pictures of many pixels."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm_plugins._images.load import read_image
from maemm_plugins.image.modality import Image as ImageModality
from maemm_plugins.image.sources import open_images

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (16, 20, 13), dtype=np.uint8)
KINDS = {  # name -> (array as written, options of tifffile, array as read)
    "rgb and near infrared": (BYTES[..., :4], {"photometric": "rgb", "extrasamples": ["unspecified"]}, BYTES[..., :4]),
    "five bands": (BYTES[..., :5], {"photometric": "minisblack"}, BYTES[..., :5]),
    "four bands of 16 bits": (BYTES[..., :4] * np.uint16(257), {"photometric": "minisblack"}, None),
    "thirteen planes of floats": (
        np.moveaxis(BYTES / np.float32(255), -1, 0),
        {"photometric": "minisblack", "planarconfig": "separate"},
        BYTES / np.float32(255),
    ),
    "float colours": (BYTES[..., :3] / np.float32(255), {"photometric": "rgb"}, None),
    "grey of 64 bits": (BYTES[..., 0] / 255, {}, (BYTES[..., :1] / 255).astype(np.float32)),
    "compressed bands": (BYTES[..., :5], {"photometric": "minisblack", "compression": "zlib", "predictor": True}, None),
    "big": (BYTES[..., :5], {"photometric": "minisblack", "bigtiff": True}, None),
    "tiles": (np.tile(BYTES, (4, 4, 1)), {"photometric": "minisblack", "tile": (32, 32)}, None),
    "bands on two pages": (np.stack([BYTES[..., :5], BYTES[..., 5:10]]), {"photometric": "minisblack"}, BYTES[..., :5]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_band_is_read(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")
    stored, options, expected = KINDS[kind]
    options = {"planarconfig": "contig"} | options if stored.ndim > 2 else options
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    image = read_image(tmp_path / "a.tif")
    expected = stored if expected is None else expected
    assert image.dtype == expected.dtype and np.array_equal(image, expected)


def test_lossy_and_old_compressions(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    for compression in ("lzw", "zstd", "lzma"):
        bands = {"photometric": "minisblack", "planarconfig": "contig", "compression": compression}
        tifffile.imwrite(tmp_path / "a.tif", BYTES, **bands)
        assert np.array_equal(read_image(tmp_path / "a.tif"), BYTES)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_bands(tmp_path, orientation):
    """As Pillow turns the colours of the same file."""
    tifffile = pytest.importorskip("tifffile")
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", BYTES[..., :3], photometric="rgb", extratags=tags)
    bands = {"photometric": "minisblack", "planarconfig": "contig", "extratags": tags}
    tifffile.imwrite(tmp_path / "b.tif", BYTES[..., :5], **bands)
    assert np.array_equal(read_image(tmp_path / "b.tif")[..., :3], read_image(tmp_path / "a.tif"))


def test_what_pillow_reads_stays_as_it_is(tmp_path):
    """Transparency, grey, palettes, CMYK: no other package decides what they become."""
    image = Image.fromarray(BYTES[..., :3])
    for mode in ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1"):
        image.convert(mode).save(tmp_path / "a.tif")
        image.convert(mode).save(tmp_path / "a.png") if mode != "CMYK" else None
        read = read_image(tmp_path / "a.tif")
        assert read.shape[-1] in (1, 3)
        if mode != "CMYK":
            assert np.array_equal(read, read_image(tmp_path / "a.png"))


def test_the_model_is_told_the_true_number_of_channels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", BYTES[..., :4], photometric="rgb", extrasamples=["unspecified"])
    raw = open_images(str(tmp_path)).read(0, Rng((0,))).raw["image"]
    with pytest.raises(ValueError, match="4 channels"):
        ImageModality(size=16, patch=8).load(raw, None)
    four = ImageModality(size=16, patch=8, channels=4, mean=[0.5] * 4, std=[0.2] * 4)
    assert four.load(raw, None)["x"].shape == (4, 16, 16)


@pytest.mark.parametrize("kind", ["rgb and near infrared", "five bands", "float colours", "grey of 64 bits"])
def test_without_the_package_the_reason_is_true(tmp_path, monkeypatch, kind):
    tifffile = pytest.importorskip("tifffile")
    stored, options, _ = KINDS[kind]
    options = {"planarconfig": "contig"} | options if stored.ndim > 2 else options
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"more bands than RGB, float colours or 64 bits.*pip install 'maemm\[tiff\]'"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.complex64])
def test_types_without_a_scale(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    bands = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", BYTES[..., :5].astype(dtype), **bands)
    with pytest.raises(ValueError, match=f"pixels are {np.dtype(dtype)}, which does not say what white is"):
        read_image(tmp_path / "a.tif")


def test_damaged_tiffs_are_unreadable_in_silence(tmp_path, capfd):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", BYTES, photometric="minisblack", planarconfig="contig", compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    for seed in range(30):
        data = bytearray(whole[: len(whole) // (1 + seed % 3)])
        for at in np.random.default_rng(seed).integers(4, len(data), 20):
            data[at] ^= 255
        (tmp_path / "a.tif").write_bytes(data)
        try:
            read_image(tmp_path / "a.tif")
        except (ValueError, OSError) as error:
            assert str(error) and "\n" not in str(error)
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ many pixels
def test_pictures_of_many_pixels_by_an_option(tmp_path):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    source = open_images(str(tmp_path), most_pixels=50_000)
    with pytest.raises(ValueError, match=r"60,000 pixels are more than 50,000 \(data.source.most_pixels\)"):
        source.read(0, Rng((0,)))
    assert open_images(str(tmp_path), most_pixels=60_000).read(0, Rng((0,))).raw["image"].shape == (200, 300, 1)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit is back
    with pytest.raises(MaemmError, match="most_pixels must be int >= 1"):
        check(open_images, {"most_pixels": 0}, "data.source")


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif"])
def test_pictures_beyond_pillows_limit(tmp_path, ending, monkeypatch):
    """What a camera of 200 megapixels writes is refused with the name of the option, in any format."""
    monkeypatch.setattr("maemm_plugins.image.sources.MOST_PIXELS", 1000)
    Image.new("L", (60, 40)).save(tmp_path / f"a.{ending}")
    with pytest.raises(ValueError, match=r"2,400 pixels are more than 1,000 \(data.source.most_pixels\)"):
        open_images(str(tmp_path)).read(0, Rng((0,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_images(str(tmp_path), most_pixels=2400).read(0, Rng((0,))).raw["image"].size in (2400, 7200)


def test_many_pixels_of_many_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", BYTES, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"320 pixels are more than 319 \(data.source.most_pixels\)"):
        open_images(str(tmp_path), most_pixels=319).read(0, Rng((0,)))
    assert open_images(str(tmp_path), most_pixels=2000).read(0, Rng((0,))).raw["image"].shape == (16, 20, 13)
