"""One stream of a model of several modalities: its features, and only its data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from maemm import MaemmError, Rng
from maemm.__main__ import main
from maemm.contract import Sample, Source
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.tasks._shared.baselines import untrained
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.inputs import open_data, open_model, weights_stamp
from maemm.tasks.retrieve.run import features_of_views

TOY = Path(__file__).parents[2] / "toy_plugin"
pytestmark = pytest.mark.usefixtures("toys")
STREAMS = {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 2, "heads": 2, "streams": ["toy", "other"]}
VIT = {"type": "vit", "dim": 16, "depth": 1, "heads": 2, "prefix": 0}


def recipe(encoder=STREAMS, **source):
    return {
        "modalities": {"toy": {"type": "toy"}, "other": {"same_as": "toy"}},
        "encoder": encoder,
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2, "prefix": "none"},
        "data": {"source": {"type": "toy", "samples": 6, **source}, "workers": 0},
    }


def made(encoder=STREAMS):
    with seeded(0):
        return build_model(recipe(encoder)).eval()


def of(model, **source):
    return features(model, open_data({**model.recipe, "data": recipe(**source)["data"]}))


@pytest.mark.parametrize("name", ["toy", "other"])
def test_a_stream_is_what_the_whole_model_gives_for_it(name):
    whole = made()
    alone = of(open_model(whole, stream=name))
    assert [*alone] == [name] and alone[name].x.shape == (6, 16)
    assert np.allclose(alone[name].x, of(whole)[name].x, atol=1e-6)


@pytest.mark.parametrize("encoder", [STREAMS, VIT], ids=["streams", "vit"])
def test_streams_together_are_the_joint_pass(encoder):
    model = made(encoder)
    batch = {name: torch.randn(3, 1, 8, 8) for name in ("toy", "other")}
    (joint,) = open_model(model, stream="toy+other").embed(batch).values()
    tokens = model.encoder(model.with_all_visible(batch), model.modalities).tokens
    if encoder is VIT:
        assert torch.allclose(joint, torch.cat([tokens["toy"], tokens["other"]], 1).mean(1), atol=1e-6)
    else:  # in which each modality has gone through the joint blocks alone
        assert not torch.allclose(joint, (tokens["toy"].mean(1) + tokens["other"].mean(1)) / 2)


def test_only_its_data_are_read():
    """Sounds alone are enough for the features of sounds."""
    lacking = {"lacks": {"other": list(range(6))}}
    assert len(of(open_model(made(), stream="toy"), **lacking)["toy"]) == 6
    with pytest.raises(MaemmError, match="none of 6 samples gave features.*has no 'other'"):
        of(made(), **lacking)
    joint = of(open_model(made(), stream="toy+other"), lacks={"other": [2]})["toy+other"]
    assert len(joint) == 5 and joint.skipped[0].id == "toy-2"


def test_the_whole_model_stays_as_it_is_and_shares_its_weights():
    whole = made()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    alone = open_model(whole, stream="other")
    assert [*whole.modalities] == ["toy", "other"] and [*alone.modalities] == ["other"]
    assert whole.recipe["modalities"]["other"] == {"same_as": "toy"}
    assert alone.recipe["modalities"]["other"]["type"] == "toy"  # by itself
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert alone.encoder is whole.encoder
    stamps = {weights_stamp(open_model(whole, stream=s)) for s in (None, "toy", "other", "toy+other")}
    assert len(stamps) == 4  # so that caches keep them apart


def test_the_untrained_network_has_the_same_form():
    fresh = untrained(open_model(made(), stream="other"), 3)
    assert [*fresh.embed({"other": torch.randn(2, 1, 8, 8)})] == ["other"]


def test_choices_are_for_one_modality():
    model, batch = made(), {name: torch.randn(2, 1, 8, 8) for name in ("toy", "other")}
    assert open_model(model, stream="toy").embed(batch, tokens=True)["toy"].shape == (2, 16, 16)
    assert open_model(model, stream="toy").embed(batch, pool="max")["toy"].shape == (2, 16)
    with pytest.raises(MaemmError, match="stream 'toy.other' joins modalities, which are pooled by mean"):
        open_model(model, stream="toy+other").embed(batch, tokens=True)
    for stream in ("toys", "toy+toy", "", "toy+"):
        with pytest.raises(MaemmError, match="is not made of this model's modalities"):
            open_model(model, stream=stream)


# ------------------------------------------------------------------------------------------------------ views
class Turning(Source):
    """Three views of each sample; the second one of sample 1 is broken."""

    tta_views = 3

    def __len__(self):
        return 4

    def read(self, index, rng):
        return self.tta_view(index, 0)

    def tta_view(self, index, number):
        if (index, number) == (1, 1):
            raise ValueError("broken")
        if index == 3:
            raise ValueError("all broken")
        x = np.random.default_rng([index, number]).standard_normal((1, 8, 8)).astype(np.float32)
        return Sample({"toy": x, "other": x[:, ::-1].copy()}, f"clip-{index}", index)

    def name(self, index):
        return f"clip-{index}"


def test_features_of_views_are_means_of_unit_vectors():
    model = made()
    found = features_of_views(model, Turning(), True)["toy"]
    assert found.ids == ["clip-0", "clip-1", "clip-2"] and found.labels.tolist() == [0, 1, 2]
    assert [bad.id for bad in found.skipped] == ["clip-3"]
    for index, numbers in ((0, (0, 1, 2)), (1, (0, 2))):
        rows = []
        for number in numbers:
            x = torch.from_numpy(Turning().tta_view(index, number).raw["toy"])[None]
            rows.append(torch.nn.functional.normalize(model.embed({"toy": x})["toy"], dim=-1))
        expected = torch.stack(rows).sum(0)[0].detach().numpy()
        assert np.allclose(found.x[index], expected, atol=1e-5)
    plain = features_of_views(model, Turning(), False)["toy"]
    assert np.allclose(plain.x[0], model.embed({"toy": torch.from_numpy(Turning().tta_view(0, 0).raw["toy"])[None]})["toy"].detach()[0], atol=1e-6)  # fmt: skip  # noqa: E501


# ---------------------------------------------------------------------------------------------------- commands
def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = {"epochs": 2, "batch": 4, "lr": 1e-3, "warmup_epochs": 0, "picture_every": 1000}
    objectives = {"contrastive": {"pair": ["toy", "other"]}}
    made = {**recipe(), "train": train, "objectives": objectives}
    made["modalities"]["other"] = {"type": "toy"}
    Path("recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    plugin = ["--plugin", str(TOY)]
    assert main([*plugin, "pretrain", "recipe.yaml", "out=run"]) == 0
    for stream in ("toy", "other", "toy+other"):
        assert main([*plugin, "embed", "run", "--stream", stream, "-o", "f.npz"]) == 0
        with np.load("f.npz") as stored:
            assert stored[stream].shape == (6, 16)
            assert not [key for key in stored.files if key in ("toy", "other") and key != stream]
        Path("f.npz").unlink()
    assert main([*plugin, "retrieve", "run", "--tta"]) == 0
    capsys.readouterr()
    assert main([*plugin, "embed", "run", "--stream", "third", "-o", "f.npz"]) == 2
    assert "stream 'third' is not made of this model's modalities (toy, other)" in capsys.readouterr().err


def test_a_mixed_run_asks_for_its_data():
    mixed = {**recipe(), "data": {"mix": {"a": {"source": "toy"}}}}
    with pytest.raises(MaemmError, match=r"several data sets \(a\); give one by its name"):
        open_data(mixed)
    assert len(open_data(mixed, source={"type": "toy", "samples": 5})) == 5
    assert open_data(mixed, source={"type": "toy", "samples": 5}).read(0, Rng((0,))).id == "toy-0"
