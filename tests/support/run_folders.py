"""Folders of runs, made by hand: what a run writes, without running one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from srum_ds.config import Config, save_config
from srum_ds.config.schema import RunConfig, TrainConfig
from srum_ds.rollouts.fixed_records import SeenBox, SeenImage, Showing, write_showing

SCRIPT = "a red circle <script>document.title='owned'</script>"


def run_folder(
    folder: Path,
    rewards: Sequence[float],
    *,
    first_step: int = 1,
    steps: int | None = None,
    finished: bool = True,
    more: Sequence[dict[str, Any]] = (),
) -> Path:
    """A run with these rewards, one a step. first_step: 0 as former versions counted. more: further figures a step."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(
        replace(Config(), run=RunConfig(dir=str(folder)), train=TrainConfig(steps=steps or len(rewards))),
        folder / "config.yaml",
    )
    lines = [
        {"step": number, **figures(reward), **(more[place] if place < len(more) else {})}
        for place, (number, reward) in enumerate(
            zip(range(first_step, first_step + len(rewards)), rewards, strict=True)
        )
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "environment.json").write_text(json.dumps({"world_size": 2, "versions": {"torch": "2.13.0"}}))
    if finished:
        (folder / "export").mkdir(exist_ok=True)
        (folder / "export" / "ema.safetensors").write_bytes(b"")
    return folder


def figures(reward: float) -> dict[str, Any]:
    """A step's figures as the watch finds them healthy."""
    return {
        "loss": 0.4,
        "reward_global": reward,
        "reward_local": reward / 2,
        "latent_std": 1.0,
        "group_diversity": 1.0,
        "grad_norm": 0.2,
        "reward_std_zero_share": 0.0,
        "judged": 100,
        "parse_failures": 0,
        "masked": 0,
        "pictures": 64,
        "time_data": 0.0,
        "time_rollout": 1.0,
        "time_judge": 0.5,
        "time_train": 2.5,
    }


def held_out(folder: Path, *looks: tuple[int, float, float | None, float | None]) -> None:
    """``held_out.jsonl`` of looks: (steps done, reward, difference, its error)."""
    lines = [
        {"step": step, "prompts": 48, "weights": "ema", "reward": reward, "reward_se": 0.05}
        | {"difference": difference, "difference_se": error}
        for step, reward, difference, error in looks
    ]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluated(folder: Path, difference: float, stderr: float) -> None:
    """``result.json`` of an evaluation."""

    def side(share: float) -> dict[str, Any]:
        return {
            "overall": share,
            "stderr": 0.02,
            "n": 900,
            "by_category": {"color": {"mean": share, "stderr": 0.02, "n": 900}},
        }

    measured = {"mean": difference, "stderr": stderr, "n": 900}
    result = {
        "base": side(0.4),
        "trained": side(0.4 + difference),
        "difference": {
            **measured,
            "ci95": [difference - stderr, difference + stderr],
            "by_category": {"color": measured},
        },
        "seed": 1234,
        "seconds": 60.0,
        "settings": {},
    }
    (folder / "result.json").write_text(json.dumps(result))


def showing(folder: Path, step: int, score: float, texts: Sequence[str] = (SCRIPT, "a blue square")) -> None:
    """A showing of the fixed prompts: half of each picture is red, a region covers a quarter of it."""
    picture = torch.zeros(3, 64, 64)
    picture[0, :, 32:] = 1.0
    images = tuple(
        SeenImage(
            id=f"p{number}",
            text=text,
            category="color",
            phrases=("a red circle",),
            score=score if number == 0 else 0.1,
            reply=f"yes 0.6 {text}",
            boxes=(SeenBox((0.25, 0.25, 0.75, 0.75), 0.5, "a red circle", "yes 0.75"),),
            map=((1.0, -1.0), (0.0, 0.5)),
        )
        for number, text in enumerate(texts)
    )
    write_showing(folder, Showing(step, "ema", 0, "logprob", "reward", images), [picture] * len(texts))
    Image.new("RGB", (500, 300), (9, 9, 9)).save(folder / "samples" / f"fixed_{step:06d}.png")
