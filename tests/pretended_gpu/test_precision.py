"""TF32 and bf16 only where they are meant: in the network, forward and backward."""

from __future__ import annotations

import traceback
from collections import defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maemm.contract.exact import exact_matmul, full_float32
from maemm.train.distributed import DistContext

from .device import OUR_FOLDERS, gpu
from .recipes import RECIPES, Samples, shrunk, two_steps

PRODUCTS = ("mm.", "addmm.", "bmm.", "baddbmm.", "convolution.", "_cdist", "_scaled_dot_product")
#: files of the network, whose products may be in TF32
NETWORK = (
    "model/encoders/", "model/decoders/", "model/blocks.py", "model/rotary.py", "/heads.py", "model/pooling.py",
    "contract/patches.py", "contract/grid.py", "contract/positions.py", "layers/mlp.py", "layers/attention.py",
    "models/vision_transformer.py",
    "pointcloud/embedding.py", "pointcloud/encoder.py", "pointcloud/modality.py",
    "audio/window.py", "train/step.py",
    "model/rotary.py", "video/omni.py", "objectives/adversarial.py",
)  # fmt: skip
QUICK = [
    "image/mae_tiny_cpu", "pointcloud/point_mae_tiny_cpu", "cav/cav_mae_tiny_cpu", "image/maskfeat_tiny_cpu",
]  # fmt: skip


def products(name: str, samples: Samples) -> dict[str, set[str]]:
    """{file of ours: precisions of the products of float32 in it}, of two steps with train.precision: fp32."""
    seen_in: dict[str, set[str]] = defaultdict(set)

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if str(func).removeprefix("aten.").startswith(PRODUCTS):
                frames = [frame.filename for frame in reversed(traceback.extract_stack())]
                ours = [file for file in frames if any(x in file for x in OUR_FOLDERS) and "/torch/" not in file]
                seen_in["/".join(ours[0].split("/")[-3:])].add(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    with gpu(), Record():
        two_steps(shrunk(name, {"train.precision": "fp32"}), samples, DistContext(device=torch.device("cuda", 0)))
    return dict(seen_in)


def check(name: str, samples: Samples) -> None:
    seen_in = products(name, samples)
    assert any("high" in precisions for precisions in seen_in.values())
    others = {file: x for file, x in seen_in.items() if "high" in x and not any(part in file for part in NETWORK)}
    assert not others
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", QUICK)
def test_tf32_is_of_the_network_alone(name, samples):
    check(name, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_tf32_is_of_the_network_alone_in_every_recipe(name, samples):
    check(name, samples)


@pytest.mark.parametrize("fault", ["preprocess", "forward"])
def test_planted_faults_are_seen(fault, samples, monkeypatch):
    from maemm.model.objectives.reconstruct import Reconstruct
    from maemm_plugins.image.modality import Image

    owner, method = (Image, "preprocess") if fault == "preprocess" else (Reconstruct, "forward")
    plain = getattr(owner, method)

    def faulty(self, *args, **kwargs):
        if fault == "preprocess":
            torch.set_float32_matmul_precision("high")
        x = torch.ones(3, 3, device="cuda")
        x @ x
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, faulty)
    with pytest.raises(AssertionError, match="model/(checks|model).py"):
        check("image/mae_tiny_cpu", samples)


def test_exact_products_have_exact_gradients(monkeypatch):
    """Also where the network's are in TF32, and in a compiled graph, in which they are one operation."""
    seen_in, product_of = [], torch.Tensor.__matmul__

    def noted(a, b):
        seen_in.append(torch.get_float32_matmul_precision())
        return product_of(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    a, b = torch.randn(5, 3), torch.randn(3, 4)
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    exact_matmul(*leaves).square().sum().backward()
    seen_in.clear()
    with gpu():
        torch.set_float32_matmul_precision("high")
        try:
            moved = [x.to("cuda").requires_grad_() for x in (a, b)]
            with torch.autocast("cuda", torch.bfloat16):
                product = exact_matmul(*moved)
            assert product.dtype is torch.float32
            product.square().sum().backward()
        finally:
            torch.set_float32_matmul_precision("highest")
        gradients = [x.grad.cpu() for x in moved]
    assert seen_in == ["highest"] * 3
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)

    monkeypatch.undo()

    def loss(a, b):
        return torch.ops.maemm.exact_matmul(a, b).square().sum()

    compiled = [x.clone().requires_grad_() for x in (a, b)]
    torch.compile(loss, backend="aot_eager", fullgraph=True)(*compiled).backward()
    for leaf, same in zip(leaves, compiled, strict=True):
        torch.testing.assert_close(leaf.grad, same.grad)


def test_full_float32_ends_with_its_block():
    torch.backends.cudnn.allow_tf32 = True
    with torch.autocast("cpu", torch.bfloat16):
        with full_float32("cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with gpu():
        with pytest.raises(ValueError, match="leave"), full_float32("cuda"):
            assert not torch.backends.cudnn.allow_tf32
            raise ValueError("leave")
        assert torch.backends.cudnn.allow_tf32
