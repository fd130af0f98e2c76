"""Erasing and mixing of batches: the same as sample by sample, in launches that do not depend on the batch's size."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.objectives.classify import Classify
from maemm.model.objectives.erasing import DRAWS, boxes, erase
from maemm.model.objectives.mixing import SizeCheck, mixed_before
from tests.pretended_gpu.device import gpu


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Module()
        self.head.classes = 5


def pictures(count, *shape):
    return torch.arange(float(count * math.prod(shape))).reshape(count, *shape) / 100 + 10


def erased(x, rng, probability):
    return erase("m", Preprocessed(x), rng, probability, SizeCheck()).x


def erased_in_turn(x, rng, probability):
    """The definition: sample by sample, draw by draw, with Python's numbers."""
    out = x.clone()
    height, width = x.shape[-2:]
    noise = rng.uniform("erase/m/noise", *x[0].flatten(0, -3).shape).clamp(min=2.0**-25)
    normal = torch.erfinv(2 * noise - 1) * math.sqrt(2)
    for sample, (coin, *draws) in zip(out, rng.uniform("erase/m", DRAWS).tolist(), strict=True):
        if coin >= probability:
            continue
        for a, b, c, d in zip(*(draws[i::4] for i in range(4)), strict=True):
            area = (0.02 + (1 / 3 - 0.02) * a) * height * width
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * b)
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if high < height and wide < width:
                top, left = int(c * (height - high + 1)), int(d * (width - wide + 1))
                row = next(i for i in range(len(out)) if out[i].data_ptr() == sample.data_ptr())
                box = (..., slice(top, top + high), slice(left, left + wide))
                sample[box] = normal[row].view(sample.shape)[box]
                break
    return out


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 8, 8), (2, 3, 9, 7), (1, 2, 2), (1, 1, 40)], ids=str)
def test_erasing_is_that_of_each_sample(shape, probability):
    x, rng = pictures(12, *shape), Rng((0, 4), range(3, 15), 20)
    before = x.clone()
    out, expected = erased(x, rng, probability), erased_in_turn(x, rng, probability)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(out == x, expected == x) and torch.equal(x, before)
    assert (probability > 0) or torch.equal(out, x)


def test_all_are_erased_and_none_and_parts_of_a_batch():
    x, rng = pictures(16, 3, 16, 16), Rng((0, 4), range(16), 16)
    out = erased(x, rng, 1.0)
    changed = out != x
    assert changed.flatten(1).any(1).all() and torch.equal(changed[:, 0], changed[:, 2])
    assert torch.equal(erased(x, rng, 0.0), x) and erased(x[:0], Rng((0, 4), range(0), 0), 1.0).shape == (0, 3, 16, 16)
    half = erased(x, rng, 0.5)
    touched = (half != x).flatten(1).any(1)
    assert 2 < touched.sum() < 14 and torch.equal(half[touched], out[touched])
    for rows in ([5], [0, 1], [3, 9, 14], list(range(8, 16))):
        assert torch.equal(erased(x[rows], Rng((0, 4), rows, 16), 1.0), out[rows])
    assert not torch.equal(erased(x, Rng((0, 5), range(16), 16), 1.0), out)


def test_the_distribution_of_boxes_and_noise():
    sample, box = boxes(Rng((0, 1), range(20000), 20000).uniform("erase/m", DRAWS), 100, 60, 0.25)
    top, left, high, wide = box.T
    assert len(sample) == pytest.approx(5000, rel=0.05)
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= 100).all() and (left + wide <= 60).all()
    area, aspect = high * wide / 6000, high / wide
    assert area.min() > 0.017 and area.max() < 0.34 and area.mean() == pytest.approx(0.17, abs=0.02)
    assert aspect.min() > 0.25 and aspect.max() < 3.8
    assert top[high < 50].mean() == pytest.approx((100 - high[high < 50]).mean() / 2, rel=0.05)
    out = erased(torch.full((64, 3, 32, 32), 100.0), Rng((0, 1), range(64), 64), 1.0)
    noise = out[out != 100]
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02) and noise.isfinite().all()


# ------------------------------------------------------------------------------------------------- on a device
def on_gpu(x, labels, valid=None, key=(0, 4), objective=None, **options):
    """(x, labels) of a batch with the objective's options, and its launches on the pretended GPU."""
    objective = objective or Classify("classify", **options)
    with gpu() as seen:
        move = lambda tensor: tensor.pin_memory().to("cuda", non_blocking=True)  # noqa: E731
        batch = Preprocessed(move(x), None if valid is None else move(valid))
        seen.clear()
        after, soft = objective.batch({"m": batch}, labels, Rng(key, range(len(x)), len(x)), Net())
        launches, waits = Counter(seen.launches), [*map(str, seen.waits), *map(str, seen.blocking_copies)]
        return after["m"].x.cpu(), soft.cpu(), launches, waits


OPTIONS = {
    "erase": {"erase": 1.0},
    "erase a quarter": {"erase": 0.25},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "all": {"erase": 0.5, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
    "several labels": {"mixup": 10.0, "loss": "sigmoid", "smoothing": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_launches_do_not_depend_on_the_batch(options):
    launches = []
    for count in (4, 16, 64):
        x, labels = pictures(count, 3, 16, 16), torch.arange(count) % 5
        if options.get("loss") == "sigmoid":
            labels = torch.nn.functional.one_hot(labels, 5)
        *results, made, waits = on_gpu(x, labels, **options)
        rng = Rng((0, 4), range(count), count)
        batch, soft = Classify("classify", **options).batch({"m": Preprocessed(x)}, labels, rng, Net())
        torch.testing.assert_close(results[0], batch["m"].x)
        torch.testing.assert_close(results[1], soft)
        assert not waits
        launches.append(made)
    assert launches[0] == launches[1] == launches[2] and sum(launches[0].values()) < 90


def test_labels_are_mixed_as_the_samples_were():
    labels = torch.eye(4)
    info = {"mixed_with": torch.tensor([1, 0, 3, 3]), "mix_share": torch.tensor([0.25, 1.0, 0.5, 0.1])}
    mixed = mixed_before({"m": Preprocessed(torch.zeros(4, 2), info=info)}, labels)
    for row, (partner, share) in enumerate(zip(info["mixed_with"].tolist(), info["mix_share"].tolist(), strict=True)):
        torch.testing.assert_close(mixed[row], share * labels[row] + (1 - share) * labels[partner])
    assert mixed_before({"m": Preprocessed(torch.zeros(4, 2))}, labels) is labels


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"erase": 0.5}, {"cutmix": 0.5}], ids=str)
def test_other_sizes_are_refused_a_step_late_on_a_gpu(options):
    """As nobody waits for the mask; at once on a CPU."""
    x, labels, valid = pictures(4, 3, 16, 16), torch.arange(4), torch.ones(4, 16, 16, dtype=torch.bool)
    objective = Classify("classify", **options)
    for step in range(3):
        assert not on_gpu(x, labels, valid, (0, step), objective)[3]
    ragged = valid.clone()
    ragged[1, 8:] = False
    assert not on_gpu(x, labels, ragged, (0, 3), objective)[3]
    assert not on_gpu(x, labels, valid, (0, 3), objective)[3]  # another micro-batch of the step
    copy.deepcopy(objective)
    with pytest.raises(MaemmError, match="samples of 'm' differ in size"):
        on_gpu(x, labels, valid, (0, 4), objective)
    with pytest.raises(MaemmError, match="samples of 'm' differ in size"):
        rng = Rng((0, 0), range(4), 4)
        Classify("classify", **options).batch({"m": Preprocessed(x, ragged)}, labels, rng, Net())
