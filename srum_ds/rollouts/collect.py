"""Collecting a step's judged samples: draw K images per prompt, a micro-batch at a time, then have all judged.

The online source and ``srum-ds rollout`` call it. All randomness is by identity: seeded by (run seed, purpose, step,
prompt name, sample), so that an image and its training views are the same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from srum_ds.rewards.judge.pipeline import JudgePipeline, Sent
from srum_ds.rollouts.draw import micro_batches, roll_out
from srum_ds.rollouts.pool import choose_samples
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

        gathered: holds the model for drawing; a judge of its own is gathered there in its turn (``JudgeHost.take``).
        """
        judged = self.begin(prompts, step, clock, gathered)
        with clock("judge"):
            return judged()

    def begin(
        self, prompts: Sequence[Prompt], step: int, clock: Clock, gathered: ExitStack
    ) -> Callable[[], list[Judged]]:
        """Draws, and has the own judge asked; what is returned waits for a judge outside and gives ``collect``'s list.

        A judge that is a function gets each micro-batch as soon as it is drawn, while the next one is.
        """
        drawn: list[Samples] = []
        sent: list[Sent] = []
        with clock("rollout"):
            for group in micro_batches(prompts, self.cfg.rollout.micro_batch_prompts):
                drawn.append(self._draw(group, step))
                sent.append(self.judging.send(drawn[-1]))
        with clock("judge"):
            judge = self.host.take(gathered)
            return self.judging.begin(judge, drawn, sent)

    def _draw(self, prompts: Sequence[Prompt], step: int) -> Samples:
        r = self.cfg.rollout
        numbers: int | list[list[int]] = r.images_per_prompt
        if r.pool:
            with self.model.judging():
                numbers = choose_samples(self.cfg, self.model, self.model, self.judging, self.sampling, prompts, step)
        return roll_out(self.model, prompts, numbers, r.image_size, self.sampling, self.cfg.run.seed, step)


def to_device(judged: Judged, device: torch.device) -> Judged:
    """The same images with their tensors where a model on ``device`` would have drawn them."""
    samples = judged.samples
    moved = replace(samples, images_NCHW=samples.images_NCHW.to(device), tokens=samples.tokens.to(device))
    return replace(judged, samples=moved)
