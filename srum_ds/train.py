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
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import STOPPED
from srum_ds.common.phases import PHASES
from srum_ds.config import Config, check_world, load_config, split_arguments
from srum_ds.evaluation.report import show_result
from srum_ds.evaluation.run_words import evaluation_command
from srum_ds.job import Job, StopReason, open_job
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.metrics import measure
from srum_ds.monitoring.watchdog import watched
from srum_ds.objectives.apply import Batch, count_tokens, token_losses
from srum_ds.rewards.token_weights import token_weights
from srum_ds.rollouts.collect import training_views
from srum_ds.rollouts.draw import for_drawing
from srum_ds.second_try import taken
from srum_ds.types import Judged


def train(cfg: Config, run_dir: Path) -> int:
    """Trains from where ``run_dir`` stands to ``train.steps`` and exports; returns the exit status."""
    return take_steps(open_job(cfg, run_dir))


def take_steps(job: Job) -> int:
    """The steps that an opened job has still to take, and its export; returns the exit status."""
    cfg, model, engine = job.cfg, job.model, job.engine
    job.begin()
    for step in range(job.start, cfg.train.steps):
        PHASES.enter("data", step + 1)
        clock = Clock()
        judged = job.source.batches(step, clock)
        if judged is None:
            job.monitor.message(f"stopped while drawing ahead of step {step + 1}; the same command goes on from there.")
            job.monitor.close()
            return STOPPED
        batches = [weigh(job, micro_batch, step) for micro_batch in judged]
        with clock("train"):
            count = float(engine.all_reduce(count_tokens(batches).to(engine.device)))
            done = taken(job, step, batches, count, partial(passes, job, batches, count))
            if engine.has_weights("old") and job.source.policy_changes_after(step):
                engine.update_weights("old", cfg.train.old_decay)
            if engine.has_weights("ema"):
                engine.update_weights("ema", min(cfg.train.ema_decay, (1 + step) / (10 + step)))
        metrics, asked_to_stop = measure(
            engine,
            model.token_spec,
            batches,
            done.total,
            count,
            clock,
            job.stop_signal.asked,
            job.flops(batches),
            job.judging.externals.names,
        )
        staleness = job.source.staleness(step)
        metrics |= {"step": step + 1, "grad_norm": done.grad_norm, "retried": int(done.retried)}
        metrics |= {"judge": job.judging.label, "staleness": staleness}
        reason = job.after_step(step, metrics, asked_to_stop, batches)
        if reason is not None:
            return job.stop(reason, step + 1)
    return job.stop(StopReason.FINISHED, cfg.train.steps)


def weigh(job: Job, judged: Judged, step: int) -> Batch:
    """A judged micro-batch with the views that this step trains on, and what the reward says of its tokens."""
    # A number that is not finite would reach every gradient, even from an image that does not count.
    view = training_views(job.cfg, job.model, judged.samples.finite(), step, same=job.objective.same_views)
    weights = token_weights(job.objective.weights, judged, job.cfg.reward)
    return Batch(judged.samples, judged.regions, judged.scores, view, weights)


def passes(job: Job, batches: Sequence[Batch], count: float) -> Tensor:
    """Adds up this rank's gradient of a step, for the engine to step by; returns its sum of losses (float64 scalar)."""
    model, engine, cfg = job.model, job.engine, job.cfg
    old = predictions_of("old" if job.objective.needs_old else None, job, batches)
    reference = predictions_of("reference" if job.holds_to_reference else None, job, batches)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch, p_old, p_reference in zip(batches, old, reference, strict=True):
        prediction = model.predict(engine, batch.samples.prompt_of_each(), batch.view, batch.samples.grid)
        losses_BT = token_losses(job.objective, cfg.objective, model.matching, prediction, batch, p_old, p_reference)
        loss = losses_BT.sum()
        engine.backward(loss, max(count, 1.0), micro_batches=len(batches))
        total += loss.detach().double()
    return total


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
    rank = int(os.environ.get("RANK", "0"))
    first = rank == 0
    with ExitStack() as held:
        if first:
            held.enter_context(run_folder.locked(run_dir))
            for told in run_folder.prepare(run_dir, cfg):
                Console().print(told, soft_wrap=True, markup=False)
        if run_folder.is_finished(run_dir, cfg):
            if first:
                show_result(run_dir, Console(), evaluation_command(cfg, run_dir))
            return 0
        dog = held.enter_context(watched(run_dir, rank, cfg.limits))
        status = train(cfg, run_dir)
        dog.stop(status)
        return status
