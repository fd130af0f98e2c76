"""Mean and spread by channel, as ``maemm data stats`` takes them."""

import numpy as np
import torch

from maemm_plugins.signal.modality import Signal


def test_statistics_are_those_before_mean_and_std():
    x = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(0)) * 3 + 5
    valid = torch.ones(3, 2, 40, dtype=torch.bool)
    valid[1, 0, 30:] = False
    for options in ({}, {"mean": [1.0, 2.0], "std": [3.0, 4.0]}):
        modality = Signal(size=40, patch=10, channels=2, scale="none", **options)
        found = modality.by_channel(modality.preprocess({"x": x, "valid": valid}, None)).numpy()
        wanted = x.masked_fill(~valid, float("nan")).movedim(1, 0).flatten(1).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_scaled_by_itself_has_no_statistics():
    modality = Signal(size=40, patch=10, channels=2)
    assert modality.by_channel(modality.preprocess({"x": torch.randn(1, 2, 40)}, None)) is None
