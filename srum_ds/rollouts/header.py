"""The header of a folder of rollouts: how it was made, and whether it fits a run. Sources and the worker call it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from srum_ds import __version__
from srum_ds.common.environment import git_state
from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from srum_ds.config import ROOT, Config, plain_config
from srum_ds.rollouts.collect import Collector
from srum_ds.rollouts.shards import Header, RolloutReader

# Settings that say how images were drawn and judged; what else a recipe sets came later.
_SETTINGS = ("judge", "regions", "rollout", "reward.surplus_penalty")
_ELSEWHERE = (
    "rollout.prompts_per_step",
    "rollout.images_per_prompt",
    "rollout.micro_batch_prompts",
    "rollout.gather",
    "rollout.keep",
)
# Settings that came later, at the values that leave everything as it was before: these do not stand.
_NEUTRAL = {"rollout.pool": 0, "rollout.pool_timesteps": 4}


def rollout_header(collector: Collector) -> Header:
    """The header of what a recipe draws and has judged. Reads the model folder for its hash."""
    cfg = collector.cfg
    return Header(
        seed=cfg.run.seed,
        model=weights_sha256(Path(cfg.model.path)),
        prompts_per_step=cfg.rollout.prompts_per_step,
        images_per_prompt=cfg.rollout.images_per_prompt,
        grid=collector.model.grid(*cfg.rollout.image_size),
        tokens=collector.model.token_spec,
        settings=_settings(cfg),
        judge=json.loads(json.dumps(collector.judging.described())),
        made_by={"package": f"srum-ds {__version__}", "commit": git_state(ROOT)[0]},
    )


def check_rollouts(collector: Collector, reader: RolloutReader) -> list[str]:
    """What in these settings speaks of drawing and judging that the folder had done otherwise, in words.

    Raises UserError where the folder lacks steps of the run or was made for other shapes or another model.
    """
    cfg, found = collector.cfg, reader.header
    grid = collector.model.grid(*cfg.rollout.image_size)
    spec = collector.model.token_spec
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
            f"rollout.image_size={list(cfg.rollout.image_size)} makes a grid of {list(grid)} tokens, but theirs is "
            f"{list(found.grid)} (their image_size: {found.settings.get('rollout.image_size')})"
        )
    if spec != found.tokens:
        problems.append(
            f"their tokens are {found.tokens.kind} of size {found.tokens.size}, not {spec.kind} of {spec.size}"
        )
    elif weights_sha256(Path(cfg.model.path)) != found.model:
        problems.append(
            f"model.path={cfg.written('model.path')} is another model than the one they were drawn with "
            f"(SHA-256 {found.model})"
        )
    if problems:
        raise UserError(
            f"data.rollouts={reader.folder} does not fit these settings: {'; '.join(problems)}. Change the settings, "
            f"or write other rollouts."
        )
    reader.check(range(cfg.train.steps))
    return found.differences(
        replace(found, settings=_settings(cfg), judge=json.loads(json.dumps(collector.judging.described())))
    )


def _settings(cfg: Config) -> dict[str, Any]:
    """Key -> value as JSON has it; what reads the environment stands as it was written, empty options do not stand."""
    flat = {f"{section}.{key}": value for section, keys in plain_config(cfg).items() for key, value in keys.items()}
    chosen = {
        key: value
        for key, value in flat.items()
        if (key in _SETTINGS or key.partition(".")[0] in _SETTINGS)
        and key not in _ELSEWHERE
        and value != {}
        and _NEUTRAL.get(key) != value
    }
    return dict(json.loads(json.dumps(chosen)))
