"""Where a recipe has the judge look: the prompts' object phrases and the pictures' regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srum_ds.config import Config, find_path
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.readouts import Agree, alone
from srum_ds.rewards.judge.templates import load_template
from srum_ds.rewards.phrases.cache import PhraseBook
from srum_ds.rewards.regions.boxes import Proposer, no_regions
from srum_ds.rewards.regions.components import Components, Grid
from srum_ds.rewards.regions.finder import Filter, RegionFinder
from srum_ds.rewards.regions.ground import Ground
from srum_ds.rewards.regions.sam import load_segment_anything
from srum_ds.types import Prompt, Regions, Samples

PHRASES = "phrases"


class Looker:
    """Phrases and regions as ``regions.*`` says. What it needs is loaded, and missed, at the start.

    ``run_dir``: phrases that are found out are kept there, in the folder ``phrases``; None keeps them in
    memory alone. Raises UserError for templates and weights that are not there.
    """

    def __init__(self, cfg: Config, run_dir: Path | None = None, rank: int = 0) -> None:
        self.book: PhraseBook | None = None
        self.find: RegionFinder | None = None
        if cfg.regions.kind != "none":
            self.book = phrase_book_of(cfg, run_dir, rank)
            self.find = finder_of(cfg)

    def phrases(self, judge: Judge, prompts: Sequence[Prompt], agree: Agree = alone) -> tuple[Prompt, ...]:
        """The prompts with their object phrases (untouched where no regions are wanted); see ``PhraseBook``."""
        return tuple(prompts) if self.book is None else self.book.complete(judge, prompts, agree)

    def regions(self, judge: Judge, rollout: Samples, agree: Agree = alone) -> Regions:
        """Boxes over the pictures; none where local rewards are switched off. See ``RegionFinder``."""
        return no_regions() if self.find is None else self.find(judge, rollout, agree)


def surplus_penalty(cfg: Config) -> float:
    """What a region that no phrase claims costs. A grid's cell is no object, and so never one too many."""
    return 0.0 if cfg.regions.kind == "grid" else cfg.reward.surplus_penalty


def phrase_book_of(cfg: Config, run_dir: Path | None, rank: int) -> PhraseBook:
    """The phrase book of a recipe, with what an earlier call of the run left."""
    r = cfg.regions
    return PhraseBook(
        r.phrases,
        load_template(find_path(r.phrases_template)) if r.phrases in ("auto", "ask") else None,
        r.phrases_tokens,
        cfg.rollout.image_size,
        cfg.judge.batch,
        None if run_dir is None else run_dir / PHRASES,
        rank,
    )


def finder_of(cfg: Config) -> RegionFinder:
    """The region finder of a recipe."""
    r, j = cfg.regions, cfg.judge
    wanted = None
    if r.filter:
        template = load_template(find_path(r.filter_template))
        wanted = Filter(template, j.answers, r.candidates, j.crop_size, j.batch, j.min_mass)
    return RegionFinder(proposer_of(cfg), r.max_count, r.min_area, r.overlap, r.pad, wanted)


def proposer_of(cfg: Config) -> Proposer:
    """The proposer that ``regions.kind`` names."""
    r = cfg.regions
    if r.kind == "sam":
        return load_segment_anything(str(find_path(r.sam_model)), r.sam_points)
    if r.kind == "ground":
        template = load_template(find_path(r.ground_template))
        return Ground(template, r.ground_convention, r.ground_tokens, cfg.judge.batch)
    if r.kind == "grid":
        return Grid(r.grid_side)
    return Components(r.threshold)
