"""Sources of videos: lists as they are in use, folders, broken files, mixes; through the loader."""

import sys

import numpy as np
import pytest
from PIL import Image

import maemm
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches, ShuffledBatches
from maemm_plugins.video.modality import Video
from maemm_plugins.video.sources import open_mixed, open_videos

DRAW = maemm.Rng((0, 0, 0, 0))


@pytest.fixture
def home(tmp_path, videos):
    """b/one.mp4 and a/two words.mp4, and a/three.avi."""
    for name, of in (("b/one.mp4", "plain"), ("a/two words.mp4", "bframes"), ("a/three.avi", "mpeg4")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(videos[of].read_bytes())
    return tmp_path


def listed(home, text, name="train.csv", **options):
    (home / name).write_text(text)
    return open_videos(str(home), str(home / name), **options)


def content(source):
    return [(source.name(i), source.label(i)) for i in range(len(source))]


# ------------------------------------------------------------------------------------------------------- folders
def test_a_folder_per_class(home):
    source = open_videos(str(home))
    assert content(source) == [("a/three.avi", 0), ("a/two words.mp4", 0), ("b/one.mp4", 1)]
    assert list(source.classes) == ["a", "b"]
    assert [len(source.read(i, DRAW).raw["video"]) for i in range(3)] == [40, 40, 40]


def test_a_bare_folder_and_a_single_file(home):
    source = open_videos(str(home / "a"))
    assert content(source) == [("three.avi", None), ("two words.mp4", None)] and source.classes is None
    one = open_videos(str(home / "b" / "one.mp4"), name="clip")
    assert len(one) == 1 and "clip" in one.read(0, DRAW).raw


def test_folders_of_frames(tmp_path):
    for folder in ("x/0", "x/1"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / folder / f"{number}.png")
    source = open_videos(str(tmp_path), frame_rate=5)
    assert content(source) == [("x/0", None), ("x/1", None)]
    video = source.read(1, DRAW).raw["video"]
    assert video.frames_at([2])[0, 0, 0, 0] == 2 and video.times.tolist() == [0, 0.2, 0.4]
    assert len(open_videos(str(tmp_path / "x" / "0"))) == 1
    with pytest.raises(MaemmError, match="no video below the folder"):
        (tmp_path / "nothing").mkdir()
        open_videos(str(tmp_path / "nothing"))


# ------------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("text", [
    "b/one.mp4 3\na/two words.mp4 0\n",
    "b/one.mp4 3\n'a/two words.mp4' 0\n",
    '"b/one.mp4" 3\n"a/two words.mp4",0\n',
    "b/one.mp4\t3\na/two words.mp4\t0\n",
    "b/one.mp4,3\na/two words.mp4,0\n",
    "\n# a note\nb/one.mp4 3\r\na/two words.mp4 0",
    "path,label\nb/one.mp4,3\na/two words.mp4,0\n",
])  # fmt: skip
def test_path_and_label(home, text):
    assert content(listed(home, text)) == [("b/one.mp4", 3), ("a/two words.mp4", 0)]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_paths_alone(home, name):
    assert content(listed(home, "b/one.mp4\na/two words.mp4\n", name)) == [
        ("b/one.mp4", None),
        ("a/two words.mp4", None),
    ]


def test_a_delimiter_of_ones_own(home):
    (home / "no ending").write_bytes((home / "b/one.mp4").read_bytes())
    source = listed(home, "b/one.mp4|3\nno ending|1\n", "list.txt", delimiter="|")
    assert content(source) == [("b/one.mp4", 3), ("no ending", 1)]
    assert len(source.read(1, DRAW).raw["video"]) == 40


@pytest.mark.parametrize("name, text, options", [
    ("list.txt", "path|label\nb/one.mp4|3\n", {"delimiter": "|"}),
    ("list.csv", "Video;Class\nb/one.mp4;3\n", {"delimiter": ";"}),
    ("list.txt", "file label\nb/one.mp4 3\n", {}),
    ("list.txt", "filename,frames,label\nb/one.mp4,40,3\n", {"columns": "path frames label"}),
])  # fmt: skip
def test_names_of_columns_are_no_video(home, name, text, options):
    assert content(listed(home, text, name, **options)) == [("b/one.mp4", 3)]


def test_a_folder_of_frames_may_be_called_like_a_column(home):
    assert content(listed(home, "clip 3\nb/one.mp4 1\n", "list.txt")) == [("clip", 3), ("b/one.mp4", 1)]
    with pytest.raises(MaemmError, match="names no video"):
        listed(home, "path label\n", "list.txt")


def test_a_comma_in_a_path_of_a_csv_with_blanks(home):
    (home / "a, b.mp4").write_bytes((home / "b/one.mp4").read_bytes())
    with pytest.raises(MaemmError, match=r"no column of paths .*a, b\.mp4\t3\).* data\.source\.delimiter"):
        listed(home, "a, b.mp4\t3\n")
    assert content(listed(home, "a, b.mp4\t3\n", delimiter="\t")) == [("a, b.mp4", 3)]
    assert content(listed(home, '"a, b.mp4",3\n')) == [("a, b.mp4", 3)]


def test_words_as_labels_and_names_without_a_dot(home):
    source = listed(home, "b/one.mp4 run\na/three.avi jump\n", "list.txt")
    assert list(source.classes) == ["jump", "run"] and content(source)[0] == ("b/one.mp4", 1)
    assert len(listed(home, "b/one 0\n").read(0, DRAW).raw["video"]) == 40  # VideoMAE's reader adds .mp4


def test_videomae_v2_lists(home, tmp_path):
    whole = listed(home, "b/one.mp4 0 -1\na/three.avi 0 -1\n")
    assert content(whole) == [("b/one.mp4", None), ("a/three.avi", None)]
    assert len(whole.read(0, DRAW).raw["video"]) == 40
    part = listed(home, "b/one.mp4 0 10\na/three.avi 1 20\n").read(1, DRAW).raw["video"]
    assert len(part) == 20
    (tmp_path / "frames").mkdir()
    for number in range(1, 9):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "frames" / f"img_{number:05}.jpg")
    assert len(listed(home, "frames 1 8 0\n").read(0, DRAW).raw["video"]) == 8
    tuned = listed(home, "frames 8 17\n")
    assert content(tuned) == [("frames", 17)] and len(tuned.read(0, DRAW).raw["video"]) == 8
    asked = listed(home, "frames 3 2\n", columns="path start frames").read(0, DRAW).raw["video"]
    assert asked.frames_at([0])[0, 0, 0, 0] in (2, 3, 4) and len(asked) == 2
    with pytest.raises(MaemmError, match="data.source.columns"):
        listed(home, "frames 3 2\nframes 0 -1\n")


def test_ucf101_splits(home):
    (home / "classInd.txt").write_text("1 b\n2 a\n")
    train = listed(home, "b/one.mp4 1\na/two words.mp4 2\n", "trainlist01.txt")
    assert content(train) == [("b/one.mp4", 0), ("a/two words.mp4", 1)] and list(train.classes) == ["b", "a"]
    assert content(listed(home, "a/three.avi\n", "testlist01.txt")) == [("a/three.avi", 1)]
    with pytest.raises(MaemmError, match="not in classInd.txt"):
        listed(home, "c/one.mp4 1\n", "trainlist01.txt")


def test_hmdb51_splits(home):
    splits = home / "splits"
    splits.mkdir()
    (splits / "a_test_split1.txt").write_text("two words.mp4 1 \nthree.avi 2 \n")
    (splits / "b_test_split1.txt").write_text("one.mp4 1 \nother.avi 0 \n")
    train = open_videos(str(home), str(splits))
    assert content(train) == [("a/two words.mp4", 0), ("b/one.mp4", 1)] and list(train.classes) == ["a", "b"]
    assert content(open_videos(str(home), str(splits), part="test")) == [("a/three.avi", 0)]
    with pytest.raises(MaemmError, match="_test_split2"):
        open_videos(str(home), str(splits), split=2)
    with pytest.raises(MaemmError, match="data.root"):
        open_videos(None, str(splits))


@pytest.mark.parametrize("text, message", [
    ("", "names no video"),
    ("# nothing\n", "names no video"),
    ("b/one.mp4 1\na/three.avi 1 2\n", "1 to 2 values"),
    ("b/one.mp4 1\na/three.avi run\n", "both numbers and words"),
    ("b/one.mp4 x y\n", "no numbers after the path"),
    ("b/one.mp4\0 1\n", "not text"),
    ("b/one.mp4 1\n\na/three.avi 99999999999999999999\n", r"too large .*train\.csv, line 3: 9{20}\)"),
    ("b/one.mp4,1\na/three.avi,99999999999999999999\n", r"too large .*train\.csv, line 2: 9{20}\)"),
    ("b/one.mp4 0 -1\na/three.avi 1 -99999999999999999999\n", r"too large .*train\.csv, line 2: -9{20}\)"),
    ("b/one.mp4 1\na/three.avi --1\n", "both numbers and words"),
])  # fmt: skip
def test_wrong_lists_are_one_line(home, text, message):
    with pytest.raises(MaemmError, match=message) as caught:
        listed(home, text)
    assert "\n" not in str(caught.value)


def test_nothing_and_something_that_is_not_there(tmp_path):
    with pytest.raises(MaemmError, match="no videos are given"):
        open_videos(None)
    with pytest.raises(MaemmError, match="cannot be opened"):
        open_videos(str(tmp_path / "no"))
    with pytest.raises(MaemmError, match="seconds must be float > 0"):
        check(open_videos, {"seconds": 0}, "data.source")


# ------------------------------------------------------------------------------------------------------- loading
MODALITY = {"size": [4, 16, 16], "patch": [2, 8, 8], "stride": 2}


def test_repeats_are_decoded_once(home, monkeypatch):
    from maemm_plugins.video.decoding import watchdog

    taken = []
    take = watchdog.Decoder.frames_at
    monkeypatch.setattr(watchdog.Decoder, "frames_at", lambda self, *given: taken.append(given) or take(self, *given))
    source = open_videos(str(home), seconds=None)
    for aug_repeats, expected in (("crop", 3), ("clip", 12)):
        taken.clear()
        loader = Loader(
            source,
            {"video": Video(**MODALITY, aug_repeats=aug_repeats)},
            ShuffledBatches(3, 12, 0, aug_repeats=4),
            seed=0,
        )
        (batch,) = loader.batches(0, 1)
        assert batch.raw["video"]["x"].shape[:2] == (12, 4)
        assert len(taken) <= expected and len(taken) > expected - 6


def test_frames_of_segments_are_drawn_once_for_all_repeats(home, monkeypatch):
    """As in the published recipe of Something-Something; other epochs take other frames, and so does each clip."""
    from maemm_plugins.video.decoding import watchdog

    taken = []
    take = watchdog.Decoder.frames_at
    monkeypatch.setattr(
        watchdog.Decoder, "frames_at", lambda self, *given: taken.append(given[1]) or take(self, *given)
    )
    source = open_videos(str(home / "b"), seconds=None)
    for aug_repeats, decodes in (("crop", 1), ("clip", 4)):
        loader = Loader(source, {"video": Video(**MODALITY, segments=True, aug_repeats=aug_repeats)},
                        ShuffledBatches(1, 4, 0, aug_repeats=4), seed=0)  # fmt: skip
        epochs = []
        for batch in loader.batches(0, 2):
            assert batch.raw["video"]["x"].shape[:2] == (4, 4) and len(batch.ids) == 4
            epochs.append(list(taken))
            taken.clear()
        assert [len(one) for one in epochs] == [decodes] * 2 and epochs[0] != epochs[1]


def test_broken_files_are_counted_and_named(home, videos):
    names = ("empty", "noise", "text", "no_index", "truncated", "sound", "one")
    for name in names:
        (home / "a" / f"{name}.mp4").write_bytes(videos[name].read_bytes())
    source = open_videos(str(home))
    loader = Loader(
        source, {"video": Video(**MODALITY)}, SequentialBatches(len(source), 4), seed=0, workers=1, substitute=False
    )
    batches = list(loader.batches(0, 3))
    bad = {one.id: one.reason for batch in batches for one in batch.bad}
    assert set(bad) == {f"a/{name}.mp4" for name in names}
    assert sum(len(batch.ids) for batch in batches) == 3
    assert "has 1 frame," in bad["a/one.mp4"] and "40 frames" in bad["a/truncated.mp4"]


def test_other_backends_give_the_same_batches(home):
    pytest.importorskip("decord")
    raws = []
    for backend in ("av", "decord"):
        source = open_videos(str(home), backend=backend)
        loader = Loader(source, {"video": Video(**MODALITY)}, ShuffledBatches(3, 3, 0), seed=0)
        raws.append(next(iter(loader.batches(0, 1))).raw["video"]["x"])
    assert (raws[0] == raws[1]).all()


def test_a_missing_backend_says_what_to_install(home, tmp_path, monkeypatch):
    """Once, before the first file: whether its package is not there, or there and without FFmpeg's libraries."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MaemmError, match=r"'torchcodec' is not .* run: pip install 'maemm\[torchcodec\]' \(it .*FFmpeg"
    ):
        open_videos(str(home), backend="torchcodec")
    with pytest.raises(MaemmError, match="pip install decord,"):
        open_videos(str(home), backend="decord")
    monkeypatch.undo()
    package = tmp_path / "packages" / "torchcodec"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec.\\nLikely causes: ...')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    with pytest.raises(MaemmError, match=r"cannot be loaded \(Could not load libtorchcodec\.\); install FFmpeg"):
        open_videos(str(home), backend="torchcodec")


def test_videos_with_pictures(home):
    pictures = home / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.fromarray(np.full((20, 24, 3), number, np.uint8)).save(pictures / f"{number}.png")
    source = open_mixed(str(home), images=str(pictures), videos={"seconds": None})
    shared = Video(**MODALITY)
    loader = Loader(source, {"video": shared, "image": shared}, ShuffledBatches(3, 6, 0, aug_repeats=2), seed=0)
    (batch,) = loader.batches(0, 1)
    assert batch.raw["video"]["x"].shape[1] == 4 and batch.raw["image"]["x"].shape[:2] == (6, 1)
    (pictures / "0.png").write_bytes(b"broken")
    reasons = set()
    for rng in range(30):
        try:
            source.read(0, maemm.Rng((rng,)))
        except ValueError as error:
            reasons.add(str(error)[:20])
    assert reasons == {"its picture 0.png ca"}
    with pytest.raises(MaemmError, match="data.source.images"):
        open_mixed(str(home))
