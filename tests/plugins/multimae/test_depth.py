"""Depth: units, standardisation, pixels without a measurement."""

import numpy as np
import pytest
import torch

from maemm_plugins.multimae.depth import Depth


def ramp(dtype, factor=1.0):
    return (factor * np.arange(1, 65).reshape(8, 8, 1)).astype(dtype)


def preprocessed(depth, raws):
    return depth.preprocess(depth.collate([depth.load(raw, None) for raw in raws]), None)


def test_units_and_bit_depths_do_not_matter():
    depth = Depth(size=8, patch=4, crop=None)
    x = preprocessed(
        depth, [ramp(np.uint8, 3), ramp(np.uint16, 900), ramp(np.float32, 0.05), ramp(np.float64)[..., 0]]
    ).x
    assert x.shape == (4, 1, 8, 8)
    for other in x[1:]:
        torch.testing.assert_close(x[0], other, rtol=0, atol=2e-2)
    torch.testing.assert_close(x[2], x[3], rtol=0, atol=1e-3)


def test_far_values_are_left_out_of_the_statistics():
    raw = ramp(np.float32)
    far = raw.copy()
    far[-1, -3:] = 1e6  # sky
    near, with_sky = preprocessed(Depth(size=8, patch=4, crop=None), [raw, far]).x
    torch.testing.assert_close(near.flatten()[:-3], with_sky.flatten()[:-3], rtol=0, atol=1e-6)
    plain = Depth(size=8, patch=4, crop=None, trim=None)
    assert torch.equal(preprocessed(plain, [raw]).x[0, 0], torch.from_numpy(raw[..., 0]))


def test_pixels_without_a_measurement():
    raw = ramp(np.uint16, 500)
    holes = raw.copy()
    holes[0, :4] = holes[2:4, 2:4] = 0
    depth = Depth(size=8, patch=2, crop=None, missing=0)
    batch = preprocessed(depth, [holes, raw])
    assert torch.equal(batch.valid, torch.from_numpy(np.stack([holes, raw])[..., 0] > 0)[:, None])
    tokens = depth.tokenize(batch)
    assert tokens.valid[1].all() and tokens.valid[0].sum() == 15  # one token has no pixel at all
    known = batch.x[0][batch.valid[0]]
    want = torch.from_numpy(holes[holes > 0].astype(np.float32) / 65536)
    kept = want.sort().values[int(0.1 * len(want)) : int(0.9 * len(want))]
    torch.testing.assert_close(known, (want - kept.mean()) / (kept.var() + 1e-6).sqrt(), rtol=1e-4, atol=1e-4)
    target = depth.target(tokens, tokens.all_indices())
    loss = depth.loss(target + 1, target, tokens.known)
    assert loss[0].tolist() == pytest.approx([float(v) for v in tokens.valid[0]]) and torch.allclose(
        loss[1], torch.ones(16)
    )


def test_what_is_no_depth_is_refused():
    depth = Depth(size=8, patch=4, crop=None)
    with pytest.raises(ValueError, match="has 3 channels, the model takes 1"):
        depth.load(np.zeros((8, 8, 3), np.uint8), None)
    with pytest.raises(ValueError, match="NaN or infinity; set gaps: true"):
        depth.load(np.full((8, 8, 1), np.nan, np.float32), None)
    with pytest.raises(ValueError, match="holds no value"):
        Depth(size=8, patch=4, gaps=True).load(np.full((8, 8, 1), np.nan, np.float32), None)


def test_the_baseline_of_absolute_errors_is_the_median():
    depth, rng = Depth(size=8, patch=2), np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=(5, 16, 4)).astype(np.float32))
    counted = torch.ones(5, 16)
    best = depth.baseline(target, counted).mean()
    for shift in (-0.1, 0.1):
        worse = depth.loss((target.flatten(0, 1).median(0).values + shift).expand_as(target), target).mean()
        assert best <= worse
