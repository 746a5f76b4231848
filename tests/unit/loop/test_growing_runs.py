"""Runs that go on with more steps or other settings, and runs that begin with another run's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.common.files import sha256_of, weights_sha256
from srum_ds.config import Config
from srum_ds.engine.checkpoint_state import sealed
from srum_ds.evaluation import evaluate
from srum_ds.evaluation.run_export import export_checkpoint, exported
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.run_fork import read_fork
from tests.support.emulated.training import Trained, short_recipe, train_on
from tests.support.paths import RECIPE
from tests.support.runs import write_prompts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 4)


@pytest.fixture(scope="module")
def two_steps(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    assert trained(recipe(shards, run, "train.steps=2")).status == 0
    return run


def recipe(shards: Path, run: Path, *more: str) -> Config:
    return short_recipe(RECIPE, shards, run, "train.warmup_steps=3", *more)


def trained(cfg: Config) -> Trained:
    run_folder.prepare(Path(cfg.run.dir), cfg)
    return train_on("cpu", cfg)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "export" / "ema.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())


def test_more_steps_and_other_saves_end_as_if_they_had_been_asked_for_at_once(
    shards: Path, two_steps: Path, tmp_path: Path
) -> None:
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    assert trained(recipe(shards, whole, "train.steps=4", "train.save_every=20")).status == 0
    shutil.copytree(two_steps, grown)
    more = ["train.steps=4", "train.save_every=1", "train.keep_checkpoints=1", "watch.patience=9"]
    done = trained(recipe(shards, grown, *more))
    assert done.status == 0 and [line["step"] for line in done.metrics] == [1, 2, 3, 4]
    assert same(grown, whole) and not same(grown, two_steps)
    assert same(grown / "former/step_000002", two_steps), "what it was is kept"
    assert [path.name for path in (grown / "checkpoints").iterdir()] == ["step_000004"]


def test_a_fork_begins_with_the_other_runs_weights_and_says_so(
    shards: Path, two_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of zero nothing moves: what it exports are the weights that it began with."""
    run = tmp_path / "fork"
    cfg = recipe(shards, run, "train.steps=1", "train.lr=0", "eval.weights=live", f"run.fork={two_steps}")
    assert trained(cfg).status == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"begins with the weights after step 2 of {two_steps}, and with its moments of the optimizer" in said
    noted = json.loads((run / "forked_from.json").read_text())
    assert noted["step"] == 2 and ["train.lr", "0.0005", "0.0"] in noted["changed"]
    assert "run.fork" in json.loads((run / "inputs.json").read_text())["inputs"]
    kept = load_file(two_steps / "checkpoints/step_000002/rank_00000.safetensors")
    exported = weights(run)
    names = [key.removeprefix("live/") for key in kept if key.startswith("live/")]
    assert len(names) > 10
    assert all(torch.equal(kept[f"live/{name}"], exported[name].flatten()) for name in names)
    # It has a checkpoint of its own now, and does not need the other run any more.
    assert trained(cfg).status == 0


def test_the_command_hands_a_fork_on(two_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(RECIPE), f"--fork={two_steps}", "--dry-run", f"run.dir={tmp_path}", "run.fork_step=2"]
    assert main([*words, "deepspeed.ranks=1"]) == 0
    assert f"run.fork={two_steps}" in capsys.readouterr().out


def test_a_fork_with_other_betas_begins_with_fresh_moments(shards: Path, two_steps: Path, tmp_path: Path) -> None:
    words = ["train.steps=1", "train.lr=0", "train.betas=[0.8,0.9]", f"run.fork={two_steps}"]
    assert trained(recipe(shards, tmp_path, *words)).status == 0
    state = json.loads((tmp_path / "checkpoints/step_000001/state.json").read_text())
    assert state["adam_steps"] == 1, "with the moments it would be 3"
    assert "train.betas were [0.9, 0.95]" in json.loads((tmp_path / "forked_from.json").read_text())["why_fresh"]


def test_a_checkpoint_is_exported_as_the_run_itself_exports_it(
    two_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(two_steps), f"--out={tmp_path / 'ema'}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ema'}\n"
    assert weights_sha256(tmp_path / "ema") == weights_sha256(two_steps / "export")
    assert main(["export", str(two_steps), "--step=2", "--weights=live"]) == 0
    live = load_file(two_steps / "exports/step_000002_live/ema.safetensors")
    kept = load_file(two_steps / "checkpoints/step_000002/rank_00000.safetensors")
    named = {key.removeprefix("live/"): value for key, value in kept.items() if key.startswith("live/")}
    assert len(named) > 10 and all(torch.equal(value, live[name].flatten()) for name, value in named.items())
    assert exported(two_steps, 2, "live") == two_steps / "exports/step_000002_live"
    # An evaluation of that step takes the export that is there, and writes beside it.
    asked: list[dict[str, object]] = []

    def evaluated(*arguments: object, **named: object) -> dict[str, object]:
        asked.append(named)
        return {}

    monkeypatch.setattr(evaluate, "evaluate_run", evaluated)
    assert main(["eval", str(two_steps), "--step=2", "eval.weights=live"]) == 0
    made = two_steps / "exports/step_000002_live"
    assert asked == [{"model": made, "out": made.with_name("step_000002_live_eval")}]
    (two_steps / "exports/step_000002_live.json").write_text("{")
    assert main(["eval", str(two_steps), "--step=2", "eval.weights=live"]) == 2
    assert "is not of the checkpoint that the run has now" in capsys.readouterr().err
    # What stands somewhere stays, and so does what is damaged.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["export", str(two_steps), f"--out={tmp_path / 'ema'}"]) == 2
    assert main(["export", str(two_steps), "--step=1"]) == 2
    assert main(["export", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is there already" in said and "has no checkpoint of step 1; it has 2" in said and "holds no run" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_weights_that_are_not_finite_are_not_exported(two_steps: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_steps, run)
    folder = run / "checkpoints/step_000002"
    with safe_open(folder / "rank_00000.safetensors", "pt") as handle:
        metadata = handle.metadata()
    kept = load_file(folder / "rank_00000.safetensors")
    next(value for key, value in kept.items() if key.startswith("weights.ema/"))[0] = float("nan")
    save_file(kept, folder / "rank_00000.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="the checkpoint is damaged, and nothing was exported"):
        export_checkpoint(run, out=tmp_path / "out")
    state = json.loads((folder / "state.json").read_text())
    state.pop("sha256")
    size = (folder / "rank_00000.safetensors").stat().st_size
    state["files"][0] |= {"bytes": size, "sha256": sha256_of(folder / "rank_00000.safetensors")}
    (folder / "state.json").write_text(json.dumps(sealed(state)))
    with pytest.raises(UserError, match="holds numbers that are not finite, so nothing is exported"):
        export_checkpoint(run, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_is_exported_merged(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "lora"
    assert trained(recipe(shards, run, "train.steps=1", "model.trains=lora", "lora.rank=2")).status == 0
    assert weights_sha256(export_checkpoint(run)) == weights_sha256(run / "export")
    assert (run / "exports/step_000001_ema/lora/adapter_model.safetensors").is_file()


def test_forks_that_cannot_be_are_named(shards: Path, two_steps: Path, tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        with pytest.raises(UserError) as caught:
            run_folder.prepare(tmp_path, recipe(shards, tmp_path, "train.steps=1", *more))
        assert not (tmp_path / "config.yaml").exists()
        return str(caught.value)

    assert "no run there" in refused(f"run.fork={tmp_path / 'nothing'}")
    assert "has no checkpoint of that step; it has 2" in refused(f"run.fork={two_steps}", "run.fork_step=1")
    other = refused(f"run.fork={two_steps}", "model.trains=transformer")
    assert "model.trains was 'generation' and is 'transformer'" in other and "srum-ds export" in other
    (tmp_path / "forked_from.json").write_text('{"run": "x", "step": "2"}')
    with pytest.raises(UserError, match=r"forked_from\.json: cannot be read"):
        read_fork(tmp_path)
    assert "is of the run that run.fork names" in str(
        pytest.raises(UserError, recipe, shards, tmp_path, "run.fork_step=1").value
    )
