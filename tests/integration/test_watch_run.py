"""A real run that feeds back its own errors is ended, and an earlier checkpoint kept."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.paths import RECIPES
from tests.support.ranks import srum_ds
from tests.support.runs import metrics, write_prompts


def test_a_run_that_feeds_back_its_errors_is_ended_and_an_earlier_checkpoint_kept(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path / "shards", 10, ("train", "validation"))
    run = tmp_path / "run"
    # Two Euler steps contract the latents at once; a large rate and no average make the model follow.
    words = [
        str(RECIPES / "sft.yaml"),
        f"run.dir={run}",
        f"data.shards={shards}",
        "rollout.weights=live",
        "rollout.prompts_per_step=2",
        "rollout.micro_batch_prompts=1",
        "rollout.images_per_prompt=4",
        "rollout.num_timesteps=4",
        "train.timesteps_per_image=2",
        "train.lr=1e-3",
        "train.warmup_steps=0",
        "train.steps=60",
        "train.save_every=2",
        "train.keep_checkpoints=6",
        "watch.stop=true",
        "watch.patience=2",
        "watch.first_steps=1",
        "watch.smoothing=1",
        "watch.checker=shapes",
        "watch.every=2",
        "watch.prompts=3",
        "log.tensorboard=false",
        "regions.kind=none",
    ]
    status, output = srum_ds("train", *words)
    assert status == 76, output[-4000:]
    said = json.loads((run / "stopped_by_watch.json").read_text())
    assert said["step"] < 60 and said["kept_step"] < said["step"]
    assert f"Kept: the weights after step {said['kept_step']}" in output
    assert (run / "export" / "ema.safetensors").exists()
    assert json.loads((run / "export" / "generation.json").read_text())["step"] == said["kept_step"]
    lines = metrics(run)
    assert len(lines) == said["step"]
    assert [line["step"] for line in lines if "checker_exact" in line] == list(range(2, said["step"] + 1, 2))
