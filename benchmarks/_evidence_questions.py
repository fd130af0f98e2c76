"""The questions that only a device answers, each with its answer from the rows, or why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Rows = list[Mapping[str, Any]]  # of this code and machine
NO_DEVICE = "unknown: no CUDA device"


def answers(rows: Rows, device: str) -> list[dict[str, str]]:
    """[{"question", "answer"}], in the order of :data:`QUESTIONS`."""
    return [{"question": question, "answer": _answer(function, rows, device)} for question, function in QUESTIONS]


def table(answered: Iterable[Mapping[str, str]]) -> str:
    """As text, a question and its answer below it."""
    return "\n".join(f"{row['question']}\n    {row['answer']}" for row in answered)


def _answer(function: Callable[[Rows], str | None], rows: Rows, device: str) -> str:
    try:
        text = function(rows)
    except Exception as error:  # a row that was cut may lack what it would have said; the rows are worth more
        text = f"unknown: its rows cannot be read ({type(error).__name__}: {error})"
    if device != "cuda":
        return NO_DEVICE + (f" (on this CPU: {text})" if text else "")
    return text or f"unknown: {_why_none(function, rows)}"


def _why_none(function: Callable[[Rows], str | None], rows: Rows) -> str:
    part = getattr(function, "part", "")
    outcomes = Counter(row["outcome"] for row in rows if row["part"] == part)
    return f"no answer from part {part}" + (f" ({_list(outcomes)})" if outcomes else "")


def _of(part: str) -> Callable[[Callable[[Rows], str | None]], Callable[[Rows], str | None]]:
    """The part whose rows an answer is made of."""

    def named(function: Callable[[Rows], str | None]) -> Callable[[Rows], str | None]:
        function.part = part  # type: ignore[attr-defined]
        return function

    return named


def _rows(rows: Rows, part: str, name: str = "") -> Rows:
    return [row for row in rows if row["part"] == part and row.get("answer") and row["name"].startswith(name)]


def _list(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in counts.items())


def _unfinished(rows: Rows, part: str) -> str:
    """What a count over the rows of a part leaves out."""
    outcomes = Counter(row["outcome"] for row in rows if row["part"] == part and row["outcome"] != "ok")
    return f"; {_list(outcomes)}" if outcomes else ""


def _short(x: Any) -> str:
    return "none" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x)


# ------------------------------------------------------------------------------------------------------ the answers
@_of("machine")
def device_of(rows: Rows) -> str | None:
    for row in _rows(rows, "machine"):
        a = row["answer"]
        return f"{a['machine']}, torch {a['torch']}: {_short(a['matmul_tflops'])} TFLOP/s of a matrix product"
    return None


@_of("tests")
def tests(rows: Rows) -> str | None:
    for row in _rows(rows, "tests"):
        a = row["answer"]
        failed = [test for test, outcome in a["outcomes"].items() if outcome in ("failed", "error")]
        cut = ", cut by its time" if a.get("cut") or row["outcome"] == "cut" else ""
        return f"{_list(Counter(a['outcomes'].values())) or 'none ran'}{cut}" + "".join(f"; {test}" for test in failed)
    return None


@_of("equal")
def hashes(rows: Rows) -> str | None:
    for row in _rows(rows, "equal", "random numbers"):
        a = row["answer"]
        return f"{'yes' if not a['different'] else 'NO'}: {a['different']} of {a['numbers']} numbers differ"
    return None


@_of("equal")
def same_plans(rows: Rows) -> str | None:
    found = {row["settings"]["recipe"]: row["answer"]["different"] for row in _rows(rows, "equal", "plans")}
    wrong = {recipe: keys for recipe, keys in found.items() if keys}
    return (f"NO: {wrong}" if wrong else f"yes, of {', '.join(found)}") if found else None


@_of("recipes")
def waits(rows: Rows) -> str | None:
    counted = [row for row in _rows(rows, "recipes") if row["answer"]["waits"] is not None]
    places = Counter[str]()
    for row in counted:
        places.update(row["answer"]["waits"])
    some = [row["settings"]["recipe"] for row in counted if row["answer"]["waits"]]
    text = f"{len(counted) - len(some)} of {len(counted)} recipes never wait{_unfinished(rows, 'recipes')}"
    return (text + (f"; waits of {', '.join(some)}: {_list(places)}" if some else "")) if counted else None


@_of("steps")
def waits_of_large(rows: Rows) -> str | None:
    counted = [row for row in _rows(rows, "steps") if row["answer"].get("waits_per_step") is not None]
    some = {row["name"]: row["answer"]["waits_per_step"] for row in counted if row["answer"]["waits_per_step"]}
    return (f"NO: {some}" if some else f"yes, in {len(counted)} rows") if counted else None


@_of("recipes")
def cpu_losses(rows: Rows) -> str | None:
    found = {row["settings"]["recipe"]: row["answer"]["difference"] for row in _rows(rows, "recipes")}
    if not found:
        return None
    worst = max(found, key=found.__getitem__)
    far = sum(x > 2e-3 for x in found.values())
    text = f"{far} of {len(found)} recipes differ by more than 0.2 %; the most: {_short(found[worst])} of {worst}"
    return text + _unfinished(rows, "recipes")


def _losses(name: str, key: str, limit: float) -> Callable[[Rows], str | None]:
    @_of("equal")
    def answer(rows: Rows) -> str | None:
        found = {row["name"].split(": ")[-1]: row["answer"][key] for row in _rows(rows, "equal", name)}
        if not found:
            return None
        near = all(x <= limit for x in found.values())
        return f"{'yes' if near else 'NO'}, relative differences: {_list({k: _short(x) for k, x in found.items()})}"

    return answer


@_of("steps")
def ran_compiled(rows: Rows) -> str | None:
    texts = [
        f"{row['name']}: {a['mode']}, {a['graphs']} graphs, {a['graph_breaks']} breaks"
        for row in _rows(rows, "steps")
        for a in [row["answer"]]
        if row["settings"].get("compile") and a.get("mode")
    ]
    return "; ".join(texts) or None


@_of("steps")
def compiled_losses(rows: Rows) -> str | None:
    plain = [row for row in _rows(rows, "steps") if not row["settings"].get("compile") and "losses" in row["answer"]]
    eager = {row["settings"]["recipe"]: row["answer"] for row in plain}
    found = {}
    for row in _rows(rows, "steps"):
        recipe = row["settings"].get("recipe")
        if row["settings"].get("compile") and recipe in eager:
            pairs = zip(eager[recipe]["losses"], row["answer"]["losses"], strict=True)
            found[row["name"]] = max(abs(a - b) / abs(a) for a, b in pairs)
    return f"relative differences of three losses: {_list({k: _short(x) for k, x in found.items()})}" if found else None


@_of("equal")
def resumed(rows: Rows) -> str | None:
    texts = []
    for row in _rows(rows, "equal", "resume"):
        a = row["answer"]
        again, after = a["again"], a["resumed"]
        how = "bit-equal" if after["bit_equal"] else f"weights differ by {_short(after['largest_of_weights'])}"
        twice = "bit-equal" if again["bit_equal"] else f"by {_short(again['largest_of_weights'])}"
        texts.append(f"{row['name']}: {how} (two runs without a stop: {twice})")
    return "; ".join(texts) or None


@_of("equal")
def optimizers(rows: Rows) -> str | None:
    texts = []
    for row in _rows(rows, "equal", "optimizer"):
        a = row["answer"]
        right = a["good_changes"] and a["finite"] and not (a["first_bad_changes"] or a["later_bad_changes"])
        waiting = "" if a["waits"] is None else f", {sum(a['waits'].values())} waits"
        texts.append(f"{row['settings']['optimizer']}: {'skips' if right else 'DOES NOT SKIP'}{waiting}")
    return "; ".join(texts) or None


@_of("steps")
def speed(rows: Rows) -> str | None:
    texts = []
    for row in _rows(rows, "steps"):
        a = row["answer"]
        if "samples_per_s" in a:
            rate, memory, mfu = (_short(a.get(key)) for key in ("samples_per_s", "peak_gib", "mfu"))
            texts.append(f"{row['name']}: {rate}/s, {memory} GiB, MFU {mfu}")
    return "; ".join(texts) + _unfinished(rows, "steps") if texts else None


@_of("steps")
def launches(rows: Rows) -> str | None:
    texts = [
        f"{row['name']}: {row['answer']['kernels']} kernels, device busy {_short(row['answer'].get('busy'))}"
        for row in _rows(rows, "steps")
        if row["answer"].get("kernels")
    ]
    return "; ".join(texts) or None


@_of("loop")
def loader(rows: Rows) -> str | None:
    texts = [
        f"{row['settings']['recipe']}: {_short(100 * a['data_wait'])} % of the time waited, "
        f"{_short(a['samples_per_second'])}/s, {a['workers']} workers"
        for row in _rows(rows, "loop")
        for a in [row["answer"]]
    ]
    return "; ".join(texts) or None


@_of("equal")
def overlap(rows: Rows) -> str | None:
    for row in _rows(rows, "equal", "copies"):
        a = row["answer"]
        if a["hidden"] is not None:
            return f"{_short(100 * a['hidden'])} % of a copy of {_short(a['copy_ms'])} ms is hidden behind products"
    return None


@_of("steps")
def points(rows: Rows) -> str | None:
    for row in _rows(rows, "steps", "farthest points"):
        a = row["answer"]
        which = "the kernel" if a["kernel"] else "no kernel, the loop in torch"
        same = "the same points" if a["same"] else "OTHER POINTS"
        return f"{which}: {_short(a['chosen'])} clouds/s, the loop {_short(a['torch'])}; {same}"
    return None


@_of("cifar")
def cifar(rows: Rows) -> str | None:
    texts = []
    for row in _rows(rows, "cifar", "pretrain"):
        a = row["answer"]
        texts.append(f"loss {_short(a['loss'])} beside {_short(a['baseline'])}, {_short(a['samples_per_second'])}/s")
    for row in _rows(rows, "cifar", "features"):
        a = row["answer"]
        texts.append(f"{row['settings']['features']}: kNN {_short(a['knn'])}, linear {_short(a.get('linear'))}")
    for row in _rows(rows, "cifar", "finetune"):
        texts.append(f"{row['name']}: {_short(row['answer']['accuracy'])}")
    return "; ".join(texts) or None


@_of("cifar")
def beside_transformers(rows: Rows) -> str | None:
    for row in _rows(rows, "cifar", "ViTMAE"):
        a = row["answer"]
        if "left_out" in a:
            return f"unknown: {a['left_out']}"
        return "; ".join(
            f"{name}: {_short(a[name]['samples_per_s'])}/s, loss {_short(a[name]['last_loss'])}"
            for name in ("ours", "theirs")
            if name in a
        )
    return None


#: what stays unknown without a device
QUESTIONS: list[tuple[str, Callable[[Rows], str | None]]] = [
    ("Which device is this?", device_of),
    ("Do the tests marked gpu pass on a real device?", tests),
    ("Is a step of every packaged recipe free of host waits on a real device?", waits),
    ("Is a step of the published sizes?", waits_of_large),
    ("Are the hash random numbers the same bits on the device?", hashes),
    ("Are plans (what is hidden) the same?", same_plans),
    ("Are the losses of every packaged recipe those of the CPU (fp32)?", cpu_losses),
    ("Do rows called compiled run compiled?", ran_compiled),
    ("compiled = eager, in fp32?", _losses("compiled", "largest_relative_difference", 1e-3)),
    ("compiled = eager, the published sizes in bf16?", compiled_losses),
    ("Does bf16 train like fp32?", _losses("bf16", "difference_at_the_end", 0.03)),
    ("Does a resumed run equal one that was not stopped?", resumed),
    ("Do optimisers skip a bad step, and without waiting?", optimizers),
    ("Samples per second, peak memory and MFU of each model?", speed),
    ("Is the device kept busy, or does it wait for launches?", launches),
    ("Does the loader keep up?", loader),
    ("Do copies from pinned memory overlap with work?", overlap),
    ("Is the kernel of farthest points used, and faster than the loop?", points),
    ("Does pre-training on CIFAR-10 learn something?", cifar),
    ("How does transformers' ViTMAE of the same size compare?", beside_transformers),
]
