"""Maps that belong to a picture, pixel by pixel: depth, labels, any channels; MultiMAE and its weights."""

from maemm.registry import Plugin

plugin = Plugin(
    name="multimae",
    version="0.1.0",
    contract=2,
    summary="depth, labels and other maps beside pictures: MultiMAE",
    modalities={"map": "modality:Map", "depth": "depth:Depth", "label_map": "labels:LabelMap"},
    sources={
        "map": "sources:open_map",
        "depth": "sources:open_depth",
        "label_map": "sources:open_label_map",
        "maps": "sources:open_maps",
        "named_channels": "sources:open_named_channels",
        "map_samples": "samples:open_samples",
    },
    weights={"multimae": "weights:MultiMAE"},
    samples={"multimae": "samples:write", "depth": "samples:write_depth", "label_map": "samples:write_labels"},
    demo="multimae/tiny_cpu",
    check_options={
        "label_map": {"classes": 6, "embedding": 4},
        "sources.map_samples": {"rgb": "image", "semseg": "label_map"},
    },
)
