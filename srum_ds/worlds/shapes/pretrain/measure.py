"""Measures an embedded model against the checker: how well it draws, how well it judges its own pictures.

    python -m srum_ds.worlds.shapes.pretrain.measure --model srum_ds/assets/tiny_bagel --split validation

For each guidance scale: exact success; the share of regions that show nothing asked for; AUC of the
whole-picture score against exact success, by category; accuracy of crop questions (the prompt's phrases,
and one attribute changed); best of K picked by the model's own score.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srum_ds.evaluation.statistics import auc
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import UnifiedModel
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.regions import crop, select
from srum_ds.rewards.regions.components import component_candidates
from srum_ds.rewards.scores import yes_no_score
from srum_ds.types import Prompt, Regions, Samples
from srum_ds.worlds.shapes.checker import Check, check, region_matches
from srum_ds.worlds.shapes.questions import crop_question, match_question
from srum_ds.worlds.shapes.truth import crop_truths
from srum_ds.worlds.shapes.vocabulary import KINDS

BATCH = 60


def draw(model: UnifiedModel, prompts: Sequence[Prompt], sampling: FlowSampling, seed: int, sample: int) -> Samples:
    """One image per prompt."""
    grid = model.grid(64, 64)
    all_tokens, images = [], []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        tokens, drawn = model.generate(part, [("measure", seed, p.id, sample) for p in part], grid, sampling)
        all_tokens.append(tokens)
        images.append(drawn)
    n = len(prompts)
    return Samples(tuple(prompts), torch.arange(n), torch.zeros(n), torch.cat(images), torch.cat(all_tokens), grid)


def whole_scores(model: UnifiedModel, rollout: Samples) -> np.ndarray:
    """The model's own score of each picture, in [-1, 1]."""
    scores = []
    for start in range(0, len(rollout.prompts), BATCH):
        part = rollout.prompts[start : start + BATCH]
        pictures = list(rollout.images_NCHW[start : start + BATCH])
        logprobs = model.answer_logprobs(pictures, [match_question(p.text) for p in part], ("yes", "no"))
        scores.append(yes_no_score(logprobs)[0])
    return torch.cat(scores).numpy()


def crop_answers(model: UnifiedModel, rollout: Samples, regions: Regions, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(score, truth) of crop questions: each phrase of the prompt, and one with an attribute changed."""
    rng = random.Random(seed)
    crops = crop(rollout.images_NCHW, regions)
    asked = []
    for owner, (prompt, picture) in enumerate(zip(rollout.prompts, rollout.images_NCHW, strict=True)):
        asked += crop_truths(rng, prompt, picture, regions.boxes_R4[regions.owner_R == owner].tolist())
    scores, truths = [], []
    for start in range(0, len(crops), BATCH):
        part = asked[start : start + BATCH]
        questions = [crop_question(asked_of.phrase) for of_crop in part for asked_of in of_crop]
        index = [k for k, of_crop in enumerate(part) for _ in of_crop]
        logprobs = model.answer_logprobs(crops[start : start + BATCH], questions, ("yes", "no"), index)
        scores.append(yes_no_score(logprobs)[0])
        truths += [asked_of.truth for of_crop in part for asked_of in of_crop]
    return torch.cat(scores).numpy(), np.array(truths)


def by_kind(values: np.ndarray, kinds: np.ndarray, summary: Any = np.mean) -> dict[str, float]:
    """``summary`` of the values of each category."""
    return {kind: round(float(summary(values[kinds == kind])), 4) for kind in KINDS if (kinds == kind).any()}


def measure(
    model: UnifiedModel, prompts: Sequence[Prompt], sampling: FlowSampling, seed: int, best_of: int
) -> dict[str, Any]:
    """All figures for one sampler."""
    kinds = np.array([p.category for p in prompts])
    rollout = draw(model, prompts, sampling, seed, 0)
    checks: list[Check] = [check(p, i) for p, i in zip(prompts, rollout.images_NCHW, strict=True)]
    exact = np.array([c.exact for c in checks])
    objects = np.array([c.objects_exact for c in checks])
    scores = whole_scores(model, rollout)
    regions = select(component_candidates(rollout.images_NCHW), max_count=6, min_area=0.003, pad=0.03)
    matched: list[bool] = []
    for n, (prompt, picture) in enumerate(zip(prompts, rollout.images_NCHW, strict=True)):
        matched += region_matches(prompt, picture, regions.boxes_R4[regions.owner_R == n])
    crop_score, crop_truth = crop_answers(model, rollout, regions, seed)
    spatial = np.isin(kinds, ("spatial", "complex"))
    figures: dict[str, Any] = {
        "text_scale": sampling.text_scale,
        "n": len(prompts),
        "exact": round(float(exact.mean()), 4),
        "exact_by_category": by_kind(exact, kinds),
        "objects_exact": by_kind(objects, kinds),
        "relation_given_objects": round(float(exact[spatial & objects].mean()), 4),
        "regions": len(matched),
        "regions_not_asked_for": round(1 - float(np.mean(matched)), 4),
        "match_auc": round(auc(scores, exact), 4),
        "match_auc_by_category": {k: round(auc(scores[kinds == k], exact[kinds == k]), 4) for k in KINDS},
        "match_accuracy": round(float(((scores > 0) == exact).mean()), 4),
        "crop_accuracy": round(float(((crop_score > 0) == crop_truth).mean()), 4),
        "crop_auc": round(auc(crop_score, crop_truth), 4),
        "crop_questions": len(crop_truth),
        "latent_std": round(float(rollout.tokens.std()), 4),
    }
    if best_of > 1:
        picked, chosen = scores.copy(), exact.copy()
        oracle = exact.copy()
        for sample in range(1, best_of):
            other = draw(model, prompts, sampling, seed, sample)
            found = np.array([check(p, i).exact for p, i in zip(prompts, other.images_NCHW, strict=True)])
            value = whole_scores(model, other)
            better = value > picked
            picked = np.where(better, value, picked)
            chosen = np.where(better, found, chosen)
            oracle = oracle | found
        figures |= {
            f"best_of_{best_of}": round(float(chosen.mean()), 4),
            "oracle": round(float(oracle.mean()), 4),
        }
    return figures


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("srum_ds/assets/tiny_bagel"))
    parser.add_argument("--shards", type=Path, default=Path("data_shards/shapes"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--time-points", type=int, default=17)
    parser.add_argument("--best-of", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.model)
    reader = PromptReader(args.shards, args.split)
    prompts = [reader[i] for i in range(min(args.prompts, len(reader)))]
    rows = []
    for scale in args.guidance:
        sampling = FlowSampling(args.time_points, 2.0, scale, 1.0, (0.0, 1.0), "global", 0.0)
        rows.append(measure(model, prompts, sampling, args.seed, args.best_of))
        print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"split": args.split, "seed": args.seed, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
