"""Awkward files of every kind: ``maemm show`` draws each or refuses it with its reason."""

import os
import tarfile
from pathlib import Path

import pytest

from maemm.config.guess import guess
from maemm.contract.errors import MaemmError
from maemm.tasks.show.run import show

ODD = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "odd.tar"
pytestmark = pytest.mark.skipif(not ODD.is_file(), reason="the shared data are not here")

RECIPES = {
    "i": "image/mae_tiny_cpu",
    "p": "pointcloud/point_mae_tiny_cpu",
    "a": "audio/audiomae_tiny_cpu",
    "v": "video/videomae_tiny_cpu",
}
# A piece of the reason why each of these must be refused; all others must be drawn.
REFUSED = {
    "i_truncated.jpg": "truncated",
    "i_header_only.jpg": "a damaged JPEG file (20 bytes)",
    "i_zero_bytes.jpg": "empty file (0 bytes)",
    "p_all_same.xyz": "points are equal",
    "p_counts_too_large.off": "242 vertices",
    "p_counts_too_small.off": "line 175",
    "p_index_out_of_range.off": "line 195",
    "p_nan.xyz": "2 of 256 points are not finite",
    "p_ragged.csv": "line 6",
    "p_truncated.pcd": "2,000 bytes",
    "p_truncated.ply": "1,500 bytes",
    "p_two_points.xyz": "2 distinct points",
    "p_zero_bytes.xyz": "empty file (0 bytes)",
    "a_cut.wav": "cut off",
    "a_empty.wav": "no samples",
    "a_nan.wav": "11 samples are not finite",
    "a_silent.wav": "silent",
    "a_stereo_opposite.wav": "cancel",
    "a_truncated.ogg": "cut off",
    "a_zero_bytes.wav": "empty file (0 bytes)",
    "v_audio_only.mp4": "no picture",
    "v_noise.mp4": "Invalid data",
    "v_one_frame.mp4": "1 frame",
    "v_truncated.mp4": "25 of 75 frames",
    "v_truncated_no_moov.mp4": "Invalid data",
    "v_zero_bytes.mp4": "empty file (0 bytes)",
}


# Half of it is there; whether that is enough depends on the seconds that a recipe asks for.
EITHER = {"a_truncated.flac"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    with tarfile.open(ODD) as tar:
        tar.extractall(folder, filter="data")
    return folder / "odd"


@pytest.mark.parametrize("kind", RECIPES)
def test_each_file_is_drawn_or_refused_with_its_reason(kind, odd, tmp_path, monkeypatch):
    monkeypatch.setattr("maemm.tasks.show.run._write", lambda shown: None)  # drawing takes most of the time
    files = [file for file in sorted(odd.glob(f"{kind}_*")) if file.name not in EITHER]
    assert len(files) > 10
    wrong = {}
    for file in files:
        refused = ""
        try:
            shown = show(file, tmp_path / "x.html", recipe=RECIPES[kind])
            assert shown.ids and next(iter(shown.parts.values())).rows.columns
        except MaemmError as error:
            refused = str(error)
        wanted = REFUSED.get(file.name)
        if (wanted is None) != (refused == "") or (wanted or "") not in refused or "\n" in refused:
            wrong[file.name] = refused or "drawn"
    assert not wrong


@pytest.mark.parametrize("name", ["i_ok.jpg", "p_ok.off", "a_ok_16k.wav", "v_ok.mp4"])
def test_one_file_of_each_kind_is_drawn(name, odd, tmp_path):
    plugin = RECIPES[name[0]].partition("/")[0]
    assert guess(odd / name)[0].startswith(f"{plugin}/")
    shown = show(odd / name, tmp_path / "x.html", recipe=RECIPES[name[0]], augment=True)
    html = shown.path.read_text()
    assert html.count("data:image/webp;base64,") == 9 and name in html


def test_a_folder_of_all_kinds_fits_several_recipes(odd):
    with pytest.raises(MaemmError, match="several recipes fit these data .* choose one with --recipe"):
        guess(odd)
