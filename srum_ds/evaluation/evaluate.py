"""``srum-ds eval``: a run's trained model against the one it started from, on held-out prompts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import replacing, weights_sha256, write_atomic
from srum_ds.config import Config, find_path, load_config
from srum_ds.evaluation.draw import Drawn, DrawSettings, cache_key, draw
from srum_ds.evaluation.report import Measured, build_result, result_table, verdict, write_result
from srum_ds.models.flow import FlowSampling
from srum_ds.monitoring.images import Shown, beside, comparison
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.pipeline import Questions, readout_of
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import Check, check

CACHE = ".eval_cache"
OUTCOMES = "outcomes.json"
GRID = Path("samples/eval_grid.png")
GRID_PROMPTS_PER_CATEGORY = 2


def evaluate_run(
    run_dir: Path,
    overrides: Sequence[str] = (),
    processes: int | None = None,
    cache: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Draws with the base model and with ``run_dir/export``, checks both, writes and prints the result.

    Reads ``run_dir/config.yaml`` with ``overrides`` (``eval.key=value`` only). Writes
    ``result.json``, ``eval.md``, ``samples/eval_grid.png`` and ``outcomes.json`` (0 or 1 for each
    prompt) into the run's folder; the base's pictures are kept in ``.eval_cache`` beside it.
    processes: default one a core (one on a GPU). Returns the content of ``result.json``. Raises
    UserError where the run is not finished, or its configuration, shards or models are broken.
    """
    started = time.monotonic()
    console = console or Console()
    cfg = _run_config(run_dir, overrides)
    base_folder, trained_folder = find_path(cfg.model.path), run_dir / "export"
    if not trained_folder.is_dir():
        raise UserError(f"{trained_folder}: missing; the run has not finished: repeat its `srum-ds train`")
    prompts = eval_prompts(cfg)
    questions = eval_questions(cfg, prompts)
    settings = draw_settings(cfg)
    if processes is None:
        processes = 1 if settings.device != "cpu" else len(os.sched_getaffinity(0))
    with console.status("") as status:
        base, trained = draw(
            [base_folder, trained_folder],
            prompts,
            questions,
            settings,
            processes,
            cache_dir=run_dir.resolve().parent / CACHE if cache else None,
            cacheable=(True, False),
            on_batch=lambda done, total: status.update(f"drawing: {done} of {total} batches"),
        )
    checks = [check_pictures(prompts, side.images_NCHW) for side in (base, trained)]
    result = build_result(
        [prompt.category for prompt in prompts],
        _measured(base, checks[0]),
        _measured(trained, checks[1]),
        seed=cfg.eval.seed,
        seconds=time.monotonic() - started,
        settings=_described(cfg, settings, prompts, base_folder, trained_folder, base.cached)
        | {"judge": Questions(cfg).described()},
    )
    _save_grid(run_dir / GRID, prompts, (base, trained), checks)
    write_result(run_dir, result)
    outcomes = {
        "key": outcomes_key(cfg, run_dir, prompts),
        "prompts": [prompt.id for prompt in prompts],
        "base": [int(item.exact) for item in checks[0]],
        "trained": [int(item.exact) for item in checks[1]],
    }
    write_atomic(run_dir / OUTCOMES, json.dumps(outcomes) + "\n")
    console.print(result_table(result))
    console.print(verdict(result), soft_wrap=True, highlight=False)
    console.print(f"written: {run_dir}/result.json, eval.md, {GRID}", soft_wrap=True, highlight=False)
    return result


def eval_prompts(cfg: Config) -> list[Prompt]:
    """The first ``eval.prompts`` prompts of ``eval.split``. UserError where there are fewer."""
    folder = find_path(cfg.data.shards)
    reader = PromptReader(folder, cfg.eval.split)
    if len(reader) < cfg.eval.prompts:
        raise UserError(
            f"eval.prompts={cfg.eval.prompts}, but {folder} has {len(reader)} prompts in the split "
            f"{cfg.eval.split!r}: set eval.prompts={len(reader)}, or write larger shards"
        )
    return [reader[i] for i in range(cfg.eval.prompts)]


def eval_questions(cfg: Config, prompts: Sequence[Prompt]) -> list[str]:
    """What the judge is asked about each prompt's picture."""
    judge = Questions(cfg)
    return [judge.of_whole(prompt) for prompt in prompts]


def outcomes_key(cfg: Config, run_dir: Path, prompts: Sequence[Prompt]) -> str:
    """What ``outcomes.json`` depends on, in one word: both models, the prompts and the sampler."""
    models = " ".join(weights_sha256(folder) for folder in (find_path(cfg.model.path), run_dir / "export"))
    return cache_key(models, prompts, eval_questions(cfg, prompts), draw_settings(cfg))


def draw_settings(cfg: Config) -> DrawSettings:
    """How a configuration's evaluation draws."""
    rollout, own = cfg.rollout, cfg.eval
    sampling = FlowSampling(
        num_timesteps=own.num_timesteps,
        timestep_shift=rollout.timestep_shift if own.timestep_shift is None else own.timestep_shift,
        text_scale=rollout.text_scale if own.text_scale is None else own.text_scale,
        interval=rollout.interval if own.interval is None else own.interval,
        renorm=rollout.renorm if own.renorm is None else own.renorm,
        renorm_min=rollout.renorm_min if own.renorm_min is None else own.renorm_min,
    )
    return DrawSettings(
        kind=cfg.model.kind,
        image_size=rollout.image_size,
        sampling=sampling,
        seed=cfg.eval.seed,
        batch=cfg.eval.batch,
        readout=readout_of(cfg),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def check_pictures(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[Check]:
    """The independent checker's finding for each prompt's picture (uint8 [N, 3, H, W])."""
    return [check(prompt, image.float() / 255) for prompt, image in zip(prompts, images_NCHW, strict=True)]


def grid_positions(categories: Sequence[str], per_category: int = GRID_PROMPTS_PER_CATEGORY) -> list[int]:
    """The first prompts of each category, the categories in order: chosen without a look at the pictures."""
    positions = []
    for category in dict.fromkeys(categories):
        positions += [i for i, other in enumerate(categories) if other == category][:per_category]
    return positions


def _save_grid(
    path: Path, prompts: Sequence[Prompt], sides: Sequence[Drawn], checks: Sequence[Sequence[Check]]
) -> None:
    rows = []
    for i in grid_positions([prompt.category for prompt in prompts]):
        cells = [Shown(side.images_NCHW[i], mark=found[i].exact) for side, found in zip(sides, checks, strict=True)]
        rows.append((prompts[i].text, cells))
    half = -(-len(rows) // 2)
    pages = [comparison(part, ["base", "trained"]) for part in (rows[:half], rows[half:]) if part]
    with replacing(path) as stream:
        beside(pages).save(stream, "PNG")


def _measured(side: Drawn, found: Sequence[Check]) -> Measured:
    return Measured(
        exact=[float(item.exact) for item in found],
        partial=[item.partial for item in found],
        self_reward=side.scores_N.tolist(),
    )


def _described(
    cfg: Config,
    settings: DrawSettings,
    prompts: Sequence[Prompt],
    base: Path,
    trained: Path,
    cached: bool,
) -> dict[str, Any]:
    sampling = settings.sampling
    return {
        "split": cfg.eval.split,
        "prompts": len(prompts),
        "distinct_texts": len({prompt.text for prompt in prompts}),
        "num_timesteps": sampling.num_timesteps,
        "timestep_shift": sampling.timestep_shift,
        "text_scale": sampling.text_scale,
        "interval": list(sampling.interval),
        "base_model": cfg.model.path,
        "base_sha256": weights_sha256(base),
        "trained_sha256": weights_sha256(trained),
        "base_from_cache": cached,
    }


def _run_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path}: missing; {run_dir} is not a run. Give a run's folder, such as runs/tiny")
    strange = [item for item in overrides if not item.startswith("eval.")]
    if strange:
        raise UserError(f"{strange[0]!r}: an evaluation takes eval.key=value only; the rest is the run's own")
    return load_config(path, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module: ``[RUN] [eval.key=value ...]``; returns the exit status."""
    parser = argparse.ArgumentParser(description="Base against trained, on held-out prompts.")
    parser.add_argument("words", nargs="*", metavar="[RUN] [eval.key=value]", help="default: runs/tiny")
    parser.add_argument("--processes", type=int, help="drawing processes (default: one a core)")
    parser.add_argument("--no-cache", action="store_true", help="draw the base's pictures anew")
    arguments = parser.parse_args(argv)
    folders = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if len(folders) > 1:
        parser.error(f"one run at a time: {' '.join(folders)}")
    run_dir = Path(folders[0] if folders else "runs/tiny")
    try:
        evaluate_run(run_dir, overrides, arguments.processes, not arguments.no_cache)
    except UserError as error:
        print(f"srum-ds eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
