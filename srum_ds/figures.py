"""A step's figures: seconds by phase, sums over all ranks, and what they must not say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from srum_ds.config import Config
from srum_ds.engine import Engine
from srum_ds.errors import UserError
from srum_ds.models.base import Status
from srum_ds.rewards.diagnostics import reward_std_zero_share
from srum_ds.steps import Batch


class Clock:
    """Seconds of a step by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("data", "rollout", "judge", "train"), 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - begin


def measure(
    engine: Engine, batches: Sequence[Batch], loss: Tensor, count: float, clock: Clock, stop: bool
) -> dict[str, float]:
    """A step's figures over all ranks: sums by one all-reduce, phases as the slowest rank's seconds."""
    zero_share = [reward_std_zero_share(b.scores.global_N, b.rollout.group_N) for b in batches]
    groups = [len(b.rollout.prompts) for b in batches]

    def parts(x: Tensor) -> list[float]:
        finite = x[torch.isfinite(x)].double()
        return [float(finite.sum()), float(finite.numel())]

    globals_N = torch.cat([b.scores.global_N for b in batches])
    locals_R = torch.cat([b.scores.local_R for b in batches])
    failed = sum(
        int((s == Status.FAILED).sum()) for b in batches for s in (b.scores.global_status_N, b.scores.local_status_R)
    )
    latents = torch.cat([b.rollout.targets_NTC for b in batches]).double()
    sums = [
        float(loss),
        *parts(globals_N),
        *parts(locals_R),
        sum(z * g for z, g in zip(zero_share, groups, strict=True)),
        float(sum(groups)),
        float(failed),
        float(globals_N.numel() + locals_R.numel()),
        float(latents.sum()),
        float(latents.square().sum()),
        float(latents.numel()),
        float(stop),
    ]
    s = engine.all_reduce(torch.tensor(sums, dtype=torch.float64, device=engine.device)).tolist()
    phases = torch.tensor(list(clock.seconds.values()), dtype=torch.float64, device=engine.device)
    slowest = engine.all_reduce(phases, "max").tolist()
    mean = s[9] / s[11]
    record = {
        "loss": s[0] / max(count, 1.0),
        "reward_global": s[1] / s[2] if s[2] else float("nan"),
        "reward_local": s[3] / s[4] if s[4] else float("nan"),
        "reward_std_zero_share": s[5] / s[6],
        "parse_failures": int(s[7]),
        "judged": int(s[8]),
        "regions": int(s[8]) - int(s[6]) * (globals_N.numel() // max(1, sum(groups))),
        "latent_std": max(0.0, s[10] / s[11] - mean**2) ** 0.5,
        "stop": s[12],
    }
    return record | {f"time_{name}": value for name, value in zip(clock.seconds, slowest, strict=True)}


def refuse_broken_judge(cfg: Config, record: dict[str, float]) -> None:
    """Raises UserError, on every rank alike, when too many of the judge's answers were unusable."""
    share = record["parse_failures"] / max(1, record["judged"])
    if share > cfg.judge.max_failed_share:
        raise UserError(
            f"step {record['step']}: {share:.0%} of the judge's answers could not be used, more than "
            f"judge.max_failed_share={cfg.judge.max_failed_share:.0%}. Try its questions with `srum-ds ask`: neither "
            f"of judge.answers={list(cfg.judge.answers)} gets a probability of judge.min_mass."
        )
