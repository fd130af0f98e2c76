"""Reading point clouds: every format, many clouds in a file, and what must be refused."""

import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches
from maemm_plugins.pointcloud.modality import PointCloud
from maemm_plugins.pointcloud.readers import read_cloud
from maemm_plugins.pointcloud.readers.pcd import unpack_lzf
from maemm_plugins.pointcloud.readers.pick import Reading
from maemm_plugins.pointcloud.sources import open_pointclouds

DRAW = Rng((0,))
CLOUD = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
DATA = Path(os.environ.get("MAEMM_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))


def read(path, **how):
    return np.asarray(read_cloud(path, Reading(**how), DRAW))


def pcd_header(count, stored, fields="x y z", sizes="4 4 4", types="F F F"):
    n = len(fields.split())
    return (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\nCOUNT {' '.join('1' * n)}\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {stored}\n"
    ).encode()


def ply_header(count, order="binary_little_endian", more="", types="float float float"):
    x, y, z = types.split()
    return (
        f"ply\nformat {order} 1.0\ncomment made by hand\nelement vertex {count}\n{more}"
        f"property {x} x\nproperty {y} y\nproperty {z} z\nend_header\n"
    ).encode()


def lzf_literals(data):
    """LZF without compression: runs of at most 32 bytes."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def text_of(cloud, separator=" ", head="", tail=""):
    return (head + "".join(separator.join(f"{v:.9g}" for v in row) + tail + "\n" for row in cloud)).encode()


def write_all(folder):
    """The same cloud in every format: {file: bytes, or None where it is written by a library}."""
    columns = lzf_literals(np.ascontiguousarray(CLOUD.T).tobytes())
    files = {
        "blanks.xyz": text_of(CLOUD),
        "tabs.txt": text_of(CLOUD, "\t"),
        "commas.csv": text_of(CLOUD, ",", "x,y,z\n"),
        "semicolons.csv": text_of(CLOUD, "; ", '"X";"Y";"Z"\n'),
        "windows.txt": text_of(CLOUD, tail="\r"),
        "mark.xyz": b"\xef\xbb\xbf" + text_of(CLOUD),
        "comments.xyz": text_of(CLOUD, head="# from a scanner\n// x y z\n\n"),
        "counted.pts": text_of(CLOUD, head="40\n"),
        "ascii.ply": ply_header(40, "ascii") + text_of(CLOUD),
        "little.ply": ply_header(40) + CLOUD.tobytes(),
        "big.ply": ply_header(40, "binary_big_endian") + CLOUD.astype(">f4").tobytes(),
        "double.ply": ply_header(40, types="double double double") + CLOUD.astype("<f8").tobytes(),
        "ascii.pcd": pcd_header(40, "ascii") + text_of(CLOUD),
        "binary.pcd": pcd_header(40, "binary") + CLOUD.tobytes(),
        "packed.pcd": pcd_header(40, "binary_compressed") + struct.pack("<II", len(columns), CLOUD.nbytes) + columns,
        "points.off": b"OFF\n40 0 0\n" + text_of(CLOUD),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    np.save(folder / "plain.npy", CLOUD)
    np.save(folder / "one.npy", CLOUD[None].astype(np.float64))
    np.savez(folder / "packed.npz", points=CLOUD, normals=CLOUD)
    return [*files, "plain.npy", "one.npy", "packed.npz"]


def test_every_format_gives_the_same_cloud(tmp_path):
    for name in write_all(tmp_path):
        cloud = read(tmp_path / name)
        assert cloud.shape == (40, 3), name
        assert np.allclose(cloud, CLOUD, atol=1e-7), name


def test_hdf5_and_las(tmp_path):
    h5py, laspy = pytest.importorskip("h5py"), pytest.importorskip("laspy")
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["points"] = CLOUD
    assert np.array_equal(read(tmp_path / "one.h5"), CLOUD)
    for name in ("a.las", "a.laz"):
        header = laspy.LasHeader(point_format=2, version="1.2")
        header.scales, header.offsets = np.full(3, 1e-4), np.array([6e5, 5e6, 0])
        las = laspy.LasData(header)
        las.x, las.y, las.z = (CLOUD.astype(np.float64) + [6e5, 5e6, 0]).T
        las.red = np.full(40, 65535, np.uint16)
        las.write(tmp_path / name)
        cloud = read(tmp_path / name, columns=("x", "y", "z", "red"))
        assert np.allclose(cloud[:, :3], CLOUD.astype(np.float64) + [6e5, 5e6, 0], atol=1e-4)
        assert (cloud[:, 3] == 1).all()
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut{name}").write_bytes(whole[: len(whole) - 100])
        with pytest.raises(ValueError):
            read(tmp_path / f"cut{name}")


def test_content_decides_where_it_tells(tmp_path):
    np.save(tmp_path / "a.npy", CLOUD)
    (tmp_path / "a.npy").rename(tmp_path / "a.xyz")
    assert np.array_equal(read(tmp_path / "a.xyz"), CLOUD)


# --------------------------------------------------------------------------------------------------- columns
def test_columns_by_name_and_number(tmp_path):
    (tmp_path / "a.csv").write_text("label,Z,Y,X,i\n7,3,2,1,0.5\n7,6,5,4,0.5\n")
    assert read(tmp_path / "a.csv").tolist() == [[1, 2, 3, 7, 0.5], [4, 5, 6, 7, 0.5]]
    assert read(tmp_path / "a.csv", columns=("x", "y", "z", 4)).tolist() == [[1, 2, 3, 0.5], [4, 5, 6, 0.5]]
    with pytest.raises(ValueError, match="no column 'nx'; the file has label, z, y, x, i"):
        read(tmp_path / "a.csv", columns=("x", "nx"))
    with pytest.raises(ValueError, match="no column 5"):
        read(tmp_path / "a.csv", columns=(0, 5))


def test_properties_by_name_and_colours_from_0_to_1(tmp_path):
    records = np.zeros(3, [("red", "u1"), ("x", "<f8"), ("y", "<f4"), ("z", "<f4"), ("nx", "<f4")])
    records["red"], records["x"], records["nx"] = [0, 51, 255], [1, 2, 3], 7
    head = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty uchar red\nproperty double x\n"
        b"property float y\nproperty float z\nproperty float nx\nend_header\n"
    )
    (tmp_path / "a.ply").write_bytes(head + records.tobytes())
    assert np.allclose(read(tmp_path / "a.ply"), [[1, 0, 0, 0, 7], [2, 0, 0, 0.2, 7], [3, 0, 0, 1, 7]])


def test_not_finite_points_stay_or_are_dropped(tmp_path):
    broken = CLOUD.copy()
    broken[[1, 5]] = np.nan
    np.save(tmp_path / "a.npy", broken)
    assert np.isnan(read(tmp_path / "a.npy")).sum() == 6  # refused when it is loaded
    assert np.array_equal(read(tmp_path / "a.npy", nonfinite="drop"), np.delete(CLOUD, [1, 5], axis=0))


def test_lzf_copies_what_it_has_just_written():
    # "ab" literally, then 8 bytes from 2 back, then 20 from 1 back (long form).
    packed = bytes([1]) + b"ab" + bytes([6 << 5, 1]) + bytes([7 << 5, 11, 0])
    assert unpack_lzf(packed, 30) == b"ab" * 5 + b"b" * 20
    for bad in (packed[:-1], bytes([6 << 5, 9]), packed + b"\x05a"):
        with pytest.raises(ValueError):
            unpack_lzf(bad, 30)


# ---------------------------------------------------------------------------------------------------- meshes
TETRAHEDRON = "OFF\n4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def test_points_on_the_surface_follow_the_draw(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "t.off").write_text(TETRAHEDRON)
    one, same = read(tmp_path / "t.off", mesh_points=4000), read(tmp_path / "t.off", mesh_points=4000)
    other = read_cloud(tmp_path / "t.off", Reading(mesh_points=4000), Rng((1,)))
    assert one.shape == (4000, 3) and np.array_equal(one, same) and not np.array_equal(one, other)
    on_plane = np.isclose(one, 0, atol=1e-9).any(1) | np.isclose(one.sum(1), 1)
    assert on_plane.all()
    # By area: three faces of 1/2 and one of sqrt(3)/2.
    assert np.isclose(one.sum(1), 1).mean() == pytest.approx(3**0.5 / (3 + 3**0.5), abs=0.03)
    assert read(tmp_path / "t.off", surface=False).shape == (4, 3)


def test_off_in_its_spellings(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "a.off").write_text(TETRAHEDRON)
    (tmp_path / "b.off").write_text(TETRAHEDRON.replace("OFF\n", "OFF").replace("\n1 0 0", " # corner\n\n1 0 0"))
    square = TETRAHEDRON.replace("COFF", "OFF").replace("3 1 2 3\n", "4 0 1 2 3 255 0 0\n")
    (tmp_path / "c.off").write_text(square)
    assert np.array_equal(read(tmp_path / "a.off"), read(tmp_path / "b.off"))
    assert len(read(tmp_path / "c.off")) == 8192


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TETRAHEDRON.replace("3 1 2 3", "3 1 2 4"), "line 10: a face with a vertex outside the 4 vertices"),
        (TETRAHEDRON.replace("4 4 6", "4 5 6"), "5 faces are declared, 8 lines follow"),
        (TETRAHEDRON.replace("4 4 6", "3 4 6"), "line 6: no face"),
        (TETRAHEDRON.replace("1 0 0", "1 0 zero"), "line 4: a vertex needs 3 numbers"),
        (TETRAHEDRON.replace("4 4 6", "99999999999 4 6"), "declares 99,999,999,999 points"),
        (TETRAHEDRON.replace("4 4 6", "four 4 6"), "does not say how many"),
        (TETRAHEDRON.replace("OFF", "Hello"), "does not begin with 'OFF'"),
        ("OFF\n2 1 0\n1 1 1\n1 1 1\n3 0 1 1\n", "no area"),
        (TETRAHEDRON.replace("1 0 0", "nan 0 0"), "1 vertices are not finite"),
    ],
)
def test_broken_off(tmp_path, text, says):
    pytest.importorskip("trimesh")
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "a.off", surface=True)


# ----------------------------------------------------------------------------------------------- broken files
class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


BROKEN = {
    "empty.xyz": (b"", "empty file"),
    "blank.xyz": (b"\n \n", "no row of numbers"),
    "words.txt": (b"hello\nworld\n", "no row of numbers"),
    "binary.xyz": (b"1 2 3\0\0\xff", "binary data"),
    "short.csv": (b"x,y,z\n1,2,3\n1,2\n", "line 3 has 2 columns, line 2 has 3"),
    "word.xyz": (b"1 2 3\n4 five 6\n", "line 2: 'five' is not a number"),
    "hole.csv": (b"1,2,3\n4,,6\n", "line 2: '' is not a number"),
    "late.csv": (b"x,y,z\na,b,c\n1,2,3\n", "no row of numbers"),
    "few.pts": (b"3\n1 2 3\n1 2 4\n", "declares 3 points"),
    "many.pts": (b"999999999999\n1 2 3\n", "declares 999,999,999,999 points"),
    "cut.ply": (ply_header(40) + CLOUD.tobytes()[:-5], "declares 40 points, but only 475 bytes follow"),
    "cut_ascii.ply": (ply_header(40, "ascii") + text_of(CLOUD[:30]), "30 rows of 3 numbers where 40 of 3"),
    "absurd.ply": (ply_header(10**12) + CLOUD.tobytes(), "declares 1,000,000,000,000 points"),
    "negative.ply": (ply_header(-1) + CLOUD.tobytes(), "declares -1 points"),
    "endless.ply": (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 9000, "header has no end"),
    "type.ply": (ply_header(40, types="float quad float"), "odd line in the PLY header"),
    "novertex.ply": (b"ply\nformat ascii 1.0\nelement camera 1\nproperty float x\nend_header\n1\n", "no vertices"),
    "cut.pcd": (pcd_header(40, "binary") + CLOUD.tobytes()[:99], "declares 40 points, but only 99 bytes follow"),
    "absurd.pcd": (pcd_header(10**12, "binary") + CLOUD.tobytes(), "declares 1,000,000,000,000 points"),
    "fields.pcd": (pcd_header(40, "binary", sizes="4 4"), "do not fit together"),
    "unknown.pcd": (pcd_header(40, "zipped") + b"12345", "unknown PCD data 'zipped'"),
    "wrong.pcd": (pcd_header(40, "binary_compressed") + struct.pack("<II", 5, 99) + b"12345", "do not make 99 bytes"),
    "bomb.pcd": (
        pcd_header(10**8, "binary_compressed") + struct.pack("<II", 5, 1_200_000_000) + b"12345",
        "declares 100,000,000 points",
    ),
    "cut.npy": (None, "mmap length"),
    "object.npy": (None, "may run code"),
    "cut.npz": (None, "broken archive"),
    "flat.npy": (None, "2 dimensions"),
    "unclear.npz": (None, "cannot tell which array"),
    "mesh.stl": (b"solid nothing\n", "trimesh cannot read it|no vertices"),
    "noise.stl": (bytes(range(84)) * 3, "trimesh cannot read it|no vertices"),
    "noise.obj": (b"v 1 2\nf 1 2 3\n", "trimesh cannot read it|no vertices|vertex"),
    "noise.laz": (b"LASF" + b"\1" * 300, "declares 16,843,009 variable length records"),
    "noise.h5": (b"\x89HDF\r\n\x1a\n" + b"\1" * 300, "not a readable HDF5 file"),
    "picture.jpg": (b"\xff\xd8\xff", "unknown format"),
}


def write_broken(folder):
    for name, (data, _) in BROKEN.items():
        if data is not None:
            (folder / name).write_bytes(data)
    np.save(folder / "whole.npy", CLOUD)
    whole = (folder / "whole.npy").read_bytes()
    (folder / "whole.npy").unlink()
    (folder / "cut.npy").write_bytes(whole[:-50])
    with open(folder / "object.npy", "wb") as file:
        np.lib.format.write_array(file, np.array([Evil()], object), allow_pickle=True)
    np.savez(folder / "x.npz", points=CLOUD)
    (folder / "cut.npz").write_bytes((folder / "x.npz").read_bytes()[:-50])
    (folder / "x.npz").unlink()
    np.save(folder / "flat.npy", CLOUD.ravel())
    np.savez(folder / "unclear.npz", a=CLOUD, b=CLOUD)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path, monkeypatch, name):
    pytest.importorskip({"stl": "trimesh", "obj": "trimesh", "laz": "laspy", ".h5": "h5py"}.get(name[-3:], "numpy"))
    monkeypatch.chdir(tmp_path)
    write_broken(tmp_path)
    with pytest.raises(ValueError, match=BROKEN[name][1]):
        cloud = read(tmp_path / name)
        PointCloud().load(cloud, None)
    assert not (tmp_path / "evil").exists()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.xyz")
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path / "pipe.xyz")


def test_broken_files_are_counted_and_named(tmp_path):
    write_broken(tmp_path)
    heavy = (".stl", ".obj", ".laz", ".h5")
    for path in tmp_path.iterdir():
        if path.suffix in heavy:
            path.unlink()
    np.save(tmp_path / "good.npy", CLOUD)
    broken = CLOUD.copy()
    broken[0] = np.nan
    for name, cloud in {"nan": broken, "same": CLOUD[:1].repeat(40, 0), "one": CLOUD[:1], "none": CLOUD[:0]}.items():
        np.save(tmp_path / f"{name}.npy", cloud)
    np.save(tmp_path / "turned.npy", np.ones((3, 900)))
    source = open_pointclouds(
        str(tmp_path), extensions=[".npy", ".npz", ".xyz", ".csv", ".txt", ".ply", ".pcd", ".pts"]
    )
    modality = PointCloud(groups=4, group_size=4, points=32)
    loader = Loader(
        source, {"pointcloud": modality}, SequentialBatches(len(source), 8), seed=0, substitute=False, augment=False
    )
    batches = list(loader.batches(0, loader.order.steps))
    assert [one for batch in batches for one in batch.ids] == ["good.npy"]
    reasons = {one.id: one.reason for batch in batches for one in batch.bad}
    assert len(reasons) == len(source) - 1 and all(reasons.values())
    for name, says in {
        "nan.npy": "1 of 40 points are not finite",
        "same.npy": "all 32 points are equal",
        "one.npy": "a single point",
        "none.npy": "no points",
        "turned.npy": "900 columns",
    }.items():
        assert says in reasons[name], (name, reasons[name])


# --------------------------------------------------------------------------------------------------- sources
def many(path, count=5, **more):
    clouds = np.random.default_rng(1).normal(size=(count, 30, 3)).astype(np.float32)
    if path.suffix == ".npy":
        np.save(path, clouds)
    else:
        np.savez(path, points=clouds, **more)
    return clouds


def test_folders(tmp_path):
    for name in ("b/2.npy", "a/1.npy", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, CLOUD) if name.endswith("npy") else (tmp_path / name).write_text("hello")
    source = open_pointclouds(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["a/1.npy", "b/2.npy"] and source.classes == ["a", "b"]
    sample = source.read(1, DRAW)
    assert sample.label == 1 and sample.id == "b/2.npy" and np.array_equal(sample.raw["pointcloud"], CLOUD)
    assert len(open_pointclouds(str(tmp_path), extensions=["npy", ".txt"])) == 3
    assert "scan" in open_pointclouds(str(tmp_path), name="scan").read(0, DRAW).raw
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() and again.name(0) == "a/1.npy"
    np.save(tmp_path / "b" / "3.npy", CLOUD)
    assert open_pointclouds(str(tmp_path)).fingerprint() != source.fingerprint()
    single = open_pointclouds(str(tmp_path / "a" / "1.npy"))
    assert len(single) == 1 and single.name(0) == "1.npy"


def test_shapenet_lists(tmp_path):
    (tmp_path / "pc").mkdir()
    names = ["02691156-1a.npy", "03001627-2b.npy", "02691156-3c.npy"]
    for name in names:
        np.save(tmp_path / "pc" / name, CLOUD)
    (tmp_path / "train.txt").write_text("\n".join(names))
    source = open_pointclouds(str(tmp_path / "pc"), str(tmp_path / "train.txt"))
    assert source.classes == ["02691156", "03001627"] and [source.read(i, DRAW).label for i in range(3)] == [0, 1, 0]
    (tmp_path / "labels.txt").write_text("pc/02691156-1a.npy 4\npc/03001627-2b.npy 2\n")
    assert [open_pointclouds(None, str(tmp_path / "labels.txt")).read(i, DRAW).label for i in range(2)] == [4, 2]
    for name in ("car_1.npy", "bus_1.npy"):
        np.save(tmp_path / name, CLOUD)
    (tmp_path / "own.csv").write_text("mesh\ncar_1.npy\nbus_1.npy\n")
    own = open_pointclouds(None, str(tmp_path / "own.csv"), label_before="_")
    assert own.classes == ["bus", "car"] and own.read(0, DRAW).label == 1
    with pytest.raises(MaemmError, match="has no '/'"):
        open_pointclouds(None, str(tmp_path / "own.csv"), label_before="/")


def test_many_clouds_in_one_file(tmp_path):
    clouds = many(tmp_path / "a.npy")
    source = open_pointclouds(str(tmp_path / "a.npy"))
    assert len(source) == 5 and source.name(2) == "a.npy#2" and source.classes is None
    sample = source.read(2, DRAW)
    assert np.array_equal(sample.raw["pointcloud"], clouds[2]) and sample.label is None and sample.id == "a.npy#2"
    assert len(pickle.dumps(source)) < 2000  # mapped again in the worker, not sent
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(4, DRAW).raw["pointcloud"], clouds[4])


def test_npz_with_labels_names_and_split(tmp_path):
    told = {
        "labels": np.array([0, 1, 1, 0, 1]), "classes": np.array(["chair", "sofa"]),
        "split": np.array(["train", "test", "train", "train", "test"]), "names": np.array([f"n{i}" for i in range(5)]),
    }  # fmt: skip
    clouds = many(tmp_path / "a.npz", **told)
    source = open_pointclouds(str(tmp_path / "a.npz"), split="test")
    assert len(source) == 2 and source.classes == ["chair", "sofa"] and source.name(1) == "a.npz#n4"
    sample = source.read(1, DRAW)
    assert np.array_equal(sample.raw["pointcloud"], clouds[4]) and sample.label == 1
    assert len(open_pointclouds(str(tmp_path / "a.npz"))) == 5
    other = open_pointclouds(str(tmp_path / "a.npz"), split="train")
    assert (
        len({source.fingerprint(), other.fingerprint(), open_pointclouds(str(tmp_path / "a.npz")).fingerprint()}) == 3
    )
    with pytest.raises(MaemmError, match="no cloud is in split 'val'.*there are test, train"):
        open_pointclouds(str(tmp_path / "a.npz"), split="val")


def test_hdf5_files_of_many_clouds(tmp_path):
    h5py = pytest.importorskip("h5py")
    clouds = np.random.default_rng(1).normal(size=(7, 30, 3)).astype(np.float32)
    for name, part, labels in (("train0", clouds[:4], [[0], [1], [1], [0]]), ("train1", clouds[4:], [[1], [0], [0]])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = part, np.array(labels, np.uint8)
    (tmp_path / "shape_names.txt").write_text("airplane\nbathtub\n")
    source = open_pointclouds(str(tmp_path))
    assert len(source) == 7 and source.classes == ["airplane", "bathtub"] and source.name(5) == "train1.h5#1"
    again = pickle.loads(pickle.dumps(source))
    for one in (source, again):
        sample = one.read(5, DRAW)
        assert np.array_equal(sample.raw["pointcloud"], clouds[5]) and sample.label == 0
    (tmp_path / "train_files.txt").write_text("train0.h5\n")
    assert len(open_pointclouds(None, str(tmp_path / "train_files.txt"))) == 4


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"x")
    np.save(tmp_path / "four.npy", np.ones((2, 3, 4, 5)))
    np.save(tmp_path / "flat.npy", np.ones((2, 30, 2)))
    np.save(tmp_path / "objects.npy", np.array([Evil()], object), allow_pickle=True)
    clouds = np.ones((3, 30, 3))
    np.savez(tmp_path / "few.npz", points=clouds, labels=np.arange(2))
    np.savez(tmp_path / "names.npz", points=clouds, labels=np.arange(3), classes=np.array(["a", "b"]))
    np.savez(tmp_path / "split.npz", points=clouds, split=np.array(["train"]))
    (tmp_path / "none.txt").write_text("\n")
    for arguments, says in {
        (): "no point clouds are given",
        (str(tmp_path / "nowhere"),): "data.root cannot be opened",
        (str(tmp_path / "empty"),): "no point cloud below the folder",
        (str(tmp_path / "photo.jpg"),): "unknown file format",
        (str(tmp_path / "four.npy"),): "clouds need 3 dimensions",
        (str(tmp_path / "flat.npy"),): "the array holds no clouds",
        (str(tmp_path / "objects.npy"),): "may run code",
        (str(tmp_path / "few.npz"),): "labels have shape",
        (str(tmp_path / "names.npz"),): "label 2 has no name",
        (str(tmp_path / "split.npz"),): "split has shape",
        (None, str(tmp_path / "none.txt")): "the list names no file",
        (None, str(tmp_path / "flat.npy")): "data.list is not a list of paths",
        (str(tmp_path / "flat.npy"), str(tmp_path / "none.txt")): "data.root is not a folder",
    }.items():
        with pytest.raises(MaemmError) as error:
            open_pointclouds(*arguments) if arguments else open_pointclouds(None)
        assert says in str(error.value) and "\n" not in str(error.value), (arguments, str(error.value))
    with pytest.raises(MaemmError, match="only files of many clouds have a split"):
        open_pointclouds(str(tmp_path), extensions=["npy"], split="train")


def test_a_missing_package_is_named_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.off").write_text(TETRAHEDRON)
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(MaemmError, match=r"'trimesh', which is not installed; run: pip install 'maemm\[points\]'"):
        open_pointclouds(str(tmp_path))


def test_light_formats_import_no_heavy_package(tmp_path):
    code = (
        "import sys, numpy as np; from maemm_plugins.pointcloud.sources import open_pointclouds\n"
        "from maemm import Rng\n"
        f"np.save({str(tmp_path / 'a.npy')!r}, np.eye(3)); open_pointclouds({str(tmp_path)!r}).read(0, Rng((0,)))\n"
        "assert not {'trimesh', 'h5py', 'laspy'} & set(sys.modules)"
    )
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------------------------------------- real files
@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not (DATA / "odd.tar").is_file():
        pytest.skip("the shared data are not here")
    pytest.importorskip("trimesh")
    folder = tmp_path_factory.mktemp("real")
    for name in ("odd.tar", "meshes.tar"):
        with tarfile.open(DATA / name) as tar:
            tar.extractall(folder, filter="data")
    return folder


def test_awkward_files(real):
    whole = read(real / "odd" / "p_ascii.ply")
    assert whole.shape == (256, 3)
    for name in ("p_binary_le.ply", "p_binary_be.ply", "p_ascii.pcd", "p_extra_properties.ply", "p_no_faces.off"):
        assert np.allclose(read(real / "odd" / name)[:, :3], whole, atol=1e-5), name
    assert np.allclose(read(real / "odd" / "p_xyzrgb.xyz")[:, :3], whole, atol=1e-5)
    assert read(real / "odd" / "p_binary_real.pcd").shape == (1024, 3)
    assert np.array_equal(read(real / "odd" / "p_ok.off"), read(real / "odd" / "p_header_on_one_line.off"))
    for name, says in {
        "p_counts_too_large.off": "truncated",
        "p_counts_too_small.off": "line 175: no face",
        "p_index_out_of_range.off": "line 195",
        "p_truncated.ply": "1,500 bytes",
        "p_truncated.pcd": "2,000 bytes",
        "p_ragged.csv": "line 6 has 2 columns",
        "p_zero_bytes.xyz": "empty file",
        "p_nan.xyz": "2 of 256 points are not finite",
        "p_all_same.xyz": "all 64 points are equal",
        "p_two_points.xyz": "2 distinct points, a group needs 32",
    }.items():
        with pytest.raises(ValueError, match=says):
            PointCloud().load(read(real / "odd" / name), None)
    with pytest.raises(ValueError, match="no faces"):
        read(real / "odd" / "p_no_faces.off", surface=True)


def test_one_shape_in_all_mesh_formats(real):
    corners = read(real / "meshes" / "modelnet" / "bathtub_0002.off", surface=False)
    reference = np.unique(np.round(corners, 3), axis=0)
    for name in ("ascii.ply", "binary.ply", "obj", "vertices.xyz", "stl"):
        found = read(real / "meshes" / "same_shape" / f"bathtub_0002.{name}", surface=False)
        found = np.unique(np.round(found, 3), axis=0)
        if name != "stl":
            assert len(found) == len(reference)
        distance = np.sqrt(np.square(found[:, None] - reference[None]).sum(-1))
        assert distance.min(1).max() < 2e-3, name


def test_every_real_mesh_is_read(real):
    source = open_pointclouds(str(real / "meshes"), mesh_points=500)
    for index in range(len(source)):
        raw = source.read(index, DRAW).raw["pointcloud"]
        assert np.isfinite(raw).all() and raw.shape[1] >= 3, source.name(index)
    assert len(source) > 20


def test_geographic_coordinates_keep_their_shape(real):
    raw = read(real / "meshes" / "other" / "points_agisoft.xyz")
    x = PointCloud(groups=8, group_size=8, points=None).load(raw, None)["x"].double().numpy()
    centred = raw[:, :3] - raw[:, :3].mean(0)
    assert np.allclose(x, centred / np.linalg.norm(centred, axis=1).max(), atol=1e-6)


def test_modelnet10():
    if not (DATA / "modelnet10.npz").is_file():
        pytest.skip("the shared data are not here")
    train, test = (open_pointclouds(str(DATA / "modelnet10.npz"), split=part) for part in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (1186, 908, 10)
    sample = train.read(130, DRAW)
    assert sample.raw["pointcloud"].shape == (1024, 3) and train.classes[sample.label] in sample.id


@pytest.mark.parametrize("kind", ["F", "U"])
def test_a_packed_colour_of_pcd_becomes_three_features(tmp_path, kind):
    colours = np.array([[255, 0, 128], [1, 2, 3]], np.uint32)
    bits = (255 << 24) + (colours[:, 0] << 16) + (colours[:, 1] << 8) + colours[:, 2]  # alpha 255: as a float, NaN
    table = np.empty(2, [("xyz", "<f4", 3), ("rgb", "<u4")])
    table["xyz"], table["rgb"] = [[0, 0, 1], [0, 1, 0]], bits
    header = pcd_header(2, "binary", "x y z rgb", "4 4 4 4", f"F F F {kind}")
    (tmp_path / "a.pcd").write_bytes(header + table.tobytes())
    cloud = read(tmp_path / "a.pcd")
    assert np.allclose(cloud[:, 3:], colours / 255) and np.array_equal(cloud[:, :3], table["xyz"])
