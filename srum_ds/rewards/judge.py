"""The judging of one step: a global score for each picture, a local score for each region.

All calls go through ``Judge.answer_logprobs``, one prefill a call. Under a sharded model every call
is collective, so that every rank must make the same number of them: ``ceil(N / batch)`` for the
pictures (N is the same everywhere) and ``ceil(pad_to / batch)`` for the crops, where ``pad_to`` is the
largest number of crops any rank has. Call k then holds the same number of pictures on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from srum_ds.errors import UserError
from srum_ds.models.base import Judge, Prompt, Regions, Rollout, Scores, Status
from srum_ds.rewards.readouts import yes_no_score
from srum_ds.rewards.regions import crop
from srum_ds.rewards.templates import Template


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
    rollout: Rollout,
    regions: Regions,
    global_template: Template,
    local_template: Template,
    answers: Sequence[str],
    *,
    crop_size: tuple[int, int] = (64, 64),
    batch: int = 64,
    pad_to: int | None = None,
    surplus_penalty: float = 1.0,
    min_mass: float = 0.05,
) -> Scores:
    """Asks about every picture and every region, and matches regions to phrases.

    Global: one question a picture, with its prompt. Local: each crop is asked about each phrase of its
    prompt; regions are then matched to phrases (``assign_phrases``) and a region's score is that for
    its phrase. A region that no phrase claims is a surplus object and scores ``-surplus_penalty``. A
    region whose own answer failed, or which is unclaimed while any of its answers failed, is FAILED.

    The result does not depend on ``batch`` or ``pad_to`` beyond the model's rounding.

    Args:
        judge: whoever answers.
        rollout: N pictures with their prompts.
        regions: R boxes over these pictures.
        global_template: question with ``prompt``.
        local_template: question with ``phrase`` (and ``prompt``, if it likes).
        answers: yes and no as the model writes them; an even number, spellings of yes first.
        crop_size: height and width of every crop in pixels.
        batch: most pictures or crops in one call, >= 1.
        pad_to: crops to ask about, at least R: the largest R over all ranks. The crops beyond R are
            blank and their answers are thrown away. None: R.
        surplus_penalty: in [0, 1].
        min_mass: see ``yes_no_score``.

    Returns:
        Scores on the CPU, float32, with ``missing_N``.

    Raises:
        UserError: a template without its variable, a prompt without phrases that has regions, bad
            counts, or a setting out of range.
        ValueError: ``pad_to`` below R, prompts that do not match the groups, or a judge that breaks
            its protocol.
    """
    _check_settings(global_template, local_template, answers, batch, surplus_penalty)
    pictures = list(rollout.images_NCHW)
    texts = [prompt.text for prompt in _prompt_of_each(rollout)]
    global_questions = [[global_template.render(prompt=text)] for text in texts]
    logprobs_NA = _ask(judge, pictures, global_questions, answers, batch)
    global_N, global_status_N = yes_no_score(logprobs_NA, min_mass)
    local_R, local_status_R, phrase_R, missing_N = _judge_regions(
        judge, rollout, regions, local_template, answers, crop_size, batch, pad_to, surplus_penalty, min_mass
    )
    return Scores(
        global_N=global_N,
        global_status_N=global_status_N,
        local_R=local_R,
        local_status_R=local_status_R,
        phrase_R=phrase_R,
        missing_N=missing_N,
    )


def _check_settings(
    global_template: Template,
    local_template: Template,
    answers: Sequence[str],
    batch: int,
    surplus_penalty: float,
) -> None:
    for template, variable in ((global_template, "prompt"), (local_template, "phrase")):
        if variable not in template.variables:
            raise UserError(
                f"judge template {template.name} never mentions {{{{ {variable} }}}}: every question would "
                f"be the same; use the variable or choose another template"
            )
    if len(answers) == 0 or len(answers) % 2:
        raise UserError(f"judge answers are {list(answers)}, expected the spellings of yes, then as many of no")
    if batch < 1:
        raise UserError(f"judge batch is {batch}, expected at least 1")
    if not 0.0 <= surplus_penalty <= 1.0:
        raise UserError(f"surplus_penalty is {surplus_penalty}, expected a cost in [0, 1]")


def _prompt_of_each(rollout: Rollout) -> list[Prompt]:
    """The prompt of each of the N pictures; ``rollout.prompts`` holds one a group."""
    groups = int(rollout.group_N.max()) + 1 if rollout.group_N.numel() else 0
    if len(rollout.prompts) != groups:
        raise ValueError(f"the rollout has {len(rollout.prompts)} prompts for {groups} groups of pictures")
    return [rollout.prompts[group] for group in rollout.group_N.tolist()]


def _judge_regions(
    judge: Judge,
    rollout: Rollout,
    regions: Regions,
    template: Template,
    answers: Sequence[str],
    crop_size: tuple[int, int],
    batch: int,
    pad_to: int | None,
    surplus_penalty: float,
    min_mass: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Local scores, statuses and phrases [R], and the missing share [N]."""
    count = len(regions)
    total = count if pad_to is None else pad_to
    if total < count:
        raise ValueError(f"pad_to is {total}, but there are {count} regions")
    prompts = _prompt_of_each(rollout)
    owners = regions.owner_R.tolist()
    for owner in owners:
        if not prompts[owner].phrases:
            raise UserError(
                f"prompt {prompts[owner].id!r} has no object phrases, which regions are judged against: add "
                f"'phrases' to its record in the prompt shard, or propose no regions (kind 'none')"
            )
    questions = [
        [template.render(prompt=prompts[owner].text, phrase=phrase) for phrase in prompts[owner].phrases]
        for owner in owners
    ]
    crops = crop(rollout.images_NCHW, regions, crop_size)
    if total > count:
        first = prompts[0]
        filler = template.render(prompt=first.text, phrase=first.phrases[0] if first.phrases else first.text)
        blank = torch.zeros(3, *crop_size, device=rollout.images_NCHW.device)
        crops.extend([blank] * (total - count))
        questions.extend([[filler]] * (total - count))
    asked = sum(len(asked_of_crop) for asked_of_crop in questions[:count])
    logprobs_QA = _ask(judge, crops, questions, answers, batch)[:asked]
    score_Q, status_Q = yes_no_score(logprobs_QA, min_mass)
    return _settle(prompts, owners, score_Q, status_Q, surplus_penalty)


def _ask(
    judge: Judge,
    pictures: Sequence[Tensor],
    questions: Sequence[Sequence[str]],
    answers: Sequence[str],
    batch: int,
) -> Tensor:
    """Log-probabilities [Q, A] on the CPU, for all questions of all pictures in order.

    One call for each ``batch`` pictures; the questions of one picture share it in the call.
    """
    parts = [torch.zeros(0, len(answers))]
    for start in range(0, len(pictures), batch):
        asked = questions[start : start + batch]
        flat = [question for of_one in asked for question in of_one]
        image_index = [index for index, of_one in enumerate(asked) for _ in of_one]
        logprobs_QA = judge.answer_logprobs(pictures[start : start + batch], flat, answers, image_index)
        if tuple(logprobs_QA.shape) != (len(flat), len(answers)):
            raise ValueError(
                f"the judge returned {tuple(logprobs_QA.shape)} for {len(flat)} questions and {len(answers)} answers"
            )
        parts.append(logprobs_QA.detach().float().cpu())
    return torch.cat(parts)


def _settle(
    prompts: Sequence[Prompt],
    owners: Sequence[int],
    score_Q: Tensor,
    status_Q: Tensor,
    surplus_penalty: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the answers, region by region and phrase by phrase, to one score a region."""
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
            elif bool((status_Q[own] != int(Status.FAILED)).all()):
                local_R[region] = -surplus_penalty
                status_R[region] = int(Status.PARSED)
    return local_R, status_R, phrase_R, missing_N
