"""Rules of sources: what they read, in any order and any process, and what they do with broken files."""

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
from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches, ShuffledBatches
from maemm.model.build import build_modality
from maemm.testing.case import Case, check
from maemm.testing.outcome import ALL, DoesNotApply
from maemm.testing.samples import given_root, open_source, same

FEW, BATCH, STEPS = 4, 4, 3


def _draw(index: int) -> Rng:
    return Rng(("conformance", 0, index, 0))


def _modalities(case: Case, source: Source) -> dict[str, Modality]:
    """The modalities that the source's samples are for, as a worker gets them."""
    found = {}
    for name in source.read(0, _draw(0)).raw:
        kind = name if name in registry.names("modalities") else case.signal
        found[name] = build_modality({"modalities": {name: {"type": kind, **case.given.get(kind, {})}}}, name)
    return found


@check("sources")
def samples_are_whole(case: Case) -> None:
    """A source has samples; each has a raw value per modality, an id of one line, and a label from 0 or none."""
    source, change = open_source(case), "return maemm.contract.Sample(raw, id, label) from read()"
    case.require(isinstance(source, Source), "it opens a source", type(source).__name__, "a maemm Source", change)
    case.require(
        len(source) > 0, "a source has samples", "none", "at least one", "raise MaemmError where there are none"
    )
    for index in range(min(FEW, len(source))):
        one = source.read(index, _draw(index))
        case.require(isinstance(one, Sample), "read() gives a sample", type(one).__name__, "Sample", change)
        good = isinstance(one.raw, Mapping) and one.raw and all(isinstance(name, str) for name in one.raw)
        case.require(good, "raw is {modality: value}", type(one.raw).__name__, "a dict with a modality", change)
        for what, text in (("id", one.id), ("name()", source.name(index))):
            good = isinstance(text, str) and text and "\n" not in text
            case.require(good, f"{what} names a sample", repr(text), "a line of text", change)
        good = one.label is None or (isinstance(one.label, int) and one.label >= 0)
        case.require(good, "a label is a whole number", repr(one.label), "None, or an int from 0", change)


@check("sources")
def source_is_repeatable(case: Case) -> None:
    """A sample depends on its index and its draw alone: not on what was read before, nor on the object that reads."""
    source, change = open_source(case), "keep counters and random numbers out of read(); use its draw"
    last = len(source) - 1
    first = [source.read(index, _draw(index)) for index in (0, last)]
    again = [source.read(index, _draw(index)) for index in (last, 0)]
    case.require(same(first, again[::-1]), "the order of reading", "other samples", "the same ones", change)
    other = open_source(case)
    case.require(same(first[0], other.read(0, _draw(0))), "opening twice", "other samples", "the same ones", change)
    prints = source.fingerprint(), other.fingerprint()
    case.require(prints[0] == prints[1], "the fingerprint", prints[1], prints[0], "compute it from the data alone")


@check(ALL)
def another_process_reads_the_same(case: Case) -> None:
    """Sources can be sent to a worker that starts anew, and read there what they read here."""
    change = "open files in read(), and keep lambdas and open files out of the attributes"
    sources = _open_all(case)
    packed = {}
    for name, source in sources.items():
        try:
            packed[name] = pickle.dumps(source)
        except Exception as error:
            case.require(False, f"source {name!r} can be sent to a worker", error, "no error", change)
    there = _elsewhere(case, packed, change)
    for name, source in sources.items():
        good = same((source.read(0, _draw(0)), source.fingerprint()), there[name])
        rule = f"source {name!r} in another process"
        case.require(good, rule, "another sample or fingerprint", "the same", change)


def _open_all(case: Case) -> dict[str, Source]:
    found = {}
    for name in case.plugin.sources:
        with suppress(DoesNotApply):
            found[name] = open_source(Case(case.plugin, case.package, "sources", name, case.given))
    if not found:
        raise DoesNotApply("there is no source with data")
    return found


def _elsewhere(case: Case, packed: dict[str, bytes], change: str) -> dict[str, Any]:
    """{source: (first sample, fingerprint)} as a new process sees them."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given", Path(folder) / "made"
        given.write_bytes(pickle.dumps((packed, _draw(0))))
        code = (
            "import pickle, sys; from maemm import registry; registry.all(); "
            "packed, rng = pickle.load(open(sys.argv[1], 'rb')); "
            "sources = {name: pickle.loads(one) for name, one in packed.items()}; "
            "found = {name: (one.read(0, rng), one.fingerprint()) for name, one in sources.items()}; "
            "pickle.dump(found, open(sys.argv[2], 'wb'))"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
        command = [sys.executable, "-W", "ignore", "-c", code, str(given), str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        case.require(done.returncode == 0, "sources work in a new process", reason, "no error", change)
        return pickle.loads(made.read_bytes())


@check("sources")
def samples_fit_their_modality(case: Case) -> None:
    """What is read passes through load, collate, prepare and tokenize, with and without a draw, equally each time."""
    source = open_source(case)
    rows = list(range(min(FEW, len(source))))
    samples = [source.read(index, _draw(index)).raw for index in rows]
    for name, modality in _modalities(case, source).items():
        for rng in (None, Rng(("conformance", 1), rows, len(rows))):
            made = [_preprocessed(modality, [one[name] for one in samples], rng) for _ in range(2)]
            change = f"fix load(), collate() or preprocess() of {type(modality).__name__}, or what read() gives"
            rule = f"samples of {name!r} {'without' if rng is None else 'with'} a draw"
            batch = made[0].x.shape[0]
            case.require(batch == len(rows), rule, f"a batch of {batch}", len(rows), change)
            case.require(made[0].x.isfinite().all(), rule, "NaN or infinity", "finite values", change)
            case.require(same(made[0], made[1]), rule, "another batch the second time", "the same", change)
            modality.tokenize(made[0])


def _preprocessed(modality: Modality, raws: list[Any], rng: Rng | None) -> Any:
    loaded = [modality.load(raw, None if rng is None else _draw(row)) for row, raw in enumerate(raws)]
    return modality.preprocess(modality.collate(loaded), rng)


@check("sources")
def workers_change_nothing(case: Case) -> None:
    """Batches are the same with any number of workers, and from wherever a training goes on."""
    source = open_source(case)
    modalities, order = _modalities(case, source), ShuffledBatches(len(source), min(BATCH, len(source)), 0)

    def batches(workers: int, start: int = 0) -> list[Any]:
        loader = Loader(source, modalities, order, seed=0, workers=workers, timeout=120, pin=False)
        return [(one.raw, one.ids, one.labels) for one in loader.batches(start, STEPS)]

    alone, change = batches(0), "let read() and load() depend on the index and the draw alone"
    case.require(same(alone, batches(2)), "two workers", "other batches", "those without workers", change)
    case.require(same(alone[1:], batches(0, 1)), "going on from step 1", "other batches", "those of one go", change)


@check("sources")
def broken_files_are_counted(case: Case) -> None:
    """A truncated file is an exception in read() or load(), which is counted and named, and costs no other sample."""
    root = given_root(case)
    files = [] if root is None else _data_files(Path(root))
    if len(files) < 2:
        raise DoesNotApply("there is no folder with several files that a source could read")
    rule, change = "a truncated file is told", "raise in read() or load() for what cannot be read"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "data"
        shutil.copytree(root, copy, symlinks=True)
        victim = copy / files[len(files) // 2].relative_to(root)
        victim.write_bytes(victim.read_bytes()[:10])
        try:
            source = open_source(case, str(copy))
        except MaemmError:
            return  # told when it is opened
        whole = open_source(case)
        loader = Loader(
            source,
            _modalities(case, whole),
            SequentialBatches(len(source), BATCH),
            seed=0,
            augment=False,
            substitute=False,
        )
        bad = [one for batch in loader.batches(0, -(-len(source) // BATCH)) for one in batch.bad]
    fewer = len(whole) - len(source)
    case.require(bad or fewer > 0, rule, "nothing", "one bad sample at least", change)
    limit = max(len(source) // 2, 1)
    case.require(len(bad) <= limit, rule, f"{len(bad)} bad samples", f"at most {limit}", "read each sample on its own")


def _data_files(root: Path) -> list[Path]:
    """Files of a sample set that hold data: the most frequent ending."""
    files = [one for one in sorted(root.rglob("*")) if one.is_file() and one.name[0] != "." and one.stat().st_size > 64]
    endings = [one.suffix for one in files]
    return [one for one in files if one.suffix == max(set(endings), key=endings.count)]


@check("sources")
def missing_data_are_named(case: Case) -> None:
    """A folder that is not there is a MaemmError that names it."""
    missing = str(Path(tempfile.gettempdir()) / "maemm-no-such-folder")
    change = "raise maemm.MaemmError where there is nothing to read"
    try:
        source = open_source(case, missing)
    except MaemmError as error:
        named = "maemm-no-such-folder" in str(error) and "\n" not in str(error)
        case.require(named, "a missing folder is named", error, "one line with its path", change)
    except DoesNotApply:
        raise
    except Exception as error:
        case.require(False, "a missing folder", f"{type(error).__name__}: {error}", "a MaemmError", change)
    else:
        if len(source):
            raise DoesNotApply("it reads no folder")
        case.require(False, "a missing folder", "a source without samples", "a MaemmError", change)
