"""The training loop: generate, judge, weigh, backpropagate.

    deepspeed launch/train.sh launch/recipes/tiny.yaml key=value ...

One step of ``train`` below is one step of SRUM (arXiv 2510.12784), online: the model draws K pictures a
prompt, its frozen understanding half scores them whole and by region, the scores become a map of
weights over the latent tokens, and the weighted velocity loss trains the generation half.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.environment import write_environment
from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.config import Config, check_world, find_path, load_config, split_arguments
from srum_ds.engine import Engine, compute_device, read_ds_config, shard_loader, start_distributed
from srum_ds.evaluation.held_out import HeldOut
from srum_ds.evaluation.report import show_result
from srum_ds.models import load_model
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.health import Alarm, Watch
from srum_ds.monitoring.health import stopping as stopping_alarm
from srum_ds.monitoring.images import boxes_by_picture
from srum_ds.monitoring.metrics import StillLearns, measure
from srum_ds.monitoring.writer import Monitor
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import Batch, reward_weights, sum_of, token_losses, token_mask, velocity, with_noise
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import load_index
from srum_ds.rewards.judge.host import Seat, choose_judge
from srum_ds.rewards.judge.pipeline import FailureLog, Questions, refuse_broken_judge
from srum_ds.rollouts.collect import roll_out
from srum_ds.rollouts.sources import choose_source, judged, open_data, round_length, sampling_of

STOPPED = 75
"""Exit status of a run that was asked to stop, saved and can go on (EX_TEMPFAIL)."""

STOPPED_BY_WATCH = 76
"""Exit status of a run that the watch ended; it is finished, and the same command prints its result."""

SHOWN_PROMPTS = 8


def train(cfg: Config, run_dir: Path) -> int:
    """Trains from where ``run_dir`` stands to ``train.steps`` and exports; returns the exit status."""
    data = open_data(cfg)
    ask = Questions(cfg, run_dir)
    if cfg.train.mode != "offline":
        ask.ready()
    model, engine = open_model(cfg)
    seat = choose_judge(cfg, model)
    objective = get_objective(cfg.objective.name)
    held = cfg.objective.constraint == "reference" and cfg.objective.constraint_weight > 0
    with_reference = held or objective.needs_base
    for name in ("old", "ema", "reference"):
        engine.add_weights(name)

    resumed = engine.load(run_dir / run_folder.CHECKPOINTS)
    start, kept = resumed if resumed is not None else (0, {})
    watch = Watch(cfg.watch, kept.get("watch"))
    held_out = HeldOut(cfg, engine, model)
    monitor = Monitor(run_dir, engine.rank, cfg.log.tensorboard, cfg.log.progress, cfg.train.steps)
    monitor.truncate(start)
    if engine.rank == 0:
        write_environment(run_dir, engine.world_size, sharded_share=engine.sharded_share(), judge=ask.described())
    announce(monitor, cfg, engine, model, seat.judge is model, start)
    stop = StopSignal()
    source = choose_source(cfg, run_dir, data, engine, model, seat, ask, start, lambda: stop.asked, monitor.message)
    failures = FailureLog(run_dir, engine.rank, cfg.judge.failures_megabytes)
    learns = StillLearns()

    for step in range(start, cfg.train.steps):
        clock = Clock()
        drawn = source.batches(step, clock)
        if drawn is None:
            monitor.message(f"stopped while drawing ahead of step {step}; the same command goes on from there.")
            monitor.close()
            return STOPPED
        batches = [with_noise(cfg, batch, step) for batch in drawn]
        with clock("train"):
            old = velocities_of("old" if objective.needs_old else None, engine, model, batches)
            reference = velocities_of("reference" if with_reference else None, engine, model, batches)
            weights = [reward_weights(cfg, objective.weights, b) for b in batches]
            masks = [token_mask(b, objective.weights, w) for b, w in zip(batches, weights, strict=True)]
            count = float(engine.all_reduce(sum_of(masks).to(engine.device)))
            total = torch.zeros((), dtype=torch.float64, device=engine.device)
            for batch, weight, mask, v_old, v_ref in zip(batches, weights, masks, old, reference, strict=True):
                v = velocity(engine, model, batch)
                loss = token_losses(cfg, v, batch, weight, mask, v_old, v_ref).sum()
                engine.backward(loss, max(count, 1.0), micro_batches=len(batches))
                total += loss.detach().double()
            grad_norm = engine.step()
            if source.redrawn_after(step):
                engine.update_weights("old", cfg.train.old_decay)
            engine.update_weights("ema", min(cfg.train.ema_decay, (1 + step) / (10 + step)))

        record = measure(engine, batches, total, count, clock, stop.asked)
        record |= {"step": step, "grad_norm": grad_norm, "judge": ask.label}
        if held_out.due(step):
            record["checker_exact"] = held_out.share()
        ratios, alarms = watch.see(record)
        record |= ratios
        monitor.step({key: value for key, value in record.items() if key != "stop"})
        failures.write(step, batches)
        refuse_broken_judge(cfg, record, batches)
        learns.check(step, grad_norm)
        for alarm in alarms:
            monitor.message(alarm.text)
        last = step + 1 == cfg.train.steps
        stopping = record["stop"] > 0 and not last
        if cfg.log.tensorboard and (last or step % cfg.log.image_every == 0):
            show_pictures(cfg, engine, model, seat, ask, monitor, step)
        if last or stopping or checkpoint_due(cfg, step):
            monitor.sync()
            extra = {"watch": watch.state()}
            engine.save(run_dir / run_folder.CHECKPOINTS, step + 1, extra, keep=cfg.train.keep_checkpoints)
        ending = stopping_alarm(alarms, cfg.watch)
        if ending is not None and not last:
            end_early(cfg, engine, model, run_dir, monitor, ending, step)
            return STOPPED_BY_WATCH
        if stopping:
            monitor.message(f"stopped after step {step + 1}, as asked; the same command goes on from there.")
            monitor.close()
            return STOPPED

    export(cfg, engine, model, run_dir)
    monitor.message(f"trained model: {run_dir / run_folder.EXPORT}")
    monitor.close()
    return 0


# ---- around the step


def open_model(cfg: Config) -> tuple[Any, Engine]:
    """The model of ``model.path``, under ZeRO-3 loaded straight into shards, and the engine that trains it."""
    ds_config = read_ds_config(find_path(cfg.deepspeed.config))
    start_distributed()
    materialise = shard_loader(ds_config, cfg.train.precision)
    model = load_model(find_path(cfg.model.path), cfg.model.kind, device=compute_device(), materialise=materialise)
    if cfg.model.trains == "lora":
        model.add_lora(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets, cfg.run.seed)
    model.enable_checkpointing(cfg.train.activation_checkpointing)
    t = cfg.train
    engine = Engine.create(
        model.module,
        set(model.trainable(cfg.model.trains)),
        ds_config,
        lr=t.lr,
        betas=t.betas,
        eps=t.eps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        warmup_steps=t.warmup_steps,
        precision=t.precision,
        seed=cfg.run.seed,
        decay_steps=t.steps if t.schedule == "cosine" else 0,
        leaf_modules=model.leaf_modules(),
        stored=model.stored(),
    )
    return model, engine


def end_early(
    cfg: Config, engine: Engine, model: Any, run_dir: Path, monitor: Monitor, alarm: Alarm, step: int
) -> None:
    """Goes back to the newest checkpoint from before the alarm's figure left its range, and exports that.

    Where no kept checkpoint is that old, to the oldest; where there is none, the present weights stay. What was
    kept is said, and written into ``stopped_by_watch.json``.
    """
    found = engine.load(run_dir / run_folder.CHECKPOINTS, newest=alarm.healthy_until)
    kept = found[0] if found is not None else step + 1
    monitor.message(f"stopped by the watch after step {step + 1}: {alarm.text}. Kept: the weights after step {kept}.")
    if engine.rank == 0:
        said = {"step": step + 1, "kept_step": kept, "signal": alarm.signal, "text": alarm.text}
        write_atomic(run_dir / run_folder.STOPPED_BY_WATCH, json.dumps(said, indent=2) + "\n")
    export(cfg, engine, model, run_dir)
    monitor.message(f"trained model: {run_dir / run_folder.EXPORT}")
    monitor.close()


def velocities_of(weights: str | None, engine: Engine, model: Any, batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """Velocities of every micro-batch under a named copy of the weights; None where none is wanted."""
    if weights is None:
        return [None] * len(batches)
    with engine.gathered(weights):
        return [velocity(model.module, model, batch) for batch in batches]


def checkpoint_due(cfg: Config, step: int) -> bool:
    """Every ``train.save_every`` steps, and after a round: the weights it ends with draw the next one."""
    round_ends = cfg.train.mode == "rounds" and (step + 1) % round_length(cfg) == 0
    return round_ends or (step + 1) % cfg.train.save_every == 0


class StopSignal:
    """Remembers SIGTERM, so that all ranks can finish the step, save, and stop together."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def show_pictures(
    cfg: Config,
    engine: Engine,
    model: Any,
    seat: Seat,
    ask: Questions,
    monitor: Monitor,
    step: int,
) -> None:
    """Draws the fixed prompts with the averaged weights on the first rank, boxes coloured by their scores."""
    shards = find_path(cfg.data.shards)
    # Imported prompt sets call it "val", or have none.
    known = load_index(shards)
    reader = PromptReader(shards, next((s for s in ("validation", "val") if s in known), cfg.data.split))
    fixed = [reader[i] for i in range(min(SHOWN_PROMPTS, len(reader)))]
    first = engine.rank == 0
    with ExitStack() as gathered:
        gathered.enter_context(engine.gathered("ema"))
        if first:
            grid = model.grid_of(*cfg.rollout.image_size)
            rollout = roll_out(model, fixed, 1, grid, model.config.token_channels, sampling_of(cfg), cfg.run.seed, 0)
        judge = seat.take(gathered)
        if first:
            shown = judged(judge, ask, rollout)
    if first:
        boxes, local = boxes_by_picture(shown.regions, shown.scores.local_R, len(fixed))
        whole = shown.scores.global_N.tolist()
        captions = [f"{p.text}  ({s:+.2f})" for p, s in zip(fixed, whole, strict=True)]
        monitor.images("fixed", rollout.images_NCHW, boxes, local, captions, step)


def export(cfg: Config, engine: Engine, model: Any, run_dir: Path) -> None:
    """Writes the trained model as a checkpoint folder of its design, one gathered tensor at a time."""
    weights = "ema" if cfg.eval.weights == "ema" else "live"
    partial = run_dir / (run_folder.EXPORT + ".partial")
    names = [name for name, p in model.module.named_parameters() if p.requires_grad]
    tensors = engine.consolidate(weights)
    problem = ""
    if engine.rank == 0:
        try:
            model.export(partial, names, tensors, torch.float32)
            run_folder.publish_export(partial, run_dir)
        except (UserError, OSError) as error:
            problem = str(error)
    # Whatever is left is gathered all the same: the other ranks are there.
    for _ in tensors:
        pass
    if float(engine.all_reduce(torch.tensor(float(bool(problem)), device=engine.device))) > 0:
        raise UserError(problem or "the export failed on the first rank; its message says why.")


def announce(monitor: Monitor, cfg: Config, engine: Engine, model: Any, shared: bool, start: int) -> None:
    """What the run is, in a few lines."""
    where = f"goes on after step {start}" if start else "starts"
    live = "the live model with LoRA off" if model.lora else "the live model (its understanding half does not train)"
    judge = live if shared else "a frozen copy"
    monitor.message(
        f"{cfg.run.dir} {where}: {cfg.train.steps} steps on {engine.world_size} rank(s), {cfg.train.precision}"
    )
    monitor.message(f"trains {cfg.model.trains} with objective {cfg.objective.name}; the judge is {judge}")
    if model.lora:
        bound = model.lora
        monitor.message(
            f"LoRA of rank {bound.rank}, alpha {bound.alpha:g}, on {len(bound.modules)} modules: "
            f"{bound.parameters:,} parameters"
        )
    monitor.message(f"sharded: {engine.sharded_share():.1%} of the parameters")


def main(arguments: Sequence[str]) -> int:
    """One rank of a run: RECIPE key=value ...; returns the exit status."""
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
