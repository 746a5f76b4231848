"""Judged samples as rollout shards hold them, made by hand with every kind of value in them."""

from __future__ import annotations

import torch

from srum_ds.rollouts.shards import Header
from srum_ds.types import Failure, Judged, Prompt, Regions, Samples, Scores, TokenSpec

HEADER = Header(
    seed=3,
    model="f" * 64,
    prompts_per_step=4,
    images_per_prompt=2,
    grid=(2, 1),
    tokens=TokenSpec("continuous", 3),
    settings={"rollout.text_scale": 1.25},
    judge={"readout": "logprob", "global_template": {"sha256": "a" * 64}},
    made_by={"package": "srum-ds 0", "commit": None},
)


def judged(first: int = 0, seed: int = 0) -> Judged:
    """Two prompts of two samples: one picture without regions, one failed score of each kind."""
    g = torch.Generator().manual_seed(seed + first)
    prompts = tuple(
        Prompt(f"p{i}", f"größer {i}", "color", ("a", "b"), {"counts": [1, 2]}, epoch=i % 2) for i in (first, first + 1)
    )
    rollout = Samples(
        prompts=prompts,
        group_N=torch.tensor([0, 0, 1, 1]),
        sample_N=torch.tensor([0, 1, 0, 1]),
        images_NCHW=torch.randint(0, 256, (4, 3, 8, 6), generator=g).float() / 255,
        tokens=torch.randn(4, 2, 3, generator=g),
        grid=(2, 1),
    )
    low = torch.rand(5, 2, generator=g) / 2
    regions = Regions(torch.tensor([0, 0, 2, 3, 3]), torch.cat([low, low + 0.3], dim=1), asked=7, failed=2)
    scores = Scores(
        global_N=torch.tensor([0.1, torch.nan, -1.0, 1 / 3]),
        global_status_N=torch.tensor([0, 2, 1, 0]),
        local_R=torch.tensor([0.7, -0.2, torch.nan, 1.0, 0.0]),
        local_status_R=torch.tensor([0, 0, 2, 1, 0]),
        phrase_R=torch.tensor([0, -1, 1, 1, 0]),
        raw=tuple(f"reply {i}" for i in range(9)),
        missing_N=torch.tensor([0.0, 1.0, 1 / 3, 0.5]),
        status_Q=torch.tensor([0, 0, 0, 0, 1, 2, 2]),
        failures=(Failure(1, -1, "is it?", "perhaps", "g 1"), Failure(2, 2, "a?", "blue", "l 1")),
    )
    return Judged(rollout, regions, scores)
