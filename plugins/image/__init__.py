"""Images: folders, lists and arrays of them; MAE, Pixio and their weights."""

from maemm.registry import Plugin

plugin = Plugin(
    name="image",
    version="0.1.0",
    contract=2,
    summary="images: MAE, Pixio",
    modalities={"image": "modality:Image"},
    sources={"image": "sources:open_images", "image_samples": "samples:open_samples"},
    targets={"hog": "hog:HOG", "picture_teacher": "teachers:PictureTeacher"},
    objectives={"regions": "rmae:Regions"},
    weights={
        "mae": "weights.mae:MAE",
        "timm": "weights.timm:Timm",
        "pixio": "weights.mae:Pixio",
        "hf_vitmae": "weights.hf:HFViTMAE",
        "ijepa": "weights.ijepa:IJEPA",
        "data2vec2": "weights.data2vec2:Data2Vec2",
        "maetok": "weights.maetok:MAETok",
    },
    samples={"image": "samples:write"},
    demo="image/mae_tiny_cpu",
    check_options={
        "objectives.regions": {"memory_depth": 1},
        "targets.hog": {"cell": 1, "bins": 3},
    },  # of random pictures larger cells are nearly all alike
    files={
        "image/mae_base": ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .jp2 .j2k .avif "
        ".npy .npz"
    },
)
