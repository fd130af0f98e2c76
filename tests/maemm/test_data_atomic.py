"""Files appear whole or not at all."""

from __future__ import annotations

import json

import pytest

from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json, write_text, write_whole


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_written_beside_and_renamed(tmp_path, sync):
    path = tmp_path / "new" / "a.json"
    assert write_json(path, {"a": 1}, "the record", sync=sync) == path
    assert json.loads(path.read_text()) == {"a": 1}
    write_text(path, "ü", "the record", sync=sync)
    assert path.read_text(encoding="utf-8") == "ü" and list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "a.txt", "old", "the text")

    def write(file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MaemmError, match=r"cannot write the text \(.*a.txt: No space left on device\); free space"):
        write_whole(path, write, "the text", advice="free space")
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, float("nan"), "the text")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
