"""What must hold between settings: ``loading`` checks it for every recipe, the launcher and ranks for their number."""

from __future__ import annotations

from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config.choices import MODELS, OBJECTIVES
from srum_ds.config.external import externals_of
from srum_ds.config.tree import Config


def check_together(cfg: Config) -> None:
    """What must hold between settings. Raises UserError with the keys, their values and a cure."""
    _check_mode(cfg)
    rollout = cfg.rollout
    if rollout.prompts_per_step % rollout.micro_batch_prompts:
        raise UserError(
            f"rollout.prompts_per_step={rollout.prompts_per_step} is not a multiple of "
            f"rollout.micro_batch_prompts={rollout.micro_batch_prompts}: change one of them."
        )
    if rollout.pool and rollout.pool < rollout.images_per_prompt:
        raise UserError(
            f"rollout.pool={rollout.pool} is smaller than rollout.images_per_prompt={rollout.images_per_prompt}, the "
            "number of its samples that are chosen: raise it, or set rollout.pool=0."
        )
    if rollout.pool and not objective_uses_reward(cfg):
        raise UserError(
            f"rollout.pool={rollout.pool} chooses samples by their scores, and objective.name={cfg.objective.name} "
            "uses none: set rollout.pool=0."
        )
    if rollout.interval[0] >= rollout.interval[1]:
        raise UserError(
            f"rollout.interval={list(rollout.interval)} is empty: its first number must be the "
            "smaller one. To draw without guidance set rollout.text_scale=1."
        )
    objective = OBJECTIVES.get(cfg.objective.name)
    if objective.compares_samples and rollout.images_per_prompt < 2:
        raise UserError(
            f"objective.name={cfg.objective.name} compares the samples of a prompt: "
            f"rollout.images_per_prompt={rollout.images_per_prompt} must be at least 2."
        )
    if cfg.train.mode == "offline" and cfg.data.rollouts is None:
        raise UserError(
            "train.mode=offline reads its pictures from a folder: write one with `srum-ds rollout` and give it as "
            "data.rollouts."
        )
    if cfg.train.mode == "rounds" and cfg.train.steps % cfg.train.rounds:
        raise UserError(
            f"train.mode=rounds: train.steps={cfg.train.steps} is not a multiple of train.rounds={cfg.train.rounds}: "
            "change one of them."
        )
    judged = objective.uses_reward
    local = cfg.reward.local_weight > 0
    if judged and local and cfg.regions.kind == "none":
        raise UserError(
            f"reward.local_weight={cfg.reward.local_weight} needs regions, and regions.kind=none "
            "proposes none: set reward.local_weight=0, or regions.kind=components."
        )
    if judged and not local and cfg.reward.global_factor == "multiplicative":
        raise UserError(
            "reward.global_factor=multiplicative fades the boxes' scores, and reward.local_weight=0 leaves none: "
            "raise the latter, or set reward.global_factor=additive."
        )
    regions = cfg.regions
    if regions.kind == "grid" and regions.grid_side**2 > regions.max_count:
        raise UserError(
            f"regions.grid_side={regions.grid_side} makes {regions.grid_side**2} boxes, more than "
            f"regions.max_count={regions.max_count}: raise the latter."
        )
    if judged and not local and cfg.reward.global_weight == 0:
        raise UserError(
            "reward.global_weight=0 and reward.local_weight=0 leave no reward: raise one of them, or "
            "train without rewards by objective.name=sft."
        )
    externals_of(cfg.judge)
    if cfg.judge.answers[0] == cfg.judge.answers[1]:
        raise UserError(f"judge.answers={list(cfg.judge.answers)} must be two different answers.")
    if len(cfg.judge.scale) == 1 or len(set(cfg.judge.scale)) < len(cfg.judge.scale):
        raise UserError(f"judge.scale={list(cfg.judge.scale)} must be empty or at least two different ratings.")
    if cfg.judge.regional == "boxes" and cfg.judge.readout != "generate":
        raise UserError(
            f"judge.regional=boxes is answered in writing, but judge.readout={cfg.judge.readout}: set "
            "judge.readout=generate, or judge.regional=crop."
        )


def objective_uses_reward(cfg: Config) -> bool:
    """Whether the objective weighs by scores at all."""
    return bool(OBJECTIVES.get(cfg.objective.name).uses_reward)


def _check_mode(cfg: Config) -> None:
    """Whether the model's design knows ``model.trains``; where no folder tells it yet, loading the model does."""
    folder = Path(cfg.model.path)
    names = [cfg.model.kind] if cfg.model.kind != "auto" else MODELS.names()
    families = [MODELS.get(name) for name in names]
    if cfg.model.kind == "auto":
        families = [family for family in families if folder.is_dir() and family.matches(folder)]
    if len(families) == 1 and cfg.model.trains not in families[0].modes:
        raise UserError(
            f"model.trains={cfg.model.trains} is not allowed; expected one of {', '.join(families[0].modes)} (what "
            f"{families[0].kind} knows)."
        )


def check_world(cfg: Config, world_size: int) -> None:
    """Whether a step's prompts come out even over ``world_size`` ranks. Raises UserError if not."""
    prompts = cfg.rollout.prompts_per_step
    micro = cfg.rollout.micro_batch_prompts
    if prompts % world_size:
        raise UserError(
            f"rollout.prompts_per_step={prompts} is not divisible by the {world_size} ranks: make it a "
            f"multiple of {world_size}, or start a number of ranks that divides it."
        )
    if (prompts // world_size) % micro:
        fits = [size for size in range(micro, 0, -1) if (prompts // world_size) % size == 0]
        raise UserError(
            f"each of the {world_size} ranks has {prompts // world_size} prompts a step "
            f"(rollout.prompts_per_step={prompts}), which is not a multiple of "
            f"rollout.micro_batch_prompts={micro}: set rollout.micro_batch_prompts={fits[0]}."
        )
