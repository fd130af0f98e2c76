"""maemm export where samples are padded, have gaps or lack a modality: validity is an input of the graph."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from maemm import MaemmError
from maemm.__main__ import main
from maemm.contract import GridModality, Modality, Preprocessed, Tokens
from maemm.model.build import build_model
from maemm.tasks.export.comparison import differences_of
from maemm.tasks.export.formats import Written
from maemm.tasks.export.inference_model import inference_model
from maemm.tasks.export.run import export

SETS = {
    "__init__.py": """
        from maemm.registry import Plugin
        plugin = Plugin(name="dots", version="1", contract=2, modalities={"dots": "parts:Dots"})
    """,
    "parts.py": """
        import torch
        from torch import nn
        from torch.nn.utils.rnn import pad_sequence
        from maemm.contract import Modality, Preprocessed, Tokens

        class Dots(Modality):
            '''Sets (B, N, 3); ``preprocess`` alone tells that they may be padded.'''
            def collate(self, samples):
                sets = [sample["x"] for sample in samples]
                valid = [torch.ones(len(x), dtype=torch.bool) for x in sets]
                return {"x": pad_sequence(sets, batch_first=True), "valid": pad_sequence(valid, batch_first=True)}
            def preprocess(self, raw, rng):
                return Preprocessed(raw["x"], raw["valid"])
            def tokenize(self, preprocessed):
                x = preprocessed.x
                return Tokens(x, x[..., :1], valid=preprocessed.valid)
            def connect(self, encoder_dim, decoder_dim):
                self.embedding, self.dim = nn.Linear(3, encoder_dim), encoder_dim
            def output_dim(self):
                return 3
            def embed(self, tokens, index):
                return self.embedding(tokens.gather(index))
            def position(self, tokens, index, role):
                return tokens.gather_coords(index).expand(-1, -1, self.dim)
            def target(self, tokens, index):
                return tokens.gather(index)
            def example(self, batch, rng):
                return Preprocessed(rng.uniform("example", batch, 10, 3)[0])
    """,
}
ENCODER = {"type": "vit", "dim": 16, "depth": 1, "heads": 2}


@pytest.fixture
def build(make_plugin, toys, world):
    """``build({modality: options}, ...)`` -> a small model; one of them is ``dots``, sets of an outside plugin."""
    make_plugin("dots", **SETS)

    def build(modalities, **recipe):
        torch.manual_seed(0)
        return build_model({"modalities": modalities, "encoder": ENCODER, "decoder": None, **recipe}).eval()

    return build


def sets(*sizes):
    """(x, valid) of sets of these sizes; padding is not zero."""
    generator = torch.Generator().manual_seed(len(sizes))
    longest = max(sizes)
    valid = pad_sequence([torch.ones(size, dtype=torch.bool) for size in sizes], batch_first=True)
    return torch.rand(len(sizes), longest, 3, generator=generator) * 5, valid


@pytest.mark.parametrize("output", ["features", pytest.param("tokens", marks=pytest.mark.slow)])
def test_a_graph_of_sets_takes_validity_and_any_number_of_elements(build, tmp_path, output):
    model = build({"dots": {}})
    made = export(model, tmp_path / "model.pt2", to="torch", output=output)
    assert made.inputs == {"dots": ["batch", "dots elements", 3], "dots_valid": ["batch", "dots elements"]}
    program = torch.export.load(tmp_path / "model.pt2")
    assert program.graph_signature.user_inputs == ("dots", "dots_valid")
    for sizes in [(4, 1, 3), (10, 7), (23, 5, 1, 11), (1,)]:
        x, valid = sets(*sizes)
        with torch.no_grad():
            (answer,) = program.module()(x, valid)
            expected = model.embed({"dots": Preprocessed(x, valid)}, tokens=output == "tokens")["dots"]
            unpadded = model.embed({"dots": x}, tokens=output == "tokens")["dots"]
        assert torch.allclose(answer, expected, atol=1e-5)
        assert len(sizes) == 1 or not torch.allclose(answer, unpadded, atol=1e-2)  # validity is not ignored


def test_an_onnx_graph_of_sets_does_too(build, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build({"dots": {}})
    export(model, tmp_path / "model.onnx", to="onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [(x.name, x.type) for x in session.get_inputs()] == [
        ("dots", "tensor(float)"),
        ("dots_valid", "tensor(bool)"),
    ]
    for sizes in [(4, 1, 3), (23, 5)]:
        x, valid = sets(*sizes)
        (answer,) = session.run(["features"], {"dots": x.numpy(), "dots_valid": valid.numpy()})
        with torch.no_grad():
            expected = model.embed({"dots": Preprocessed(x, valid)})["dots"]
        assert torch.allclose(torch.from_numpy(answer), expected, atol=1e-5)


def test_missing_values_and_nan_act_as_in_the_model(build, tmp_path):
    model = build({"marks": {"gaps": True}})
    made = export(model, tmp_path / "model.pt2", to="torch")
    assert made.inputs == {"marks": ["batch", 1, 8, 8], "marks_valid": ["batch", 1, 8, 8]}
    assert any("NaN" in title for title in made.differences)
    graph = torch.export.load(tmp_path / "model.pt2").module()
    raw = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    raw[0, 0, ::3, 1::2], raw[1, 0, :4] = torch.nan, torch.nan
    preprocessed = GridModality.preprocess(model.modalities["marks"], {"x": raw}, None)
    with torch.no_grad():
        expected = model.embed({"marks": preprocessed})["marks"]
        zeroed = model.embed({"marks": raw.nan_to_num(0.0)})["marks"]
        assert torch.allclose(model.embed({"marks": raw})["marks"], expected, atol=1e-6)
        for x, valid in [
            (preprocessed.x, preprocessed.valid),
            (raw, preprocessed.valid),
            (raw, torch.ones_like(raw).bool()),
        ]:
            assert torch.allclose(graph(x, valid)[0], expected, atol=1e-5)
    assert expected.isfinite().all() and not torch.allclose(zeroed[:2], expected[:2], atol=1e-3)


def test_padding_of_a_grid_that_preprocess_alone_makes_is_seen(build, tmp_path):
    model = build({"marks": {"ragged": True}}, head={"type": "linear", "classes": 3})
    made = export(model, tmp_path / "model.pt2", to="torch")
    assert made.inputs["marks_valid"] == ["batch", 8, 8] and made.output == "logits"
    x, valid = torch.rand(2, 1, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, :, 4:] = False
    with torch.no_grad():
        (answer,) = torch.export.load(tmp_path / "model.pt2").module()(x, valid)
        assert torch.allclose(answer, model.logits({"marks": Preprocessed(x, valid)}), atol=1e-5)


def test_samples_that_lack_a_modality(build, tmp_path):
    model = build({"dots": {}, "marks": {}}, data={"missing": "allow"})
    made = export(model, tmp_path / "model.pt2", to="torch")
    assert list(made.inputs) == ["dots", "marks", "dots_valid", "dots_present", "marks_present"]
    assert any("no marks" in title for title in made.differences)
    (x, valid), marks = sets(6, 3, 2), torch.rand(3, 1, 8, 8)
    has_dots, has_marks = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    batch = {"dots": Preprocessed(x, valid, present=has_dots), "marks": Preprocessed(marks, present=has_marks)}
    with torch.no_grad():
        answers = torch.export.load(tmp_path / "model.pt2").module()(x, marks, valid, has_dots, has_marks)
        expected = model.embed(batch)
    for answer, wanted in zip(answers, expected.values(), strict=True):
        assert torch.allclose(answer, wanted, atol=1e-5)


def test_hidden_tokens_that_stay_are_no_obstacle(build, tmp_path):
    model = build({"marks": {"ragged": True}}, encoder={**ENCODER, "hidden": "replace"})
    assert max(export(model, tmp_path / "model.pt2", to="torch").differences.values()) < 1e-5


def test_python_s_len_of_a_batch_is_no_obstacle(build, tmp_path, monkeypatch):
    model = build({"dots": {}})

    def position(self, tokens, index, role):
        return torch.ones(1, 1, self.dim).expand(len(index), index.shape[1], -1)

    monkeypatch.setattr(type(model.modalities["dots"]), "position", position)
    export(model, tmp_path / "model.pt2", to="torch")
    (x, valid), size = sets(2, 3, 1, 3, 2), len
    (answer,) = torch.export.load(tmp_path / "model.pt2").module()(x, valid)
    assert answer.shape == (5, 16) and len is size

    def counted(self, tokens, index, role):
        return torch.stack([torch.ones(index.shape[1], self.dim) for _ in range(index.shape[0])])

    monkeypatch.setattr(type(model.modalities["dots"]), "position", counted)
    with pytest.raises(MaemmError, match="makes a number of the batch size, as int"):
        export(model, tmp_path / "other.pt2", to="torch")


def test_whole_leaves_validity_out(build, tmp_path):
    made = export(build({"dots": {}}), tmp_path / "model.pt2", to="torch", whole=True)
    assert made.inputs == {"dots": ["batch", 10, 3]} and set(made.differences) == {"batch 1", "batch 3"}


def test_the_worst_is_named_in_text_json_and_card(world, capsys):
    from maemm.weights import save

    file = world.folder / "weights.safetensors"
    save(world.model(modalities__marks__ragged=True), file)
    out = world.folder / "model.pt2"
    assert main(["export", str(file), "--to", "torch", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "marks_valid (batch, 8, 8)" in text and " padded or with gaps: " in text and " at most (" in text
    assert main(["export", str(file), "--to", "torch", "-o", str(out), "--force", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["inputs"]["marks_valid"] == ["batch", 8, 8] and len(record["differences"]) > 4
    extra = {"card.json": ""}
    torch.export.load(out, extra_files=extra)
    card = json.loads(extra["card.json"])
    assert card["inputs"]["marks_valid"]["dtype"] == "bool" and card["inputs"]["marks_valid"]["of"] == "marks"
    assert card["embed"] == 'maemm.load(FILE).embed({"marks": Preprocessed(x, valid=marks_valid)})'
    assert main(["export", str(file), "--to", "torch", "-o", str(out), "--force", "--whole"]) == 0
    assert "marks_valid" not in capsys.readouterr().out


def test_a_graph_that_ignores_validity_is_not_kept(build, tmp_path, monkeypatch):
    from maemm.tasks.export.weights_files import write_safetensors

    def deaf(exported, folder, name):
        written = write_safetensors(exported, folder, name)
        return replace(written, run=lambda inputs: written.run({**inputs, "dots_valid": inputs["dots_valid"] | True}))

    monkeypatch.setattr(sys.modules["maemm.tasks.export.run"], "writer_of", lambda to: deaf)
    with pytest.raises(MaemmError, match=r"differs from the model by .* \(dots with \d of 10 valid"):
        export(build({"dots": {}}), tmp_path / "model.safetensors", to="safetensors")
    assert not list(tmp_path.glob("model*"))


def test_sets_of_other_sizes_are_compared_and_may_be_refused(build):
    exported = inference_model(build({"dots": {}}), "it")

    def run(inputs):
        assert inputs["dots"].shape[1] < 15, "too many"
        return exported.compute(inputs)

    differences = differences_of(exported, Written("it", run, "features", "", "", elements={"dots": (2, None)}))
    assert differences["dots of 5 elements"] == 0 and not any("of 20 elements" in title for title in differences)
    never = Written("it", lambda inputs: 1 / 0, "features", "", "")
    with pytest.raises(MaemmError, match=r"does not accept samples that the model accepts \(batch 1: division by zero"):
        differences_of(exported, never)


def test_libraries_without_a_place_for_validity_are_refused(tmp_path):
    image = {"type": "image", "size": 16, "patch": 8, "gaps": True}
    model = build_model({"modalities": {"image": image}, "encoder": ENCODER, "decoder": None}).eval()
    with pytest.raises(MaemmError, match=r"timm has no place for validity.*\(image\); add --whole .* torch, onnx"):
        export(model, tmp_path / "vit.safetensors", to="timm")
    assert export(model, tmp_path / "vit.safetensors", to="timm", whole=True).checked_with == "timm"


def test_what_cannot_be_traced_is_refused_in_a_line(build, tmp_path, monkeypatch):
    model = build({"dots": {}})

    def tokenize(self, preprocessed):  # the size of what it returns depends on the values of valid
        longest = int(preprocessed.valid.sum(1).max())
        x, valid = preprocessed.x[:, :longest], preprocessed.valid[:, :longest]
        return Tokens(x, x[..., :1], valid=valid)

    monkeypatch.setattr(type(model.modalities["dots"]), "tokenize", tokenize)
    with pytest.raises(MaemmError, match=r"cannot be traced .* validity as an input .* --whole") as error:
        export(model, tmp_path / "model.pt2", to="torch")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("model*"))


# ------------------------------------------------------------------------------- what tells the exporter of validity
class Alone(Modality):
    """What all modalities below have in common: sets of two columns."""

    def tokenize(self, preprocessed):
        return Tokens(preprocessed.x, preprocessed.x, valid=preprocessed.valid)

    connect = output_dim = embed = position = target = None


class FromExample(Alone):
    def example(self, batch, rng):
        return Preprocessed(torch.zeros(batch, 4, 2), torch.ones(batch, 4, dtype=torch.bool))


class FromOtherKeys(Alone):
    def collate(self, samples):
        return {"points": pad_sequence([sample["points"] for sample in samples])}


class FromNaN(Alone):
    def preprocess(self, raw, rng):
        return Preprocessed(raw["x"].nan_to_num(), raw["x"].isfinite().all(-1))


class Never(Alone):
    pass


class SaysNo(FromExample):
    def validity(self, x):
        return None


@pytest.mark.parametrize("kind, shape", [(FromExample, (3, 5)), (FromOtherKeys, (3, 5)), (FromNaN, (3, 5))])
def test_validity_is_seen_from_what_a_modality_does(kind, shape):
    kind.__abstractmethods__ = frozenset()
    valid = kind().validity(torch.zeros(3, 5, 2))
    assert valid.shape == shape and valid.dtype == torch.bool and valid.all()


@pytest.mark.parametrize("kind", [Never, SaysNo])
def test_validity_that_is_never_given_is_no_input(kind):
    kind.__abstractmethods__ = frozenset()
    assert kind().validity(torch.zeros(3, 5, 2)) is None
