"""The tiny recipe's two steps through the real ZeRO-3 engine in one rank, against the CPU's, and ranks' devices.

The runs are processes of their own, all at once: on the device in fp32, in bf16 and with activation checkpointing, and
on the CPU, without DeepSpeed, in both precisions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

from srum_ds.common.environment import ROOT
from srum_ds.engine import choose_device, distributed
from tests.gpu.check.driver import environment
from tests.gpu.check.measuring import Figures, Where

RECIPE = ROOT / "launch" / "recipes" / "tiny.yaml"
WORDS = (
    "train.steps=2",
    "train.warmup_steps=0",
    "train.timesteps_per_image=2",
    "rollout.prompts_per_step=4",
    "rollout.micro_batch_prompts=2",
    "rollout.images_per_prompt=2",
    "rollout.num_timesteps=4",
    "log.tensorboard=false",
    "log.progress=false",
    "deepspeed.config=ds_configs/zero3.json",
)
CHECKPOINTING = "train.activation_checkpointing=true"
# In bf16 roundings move a box by a pixel and with it a reward, so that the loss must not depend on rewards.
BF16 = ("train.precision=bf16", "objective.name=sft")
RUNS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("train.precision=fp32",),
    "bf16": BF16,
    "fp32_checkpointing": ("train.precision=fp32", CHECKPOINTING),
    "cpu_fp32": ("train.precision=fp32",),
    "cpu_bf16": BF16,
}
AGAINST = {"fp32": "cpu_fp32", "bf16": "cpu_bf16", "fp32_checkpointing": "cpu_fp32"}
WITHIN = {"fp32": 1e-3, "bf16": 2e-2, "fp32_checkpointing": 1e-3}
"""How far a step's loss may be from the CPU's."""


def run(figures: Figures, where: Where) -> None:
    figures["device_of_local_rank"] = chosen_devices(8)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in RUNS}
        commands = {name: [str(RECIPE), f"run.dir={run_dir}", *WORDS, *RUNS[name]] for name, run_dir in runs.items()}
        ended = train_all(commands, where.rehearse)
        losses: dict[str, list[float]] = {}
        seen: dict[str, list[dict[str, float]]] = {}
        failed: dict[str, str] = {}
        for name, run_dir in runs.items():
            if ended[name][0]:
                failed[name] = ended[name][1]
                continue
            lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            losses[name] = [line["loss"] for line in lines]
            seen[name] = [{key: line[key] for key in ("regions", "reward_global", "reward_local")} for line in lines]
            if name in AGAINST:
                made = json.loads((run_dir / "environment.json").read_text())
                figures[f"{name}_sharded_share"] = made["sharded_share"]
                figures[f"{name}_kernels"] = made["kernels"]
                figures[f"{name}_seconds"] = [
                    {key: value for key, value in line.items() if key.startswith("time_")} for line in lines
                ]
    figures["losses"] = losses
    figures["judged"] = seen
    for name, said in failed.items():
        print(f"---- {name}\n{said}")
    off = {
        name: max(abs(one - other) for one, other in zip(losses[name], losses[against], strict=True))
        for name, against in AGAINST.items()
        if name in losses and against in losses
    }
    figures["loss_off_the_cpus"] = off
    figures["failed"] = sorted(failed)
    apart = {name: share for name, share in off.items() if not share <= WITHIN[name]}
    if failed or apart:
        raise AssertionError(f"failed: {sorted(failed)}; losses too far from the CPU's: {apart}")


def chosen_devices(count: int) -> list[int]:
    """The device that each local rank of a node with ``count`` devices would make its own; nothing is switched."""
    accelerator = distributed.get_accelerator()
    taken: list[int] = []
    for local in range(count):
        with (
            patch.dict("os.environ", {"LOCAL_RANK": str(local)}),
            patch.object(accelerator, "device_name", lambda *_: "cuda"),
            patch.object(accelerator, "device_count", lambda: count),
            patch.object(accelerator, "set_device", taken.append),
        ):
            choose_device()
    if taken != list(range(count)):
        raise AssertionError(f"local ranks would take devices {taken}")
    return taken


def train_all(commands: Mapping[str, Sequence[str]], rehearse: bool) -> dict[str, tuple[int, str]]:
    """Trains with each recipe and its words, all at once; exit status and what was said of each.

    A name that begins with ``cpu`` is the same without DeepSpeed on the CPU.
    """
    started: dict[str, subprocess.Popen[str]] = {}
    for name, words in commands.items():
        on_cpu = name.startswith("cpu")
        variables = environment(rehearse)
        if on_cpu:
            variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        started[name] = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.check.train_once", "plain" if on_cpu else "engine", *words],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    ended: dict[str, tuple[int, str]] = {}
    for name, process in started.items():
        said, _ = process.communicate()
        ended[name] = process.returncode, said[-3000:]
    return ended
