"""The loop end to end, under the real launcher: ranks agree, a killed run ends as one never killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.common.errors import UserError
from srum_ds.models import load_model
from srum_ds.monitoring.records import read_held_out
from srum_ds.train import main
from tests.support.launching import finish, kill_launched_after, launch
from tests.support.paths import MODEL
from tests.support.ranks import kill_after, run_ranks, start_ranks
from tests.support.runs import metrics, short_run, write_prompts

STEPS = 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts: with four a step, the epoch ends in the middle of step 2."""
    return write_prompts(tmp_path_factory.mktemp("shards"), 10, ("train", "validation"))


def settings(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return short_run(shards, run_dir, f"train.steps={STEPS}", "train.save_every=4", *more)


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    finish(launch(2, settings(shards, run_dir)))
    return run_dir


def test_run_folder_holds_what_the_readme_says(two_ranks: Path) -> None:
    record = metrics(two_ranks)
    assert [line["step"] for line in record] == list(range(1, STEPS + 1))
    wanted = {"loss", "reward_global", "reward_local", "reward_std_zero_share", "parse_failures", "grad_norm"}
    wanted |= {"time_data", "time_rollout", "time_judge", "time_train"}
    wanted |= {"flops_rollout", "flops_judge", "flops_train", "speed_mfu", "speed_mfu_train", "memory_peak_bytes"}
    wanted |= {"speed_images_per_second_per_gpu", "speed_tokens_per_second", "bytes_gathered", "bytes_reduced"}
    assert wanted <= record[0].keys()
    environment = json.loads((two_ranks / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["sharded_share"] > 0.99
    assert environment["kernels"]["setting"] == "auto"
    assert bool(environment["kernels"]["fused"]) == torch.cuda.is_available()
    # The peak is measured by a product at the start; MFU is the counted FLOPs of both ranks against it.
    last = record[-1]
    counted = sum(last[f"flops_{phase}"] for phase in ("rollout", "judge", "train"))
    seconds = sum(value for key, value in last.items() if key.startswith("time_"))
    assert last["speed_mfu"] == pytest.approx(counted / (2 * environment["peak_flops"] * seconds), rel=1e-6)
    assert (two_ranks / "config.yaml").exists()
    assert [look["step"] for look in read_held_out(two_ranks)] == [0, STEPS]
    assert f"step {STEPS}/{STEPS}  ETA 0:00" in (two_ranks / "run.log").read_text()


def test_understanding_is_bit_identical_and_generation_has_moved(two_ranks: Path) -> None:
    base, trained = load_model(MODEL), load_model(two_ranks / "export")
    said = json.loads((two_ranks / "export" / "generation.json").read_text())
    assert (said["kind"], said["step"], said["weights"]) == ("bagel", len(metrics(two_ranks)), "ema")
    assert "Not measured yet" in (two_ranks / "export" / "README.md").read_text()
    moved = 0
    names = set(base.trainable("generation"))
    before, after = dict(base.module.named_parameters()), dict(trained.module.named_parameters())
    for name in before:
        if name in names:
            moved += not torch.equal(before[name], after[name])
        else:
            assert torch.equal(before[name], after[name]), name
    assert moved > len(names) * 0.9
    picture = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    question = ["does the picture show a red circle and a blue square?"]
    answers = ("yes", "no")
    assert torch.equal(
        base.answer_logprobs(picture, question, answers), trained.answer_logprobs(picture, question, answers)
    )


def test_one_rank_gives_the_same_losses_and_rewards(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    run_ranks(1, settings(shards, tmp_path / "one"))
    for one, two in zip(metrics(tmp_path / "one"), metrics(two_ranks), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
        # The work of all ranks together is the same; one alone moves nothing.
        assert (one["flops_rollout"], one["flops_train"]) == (two["flops_rollout"], two["flops_train"])
        assert one["bytes_gathered"] == one["bytes_reduced"] == 0 < min(two["bytes_gathered"], two["bytes_reduced"])
        close = 1e-4 if one["step"] <= 3 else 1e-2
        assert one["reward_global"] == pytest.approx(two["reward_global"], abs=close)
        assert one["reward_local"] == pytest.approx(two["reward_local"], abs=close)


def test_recomputed_blocks_give_the_same_losses_and_gradients(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    """Under ZeRO-3 on two ranks, with the understanding half frozen."""
    more = ("train.steps=3", "train.save_every=3", "train.activation_checkpointing=true")
    run_ranks(2, settings(shards, tmp_path / "again", *more))
    recomputed = metrics(tmp_path / "again")
    assert len(recomputed) == 3
    for ours, kept in zip(recomputed, metrics(two_ranks), strict=False):
        assert ours["loss"] == pytest.approx(kept["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(kept["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    """Under ZeRO-3 on one rank, recomputing the blocks; captions are dropped, so that groups differ by step."""
    more = ("train.steps=2", "train.save_every=2", "train.compile=true", "train.activation_checkpointing=true")
    run_ranks(1, settings(shards, tmp_path / "compiled", *more))
    compiled = metrics(tmp_path / "compiled")
    assert len(compiled) == 2
    for ours, kept in zip(compiled, metrics(two_ranks), strict=False):
        assert ours["loss"] == pytest.approx(kept["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(kept["grad_norm"], rel=1e-3)


def test_a_frozen_copy_judges_the_whole_transformer_on_one_rank_and_two(shards: Path, tmp_path: Path) -> None:
    words = ["model.trains=transformer", "train.steps=3", "log.tensorboard=true", "train.lr=0.002"]
    for ranks in (1, 2):
        output = run_ranks(ranks, settings(shards, tmp_path / str(ranks), *words))
        assert "trains     transformer" in output and "judge      a frozen copy" in output
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
        assert one["reward_global"] == pytest.approx(two["reward_global"], abs=1e-3)
    before, after = (load_file(path / "ema.safetensors") for path in (MODEL, tmp_path / "2" / "export"))
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert any("_moe_gen" not in name and ".mlp." in name for name in moved)
    assert not any(name.startswith(("vit_model.", "connector.", "vit_pos_embed.")) for name in moved)


def test_killed_twice_it_ends_with_the_same_weights(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    kill_launched_after(launch(2, settings(shards, run_dir)), run_dir, 6)
    kill_after(start_ranks(2, settings(shards, run_dir)), run_dir, 13)
    run_ranks(2, settings(shards, run_dir))
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))
    # The base was looked at once, before the first kill.
    assert [look["step"] for look in read_held_out(run_dir)] == [0, STEPS]
    ours, theirs = (load_file(folder / "export/ema.safetensors") for folder in (run_dir, two_ranks))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_finished_run_says_so_and_changed_settings_are_refused(
    two_ranks: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings(shards, two_ranks)) == 0
    said = capsys.readouterr().out
    assert "finished" in said and "use of the devices" in said
    with pytest.raises(UserError, match=r"train\.lr was 0\.0005 and is now 0\.1"):
        main(settings(shards, two_ranks, "train.lr=0.1"))


def test_bad_input_is_named_before_anything_runs(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        main(short_run(shards, tmp_path / "a", "model.path=/nowhere"))
    with pytest.raises(UserError, match="index.json"):
        main(short_run(tmp_path / "empty", tmp_path / "b"))
    with pytest.raises(UserError, match="prompts_per_step"):
        main(short_run(shards, tmp_path / "c", "rollout.prompts_per_step=3"))
    with pytest.raises(UserError, match=r"rollout\.prompts_per_step"):
        main(short_run(shards, tmp_path / "d", "rollout.prompt_per_step=3"))
