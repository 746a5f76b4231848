"""A gradient that is not finite, on one of two ranks under DeepSpeed: all run the step again and decide alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.paths import MODEL
from tests.support.ranks import run_ranks, srum_ds, start_ranks
from tests.support.runs import metrics, short_run, write_prompts

OBJECTIVE = """
import os
from dataclasses import replace
from srum_ds.objectives.losses import NFT

calls = []

def losses(terms, settings):
    found = NFT.losses(terms, settings)
    calls.append(None)
    # Two micro-batches a step are two calls: this is of the second step, and of its second try.
    bad = os.environ.get("RANK") == "1" and len(calls) in BAD
    return found * float("nan") if bad else found

OBJECTIVE = replace(NFT, losses=losses, mixtures=None)
"""


def words(tmp_path: Path, name: str, bad: tuple[int, ...], *more: str) -> list[str]:
    """A run of three steps whose second one goes wrong on rank 1 in the calls ``bad``."""
    shards = tmp_path / "prompts"
    if not shards.exists():
        write_prompts(shards, 8)
    code = tmp_path / "objective.py"
    code.write_text(OBJECTIVE.replace("BAD", repr(bad)))
    own = ["train.steps=3", "train.save_every=9", f"objective.name={code}:OBJECTIVE", "rollout.micro_batch_prompts=1"]
    return short_run(shards, tmp_path / name, *own, *more)


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "ema.safetensors")


@pytest.mark.parametrize("zero", ["cpu", "zero2"])
def test_one_rank_errs_once(zero: str, tmp_path: Path) -> None:
    config = f"deepspeed.config=ds_configs/{zero}.json"
    run_ranks(2, words(tmp_path, "whole", (-1,), config))
    said = " ".join(run_ranks(2, words(tmp_path, "erring", (3,), config, "train.on_bad_step=stop")).split())
    assert "step 2: a loss is not finite, but run again from the same batch" in said
    assert "the hardware erred once, rank 1 (cpu on " in said
    assert [line["retried"] for line in metrics(tmp_path / "erring")] == [0, 1, 0]
    whole, erring = exported(tmp_path / "whole"), exported(tmp_path / "erring")
    assert all(torch.equal(whole[key], erring[key]) for key in whole)


def test_a_bug_ends_the_run_and_the_advice_ends_it_well(tmp_path: Path) -> None:
    stopped = start_ranks(2, words(tmp_path, "run", (3, 5), "train.on_bad_step=stop"))
    assert stopped.wait() == [2, 2]
    run = tmp_path / "run"
    said = " ".join(stopped.printed.split())
    assert "and the same when it was run again" in said and "Traceback" not in said
    file = run / "crash" / "step_000002_rank_00001.json"
    assert f"srum-ds replay {file}" in said and file.with_name("step_000002_rank_00000.json").exists()
    assert (run / "checkpoints" / "step_000001").is_dir()
    # The objective errs by count and rank: alone, it is as it should be.
    status, shown = srum_ds("replay", str(file))
    assert status == 0 and "everything is finite" in shown
    skipping = words(tmp_path, "run", (3, 5), "train.on_bad_step=skip")
    run_ranks(2, skipping)
    assert len(metrics(run)) == 3


def test_weights_that_one_rank_alone_reads_are_refused_by_both(tmp_path: Path) -> None:
    """Each rank reads its own half of a tensor; the bad number lies in the second."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    stored = load_file(model / "ema.safetensors")
    stored["llm2vae.weight"].view(-1)[-1] = float("nan")
    save_file(stored, model / "ema.safetensors")
    ranks = start_ranks(2, [*words(tmp_path, "run", (-1,)), f"model.path={model}"])
    assert ranks.wait() == [2, 2]
    assert f"{model / 'ema.safetensors'}: llm2vae.weight holds numbers that are not finite" in ranks.printed
    assert "Traceback" not in ranks.printed
