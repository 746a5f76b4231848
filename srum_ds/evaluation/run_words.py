"""A training run's words before its first step and after its last: what it is, what came of it, what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.config.loading import plain_config
from srum_ds.engine import Engine
from srum_ds.evaluation.evaluate import benchmark_for, eval_prompts
from srum_ds.evaluation.held_out import HeldOut, best_of
from srum_ds.models import family_of
from srum_ds.models.protocol import UnifiedModel
from srum_ds.models.registry import AUTO
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.blocks import (
    Whole,
    block,
    held_out_told,
    path_text,
    program,
    rewards_told,
    tensorboard_command,
    took,
)
from srum_ds.monitoring.records import BEST, METRICS, TENSORBOARD
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.shards import load_index
from srum_ds.prompts.source import held_out_split
from srum_ds.rollouts.fixed_prompts import fixed_prompts

REPORT = "report.html"


def start_block(
    cfg: Config, engine: Engine, model: UnifiedModel, shared_judge: bool, start: int, held_out: HeldOut, kernels: str
) -> str:
    """What the run is. shared_judge: whether the live model judges. start: steps done. kernels: which are fused."""
    where = f"goes on after step {start}" if start else "starts"
    r, folder = cfg.rollout, Path(cfg.run.dir)
    trained, whole = _parameters(model)
    live = "the live model with LoRA off" if model.lora else "the live model (its judging half is frozen)"
    judging = held_out.collector.judging
    outside = ", ".join(name for name in judging.externals.names if name != "own")
    own = f"{live if shared_judge else 'a frozen copy'}, readout {cfg.judge.readout}"
    lora = model.lora
    adapter = "" if lora is None else f"rank {lora.rank}, alpha {lora.alpha:g}, on {len(lora.modules)} modules"
    adapter += "" if lora is None else f": {lora.parameters:,} parameters"
    drawn = f"{r.prompts_per_step} prompts x {r.images_per_prompt} samples, {r.image_size[0]} x {r.image_size[1]} px"
    looks = ""
    if held_out.every:
        looks = f"{len(held_out.prompts)} prompts of split {held_out.split}, every {held_out.every} steps"
        looks += "" if cfg.watch.checker == "none" else f", also by the checker {cfg.watch.checker}"
    return block(
        f"{cfg.run.dir} {where}: {cfg.train.steps} steps on {engine.world_size} rank(s), {cfg.train.precision}",
        [
            ("model", f"{cfg.written('model.path')} ({family_of(cfg.model.path, cfg.model.kind).kind})"),
            ("trains", f"{cfg.model.trains}: {trained:,} of {whole:,} parameters, objective {cfg.objective.name}"),
            ("lora", adapter),
            ("judge", own if judging.asks_own else f"{outside}; the model's own is not asked"),
            ("and judges", outside if judging.asks_own else ""),
            ("a step", f"{r.prompts_per_step * r.images_per_prompt} images = {drawn}"),
            ("held-out", looks),
            ("sharded", f"{engine.sharded_share():.1%} of the parameters"),
            ("kernels", kernels),
            ("writes", f"{folder}: {METRICS}, run.log, samples/, checkpoints/, export/"),
            ("trackers", ", ".join(cfg.log.trackers)),
            ("look", Whole(tensorboard_command(folder / TENSORBOARD)) if cfg.log.tensorboard else ""),
        ],
    )


def end_block(
    cfg: Config, run_dir: Path, records: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]], seconds: float
) -> str:
    """What came of the run, and what to type next. records: of its steps. looks: at its held-out prompts."""
    best = best_of(looks)
    kept = ""
    if best is not None and (run_dir / BEST).is_file():
        kept = f"after step {best['step']} ({best['reward']:+.3f}), kept as {path_text(run_dir / checkpoint_of(best))}"
    told = block(
        f"done: {took(seconds, len(records))}",
        [
            ("reward", rewards_told(records)),
            ("held-out", held_out_told(looks)),
            ("best", kept),
            ("model", Whole(path_text(run_dir / run_folder.EXPORT))),
        ],
    )
    return "\n".join([told, "next:", *(f"  {command}" for command in next_commands(cfg, run_dir))])


def next_commands(cfg: Config, run_dir: Path) -> list[str]:
    """Commands for a finished run, as one types them where it was started."""
    ours, run = program("srum-ds"), path_text(run_dir)
    found = []
    if (run_dir / REPORT).is_file():
        found.append(f"{ours} report {run}")
    measured = evaluation_command(cfg, run_dir)
    if measured is not None:
        found.append(measured)
    prompt = _prompt(cfg)
    if prompt and _told_by_its_folder(cfg, run_dir / run_folder.EXPORT):
        model = path_text(run_dir / run_folder.EXPORT)
        found.append(
            f"{ours} generate --model {model} --prompt {shlex.quote(prompt)} --out {path_text(run_dir / 'images')}"
        )
    if cfg.log.tensorboard:
        found.append(tensorboard_command(run_dir / TENSORBOARD))
    return found


def checkpoint_of(look: Mapping[str, Any]) -> str:
    """Where the checkpoint of a look lies in a run's folder."""
    return f"{run_folder.CHECKPOINTS}/step_{look['step']:06d}"


def best_text(look: Mapping[str, Any]) -> str:
    """The text of ``best.json``."""
    return json.dumps({**look, "checkpoint": checkpoint_of(look)}, indent=1) + "\n"


def settings_told(cfg: Config) -> dict[str, Any]:
    """``section.name`` -> value, as written: what reads the environment stands as its expression."""
    return {f"{section}.{name}": value for section, own in plain_config(cfg).items() for name, value in own.items()}


def results_told(records: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What came of a run, by TensorBoard's tags: the last step's reward, the last look's figures."""
    found = {"reward/global": records[-1].get("reward_global")} if records else {}
    if looks:
        found |= {f"held_out/{key}": looks[-1].get(key) for key in ("reward", "difference")}
    return {key: float(value) for key, value in found.items() if value is not None}


def uncheckable(cfg: Config, run_dir: Path) -> str | None:
    """Why ``eval.benchmark`` cannot check the run's held-out prompts, and what can; None where it can."""
    try:
        benchmark_for(cfg, eval_prompts(cfg))
    except UserError as error:
        measured = evaluation_command(cfg, run_dir)
        other = "" if measured is None else f"\nscored by its own judge: {measured}"
        return f"not evaluated: {error}{other}\nscored as a benchmark scores: docs/evaluation.md"
    return None


def evaluation_command(cfg: Config, run_dir: Path) -> str | None:
    """The `srum-ds eval` that measures this run, as one types it; None where its prompts have no part kept out."""
    command = f"{program('srum-ds')} eval {path_text(run_dir)}"
    try:
        benchmark_for(cfg, eval_prompts(cfg))
        return command
    except UserError:
        pass
    try:
        folder = prompt_folder(cfg)
        if held_out_split(load_index(folder)) in (None, cfg.data.split):
            return None
    except UserError:
        return None
    return f"{command} --benchmark own --prompts {path_text(folder)} --judge self"


def _told_by_its_folder(cfg: Config, export: Path) -> bool:
    """Whether `srum-ds generate`, which goes by the folder, takes an export for the run's design: not for one's own."""
    if cfg.model.kind == AUTO:
        return True
    try:
        return family_of(export).kind == family_of(export, cfg.model.kind).kind
    except UserError:
        return False


def _prompt(cfg: Config) -> str:
    """A prompt to draw: the first of a split that was kept out, else of any; empty where none can be read."""
    try:
        return fixed_prompts(cfg)[0].text
    except (UserError, IndexError):
        return ""


def _parameters(model: UnifiedModel) -> tuple[int, int]:
    """(those that train, all), whole where they are sharded."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.module.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
