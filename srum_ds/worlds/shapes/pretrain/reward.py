"""Measures what a recipe trains by: how well each part of its self-reward tells exact pictures from others.

    python -m srum_ds.worlds.shapes.pretrain.reward launch/recipes/tiny_janus.yaml --prompts 240 --samples 2

The recipe's model draws validation prompts with the recipe's sampler and judges itself as in training; the checker says
which pictures are exact. Printed as JSON: AUC of the answer about the whole picture, of the share of objects that no
region shows, of the mean over regions, and of the image's reward (global - missing_penalty * missing), by category too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srum_ds.config import Config, load_config
from srum_ds.config.schema import RewardConfig
from srum_ds.evaluation.statistics import auc
from srum_ds.models import load_model
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.token_weights import image_rewards
from srum_ds.rollouts.collect import sampling_of
from srum_ds.rollouts.draw import micro_batches, roll_out
from srum_ds.types import Judged
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.vocabulary import KINDS

MICRO_BATCH = 20
"""Prompts drawn and judged together."""


def parts_of(judged: Judged, reward: RewardConfig) -> dict[str, np.ndarray]:
    """Each part of the self-reward of N images, float [N]; NaN where the judge failed or no region is judged."""
    scores = judged.scores
    missing_N = torch.zeros_like(scores.global_N) if scores.missing_N is None else scores.missing_N
    owner_R, local_R = judged.regions.owner_R, scores.local_R
    regions = [local_R[(owner_R == n) & torch.isfinite(local_R)] for n in range(len(scores.global_N))]
    return {
        "whole": scores.global_N.numpy(),
        "missing": -missing_N.numpy(),
        "regions": np.array([float(own.mean()) if len(own) else np.nan for own in regions]),
        "reward": image_rewards(scores, reward).numpy(),
    }


def measure(cfg: Config, prompts: int, samples: int, split: str) -> dict[str, Any]:
    """The figures that the module's docstring names, of ``samples`` pictures for each of the first prompts."""
    model = load_model(cfg.model.path, cfg.model.kind)
    judging = JudgePipeline(cfg)
    sampling = sampling_of(cfg)
    with PromptReader(prompt_folder(cfg), split) as reader:
        asked = [reader[i] for i in range(min(prompts, len(reader)))]
    parts: dict[str, list[np.ndarray]] = {}
    exact: list[bool] = []
    kinds: list[str] = []
    for group in micro_batches(asked, MICRO_BATCH):
        with model.judging(), torch.no_grad():
            drawn = roll_out(model, group, samples, cfg.rollout.image_size, sampling, cfg.run.seed, 0)
            judged = judging.judged(model, drawn)
        for name, values in parts_of(judged, cfg.reward).items():
            parts.setdefault(name, []).append(values)
        each = drawn.prompt_of_each()
        exact += [check(prompt, image).exact for prompt, image in zip(each, drawn.images_NCHW, strict=True)]
        kinds += [str(prompt.category) for prompt in each]
    scores = {name: np.concatenate(values) for name, values in parts.items()}
    return {
        "pictures": len(exact),
        "exact": round(float(np.mean(exact)), 4),
        "auc": {name: _auc(values, exact) for name, values in scores.items()},
        "reward_auc_by_category": {
            kind: _auc(scores["reward"][np.array(kinds) == kind], np.array(exact)[np.array(kinds) == kind])
            for kind in KINDS
        },
    }


def _auc(values: np.ndarray, exact: Sequence[bool] | np.ndarray) -> float:
    known = np.isfinite(values)
    return round(auc(values[known], np.array(exact)[known]), 4)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value ...")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--split", default="validation")
    args = parser.parse_args()
    cfg = load_config(args.recipe, args.settings)
    print(json.dumps(measure(cfg, args.prompts, args.samples, args.split)))


if __name__ == "__main__":
    main()
