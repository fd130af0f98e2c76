"""Lists as programs write them: line ends, comments, quotes, indices; what is not understood is an error."""

import codecs

import numpy as np
import pytest

from maemm import MaemmError, Rng
from maemm.data.arrays import open_arrays
from maemm.data.lists import read_list
from maemm_plugins.audio.manifests import read_json, read_label_file, read_manifest
from maemm_plugins.video.lists import read_videos

PNG = [".png"]


def paths_of(folder, name, text, present=(), root=None):
    """(paths, labels as names or numbers) of a list with this text, among files that are there."""
    for file in present:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    _, paths, labels, classes = read_list(folder / name, root, PNG)
    return paths, None if labels is None else [classes[x] if classes and x is not None else x for x in labels]


# ------------------------------------------------------------------------------------------------ # and comments
@pytest.mark.parametrize("name, separator", [("l.txt", " "), ("l.csv", ","), ("l.tsv", "\t")])
def test_names_that_begin_with_a_hash(tmp_path, name, separator):
    """#1.png is a file that is there, so #2.png, which is not, is one too: it is counted as missing later."""
    text = f"# made by hand\n#1.png{separator}cat\nb.png{separator}dog\n#2.png{separator}cat\n"
    assert paths_of(tmp_path, name, text, ["#1.png", "b.png"]) == (["#1.png", "b.png", "#2.png"], ["cat", "dog", "cat"])


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_lines_that_were_commented_out(tmp_path, name):
    text = "#a.png,cat\n# b.png,cat\n  #\nc.png,dog\n#d.png is broken\n"
    assert paths_of(tmp_path, name, text, ["a.png", "b.png", "c.png"]) == (["c.png"], ["dog"])


def test_a_hash_below_the_root_and_in_quotes(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "#1.png").write_bytes(b"x")
    assert paths_of(tmp_path, "l.txt", "#1.png\n", root=tmp_path / "data")[0] == ["#1.png"]
    assert paths_of(tmp_path, "m.csv", '"#9.png",cat\nb.png,dog\n')[0] == ["#9.png", "b.png"]
    videos = tmp_path / "v.txt"
    (tmp_path / "#clip.mp4").write_bytes(b"x")
    videos.write_text("#clip.mp4 1\nother.mp4 0\n")
    assert read_videos(videos, None, None, None).paths == ["#clip.mp4", "other.mp4"]


# ------------------------------------------------------------------------------------------------ ends of lines
ODD = ["a\u2028b.png", "c\x0cd.png", "e\x85f.png", "g\x0bh.png", "i\x1cj.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_line_ends_are_those_of_systems(tmp_path, name, end):
    """Form feeds and the separators of Unicode are characters of names; CR alone ends the lines of old programs."""
    names = ["my cat.png", *ODD]
    text = end.join(f"{file},{i}" for i, file in enumerate(names)) + end
    assert paths_of(tmp_path, name, text, names) == (names, list(range(6)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_marks_of_byte_order(tmp_path, encoding):
    text = "ä.png,cat\nb.png,dog\n"
    data = codecs.BOM_UTF16_BE + text.encode(encoding) if encoding == "utf-16-be" else text.encode(encoding)
    for name in ("l.txt", "l.csv"):
        assert paths_of(tmp_path, name, data) == (["ä.png", "b.png"], ["cat", "dog"])
    joined = ("\ufeffa.png\n\ufeffb.png\n").encode()  # files with marks, one behind the other
    assert paths_of(tmp_path, "j.txt", joined)[0] == ["a.png", "b.png"]


def test_marks_before_other_lists(tmp_path):
    (tmp_path / "l.json").write_text('\ufeff{"data": [{"wav": "a.wav", "labels": "x"}]}', encoding="utf-8")
    assert read_json(tmp_path / "l.json", None, None).paths == ["a.wav"]
    (tmp_path / "c.csv").write_text("\ufeffindex,mid,display_name\n0,/m/1,Speech\n", encoding="utf-8")
    assert read_label_file(tmp_path / "c.csv") == (["/m/1"], ["Speech"])
    (tmp_path / "m.tsv").write_text(f"\ufeff{tmp_path}\na\u2028b.wav\t8000\n", encoding="utf-8")
    assert read_manifest(tmp_path / "m.tsv", None).paths == ["a\u2028b.wav"]


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("l.txt", b"a.png\0b.png\n", "not text"),
        ("l.csv", b"a.png,1\n\0\0\0\n", "not text"),
        ("l.txt", b"a.png\rb.png\nc.png\n", r"mixes kinds of line ends .*line 1"),
        ("l.txt", b"\xff\xfea", "not text"),
        ("l.csv", b"a.png," * 300_000, r"1,800,000 characters .*line 1"),
        ("l.txt", b"x" * 2_000_000 + b".png", r"2,000,004 characters .*line 1"),
    ],
)
def test_what_is_no_list_of_lines(tmp_path, name, data, reason):
    with pytest.raises(MaemmError, match=reason) as caught:
        paths_of(tmp_path, name, data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


# ------------------------------------------------------------------------------------------------ quotes
@pytest.mark.parametrize(
    "name, text, line",
    [
        ("l.csv", 'a.png,cat\n"b.png,dog\nc.png,cat\n', 2),  # swallowed the rest
        ("l.csv", '"a.png,cat\nb.png,"dog"\n', 1),
        ("l.csv", 'path,remark\na.png,"good\nb.png,"\nc.png,\n', 2),  # would have hidden b.png
        ("l.tsv", 'x.png\t1\n\n"a.png\t1\n', 3),
        ("l.txt", 'a.png cat\n"b.png cat\n', 2),
    ],
)
def test_a_quote_that_is_not_closed(tmp_path, name, text, line):
    with pytest.raises(MaemmError, match=rf"a quote is not closed \(.*, line {line}\)"):
        paths_of(tmp_path, name, text)


def test_a_quote_that_is_not_closed_in_a_list_of_videos(tmp_path):
    (tmp_path / "l.txt").write_text('a.mp4 1\n"my clip.mp4 1\n')
    with pytest.raises(MaemmError, match="a quote is not closed .*line 2"):
        read_videos(tmp_path / "l.txt", None, None, None)


def test_quotes_within_names_and_remarks(tmp_path):
    text = "'tis.png cat\n'my dog.png' dog\n'90s don't.png cat\n"
    assert paths_of(tmp_path, "l.txt", text)[0] == ["'tis.png", "my dog.png", "'90s don't.png"]
    text = 'path,label,remark\n"5"" disk.png",a,"two\nlines"\nb.png,b,\n'
    assert paths_of(tmp_path, "l.csv", text) == (['5" disk.png', "b.png"], ["a", "b"])


# ------------------------------------------------------------------------------------------------ an index
@pytest.mark.parametrize(
    "name, text",
    [
        ("l.csv", "0,a.png,cat\n1,b.png,dog\n"),
        ("l.csv", "7,a.png,cat\n8,b.png,dog\n"),
        ("l.tsv", "1\ta.png\tcat\n2\tb.png\tdog\n"),
        ("l.txt", "0 a.png cat\n1 b.png dog\n"),
        ("l.txt", "0,a.png,cat\n1,b.png,dog\n"),
        ("l.txt", "0\ta.png\tcat\n1\tb.png\tdog\n"),
        ("l.csv", "cat,a.png\ndog,b.png\n"),  # a label before the path
        ("l.csv", ",path,label\n0,a.png,cat\n1,b.png,dog\n"),
    ],
)
def test_what_stands_before_the_path(tmp_path, name, text):
    assert paths_of(tmp_path, name, text) == (["a.png", "b.png"], ["cat", "dog"])


def test_an_index_in_lists_of_videos_and_numbers_as_names(tmp_path):
    for name, text in (("v.csv", "0,a.mp4,3\n1,b.mp4,4\n"), ("v.txt", "0 a.mp4 3\n1 b.mp4 4\n")):
        (tmp_path / name).write_text(text)
        listed = read_videos(tmp_path / name, None, None, None)
        assert listed.paths == ["a.mp4", "b.mp4"] and listed.labels == [3, 4]
    assert paths_of(tmp_path, "n.txt", "1 dog.png\n2 dog.png\n", ["1 dog.png", "2 dog.png"])[0][0] == "1 dog.png"
    assert paths_of(tmp_path, "m.txt", "3 dog.png\n9 dog.png\n")[0] == ["3 dog.png", "9 dog.png"]


def test_columns_that_nobody_named(tmp_path):
    with pytest.raises(MaemmError, match="what stands before the path is not clear .*x, 3, a.png"):
        paths_of(tmp_path, "l.csv", "x,3,a.png,cat\n")


def test_labels_that_follow_an_index_reach_the_samples(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.ones((2, 4), np.float32))
    (tmp_path / "l.csv").write_text("0,a.npy,cat\n1,b.npy,dog\n")
    source = open_arrays(None, str(tmp_path / "l.csv"), "x")
    assert [source.read(i, Rng((0,))).label for i in (0, 1)] == [0, 1] and source.classes == ["cat", "dog"]
