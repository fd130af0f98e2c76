"""Checking a whole recipe: every mistake at once, each with its place and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maemm import registry
from maemm.config.layers import RIVALS, Layer
from maemm.config.messages import join, validate, value_text
from maemm.config.options import problems
from maemm.config.schema import BASE_LR, TRAIN_PARTS, DataConfig, SetConfig, TrainConfig, key_types
from maemm.contract.errors import MaemmError, advice

KEYS = ("modalities", "masking", "encoder", "decoder", "objectives", "head", "init", "data", "train", "out", "name")
OWN = ("type", "masking", "target")  # keys of a modality that are not options of its class


def checked(layer: Layer, name: str | None, training: bool) -> dict[str, Any]:
    """The resolved recipe, or a :class:`MaemmError` with one line for each mistake. ``name`` None: not from a file."""
    return _Check(layer, name, training).run()


class _Check:
    def __init__(self, layer: Layer, name: str | None, training: bool):
        self.layer, self.given, self.name, self.training = layer, layer.values, name, training
        self.title = name or "the recipe"
        self.wrong: list[str] = []

    def run(self) -> dict[str, Any]:
        self._top_level()
        modalities = self._modalities()
        found = {
            "modalities": modalities,
            "masking": self.part("maskings", self.given.get("masking"), "masking"),
            "encoder": self._encoder(),
            "decoder": self.part("decoders", self.given.get("decoder"), "decoder"),
            "objectives": self._objectives(),
            "head": self.part("heads", self.given.get("head"), "head"),
            "init": self._init(),
            "data": self._data(),
            "train": self._train(),
            "out": self._out(),
            "name": self._name(),
        }
        if self.wrong:
            raise MaemmError("\n".join(self.wrong))
        for key in ("masking", "init"):
            if found[key] is None:
                del found[key]
        return found

    # ---------------------------------------------------------------------------------------------- helpers
    def at(self, key: str) -> str:
        origin = self.layer.origin(key)
        return f" ({origin})" if origin else ""

    def add(self, text: str, key: str, todo: str) -> None:
        self.wrong.append(f"{text}{self.at(key)}; {todo}")

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.given.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.add(f"{key} must be a mapping, got {value_text(value)}", key, "write key: value lines below it")
        return {}

    def part(self, role: str, value: Any, where: str, default: str | None = None) -> dict[str, Any] | None:
        """``NAME`` or ``{type: NAME, **options}`` -> the latter, checked; None stays None."""
        if value is None and default is None:
            return None
        spec = {"type": value} if isinstance(value, str) else value if value is not None else {}
        if not isinstance(spec, dict):
            self.add(f"{where} must be a name or a mapping, got {value_text(value)}", where, "write {type: NAME, ...}")
            return None
        spec = {"type": spec.get("type", default), **{key: one for key, one in spec.items() if key != "type"}}
        options = {key: one for key, one in spec.items() if key not in (OWN if role == "modalities" else ("type",))}
        self.options(role, spec["type"], options, where)
        return spec

    def options(self, role: str, kind: Any, options: dict[str, Any], where: str) -> None:
        what = registry.SINGULAR[role]
        if not isinstance(kind, str):
            text = f"{where} has no type" if kind is None else f"{where}.type must be a name, got {value_text(kind)}"
            self.add(text, where, f"known {registry.PLURAL[role]}: {', '.join(registry.names(role))}")
            return
        try:
            part = registry.find(role, kind)
        except MaemmError as error:
            text, _, todo = str(error).partition("; ")
            self.add(f"{text} at {where}", join(where, "type"), todo or f"choose another {what}")
            return
        self._checked(part, options, where, f"see: maemm plugins show {kind}")

    def _checked(self, part: Any, options: dict[str, Any], where: str, hint: str) -> None:
        try:
            self.wrong += problems(part, options, where, self.layer.origin, hint)[1]
        except MaemmError as error:
            self.wrong.append(str(error))

    # --------------------------------------------------------------------------------------------- sections
    def _top_level(self) -> None:
        for key in self.given:
            if key in KEYS:
                continue
            below = [
                f"{above}.{key}"
                for above, model in (("train", TrainConfig), ("data", DataConfig))
                if key in model.model_fields
            ]
            todo = f"did you mean {below[0]!r}?" if below else advice(key, KEYS)
            self.add(f"unknown key {key!r}", key, todo)

    def _modalities(self) -> dict[str, Any]:
        given = {name: spec for name, spec in self.mapping("modalities").items() if spec is not None}
        if not given and isinstance(self.given.get("modalities") or {}, dict):
            known = ", ".join(registry.names("modalities")) or "none"
            self.add(f"{self.title} has no modalities", "modalities", f"add one below modalities (known: {known})")
        return {name: self._modality(name, spec, given) for name, spec in given.items()}

    def _modality(self, name: str, spec: Any, given: dict[str, Any]) -> Any:
        where = f"modalities.{name}"
        if not isinstance(spec, dict) or "same_as" not in spec:
            found = self.part("modalities", spec, where, default=name) or {}
            masking = found.get("masking", None if self.given.get("masking") else "random")
            kept = {key: one for key, one in found.items() if key not in ("masking", "target")}
        else:
            self._same_as(spec, name, given)
            masking, kept = spec.get("masking"), {"same_as": spec["same_as"]}
        source = spec if isinstance(spec, dict) else {}
        kept["masking"] = self.part("maskings", masking, join(where, "masking"))
        kept["target"] = self.part("targets", source.get("target"), join(where, "target"))
        return kept

    def _same_as(self, spec: dict[str, Any], name: str, given: dict[str, Any]) -> None:
        where, target = f"modalities.{name}", spec["same_as"]
        key = f"{where}.same_as"
        others = [one for one, other in given.items() if not (isinstance(other, dict) and "same_as" in other)]
        if target not in others:
            what = "itself shares another" if target in given and target != name else "is no modality of this recipe"
            self.add(f"{key} is {value_text(target)}, which {what}", key, advice(str(target), others))
        for extra in spec.keys() - {"same_as", "masking", "target"}:
            todo = "leave it out, or leave same_as out"
            self.add(f"{where}.{extra} cannot be set beside same_as", f"{where}.{extra}", todo)

    def _encoder(self) -> dict[str, Any] | None:
        if self.given.get("encoder") is None:
            todo = f"add encoder: {{type: NAME}} (known: {', '.join(registry.names('encoders'))})"
            self.add(f"{self.title} has no encoder", "encoder", todo)
            return None
        return self.part("encoders", self.given["encoder"], "encoder")

    def _objectives(self) -> dict[str, Any]:
        given = {name: spec for name, spec in self.mapping("objectives").items() if spec is not None}
        if not given and self.given.get("decoder") is not None and "objectives" not in self.given:
            given = {"reconstruct": {}}
        return {name: self.part("objectives", spec, f"objectives.{name}", default=name) for name, spec in given.items()}

    def _data(self) -> dict[str, Any]:
        data = self._keys(DataConfig, "data")
        data["source"] = self._source(data["source"], "data.source", list(self._named()))
        if data["mix"] is not None:
            for key in ("root", "list", "source", "epoch", "balance", "shots", "fold"):
                if self.layer.get(f"data.{key}"):
                    self.add(f"data.{key} cannot be set beside data.mix", f"data.{key}", "set it to null")
            data["mix"] = {name: self._set(name, one) for name, one in data["mix"].items() if one is not None}
        return data

    def _source(self, value: Any, where: str, names: list[str]) -> dict[str, Any] | None:
        """A source of one modality is that modality's own unless it says otherwise."""
        spec = self._named().get(names[0]) if len(names) == 1 else None
        own = spec.get("type", names[0]) if isinstance(spec, dict) else spec
        return self.part("sources", value, where, default=None if value is None else own)

    def _named(self) -> dict[str, Any]:
        found = self.given.get("modalities")
        return {name: spec for name, spec in found.items() if spec is not None} if isinstance(found, dict) else {}

    def _set(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """One data set of a mixture."""
        where = f"data.mix.{name}"
        found = self._valid(SetConfig, values, where)
        known = self._named()
        found["source"] = self._source(found["source"], join(where, "source"), found["modalities"] or list(known))
        for one in found["modalities"] or ():
            if one not in known:
                self.add(f"{where}.modalities names {value_text(one)}", join(where, "modalities"), advice(one, known))
        return found

    def _train(self) -> dict[str, Any]:
        before = len(self.wrong)
        train = self._keys(TrainConfig, "train")
        sound = len(self.wrong) == before  # otherwise a mistyped key may be the one that seems to be missing
        for one, other in RIVALS:
            if self.layer.get(one) is not None and self.layer.get(other) is not None:
                self.add(f"{one} and {other} are both given", other, f"leave one out, or set {other}=null")
        given = any(self.layer.get(f"train.{key}") is not None for key in ("epochs", "steps"))
        if self.training and sound and not given:
            self.add("neither train.epochs nor train.steps is given", "train", "add one, such as train.epochs=100")
        if train["lr"] is None and train["base_lr"] is None:
            train["base_lr"] = BASE_LR
        for key, role in TRAIN_PARTS.items():
            part = self.layer.get(f"train.{key}")
            default = TrainConfig.model_fields[key].default
            train[key] = self.part(role, part if isinstance(part, (str, dict)) else train[key], f"train.{key}", default)
        return train

    def _keys(self, model: type[DataConfig] | type[TrainConfig], key: str) -> dict[str, Any]:
        return self._valid(model, self.mapping(key), key)

    def _valid(self, model: type[BaseModel], values: dict[str, Any], key: str) -> dict[str, Any]:
        hint = "see: maemm pretrain --help"
        found, wrong = validate(model.model_validate_json, values, key, key_types(model), self.layer.origin, hint)
        self.wrong += wrong
        return model().model_dump() if wrong else found.model_dump(mode="json")

    def _init(self) -> str | None:
        init = self.given.get("init")
        if init is not None and not (isinstance(init, str) and init):
            self.add(f"init must be a run or a weights file, got {value_text(init)}", "init", "write init: runs/NAME")
        return init

    def _out(self) -> str | None:
        out = self.given.get("out")
        if out is not None and not (isinstance(out, str) and out):
            self.add(f"out must be the name of a folder, got {value_text(out)}", "out", "write out=runs/NAME")
        if out is None and self.name is None and self.training:
            self.wrong.append("the recipe has no out; add out: runs/NAME, the folder of the run")
        if out is not None or self.name is None:
            return out
        is_file = self.name.endswith((".yaml", ".yml"))
        return str(Path("runs", Path(self.name).stem if is_file else self.name))

    def _name(self) -> str | None:
        name = self.given.get("name")
        if name is not None and not isinstance(name, str):
            self.add(f"name must be a text, got {value_text(name)}", "name", "leave it out")
        return self.name if name is None else name
