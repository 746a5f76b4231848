"""The nouns of one training step, and the small protocol every model adapter speaks.

Nothing outside ``srum_ds/models`` imports a concrete model: the loop, the rewards and the
evaluation know only what stands in this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set.

    ``name`` (not the position in a batch) seeds everything random about the prompt. ``phrases`` are
    the object phrases a region may be judged against, empty when unknown. ``epoch`` says which pass
    over the prompts this is.
    """

    id: str
    text: str
    category: str = ""
    phrases: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The id, and the epoch after the first: a batch across an epoch's end may hold a prompt twice."""
        return self.id if self.epoch == 0 else f"{self.id} epoch {self.epoch}"


@dataclass(frozen=True)
class Rollout:
    """N generated pictures: K samples for each prompt, the samples of one prompt adjacent.

    images_NCHW: float in [0, 1]. targets_NTC: the latent tokens exactly as sampled, never
    re-encoded, row-major over ``grid`` = (h, w), T = h * w. ``group_N`` says which samples share a
    prompt (0..P-1); ``sample_N`` is the sample's index within its prompt.
    """

    prompts: tuple[Prompt, ...]
    group_N: Tensor
    sample_N: Tensor
    images_NCHW: Tensor
    targets_NTC: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Regions:
    """R boxes over N pictures, in normalised image coordinates.

    ``owner_R`` (int64) is the picture each box lies in, ascending. ``boxes_R4`` (float32) holds
    x0, y0, x1, y1 in [0, 1] with x0 < x1 and y0 < y1. ``asked``: answers of the judge that finding
    the boxes took; ``failed``: how many of them could not be used.
    """

    owner_R: Tensor
    boxes_R4: Tensor
    asked: int = 0
    failed: int = 0

    def __len__(self) -> int:
        return int(self.owner_R.numel())


class Status(IntEnum):
    """How a judge's answer ended. A failed score is masked out, never a number."""

    PARSED = 0
    CLAMPED = 1
    FAILED = 2


@dataclass(frozen=True)
class Failure:
    """A request whose reply could not be used: about picture ``picture``, or its region ``region``.

    ``region`` indexes the batch's regions, -1 for the whole picture. ``template``: name and hash.
    """

    picture: int
    region: int
    question: str
    reply: str
    template: str


@dataclass(frozen=True)
class Scores:
    """What the judge said: scores in [-1, 1], NaN exactly where the status is FAILED.

    ``phrase_R`` is the index of the phrase (of the owner's prompt) each region was matched to, -1
    for a region no phrase claims. ``missing_N`` is the share of the objects a prompt asks for that no
    region of the picture shows, in [0, 1]; None when nobody looked. ``raw``: the reply, or the
    answers' probabilities, behind each of the N + R scores, pictures first. ``status_Q`` (int64): how
    each of the Q requests ended; a region is asked about several phrases. ``failures``: those of them
    that failed.
    """

    global_N: Tensor
    global_status_N: Tensor
    local_R: Tensor
    local_status_R: Tensor
    phrase_R: Tensor
    raw: tuple[str, ...] = ()
    missing_N: Tensor | None = None
    status_Q: Tensor | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Pictures with their regions and scores: what a training step needs to know of them."""

    rollout: Rollout
    regions: Regions
    scores: Scores
