"""The training loop: generate, judge, weigh, backpropagate.

    deepspeed launch/train.sh launch/recipes/tiny.yaml key=value ...

One step of ``train`` below is one step of SRUM (arXiv 2510.12784), online: the model draws K images per
prompt, its frozen understanding half scores them whole and by region, the scores become a map of
weights over the tokens, and the weighted loss trains the generation half. ``job.py`` holds what is around the loop.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import STOPPED
from srum_ds.config import Config, check_world, load_config, split_arguments
from srum_ds.evaluation.report import show_result
from srum_ds.job import Job, StopReason, open_job
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.metrics import measure
from srum_ds.objectives.apply import Batch, count_tokens, token_losses
from srum_ds.rewards.token_weights import token_weights
from srum_ds.rollouts.collect import training_views
from srum_ds.rollouts.draw import for_drawing
from srum_ds.types import Judged


def train(cfg: Config, run_dir: Path) -> int:
    """Trains from where ``run_dir`` stands to ``train.steps`` and exports; returns the exit status."""
    job = open_job(cfg, run_dir)
    model, engine = job.model, job.engine
    for step in range(job.start, cfg.train.steps):
        clock = Clock()
        judged = job.source.batches(step, clock)
        if judged is None:
            job.monitor.message(f"stopped while drawing ahead of step {step}; the same command goes on from there.")
            job.monitor.close()
            return STOPPED
        batches = [weigh(job, micro_batch, step) for micro_batch in judged]
        with clock("train"):
            old = predictions_of("old" if job.objective.needs_old else None, job, batches)
            reference = predictions_of("reference" if job.holds_to_reference else None, job, batches)
            count = float(engine.all_reduce(count_tokens(batches).to(engine.device)))
            total = torch.zeros((), dtype=torch.float64, device=engine.device)
            for batch, p_old, p_reference in zip(batches, old, reference, strict=True):
                prediction = model.predict(engine, batch.samples.prompt_of_each(), batch.view, batch.samples.grid)
                losses_BT = token_losses(
                    job.objective, cfg.objective, model.matching, prediction, batch, p_old, p_reference
                )
                loss = losses_BT.sum()
                engine.backward(loss, max(count, 1.0), micro_batches=len(batches))
                total += loss.detach().double()
            grad_norm = engine.step()
            if engine.has_weights("old") and job.source.policy_changes_after(step):
                engine.update_weights("old", cfg.train.old_decay)
            if engine.has_weights("ema"):
                engine.update_weights("ema", min(cfg.train.ema_decay, (1 + step) / (10 + step)))
        metrics, asked_to_stop = measure(
            engine,
            model.token_spec,
            batches,
            total,
            count,
            clock,
            job.stop_signal.asked,
            job.flops(batches),
            job.judging.externals.names,
        )
        staleness = job.source.staleness(step)
        metrics |= {"step": step, "grad_norm": grad_norm, "judge": job.judging.label, "staleness": staleness}
        reason = job.after_step(step, metrics, asked_to_stop, batches)
        if reason is not None:
            return job.stop(reason, step + 1)
    return job.stop(StopReason.FINISHED, cfg.train.steps)


def weigh(job: Job, judged: Judged, step: int) -> Batch:
    """A judged micro-batch with the views that this step trains on, and what the reward says of its tokens."""
    view = training_views(job.cfg, job.model, judged.samples, step, same=job.objective.same_views)
    weights = token_weights(job.objective.weights, judged, job.cfg.reward)
    return Batch(judged.samples, judged.regions, judged.scores, view, weights)


def predictions_of(policy: str | None, job: Job, batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """What a named copy of the weights predicts for every micro-batch; None where none is wanted."""
    if policy is None:
        return [None] * len(batches)
    with for_drawing(job.engine, policy, job.cfg.rollout.gather) as module:
        return [job.model.predict(module, b.samples.prompt_of_each(), b.view, b.samples.grid) for b in batches]


def main(arguments: Sequence[str]) -> int:
    """One rank of a run: RECIPE key=value ...; returns the exit status. ``launch/train.sh`` calls it."""
    recipe, overrides = split_arguments(arguments)
    cfg = load_config(recipe, overrides)
    check_world(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    run_dir = Path(cfg.run.dir)
    first = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as held:
        if first:
            held.enter_context(run_folder.locked(run_dir))
            run_folder.prepare(run_dir, cfg)
        if run_folder.is_finished(run_dir):
            if first:
                show_result(run_dir, Console())
            return 0
        return train(cfg, run_dir)
