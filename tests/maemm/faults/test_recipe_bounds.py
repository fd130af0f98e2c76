"""Bounds of options: refused with one line, wherever the option stands; sizes that no machine has; plans that teach
nothing."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
import torch
from annotated_types import Ge, Len, MultipleOf, Predicate

import maemm
from maemm import MaemmError, config, registry
from maemm.config.messages import type_text
from maemm.config.options import check, describe
from maemm.config.schema import DataConfig, TrainConfig, keys_of
from maemm.contract.options import Fraction, Interval, PartOf, Positive, PositiveInt, Rate
from maemm.testing.edges import at_edges, beyond_edges

IMAGE, SIGNAL = "image/mae_tiny_cpu", "signal/tiny_cpu"


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(MaemmError) as caught:
        maemm.build(config.load(recipe, list(overrides), training=True))
    text = str(caught.value)
    assert "\n" not in text and "; " in text and len(text) < 500
    return text


@pytest.mark.parametrize(
    "recipe, override, says",
    [
        (
            "video/videomae_tiny_cpu",
            "decoder.depth=1000000000",
            "decoder.depth must be 1 <= int <= 500, got 1000000000",
        ),
        (SIGNAL, "modalities.signal.channels=2147483648", "modalities.signal.channels must be 1 <= int <= 10000"),
        ("cav/cav_mae_tiny_cpu", "encoder.drop_path=9223372036854775808", "a number of 64 bits"),
        ("cav/cav_mae_tiny_cpu", "encoder.drop_path=1.0", "encoder.drop_path must be 0 <= float < 1"),
        (IMAGE, "encoder.eps=-1e-6", "encoder.eps must be float >= 0"),
        (IMAGE, "objectives.reconstruct.weight=-0.5", "objectives.reconstruct.weight must be float >= 0"),
        (IMAGE, "objectives.reconstruct.weights={image: -1}", "weights must be {str: float >= 0} | null"),
        (
            IMAGE,
            "train.optimizer.betas=[950000000.0, 0.9]",
            "train.optimizer.betas must be [0 <= float < 1, 0 <= float < 1]",
        ),
        (IMAGE, "train.optimizer.betas=[0.9]", "betas must be [0 <= float < 1, 0 <= float < 1], got [0.9]"),
        (IMAGE, "train.optimizer.weight_decay=-0.1", "weight_decay must be float >= 0"),
        (IMAGE, "train.optimizer={type: sgd, momentum: -1}", "momentum must be 0 <= float < 1"),
        (IMAGE, "train.optimizer.type={type: x}", "train.optimizer.type must be a name, got {type: 'x'}"),
        (IMAGE, "train.schedule={type: step, milestones: [-1.0]}", "milestones must be [float >= 0, ...]"),
        (IMAGE, "head={type: linear, classes: -1}", "head.classes must be int >= 1, got -1"),
        (IMAGE, "head={type: linear, classes: '3'}", "head.classes must be int >= 1, got '3'"),
        (IMAGE, "encoder.dim='32'", "encoder.dim must be int >= 1, got '32'"),
        (IMAGE, "encoder.heads=true", "encoder.heads must be int >= 1, got true"),
        (IMAGE, "modalities.image.size=[64, '64']", "modalities.image.size must be int >= 1 | [int >= 1, ...]"),
        (
            IMAGE,
            "modalities.image.crop.scale=[1, 0.5]",
            "crop.scale must be [0 < float <= 1, 0 < float <= 1], ascending",
        ),
        (IMAGE, "modalities.image.crop.scale=['0.2', 1]", "crop.scale must be [0 < float <= 1"),
        (IMAGE, "modalities.image.crop.scal=[0.2, 1]", "did you mean 'modalities.image.crop.scale'?"),
        (IMAGE, "modalities.image.masking.ratio=1.01", "masking.ratio must be 0 <= float <= 1"),
        (IMAGE, "masking={type: multi_mask, masking: {type: random, ratio: 3}}", "masking.masking.ratio must be"),
        (IMAGE, "masking={type: multi_mask, masking: {type: randon}}", "unknown masking 'randon' at masking.masking"),
        (
            IMAGE,
            "masking={type: multi_mask, masks_per_sample: 1000000000}",
            "masks_per_sample must be 1 <= int <= 1000",
        ),
        (IMAGE, "data.workers=1000000000", "data.workers must be 0 <= int <= 1024"),
        (IMAGE, "data.source={type: frames, videos: {seconds: -1}}", "data.source.videos.seconds must be float > 0"),
        (
            IMAGE,
            "data.source={type: paired, parts: {image: {background: 256}, signal: {}}}",
            "parts.image.background must be",
        ),
        (IMAGE, "encoder.mlp_ratio=1e-9", "leaves no hidden unit (encoder.mlp_ratio)"),
        (
            "audio/audiomae_tiny_cpu",
            "modalities.audio.spec_augment={time: '3'}",
            "spec_augment.time must be int >= 0, got",
        ),
        (
            "pointcloud/point_mae_tiny_cpu",
            "modalities.pointcloud.augment={jitter: -1}",
            "augment.jitter must be float >= 0",
        ),
    ],
)
def test_a_value_out_of_bounds_is_one_line(recipe, override, says):
    assert says in refused(recipe, override)


@pytest.mark.parametrize(
    "overrides, says",
    [
        (
            ["encoder.dim=100000000"],
            "encoder.dim=100000000 makes about 4.8e+17 parameters (1.92 EB); this machine has ",
        ),
        (["encoder.mlp_ratio=1e18"], "encoder.mlp_ratio=1e+18 makes more numbers than any machine can hold"),
        (["encoder.dim=3000000", "encoder.heads=1"], "encoder.dim=3000000 makes about "),
        (["head={type: linear, classes: 4000000000000}"], "head.classes=4000000000000 makes about "),
        (
            ["modalities.image.size=1000000"],
            "a sample of 15,625,000,000 tokens and 3,000,000,000,000 numbers each takes ",
        ),
        (
            ["modalities.image.size=4000000", "modalities.image.position=learned"],
            "modalities.image.size=4000000 makes ",
        ),
    ],
)
def test_what_no_machine_holds_is_refused_before_it_is_built(overrides, says):
    text = refused(IMAGE, *overrides)
    assert text.startswith(says) and "of memory" in text


def test_a_plugin_without_bounds_is_refused_by_size_alone(make_plugin, monkeypatch):
    """Its numbers are finite, of their type, and no more; layers are not built one by one for ever."""
    monkeypatch.setattr("maemm.model.size.MOST_TENSORS", 1000)
    make_plugin(
        "deep",
        **{
            "__init__.py": """
                from maemm.registry import Plugin
                plugin = Plugin(name="deep", version="1", contract=2, summary="s", encoders={"deep": "parts:Deep"})
            """,
            "parts.py": """
                from torch import nn
                from maemm.model.encoders.vit import ViT
                class Deep(ViT):
                    def __init__(self, names, *, layers: int = 1, width: int = 8, share: float = 0.5):
                        super().__init__(names, dim=8, depth=1, heads=1)
                        self.more = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
            """,
        },
    )
    recipe = {**config.load(IMAGE), "encoder": {"type": "deep"}, "name": None}
    for options, says in (
        ({"layers": 10**9}, "encoder.layers=1000000000 makes more than 1,000 tensors"),
        ({"width": 10**7}, "encoder.width=10000000 makes about 1e+14 parameters (400 TB)"),
        ({"width": -1}, "plugin 'deep' (Deep) cannot be made of these options: RuntimeError: "),
        ({"layers": "3"}, "encoder.layers must be int, got '3'"),
        ({"share": float("nan")}, "encoder.share is nan; give a finite number"),
        ({"layers": 2**63}, "encoder.layers is a number of 64 bits"),
    ):
        with pytest.raises(MaemmError) as caught:
            maemm.build({**recipe, "encoder": {"type": "deep", **options}})
        assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
    assert maemm.build({**recipe, "encoder": {"type": "deep", "share": -7.0}}).encoder.dim == 8


def test_every_number_of_a_part_has_bounds_but_values_of_data():
    """Whoever adds an option sees here that it needs bounds; a mean may be any number."""
    bare = []
    for role in registry.ROLES:
        for name in registry.names(role):
            part = registry.find(role, name)
            for option in describe(part.read if role == "weights" else part):
                words = option.type.replace("[", "").replace("]", "").replace(", ...", "").split(" | ")
                bare += [(role, name, option.name) for word in words if word in ("int", "float")]
    bare += [
        option.name
        for schema in (DataConfig, TrainConfig)
        for option in keys_of(schema)
        if option.type in ("int", "float")
    ]
    # A mean may be any number, and so may a value of a file that means something else than itself.
    assert {entry[2] for entry in bare} == {"mean", "missing", "ignore"}


def test_values_at_the_edges_of_data_and_train():
    for key, schema in (("data", DataConfig), ("train", TrainConfig)):
        for option in keys_of(schema):
            for value in beyond_edges(option.hint):
                with pytest.raises(MaemmError) as caught:
                    config.load(IMAGE, {f"{key}.{option.name}": value})
                assert f"{key}.{option.name} must be " in str(caught.value)
            for value in at_edges(option.hint):
                config.load(IMAGE, {f"{key}.{option.name}": value})


def even(value: int) -> bool:
    """an even number

    More about it.
    """
    return value % 2 == 0


class Part:
    def __init__(
        self,
        *,
        width: Annotated[int, Ge(8), MultipleOf(4)] = 8,
        pair: Annotated[list[Rate], Len(2, 2)] = (0.0, 0.5),
        names: Annotated[list[str], Len(1)] = ("a",),
        number: Annotated[int, Predicate(even)] = 2,
        span: Interval[Positive] | None = None,
        inner: Annotated[str | dict, PartOf("maskings")] | None = None,
        by_name: dict[str, Fraction] | None = None,
    ):
        pass


def test_bounds_in_words():
    words = {option.name: option.type for option in describe(Part)}
    assert words["width"] == "int >= 8, a multiple of 4"
    assert words["pair"] == "[0 <= float < 1, 0 <= float < 1]"
    assert words["names"] == "[str, ...], 1 or more"
    assert words["number"] == "int, an even number"
    assert words["span"] == "[float > 0, float > 0], ascending | null"
    assert words["by_name"] == "{str: 0 <= float <= 1} | null"
    assert type_text(Annotated[PositiveInt | None, Ge(3)]) == "(int >= 1 | null) >= 3"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"width": 10}, "here.width must be int >= 8, a multiple of 4, got 10; the default is 8"),
        ({"pair": [0.1]}, "here.pair must be [0 <= float < 1, 0 <= float < 1], got [0.1]"),
        ({"pair": [0.1, 1.0]}, "here.pair must be "),
        ({"names": []}, "here.names must be [str, ...], 1 or more, got []"),
        ({"number": 3}, "here.number must be int, an even number, got 3"),
        ({"span": [2, 1]}, "here.span must be [float > 0, float > 0], ascending | null, got [2, 1]"),
        ({"inner": {"type": "random", "ratio": -1}}, "here.inner.ratio must be 0 <= float <= 1 | ["),
        ({"inner": {"ratio": 0.5}}, "here.inner has no type; known maskings: "),
        ({"by_name": {"a": 2}}, "here.by_name must be {str: 0 <= float <= 1} | null, got {a: 2}"),
    ],
)
def test_own_constraints_are_read_alike(options, says):
    with pytest.raises(MaemmError) as caught:
        check(Part, options, "here")
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    overrides = {
        "train.epochs": np.int64(3),
        "train.lr": np.float32(0.5),
        "train.tensorboard": np.bool_(True),
        "encoder.depth": np.uint8(2),
        "modalities.image.masking.ratio": np.float16(0.5),
        "modalities.image.mean": [np.float64(0.25)] * 3,
    }
    recipe = config.load(IMAGE, overrides)
    assert recipe["train"]["epochs"] == 3 and type(recipe["train"]["epochs"]) is int
    assert type(recipe["train"]["lr"]) is float and recipe["train"]["tensorboard"] is True
    assert config.load(IMAGE, {"encoder.depth": np.uint8(2)})["encoder"]["depth"] == 2
    assert maemm.build(IMAGE, **{"encoder.depth": np.int32(1)}).recipe["encoder"]["depth"] == 1
    for value, says in (
        (np.float64("nan"), "train.lr is nan; give a finite number"),
        (np.bool_(True), "train.lr must be float > 0 | null, got true"),
        (np.str_("1"), "train.lr must be float > 0 | null, got '1'"),
        (np.array(2.0), "train.lr is a ndarray; recipes hold texts"),
        (torch.tensor(2.0), "train.lr is a Tensor; recipes hold texts"),
        (np.datetime64("2024-01-01"), "train.lr is a date; recipes hold texts"),
        (10**5000, "train.lr is a number of 16610 bits"),
        (1e300, "train.lr is 1e+300, which 32 bits cannot hold"),
        (1e-320, "train.lr is 1e-320, which 32 bits cannot hold"),
    ):
        with pytest.raises(MaemmError) as caught:
            config.load(IMAGE, {"train.lr": value})
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    "text, says",
    [
        ("a: 1\na: 2", "key 'a' is given twice (r.yaml, lines 1 and 2); remove one"),
        ("a: &x {b: 1}\nc: *x", "uses an alias (line 1); write the value out"),
        ("train: {<<: {steps: 1}}", "unknown key 'train.<<' (r.yaml, line 1)"),
        ("modalities: {3: x}", "'3' is not a key (r.yaml, line 1); keys are texts"),
        ("modalities: {? [a]: x}", "'a list or mapping' is not a key"),
        ("train: {steps: 2024-01-01}", "train.steps must be int >= 1 | null, got '2024-01-01'"),
        ("train: {lr: !!timestamp 2024-01-01}", "has the YAML tag"),
        (f"name: {'x' * 20_000}", "name (r.yaml, line 1) is a text of 20,000 characters"),
        (f"train: {{steps: {'9' * 5000}}}", "train.steps (r.yaml, line 1) is a number of 5,000 digits"),
        (f"train: {{steps: 0x{'f' * 5000}}}", "is a number of"),
        (f"{'k' * 300}: 1", "a key has 300 characters"),
        (f"name: {'[' * 5000}{']' * 5000}", "nested too deeply"),
        ("name: " + "{a: " * 100 + "1" + "}" * 100, "nested too deeply"),
        ("modalities: []", "modalities must be a mapping, got []"),
        ("modalities: {image: [random]}", "modalities.image must be a name or a mapping, got ['random']"),
        ("modalities: {image: {same_as: [x]}}", "modalities.image.same_as is ['x'], which is not a modality"),
        ("modalities: {image: {align: {x: 1}}}", "modalities.image.align is {x: 1}"),
        (
            "modalities: {image: {masking: {type: [random]}}}",
            "modalities.image.masking.type must be a name, got ['random']",
        ),
        ("encoder: {type: {type: vit}}", "encoder.type must be a name, got {type: 'vit'}"),
        ("data: {source: {type: {}}}", "data.source.type must be a name, got {}"),
        ("data: {mix: {a: 3}}", "data.mix must be {str: {...} | null} | null, got {a: 3}"),
        ("data: null\ntrain: [1]", "train must be a mapping, got [1]"),
        ("objectives: reconstruct", "objectives must be a mapping, got 'reconstruct'"),
        ("out: 3", "out must be the name of a folder, got 3"),
    ],
)
def test_wrong_shapes_are_told_in_a_line_each(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(MaemmError) as caught:
        config.load("r.yaml", training=True)
    lines = str(caught.value).split("\n")
    assert any(says in line for line in lines), lines
    assert all("; " in line and line.isprintable() and len(line) < 400 for line in lines)


@pytest.mark.parametrize("name", ["items", "train", "type", "training", "__init__"])
def test_names_that_torch_keeps_for_itself(name):
    recipe = config.load(IMAGE)
    for section in ("modalities", "objectives"):
        (value,) = recipe[section].values()
        with pytest.raises(MaemmError, match=rf"'{name}' cannot be a name in {section}, .*; choose another"):
            maemm.build({**recipe, section: {name: value}})
    with pytest.raises(MaemmError) as caught:
        config.load({**recipe, "modalities": {"a\nb": recipe["modalities"]["image"]}})
    assert str(caught.value).startswith("'a\\nb' cannot be a name in modalities") and "\n" not in str(caught.value)
    channels = [name, "values", "x"]
    model = maemm.build(SIGNAL, **{"modalities.signal.channels": channels})
    assert f"modalities.signal.positions.channels.{name.casefold()}_channel" in model.state_dict()
    assert model.eval().modalities["signal"].positions.channels.training is False


def test_widths_that_nothing_joins():
    text = refused("pointcloud/point_mae_tiny_cpu", "decoder.dim=24", "decoder.heads=2")
    assert text.startswith("the decoder is 24 wide, the encoder 128") and "(decoder.project: none)" in text


def test_endless_mappings_of_python_end():
    endless: dict = {}
    endless["a"] = endless
    with pytest.raises(MaemmError, match="nested more than 50 deep"):
        config.load({"modalities": endless})


# ----------------------------------------------------------------------------------------- steps that teach nothing
def small_run(folder) -> dict:
    registry.find("samples", "image")(folder / "pictures", count=4)
    return {
        "data.root": str(folder / "pictures"), "data.workers": 0, "out": str(folder / "run"), "train.batch": 4,
        "train.steps": 1, "train.epochs": None, "train.warmup_epochs": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "override, says",
    [
        (
            {"modalities.image.masking.ratio": 0},
            "no token is hidden, so there is nothing to learn; raise the mask ratio",
        ),
        ({"modalities.image.masking.ratio": 0.999}, "no token is visible, so there is nothing to learn from"),
        ({"objectives.reconstruct.weight": 0}, "every term of the loss has the weight 0 (objectives)"),
        ({"train.min_lr": 0.1}, "min_lr 0.1 is above the learning rate"),
    ],
)
def test_where_nothing_can_be_learned_a_run_says_so(tmp_path, override, says):
    with pytest.raises(MaemmError) as caught:
        maemm.pretrain(IMAGE, **small_run(tmp_path), **override)
    assert str(caught.value).startswith(says)


def test_a_batch_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("maemm.train.setup.machine_memory", lambda: 10**6)
    with pytest.raises(MaemmError) as caught:
        maemm.pretrain(IMAGE, **small_run(tmp_path))
    text = str(caught.value)
    assert text.startswith("4 samples of 64 tokens and 12,288 numbers each, beside ") and "has 1 MB of memory" in text
