"""Point clouds: Point-MAE, PCP-MAE and their weights, without a compiled extension."""

from maemm.registry import Plugin

plugin = Plugin(
    name="pointcloud",
    version="0.1.0",
    contract=2,
    summary="point clouds: Point-MAE, PCP-MAE",
    modalities={"pointcloud": "modality:PointCloud"},
    sources={"pointcloud": "sources:open_pointclouds", "pointcloud_samples": "samples:open_samples"},
    encoders={"pcp": "encoder:PCP"},
    heads={"point_classifier": "heads:Classifier", "point_parts": "heads:Parts"},
    weights={"pointmae": "weights.pointmae:PointMAE", "pcp_mae": "weights.pointmae:PCPMAE"},
    samples={"pointcloud": "samples:write"},
    demo="pointcloud/point_mae_tiny_cpu",
    files={"pointcloud/point_mae": ".xyz .pts .asc .ply .pcd .off .obj .stl .las .laz .h5 .hdf5"},
    deviations={
        "baseline_is_the_best_constant[pointcloud]": "the mean group, or its centre alone, stands for it: no "
        "formula gives the best constant group for Chamfer distances",
        "head_answers[point_parts]": "it predicts a class for each point, (B, N, classes)",
        "hidden_tokens_do_not_leak[pcp]": "it predicts centres from the points of hidden groups, as published",
    },
)
