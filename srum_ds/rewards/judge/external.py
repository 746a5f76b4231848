"""Judges beside the model's own: a Python function's scores, and the weighted mean of several judges' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from srum_ds.common import foreign
from srum_ds.common.errors import UserError
from srum_ds.common.given import given, is_given
from srum_ds.common.registry import load_attribute
from srum_ds.types import Failure, Prompt, Samples, Scores, Status

Scorer = Callable[[Tensor, Sequence[Prompt]], Any]
"""(images [N, 3, H, W] in [0, 1], their N prompts) -> N scores in [-1, 1], NaN for one it cannot give."""


def load_function(name: str) -> Scorer:
    """The function that ``module:function``, ``file.py:function`` or ``python:name`` names. UserError for none."""
    if is_given(name):
        return given(name, "judge.external")
    found = load_attribute(name, "judge.external")
    if not callable(found):
        raise UserError(f"judge.external={name}: is {type(found).__name__}, expected a function")
    return cast(Scorer, found)


def given_scores(function: Scorer, name: str, images_NCHW: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """A function's scores of N images or crops: (score_N float32, status_N int64); see ``function_scores``."""
    what = f"judge.external={name}"
    count = len(prompts)
    found = foreign.run(what, lambda: function(images_NCHW.clone(), foreign.copied(prompts)))
    score_N = foreign.numbers(what, found, count, f"a tensor or a list of {count} scores in [-1, 1] (NaN: no score)")
    status_N = torch.full(score_N.shape, int(Status.PARSED))
    status_N[score_N.abs() > 1] = int(Status.CLAMPED)
    status_N[score_N.isnan()] = int(Status.FAILED)
    return score_N.clamp(-1.0, 1.0), status_N


def function_scores(function: Scorer, name: str, samples: Samples) -> tuple[Tensor, Tensor, tuple[Failure, ...]]:
    """A function's scores of N images: (score_N float32, status_N int64, failures).

    It is given copies of images and prompts. NaN is FAILED; what lies off [-1, 1] is CLAMPED. Raises UserError, which
    names the function, where it raises anything or does not give N finite numbers.
    """
    prompts = samples.prompt_of_each()
    score_N, status_N = given_scores(function, name, samples.images_NCHW, prompts)
    failed = score_N.isnan().nonzero().flatten().tolist()
    failures = tuple(Failure(n, -1, prompts[n].text, "nan", name) for n in failed)
    return score_N, status_N, failures


@dataclass(frozen=True)
class Opinion:
    """What a judge beside the model's own said of a micro-batch.

    name: its own, for metrics. weight: its share. score_N, status_N: of the whole images. said: its words, for each
    image (or, with ``scores``, each image and region). status_Q: how its requests ended, None where nobody noted.
    scores: everything it said, where it judges regions too.
    """

    name: str
    weight: float
    score_N: Tensor
    status_N: Tensor
    said: tuple[str, ...]
    status_Q: Tensor | None
    failures: tuple[Failure, ...] = ()
    scores: Scores | None = None


def opinion_of_all(name: str, weight: float, scores: Scores) -> Opinion:
    """The opinion of a judge that was asked everything that the model's own was asked."""
    return Opinion(
        name, weight, scores.global_N, scores.global_status_N, scores.raw, scores.status_Q, scores.failures, scores
    )


def opinion_of_wholes(
    name: str, weight: float, score_N: Tensor, status_N: Tensor, failures: tuple[Failure, ...]
) -> Opinion:
    """The opinion of a judge of whole images alone: each score is a request."""
    said = tuple(f"{value:.4g}" for value in score_N.tolist())
    return Opinion(name, weight, score_N, status_N, said, status_N, failures)


def with_regions(opinion: Opinion, scores: Scores) -> Opinion:
    """The same with what that judge says of the regions: ``scores``, which say nothing of the whole images."""
    statuses = [status_Q for status_Q in (opinion.status_Q, scores.status_Q) if status_Q is not None]
    images = len(opinion.score_N)
    return replace(
        opinion,
        said=(*opinion.said[:images], *scores.raw[images:]),
        status_Q=torch.cat(statuses) if len(statuses) == 2 else None,
        failures=(*opinion.failures, *scores.failures),
        scores=scores,
    )


def mix(own: Scores, opinions: Sequence[Opinion], asked: bool = True) -> Scores:
    """Own and other judges' scores by weight: (1 - sum_k w_k) own + sum_k w_k other_k; FAILED where any failed.

    Regions are mixed likewise over those who judge regions; for the others' weight the own judge counts. Phrases are
    the own judge's; missing shares are mixed where all who judge regions have them. Requests, failures and replies are
    those of all. ``by_judge`` has what each said of the whole images.

    asked: whether ``own`` is an opinion at all. If not, the others have all of every score (those who judge regions, in
    proportion to their weights), phrases are those of the first who judges regions, and ``by_judge`` has no ``own``.
    """
    if not opinions:
        return own
    weights = [opinion.weight for opinion in opinions]
    global_N, global_status_N = mix_levels(
        [own.global_N, *(opinion.score_N for opinion in opinions)],
        [own.global_status_N, *(opinion.status_N for opinion in opinions)],
        weights,
    )
    regional = [(opinion.scores, opinion.weight) for opinion in opinions if opinion.scores is not None]
    if not asked:
        total = math.fsum(weight for _, weight in regional)
        regional = [(scores, weight / total) for scores, weight in regional if weight > 0]
        if regional:
            own = replace(own, phrase_R=regional[0][0].phrase_R)
        if regional and all(scores.missing_N is not None for scores, _ in regional):
            own = replace(own, missing_N=torch.zeros_like(own.global_N))
    local_R, local_status_R = mix_levels(
        [own.local_R, *(scores.local_R for scores, _ in regional)],
        [own.local_status_R, *(scores.local_status_R for scores, _ in regional)],
        [weight for _, weight in regional],
    )
    missing_N = own.missing_N
    shares = [scores.missing_N for scores, _ in regional if scores.missing_N is not None]
    if missing_N is not None and len(shares) == len(regional):
        missing_N = _weighted([missing_N, *shares], [weight for _, weight in regional])
    statuses = [own.status_Q, *(opinion.status_Q for opinion in opinions)]
    known = [status_Q for status_Q in statuses if status_Q is not None]
    return replace(
        own,
        global_N=global_N,
        global_status_N=global_status_N,
        local_R=local_R,
        local_status_R=local_status_R,
        missing_N=missing_N,
        raw=_joined(own.raw, opinions),
        status_Q=torch.cat(known) if len(known) == len(statuses) else None,
        failures=(*own.failures, *(failure for opinion in opinions for failure in opinion.failures)),
        by_judge=({"own": own.global_N} if asked else {}) | {one.name: one.score_N for one in opinions},
    )


def mix_levels(scores: Sequence[Tensor], statuses: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(mixed scores, the worst of the statuses). The first are the own judge's, whose weight is what is left of 1.

    NaN, in any, stays NaN at any weight.
    """
    worst = statuses[0]
    for status in statuses[1:]:
        worst = torch.maximum(worst, status)
    return _weighted(scores, weights), worst


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    mixed = max(0.0, 1 - math.fsum(weights)) * values[0]
    for value, weight in zip(values[1:], weights, strict=True):
        mixed = mixed + weight * value
    return mixed


def _joined(raw: tuple[str, ...], opinions: Sequence[Opinion]) -> tuple[str, ...]:
    """The judges' words about each image and region, those who said something of it, one behind the other."""
    texts = list(raw)
    for opinion in opinions:
        for k, said in enumerate(opinion.said[: len(texts)]):
            texts[k] += f" | {said}" if texts[k] else said
    return tuple(texts)
