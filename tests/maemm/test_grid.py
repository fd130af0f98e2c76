"""Patches, positions and targets of signals on a grid."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maemm import MaemmError, Preprocessed, Rng
from maemm.contract.grid import GridModality
from maemm.contract.patches import conv_to_linear, linear_to_conv, patchify, unpatchify
from maemm.contract.positions import Table, lattice, resize_table, sincos

GOLDEN = Path(__file__).parents[1] / "golden" / "mae"


@pytest.mark.parametrize("patch, size", [((3,), (12,)), ((2, 3), (4, 9)), ((2, 2, 4), (4, 6, 8))])
def test_patches_there_and_back(patch, size):
    x = torch.randn(2, 3, *size)
    values = patchify(x, patch)
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    assert torch.equal(unpatchify(values, grid, patch), x)


def test_a_patch_convolution_is_a_matrix():
    conv = torch.nn.Conv2d(3, 8, 4, 4)
    x = torch.randn(2, 3, 8, 12)
    matrix = conv_to_linear(conv.weight)
    ours = patchify(x, (4, 4)) @ matrix.T + conv.bias
    assert torch.allclose(ours, conv(x).flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.equal(linear_to_conv(matrix, 3, (4, 4)), conv.weight)


def test_sincos_equals_the_published_tables():
    stored = load_file(GOLDEN / "sincos.safetensors")
    checked = 0
    for key, table in stored.items():
        if key.endswith("f64") or key.startswith("resize") or table.ndim < 2:
            continue
        rows = table.reshape(-1, table.shape[-1])
        side = int(round((rows.shape[0] - 1) ** 0.5)) if rows.shape[0] % 2 else int(rows.shape[0] ** 0.5)
        prefix = rows.shape[0] - side * side
        if prefix not in (0, 1):
            continue
        ours = sincos(lattice((side, side)), table.shape[-1])
        assert (ours - rows[prefix:]).abs().max() < 1e-6, key
        checked += 1
    assert checked >= 2


def test_resize_equals_the_published_one():
    stored = load_file(GOLDEN / "sincos.safetensors")
    names = [k for k in stored if k.startswith("resize/")]
    assert names
    sources = [k for k in names if stored[k].shape[-2] in (196, 197)]
    checked = 0
    for source in sources:
        for key in names:
            base, table = stored[source].reshape(-1, stored[source].shape[-1]), stored[key]
            rows = table.reshape(-1, table.shape[-1])
            side = int((rows.shape[0] - 1) ** 0.5)
            if key == source or side * side != rows.shape[0] - 1 or rows.shape[-1] != base.shape[-1]:
                continue
            ours = resize_table(base[-196:][None], (14, 14), (side, side))[0]
            checked += int((ours - rows[1:]).abs().max() < 1e-5)
    assert checked >= 3


def test_target_normalisation():
    stored = load_file(GOLDEN / "target_norm.safetensors")
    patches = stored["patches"]
    modality = GridModality(size=32, patch=8, channels=3)
    x = unpatchify(patches, (4, 4), (8, 8))
    tokens = modality.tokenize(Preprocessed(x))
    assert torch.equal(tokens.values, patches)
    target = modality.target(tokens, tokens.all_indices())
    limits = torch.tensor([1e-5, 1e-5, 2e-4, 2e-4])
    assert ((target - stored["target"]).abs().amax((1, 2)) <= limits).all()
    assert torch.allclose(modality.denormalize_target(target, tokens, tokens.all_indices()), patches, atol=1e-5)


def test_unknown_normalisation_is_never_guessed():
    modality = GridModality(size=4, patch=2, normalize=None)
    tokens = modality.tokenize(Preprocessed(torch.zeros(1, 1, 4, 4)))
    with pytest.raises(MaemmError, match="norm_pix"):
        modality.target(tokens, tokens.all_indices())


@pytest.mark.parametrize(
    "options, what",
    [
        ({"size": 225, "patch": 16}, "225 is not a multiple of patch 16 .*224 or 240"),
        ({"size": 8, "patch": 16}, "not a multiple"),
        ({"size": [8, 8, 8], "patch": [2, 2]}, "numbers of axes"),
        ({"size": 0, "patch": 1}, "positive"),
        ({"size": 8, "patch": 2, "channels": 0}, "positive"),
    ],
)
def test_bad_sizes(options, what):
    with pytest.raises(MaemmError, match=what):
        GridModality(**options)


def test_wrong_channels_are_named():
    with pytest.raises(MaemmError, match="expects"):
        GridModality(size=8, patch=2, channels=3).tokenize(Preprocessed(torch.zeros(1, 1, 8, 8)))


def test_partly_padded_patches_are_not_valid():
    valid = torch.ones(1, 8, dtype=torch.bool)
    valid[0, 5:] = False
    tokens = GridModality(size=[8], patch=[2]).tokenize(Preprocessed(torch.zeros(1, 1, 8), valid))
    assert tokens.valid.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("size", [[8], [8, 8], [4, 8, 8]])
def test_untokenize_marks_what_is_hidden(size):
    modality = GridModality(size=size, patch=[2] * len(size), channels=2)
    preprocessed = modality.example(2, Rng((0,)))
    tokens = modality.tokenize(preprocessed)
    assert torch.equal(modality.untokenize(tokens.values, tokens), preprocessed.x)
    index = torch.tensor([[0], [1]])
    part = modality.untokenize(tokens.gather(index), tokens, index)
    assert (~part.isnan()).sum() == 2 * 2 ** len(size) * 2


def test_learned_table_is_resized_for_another_grid():
    table = Table(8, (4, 4), learned=True)
    assert table.table((6, 8)).shape == (1, 48, 8)
    assert [n for n, _ in table.named_parameters()] == ["values"]


def test_example_is_close_to_unit_variance():
    x = GridModality(size=16, patch=4, channels=3).example(4, Rng((1,))).x
    assert abs(x.var().item() - 1) < 0.1 and x.shape == (4, 3, 16, 16)
