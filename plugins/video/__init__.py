"""Videos: files of every kind, lists, folders; VideoMAE, VideoMAE v2, MAE-ST, OmniMAE, V-JEPA 2 and their weights."""

from maemm.registry import Plugin

plugin = Plugin(
    name="video",
    version="0.1.0",
    contract=2,
    summary="videos: VideoMAE, VideoMAE v2, MAE-ST, OmniMAE, V-JEPA 2",
    modalities={"video": "modality:Video"},
    sources={
        "video": "sources:open_videos",
        "video_samples": "samples:open_samples",
        "video_and_images": "sources:open_mixed",
    },
    maskings={"tube": "maskings:Tube", "frame": "maskings:Frame"},
    encoders={"apart": "omni:Apart"},
    decoders={"project_last": "omni:ProjectLast"},
    weights={
        "videomae": "weights.videomae:VideoMAE",
        "hf_videomae": "weights.hf:HFVideoMAE",
        "mae_st": "weights.mae_st:MaeST",
        "omnimae": "weights.omnimae:OmniMAE",
        "vjepa2": "weights.vjepa2:VJEPA2",
    },
    packs={"video": "pack:Videos"},
    samples={"video": "samples:write"},
    demo="video/videomae_tiny_cpu",
    files={"video/videomae_base": ".mp4 .avi .webm .mkv .mov .m4v .mpg .mpeg .wmv .flv .3gp .ogv"},
)
