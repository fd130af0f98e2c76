"""Shards give the samples of the folder, bit for bit, whatever the modality; hostile shards and indices."""

from __future__ import annotations

import json
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maemm
from maemm import config, registry
from maemm.contract.errors import DataLost, MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.open import open_source
from maemm.data.order import ShuffledBatches
from maemm.data.shards.as_files import make_part, read_part
from maemm.data.shards.source import open_shards
from maemm.model.build import build_modalities
from maemm.tasks.data.pack import data_index, data_shards
from maemm_plugins._images.load import read_image

from .conftest import write_sound


def batches(recipe_name: str, data: dict, *, workers: int = 0, steps: int = 3, batch: int = 4, **more):
    recipe = config.load(recipe_name, more)
    recipe["data"] = {**recipe["data"], "mix": None, **data}
    source = open_source(recipe)
    order = ShuffledBatches(len(source), batch, 3)
    loader = Loader(source, build_modalities(recipe), order, seed=3, workers=workers, missing=recipe["data"]["missing"])
    return [*loader.batches(0, steps)]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in tensors(value[key])]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def same(first, second, *, ids: bool = True):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        if ids:
            assert one.ids == two.ids
        assert one.rows == two.rows and one.raw.keys() == two.raw.keys()
        assert [bad.index for bad in one.bad] == [bad.index for bad in two.bad]
        if one.labels is not None:
            assert one.labels.tolist() == two.labels.tolist()
        assert len(tensors(one.raw)) == len(tensors(two.raw))
        for a, b in zip(tensors(one.raw), tensors(two.raw), strict=True):
            assert torch.equal(a, b)


def write_video(path: Path, seed: int) -> None:
    import av

    numbers = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(18):
            frame = av.VideoFrame.from_ndarray(numbers.integers(0, 255, (32, 32, 3), np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_points(path: Path, seed: int) -> None:
    np.savetxt(path, np.random.default_rng(seed).normal(size=(300, 3)))


def write_signal(path: Path, seed: int) -> None:
    np.savetxt(
        path, np.random.default_rng(seed).normal(size=(400, 6)), delimiter=",", header="a,b,c,d,e,f", comments=""
    )


KINDS = {
    "audio/audiomae_tiny_cpu": (write_sound, ".wav", {}),
    "video/videomae_tiny_cpu": (write_video, ".mp4", {}),
    "pointcloud/point_mae_tiny_cpu": (write_points, ".xyz", {}),
    "signal/tiny_cpu": (write_signal, ".csv", {"modalities.signal.channels": ["a", "b", "c", "d", "e", "f"]}),
}


@pytest.mark.parametrize("recipe", KINDS)
def test_every_modality(recipe, tmp_path):
    write, ending, more = KINDS[recipe]
    for number in range(7):
        write(tmp_path / f"{number}{ending}", number)
    overrides = {"data.source": recipe.split("/")[0], **more}
    data_shards(tmp_path, tmp_path / "shards", recipe, overrides, samples=3, workers=0)
    folder = batches(recipe, {"root": str(tmp_path), "source": None}, batch=3, steps=2, **more)
    shutil.move(tmp_path / "shards", tmp_path.with_name(f"{tmp_path.name} shards"))
    packed = {"root": str(tmp_path.with_name(f"{tmp_path.name} shards")), "source": "shards"}
    same(folder, batches(recipe, packed, batch=3, steps=2, **more))


def test_samples_that_are_held_do_not_change(tmp_path):
    """A source that was opened once serves all members of an ending; those before keep their content."""
    numbers = np.random.default_rng(0)
    for number in range(4):
        write_sound(tmp_path / f"{number}.wav", number)
        write_video(tmp_path / f"{number}.mp4", number)
        np.save(tmp_path / f"{number}.npy", numbers.integers(0, 255, (8, 8, 3), np.uint8))
        Image.fromarray(numbers.integers(0, 255, (9, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    audio, video = make_part("audio", {}, ""), make_part("video", {}, "")
    image = make_part("image", {"extensions": [".npy", ".png"]}, "")
    for part, endings in ((audio, ["wav"]), (video, ["mp4"]), (image, ["npy", "png"])):
        for _ in range(2):
            held = {}
            for number in range(4):
                for ending in endings:
                    path = tmp_path / f"{number}.{ending}"
                    held[path] = read_part(part, ending, path.read_bytes(), Rng((0,)))[part.name]
            assert len(part.opened) == len(endings)
            for path, raw in held.items():
                if part is image:
                    assert (raw == read_image(path)).all()
                    continue
                single = registry.find("sources", part.name)(str(path)).read(0, Rng((0,))).raw[part.name]
                if part is audio:
                    assert (raw.read(0, raw.length) == single.read(0, single.length)).all()
                else:
                    assert (raw.frames_at([0, 5]) == single.frames_at([0, 5])).all()


def test_pictures_with_labels_and_a_broken_one(pictures, shards):
    folder = batches("image/mae_tiny_cpu", {"root": str(pictures), "source": None}, steps=9)
    same(folder, batches("image/mae_tiny_cpu", {"root": str(shards), "source": "shards"}, steps=9))
    same(folder, batches("image/mae_tiny_cpu", {"root": str(shards), "source": "shards"}, steps=9, workers=2))
    assert sum(len(batch.bad) for batch in folder) == 1
    source = open_shards(str(shards), name="image")
    assert source.classes == ["cat", "dog"]
    assert [source.label(index) for index in range(40)] == [0] * 20 + [1] * 20
    assert source.read(39, Rng((0,))).id == "dog/same.png"
    assert source.name(39) == "shard-000004.tar#3"


def test_pairs_some_of_which_lack_a_part(tmp_path):
    for number in range(6):
        write_sound(tmp_path / "audio" / f"{number}.wav", number)
        if number != 4:
            (tmp_path / "pointcloud").mkdir(exist_ok=True)
            write_points(tmp_path / "pointcloud" / f"{number}.xyz", number)
    pairs = {"type": "paired", "parts": {"audio": {}, "pointcloud": {}}, "missing": "allow"}
    recipe = "cav/sound_and_shape_tiny_cpu"
    overrides = {"data.source": pairs, "data.missing": "allow", "data.mix": None}
    data_shards(tmp_path, tmp_path / "shards", recipe, overrides, samples=4, workers=0)
    more = {"data.missing": "allow"}
    folder = batches(recipe, {"root": str(tmp_path), "source": pairs}, batch=3, steps=2, **more)
    packed = batches(recipe, {"root": str(tmp_path / "shards"), "source": "shards"}, batch=3, steps=2, **more)
    same(folder, packed)
    assert sum((~batch.present["pointcloud"]).sum() for batch in packed) == 1


def test_losses_of_a_run_are_those_of_the_folder(pictures, shards, tmp_path):
    def losses(name, **data):
        settings = {"train.steps": 3, "train.epochs": None, "train.batch": 8, "train.log_every": 1, "data.workers": 0}
        settings |= {f"data.{key}": value for key, value in data.items()} | {"out": str(tmp_path / name)}
        maemm.pretrain(config.load("image/mae_tiny_cpu", settings, training=True))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    assert losses("folder", root=str(pictures)) == losses("shards", root=str(shards), source="shards")
    mixed = losses("mixed", root=str(shards), source="shards", shuffle=2)
    assert len(mixed) == 3 and mixed != losses("again", root=str(shards), source="shards")


def test_shuffling_shards_needs_shards(pictures, tmp_path):
    with pytest.raises(MaemmError, match="data.shuffle=2 needs data in shards"):
        settings = {"data.root": str(pictures), "data.shuffle": 2, "out": str(tmp_path / "run")}
        maemm.pretrain(config.load("image/mae_tiny_cpu", settings, training=True))


def test_tar_files_of_others(tmp_path):
    """Members with endings of several parts, labels as names, no index yet."""
    import io
    import tarfile

    with tarfile.open(tmp_path / "a-000.tar", "w") as archive:
        for number in range(4):
            image = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)).save(image, "png")
            for ending, content in (
                ("json", b"{}"),
                ("cls", b"dog" if number % 2 else b"cat"),
                ("png", image.getvalue()),
            ):
                member = tarfile.TarInfo(f"x/{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(MaemmError, match="there is no index of shards .*maemm data index"):
        open_shards(str(tmp_path), name="image")
    indexed = data_index(f"{tmp_path}/a-{{000..000}}.tar", workers=0)
    assert (indexed.samples, indexed.shards) == (4, 1)
    source = open_shards(str(tmp_path), name="image")
    assert source.classes == ["cat", "dog"] and [source.label(index) for index in range(4)] == [0, 1, 0, 1]
    assert source.read(2, Rng((0,))).raw["image"].max() == 120
    parts = open_shards(str(tmp_path), parts={"picture": {"type": "image", "endings": ["jpg", "png"]}})
    assert [*parts.read(0, Rng((0,))).raw] == ["picture"]
    wrong = open_shards(str(tmp_path), parts={"picture": {"type": "image", "endings": ["webp"]}})
    with pytest.raises(ValueError, match="has only json, cls, png of it; set data.source.parts.NAME.endings"):
        wrong.read(0, Rng((0,)))


# ------------------------------------------------------------------------------------------------ what can be wrong
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_a_damaged_sample_is_one_unreadable_sample(shards, tmp_path):
    folder = damaged(shards, tmp_path)
    data = bytearray((folder / "shard-000001.tar").read_bytes())
    data[700] ^= 1
    (folder / "shard-000001.tar").write_bytes(data)
    source = open_shards(str(folder), name="image")
    with pytest.raises(ValueError, match="damaged in the shard"):
        source.read(9, Rng((0,)))
    source.read(10, Rng((0,)))


def test_a_shard_that_is_gone_is_unreadable_samples(shards, tmp_path):
    folder = damaged(shards, tmp_path)
    (folder / "shard-000001.tar").unlink()
    source = open_shards(str(folder), name="image")
    with pytest.raises(ValueError, match="its shard cannot be read"):
        source.read(9, Rng((0,)))
    source.read(0, Rng((0,)))


def test_a_shard_that_changed_ends_the_run(shards, tmp_path):
    folder = damaged(shards, tmp_path)
    shutil.copy(folder / "shard-000004.tar", folder / "shard-000001.tar")
    source = open_shards(str(folder), name="image")
    with pytest.raises(DataLost, match="a shard has changed since it was indexed .*maemm data index"):
        source.read(9, Rng((0,)))
    with pytest.raises(MaemmError, match="a shard has changed"):
        batches("image/mae_tiny_cpu", {"root": str(folder), "source": "shards"}, steps=9, workers=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", b"{", "no index of shards"),
        ("index.json", b"[]", "no index of shards"),
        ("index.json", b'{"maemm_shards": 9}', "version 9"),
        ("index.json", b'{"maemm_shards": 1, "shards": [{"name": "a"}]}', "no index of shards"),
        ("index-*.bin", b"123", "has 3 bytes instead of"),
        ("index-*.bin", None, "a part of the index is missing"),
    ],
)
def test_broken_indices(shards, tmp_path, name, content, message):
    folder = damaged(shards, tmp_path)
    (path,) = folder.glob(name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MaemmError, match=message):
        open_shards(str(folder), name="image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "no shards are given"),
        ({"root": "/nowhere/at/all"}, "there is no index of shards"),
        ({"list": "a.txt"}, "have no data.list"),
        ({"name": None, "source": None, "parts": {"a": {"type": "nonsense"}}}, "nonsense"),
        ({"source": "image", "parts": {"image": {}}}, "leave one out"),
        ({"source": {"type": "image", "colour": 3}}, "colour"),
        ({"columns": {"image": "a"}}, "for Parquet files"),
        ({"root": "gopher://a/b"}, "gopher:// is no known storage"),
    ],
)
def test_wrong_options(shards, options, message):
    options = {"root": str(shards), "list": None, "name": "image", **options}
    with pytest.raises(MaemmError, match=message):
        open_shards(options.pop("root"), options.pop("list"), **options)


def test_nothing_is_left_in_memory_folders(shards):
    source = open_shards(str(shards), name="image")
    source.read(0, Rng((0,)))
    from maemm.data.shards import as_files

    assert as_files._home is not None and os.listdir(as_files._home[1]) == []


def test_a_recording_that_is_opened_later_is_still_there(tmp_path):
    write_sound(tmp_path / "a.wav", 0)
    data_shards(tmp_path, tmp_path / "shards", "audio/audiomae_tiny_cpu", {"data.source": "audio"}, workers=0)
    source = open_shards(str(tmp_path / "shards"), name="audio")
    recording = source.read(0, Rng((0,))).raw["audio"]
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert recording.read(0, recording.length).shape[0] == file.getnframes()
    from maemm.data.shards import as_files

    assert as_files._home is not None and len(os.listdir(as_files._home[1])) == 1
    del recording
    assert os.listdir(as_files._home[1]) == []
