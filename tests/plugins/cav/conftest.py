"""The golden tensors of CAV-MAE, kept in parts."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden" / "cavmae"


class Cases:
    def tensors_of(self, name):
        parts = sorted(GOLDEN.glob(f"{name}.part*.safetensors"))
        return {key: value for part in parts for key, value in load_file(part).items()}

    def state_of(self, name):
        tensors = self.tensors_of(name)
        return {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}


@pytest.fixture(scope="session")
def cases():
    return Cases()
