"""The manifest of the core: the parts that do not depend on the modality."""

from __future__ import annotations

from maemm.contract.version import CONTRACT_VERSION
from maemm.registry.manifest import Plugin

CORE = Plugin(
    name="core",
    version=str(CONTRACT_VERSION),
    contract=CONTRACT_VERSION,
    summary="parts that fit any modality",
    sources={
        "paired": "data.paired:open_paired",
        "beside": "data.beside:open_beside",
        "shards": "data.shards.source:open_shards",
        "datasets": "data.shards.datasets:open_datasets",
    },
    maskings={
        "random": "model.masking.random:Random",
        "block": "model.masking.block:Block",
        "blocks": "model.masking.blocks:Blocks",
        "inverse_block": "model.masking.block:InverseBlock",
        "scattered_blocks": "model.masking.scattered_blocks:ScatteredBlocks",
        "scan": "model.masking.scan:Scan",
        "attention": "model.masking.attention:Attention",
        "clusters": "model.masking.clusters:Clusters",
        "multi_mask": "model.masking.multi_mask:MultiMask",
        "multi_block": "model.masking.multi_block:MultiBlock",
        "dirichlet": "model.masking.dirichlet:Dirichlet",
        "predict_all": "model.masking.predict_all:PredictAll",
        "predict_some": "model.masking.predict_some:PredictSome",
    },
    encoders={
        "vit": "model.encoders.vit:ViT",
        "latent": "model.encoders.latent:LatentViT",
        "streams": "model.encoders.streams:Streams",
    },
    decoders={
        "full": "model.decoders.full:Full",
        "latent": "model.decoders.latent:LatentDecoder",
        "linear": "model.decoders.linear:LinearDecoder",
        "conv": "model.decoders.conv:Conv",
        "predictor": "model.decoders.predictor:Predictor",
        "cross": "model.decoders.cross:Cross",
        "crossmae": "model.decoders.crossmae:CrossMAE",
    },
    targets={
        "ema": "model.targets.ema:EMA",
        "teacher": "weights.teacher:Teacher",
        "frequency": "model.targets.frequency:Frequency",
        "patches": "model.targets.patches:Patches",
        "codes": "model.targets.codes:Codes",
        "codebook": "model.targets.codebook:Codebook",
    },
    objectives={
        "classify": "model.objectives.classify:Classify",
        "reconstruct": "model.objectives.reconstruct:Reconstruct",
        "pooled": "model.objectives.pooled:Pooled",
        "contrastive": "model.objectives.contrastive:Contrastive",
        "adversarial": "model.objectives.adversarial:Adversarial",
        "predict": "model.objectives.predict:Predict",
        "uniformity": "model.objectives.uniformity:Uniformity",
        "denoise": "model.objectives.denoise:Denoise",
        "views": "model.objectives.views:Views",
        "perceptual": "weights.perceptual:Perceptual",
    },
    check_options={
        "maskings.multi_block": {"min_keep": 0},  # of the suite's 16 tokens a block has one or two
        "maskings.dirichlet": {"budget": 6},
        "decoders.crossmae": {"layers": "last"},  # which leaves no final norm of the encoder without a gradient
        "targets.codes": {"vocab": 4},
        "targets.codebook": {"vocab": 16},
        "objectives.views": {"hidden": 16},
        "objectives.perceptual": {"target": "teacher", "weight": 0.5},
        "objectives.predict": {"target": {"type": "frequency", "gamma": 2.0}, "weight": 0.5},
    },
    deviations={
        "one_batch_is_learned[cross]": "queries are not added back behind its cross-attention: it learns in more steps "
        "than the suite takes",
    },
    heads={"linear": "model.heads:Linear", "probe": "model.heads:Probe"},
    optimizers={
        "adamw": "train.optim:adamw",
        "adam": "train.optim:adam",
        "sgd": "train.optim:sgd",
        "lars": "train.optim:lars",
        "muon": "train.muon:muon",
    },
    schedules={
        "cosine": "train.schedules:cosine",
        "constant": "train.schedules:constant",
        "step": "train.schedules:step",
    },
    trackers={
        "tensorboard": "train.trackers.tensorboard:TensorBoard",
        "wandb": "train.trackers.wandb:WandB",
    },
)
