"""Clips as pictures: contact sheets and animations."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

from maemm.data.encodable import encodable

_FRAMES, _COLUMNS = 8, 4
LARGEST = 700_000  # bytes of an animation, before base64
_WIDE, _WIDEST = 640, 960  # pixels: narrower sheets are enlarged by whole factors, wider ones shrunk
_DURATION_MS = 2500  # of an animation, roughly
_STYLE = (
    ".clips{max-width:960px}.clips img{width:100%;image-rendering:pixelated}"
    ".clips div{display:grid;grid-template-columns:repeat(var(--n),1fr);gap:4px;font-size:12px}"
)


def contact_sheet(pixels: Tensor) -> Tensor:
    """(C, T, H, W) in 0 .. 1, NaN where hidden -> (h, w, 3): up to eight frames in rows of four, hidden pixels grey."""
    frames = _as_rgb(pixels)
    frames = frames[torch.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().long()]
    columns = min(_COLUMNS, len(frames))
    gap = max(1, frames.shape[1] // 32)
    frames = torch.nn.functional.pad(frames, (0, 0, 0, gap, 0, gap), value=1.0)
    short = -len(frames) % columns
    frames = torch.cat([frames, torch.ones(short, *frames.shape[1:])])
    rows = [torch.cat(list(frames[i : i + columns]), dim=1) for i in range(0, len(frames), columns)]
    return torch.cat(rows)[:-gap, :-gap]


def _as_rgb(pixels: Tensor) -> Tensor:
    """(C, T, H, W) -> (T, H, W, 3), grey where a pixel is NaN."""
    pixels = pixels[: 3 if len(pixels) >= 3 else 1]
    hidden = pixels.isnan().any(0)
    shown = encodable(pixels, 0, 1).expand(3, -1, -1, -1)
    return torch.where(hidden, 0.6, shown).permute(1, 2, 3, 0)


def animation(columns: Mapping[str, Tensor]) -> str | None:
    """HTML of one animated WebP; ``columns``: caption -> clips (R, C, T, H, W) in 0 .. 1, NaN where hidden.

    None for still pictures.
    """
    if not columns or max(clips.shape[2] for clips in columns.values()) < 2:
        return None
    data = base64.b64encode(webp(list(columns.values()))).decode()
    captions = [" ".join(caption.split()) for caption in columns]
    spans = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    return (
        f'<div class="clips"><style>{_STYLE}</style><div style="--n:{len(columns)}">{spans}</div>'
        f'<img alt="clips: {escape(", ".join(captions), quote=True)}" '
        f'src="data:image/webp;base64,{data}"></div>'
    )


def webp(columns: Sequence[Tensor]) -> bytes:
    """Clips (R, C, T, H, W) as one animated WebP of at most ``LARGEST`` bytes: a column each, one row per sample."""
    frames = max(clips.shape[2] for clips in columns)
    sheets = [torch.stack([_extended(clip, frames) for clip in clips]) for clips in columns]  # (R, T, H, W, 3)
    gap = max(1, sheets[0].shape[2] // 32)
    sheets = [torch.nn.functional.pad(sheet, (0, 0, 0, gap, 0, gap), value=1.0) for sheet in sheets]
    rows = torch.cat(sheets, 3)  # side by side
    whole = torch.cat(list(rows), 1)[:, :-gap, :-gap]
    pictures = [Image.fromarray(frame) for frame in (whole * 255).round().byte().numpy()]
    width = min(_WIDEST, pictures[0].width * max(1, _WIDE // pictures[0].width))
    for quality in (85, 60, 40, 20):
        data = _encoded(pictures, width, quality)
        if len(data) <= LARGEST:
            return data
    while len(data) > LARGEST and width > 64:
        width //= 2
        data = _encoded(pictures, width, quality)
    return data


def _encoded(pictures: list[Image.Image], width: int, quality: int) -> bytes:
    size = width, max(1, round(pictures[0].height * width / pictures[0].width))
    resampling = Image.Resampling.NEAREST if width >= pictures[0].width else Image.Resampling.BOX
    scaled = [picture.resize(size, resampling) for picture in pictures]
    pause = min(200, max(40, _DURATION_MS // len(scaled)))
    file = io.BytesIO()
    scaled[0].save(
        file, "WEBP", save_all=True, append_images=scaled[1:], duration=pause, loop=0, quality=quality, method=2
    )
    return file.getvalue()


def _extended(clip: Tensor, frames: int) -> Tensor:
    """(C, T, H, W) -> (frames, H, W, 3); a shorter clip repeats its last frame."""
    rgb = _as_rgb(clip)
    return rgb[torch.arange(frames).clamp(max=len(rgb) - 1)]
