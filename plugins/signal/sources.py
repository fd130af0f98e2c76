"""Sources of signals: recordings in files, whole or by windows, and arrays of many samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.options import Positive, PositiveInt
from maemm.data.files import endings, existing
from maemm.data.lists import Labels, class_labels, find_files, read_list

from .arrays import SampleArray
from .extras import EDF, WFDB, need
from .files import Recordings, Taken
from .recordings import Arrays, Reader, Sound, Table

Channels = Sequence[str] | Mapping[str, str]

_SOUND = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".w64", ".rf64", ".caf")
_LISTS = (".txt",)
_PACKAGES = {".edf": "pyedflib", ".bdf": "pyedflib", ".hea": "wfdb"}  # of the extra "signal"
EXTENSIONS = (".npy", ".npz", ".csv", ".tsv", *_SOUND, *_PACKAGES)


def open_signals(
    root: str | None,
    list: str | None = None,
    *,
    name: str = "signal",
    channels: Channels | None = None,
    window: PositiveInt | None = None,
    stride: PositiveInt | None = None,
    rate: Positive | None = None,
    recorded_rate: Positive | None = None,
    time_first: bool | None = None,
    part: Literal["train", "test"] = "train",
    array: Literal["samples", "recording"] = "samples",
    extensions: Sequence[str] | None = None,
) -> Source:
    """The source for ``data.root`` and ``data.list``, by what they are.

    A folder is searched for recordings (.npy .npz .csv .tsv, .wav and other sound files, .edf .bdf, WFDB's .hea); where
    all lie in folders of exactly one level, those are the classes. A single recording is a data set too, mostly with
    ``window``. A list (``data.list``, or a .txt file as root) names paths and labels. A .npy or .npz file as root holds
    many samples (n, C, L) or (n, L), a .npz file also labels. With ``window`` only the window is read from the file,
    except from text and .npz. Raises :class:`MaemmError` where there is nothing to read.

    Options
        name: the modality that the signals are for
        channels: names of the channels to read; {name in the file: name} also renames; for files without names a list
            names them all; null: all
        window: cut recordings into samples of this many steps (at ``rate``); null: a sample is a whole recording
        stride: steps from window to window; null: window
        rate: samples per second to resample to; null: as recorded
        recorded_rate: samples per second of files that do not record it (arrays, text without a time column)
        time_first: whether time is the first axis of arrays; null: time is the longer one
        part: of a .npz file with x_train and x_test, and y_train and y_test: train or test
        array: what a .npy or .npz file as root holds: samples, or one recording
        extensions: endings of the files to take from a folder; null: those of all known kinds
    """
    taken = Taken(_renames(channels), window, _stride(stride, window), rate, recorded_rate)
    if not root and not list:
        raise MaemmError("no signals are given; set data.root to a folder of recordings, or to a recording or an array")
    home = existing(root, "data.root") if root else None
    if list:
        if home is not None and not home.is_dir():
            raise MaemmError(f"data.root is no folder ({root}); with data.list it is what the paths are relative to")
        return _listed(existing(list, "data.list"), home, taken, name, time_first)
    assert home is not None
    suffixes = endings(extensions, EXTENSIONS)
    if home.is_dir():
        paths = find_files(home, suffixes)
        if not paths:
            raise MaemmError(
                f"no recording below the folder ({home}); looked for files that end in {' '.join(suffixes)}"
            )
        return _recordings(home, paths, *class_labels(paths), taken, name, time_first)
    if not home.is_file():
        raise MaemmError(f"data.root is neither a folder nor an ordinary file ({root}); give one of them")
    suffix = home.suffix.lower()
    if suffix in _LISTS:
        return _listed(home, None, taken, name, time_first)
    if suffix in (".npy", ".npz") and array == "samples":
        if window is not None:
            raise MaemmError("window cuts recordings, not samples (data.source.window); set array: recording")
        return SampleArray(home, taken, name=name, time_first=time_first, part=part)
    if suffix in EXTENSIONS:
        return _recordings(home.parent, [home.name], None, None, taken, name, time_first)
    raise MaemmError(f"data.root is a file of no known kind ({root}); known are {' '.join(EXTENSIONS)} and .txt lists")


def _listed(path: Path, root: Path | None, taken: Taken, name: str, time_first: bool | None) -> Source:
    if path.is_dir() or path.suffix.lower() not in (".txt", ".csv", ".tsv", ""):
        raise MaemmError(f"data.list is no list of paths ({path}); give it as data.root")
    home, paths, labels, classes = read_list(path, root, EXTENSIONS, ("record", "recording", "signal"))
    return _recordings(home, [_with_ending(path) for path in paths], labels, classes, taken, name, time_first)


def _with_ending(path: str) -> str:
    """The lists of WFDB name records without an ending."""
    return path if Path(path).suffix.lower() in EXTENSIONS else f"{path}.hea"


def _recordings(
    home: Path,
    paths: list[str],
    labels: Labels | None,
    classes: Sequence[str] | None,
    taken: Taken,
    name: str,
    time_first: bool | None,
) -> Source:
    arrays, table, sound, edf, wfdb = Arrays(time_first), Table(), Sound(), EDF(), WFDB()
    readers: dict[str, Reader] = {".npy": arrays, ".npz": arrays, ".csv": table, ".tsv": table}
    readers |= dict.fromkeys(_SOUND, sound) | {".edf": edf, ".bdf": edf, ".hea": wfdb}
    for suffix in sorted({Path(path).suffix.lower() for path in paths} & set(_PACKAGES)):
        need(_PACKAGES[suffix])  # once, not for each file
    return Recordings(home, paths, labels, classes, taken, readers, name=name)


def _renames(channels: Channels | None) -> tuple[tuple[str, str], ...] | None:
    """((name in the file, name for the model), ...)."""
    if channels is None:
        return None
    pairs = tuple(channels.items()) if isinstance(channels, Mapping) else tuple(zip(channels, channels, strict=True))
    if not pairs:
        raise MaemmError("channels names none (data.source.channels); give names, or null for all")
    return pairs


def _stride(stride: int | None, window: int | None) -> int | None:
    if stride is not None and window is None:
        raise MaemmError("stride needs a window (data.source.stride); set data.source.window")
    return stride or window
