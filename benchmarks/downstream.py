"""Frozen features and fine-tuning on four data sets: raw input, untrained encoder, pre-trained encoder, one protocol.

    python benchmarks/downstream.py --cifar10 cifar10/ runs/cifar10 --esc10 esc10_16k/ runs/esc10 \\
        --modelnet10 modelnet10.npz runs/modelnet10 --grid grid/s1 runs/grid [--finetune cifar10 --finetune modelnet10]

Behind each data set stand its runs of pre-training, one for each seed. All rows of a data set have the same samples,
pooling and classifiers: the mean of the tokens (GRID: of each time slot, side by side, since words follow one
another), z-scored; kNN (cosine, k = 20, weights exp(s / 0.07)) and logistic regression with C chosen inside the
training part. ± is the standard deviation over seeds: of the fresh weights, of the runs, or, where there is one run
or none, of the draws that choose C. ``--finetune`` trains the recipes in ``configs/*/finetune`` from the first run and
from scratch, on all labels and on few.

CIFAR-10 is the folder train/ and test/ of class folders, ESC-10 a folder of class folders whose file names begin with
the fold, ModelNet10 a file with points, labels and split, GRID speaker s1 (a fifth of the groups of sentences is held
out; raw: grey pictures of 16 x 16, the mean of each time slot). What is learned without labels has seen the test part
of ESC-10 where its run was given all clips: the run's recipe says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _probe import PROTOCOLS, Pair, figures, markdown, row, save
from probe_esc10 import LONGEST
from probe_esc10 import raw as raw_sound
from probe_grid import WORDS
from probe_modelnet10 import occupancy
from probe_modelnet10 import untrained as warmed_up
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

import maemm
from maemm.contract import Preprocessed, Source
from maemm.contract.rng import Rng, seeded
from maemm.data.folds import groups_of
from maemm.data.subset import Subset
from maemm.model.build import build_model
from maemm.tasks._shared.embedding import Embed, features, raw_values
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import evenly_spaced, open_data
from maemm.tasks.finetune.run import label_efficiency

NAMES = ("cifar10", "esc10", "modelnet10", "grid")
FINETUNED = {
    "cifar10": "image/finetune/mae_tiny_cifar10",
    "modelnet10": "pointcloud/finetune/point_mae_tiny_modelnet10",
}


@dataclass
class Data:
    """A data set as a table of features sees it."""

    name: str
    parts: list[Source]  # training and test part, or one that is cut into folds
    raw_name: str
    raw: Callable[[maemm.Model], list[Features]]
    tasks: Callable[[list[Features]], dict[str, list[Pair]]]
    embed: Embed | None = None
    fresh: Callable[[dict[str, Any], int], maemm.Model] | None = None  # an untrained model; None: fresh weights
    adapt: Callable[[maemm.Model], maemm.Model] = lambda model: model

    def features(self, model: maemm.Model, how: Embed | None = None) -> list[Features]:
        found = [features(model, part, embed=how or self.embed, pool="mean", batch=64) for part in self.parts]
        return [next(iter(one.values())) for one in found]


def _whole(parts: list[Features]) -> dict[str, list[Pair]]:
    return {"classes": [(parts[0], parts[1])]}


def limited(source: Source, limit: int | None) -> Source:
    return source if limit is None or len(source) <= limit else Subset(source, evenly_spaced(len(source), limit))


# ------------------------------------------------------------------------------------------------- the data sets
def cifar10(place: Path, model: maemm.Model, limit: int | None) -> Data:
    parts = [limited(open_data(model.recipe, place / part), limit) for part in ("train", "test")]
    data = Data("CIFAR-10", parts, "raw pixels", lambda model: data.features(model, raw_values), _whole)
    return data


def esc10(place: Path, model: maemm.Model, limit: int | None) -> Data:
    source = limited(open_data(model.recipe, place), limit)

    def whole_clips(one: maemm.Model) -> maemm.Model:
        recipe = deepcopy(one.recipe)
        recipe["modalities"]["audio"] |= {"seconds": LONGEST, "size": [1024, recipe["modalities"]["audio"]["size"][1]]}
        made = build_model(recipe).eval()
        made.load_state_dict(one.state_dict())
        return made

    def sound(one: maemm.Model) -> list[Features]:
        samples = [source.read(i, Rng((0, i))) for i in range(len(source))]
        audio = whole_clips(one).modalities["audio"]
        x = raw_sound([audio.load(sample.raw["audio"], None)["wave"] for sample in samples])
        return [Features(x, np.array([sample.label for sample in samples]), [sample.id for sample in samples])]

    def folds(parts: list[Features]) -> dict[str, list[Pair]]:
        fold = groups_of([Path(one).name for one in parts[0].ids], r"^(\d)")
        pairs = [(parts[0].select(fold != one), parts[0].select(fold == one)) for one in np.unique(fold)]
        return {"classes": pairs}

    return Data("ESC-10", [source], "raw log-mel, mean and deviation", sound, folds, adapt=whole_clips)


def modelnet10(place: Path, model: maemm.Model, limit: int | None) -> Data:
    opened = [
        open_data(model.recipe, place, source={"type": "pointcloud", "split": part}) for part in ("train", "test")
    ]
    parts = [limited(one, limit) for one in opened]

    def fresh(recipe: dict[str, Any], seed: int) -> maemm.Model:
        return warmed_up(recipe, parts[0], seed)

    return Data(
        "ModelNet10", parts, "occupancy 12^3", lambda model: [occupancy(one) for one in parts], _whole, fresh=fresh
    )


def grid(place: Path, model: maemm.Model, limit: int | None) -> Data:
    source = limited(open_data(model.recipe, place, source="video"), limit)
    slots = model.modalities["video"].grid[0]

    def by_slot(one: maemm.Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        return {"video": one.embed(batch, tokens=True)["video"].unflatten(1, (slots, -1)).mean(2).flatten(1)}

    def pixels(one: maemm.Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        return {"video": adaptive_avg_pool3d(batch["video"].x.mean(1), (slots, 16, 16)).flatten(1)}

    def words(parts: list[Features]) -> dict[str, list[Pair]]:
        codes = [Path(one).stem for one in parts[0].ids]
        groups = sorted({code[:4] for code in codes})
        held = np.array([code[:4] in set(groups[::5]) for code in codes])
        found = {}
        for word, place_of in WORDS.items():
            _, labels = np.unique([code[place_of] for code in codes], return_inverse=True)
            whole = replace(parts[0], labels=labels.astype(np.int64))
            found[word] = [(whole.select(~held), whole.select(held))]
        return found

    data = Data("GRID", [source], "raw pixels", lambda model: data.features(model, pixels), words, embed=by_slot)
    return data


# ---------------------------------------------------------------------------------------------------- the table
def rows_of(data: Data, models: list[maemm.Model], seeds: int) -> list[dict[str, Any]]:
    """Raw, untrained, pre-trained under every task."""
    with torch.no_grad():
        raw = data.raw(models[0])
    kinds = [(data.raw_name, [raw])]
    fresh = data.fresh or fresh_weights
    kinds.append((f"untrained encoder, {seeds} seeds", [
        data.features(data.adapt(fresh(models[0].recipe, seed))) for seed in range(seeds)
    ]))  # fmt: skip
    kinds.append((f"pre-trained encoder, {len(models)} run{'s' if len(models) > 1 else ''}",
                  [data.features(data.adapt(model)) for model in models]))  # fmt: skip
    found = []
    for kind, tables in kinds:
        draws = [(table, seed) for seed, table in enumerate(tables)]
        if len(tables) == 1 and kind != data.raw_name:
            draws = [(tables[0], seed) for seed in range(seeds)]
        tasks = [(data.tasks(table), seed) for table, seed in draws]
        for task in tasks[0][0]:
            values = [figures(one[task], seed) for one, seed in tasks]
            found.append(row(data.name, task, kind, values, tables[0][0].x.shape[1]))
    return found


def fresh_weights(recipe: dict[str, Any], seed: int) -> maemm.Model:
    with seeded(seed, "untrained"):
        return build_model(recipe).eval()


def finetuned(name: str, place: Path, run: str, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tuning from the run and from scratch."""
    given: dict[str, Any] = {"init": run, "out": str(args.work / f"{name}-labels"), "data.workers": 0}
    if args.epochs is not None:
        given |= {"train.epochs": args.epochs, "train.warmup_epochs": args.epochs / 10}
    train, test = place / "train", place / "test"
    if name == "modelnet10":
        train, test = split_files(place, args.work, args.limit)
        given["data.source.split"] = None
    found, folder = label_efficiency(
        FINETUNED[name], train, test=test, shots=args.shots.split(","), seeds=args.finetune_seeds, **given
    )
    print(f"{name}, fine-tuned\n{found}\n{folder / 'report.html'}", flush=True)
    return {"data": name, "recipe": FINETUNED[name], **found.record()}


def split_files(place: Path, work: Path, limit: int | None) -> tuple[Path, Path]:
    """ModelNet10 as a file for each part."""
    work.mkdir(parents=True, exist_ok=True)
    with np.load(place, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in ("points", "labels", "classes", "split")}
    found = []
    for part in ("train", "test"):
        rows = np.flatnonzero(arrays["split"].astype(str) == part)
        rows = rows if limit is None else rows[evenly_spaced(len(rows), limit)]
        found.append(work / f"modelnet10_{part}.npz")
        np.savez(found[-1], points=arrays["points"][rows], labels=arrays["labels"][rows], classes=arrays["classes"])
    return found[0], found[1]


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in NAMES:
        parser.add_argument(f"--{name}", nargs="+", metavar=("DATA", "RUN"), help="data, then runs of pre-training")
    parser.add_argument("--seeds", type=int, default=3, help="untrained encoders, and draws of a probe")
    parser.add_argument("--limit", type=int, help="samples of each part, for a look at whether all of it works")
    parser.add_argument("--finetune", action="append", default=[], choices=sorted(FINETUNED))
    parser.add_argument("--shots", default="10%,all", help="labels of each class to fine-tune with")
    parser.add_argument("--finetune-seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of fine-tuning; default: those of the recipe")
    parser.add_argument("--work", type=Path, default=Path("runs/downstream"), help="where fine-tuned runs lie")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "downstream.json")
    args = parser.parse_args(argv)
    rows, tuned = [], []
    report: dict[str, Any] = {"protocols": PROTOCOLS, "limit": args.limit, "runs": {}}
    for name in NAMES:
        place, *runs = getattr(args, name) or [None]
        if place is None:
            continue
        if not runs:
            parser.error(f"--{name} needs a run of pre-training behind the data")
        models = [maemm.load(run).eval() for run in runs]
        rows += rows_of(globals()[name](Path(place), models[0], args.limit), models, args.seeds)
        report["runs"][name] = [{"run": Path(run).name, "train": model.recipe.get("train")}
                                for run, model in zip(runs, models, strict=True)]  # fmt: skip
        if name in args.finetune:
            tuned.append(finetuned(name, Path(place), runs[0], args))
        save(args.out, {**report, "rows": rows, "finetuned": tuned})
    print(markdown(rows))
    return args.out


if __name__ == "__main__":
    main()
