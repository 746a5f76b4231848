"""Models in ZeRO-3 shards: loaded without ever being whole, a judge of their own, exported tensor by tensor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.engine.config import frozen_config, read_ds_config
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt
from tests.integration.sharding_worker import ROOT, answers
from tests.support.tiny_models import TINY, write_tiny_bagel

RANKS = 2
MB = 1e6
SLACK = 20 * MB
"""Beside tensors: modules as Python objects and DeepSpeed's hooks on them (12 MB of it were seen), buffers."""
SLACK_EXPORT = 10 * MB
"""Buffers of the collectives (4 MB were seen)."""

BIG = replace(
    TINY,
    llm=replace(TINY.llm, hidden_size=256, intermediate_size=1024, num_hidden_layers=20, vocab_size=16384),
)
"""192 MB of float32, of which the largest tensors (embedding and head) are 17 MB each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks ran the worker on a tiny model and on a big one."""
    folder = tmp_path_factory.mktemp("sharding")
    write_tiny_bagel(folder / "tiny")
    write_tiny_bagel(folder / "big", BIG)
    (folder / "run").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    tools = Path(sys.executable).parent
    command = [str(tools / "deepspeed"), "--num_gpus", str(RANKS), "--master_port", port]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    environment["PATH"] = f"{tools}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["OMP_NUM_THREADS"] = "1"
    # malloc gives large tensors back at once; by itself it raises the limit up to 32 MB, as it likes.
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 19)
    done = subprocess.run(
        [*command, str(ROOT / "tests/integration/sharding_worker.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "found.json").read_text())
    assert len(found) == RANKS
    return found


# ---- loading


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shards_and_masters_hold_the_files_values(ranks: list[dict[str, Any]], precision: str) -> None:
    for seen in ranks:
        found = seen["loading"][precision]
        assert found["held"] == pytest.approx(1 / RANKS, abs=0.01)
        assert found["live"], "gathered weights are the file's, in the compute dtype"
        assert found["masters"], "masters are the file's, unrounded"
        assert found["trains"]
        assert found["as_loaded_whole"], "two steps end bit for bit as from a model loaded whole"


def test_wrong_weights_are_refused_before_anything_is_sharded(tmp_path: Path) -> None:
    folder = write_tiny_bagel(tmp_path / "model")
    weights = load_file(folder / "ema.safetensors")
    weights["extra"] = weights.pop("llm2vae.bias")
    save_file(weights, folder / "ema.safetensors")

    def materialise(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
        raise AssertionError("called")

    with pytest.raises(UserError, match=r"missing: llm2vae\.bias; unexpected: extra"):
        load_model(folder, materialise=materialise)


# ---- memory


def test_no_rank_holds_the_model_while_it_loads(ranks: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(ranks):
        found = seen["memory"]
        peaks = {phase: round(found[phase]["peak"] / MB, 1) for phase in ("load", "judge_load", "export")}
        print(f"rank {rank}, MB above the level before: {peaks}; the model has {found['model'] / MB:.0f}")
        bound = found["model"] / RANKS + found["largest"] + SLACK
        assert bound < 0.7 * found["model"]
        assert found["model"] / RANKS <= found["load"]["stayed"] <= found["load"]["peak"] <= bound
        bound = found["judge"] / RANKS + found["largest"] + SLACK
        assert found["judge"] < 0.6 * found["model"]
        assert found["judge"] / RANKS <= found["judge_load"]["stayed"] <= found["judge_load"]["peak"] <= bound


def test_the_engine_takes_shards_over_without_making_them_whole(ranks: list[dict[str, Any]]) -> None:
    """DeepSpeed keeps gradients twice, and its shards twice while it lays them in one piece."""
    for seen in ranks:
        found = seen["memory"]
        assert found["create"]["peak"] <= 3 * found["model"] / RANKS + SLACK


def test_no_rank_holds_the_model_while_it_is_exported(ranks: list[dict[str, Any]], folder: Path) -> None:
    for seen in ranks:
        found = seen["memory"]
        assert found["export"]["peak"] <= found["largest"] + SLACK_EXPORT
    source, exported = (load_file(path / "ema.safetensors") for path in (folder / "big", folder / "run/export"))
    assert source.keys() == exported.keys()
    assert all(torch.equal(source[name], exported[name]) for name in source)


def test_live_model_and_frozen_copy_are_gathered_in_turns(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        found = seen["memory"]
        assert found["model"] <= found["turns"]["peak"] <= found["model"] + 2 * SLACK
        assert found["judge"] > 4 * SLACK
        assert found["turns"]["stayed"] <= SLACK


# ---- a frozen copy that judges


@pytest.mark.parametrize("stage", ["zero3", "zero2"])
def test_a_frozen_copy_answers_the_same_however_the_live_model_moves(
    ranks: list[dict[str, Any]], folder: Path, stage: str
) -> None:
    alone = answers(load_model(folder / "tiny"))
    for seen in ranks:
        found = seen[stage]
        assert found["agree_at_first"] and found["frozen_unchanged"]
        assert found["live_moved"] > 0.01
        assert torch.equal(torch.tensor(found["answers"]), alone)
        assert found["shared_parameters"] == 0
        assert found["generation_parameters"] == []
        assert found["sharded"] == (stage == "zero3")


def test_a_model_that_only_looks_says_that_it_cannot_draw(folder: Path) -> None:
    model = load_model(folder / "tiny", only_looks=True)
    assert torch.equal(answers(model), answers(load_model(folder / "tiny")))
    noise = torch.zeros(1, 4, model.config.token_channels)
    with pytest.raises(RuntimeError, match="look only"):
        model.generate([Prompt("a", "a red")], noise, (2, 2), FlowSampling(num_timesteps=2))


# ---- configs


def test_a_frozen_engines_config_makes_no_optimizer() -> None:
    ours = read_ds_config(ROOT / "ds_configs/cpu.json")
    ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    config = frozen_config(ours, "bf16")
    assert not {"optimizer", "scheduler"} & config.keys()
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["bf16"]["enabled"]
    assert "offload_optimizer" in ours["zero_optimization"], "the given config is not changed"


@pytest.mark.parametrize("key, value", [("zero_hpz_partition_size", 2), ("zero_quantized_weights", True)])
def test_second_copies_of_shards_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, key: value}}))
    with pytest.raises(UserError, match=f"remove zero_optimization.{key}"):
        read_ds_config(path)
