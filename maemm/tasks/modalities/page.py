"""The page of a comparison of subsets: the table, what each modality is worth, pictures of any subset in, all out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maemm.contract import Preprocessed, Source
from maemm.contract.rng import Rng
from maemm.data.atomic import write_whole
from maemm.data.bad_samples import reason_of
from maemm.data.single_pass import each
from maemm.data.subset import Subset as SomeSamples
from maemm.data.transfer import on_host
from maemm.model.model import Model
from maemm.tasks._shared.baselines import TRAINED
from maemm.tasks._shared.embedding import evaluating
from maemm.tasks._shared.inputs import evenly_spaced
from maemm.tasks.modalities.results import PAGE, Modalities
from maemm.tasks.modalities.subsets import Subset, planned, title
from maemm.ui.page import embedded, render, write_html
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import INPUT, draw_rows, png, rows_of_inputs

GROWING = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # fractions of visible tokens, a frame each
_FRAME_MS, _LAST_MS = 700, 2000
_WIDTH = 1100  # pixels of a picture on the page


def write_page(result: Modalities, model: Model, source: Source, folder: Path, count: int) -> Path:
    """Write the pictures and ``report.html`` into ``folder``; -> the page. Pictures that fail are named on it."""
    notes = [*result.notes]
    batch = _some(model, source, count) if count else None
    pictures = []
    if batch is not None and model.decoder is not None:
        for name, draw in (("subsets.png", _subsets_picture), ("growing.webp", _growing)):
            try:
                pictures.append(draw(result, model, batch, folder / name))
            except Exception as error:  # the figures are what was asked for
                notes.append(f"no {name} ({reason_of(error)})")
    text = render(
        "modalities.html",
        title="What each modality is worth",
        lead=f"All {len(result.subsets)} subsets of {', '.join(result.inputs)}.",
        tiles=_tiles(result),
        table=result.rows(),
        verdicts=result.verdicts(),
        pictures=pictures,
        protocol=result.protocol(),
        notes=notes,
    )
    return write_html(folder / PAGE, text)


def _tiles(result: Modalities) -> list[tuple[str, str]]:
    if not result.cells:
        return []
    best = max(result.subsets, key=lambda subset: result.score("linear", subset, TRAINED))
    tiles = [(f"{result.score('linear', best):.3f}", f"linear accuracy, the best: {title(best)}")]
    return tiles + [(f"{value:+.3f}", f"what {name} is worth") for name, value in result.worth().items()]


def _some(model: Model, source: Source, count: int) -> Mapping[str, Preprocessed] | None:
    some = SomeSamples(source, evenly_spaced(len(source), count))
    for read in each(some, dict(model.modalities), batch=count):
        if read.raw:
            moved = read.to(next(model.parameters()).device)
            return model.preprocess(moved.raw, None, moved.present, moved.side_inputs)
    return None


def _rows(
    model: Model, batch: Mapping[str, Preprocessed], subset: Subset, visible: float, count: int
) -> dict[str, Rows]:
    samples = _count(batch)
    rng = Rng((0, "modalities"), range(samples), samples)
    with evaluating(model):
        inputs = planned(model, batch, subset, visible, rng)
        return rows_of_inputs(model, inputs, on_host(model.predict(inputs).pred), count)


def _count(batch: Mapping[str, Preprocessed]) -> int:
    return max(x.x.shape[0] for x in batch.values())


def _subsets_picture(result: Modalities, model: Model, batch: Mapping[str, Preprocessed], path: Path) -> dict[str, Any]:
    """Columns: the truth, then what comes of each subset; rows: samples, for every output."""
    columns: dict[str, dict[str, Any]] = {}
    for subset in result.subsets:
        for name, rows in _rows(model, batch, subset, result.visible, _count(batch)).items():
            if not rows.columns:
                continue
            own = columns.setdefault(name, {INPUT: rows.columns[INPUT]})
            own[f"from {title(subset)}"] = [*rows.columns.values()][-1]
    drawn = draw_rows(model.modalities, {name: Rows(own) for name, own in columns.items()}, path)
    caption = f"Any subset in, all outputs out: {result.visible:.0%} of the tokens of the inputs are visible"
    return {"uri": embedded(drawn, _WIDTH), "caption": caption}


def _growing(result: Modalities, model: Model, batch: Mapping[str, Preprocessed], path: Path) -> dict[str, Any]:
    """An animation: more and more of all inputs is visible."""
    every = tuple(result.inputs)
    frames: list[Image.Image] = []
    for visible in GROWING:
        rows = _rows(model, batch, every, visible, min(2, _count(batch)))
        shown = {
            name: Rows(_captioned(own, visible)) for name, own in rows.items() if own.columns and len(own.columns) > 1
        }
        frames.append(Image.open(io.BytesIO(png(model.modalities, shown))).convert("RGB"))
    data = animation(frames)
    write_whole(path, lambda file: file.write_bytes(data), "the animation")
    return {"uri": _data_uri(data), "caption": "More and more of all inputs becomes visible"}


def _captioned(rows: Rows, visible: float) -> dict[str, Any]:
    signals = [*rows.columns.values()]
    return {INPUT: signals[0], f"visible, {visible:.0%}": signals[1], "reconstruction": signals[-1]}


def animation(frames: Sequence[Image.Image]) -> bytes:
    """Frames as an animated WebP without end; the last one stays longer."""
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    same = [frame if frame.size == size else frame.resize(size) for frame in frames]
    durations = [_FRAME_MS] * (len(same) - 1) + [_LAST_MS]
    file = io.BytesIO()
    same[0].save(file, "WEBP", save_all=True, append_images=same[1:], duration=durations, loop=0, quality=80)
    return file.getvalue()


def _data_uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
