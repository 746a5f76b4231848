"""Phrases and regions as a recipe has them: the prompts' object phrases and the boxes that are judged locally.

``RegionPipeline`` is built once per run from the settings; the judge's pipeline asks it for all micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import torch

from srum_ds.common import foreign
from srum_ds.config import Config, externals_of
from srum_ds.config.choices import REGION_PROPOSERS
from srum_ds.config.external import own_share
from srum_ds.models.protocol import Judge
from srum_ds.rewards.phrases.cache import PhraseBook
from srum_ds.rewards.regions.boxes import Candidates, NoProposer, Proposer, first_of_each, no_regions, select
from srum_ds.rewards.regions.guarded import GuardedProposer
from srum_ds.rewards.regions.relevance import keep_relevant
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt, Regions, Samples

PHRASES = "phrases"
CELLS = "grid"
"""The built-in kind whose boxes are no objects."""


@dataclass(frozen=True)
class Filter:
    """The judge's yes/no question about each proposal; see ``keep_relevant``.

    ``candidates``: most proposals of an image that it is asked about, the largest first.
    """

    template: Template
    answers: Sequence[str]
    candidates: int
    crop_size: tuple[int, int] = (64, 64)
    batch: int = 64
    min_mass: float = 0.05


@dataclass(frozen=True)
class RegionFinder:
    """Finds the regions of a micro-batch's images: a proposer, the selection, and the judge's filter, in this order.

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

    def __call__(self, judge: Judge, samples: Samples) -> Regions:
        """Regions of the N images."""
        return self.together(judge, [samples])[0]

    def together(self, judge: Judge, batches: Sequence[Samples]) -> list[Regions]:
        """Regions of the images of each micro-batch; a proposer that asks the judge gets all images in one call."""
        calls = [batches] if self.proposer.asks else [[samples] for samples in batches]
        found: list[Candidates] = []
        for call in filter(None, calls):
            images_NCHW = torch.cat([samples.images_NCHW for samples in call])
            prompts = [prompt for samples in call for prompt in samples.prompt_of_each()]
            found.extend(self.proposer(images_NCHW, prompts, judge))
        rest = iter(found)
        return [self._chosen(judge, samples, list(islice(rest, len(samples.group_N)))) for samples in batches]

    def _chosen(self, judge: Judge, samples: Samples, found: Sequence[Candidates]) -> Regions:
        """What becomes of a micro-batch's proposals."""
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
            samples.images_NCHW,
            regions,
            samples.prompt_of_each(),
            self.filter.template,
            self.filter.answers,
            crop_size=self.filter.crop_size,
            batch=self.filter.batch,
            min_mass=self.filter.min_mass,
        )
        return first_of_each(regions, self.max_count)


class RegionPipeline:
    """Phrases and regions as ``regions.*`` says. What it needs is loaded, and missed, at the start.

    ``run_dir``: phrases that are found out are kept there, in the folder ``phrases``; None keeps them in
    memory alone. Raises UserError for templates and weights that are not there.
    """

    def __init__(self, cfg: Config, run_dir: Path | None = None, rank: int = 0) -> None:
        proposer = proposer_of(cfg)
        self.book: PhraseBook | None = None
        self.find: RegionFinder | None = None
        if not isinstance(proposer, NoProposer):
            self.book = phrase_book_of(cfg, run_dir, rank)
            self.find = finder_of(cfg, proposer)

    def phrases(self, judge: Judge, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """The prompts with their object phrases (untouched where no regions are wanted); see ``PhraseBook``."""
        return tuple(prompts) if self.book is None else self.book.complete(judge, prompts)

    def regions(self, judge: Judge, samples: Samples) -> Regions:
        """``regions_together`` of one micro-batch."""
        return self.regions_together(judge, [samples])[0]

    def regions_together(self, judge: Judge, batches: Sequence[Samples]) -> list[Regions]:
        """Boxes over the images of each micro-batch; none where local rewards are off. See ``RegionFinder``."""
        return [no_regions() for _ in batches] if self.find is None else self.find.together(judge, batches)


def proposer_of(cfg: Config) -> Proposer:
    """The proposer that ``regions.kind`` names: built in, of a package, or the user's own ``module:name``.

    UserError for code that fails or makes no proposer.
    """
    kind = cfg.regions.kind
    make = REGION_PROPOSERS.get(kind)
    if kind in REGION_PROPOSERS.builtin:
        return cast(Proposer, make(cfg))
    what = f"regions.kind={kind}"
    found = foreign.run(what, lambda: make(cfg))
    return cast(Proposer, found) if foreign.is_own(type(found)) else GuardedProposer(what, found)


def surplus_penalty_of(cfg: Config) -> float:
    """What a region costs that no phrase claims: a box that is no object is never one too many.

    Built-in kinds are known by name, so that regions which are there already are judged without a proposer's weights.
    """
    kind = cfg.regions.kind
    finds_objects = kind != CELLS if kind in REGION_PROPOSERS.builtin else proposer_of(cfg).finds_objects
    return cfg.reward.surplus_penalty if finds_objects else 0.0


def phrase_book_of(cfg: Config, run_dir: Path | None, rank: int) -> PhraseBook:
    """The phrase book of a recipe, with what an earlier call of the run left."""
    r = cfg.regions
    return PhraseBook(
        r.phrases,
        load_template(r.phrases_template) if r.phrases in ("auto", "ask") else None,
        r.phrases_tokens,
        cfg.rollout.image_size,
        cfg.judge.batch,
        None if run_dir is None else run_dir / PHRASES,
        rank,
        asks=own_share(externals_of(cfg.judge)) > 0,
    )


def finder_of(cfg: Config, proposer: Proposer) -> RegionFinder:
    """The region finder of a recipe."""
    r, j = cfg.regions, cfg.judge
    wanted = None
    if r.filter:
        template = load_template(r.filter_template)
        wanted = Filter(template, j.answers, r.candidates, j.crop_size, j.batch, j.min_mass)
    return RegionFinder(proposer, r.max_count, r.min_area, r.overlap, r.pad, wanted)
