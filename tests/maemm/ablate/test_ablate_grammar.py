"""Words, short names and files of comparisons: what they mean, and what is said where they mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from maemm import config
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.tasks.ablate.grammar import Grammar, split
from maemm.tasks.ablate.study import make_study

BASE = "image/mae_tiny_cifar10"
IMAGE = "modalities.image"


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(config.load(BASE, {"modalities.image.masking.ratio": 0.6}))


@pytest.mark.parametrize(
    ("word", "key", "values"),
    [
        ("decoder.depth=1,4,8", "decoder.depth", [1, 4, 8]),
        ("masking.ratio=0.5,0.75", f"{IMAGE}.masking.ratio", [0.5, 0.75]),
        ("patch=2,4", f"{IMAGE}.patch", [2, 4]),
        ("batch=64,128", "train.batch", [64, 128]),
        ("weight_decay=0,0.05", "train.optimizer.weight_decay", [0, 0.05]),
        ("train.lr=1e-3,2e-3", "train.lr", [1e-3, 2e-3]),
        ("betas=[0.9, 0.95],[0.9, 0.999]", "train.optimizer.betas", [[0.9, 0.95], [0.9, 0.999]]),
        ("flip=true,false", f"{IMAGE}.flip", [True, False]),
        ("target=null,hog", f"{IMAGE}.target", [None, {"type": "hog"}]),
        ("target.cell=4,8", f"{IMAGE}.target.cell", [4, 8]),
        ("masking={type: scan, order: spiral}", f"{IMAGE}.masking", [{"type": "scan", "order": "spiral"}]),
        ("objectives.extra=null", "objectives.extra", [None]),
        # a part in short: options in common with the recipe's stay (the ratio), others are those of the new part
        (
            "masking=random,scan:spiral",
            f"{IMAGE}.masking",
            [{"type": "random"}, {"type": "scan", "ratio": 0.6, "order": "spiral"}],
        ),
        ("masking=scan:0.9", f"{IMAGE}.masking", [{"type": "scan", "ratio": 0.9}]),
        (
            "masking=scan:order=peano:ratio=0.8",
            f"{IMAGE}.masking",
            [{"type": "scan", "ratio": 0.8, "order": "peano"}],
        ),
        ("target=ema:l1", f"{IMAGE}.target", [{"type": "ema", "loss": "l1"}]),
        ("decoder=linear", "decoder", [{"type": "linear"}]),
        ("optimizer=adamw", "train.optimizer", [{"type": "adamw"}]),
    ],
)
def test_words(grammar, word, key, values):
    found, pairs = grammar.words(word)
    assert found == key and [value for _, value in pairs] == values


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("masking", "--set 'masking' has no values; write KEY=VALUE,VALUE"),
        ("=1", "'' is not a key"),
        ("a b=1", "'a b' is not a key"),
        ("depth=1,2", "'depth' may mean encoder.depth or decoder.depth (--set); write the whole key"),
        ("maskin=random", "unknown key 'maskin' (--set); did you mean 'masking'?"),
        ("zzz=1", "unknown key 'zzz' (--set); see: maemm config show"),
        ("patch=2,,4", "a value is missing (--set patch=2,,4); write null for none"),
        ("patch=", "a value is missing"),
        ("patch=2,4,2", "a value is given twice"),
        ("patch=[2", "not valid YAML"),
        ("masking=spiral", "unknown masking 'spiral'"),
        ("masking=scan:spirl", "no option of 'scan' is 'spirl'"),
        ("masking=scan:order=", ""),  # null: refused when the recipe is checked
        ("target=ema:0.9", "0.9 may be momentum or momentum_end"),
        ("masking=scan:spiral:order=peano", "order is given twice"),
        ("train.seed=1,2", "train.seed cannot differ between variants; --seeds sets it"),
        ("epochs=1,2", "train.epochs cannot differ between variants; --steps sets the length"),
        ("out=a,b", "out cannot differ between variants; --out names the folder"),
    ],
)
def test_words_that_are_refused(grammar, word, message):
    if not message:
        assert grammar.words(word)[1][0][1]["order"] is None
        return
    with pytest.raises(MaemmError) as error:
        grammar.words(word)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_masking_of_several_modalities_is_the_whole_key():
    grammar = Grammar(config.load("cav/cav_mae_tiny_cpu"))
    assert grammar.key("masking") == "masking"
    with pytest.raises(MaemmError, match="may mean modalities.audio.target or modalities"):
        grammar.key("target")


def test_split_at_commas_outside_of_brackets_and_quotes():
    assert split("a,[1,2],{b: [3,4], c: 5},'x,y',\"z,\"") == ["a", "[1,2]", "{b: [3,4], c: 5}", "'x,y'", '"z,"']


def names(study):
    return [variant.name for variant in study.variants]


def test_a_grid_a_star_and_the_base(place):
    sets = ["masking=random,scan:spiral", "decoder.depth=1,2"]
    grid = make_study("tiny.yaml", sets=sets)
    assert names(grid) == [
        "masking=random, decoder.depth=1",
        "masking=random, decoder.depth=2",
        "masking=scan:spiral, decoder.depth=1",
        "masking=scan:spiral, decoder.depth=2",
    ]
    assert grid.reference == "masking=random, decoder.depth=1"  # the recipe as it is
    assert [variant.folder for variant in grid.variants][2] == "masking-scan-spiral-decoder.depth-1"
    star = make_study("tiny.yaml", sets=["masking=scan:spiral", "decoder.depth=2,3"], one_at_a_time=True)
    assert names(star) == ["base", "masking=scan:spiral", "decoder.depth=2", "decoder.depth=3"]
    assert star.reference == "base" and not star.variants[0].differs
    # a part is set before its options, whatever the order of the words
    late = make_study("tiny.yaml", sets=["masking.ratio=0.7", "masking=scan:spiral"])
    assert late.variants[1].recipe["modalities"]["image"]["masking"] == {
        "type": "scan",
        "ratio": 0.7,
        "order": "spiral",
    }
    chosen = make_study("tiny.yaml", sets=["decoder.depth=1,2,3"], only=["decoder.depth=3"])
    assert names(chosen) == ["decoder.depth=1", "decoder.depth=3"]


def test_changes_of_all_variants_are_part_of_the_base(place):
    study = make_study("tiny.yaml", {"modalities.image.masking.ratio": 0.25}, sets=["masking=random,scan"], steps=7)
    ratios = {x.name: x.recipe["modalities"]["image"]["masking"]["ratio"] for x in study.variants}
    assert ratios == {"masking=random": 0.25, "masking=scan": 0.25} and study.reference == "masking=random"
    assert {x.recipe["train"]["steps"] for x in study.variants} == {7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing is compared; add --set"),
        ({"sets": ["decoder.depth=2,x,3"]}, "variant 'decoder.depth=x': decoder.depth must be"),
        ({"sets": ["encoder.heads=2,3"], "variants": {"a": {"decodr": {}}}}, "variant 'a': unknown key 'decodr'"),
        ({"sets": ["decoder.depth=1,2", "decoder.depth=3"]}, "decoder.depth is given twice"),
        ({"variants": {"a": {"decoder.depth": 2}, "b": {"decoder.depth": 2}}}, "'a' and 'b' are the same recipe"),
        ({"variants": {"a:b": {"decoder.depth": 2}, "a b": {"decoder.depth": 3}}}, "have the same folder"),
        ({"variants": {"base": {"decoder.depth": 2}}}, "a variant is called 'base' and is not the recipe"),
        ({"variants": {"\n": {}}}, "cannot be the name of a variant"),
        ({"sets": ["decoder.depth=1,2"], "reference": "decoder.depth=3"}, "no variant is called 'decoder.depth=3'"),
        ({"sets": ["decoder.depth=1,2"], "only": ["x"]}, "no variant is called 'x' (--only)"),
        ({"sets": ["decoder.depth=1,2"], "seeds": 0}, "0 seeds compare nothing (--seeds); give 1 or more"),
        ({"sets": ["decoder.depth=1,2"], "seeds": 10**12}, "1000000000000 seeds are too many (--seeds)"),
        (
            {"sets": [f"{key}={','.join(map(str, range(1, 34)))}" for key in ("decoder.depth", "patch")]},
            "1,089 variants",
        ),
        ({"sets": ["decoder.depth=1,2"], "steps": -1}, "-1 steps compare nothing (--steps)"),
        ({"sets": ["decoder.depth=1,2"], "samples": 0}, "0 samples compare nothing (--samples)"),
        ({"sets": ["decoder.depth=1,2"], "measures": ["liner"]}, "unknown measure 'liner' (--measures); did you mean"),
        ({"sets": ["decoder.depth=1,2"], "overrides": ["train.seed=3"]}, "train.seed is not the same in all runs"),
    ],
)
def test_studies_that_are_refused(place, arguments, message):
    with pytest.raises(MaemmError) as error:
        make_study("tiny.yaml", arguments.pop("overrides", None), **arguments)
    assert message in str(error.value) and "internal" not in str(error.value)


STUDY = """\
# Two decoders
recipe: tiny.yaml
base: {train: {batch: 6}}
variants:
  shallow:
  deep: {decoder: {depth: 2}, masking: scan:spiral}
reference: shallow
seeds: 2
measures: [knn]
"""


def test_a_file_and_what_replaces_its_values(place):
    Path("study.yaml").write_text(STUDY)
    study = make_study("study.yaml")
    assert (study.name, names(study), study.seeds, study.measures) == ("study", ["shallow", "deep"], 2, ("knn",))
    assert study.base["train"]["batch"] == 6
    assert study.variants[1].overrides == {
        "decoder.depth": 2,
        f"{IMAGE}.masking": {"type": "scan", "ratio": 0.5, "order": "spiral"},
    }
    other = make_study("study.yaml", ["train.batch=8"], seeds=5, steps=9, measures=["rank"], reference="deep")
    assert (other.seeds, other.steps, other.measures, names(other)) == (5, 9, ("rank",), ["deep", "shallow"])
    assert other.base["train"]["batch"] == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seed: 2", "unknown key 'seed' (study.yaml, line 8); did you mean 'seeds'?"),
        ("seeds: 2", "seeds: two", "seeds must be 1 <= int <= 1000, got 'two' (study.yaml, line 8)"),
        ("seeds: 2", "seeds: 0", "seeds must be"),
        ("recipe: tiny.yaml", "", "recipe is missing"),
        ("recipe: tiny.yaml", "recipe: tny", "unknown recipe 'tny'"),
        ("[knn]", "[nnk]", "measures must be"),
        ("depth: 2", "dpth: 2", "variant 'deep': unknown key 'decoder.dpth'"),
        ("base: {train: {batch: 6}}", "base: {train: {btch: 6}}", "unknown key 'train.btch'"),
        ("base: {train: {batch: 6}}", "base: {train: {seed: 6}}", "train.seed is not the same in all runs"),
        ("deep: {", "deep: [", "not valid YAML"),
        ("  deep:", "  deep: 3\n  other:", "variants"),
    ],
)
def test_files_that_are_refused(place, old, new, message, capsys):
    assert old in STUDY
    Path("study.yaml").write_text(STUDY.replace(old, new))
    assert main(["ablate", "study.yaml", "-o", "out"]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "internal" not in errors and not Path("out").exists()


def test_every_ready_study_can_be_trained():
    studies = config.studies()
    assert {"image/studies/decoder_depth", "image/studies/ratios", "image/studies/scan_orders"} <= studies.keys()
    assert not studies.keys() & config.packaged().keys()
    for name, path in studies.items():
        study = make_study(name)
        assert study.steps and study.seeds > 1 and len(study.variants) > 1
        assert "base" not in names(study) and not study.variants[0].differs, name  # the base is one of them
        assert config.summary(path)


def test_names_of_studies(place, capsys):
    assert main(["ablate", "ratios"]) == 2
    assert "unknown study 'ratios'; did you mean 'image/studies/ratios'?" in capsys.readouterr().err
    assert main(["ablate", "image/studies/ratio"]) == 2
    assert "unknown study 'image/studies/ratio'; did you mean 'image/studies/ratios'?" in capsys.readouterr().err
    assert main(["ablate", "image/mae_tiny_cpuu", "--set", "decoder.depth=1,2"]) == 2
    assert "unknown recipe" in capsys.readouterr().err
    assert main(["ablate", "image/studies/ratios", "--set", "decoder.depth=1,2"]) == 2
    assert "has variants of its own (--set)" in capsys.readouterr().err
    assert main(["ablate", "image/stages_tiny_cpu", "--set", "decoder.depth=1,2"]) == 2
    assert "the recipe has several stages (mae, classify), and one is compared" in capsys.readouterr().err
    assert main(["ablate", "--help"]) == 0
    assert "image/studies/ratios" in capsys.readouterr().out
