"""2000 reads over 200 videos by four workers, 20 of the files broken in ten ways: counts, time and memory.

    python benchmarks/video_stress.py [--reads 2000] [--workers 4] [--out benchmarks/results]

One loader reads all epochs, so that its workers and their decoding processes live as long as in training. Memory is
what the loader's process, its workers and their decoders have written (private dirty pages), at the end of each epoch;
a leak would grow with every epoch. The run fails unless exactly the broken files are reported, in every epoch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
from _machine import about

from maemm.data.loader import Loader
from maemm.data.order import ShuffledBatches
from maemm_plugins.video.modality import Video
from maemm_plugins.video.samples import write_video
from maemm_plugins.video.sources import open_videos

FILES, BATCH, EVERY = 200, 8, 10  # every tenth file is broken
WAYS = ("empty", "noise", "text", "zeros", "cut index", "cut pictures", "sound", "one frame", "dangling", "pipe")


def make(folder: Path) -> list[str]:
    """180 healthy videos and two broken in each way; -> names of the broken."""
    y, x = np.mgrid[0:96, 0:128]
    frames = np.stack([np.stack([127 + 100 * np.sin((x * (c + 1) + 2 * y + 9 * t) / 17) for c in range(3)], -1)
                       for t in range(48)]).astype(np.uint8)  # fmt: skip
    write_video(folder / "whole.mp4", frames)
    write_video(folder / "one.mp4", frames[:1])
    write_sound(folder / "sound.mp4")
    whole, one, sound = ((folder / f"{name}.mp4").read_bytes() for name in ("whole", "one", "sound"))
    for name in ("whole", "one", "sound"):
        (folder / f"{name}.mp4").unlink()
    contents = {
        "empty": b"", "noise": np.random.default_rng(0).bytes(5000), "text": b"no video\n" * 99, "zeros": bytes(3000),
        "cut index": whole[: whole.index(b"moov") - 4], "cut pictures": index_first(whole)[: -len(whole) // 2],
        "sound": sound, "one frame": one,
    }  # fmt: skip
    broken = []
    for number in range(FILES):
        path = folder / f"{number:03}.mp4"
        way = WAYS[number // EVERY % len(WAYS)] if number % EVERY == 0 else None
        if way == "dangling":
            path.symlink_to("nothing.mp4")
        elif way == "pipe":
            os.mkfifo(path)
        else:
            path.write_bytes(whole if way is None else contents[way])
        broken += [path.name] if way else []
    (folder / "all.txt").write_text("".join(f"{number:03}.mp4\n" for number in range(FILES)))
    return broken


def write_sound(path: Path) -> None:
    """A file with sound and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for number in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def index_first(whole: bytes) -> bytes:
    """The same mp4 with its index in front of the pictures."""
    import av

    with tempfile.TemporaryDirectory() as scratch, av.open(io.BytesIO(whole)) as given:
        path = Path(scratch) / "x.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(given.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        return path.read_bytes()


# --------------------------------------------------------------------------------------------------- measuring
def family(process: int) -> list[int]:
    """A process and all below it."""
    children = []
    for task in Path(f"/proc/{process}/task").iterdir():
        children += [int(one) for one in (task / "children").read_text().split()]
    return [process] + [one for child in children for one in family(child)]


def private_mb(process: int) -> float:
    """Memory that a process has written to and shares with none, in MB; pages of libraries come and go with others."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def memory() -> dict[str, float]:
    """MB of this process, of its workers together, of their decoders together; open files of this process."""
    found: Counter[str] = Counter()
    for process in family(os.getpid()):
        words = Path(f"/proc/{process}/cmdline").read_bytes()
        kind = "main" if process == os.getpid() else "decoders" if b"decoding.child" in words else "workers"
        found[kind] += private_mb(process)
    return {name: round(found[name], 1) for name in ("main", "workers", "decoders")} | {
        "open files": len(os.listdir("/proc/self/fd"))
    }


def run(folder: Path, broken: list[str], reads: int, workers: int) -> dict:
    source = open_videos(None, str(folder / "all.txt"))  # a search of the folder passes over pipes
    modality = Video(size=[8, 32, 32], patch=[2, 8, 8], stride=2)
    order = ShuffledBatches(len(source), BATCH, 0)
    steps, per_epoch = reads // BATCH, order.steps_per_epoch
    loader = Loader(source, {"video": modality}, order, seed=0, workers=workers, timeout=120, substitute=False)
    read, bad, epochs, began, slowest, last = 0, [], [], time.monotonic(), 0.0, time.monotonic()
    for number, batch in enumerate(loader.batches(0, steps)):
        slowest, last = max(slowest, time.monotonic() - last), time.monotonic()
        read += len(batch.ids)
        bad += [one.id for one in batch.bad]
        if (number + 1) % per_epoch == 0:
            epochs.append(memory())
            print(number + 1, epochs[-1], flush=True)
    expected = Counter({name: steps // per_epoch for name in broken})
    if Counter(bad) != expected or read + len(bad) != steps * BATCH:
        raise SystemExit(f"wrong counts: {Counter(bad) - expected}, {expected - Counter(bad)}, {read} read")
    return {
        "reads": read + len(bad), "read": read, "reported": len(bad), "files": len(source), "broken": len(broken),
        "ways": WAYS, "seconds": round(time.monotonic() - began, 1), "longest wait_s": round(slowest, 2),
        "memory at the end of each epoch, MB": epochs,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = run(Path(scratch), make(Path(scratch)), args.reads, args.workers)
    report = {**about(), "command": "python benchmarks/video_stress.py", "workers": args.workers, **found}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"video_stress-{date.today()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
