"""maemm show where an encoder guides the masking: plans of an encoder without training, and what changes over it."""

import pytest
import torch

from maemm import registry
from maemm.tasks.show.run import show


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    registry.find("samples", "image")(folder)
    return folder


@pytest.fixture
def shown(images, tmp_path):
    def run(recipe, name="x.html", **overrides):
        made = show(images, tmp_path / name, recipe=recipe, count=2, overrides=overrides)
        return made.parts["image"], made.path.read_text()

    return run


def test_attention_is_shown(shown):
    part, html = shown("image/mae_attention_tiny_cpu")
    assert "share of attention from 0 to 1 over 25 % of the training (cosine), here 1" in html
    assert "an encoder without training guides it here" in html and "visible (25 %)" in part.rows.columns
    again, _ = shown("image/mae_attention_tiny_cpu")
    assert torch.equal(part.plan.visible, again.plan.visible)
    plain, _ = shown("image/mae_attention_tiny_cpu", **{"modalities.image.masking": {"type": "random"}})
    assert not torch.equal(part.plan.visible, plain.plan.visible)
    none, html = shown("image/mae_attention_tiny_cpu", **{"modalities.image.masking.share": 0.0})
    assert torch.equal(none.plan.visible, plain.plan.visible)
    assert "Masking: share of attention 0." in html and "without training" not in html


def test_clusters_are_shown_with_targets_of_features(shown):
    masking = {"type": "clusters", "object": "inner", "ratio": [0.5, 0.6]}
    part, html = shown("image/maskfeat_tiny_cpu", **{"modalities.image.masking": masking})
    assert "random until 6.25 % of the training, then clusters with hints from 0.1 to 0" in html
    assert "over 100 % of the rest (linear), here 0." in html
    assert "drawn for each batch from 0.5 to 0.6" in html and "an encoder without training" in html
    assert 64 * 0.5 <= part.plan.predict.shape[1] <= 64 * 0.6 + 1
