"""What verbs of evaluation say where something cannot be done, and tensors given to a model itself."""

import numpy as np
import pytest
import torch

import maemm
from maemm import __main__ as cli
from maemm import config
from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.data.folds import split_folds
from maemm.model.build import build_model
from maemm.weights import save

RECIPE = {
    "modalities": {"image": {"size": 8, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0},
}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def build(**changes):
    torch.manual_seed(0)
    return build_model(config.load({**RECIPE, **changes})).eval()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with labelled and unlabelled arrays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez("labelled.npz", x=PIXELS, y=np.arange(12) % 2)
    np.save("unlabelled.npy", PIXELS)
    np.savez("negative.npz", x=PIXELS, y=np.full(12, -1))
    for index in range(3):
        (tmp_path / "files").mkdir(exist_ok=True)
        np.save(f"files/{index}.npy", PIXELS[index])
    return tmp_path


@pytest.mark.parametrize("classes", [["a", "b"], 2, None])
@pytest.mark.parametrize("data", ["unlabelled.npy", "negative.npz", "files", PIXELS])
def test_data_without_labels_are_said_to_have_none(place, classes, data):
    changes = {"objectives": {"classify": {}}, "head": {"type": "linear", "classes": 2}}
    model = build(**changes, data={"workers": 0, "classes": classes})
    with pytest.raises(MaemmError, match="^the data have no labels; give all files in a folder per class"):
        maemm.evaluate(model, data)


@pytest.mark.parametrize(
    ("labels", "count", "advice"),
    [
        (np.arange(6), 5, "give a test part"),  # one sample of each class
        (np.zeros(1, int), 5, "give a test part"),
        (np.arange(3), 5, "give a test part"),
        (np.array([0, 0, 0, 1]), 4, "use 3 folds at most"),
        (np.zeros(3, int), 5, "use 3 folds at most"),
    ],
)
def test_no_advice_that_is_then_refused(labels, count, advice):
    with pytest.raises(MaemmError, match=f"\\(--folds\\); {advice}"):
        split_folds(labels, count)
    if "use" in advice:
        assert len(split_folds(labels, 3)) == 3
    with pytest.raises(MaemmError, match="1 folds leave no test part"):
        split_folds(labels, 1)


def test_a_deviation_is_that_of_something_random(place):
    model = build()
    table = str(maemm.knn(model, "labelled.npz", test="labelled.npz", seeds=3))
    assert "±" not in table and "seed" not in table
    both = maemm.knn(model, "labelled.npz", test="labelled.npz", seeds=3, baselines=True)
    raw, untrained, trained = both.cells
    assert [len(cell.values) for cell in both.cells] == [1, 3, 1]
    assert raw.std is None and trained.std is None and untrained.std is not None
    assert "3 seeds; ± standard deviation over seeds" in str(both)
    shots = maemm.knn(model, "labelled.npz", test="labelled.npz", shots=["2", "all"], seeds=3)
    assert [len(cell.values) for cell in shots.cells] == [3, 1] and shots.cells[0].std is not None
    groups = maemm.knn(model, "labelled.npz", groups=r"#(\d)", seeds=3)  # eight of one sample, two of two
    assert groups.folds == 10 and len(groups.cells[0].values) == 1 and groups.cells[0].std is None
    folds = maemm.knn(model, "labelled.npz", folds=2, seeds=3)
    assert len(folds.cells[0].values) == 3 and folds.cells[0].std is not None


@pytest.mark.parametrize(("flag", "other"), [("--scratch", "--balanced"), ("--balanced", "--scratch")])
def test_only_flags_that_were_given_are_complained_about(place, capsys, flag, other):
    save(build(), "weights.safetensors")
    command = ["finetune", "weights.safetensors", "labelled.npz", "--shots", "1", "--test", "labelled.npz", flag]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert f"leave {flag} out" in said and other not in said


# ------------------------------------------------------------------------------------------ runs of several data sets
def mixed(**changes):
    sets = {"photos": {"root": "labelled.npz"}, "scans": {"root": "unlabelled.npy", "modalities": ["image"]}}
    return build(data={"workers": 0, "mix": sets}, **changes)


def test_a_set_of_a_mixture_is_given_by_its_name(place):
    model = mixed()
    for verb in (
        lambda data: maemm.embed(model, data, "out.npz"),
        lambda data: maemm.knn(model, data),
        lambda data: maemm.score(model, data),
    ):
        with pytest.raises(MaemmError, match=r"data sets \(photos, scans\); give one by its name, such as photos"):
            verb(None)
    assert maemm.embed(model, "scans", "scans.npz").count == 12
    assert maemm.knn(model, "photos", test="labelled.npz", k=1).cells[0].mean == 1
    assert maemm.embed(model, "files", "files.npz").count == 3
    (place / "scans").mkdir()  # a path goes before a name
    with pytest.raises(MaemmError, match="no image below the folder"):
        maemm.embed(model, "scans", "other.npz")


def test_sets_of_a_mixture_without_a_modality_of_the_model(place):
    signal = {"size": 32, "patch": 8, "channels": 2}
    sets = {
        "photos": {"root": "labelled.npz", "modalities": ["image"]},
        "tones": {"root": "x", "modalities": ["signal"]},
    }
    model = build(modalities={**RECIPE["modalities"], "signal": signal}, data={"workers": 0, "mix": sets})
    with pytest.raises(MaemmError, match=r"data set 'photos' has no signal, .*add --stream image"):
        maemm.embed(model, "photos", "out.npz")
    assert maemm.embed(model, "photos", "out.npz", stream="image").count == 12


# ------------------------------------------------------------------------------------------------- the model itself
def test_a_bare_tensor_is_the_batch_of_the_only_modality():
    model, x = build(decoder={"type": "full", "dim": 16, "depth": 1, "heads": 2}), torch.randn(2, 3, 8, 8)
    expected = model.embed({"image": x})["image"]
    for batch in (x, Preprocessed(x), {"image": Preprocessed(x)}, x.double()):
        assert torch.allclose(model.embed(batch)["image"], expected, atol=1e-6)
    assert torch.allclose(model.embed(x.half())["image"], expected, atol=1e-2)
    assert torch.equal(model.embed(x, stream="image")["image"], expected)
    rng = maemm.Rng((0,), range(2), 2)
    assert torch.equal(model(x, rng=rng).total, model({"image": x}, rng=rng).total)
    assert model.plan(x, rng)["image"].tokens.batch == 2
    head = build(objectives={"classify": {}}, head={"type": "linear", "classes": 2})
    assert head.logits(x).shape == (2, 2)
    assert model.half().embed(x)["image"].dtype == torch.float16


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "is uint8, the model takes floats; give what model.preprocess"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "is int64"),
        (np.zeros((2, 3, 8, 8), np.float32), "the batch is a ndarray; give {modality: tensor"),
        ([torch.zeros(2, 3, 8, 8)], "the batch is a list"),
        (None, "the batch is a NoneType"),
        ({"image": np.zeros((2, 3, 8, 8))}, "a batch holds ndarray"),
    ],
)
def test_other_batches_are_refused(batch, text):
    model = build()
    for verb in (model.embed, model.encode, lambda batch: model(batch, rng=maemm.Rng((0,), range(2), 2))):
        with pytest.raises(MaemmError) as error:
            verb(batch)
        assert text in str(error.value) and "\n" not in str(error.value)


def test_a_bare_tensor_for_several_modalities():
    model = build(modalities={**RECIPE["modalities"], "depth": {"type": "image", "size": 8, "patch": 4}})
    with pytest.raises(MaemmError, match="several modalities; give a dict with image, depth"):
        model.embed(torch.zeros(2, 3, 8, 8))
