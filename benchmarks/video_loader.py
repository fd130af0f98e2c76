"""Clips per CPU-second: this loader against a plain decord + PIL + float32 pipeline on the same files.

    python benchmarks/video_loader.py [FOLDER] [--clips 24] [--rounds 3] [--out benchmarks/results]

Without FOLDER, four videos (320 x 240, 300 frames, H.264, key frame every 60) are written and read. Both pipelines do
VideoMAE's pre-training input: 16 frames, stride 4, random start, multi-scale crop, 224 x 224. The plain one is the
published reader in the plainest code: decord with one thread, Pillow crops and resizes frame by frame, float32,
normalised, stacked. CPU time is that of this process and of the decoding process. Rounds of both are interleaved.
``device`` is what is left to the device (resizing and normalising), here done on the CPU too.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from _machine import about
from PIL import Image

import maemm
from maemm.data.lists import find_files
from maemm.data.pack import pack
from maemm_plugins.video import crop
from maemm_plugins.video.decoding import watchdog
from maemm_plugins.video.lists import EXTENSIONS
from maemm_plugins.video.modality import IMAGENET_MEAN, IMAGENET_STD, Video
from maemm_plugins.video.pack import Videos
from maemm_plugins.video.samples import write_video
from maemm_plugins.video.sources import open_videos

FRAMES, STRIDE, SIDE = 16, 4, 224


def make(folder: Path) -> Path:
    """Four videos of a textured picture that moves."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        scene = np.asarray(coarse.resize((640, 480), Image.Resampling.BILINEAR))
        at = [(int(120 + 110 * np.cos(i / 17)), int(160 + 150 * np.sin(i / 20))) for i in range(300)]
        frames = np.stack([scene[y : y + 240, x : x + 320] for y, x in at])
        write_video(folder / f"{number}.mp4", frames, 25, group=60, quality=23)
    return folder


def plain(path: str, rng: np.random.Generator) -> torch.Tensor:
    """(3, 16, 224, 224) float32: the published pipeline in the plainest code."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    start = int(rng.integers(0, max(len(reader) - FRAMES * STRIDE, 0) + 1))
    index = [min(start + STRIDE * i, len(reader) - 1) for i in range(FRAMES)]
    frames = [Image.fromarray(one) for one in reader.get_batch(index).asnumpy()]
    top, left, height, width = crop.multiscale_box(rng.random(2), frames[0].height, frames[0].width, (SIDE, SIDE))
    box = (left, top, left + width, top + height)
    frames = [one.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for one in frames]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in frames])).permute(3, 0, 1, 2).contiguous()
    mean, std = (torch.tensor(one)[:, None, None, None] for one in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.float().div(255).sub_(mean).div_(std)


def cpu_seconds() -> float:
    """CPU time of this process and of its decoding processes, those that were replaced too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    child = watchdog._current
    if child is not None and child.usable():
        fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / 100
    return spent


def measure(work: Callable[[int], object], count: int) -> float:
    """CPU seconds for each of ``count`` calls."""
    before = cpu_seconds()
    for number in range(count):
        work(number)
    return (cpu_seconds() - before) / count


def plain_batches(paths: list[str], batch: int) -> Callable[[int], torch.Tensor]:
    rng = np.random.default_rng(0)
    return lambda number: torch.stack([plain(paths[(number * batch + i) % len(paths)], rng) for i in range(batch)])


def our_batches(folder: Path, batch: int, backend: str = "av", device: bool = False, aug_repeats: int = 1):
    source = open_videos(str(folder), backend=backend)
    modality = Video(size=[FRAMES, SIDE, SIDE], stride=STRIDE)

    def one(number: int) -> object:
        loaded = []
        for i in range(0, batch, aug_repeats):
            index = (number * batch + i) % len(source)
            raw = source.read(index, maemm.Rng((0, number, i, 0))).raw["video"]
            loaded += [modality.load(raw, maemm.Rng((0, number, i, repeat))) for repeat in range(aug_repeats)]
        made = modality.collate(loaded)
        return modality.preprocess(made, maemm.Rng((0, number), range(batch), batch)) if device else made

    return one


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--clips", type=int, default=24, help="of each pipeline and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or make(Path(scratch) / "raw")
        report = compare(folder, Path(scratch) / "packs", args)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"video_loader-{date.today()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def compare(folder: Path, packs: Path, args: argparse.Namespace) -> dict:
    """Interleaved rounds of all pipelines; the median of each."""
    batch = min(8, args.clips)
    paths = [str(folder / one) for one in find_files(folder, EXTENSIONS)]
    written = {
        "packed as video (the default)": Videos(side=SIDE),
        "packed as video, key frame every 8": Videos(side=SIDE, group=8),
        "packed as video, key frames only": Videos(side=SIDE, group=1),
        "packed as video, h264": Videos(side=SIDE, codec="h264"),
        "packed as frames": Videos(kind="frames", side=SIDE),
    }
    sizes = {}
    for number, (name, packer) in enumerate(written.items()):
        target = packs / str(number)
        pack(folder, target, packer)
        sizes[f"ours, {name}"] = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    works = {
        "plain decord + PIL + float32": plain_batches(paths, batch),
        "ours, av": our_batches(folder, batch),
        "ours, decord": our_batches(folder, batch, "decord"),
        "ours, av, 4 crops of each": our_batches(folder, batch, aug_repeats=4),
        "ours, av, resized and normalised here": our_batches(folder, batch, device=True),
        **{f"ours, {name}": our_batches(packs / str(number), batch) for number, name in enumerate(written)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(0)  # the first call opens libraries and starts processes
    for _ in range(args.rounds):
        for name, work in works.items():
            seconds[name].append(measure(work, max(1, args.clips // batch)) / batch)
    base = float(np.median(seconds["plain decord + PIL + float32"]))
    rows = []
    for name, values in seconds.items():
        middle = float(np.median(values))
        rows.append(
            {"pipeline": name, "clips_per_cpu_s": 1 / middle, "times_plain": base / middle, "rounds": values}
            | ({"bytes": sizes[name]} if name in sizes else {})
        )
        print(f"{name:40s} {1 / middle:7.1f} clips per CPU-second   {base / middle:5.2f} x plain", flush=True)
    return {
        **about(), "command": "python benchmarks/video_loader.py", "versions": versions(),
        "files": f"{len(paths)} files, {sum(Path(one).stat().st_size for one in paths):,} bytes",
        "clip": [FRAMES, SIDE, SIDE], "stride": STRIDE, "rows": rows,
    }  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("av", "decord", "pillow", "numpy")}


if __name__ == "__main__":
    main()
