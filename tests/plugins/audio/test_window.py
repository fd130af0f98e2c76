"""The window decoder on lattices of any size, and in ragged batches."""

import pytest
import torch

from maemm import MaemmError, Rng
from maemm.contract import Preprocessed
from maemm.model.build import build_model
from maemm_plugins.audio.window import Lattice, WindowAttention, WindowBlock


def model_of(**decoder):
    recipe = {
        "modalities": {"audio": {"size": [64, 32], "patch": 4, "masking": {"type": "random", "ratio": 0.75}}},
        "encoder": {"type": "vit", "dim": 32, "depth": 1, "heads": 2},
        "decoder": {"type": "window", "dim": 32, "depth": 4, "heads": 2, "bias_hidden": 16, **decoder},
    }
    torch.manual_seed(0)
    return build_model(recipe).eval()


@pytest.mark.parametrize("grid", [(16, 8), (17, 8), (1, 8), (5, 3), (3, 9)])
@pytest.mark.parametrize("window, shift", [((4, 4), (2, 0)), ((6, 6), (3, 3)), ((2, 3), (1, 2)), ((1, 1), (0, 0))])
def test_any_lattice(grid, window, shift):
    model = model_of(window=list(window), shift=list(shift))
    out = model({"audio": torch.randn(2, grid[0] * 4, grid[1] * 4)}, rng=Rng((0,), range(2), 2))
    assert out.total.isfinite()


def test_windows_and_back():
    lattice = Lattice((8, 6), (4, 3), None, torch.zeros(1))
    x = torch.randn(2, 8, 6, 5)
    assert torch.equal(lattice.whole(lattice.windows(x)), x)
    assert torch.equal(lattice.windows(x)[:, 1], x[:, :4, 3:].reshape(2, 12, 5))


def test_attention_stays_in_its_window():
    block = WindowBlock(16, 2, (4, 4), (2, 0), 2.0, 1e-6, 8).eval()
    with torch.no_grad():
        block.attn.tau.fill_(1.0)
    x = torch.randn(1, 16, 8, 16)
    lattice, other = Lattice((16, 8), (4, 4), None, x), x.clone()
    other[:, 15] += 1.0  # with a shift of 2 the last rows stand beside the first two, and may not be seen there
    changed = (block(x, lattice) - block(other, lattice)).abs().amax((0, 2, 3)) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == [14, 15]


def test_padding_is_not_attended_to():
    """A short clip in a batch is decoded as it would be alone."""
    model = model_of()
    x = torch.randn(2, 64, 32)
    valid = torch.ones(2, 64, dtype=torch.bool)
    valid[0, 20:] = False
    batch = {"audio": Preprocessed(x, valid)}
    planned = model.plan(batch, Rng((0,), range(2), 2))
    plan = planned["audio"].plan
    out = model(planned)
    alone = model.plan({"audio": x[:1, :20]}, Rng((0,), range(1), 2))["audio"]
    seen, guessed = plan.visible[:1][plan.visible_valid[:1]][None], plan.predict[:1][plan.predict_valid[:1]][None]
    single = model({"audio": x[:1, :20]}, plans={"audio": type(plan)(seen, guessed)})
    assert alone.tokens.count == 40 and guessed.shape[1] == 30
    assert (single.pred["audio"][0] - out.pred["audio"][0][plan.predict_valid[0]]).abs().max() < 1e-5


def test_a_cold_head_is_not_too_cold():
    attention = WindowAttention(8, 2, (2, 2), 8).eval()
    x = torch.randn(1, 1, 4, 8)
    with torch.no_grad():
        attention.tau.copy_(torch.tensor([0.01, 0.01]))
        expected = attention(x)
        attention.tau.copy_(torch.tensor([0.0001, -3.0]))
        assert torch.equal(attention(x), expected)
        assert attention(torch.zeros(1, 1, 4, 8)).isfinite().all()


def test_dropout_of_the_bias_is_for_training_alone():
    attention = WindowAttention(8, 2, (2, 2), 64)
    assert not torch.equal(attention.bias(), attention.bias())
    attention.eval()
    assert torch.equal(attention.bias(), attention.bias())


@pytest.mark.parametrize(
    "options, what",
    [
        ({"heads": 3}, "multiple of 3 heads"),
        ({"window": [4]}, "window must be .int >= 1, int >= 1., got"),
        ({"shift": [4, 0]}, "below window"),
    ],
)
def test_wrong_options(options, what):
    with pytest.raises(MaemmError, match=what):
        model_of(**options)


def test_needs_a_lattice():
    recipe = {
        "modalities": {"image": {"size": 16, "patch": 8}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "window", "dim": 16, "depth": 2, "heads": 2},
    }
    model = build_model(recipe)
    assert model({"image": torch.randn(1, 3, 16, 16)}, rng=Rng((0,))).total.isfinite()  # pictures have one too
    planned = model.plan({"image": torch.randn(1, 3, 16, 16)}, Rng((0,)))
    from dataclasses import replace

    lost = {"image": replace(planned["image"], tokens=replace(planned["image"].tokens, grid=None))}
    with pytest.raises(MaemmError, match="lattice of two axes"):
        model(lost)


@pytest.mark.parametrize("rows_of_mask", [0, 1, 2])
def test_fused_attention_equals_the_products_written_out(rows_of_mask):
    """What a GPU computes, and a CPU."""
    torch.manual_seed(0)
    attention = WindowAttention(64, 4, (4, 4), 32).eval()
    with torch.no_grad():
        attention.tau.uniform_(0.005, 1)  # below its least value too
    x = torch.randn(2, 6, 16, 64, requires_grad=True)
    added = torch.randn(rows_of_mask, 6, 1, 1, 16) * 10 if rows_of_mask else None
    plain, fused = attention._plain(x, added), attention._fused(x, added)
    torch.testing.assert_close(fused, plain, atol=5e-6, rtol=1e-5)
    upstream = torch.randn_like(plain)
    parameters = [x, *attention.parameters()]
    gradients = (torch.autograd.grad(out, parameters, upstream) for out in (plain, fused))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, atol=1e-3 * float(a.abs().max()) + 1e-4, rtol=1e-4)
