"""A classifier of clips is asked about every stored frame; lists with several labels."""

import json
import os

import numpy as np
import soundfile
from PIL import Image

from maemm.contract.rng import Rng
from maemm.data.shots import labels_of
from maemm_plugins.cav.sources import open_clips


def clips(folder, frames=3):
    rows = []
    for number, labels in enumerate(["dog,rain", "rain"]):
        soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 1600), 16000)
        for frame in range(frames):
            (folder / f"frame_{frame}").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (0, 80 * frame, 0)).save(folder / f"frame_{frame}/{number}.jpg", quality=100)
        rows.append({"video_id": str(number), "wav": f"{number}.wav", "video_path": ".", "labels": labels})
    (folder / "list.json").write_text(json.dumps({"data": rows}))
    return str(folder / "list.json")


def test_every_frame_is_a_view(tmp_path):
    source = open_clips(None, clips(tmp_path), frames=3)
    assert source.tta_views == 3 and source.multilabel and source.classes == ["dog", "rain"]
    colours = [source.tta_view(1, number).raw["image"].reshape(-1, 3).mean(0) for number in range(3)]
    assert [round(float(one[1]) / 80) for one in colours] == [0, 1, 2]
    files = [*source.files()]
    assert len(files) == 2 * (1 + 3) and all(os.path.isfile(one) for one in files)  # the sound and its frames
    assert source.tta_view(0, 2).label == (0, 1) and labels_of(source).tolist() == [[1, 1], [0, 1]]
    fixed = open_clips(None, clips(tmp_path), frames=3, frame=1)
    assert fixed.tta_views == 1 and round(float(fixed.tta_view(0, 0).raw["image"][..., 1].mean()) / 80) == 1
    assert fixed.read(0, Rng((0,))).id == "0"
