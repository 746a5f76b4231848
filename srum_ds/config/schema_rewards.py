"""The sections `regions`, `reward` and `objective`: where the judge looks, and what its scores do. See ``schema``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from srum_ds.config.choices import OBJECTIVES, REGION_PROPOSERS
from srum_ds.config.marks import Count, NotNegative, OneOf, Options, PathText, Positive, Share, TemplateText


@dataclass(frozen=True)
class RegionsConfig:
    """Which boxes of an image are judged locally."""

    # Connected bright components, masks of Segment Anything, boxes that the judge is asked for, the cells of
    # a grid, or no boxes at all.
    kind: Annotated[str, OneOf(REGION_PROPOSERS)] = "components"
    # Settings of a proposer of your own.
    options: Options = field(default_factory=dict)
    # At most so many boxes of an image, the largest first.
    max_count: Count = 6
    # Of two boxes that overlap by more than this (intersection over union) the smaller goes; 1 keeps both.
    overlap: Share = 1.0
    # Whether the judge is asked which boxes concern the prompt.
    filter: bool = False
    # The question of regions.filter.
    filter_template: TemplateText = "region_filter"
    # regions.filter asks about so many boxes of an image at most, the largest first.
    candidates: Count = 10
    # Where the object phrases come from that boxes are judged against: the prompt set; the judge, asked for a list; a
    # plain split of the prompt; or the first of these that has any.
    phrases: Literal["auto", "shard", "ask", "split"] = "auto"
    # The question for the list of phrases.
    phrases_template: TemplateText = "phrases"
    # Most tokens of the list of phrases.
    phrases_tokens: Count = 96
    # Sam: folder of a SAM or SAM 2 checkpoint, or its id in the local Hugging Face cache.
    sam_model: PathText = "facebook/sam-vit-huge"
    # Sam: points of the grid along each side.
    sam_points: Count = 32
    # Ground: the question that the judge answers with boxes.
    ground_template: TemplateText = "ground_boxes"
    # Ground: most tokens of a reply.
    ground_tokens: Count = 512
    # Ground: whether the judge writes pixels of the image as Qwen2.5-VL sees it, thousandths as Qwen3-VL, or pixels of
    # the image itself.
    ground_convention: Literal["qwen2.5-vl", "qwen3-vl", "pixels"] = "qwen2.5-vl"
    # Components: contrast to the background, in (0, 1), from which a pixel is foreground.
    threshold: Annotated[float, Gt(0), Lt(1)] = 0.2
    # Grid: cells along each side.
    grid_side: Count = 2
    # Smallest box, as a share of the image's area.
    min_area: Share = 0.003
    # Margin added on each side of a box, as a share of the image's side.
    pad: Annotated[float, Ge(0), Lt(0.5)] = 0.03


@dataclass(frozen=True)
class RewardConfig:
    """How scores become a map of weights over tokens.

    Objective `weighted` takes the paper's map instead, whose arithmetic is fixed.
    """

    # Weight of the whole-image score.
    global_weight: NotNegative = 1.0
    # Weight of the boxes' scores.
    local_weight: NotNegative = 1.0
    # Where boxes overlap: the largest score, the one farthest from neutral, their mean, or the score
    # of the smallest box.
    combine: Literal["max", "strongest", "mean", "smallest"] = "strongest"
    # What a token outside all boxes has for a local score, in spreads above the mean.
    background: Annotated[float, Ge(-10), Le(10)] = 0.0
    # The whole image's score stands beside the boxes', or fades them by (score + 1) / 2 as released.
    global_factor: Literal["additive", "multiplicative"] = "additive"
    # From boxes to tokens: by the exact share of a token that a box covers, or painted on pixels and read
    # off bilinearly around the token's centre, as released.
    resize: Literal["area", "bilinear"] = "area"
    # Taken off the whole-image score, times the share of asked-for objects that no box shows.
    missing_penalty: NotNegative = 0.5
    # A box that no phrase claims (a surplus object) scores minus this.
    surplus_penalty: Share = 1.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """How rewards weigh the loss of each token."""

    # nft: implicit negatives (DiffusionNFT); weighted: the paper's positive weights; sft: none;
    # signed: negative rewards push away; group: the clipped advantage of each token within a prompt's
    # samples; awm: the same with the clip on whole images; dpo: a prompt's best against its worst.
    name: Annotated[str, OneOf(OBJECTIVES)] = "nft"
    # Settings of an objective of your own.
    options: Options = field(default_factory=dict)
    # Strength of the implicit policies of `nft`.
    beta: Positive = 1.0
    # `nft`: errors count in proportion to their size instead of its square, and early steps of the sampler more.
    adaptive: bool = True
    # `signed`: the error at which repulsion has run out; null: the design's own (2 for velocities, 1 for codes, where
    # it makes the loss |w| (p - 1)).
    bound: Positive | None = None
    # `group`, `awm`: how far a ratio may move.
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    # `dpo`: how much a pair's margin counts.
    dpo_beta: Positive = 100.0
    # What holds the generator: the untrained model's prediction, the sampled target, or nothing.
    constraint: Literal["reference", "target", "none"] = "reference"
    # Weight of objective.constraint beside the rewarded loss.
    constraint_weight: NotNegative = 0.3
