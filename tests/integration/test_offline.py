"""Rollouts kept, made ahead, judged again and trained from: the same updates as online, on any ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.checkpoint_state import read_state, records
from srum_ds.models import load_model
from srum_ds.rollouts.shards import RolloutReader
from tests.support.launching import command
from tests.support.paths import MODEL
from tests.support.ranks import kill_after, run_ranks, srum_ds, start_ranks
from tests.support.runs import metrics, short_run, write_prompts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("shards"), 6)


def words(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return short_run(shards, run_dir, "train.steps=2", "train.save_every=1", "watch.checker=none", *more)


def weights_after(run: Path, step: int) -> dict[str, Tensor]:
    """The fp32 masters of a checkpoint, whole, whatever ranks wrote them."""
    folder = checkpoint.step_folder(run / "checkpoints", step)
    state = read_state(folder)
    with checkpoint.Reader(folder, [file.name for file in records(state)]) as reader:
        sizes = {name: int(torch.tensor(shape).prod()) for name, shape in state["parameters"].items()}
        return {name: reader.read(f"live/{name}", 0, size) for name, size in sizes.items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def online(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("online") / "run"
    run_ranks(1, words(shards, run, "rollout.keep=true"))
    return run


@pytest.fixture(scope="module")
def rollouts(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 0 drawn by one rank without a launcher, step 1 by two ranks under it."""
    folder = tmp_path_factory.mktemp("ahead") / "rollouts"
    given = words(shards, folder.with_name("no_run"))
    status, printed = srum_ds("rollout", *given, "train.steps=1", "deepspeed.ranks=1", "--out", str(folder))
    assert status == 0, printed
    second = command("rollout", *given, "deepspeed.ranks=2", "--out", str(folder))
    assert second.returncode == 0, second.stderr
    return folder


def test_offline_from_onlines_rollouts_gives_the_same_updates(online: Path, tmp_path: Path, shards: Path) -> None:
    """Two ranks read what one wrote. The prompts themselves are not needed."""
    run = tmp_path / "run"
    given = words(tmp_path / "nowhere", run, "train.mode=offline", f"data.rollouts={online / 'rollouts'}")
    output = run_ranks(2, given)
    base = {name: p.detach().flatten() for name, p in load_model(MODEL).module.named_parameters()}
    for step in (1, 2):
        ours, theirs = weights_after(run, step), weights_after(online, step)
        assert farthest(ours, theirs) <= 1e-6
        assert farthest(theirs, {name: base[name] for name in theirs}) > 5e-5
    for ours_of_step, theirs_of_step in zip(metrics(run), metrics(online), strict=True):
        for key in ("loss", "reward_global", "reward_local", "grad_norm", "latent_std", "judged"):
            assert ours_of_step[key] == pytest.approx(theirs_of_step[key], rel=1e-5), key
    assert f"those of {online / 'rollouts'}" in output


def test_rollouts_made_ahead_are_what_online_draws(online: Path, rollouts: Path) -> None:
    kept, ahead = RolloutReader(online / "rollouts"), RolloutReader(rollouts)
    assert sorted(ahead.index.steps) == [0, 1] and len(ahead.index.steps[1].shards) == 2
    assert kept.header == ahead.header
    for ours, theirs in zip(ahead.batches(0, 2), kept.batches(0, 2), strict=True):
        assert ours.samples.prompts == theirs.samples.prompts
        torch.testing.assert_close(ours.samples.tokens, theirs.samples.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.scores.global_N, theirs.scores.global_N, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.scores.local_R, theirs.scores.local_R, rtol=0, atol=1e-4, equal_nan=True)
    # Online's second step is drawn by weights that have moved.
    second = [r.batches(1, 4)[0].samples.tokens for r in (kept, ahead)]
    assert float((second[0] - second[1]).abs().max()) > 1e-4
    assert [r.policy(1) for r in (kept, ahead)] == [1, 0]


def test_rescored_pictures_are_the_same_and_scores_are_not(rollouts: Path, tmp_path: Path) -> None:
    question = tmp_path / "other.jinja"
    question.write_text("does this picture show {{ prompt }}?\n")
    out = tmp_path / "again"
    again = [f"judge.global_template={question}", "deepspeed.ranks=1", "--out", str(out)]
    status, printed = srum_ds("rescore", str(rollouts), *again)
    assert status == 0, printed
    before, after = RolloutReader(rollouts), RolloutReader(out)
    assert sorted(after.index.steps) == [0, 1]
    assert before.header.judge["local_template"] == after.header.judge["local_template"]
    assert before.header.judge["global_template"] != after.header.judge["global_template"]
    (old,), (new,) = before.batches(1, 4), after.batches(1, 4)
    assert torch.equal(old.samples.tokens, new.samples.tokens)
    assert torch.equal(old.samples.images_NCHW, new.samples.images_NCHW)
    assert torch.equal(old.regions.boxes_R4, new.regions.boxes_R4)
    assert float((old.scores.global_N - new.scores.global_N).abs().max()) > 1e-3
    torch.testing.assert_close(old.scores.local_R, new.scores.local_R, equal_nan=True)
    status, printed = srum_ds("rescore", str(rollouts), "rollout.text_scale=2", "--out", str(tmp_path / "no"))
    assert status == 2 and "rollout.text_scale=2" in printed


def test_a_shard_that_one_rank_finds_damaged_ends_all_ranks(rollouts: Path, tmp_path: Path, shards: Path) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for path in rollouts.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    bad = folder / "step-000001-rank-00001.tar"
    data = bytearray(bad.read_bytes())
    data[3000] ^= 1
    bad.write_bytes(data)
    run = tmp_path / "run"
    given = words(shards, run, "train.mode=offline", f"data.rollouts={folder}")
    ranks = start_ranks(2, given)
    assert all(status != 0 for status in ranks.wait())
    assert ranks.printed.count("step-000001-rank-00001.tar: changed since it was written") == 2
    assert [line["step"] for line in metrics(run)] == [1]


def test_rounds_killed_in_between_end_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    rounds = ("train.mode=rounds", "train.rounds=2", "train.save_every=9", "train.steps=4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = run_ranks(2, words(shards, whole, *rounds))
    assert output.count("draws 2 steps ahead") == 2
    # A header, round 1, and the first step of round 2: its second step is still to be drawn.
    kill_after(start_ranks(2, words(shards, killed, *rounds)), killed, 4, "rollouts/index.jsonl")
    assert "goes on after step 2" in run_ranks(2, words(shards, killed, *rounds))
    assert farthest(weights_after(whole, 4), weights_after(killed, 4)) == 0.0
    reader = RolloutReader(killed / "rollouts")
    assert [reader.policy(step) for step in range(4)] == [0, 0, 1, 1]


# ---- one step ahead, and layer by layer


def test_one_step_ahead_trains_on_the_last_steps_weights(shards: Path, tmp_path: Path) -> None:
    """Killed in between, a run goes on from the same images and ends with the same weights."""
    given = ("train.steps=4", "train.save_every=2", "train.mode=ahead")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_ranks(2, words(shards, whole, *given))
    assert [line["staleness"] for line in metrics(whole)] == [0, 1, 1, 1]
    kept = RolloutReader(whole / "rollouts")
    assert [kept.policy(step) for step in range(4)] == [0, 0, 1, 2]
    kill_after(start_ranks(2, words(shards, cut, *given)), cut, 3)
    run_ranks(2, words(shards, cut, *given))
    assert farthest(weights_after(whole, 4), weights_after(cut, 4)) == 0
    # The second step's images are those of the first step's weights: the untrained ones.
    online = RolloutReader(whole / "rollouts").batches(1, 4)[0].samples.tokens
    assert online.isfinite().all()


def test_drawing_layer_by_layer_changes_no_step(shards: Path, tmp_path: Path) -> None:
    runs = {how: tmp_path / how for how in ("whole", "layers")}
    for how, run in runs.items():
        run_ranks(2, words(shards, run, f"rollout.gather={how}", "log.tensorboard=true", "log.image_every=1"))
    for ours, theirs in zip(metrics(runs["layers"]), metrics(runs["whole"]), strict=True):
        differing = {
            key
            for key in ours
            if ours[key] != theirs[key]
            and not key.startswith(("time_", "speed_", "memory_", "bytes_", "elapsed_", "wall_"))
        }
        assert not differing
    assert farthest(weights_after(runs["layers"], 2), weights_after(runs["whole"], 2)) == 0
