"""A small plugin that tries the contract out: point clouds in groups, and Point-MAE's weights."""

from maemm.plugins import Plugin

plugin = Plugin(
    name="contract_points",
    version="0.1.0",
    contract=1,
    summary="tries the contract on sets of points",
    modalities={"contract_pointcloud": "modality:PointCloud"},
    weights={"contract_pointmae": "weights:PointMAE"},
)
