"""Collecting a step's judged samples: draw K images per prompt, a micro-batch at a time, then have all judged.

The online source, ``srum-ds rollout``, the fixed prompts and the held-out check draw through ``roll_out``. All
randomness is by identity: seeded by (run seed, purpose, step, prompt name, sample), so that an image and its training
views are the same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import SampleKeys
from srum_ds.config import Config
from srum_ds.config.schema import EvalConfig, RolloutConfig
from srum_ds.models import family_of, make_sampling
from srum_ds.models.protocol import Generator, UnifiedModel, ViewSettings
from srum_ds.rewards.judge.host import JudgeHost
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.types import Judged, Prompt, Samples, TrainView

SAMPLER_SETTINGS = ("num_timesteps", "timestep_shift", "text_scale", "interval", "renorm", "renorm_min")
"""Settings of ``rollout.*`` and ``eval.*`` that a design's sampler takes where it knows them."""


def sampling_of(cfg: Config, section: Literal["rollout", "eval"] = "rollout") -> Any:
    """The sampler's settings of the model's design, from ``rollout.*`` or ``eval.*`` (null there: as ``rollout.*``).

    Raises UserError for a setting in ``sampler`` that the design does not have and for a value out of its range.
    """
    family = family_of(cfg.model.path, cfg.model.kind)
    known = [field.name for field in fields(family.sampling_type)]
    given: dict[str, Any] = {}
    for name in SAMPLER_SETTINGS:
        value = getattr(cfg.eval, name) if section == "eval" else None
        if name in known:
            given[name] = getattr(cfg.rollout, name) if value is None else value
        elif name in _changed(cfg, section):
            raise UserError(
                f"{section}.{name}: the sampler of {family.kind} has no such setting; it has {', '.join(known)}"
            )
    own = {**cfg.rollout.sampler, **cfg.eval.sampler} if section == "eval" else cfg.rollout.sampler
    return make_sampling(family, {**given, **own}, f"{section}.sampler.{{}}")


def _changed(cfg: Config, section: Literal["rollout", "eval"]) -> list[str]:
    """The settings of a sampler that somebody has set, in ``rollout.*`` or, for ``eval``, in either."""
    pairs: list[tuple[Any, Any]] = [(cfg.rollout, RolloutConfig())]
    if section == "eval":
        pairs.append((cfg.eval, EvalConfig()))
    return [
        name for name in SAMPLER_SETTINGS if any(getattr(own, name) != getattr(default, name) for own, default in pairs)
    ]


def roll_out(
    model: Generator,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    image_size: tuple[int, int],
    sampling: Any,
    seed: int,
    step: int,
) -> Samples:
    """Draws K images of each prompt; the samples of a prompt stand next to each other.

    image_size: height, width in pixels. seed, step: of the run; they seed what is random about each image.
    """
    repeated = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    samples = list(range(images_per_prompt)) * len(prompts)
    keys = SampleKeys(seed, step, tuple((p.name, k) for p, k in zip(repeated, samples, strict=True)))
    grid = model.grid(*image_size)
    tokens, images_NCHW = model.generate(repeated, keys.of("rollout"), grid, sampling)
    return Samples(
        prompts=tuple(prompts),
        group_N=torch.arange(len(prompts)).repeat_interleave(images_per_prompt),
        sample_N=torch.tensor(samples),
        images_NCHW=images_NCHW,
        tokens=tokens,
        grid=grid,
    )


def training_views(cfg: Config, model: Generator, samples: Samples, step: int, same: bool = False) -> TrainView:
    """The views of samples that a step trains on, each with randomness of its own.

    same: the samples of a prompt get the same views instead, so that their losses can be compared.
    """
    t = cfg.train
    settings = ViewSettings(t.timesteps_per_image, t.timestep_distribution, t.timestep_shift, t.caption_dropout)
    numbers = [0] * len(samples.group_N) if same else samples.sample_N.tolist()
    names = tuple((p.name, k) for p, k in zip(samples.prompt_of_each(), numbers, strict=True))
    return model.views(samples, settings, SampleKeys(cfg.run.seed, step, names))


@dataclass(frozen=True)
class Collector:
    """Draws prompts and has the images judged, as a recipe says. ``sampling``: see ``sampling_of``."""

    cfg: Config
    model: UnifiedModel
    host: JudgeHost
    judging: JudgePipeline
    sampling: Any

    def collect(self, prompts: Sequence[Prompt], step: int, clock: Clock, gathered: ExitStack) -> list[Judged]:
        """This rank's micro-batches of a step: all are drawn, then all are judged together.

        gathered: holds the model whole; a judge of its own is gathered there in its turn (``JudgeHost.take``).
        """
        r = self.cfg.rollout
        with clock("rollout"):
            drawn = [
                roll_out(self.model, group, r.images_per_prompt, r.image_size, self.sampling, self.cfg.run.seed, step)
                for group in micro_batches(prompts, r.micro_batch_prompts)
            ]
        with clock("judge"):
            judge = self.host.take(gathered)
            return self.judging.judged_together(judge, drawn)


def to_device(judged: Judged, device: torch.device) -> Judged:
    """The same images with their tensors where a model on ``device`` would have drawn them."""
    samples = judged.samples
    moved = replace(samples, images_NCHW=samples.images_NCHW.to(device), tokens=samples.tokens.to(device))
    return replace(judged, samples=moved)


def share(prompts: Sequence[Prompt], rank: int, world_size: int) -> tuple[list[Prompt], int]:
    """This rank's prompts, dealt out like cards, and how many of them count.

    All ranks get equally many, so that they make the same passes, which communicate where layers are gathered one by
    one: what is missing is filled up by the first prompt.
    """
    mine = list(prompts[rank::world_size])
    return mine + [prompts[0]] * (-(-len(prompts) // world_size) - len(mine)), len(mine)


def micro_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Consecutive groups of ``size`` prompts."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
