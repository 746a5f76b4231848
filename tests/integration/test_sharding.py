"""Models in ZeRO-3 shards: loaded without ever being whole, a judge of their own, exported tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.models import load_model
from tests.integration.sharding_worker import MB, answers
from tests.support.ranks import run_ranks
from tests.support.tiny_models import TINY, write_tiny_bagel

RANKS = 2
PYTHON = 20 * MB
"""Bytes that Python may hold beside tensors: modules as objects, hooks on them (15 MB were seen)."""

BIG = replace(
    TINY,
    llm=replace(TINY.llm, hidden_size=512, intermediate_size=2048, num_hidden_layers=5, vocab_size=8192),
)
"""192 MB of float32, of which the largest tensors (embedding and head) are 17 MB each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks ran the worker on a tiny model and on a big one."""
    folder = tmp_path_factory.mktemp("sharding")
    write_tiny_bagel(folder / "tiny")
    write_tiny_bagel(folder / "big", BIG)
    (folder / "run").mkdir()
    run_ranks(RANKS, [str(folder)], "tests/integration/sharding_worker.py")
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


# ---- memory


def held(seen: dict[str, Any], phase: str) -> dict[str, int]:
    """Bytes above the level before the phase; their peak is within its limit."""
    found, limit = seen["memory"]["found"][phase], seen["memory"]["limits"][phase]
    assert found["tensor_peak"] <= limit, phase
    return found


def test_no_rank_holds_the_model_while_it_loads(ranks: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(ranks):
        memory = seen["memory"]
        peaks = {phase: round(found["tensor_peak"] / MB, 1) for phase, found in memory["found"].items()}
        print(f"rank {rank}, MB of tensors above those before: {peaks}; the model has {memory['model'] / MB:.0f}")
        for phase, whole in (("load", memory["model"]), ("judge_load", memory["judge"])):
            found = held(seen, phase)
            assert memory["limits"][phase] <= whole / RANKS + memory["largest"] + MB
            assert whole / RANKS <= found["tensors_stayed"] <= found["tensor_peak"]
            assert found["python_peak"] <= PYTHON
        assert memory["limits"]["load"] + PYTHON < 0.7 * memory["model"]
        assert memory["judge"] < 0.6 * memory["model"]


def test_the_engine_takes_shards_over_without_making_them_whole(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert held(seen, "create")["tensor_peak"] <= 3 * seen["memory"]["model"] / RANKS


def test_no_rank_holds_the_model_while_it_is_exported(ranks: list[dict[str, Any]], folder: Path) -> None:
    for seen in ranks:
        found = held(seen, "export")
        assert found["tensor_peak"] + found["python_peak"] <= seen["memory"]["largest"] + 5 * MB
    source, exported = (load_file(path / "ema.safetensors") for path in (folder / "big", folder / "run/export"))
    assert source.keys() == exported.keys()
    assert all(torch.equal(source[name], exported[name]) for name in source)


def test_live_model_and_frozen_copy_are_gathered_in_turns(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        memory, found = seen["memory"], held(seen, "turns")
        assert memory["model"] <= found["tensor_peak"] <= memory["model"] + 5 * MB
        assert memory["judge"] > 80 * MB
        assert found["tensors_stayed"] <= MB


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


# ---- configs


# ---- drawing layer by layer


def test_layers_are_gathered_one_by_one_where_the_whole_does_not_fit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        seen = rank["drawing_by_layer"]
        assert seen["same"] == [True] * 4
        assert seen["trains"], "drawing in between changes no step"
        assert seen["peak"]["layer_by_layer"] < 0.7 * seen["peak"]["gathered"]
