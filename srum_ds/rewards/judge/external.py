"""A second judge beside the model's own: a Python function, and the weighted mean of two judges' scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.registry import load_attribute
from srum_ds.types import Failure, Prompt, Samples, Scores, Status

Scorer = Callable[[Tensor, Sequence[Prompt]], Any]
"""(images [N, 3, H, W] in [0, 1], their N prompts) -> N scores in [-1, 1], NaN for one it cannot give."""


def load_function(name: str) -> Scorer:
    """The function that ``module:function`` or ``file.py:function`` names. UserError where there is none."""
    found = load_attribute(name, "judge.external")
    if not callable(found):
        raise UserError(f"judge.external={name}: is {type(found).__name__}, expected a function")
    return cast(Scorer, found)


def function_scores(function: Scorer, name: str, samples: Samples) -> tuple[Tensor, Tensor, tuple[Failure, ...]]:
    """A function's scores of N images: (score_N float32, status_N int64, failures).

    NaN is FAILED; what lies off [-1, 1] is CLAMPED. Raises UserError where it does not give N numbers.
    """
    prompts = samples.prompt_of_each()
    score_N = torch.as_tensor(function(samples.images_NCHW, prompts)).detach().float().cpu()
    if tuple(score_N.shape) != (len(prompts),):
        raise UserError(f"judge.external={name}: gave {tuple(score_N.shape)} for {len(prompts)} pictures")
    status_N = torch.full(score_N.shape, int(Status.PARSED))
    status_N[score_N.abs() > 1] = int(Status.CLAMPED)
    status_N[score_N.isnan()] = int(Status.FAILED)
    failed = score_N.isnan().nonzero().flatten().tolist()
    failures = tuple(Failure(n, -1, prompts[n].text, "nan", name) for n in failed)
    return score_N.clamp(-1.0, 1.0), status_N, failures


def mix(own: Scores, other: Scores, weight: float) -> Scores:
    """(1 - weight) own + weight other, for images and for regions; FAILED where either failed.

    Phrases are the own judge's; missing shares are mixed where both have them. Requests, failures and replies
    are those of both.
    """
    global_N, global_status_N = mix_levels(
        own.global_N, own.global_status_N, other.global_N, other.global_status_N, weight
    )
    local_R, local_status_R = mix_levels(own.local_R, own.local_status_R, other.local_R, other.local_status_R, weight)
    missing_N = own.missing_N
    if own.missing_N is not None and other.missing_N is not None:
        missing_N = (1 - weight) * own.missing_N + weight * other.missing_N
    mixed = replace(
        own,
        global_N=global_N,
        global_status_N=global_status_N,
        local_R=local_R,
        local_status_R=local_status_R,
        missing_N=missing_N,
        raw=tuple(f"{a} | {b}" for a, b in zip(own.raw, other.raw, strict=True)),
    )
    return _with_requests(mixed, other.status_Q, other.failures)


def mix_global(own: Scores, score_N: Tensor, status_N: Tensor, failures: tuple[Failure, ...], weight: float) -> Scores:
    """The same with a judge of whole images alone: the regions' scores stay the own judge's."""
    global_N, global_status_N = mix_levels(own.global_N, own.global_status_N, score_N, status_N, weight)
    said = [f" | {value:.4g}" for value in score_N.tolist()]
    raw = tuple(text + (said[k] if k < len(said) else "") for k, text in enumerate(own.raw))
    mixed = replace(own, global_N=global_N, global_status_N=global_status_N, raw=raw)
    return _with_requests(mixed, status_N, failures)


def mix_levels(
    own_M: Tensor, own_status_M: Tensor, other_M: Tensor, other_status_M: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """(mixed scores, the worse of the two statuses). NaN, in either, stays NaN at any weight."""
    return (1 - weight) * own_M + weight * other_M, torch.maximum(own_status_M, other_status_M)


def _with_requests(mixed: Scores, status_Q: Tensor | None, failures: tuple[Failure, ...]) -> Scores:
    both = None if mixed.status_Q is None or status_Q is None else torch.cat([mixed.status_Q, status_Q])
    return replace(mixed, status_Q=both, failures=(*mixed.failures, *failures))
