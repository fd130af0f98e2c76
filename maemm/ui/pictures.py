"""Pictures of what a model sees and says: input, visible tokens, reconstruction. For any modality.

A modality is asked for two things only: ``untokenize`` (token values -> signal) and ``rng`` (signal -> axes).
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Plan, Preprocessed, Tokens
from maemm.contract.rng import Rng
from maemm.data.atomic import write_whole
from maemm.model.model import Model, as_preprocessed
from maemm.ui.interactive import save_interactive
from maemm.ui.picture_rows import Rows

_WIDTH, _HEIGHT = 2.15, 1.6  # inches of a column, and of a row at most
_HEAD = 0.75  # inches above the rows

INPUT = "input"
OUTRIGHT = "reconstruction"
TRUE = "reconstruction: uses each\nhidden patch's true mean and spread"
NEAREST = "reconstruction: mean and spread\nof the nearest visible patch"


@torch.no_grad()
def make_rows(
    model: Model, batch: Mapping[str, Preprocessed | Tensor], seed: int = 0, count: int = 4
) -> dict[str, Rows]:
    """Run the model on the first ``count`` samples in eval mode: {modality: Rows}. Needs a decoder."""
    few = {name: _first(as_preprocessed(one), count) for name, one in batch.items()}
    total = max(one.x.shape[0] for one in few.values())
    was_training = model.training
    model.eval()
    try:
        inputs = model.plan(few, Rng((seed, "pictures"), range(total), total))
        pred = model.predict(inputs).pred
    finally:
        model.train(was_training)
    made = {}
    for name, one in inputs.items():
        if name in model.targets:
            made[name] = Rows(note="no pictures: the model predicts features, not the signal")
        else:
            made[name] = _rows_of(model.modalities[name], one, pred[name].float(), count)
    return made


Layer = tuple[Tensor, Tensor, Tensor | None]  # values (R, M, ...), index (R, M), where that is no padding (R, M)


def put_together(modality: Modality, tokens: Tokens, *layers: Layer) -> Tensor:
    """The signal (R, ...) of tokens laid on top of each other, on the CPU; NaN where there is none."""
    whole = torch.full_like(tokens.values, math.nan, dtype=torch.float32)
    for values, index, valid in layers:
        whole = _put(whole, values, index, valid)
    return modality.untokenize(whole, tokens).cpu()


def _rows_of(modality: Modality, planned: ModalityInput, pred: Tensor, count: int) -> Rows:
    tokens, plan = by_row(planned.tokens, planned.plan)
    everything = tokens.everything()
    given = tokens.values.float()
    if modality.untokenize(given, tokens) is None:
        return Rows(note="no pictures: this modality cannot be put together from its tokens")

    def signal(*layers: Layer) -> Tensor:
        return put_together(modality, tokens, *layers)[:count]

    seen = (tokens.gather(plan.visible).float(), plan.visible, plan.visible_valid)
    columns = {
        INPUT: signal((given, everything, tokens.valid)),
        f"visible to the encoder ({visible_fraction(tokens, plan)})": signal(seen),
    }
    own = modality.denormalize_target(pred, tokens, plan.predict)
    if own.shape != tokens.gather(plan.predict).shape:
        return Rows(note="no pictures: what is predicted has another shape than the tokens")
    if plan.predict.shape[1]:
        lent = modality.denormalize_target(pred, _lend(tokens, plan), plan.predict)
        guess = (plan.predict, plan.predict_valid)
        if torch.equal(own.nan_to_num(), lent.nan_to_num()):  # nothing of the hidden signal was used
            columns[OUTRIGHT] = signal(seen, (own, *guess))
        else:
            columns[TRUE] = signal(seen, (own, *guess))
            columns[NEAREST] = signal(seen, (lent, *guess))
    return Rows(columns)


def _lend(tokens: Tokens, plan: Plan) -> Tokens:
    """Tokens in which each hidden one is replaced by the nearest visible one: what can be known without peeking."""
    if not plan.visible.shape[1]:
        return replace(tokens, values=torch.zeros_like(tokens.values))
    distance = torch.cdist(tokens.gather_coords(plan.predict).float(), tokens.gather_coords(plan.visible).float())
    if plan.visible_valid is not None:
        distance = distance.masked_fill(~plan.visible_valid[:, None], math.inf)
    nearest = plan.visible.gather(1, distance.argmin(-1))
    return replace(tokens, values=_put(tokens.values, tokens.gather(nearest), plan.predict, plan.predict_valid))


def _put(whole: Tensor, values: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    """A copy of (R, N, ...) with ``values`` (R, M, ...) at ``index`` (R, M); padding goes nowhere."""
    spare = torch.cat([whole, whole[:, :1]], 1)  # padding is written behind the last token and cut off
    if valid is not None:
        index = index.masked_fill(~valid, whole.shape[1])
    rows = torch.arange(len(index), device=index.device)[:, None]
    spare[rows, index] = values.to(spare.dtype)
    return spare[:, :-1]


def by_row(tokens: Tokens, plan: Plan) -> tuple[Tokens, Plan]:
    """Several plans of one sample -> tokens repeated, so that row r of both belongs together."""
    if plan.rows is None:
        return tokens, plan
    taken = {
        name: value[plan.rows]
        for name in ("values", "coords", "valid")
        if (value := getattr(tokens, name)) is not None and value.shape[0] == tokens.batch
    }
    return replace(tokens, rows=None, **taken), replace(plan, rows=None)


def visible_fraction(tokens: Tokens, plan: Plan) -> str:
    """How much of the tokens is visible, padding aside."""
    seen = plan.visible.numel() if plan.visible_valid is None else int(plan.visible_valid.sum())
    of = tokens.batch * tokens.count if tokens.valid is None else int(tokens.valid.sum())
    return f"{100 * seen / max(1, of):.0f} %"


def _first(one: Preprocessed, count: int) -> Preprocessed:
    size = one.x.shape[0]

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value

    info = {key: cut(value) for key, value in one.info.items()}
    return Preprocessed(one.x[:count], cut(one.valid), info, cut(one.present))


# ------------------------------------------------------------------------------------------------ drawing
def save_pictures(
    model: Model,
    batch: Mapping[str, Preprocessed | Tensor] | Sequence[Mapping[str, Preprocessed | Tensor]],
    path: str | os.PathLike,
    seed: int = 0,
    count: int = 4,
    interactive: bool = False,
) -> Path:
    """Write a PNG with a row per sample and columns input, visible, reconstruction; modalities below each other.

    ``batch``: {modality: Preprocessed or bare tensor}, or several of them that do not meet in the model, of which a
    modality's first is drawn. The model is back in its mode afterwards. The file appears
    whole or not at all. ``interactive``: what can be turned or played goes to an HTML piece beside it, see
    :func:`~maemm.ui.interactive.save_views`. Raises :class:`MaemmError` when the model has no decoder.
    """
    made: dict[str, Rows] = {}
    for one in [batch] if isinstance(batch, Mapping) else batch:
        made = {**make_rows(model, one, seed, count), **made}
    if interactive:
        save_interactive(model.modalities, made, Path(path).with_suffix(".html"))
    return draw_rows(model.modalities, made, path)


def draw_rows(modalities: Mapping[str, Modality], made: Mapping[str, Rows], path: str | os.PathLike) -> Path:
    """Draw rows of pictures, such as :func:`make_rows` makes, to a PNG."""
    data = png(modalities, made)
    return write_whole(Path(path), lambda file: file.write_bytes(data), "the picture")


def png(modalities: Mapping[str, Modality], made: Mapping[str, Rows]) -> bytes:
    """The same as bytes."""
    from matplotlib.figure import Figure

    each = {name: _row_height(modalities[name], rows) for name, rows in made.items()}
    heights = [each[name] * len(rows) + _HEAD if rows.columns else _HEAD for name, rows in made.items()]
    figure = Figure(figsize=(max(4.0, _WIDTH * max(len(r.columns) for r in made.values())), sum(heights)), dpi=120)
    for part, (name, rows), height in zip(_parts(figure, heights), made.items(), heights, strict=True):
        _draw_one(part, modalities[name], name if len(made) > 1 else "", rows, height)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the same bytes for the same picture
    return file.getvalue()


def cell(modality: Modality, signal: Tensor) -> bytes:
    """One signal as a PNG without margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2, 2.2), dpi=110)
    _draw_signal(figure.add_axes((0, 0, 1, 1)), modality, signal)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_signal(axes: Any, modality: Modality, signal: Tensor) -> None:
    axes.set_facecolor("0.6")
    axes.set_xticks([])
    axes.set_yticks([])
    if not bool(signal.isnan().all()):  # a sample that lacks the modality stays grey
        modality.plot(axes, signal)


def _row_height(modality: Modality, rows: Rows) -> float:
    """Inches of a row: as high as its pictures are in a column's width, where they are pictures with a shape."""
    from matplotlib.figure import Figure

    shown = [one for signals in rows.columns.values() for one in signals if not bool(one.isnan().all())]
    if not shown:
        return _HEIGHT
    axes = Figure().add_subplot()
    _draw_signal(axes, modality, shown[0])
    if not axes.images or axes.get_aspect() == "auto":
        return _HEIGHT
    high, wide = axes.images[0].get_array().shape[:2]
    return min(_HEIGHT, max(0.3, _WIDTH * high / wide + 0.1))


def _parts(figure: Any, heights: list[float]) -> list[Any]:
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])


def _draw_one(part: Any, modality: Modality, title: str, rows: Rows, height: float) -> None:
    """One modality on its part of the figure, which is ``height`` inches high."""
    if title:
        part.suptitle(title, x=0.01, y=0.995, ha="left", va="top", fontsize=9, fontweight="bold")
    if not rows.columns:
        part.text(0.5, 0.4, rows.note, ha="center", va="center", fontsize=8)
        return
    grid = part.subplots(len(rows), len(rows.columns), squeeze=False)
    part.subplots_adjust(left=0.005, right=0.995, bottom=0.05 / height, top=1 - 0.7 / height, wspace=0.03, hspace=0.05)
    for column, (caption, signals) in enumerate(rows.columns.items()):
        grid[0, column].set_title(caption, fontsize=6.5)
        for row, signal in enumerate(signals):
            _draw_signal(grid[row, column], modality, signal)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    for row, name in enumerate(rows.names):
        axes = grid[row, 0]
        axes.text(
            0.02, 0.98, name, transform=axes.transAxes, ha="left", va="top", fontsize=5.5, color="black", bbox=box
        )
