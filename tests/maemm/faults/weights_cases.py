"""A tiny image model, its weights in published layouts, and what every refusal must be."""

import pytest

from maemm import MaemmError

TINY = {"heads": 2, "decoder_heads": 2, "norm_pix": True}
RECIPE = {
    "modalities": {
        "image": {
            "type": "image", "size": 16, "patch": 8, "position": "fixed", "normalize": "patch",
            "masking": {"type": "random", "ratio": 0.5},
        }
    },
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2, "prefix": 1, "prefix_position": "fixed"},
    "decoder": {"type": "full", "dim": 8, "depth": 1, "heads": 2},
}  # fmt: skip
ADVICE_OF_OTHERS = ("weights_only", "torch.load", "unsafe", "trust", "WeightsUnpickler", "Traceback")


def tiny_model():
    import torch

    from maemm.model.build import build_model

    torch.manual_seed(0)
    return build_model(RECIPE).eval()


def published(kind="mae"):
    """The tiny model's state dict in a published layout."""
    from maemm import registry

    return {key: value.clone() for key, value in registry.find("weights", kind)().write(tiny_model(), {}).items()}


def refused(call, *words):
    """Run ``call``, which must be refused in one readable line of our own that has all ``words``; -> the line."""
    with pytest.raises(MaemmError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000, text
    assert ";" in text, f"nothing to do is said: {text}"
    assert not [advice for advice in ADVICE_OF_OTHERS if advice in text], text
    assert all(word in text for word in words), f"{words} not all in {text}"
    return text
