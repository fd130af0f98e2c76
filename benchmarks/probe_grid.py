"""Words of GRID sentences from frozen features of the silent clips: untrained encoder against a pre-trained one.

    python benchmarks/probe_grid.py grid/s1 --run runs/grid [--seeds 2] [--out benchmarks/results]

``grid/s1`` holds CODE.mp4, six letters that name the words. Split by ``CODE[:4]``: of the sorted groups every fifth is
held out, beginning with the first. Features: tokens of the last layer, mean over the frame, the time slots side by
side. Then PCA to 200 whitened values and logistic regression with C = 0.1, as for the baselines of that data set.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import maemm
from maemm.build import build_model
from maemm.data.once import each
from maemm.draws import seeded
from maemm_plugins.video.sources import open_videos

WORDS = {"command": 0, "colour": 1, "digit": 4, "adverb": 5}  # place of the letter in the name


@torch.no_grad()
def features(models: dict[str, maemm.Model], folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """{name: (n, slots * D)} of several models of one recipe, each clip read once; and the codes of the clips."""
    any_model = next(iter(models.values()))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in models}
    codes: list[str] = []
    for batch in each(open_videos(str(folder)), dict(any_model.modalities), batch=32):
        prepared = any_model.prepare(batch.raw, None)
        slots = any_model.modalities["video"].grid[0]
        for name, model in models.items():
            tokens = model.embed(prepared, tokens=True)["video"]
            rows[name].append(tokens.unflatten(1, (slots, -1)).mean(2).flatten(1).numpy())
        codes += [Path(one).stem for one in batch.ids]
    return {name: np.concatenate(parts) for name, parts in rows.items()}, codes


def probe(x: np.ndarray, codes: list[str]) -> dict[str, float]:
    """{word: accuracy on the held-out clips}."""
    groups = sorted({code[:4] for code in codes})
    held = np.array([code[:4] in set(groups[::5]) for code in codes])
    pca = PCA(min(200, int((~held).sum()) - 1), whiten=True, random_state=0).fit(x[~held])
    train, test = pca.transform(x[~held]), pca.transform(x[held])
    found = {}
    for word, place in WORDS.items():
        labels = np.array([code[place] for code in codes])
        fitted = LogisticRegression(C=0.1, max_iter=2000).fit(train, labels[~held])
        found[word] = float(fitted.score(test, labels[held]))
    return found


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--seeds", type=int, default=2, help="untrained encoders")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    trained = maemm.load(args.run)
    models = {"pre-trained": trained}
    for seed in range(args.seeds):
        with seeded("untrained", seed):
            models[f"untrained {seed}"] = build_model(trained.recipe).eval()
    found, codes = features(models, args.folder)
    rows = [{"features": name, **probe(x, codes)} for name, x in found.items()]
    for row in rows:
        print(json.dumps(row), flush=True)
    report = {
        "date": str(date.today()), "command": "python benchmarks/probe_grid.py grid/s1 --run RUN",
        "clips": len(codes), "recipe": {k: trained.recipe[k] for k in ("modalities", "encoder", "train")},
        "torch": torch.__version__, "python": platform.python_version(), "rows": rows,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"probe_grid-{date.today()}.json"
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return path


if __name__ == "__main__":
    main()
