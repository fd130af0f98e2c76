"""Pictures of what a model sees and predicts: input, visible tokens, reconstruction. For any modality.

A modality provides ``untokenize`` (token values -> signal) and ``plot`` (signal -> axes).
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Plan, Preprocessed, Tokens
from maemm.contract.rng import Rng
from maemm.data.atomic import write_whole
from maemm.data.encodable import encodable
from maemm.data.transfer import module_on_host, on_host
from maemm.model.model import Model, as_preprocessed
from maemm.ui.figures import drawing
from maemm.ui.interactive import save_interactive
from maemm.ui.picture_rows import Rows

_WIDTH, _HEIGHT = 2.15, 1.6  # inches of a column, and of a row at most
_NOTE = 0.75  # inches of a note in place of pictures
_FARTHEST = 1e3  # times the largest input: predictions beyond are not drawn as they are
_TITLE, _CAPTION = 0.25, 0.12  # inches of a modality's name, and of a line of a caption

DIVERGED = "no pictures: nothing that the model predicts is a finite number"
INPUT = "input"
OUTRIGHT = "reconstruction"
TRUE = "reconstruction: uses each\nhidden patch's true mean and std"
NEAREST = "reconstruction: mean and std\nof the nearest visible patch"


@torch.no_grad()
def make_rows(
    model: Model, batch: Mapping[str, Preprocessed | Tensor], seed: int = 0, count: int = 4
) -> dict[str, Rows]:
    """Run the model on the first ``count`` samples in eval mode: {modality: Rows}. Needs a decoder."""
    samples = {name: _first(as_preprocessed(x), count) for name, x in batch.items()}
    total = max(preprocessed.x.shape[0] for preprocessed in samples.values())
    was_training = model.training
    model.eval()
    try:
        inputs_by_name = model.plan(samples, Rng((seed, "pictures"), range(total), total))
        pred = model.predict(inputs_by_name).pred
    finally:
        model.train(was_training)
    return rows_of_inputs(model, inputs_by_name, pred, count)


def rows_of_inputs(
    model: Model, inputs_by_name: Mapping[str, ModalityInput], pred: Mapping[str, Tensor], count: int
) -> dict[str, Rows]:
    """{modality: Rows} of the first ``count`` rows of planned inputs and what the model predicts of them."""
    # What follows asks for one number after the other, and is drawn on the host in the end.
    planned, pred = on_host(({name: (x.tokens, x.plan) for name, x in inputs_by_name.items()}, dict(pred)))
    rows = {}
    modalities = cast("dict[str, Modality]", dict(model.modalities))
    for name, (tokens, plan) in planned.items():
        if name in model.targets:
            rows[name] = Rows(note="no pictures: the model predicts features, not the signal")
            continue
        modality = module_on_host(modalities[name])
        # Of a modality that is only encoded nothing is predicted.
        of_modality = (
            pred[name] if name in pred else tokens.values.new_zeros(*plan.predict.shape, modality.output_dim())
        )
        if of_modality.numel() and not of_modality.isfinite().any():
            rows[name] = Rows(note=DIVERGED)
        else:
            rows[name] = _rows_of(modality, tokens, plan, of_modality.float(), count)
    return rows


Layer = tuple[Tensor, Tensor, Tensor | None]  # values (R, M, ...), index (R, M), where that is no padding (R, M)


def put_together(modality: Modality, tokens: Tokens, *layers: Layer) -> Tensor:
    """The signal (R, ...) of tokens laid on top of each other, all on the CPU; NaN where there is none.

    Predictions far beyond the input, such as those of a model that has diverged, are cut: what draws or encodes them
    was not made for such numbers.
    """
    whole = torch.full_like(tokens.values, math.nan, dtype=torch.float32)
    for values, index, valid in layers:
        whole = _put(whole, values, index, valid)
    signal = modality.untokenize(whole, _without_padding(tokens))
    assert signal is not None  # modalities without an inverse are not asked
    largest = _FARTHEST * max(1.0, float(tokens.values.float().nan_to_num(0, 0, 0).abs().amax()))
    return encodable(signal, -largest, largest, math.nan)


def _without_padding(tokens: Tokens) -> Tokens:
    """A set with NaN for the coordinates of padding, which would be drawn at the origin."""
    if tokens.grid is not None or tokens.valid is None or not tokens.coords.is_floating_point():
        return tokens
    return replace(tokens, coords=tokens.coords.masked_fill(~tokens.valid[..., None], math.nan))


def _rows_of(modality: Modality, tokens: Tokens, plan: Plan, pred: Tensor, count: int) -> Rows:
    tokens, plan = by_row(tokens, plan)
    values = tokens.values.float()
    if modality.untokenize(values, tokens) is None:
        return Rows(note="no pictures: this modality cannot be put together from its tokens")

    def signal(*layers: Layer) -> Tensor:
        return put_together(modality, tokens, *layers)[:count]

    visible = (tokens.gather(plan.visible).float(), plan.visible, plan.visible_valid)
    columns = {
        INPUT: signal((values, tokens.all_indices(), tokens.valid)),
        f"visible to the encoder ({visible_fraction(tokens, plan)})": signal(visible),
    }
    with_true = modality.denormalize_target(pred, tokens, plan.predict)
    if with_true.shape != tokens.gather(plan.predict).shape:
        return Rows(note="no pictures: what is predicted has another shape than the tokens")
    if plan.predict.shape[1]:
        with_nearest = modality.denormalize_target(pred, _with_nearest(tokens, plan), plan.predict)
        hidden = (plan.predict, plan.predict_valid)
        if torch.equal(with_true.nan_to_num(), with_nearest.nan_to_num()):  # nothing of the hidden signal was used
            columns[OUTRIGHT] = signal(visible, (with_true, *hidden))
        else:
            columns[TRUE] = signal(visible, (with_true, *hidden))
            columns[NEAREST] = signal(visible, (with_nearest, *hidden))
    return Rows(columns)


def _with_nearest(tokens: Tokens, plan: Plan) -> Tokens:
    """Tokens in which each hidden one is replaced by the nearest visible one, without the hidden signal."""
    if not plan.visible.shape[1]:
        return replace(tokens, values=torch.zeros_like(tokens.values))
    distance = torch.cdist(tokens.gather_coords(plan.predict).float(), tokens.gather_coords(plan.visible).float())
    if plan.visible_valid is not None:
        distance = distance.masked_fill(~plan.visible_valid[:, None], math.inf)
    nearest = plan.visible.gather(1, distance.argmin(-1))
    return replace(tokens, values=_put(tokens.values, tokens.gather(nearest), plan.predict, plan.predict_valid))


def _put(whole: Tensor, values: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    """A copy of (R, N, ...) with ``values`` (R, M, ...) at ``index`` (R, M); padding goes nowhere."""
    extended = torch.cat([whole, whole[:, :1]], 1)  # padding is written behind the last token and cut off
    if valid is not None:
        index = index.masked_fill(~valid, whole.shape[1])
    rows = torch.arange(len(index), device=index.device)[:, None]
    extended[rows, index] = values.to(extended.dtype)
    return extended[:, :-1]


def by_row(tokens: Tokens, plan: Plan) -> tuple[Tokens, Plan]:
    """Tokens and plan with one plan for each row: tokens of samples with several plans are repeated."""
    if plan.rows is None:
        return tokens, plan
    repeated = {
        name: value[plan.rows]
        for name in ("values", "coords", "valid")
        if (value := getattr(tokens, name)) is not None and value.shape[0] == tokens.batch
    }
    return replace(tokens, rows=None, **repeated), replace(plan, rows=None)


def visible_fraction(tokens: Tokens, plan: Plan) -> str:
    """The fraction of the tokens that is visible, without padding: "25 %"."""
    visible = plan.visible.numel() if plan.visible_valid is None else int(plan.visible_valid.sum())
    total = tokens.batch * tokens.count if tokens.valid is None else int(tokens.valid.sum())
    return f"{100 * visible / max(1, total):.0f} %"


def _first(preprocessed: Preprocessed, count: int) -> Preprocessed:
    """The first ``count`` samples of a batch."""
    size = preprocessed.x.shape[0]

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value

    info = {key: cut(value) for key, value in preprocessed.info.items()}
    return Preprocessed(preprocessed.x[:count], cut(preprocessed.valid), info, cut(preprocessed.present))


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

    ``batch``: {modality: Preprocessed or bare tensor}, or several of them, of which each modality is drawn from the
    first that has it. The model is back in its mode afterwards. The file appears whole or not at all.
    ``interactive``: an HTML piece with sounds, animations or shapes to turn goes beside it, see
    :func:`~maemm.ui.interactive.save_interactive`. Raises :class:`MaemmError` when the model has no decoder.
    """
    modalities = cast("dict[str, Modality]", dict(model.modalities))
    rows: dict[str, Rows] = {}
    for part in [batch] if isinstance(batch, Mapping) else batch:
        rows = {**make_rows(model, part, seed, count), **rows}
    if interactive:
        save_interactive(modalities, rows, Path(path).with_suffix(".html"))
    return draw_rows(modalities, rows, path)


def draw_rows(modalities: Mapping[str, Modality], rows: Mapping[str, Rows], path: str | os.PathLike) -> Path:
    """Draw rows of pictures, such as :func:`make_rows` makes, to a PNG file."""
    data = png(modalities, rows)
    return write_whole(Path(path), lambda file: file.write_bytes(data), "the picture")


def png(modalities: Mapping[str, Modality], rows_by_name: Mapping[str, Rows]) -> bytes:
    """Rows of pictures as a PNG."""
    with drawing() as figure_class:
        return _bytes(_figure(figure_class, modalities, rows_by_name))


def _figure(figure_class: Any, modalities: Mapping[str, Modality], rows_by_name: Mapping[str, Rows]) -> Any:
    """Rows of pictures as a figure, those of each modality below each other."""
    titled = len(rows_by_name) > 1
    heads, heights = [], []
    for name, rows in rows_by_name.items():
        lines = max((caption.count("\n") + 1 for caption in rows.columns), default=0)
        heads.append(0.1 + _CAPTION * lines + _TITLE * titled if rows.columns else _NOTE)
        heights.append(heads[-1] + len(rows) * _row_height(figure_class, modalities[name], rows))
    width = max(4.0, _WIDTH * max(len(rows.columns) for rows in rows_by_name.values()))
    figure = figure_class(figsize=(width, sum(heights)), dpi=120)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (name, rows), height, head in zip(parts, rows_by_name.items(), heights, heads, strict=True):
        if titled:
            part.suptitle(name, x=0.01, y=0.995, ha="left", va="top", fontsize=9, fontweight="bold")
        if rows.columns:
            _draw_grid(part, modalities[name], rows, 1 - head / height, 0.05 / height)
        else:
            part.text(0.5, 0.4, rows.note, ha="center", va="center", fontsize=8)
    return figure


def cell(modality: Modality, signal: Tensor) -> bytes:
    """One signal as a PNG without margins."""
    with drawing() as figure_class:
        figure = figure_class(figsize=(2.2, 2.2), dpi=110)
        _draw_signal(figure.add_axes((0, 0, 1, 1)), modality, signal)
        return _bytes(figure)


def _bytes(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the same bytes for the same picture
    return file.getvalue()


def _draw_signal(axes: Any, modality: Modality, signal: Tensor) -> None:
    axes.set_facecolor("0.6")
    axes.set_xticks([])
    axes.set_yticks([])
    if not bool(signal.isnan().all()):  # a sample that lacks the modality stays grey
        modality.plot(axes, signal)


def _row_height(figure_class: Any, modality: Modality, rows: Rows) -> float:
    """Inches of a row: as high as its pictures are in a column's width, where they are pictures with a shape."""
    shown = [signal for signals in rows.columns.values() for signal in signals if not bool(signal.isnan().all())]
    if not shown:
        return _HEIGHT
    axes = figure_class().add_subplot()
    _draw_signal(axes, modality, shown[0])
    array = axes.images[0].get_array() if axes.images else None
    if array is None or axes.get_aspect() == "auto":
        return _HEIGHT
    return min(_HEIGHT, max(0.3, _WIDTH * array.shape[0] / array.shape[1] + 0.1))


def _draw_grid(part: Any, modality: Modality, rows: Rows, top: float, bottom: float) -> None:
    """The pictures of one modality, between ``bottom`` and ``top`` as fractions of the figure's part."""
    grid = part.subplots(len(rows), len(rows.columns), squeeze=False)
    part.subplots_adjust(left=0.005, right=0.995, bottom=bottom, top=top, wspace=0.03, hspace=0.05)
    for column, (caption, signals) in enumerate(rows.columns.items()):
        grid[0, column].set_title(caption, fontsize=7, pad=3)
        for row, signal in enumerate(signals):
            _draw_signal(grid[row, column], modality, signal)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    for row, name in enumerate(rows.names):
        axes = grid[row, 0]
        axes.text(
            0.02, 0.98, name, transform=axes.transAxes, ha="left", va="top", fontsize=5.5, color="black", bbox=box
        )
