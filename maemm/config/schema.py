"""The keys of ``data`` and ``train``: their types, defaults and a line of help each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field

from maemm.config.messages import MISSING, type_text
from maemm.config.options import Option, field_hint
from maemm.contract.options import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    PositiveInt,
    Repeats,
)

MOST_DRAWN = 10**8  # samples of an epoch, whose order is drawn at once
MOST_WORKERS = 1024  # processes; each is a whole Python

_Names = list[str]  # inside the classes below, ``list`` is a key


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SetConfig(_Keys):
    """One dataset of a mixture."""

    root: str | None = Field(None, description="folder or file that the source reads")
    list: str | None = Field(None, description="list file that names the samples")
    source: str | dict[str, Any] | None = Field(None, description="source part; null: as in data.source")
    modalities: _Names | None = Field(None, description="modalities of its samples; null: all of the recipe")
    passes: Positive = Field(1.0, description="passes over it in an epoch: 2 gives it twice the steps")
    aug_repeats: Repeats | None = Field(None, description="overrides data.aug_repeats")


class DataConfig(_Keys):
    """Where samples come from and how they are read. The defaults suit a folder on one machine."""

    root: str | None = Field(None, description="folder or file that the source reads")
    list: str | None = Field(None, description="list file that names the samples")
    source: str | dict[str, Any] | None = Field(None, description="source part; null: that of the modality's type")
    mix: dict[str, dict[str, Any] | None] | None = Field(
        None, description="several datasets by name, each {root, list, source, modalities, passes, aug_repeats}"
    )
    missing: Literal["skip", "allow"] = Field(
        "skip", description="samples that lack a modality: skip counts them as unreadable, allow uses the others"
    )
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)] = Field(
        2, description="worker processes that read samples; 0: the main process does"
    )
    prefetch: Repeats = Field(2, description="batches that each worker reads ahead")
    timeout: Positive = Field(600.0, description="seconds that reading a batch may take")
    aug_repeats: Repeats = Field(1, description="augmented copies of each sample read; train.batch counts copies")
    classes: _Names | PositiveInt | None = Field(
        None,
        description="names of the labels, in order, or their number; samples with another, or none, are unreadable",
    )
    validation: PositiveFraction | str | None = Field(
        None, description="fraction of the samples held out for validation, or a path to validation data"
    )
    shots: PositiveInt | str | None = Field(
        None, description="labelled samples per class to train on: a number, or a fraction such as 10%; null: all"
    )
    fold: str | None = Field(
        None, description="cross-validation fold held out of training, to evaluate on: 2/5 is the second of five"
    )
    groups: str | None = Field(None, description="regular expression: sample ids with the same match share a fold")
    balance: bool = Field(False, description="sample all classes equally often")
    epoch: Annotated[int, Ge(1), Le(MOST_DRAWN)] | None = Field(
        None, description="samples per epoch, drawn anew each time; null: all, once"
    )
    shuffle: Literal["exact"] | PositiveInt = Field(
        "exact",
        description="exact: over all samples; a number: over so many shards at a time, in random order, each read once",
    )
    max_bad_fraction: Fraction = Field(0.05, description="fraction of unreadable samples above which a run stops")


class MonitorConfig(_Keys):
    """What a run measures of itself. All keys have defaults: ``monitor: {}`` turns it on."""

    every: PositiveInt = Field(50, description="steps between measurements")
    samples: Annotated[int, Ge(16), Le(10**6)] = Field(
        256, description="samples that are measured, the same each time: of data.validation, else of the training part"
    )
    data: str | None = Field(None, description="folder or file with other samples to measure; null: see samples")
    stop_on_alarm: bool = Field(False, description="end the run at the first alarm, after a checkpoint")


class SpikesConfig(_Keys):
    """What becomes of a step whose loss jumps. All keys have defaults: ``spikes: {}`` skips such steps."""

    action: Literal["skip", "rewind"] = Field(
        "skip",
        description="skip: such a step changes nothing; rewind: back to the checkpoint before it, and past its samples",
    )
    factor: Positive = Field(
        6.0, description="deviations above the median of the last losses, in standard deviations of a normal one"
    )
    window: Annotated[int, Ge(8), Le(10**5)] = Field(
        100, description="accepted losses that are compared with; half of them have to be there first"
    )
    most_in_a_row: PositiveInt = Field(5, description="such steps in a row, after which the loss is a new level")
    most_rewinds: PositiveInt = Field(5, description="rewinds of a run, after which it ends")


class MirrorConfig(_Keys):
    """Where checkpoints are copied to, and from where a new machine goes on."""

    url: str = Field(description="folder or URL: s3://BUCKET/NAME, gs://..., /another/disk/NAME")
    options: dict[str, Any] = Field({}, description="of the storage, such as {endpoint_url: ...}; see fsspec")
    keep: PositiveInt = Field(2, description="number of latest checkpoints to keep there")
    patience: Positive = Field(60.0, description="seconds for which a storage that does not answer is asked again")


class TrainConfig(_Keys):
    """How to train. The defaults are those of MAE's pre-training recipe, as far as it has them."""

    epochs: PositiveInt | None = Field(None, description="passes over the data; or give steps")
    steps: PositiveInt | None = Field(None, description="optimiser steps; or give epochs")
    batch: PositiveInt = Field(256, description="samples per step, over all ranks")
    micro_batch: PositiveInt | None = Field(
        None, description="samples per forward and backward pass of a rank; null: all of its batch"
    )
    base_lr: Positive | None = Field(
        None, description="learning rate for a batch of 256; default 1.5e-4, unless lr is given"
    )
    lr: Positive | None = Field(None, description="learning rate, not scaled with the batch")
    schedule: str | dict[str, Any] = Field("cosine", description="a schedule of `maemm plugins list`, such as cosine")
    lr_per: Literal["step", "next_step", "epoch", "epoch_before"] = Field(
        "step",
        description="how often the learning rate changes; epoch_before: per epoch, one epoch late; next_step: per "
        "step, one step ahead (I-JEPA)",
    )
    warmup_epochs: NonNegative = Field(40.0, description="epochs of linear warmup")
    warmup_lr: NonNegative = Field(0.0, description="learning rate at the start of the warmup")
    min_lr: NonNegative = Field(0.0, description="learning rate at the end")
    optimizer: str | dict[str, Any] = Field("adamw", description="an optimiser of `maemm plugins list`, such as adamw")
    final_weight_decay: NonNegative | None = Field(
        None, description="weight decay at the end of half a cosine from that of the optimizer; null: it stays"
    )
    no_decay: list[str] = Field(
        ["*.bias"], description="name patterns of parameters without weight decay, besides those of one axis"
    )
    decay_all: bool = Field(False, description="weight decay on all parameters, biases and norms too (MultiMAE)")
    layer_decay: PositiveFraction | None = Field(
        None, description="layer-wise decay of the learning rate: factor per encoder layer"
    )
    head_lr_scale: Positive | None = Field(None, description="factor on the learning rate of the head")
    trainable: str | None = Field(
        None,
        pattern=r"^(all|head|half_block|last_[1-9][0-9]*_blocks?)$",
        description="what to train: all (null), head, half_block (MLP of the last block), last_2_blocks",
    )
    freeze: list[str] | None = Field(
        None, description="parts that are not trained, by name, such as [encoder, decoder]"
    )
    clip_grad: Positive | None = Field(None, description="maximum L2 norm of the gradient")
    ema: Annotated[float, Gt(0), Lt(1)] | None = Field(
        None, description="decay of an exponential moving average of the weights"
    )
    average: PositiveInt | None = Field(
        None, description="average the weights at the end of each epoch, from this epoch (1 is the first) on"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    residual: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="sums between blocks under bf16: fp32 as in published code, or bf16; auto: bf16 in a plain ViT and "
        "decoder, fp32 in streams",
    )
    compile: Literal["auto", "blocks"] | bool = Field(
        "auto",
        description="torch.compile: true: the forward pass as one graph; blocks: every block, equal ones once; "
        "auto: blocks on CUDA, where batches come in few sizes",
    )
    activation_checkpointing: bool = Field(
        False, description="compute each block again in the backward pass: less memory, about a third more time"
    )
    parallel: Literal["ddp", "fsdp", "hsdp"] = Field(
        "ddp",
        description="of several ranks: ddp: each has all weights; fsdp: each has a shard of weights, gradients, "
        "moments and averages; hsdp: the ranks of a machine share a copy",
    )
    shard: PositiveInt | None = Field(None, description="ranks that share a copy under hsdp; null: those of a machine")
    cpu_products: Literal["blas", "onednn"] = Field(
        "blas",
        description="products of linear layers in float32 on a CPU: those of torch's BLAS, or of oneDNN, which takes "
        "half the time on processors that are not Intel's and rounds otherwise",
    )
    seed: NonNegativeInt = Field(0, description="random seed of weights, order, augmentation and masks")
    max_nonfinite: NonNegativeInt = Field(
        10, description="consecutive steps with a non-finite loss before the run stops"
    )
    spikes: SpikesConfig | None = Field(
        None, description="skip steps whose loss jumps, or go back behind their samples; null: take every step"
    )
    save_every: PositiveInt | None = Field(
        None, description="steps between checkpoints; null: at epoch ends, at most 200 times"
    )
    async_save: bool = Field(
        False, description="write checkpoints in a thread, from copies in memory, while training goes on"
    )
    keep: PositiveInt = Field(2, description="number of latest checkpoints to keep")
    mirror: MirrorConfig | None = Field(
        None, description="also copy each checkpoint to another place, such as a bucket, and go on from there"
    )
    validate_every: PositiveInt | None = Field(None, description="steps between validations; null: one epoch")
    validate_tta: bool = Field(False, description="validate with test-time augmentation, as evaluate does")
    patience: PositiveInt | None = Field(None, description="validations without improvement before the run ends")
    monitor: MonitorConfig | None = Field(
        None,
        description="measure features, targets and losses while training, and name what looks wrong; null: nothing is "
        "measured",
    )
    picture_every: PositiveInt | None = Field(None, description="steps between pictures; null: about 10 times")
    rank_timeout: Positive = Field(
        14400.0, description="seconds that ranks wait for one which works alone, such as on a checkpoint, or hangs"
    )
    log_every: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write TensorBoard files; short for train.trackers=tensorboard")
    trackers: str | list[str | dict[str, Any]] | dict[str, Any] | None = Field(
        None, description="where to report the run: NAME, [NAME, ...] or {NAME: {OPTION: VALUE}}, such as wandb"
    )
    peak_tflops: Positive | None = Field(
        None,
        description="TFLOP/s that a device can do, for the MFU in the log; null: by its name, or measured; on a CPU no "
        "MFU",
    )


BASE_LR = 1.5e-4  # MAE, appendix A.1

TRAIN_PARTS = {"optimizer": "optimizers", "schedule": "schedules"}  # key of ``train`` that holds a part -> its role


def keys_of(model: type[BaseModel]) -> list[Option]:
    """The keys of a section for help texts: name, type, default and a line of help each."""
    return [
        Option(name, field_hint(field), MISSING if field.is_required() else field.default, field.description or "")
        for name, field in model.model_fields.items()
    ]


def key_types(model: type[BaseModel]) -> dict[str, tuple[str, Any]]:
    """{key: (type in words, default)} for messages, those of sections inside as KEY.KEY."""
    return {key.name: (type_text(key.hint), key.default) for outer in keys_of(model) for key in (outer, *outer.inner())}
