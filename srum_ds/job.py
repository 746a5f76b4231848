"""Everything around the loop of one run: opening model, engine and judge, showing, saving, exporting, stopping.

``train.train`` opens a ``Job`` and asks it after every step; nothing here is part of the method.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from srum_ds.common.environment import write_environment
from srum_ds.common.errors import STOPPED, STOPPED_BY_WATCH, UserError
from srum_ds.common.files import write_atomic
from srum_ds.config import Config
from srum_ds.engine import Engine, compute_device, read_ds_config, shard_loader, start_distributed
from srum_ds.evaluation.held_out import HeldOut
from srum_ds.models import load_model
from srum_ds.models.fused import chosen, start_kernels
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.health import Alarm, Watch
from srum_ds.monitoring.judge_failures import FailureLog, refuse_broken_judge
from srum_ds.monitoring.metrics import StillLearns
from srum_ds.monitoring.usage import read_metrics, usage_table
from srum_ds.monitoring.writer import METRICS, Monitor
from srum_ds.objectives import Objective, get_objective
from srum_ds.planning.accounting import Accounting, open_accounting
from srum_ds.planning.policies import holds_to_reference, policies_of
from srum_ds.rewards.judge.host import JudgeHost, choose_judge
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.choose import choose_source, open_data
from srum_ds.rollouts.collect import Collector, sampling_of
from srum_ds.rollouts.fixed_prompts import show_fixed_prompts
from srum_ds.rollouts.sources import Source, round_length
from srum_ds.types import Judged


class StopReason(Enum):
    """Why a run ends after a step."""

    FINISHED = "finished"
    ASKED = "asked"
    WATCH = "watch"


@dataclass
class Job:
    """One run on this rank, opened and ready for its next step ``start``."""

    cfg: Config
    run_dir: Path
    model: UnifiedModel
    engine: Engine
    host: JudgeHost
    judging: JudgePipeline
    objective: Objective
    collector: Collector
    source: Source
    monitor: Monitor
    watch: Watch
    held_out: HeldOut
    failures: FailureLog
    stop_signal: StopSignal
    start: int
    accounting: Accounting | None = None
    learns: StillLearns = field(default_factory=StillLearns)

    @property
    def holds_to_reference(self) -> bool:
        """Whether the untrained model's predictions are needed."""
        return holds_to_reference(self.cfg, self.objective)

    def is_last(self, step: int) -> bool:
        """Whether the run ends with this step."""
        return step + 1 == self.cfg.train.steps

    def after_step(
        self, step: int, metrics: dict[str, Any], asked_to_stop: bool, batches: Sequence[Judged]
    ) -> StopReason | None:
        """Records a step, shows and saves what is due, and says why the run ends here, if it does; all ranks call it.

        metrics: the step's, equal on all ranks. asked_to_stop: whether any rank was. Raises UserError, on all ranks,
        where the judge cannot be understood or nothing is learnt any more.
        """
        cfg = self.cfg
        self.engine.finish_save(wait=False)
        metrics |= {} if self.accounting is None else self.accounting.rates(metrics)
        if self.held_out.due(step):
            metrics["checker_exact"] = self.held_out.share()
        ratios, alarms = self.watch.see(metrics)
        self.monitor.step(metrics | ratios)
        self.failures.write(step, batches)
        refuse_broken_judge(cfg.judge.max_failed_share, self.judging.readout.cure, metrics, batches)
        self.learns.check(step, metrics["grad_norm"])
        for alarm in alarms:
            self.monitor.message(alarm.text)
        reason = self._reason_to_stop(step, asked_to_stop, alarms)
        if cfg.log.tensorboard and (self.is_last(step) or step % cfg.log.image_every == 0):
            show_fixed_prompts(self.collector, self.engine, self.monitor, step)
        if reason in (StopReason.FINISHED, StopReason.ASKED) or self._checkpoint_due(step):
            self.source.settle()
            self.monitor.sync()
            extra = {"watch": self.watch.state()}
            folder = self.run_dir / run_folder.CHECKPOINTS
            self.engine.save(folder, step + 1, extra, cfg.train.keep_checkpoints, cfg.train.save_in_background)
        if reason is StopReason.WATCH:
            self._go_back(min(_ending(alarms), key=lambda alarm: alarm.healthy_until), step)
        return reason

    def flops(self, batches: Sequence[Judged]) -> dict[str, float]:
        """FLOPs of this rank's step by phase; none where the model's design does not say what its work costs."""
        return {} if self.accounting is None else self.accounting.flops(batches)

    def stop(self, reason: StopReason, step: int) -> int:
        """Ends the run after its ``step``-th step, exporting what it was made for; returns its exit status."""
        self.engine.finish_save()
        if reason is StopReason.ASKED:
            self.monitor.message(f"stopped after step {step}, as asked; the same command goes on from there.")
        else:
            self.export()
            self.monitor.message(f"trained model: {self.run_dir / run_folder.EXPORT}")
            self.monitor.show(usage_table(read_metrics(self.run_dir / METRICS)))
        self.monitor.close()
        return {StopReason.FINISHED: 0, StopReason.ASKED: STOPPED, StopReason.WATCH: STOPPED_BY_WATCH}[reason]

    def _reason_to_stop(self, step: int, asked_to_stop: bool, alarms: Sequence[Alarm]) -> StopReason | None:
        if self.is_last(step):
            return StopReason.FINISHED
        if self.cfg.watch.stop and _ending(alarms):
            return StopReason.WATCH
        return StopReason.ASKED if asked_to_stop else None

    def _checkpoint_due(self, step: int) -> bool:
        """Every ``train.save_every`` steps, and after a round: the weights it ends with draw the next one."""
        round_ends = self.cfg.train.mode == "rounds" and (step + 1) % round_length(self.cfg) == 0
        return round_ends or (step + 1) % self.cfg.train.save_every == 0

    def _go_back(self, alarm: Alarm, step: int) -> None:
        """Goes back to the newest checkpoint from before the alarm's figure left its range.

        Where no kept checkpoint is that old, to the oldest; where there is none, the present weights stay. What was
        kept is said, and written into ``stopped_by_watch.json``.
        """
        self.engine.finish_save()
        found = self.engine.load(self.run_dir / run_folder.CHECKPOINTS, newest=alarm.healthy_until)
        kept = found[0] if found is not None else step + 1
        self.monitor.message(
            f"stopped by the watch after step {step + 1}: {alarm.text}. Kept: the weights after step {kept}."
        )
        if self.engine.rank == 0:
            said = {"step": step + 1, "kept_step": kept, "signal": alarm.signal, "text": alarm.text}
            write_atomic(self.run_dir / run_folder.STOPPED_BY_WATCH, json.dumps(said, indent=2) + "\n")

    def export(self) -> None:
        """Writes the trained model as a checkpoint folder of its design, one gathered tensor at a time."""
        weights = "ema" if self.cfg.eval.weights == "ema" else "live"
        partial = self.run_dir / (run_folder.EXPORT + ".partial")
        names = [name for name, p in self.model.module.named_parameters() if p.requires_grad]
        tensors = self.engine.consolidate(weights)
        problem = ""
        if self.engine.rank == 0:
            try:
                self.model.export(partial, names, tensors, torch.float32)
                run_folder.publish_export(partial, self.run_dir)
            except (UserError, OSError) as error:
                problem = str(error)
        # Whatever is left is gathered all the same: the other ranks are there.
        for _ in tensors:
            pass
        failed = self.engine.all_reduce(torch.tensor(float(bool(problem)), device=self.engine.device))
        if float(failed) > 0:
            raise UserError(problem or "the export failed on the first rank; its message says why.")


def open_job(cfg: Config, run_dir: Path) -> Job:
    """Opens data, model, engine and judge, and takes up the newest checkpoint; all ranks call it.

    Raises UserError for anything that is not there or does not fit, before the first step.
    """
    data = open_data(cfg)
    judging = JudgePipeline(cfg, run_dir)
    if cfg.train.mode != "offline":
        judging.ready()
    model, engine = open_model(cfg)
    host = choose_judge(cfg, model, engine)
    objective = get_objective(cfg.objective.name)
    for policy in policies_of(cfg, objective):
        engine.add_weights(policy, fixed=policy == "reference")
    start, kept = engine.load(run_dir / run_folder.CHECKPOINTS) or (0, {})
    watch = Watch(cfg.watch, kept.get("watch"))
    held_out = HeldOut(cfg, engine, model)
    monitor = Monitor(run_dir, engine.rank, cfg.log.tensorboard, cfg.log.progress, cfg.train.steps)
    monitor.truncate(start)
    collector = Collector(cfg, model, host, judging, sampling_of(cfg))
    accounting, peak, peak_told = open_accounting(cfg, judging, collector.sampling, engine)
    if engine.rank == 0:
        write_environment(
            run_dir,
            engine.world_size,
            sharded_share=engine.sharded_share(),
            judge=judging.described(),
            kernels=chosen().described(),
            peak_flops=peak,
        )
    announce(monitor, cfg, engine, model, host.judge is model, start)
    monitor.message(peak_told)
    stop_signal = StopSignal()
    source = choose_source(collector, engine, run_dir, data, start, lambda: stop_signal.asked, monitor.message)
    failures = FailureLog(run_dir, engine.rank, cfg.judge.failures_megabytes)
    return Job(
        cfg=cfg,
        run_dir=run_dir,
        model=model,
        engine=engine,
        host=host,
        judging=judging,
        objective=objective,
        collector=collector,
        source=source,
        monitor=monitor,
        watch=watch,
        held_out=held_out,
        failures=failures,
        stop_signal=stop_signal,
        start=start,
        accounting=accounting,
    )


def open_model(cfg: Config) -> tuple[UnifiedModel, Engine]:
    """The model of ``model.path``, under ZeRO-3 loaded straight into shards, and the engine that trains it."""
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    start_distributed()
    if cfg.train.precision == "bf16" and compute_device().type == "cuda":
        # What stays in float32 then (Segment Anything, small tables) need not be exact to the last bit.
        torch.set_float32_matmul_precision("high")
    start_kernels(cfg.kernels.fused, compute_device())
    materialise = shard_loader(ds_config, cfg.train.precision)
    model = load_model(cfg.model.path, cfg.model.kind, device=compute_device(), materialise=materialise)
    if cfg.model.trains == "lora":
        model.add_lora(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets, cfg.run.seed)
    model.enable_checkpointing(cfg.train.activation_checkpointing)
    if cfg.train.compile:
        model.compile_blocks()
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
        leaf_modules=model.shard_units(),
        stored=model.stored(),
    )
    return model, engine


def announce(
    monitor: Monitor, cfg: Config, engine: Engine, model: UnifiedModel, shared_judge: bool, start: int
) -> None:
    """What the run is, in a few lines."""
    where = f"goes on after step {start}" if start else "starts"
    live = "the live model with LoRA off" if model.lora else "the live model (its understanding half does not train)"
    judge = live if shared_judge else "a frozen copy"
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
    for line in chosen().lines():
        monitor.message(line)
    monitor.message(f"sharded: {engine.sharded_share():.1%} of the parameters")


class StopSignal:
    """Remembers SIGTERM, so that all ranks can finish the step, save, and stop together."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _ending(alarms: Sequence[Alarm]) -> list[Alarm]:
    """The alarms that may end a run."""
    return [alarm for alarm in alarms if alarm.stops]
