"""A sample set, since a manifest needs a part."""

from pathlib import Path


def nothing(root: Path) -> None:
    """Write no samples."""
    Path(root).mkdir(parents=True, exist_ok=True)
