"""The published numbers of the video recipes; tests/test_recipes.py has what holds for every recipe."""

import pytest
import torch

import maemm

PUBLISHED = {
    "video/videomae_small": 24_029_376,
    "video/videomae_base": 94_210_944,
    "video/videomae_base_ucf101": 94_210_944,
    "video/videomae_v2_base": 94_210_944,
    "video/videomae_large": 342_996_992,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    with torch.device("meta"):
        model = maemm.build(name)
    # VideoMAE's keys have no bias; here they have one that softmax does not see.
    keys = sum(p.numel() // 3 for key, p in model.named_parameters() if key.endswith("qkv.bias"))
    assert sum(p.numel() for p in model.parameters()) - keys == PUBLISHED[name]


def test_dual_masking_decodes_what_was_published():
    """944 tokens reach the decoder of the v2 recipe (160 visible and 784 decoded), and 704 count in the loss."""
    with torch.device("meta"):
        masking = maemm.build("video/videomae_v2_base").masking
    tokens = maemm.contract.Tokens(torch.zeros(3, 1568, 1), torch.zeros(1, 1568, 3), (8, 14, 14))
    plan = masking({"video": tokens}, maemm.Rng((0, 0), range(3), 3))["video"]
    assert plan.visible.shape == (3, 160) and plan.predict.shape == (3, 784)
    assert plan.counted.sum(1).tolist() == [704.0] * 3
