"""2000 reads over 200 files by four workers, 20 of the files broken in ten ways: no hang, no leak, exact counts."""

import gc
import os

import pytest

from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches
from maemm_plugins.video.modality import Video
from maemm_plugins.video.sources import open_videos

WAYS = ("empty", "noise", "text", "no_index", "truncated", "sound", "one", "gone", "loop", "zeros")
FILES, PASSES = 200, 10


@pytest.fixture
def home(tmp_path, videos):
    """180 healthy files and two broken in each way; (folder, names of the broken)."""
    healthy = [videos[name].read_bytes() for name in ("plain", "bframes", "odd", "variable", "rotated")]
    broken = []
    for number in range(FILES):
        path = tmp_path / f"{number:03}.mp4"
        if number % 10:
            path.write_bytes(healthy[number % 5])
            continue
        broken.append(path.name)
        way = WAYS[number // 10 % 10]
        if way == "gone":
            path.symlink_to(tmp_path / "nothing.mp4")
        elif way == "loop":
            path.symlink_to(path.name)
        elif way == "zeros":
            path.write_bytes(bytes(3000))
        else:
            path.write_bytes(videos[way].read_bytes())
    return tmp_path, broken


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_two_thousand_reads(home):
    folder, broken = home
    broken.sort()
    modality = Video(size=[4, 16, 16], patch=[2, 8, 8], stride=2)
    source = open_videos(str(folder), seconds=60)
    names = [source.name(i) for i in range(len(source))]
    missing = [name for name in broken if name not in names]  # a link to itself is no file
    before, read = descriptors(), 0
    for number in range(PASSES):
        loader = Loader(
            source, {"video": modality}, SequentialBatches(len(source), 8), seed=number, workers=4, substitute=False
        )
        batches = list(loader.batches(0, loader.order.steps))
        bad = sorted(one.id for batch in batches for one in batch.bad)
        assert bad == [name for name in broken if name not in missing]
        read += sum(len(batch.ids) for batch in batches) + len(bad)
    del batches  # each tensor that came from a worker holds a descriptor
    gc.collect()
    assert read == PASSES * len(source) and len(source) == FILES - len(missing)
    assert descriptors() <= before + 2
