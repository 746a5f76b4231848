"""What must hold between settings: ``loading`` checks it for every recipe, the launcher and ranks for their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.model_files import refuse_special_files, refuse_wild_sizes
from srum_ds.config.choices import MODELS, OBJECTIVES
from srum_ds.config.external import ExternalJudge, externals_of, own_share
from srum_ds.config.tree import Config


def check_together(cfg: Config) -> None:
    """What must hold between settings. Raises UserError with the keys, their values and a cure."""
    problems = together_problems(cfg)
    if problems:
        raise UserError(problems[0])


def together_problems(cfg: Config) -> list[str]:
    """Everything that does not hold between settings, with the keys, their values and a cure."""
    return list(_problems(cfg))


def _said(check: Callable[[], object]) -> Iterator[str]:
    """What a check raises."""
    try:
        check()
    except UserError as error:
        yield str(error)


def _problems(cfg: Config) -> Iterator[str]:
    yield from _said(lambda: _check_mode(cfg))
    if cfg.run.fork_step is not None and cfg.run.fork is None:
        yield f"run.fork_step={cfg.run.fork_step} is of the run that run.fork names: set that, too."
    rollout = cfg.rollout
    if rollout.prompts_per_step % rollout.micro_batch_prompts:
        yield (
            f"rollout.prompts_per_step={rollout.prompts_per_step} is not a multiple of "
            f"rollout.micro_batch_prompts={rollout.micro_batch_prompts}: change one of them."
        )
    if rollout.pool and rollout.pool < rollout.images_per_prompt:
        yield (
            f"rollout.pool={rollout.pool} is smaller than rollout.images_per_prompt={rollout.images_per_prompt}, the "
            "number of its samples that are chosen: raise it, or set rollout.pool=0."
        )
    if rollout.pool and not objective_uses_reward(cfg):
        yield (
            f"rollout.pool={rollout.pool} chooses samples by their scores, and objective.name={cfg.objective.name} "
            "uses none: set rollout.pool=0."
        )
    if rollout.interval[0] >= rollout.interval[1]:
        yield (
            f"rollout.interval={list(rollout.interval)} is empty: its first number must be the "
            "smaller one. To draw without guidance set rollout.text_scale=1."
        )
    if cfg.objective.name not in OBJECTIVES.builtin:
        # What is no objective is told at once.
        found = list(_said(lambda: _objective(cfg)))
        if found:
            yield from found
            return
    # An objective's code takes torch, a second or two to import: it is asked where its answer matters.
    if rollout.images_per_prompt < 2 and _objective(cfg).compares_samples:
        yield (
            f"objective.name={cfg.objective.name} compares the samples of a prompt: "
            f"rollout.images_per_prompt={rollout.images_per_prompt} must be at least 2."
        )
    if cfg.train.mode == "offline" and cfg.data.rollouts is None:
        yield (
            "train.mode=offline reads its pictures from a folder: write one with `srum-ds rollout` and give it as "
            "data.rollouts."
        )
    if cfg.train.mode == "rounds" and cfg.train.steps % cfg.train.rounds:
        yield (
            f"train.mode=rounds: train.steps={cfg.train.steps} is not a multiple of train.rounds={cfg.train.rounds}: "
            "change one of them."
        )
    local = cfg.reward.local_weight > 0
    if local and cfg.regions.kind == "none" and objective_uses_reward(cfg):
        yield (
            f"reward.local_weight={cfg.reward.local_weight} needs regions, and regions.kind=none "
            "proposes none: set reward.local_weight=0, or regions.kind=components."
        )
    if not local and cfg.reward.global_factor == "multiplicative" and objective_uses_reward(cfg):
        yield (
            "reward.global_factor=multiplicative fades the boxes' scores, and reward.local_weight=0 leaves none: "
            "raise the latter, or set reward.global_factor=additive."
        )
    regions = cfg.regions
    if regions.kind == "grid" and regions.grid_side**2 > regions.max_count:
        yield (
            f"regions.grid_side={regions.grid_side} makes {regions.grid_side**2} boxes, more than "
            f"regions.max_count={regions.max_count}: raise the latter."
        )
    if not local and cfg.reward.global_weight == 0 and objective_uses_reward(cfg):
        yield (
            "reward.global_weight=0 and reward.local_weight=0 leave no reward: raise one of them, or "
            "train without rewards by objective.name=sft."
        )
    others: Sequence[ExternalJudge] = ()
    try:
        others = externals_of(cfg.judge)
    except UserError as error:
        yield str(error)
    alone = own_share(others) == 0 and not any(one.judges_regions for one in others)
    if alone and cfg.reward.global_factor == "multiplicative" and objective_uses_reward(cfg):
        yield (
            "reward.global_factor=multiplicative fades the boxes' scores, and the judges of judge.external, which have "
            "all of every score, judge no boxes: set reward.global_factor=additive, or name a function of crops."
        )
    if cfg.judge.answers[0] == cfg.judge.answers[1]:
        yield (f"judge.answers={list(cfg.judge.answers)} must be two different answers.")
    if len(cfg.judge.scale) == 1 or len(set(cfg.judge.scale)) < len(cfg.judge.scale):
        yield (f"judge.scale={list(cfg.judge.scale)} must be empty or at least two different ratings.")
    if cfg.judge.regional == "boxes" and cfg.judge.readout != "generate":
        yield (
            f"judge.regional=boxes is answered in writing, but judge.readout={cfg.judge.readout}: set "
            "judge.readout=generate, or judge.regional=crop."
        )


def objective_uses_reward(cfg: Config) -> bool:
    """Whether the objective weighs by scores at all."""
    return bool(_objective(cfg).uses_reward)


def _objective(cfg: Config) -> Any:
    """What ``objective.name`` names. UserError for what does not say what it needs."""
    found = OBJECTIVES.get(cfg.objective.name)
    if not all(isinstance(getattr(found, name, None), bool) for name in ("uses_reward", "compares_samples")):
        raise UserError(
            f"objective.name={cfg.objective.name}: is {type(found).__name__}, expected an "
            "srum_ds.objectives.Objective; see docs/own_code.md"
        )
    return found


def _check_mode(cfg: Config) -> None:
    """Whether the model's design knows ``model.trains``; where no folder tells it yet, loading the model does."""
    folder = Path(cfg.model.path)
    if folder.is_dir():
        refuse_special_files(folder)
        refuse_wild_sizes(folder)
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
