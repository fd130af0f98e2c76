"""Five-fold linear probe on ESC-10: raw log-mel, untrained encoder, pre-trained encoder; paired by fold.

    python benchmarks/probe_esc10.py esc10_16k/ --run runs/esc10 [--run runs/other_seed] [--out results.json]

``esc10_16k/`` holds a folder per class; the fold is the first character of a file's name. Every row has the same
classifier: features z-scored on the four training folds, logistic regression, C = 1, no setting chosen on the test
fold. Encoders read whole clips; features are the mean over tokens, or mean and spread over tokens (as the raw
features are mean and spread over time: log(mel + 1e-6), 64 bands, FFT 1024, hop 320). The unlabelled sound of the
test folds was in the pre-training of a run on all clips: the rows say what the run was given.
"""

from __future__ import annotations

import argparse
import json
import platform
from copy import deepcopy
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchaudio.transforms import MelSpectrogram

import maemm
from maemm.build import build_model
from maemm_plugins.audio.modality import Audio
from maemm_plugins.audio.sources import open_audio

LONGEST = 8.0  # seconds; the longest clip has 7.24


def read(folder: Path) -> tuple[list[torch.Tensor], np.ndarray, np.ndarray]:
    """Waves at 16 kHz, labels, folds."""
    source, audio = open_audio(str(folder)), Audio(size=[1024, 128], seconds=LONGEST)
    samples = [source.read(i, maemm.Draw((0, i))) for i in range(len(source))]
    waves = [audio.load(one.raw["audio"], None)["wave"] for one in samples]
    folds = np.array([int(Path(one.id).name[0]) for one in samples])
    return waves, np.array([one.label for one in samples]), folds


def raw(waves: list[torch.Tensor]) -> np.ndarray:
    mel = MelSpectrogram(16000, n_fft=1024, hop_length=320, n_mels=64)
    logs = [(mel(one) + 1e-6).log() for one in waves]
    return torch.stack([torch.cat([one.mean(1), one.std(1)]) for one in logs]).numpy()


@torch.no_grad()
def embed(model: torch.nn.Module, waves: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """{pooling: (n, D)}, clip by clip."""
    mean, spread = [], []
    for one in waves:
        batch = model.prepare({"audio": {"wave": one[None], "samples": [len(one)]}}, None)
        tokens = model.embed(batch, tokens=True)["audio"][0]
        mean.append(tokens.mean(0))
        spread.append(torch.cat([tokens.mean(0), tokens.std(0)]))
    return {"mean": torch.stack(mean).numpy(), "mean and spread": torch.stack(spread).numpy()}


def probe(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Accuracy of each fold."""
    found = []
    for fold in np.unique(folds):
        test = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=3000)).fit(x[~test], labels[~test])
        found.append(float(model.score(x[test], labels[test])))
    return found


def row(name: str, pool: str, scores: list[float]) -> dict:
    found = {
        "features": name,
        "pool": pool,
        "folds": scores,
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
    }
    print(
        f"{name:28s} {pool:16s} {found['mean']:.3f} +- {found['std']:.3f}   " + " ".join(f"{s:.3f}" for s in scores),
        flush=True,
    )
    return found


def encoder(recipe: dict, state: dict | None, seed: int = 0) -> torch.nn.Module:
    """The recipe's model on whole clips, untrained or with weights."""
    recipe = deepcopy(recipe)
    recipe["modalities"]["audio"]["seconds"] = LONGEST
    torch.manual_seed(seed)
    model = build_model(recipe).eval()
    if state is not None:
        model.load_state_dict(state)
    return model


def paired(rows: list[dict]) -> list[dict]:
    """Pre-trained minus untrained, by fold, averaged over seeds on both sides."""
    found = []
    for pool in ("mean", "mean and spread"):
        sides = [
            np.mean([one["folds"] for one in rows if one["pool"] == pool and one["features"].startswith(kind)], 0)
            for kind in ("pre-trained", "untrained")
        ]
        gap = sides[0] - sides[1]
        found.append({"pool": pool, "gain_by_fold": gap.tolist(), "gain": float(gap.mean()), "std": float(gap.std())})
        print(f"pre-trained - untrained      {pool:16s} {gap.mean():+.3f} +- {gap.std():.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", required=True, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    waves, labels, folds = read(args.data)
    rows = [row("raw log-mel", "mean and spread", probe(raw(waves), labels, folds))]
    models = {name: maemm.load(name) for name in args.run}
    recipe = next(iter(models.values())).recipe
    for seed in range(args.seeds):
        for pool, x in embed(encoder(recipe, None, seed), waves).items():
            rows.append(row(f"untrained, seed {seed}", pool, probe(x, labels, folds)))
    for name, model in models.items():
        for pool, x in embed(encoder(model.recipe, model.state_dict()), waves).items():
            rows.append(row(f"pre-trained, {Path(name).name}", pool, probe(x, labels, folds)))
    gains = paired(rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.processor() or "x86-64"}
        about |= {"clips": len(waves), "steps": {name: _steps(name) for name in args.run}}
        about["pre_training"] = "all clips without labels, those of the test folds too"
        args.out.write_text(json.dumps({"about": about, "rows": rows, "paired": gains}, indent=1) + "\n")


def _steps(run: str) -> int | None:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines() if (Path(run) / "metrics.jsonl").is_file() else []
    return json.loads(lines[-1])["step"] if lines else None


if __name__ == "__main__":
    main()
