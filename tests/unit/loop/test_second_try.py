"""A step that is not finite is run again; then it is kept, replayed, and skipped or the end of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds import train
from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.monitoring import run_folder
from srum_ds.replay import NOT_FINITE
from srum_ds.rollouts.kept_batches import read_batches
from tests.support.emulated.training import Trained, short_recipe, train_on
from tests.support.paths import RECIPE
from tests.support.runs import write_prompts
from tests.support.tiny_models import write_tiny_bagel

BAD = 1
"""Micro-batches come one a step: the second step's."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 4)


@pytest.fixture(scope="module")
def unharmed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unharmed")
    assert trained(recipe(shards, run)).status == 0
    return run


def recipe(shards: Path, run: Path, *more: str) -> Config:
    return short_recipe(RECIPE, shards, run, "train.steps=3", "train.save_every=9", *more)


def trained(cfg: Config) -> Trained:
    run_folder.prepare(Path(cfg.run.dir), cfg)
    return train_on("cpu", cfg)


def no_number(losses: Tensor) -> Tensor:
    return losses * torch.nan


def spoil(patch: pytest.MonkeyPatch, calls: Callable[[int], bool], how: Callable[[Tensor], Tensor] = no_number) -> None:
    """Has the losses of some calls, counted from 0, come out wrong."""
    plain = train.token_losses
    seen: list[None] = []

    def losses(*arguments: Any) -> Tensor:
        seen.append(None)
        found = plain(*arguments)
        return how(found) if calls(len(seen) - 1) else found

    patch.setattr(train, "token_losses", losses)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "export" / "ema.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())


@pytest.mark.parametrize("how", [no_number, lambda losses: losses + torch.inf])
def test_hardware_that_erred_once_costs_nothing(
    how: Callable[[Tensor], Tensor],
    shards: Path,
    unharmed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, lambda call: call == BAD, how)
    done = trained(recipe(shards, tmp_path, "train.on_bad_step=stop"))
    assert done.status == 0
    assert [line["retried"] for line in done.metrics] == [0, 1, 0]
    said = " ".join(capsys.readouterr().out.split())
    assert "step 2: a loss is not finite, but run again from the same batch" in said
    assert "the hardware erred once, rank 0 (cpu on " in said
    assert same(tmp_path, unharmed)
    assert not (tmp_path / "crash").exists()


def test_a_bug_is_kept_replayed_and_left_out(
    shards: Path, unharmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = recipe(shards, tmp_path, "train.on_bad_step=stop")
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, lambda call: call in (BAD, BAD + 1))
        with pytest.raises(UserError, match="step 2: a loss is not finite, and the same when it was run") as caught:
            trained(stopping)
    file = tmp_path / "crash" / "step_000002_rank_00000.json"
    assert f"`srum-ds replay {file}`" in str(caught.value)
    batches, facts = read_batches(file)
    assert facts["checkpoint"] == "checkpoints/step_000001" and (tmp_path / facts["checkpoint"]).is_dir()
    assert facts["settings"]["train.lr"] and facts["config"]["train"]["steps"] == 3
    assert batches[0].samples.finite_N.all() and batches[0].weights.map_Nhw is not None
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    # In this process nothing is wrong with it.
    capsys.readouterr()
    assert main(["replay", str(file)]) == 0
    out = capsys.readouterr().out
    assert "objective nft" in out and "constraint reference" in out and "everything is finite" in out
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    # The advice: the same command goes on, and with skip it leaves the step out.
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, lambda call: call in (0, 1))
        done = trained(recipe(shards, tmp_path, "train.on_bad_step=skip"))
    assert done.status == 0
    assert [(line["grad_norm"] is None, line["retried"]) for line in done.metrics[1:]] == [(True, 1), (False, 0)]
    assert not same(tmp_path, unharmed)


def test_the_same_command_loses_no_step(shards: Path, unharmed: Path, tmp_path: Path) -> None:
    stopping = recipe(shards, tmp_path, "train.on_bad_step=stop")
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, lambda call: call in (BAD, BAD + 1))
        with pytest.raises(UserError):
            trained(stopping)
    assert trained(stopping).status == 0
    assert same(tmp_path, unharmed)


def test_a_replay_names_the_first_module(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite and overflow: the model's last layer, in the first step already."""
    model = write_tiny_bagel(tmp_path / "model")
    stored = load_file(model / "ema.safetensors")
    stored["llm2vae.weight"] = stored["llm2vae.weight"].sign() * 3e38
    save_file(stored, model / "ema.safetensors")
    run = tmp_path / "run"
    cfg = recipe(
        shards, run, f"model.path={model}", "train.on_bad_step=stop", "judge.max_failed_share=1", "rollout.weights=live"
    )
    with pytest.raises(UserError, match="step 1: .*and the same when it was run again"):
        trained(cfg)
    file = run / "crash" / "step_000001_rank_00000.json"
    capsys.readouterr()
    assert main(["replay", str(file)]) == NOT_FINITE
    out = capsys.readouterr().out
    assert "the first that is not finite:" in out and "llm2vae" in out
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(file.read_bytes())
    moved.with_suffix(".safetensors").write_bytes(file.with_suffix(".safetensors").read_bytes())
    assert main(["replay", str(moved), "--run", str(run)]) == NOT_FINITE


def test_what_cannot_be_replayed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": "else"}))
    for name in ("a.json", "absent.json"):
        assert main(["replay", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
