"""Five-fold linear probe on ESC-10: raw log-mel, untrained and pre-trained encoders, the network from scratch.

    python benchmarks/probe_esc10.py esc10_16k/ --run runs/esc10_1 --run runs/esc10_2 [--scratch 2] [--out results.json]

``esc10_16k/`` holds a folder per class; the fold is the first character of a file's name, and rows are paired by fold.

- Probes have the same classifier: features z-scored on the four training folds, logistic regression, C = 1. Encoders
  read whole clips; features are the mean over tokens, or mean and spread over tokens (as the raw features are mean and
  spread over time: log(mel + 1e-6), 64 bands, FFT 1024, hop 320).
- From scratch: the same encoder with a linear layer on the mean of its tokens, all weights trained on the labels of
  four folds (random crops as long as in pre-training, AdamW, cosine, label smoothing), and the same from the
  pre-trained start. Answers are of whole clips after the last step; nothing is chosen on the test fold.

Pre-training heard all clips without labels, those of the test folds too, unless a run was given other ones.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from _machine import about as where
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

import maemm
from maemm.contract import Preprocessed
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm_plugins.audio.modality import Audio
from maemm_plugins.audio.sources import open_audio

LONGEST = 8.0  # seconds; the longest clip has 7.24
POOLS = ("mean", "mean and spread")
KINDS = ("raw", "untrained", "pre-trained", "from scratch", "tuned from pre-trained")
TUNING = {"epochs": 40, "batch": 32, "lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "warmup": 0.1}


def read(folder: Path) -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """Waves at 16 kHz, labels, folds."""
    source, audio = open_audio(str(folder)), Audio(size=[1024, 128], seconds=LONGEST)
    samples = [source.read(i, maemm.Rng((0, i))) for i in range(len(source))]
    waves = [audio.load(one.raw["audio"], None)["wave"] for one in samples]
    folds = np.array([int(Path(one.id).name[0]) for one in samples])
    return waves, np.array([one.label for one in samples]), folds


def raw(waves: list[Tensor]) -> np.ndarray:
    mel = MelSpectrogram(16000, n_fft=1024, hop_length=320, n_mels=64)
    logs = [(mel(one) + 1e-6).log() for one in waves]
    return torch.stack([torch.cat([one.mean(1), one.std(1)]) for one in logs]).numpy()


def spectrograms(recipe: dict, waves: list[Tensor]) -> list[Tensor]:
    """What the recipe's model sees of each whole clip: (T, F), T a multiple of the patch."""
    recipe = deepcopy(recipe)
    recipe["modalities"]["audio"]["seconds"] = LONGEST
    audio = build_model(recipe).modalities["audio"]
    return [audio.preprocess({"wave": one[None], "samples": [len(one)]}, None).x[0] for one in waves]


@torch.no_grad()
def embed(model: maemm.Model, clips: list[Tensor]) -> dict[str, np.ndarray]:
    """{pooling: (n, D)}, clip by clip."""
    tokens = [model.embed({"audio": Preprocessed(one[None])}, tokens=True)["audio"][0] for one in clips]
    mean = [one.mean(0) for one in tokens]
    both = [torch.cat([one.mean(0), one.std(0)]) for one in tokens]
    return dict(zip(POOLS, (torch.stack(mean).numpy(), torch.stack(both).numpy()), strict=True))


def probe(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Accuracy of each fold."""
    found = []
    for fold in np.unique(folds):
        test = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=3000)).fit(x[~test], labels[~test])
        found.append(float(model.score(x[test], labels[test])))
    return found


def tuned(model: maemm.Model, clips: list[Tensor], labels: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Accuracy on the clips ``test`` (n,) bool after all weights were trained on the labels of the others."""
    with seeded(seed, "layer"):
        layer = nn.Linear(model.encoder.dim, int(labels.max()) + 1)
    weights = [*model.modalities.parameters(), *model.encoder.parameters(), *layer.parameters()]
    weights = [one for one in weights if one.requires_grad]
    given, frames = np.flatnonzero(~test), model.modalities["audio"].frames
    steps = TUNING["epochs"] * (len(given) // TUNING["batch"])
    optimizer = torch.optim.AdamW(weights, lr=TUNING["lr"], weight_decay=TUNING["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TUNING["lr"], steps, pct_start=TUNING["warmup"])
    loss_of, order, rows = (
        nn.CrossEntropyLoss(label_smoothing=TUNING["label_smoothing"]),
        np.random.default_rng(seed),
        [],
    )
    model.train()
    for _ in range(steps):
        if len(rows) < TUNING["batch"]:
            rows = order.permutation(given).tolist()
        some, rows = rows[: TUNING["batch"]], rows[TUNING["batch"] :]
        x = torch.stack([_crop(clips[i], frames, order) for i in some])
        loss = loss_of(layer(model.embed({"audio": x})["audio"]), torch.from_numpy(labels[some]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        answers = [int(layer(model.embed({"audio": clips[i][None]})["audio"]).argmax()) for i in np.flatnonzero(test)]
    return float((np.array(answers) == labels[test]).mean())


def tuned_folds(
    start: str | int, recipe: dict, clips: list[Tensor], labels: np.ndarray, folds: np.ndarray, seed: int, work: Path
) -> list[float]:
    """Accuracy of each fold, from a run or from fresh weights; folds that stand in ``work`` are not trained again."""
    found = []
    for fold in np.unique(folds):
        kept = (
            work / f"{'scratch' if isinstance(start, int) else Path(start).name}_{seed}_{fold}_{TUNING['epochs']}.json"
        )
        if not kept.exists():
            model = untrained(recipe, start) if isinstance(start, int) else maemm.load(start)
            score = tuned(model, clips, labels, folds == fold, seed)
            print(f"{kept.stem}: {score:.3f}", flush=True)
            work.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(score))
        found.append(json.loads(kept.read_text()))
    return found


def _crop(clip: Tensor, frames: int, order: np.random.Generator) -> Tensor:
    start = int(order.integers(max(0, len(clip) - frames) + 1))
    return clip[start : start + frames]


def row(kind: str, name: str, pool: str, scores: list[float]) -> dict:
    mean, std = float(np.mean(scores)), float(np.std(scores))
    text = " ".join(f"{one:.3f}" for one in scores)
    print(f"{kind + ' ' + name:36s} {pool:16s} {mean:.3f} +- {std:.3f}   {text}", flush=True)
    return {"kind": kind, "name": name, "pool": pool, "folds": scores, "mean": mean, "std": std}


def untrained(recipe: dict, seed: int) -> maemm.Model:
    with seeded(seed, "weights"):
        return build_model(recipe).eval()


def summary(rows: list[dict]) -> list[dict]:
    """Mean over seeds, spread over folds and over seeds, and the pre-trained rows minus these, paired by fold."""
    found = []
    for pool in POOLS:
        by_kind = {}
        for kind in KINDS:
            folds = [one["folds"] for one in rows if one["kind"] == kind and one["pool"] == pool]
            if folds:
                by_kind[kind] = np.array(folds)
        for kind, folds in by_kind.items():
            one = {"kind": kind, "pool": pool, "seeds": len(folds), "mean": float(folds.mean())}
            one |= {"std_folds": float(folds.mean(0).std()), "std_seeds": float(folds.mean(1).std())}
            if "pre-trained" in by_kind and kind != "pre-trained":
                gap = by_kind["pre-trained"].mean(0) - folds.mean(0)
                one["pre_trained_minus_this"] = {
                    "mean": float(gap.mean()), "std_folds": float(gap.std()), "folds": gap.tolist()
                }  # fmt: skip
            found.append(one)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in one.items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", required=True, action="append")
    parser.add_argument("--seeds", type=int, default=3, help="untrained networks")
    parser.add_argument("--scratch", type=int, default=0, help="networks trained from scratch on the labels")
    parser.add_argument("--tuned", type=int, default=0, help="runs from which all weights are tuned")
    parser.add_argument("--work", type=Path, default=Path("runs/esc10_tuned"), help="what is done already")
    parser.add_argument("--heard", default="all clips without labels, those of the test folds too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    waves, labels, folds = read(args.data)
    models = {name: maemm.load(name) for name in args.run}
    recipe = next(iter(models.values())).recipe
    clips = spectrograms(recipe, waves)
    rows = [row("raw", "log-mel", "mean and spread", probe(raw(waves), labels, folds))]
    for seed in range(args.seeds):
        for pool, x in embed(untrained(recipe, seed), clips).items():
            rows.append(row("untrained", f"seed {seed}", pool, probe(x, labels, folds)))
    for name, model in models.items():
        for pool, x in embed(model, clips).items():
            rows.append(row("pre-trained", Path(name).name, pool, probe(x, labels, folds)))
    for seed in range(args.scratch):
        scores = tuned_folds(seed, recipe, clips, labels, folds, seed, args.work)
        rows.append(row("from scratch", f"seed {seed}", "mean", scores))
    for seed, name in enumerate(args.run[: args.tuned]):
        scores = tuned_folds(name, recipe, clips, labels, folds, seed, args.work)
        rows.append(row("tuned from pre-trained", Path(name).name, "mean", scores))
    found = summary(rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = where() | {
            "clips": len(waves),
            "runs": {Path(name).name: told(Path(name)) for name in args.run},
            "tuning": TUNING,
        }
        kept = {key: recipe[key] for key in ("modalities", "encoder", "decoder", "objectives", "train")}
        about |= {"recipe": kept, "pre_training_heard": args.heard}
        args.out.write_text(json.dumps({"about": about, "rows": rows, "summary": found}, indent=1) + "\n")


def told(run: Path) -> dict:
    """The last line of a run's metrics: how long and how well it was trained."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return {key: last[key] for key in ("step", "epoch", "loss", "baseline", "parameters") if key in last}


if __name__ == "__main__":
    main()
