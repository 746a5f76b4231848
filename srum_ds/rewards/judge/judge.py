"""The judging of one step: a global score for each picture, a local score for each region.

How an opinion is read is the readout's affair (``asking.py``); this module decides what is asked about.
Where the judge's parameters are sharded every model call is collective, so that every rank must make the
same number of them: one a batch (more only as ``asking.GenerateReadout`` agrees on), ``ceil(N / batch)``
batches of pictures (N is the same everywhere) and ``ceil(M / batch)`` of crops, where M is the largest
number of crops any rank has (``agree``, or ``pad_to``). Batch k then holds the same number of pictures on
every rank. Where no call communicates, nothing is padded.
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
from srum_ds.rewards.judge.readouts import Agree, GenerateReadout, Readout, Replies, Request, alone, check_template
from srum_ds.rewards.judge.templates import Template
from srum_ds.rewards.regions import crop
from srum_ds.types import Failure, Prompt, Regions, Samples, Scores, Status


@dataclass(frozen=True)
class Assignment:
    """Which phrase each region of one picture shows.

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
    """Matches the regions of one picture to the objects its prompt asks for, best total score first.

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


def judge_rollout(
    judge: Judge,
    rollout: Samples,
    regions: Regions,
    global_template: Template | None,
    local_template: Template | None,
    readout: Readout,
    *,
    regional: str = "crop",
    crop_size: tuple[int, int] = (64, 64),
    batch: int = 64,
    pad_to: int | None = None,
    agree: Agree = alone,
    surplus_penalty: float = 1.0,
) -> Scores:
    """Asks about every picture and every region, and matches regions to phrases.

    Global: one question a picture, with its prompt. Local, by ``regional``:

    - ``crop``: each crop is asked about each phrase of its prompt; regions are then matched to phrases
      (``assign_phrases``) and a region's score is that for its phrase. A region that no phrase claims is a
      surplus object and scores ``-surplus_penalty``. A region whose own answer failed, or which is
      unclaimed while any of its answers failed, is FAILED.
    - ``boxes`` (as released): one written reply a picture about all of its boxes, listed in the question.
      Nothing is matched: ``phrase_R`` is -1, ``missing_N`` None.

    The result does not depend on ``batch``, ``pad_to`` or ``agree`` beyond the model's rounding.

    Args:
        judge: whoever answers.
        rollout: N pictures with their prompts.
        regions: R boxes over these pictures.
        global_template: question with ``prompt``; None for a readout that needs no question.
        local_template: question with ``phrase`` (and ``prompt``, if it likes); for ``boxes`` with
            ``prompt`` and ``boxes``.
        readout: how the judge's opinion is read.
        crop_size: height and width of every crop in pixels.
        batch: most pictures or crops in one call, >= 1.
        pad_to: crops (or pictures with boxes) to ask about, at least as many as there are: the largest
            number over all ranks. Those beyond are blank and their answers are thrown away. None: as
            ``agree`` has it.
        agree: the largest of a number over all ranks, for a judge whose calls communicate; see
            ``asking``.
        surplus_penalty: in [0, 1].

    Returns:
        Scores on the CPU, float32.

    Raises:
        UserError: a template without its variable, a prompt without phrases that has crops, bad
            counts, or a setting out of range.
        ValueError: ``pad_to`` too small, prompts that do not match the groups, or a judge that breaks
            its protocol.
    """
    _check_settings(global_template, local_template, readout, regional, batch, surplus_penalty)
    prompts = _prompt_of_each(rollout)
    names = [(p.name, s) for p, s in zip(prompts, rollout.sample_N.tolist(), strict=True)]
    questions = [render(global_template, readout, prompt=prompt.text) for prompt in rollout.prompts]
    asked = [
        [Request(0, questions[group], rollout.prompts[group].text, (*name, "whole"))]
        for group, name in zip(rollout.group_N.tolist(), names, strict=True)
    ]
    whole = ask_all(judge, list(rollout.images_NCHW), asked, readout, batch, agree)
    failures = _failures(whole, [a[0] for a in asked], range(len(prompts)), [-1] * len(prompts), global_template)
    if regional == "boxes":
        local = _judge_boxes(judge, rollout, regions, names, local_template, readout, batch, pad_to, agree)
    else:
        local = _judge_crops(
            judge, rollout, regions, names, local_template, readout, crop_size, batch, pad_to, agree, surplus_penalty
        )
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


def _check_settings(
    global_template: Template | None,
    local_template: Template | None,
    readout: Readout,
    regional: str,
    batch: int,
    surplus_penalty: float,
) -> None:
    check_template(global_template, readout, "prompt")
    if regional not in ("crop", "boxes"):
        raise UserError(f"judge.regional is {regional!r}, expected crop or boxes")
    if regional == "boxes" and not isinstance(readout, GenerateReadout):
        raise UserError("judge.regional=boxes is answered in writing: it needs judge.readout=generate")
    check_template(local_template, readout, "boxes" if regional == "boxes" else "phrase")
    if batch < 1:
        raise UserError(f"judge batch is {batch}, expected at least 1")
    if not 0.0 <= surplus_penalty <= 1.0:
        raise UserError(f"surplus_penalty is {surplus_penalty}, expected a cost in [0, 1]")


def _prompt_of_each(rollout: Samples) -> list[Prompt]:
    """The prompt of each of the N pictures; ``rollout.prompts`` holds one a group."""
    groups = int(rollout.group_N.max()) + 1 if rollout.group_N.numel() else 0
    if len(rollout.prompts) != groups:
        raise ValueError(f"the rollout has {len(rollout.prompts)} prompts for {groups} groups of pictures")
    return [rollout.prompts[group] for group in rollout.group_N.tolist()]


def _padding(count: int, pad_to: int | None, agree: Agree) -> int:
    """How many blank pictures make up the number that every rank asks about."""
    total = agree(count) if pad_to is None else pad_to
    if total < count:
        raise ValueError(f"pad_to is {total}, but there are {count} regions")
    return total - count


def _judge_crops(
    judge: Judge,
    rollout: Samples,
    regions: Regions,
    names: Sequence[tuple[str, int]],
    template: Template | None,
    readout: Readout,
    crop_size: tuple[int, int],
    batch: int,
    pad_to: int | None,
    agree: Agree,
    surplus_penalty: float,
) -> _Local:
    """Each crop against each phrase of its prompt."""
    padding = _padding(len(regions), pad_to, agree)
    prompts = _prompt_of_each(rollout)
    owners = regions.owner_R.tolist()
    for owner in owners:
        if not prompts[owner].phrases:
            raise UserError(
                f"prompt {prompts[owner].id!r} has no object phrases, which regions are judged against: add "
                f"'phrases' to its record in the prompt shard, or propose no regions (kind 'none')"
            )
    first_of = {owner: owners.index(owner) for owner in set(owners)}
    groups = rollout.group_N.tolist()
    # A prompt's crops are asked the same questions: each is rendered once.
    asked_of = {
        group: [
            (render(template, readout, prompt=rollout.prompts[group].text, phrase=phrase), phrase)
            for phrase in rollout.prompts[group].phrases
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
    crops = crop(rollout.images_NCHW, regions, crop_size)
    if padding:
        first = prompts[0]
        phrase = first.phrases[0] if first.phrases else first.text
        filler = Request(0, render(template, readout, prompt=first.text, phrase=phrase), phrase, ("padding",))
        crops.extend([torch.zeros(3, *crop_size, device=rollout.images_NCHW.device)] * padding)
        asked.extend([[filler]] * padding)
    replies = ask_all(judge, crops, asked, readout, batch, agree)
    flat = [request for of_crop in asked[: len(owners)] for request in of_crop]
    replies = Replies(replies.score_Q[: len(flat)], replies.status_Q[: len(flat)], replies.raw[: len(flat)])
    region_Q = [region for region, of_crop in enumerate(asked[: len(owners)]) for _ in of_crop]
    failures = _failures(replies, flat, [owners[region] for region in region_Q], region_Q, template)
    return _settle(prompts, owners, replies, surplus_penalty, failures)


def _judge_boxes(
    judge: Judge,
    rollout: Samples,
    regions: Regions,
    names: Sequence[tuple[str, int]],
    template: Template | None,
    readout: Readout,
    batch: int,
    pad_to: int | None,
    agree: Agree,
) -> _Local:
    """One written reply a picture about all of its boxes. A region of a reply counts as one request."""
    assert isinstance(readout, GenerateReadout)
    prompts = _prompt_of_each(rollout)
    owner_R = regions.owner_R
    shown = torch.unique(owner_R).tolist()
    height, width = rollout.images_NCHW.shape[2:]
    sides_4 = torch.tensor([width, height, width, height], dtype=torch.float64)

    def request(owner: int, boxes_B4: Tensor) -> Request:
        pixels = (boxes_B4.double().cpu() * sides_4).round().int().tolist()
        text = prompts[owner].text
        question = render(template, readout, prompt=text, boxes=pixels, width=width, height=height)
        return Request(0, question, text, (*names[owner], "boxes"))

    requests = [request(owner, regions.boxes_R4[owner_R == owner]) for owner in shown]
    counts = [int((owner_R == owner).sum()) for owner in shown]
    pictures = [rollout.images_NCHW[owner] for owner in shown]
    for _ in range(_padding(len(shown), pad_to, agree)):
        requests.append(request(0, torch.tensor([[0.0, 0.0, 1.0, 1.0]])))
        counts.append(0)
        pictures.append(torch.zeros_like(rollout.images_NCHW[0]))
    score: list[float] = []
    status: list[int] = []
    raw: list[str] = []
    failures: list[Failure] = []
    for start in range(0, len(requests), batch):
        asked = [replace(r, picture=k) for k, r in enumerate(requests[start : start + batch])]
        own = counts[start : start + batch]
        found, texts = readout.read_regions(judge, pictures[start : start + batch], asked, own, agree)
        for position, (of_picture, text) in enumerate(zip(found, texts, strict=True)):
            for reply in of_picture:
                if reply.status == Status.FAILED:
                    where = (shown[start + position], len(score))
                    failures.append(Failure(*where, asked[position].question, text, _label(template)))
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
    agree: Agree,
) -> Replies:
    """All requests about all pictures, in order; those about one picture share it in the call."""
    parts = [Replies(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())]
    for start in range(0, len(pictures), batch):
        asked = requests[start : start + batch]
        flat = [replace(request, picture=k) for k, of_picture in enumerate(asked) for request in of_picture]
        parts.append(readout.read(judge, pictures[start : start + batch], flat, agree))
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
