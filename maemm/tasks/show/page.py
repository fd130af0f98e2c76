"""The page of ``maemm show``: a card for each sample, figures of the batch, refused files with their reasons."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from maemm.tasks._shared.sample_facts import element_valid
from maemm.tasks.show.shown import Part, Shown, figures, padding
from maemm.ui.page import document, write_html
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import cell
from maemm.ui.text import number

_COLUMNS = ("shape", "type", "range", "mean", "std", "not finite")


def page(shown: Shown) -> None:
    """Write ``shown.path``."""
    source = shown.opened.source
    lead = f"{len(shown.ids):,} of {len(source):,} samples as a model of this recipe gets them, without augmentation."
    parts = [_part(shown, name, part) for name, part in shown.parts.items()]
    write_html(shown.path, document(shown.opened.title, lead, [*parts, _refused(shown), _go_on(shown)]))


def _part(shown: Shown, name: str, part: Part) -> str:
    notes = "".join(f'<p class="note">{escape(one)}</p>' for one in [*part.notes, part.rows.note] if one)
    cards = "".join(_card(shown, name, part, row) for row in range(len(shown.ids)))
    return f"<h2>{escape(name)}</h2>{_tiles(part)}{_table(part)}{notes}{cards}"


def _tiles(part: Part) -> str:
    tokens, plan = part.tokens, part.plan
    grid = "" if tokens.grid is None else f" ({' x '.join(map(str, tokens.grid))})"
    tiles = [(f"{tokens.count:,}{grid}", "tokens of a sample")]
    if plan is not None:
        tiles += [
            (f"{plan.visible.shape[1]:,}", "visible to the encoder"),
            (f"{plan.predict.shape[1]:,}", "to predict"),
        ]
    tiles.append((f"{100 * padding(part.preprocessed):.3g} %", "of this batch is padding"))
    cells = [f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _table(part: Part) -> str:
    """Shapes, types and ranges of the batch at each stage."""
    preprocessed = part.preprocessed
    valid = None if preprocessed.valid is None else element_valid(preprocessed)
    stages = {"prepared: x": figures(preprocessed.x, valid)}
    stages["tokens: values"] = figures(part.tokens.values, part.tokens.valid)
    if part.target is not None and part.plan is not None:
        stages["target"] = figures(part.target, part.plan.predict_valid)
    used = [one for one in _COLUMNS if any(one in text for text in stages.values())]
    rows = [[stage, *(text.get(one, "") for one in used)] for stage, text in stages.items()]
    return _html_table(["the whole batch", *used], rows, "wide")


def _card(shown: Shown, name: str, part: Part, row: int) -> str:
    pictures = "".join(_strip(shown, name, rows, row) for rows in (part.rows, part.augmented) if rows.columns)
    facts = [f"{key} {number(value)}" for key, value in part.facts[row].items()]
    label = shown.labels[row]
    if label is not None:
        classes = shown.opened.source.classes
        facts.insert(0, f"label {classes[label] if classes is not None and label < len(classes) else label}")
    one = part.preprocessed.x[row]
    valid = None if part.preprocessed.valid is None else element_valid(part.preprocessed)[row]
    seen = figures(one, valid)
    empty = 0.0 if valid is None else 1 - float(valid.float().mean())
    got = [f"{key} {value}" for key, value in seen.items()] + ([f"padding {100 * empty:.3g} %"] if empty else [])
    lines = [("read", facts), ("loaded", part.loaded[row]), ("preprocessed", got)]
    text = "<br>".join(f"{what}: {escape(', '.join(words))}" for what, words in lines if words)
    return f"<figure><h3>{escape(shown.ids[row])}</h3>{pictures}<figcaption>{text}</figcaption></figure>"


def _strip(shown: Shown, name: str, rows: Rows, row: int) -> str:
    """Pictures beside each other, which a narrow screen may put below each other."""
    cells = []
    for caption, signals in rows.columns.items():
        data = base64.b64encode(cell(shown.opened.modalities[name], signals[row])).decode()
        text = escape(caption.replace("\n", " "))
        alt = escape(f"{shown.ids[row]}: {caption}".replace("\n", " "), quote=True)
        cells.append(f'<div><span>{text}</span><img alt="{alt}" src="data:image/png;base64,{data}"></div>')
    return f'<div class="strip">{"".join(cells)}</div>'


def _refused(shown: Shown) -> str:
    if not shown.refused:
        return ""
    rows = [[one.id, one.reason] for one in shown.refused]
    return f"<h2>Refused: {len(rows):,}</h2>{_html_table(['sample', 'reason'], rows)}"


def _go_on(shown: Shown) -> str:
    recipe, data = shown.opened.name, shown.opened.data
    text = (
        "# read everything once: broken files, sizes, labels, mean and spread\n"
        f"maemm data check {data} --recipe {recipe}"
        f"\n\n# what augmentation does\nmaemm show {data} --recipe {recipe} --augment"
    )
    if len(shown.opened.source) > 1:
        text += f"\n\n# train\nmaemm pretrain {recipe} data.root={data}"
    return f"<h3>Go on</h3><pre>{escape(text)}</pre>"


def _html_table(titles: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<td><b>{escape(one)}</b></td>" for one in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="card scroll {kind}"><table><tr>{head}</tr>{body}</table></div>'
