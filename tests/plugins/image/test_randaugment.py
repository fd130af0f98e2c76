"""RandAugment in the worker."""

import numpy as np
import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins._augment.randaugment import RandAugment
from maemm_plugins.image.modality import Image

POLICY = "rand-m9-mstd0.5-inc1"


def picture(height=40, width=48):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 5, y * 6, (x + y) * 2], -1).astype(np.uint8)


def test_it_is_timms_under_counted_draws():
    import random

    from timm.data.auto_augment import rand_augment_transform

    raw, rng = picture(), Rng((0, 3))
    image = Image(size=32, randaugment=POLICY, crop=None)
    once, again, other = (image.load(raw, one)["x"] for one in (rng, rng, Rng((0, 4))))
    assert once.shape == (3, 32, 32) and once.dtype == torch.uint8
    assert torch.equal(once, again) and not torch.equal(once, other)
    plain = Image(size=32, crop=None).load(raw, rng)["x"]
    assert not torch.equal(once, plain) and torch.equal(image.load(raw, None)["x"], plain)  # asked about: as it is
    from PIL import Image as Pictures

    seed = rng.seed("randaugment")
    random.seed(seed), np.random.seed(seed % 2**32)
    fill = tuple(round(255 * one) for one in image.mean)
    timms = rand_augment_transform(
        POLICY, {"translate_const": 14, "img_mean": fill, "interpolation": Pictures.Resampling.BICUBIC}
    )
    expected = np.asarray(timms(Pictures.fromarray(plain.permute(1, 2, 0).numpy())))
    assert np.array_equal(once.permute(1, 2, 0).numpy(), expected)


def test_all_frames_are_changed_alike():
    frames = np.repeat(picture()[None], 4, axis=0)
    found = RandAugment("rand-m9-n4-mstd0.5-inc1", (0.5, 0.5, 0.5), "bicubic", "here")(frames, Rng((1, 2)))
    assert found.shape == frames.shape and not np.array_equal(found, frames)
    assert all(np.array_equal(one, found[0]) for one in found)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    Image(size=32, randaugment=POLICY).load(picture(), Rng((0, 1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"randaugment": "augmix"}, "randaugment 'augmix' names no policy"),
        ({"randaugment": "rand-strong"}, "names no policy"),
        ({"randaugment": POLICY, "channels": 1}, "is for 3 channels"),
        ({"randaugment": POLICY, "device_crop": True}, "cropped in the worker"),
    ],
)
def test_what_means_nothing(options, text):
    with pytest.raises(MaemmError, match=text):
        Image(size=32, **options)


def test_other_pictures_are_unreadable():
    image = Image(size=32, randaugment=POLICY)
    with pytest.raises(ValueError, match="8-bit RGB"):
        image.load(np.random.default_rng(0).random((40, 40, 3)).astype(np.float32), Rng((0,)))
