"""The real training loop on the emulated accelerator: every objective, mode and readout, with the CPU's losses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from srum_ds.config.choices import OBJECTIVES, READOUTS
from tests.support.emulated import emulation
from tests.support.emulated.training import Trained, short_recipe, train_on
from tests.support.paths import RECIPE
from tests.support.runs import write_prompts

DEVICE = "emulated:0"
LOSS = 3e-7
"""By how much a loss may differ: the order of sums differs where heads are grouped otherwise."""

MODES = ("generation", "transformer", "lora")
# Two tokens of the tiny model: its word twice, which counts as a verdict so that something is learnt from it.
WRITES = ("judge.max_new_tokens=2", "judge.retries=1", "judge.max_failed_share=1", 'judge.answers=["yesyes","nono"]')

STEPS = [
    ("nft", "generation", "logprob"),
    ("group", "generation", "likelihood"),
    ("signed", "generation", "generate"),
    ("group", "transformer", "logprob"),
    ("awm", "transformer", "likelihood"),
    ("nft", "transformer", "generate"),
    ("dpo", "lora", "logprob"),
    ("weighted", "lora", "likelihood"),
    ("sft", "lora", "generate"),
]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with emulation():
        yield


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 4, ("train", "validation"))


def both(prompts: Path, folder: Path, *settings: str) -> tuple[Trained, Trained]:
    """The same run on the CPU and on the emulated device."""
    cpu, emulated = (
        train_on(device, short_recipe(RECIPE, prompts, folder / device.replace(":", ""), *settings))
        for device in ("cpu", DEVICE)
    )
    assert cpu.status == emulated.status == 0
    return cpu, emulated


def test_all_that_can_be_chosen_is_trained_with() -> None:
    objectives, modes, readouts = zip(*STEPS, strict=True)
    assert set(objectives) == set(OBJECTIVES.builtin) and set(readouts) == set(READOUTS.builtin)
    assert {(mode, readout) for _, mode, readout in STEPS} == {(m, r) for m in MODES for r in READOUTS.builtin}
    assert set(modes) == set(MODES)


@pytest.mark.parametrize(("objective", "mode", "readout"), STEPS)
def test_a_step_has_the_cpus_loss(tmp_path: Path, prompts: Path, objective: str, mode: str, readout: str) -> None:
    settings = [f"objective.name={objective}", f"model.trains={mode}", f"judge.readout={readout}"]
    cpu, emulated = both(prompts, tmp_path, *settings, *(WRITES if readout == "generate" else ()))
    (expected,), (found,) = cpu.metrics, emulated.metrics
    assert expected["loss"] != 0 and expected["grad_norm"] > 0
    assert found["loss"] == pytest.approx(expected["loss"], abs=LOSS)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert found["judged"] == expected["judged"] and found["parse_failures"] == expected["parse_failures"]
    # It was this device that did the work, and it alone.
    for phase in ("rollout", "judge", "train"):
        assert emulated.phases[phase].launches > 100 and emulated.phases[phase].devices == {0}
        assert cpu.phases[phase].launches == 0


def test_later_steps_and_recomputed_activations_have_the_cpus_losses(tmp_path: Path, prompts: Path) -> None:
    cpu, emulated = both(prompts, tmp_path, "train.steps=2", "train.activation_checkpointing=true")
    for expected, found in zip(cpu.metrics, emulated.metrics, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_step_in_bfloat16_has_about_the_cpus_loss(tmp_path: Path, prompts: Path) -> None:
    cpu, emulated = both(prompts, tmp_path, "train.precision=bf16", "train.activation_checkpointing=true")
    assert emulated.metrics[0]["loss"] == pytest.approx(cpu.metrics[0]["loss"], rel=0.02)


def test_what_is_kept_shown_and_checked_comes_back_to_the_host(tmp_path: Path, prompts: Path) -> None:
    # Rounds write what they draw and read it again; the fixed prompts are drawn, and a checker looks at others.
    settings = ["train.mode=rounds", "train.rounds=1", "log.tensorboard=true", "regions.kind=grid"]
    cpu, emulated = both(
        prompts, tmp_path, *settings, "watch.checker=shapes", "watch.every=1", "watch.prompts=2", "regions.filter=true"
    )
    assert emulated.metrics[0]["loss"] == pytest.approx(cpu.metrics[0]["loss"], abs=LOSS)
    assert emulated.metrics[0]["checker_exact"] == cpu.metrics[0]["checker_exact"]
    assert (tmp_path / "emulated0" / "export" / "ema.safetensors").exists()
