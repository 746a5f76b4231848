"""The judging of micro-batches: a global score for each image, a local score for each region.

How an opinion is read is the readout's affair (``readouts.py``); this module decides what is asked about, and matches
regions to phrases. ``pipeline.JudgePipeline`` calls ``judge_together`` with what a recipe says. Nothing communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.finite import are_finite
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.readouts import Readout, Replies, Request, writes
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
        rows, columns = scipy.optimize.linear_sum_assignment(known, maximize=True)
        phrase[rows] = places[columns]
        shown[columns] = known[rows, columns] > 0
    unknown = np.isnan(scores_RP).any(axis=0)
    missing = ~shown & ~unknown[places] if scores_RP.shape[0] else ~shown
    share = float(missing.mean()) if len(places) else 0.0
    return Assignment(phrase=tuple(int(p) for p in phrase), missing=share)


NOT_FINITE = "(the picture is not finite)"
"""Stands for the reply about a picture that could not be drawn."""


@dataclass(frozen=True)
class Asking:
    """How the judge is asked about images and their regions.

    whole: the question about an image, with ``prompt``; None for a readout that needs no question. part: the one about
    a region, with ``phrase`` (and ``prompt``, if it likes); for ``boxes`` with ``prompt`` and ``boxes``. regional:
    ``crop`` or ``boxes``, see ``judge_together``. crop_size: height and width of every crop in pixels. batch: most
    images or crops that are read in one call, >= 1. surplus_penalty: in [0, 1], what a region costs that no phrase
    claims.

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
    """``judge_together`` of one micro-batch."""
    return judge_together(judge, [(samples, regions)], asking)[0]


def judge_together(judge: Judge, batches: Sequence[tuple[Samples, Regions]], asking: Asking) -> list[Scores]:
    """Asks about every image and every region of some micro-batches, and matches regions to phrases.

    Global: one question per image, with its prompt. Local, by ``asking.regional``:

    - ``crop``: each crop is asked about each phrase of its prompt; regions are then matched to phrases
      (``assign_phrases``) and a region's score is that for its phrase. A region that no phrase claims is a
      surplus object and scores ``-surplus_penalty``. A region whose own answer failed, or which is
      unclaimed while any of its answers failed, is FAILED.
    - ``boxes`` (as released): one written reply per image about all of its boxes, listed in the question.
      Nothing is matched: ``phrase_R`` is -1, ``missing_N`` None.

    Written replies are written together (``ask_all``). The result does not depend on which micro-batches are judged
    together, nor on ``asking.batch``, beyond the model's rounding.

    Args:
        judge: whoever answers; its parameters are whole on this rank.
        batches: of each micro-batch, N images with their prompts, and R boxes over these.
        asking: what is asked, and how.

    Returns:
        Scores of each micro-batch, on the CPU, float32.

    Raises:
        UserError: a prompt without phrases that has crops, or bad counts.
        ValueError: prompts that do not match the groups, or a judge that breaks its protocol.
    """
    part_of = _about_boxes if asking.regional == "boxes" else about_crops
    asked: list[Asked] = []
    for samples, regions in batches:
        images = list(samples.images_NCHW)
        asked += [_about_images(samples, images, asking), part_of(samples, images, regions, asking)]
    replies = ask_all(judge, asked, asking.readout, asking.batch)
    pairs = [slice(2 * n, 2 * n + 2) for n in range(len(batches))]
    return [
        _scores(samples, asking, asked[pair], replies[pair]) for (samples, _), pair in zip(batches, pairs, strict=True)
    ]


def render(template: Template | None, readout: Readout, **values: object) -> str:
    """A template's question for a readout; empty without a template."""
    return "" if template is None else template.render(think=readout.think, **values)


@dataclass(frozen=True)
class Asked:
    """Pictures and what is asked about each of them.

    owner_Q, region_Q: of each score that comes back, the image and the region (-1: the whole image) that it is of.
    """

    pictures: Sequence[Tensor]
    requests: Sequence[Sequence[Request]]
    owner_Q: Sequence[int] = ()
    region_Q: Sequence[int] = ()

    @property
    def scores(self) -> int:
        """How many scores come back."""
        return sum(request.scores for about in self.requests for request in about)


def ask_all(judge: Judge, groups: Sequence[Asked], readout: Readout, batch: int) -> list[Replies]:
    """The replies to each group of requests.

    Answers that are read: group by group, ``batch`` pictures in a call. Replies that are written: one call for all
    groups, since it takes as long as its longest reply; ``GenerateReadout`` bounds how many are written at once. A
    picture (tensor) that stands in several groups is read once.

    Requests about a picture that is not finite are FAILED, whatever the judge would say.
    """
    lost = [_lost(group.pictures) for group in groups]
    shown = [replace(group, pictures=_shown(group.pictures, own)) for group, own in zip(groups, lost, strict=True)]
    replies = _ask_all(judge, shown, readout, batch)
    return [_failed(said, group, own) for said, group, own in zip(replies, groups, lost, strict=True)]


def _lost(pictures: Sequence[Tensor]) -> list[bool]:
    """Of each picture whether any of its numbers is not finite."""
    return [not whole for whole in are_finite(pictures)]


def _shown(pictures: Sequence[Tensor], lost: Sequence[bool]) -> list[Tensor]:
    """The pictures, with zeros for what is not finite; the others are the very same tensors."""
    return [p.nan_to_num(0.0, 0.0, 0.0) if gone else p for p, gone in zip(pictures, lost, strict=True)]


def _failed(replies: Replies, group: Asked, lost: Sequence[bool]) -> Replies:
    """The replies, FAILED where the picture is lost."""
    if not any(lost):
        return replies
    counts = [sum(request.scores for request in about) for about in group.requests]
    lost_Q = torch.tensor([gone for gone, count in zip(lost, counts, strict=True) for _ in range(count)])
    return Replies(
        replies.score_Q.masked_fill(lost_Q, torch.nan),
        replies.status_Q.masked_fill(lost_Q, int(Status.FAILED)),
        tuple(NOT_FINITE if gone else said for said, gone in zip(replies.raw, lost_Q.tolist(), strict=True)),
    )


def _ask_all(judge: Judge, groups: Sequence[Asked], readout: Readout, batch: int) -> list[Replies]:
    if not writes(readout):
        return [_read_in_parts(judge, group, readout, batch) for group in groups]
    pictures = {id(picture): picture for group in groups for picture in group.pictures}
    place = {key: number for number, key in enumerate(pictures)}
    requests = [
        replace(request, picture=place[id(picture)])
        for group in groups
        for picture, about in zip(group.pictures, group.requests, strict=True)
        for request in about
    ]
    return readout.read(judge, list(pictures.values()), requests).split([group.scores for group in groups])


def _read_in_parts(judge: Judge, group: Asked, readout: Readout, batch: int) -> Replies:
    parts = [Replies(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())]
    for start in range(0, len(group.pictures), batch):
        asked = group.requests[start : start + batch]
        flat = [replace(request, picture=k) for k, about in enumerate(asked) for request in about]
        parts.append(readout.read(judge, group.pictures[start : start + batch], flat))
    return Replies(
        torch.cat([part.score_Q for part in parts]),
        torch.cat([part.status_Q for part in parts]),
        tuple(text for part in parts for text in part.raw),
    )


def _names(samples: Samples) -> list[tuple[str, int]]:
    """What seeds the replies about each image."""
    return [(p.name, s) for p, s in zip(samples.prompt_of_each(), samples.sample_N.tolist(), strict=True)]


def _about_images(samples: Samples, images: Sequence[Tensor], asking: Asking) -> Asked:
    """Each image against its prompt."""
    questions = [render(asking.whole, asking.readout, prompt=prompt.text) for prompt in samples.prompts]
    requests = [
        [Request(0, questions[group], samples.prompts[group].text, (*name, "whole"))]
        for group, name in zip(samples.group_N.tolist(), _names(samples), strict=True)
    ]
    return Asked(images, requests, range(len(images)), [-1] * len(images))


def about_crops(samples: Samples, images: Sequence[Tensor], regions: Regions, asking: Asking) -> Asked:
    """Each crop against each phrase of its prompt."""
    del images
    prompts, names = samples.prompt_of_each(), _names(samples)
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
    requests = [
        [
            Request(0, question, phrase, (*names[owner], region - first_of[owner], number))
            for number, (question, phrase) in enumerate(asked_of[groups[owner]])
        ]
        for region, owner in enumerate(owners)
    ]
    region_Q = [region for region, about in enumerate(requests) for _ in about]
    crops = crop(samples.images_NCHW, regions, asking.crop_size)
    return Asked(crops, requests, [owners[region] for region in region_Q], region_Q)


def _about_boxes(samples: Samples, images: Sequence[Tensor], regions: Regions, asking: Asking) -> Asked:
    """Each image that has boxes, about all of them."""
    prompts, names = samples.prompt_of_each(), _names(samples)
    owner_R = regions.owner_R
    height, width = samples.images_NCHW.shape[2:]
    sides_4 = torch.tensor([width, height, width, height], dtype=torch.float64)

    def request(owner: int, boxes_B4: Tensor) -> Request:
        pixels = (boxes_B4.double().cpu() * sides_4).round().int().tolist()
        text = prompts[owner].text
        question = render(asking.part, asking.readout, prompt=text, boxes=pixels, width=width, height=height)
        return Request(0, question, text, (*names[owner], "boxes"), len(boxes_B4))

    shown = torch.unique(owner_R).tolist()
    requests = [[request(owner, regions.boxes_R4[owner_R == owner])] for owner in shown]
    return Asked([images[owner] for owner in shown], requests, owner_R.tolist(), range(len(regions)))


def _scores(samples: Samples, asking: Asking, groups: Sequence[Asked], replies: Sequence[Replies]) -> Scores:
    """What the replies about a micro-batch's images, and those about its regions, say."""
    whole, part = replies
    local = Scores(
        global_N=whole.score_Q,
        global_status_N=whole.status_Q,
        local_R=part.score_Q,
        local_status_R=part.status_Q,
        phrase_R=torch.full(part.status_Q.shape, -1),
        raw=(*whole.raw, *part.raw),
        status_Q=torch.cat([whole.status_Q, part.status_Q]),
        failures=(*_failures(whole, groups[0], asking.whole), *_failures(part, groups[1], asking.part)),
    )
    return local if asking.regional == "boxes" else settle(local, samples, groups[1], part, asking.surplus_penalty)


def _label(template: Template | None) -> str:
    return "none" if template is None else template.label


def _failures(replies: Replies, group: Asked, template: Template | None) -> tuple[Failure, ...]:
    questions = [request.question for about in group.requests for request in about for _ in range(request.scores)]
    return tuple(
        Failure(group.owner_Q[q], group.region_Q[q], questions[q], replies.raw[q], _label(template))
        for q in (replies.status_Q == int(Status.FAILED)).nonzero().flatten().tolist()
    )


def settle(said: Scores, samples: Samples, group: Asked, replies: Replies, surplus_penalty: float) -> Scores:
    """From the answers, crop by crop and phrase by phrase, to one score a region."""
    prompts = samples.prompt_of_each()
    score_Q, status_Q = replies.score_Q, replies.status_Q
    regions_of: dict[int, list[int]] = {}
    answers_of: list[slice] = []
    position = 0
    for region, about in enumerate(group.requests):
        regions_of.setdefault(group.owner_Q[position], []).append(region)
        answers_of.append(slice(position, position + len(about)))
        position += len(about)
    count = len(answers_of)
    local_R = torch.full((count,), torch.nan)
    status_R = torch.full((count,), int(Status.FAILED), dtype=torch.int64)
    phrase_R = torch.full((count,), -1, dtype=torch.int64)
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
    raw = (*said.raw[: len(prompts)], *raw_R)
    return replace(said, local_R=local_R, local_status_R=status_R, phrase_R=phrase_R, raw=raw, missing_N=missing_N)


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
