"""Short runs of the tiny recipe on the embedded model: their prompts, settings and records."""

from __future__ import annotations

import json
from pathlib import Path

from srum_ds.config import Config
from srum_ds.models.protocol import UnifiedModel
from srum_ds.prompts.shards import write_shards
from srum_ds.rewards.judge.host import JudgeHost
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.collect import Collector, sampling_of
from srum_ds.worlds.shapes.world import enumerate_prompts
from tests.support.paths import RECIPE


def write_prompts(folder: Path, count: int, splits: tuple[str, ...] = ("train",)) -> Path:
    """Shards with the first ``count`` colour prompts of the shapes world in each split; returns the folder."""
    prompts = list(enumerate_prompts("color", "train"))[:count]
    for split in splits:
        write_shards(folder, split, [p.to_prompt(f"{split}-{i}") for i, p in enumerate(prompts)])
    return folder


def short_run(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The tiny recipe with small steps: four prompts in micro-batches of two, two images of each."""
    return [
        str(RECIPE),
        f"run.dir={run_dir}",
        f"data.shards={shards}",
        "train.timesteps_per_image=2",
        "rollout.prompts_per_step=4",
        "rollout.micro_batch_prompts=2",
        "rollout.images_per_prompt=2",
        "rollout.num_timesteps=4",
        "log.tensorboard=false",
        *more,
    ]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def collector_of(cfg: Config, model: UnifiedModel) -> Collector:
    """A recipe's collector without an engine: the model itself judges."""
    return Collector(cfg, model, JudgeHost(model), JudgePipeline(cfg), sampling_of(cfg))
