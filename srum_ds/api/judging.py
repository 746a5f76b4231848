"""``judge``: what a model says of pictures, whole and by region, as it would in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.api.model import Model, load_model
from srum_ds.api.pictures import is_one, tensors_of
from srum_ds.api.settings import Overrides, Settings, resolve
from srum_ds.common.errors import UserError
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.types import Prompt, Samples


@dataclass(frozen=True)
class Judgement:
    """What was said of one picture.

    score: of the whole, in [-1, 1]; NaN where the reply could not be used. regions: boxes (x0, y0, x1, y1) in [0, 1] of
    the picture's sides; local_scores: of each, in [-1, 1], NaN likewise; phrases: what each region was matched to, None
    for one that nothing asked for. missing: the share in [0, 1] of the objects asked for that no region shows, None
    where nobody looked. said: the judges' words about the whole (or their probabilities) and about each region.
    """

    prompt: str
    score: float
    regions: tuple[tuple[float, float, float, float], ...] = ()
    local_scores: tuple[float, ...] = ()
    phrases: tuple[str | None, ...] = ()
    missing: float | None = None
    said: tuple[str, ...] = ()


def judge(
    model: Model | str | Path,
    pictures: Any,
    prompts: Any,
    config: Settings | None = None,
    overrides: Overrides = (),
) -> Any:
    """Has a model judge pictures, as a training run's judge does: a global score, regions, a score for each.

    Args:
        model: from ``load_model``, or a folder that it takes.
        pictures: one picture (a tensor [3, H, W] in [0, 1], a PIL image, a file) or several, of any sizes.
        prompts: the text (or ``srum_ds.types.Prompt``) of each; one for all where it is one.
        config: whose ``judge.*`` and ``regions.*`` are meant, as ``Trainer`` takes it. Without: those of the run that
            the model comes from, or the defaults, which are for the embedded world of shapes.
        overrides: settings on top, as ``Trainer`` takes them, such as ``{"regions.kind": "grid"}``.

    Returns a ``Judgement``, or a list of them for several pictures.

    Raises UserError for what is no picture, another number of prompts, and settings that do not fit.
    """
    opened = model if isinstance(model, Model) else load_model(model)
    images = tensors_of(pictures)
    texts = _prompts(prompts, len(images))
    cfg = resolve(config if config is not None else opened.config or {}, overrides)
    pipeline = JudgePipeline(cfg).ready()
    found: dict[int, Judgement] = {}
    for size in dict.fromkeys(tuple(image.shape) for image in images):
        places = [place for place, image in enumerate(images) if tuple(image.shape) == size]
        said = _judged(pipeline, opened, [images[place] for place in places], [texts[place] for place in places])
        found.update(zip(places, said, strict=True))
    judged = [found[place] for place in range(len(images))]
    return judged[0] if is_one(pictures) else judged


def _judged(
    pipeline: JudgePipeline, model: Model, images: Sequence[Tensor], prompts: Sequence[Prompt]
) -> list[Judgement]:
    count = len(images)
    numbers_N = torch.arange(count)
    images_NCHW = torch.stack(list(images)).to(model.unified.device)
    # Judges look at pixels alone.
    tokens = torch.zeros(count, 1, 1, device=images_NCHW.device)
    samples = Samples(tuple(prompts), numbers_N, torch.zeros_like(numbers_N), images_NCHW, tokens, (1, 1))
    with torch.no_grad(), model.unified.judging():
        one = pipeline.judged(model.unified, samples)
    scores, owners = one.scores, one.regions.owner_R.tolist()
    boxes = one.regions.boxes_R4.tolist()
    found = []
    for place, prompt in enumerate(one.samples.prompts):
        own = [region for region, owner in enumerate(owners) if owner == place]
        matched = [int(scores.phrase_R[region]) for region in own]
        found.append(
            Judgement(
                prompt=prompt.text,
                score=float(scores.global_N[place]),
                regions=tuple((b[0], b[1], b[2], b[3]) for b in (boxes[region] for region in own)),
                local_scores=tuple(float(scores.local_R[region]) for region in own),
                phrases=tuple(prompt.phrases[phrase] if phrase >= 0 else None for phrase in matched),
                missing=None if scores.missing_N is None else float(scores.missing_N[place]),
                said=tuple(scores.raw[k] for k in (place, *(count + region for region in own)) if k < len(scores.raw)),
            )
        )
    return found


def _prompts(given: Any, count: int) -> list[Prompt]:
    members = [given] * count if isinstance(given, str | Prompt) else list(given)
    if len(members) != count:
        raise UserError(f"{len(members)} prompts for {count} pictures; give one for each, or one for all")
    found = []
    for number, one in enumerate(members):
        if not isinstance(one, str | Prompt):
            raise UserError(f"prompts[{number}] is {type(one).__name__}; expected a text or a srum_ds.types.Prompt")
        if isinstance(one, Prompt):
            found.append(one)
            continue
        if not one.strip():
            raise UserError(f"prompts[{number}] is empty; give it a text")
        found.append(Prompt(hashlib.sha256(one.strip().encode()).hexdigest()[:16], one.strip()))
    return found
