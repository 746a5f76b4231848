"""Rollouts kept, made ahead, judged again and trained from: the same updates as online, on any ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.models import load_model
from srum_ds.prompts.shards import write_shards
from srum_ds.rewards.judge.pipeline import Questions
from srum_ds.rollouts.header import check_rollouts, rollout_header
from srum_ds.rollouts.shards import Index, RolloutReader, RolloutWriter
from srum_ds.rollouts.sources import Rounds
from srum_ds.types import Judged
from srum_ds.worlds.shapes.world import enumerate_prompts
from tests.integration.test_train import MODEL, RECIPE, finish, kill_after, launch, metrics
from tests.support.paths import ROOT
from tests.unit.rollouts.test_rollouts import HEADER, judged


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    prompts = [p.to_prompt(f"train-{i}") for i, p in enumerate(enumerate_prompts("color", "train")) if i < 6]
    write_shards(folder, "train", prompts)
    return folder


def settings(shards: Path, *more: str) -> list[str]:
    return [
        f"data.shards={shards}",
        "train.steps=2",
        "train.save_every=1",
        "train.timesteps_per_image=2",
        "rollout.prompts_per_step=4",
        "rollout.micro_batch_prompts=2",
        "rollout.images_per_prompt=2",
        "rollout.num_timesteps=4",
        "log.tensorboard=false",
        "watch.checker=none",
        *more,
    ]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`srum-ds` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from srum_ds.commands.main import main; sys.exit(main())", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def weights_after(run: Path, step: int) -> dict[str, Tensor]:
    """The fp32 masters of a checkpoint, whole, whatever ranks wrote them."""
    folder = checkpoint.step_folder(run / "checkpoints", step)
    state = checkpoint.read_state(folder)
    with checkpoint.Reader(folder, [file.name for file in checkpoint.records(state)]) as reader:
        sizes = {name: int(torch.tensor(shape).prod()) for name, shape in state["parameters"].items()}
        return {name: reader.read(f"live/{name}", 0, size) for name, size in sizes.items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def online(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("online") / "run"
    finish(launch(1, [RECIPE, *settings(shards, f"run.dir={run}", "rollout.keep=true")]))
    return run


@pytest.fixture(scope="module")
def rollouts(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 0 drawn by one rank without a launcher, step 1 by two ranks under it."""
    folder = tmp_path_factory.mktemp("ahead") / "rollouts"
    words = settings(shards)
    first = command("rollout", RECIPE, *words, "train.steps=1", "deepspeed.ranks=1", "--out", str(folder))
    assert first.returncode == 0, first.stderr
    second = command("rollout", RECIPE, *words, "deepspeed.ranks=2", "--out", str(folder))
    assert second.returncode == 0, second.stderr
    return folder


def test_offline_from_onlines_rollouts_gives_the_same_updates(online: Path, tmp_path: Path, shards: Path) -> None:
    """Two ranks read what one wrote. The prompts themselves are not needed."""
    run = tmp_path / "run"
    words = settings(tmp_path / "nowhere", f"run.dir={run}", "train.mode=offline")
    output = finish(launch(2, [RECIPE, *words, f"data.rollouts={online / 'rollouts'}"]))
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
    done = command("rescore", str(rollouts), *again)
    assert done.returncode == 0, done.stderr
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
    refused = command("rescore", str(rollouts), "rollout.text_scale=2", "--out", str(tmp_path / "no"))
    assert refused.returncode == 2 and "rollout.text_scale=2" in refused.stderr


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
    words = settings(shards, f"run.dir={run}", "train.mode=offline", f"data.rollouts={folder}")
    output, _ = (process := launch(2, [RECIPE, *words])).communicate(timeout=300)
    assert process.returncode != 0
    assert output.count("step-000001-rank-00001.tar: changed since it was written") == 2
    assert [line["step"] for line in metrics(run)] == [0]


def test_rounds_killed_in_between_end_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    words = [RECIPE, *settings(shards, "train.mode=rounds", "train.rounds=2", "train.save_every=9")]
    words = [word.replace("train.steps=2", "train.steps=4") for word in words]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = finish(launch(2, [*words, f"run.dir={whole}"]))
    assert output.count("draws 2 steps ahead") == 2
    # A header, round 1, and the first step of round 2: its second step is still to be drawn.
    kill_after(launch(2, [*words, f"run.dir={killed}"]), killed, 4, "rollouts/index.jsonl")
    assert "goes on after step 2" in finish(launch(2, [*words, f"run.dir={killed}"]))
    assert farthest(weights_after(whole, 4), weights_after(killed, 4)) == 0.0
    reader = RolloutReader(killed / "rollouts")
    assert [reader.policy(step) for step in range(4)] == [0, 0, 1, 1]


# ---- without a launcher


class Stack:
    """Stands for online drawing: a step's pictures from a table."""

    def __init__(self, length: int) -> None:
        train = SimpleNamespace(steps=2 * length, rounds=2)
        self.cfg = SimpleNamespace(train=train, rollout=SimpleNamespace(micro_batch_prompts=2))
        self.engine = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
        self.drawn: list[int] = []

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        self.drawn.append(step)
        return [judged(0, step), judged(2, step)]


def rounds(folder: Path, stack: Any, start: int = 0, kept: int | None = None, stop: bool = False) -> Rounds:
    writer = RolloutWriter(folder, HEADER, None if kept is None else range(kept))
    return Rounds(stack, writer, start, lambda: stop, lambda text: None)


def test_a_round_is_drawn_once_and_whole(tmp_path: Path) -> None:
    stack = Stack(3)
    source = rounds(tmp_path, stack)
    first = source.batches(0, Clock())
    assert stack.drawn == [0, 1, 2] and first is not None
    assert torch.equal(first[1].samples.tokens, judged(2, 0).samples.tokens)
    source.batches(1, Clock())
    source.batches(2, Clock())
    assert stack.drawn == [0, 1, 2]
    source.batches(3, Clock())
    assert stack.drawn == [0, 1, 2, 3, 4, 5]
    assert [source.redrawn_after(step) for step in range(6)] == [False, False, True, False, False, True]


def test_a_round_stopped_while_drawing_goes_on(tmp_path: Path) -> None:
    assert rounds(tmp_path, Stack(3), stop=True).batches(0, Clock()) is None
    stack = Stack(3)
    assert rounds(tmp_path, stack, kept=3).batches(0, Clock()) is not None
    assert stack.drawn == [1, 2]
    # In the middle of a round its pictures can no longer be drawn: the weights have moved.
    with pytest.raises(UserError, match="the first being 2"):
        rounds(tmp_path, Stack(3), start=1, kept=2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.image_size=[32,64]"], r"latent grid of \[2, 4\], but theirs is \[4, 4\]"),
        (["rollout.prompts_per_step=4"], r"rollout\.prompts_per_step=4, but they were made with 8"),
        (["rollout.images_per_prompt=4"], r"rollout\.images_per_prompt=4, but they were made with 8"),
        (["train.steps=3"], r"the first being 0"),
    ],
)
def test_rollouts_that_do_not_fit_are_named(overrides: list[str], said: str, tmp_path: Path) -> None:
    model, cfg = load_model(MODEL), load_config(RECIPE)
    header = rollout_header(cfg, model, Questions(cfg))
    other = load_config(RECIPE, overrides)
    with pytest.raises(UserError, match=said):
        check_rollouts(other, model, Questions(other), RolloutReader(tmp_path, Index(header, {})))


def test_another_model_is_named_and_other_questions_are_told(tmp_path: Path) -> None:
    model, cfg = load_model(MODEL), load_config(RECIPE, ["judge.min_mass=0.1", "train.steps=1"])
    found = rollout_header(load_config(RECIPE), model, Questions(cfg))
    writer = RolloutWriter(tmp_path, found)
    writer.write(0, 0, [])
    told = check_rollouts(cfg, model, Questions(cfg), RolloutReader(tmp_path))
    assert told == ["judge.min_mass was 0.05 and is now 0.1"]
    foreign = Index(rollout_header(cfg, model, Questions(cfg)), {})
    object.__setattr__(foreign.header, "model", "0" * 64)
    with pytest.raises(UserError, match="another model"):
        check_rollouts(cfg, model, Questions(cfg), RolloutReader(tmp_path, foreign))


def test_modes_ask_for_what_they_need() -> None:
    with pytest.raises(UserError, match=r"data\.rollouts"):
        load_config(RECIPE, ["train.mode=offline"])
    with pytest.raises(UserError, match=r"train\.steps=120 is not a multiple of train\.rounds=7"):
        load_config(RECIPE, ["train.mode=rounds", "train.rounds=7"])
