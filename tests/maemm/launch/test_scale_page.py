"""The commands in docs/scale.md: torchrun's own parser reads them, files are there, and the runs begin when shrunk."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from maemm import config
from maemm.__main__ import main

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs/scale.md").read_text()
FENCED = [line for block in re.findall(r"(?s)```bash\n(.*?)```", PAGE) for line in block.splitlines() if line]
COMMANDS = FENCED + re.findall(r"(?m)^    ((?:torchrun|maemm|srun|sbatch) .*)$", PAGE)  # and indented ones
SMALL = ["encoder.dim=48", "encoder.depth=1", "encoder.heads=2", "decoder.dim=48", "decoder.depth=1", "decoder.heads=2",
         "train.batch=4", "train.micro_batch=2", "train.epochs=null", "train.steps=1", "train.warmup_epochs=0",
         "data.workers=0"]  # fmt: skip


def words_of_run(command):
    """The words of ``maemm`` that a launcher gets, DATA as a key; None where there are none."""
    launcher, *words = shlex.split(command.replace(" DATA ", " data.root=photos/ "))
    if launcher == "maemm":
        return words if words[0] == "pretrain" else None
    if launcher == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words)
        assert args.module and args.training_script == "maemm" and int(args.nproc_per_node) == 8
        return args.training_script_args
    assert (REPOSITORY / next(word for word in words if word.startswith("docs/"))).is_file()
    return ["pretrain", *words[1:]] if launcher == "sbatch" else None


def test_there_are_commands_of_every_launcher():
    assert {command.split()[0] for command in COMMANDS} == {"maemm", "torchrun", "sbatch", "kubectl"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("maemm estimate ")])
def test_the_estimate_is_printed(command, capsys):
    assert main(shlex.split(command)[1:]) == 0 and "64" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_words_of_a_command_are_those_of_a_run(command):
    words = words_of_run(command)
    if words is not None:
        assert words[0] == "pretrain"
        recipe = config.load(words[1], words[2:], training=True)
        assert recipe["data"]["root"] == "photos/" and recipe["out"].startswith("runs/")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if words_of_run(command)])
def test_a_command_trains_when_shrunk(command, tmp_path, monkeypatch):
    """In one process, on eight pictures."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.fromarray(np.full((64, 64, 3), 30 * number, np.uint8)).save(tmp_path / f"photos/{number}.png")
    assert main([*words_of_run(command), *SMALL]) == 0
    assert list(tmp_path.glob("runs/*/checkpoints/step-*"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target


def test_settings_that_the_page_names_exist():
    from maemm.config.schema import DataConfig, TrainConfig, keys_of

    for section, schema in (("train", TrainConfig), ("data", DataConfig)):
        names = {key.name.split(".")[0] for key in keys_of(schema)}
        named = set(re.findall(rf"`{section}\.(\w+)", PAGE)) - {"root"}
        assert named and named <= names, named - names
