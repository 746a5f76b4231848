"""The filter: the understanding branch keeps the proposals that concern the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import take
from srum_ds.rewards.regions.crops import crop
from srum_ds.rewards.scores import yes_no_score
from srum_ds.rewards.templates import Template
from srum_ds.types import Prompt, Regions, Status


def keep_relevant(
    judge: Judge,
    images_NCHW: Tensor,
    regions: Regions,
    prompts: Sequence[Prompt],
    template: Template,
    answers: Sequence[str],
    *,
    crop_size: tuple[int, int] = (64, 64),
    batch: int = 64,
    min_mass: float = 0.05,
) -> Regions:
    """Keeps the regions of which the judge says yes: their crop shows something the prompt is about.

    One yes/no question per crop, ``ceil(R / batch)`` prefills. With a template that uses ``phrase`` a
    crop is asked about each phrase of its prompt and one yes is enough. An answer that cannot be used
    speaks neither for nor against: such a crop stays, unless another of its answers is known and none
    is yes. All answers are counted in ``Regions.asked``, the unusable ones in ``Regions.failed``.

    Args:
        judge: whoever answers.
        images_NCHW: images in [0, 1].
        regions: R boxes over them.
        prompts: the prompt of each of the N images.
        template: question with ``prompt`` or ``phrase``.
        answers: yes and no as the model writes them.
        crop_size, batch, min_mass: see ``judge.judge.Asking`` and ``judge.min_mass``.

    Raises:
        UserError: a template that uses neither variable, or needs phrases where a prompt has none.
    """
    if not template.variables & {"prompt", "phrase"}:
        raise UserError(f"judge template {template.name} mentions neither {{{{ prompt }}}} nor {{{{ phrase }}}}")
    owners = regions.owner_R.tolist()
    questions = [_questions(template, prompts[owner]) for owner in owners]
    pictures = crop(images_NCHW, regions, crop_size)
    kept: list[int] = []
    asked = failed = 0
    for start in range(0, len(regions), batch):
        of_crops = questions[start : start + batch]
        flat = [question for of_one in of_crops for question in of_one]
        index = [place for place, of_one in enumerate(of_crops) for _ in of_one]
        logprobs_QA = judge.answer_logprobs(pictures[start : start + batch], flat, answers, index)
        score_Q, status_Q = yes_no_score(logprobs_QA.detach().float().cpu(), min_mass)
        pieces = zip(
            score_Q.split([len(of_one) for of_one in of_crops]),
            status_Q.split([len(of_one) for of_one in of_crops]),
            strict=True,
        )
        for region, (score_P, status_P) in enumerate(pieces, start):
            unknown_P = status_P == int(Status.FAILED)
            asked += len(score_P)
            failed += int(unknown_P.sum())
            if bool(unknown_P.all()) or bool((score_P[~unknown_P] > 0).any()):
                kept.append(region)
    regions = replace(regions, asked=regions.asked + asked, failed=regions.failed + failed)
    return take(regions, torch.tensor(kept, dtype=torch.int64))


def _questions(template: Template, prompt: Prompt) -> list[str]:
    if "phrase" not in template.variables:
        return [template.render(prompt=prompt.text)]
    if not prompt.phrases:
        raise UserError(
            f"judge template {template.name} asks about each phrase, and prompt {prompt.id!r} has none: set "
            f"regions.phrases=auto, or use a regions.filter_template with {{{{ prompt }}}} alone"
        )
    return [template.render(prompt=prompt.text, phrase=phrase) for phrase in prompt.phrases]
