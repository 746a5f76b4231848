"""Every setting of a run, its default and its range. ``srum_ds.config.loading`` loads and checks them.

A key is written ``section.name`` in recipes (as nested YAML) and on the command line
(``section.name=value``). Settings of type ``Options`` hold further keys that only the chosen code knows
(``objective.options.margin=0.5``). Paths are relative to the working directory, or else to the folder that
holds the ``srum_ds`` package; they are resolved once, when a recipe is loaded. The sections `regions`,
`reward` and `objective` stand in ``schema_rewards``, `limits` in ``limits``. The comment above a setting is what users
read of it (``descriptions``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from srum_ds.config.choices import BENCHMARKS, CHECKERS, MODELS, READOUTS, TRACKERS
from srum_ds.config.marks import (
    Count,
    Decay,
    FolderText,
    Judges,
    NotNegative,
    OneOf,
    Options,
    PathText,
    Positive,
    Seed,
    Share,
    SourceText,
    TemplateText,
    Text,
    Whole,
)
from srum_ds.config.schema_rewards import ObjectiveConfig, RegionsConfig, RewardConfig

__all__ = [
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "JudgeConfig",
    "KernelsConfig",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "RegionsConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TrainConfig",
    "WatchConfig",
]


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what seeds it."""

    # Folder of everything the run writes; the same folder again means: resume.
    dir: FolderText = "runs/tiny"
    # Seeds the order of the prompts, the samples, their training views and times.
    seed: Seed = 0
    # Go on although prompts, models, questions or code behind the same paths have changed; inputs.json records it.
    accept_changed_inputs: bool = False
    # Begin with the weights of another run's checkpoint instead of the model's: that run's folder (train --fork). The
    # optimizer's moments come along where train.betas are the same; the steps begin at 0.
    fork: FolderText | None = None
    # Which of its checkpoints, by the steps that were done; null: the newest.
    fork_step: Count | None = None


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

    # Prompts of your own: a text, JSON, CSV or Parquet file, a folder that Hugging Face's datasets saved, or a URL of a
    # file. They are taken to run.dir/prompts, in the splits train and test. null: the prompts of data.shards.
    prompts: SourceText | None = None
    # The column (key) of data.prompts that holds the texts; null: text, prompt or caption.
    column: Text | None = None
    # The share of data.prompts to train on; the others are the split test.
    train_share: Annotated[float, Gt(0), Le(1)] = 0.95
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
    # Settings of the sampler that only its design knows, beside those below, of which it takes what it knows.
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
    # Samples drawn of each prompt in few steps, of which those with the best and the worst scores of the whole image
    # are drawn in full: rollout.images_per_prompt of them. 0: no pool.
    pool: Whole = 0
    # Time points of the sampler for the samples of rollout.pool.
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
    # Jinja template of the question on the whole image.
    global_template: TemplateText = "shapes_global"
    # Jinja template of the question on a crop.
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
    # generate: most tokens of a reply; writing ends when all replies have ended.
    max_new_tokens: Count = 512
    # generate: whether the templates ask to think first.
    think: bool = False
    # generate: 0 takes the likeliest token, above 0 replies are sampled.
    temperature: NotNegative = 0.0
    # generate: how often a reply without a score is asked for again, with another seed.
    retries: Whole = 2
    # generate: the temperature of judge.retries.
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
    # The run stops when a larger share of a step's answers could not be used, or lay off the scale.
    max_failed_share: Share = 0.5
    # Largest size of judge_failures.jsonl, which keeps the replies that could not be used.
    failures_megabytes: NotNegative = 10.0


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
    # AdamW's learning rate.
    lr: NotNegative = 5e-4
    # Steps over which the learning rate rises linearly.
    warmup_steps: Whole = 5
    # After the warm-up: the same rate, or half a cosine down to zero at the run's end.
    schedule: Literal["constant", "cosine"] = "constant"
    # AdamW's decays of the two moments.
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    # AdamW's addend of the denominator.
    eps: Positive = 1e-8
    # AdamW's decoupled weight decay.
    weight_decay: NotNegative = 0.0
    # Gradients are scaled down to this norm.
    max_grad_norm: Positive = 1.0
    # A step whose loss or gradient is not finite, also when it is run again: leave it out, or end the run.
    on_bad_step: Literal["skip", "stop"] = "skip"
    # Training views of each image in a step, each at a time of its own where the design has times.
    timesteps_per_image: Count = 6
    # Density that the times of training views are drawn from.
    timestep_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    # Shift of that density, as in rollout.timestep_shift.
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
    # Newest checkpoints that stay on disk, and beside them the best by the held-out reward (watch.every).
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
    # Steps between two grids of the fixed prompts; the base's and the last step's are always drawn.
    image_every: Count = 20
    # A status line on a terminal, a line a minute elsewhere.
    progress: bool = True
    # Who gets the figures and samples too: wandb, mlflow, trackio, or your own; see docs/monitoring.md.
    trackers: tuple[Annotated[str, OneOf(TRACKERS)], ...] = ()
    # The project (experiment) that they file the run under.
    project: Text = "srum-ds"


@dataclass(frozen=True)
class WatchConfig:
    """Signs of a model that learns to please its judge, or feeds back its own errors; see docs/watch.md."""

    # End the run where a label-free sign has been out of its range for watch.patience steps. Without, it is only told.
    stop: bool = False
    # Steps in a row that a sign must be out of its range.
    patience: Count = 5
    # The first steps, which later ones are compared with.
    first_steps: Count = 10
    # Over how many steps figures are averaged, since they depend on a step's prompts.
    smoothing: Count = 10
    # Over how many steps the self-reward is averaged, which depends on them more.
    reward_smoothing: Count = 15
    # Least spread of the rollouts' tokens against the first steps'.
    min_std_ratio: Share = 0.95
    # Largest spread of the rollouts' tokens against the first steps'.
    max_std_ratio: Annotated[float, Ge(1), Le(1e30)] = 1.1
    # Least distance between the samples of a prompt against the first steps'.
    min_diversity_ratio: Share = 0.8
    # Largest gradient norm against the first steps'.
    max_grad_growth: Positive = 6.0
    # How far the self-reward, in [-1, 1], may fall from its best.
    max_reward_drop: Positive = 0.25
    # Share of prompts whose samples all get one reward, and so teach nothing. Told, never a reason to stop.
    max_zero_share: Share = 0.9
    # Every so many steps (0: never), before the first and after the last, so many fixed prompts of the split
    # `validation` (else `test`) are drawn and judged as in training; the checkpoint with the best reward there is kept.
    every: Whole = 20
    # Held-out prompts that watch.checker looks at.
    prompts: Count = 48
    # A checker that looks at the same images. It knows the truth, so it is reported, stops nothing and chooses nothing.
    checker: Annotated[str, OneOf(CHECKERS, "none")] = "none"


@dataclass(frozen=True)
class EvalConfig:
    """Base against trained, on prompts that training never saw."""

    # Split the prompts come from.
    split: Text = "test"
    # Prompts, one image each of either model.
    prompts: Count = 900
    # Seeds the images.
    seed: Seed = 1234
    # What scores them.
    benchmark: Annotated[str, OneOf(BENCHMARKS)] = "shapes"
    # Settings of the sampler that only its design knows; else what rollout.sampler says.
    sampler: Options = field(default_factory=dict)
    # The sampler's guidance by the text; null: rollout.text_scale.
    text_scale: NotNegative | None = None
    # The sampler's timestep shift; null: rollout.timestep_shift.
    timestep_shift: Positive | None = None
    # The sampler's guided times; null: rollout.interval.
    interval: tuple[Share, Share] | None = None
    # The sampler's renormalisation; null: rollout.renorm.
    renorm: Literal["global", "channel", "text_channel"] | None = None
    # The sampler's smallest factor of it; null: rollout.renorm_min.
    renorm_min: Share | None = None
    # Time points of the sampler.
    num_timesteps: Annotated[int, Ge(2)] = 17
    # Images drawn at once.
    batch: Count = 60
    # Which trained weights: their average or the last ones.
    weights: Literal["ema", "live"] = "ema"
