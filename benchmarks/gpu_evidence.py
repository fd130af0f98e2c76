"""All that cannot be known without a GPU, in one command that ends in time and goes on where it was stopped.

    python benchmarks/gpu_evidence.py [--minutes 10.5] [--cifar FILE] [--out runs/gpu_evidence/evidence.json]
    python benchmarks/gpu_evidence.py --make-cifar cifar10_full.npz FILE [--mib 30]

Every row is written to the JSON file as soon as it is known. Each part has a share of the time, and each row a limit,
at which the process that does it is ended and the row called cut. Started again with the same file, rows that are done
(same settings, code and machine) are left as they are. On a CPU, with ``--tiny``, it does the same with tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _evidence_process import Place, child, in_children, in_process
from _evidence_questions import answers, table
from _evidence_rows import REPOSITORY, Book, Row, code_version

MINUTES = 10.5
END_S = 5.0  # kept for the end of the last row and the table
SHARES = {"equal": 2.0, "steps": 3.2, "tests": 1.0, "loop": 1.0, "recipes": 1.2, "cifar": 5.0}  # of the time, in order
MACHINE = Row("machine", "rates", "_evidence_device:machine", limit_s=60)

#: recipe, samples of a step: eager, then compiled
SIZES = [("image/mae_base", 256), ("image/mae_large", 128), ("video/videomae_base", 32), ("audio/audiomae_base", 64),
         ("pointcloud/point_mae", 256)]  # fmt: skip
TINY = ["image/mae_tiny_cpu", "audio/audiomae_tiny_cpu", "video/videomae_tiny_cpu", "pointcloud/point_mae_tiny_cpu"]
OPTIMIZERS = ("adamw", "adam", "sgd", "lars")


def plan(tiny: bool, scale: float, cifar: Path | None) -> list[Row]:
    """All rows, in the order in which they are worth their time. ``scale``: of the times that rows may take."""
    rows = [*_equal(tiny), *_steps(tiny), *_tests(tiny, scale), *_loop(tiny), *_recipes(tiny)]
    return rows + (_cifar(tiny, scale, cifar) if cifar or tiny else [])


def _equal(tiny: bool) -> list[Row]:
    def row(name: str, function: str, limit_s: float = 40, **settings: Any) -> Row:
        return Row("equal", name, f"_evidence_equal:{function}", settings, limit_s)

    small, first = {"batch": 8, "tiny": True}, TINY[0]
    shapes = [[64, 49], [3, 5, 7]] if tiny else [[256, 196], [64, 1568], [4096, 512], [3, 5, 7], [1, 1]]
    recipes = TINY[:1] if tiny else TINY
    resume = {"recipe": first, "steps": 4 if tiny else 20, **small}
    ways = [("fp32", {"precision": "fp32"})]
    ways += (
        [] if tiny else [("bf16", {"precision": "bf16"}), ("bf16, compiled", {"precision": "bf16", "compile": "auto"})]
    )
    compiled = {"compile": "blocks", "backend": "aot_eager" if tiny else "inductor"}
    fp32 = {"a": {"precision": "fp32"}, "steps": 3 if tiny else 5, **small}
    long = {"batch": 8 if tiny else 64, "steps": 3 if tiny else 60, "lr": 1e-3, "tiny": tiny}
    precisions = {"a": {"precision": "fp32"}, "b": {"precision": "bf16"}}
    return [
        row("random numbers", "random_numbers", shapes=shapes),
        *(row(f"optimizer {name}", "optimizer", optimizer=name) for name in OPTIMIZERS),
        *(row(f"plans: {name}", "plans", recipe=name, **small) for name in recipes),
        *(row(f"resume in {name}", "resume", 90, **resume, **way) for name, way in ways),
        row("copies", "copies", mib=4 if tiny else 512),
        row(f"bf16: {first}", "losses", recipe=first, **precisions, **long),
        row(f"compiled: {first}", "losses", 90, recipe=first, b={"precision": "fp32", **compiled}, **fp32),
    ]


def _steps(tiny: bool) -> list[Row]:
    """Eager rows first, as they take seconds; compiled blocks are what a recipe does by default on CUDA."""
    rows = []
    for name, setting in (("eager", False), ("compiled", "blocks"), ("one graph", True)):
        sizes = SIZES[:1] if tiny else SIZES[:1] + SIZES[-1:] if setting is True else SIZES
        for recipe, batch in [] if tiny and setting is True else sizes:
            settings = {"recipe": recipe, "batch": 4 if tiny else batch, "compile": setting, "seconds": 3}
            settings |= {"tiny": True, "seconds": 0.1, "backend": "aot_eager"} if tiny else {}
            limit_s = 120 if setting else 45
            rows.append(Row("steps", f"{recipe}, {name}", "_evidence_steps:steps", settings, limit_s))
    clouds = {"clouds": 4, "points": 64, "groups": 8, "rounds": 2} if tiny else {"clouds": 512, "points": 1024}
    clouds = {"groups": 64, "rounds": 10} | clouds
    return [Row("steps", "farthest points", "_evidence_steps:farthest_points", clouds, 60), *rows]


def _tests(tiny: bool, scale: float) -> list[Row]:
    settings = {"seconds": 60 * scale, "files": ["tests/maemm/test_loader.py"] if tiny else None}
    return [Row("tests", "pytest -m gpu", "_evidence_tests:gpu_tests", settings, 60 * scale + 10)]


def _loop(tiny: bool) -> list[Row]:
    rows = []
    for recipe, batch in [SIZES[0]] if tiny else [SIZES[0], *SIZES[2:]]:
        settings = {"recipe": recipe, "batch": 4 if tiny else batch, "steps": 4 if tiny else 50}
        settings |= {"log_every": 2 if tiny else 10, "tiny": tiny, "compile": "auto"}
        rows.append(Row("loop", recipe, "_evidence_steps:loop", settings, 40))
    return rows


def _recipes(tiny: bool) -> list[Row]:
    """All packaged recipes; the tiny ones of each modality first."""
    folder = REPOSITORY / "configs"
    names = [
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.yaml")
        if path.parent.name != "studies"
    ]
    names.sort(key=lambda name: ("tiny_cpu" not in name, "/" in name.partition("/")[2], name))
    chosen = ["image/mae_tiny_cpu"] if tiny else names
    return [Row("recipes", name, "_evidence_equal:packaged", {"recipe": name}, 30) for name in chosen]


def _cifar(tiny: bool, scale: float, file: Path | None) -> list[Row]:
    def row(name: str, function: str, limit_s: float, **settings: Any) -> Row:
        return Row("cifar", name, f"_evidence_cifar:{function}", settings, limit_s)

    common = {"file": str(file.resolve()) if file else None, "tiny": tiny}
    run = {"batch": 8 if tiny else 512, "trial": 2 if tiny else 200, "seconds": 0.1 if tiny else 100 * scale, **common}
    tune = run | {"pretrained": run, "seconds": 0.1 if tiny else 45 * scale, "classes": 10 if file else 2}
    probe = run | {"linear_samples": 5000}
    beside = {"batch": 8 if tiny else 512, "batches": 2 if tiny else 40, "steps": 4 if tiny else 400, "lr": 1e-3}
    features = [
        row(f"features: {kind}", "probe", 60, features=kind, **probe) for kind in ("pretrained", "untrained", "raw")
    ]
    return [
        row("pretrain", "pretrain", 150 * scale + 30, **run),
        *features[:2],
        row("finetune from the pretrained start", "finetune", 75 * scale + 30, start="pretrained", **tune),
        row("ViTMAE", "vit_mae", 60, **beside, **common),
        features[2],
        row("finetune from scratch", "finetune", 75 * scale + 30, start="scratch", **tune),
    ]


# --------------------------------------------------------------------------------------------------------- the command
def gather(
    rows: list[Row],
    book: Book,
    place: Place,
    end: float,
    run: Callable[..., None] = in_children,
    shares: dict[str, float] | None = None,
) -> list[dict[str, str]]:
    """Do the rows that the book lacks, until ``end`` (of ``time.monotonic``); returns the questions, answered.

    Each part in turn has its share of the time that is left, so that what one does not use is for those after it.
    """
    shares = SHARES if shares is None else shares
    log = book.path.with_suffix(".log")
    machine = str(book.about.get("machine"))
    parts = {name: [row for row in rows if row.part == name] for name in shares}
    keys = {id(row): row.key(book.code, machine) for row in rows}
    current = [*keys.values(), *(row["key"] for row in book.rows.values() if row["part"] == MACHINE.part)]

    def report(row: Row, outcome: str, more: dict[str, Any]) -> None:
        key = keys[id(row)]
        if outcome != "left out" or key not in book.rows:  # what it said when it was cut is worth more
            book.put(row, key, outcome, **more)
        book.answers = answers([book.rows[key] for key in current if key in book.rows], place.device)
        book.write()
        detail = more.get("error") or more.get("why") or ""
        print(f"{row.part:8s} {row.name:48s} {outcome:8s} {more.get('seconds', '')} {detail}"[:200], flush=True)

    for number, (name, of_part) in enumerate(parts.items()):
        todo = [row for row in of_part if not book.is_done(keys[id(row)])]
        if done := len(of_part) - len(todo):
            print(f"{name:8s} {done} rows are done", flush=True)
        if todo:
            later = [shares[other] for other, others in [*parts.items()][number:] if others]
            deadline = time.monotonic() + (end - time.monotonic()) * shares[name] / sum(later)
            run(todo, deadline, place, log, report)
    book.answers = answers([book.rows[key] for key in current if key in book.rows], place.device)
    book.write()
    return book.answers


def _find_machine(book: Book, place: Place, run: Callable[..., None], end: float) -> Place:
    """The device: asked anew at each start, as the file may come from another machine."""
    stored: dict[str, Any] = {}

    def report(row: Row, outcome: str, more: dict[str, Any]) -> None:
        if outcome != "ok":
            raise SystemExit(f"the device cannot be used: {more.get('error') or more.get('why')}")
        stored.update(more["answer"])
        book.about = stored | {"code": book.code}
        for key in [key for key, old in book.rows.items() if old["part"] == row.part]:
            del book.rows[key]
        book.put(row, row.key(book.code, stored["machine"]), outcome, **more)

    run([MACHINE], end, place, book.path.with_suffix(".log"), report)
    return place


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which it has ended")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "gpu_evidence" / "evidence.json")
    parser.add_argument("--work", type=Path, help="folder for data and runs; default: a temporary one")
    parser.add_argument("--cifar", type=Path, help="file of --make-cifar; without, the part is left out")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--parts", nargs="+", choices=[*SHARES], default=[*SHARES], help="only these")
    parser.add_argument("--in-process", action="store_true", help="rows in this process: nothing is cut")
    parser.add_argument("--make-cifar", type=Path, nargs=2, metavar=("FROM", "TO"), help="only write a smaller file")
    parser.add_argument("--mib", type=float, default=30, help="size of that file at most")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        child(args.child)
        return args.out
    if args.make_cifar:
        from _evidence_pictures import small_file

        print(small_file(*args.make_cifar, args.mib))
        return args.make_cifar[1]
    if args.cifar and not args.cifar.is_file():
        parser.error(f"there is no file {args.cifar}; make it with --make-cifar")

    end = time.monotonic() + 60 * args.minutes - END_S
    args.out.parent.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.gettempdir()) / "maemm-gpu-evidence"
    work.mkdir(parents=True, exist_ok=True)
    run = in_process if args.in_process else in_children
    book = Book(args.out, code_version())
    place = _find_machine(book, Place(_device(), work.resolve()), run, end)
    rows = plan(args.tiny, args.minutes / MINUTES, args.cifar)
    answered = gather([row for row in rows if row.part in args.parts], book, place, end, run)
    print(f"\n{table(answered)}\n\n{args.out}", flush=True)
    return args.out


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))  # tests.pretended_gpu
    main()
