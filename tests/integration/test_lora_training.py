"""LoRA in the loop: the judge, one rank and two, kill and resume, ZeRO-3 shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.models import load_model
from tests.support.paths import MODEL
from tests.support.ranks import run_ranks
from tests.support.runs import metrics, short_run, write_prompts

STEPS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("shards"), 8)


def words(shards: Path, run_dir: Path) -> list[str]:
    """An adapter on both experts: then the judge is safe only because LoRA is off."""
    lora = ["model.trains=lora", "lora.rank=4", 'lora.targets=["q_proj","mlp.up_proj","*_moe_gen"]', "train.lr=1e-2"]
    return short_run(shards, run_dir, f"train.steps={STEPS}", "train.save_every=1", "train.keep_checkpoints=4", *lora)


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    return run_dir, run_ranks(2, words(shards, run_dir))


def test_the_run_says_what_is_bound_and_who_judges(two_ranks: tuple[Path, str]) -> None:
    run_dir, output = two_ranks
    assert "judge      the live model with LoRA off" in output
    adapter = load_file(run_dir / "export/lora/adapter_model.safetensors")
    count = sum(tensor.numel() for tensor in adapter.values())
    assert f"lora       rank 4, alpha 32, on {len(adapter) // 2} modules: {count:,} parameters" in output


def test_the_exported_folder_is_a_model_that_has_learned(two_ranks: tuple[Path, str]) -> None:
    run_dir, _ = two_ranks
    before, after = load_file(MODEL / "ema.safetensors"), load_file(run_dir / "export/ema.safetensors")
    assert before.keys() == after.keys()
    adapter = load_file(run_dir / "export/lora/adapter_model.safetensors")
    prefix = "base_model.model."
    touched = {key.removeprefix(prefix).replace(".lora_A.", ".") for key in adapter if ".lora_A." in key}
    moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert moved == touched
    for name in touched:
        module = prefix + name.removesuffix(".weight")
        update = adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
        assert torch.allclose(after[name], before[name].float() + 32 / 4 * update, atol=1e-6)
    load_model(run_dir / "export")


def test_one_rank_gives_the_same_losses(two_ranks: tuple[Path, str], shards: Path, tmp_path: Path) -> None:
    run_ranks(1, words(shards, tmp_path / "one"))
    for one, two in zip(metrics(tmp_path / "one"), metrics(two_ranks[0]), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
        assert one["reward_global"] == pytest.approx(two["reward_global"], abs=1e-4 if one["step"] <= 3 else 1e-2)


def test_from_a_checkpoint_it_ends_with_the_same_weights(
    two_ranks: tuple[Path, str], shards: Path, tmp_path: Path
) -> None:
    """The run as it stood after its second step (tests/integration/test_train.py kills runs for real)."""
    run_dir = tmp_path / "resumed"
    shutil.copytree(two_ranks[0], run_dir, ignore=shutil.ignore_patterns("export*", "step_000003", "step_000004"))
    output = run_ranks(2, words(shards, run_dir))
    assert "goes on after step 2" in output
    for name in ("ema.safetensors", "lora/adapter_model.safetensors"):
        ours, theirs = (load_file(folder / "export" / name) for folder in (run_dir, two_ranks[0]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
