"""Views of one decode, frames by segments, RandAugment on clips."""

import numpy as np
import pytest
import torch

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins.video import crop, sampling
from maemm_plugins.video.decoding import Video as File
from maemm_plugins.video.modality import Video


class Counted(File):
    """A video whose frames tell their number, and how often it was decoded."""

    def __init__(self, count, height=32, width=64):
        self.size, self.decoded = (height, width), []
        super().__init__(np.arange(count) / 25)

    def _decode(self, index):
        self.decoded.append(list(index))
        frames = np.zeros((len(index), *self.size, 3), np.uint8)
        frames[..., 0] = np.asarray(index)[:, None, None]
        frames[..., 1] = np.arange(self.size[1])  # where it was cut
        return frames


def video(**options):
    return Video(size=[4, 32, 32], patch=[2, 16, 16], **options)


def test_five_clips_times_three_crops_of_one_decode():
    file = Counted(100)
    tta_views = video(stride=2, tta_views=(5, 3)).load_tta_views(file)
    assert (
        len(tta_views) == 15 and len(file.decoded) == 1 and all(one["x"].shape == (4, 32, 32, 3) for one in tta_views)
    )
    starts = [int(one["x"][0, 0, 0, 0]) for one in tta_views]
    assert starts[::3] == [0, 22, 46, 68, 92] and starts[0] == starts[1] == starts[2]
    assert tta_views[0]["x"][:, 0, 0, 0].tolist() == [0, 2, 4, 6]  # every second frame
    assert [int(one["x"][0, 0, 0, 1]) for one in tta_views[:3]] == [
        0,
        16,
        32,
    ]  # from one end of the long side to the other
    file.decoded.clear()
    model = video(stride=2)
    assert len(model.load_tta_views(file)) == 1 and model.tta_views == 1


def test_places_of_clips_and_crops():
    assert [one.tolist() for one in sampling.views_by_stride(5, 4, 2, 3)] == [[0, 2, 4, 4]] * 3  # short: padded
    tall = crop.view_boxes(60, 32, (32, 32), 3)
    assert tall == [(0, 0, 32, 32), (14, 0, 32, 32), (28, 0, 32, 32)]
    assert crop.view_boxes(60, 32, (32, 32), 1) == [crop.center_box(60, 32, (32, 32))]


def test_views_of_segments_are_the_even_and_the_odd_frames():
    whole = sampling.views_by_segments(64, 4, 2)
    assert [one.tolist() for one in whole] == [[0, 16, 32, 48], [8, 24, 40, 56]]
    assert sampling.by_segments(64, 4).tolist() == [8, 24, 40, 56]
    assert sampling.by_segments(3, 4).tolist() == [0, 1, 1, 2]  # fewer frames than segments: some twice
    assert sampling.by_segments(64, 4, np.array([0.0, 0.99, 0.5, 0.999])).tolist() == [0, 31, 40, 63]
    model, file = video(segments=True, tta_views=(2, 1)), Counted(64)
    assert [one["x"][:, 0, 0, 0].tolist() for one in model.load_tta_views(file)] == [one.tolist() for one in whole]
    drawn = {tuple(model.load(file, Rng((0, k)))["x"][:, 0, 0, 0].tolist()) for k in range(20)}
    assert len(drawn) > 10 and all(i * 16 <= frame < (i + 1) * 16 for one in drawn for i, frame in enumerate(one))


def test_views_by_time_and_of_a_region():
    model = video(fps=12.5, tta_views=(2, 1), region=(0, 0.5, 1, 0.5))
    found = model.load_tta_views(Counted(100))
    assert [one["x"][:, 0, 0, 0].tolist() for one in found] == [[0, 2, 4, 6], [92, 94, 96, 98]]
    assert int(found[0]["x"][0, 0, 0, 1]) == 32  # the right half


def test_a_picture_has_one_view_and_short_videos_are_told():
    model = video(tta_views=(5, 3))
    assert len(model.load_tta_views(np.zeros((32, 32, 3), np.uint8))) == 1
    with pytest.raises(ValueError, match="has 1 frame, at least 2"):
        model.load_tta_views(Counted(1))
    with pytest.raises(MaemmError, match=r"tta_views must be"):
        check(Video, {"tta_views": (0, 3)}, "modalities.video")


def test_views_reach_the_model_through_collate():
    model = video(tta_views=(2, 3), crop="center")
    tta_views = model.load_tta_views(Counted(40, 40, 60))
    preprocessed = model.preprocess(model.collate(tta_views), None)
    assert preprocessed.x.shape == (6, 3, 4, 32, 32)
    whole = model.preprocess(model.collate([model.load(Counted(40, 40, 60), None)]), None)
    assert whole.x.shape == (1, 3, 4, 32, 32)


def test_frames_are_augmented_alike():
    model = video(randaugment="rand-m7-n4-mstd0.5-inc1", crop="center", stride=1)
    file = Counted(10)
    file.frames_at = lambda index: (
        np.full((len(index), 32, 64, 3), 90, np.uint8) + np.arange(64, dtype=np.uint8)[:, None]
    )
    x, plain = model.load(file, Rng((0, 1)))["x"], model.load(file, None)["x"]
    assert all(torch.equal(frame, x[0]) for frame in x) and not torch.equal(x, plain)
