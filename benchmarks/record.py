"""A record of how a checkout behaves and is built, to compare the states before and after modules move.

    python benchmarks/record.py make CHECKOUT OUT.json [--python PYTHON] [--no-runs] [--suite-cpu SECONDS]
    python benchmarks/record.py compare BEFORE.json AFTER.json [--renames RENAMES.json]

PYTHON is an interpreter in which that checkout is installed. Only the command line, what runs leave behind and the text
of the files are looked at, so that any layout of modules can be recorded. Some minutes on one core.

``compare`` prints a table. Its exit status is 1 where losses, weights, strings of random keys or lists (verbs, recipes,
parts, public names) differ by more than the renames; counts of lines, files and imports are shown side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _record_files import SOURCES, graph, modules, random_keys, sizes
from _record_table import compare

RENAMES = {"several": "multi_mask", "Draw": "Rng"}  # names of parts and public names: old, new
STEPS = 20
COLUMNS = ("loss", "grad_norm", "baseline", "baselines", "terms", "lr", "validation")  # of metrics.jsonl
SETTINGS = (
    f"train.steps={STEPS}",
    "train.log_every=1",
    "train.warmup_epochs=0.25",
    "train.picture_every=100000",
    "train.validate_every=10",
)


# ``python -m maemm`` for a list of commands, in one process.
DRIVER = """
import contextlib, io, json, runpy, sys
answers = []
for words in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    sys.argv = ["maemm", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("maemm", run_name="__main__")
        except SystemExit as leaving:
            status = leaving.code or 0
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
PLACES = """
import json, maemm, maemm_plugins
print(json.dumps([maemm.__file__, list(maemm_plugins.__path__)[0], sorted(maemm.__all__)]))
"""
MACHINE = "import json, sys; sys.path.insert(0, sys.argv[1]); import _machine; print(json.dumps(_machine.about()))"

# Discs that move, six sizes, without loss. The sample set of the videos is written with loss, and the encoder does not
# give the same pixels each time.
VIDEOS = """
import sys
from pathlib import Path
import av, numpy as np
row, column = np.mgrid[:48, :48]
for number in range(96):
    chance = np.random.default_rng(number)
    start, speed, colours = chance.integers(0, 48, 2), chance.integers(-2, 3, 2), chance.integers(0, 256, (2, 3))
    path = Path(sys.argv[1], f"size{number % 6}", f"{number:03d}.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"qp": "0", "g": "12", "bf": "0", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 48, "yuv420p"
        for time in range(16):
            y, x = (start + time * speed) % 48
            inside = (row - y) ** 2 + (column - x) ** 2 < (4 + 3 * (number % 6)) ** 2
            frame = np.where(inside[..., None], *colours).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
"""
VIDEO_ROOT = "runs/videos"


# ------------------------------------------------------------------------------------------- the command line
@dataclass
class Program:
    """An installed maemm, started in a folder where nothing else is."""

    python: str
    folder: Path
    checkout: Path

    def start(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run the interpreter on one thread, without plugins and paths from outside."""
        outside = ("PYTHONPATH", "MAEMM_PLUGIN_PATH", "PYTHONHASHSEED")
        settings = {name: value for name, value in os.environ.items() if name not in outside}
        settings |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
        settings |= {"XDG_CACHE_HOME": str(self.folder / "cache")}
        command = [self.python, *words]
        return subprocess.run(command, cwd=self.folder, env=settings, input=text, capture_output=True, text=True)

    def json_of(self, *words: str, text: str = "") -> Any:
        """What the interpreter prints, as JSON. Ends the program where it fails."""
        done = self.start(*words, text=text)
        if done.returncode:
            sys.exit(f"{' '.join(words)[:60]!r} failed: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout)

    def outputs(self, commands: list[list[str]]) -> list[str]:
        """What each command prints; what it says is wrong, with its exit status, where it fails."""
        answers = self.json_of("-c", DRIVER, text=json.dumps(commands))
        return [out if status == 0 else f"exit status {status}: {self.plain(err)}" for status, out, err in answers]

    def plain(self, message: str) -> str:
        """The end of an error message, without the places of this machine."""
        for place in (self.folder, self.checkout):
            message = message.replace(str(place), ".")
        return message.strip()[-300:]

    def documents(self, commands: list[list[str]]) -> list[Any]:
        """The same of commands that print JSON."""
        return [_json_or_text(output) for output in self.outputs(commands)]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def verbs(program: Program) -> dict[str, dict[str, Any]]:
    """{verb: its words, its flags, its help}; the flags of every verb stand below "maemm"."""
    screen = program.outputs([["--help"]])[0]
    names = re.findall(r"^  ([a-z][\w-]*)  +\S", screen, re.MULTILINE)
    texts = program.outputs([[name, "--help"] for name in names])
    record = {"maemm": {"words": "", "flags": _flags(screen), "help": screen}}
    for name, text in zip(names, texts, strict=True):
        usage = re.search(rf"^usage: maemm {name} ?(.*)$", text, re.MULTILINE)
        record[name] = {"words": usage[1] if usage else "", "flags": _flags(text), "help": text}
    return record


def _flags(text: str) -> list[str]:
    """Flags with what they take, as "-o FILE, --out FILE", sorted."""
    return sorted(match.strip() for match in re.findall(r"^  (-\S(?:[^ \n]| (?! ))*)", text, re.MULTILINE))


def recipes(program: Program) -> dict[str, dict[str, Any]]:
    """{recipe: its resolved values, with dotted keys}."""
    listed = [entry["name"] for entry in program.documents([["config", "ls", "--json"]])[0]]
    answers = program.documents([["config", "show", name, "--json"] for name in listed])
    return {
        name: dict(_leaves(answer["recipe"])) if isinstance(answer, dict) else {"error": answer}
        for name, answer in zip(listed, answers, strict=True)
    }


def shortened(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Recipes as what is usual in a key that all have, and what each has that is other or its own."""
    common = set.intersection(*(set(recipe) for recipe in values.values())) if values else set()
    usual = {}
    for key in sorted(common):
        texts = Counter(json.dumps(recipe[key]) for recipe in values.values())
        usual[key] = json.loads(min(texts, key=lambda text: (-texts[text], text)))
    own = {
        name: {key: value for key, value in recipe.items() if key not in usual or value != usual[key]}
        for name, recipe in values.items()
    }
    return {"usual": usual, "own": own}


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def parts(program: Program) -> dict[str, Any]:
    """{plugin: {role: {part: {option: "type = default"}}}} with every role, also those of which a plugin has none."""
    plugins = program.documents([["plugins", "--json"]])[0]
    described = program.documents([["plugins", "show", plugin["name"], "--json"] for plugin in plugins])
    record = {}
    for plugin, answer in zip(plugins, described, strict=True):
        options = {(part["role"], part["name"]): part for part in answer} if isinstance(answer, list) else {}
        record[plugin["name"]] = {
            role: {name: _options(options.get((role, name))) for name in names}
            for role, names in plugin["parts"].items()
        }
    return record


def _options(part: Mapping[str, Any] | None) -> dict[str, str]:
    if part is None or part["error"]:
        return {"error": "not described" if part is None else part["error"]}
    return {option["name"]: f"{option['type']} = {option['default']}" for option in part["options"]}


# -------------------------------------------------------------------------------------------------- short runs
def runs(program: Program, listed: list[str], maskings: list[str]) -> dict[str, Any]:
    """Short trainings: each tiny recipe, several masks of a sample, mixed data sets, fine-tuning."""
    # Stages are trainings of their own length, of what other recipes do too.
    tiny = sorted(name for name in listed if "tiny_cpu" in name and "stages" not in name)
    if any(name.startswith("video/") for name in tiny):
        program.start("-c", VIDEOS, VIDEO_ROOT).check_returncode()
    record = {name: train(program, name, ["pretrain", name]) for name in tiny if "/finetune/" not in name}
    for name in tiny:
        if "/finetune/" in name:
            start = _folder(name.replace("/finetune/", "/"))
            record[name] = train(program, name, ["finetune", name, f"init={start}"])
    image, samples = "image/mae_tiny_cpu", "runs/samples/image"
    masking = next(name for name in ("several", "multi_mask") if name in maskings)
    inverse = "{type: inverse_block, ratio: 0.75}"
    changes = {
        "four masks of a sample": [
            "pretrain",
            image,
            f"modalities.image.masking={{type: {masking}, masks_per_sample: 4, masking: {inverse}}}",
            "train.batch=16",
        ],
        "two data sets": [
            "pretrain",
            image,
            "data.source=null",
            f"data.mix={{round: {{root: {samples}/sphere}}, flat: {{root: {samples}/cube, passes: 2}}}}",
            "train.batch=16",
            "data.workers=1",
        ],
        "micro-batches, average": ["pretrain", image, "train.micro_batch=16", "train.ema=0.9"],
        "fine-tuned from the run": ["finetune", _folder(image), samples, "train.batch=16"],
    }
    for title, words in changes.items():
        record[f"{image}, {title}"] = train(program, f"{image}, {title}", words)
    return record


def _folder(name: str) -> str:
    return "runs/" + re.sub(r"\W+", "_", name)


def train(program: Program, name: str, words: list[str]) -> dict[str, Any]:
    """One run: every figure of every step in full, and what its last weights are."""
    print(f"  {name}", flush=True)
    folder = program.folder / _folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    usual = {"data.workers": "0", "out": _folder(name)} | ({"data.root": VIDEO_ROOT} if name[:6] == "video/" else {})
    rest = [f"{key}={value}" for key, value in usual.items() if not any(word.startswith(f"{key}=") for word in words)]
    done = program.start("-m", "maemm", *words, *SETTINGS, *rest)
    if done.returncode:
        return {"error": program.plain(done.stderr)}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    series: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        for key, value in _leaves({key: row[key] for key in COLUMNS if row.get(key) not in (None, {})}):
            series[key].append(value)
    model = max((folder / "checkpoints").glob("step-*")) / "model.safetensors"
    return {"steps": len(rows), "series": dict(series), **weights(model)}


def weights(path: Path) -> dict[str, Any]:
    """Hashes of the names and shapes, and of the values, in a safetensors file: 8 bytes of length, JSON, values."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    names, values = hashlib.sha256(), hashlib.sha256()
    tensors = {name: entry for name, entry in sorted(header.items()) if name != "__metadata__"}
    for name, entry in tensors.items():
        names.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        first, last = entry["data_offsets"]
        values.update(content[begin + first : begin + last])
    return {"tensors": len(tensors), "tensor_names": names.hexdigest()[:32], "tensor_values": values.hexdigest()[:32]}


# ------------------------------------------------------------------------------------------------------ recording
def make(checkout: Path, python: str, with_runs: bool = True, suite_cpu: float | None = None) -> dict[str, Any]:
    """The whole record of a checkout."""
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        program = Program(python, Path(folder).resolve(), checkout)
        core, plugins, public = program.json_of("-c", PLACES)
        for path in (core, plugins):
            if not Path(path).resolve().is_relative_to(checkout):
                sys.exit(f"{python} imports {path}, which is not in {checkout}; install the checkout there first")
        files = modules(checkout)
        bundled, listed = parts(program), recipes(program)
        record: dict[str, Any] = {
            "about": program.json_of("-c", MACHINE, str(Path(__file__).resolve().parent)) | _commit(checkout),
            "public names": public,
            "verbs": verbs(program),
            "recipes": shortened(listed),
            "parts": bundled,
            "weights kinds": sorted(name for plugin in bundled.values() for name in plugin.get("weights", {})),
            "random keys": random_keys(files),
            "imports": graph(files),
            "sizes": sizes(checkout, files),
        }
        if suite_cpu is not None:
            record["CPU seconds of the tests"] = suite_cpu
        if with_runs:
            maskings = [name for plugin in bundled.values() for name in plugin.get("maskings", {})]
            record["runs"] = runs(program, list(listed), maskings)
    return record


def _commit(checkout: Path) -> dict[str, Any]:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True)
        return done.stdout.strip()

    folders = [folder for folder in (*SOURCES, "configs", "tests") if (checkout / folder).is_dir()]
    return {"commit": git("rev-parse", "--short", "HEAD"), "uncommitted": bool(git("status", "--porcelain", *folders))}


def dump(value: Any, width: int = 160, indent: int = 0) -> str:
    """JSON that opens a list or an object only where it is longer than a line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= width or not isinstance(value, dict | list) or not value:
        return line
    if isinstance(value, list) and not any(isinstance(inner, dict | list) for inner in value):
        return line
    named = (
        [f"{json.dumps(key, ensure_ascii=False)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    )
    inner_values = value.values() if isinstance(value, dict) else value
    rows = [
        " " * (indent + 1) + name + dump(inner, width, indent + 1)
        for name, inner in zip(named, inner_values, strict=True)
    ]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return f"{opened}\n" + ",\n".join(rows) + f"\n{' ' * indent}{closed}"


# ----------------------------------------------------------------------------------------------------------- main
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("make", help="record a checkout")
    making.add_argument("checkout", type=Path)
    making.add_argument("out", type=Path)
    making.add_argument("--python", default=sys.executable, help="interpreter in which the checkout is installed")
    making.add_argument("--no-runs", action="store_true", help="leave the trainings out")
    making.add_argument("--suite-cpu", type=float, metavar="SECONDS", help="CPU seconds of the tests, measured by hand")
    comparing = actions.add_parser("compare", help="compare two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--renames", type=Path, help=f"JSON, old name to new name, besides {RENAMES}")
    args = parser.parse_args(argv)
    if args.action == "make":
        python = shutil.which(args.python) or args.python
        record = make(args.checkout.resolve(), os.path.abspath(python), not args.no_runs, args.suite_cpu)
        args.out.write_text(dump(record) + "\n", encoding="utf-8")
        print(f"{args.out}: {args.out.stat().st_size:,} bytes")
        return 0
    names = RENAMES if args.renames is None else RENAMES | json.loads(args.renames.read_text(encoding="utf-8"))
    states = [json.loads(path.read_text(encoding="utf-8")) for path in (args.before, args.after)]
    table = compare(states[0], states[1], names)
    print(table)
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
