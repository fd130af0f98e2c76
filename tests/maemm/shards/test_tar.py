"""Tar files of samples: written, scanned, taken apart; broken ones."""

from __future__ import annotations

import io
import tarfile

import pytest

from maemm.data.shards import tar


def packed(samples) -> bytes:
    file = io.BytesIO()
    tar.write(file, iter(samples))
    return file.getvalue()


SAMPLES = [
    ("dog/7", {"jpg": b"abc", "cls": b"3"}),
    ("dog/8.x%y", {"image.jpg": b"", "audio.wav": b"x" * 700}),
    ("ä/" + "long" * 60, {"npy": b"1" * 512}),
]


def test_round_trip():
    data = packed(SAMPLES)
    spans = [*tar.spans(data)]
    assert [span.key for span in spans] == [key for key, _ in SAMPLES]
    assert [span.label for span in spans] == [b"3", None, None]
    assert [tar.members(data[span.start : span.stop]) for span in spans] == SAMPLES
    assert all(first.stop == second.start for first, second in zip(spans, spans[1:], strict=False))
    assert packed(SAMPLES) == data


def test_files_of_other_writers():
    """Folders, links, a global header, upper case endings, GNU names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
        for name in ("d/a.JPG", "d/a.json", "d/" + "b" * 150 + ".jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"123"))
    spans = [*tar.spans(file.getvalue())]
    assert [span.key for span in spans] == ["d/a", "d/" + "b" * 150]
    assert tar.members(file.getvalue()[spans[0].start : spans[0].stop])[1] == {"jpg": b"123", "json": b"123"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_headers_are_read_as_the_library_reads_them(form, monkeypatch):
    """Names of every length, with and without folders and accents; what is not plain goes to the library."""
    names = [
        "a",
        "a.b",
        "d/a.x.jpg",
        "d/" * 40 + "a.b" * 30,
        "f" * 60 + "/" + "n" * 99,
        "ä/ö.txt",
        "./e.png",
        "x" * 99 + "y",
    ]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid = 700 * number, 1.5, 1000
            archive.addfile(member, io.BytesIO(bytes([number]) * 700 * number))
    data = file.getvalue()
    members = [(span.start, span.stop) for span in tar.spans(data)]
    fast = [tar.members(data[start:stop]) for start, stop in members]
    plain = sum(tar._plain_members(data[start:stop]) is not None for start, stop in members)
    monkeypatch.setattr(tar, "_plain_members", lambda span: None)
    assert fast == [tar.members(data[start:stop]) for start, stop in members]
    assert plain >= 4 if form != tarfile.PAX_FORMAT else plain == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no tar file" * 100, "no whole tar file"),
        (b"", "no whole tar file"),
        (packed(SAMPLES)[:2300], "cut off or damaged behind dog/7"),
        (packed([("a", {"jpg": b"1"}), ("b", {"jpg": b"1"})]).replace(b"b.jpg", b"a.jpg"), "damaged behind a"),
    ],
    ids=["text", "empty", "cut", "damaged header"],
)
def test_broken_files(data, reason):
    with pytest.raises(ValueError, match=reason):
        list(tar.spans(data))


def test_two_members_of_one_ending():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(ValueError, match="a.jpg comes twice"):
        list(tar.spans(file.getvalue()))
