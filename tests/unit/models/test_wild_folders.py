"""Model folders and settings that would be built, or read, for ever: one message, at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srum_ds.commands.inspect import inspect
from srum_ds.common.errors import UserError
from srum_ds.common.model_files import refuse_wild_sizes
from srum_ds.config import load_config
from srum_ds.models import costs_of, family_of, load_model
from srum_ds.models.lora import adapter_size
from srum_ds.prompts.files import read_text
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import scan_tar
from srum_ds.rewards.templates import load_template
from tests.support.paths import MODEL, RECIPE, ROOT
from tests.support.runs import write_prompts

LIMIT = 2.0
TINY_JANUS = ROOT / "srum_ds/assets/tiny_janus"


def copy_of(folder: Path, target: Path) -> Path:
    """Links to the files of a model's folder."""
    target.mkdir()
    for path in Path(folder).iterdir():
        (target / path.name).symlink_to(path.resolve())
    return target


def change(path: Path, *keys: str, value: Any) -> None:
    content = json.loads(path.read_text())
    path.unlink()
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def refused_at_once(work: Callable[[], Any], said: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=said):
        work()
    assert time.process_time() - began < LIMIT


@pytest.mark.parametrize(
    ("model", "file", "keys", "value", "said"),
    [
        (MODEL, "llm_config.json", ("num_hidden_layers",), 10**9, r"num_hidden_layers is 1000000000, but the weights"),
        (MODEL, "vit_config.json", ("num_hidden_layers",), 10**4, r"num_hidden_layers is 10000, but the weights"),
        (MODEL, "llm_config.json", ("vocab_size",), 10**12, "vocab_size is 1000000000000, expected at most"),
        (MODEL, "llm_config.json", ("max_position_embeddings",), 10**18, "max_position_embeddings is 1"),
        (TINY_JANUS, "config.json", ("text_config", "num_hidden_layers"), 10**9, "text_config.num_hidden_layers is"),
    ],
)
def test_a_configuration_beyond_its_weights(
    tmp_path: Path, model: Path, file: str, keys: tuple[str, ...], value: int, said: str
) -> None:
    folder = copy_of(model, tmp_path / "model")
    load_model(folder)
    change(folder / file, *keys, value=value)
    refused_at_once(lambda: load_model(folder), said)
    refused_at_once(lambda: costs_of(folder), said)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    refused_at_once(lambda: refuse_wild_sizes(folder), f"{keys[-1]} is {value}")


@pytest.mark.parametrize("file", ["ema.safetensors", "config.json", "vocab.json", "llm_config.json"])
def test_a_pipe_among_a_models_files(tmp_path: Path, file: str) -> None:
    folder = copy_of(MODEL, tmp_path / "model")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused_at_once(lambda: load_model(folder), f"{file} is a pipe, a device or a socket")
    refused_at_once(lambda: family_of(folder, "bagel"), f"{file} is a pipe")


def test_a_pipe_for_prompts_templates_and_recipes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for work in (
        lambda: read_text(pipe),
        lambda: scan_tar(pipe),
        lambda: load_template(pipe),
        lambda: load_template("/dev/zero"),
        lambda: load_config(str(pipe), []),
        lambda: load_config(RECIPE, [f"data.shards={pipe}", f"judge.global_template={pipe}"]) and load_template(pipe),
    ):
        refused_at_once(work, "pipe, a device|no recipe at")
    shards = write_prompts(tmp_path / "shards", 2)
    reader = PromptReader(shards, "train")
    (tar,) = shards.glob("*.tar")
    tar.unlink()
    os.mkfifo(tar)
    refused_at_once(lambda: reader[0], "pipe, a device|Invalid argument")


def test_a_rank_above_every_layers() -> None:
    module = nn.ModuleDict({"a": nn.Linear(8, 64), "b": nn.Linear(16, 32)})
    assert adapter_size(module, ["a", "b"], 16) == 16 * (8 + 64 + 16 + 32)
    refused_at_once(lambda: adapter_size(module, ["a", "b"], 17), "lora.rank=17: no layer .* above 16")
    model = load_model(MODEL)
    refused_at_once(lambda: model.add_lora(100000, 32.0, (), 0), "lora.rank=100000")


@pytest.mark.parametrize(
    "word",
    [
        "train.lr=3e38",
        f"run.seed={2**64}",
        f"eval.seed={2**64}",
        "train.steps=2147483648",
        "judge.batch=99999999999999999999",
        "objective.beta=1e-300",
        "limits.judge=1e30",
        "reward.global_weight=1e300",
    ],
)
def test_a_setting_that_would_overflow(word: str) -> None:
    refused_at_once(lambda: load_config(RECIPE, [word]), f"{word.split('=')[0]}=.* is not allowed; expected a")


def test_the_largest_seed_is_one() -> None:
    assert load_config(RECIPE, [f"run.seed={2**64 - 1}"]).run.seed == 2**64 - 1
    torch.manual_seed((2**64 - 1 + 1) % 2**64)


def test_inspect_waits_for_no_pipe(tmp_path: Path) -> None:
    folder = copy_of(MODEL, tmp_path / "model")
    (folder / "llm_config.json").unlink()
    os.mkfifo(folder / "llm_config.json")
    refused_at_once(lambda: inspect(folder), "is a pipe")
