"""Latent tokens in training: two stages, of which the second trains the decoder alone; micro-batches; runs resumed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm

SIZES = {"dim": 16, "depth": 1, "heads": 2}
HIDES = {"type": "predict_all", "masking": {"type": "random", "ratio": [0.4, 0.6]}}
OPTIONS = {
    "modalities__toy__masking": HIDES,
    "modalities__toy__normalize": "none",
    "encoder": {"type": "latent", "latents": 4, "latent_dim": 6, "rotary": "mixed", **SIZES},
    "decoder": {"type": "latent", "rotary": "mixed", **SIZES},
    "objectives": {
        "reconstruct": {},
        "spectrum": {"type": "predict", "target": "frequency", "decoder": {"type": "latent"}, "tokens": "hidden"},
    },
    "train__epochs": 2,
    "train__warmup_epochs": 0,
}
STAGES = {
    "tokenizer": {},
    "decoder": {
        "init": {"parts": ["encoder", "decoder", "modalities"]},
        "modalities": {"toy": {"masking": {"masking": {"ratio": 0.0}}}},
        "objectives": {"spectrum": None},
        "train": {"freeze": ["encoder", "modalities.toy.embedding"]},
    },
}


def weights(folder, stage):
    last = sorted((Path(folder) / stage / "checkpoints").glob("step-*"))[-1]
    return {key: value.clone() for key, value in load_file(last / "model.safetensors").items()}


def test_the_second_stage_leaves_the_latents_as_they_are(toys):
    folder = toys.train(**OPTIONS, stages=STAGES)
    first, second = weights(folder, "tokenizer"), weights(folder, "decoder")
    assert {key for key in first if key not in second} == {key for key in first if key.startswith("objectives.")}
    moved = {key for key, value in second.items() if not torch.equal(value, first[key])}
    assert moved and {key.split(".")[0] for key in moved} == {"decoder"}
    models = [maemm.load(Path(folder) / stage) for stage in ("tokenizer", "decoder")]
    x = {"toy": models[0].modalities["toy"].example(3, maemm.Rng((0, "x"), range(3), 3))}
    one, other = (model.embed(x, latents=True)["toy"] for model in models)
    assert torch.equal(one, other)
    assert not torch.equal(*(model.decode(one)["toy"] for model in models))


@pytest.mark.parametrize("changes", [{"train__micro_batch": 4}, {"train__micro_batch": 16}])
def test_micro_batches_and_a_resumed_run_equal_one_batch(toys, changes):
    whole = toys.train(**OPTIONS, out=toys.out.with_name("whole"))
    if changes["train__micro_batch"] == 16:  # in one piece again, stopped at half of it
        toys.train(**{**OPTIONS, "train__epochs": 2, "train__steps": None}, train__save_every=3, **changes)
        last = sorted((toys.out / "checkpoints").glob("step-*"))[-1]
        for file in last.iterdir():
            file.unlink()
        last.rmdir()
    toys.train(**OPTIONS, train__save_every=3, **changes)
    for ours, theirs in zip(toys.metrics(), toys.metrics(whole), strict=True):
        same = 1e-5 if changes["train__micro_batch"] == 4 else 0  # bit for bit
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=same, abs=0)
