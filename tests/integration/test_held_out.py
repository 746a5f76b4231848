"""Looks at held-out prompts while a run trains: what they write, what they keep, and that training feels none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.evaluation.held_out import HeldOut
from srum_ds.job import Job, StopReason
from tests.support.emulated.training import Trained, short_recipe, train_on
from tests.support.paths import RECIPE
from tests.support.runs import write_prompts

STEPS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("shards"), 4, ("train", "validation"))


def trained(shards: Path, run_dir: Path, *more: str) -> Trained:
    words = [f"train.steps={STEPS}", "train.save_every=2", "train.lr=0.003", *more]
    return train_on("cpu", short_recipe(RECIPE, shards, run_dir, *words))


def looks(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "held_out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def looked(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "looked"
    trained(shards, run_dir, "watch.every=1", "watch.prompts=3", "train.keep_checkpoints=1", "watch.checker=shapes")
    return run_dir


def test_every_look_stands_beside_the_bases(looked: Path) -> None:
    records = looks(looked)
    assert [record["step"] for record in records] == list(range(STEPS + 1))
    base = records[0]
    assert (base["difference"], base["difference_se"]) == (0, 0)
    for record in records:
        assert record["prompts"] == 3 and record["weights"] == "ema" and "judges" not in record
        assert -1 <= record["reward"] <= 1 and record["reward_se"] > 0 and 0 <= record["checker_exact"] <= 1
        assert record["reward"] - base["reward"] == pytest.approx(record["difference"], abs=1e-6)
    assert any(record["difference"] for record in records[1:])
    metrics = [json.loads(line) for line in (looked / "metrics.jsonl").read_text().splitlines()]
    assert [line["checker_exact"] for line in metrics] == [record["checker_exact"] for record in records[1:]]


def test_the_best_checkpoint_outlives_newer_ones(looked: Path) -> None:
    best = json.loads((looked / "best.json").read_text())
    assert best["reward"] == max(record["reward"] for record in looks(looked)[1:])
    kept = {int(path.name.removeprefix("step_")) for path in (looked / "checkpoints").iterdir()}
    assert kept == {best["step"], STEPS}
    assert (looked / best["checkpoint"] / "state.json").is_file()


def test_training_does_not_feel_the_looks(looked: Path, shards: Path, tmp_path: Path) -> None:
    blind = trained(shards, tmp_path / "blind", "watch.every=0")
    assert not (tmp_path / "blind" / "held_out.jsonl").exists() and not (tmp_path / "blind" / "best.json").exists()
    seen = [json.loads(line) for line in (looked / "metrics.jsonl").read_text().splitlines()]
    free = ("time_", "speed_", "memory_", "elapsed_", "wall_", "checker_")
    for ours, theirs in zip(blind.metrics, seen, strict=True):
        assert ours == {key: value for key, value in theirs.items() if not key.startswith(free)} | {
            key: value for key, value in ours.items() if key.startswith(free)
        }
    weights = [load_file(folder / "export" / "ema.safetensors") for folder in (looked, tmp_path / "blind")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_goes_on_keeps_the_bases_value_and_looks_at_nothing_twice(
    looked: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["watch.every=1", "watch.prompts=3", "watch.checker=shapes", "train.keep_checkpoints=1"]
    run_dir = tmp_path / "killed"
    after_step = Job.after_step

    def killed(job: Job, step: int, *given: Any) -> StopReason | None:
        reason = after_step(job, step, *given)
        if step == 2:
            raise KeyboardInterrupt
        return reason

    with monkeypatch.context() as patch:
        patch.setattr(Job, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(shards, run_dir, *words)
    newest = max(int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").iterdir())
    counted: list[str] = []
    look = HeldOut.look

    def count(held_out: HeldOut, *given: Any) -> Any:
        counted.append(given[1] if len(given) > 1 else "")
        return look(held_out, *given)

    monkeypatch.setattr(HeldOut, "look", count)
    trained(shards, run_dir, *words)
    assert counted == [""] * (STEPS - newest)
    assert looks(run_dir) == looks(looked)
    assert (run_dir / "best.json").read_text() == (looked / "best.json").read_text()


def test_prompts_without_a_part_kept_out_are_trained_on_with_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = write_prompts(tmp_path / "shards", 4)
    assert trained(shards, tmp_path / "run", "train.steps=1").status == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "no look at held-out prompts:" in said and "none of the splits validation, val, test" in said
    assert not (tmp_path / "run" / "held_out.jsonl").exists()
