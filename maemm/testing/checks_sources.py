"""Rules of sources: what they read, in any order and process, and what happens to broken files."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.contract import Modality, Preprocessed, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches, ShuffledBatches
from maemm.model.build import build_modality
from maemm.testing.case import Case, check
from maemm.testing.outcome import ALL, DoesNotApply
from maemm.testing.samples import data_root, open_source, same

FEW, BATCH, STEPS = 4, 4, 3


def _rng_of(index: int) -> Rng:
    return Rng(("conformance", 0, index, 0))


def _modalities(case: Case, source: Source) -> dict[str, Modality]:
    """The modalities that the source's samples are for, as a worker gets them."""
    modalities = {}
    for name in source.read(0, _rng_of(0)).raw:
        kind = name if name in registry.names("modalities") else case.signal
        modalities[name] = build_modality({"modalities": {name: {"type": kind, **case.options.get(kind, {})}}}, name)
    return modalities


@check("sources", needs=["part_can_be_imported"])
def samples_are_whole(case: Case) -> None:
    """A source has samples; each has a raw value per modality, an id of one line, and a label from 0, or none, or, if
    the source is ``multilabel``, a tuple of labels."""
    source, change = open_source(case), "return maemm.contract.Sample(raw, id, label) from read()"
    case.require(isinstance(source, Source), "it opens a source", type(source).__name__, "a maemm Source", change)
    case.require(len(source) > 0, "a source has samples", "none", "at least one", "raise MaemmError if there are none")
    for index in range(min(FEW, len(source))):
        sample = source.read(index, _rng_of(index))
        case.require(isinstance(sample, Sample), "read() gives a sample", type(sample).__name__, "Sample", change)
        raw, label = sample.raw, sample.label
        named = isinstance(raw, Mapping) and len(raw) > 0 and all(isinstance(name, str) for name in raw)
        case.require(named, "raw is {modality: value}", type(raw).__name__, "a dict with a modality", change)
        for field, text in (("id", sample.id), ("name()", source.name(index))):
            one_line = isinstance(text, str) and text and "\n" not in text
            case.require(one_line, f"{field} names a sample", repr(text), "a line of text", change)
        _require_label(case, source, label)


def _require_label(case: Case, source: Source, label: Any) -> None:
    several, classes = source.multilabel, source.classes
    rule = "a label is a tuple of whole numbers (multilabel)" if several else "a label is a whole number"
    expected = "None, or a tuple of different ints from 0" if several else "None, or an int from 0"
    change = "return such labels, or set the source's multilabel to whether they are tuples"
    case.require(label is None or _is_label(label, several), rule, repr(label), expected, change)
    numbers = () if label is None else label if isinstance(label, tuple) else (label,)
    fits = classes is None or all(number < len(classes) for number in numbers)
    change = "number labels from 0 in the order of classes"
    case.require(fits, "a label is the number of a class", label, f"less than {len(classes or ())}", change)


def _is_label(label: Any, multilabel: bool) -> bool:
    """Whether it is an int from 0, or a tuple of different ones."""
    numbers = label if isinstance(label, tuple) else (label,)
    good = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    return good and isinstance(label, tuple) == multilabel and len(set(numbers)) == len(numbers)


@check("sources", needs=["samples_are_whole"])
def source_is_repeatable(case: Case) -> None:
    """A sample depends on its index and ``rng`` alone: not on earlier reads, nor on the object that reads."""
    source, change = open_source(case), "keep counters and other random numbers out of read(); use its rng"
    last = len(source) - 1
    first = [source.read(index, _rng_of(index)) for index in (0, last)]
    again = [source.read(index, _rng_of(index)) for index in (last, 0)]
    case.require(same(first, again[::-1]), "the order of reading", "other samples", "the same ones", change)
    other = open_source(case)
    case.require(same(first[0], other.read(0, _rng_of(0))), "opening twice", "other samples", "the same ones", change)
    prints = source.fingerprint(), other.fingerprint()
    case.require(prints[0] == prints[1], "the fingerprint", prints[1], prints[0], "compute it from the data alone")


@check(ALL, needs=["samples_are_whole"])
def another_process_reads_the_same(case: Case) -> None:
    """Sources can be pickled and read the same samples in a new process."""
    change = "open files in read(), and keep lambdas and open files out of the attributes"
    sources = _open_all(case)
    pickled = {}
    for name, source in sources.items():
        try:
            pickled[name] = pickle.dumps(source)
        except Exception as error:
            case.require(False, f"source {name!r} can be pickled", error, "no error", change)
    results = _read_in_new_process(case, pickled, change)
    for name, source in sources.items():
        equal = same((source.read(0, _rng_of(0)), source.fingerprint()), results[name])
        rule = f"source {name!r} in another process"
        case.require(equal, rule, "another sample or fingerprint", "the same", change)


def _open_all(case: Case) -> dict[str, Source]:
    sources = {}
    for name in case.plugin.sources:
        with suppress(DoesNotApply):
            sources[name] = open_source(Case(case.plugin, case.package, "sources", name, case.options))
    if not sources:
        raise DoesNotApply("there is no source with data")
    return sources


def _read_in_new_process(case: Case, pickled: dict[str, bytes], change: str) -> dict[str, Any]:
    """{source: (first sample, fingerprint)} from a new process."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request", Path(folder) / "answer"
        request.write_bytes(pickle.dumps((pickled, _rng_of(0))))
        code = (
            "import pickle, sys; from maemm import registry; registry.all_plugins(); "
            "pickled, rng = pickle.load(open(sys.argv[1], 'rb')); "
            "sources = {name: pickle.loads(data) for name, data in pickled.items()}; "
            "results = {name: (source.read(0, rng), source.fingerprint()) for name, source in sources.items()}; "
            "pickle.dump(results, open(sys.argv[2], 'wb'))"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-W", "ignore", "-c", code, str(request), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        case.require(done.returncode == 0, "sources work in a new process", reason, "no error", change)
        return pickle.loads(answer.read_bytes())


@check("sources", needs=["samples_are_whole", "tokens_agree"])
def samples_fit_their_modality(case: Case) -> None:
    """Samples pass through load, collate, preprocess and tokenize, with and without ``rng``, repeatably."""
    source = open_source(case)
    rows = list(range(min(FEW, len(source))))
    samples = [source.read(index, _rng_of(index)).raw for index in rows]
    for name, modality in _modalities(case, source).items():
        for rng in (None, Rng(("conformance", 1), rows, len(rows))):
            first, second = (_preprocessed(modality, [raw[name] for raw in samples], rng) for _ in range(2))
            change = f"fix load(), collate() or preprocess() of {type(modality).__name__}, or what read() gives"
            rule = f"samples of {name!r} {'without' if rng is None else 'with'} rng"
            batch = first.x.shape[0]
            case.require(batch == len(rows), rule, f"a batch of {batch}", len(rows), change)
            case.require(first.x.isfinite().all(), rule, "NaN or infinity", "finite values", change)
            case.require(same(first, second), rule, "another batch the second time", "the same", change)
            modality.tokenize(first)


def _preprocessed(modality: Modality, raws: list[Any], rng: Rng | None) -> Preprocessed:
    loaded = [modality.load(raw, None if rng is None else _rng_of(row)) for row, raw in enumerate(raws)]
    return modality.preprocess(modality.collate(loaded), rng)


@check("sources", needs=["source_is_repeatable", "samples_fit_their_modality"])
def workers_change_nothing(case: Case) -> None:
    """Batches are the same with any number of workers, and after resuming at any step."""
    source = open_source(case)
    modalities, order = _modalities(case, source), ShuffledBatches(len(source), min(BATCH, len(source)), 0)

    def batches(workers: int, start: int = 0) -> list[Any]:
        loader = Loader(source, modalities, order, seed=0, workers=workers, timeout=120, pin=False)
        return [(batch.raw, batch.ids, batch.labels) for batch in loader.batches(start, STEPS)]

    expected, change = batches(0), "make read() and load() depend on the index and rng alone"
    case.require(same(expected, batches(2)), "two workers", "other batches", "those without workers", change)
    case.require(same(expected[1:], batches(0, 1)), "resuming at step 1", "other batches", "the same ones", change)


@check("sources", needs=["samples_fit_their_modality"])
def broken_files_are_counted(case: Case) -> None:
    """A truncated file is an exception in read() or load(): it is counted and named, and affects no other sample."""
    root = data_root(case)
    files = [] if root is None else _data_files(Path(root))
    if root is None or len(files) < 2:
        raise DoesNotApply("there is no folder with several files to read")
    rule, change = "a truncated file is reported", "raise in read() or load() for what cannot be read"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "data"
        shutil.copytree(root, copy, symlinks=True)
        victim = copy / files[len(files) // 2].relative_to(root)
        victim.write_bytes(victim.read_bytes()[:10])
        try:
            source = open_source(case, str(copy))
        except MaemmError:
            return  # reported when the source is opened
        whole = open_source(case)
        modalities, order = _modalities(case, whole), SequentialBatches(len(source), BATCH)
        loader = Loader(source, modalities, order, seed=0, augment=False, substitute=False)
        bad = [sample for batch in loader.batches(0, -(-len(source) // BATCH)) for sample in batch.bad]
    fewer = len(whole) - len(source)
    case.require(bad or fewer > 0, rule, "nothing", "at least one bad sample", change)
    limit = max(len(source) // 2, 1)
    case.require(len(bad) <= limit, rule, f"{len(bad)} bad samples", f"at most {limit}", "read each sample on its own")


def _data_files(root: Path) -> list[Path]:
    """Files of a sample set that hold data: those with the most frequent suffix."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name[0] != "."]
    files = [path for path in paths if path.stat().st_size > 64]
    suffixes = [path.suffix for path in files]
    return [path for path in files if path.suffix == max(set(suffixes), key=suffixes.count)]


@check("sources", needs=["part_can_be_imported"])
def missing_data_are_named(case: Case) -> None:
    """A missing folder is a MaemmError that names it."""
    missing = str(Path(tempfile.gettempdir()) / "maemm-no-such-folder")
    change = "raise maemm.MaemmError if there is nothing to read"
    try:
        source = open_source(case, missing)
    except MaemmError as error:
        named = "maemm-no-such-folder" in str(error) or "data.list" in str(error)  # it reads lists, no folders
        case.require(
            named and "\n" not in str(error), "a missing folder is named", error, "one line with its path", change
        )
    except DoesNotApply:
        raise
    except Exception as error:
        case.require(False, "a missing folder", f"{type(error).__name__}: {error}", "a MaemmError", change)
    else:
        if len(source):
            raise DoesNotApply("it reads no folder")
        case.require(False, "a missing folder", "a source without samples", "a MaemmError", change)
