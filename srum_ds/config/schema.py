"""Every setting of a run, its default and its range. ``srum_ds.config.loading`` loads and checks them.

A key is written ``section.name`` in recipes (as nested YAML) and on the command line
(``section.name=value``). Settings of type ``Options`` hold further keys that only the chosen code knows
(``objective.options.margin=0.5``). Paths are relative to the working directory, or else to the folder that
holds the ``srum_ds`` package; they are resolved once, when a recipe is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from srum_ds.config.choices import BENCHMARKS, CHECKERS, MODELS, OBJECTIVES, READOUTS, REGION_PROPOSERS
from srum_ds.config.marks import (
    Count,
    Decay,
    Judges,
    NotNegative,
    OneOf,
    Options,
    PathText,
    Positive,
    Share,
    TemplateText,
    Text,
    Whole,
)


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what seeds it."""

    # Folder of everything the run writes; the same folder again means: resume.
    dir: Text = "runs/tiny"
    # Seeds the order of the prompts, the samples, their training views and times.
    seed: Whole = 0


@dataclass(frozen=True)
class ModelConfig:
    """The unified model that draws and judges."""

    # Checkpoint folder in its design's released layout.
    path: PathText = "srum_ds/assets/tiny_bagel"
    # Which design it is; auto asks the folder.
    kind: Annotated[str, OneOf(MODELS, "auto")] = "auto"
    # What learns, by the design's own names: the generation half (generation), the whole transformer
    # (transformer), or a LoRA adapter (lora, with the section `lora`).
    trains: Text = "generation"
    # Who judges: the live model (only where training provably leaves understanding untouched; with
    # LoRA, the live model with LoRA off), a frozen copy of the model as it was at the start, or
    # whichever of the two `trains` calls for.
    judge: Literal["auto", "shared", "frozen_copy"] = "auto"


@dataclass(frozen=True)
class LoraConfig:
    """The adapter that `model.trains=lora` trains (arXiv 2106.09685); unused in other modes."""

    # Rank of the update of each weight.
    rank: Count = 16
    # The update is scaled by alpha / rank.
    alpha: Positive = 32.0
    # Modules that get one, by their dotted names or the ends of these (q_proj_moe_gen, mlp.up_proj);
    # * stands for anything, in YAML in quotes. None: all projections of the generation experts.
    targets: tuple[Text, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """The prompts."""

    # Folder of prompt shards (tars) with their index.
    shards: PathText = "data_shards/shapes"
    # Split the loop trains on.
    split: Text = "train"
    # Folder of rollouts that train.mode=offline trains from; `srum-ds rollout` writes one.
    rollouts: PathText | None = None


@dataclass(frozen=True)
class RolloutConfig:
    """How the images of a step are drawn."""

    # Prompts in a step of the whole job (all ranks together).
    prompts_per_step: Count = 8
    # Samples drawn of each prompt; they stay on one rank.
    images_per_prompt: Count = 8
    # Prompts a rank draws and trains at once. Shapes follow from this, never from the world size.
    micro_batch_prompts: Count = 4
    # Image size in pixels: height, width.
    image_size: tuple[Count, Count] = (64, 64)
    # The sampler. A design takes those of the following that it knows; `sampler` holds its further ones.
    sampler: Options = field(default_factory=dict)
    # Time points of the sampler; the Euler updates are one fewer.
    num_timesteps: Annotated[int, Ge(2)] = 11
    # t -> shift * t / (1 + (shift - 1) * t): above 1, more of the steps go to the beginning.
    timestep_shift: Positive = 2.0
    # Classifier-free guidance by the text; 1 is without.
    text_scale: NotNegative = 1.25
    # Guidance applies where interval[0] < t <= interval[1].
    interval: tuple[Share, Share] = (0.0, 1.0)
    # Over what guidance restores the length of a prediction: the whole image, a channel, or the channels of the
    # prediction that is guided by the text alone.
    renorm: Literal["global", "channel", "text_channel"] = "global"
    # Smallest factor that renormalisation may scale by.
    renorm_min: Share = 0.0
    # Which weights draw: the slow average of the trained ones, the trained ones, the untrained ones.
    weights: Literal["old", "live", "reference"] = "old"
    # While images are drawn, all weights are gathered on every rank, or each layer when it runs; auto: all where they
    # fit into the memory that is free.
    gather: Literal["auto", "whole", "layers"] = "auto"
    # Samples drawn of each prompt in few steps (time points of the sampler), of which those with the best and the
    # worst scores of the whole image are drawn in full: images_per_prompt of them. 0: no pool.
    pool: Whole = 0
    pool_timesteps: Annotated[int, Ge(2)] = 4
    # Keep every step's images, tokens and scores as shards in the run's folder `rollouts`.
    keep: bool = False


@dataclass(frozen=True)
class JudgeConfig:
    """How the understanding half is asked about an image."""

    # How its opinion is read: the answers' probabilities after one prefill; how much likelier the image
    # makes the prompt (a crop the phrase) than a blank one does; a written reply, parsed.
    readout: Annotated[str, OneOf(READOUTS)] = "logprob"
    # Settings of a readout of your own.
    options: Options = field(default_factory=dict)
    # Regions: each cut out and asked about alone, or all listed as text in one question about the
    # whole image (as released; generate only).
    regional: Literal["crop", "boxes"] = "crop"
    # Jinja templates of the question on the whole image and of the one on a crop.
    global_template: TemplateText = "shapes_global"
    local_template: TemplateText = "shapes_local"
    # The good answer, the bad answer (generate: as a reply's only word). In YAML in quotes: a bare yes is
    # a truth value there.
    answers: tuple[Text, Text] = ("yes", "no")
    # logprob: ratings from worst to best, such as ["1", "2", "3", "4", "5"], whose expectation is the score;
    # empty: yes against no.
    scale: tuple[Text, ...] = ()
    # logprob: smallest probability of all answers together that counts as an answer at all.
    min_mass: Share = 0.05
    # likelihood: question that the prompt or phrase is scored as the answer to; null: it follows the
    # image at once.
    caption_template: TemplateText | None = None
    # likelihood: nats per token by which a text must be likelier than on a blank image for a score of 1/2.
    likelihood_temperature: Positive = 1.0
    # generate: most tokens of a reply (writing ends when all replies have ended), and whether the templates ask to
    # think first.
    max_new_tokens: Count = 512
    think: bool = False
    # generate: 0 takes the likeliest token, above 0 replies are sampled.
    temperature: NotNegative = 0.0
    # generate: how often a reply without a score is asked for again, with another seed and at this
    # temperature.
    retries: Whole = 2
    retry_temperature: Positive = 0.7
    # Judges beside the model's own: a checkpoint folder that is asked the same; module:function from (images [N, 3, H,
    # W], prompts) to N scores in [-1, 1] of the whole images; or a list of such, and of {kind: http, url: ...}, each
    # with its own weight (docs/judging.md). null: none.
    external: Judges = None
    # The share of every score that one without a weight of its own gives; the rest is the model's own.
    external_weight: Share = 0.5
    # Size in pixels that regions are cut out to: height, width.
    crop_size: tuple[Count, Count] = (56, 56)
    # What is asked at once, which bounds memory: images or crops in one pass of a micro-batch; generate, and whatever
    # else is written: replies in one decoding, of all that a rank asks in a step.
    batch: Count = 64
    # The run stops when a larger share of a step's answers could not be used.
    max_failed_share: Share = 0.5
    # Largest size of judge_failures.jsonl, which keeps the replies that could not be used.
    failures_megabytes: NotNegative = 10.0


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
    # Whether the judge is asked which boxes concern the prompt, by which question, and about how many boxes
    # of an image at most, the largest first.
    filter: bool = False
    filter_template: TemplateText = "region_filter"
    candidates: Count = 10
    # Where the object phrases come from that boxes are judged against: the prompt set; the judge, asked by
    # this question for a list of so many tokens; a plain split of the prompt; or the first of these that
    # has any.
    phrases: Literal["auto", "shard", "ask", "split"] = "auto"
    phrases_template: TemplateText = "phrases"
    phrases_tokens: Count = 96
    # Sam: folder of a SAM or SAM 2 checkpoint, or its id in the local Hugging Face cache; points of the
    # grid along each side.
    sam_model: PathText = "facebook/sam-vit-huge"
    sam_points: Count = 32
    # Ground: the question, the length of a reply in tokens, and whether the judge writes pixels of the
    # image as Qwen2.5-VL sees it, thousandths as Qwen3-VL, or pixels of the image itself.
    ground_template: TemplateText = "ground_boxes"
    ground_tokens: Count = 512
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

    # Weights of the whole-image score and of the boxes' scores.
    global_weight: NotNegative = 1.0
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
    # it makes the loss |w| (p - 1)). `group`, `awm`: how far a ratio may move. `dpo`: how much a pair's margin counts.
    bound: Positive | None = None
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    dpo_beta: Positive = 100.0
    # What holds the generator: the untrained model's prediction, the sampled target, or nothing.
    constraint: Literal["reference", "target", "none"] = "reference"
    # Its weight beside the rewarded loss (unused with `none`).
    constraint_weight: NotNegative = 0.3


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser and the schedule."""

    # Where a step's images come from. online: drawn in that step by the present weights. offline: read
    # from data.rollouts. rounds: drawn for a whole round by the weights at its start, then trained from. ahead:
    # drawn one step ahead, so that a judge outside answers while the step before trains.
    mode: Literal["online", "offline", "rounds", "ahead"] = "online"
    # Rounds of train.mode=rounds; each takes train.steps / train.rounds steps.
    rounds: Count = 4
    # Optimiser steps of the whole run.
    steps: Count = 120
    # Steps between two checkpoints; the last step always has one.
    save_every: Count = 20
    # Precision of the passes; masters and gradient sums are fp32 either way.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Recompute each block in backward rather than keep its activations: less memory, a third more work.
    activation_checkpointing: bool = False
    # Compile what a block does with torch.compile, where the design offers it: pays off in long runs only.
    compile: bool = False
    # AdamW: learning rate, linear warm-up, moments, denominator, decoupled decay.
    lr: NotNegative = 5e-4
    warmup_steps: Whole = 5
    # After the warm-up: the same rate, or half a cosine down to zero at the run's end.
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    # Gradients are scaled down to this norm.
    max_grad_norm: Positive = 1.0
    # Training views of each image in a step, each at a time of its own where the design has times.
    timesteps_per_image: Count = 6
    # Density they are drawn from, and its shift (as in rollout.timestep_shift).
    timestep_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    timestep_shift: Positive = 2.0
    # Share of images trained without their prompt, which keeps guidance possible.
    caption_dropout: Share = 0.1
    # Decay a step of the slow average that draws (rollout.weights=old).
    old_decay: Decay = 0.5
    # Decay a step of the average that is exported and evaluated.
    ema_decay: Decay = 0.9
    # Checkpoints are copied into the host's memory and written by a thread while the next step runs, at whose end they
    # are there. For large models: a run that is killed within that step goes back to the checkpoint before.
    save_in_background: bool = False
    # Newest checkpoints that stay on disk.
    keep_checkpoints: Count = 2


@dataclass(frozen=True)
class DeepSpeedConfig:
    """The engine underneath."""

    # DeepSpeed's own settings (JSON); batch sizes and precision are filled in from the recipe.
    config: PathText = "ds_configs/cpu.json"
    # Ranks a node that `srum-ds train` starts; `deepspeed --num_gpus` decides when called itself.
    ranks: Count = 2


@dataclass(frozen=True)
class KernelsConfig:
    """Which operations run as fused kernels."""

    # auto: on a GPU those that work, where triton is installed; each is tried at the start against its plain
    # operations, and switched off where it differs. on: all of them, or the run does not start. off: none.
    fused: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True)
class LogConfig:
    """What a run shows while it runs."""

    # Scalars and images for TensorBoard.
    tensorboard: bool = True
    # Steps between two grids of the fixed prompts.
    image_every: Count = 20
    # A live line on the first rank.
    progress: bool = True


@dataclass(frozen=True)
class WatchConfig:
    """Signs of a model that learns to please its judge, or feeds back its own errors; see docs/watch.md."""

    # End the run where a label-free sign has been out of its range for `patience` steps. Without, it is
    # only told.
    stop: bool = False
    patience: Count = 5
    # The first steps, which later ones are compared with; over how many steps figures are averaged, since
    # they depend on a step's prompts; and over how many the self-reward, which does so more.
    first_steps: Count = 10
    smoothing: Count = 10
    reward_smoothing: Count = 15
    # Spread of the rollouts' tokens against the first steps'.
    min_std_ratio: Share = 0.95
    max_std_ratio: Annotated[float, Ge(1), Lt(float("inf"))] = 1.1
    # Distance between the samples of a prompt against the first steps'.
    min_diversity_ratio: Share = 0.8
    # Gradient norm against the first steps'.
    max_grad_growth: Positive = 6.0
    # How far the self-reward, in [-1, 1], may fall from its best.
    max_reward_drop: Positive = 0.25
    # Share of prompts whose samples all get one reward, and so teach nothing. Told, never a reason to stop.
    max_zero_share: Share = 0.9
    # Who looks at held-out prompts (split `validation`), every so many steps (0: never), and at how many.
    # It knows the truth, so it is reported and stops nothing.
    checker: Annotated[str, OneOf(CHECKERS, "none")] = "none"
    every: Whole = 20
    prompts: Count = 48


@dataclass(frozen=True)
class EvalConfig:
    """Base against trained, on prompts that training never saw."""

    # Split the prompts come from.
    split: Text = "test"
    # Prompts, one image each of either model.
    prompts: Count = 900
    # Seeds the images.
    seed: Whole = 1234
    # What scores them.
    benchmark: Annotated[str, OneOf(BENCHMARKS)] = "shapes"
    # Settings of the sampler that only its design knows; else what rollout.sampler says.
    sampler: Options = field(default_factory=dict)
    # The sampler: guidance by the text, timestep shift, guided times, which norm is given back, its
    # smallest factor. null takes what rollout.* says.
    text_scale: NotNegative | None = None
    timestep_shift: Positive | None = None
    interval: tuple[Share, Share] | None = None
    renorm: Literal["global", "channel", "text_channel"] | None = None
    renorm_min: Share | None = None
    # Time points of the sampler.
    num_timesteps: Annotated[int, Ge(2)] = 17
    # Images drawn at once.
    batch: Count = 60
    # Which trained weights: their average or the last ones.
    weights: Literal["ema", "live"] = "ema"
