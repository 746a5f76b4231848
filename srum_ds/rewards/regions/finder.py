"""From pictures to regions: a proposer, the selection, and the judge's filter, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.readouts import Agree, alone
from srum_ds.rewards.judge.templates import Template
from srum_ds.rewards.regions.boxes import Proposer, first_of_each, select
from srum_ds.rewards.regions.relevance import keep_relevant
from srum_ds.types import Regions, Samples


@dataclass(frozen=True)
class Filter:
    """The judge's yes/no question about each proposal; see ``keep_relevant``.

    ``candidates``: most proposals of a picture that it is asked about, the largest first.
    """

    template: Template
    answers: Sequence[str]
    candidates: int
    crop_size: tuple[int, int] = (64, 64)
    batch: int = 64
    min_mass: float = 0.05


@dataclass(frozen=True)
class RegionFinder:
    """Finds the regions of a rollout's pictures.

    proposer: where boxes come from. max_count, min_area, overlap, pad: see ``select``. filter: None keeps
    whatever was proposed; otherwise it sees the boxes as they will be judged, and the count is limited
    after it.
    """

    proposer: Proposer
    max_count: int
    min_area: float = 0.0
    overlap: float = 1.0
    pad: float = 0.0
    filter: Filter | None = None

    def __call__(self, judge: Judge, rollout: Samples, agree: Agree = alone) -> Regions:
        """Regions of the N pictures. ``agree``: see ``keep_relevant``."""
        prompts = [rollout.prompts[group] for group in rollout.group_N.tolist()]
        found = self.proposer(rollout.images_NCHW, prompts, judge)
        regions = select(
            found,
            max_count=self.max_count if self.filter is None else self.filter.candidates,
            min_area=self.min_area,
            overlap=self.overlap,
            pad=self.pad,
        )
        if self.proposer.asks:
            regions = replace(regions, asked=len(found))
        if self.filter is None:
            return regions
        regions = keep_relevant(
            judge,
            rollout.images_NCHW,
            regions,
            prompts,
            self.filter.template,
            self.filter.answers,
            crop_size=self.filter.crop_size,
            batch=self.filter.batch,
            min_mass=self.filter.min_mass,
            agree=agree,
        )
        return first_of_each(regions, self.max_count)
