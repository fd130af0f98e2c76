"""Whose voice belongs to this face? Retrieval both ways on held-out GRID clips, beside linear CCA and controls.

    python benchmarks/retrieve_grid.py grid/s1 --write-lists lists      # for data.list of the training
    python benchmarks/retrieve_grid.py grid/s1 --frame runs/grid_frame --video runs/grid_video [--cache cache]

``grid/s1`` holds CODE.mp4, six letters that name the words. Split by ``CODE[:4]``: of the sorted groups every fifth is
held out, beginning with the first. Features are the means of each modality's own stream of the middle stretch of every
clip, nothing hidden. Controls: the same model asked with the pictures in another order, with the sound turned round by
one second, and with the mouth cut out. The linear baselines are fitted on the training clips of the same stretch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import about as where
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import maemm
from maemm.contract import Sample, Source
from maemm.contract.rng import Rng
from maemm.data.open import open_source
from maemm.tasks._shared.baselines import untrained
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.features import Features
from maemm.tasks.retrieve.run import Ranks, compare_pair
from maemm_plugins.audio.load import Wave

LETTER = 3  # place in the name
Change = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


# --------------------------------------------------------------------------------------------------- the clips
def split(folder: Path) -> tuple[list[str], list[str]]:
    """(training codes, held-out codes)."""
    codes = sorted(path.stem for path in folder.glob("*.mp4"))
    held = set(sorted({code[:4] for code in codes})[::5])
    return [code for code in codes if code[:4] not in held], [code for code in codes if code[:4] in held]


class Middle(Source):
    """The middle stretch of each clip, and its middle picture, changed by a control."""

    def __init__(self, source: Source, change: Change | None = None):
        self.source, self.change = source, change

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, rng: Rng) -> Sample:
        sample = self.source.tta_view(index, 0)
        if self.change is None:
            return sample
        return replace(sample, raw=self.change(dict(sample.raw), np.random.default_rng(index)))


def frames_shuffled(raw: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Pictures of a clip in random order; a still picture stays."""
    return {**raw, "video": raw["video"][generator.permutation(len(raw["video"]))]} if "video" in raw else raw


def sound_shifted(raw: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """The sound turned round by one second."""
    return {**raw, "audio": Wave(np.roll(raw["audio"].samples, raw["audio"].rate, axis=0), raw["audio"].rate)}


def mouth_cut_out(raw: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Mean of the picture in place of the mouth: rows 16-29, columns 8-31 of 32 x 40, or the inner part of a mouth."""
    found = dict(raw)
    for name in ("image", "video"):
        if name in raw:
            pixels = raw[name].copy()
            whole = pixels.shape[-3:-1] == (32, 40)
            part = (
                (..., slice(16, 30), slice(8, 32), slice(None))
                if whole
                else (..., slice(2, -1), slice(4, -4), slice(None))
            )
            pixels[part] = pixels.mean(axis=(-3, -2), keepdims=True).astype(np.uint8)
            found[name] = pixels
    return found


CONTROLS: dict[str, Change] = {
    "pictures shuffled": frames_shuffled,
    "sound shifted by 1 s": sound_shifted,
    "mouth cut out": mouth_cut_out,
}


# ------------------------------------------------------------------------------------------------ our features
def source_of(model: maemm.Model, folder: Path, lists: Path, part: str, cache: str | None) -> Source:
    data = model.recipe["data"]
    source = {**data["source"], "cache": cache or data["source"].get("cache")}
    return open_source(
        {**model.recipe, "data": {**data, "root": str(folder), "list": str(lists / f"{part}.txt"), "source": source}}
    )


def table(one: Ranks) -> dict[str, Any]:
    return {"direction": one.direction, "median": one.median, **{f"R@{k}": round(v, 4) for k, v in one.recall.items()}}


def both(found: dict[str, Features], pair: tuple[str, str]) -> list[dict[str, Any]]:
    """Picture -> sound, then sound -> picture."""
    picture, sound = found[pair[0]].x, found[pair[1]].x
    return [
        table(compare_pair("picture -> sound", picture, sound)),
        table(compare_pair("sound -> picture", sound, picture)),
    ]


def of_run(run: Path, folder: Path, lists: Path, cache: str | None) -> dict[str, Any]:
    """Retrieval of a trained run and of untrained networks of its recipe, controls, and the letter probe."""
    model = maemm.load(run)
    pair = (next(name for name in model.modalities if name != "audio"), "audio")
    test, train = (source_of(model, folder, lists, part, cache) for part in ("test", "train"))
    rows: dict[str, Any] = {}
    embedded = {"trained": features(model, Middle(test))}
    for seed in range(2):
        embedded[f"untrained, seed {seed}"] = features(untrained(model, seed), Middle(test))
    for name, change in CONTROLS.items():
        embedded[f"trained, {name}"] = features(model, Middle(test, change))
    for name, found in embedded.items():
        rows[name] = both(found, pair)
    learned = features(model, Middle(train))
    rows["trained, on the training clips"] = both(learned, pair)
    return {"rows": rows, "letter": letters(model, Middle(train), Middle(test), pair), "recipe": about(model)}


def about(model: maemm.Model) -> dict[str, Any]:
    """Which recipe, and what of it matters most here."""
    train = {key: model.recipe["train"][key] for key in ("epochs", "batch", "lr", "seed")}
    return {"name": model.recipe.get("name"), **train, "objectives": model.recipe["objectives"]}


def letters(model: maemm.Model, train: Source, test: Source, pair: tuple[str, str]) -> dict[str, float]:
    """Accuracy of the letter from each stream's features, and from those of both together."""
    joint = "+".join(model.modalities)

    def embed(one: maemm.Model, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {**one.embed(batch), "joint": one.embed(batch, stream=joint)[joint]}

    parts = [features(model, one, embed=embed) for one in (train, test)]
    for some in parts:
        some["both, side by side"] = replace(some[pair[0]], x=np.concatenate([some[name].x for name in pair], 1))
    return {name: letter(*(some[name] for some in parts)) for name in parts[0]}


def letter(train: Features, test: Features) -> float:
    """Logistic regression, C = 0.1, on at most 200 whitened components."""
    pca = PCA(min(200, *train.x.shape), whiten=True, random_state=0).fit(train.x)
    labels = [[Path(id).name[LETTER] for id in one.ids] for one in (train, test)]
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(pca.transform(train.x), labels[0])
    return round(float(fitted.score(pca.transform(test.x), labels[1])), 4)


# ---------------------------------------------------------------------------------------------------- linear CCA
def raw_table(model: maemm.Model, source: Source, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees of all clips: pictures and log-mel, (n, time, values) each."""
    from maemm.data.single_pass import each

    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in each(source, dict(model.modalities), batch=64):
        preprocessed = model.preprocess(batch.raw, None)
        for name in names:
            x = preprocessed[name].x
            x = x.flatten(2)[:, 0] if x.ndim == 4 else x.transpose(1, 2).flatten(2) if x.ndim == 5 else x
            found[name].append(x.reshape(len(x), -1 if x.ndim == 3 else 1, x.shape[-1]).float().numpy())
    return tuple(np.concatenate(found[name]) for name in names)


def clip_cca(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], r: float, m: int) -> Any:
    """Regularised CCA of whole clips: PCA, scores over sqrt(eigenvalue / n + r), SVD of the cross-covariance."""
    sides = []
    for a, b in zip(train, test, strict=True):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        mean = a.mean(0)
        scale = np.sqrt(len(a) / np.square(a - mean).sum())
        u, s, v = np.linalg.svd((a - mean) * scale, full_matrices=False)
        shrink = 1 / np.sqrt(s**2 / len(a) + r)
        sides.append((u * s * shrink, (b - mean) * scale @ v.T * shrink))
    u, s, v = np.linalg.svd(sides[0][0].T @ sides[1][0] / len(sides[0][0]), full_matrices=False)
    return sides[0][1] @ u[:, :m] * s[:m], sides[1][1] @ v[:m].T * s[:m]


def frame_cca(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], context: int = 4
) -> np.ndarray:
    """(n, n) scores: correlations over time of canonical directions of single moments with their neighbours."""
    sides = []
    for (a, b), sizes in zip(zip(train, test, strict=True), ((40, 200), (24, 120)), strict=True):
        pca = PCA(sizes[0]).fit(a.reshape(-1, a.shape[-1]))
        stacked = [_stack(pca.transform(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1), context) for x in (a, b)]
        whiten = PCA(sizes[1], whiten=True).fit(stacked[0].reshape(-1, stacked[0].shape[-1]))
        sides.append([whiten.transform(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1) for x in stacked])
    flat = [side[0].reshape(-1, side[0].shape[-1]) for side in sides]
    u, s, v = np.linalg.svd(flat[0].T @ flat[1] / len(flat[0]), full_matrices=False)
    one, other = sides[0][1] @ u[:, :16], sides[1][1] @ v[:16].T
    one, other = ((x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-9) for x in (one, other))
    return np.einsum("itk,jtk,k->ij", one, other, s[:16]) / one.shape[1]


def _stack(x: np.ndarray, context: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (context, context), (0, 0)), mode="edge")
    return np.concatenate([padded[:, i : i + x.shape[1]] for i in range(2 * context + 1)], -1)


def of_scores(direction: str, scores: np.ndarray) -> dict[str, Any]:
    own = scores.diagonal()[:, None]
    rank = (scores > own).sum(1) + ((scores == own).sum(1) + 1) / 2
    return {
        "direction": direction,
        "median": float(np.median(rank)),
        **{f"R@{k}": round(float((rank <= k).mean()), 4) for k in (1, 5, 10)},
    }


def linear(run: Path, folder: Path, lists: Path, cache: str | None) -> dict[str, Any]:
    """Baselines on what the run's model sees."""
    model = maemm.load(run)
    pair = (next(name for name in model.modalities if name != "audio"), "audio")
    train, test = (
        raw_table(model, Middle(source_of(model, folder, lists, part, cache)), pair) for part in ("train", "test")
    )

    def clip(some: tuple[Any, Any], other: tuple[Any, Any], r: float) -> list[dict[str, Any]]:
        a, b = clip_cca(some, other, r, 200)
        return [table(compare_pair("picture -> sound", a, b)), table(compare_pair("sound -> picture", b, a))]

    if train[0].shape[1] == 1:
        return {"clip CCA, one picture, r=3e-4": clip(train, test, 3e-4)}
    moves = [(np.diff(a, axis=1), b) for a, b in (train, test)]
    steps = [(a, _per_picture(b - b.mean(1, keepdims=True), a.shape[1])) for a, b in (train, test)]
    scores = frame_cca(*steps)
    return {
        "clip CCA, all pictures, r=1e-4": clip(train, test, 1e-4),
        "clip CCA, differences of pictures, r=1e-3": clip(*moves, 1e-3),
        "frame CCA, 4 pictures of context each side": [
            of_scores("picture -> sound", scores),
            of_scores("sound -> picture", scores.T),
        ],
    }


def _per_picture(mel: np.ndarray, pictures: int) -> np.ndarray:
    """(n, frames, mels) -> (n, pictures, mels): means."""
    count = mel.shape[1] // pictures * pictures
    return mel[:, :count].reshape(len(mel), pictures, -1, mel.shape[-1]).mean(2)


# ----------------------------------------------------------------------------------------------------------- main
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--write-lists", type=Path, metavar="FOLDER")
    parser.add_argument("--lists", type=Path, default=Path("lists"))
    parser.add_argument("--frame", type=Path, metavar="RUN")
    parser.add_argument("--video", type=Path, metavar="RUN")
    parser.add_argument("--cache")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieve_grid.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.write_lists:
        args.write_lists.mkdir(parents=True, exist_ok=True)
        for name, codes in zip(("train", "test"), split(args.clips), strict=True):
            (args.write_lists / f"{name}.txt").write_text("".join(f"{code}.mp4\n" for code in codes))
        return
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for name, run in (("frame", args.frame), ("video", args.video)):
        if run is None:
            continue
        found[name] = of_run(run, args.clips, args.lists, args.cache)
        found[name]["linear"] = linear(run, args.clips, args.lists, args.cache)
        found[name]["training"] = last_line(run)
        for kind, rows in {**found[name]["rows"], **found[name]["linear"]}.items():
            print(
                f"{name:<6} {kind:<44}"
                + "   ".join(f"{one['R@1']:.3f} {one['R@5']:.3f} {one['R@10']:.3f} {one['median']:g}" for one in rows)
            )
        print(f"{name:<6} letter: {found[name]['letter']}")
    count = len(split(args.clips)[1])
    found["about"] = {
        "clips": "GRID, speaker s1: 802 training clips, 198 held out",
        "chance": {f"R@{k}": round(k / count, 4) for k in (1, 5, 10)},
        "command": "see benchmarks/README.md",
        **where(),
        "threads": 1,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def last_line(run: Path) -> dict[str, Any]:
    """Of the log: steps, seconds, loss."""
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {key: row[key] for key in ("step", "epoch", "seconds", "loss", "terms")}


if __name__ == "__main__":
    main()
