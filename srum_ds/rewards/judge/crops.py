"""Crops of regions before a function of the user's: each with each phrase of its prompt, matched as is usual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srum_ds.common.finite import are_finite
from srum_ds.rewards.judge.judge import NOT_FINITE, Asking, about_crops, settle
from srum_ds.rewards.judge.readouts import Replies
from srum_ds.types import Failure, Prompt, Regions, Samples, Scores, Status

CropScorer = Callable[[Tensor, Sequence[Prompt]], tuple[Tensor, Tensor]]
"""(crops [Q, 3, h, w] in [0, 1], a prompt of each) -> (score_Q float32 in [-1, 1], status_Q int64)."""


def judge_crops(samples: Samples, regions: Regions, asking: Asking, score: CropScorer, name: str) -> Scores:
    """What a function says of R regions, as ``Scores`` without a word about the whole images (0, PARSED).

    It is given every crop (``asking.crop_size``) with every phrase of its image's prompt: a prompt whose text is that
    phrase, and whose ``meta["prompt"]`` is the text of the whole. Regions are then matched to phrases as the own
    judge's are (``settle``). A crop that is not finite is never shown. name: of the function, for failures.

    UserError as ``about_crops``, and whatever ``score`` raises.
    """
    count = len(samples.group_N)
    asked = about_crops(samples, list(samples.images_NCHW), regions, asking)
    owners = samples.prompt_of_each()
    pairs = [(picture, request) for picture, about in enumerate(asked.requests) for request in about]
    score_Q, status_Q = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    if pairs:
        crop_QCHW = torch.stack([asked.pictures[picture] for picture, _ in pairs])
        prompts = [
            _of_phrase(owners[owner], request.text) for owner, (_, request) in zip(asked.owner_Q, pairs, strict=True)
        ]
        score_Q, status_Q = score(crop_QCHW.nan_to_num(0.0, 0.0, 0.0), prompts)
        lost_Q = torch.tensor([not whole for whole in are_finite(list(crop_QCHW))])
        score_Q = score_Q.masked_fill(lost_Q, torch.nan)
        status_Q = status_Q.masked_fill(lost_Q, int(Status.FAILED))
    raw = tuple(NOT_FINITE if value != value else f"{value:.4g}" for value in score_Q.tolist())
    failures = tuple(
        Failure(asked.owner_Q[q], asked.region_Q[q], pairs[q][1].text, raw[q], name)
        for q in (status_Q == int(Status.FAILED)).nonzero().flatten().tolist()
    )
    said = silent(count, 0)
    replies = Replies(score_Q, status_Q, raw)
    return settle(replace(said, status_Q=status_Q, failures=failures), samples, asked, replies, asking.surplus_penalty)


def silent(images: int, regions: int) -> Scores:
    """The scores of a judge that was not asked: 0 throughout, which counts with the share 0, and no word."""
    return Scores(
        global_N=torch.zeros(images),
        global_status_N=torch.zeros(images, dtype=torch.int64),
        local_R=torch.zeros(regions),
        local_status_R=torch.zeros(regions, dtype=torch.int64),
        phrase_R=torch.full((regions,), -1, dtype=torch.int64),
        raw=("",) * (images + regions),
        status_Q=torch.zeros(0, dtype=torch.int64),
    )


def _of_phrase(prompt: Prompt, phrase: str) -> Prompt:
    return replace(prompt, text=phrase, phrases=(phrase,), meta={"prompt": prompt.text})
