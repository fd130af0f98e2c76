"""Data that a Python program holds: arrays, Datasets and lists of paths are read, everything else is refused."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import maemm
from maemm import config
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.tasks._shared.inputs import open_data

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0, "root": "own.npz"},
}
COUNT = 20
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
LABELS = np.arange(COUNT) % 2


class Pictures(Dataset):
    """As torchvision's data sets are."""

    classes = ("even", "odd")

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return self.form(index)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(PIXELS)


FORMS = {
    "image, label": lambda i: (Image.fromarray(PIXELS[i]), int(LABELS[i])),
    "array, label": lambda i: [PIXELS[i], LABELS[i]],
    "tensor, label": lambda i: (torch.from_numpy(PIXELS[i]).movedim(-1, 0), torch.tensor(LABELS[i])),
    "dict": lambda i: {"image": PIXELS[i], "label": LABELS[i], "other": "text"},
    "dict, label": lambda i: ({"image": Image.fromarray(PIXELS[i])}, LABELS[i]),
}
REFUSED = {
    "dict": {"image": PIXELS},
    "arrays": [PIXELS, PIXELS],
    "empty": [],
    "bytes": b"few.npz",
    "int": 3,
    "float": 0.5,
    "generator": (x for x in PIXELS),
    "loader": DataLoader(Pictures(FORMS["dict"])),
    "endless": Endless(),
    "set": {"few.npz"},
    "mixed": ["few.npz", 3],
    "texts": np.array(["few.npz"]),
    "complex": PIXELS.astype(complex),
    "one sample": PIXELS[0, 0, 0],
    "masked": np.ma.masked_array(PIXELS, PIXELS == 0),
    "no samples": PIXELS[:0],
    "no pictures": np.zeros((4, 5)),
    "other labels": (PIXELS, LABELS.astype(float)),
    "missing": ["a.png", "missing.png"],
    "words": Pictures(lambda i: (PIXELS[i], "even")),
    "two views": Pictures(lambda i: (PIXELS[i], PIXELS[i])),
    "other keys": Pictures(lambda i: {"sound": PIXELS[i]}),
    "broken": Pictures(lambda i: 1 // 0),
    "model": build_model,
}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model whose recipe has data of its own, in the current folder, beside the files few.npz and a.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez("own.npz", x=255 - PIXELS, y=LABELS)
    np.savez("few.npz", x=PIXELS, y=LABELS)
    Image.fromarray(PIXELS[0]).save("a.png")
    torch.manual_seed(0)
    return build_model(config.load(RECIPE)).eval()


def embedded(model, data, **options):
    maemm.embed(model, data, "out.npz", **options)
    with np.load("out.npz") as stored:
        result = stored["image"], stored["labels"].tolist()
    os.remove("out.npz")
    return result


def test_arrays_and_data_sets_are_embedded_as_files_are(model):
    expected, labels = embedded(model, "few.npz")
    nothing = [-1] * COUNT
    for data, own_labels in (
        (PIXELS, nothing),
        (torch.from_numpy(PIXELS), nothing),
        (PIXELS.transpose(0, 3, 1, 2), nothing),
        ((PIXELS, LABELS), labels),
        ((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), labels),
        (TensorDataset(torch.from_numpy(PIXELS)), nothing),
        (TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), labels),
        *((Pictures(form), labels) for form in FORMS.values()),
    ):
        x, given = embedded(model, data)
        assert np.array_equal(x, expected) and given == own_labels
    x, _ = embedded(model, [os.path.abspath("a.png"), "a.png"])
    assert np.array_equal(x, expected[[0, 0]])


def test_pictures_of_other_sizes_and_kinds(model):
    forms = [
        Image.fromarray(PIXELS[0]).resize((13, 9)),
        Image.fromarray(PIXELS[0, ..., 0]),
        Image.fromarray(PIXELS[0]).convert("P"),
        Image.fromarray(PIXELS[0]).convert("CMYK"),
        PIXELS[0, ..., 0],
        PIXELS[0].astype(np.float32) / 255,
        torch.rand(3, 8, 8, dtype=torch.bfloat16),
    ]

    class Mixed(Pictures):
        def __len__(self):
            return len(forms)

    assert len(embedded(model, Mixed(lambda i: forms[i]))[0]) == len(forms)


def test_every_verb_reads_what_it_is_given(model):
    black = np.zeros((4, 3, 8, 8), np.uint8)
    assert len(maemm.score(model, black)) == 4
    assert len(maemm.reconstruct(model, black, "out.png").shown) == 4
    knn = maemm.knn(model, Pictures(FORMS["image, label"]), test=Subset(Pictures(FORMS["dict"]), range(6)), k=1)
    assert knn.data["test"] == 6 and knn.cells[0].mean == 1 and knn.data["overlap"]["content"] == 6
    probe = maemm.probe(model, (PIXELS, LABELS), folds=2, seeds=1)
    assert probe.data["samples"] == COUNT
    diagnosis = maemm.diagnose(model, PIXELS, "out.html", ratios=[0.5], clusters=2)
    assert diagnosis.samples == COUNT and diagnosis.about["data"] == "a ndarray"


def test_a_classifier_is_evaluated_on_what_it_is_given(model):
    recipe = {**RECIPE, "decoder": None, "objectives": {"classify": {}}, "head": {"type": "linear", "classes": 2}}
    classifier = build_model(config.load({**recipe, "data": {**RECIPE["data"], "classes": ["odd", "even"]}})).eval()
    answers = maemm.evaluate(classifier, Pictures(FORMS["image, label"]))
    assert answers.classes == ("odd", "even") and answers.labels.tolist() == (1 - LABELS).tolist()
    with pytest.raises(MaemmError, match="the data have no labels"):
        maemm.evaluate(classifier, PIXELS)
    with pytest.raises(MaemmError, match=r"the labels are numbers, .*\['odd', 'even'\]; give data with such names"):
        maemm.evaluate(classifier, (PIXELS, LABELS))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused(model, kind):
    data = REFUSED[kind]
    for verb in (
        lambda: maemm.embed(model, data, "out.npz"),
        lambda: maemm.score(model, data),
        lambda: maemm.knn(model, data),
        lambda: maemm.knn(model, "few.npz", test=data),
    ):
        with pytest.raises(MaemmError, match="data|labels are float64") as error:
            verb()
        assert "\n" not in str(error.value) and "internal" not in str(error.value)
    assert not os.path.exists("out.npz")


@pytest.mark.parametrize("data", [PIXELS, [PIXELS], {"x": 1}, 3, b"few.npz", Pictures(FORMS["dict"]), ["few.npz"]])
def test_verbs_that_read_files_alone_say_so(model, data):
    for verb in (
        lambda: maemm.finetune("few.npz", data),
        lambda: maemm.data_check(data),
        lambda: maemm.data_stats(data),
        lambda: maemm.data_pack(data, "packed"),
        lambda: maemm.show(data),
        lambda: maemm.pretrain({**RECIPE, "out": "new", "train": {"epochs": 1}}, **{"data.root": data}),
    ):
        with pytest.raises(MaemmError, match=r"data is .*so give a path|data\.root (is|must be)"):
            verb()


def test_other_verbs_refuse_too(model):
    for verb in (
        lambda: maemm.reconstruct(model, {"x": 1}, "out.png"),
        lambda: maemm.diagnose(model, 3, "out.html"),
        lambda: maemm.embed(model, PIXELS, "out.npz", list="few.csv"),
        lambda: maemm.score(model, PIXELS, source="image"),
        lambda: maemm.evaluate(model, PIXELS, list=PIXELS),
        lambda: maemm.embed(model, "few.npz", "out.npz", list=PIXELS),
        lambda: maemm.finetune(model, "few.npz"),
    ):
        with pytest.raises(MaemmError) as error:
            verb()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", [None, 3, torch.nn.Linear(2, 2), b"run", ["run"]])
def test_weights_that_are_none(weights, tmp_path):
    for verb in (maemm.load, lambda weights: maemm.embed(weights, "few.npz", tmp_path / "x.npz")):
        with pytest.raises(MaemmError, match="weights are of type .*; give (a path|its state_dict)"):
            verb(weights)


MODALITIES = {
    "signal": ({"channels": 2, "size": 32, "patch": 8}, np.zeros((3, 2, 32), np.float32)),
    "pointcloud": ({"points": 64, "groups": 8, "group_size": 8}, np.random.default_rng(0).normal(size=(3, 64, 3))),
    "video": ({"size": [4, 16, 16], "patch": [2, 8, 8]}, np.zeros((3, 8, 16, 16, 3), np.uint8)),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_arrays_of_other_modalities(name):
    options, values = MODALITIES[name]
    recipe = {"modalities": {name: options}, "data": {}}
    source = open_data(recipe, values)
    assert len(source) == 3 and name in source.read(1, Rng((0,))).raw
    assert source.fingerprint() == open_data(recipe, values).fingerprint()


def test_arrays_without_a_rate_are_no_sounds():
    with pytest.raises(MaemmError, match="which 'audio' cannot read"):
        open_data({"modalities": {"audio": {}}, "data": {}}, np.zeros((3, 16000), np.float32))


def test_several_modalities_need_names():
    recipe = {"modalities": {"image": RECIPE["modalities"]["image"], "signal": MODALITIES["signal"][0]}, "data": {}}
    both = Pictures(lambda i: {"image": PIXELS[i], "signal": np.zeros((2, 32), np.float32)})
    assert set(open_data(recipe, both).read(0, Rng((0,))).raw) == {"image", "signal"}
    with pytest.raises(MaemmError, match="give a dict with image, signal"):
        open_data(recipe, PIXELS)


def test_samples_travel_to_workers(model):
    expected, _ = embedded(model, (PIXELS, LABELS))
    assert np.array_equal(embedded(model, (PIXELS, LABELS), workers=1)[0], expected)
