"""A step's figures: seconds by phase, sums over all ranks, and what they must not say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.engine import Engine
from srum_ds.monitoring.diagnostics import group_diversity, reward_std_zero_share, status_counts
from srum_ds.objectives.apply import Batch
from srum_ds.types import Judged


def measure(
    engine: Engine, batches: Sequence[Batch], loss: Tensor, count: float, clock: Clock, stop: bool
) -> dict[str, Any]:
    """A step's figures over all ranks: sums by one all-reduce, phases as the slowest rank's seconds.

    ``judged`` counts requests to the judge, ``parse_clamped`` and ``parse_failures`` those of them whose
    reply lay off the scale or could not be used, ``masked`` the pictures left out of the loss.
    ``region_answers`` and ``region_failures`` count what the judge was asked to find regions;
    ``phrases_split`` the prompts whose objects nobody named, so that they were split off their text.
    """
    zero_share = [reward_std_zero_share(b.scores.global_N, b.samples.group_N) for b in batches]
    groups = [len(b.samples.prompts) for b in batches]

    def parts(x: Tensor) -> list[float]:
        finite = x[torch.isfinite(x)].double()
        return [float(finite.sum()), float(finite.numel())]

    globals_N = torch.cat([b.scores.global_N for b in batches])
    locals_R = torch.cat([b.scores.local_R for b in batches])
    global_sum, global_count = parts(globals_N)
    local_sum, local_count = parts(locals_R)
    parsed, clamped, failed = torch.stack([status_counts(requests_of(b)) for b in batches]).sum(dim=0).tolist()
    latents = torch.cat([b.samples.tokens for b in batches]).double()
    diversity = [group_diversity(b.samples.tokens, b.samples.group_N) for b in batches]
    # One picture a prompt has nothing to be compared with.
    compared = [(d * g, float(g)) for d, g in zip(diversity, groups, strict=True) if d == d]
    own = {
        "diversity_sum": sum(d for d, _ in compared),
        "diversity_groups": sum(g for _, g in compared),
        "loss": float(loss),
        "global_sum": global_sum,
        "global_count": global_count,
        "local_sum": local_sum,
        "local_count": local_count,
        "zero_share": sum(z * g for z, g in zip(zero_share, groups, strict=True)),
        "groups": sum(groups),
        "parsed": parsed,
        "clamped": clamped,
        "failed": failed,
        "pictures": globals_N.numel(),
        "regions": locals_R.numel(),
        "region_answers": sum(b.regions.asked for b in batches),
        "region_failures": sum(b.regions.failed for b in batches),
        "phrases_split": sum(
            p.meta.get("phrases_from") in ("split", "spacy") for b in batches for p in b.samples.prompts
        ),
        "latent_sum": float(latents.sum()),
        "latent_squares": float(latents.square().sum()),
        "latents": latents.numel(),
        "stop": float(stop),
    }
    summed = engine.all_reduce(torch.tensor(list(own.values()), dtype=torch.float64, device=engine.device)).tolist()
    s = dict(zip(own, summed, strict=True))
    phases = torch.tensor(list(clock.seconds.values()), dtype=torch.float64, device=engine.device)
    slowest = engine.all_reduce(phases, "max").tolist()
    mean = s["latent_sum"] / s["latents"]
    judged = s["parsed"] + s["clamped"] + s["failed"]
    record = {
        "loss": s["loss"] / max(count, 1.0),
        "reward_global": s["global_sum"] / s["global_count"] if s["global_count"] else float("nan"),
        "reward_local": s["local_sum"] / s["local_count"] if s["local_count"] else float("nan"),
        "reward_std_zero_share": s["zero_share"] / s["groups"],
        "judged": int(judged),
        "parse_clamped": int(s["clamped"]),
        "parse_failures": int(s["failed"]),
        "parse_failed_share": s["failed"] / max(1.0, judged),
        "masked": int(s["pictures"] - s["global_count"]),
        "regions": int(s["regions"]),
        "latent_mean": mean,
        "group_diversity": s["diversity_sum"] / s["diversity_groups"] if s["diversity_groups"] else float("nan"),
        "region_answers": int(s["region_answers"]),
        "region_failures": int(s["region_failures"]),
        "phrases_split": int(s["phrases_split"]),
        "latent_std": max(0.0, s["latent_squares"] / s["latents"] - mean**2) ** 0.5,
        "stop": s["stop"],
    }
    return record | {f"time_{name}": value for name, value in zip(clock.seconds, slowest, strict=True)}


def requests_of(batch: Judged) -> Tensor:
    """How each of the judge's requests ended, int64 [Q]; where nobody noted that, each of its scores."""
    scores = batch.scores
    if scores.status_Q is not None:
        return scores.status_Q
    return torch.cat([scores.global_status_N, scores.local_status_R])


class StillLearns:
    """Ends a run whose gradient is not finite any more; every rank alike, since the norm is the same on all."""

    PATIENCE = 3

    def __init__(self) -> None:
        self.bad_steps = 0

    def check(self, step: int, grad_norm: float) -> None:
        """Raises UserError at the ``PATIENCE``-th step in a row without a finite gradient norm."""
        self.bad_steps = 0 if math.isfinite(grad_norm) else self.bad_steps + 1
        if self.bad_steps >= self.PATIENCE:
            raise UserError(
                f"the gradient was not finite for {self.bad_steps} steps in a row, the last being {step}: nothing is "
                f"learnt any more. Lower train.lr or use train.precision=fp32; the last checkpoint is untouched."
            )
