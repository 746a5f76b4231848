"""A pool of cheap images of each prompt, of which the ones worth training on are drawn again in full.

What is random about an image is seeded by its identity, so that a chosen one is drawn from the noise of its cheap
version and is what it would have been without a pool. ``Collector`` calls it where ``rollout.pool`` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.protocol import Generator, Judge
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.draw import roll_out
from srum_ds.types import Prompt


def extremes(score_S: Tensor, keep: int) -> list[int]:
    """The ``keep`` samples of one prompt whose scores vary most, in the order of their numbers.

    score_S: float, NaN where there is none. They are some of the best and some of the worst (PODS, arXiv 2504.13818,
    max-variance down-sampling); of equally good choices the one with more of the best, of equal scores the first counts
    as the better. Samples without a score come last. ValueError for more than there are.
    """
    if keep > len(score_S):
        raise ValueError(f"{keep} of {len(score_S)} samples")
    values = score_S.double()
    scored = sorted((s for s in range(len(values)) if not values[s].isnan()), key=lambda s: -float(values[s]))
    unscored = [s for s in range(len(values)) if values[s].isnan()]
    take = min(keep, len(scored))
    splits = [[*scored[:best], *scored[len(scored) - (take - best) :]] for best in range(take, -1, -1)]
    chosen = max(splits, key=lambda own: float(values[own].var(correction=0)) if own else 0.0)
    return sorted([*chosen, *unscored[: keep - take]])


def choose_samples(
    cfg: Config,
    model: Generator,
    judge: Judge,
    judging: JudgePipeline,
    sampling: Any,
    prompts: Sequence[Prompt],
    step: int,
) -> list[list[int]]:
    """For each prompt the numbers of the ``rollout.images_per_prompt`` samples to draw, of ``rollout.pool`` of them.

    The pool is drawn with ``rollout.pool_timesteps`` time points and judged by the question about the whole image.
    """
    r = cfg.rollout
    cheap = replace(sampling, num_timesteps=r.pool_timesteps)
    numbers = [list(range(r.pool))] * len(prompts)
    samples = roll_out(model, prompts, numbers, r.image_size, cheap, cfg.run.seed, step)
    score_PS = judging.first_look(judge, samples).view(len(prompts), r.pool)
    return [extremes(score_S, r.images_per_prompt) for score_S in score_PS]
