"""What a run's steps amount to: FLOPs by phase and bytes moved, counted by the formulas of ``work`` and ``traffic``.

The loop counts every step (``Accounting.flops``); ``monitoring.usage`` makes rates of it. FLOPs are those that the
method asks for: what checkpointed blocks run again is left out, so that MFU means what it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srum_ds.config import Config
from srum_ds.engine import Engine, read_ds_config
from srum_ds.models import costs_of
from srum_ds.monitoring.usage import GATHERED, REDUCED, rates
from srum_ds.planning.hardware import peak_of
from srum_ds.planning.traffic import Traffic, traffic_of
from srum_ds.planning.work import Seen, Work
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import writes
from srum_ds.types import Judged, Prompt


@dataclass(frozen=True)
class Accounting:
    """Counts one rank's work. traffic: its step's. peak: FLOP/s of a device, None where nobody knows."""

    work: Work
    traffic: Traffic
    ranks: int
    peak: float | None
    _known: dict[Seen, float] = field(default_factory=dict)

    def flops(self, batches: Sequence[Judged]) -> dict[str, float]:
        """FLOPs of this rank's step by phase: of drawing and judging its images, whenever that was, and of training."""
        rollout = judge = 0.0
        if self.work.cfg.train.mode != "offline":
            rollout = sum(self.work.draw(prompt.text) for batch in batches for prompt in batch.samples.prompts)
            judge = sum(self._judged(seen) for batch in batches for seen in self._seen(batch))
        train = sum(self.work.train([p.text for p in batch.samples.prompt_of_each()]).model for batch in batches)
        return {"rollout": rollout, "judge": judge, "train": train}

    def rates(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What a step's metrics gain: rates of its seconds and FLOPs over all ranks, and the bytes a rank moved."""
        r, t = self.work.cfg.rollout, self.work.cfg.train
        images = r.prompts_per_step * r.images_per_prompt
        tokens = images * t.timesteps_per_image * self.work.costs.tokens(r.image_size)
        moved = {GATHERED: self.traffic.gathered, REDUCED: self.traffic.reduced}
        return moved | rates(metrics, self.ranks, self.peak, images, tokens)

    def _judged(self, seen: Seen) -> float:
        if seen not in self._known:
            self._known[seen] = self.work.judge(seen)
        return self._known[seen]

    def _seen(self, judged: Judged) -> list[Seen]:
        """What was asked about each image; replies are as long as what they say (asked again: counted once)."""
        samples = judged.samples
        prompts = samples.prompt_of_each()
        owners = judged.regions.owner_R.tolist()
        written = writes(self.work.judging.readout)
        raw = judged.scores.raw
        found = []
        for image, prompt in enumerate(prompts):
            own = [len(prompts) + region for region, owner in enumerate(owners) if owner == image]
            whole, part = 0, 0
            if written and raw:
                whole = self._tokens(raw[image])
                part = max((self._tokens(raw[place]) for place in own), default=0)
            found.append(Seen(prompt.text, prompt.phrases, len(own), whole, part, self._filtered(judged, prompt)))
        return found

    def _filtered(self, judged: Judged, prompt: Prompt) -> float:
        """Crops of an image that the filter asked about: the mean of the batch, which alone is known."""
        regions = self.work.cfg.regions
        if not regions.filter:
            return 0.0
        images = len(judged.samples.group_N)
        asked = judged.regions.asked - (images if regions.kind == "ground" else 0)
        return asked / images / max(1, len(self.work.filter_questions(prompt.text, prompt.phrases)))

    def _tokens(self, reply: str) -> int:
        return self.work.costs.text_tokens(reply) + 1


def open_accounting(
    cfg: Config, judging: JudgePipeline, sampling: Any, engine: Engine
) -> tuple[Accounting | None, float | None, str]:
    """(a run's accounting, the device's peak in FLOP/s, a line on either).

    No accounting where the model's design does not say what its work costs.
    """
    costs = costs_of(cfg.model.path, cfg.model.kind)
    if costs is None:
        return None, None, "this design does not say what its work costs: FLOPs and MFU are left out"
    peak, told = peak_of(engine.device, cfg.train.precision)
    work = Work(cfg, costs, judging, sampling)
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    traffic = traffic_of(work, ds_config, engine.world_size, cfg.rollout.gather != "layers")
    return Accounting(work, traffic, engine.world_size, peak), peak, told
