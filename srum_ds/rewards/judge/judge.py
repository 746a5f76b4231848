"""The judging of a micro-batch: a global score for each image, a local score for each region.

How an opinion is read is the readout's affair (``readouts.py``); this module decides what is asked about, and matches
regions to phrases. ``pipeline.JudgePipeline`` calls ``judge_samples`` with what a recipe says. Nothing communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.readouts import GenerateReadout, Readout, Replies, Request
from srum_ds.rewards.regions import crop
from srum_ds.rewards.templates import Template
from srum_ds.types import Failure, Prompt, Regions, Samples, Scores, Status


@dataclass(frozen=True)
class Assignment:
    """Which phrase each region of one image shows.

    ``phrase`` [R]: index into the prompt's phrases, -1 where no phrase claims the region.
    ``missing``: share of the asked-for objects, in [0, 1], that no region shows.
    """

    phrase: tuple[int, ...]
    missing: float


def phrase_counts(prompt: Prompt) -> tuple[int, ...]:
    """How many objects each phrase of the prompt asks for: ``meta["counts"]``, or 1 each.

    Raises:
        UserError: counts that are not positive whole numbers, one for each phrase.
    """
    counts = prompt.meta.get("counts")
    if counts is None:
        return (1,) * len(prompt.phrases)
    whole = isinstance(counts, Sequence) and all(type(c) is int and c >= 1 for c in counts)
    if not whole or len(counts) != len(prompt.phrases):
        raise UserError(
            f"prompt {prompt.id!r}: meta.counts is {counts!r}, expected one whole number of at least 1 for "
            f"each of its {len(prompt.phrases)} phrases; correct the prompt shard"
        )
    return tuple(counts)


def assign_phrases(scores_RP: np.ndarray, counts: Sequence[int]) -> Assignment:
    """Matches the regions of one image to the objects its prompt asks for, best total score first.

    Each phrase offers as many places as it asks for objects and each region takes at most one, so
    that one phrase cannot bless two objects. An answer that failed counts as 0 in the matching:
    it speaks neither for nor against. A place is missing when the region in it scores 0 or less, or
    when nothing is in it, unless some answer about its phrase failed: then nobody knows.

    Args:
        scores_RP: local scores in [-1, 1] of each region for each phrase, NaN where failed.
        counts: places of each phrase, >= 1.
    """
    places = np.repeat(np.arange(len(counts)), counts)
    phrase = np.full(scores_RP.shape[0], -1)
    shown = np.zeros(len(places), dtype=bool)
    if len(places) and scores_RP.shape[0]:
        known = np.nan_to_num(scores_RP, nan=0.0)[:, places]
        rows, columns = linear_sum_assignment(known, maximize=True)
        phrase[rows] = places[columns]
        shown[columns] = known[rows, columns] > 0
    unknown = np.isnan(scores_RP).any(axis=0)
    missing = ~shown & ~unknown[places] if scores_RP.shape[0] else ~shown
    share = float(missing.mean()) if len(places) else 0.0
    return Assignment(phrase=tuple(int(p) for p in phrase), missing=share)


@dataclass(frozen=True)
class Asking:
    """How the judge is asked about images and their regions.

    whole: the question about an image, with ``prompt``; None for a readout that needs no question. part: the one about
    a region, with ``phrase`` (and ``prompt``, if it likes); for ``boxes`` with ``prompt`` and ``boxes``. regional:
    ``crop`` or ``boxes``, see ``judge_samples``. crop_size: height and width of every crop in pixels. batch: most
    images or crops in one call, >= 1. surplus_penalty: in [0, 1], what a region costs that no phrase claims.

    UserError for a template that cannot serve the readout.
    """

    whole: Template | None
    part: Template | None
    readout: Readout
    regional: str = "crop"
    crop_size: tuple[int, int] = (64, 64)
    batch: int = 64
    surplus_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_template(self.whole, self.readout, "prompt")
        check_template(self.part, self.readout, "boxes" if self.regional == "boxes" else "phrase")


def judge_samples(judge: Judge, samples: Samples, regions: Regions, asking: Asking) -> Scores:
    """Asks about every image and every region, and matches regions to phrases.

    Global: one question per image, with its prompt. Local, by ``asking.regional``:

    - ``crop``: each crop is asked about each phrase of its prompt; regions are then matched to phrases
      (``assign_phrases``) and a region's score is that for its phrase. A region that no phrase claims is a
      surplus object and scores ``-surplus_penalty``. A region whose own answer failed, or which is
      unclaimed while any of its answers failed, is FAILED.
    - ``boxes`` (as released): one written reply per image about all of its boxes, listed in the question.
      Nothing is matched: ``phrase_R`` is -1, ``missing_N`` None.

    The result does not depend on ``asking.batch`` beyond the model's rounding.

    Args:
        judge: whoever answers; its parameters are whole on this rank.
        samples: N images with their prompts.
        regions: R boxes over these images.
        asking: what is asked, and how.

    Returns:
        Scores on the CPU, float32.

    Raises:
        UserError: a prompt without phrases that has crops, or bad counts.
        ValueError: prompts that do not match the groups, or a judge that breaks its protocol.
    """
    prompts = samples.prompt_of_each()
    names = [(p.name, s) for p, s in zip(prompts, samples.sample_N.tolist(), strict=True)]
    questions = [render(asking.whole, asking.readout, prompt=prompt.text) for prompt in samples.prompts]
    asked = [
        [Request(0, questions[group], samples.prompts[group].text, (*name, "whole"))]
        for group, name in zip(samples.group_N.tolist(), names, strict=True)
    ]
    whole = ask_all(judge, list(samples.images_NCHW), asked, asking.readout, asking.batch)
    failures = _failures(whole, [a[0] for a in asked], range(len(prompts)), [-1] * len(prompts), asking.whole)
    judge_regions = _judge_boxes if asking.regional == "boxes" else _judge_crops
    local = judge_regions(judge, samples, regions, names, asking)
    return Scores(
        global_N=whole.score_Q,
        global_status_N=whole.status_Q,
        local_R=local.score_R,
        local_status_R=local.status_R,
        phrase_R=local.phrase_R,
        raw=(*whole.raw, *local.raw_R),
        missing_N=local.missing_N,
        status_Q=torch.cat([whole.status_Q, local.status_Q]),
        failures=(*failures, *local.failures),
    )


def render(template: Template | None, readout: Readout, **values: object) -> str:
    """A template's question for a readout; empty without a template."""
    return "" if template is None else template.render(think=readout.think, **values)


@dataclass(frozen=True)
class _Local:
    """What became of the regions: score, status, phrase and reply of each, and of the requests."""

    score_R: Tensor
    status_R: Tensor
    phrase_R: Tensor
    raw_R: tuple[str, ...]
    missing_N: Tensor | None
    status_Q: Tensor
    failures: tuple[Failure, ...]


def _judge_crops(
    judge: Judge, samples: Samples, regions: Regions, names: Sequence[tuple[str, int]], asking: Asking
) -> _Local:
    """Each crop against each phrase of its prompt."""
    prompts = samples.prompt_of_each()
    owners = regions.owner_R.tolist()
    for owner in owners:
        if not prompts[owner].phrases:
            raise UserError(
                f"prompt {prompts[owner].id!r} has no object phrases, which regions are judged against: add "
                f"'phrases' to its record in the prompt shard, or propose no regions (kind 'none')"
            )
    first_of = {owner: owners.index(owner) for owner in set(owners)}
    groups = samples.group_N.tolist()
    # A prompt's crops are asked the same questions: each is rendered once.
    asked_of = {
        group: [
            (render(asking.part, asking.readout, prompt=samples.prompts[group].text, phrase=phrase), phrase)
            for phrase in samples.prompts[group].phrases
        ]
        for group in dict.fromkeys(groups[owner] for owner in owners)
    }
    asked = [
        [
            Request(0, question, phrase, (*names[owner], region - first_of[owner], number))
            for number, (question, phrase) in enumerate(asked_of[groups[owner]])
        ]
        for region, owner in enumerate(owners)
    ]
    crops = crop(samples.images_NCHW, regions, asking.crop_size)
    replies = ask_all(judge, crops, asked, asking.readout, asking.batch)
    flat = [request for of_crop in asked for request in of_crop]
    region_Q = [region for region, of_crop in enumerate(asked) for _ in of_crop]
    failures = _failures(replies, flat, [owners[region] for region in region_Q], region_Q, asking.part)
    return _settle(prompts, owners, replies, asking.surplus_penalty, failures)


def _judge_boxes(
    judge: Judge, samples: Samples, regions: Regions, names: Sequence[tuple[str, int]], asking: Asking
) -> _Local:
    """One written reply per image about all of its boxes. A region of a reply counts as one request."""
    readout = asking.readout
    assert isinstance(readout, GenerateReadout)
    prompts = samples.prompt_of_each()
    owner_R = regions.owner_R
    shown = torch.unique(owner_R).tolist()
    height, width = samples.images_NCHW.shape[2:]
    sides_4 = torch.tensor([width, height, width, height], dtype=torch.float64)

    def request(owner: int, boxes_B4: Tensor) -> Request:
        pixels = (boxes_B4.double().cpu() * sides_4).round().int().tolist()
        text = prompts[owner].text
        question = render(asking.part, asking.readout, prompt=text, boxes=pixels, width=width, height=height)
        return Request(0, question, text, (*names[owner], "boxes"))

    requests = [request(owner, regions.boxes_R4[owner_R == owner]) for owner in shown]
    counts = [int((owner_R == owner).sum()) for owner in shown]
    pictures = [samples.images_NCHW[owner] for owner in shown]
    score: list[float] = []
    status: list[int] = []
    raw: list[str] = []
    failures: list[Failure] = []
    for start in range(0, len(requests), asking.batch):
        asked = [replace(r, picture=k) for k, r in enumerate(requests[start : start + asking.batch])]
        own = counts[start : start + asking.batch]
        found, texts = readout.read_regions(judge, pictures[start : start + asking.batch], asked, own)
        for position, (of_picture, text) in enumerate(zip(found, texts, strict=True)):
            for reply in of_picture:
                if reply.status == Status.FAILED:
                    where = (shown[start + position], len(score))
                    failures.append(Failure(*where, asked[position].question, text, _label(asking.part)))
                score.append(reply.score)
                status.append(int(reply.status))
                raw.append(text)
    status_R = torch.tensor(status, dtype=torch.int64)
    return _Local(
        score_R=torch.tensor(score, dtype=torch.float32),
        status_R=status_R,
        phrase_R=torch.full((len(score),), -1, dtype=torch.int64),
        raw_R=tuple(raw),
        missing_N=None,
        status_Q=status_R,
        failures=tuple(failures),
    )


def ask_all(
    judge: Judge,
    pictures: Sequence[Tensor],
    requests: Sequence[Sequence[Request]],
    readout: Readout,
    batch: int,
) -> Replies:
    """All requests about all images, in order; those about one image share it in the call."""
    parts = [Replies(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())]
    for start in range(0, len(pictures), batch):
        asked = requests[start : start + batch]
        flat = [replace(request, picture=k) for k, of_picture in enumerate(asked) for request in of_picture]
        parts.append(readout.read(judge, pictures[start : start + batch], flat))
    return Replies(
        torch.cat([part.score_Q for part in parts]),
        torch.cat([part.status_Q for part in parts]),
        tuple(text for part in parts for text in part.raw),
    )


def _label(template: Template | None) -> str:
    return "none" if template is None else template.label


def _failures(
    replies: Replies,
    requests: Sequence[Request],
    picture_Q: Sequence[int],
    region_Q: Sequence[int],
    template: Template | None,
) -> tuple[Failure, ...]:
    failed = (replies.status_Q == int(Status.FAILED)).nonzero().flatten().tolist()
    return tuple(
        Failure(picture_Q[q], region_Q[q], requests[q].question, replies.raw[q], _label(template)) for q in failed
    )


def _settle(
    prompts: Sequence[Prompt],
    owners: Sequence[int],
    replies: Replies,
    surplus_penalty: float,
    failures: tuple[Failure, ...],
) -> _Local:
    """From the answers, region by region and phrase by phrase, to one score a region."""
    score_Q, status_Q = replies.score_Q, replies.status_Q
    regions_of: dict[int, list[int]] = {}
    answers_of: list[slice] = []
    position = 0
    for region, owner in enumerate(owners):
        regions_of.setdefault(owner, []).append(region)
        answers_of.append(slice(position, position + len(prompts[owner].phrases)))
        position += len(prompts[owner].phrases)
    local_R = torch.full((len(owners),), torch.nan)
    status_R = torch.full((len(owners),), int(Status.FAILED), dtype=torch.int64)
    phrase_R = torch.full((len(owners),), -1, dtype=torch.int64)
    missing_N = torch.zeros(len(prompts))
    raw_R = ["; ".join(replies.raw[own]) for own in answers_of]
    for owner, prompt in enumerate(prompts):
        members = regions_of.get(owner, [])
        scores_RP = np.full((len(members), len(prompt.phrases)), np.nan)
        for row, region in enumerate(members):
            scores_RP[row] = score_Q[answers_of[region]].numpy()
        assignment = assign_phrases(scores_RP, phrase_counts(prompt))
        missing_N[owner] = assignment.missing
        for region, phrase in zip(members, assignment.phrase, strict=True):
            phrase_R[region] = phrase
            own = answers_of[region]
            if phrase >= 0:
                local_R[region] = score_Q[own][phrase]
                status_R[region] = status_Q[own][phrase]
                raw_R[region] = replies.raw[own][phrase]
            elif bool((status_Q[own] != int(Status.FAILED)).all()):
                local_R[region] = -surplus_penalty
                status_R[region] = int(Status.PARSED)
    return _Local(local_R, status_R, phrase_R, tuple(raw_R), missing_N, status_Q, failures)


def check_template(template: Template | None, readout: Readout, variable: str) -> None:
    """UserError where a template cannot serve a readout that is about ``variable`` (prompt or phrase)."""
    if not readout.needs_question:
        if template is not None and template.variables & {"prompt", "phrase"}:
            raise UserError(
                f"judge template {template.name} mentions the prompt or phrase, which gives away the text whose "
                f"likelihood is read; choose one that does not, such as describe"
            )
        return
    if template is None:
        raise UserError("this readout needs a judge template; only likelihood does without")
    if variable not in template.variables:
        raise UserError(
            f"judge template {template.name} never mentions {{{{ {variable} }}}}: every question would "
            f"be the same; use the variable or choose another template"
        )
    if readout.think and "think" not in template.variables:
        raise UserError(
            f"judge.think is on, but judge template {template.name} never mentions {{{{ think }}}}: choose one "
            f"that asks for thinking, such as global_layout_score"
        )
