"""What a folder of rollouts says of its making, and whether it fits a run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from srum_ds import __version__
from srum_ds.common.environment import ROOT, git_state
from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from srum_ds.config import Config, find_path, plain_config
from srum_ds.rewards.judge.pipeline import Questions
from srum_ds.rollouts.shards import Header, RolloutReader

# Settings that say how pictures were drawn and judged; what else a recipe sets came later.
_SETTINGS = ("judge", "regions", "rollout", "reward.surplus_penalty")
_ELSEWHERE = ("rollout.prompts_per_step", "rollout.images_per_prompt", "rollout.micro_batch_prompts", "rollout.keep")


def rollout_header(cfg: Config, model: Any, ask: Questions) -> Header:
    """The header of what ``cfg`` draws with ``model`` and asks with ``ask``. Reads the model folder for its hash."""
    return Header(
        seed=cfg.run.seed,
        model=weights_sha256(find_path(cfg.model.path)),
        prompts_per_step=cfg.rollout.prompts_per_step,
        images_per_prompt=cfg.rollout.images_per_prompt,
        grid=model.grid_of(*cfg.rollout.image_size),
        token_channels=model.config.token_channels,
        settings=_settings(cfg),
        judge=json.loads(json.dumps(ask.described())),
        made_by={"package": f"srum-ds {__version__}", "commit": git_state(ROOT)[0]},
    )


def check_rollouts(cfg: Config, model: Any, ask: Questions, reader: RolloutReader) -> list[str]:
    """What in these settings speaks of drawing and judging that the folder had done otherwise, in words.

    Raises UserError where the folder lacks steps of the run or was made for other shapes or another model.
    """
    found = reader.header
    grid = tuple(model.grid_of(*cfg.rollout.image_size))
    problems = [
        f"{key}={wanted}, but they were made with {there}"
        for key, wanted, there in (
            ("rollout.prompts_per_step", cfg.rollout.prompts_per_step, found.prompts_per_step),
            ("rollout.images_per_prompt", cfg.rollout.images_per_prompt, found.images_per_prompt),
        )
        if wanted != there
    ]
    if grid != found.grid:
        problems.append(
            f"rollout.image_size={list(cfg.rollout.image_size)} makes a latent grid of {list(grid)}, but theirs is "
            f"{list(found.grid)} (their image_size: {found.settings.get('rollout.image_size')})"
        )
    if model.config.token_channels != found.token_channels:
        problems.append(f"their latent tokens have {found.token_channels} channels, not {model.config.token_channels}")
    elif weights_sha256(find_path(cfg.model.path)) != found.model:
        problems.append(
            f"model.path={cfg.model.path} is another model than the one they were drawn with (SHA-256 {found.model})"
        )
    if problems:
        raise UserError(
            f"data.rollouts={reader.folder} does not fit these settings: {'; '.join(problems)}. Change the settings, "
            f"or write other rollouts."
        )
    reader.check(range(cfg.train.steps))
    return found.differences(replace(found, settings=_settings(cfg), judge=json.loads(json.dumps(ask.described()))))


def _settings(cfg: Config) -> dict[str, Any]:
    """Key -> value as JSON has it; what reads the environment stands as it was written."""
    flat = {f"{section}.{key}": value for section, keys in plain_config(cfg).items() for key, value in keys.items()}
    chosen = {
        key: value
        for key, value in flat.items()
        if (key in _SETTINGS or key.partition(".")[0] in _SETTINGS) and key not in _ELSEWHERE
    }
    return dict(json.loads(json.dumps(chosen)))
