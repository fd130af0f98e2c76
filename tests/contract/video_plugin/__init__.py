"""Throw-away plugin that proves the contract: clips, with nothing but the generic grid and the plain ViT."""

from maemm import Plugin

plugin = Plugin(
    name="contract_video",
    version="0.0.0",
    contract=1,
    summary="proof of the contract: VideoMAE, VideoMAE v2 and MAE-ST",
    modalities={"contract_clip": "modality:Clip", "contract_frames": "modality:Frames"},
    weights={"videomae": "weights:VideoMAE", "mae_st": "weights:MaeST"},
)
