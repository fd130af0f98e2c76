"""An interactive 3D viewer of point clouds: HTML with its own small script, without network access.

Input, visible part and reconstruction of a sample rotate together. Points are stored as 16-bit numbers in base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape

import numpy as np
from torch import Tensor

from .pictures import TILT, TURN, drawable, fitted, upright

_SCALE = 2**14  # of the 16-bit numbers; coordinates are within -2 .. 2


def interactive(columns: Mapping[str, Tensor], up: str = "y") -> str | None:
    """HTML of a viewer. ``columns``: caption -> (R, P, 3 + F): first the input, then the visible part, last the
    reconstruction. None if there is no reconstruction."""
    if len(columns) < 3:
        return None
    signals = list(columns.values())
    whole, visible, predicted = (drawable(signal.float().numpy()) for signal in (signals[0], signals[1], signals[-1]))
    clouds = [_packed(*rows, up) for rows in zip(whole, visible, predicted, strict=True)]
    captions = [escape(" ".join(list(columns)[at].split())) for at in (0, 1, -1)]
    captions[-1] += ': <b class="seen">seen</b> and <b class="guess">predicted</b>'
    canvases = "".join(f"<div><canvas></canvas><p>{caption}</p></div>" for caption in captions)
    buttons = "".join(f'<button type="button">{row + 1}</button>' for row in range(len(clouds)))
    data = json.dumps(clouds, separators=(",", ":"))
    script = _SCRIPT.replace("TURN", f"{TURN:.3f}").replace("TILT", f"{TILT:.3f}").replace("SCALE", str(_SCALE))
    return (
        f'<div class="cloud-view"><style>{_STYLE}</style>'
        f'<nav aria-label="sample">{buttons}<span>drag to turn</span></nav>'
        f'<div class="clouds">{canvases}</div><script>{script.replace("DATA", data)}</script></div>'
    )


def _packed(whole: np.ndarray, visible: np.ndarray, predicted: np.ndarray, up: str) -> list[str]:
    """Base64 of [visible points, hidden points, predicted points] of one sample (P, 3 + F), without duplicates."""
    is_hidden = np.isnan(visible[:, :3]).any(1)
    is_predicted = is_hidden & np.isfinite(predicted[:, :3]).all(1)
    is_real = np.isfinite(whole[:, :3]).all(1)
    parts = [whole[is_real & ~is_hidden, :3], whole[is_real & is_hidden, :3], predicted[is_predicted, :3]]
    points = np.concatenate(parts)
    if len(points):
        points = fitted(upright(points, up), upright(whole[is_real, :3], up))
    # Rounded before comparing: a point of two groups is stored relative to two centres.
    rounded = np.clip(np.rint(points * _SCALE), -(2**15), 2**15 - 1).astype("<i2")
    seen, hidden, guessed = np.split(rounded, np.cumsum([len(part) for part in parts[:2]]))
    seen_points = {point.tobytes() for point in seen}  # a point of a hidden and a visible group is visible
    hidden = hidden[np.array([point.tobytes() not in seen_points for point in hidden], bool)]
    parts = [np.unique(seen, axis=0), np.unique(hidden, axis=0), guessed]
    return [base64.b64encode(part.tobytes()).decode() for part in parts]


_STYLE = """
.cloud-view { --seen: var(--main, #0f6fb5); --guess: var(--baseline, #b4572a); }
.cloud-view nav { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin-bottom: 6px; }
.cloud-view nav span { color: var(--soft, #667); font-size: .86rem; margin-left: auto; }
.cloud-view button { font: inherit; min-width: 38px; min-height: 34px; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--rule, #ccc); background: none; color: inherit; }
.cloud-view button[aria-pressed=true] { border-color: var(--seen); color: var(--seen); font-weight: 600; }
.cloud-view .clouds { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.cloud-view canvas { display: block; width: 100%; aspect-ratio: 1; cursor: grab; touch-action: pan-y; }
.cloud-view .seen { color: var(--seen); } .cloud-view .guess { color: var(--guess); }
.cloud-view p { margin: 0; text-align: center; font-size: .86rem; color: var(--soft, #667); }
@media (max-width: 520px) { .cloud-view .clouds { grid-template-columns: 1fr 1fr; }
  .cloud-view .clouds div:last-child { grid-column: 1 / 3; } }
"""

# Points are drawn in eight layers from far to near, so that near ones cover far ones without a sort.
_SCRIPT = """(() => {
const box = document.currentScript.parentElement, all = DATA, LAYERS = 8;
const canvases = [...box.querySelectorAll("canvas")], buttons = [...box.querySelectorAll("button")];
const unpack = text => new Int16Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
let parts = [], turn = TURN, tilt = TILT, held = null, still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const shown = [["ink", "ink", null], ["seen", null, null], ["seen", null, "guess"]];
const colour = name => getComputedStyle(box).getPropertyValue("--" + name).trim() || "#456";
function paint(canvas, which) {
  const side = canvas.clientWidth * devicePixelRatio;
  if (!side) return;
  if (canvas.width !== Math.round(side)) canvas.width = canvas.height = Math.round(side);
  const pen = canvas.getContext("2d"), c = Math.cos(turn), s = Math.sin(turn), d = Math.cos(tilt), e = Math.sin(tilt);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const layers = Array.from({length: LAYERS}, () => new Map());
  parts.forEach((part, kind) => {
    const name = shown[which][kind];
    if (!name) return;
    for (let i = 0; i < part.length; i += 3) {
      const x = part[i] / SCALE, y = part[i + 1] / SCALE, z = part[i + 2] / SCALE;
      const a = c * x + s * z, b = c * z - s * x, up = d * y - e * b, near = d * b + e * y;
      const at = layers[Math.max(0, Math.min(LAYERS - 1, Math.floor((near + 1) / 2 * LAYERS)))];
      if (!at.has(name)) at.set(name, []);
      at.get(name).push(a, up, 1 / (1 - near / 4));
    }
  });
  layers.forEach((layer, depth) => layer.forEach((list, name) => {
    pen.fillStyle = colour(name);
    pen.globalAlpha = .28 + .72 * depth / (LAYERS - 1);
    pen.beginPath();
    for (let i = 0; i < list.length; i += 3) {
      const x = side * (.5 + .46 * list[i] * list[i + 2]), y = side * (.5 - .46 * list[i + 1] * list[i + 2]);
      const r = side * .0085 * list[i + 2];
      pen.moveTo(x + r, y);
      pen.arc(x, y, r, 0, 6.2832);
    }
    pen.fill();
  }));
}
const draw = () => canvases.forEach(paint);
function choose(row) {
  parts = all[row].map(unpack);
  buttons.forEach((one, at) => one.setAttribute("aria-pressed", at === row));
  draw();
}
buttons.forEach((one, row) => one.onclick = () => choose(row));
canvases.forEach(canvas => {
  canvas.onpointerdown = event => { held = [event.clientX, event.clientY]; still = true;
    canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = event => {
    if (!held) return;
    turn += (event.clientX - held[0]) * .01;
    tilt = Math.max(-1.5, Math.min(1.5, tilt + (event.clientY - held[1]) * .01));
    held = [event.clientX, event.clientY];
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = () => held = null;
});
let seen = true, last = 0;
new IntersectionObserver(found => seen = found[0].isIntersecting).observe(box);
new ResizeObserver(draw).observe(box);
const spin = now => {
  if (still) return;
  if (seen && now - last > 40) { turn += Math.min(now - last, 100) * .0002; last = now; draw(); }
  requestAnimationFrame(spin);
};
choose(0);
requestAnimationFrame(spin);
})();"""
