"""A step's metrics: sums over all ranks, label-free signals of collapse, and the end of a run that learns nothing.

The training loop calls ``measure`` after every step; ``monitoring.writer`` writes what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import HOW_TO_GO_ON, UserError
from srum_ds.engine import Engine
from srum_ds.engine.base import learning_rate
from srum_ds.monitoring.judge_failures import FAILED_SHARE
from srum_ds.monitoring.usage import FLOPS, MEMORY, TIME, peak_memory
from srum_ds.types import Judged, Samples, Status, TokenSpec


def measure(
    engine: Engine,
    token_spec: TokenSpec,
    batches: Sequence[Judged],
    loss: Tensor,
    count: float,
    clock: Clock,
    stop_asked: bool,
    flops: Mapping[str, float] | None = None,
    judges: Sequence[str] = (),
) -> tuple[dict[str, Any], bool]:
    """A step's metrics over all ranks, and whether any rank was asked to stop.

    Sums by one all-reduce, phases as the slowest rank's seconds. loss: this rank's sum of token losses, divided by
    ``count``, the tokens that count on all ranks. flops: this rank's of each phase, where they are counted. judges:
    names in ``Scores.by_judge``, the same on every rank: of each, ``judge_NAME`` is the mean of its own scores of whole
    images, ``judge_NAME_failed_share`` the share of the images that it gave none for.

    ``judged`` counts requests to the judge, ``parse_clamped`` and ``parse_failures`` those of them whose
    reply lay off the scale or could not be used, ``masked`` those of the ``pictures`` that were left out of the loss,
    ``pictures_not_finite`` those that could not be drawn, ``tokens`` what counts in the loss. Figures of the tokens are
    those of finite pictures, NaN without any.
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
    finite = [b.samples.finite_N for b in batches]
    drawn = torch.cat(
        [b.samples.tokens[own.to(b.samples.tokens.device)] for b, own in zip(batches, finite, strict=True)]
    )
    token_sum, token_squares, token_count = token_spec.moments(drawn)
    diversity = [group_diversity(token_spec, b.samples, own) for b, own in zip(batches, finite, strict=True)]
    # One image per prompt has nothing to be compared with.
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
        "not_finite": sum(int((~own).sum()) for own in finite),
        "regions": locals_R.numel(),
        "region_answers": sum(b.regions.asked for b in batches),
        "region_failures": sum(b.regions.failed for b in batches),
        "phrases_split": sum(
            p.meta.get("phrases_from") in ("split", "spacy") for b in batches for p in b.samples.prompts
        ),
        "token_sum": token_sum,
        "token_squares": token_squares,
        "token_count": token_count,
        "stop": float(stop_asked),
    }
    for name in judges:
        said_N = torch.cat([b.scores.by_judge.get(name, torch.zeros(0)) for b in batches])
        own |= dict(zip(_of_judge(name), (*parts(said_N), float(said_N.numel())), strict=True))
    own |= {FLOPS + phase: counted for phase, counted in (flops or {}).items()}
    summed = engine.all_reduce(torch.tensor(list(own.values()), dtype=torch.float64, device=engine.device)).tolist()
    s = dict(zip(own, summed, strict=True))
    highest = [*clock.seconds.values(), float(peak_memory(engine.device))]
    most = engine.all_reduce(torch.tensor(highest, dtype=torch.float64, device=engine.device), "max").tolist()
    mean = s["token_sum"] / s["token_count"] if s["token_count"] else float("nan")
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
        "pictures": int(s["pictures"]),
        "pictures_not_finite": int(s["not_finite"]),
        "masked": int(s["pictures"] - s["global_count"]),
        "tokens": int(count),
        "regions": int(s["regions"]),
        "latent_mean": mean,
        "group_diversity": s["diversity_sum"] / s["diversity_groups"] if s["diversity_groups"] else float("nan"),
        "region_answers": int(s["region_answers"]),
        "region_failures": int(s["region_failures"]),
        "phrases_split": int(s["phrases_split"]),
        "latent_std": max(s["token_squares"] / s["token_count"] - mean**2, 0.0) ** 0.5 if mean == mean else mean,
    }
    for name in judges:
        total, known, asked = (s[key] for key in _of_judge(name))
        record[f"judge_{name}"] = total / known if known else float("nan")
        record[f"judge_{name}{FAILED_SHARE}"] = 1 - known / asked if asked else float("nan")
    record |= {TIME + name: value for name, value in zip(clock.seconds, most[:-1], strict=True)}
    record |= {FLOPS + phase: s[FLOPS + phase] for phase in flops or {}}
    record[MEMORY] = int(most[-1])
    return record, s["stop"] > 0


def rate_of(engine: Engine) -> float:
    """The learning rate of the step that the engine has just taken."""
    return learning_rate(engine.settings, max(0, engine.steps - 1))


def _of_judge(name: str) -> list[str]:
    """Keys of a judge's sum of scores, of how many there were, and of how many images it was asked about."""
    return [f"judge {name} {what}" for what in ("sum", "count", "asked")]


def status_counts(status_M: Tensor) -> Tensor:
    """How many answers were [parsed, clamped, failed]: int64 [3], to be summed over ranks."""
    return torch.bincount(status_M.flatten().long(), minlength=len(Status))


def reward_std_zero_share(global_N: Tensor, group_N: Tensor, tolerance: float = 1e-6) -> float:
    """Share of prompts whose samples all got the same reward, and so teach nothing.

    Args:
        global_N: rewards, NaN where failed (left out).
        group_N: prompt of each image, int64.
        tolerance: largest population standard deviation that counts as none.

    Returns:
        Share in [0, 1] of the groups present. A group with fewer than two valid rewards counts, since
        it has nothing to compare.
    """
    groups = torch.unique(group_N).tolist()
    flat = 0
    for index in groups:
        values = global_N[group_N == index].double()
        values = values[torch.isfinite(values)]
        if values.numel() < 2 or float(values.std(correction=0)) <= tolerance:
            flat += 1
    return flat / len(groups) if groups else 0.0


def group_diversity(token_spec: TokenSpec, samples: Samples, counts_N: Tensor | None = None) -> float:
    """How different the samples of one prompt are: mean distance of their pairs (``TokenSpec.mean_distance``).

    counts_N: bool, the samples that are looked at; None: all of them. Averaged over the pairs of a prompt, then over
    prompts. NaN when no prompt has two samples.
    """
    per_group: list[float] = []
    for index in torch.unique(samples.group_N).tolist():
        among_N = samples.group_N == index if counts_N is None else (samples.group_N == index) & counts_N
        members = samples.tokens[among_N.to(samples.tokens.device)]
        if members.shape[0] >= 2:
            per_group.append(token_spec.mean_distance(members))
    return sum(per_group) / len(per_group) if per_group else float("nan")


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
                f"learnt any more. Every checkpoint is finite: {HOW_TO_GO_ON}"
            )
