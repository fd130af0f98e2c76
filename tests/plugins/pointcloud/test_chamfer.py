from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maemm_plugins.pointcloud.chamfer import chamfer

GOLDEN = load_file(Path(__file__).parents[2] / "golden/pointmae/chamfer.safetensors")
NAMES = sorted({key.split("/")[0] for key in GOLDEN})


def plain(a, b, kind):
    """As in the paper: over all pairs."""
    distance = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
    ways = [distance.amin(-1), distance.amin(-2)]
    if kind == "cdl1":
        return (ways[0].sqrt().mean(-1) + ways[1].sqrt().mean(-1)) / 2
    return ways[0].mean(-1) + ways[1].mean(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["cdl1", "cdl2"])
def test_published_values_and_gradients(name, kind):
    """The published L1 gradient is NaN where points coincide; here it is finite."""
    key = kind[2:]
    a, b = (GOLDEN[f"{name}/{one}"].clone().requires_grad_() for one in "ab")
    found = chamfer(a, b, kind)
    torch.testing.assert_close(found, GOLDEN[f"{name}/{key}_per_pair"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.mean(), GOLDEN[f"{name}/{key}"], rtol=0, atol=1e-6)
    found.mean().backward()
    for one, grad in (("a", a.grad), ("b", b.grad)):
        expected = GOLDEN[f"{name}/{key}_grad_{one}"]
        told = expected.isfinite()
        torch.testing.assert_close(grad[told], expected[told], rtol=0, atol=1e-6)
        assert grad.isfinite().all() and (grad[~told] == 0).all()


@pytest.mark.parametrize("kind", ["cdl1", "cdl2"])
def test_gradients_are_exact(kind):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, 6))
    torch.testing.assert_close(chamfer(a, b, kind), plain(a, b, kind))
    assert torch.autograd.gradcheck(lambda a, b: chamfer(a, b, kind), (a, b))


@pytest.mark.parametrize("kind", ["cdl1", "cdl2"])
def test_float32_under_autocast(kind):
    a = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    b = a + 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        found = chamfer(a, b, kind)
        rounded = chamfer(a.bfloat16(), b, kind)
    assert found.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(found, plain(a, b, kind), rtol=1e-4, atol=1e-9)


def test_points_in_the_same_place_cost_nothing():
    """The expanded form of the distance would give up to 1e-6."""
    a = 100 + torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(2))
    assert (chamfer(a, a.flip(1), "cdl2") == 0).all()
    assert chamfer(a[:0], a[:0]).shape == (0,)
