"""List formats besides tables: JSON of AST and CAV-MAE, fairseq's TSV manifests, the splits of Speech Commands."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from maemm.config.paths import check_regular
from maemm.contract.errors import MaemmError
from maemm.data.list_text import list_lines
from maemm.data.lists import Labels


@dataclass
class Listed:
    """The content of a list."""

    home: Path  # the folder that paths are relative to
    paths: list[str]
    labels: Labels | None = None
    classes: list[str] | None = None
    multilabel: list[list[int]] | None = None  # all labels of each sample, where samples have several
    unknown: dict[int, str] = field(default_factory=dict)  # sample -> a label of it that is not in the label file


def read_json(path: Path, root: Path | None, label_file: Path | None) -> Listed:
    """``{"data": [{"wav": path, "labels": "/m/068hy,/m/07q6cd_"}, ...]}`` (AST, CAV-MAE); other keys are ignored.

    Classes come from the label file (``index,mid,display_name``), otherwise from the labels that occur. A sample with
    one label has it in ``labels``; where some have several, ``multilabel`` has all of each.
    """
    try:
        check_regular(path)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise MaemmError(f"the list is no JSON ({path}: {reason}); check data.list") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise MaemmError(f"the list names no sound ({path}); write {{'data': [{{'wav': path, 'labels': mids}}]}}")
    paths, texts = [], []
    for number, row in enumerate(rows):
        wav = row.get("wav") if isinstance(row, dict) else None
        if not isinstance(wav, str) or not wav:
            raise MaemmError(f"entry {number} of the list has no 'wav' ({path}); add the path of its sound")
        labels = row.get("labels") or ""
        if not isinstance(labels, str):
            raise MaemmError(f"entry {number} of the list has labels {labels!r} ({path}); write names between commas")
        paths.append(wav)
        texts.append([label.strip() for label in labels.split(",") if label.strip()])
    home = path.parent
    if root is not None and (not (home / paths[0]).exists() or (root / paths[0]).exists()):
        home = root
    return _with_labels(Listed(home, paths), texts, label_file)


def _with_labels(listed: Listed, texts: list[list[str]], label_file: Path | None) -> Listed:
    """Fill in labels and classes from the label names of each sample."""
    if label_file is not None:
        mids, listed.classes = read_label_file(label_file)
    else:
        mids = sorted({label for row in texts for label in row})
        listed.classes = mids or None
    if not mids:
        return listed
    number = {mid: i for i, mid in enumerate(mids)}
    multilabel = [[number[label] for label in row if label in number] for row in texts]
    listed.unknown = {
        sample: next(label for label in row if label not in number)
        for sample, row in enumerate(texts)
        if not number.keys() >= set(row)
    }
    listed.labels = [row[0] if len(row) == 1 else None for row in multilabel]
    listed.multilabel = multilabel if any(len(row) > 1 for row in multilabel) else None
    return listed


def read_label_file(path: Path) -> tuple[list[str], list[str]]:
    """``index,mid,display_name`` -> (mids by index, names by index); names with commas stand in quotes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        by_index = {int(row["index"]): (row["mid"], row["display_name"]) for row in rows}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise MaemmError(f"cannot read the label file ({path}: {error}); check data.source.labels") from None
    except (KeyError, TypeError, ValueError):
        raise MaemmError(
            f"the label file lacks columns ({path}); its first line is index,mid,display_name, index a number"
        ) from None
    if not rows:
        raise MaemmError(f"the label file is empty ({path}); its first line is index,mid,display_name")
    if sorted(by_index) != list(range(len(by_index))) or len(by_index) != len(rows):
        raise MaemmError(f"the indices of the label file are not 0 to {len(rows) - 1}, each once ({path})")
    pairs = [by_index[i] for i in range(len(by_index))]
    return [mid for mid, _ in pairs], [name for _, name in pairs]


def read_manifest(path: Path, root: Path | None) -> Listed | None:
    """A fairseq manifest: first line a folder, then ``path<TAB>samples``. None: the TSV file is no manifest."""
    lines = list_lines(path, lambda line: line.split("\t")[0], (path.parent, root))
    rows = [line.split("\t") for line in lines[1:]]
    if not rows or "\t" in lines[0] or any(len(row) != 2 or not row[1].strip().isdecimal() for row in rows):
        return None
    home = Path(lines[0].strip()).expanduser()
    if root is not None:
        home = root
    elif not home.is_absolute() or not home.is_dir():
        home = path.parent / home
    return Listed(home, [row[0] for row in rows])


def speech_commands(folder: Path, paths: list[str], split: str) -> list[str]:
    """The paths of a Speech Commands tree that are in ``split``; folders that start with _ hold no commands."""
    lists = {name: folder / f"{name}_list.txt" for name in ("validation", "testing")}
    if not all(file.is_file() for file in lists.values()):
        if split != "all":
            raise MaemmError(f"{folder} has no validation_list.txt and testing_list.txt (data.source.split); use all")
        return paths
    paths = [path for path in paths if not path.startswith("_")]
    if split == "all":
        return paths
    named = {name: {os.path.normpath(line.strip()) for line in list_lines(file)} for name, file in lists.items()}
    if split != "train":
        return [path for path in paths if path in named[split]]
    return [path for path in paths if path not in named["validation"] | named["testing"]]
