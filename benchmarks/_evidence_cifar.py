"""Whether pre-training on a GPU learns: CIFAR-10 for minutes, probes, fine-tuning, transformers' ViTMAE beside."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _evidence_device import available_cpus, synchronize
from _evidence_pictures import unpacked
from _evidence_process import Place

import maemm
from maemm.data.open import open_parts
from maemm.tasks._shared.embedding import features, raw_values
from maemm.tasks._shared.inputs import open_data
from maemm.tasks._shared.tables import tables
from maemm.tasks.probe.linear import logistic_scores
from maemm.tasks.probe.neighbours import knn_scores
from maemm.train.distributed import DistContext
from maemm.train.loop import train
from maemm.train.optim import set_lr
from maemm.train.setup import make_loader, make_order, make_train_state
from maemm.train.step import plan_micro_batches, take_step

PRETRAIN, FINETUNE = "image/mae_tiny_cifar10", "image/finetune/mae_tiny_cifar10"
L2_C = 1e-2  # fixed, so that a probe takes seconds
NARROW = {"encoder.dim": 32, "encoder.depth": 2, "encoder.heads": 2}
NARROW_DECODER = {"decoder.dim": 32, "decoder.depth": 1, "decoder.heads": 2}


# ----------------------------------------------------------------------------------------------------- pre-training
def _overrides(settings: dict[str, Any], data: Path, out: Path) -> dict[str, Any]:
    tiny = settings.get("tiny", False)
    return {
        "data.root": str(data),
        "data.workers": 0 if tiny else min(16, available_cpus()),
        "data.prefetch": 4,
        "train.epochs": None,
        "train.batch": settings["batch"],
        "out": str(out),
    }


def _steps_in(seconds: float, make: Any, out: Path, batch: int, trial: int) -> int:
    """How many steps the loop does in ``seconds``, by a trial of ``make(steps, out)``; remembered beside ``out``."""
    note = out.with_name(out.name + "-steps.json")
    if not note.exists():
        folder = make(trial, out.with_name(out.name + "-trial"))
        rate = _log(folder)[-1]["samples_per_second"]  # of the last steps: without the start of the workers
        note.write_text(json.dumps(max(2, int(seconds * rate / batch))))
    return json.loads(note.read_text())


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def echo(line: str) -> None:
    print(line, flush=True)


def pretrained(settings: dict[str, Any], place: Place) -> Path:
    """The run folder; a run that was cut goes on, and one that is finished is left as it is."""
    paths, out = unpacked(settings, place), place.work / "cifar" / "run"
    narrow = NARROW | NARROW_DECODER if settings.get("tiny") else {}

    def make(steps: int, folder: Path) -> Path:
        samples = len(np.load(paths["train"])["y"])
        changes = _overrides(settings, paths["train"], folder) | narrow | {"train.steps": steps}
        changes |= {"train.log_every": max(1, steps // 20), "train.lr": 1.5e-3, "train.save_every": max(1, steps // 8)}
        changes["train.warmup_epochs"] = 0.05 * steps * settings["batch"] / samples
        return train(maemm.config.load(PRETRAIN, changes, training=True), echo=echo)

    return make(_steps_in(settings["seconds"], make, out, settings["batch"], settings["trial"]), out)


def pretrain(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Loss, its baseline, and rates of a run as long as the row's seconds allow."""
    rows = _log(pretrained(settings, place))
    answer = {name: rows[-1].get(name) for name in ("steps", "epoch", "loss", "baseline", "samples_per_second", "mfu")}
    answer["data_wait"] = float(np.median([row["data_wait"] for row in rows]))
    answer["losses"] = [row["loss"] for row in rows]
    return answer | {"seconds_in_all": rows[-1]["seconds"]}


def probe(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """kNN (cosine, k = 20) and logistic regression (fixed C) on mean-pooled features, or on raw pixels."""
    paths, kind = unpacked(settings, place), settings["features"]
    model = maemm.load(pretrained(settings, place))
    if kind == "untrained":
        torch.manual_seed(0)
        model = maemm.build(model.recipe).eval()
    model = model.to(place.device)
    parts = [
        features(model, open_data(model.recipe, path), batch=500, embed=raw_values if kind == "raw" else None)["image"]
        for path in paths.values()
    ]
    train_table, test_table = tables(*parts)
    answer: dict[str, Any] = {"knn": test_table.metric(knn_scores(train_table, test_table))}
    answer |= {"train": len(train_table.y), "test": len(test_table.y)}
    place.keep(answer)
    fewer = train_table.select(np.arange(min(settings["linear_samples"], len(train_table.y))))  # they are shuffled
    answer["linear"] = test_table.metric(logistic_scores(fewer, test_table, l2_c=L2_C))
    return answer | {"linear_train": len(fewer.y), "C": L2_C}


def finetune(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Accuracy on the test part after fine-tuning, from the pre-trained start or from scratch."""
    paths = unpacked(settings, place)
    start = pretrained(settings["pretrained"], place)
    scratch = settings["start"] == "scratch"
    out = place.work / "cifar" / settings["start"]
    narrow = NARROW if settings.get("tiny") else {}

    def make(steps: int, folder: Path) -> Path:
        changes = _overrides(settings, paths["train"], folder) | narrow | {"train.steps": steps}
        changes |= {
            "data.validation": None,
            "init": str(start),
            "train.log_every": max(1, steps // 10),
            "train.save_every": steps,
        }
        changes |= {"train.warmup_epochs": 1, "head.classes": settings["classes"]}
        return maemm.finetune(FINETUNE, str(paths["train"]), scratch=scratch, echo=echo, **changes)

    timed = place.work / "cifar" / "finetune"
    steps = _steps_in(settings["seconds"], make, timed, settings["batch"], settings["trial"])
    run = make(steps, out)
    answers = maemm.evaluate(run, str(paths["test"]), batch=500, workers=0)
    accuracy = float((next(iter(answers.logits.values())).argmax(1) == answers.labels).mean())
    rows = _log(run)
    return {"accuracy": accuracy, "steps": steps, "samples_per_second": rows[-1]["samples_per_second"]}


# ------------------------------------------------------------------------------------------------ ViTMAE beside
def vit_mae(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Our step and that of transformers' ViTMAE of the same size, on the same batches on the device: rate and loss."""
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError:
        return {"left_out": "transformers is not installed"}
    device, batch, count = torch.device(place.device), settings["batch"], settings["steps"]
    data = unpacked(settings, place)["train"]
    narrow = NARROW | NARROW_DECODER if settings.get("tiny") else {}
    changes = _overrides(settings, data, place.work / "unused") | narrow
    recipe = maemm.config.load(PRETRAIN, changes | {"train.steps": count, "data.epoch": 10 * batch})
    dist_context = DistContext(device=device)
    source, _ = open_parts(recipe)
    order = make_order(recipe, source, dist_context)
    state = make_train_state(recipe, count, 1, dist_context, steps_per_epoch=order.steps_per_epoch)
    with closing(make_loader(recipe, source, order).batches(0, settings["batches"])) as read:
        batches = [batch.pin_memory() if device.type == "cuda" else batch for batch in read]
    planned = [plan_micro_batches(state, number, [one]) for number, one in enumerate(batches)]
    pixels = [micro_batches.inputs[0]["image"].preprocessed.x for micro_batches in planned]
    encoder, decoder, image = recipe["encoder"], recipe["decoder"], recipe["modalities"]["image"]
    config = ViTMAEConfig(
        image_size=image["size"], patch_size=image["patch"], mask_ratio=0.75, norm_pix_loss=True,
        hidden_size=encoder["dim"], num_hidden_layers=encoder["depth"], num_attention_heads=encoder["heads"],
        intermediate_size=4 * encoder["dim"], decoder_hidden_size=decoder["dim"],
        decoder_num_hidden_layers=decoder["depth"], decoder_num_attention_heads=decoder["heads"],
        decoder_intermediate_size=4 * decoder["dim"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(config).to(device).train()
    options = {"lr": settings["lr"], "betas": (0.9, 0.95), "weight_decay": 0.05, "fused": device.type == "cuda"}
    optimizer = torch.optim.AdamW(theirs.parameters(), **options)

    def our_step(number: int) -> torch.Tensor:
        set_lr(state.optimizer, settings["lr"])
        micro_batches = plan_micro_batches(state, number, [batches[number % len(batches)]])
        return take_step(state, micro_batches).total.detach()

    def their_step(number: int) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=state.bf16):
            loss = theirs(pixel_values=pixels[number % len(pixels)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    answer: dict[str, Any] = {"steps": count, "batch": batch}
    for name, step in (("ours", our_step), ("theirs", their_step)):
        losses, warm = [], count // 10
        for number in range(count):
            if number == warm:
                synchronize(device)
                start = time.perf_counter()
            losses.append(step(number))
        synchronize(device)
        rate = batch * (count - warm) / (time.perf_counter() - start)
        last = torch.stack(losses[-max(1, count // 10) :]).mean()
        answer[name] = {"samples_per_s": rate, "first_loss": float(losses[0]), "last_loss": float(last)}
        place.keep(answer)
    return answer | {"encoder_parameters": _parameters(state.model.encoder, theirs.vit)}


def _parameters(*modules: torch.nn.Module) -> list[int]:
    return [sum(p.numel() for p in module.parameters()) for module in modules]
