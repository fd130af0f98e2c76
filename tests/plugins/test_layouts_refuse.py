"""Published layouts and models that they were not made for: refused in a line, not written as something unreadable."""

import pytest
import torch

from maemm import MaemmError, registry
from maemm.__main__ import main
from maemm.model.build import build_model
from maemm.tasks.export.run import export
from maemm.weights import save
from maemm.weights.layout import refusing

VIT = {"type": "vit", "dim": 16, "depth": 1, "heads": 2}
STREAMS = {"type": "streams", "dim": 16, "depth": 1, "heads": 2}
FULL = {"type": "full", "dim": 16, "depth": 1, "heads": 2}
WINDOW = {"type": "window", "dim": 16, "depth": 1, "heads": 2}
HEAD = {"type": "linear", "classes": 3}
SIGNALS = {
    "image": {"size": 32, "patch": 8},
    "audio": {"size": [64, 32], "patch": [16, 8]},
    "video": {"size": [4, 32, 32], "patch": [2, 8, 8]},
}


def small(*names, encoder=VIT, decoder=FULL, head=None, **options):
    torch.manual_seed(0)
    modalities = {name: {**SIGNALS[name], **options} for name in names}
    return build_model({"modalities": modalities, "encoder": encoder, "decoder": decoder, "head": head}).eval()


@pytest.mark.parametrize(
    "layout, names, parts, message",
    [
        ("mae", ["image"], {"decoder": WINDOW}, "no place for this decoder (Window)"),
        ("mae", ["image"], {"decoder": {"type": "linear"}}, "no place for this decoder (LinearDecoder)"),
        ("hf_vitmae", ["image"], {"decoder": WINDOW}, "no place for this decoder (Window)"),
        ("pixio", ["image"], {"encoder": STREAMS}, "holds a plain ViT of one modality"),
        ("mae", ["image"], {"encoder": {**VIT, "prefix": 0}}, "has class tokens, and this encoder has none"),
        ("mae", ["image"], {"encoder": {**VIT, "hidden": "replace"}}, "no token for hidden patches"),
        ("mae", ["image"], {"decoder": {**FULL, "prefix": "own"}}, "takes the encoder's class tokens"),
        ("mae", ["image"], {"position": "none"}, "holds tables of positions"),
        ("mae", ["image"], {"decoder": None, "head": {**HEAD, "pool": "max"}}, "this head is another"),
        ("audiomae", ["audio"], {"decoder": {"type": "linear"}}, "no place for this decoder (LinearDecoder)"),
        ("audiomae", ["audio"], {"encoder": STREAMS}, "holds a plain ViT of one modality"),
        ("videomae", ["video"], {"encoder": STREAMS}, "holds a plain ViT of one modality"),
        ("videomae", ["video"], {"decoder": WINDOW, "encoder": {**VIT, "prefix": 0}}, "this decoder (Window)"),
        ("cavmae", ["audio", "image"], {"encoder": STREAMS}, "has streams of audio and of image"),
        (
            "cavmae",
            ["audio", "image"],
            {"encoder": {**STREAMS, "streams": ["audio", "image"]}, "decoder": WINDOW},
            "no place for this decoder (Window)",
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(layout, names, parts, message):
    with pytest.raises(MaemmError) as error:
        registry.find("weights", layout)().write(small(*names, **parts), {})
    assert message in str(error.value) and layout in str(error.value) and "\n" not in str(error.value)


def test_convert_says_it_in_a_line_and_writes_nothing(tmp_path, capsys):
    save(small("image", decoder=WINDOW), tmp_path / "model.safetensors")
    command = ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out.pth"), "--to", "mae"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "no place for this decoder (Window)" in error and error.count("\n") == 1 and "internal" not in error
    assert not (tmp_path / "out.pth").exists()


def test_the_window_decoder_stays_where_it_belongs():
    layout = registry.find("weights", "audiomae")()
    state = layout.write(small("audio", decoder=WINDOW), {})
    assert "decoder_blocks.0.attn.tau" in state and layout.match(set(state), {k: v.shape for k, v in state.items()})


def test_what_only_pre_training_needs_is_no_obstacle_for_timm(tmp_path):
    for number, decoder in enumerate((WINDOW, {"type": "linear"})):
        encoder = {**VIT, "hidden": "replace" if decoder["type"] == "linear" else "remove"}
        model = small("image", decoder=decoder, encoder=encoder)
        assert max(export(model, tmp_path / f"{number}.safetensors", to="timm").differences.values()) < 1e-5


def test_whatever_a_layout_raises_is_a_refusal():
    message = r"layout 'theirs' cannot hold this model \(KeyError: 'norm'\); use another"
    with pytest.raises(MaemmError, match=message), refusing("theirs"):
        {}["norm"]
