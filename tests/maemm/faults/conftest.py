"""A small run of pictures, for tests of what verbs do around their work."""

import numpy as np
import pytest
import torch

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
    "train": {"steps": 1, "batch": 8, "lr": 0.01, "warmup_epochs": 0},
}


@pytest.fixture(scope="session")
def own_run(tmp_path_factory):
    """A folder with ``few.npz`` (20 labelled pictures) and ``run``, a run of one step."""
    import maemm

    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    np.savez(folder / "few.npz", x=rng.integers(0, 256, (20, 8, 8, 3), np.uint8), y=np.arange(20) % 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
        maemm.pretrain({**RECIPE, "out": str(folder / "run")}, **{"data.root": str(folder / "few.npz")})
    torch.set_num_threads(threads)
    return folder
