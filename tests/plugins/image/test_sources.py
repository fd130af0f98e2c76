import os
import pickle
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches
from maemm_plugins._images.load import read_image
from maemm_plugins.image.modality import Image as ImageModality
from maemm_plugins.image.sources import open_images

SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared"))
DRAW = Rng((0,))


def picture(height=24, width=32, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = picture() if array is None else array
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path, **options)
    return path


def read(source, index=0):
    return source.read(index, DRAW)


# ------------------------------------------------------------------------------------------------ one file
def test_colours_survive_exactly(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
        assert np.array_equal(read_image(save(tmp_path / name)), picture())


def test_content_decides_not_the_name(tmp_path):
    path = save(tmp_path / "a.png")
    path.rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), picture())
    np.save(tmp_path / "b.npy", picture())
    (tmp_path / "b.npy").rename(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png"), picture())


def test_sixteen_bits_stay(tmp_path):
    deep = np.arange(60000, 60000 + 24 * 32, dtype=np.uint16).reshape(24, 32)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert found.dtype == np.uint16 and np.array_equal(found[..., 0], deep)


def test_float_tiff_is_taken_as_it_is(tmp_path):
    Image.fromarray(np.full((4, 5), -2.5, np.float32)).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == np.full((4, 5, 1), -2.5, np.float32)).all()


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(), -1))
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (32, 24, 3)


def test_transparency_is_laid_on_the_background(tmp_path):
    rgba = np.concatenate([picture(), np.full((24, 32, 1), 255, np.uint8)], -1)
    rgba[0, 0] = (10, 20, 30, 0)
    rgba[0, 1] = (0, 0, 0, 128)
    path = save(tmp_path / "a.png", rgba)
    found = read_image(path)
    assert found[0, 0].tolist() == [255] * 3 and found[0, 1].tolist() == [127] * 3
    assert np.array_equal(found[1:], picture()[1:])
    assert read_image(path, background=0)[0, 0].tolist() == [0] * 3
    Image.fromarray(np.array([[[100, 0], [100, 255]]], np.uint8), "LA").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").tolist() == [[[255], [100]]]


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("CMYK", 3), ("YCbCr", 3)])
def test_other_modes(tmp_path, mode, channels):
    path = tmp_path / {"CMYK": "a.jpg", "YCbCr": "a.jpg"}.get(mode, "a.png")
    Image.fromarray(np.where(picture() > 127, 255, 0).astype(np.uint8)).convert(mode).save(path)
    found = read_image(path)
    assert found.shape == (24, 32, channels) and found.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == [255, 0, 0]).all()


def test_grey_pages_of_a_tiff_are_channels(tmp_path):
    pages = [Image.fromarray(picture(channels=1, seed=i)[..., 0]) for i in range(5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = read_image(tmp_path / "a.tif")
    assert found.shape == (24, 32, 5) and np.array_equal(found[..., 3:4], picture(channels=1, seed=3))
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[pages[1].resize((16, 12))])
    assert read_image(tmp_path / "b.tif").shape == (24, 32, 1)


def test_multi_channel_arrays(tmp_path):
    array = picture(channels=7)
    np.save(tmp_path / "last.npy", array)
    np.save(tmp_path / "first.npy", np.moveaxis(array, -1, 0))
    assert np.array_equal(read_image(tmp_path / "last.npy"), array)
    assert np.array_equal(read_image(tmp_path / "first.npy"), array)
    np.save(tmp_path / "grey.npy", array[..., 0].astype(">u2"))
    grey = read_image(tmp_path / "grey.npy")
    assert grey.shape == (24, 32, 1) and grey.dtype == np.uint16 and grey.dtype.isnative


# ---------------------------------------------------------------------------------------------- broken files
def png_of_size(png, side):
    """A PNG whose header claims other sides than its pixels have."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def break_files(root):
    """{file name: what the reason must say} of one file of each kind of trouble."""
    whole = save(root / "whole.jpg").read_bytes()
    large = save(root / "large.png").read_bytes()
    for name, data in {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": large[: len(large) // 2],
        "header.jpg": whole[:20],
        "empty.jpg": b"",
        "noise.png": np.random.default_rng(0).bytes(20000),
        "text.jpg": b"<html>404 not found</html>",
        "pdf.png": b"%PDF-1.4\n%\xe2\xe3\n1 0 obj",
        "damaged.png": large[:80] + b"\0" * 40 + large[120:],
        "bomb.png": png_of_size(large, 60000),
        "no_pixels.png": png_of_size(large, 0),
    }.items():
        (root / name).write_bytes(data)
    np.save(root / "complex.npy", np.ones((4, 4), complex))
    np.save(root / "wide.npy", np.ones((4, 4), np.int64))
    np.save(root / "flat.npy", np.ones(4, np.uint8))
    np.save(root / "hollow.npy", np.ones((4, 0, 3), np.uint8))
    np.save(root / "nan.npy", np.full((4, 4), np.nan, np.float32))
    np.save(root / "objects.npy", np.array([[{}]], object), allow_pickle=True)
    saved = (root / "wide.npy").read_bytes()
    (root / "promising.npy").write_bytes(saved.replace(b"(4, 4)", b"(4,99)"))
    (root / "nowhere.png").symlink_to(root / "missing.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "whole.jpg").unlink()
    (root / "large.png").unlink()
    return {
        "truncated.jpg": "runcated",
        "truncated.png": "",
        "header.jpg": "",
        "empty.jpg": "empty file (0 bytes)",
        "noise.png": "not a readable image",
        "text.jpg": "not a readable image (starts with b'<html>40')",
        "pdf.png": "not a readable image",
        "damaged.png": "",
        "bomb.png": "data.source.most_pixels",
        "no_pixels.png": "",
        "complex.npy": "complex128",
        "wide.npy": "int64",
        "flat.npy": "2 or 3 dimensions",
        "hollow.npy": "no pixels",
        "nan.npy": "16 pixels are not finite",
        "objects.npy": "ValueError",
        "promising.npy": "",
        "nowhere.png": "FileNotFoundError",
        "loop.png": "OSError",
    }


def test_every_kind_of_broken_file_is_counted_and_named(tmp_path):
    says = break_files(tmp_path)
    save(tmp_path / "good.png")
    source = open_images(str(tmp_path))
    modalities = {"image": ImageModality(size=16, patch=8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = Loader(source, modalities, SequentialBatches(len(source), 8), seed=0, augment=False, substitute=False)
        batches = list(loader.batches(0, 3))
    assert [name for b in batches for name in b.ids] == ["good.png"]
    found = {one.id: one.reason for b in batches for one in b.bad}
    assert set(found) == set(says) and len(found) >= 12
    for name, text in says.items():
        assert text in found[name] and "\n" not in found[name] and str(tmp_path) not in found[name], found[name]


def test_a_list_may_name_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "list.txt").write_text("pipe.png\nfolder.png\nmissing.png\n")
    source = open_images(str(tmp_path / "list.txt"))
    for index, says in enumerate(("not an ordinary file", "Is a directory", "No such file")):
        with pytest.raises((OSError, ValueError), match=says):
            read(source, index)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_bad_sample(tmp_path):
    save(tmp_path / "a.png").chmod(0)
    with pytest.raises(PermissionError):
        read(open_images(str(tmp_path)))


def test_truncated_files_fail_even_if_another_package_allowed_them(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    data = save(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="(?i)truncated"):
        read_image(tmp_path / "a.jpg")


# -------------------------------------------------------------------------------------------------- folders
def test_a_folder_is_searched_through(tmp_path):
    for name in ("b/2.png", "a.PNG", "b/c/1.jpg", ".hidden.png", ".cache/3.png", "b/._2.png"):
        save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("x")
    source = open_images(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["a.PNG", "b/2.png", "b/c/1.jpg"]
    assert source.classes is None and read(source).label is None and read(source).id == "a.PNG"


def test_class_folders_give_labels(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        save(tmp_path / name)
    source = open_images(str(tmp_path))
    assert source.classes == ["cat", "dog"]
    assert [read(source, i).label for i in range(3)] == [0, 0, 1]


def test_one_class_or_deeper_folders_give_none(tmp_path):
    save(tmp_path / "one" / "images" / "1.png")
    assert open_images(str(tmp_path / "one")).classes is None
    save(tmp_path / "one" / "more" / "deeper" / "1.png")
    assert open_images(str(tmp_path / "one")).classes is None


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path / "root" / "a" / "1.png")
    save(tmp_path / "far" / "2.png")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "root" / "z").symlink_to(tmp_path / "far")
    source = open_images(str(tmp_path / "root"))
    assert [source.name(i) for i in range(len(source))] == ["a/1.png", "far/2.png"]


def test_names_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.fromarray(picture()).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", path)
    sample = read(open_images(str(tmp_path)))
    assert sample.id == r"caf\xe9.png" and sample.raw["image"].shape == (24, 32, 3)


def test_a_fingerprint_follows_the_files_and_not_the_folder(tmp_path):
    for root in ("one", "two", "three"):
        save(tmp_path / root / "a.png")
    save(tmp_path / "three" / "b.png")
    one, two, three = (open_images(str(tmp_path / root)).fingerprint() for root in ("one", "two", "three"))
    assert one == two != three


# ---------------------------------------------------------------------------------------------------- lists
LISTS = {
    "plain.txt": ("my cat.png\n\n# a remark\nsub/dog.png\n", [None, None], None),
    "blank.txt": ("my cat.png 3\nsub/dog.png 0\n", [3, 0], None),
    "quoted.txt": (
        'path\n"my cat.png", cat\n"sub/dog.png" dog\n',
        [0, 1],
        ["cat", "dog"],
    ),
    "tab.txt": (
        "path\tlabel\nmy cat.png\tcat\nsub/dog.png\tdog\n",
        [0, 1],
        ["cat", "dog"],
    ),
    "bare.csv": ('"my cat.png",1\nsub/dog.png,\n', [1, None], None),
    "header.csv": ("\ufeffid,label,path\n7,dog,my cat.png\n8,cat,sub/dog.png\n", [1, 0], ["cat", "dog"]),
    "unlabelled.csv": ("path,remark\nmy cat.png,nice\nsub/dog.png,\n", [None, None], None),
    "table.tsv": ("file\tclass\r\nmy cat.png\tb\r\nsub/dog.png\ta\r\n", [1, 0], ["a", "b"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    text, labels, classes = LISTS[name]
    save(tmp_path / "my cat.png")
    save(tmp_path / "sub" / "dog.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = open_images(str(tmp_path / name))
    assert [source.name(i) for i in range(len(source))] == ["my cat.png", "sub/dog.png"]
    assert [read(source, i).label for i in range(2)] == labels and source.classes == classes


def test_a_list_relative_to_the_root_or_to_itself(tmp_path):
    save(tmp_path / "data" / "a.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("a.png\n")
    assert len(read(open_images(str(tmp_path / "data"), str(tmp_path / "lists" / "l.txt"))).raw["image"])
    (tmp_path / "data" / "l.txt").write_text("a.png\n")
    assert len(read(open_images(str(tmp_path / "lists"), str(tmp_path / "data" / "l.txt"))).raw["image"])


# --------------------------------------------------------------------------------------------------- arrays
def arrays(channels=3):
    return np.random.default_rng(0).integers(0, 256, (6, 8, 10, channels), dtype=np.uint8)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_npy_in_either_order(tmp_path, first, channels):
    stored = arrays(channels)
    np.save(tmp_path / "a.npy", np.moveaxis(stored, -1, 1) if first else stored)
    source = open_images(str(tmp_path / "a.npy"))
    assert len(source) == 6 and np.array_equal(read(source, 4).raw["image"], stored[4])
    assert read(source, 4).id == "a.npy#4"


def test_the_order_can_be_said(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 8, 3, 9), np.uint8))
    assert read(open_images(str(tmp_path / "a.npy"), channels_first=False)).raw["image"].shape == (8, 3, 9)
    assert read(open_images(str(tmp_path / "a.npy"))).raw["image"].shape == (3, 9, 8)


def test_npy_is_mapped_and_travels_by_name(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1000, 32, 32, 3), np.uint8))
    source = open_images(str(tmp_path / "a.npy"))
    sent = pickle.dumps(source)
    assert len(sent) < 5000
    sample = read(pickle.loads(sent), 3).raw["image"]
    sample[0] = 1  # a copy: the file is read only
    assert not read(source, 3).raw["image"].any()


def test_npz_with_labels(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", y=np.arange(6)[:, None], x=arrays(), other=np.zeros((2, 3, 4)))
    source = open_images(str(tmp_path / "a.npz"))
    assert np.array_equal(read(source, 5).raw["image"], arrays()[5]) and read(source, 5).label == 5
    np.savez(tmp_path / "b.npz", whatever=arrays()[..., 0], names=np.array(["a"] * 6))
    assert read(open_images(str(tmp_path / "b.npz"))).raw["image"].shape == (8, 10, 1)


# --------------------------------------------------------------------------------------------------- errors
def test_what_cannot_be_opened(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    def array(name, **arrays):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    (tmp_path / "hollow").mkdir()
    np.save(tmp_path / "wide.npy", np.zeros((2, 3, 4), np.int64))
    np.save(tmp_path / "flat.npy", np.zeros(4, np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    x = arrays()
    for arguments, says in {
        (None,): "set data.root",
        ("",): "set data.root",
        (str(tmp_path / "missing"),): "No such file or directory); check the path",
        ("nul\0byte",): "check the path",
        (str(tmp_path / "hollow"),): "looked for files that end in .jpg",
        (write("a.mp4", b"x"),): "file of no known kind",
        (None, str(tmp_path / "no.txt")): "data.list cannot be opened",
        (str(tmp_path), str(tmp_path / "wide.npy")): "give it as data.root",
        (str(tmp_path / "wide.npy"), write("l.txt", b"a.png\n")): "data.root is no folder",
        (write("empty.txt", b"\n# nothing\n"),): "names no file",
        (write("binary.txt", b"\xff\xd8\0\0"),): "not text",
        (write("mixed.csv", b"a.png,1\nb.png,cat\n"),): "both numbers and words",
        (write("odd.csv", b"foo,bar\na.png,1\n"),): "no column of paths",
        (write("hole.csv", b"path,label\n,1\n"),): "has no path",
        (str(tmp_path / "wide.npy"),): "int64",
        (str(tmp_path / "flat.npy"),): "3 or 4 dimensions",
        (str(tmp_path / "none.npy"),): "no pixels",
        (str(tmp_path / "objects.npy"),): "Python objects",
        (write("junk.npy", b"junk"),): "cannot read the array",
        (write("junk.npz", b"PK\x03\x04junk"),): "cannot read the array",
        (write("cut.npz", Path(array("whole.npz", x=x)).read_bytes()[:500]),): "cannot read the array",
        (array("two.npz", a=x, b=x),): "cannot tell which array",
        (array("few.npz", x=x, y=np.arange(5)),): "labels have shape (5,)",
        (array("words.npz", x=x, y=np.array(["a"] * 6)),): "labels have shape",
    }.items():
        with pytest.raises(MaemmError) as error:
            open_images(*arguments)
        assert says in str(error.value) and "\n" not in str(error.value), (arguments, str(error.value))


# ------------------------------------------------------------------------------------------------- odd.tar
ODD = {
    "i_ok.jpg": ((128, 160, 3), "uint8"),
    "i_png_named.jpg": ((288, 360, 3), "uint8"),
    "i_truncated.jpg": "truncated",
    "i_header_only.jpg": "a damaged JPEG file",
    "i_zero_bytes.jpg": "empty file",
    "i_gray16.png": ((288, 360, 1), "uint16"),
    "i_gray8.jpg": ((128, 160, 1), "uint8"),
    "i_1bit.png": ((128, 160, 1), "uint8"),
    "i_cmyk.jpg": ((128, 160, 3), "uint8"),
    "i_animated.gif": ((128, 160, 3), "uint8"),
    "i_palette_alpha.png": ((128, 160, 3), "uint8"),
    "i_rgba.png": ((128, 160, 3), "uint8"),
    "i_exif_rotate6.jpg": ((160, 128, 3), "uint8"),
    "i_161x121.png": ((121, 161, 3), "uint8"),
    "i_1x1.png": ((1, 1, 3), "uint8"),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    archive = SHARED / "data" / "odd.tar"
    if not archive.exists():
        pytest.skip("the awkward files are not here; set MAEMM_SHARED")
    folder = tmp_path_factory.mktemp("odd")
    with tarfile.open(archive) as tar:
        members = [one for one in tar if Path(one.name).name.startswith("i_")]
        tar.extractall(folder, members, filter="data")
    return folder / "odd"


def test_awkward_files(odd):
    assert {path.name for path in odd.iterdir()} == set(ODD)
    for name, expected in ODD.items():
        if isinstance(expected, str):
            with pytest.raises((OSError, ValueError), match=expected):
                read_image(odd / name)
        else:
            found = read_image(odd / name)
            assert (found.shape, found.dtype.name) == expected, name


def test_sixteen_bits_are_not_clipped(odd):
    deep = read_image(odd / "i_gray16.png")
    x = ImageModality(size=(288, 360), patch=8, channels=1).load(deep, None)["x"]
    assert np.allclose(x[0].numpy(), deep[..., 0] / 65535, atol=1e-6) and 0.9 < x.max() < 1


def test_awkward_files_as_a_data_set(odd):
    source = open_images(str(odd))
    loader = Loader(
        source, {"image": ImageModality(size=64, patch=8)}, SequentialBatches(len(source), 8), seed=0, substitute=False
    )
    batches = list(loader.batches(0, 2))
    assert sorted(one.id for b in batches for one in b.bad) == [
        "i_header_only.jpg",
        "i_truncated.jpg",
        "i_zero_bytes.jpg",
    ]
    assert sum(len(b.raw["image"]["x"]) for b in batches) == 12
