"""Words of GRID sentences from frozen features of the silent clips: raw pixels, untrained encoders, pre-trained.

    python benchmarks/probe_grid.py grid/s1 --list train.txt
    maemm pretrain video/videomae_tiny_grid data.root=grid/s1 data.list=train.txt out=runs/grid
    python benchmarks/probe_grid.py grid/s1 --run runs/grid [--seeds 3] [--out benchmarks/results/probe_grid.json]

``grid/s1`` holds CODE.mp4, six letters that name the words. Split by ``CODE[:4]``: of the sorted groups every fifth is
held out, beginning with the first; the list names the clips of the others, so that pre-training sees none of them.

Every row gets the same clips (the middle of the video, the same part of the frame) and the same pooling. ``slots``: the
mean over the frame of all tokens of a time slot, the slots side by side, since the order of words is an order in time.
``all``: all tokens side by side. Of raw pixels a token is its pixels. Then, as for the baselines of that data set, PCA
to 200 whitened values and logistic regression with C = 0.1; beside it kNN (cosine, k = 20, T = 0.07, z-scored).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _machine import about
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import maemm
from maemm.contract.rng import seeded
from maemm.data.single_pass import each
from maemm.model.build import build_model
from maemm_plugins.video.sources import open_videos

WORDS = {"command": 0, "colour": 1, "digit": 4, "adverb": 5}  # place of the letter in the name
NEIGHBOURS, TEMPERATURE = 20, 0.07


def held_out(codes: list[str]) -> np.ndarray:
    """(n,) bool of clips by their codes."""
    held = set(sorted({code[:4] for code in codes})[::5])
    return np.array([code[:4] in held for code in codes])


@torch.no_grad()
def features(models: dict[str, maemm.Model], folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """{name: (n, slots, area, D) tokens} of the models and of raw pixels, each clip read once; codes of the clips."""
    any_model = next(iter(models.values()))
    modality = any_model.modalities["video"]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("raw pixels", *models)}
    codes: list[str] = []
    for batch in each(open_videos(str(folder)), dict(any_model.modalities), batch=32):
        preprocessed = any_model.preprocess(batch.raw, None)
        tokens = {"raw pixels": modality.tokenize(preprocessed["video"]).values}
        tokens |= {name: model.embed(preprocessed, tokens=True)["video"] for name, model in models.items()}
        for name, one in tokens.items():
            rows[name].append(one.unflatten(1, (modality.grid[0], -1)).numpy().astype(np.float16))
        codes += [Path(one).stem for one in batch.ids]
    return {name: np.concatenate(parts) for name, parts in rows.items()}, codes


def pooled(tokens: np.ndarray, pool: str) -> np.ndarray:
    """(n, slots, area, D) -> (n, D') float32."""
    values = tokens.astype(np.float32)
    return (values.mean(2) if pool == "slots" else values).reshape(len(values), -1)


def linear(x: np.ndarray, codes: list[str]) -> dict[str, float]:
    """{word: accuracy on the held-out clips}."""
    held = held_out(codes)
    pca = PCA(min(200, int((~held).sum()) - 1), whiten=True, random_state=0).fit(x[~held])
    train, test = pca.transform(x[~held]), pca.transform(x[held])
    found = {}
    for word, labels in words(codes).items():
        fitted = LogisticRegression(C=0.1, max_iter=2000).fit(train, labels[~held])
        found[word] = float(fitted.score(test, labels[held]))
    return found


def knn(x: np.ndarray, codes: list[str]) -> dict[str, float]:
    """{word: accuracy on the held-out clips} of a weighted vote of the nearest training clips."""
    held = held_out(codes)
    x = (x - x[~held].mean(0)) / (x[~held].std(0) + 1e-6)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = x[held] @ x[~held].T
    chosen = np.argsort(-near, 1)[:, :NEIGHBOURS]
    weight = np.exp(np.take_along_axis(near, chosen, 1) / TEMPERATURE)
    found = {}
    for word, labels in words(codes).items():
        names, number = np.unique(labels, return_inverse=True)
        votes = (weight[..., None] * np.eye(len(names))[number[~held][chosen]]).sum(1)
        found[word] = float((votes.argmax(1) == number[held]).mean())
    return found


def words(codes: list[str]) -> dict[str, np.ndarray]:
    """{word: letters of all clips}."""
    return {word: np.array([code[place] for code in codes]) for word, place in WORDS.items()}


def rows_of(tokens: dict[str, np.ndarray], codes: list[str]) -> list[dict]:
    """A row for each kind of features and pooling."""
    rows = []
    for pool in ("slots", "all"):
        for name, one in tokens.items():
            x = pooled(one, pool)
            rows.append({"features": name, "pool": pool, "linear": linear(x, codes), "knn": knn(x, codes)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def last_loss(run: Path, count: int = 5) -> float | None:
    """Mean of the last losses that a run has logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line][-count:]
    return float(np.mean(losses)) if losses else None


def write_list(folder: Path, path: Path) -> Path:
    """The clips that are not held out, one a line."""
    codes = sorted(one.stem for one in folder.glob("*.mp4"))
    path.write_text("".join(f"{code}.mp4\n" for code, held in zip(codes, held_out(codes), strict=True) if not held))
    return path


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--list", type=Path, help="write the list of training clips, and no more")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="untrained encoders")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probe_grid.json")
    args = parser.parse_args(argv)
    if args.list is not None or args.run is None:
        return write_list(args.folder, args.list or Path("train.txt"))
    trained = maemm.load(args.run)
    models = {}
    for seed in range(args.seeds):
        with seeded("untrained", seed):
            models[f"untrained {seed}"] = build_model(trained.recipe).eval()
    tokens, codes = features({**models, "pre-trained": trained.eval()}, args.folder)
    values = int(np.prod(trained.recipe["modalities"]["video"]["patch"]))
    report = {
        **about(), "command": "python benchmarks/probe_grid.py grid/s1 --run RUN", "clips": len(codes),
        "held out": int(held_out(codes).sum()), "standard error of one figure": 0.03,
        "loss": last_loss(args.run), "loss of predicting zero": 1 - 1 / values, "rows": rows_of(tokens, codes),
        "recipe": {key: trained.recipe[key] for key in ("modalities", "encoder", "decoder", "train")},
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return args.out


if __name__ == "__main__":
    main()
