"""A plain ViT of timm: the layout of MAE's encoder, and the call that loads it in timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from maemm.contract import ExportedState
from maemm.contract.errors import MaemmError
from maemm.model.encoders.vit import ViT, plain_vit
from maemm.model.heads import Linear

from ..modality import Image
from .mae import MAE

#: timm's model names, and the options that they imply
PUBLISHED = {
    "vit_base_patch16_224": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large_patch16_224": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge_patch14_224": {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
    "vit_tiny_patch16_224": {
        "patch_size": 16,
        "embed_dim": 192,
        "depth": 12,
        "num_heads": 3,
    },  # any other
}
DEFAULTS = {"img_size": 224, "in_chans": 3, "mlp_ratio": 4.0, "qkv_bias": True, "class_token": True, "reg_tokens": 0}
EPS = 1e-6  # of timm's layer norms


class Timm(MAE):
    """A plain ViT of timm, with register tokens where there are several class tokens (Pixio).

    Such files are recognised as ``mae``; this name is for writing them.
    """

    name = "timm"
    library = "timm"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return False

    def exported_state(self, model: Any) -> ExportedState:
        """The encoder and, of a fine-tuned model, its classifier; timm's outputs equal ours."""
        encoder = plain_vit(model, self.name)
        self._check(model)
        state = self.published(model, decoder=False)
        if encoder.prefix is not None and encoder.prefix.shape[1] > 1:
            tokens = state["cls_token"]
            state["cls_token"], state["reg_token"] = tokens[:, :1].clone(), tokens[:, 1:].clone()
        if model.head is not None and model.head.norm_when == "after":
            # Our classifier does not apply this norm, and timm does not have it then.
            state = {key: value for key, value in state.items() if not key.startswith("norm.")}
        name, options = described(model)
        return ExportedState(
            state,
            f"timm.create_model({name!r}, checkpoint_path={{path!r}}, {_python(options)})",
            "features" if model.head is None else "logits",
            partial(_load, name, options),
        )

    def _check(self, model: Any) -> None:
        self.check(model)
        head = model.head
        if head is not None and (type(head) is not Linear or head.pool == "cls+max"):
            raise MaemmError("layout 'timm' holds a linear classifier of mean, cls or max tokens, this head is another")
        if model.modalities["image"].position_kinds["encoder"] == "none":
            raise MaemmError("layout 'timm' adds positions, and this encoder has none")
        if head is None and isinstance(model.encoder.norm, nn.Identity):
            raise MaemmError("layout 'timm' has a final norm or a classifier, and this encoder has neither")


def described(model: Any) -> tuple[str, dict[str, Any]]:
    """timm's name for such a model, and the options in which it differs from that name."""
    encoder: ViT = model.encoder
    image: Image = model.modalities["image"]
    block: Any = encoder.blocks[0]
    prefix = 0 if encoder.prefix is None else encoder.prefix.shape[1]
    options = {
        "img_size": _one_or_both(image.size),
        "patch_size": _one_or_both(image.patch),
        "in_chans": image.channels,
        "embed_dim": encoder.dim,
        "depth": len(encoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / encoder.dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "class_token": prefix > 0,
        "reg_tokens": max(prefix - 1, 0),
    }
    sizes = ("patch_size", "embed_dim", "depth", "num_heads")
    fits = (name for name, published in PUBLISHED.items() if all(options[key] == published[key] for key in sizes))
    name = next(fits, list(PUBLISHED)[-1])
    implied = {**DEFAULTS, **PUBLISHED[name]}
    options = {key: value for key, value in options.items() if value != implied[key]} | _output_options(model)
    if block.norm1.eps != EPS:
        options["norm_layer"] = partial(nn.LayerNorm, eps=block.norm1.eps)
    return name, options


def _output_options(model: Any) -> dict[str, Any]:
    """The options that make timm's ``forward`` our ``embed``, or our ``logits``."""
    head = model.head
    if head is None:
        return {"num_classes": 0, "global_pool": "avg", "fc_norm": False}
    pool = {"mean": "avg", "cls": "token", "max": "max"}[head.pool]
    return {"num_classes": head.classes, "global_pool": pool, "fc_norm": head.norm_when == "after"}


def _one_or_both(sides: tuple[int, ...]) -> int | tuple[int, ...]:
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


def _python(options: Mapping[str, Any]) -> str:
    """Options as Python source."""
    return ", ".join(
        f"{key}=functools.partial(torch.nn.LayerNorm, eps={value.keywords['eps']})"
        if isinstance(value, partial)
        else f"{key}={value!r}"
        for key, value in options.items()
    )


def _load(name: str, options: Mapping[str, Any], path: str) -> Callable[[Tensor], Tensor]:
    import timm

    return timm.create_model(name, checkpoint_path=path, **options).eval()
