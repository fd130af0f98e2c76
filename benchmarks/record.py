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
import ast
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = {"maemm": "maemm", "plugins": "maemm_plugins"}  # folders, and the packages that they are
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
NAMES = ("one", "found", "known", "what", "given")  # counted as identifiers
SHORT, LONG = 40, 400  # lines of a file

# Calls whose texts go into a seed -> what they are called here, under the names of either state.
METHODS = {
    "rand": "uniform",
    "uniform": "uniform",
    "under": "fold_in",
    "fold_in": "fold_in",
    "seed": "seed",
    "generator": "generator",
    "numpy": "numpy",
}
FUNCTIONS = {"Draw": "key", "Rng": "key", "derive": "derive", "seeded": "seeded"}

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


def in_full(recipes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What :func:`shortened` was given."""
    return {name: {**recipes["usual"], **own} for name, own in recipes["own"].items()}


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
    tiny = sorted(name for name in listed if "tiny_cpu" in name)
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


# --------------------------------------------------------------------------------------------- text of the files
@dataclass
class Module:
    """A Python file of the checkout."""

    name: str  # as it is imported
    path: str  # relative to the checkout
    lines: int
    tree: ast.Module

    @property
    def package(self) -> list[str]:
        """Names of the package in which its relative imports begin."""
        return self.name.split(".")[: None if self.path.endswith("__init__.py") else -1]

    @property
    def place(self) -> str:
        """maemm/FOLDER or plugins/FOLDER, or the file itself where it lies in no folder below."""
        return "/".join(self.path.split("/")[:2])


def modules(checkout: Path) -> dict[str, Module]:
    """{name: module} of both packages; templates of new plugins are no modules."""
    record = {}
    for folder, package in SOURCES.items():
        for path in sorted((checkout / folder).rglob("*.py")):
            inner = path.relative_to(checkout / folder).with_suffix("")
            if "templates" in inner.parts:
                continue
            name = ".".join([package, *inner.parts]).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            record[name] = Module(name, path.relative_to(checkout).as_posix(), text.count("\n"), ast.parse(text))
    return record


def random_keys(files: Mapping[str, Module]) -> dict[str, dict[str, int]]:
    """{kind of call: {text: how often}}; what is filled into a text is written {}."""
    record: dict[str, Counter[str]] = defaultdict(Counter)
    for module in files.values():
        for call in ast.walk(module.tree):
            if not isinstance(call, ast.Call):
                continue
            kind = None
            if isinstance(call.func, ast.Attribute):
                kind = METHODS.get(call.func.attr)
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            kind = kind or FUNCTIONS.get(str(name))
            if kind is not None:
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
                record[kind].update(text for value in values for text in _texts(value))
    return {kind: dict(sorted(texts.items())) for kind, texts in sorted(record.items()) if texts}


def _texts(value: ast.expr) -> Iterator[str]:
    """Texts that a value consists of; calls inside it, and keys into dictionaries, are something else."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values)
    elif isinstance(value, ast.Tuple | ast.List | ast.IfExp | ast.BinOp | ast.Starred):
        for inner in ast.iter_child_nodes(value):
            if isinstance(inner, ast.expr):
                yield from _texts(inner)


# ------------------------------------------------------------------------------------------------------- imports
@dataclass(frozen=True)
class Import:
    """One module that a statement imports from another."""

    origin: str
    target: str
    statement: int  # its line
    in_function: bool
    for_types: bool  # under TYPE_CHECKING


def imports(files: Mapping[str, Module]) -> list[Import]:
    """Every import between modules. That importing a module runs the packages around it first is not counted."""
    return [
        Import(module.name, target, node.lineno, in_function, for_types)
        for module in files.values()
        for node, in_function, for_types in _statements(module.tree)
        for target in _targets(node, module, files)
        if target != module.name
    ]


def _statements(
    node: ast.AST, in_function: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, in_function, for_types
    in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for_types |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for inner in ast.iter_child_nodes(node):
        yield from _statements(inner, in_function, for_types)


def _targets(node: ast.Import | ast.ImportFrom, module: Module, files: Mapping[str, Module]) -> set[str]:
    if isinstance(node, ast.Import):
        wanted = [alias.name for alias in node.names]
    else:
        above = module.package[: len(module.package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        wanted = [f"{base}.{alias.name}" for alias in node.names]
    return {target for name in wanted if (target := _nearest(name, files))}


def _nearest(name: str, files: Mapping[str, Module]) -> str | None:
    """The module of that name, or the one that it is a name in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def graph(files: Mapping[str, Module]) -> dict[str, Any]:
    """Counts of imports, and what imports itself in a circle, by file and by folder."""
    every = imports(files)
    first = [line for line in every if not line.in_function and not line.for_types]  # run when a module is imported
    folders: Counter[str] = Counter()
    for module in files.values():
        folders[module.place] += module.lines
    lines = {name: module.lines for name, module in files.items()}

    def pairs(some: list[Import], by_folder: bool) -> set[tuple[str, str]]:
        ends = [(line.origin, line.target) for line in some]
        if by_folder:
            ends = [(files[origin].place, files[target].place) for origin, target in ends]
        return {(origin, target) for origin, target in ends if origin != target}

    edges = pairs(every, True)
    statements = {(line.origin, line.statement): line for line in every}.values()
    return {
        "modules": len(files),
        "edges": len(pairs(every, False)),
        "import statements": len(statements),
        "in functions": sum(line.in_function for line in statements),
        "for types only": sum(line.for_types for line in statements),
        "folders": len(folders),
        "folder edges": len(edges),
        "largest circle of files": circle(pairs(every, False), lines),
        "largest circle of files, at import": circle(pairs(first, False), lines),
        "largest circle of folders": circle(edges, folders),
        "largest circle of folders, at import": circle(pairs(first, True), folders),
        "folder edges of": {
            origin: sorted(target for start, target in edges if start == origin) for origin in sorted(folders)
        },
    }


def circle(edges: set[tuple[str, str]], lines: Mapping[str, int]) -> dict[str, Any]:
    """The largest strongly connected component: how many, how many lines, which."""
    after: dict[str, set[str]] = defaultdict(set)
    for origin, target in edges:
        after[origin].add(target)
    reached = {name: _reach(name, after) for name in after}
    groups = [{other for other in reached[name] if name in reached.get(other, ())} for name in reached]
    largest = max(groups, key=lambda group: (len(group), sum(lines[name] for name in group)), default=set())
    return {"size": len(largest), "lines": sum(lines[name] for name in largest), "members": sorted(largest)}


def _reach(name: str, after: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left = [name]
    while left:
        new = after.get(left.pop(), set()) - reached
        reached |= new
        left += new
    return reached


# --------------------------------------------------------------------------------------------------------- sizes
def sizes(checkout: Path, files: Mapping[str, Module]) -> dict[str, Any]:
    """Lines, files, functions and names."""
    lines: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for module in files.values():
        for place in {module.place, module.place.split("/")[0]}:
            lines[place] += module.lines
            number[place] += 1
    for place in ("tests", "benchmarks"):
        texts = [path.read_text(encoding="utf-8") for path in (checkout / place).rglob("*.py")]
        lines[place], number[place] = sum(text.count("\n") for text in texts), len(texts)
    nodes = [node for module in files.values() for node in ast.walk(module.tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    words = Counter(getattr(node, "id", getattr(node, "arg", None)) for node in nodes if _is_name(node))
    return {
        "lines": dict(sorted(lines.items())),
        "files": dict(sorted(number.items())),
        f"files under {SHORT} lines": sum(module.lines < SHORT for module in files.values()),
        f"files over {LONG} lines": sum(module.lines > LONG for module in files.values()),
        "functions": len(functions),
        "median lines of a function": statistics.median(lengths),
        "private functions": sum(_is_private(node.name) for node in functions),
        "private functions used once": sum(_used_once(module.tree) for module in files.values()),
        "def take": sum(node.name == "take" for node in functions),
        "names": {name: words[name] for name in NAMES},
    }


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.arg)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _used_once(tree: ast.Module) -> int:
    """Private functions and methods of a file, each of another name, whose name is written once beside its own."""
    nodes = list(ast.walk(tree))
    functions = Counter(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    uses = Counter(getattr(node, "id", getattr(node, "attr", None)) for node in nodes if not isinstance(node, ast.arg))
    return sum(_is_private(name) and count == 1 and uses[name] == 1 for name, count in functions.items())


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


# ------------------------------------------------------------------------------------------------------ comparing
class Table:
    """Rows of a comparison; ``failed`` where something differs that must not."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []
        self.details: list[str] = []
        self.failed = False

    def head(self, title: str) -> None:
        self.rows.append((title, "", "", ""))

    def same(self, title: str, before: Any, after: Any, sizes: tuple[str, str], details: list[str]) -> None:
        """A row of what must be equal."""
        equal = before == after
        self.failed |= not equal
        self.rows.append((f"  {title}", *sizes, "equal" if equal else "DIFFERS"))
        self.details += [] if equal else [f"{title}: {text}" for text in details]

    def show(self, title: str, before: Any, after: Any) -> None:
        """A row of what may change."""
        change = ""
        if isinstance(before, int | float) and isinstance(after, int | float):
            change = "equal" if before == after else f"{after - before:+g}"
        self.rows.append((f"  {title}", _shown(before), _shown(after), change))

    def __str__(self) -> str:
        rows = [("", "before", "after", ""), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return "\n".join([*table, *(["", "What differs:"] if self.details else []), *self.details])


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same with names replaced where they are a word of a key or a whole text."""
    if isinstance(value, Mapping):
        return {
            " ".join(names.get(word, word) for word in key.split(" ")): renamed(inner, names)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def compare(before: Mapping[str, Any], after: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """Everything side by side."""
    table = Table()
    _compare_runs(table, before.get("runs"), after.get("runs"))
    _compare_keys(table, before["random keys"], after["random keys"])
    table.head("lists")
    _compare_lists(table, *(renamed(_lists(state), names) for state in (before, after)))
    table.head("texts")
    changed = [
        name
        for name, verb in before["verbs"].items()
        if name in after["verbs"] and verb["help"] != after["verbs"][name]["help"]
    ]
    table.show("help texts that changed", None, f"{len(changed)} of {len(before['verbs'])}")
    for section in ("imports", "sizes"):
        table.head(section)
        old, new = dict(_counts(before[section])), dict(_counts(after[section]))
        titles = dict.fromkeys((*old, *new))
        quiet = [title for title in titles if "/" in title and old.get(title) == new.get(title)]
        for title in titles:
            if title not in quiet:
                table.show(title, old.get(title), new.get(title))
        if quiet:
            table.rows.append((f"  {len(quiet)} more of single folders", "", "", "equal"))
    table.show("CPU seconds of the tests", *(state.get("CPU seconds of the tests") for state in (before, after)))
    for key in ("machine", "python", "torch"):
        if before["about"][key] != after["about"][key]:
            table.details.append(f"made with another {key}: {before['about'][key]}, {after['about'][key]}")
    return table


def _compare_runs(table: Table, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    table.head("runs")
    if before is None or after is None:
        table.rows.append(("  not recorded in both", "", "", ""))
        return
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, {"error": "no such run"}), after.get(name, {"error": "no such run"})
        last = tuple(f"{run['series']['loss'][-1]:.9g}" if "series" in run else "failed" for run in (old, new))
        table.same(name, old, new, (last[0], last[1]), list(_run_details(old, new)))
        if "error" in old:
            table.failed = True


def _run_details(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if "error" in old or "error" in new:
        yield f"{old.get('error', 'went well')} / {new.get('error', 'went well')}"
        return
    for key in dict.fromkeys((*old["series"], *new["series"])):
        first, second = old["series"].get(key, []), new["series"].get(key, [])
        if len(first) != len(second):
            yield f"{key} has {len(first)} and {len(second)} values"
        elif first != second:
            pairs = [(a, b) for a, b in zip(first, second, strict=True) if None not in (a, b)]
            worst = max((abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs), default=float("nan"))
            place = next(row for row, pair in enumerate(zip(first, second, strict=True), 1) if pair[0] != pair[1])
            yield f"{key} differs from row {place} on, by {worst:.1e} of its size at most"
    for key in ("tensors", "tensor_names", "tensor_values"):
        if old[key] != new[key]:
            yield f"{key}: {old[key]} / {new[key]}"


def _compare_keys(table: Table, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """The texts must be the same; how often each is written may change where code is joined."""
    table.head("texts in random keys")
    for kind in dict.fromkeys((*before, *after)):
        old, new = before.get(kind, {}), after.get(kind, {})
        details = _difference(old, new)
        table.same(kind, set(old), set(new), (f"{len(old)}", f"{len(new)}"), details)
        table.show("  written how often", sum(old.values()), sum(new.values()))


def _lists(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{title: {entry: what belongs to it}}."""
    plugins = record["parts"]
    roles = sorted({role for brings in plugins.values() for role in brings})
    entries = {
        role: {
            f"{plugin} {name}": options
            for plugin, brings in plugins.items()
            for name, options in brings.get(role, {}).items()
        }
        for role in roles
    }
    return {
        "public names": dict.fromkeys(record["public names"]),
        "verbs and flags": {name: [verb["words"], *verb["flags"]] for name, verb in record["verbs"].items()},
        "recipes": in_full(record["recipes"]),
        "plugins": dict.fromkeys(plugins),
        "roles": dict.fromkeys(roles),
        "weights kinds": dict.fromkeys(record["weights kinds"]),
        **entries,
    }


def _compare_lists(table: Table, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for title in dict.fromkeys((*before, *after)):
        old, new = before.get(title, {}), after.get(title, {})
        table.same(title, old, new, (f"{len(old)}", f"{len(new)}"), _difference(old, new))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    rows = [f"gone: {name}" for name in old if name not in new] + [f"new: {name}" for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            rows.append(f"{name}: {_changes(old[name], new[name])}")
    return rows


def _changes(old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key, "none") != new.get(key, "none")]
        return "; ".join(f"{key} {old.get(key, 'none')!r} -> {new.get(key, 'none')!r}" for key in keys)[:400]
    if isinstance(old, list) and isinstance(new, list):
        return f"gone {[v for v in old if v not in new]}, new {[v for v in new if v not in old]}"
    return f"{old!r} -> {new!r}"[:400]


def _counts(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{above}{key}: ")
        elif isinstance(value, int | float):
            yield f"{above}{key}", value


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
