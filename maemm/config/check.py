"""Check a whole recipe: every mistake at once, each with where it was set and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maemm import registry
from maemm.config.layers import EXCLUSIVE, Layer
from maemm.config.messages import join, validate, value_text
from maemm.config.options import part_problems
from maemm.config.paths import with_expanded_paths
from maemm.config.schema import BASE_LR, TRAIN_PARTS, DataConfig, SetConfig, TrainConfig, key_types
from maemm.config.stages import NAME as STAGE_NAME
from maemm.config.stages import problems as stage_problems
from maemm.contract.errors import MaemmError, advice

ONLY = ("encode", "decode")
_OTHER = {"encode": "decode", "decode": "encode"}
KEYS = (
    "modalities", "masking", "encoder", "decoder", "objectives", "head", "init", "data", "train", "stages", "out",
    "name",
)  # fmt: skip
NOT_OPTIONS = ("masking", "target", "align", "only")  # keys of a modality that are not options of its class


def checked(layer: Layer, name: str | None, training: bool) -> dict[str, Any]:
    """The resolved recipe. Raises :class:`MaemmError` with one line for each mistake. ``name`` None: not from a file.

    ``training=True`` also requires what only training needs.
    """
    return _Checker(layer, name, training).run()


class _Checker:
    """Resolves a recipe section by section and collects the mistakes."""

    def __init__(self, layer: Layer, name: str | None, training: bool):
        self.layer, self.values, self.name = layer, layer.values, name
        self.training = training and not layer.values.get("stages")  # the stages say the rest
        self.title = name or "the recipe"
        self.mistakes: list[str] = []
        modalities = self.values.get("modalities")
        # {name: its value in the recipe}
        self.modality_specs = _without_nulls(modalities) if isinstance(modalities, dict) else {}

    def run(self) -> dict[str, Any]:
        self.check_top_level()
        resolved = {
            "modalities": self.modalities(),
            "masking": self.part("maskings", self.values.get("masking"), "masking"),
            "encoder": self.encoder(),
            "decoder": self.part("decoders", self.values.get("decoder"), "decoder"),
            "objectives": self.objectives(),
            "head": self.part("heads", self.values.get("head"), "head"),
            "init": self.init(),
            "data": self.data(),
            "train": self.train(),
            "stages": self.stages(),
            "out": self.out(),
            "name": self.recipe_name(),
        }
        if self.mistakes:
            raise MaemmError("\n".join(map(_printable, self.mistakes)))
        for key in ("masking", "init", "stages"):
            if resolved[key] is None:
                del resolved[key]
        return with_expanded_paths(resolved)

    # ---------------------------------------------------------------------------------------------- helpers
    def add(self, text: str, key: str, todo: str) -> None:
        """Add a mistake at a dotted key."""
        origin = self.layer.origin(key)
        self.mistakes.append(f"{text}{f' ({origin})' if origin else ''}; {todo}")

    def mapping(self, key: str) -> dict[str, Any]:
        """A section of the recipe, empty if it is missing."""
        value = self.values.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.add(f"{key} must be a mapping, got {value_text(value)}", key, "write key: value lines below it")
        return {}

    def section(self, model: type[BaseModel], values: dict[str, Any], key: str) -> dict[str, Any]:
        """Values checked by a model of :mod:`maemm.config.schema`, with its defaults."""
        hint = "see: maemm pretrain --help"
        valid, mistakes = validate(model.model_validate_json, values, key, key_types(model), self.layer.origin, hint)
        self.mistakes += mistakes
        return model().model_dump() if mistakes else valid.model_dump(mode="json")

    def part(self, role: str, value: Any, where: str, default: str | None = None) -> dict[str, Any] | None:
        """``NAME`` or ``{type: NAME, **options}`` -> the latter, checked. None stays None without ``default``."""
        if value is None and default is None:
            return None
        spec = {"type": value} if isinstance(value, str) else value if value is not None else {}
        besides = NOT_OPTIONS if role == "modalities" else ()
        self.mistakes += part_problems(role, spec, where, self.layer.origin, default, besides)
        if not isinstance(spec, dict):
            return None
        return {"type": spec.get("type", default)} | {key: option for key, option in spec.items() if key != "type"}

    # --------------------------------------------------------------------------------------------- sections
    def check_top_level(self) -> None:
        for key in self.values:
            if key in KEYS:
                continue
            sections: dict[str, type[BaseModel]] = {"train": TrainConfig, "data": DataConfig}
            nested = [f"{section}.{key}" for section, model in sections.items() if key in model.model_fields]
            self.add(f"unknown key {key!r}", key, f"did you mean {nested[0]!r}?" if nested else advice(key, KEYS))

    def modalities(self) -> dict[str, Any]:
        section = self.mapping("modalities")  # reports it if it is not a mapping
        if not _without_nulls(section) and isinstance(self.values.get("modalities") or {}, dict):
            names = ", ".join(registry.names("modalities")) or "none"
            self.add(f"{self.title} has no modalities", "modalities", f"add one below modalities (known: {names})")
        return {name: self.modality(name, spec) for name, spec in self.modality_specs.items()}

    def modality(self, name: str, spec: Any) -> dict[str, Any]:
        self.check_name(name, "modalities")
        where = f"modalities.{name}"
        if isinstance(spec, dict) and "same_as" in spec:
            self.check_same_as(name, spec)
            masking, resolved = spec.get("masking"), {"same_as": spec["same_as"], "only": spec.get("only")}
        else:
            part = self.part("modalities", spec, where, default=name) or {}
            masking = part.get("masking", None if self.values.get("masking") else "random")
            resolved = {key: value for key, value in part.items() if key not in ("masking", "target")}
        target = spec.get("target") if isinstance(spec, dict) else None
        resolved["masking"] = self.part("maskings", masking, join(where, "masking"))
        resolved["target"] = self.part("targets", target, join(where, "target"))
        align = resolved.pop("align", None)
        if align is not None:
            others = [other for other in self.modality_specs if other != name]
            if align not in others:
                self.add(f"{where}.align is {value_text(align)}", f"{where}.align", advice(str(align), others))
            resolved["align"] = align
        self.check_only(name, spec, resolved)
        return resolved

    def check_only(self, name: str, spec: Any, resolved: dict[str, Any]) -> None:
        """Whether a modality is only encoded or only decoded; null, as if it were left out, is both."""
        where = f"modalities.{name}.only"
        only = resolved.pop("only", None)
        if only is None:
            return
        if only not in ONLY:
            self.add(f"{where} is {value_text(only)}", where, "write encode or decode, or leave it out")
        elif only == "decode" and isinstance(spec, dict) and spec.get("masking") is not None:
            self.add(f"{where} is decode, so that no masking shows any of it", where, "leave its masking out")
        elif all(isinstance(x, dict) and x.get("only") == only for x in self.modality_specs.values()):
            todo = "leave it out of one of them"
            self.add(f"{where} is {only}, as of all modalities: nothing is left to {_OTHER[only]}", where, todo)
        resolved["only"] = only

    def check_name(self, name: str, section: str) -> None:
        if not name.isprintable() or not name.strip():
            self.add(f"{name!r} cannot be a name in {section}", section, "use letters, digits and _")

    def check_same_as(self, name: str, spec: dict[str, Any]) -> None:
        where, owner = f"modalities.{name}", spec["same_as"]
        key = f"{where}.same_as"
        specs = self.modality_specs
        owners = [other for other, values in specs.items() if not (isinstance(values, dict) and "same_as" in values)]
        if owner not in owners:
            shares = isinstance(owner, str) and owner in specs and owner != name
            problem = "itself shares another" if shares else "is not a modality of this recipe"
            self.add(f"{key} is {value_text(owner)}, which {problem}", key, advice(str(owner), owners))
        for extra in spec.keys() - {"same_as", "masking", "target", "only"}:
            todo = "leave it out, or leave same_as out"
            self.add(f"{where}.{extra} cannot be set beside same_as", f"{where}.{extra}", todo)

    def encoder(self) -> dict[str, Any] | None:
        if self.values.get("encoder") is None:
            todo = f"add encoder: {{type: NAME}} (known: {', '.join(registry.names('encoders'))})"
            self.add(f"{self.title} has no encoder", "encoder", todo)
        return self.part("encoders", self.values.get("encoder"), "encoder")

    def objectives(self) -> dict[str, Any]:
        specs = _without_nulls(self.mapping("objectives"))
        if not specs and self.values.get("decoder") is not None and "objectives" not in self.values:
            specs = {"reconstruct": {}}
        for name in specs:
            self.check_name(name, "objectives")
        return {name: self.part("objectives", spec, f"objectives.{name}", default=name) for name, spec in specs.items()}

    def data(self) -> dict[str, Any]:
        data = self.section(DataConfig, self.mapping("data"), "data")
        data["source"] = self.source(data["source"], "data.source", list(self.modality_specs))
        if data["mix"] is not None:
            for key in ("root", "list", "source", "epoch", "balance", "shots", "fold"):
                if self.layer.get(f"data.{key}"):
                    self.add(f"data.{key} cannot be set beside data.mix", f"data.{key}", "set it to null")
            data["mix"] = {name: self.mixed_set(name, values) for name, values in _without_nulls(data["mix"]).items()}
        return data

    def source(self, value: Any, where: str, names: list[str]) -> dict[str, Any] | None:
        """A source. With a single modality, its type is by default that of the modality."""
        spec = self.modality_specs.get(names[0]) if len(names) == 1 else None
        default = spec.get("type", names[0]) if isinstance(spec, dict) else spec
        return self.part("sources", value, where, default=None if value is None else default)

    def mixed_set(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """A dataset of a mixture."""
        where = f"data.mix.{name}"
        resolved = self.section(SetConfig, values, where)
        names = resolved["modalities"] or list(self.modality_specs)
        resolved["source"] = self.source(resolved["source"], join(where, "source"), names)
        for modality in resolved["modalities"] or ():
            if modality not in self.modality_specs:
                todo = advice(modality, self.modality_specs)
                self.add(f"{where}.modalities names {value_text(modality)}", join(where, "modalities"), todo)
        return resolved

    def train(self) -> dict[str, Any]:
        before = len(self.mistakes)
        train = self.section(TrainConfig, self.mapping("train"), "train")
        keys_are_right = len(self.mistakes) == before  # else a mistyped key may be the one that seems to be missing
        for key, other in EXCLUSIVE:
            if self.layer.get(key) is not None and self.layer.get(other) is not None:
                self.add(f"{key} and {other} are both given", other, f"leave one out, or set {other}=null")
        has_length = any(self.layer.get(f"train.{key}") is not None for key in ("epochs", "steps"))
        if self.training and keys_are_right and not has_length:
            self.add("neither train.epochs nor train.steps is given", "train", "add one, such as train.epochs=100")
        if train["lr"] is None and train["base_lr"] is None:
            train["base_lr"] = BASE_LR
        for key, role in TRAIN_PARTS.items():
            value = self.layer.get(f"train.{key}")
            default = TrainConfig.model_fields[key].default
            spec = value if isinstance(value, (str, dict)) else train[key]
            train[key] = self.part(role, spec, f"train.{key}", default)
        train["trackers"] = self.trackers(self.layer.get("train.trackers"))
        return train

    def trackers(self, value: Any) -> dict[str, Any] | None:
        """``NAME``, ``{type: NAME, **options}``, a list of these, or ``{NAME: options}`` -> the last."""
        specs = value if isinstance(value, list) else [value]
        named: list[tuple[Any, Any]]
        if isinstance(value, dict) and not isinstance(value.get("type"), str):
            named = list(_without_nulls(value).items())
        else:
            named = [(x.get("type") if isinstance(x, dict) else x, x) for x in specs if isinstance(x, (str, dict))]
        trackers: dict[str, Any] = {}
        for name, spec in named:
            where = f"train.trackers.{name}"
            if not isinstance(name, str) or not STAGE_NAME.fullmatch(name):
                self.add(f"{value_text(name)} cannot be the name of a tracker", "train.trackers", "write {type: NAME}")
            elif name in trackers:
                self.add(f"{where} is given twice", "train.trackers", "leave one out")
            else:
                trackers[name] = self.part("trackers", spec, where, default=name)
        return trackers or None

    def init(self) -> str | dict[str, Any] | None:
        """A path, or ``{weights: PATH, parts: [...], strict: ..., **settings}`` with what the weights do not record."""
        init = self.values.get("init")
        if isinstance(init, dict):
            # init.heads=4 beside init: FILE makes {type: FILE, heads: 4} of it, as for a part that was a name
            weights = init.get("weights", init.get("type"))
            settings = {key: value for key, value in init.items() if key not in ("weights", "type")}
            init = {"weights": weights, **settings} if settings else weights
        path = init["weights"] if isinstance(init, dict) else init
        if (init is not None or self.values.get("init") is not None) and not (isinstance(path, str) and path):
            todo = "write init: runs/NAME, or init: {weights: FILE, heads: N}"
            self.add(f"init must be a run or a weights file, got {value_text(path)}", "init", todo)
        elif isinstance(init, dict):
            self.check_init(init)
        return init

    def check_init(self, init: dict[str, Any]) -> None:
        """The keys of ``init`` that are no settings of the file: which parts are loaded, and how strictly."""
        parts = init.get("parts")
        if parts is not None and not (isinstance(parts, list) and parts and all(isinstance(x, str) for x in parts)):
            todo = "write init.parts: [encoder, modalities.NAME]"
            self.add(f"init.parts must be a list of names of parts, got {value_text(parts)}", "init.parts", todo)
        if not isinstance(init.get("strict", True), bool):
            problem = f"init.strict must be true or false, got {value_text(init['strict'])}"
            self.add(problem, "init.strict", "leave it out for true")

    def stages(self) -> dict[str, Any] | None:
        """{stage: its overrides}, which are checked when they are merged."""
        stages = self.values.get("stages")
        if stages is None:
            return None
        stages = _without_nulls(stages) if isinstance(stages, dict) else stages
        for problem in stage_problems(stages):
            self.add(*problem)
        return stages if isinstance(stages, dict) else None

    def out(self) -> str | None:
        out = self.values.get("out")
        if out is not None and not (isinstance(out, str) and out):
            self.add(f"out must be the name of a folder, got {value_text(out)}", "out", "write out=runs/NAME")
        if out is None and self.name is None and self.training:
            self.mistakes.append("the recipe has no out; add out: runs/NAME, the folder of the run")
        if out is not None or self.name is None:
            return out
        is_file = self.name.endswith((".yaml", ".yml"))
        return str(Path("runs", Path(self.name).stem if is_file else self.name))

    def recipe_name(self) -> str | None:
        name = self.values.get("name")
        if name is not None and not isinstance(name, str):
            self.add(f"name must be a text, got {value_text(name)}", "name", "leave it out")
        return self.name if name is None else name


def _printable(line: str) -> str:
    """A line with control characters, which keys may hold, written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Null takes out an entry of the base."""
    return {name: value for name, value in values.items() if value is not None}
