"""The keys below ``data`` and ``train``: their types, defaults and one line of help each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from maemm.config.messages import MISSING, type_text
from maemm.config.options import Option

_Names = list[str]  # a key below is called ``list``


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SetConfig(_Keys):
    """One data set of a mixture."""

    root: str | None = Field(None, description="folder or file that the source reads")
    list: str | None = Field(None, description="list file that names the samples")
    source: str | dict[str, Any] | None = Field(None, description="source part; null: as for data.source")
    modalities: _Names | None = Field(None, description="what its samples hold; null: all that the recipe has")
    passes: float = Field(1.0, gt=0, description="passes over it in an epoch: 2 gives it twice the steps")
    aug_repeats: int | None = Field(None, ge=1, description="in place of data.aug_repeats")


class DataConfig(_Keys):
    """Where samples come from and how they are read. The defaults suit a folder on one machine."""

    root: str | None = Field(None, description="folder or file that the source reads")
    list: str | None = Field(None, description="list file that names the samples")
    source: str | dict[str, Any] | None = Field(None, description="source part; null: the one of the modality's type")
    mix: dict[str, dict[str, Any] | None] | None = Field(
        None, description="several data sets by name, each {root, list, source, modalities, passes, repeats}"
    )
    missing: Literal["skip", "allow"] = Field(
        "skip", description="samples that lack a modality: skip counts them as unreadable, allow takes what they have"
    )
    workers: int = Field(2, ge=0, description="processes that read; 0: the main process reads")
    prefetch: int = Field(2, ge=1, description="batches that each worker keeps ready")
    timeout: float = Field(600.0, gt=0, description="seconds that one batch may take")
    aug_repeats: int = Field(1, ge=1, description="augmented views of each sample that is read; batch counts views")
    classes: _Names | int | None = Field(
        None, description="names of the labels, in order, or their number; samples without one of them are unreadable"
    )
    validation: float | str | None = Field(
        None, description="share of the samples that is held out to validate with, or other data"
    )
    shots: int | str | None = Field(
        None, description="labels of each class to learn from: a number, or a share such as 10%; null: all"
    )
    fold: str | None = Field(
        None, description="leave one fold out of what is learned from, to ask about it: 2/5 is the second of five"
    )
    groups: str | None = Field(None, description="regular expression: ids that give the same text share a fold")
    balance: bool = Field(False, description="draw samples of rare classes as often as those of common ones")
    epoch: int | None = Field(None, ge=1, description="samples of an epoch, drawn anew each time; null: all, once")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="share of unreadable samples at which a run stops")


class TrainConfig(_Keys):
    """How to train. The defaults are those of the MAE pre-training recipe where it has them."""

    epochs: int | None = Field(None, gt=0, description="passes over the data; or give steps")
    steps: int | None = Field(None, gt=0, description="optimiser steps; or give epochs")
    batch: int = Field(256, gt=0, description="samples of a step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="samples that one process takes at a time; null: all its own"
    )
    base_lr: float | None = Field(None, gt=0, description="learning rate for a batch of 256; default 1.5e-4 unless lr")
    lr: float | None = Field(None, gt=0, description="learning rate, not scaled with the batch")
    schedule: str | dict[str, Any] = Field("cosine", description="schedule part: cosine, constant or step")
    lr_per: Literal["step", "epoch", "epoch_before"] = Field(
        "step", description="how often the learning rate changes; epoch_before: each epoch has that of the one before"
    )
    warmup_epochs: float = Field(40.0, ge=0, description="epochs of linear warmup")
    warmup_lr: float = Field(0.0, ge=0, description="learning rate at the beginning of the warmup")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")
    optimizer: str | dict[str, Any] = Field("adamw", description="optimiser part: adamw, adam, sgd or lars")
    no_decay: list[str] = Field(["*.bias"], description="names of parameters without weight decay, as all of one axis")
    layer_decay: float | None = Field(None, gt=0, le=1, description="factor of the learning rate per encoder layer")
    head_lr_scale: float | None = Field(None, gt=0, description="factor of the learning rate of the head")
    trainable: str | None = Field(
        None,
        pattern=r"^(all|head|half_block|last_[1-9][0-9]*_blocks?)$",
        description="what is trained: all (null), head, half_block (MLP of the last block), last_2_blocks",
    )
    clip_grad: float | None = Field(None, gt=0, description="largest L2 norm of the gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights")
    average: int | None = Field(
        None, gt=0, description="first epoch, from 1, of an equal mean of the weights at the ends of epochs"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    compile: bool = Field(False, description="torch.compile the forward pass")
    seed: int = Field(0, ge=0, description="of weights, order, augmentation and masks")
    max_nonfinite: int = Field(10, ge=0, description="steps in a row with a non-finite loss before the run stops")
    save_every: int | None = Field(
        None, gt=0, description="steps between checkpoints; null: whole epochs, at most 200 times"
    )
    keep: int = Field(2, gt=0, description="newest checkpoints to keep")
    validate_every: int | None = Field(None, gt=0, description="steps between validations; null: one epoch")
    validate_tta: bool = Field(False, description="validate with all views of each sample, as evaluate does")
    patience: int | None = Field(None, gt=0, description="validations without a better figure before a run ends")
    picture_every: int | None = Field(None, gt=0, description="steps between pictures; null: about 10 times")
    log_every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write TensorBoard files")


BASE_LR = 1.5e-4  # MAE, appendix A.1

# Parts that stand below ``train`` and are looked up in the registries of maemm.train, not among plugins.
TRAIN_PARTS = {"optimizer": "optimizers", "schedule": "schedules"}  # key of train -> role of the registry


def keys_of(model: type[BaseModel]) -> list[Option]:
    """The keys of ``data`` or ``train`` for help texts: name, type, default, one line."""
    return [
        Option(name, one.annotation, MISSING if one.is_required() else one.default, one.description or "")
        for name, one in model.model_fields.items()
    ]


def key_types(model: type[BaseModel]) -> dict[str, tuple[str, Any]]:
    """{key: (type in words, default)} for messages."""
    return {one.name: (type_text(one.hint), one.default) for one in keys_of(model)}
