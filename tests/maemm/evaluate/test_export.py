"""maemm export: what is written answers as the model does, and nothing is left where it does not."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import maemm
from maemm import MaemmError
from maemm.__main__ import main
from maemm.tasks.export.card import normalisation
from maemm.tasks.export.inference_model import inference_model, input_shapes
from maemm.tasks.export.run import export

HEAD = {"head": {"type": "linear", "classes": 3}, "decoder": None}


def batch_of(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def test_safetensors_come_back_and_have_a_card(world):
    run, out = world.run(), world.folder / "model.safetensors"
    row = {"step": 1, "epoch": 1, "loss": 0.5}
    (world.folder / "run/metrics.jsonl").write_text(json.dumps(row) + "\n")
    made = export(run, out, to="safetensors")
    back, x = maemm.load(out), batch_of(5, 1, 8, 8)
    assert torch.equal(back.embed({"marks": x})["marks"], maemm.load(run).embed({"marks": x})["marks"])
    card = json.loads(made.card.read_text())
    assert card["inputs"]["marks"]["shape"] == ["batch", 1, 8, 8] and card["inputs"]["marks"]["grid"] == [2, 2]
    assert card["recipe"]["encoder"]["dim"] == 16 and card["outputs"] == {"marks": ["batch", 16]}
    assert card["metrics"]["training"]["loss"] == 0.5 and card["provenance"]["from"] == run
    assert card["checked"] == {"batch 1": 0.0, "batch 3": 0.0} and card["bytes"] == out.stat().st_size
    assert set(card["versions"]) == {"maemm", "torch", "python"} and len(card["sha256"]) == 64
    assert sorted(one.name for one in world.folder.glob("*model*")) == ["model.json", "model.safetensors"]


def test_of_a_fine_tuned_run_the_best_weights_are_taken(world):
    from maemm.weights import save

    run = world.run()
    for seed, place in ((0, "checkpoints/step-000001"), (1, "best")):
        (world.folder / "run" / place).mkdir(exist_ok=True)
        save(world.model(seed, **HEAD), world.folder / "run" / place / "model.safetensors")
    export(run, world.folder / "model.safetensors", to="safetensors")
    found, x = maemm.load(world.folder / "model.safetensors"), batch_of(2, 1, 8, 8)
    assert torch.equal(found.logits({"marks": x}), world.model(1, **HEAD).logits({"marks": x}))


def test_torch_takes_any_batch_and_any_output(world):
    model, out = world.model(**HEAD), world.folder / "model.pt2"
    made = export(model, out, to="torch")
    assert made.output == "logits" and max(made.differences.values()) < 1e-5
    x = batch_of(6, 1, 8, 8)
    with torch.no_grad():
        (found,) = torch.export.load(out).module()(x)
        wanted = model.logits({"marks": x})
    assert found.shape == (6, 3) and torch.allclose(found, wanted, atol=1e-5)
    export(model, out, to="torch", output="tokens", force=True)
    assert torch.export.load(out).module()(x)[0].shape == (6, 4, 16)


def test_the_graph_leaves_the_decoder_out_and_the_model_as_it_was(world):
    model = world.model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, world.folder / "model.pt2", to="torch", pool="cls")
    assert not any("decoder" in key for key in torch.export.load(world.folder / "model.pt2").state_dict)
    assert model.decoder is not None and all(one.requires_grad for one in model.parameters()) and model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_onnx_takes_any_batch(world, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, out = world.run(), world.folder / "model.onnx"
    assert main(["export", run, "--to", "onnx", "-o", str(out), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["to"] == "onnx" and max(about["differences"].values()) < 1e-5 and "opset" in about["checked_with"]
    session, x = runtime.InferenceSession(str(out)), batch_of(7, 1, 8, 8)
    (found,) = session.run(["features"], {"marks": x.numpy()})
    with torch.no_grad():
        wanted = maemm.load(run).embed({"marks": x})["marks"]
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)
    assert "card" not in about or about["card"] is None
    card = json.loads(session.get_modelmeta().custom_metadata_map["maemm"])
    assert card["inputs"]["marks"]["shape"] == ["batch", 1, 8, 8]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(world, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    pytest.importorskip("onnx") if package != "onnx" else None
    with pytest.raises(MaemmError, match=r"pip install 'maemm\[export\]'"):
        export(world.model(), world.folder / "model.onnx", to="onnx")
    assert not list(world.folder.glob("*model.onnx*"))


def test_nothing_is_left_where_answers_differ(world, monkeypatch):
    from maemm.tasks.export.weights_files import write_safetensors

    def wrong(exported, folder, name):
        written = write_safetensors(exported, folder, name)
        return replace(written, run=lambda batch: {k: v + 2e-4 for k, v in written.run(batch).items()})

    monkeypatch.setattr(sys.modules["maemm.tasks.export.run"], "writer_of", lambda to: wrong)
    with pytest.raises(MaemmError, match=r"differs from the model by 0.0002 \(batch 1, allowed 0.0001\)"):
        export(world.model(), world.folder / "model.safetensors", to="safetensors")
    assert not list(world.folder.glob("*model*"))


def test_what_exists_is_not_replaced_unasked(world, capsys):
    run, out = world.run(), world.folder / "model.safetensors"
    out.write_text("precious")
    assert main(["export", run, "--to", "safetensors", "-o", str(out)]) == 2
    assert "exists (-o); choose another name, or add --force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main(["export", run, "--to", "safetensors", "-o", str(out), "--force"]) == 0
    assert "maemm.load(" in capsys.readouterr().out
    out.unlink()
    with pytest.raises(MaemmError, match=r"model.json exists"):  # the card counts too
        export(run, out, to="safetensors")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--to", "onx", "-o", "a.onnx"], "unknown target 'onx' (--to); did you mean 'onnx'?"),
        (["--to", "onnx", "-o", "a.pt"], "--to onnx writes .onnx, not 'a.pt'"),
        (["-o", "a.onnx"], "no target is given; add --to"),
        (["--to", "onnx"], "no file to write is given; add -o"),
        (["--to", "torch", "-o", "a.pt2", "--output", "logits"], "has no classifier, so it has no logits"),
        (["--to", "torch", "-o", "a.pt2", "--output", "x"], "unknown output 'x'; choose features, tokens, logits"),
        (["--to", "torch", "-o", "a.pt2", "--pool", "best"], "unknown pool 'best'"),
        (["--to", "torch", "-o", "a.pt2", "--output", "tokens", "--pool", "max"], "--pool is for features"),
        (["--to", "torch", "-o", "a.pt2", "--shape", "1,0,8"], "is not a list of positive integers"),
        (["--to", "torch", "-o", "a.pt2", "--shape", "birds=1,8,8"], "is for 'birds'"),
        (["--to", "torch", "-o", "a.pt2", "--shape", "1,9,8"], "not a multiple of patch"),
        (["--to", "torch", "-o", "a.pt2", "--shape", "2,8,8"], "expects (B, 1"),
        (["--to", "timm", "-o", "a.safetensors"], "this model cannot be exported to timm"),
        (["--to", "hf", "-o", "a"], "choose --to safetensors, torch, onnx"),
    ],
)
def test_mistakes(world, capsys, monkeypatch, arguments, text):
    monkeypatch.chdir(world.folder)
    assert main(["export", world.run(), *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert [one.name for one in world.folder.iterdir()] == ["run"]


def test_weights_that_are_no_numbers_are_refused(world):
    model = world.model()
    model.encoder.norm.weight.data[0] = float("nan")
    with pytest.raises(MaemmError, match="features of a model are not finite"):
        export(model, world.folder / "model.safetensors", to="safetensors")


def test_another_shape_is_another_graph(world):
    made = export(world.model(), world.folder / "model.pt2", to="torch", shape="1,16,12")
    assert made.inputs == {"marks": ["batch", 1, 16, 12]} and max(made.differences.values()) < 1e-5


def test_shapes_of_several_modalities(world):
    model = world.model()
    assert input_shapes(model.modalities, None) == {"marks": (1, 8, 8)}
    two = {"a": model.modalities["marks"], "b": model.modalities["marks"]}
    assert input_shapes(two, "b=1,4,4") == {"a": (1, 8, 8), "b": (1, 4, 4)}
    with pytest.raises(MaemmError, match="is for 'no modality'; write NAME=SIDE,SIDE with a, b"):
        input_shapes(two, "1,4,4")


def test_a_modality_without_a_usual_shape_asks_for_one(world, monkeypatch):
    model = world.model()
    monkeypatch.setattr(type(model.modalities["marks"]), "sample_shape", lambda self: None)
    with pytest.raises(MaemmError, match="have no fixed shape.*add --shape marks="):
        export(model, world.folder / "model.pt2", to="torch")
    assert inference_model(model, "it", shape="1,8,8").shapes == {"marks": (1, 8, 8)}


def test_normalisation_is_told_where_there_is_one(world):
    modality = world.model().modalities["marks"]
    assert normalisation(modality, (1, 8, 8)) is None
    modality.denormalize_input = lambda signal: signal * 0.5 + 0.25
    assert normalisation(modality, (1, 8, 8)) == {"mean": 0.25, "std": 0.5}


def test_the_package_keeps_its_function(world):
    made = maemm.export(world.model(), world.folder / "model.safetensors", to="safetensors")
    assert "difference from the model  batch 1: 0.0e+00" in str(made)
