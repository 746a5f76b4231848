"""Everything around the loop of one run: opening model, engine and judge, showing, saving, exporting, stopping.

``train.train`` opens a ``Job`` and asks it after every step; nothing here is part of the method.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from srum_ds.common import ranks
from srum_ds.common.environment import write_environment
from srum_ds.common.errors import STOPPED, STOPPED_BY_WATCH, UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.phases import PHASES
from srum_ds.common.stopping import StopSignal
from srum_ds.config import Config
from srum_ds.engine import Engine, finite
from srum_ds.engine.checkpoint_files import committed_steps, step_folder
from srum_ds.evaluation.export_extras import write_export_extras
from srum_ds.evaluation.held_out import HeldOut
from srum_ds.evaluation.lookout import Lookout, open_monitor, taken_up
from srum_ds.evaluation.run_report import write_run_report
from srum_ds.evaluation.run_words import end_block, results_told, settings_told, start_block
from srum_ds.models.fused import chosen
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.health import Alarm, Watch
from srum_ds.monitoring.judge_failures import FailureLog, refuse_broken_judge
from srum_ds.monitoring.metrics import StillLearns, rate_of
from srum_ds.monitoring.records import METRICS, read_metrics
from srum_ds.monitoring.run_binding import BINDING, binding_of, refuse_foreign
from srum_ds.monitoring.run_fork import take_fork
from srum_ds.monitoring.usage import usage_table
from srum_ds.monitoring.watchdog import CRASH
from srum_ds.monitoring.writer import Monitor
from srum_ds.objectives import Objective, get_objective
from srum_ds.opening import open_model
from srum_ds.planning.accounting import Accounting, open_accounting
from srum_ds.planning.policies import holds_to_reference, policies_of
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.host import JudgeHost, choose_judge
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.choose import check_prompts, choose_source, open_data
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
    lookout: Lookout
    failures: FailureLog
    stop_signal: StopSignal
    start: int
    # The step whose weights the watch went back to.
    kept: int | None = None
    folder: tuple[int, int] | None = None
    accounting: Accounting | None = None
    binding: dict[str, str] = field(default_factory=dict)
    learns: StillLearns = field(default_factory=StillLearns)
    # Called after each step on rank 0 with the step's record; whether the run shall stop there. See srum_ds.api.
    on_step: Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def holds_to_reference(self) -> bool:
        """Whether the untrained model's predictions are needed."""
        return holds_to_reference(self.cfg, self.objective)

    def is_last(self, step: int) -> bool:
        """Whether the run ends with this step."""
        return step + 1 == self.cfg.train.steps

    def begin(self) -> None:
        """Looks at the held-out prompts and shows the fixed ones before the first step; all ranks call it."""
        self.lookout.before_step(self.start)
        if self.start == 0 and self.cfg.log.tensorboard:
            self._show_samples(0)
        self.monitor.activity("")
        self.monitor.pace.begin()

    def after_step(
        self, step: int, metrics: dict[str, Any], asked_to_stop: bool, batches: Sequence[Judged]
    ) -> StopReason | None:
        """Records a step, shows and saves what is due, and says why the run ends here, if it does; all ranks call it.

        step: from 0, as what a step draws is numbered. metrics: the step's, equal on all ranks. asked_to_stop: whether
        any rank was. Raises UserError, on all ranks, where the judge cannot be understood, nothing is learnt any more,
        or the run's folder is gone.
        """
        cfg, done = self.cfg, step + 1
        self.engine.finish_save(wait=False)
        metrics |= {} if self.accounting is None else self.accounting.rates(metrics)
        better = self.lookout.after_step(done, metrics)
        ratios, alarms = self.watch.see(metrics)
        timing = self.monitor.pace.told(rate_of(self.engine), metrics["tokens"], metrics)
        self.monitor.step(metrics | ratios | timing)
        self.failures.write(done, batches)
        on_step = self.on_step
        if on_step is not None:
            record = metrics | ratios | timing
            asked_to_stop |= ranks.run_on_all_ranks(lambda: on_step(record), rank_zero=True)[0]
        if metrics["tokens"] == 0:
            left_out = f"{metrics['masked']} of {metrics['pictures']} pictures have no score"
            self.monitor.message(f"step {done}: NOTHING IS LEARNT: no token counts in the loss ({left_out})")
        refuse_broken_judge(cfg.judge.max_failed_share, self.judging.cure, metrics, batches)
        self.learns.check(done, metrics["grad_norm"])
        for alarm in alarms:
            self.monitor.message(alarm.text)
        reason = self._reason_to_stop(step, asked_to_stop, alarms)
        shows = cfg.log.tensorboard and (self.is_last(step) or done % cfg.log.image_every == 0)
        saves = better or reason in (StopReason.FINISHED, StopReason.ASKED) or self._checkpoint_due(step)
        known = self.folder
        if known is not None and (shows or saves or reason is not None):
            ranks.run_on_all_ranks(lambda: run_folder.refuse_another(self.run_dir, known), rank_zero=True)
        if shows:
            self._show_samples(done)
        if saves:
            PHASES.enter("save")
            self.monitor.activity("saving a checkpoint")
            self._save(done, cfg.train.save_in_background)
        if better:
            self.lookout.write_best()
        if reason is StopReason.WATCH:
            self._go_back(min(_ending(alarms), key=lambda alarm: alarm.healthy_until), step)
        self.monitor.activity("")
        return reason

    def _show_samples(self, done: int) -> None:
        PHASES.enter("show")
        self.monitor.activity("drawing the samples")
        show_fixed_prompts(self.collector, self.engine, self.monitor, done)

    def checkpoint_before(self, step: int) -> tuple[str, str]:
        """A checkpoint of the weights that a step began with, for its replay; all ranks call it.

        Returns its path relative to the run's folder, or that of the newest one where these weights cannot be saved
        (empty: there is none), and a sentence on why.
        """
        folder = self.run_dir / run_folder.CHECKPOINTS
        problem = ""
        try:
            self.engine.finish_save()
            there = ranks.run_on_all_ranks(lambda: committed_steps(folder), rank_zero=True)[0]
            if step not in there:
                self._save(step, background=False)
                there = [*there, step]
        except UserError as error:
            problem = f" The weights before it could not be saved: {error}"
            there = ranks.run_on_all_ranks(lambda: committed_steps(folder), rank_zero=True)[0]
        if not there:
            return "", problem
        return str(step_folder(folder, max(there)).relative_to(self.run_dir)), problem

    @property
    def crash_folder(self) -> Path:
        """Where steps that went wrong are kept, beside the stacks of ranks."""
        return self.run_dir / CRASH

    def _save(self, steps: int, background: bool) -> None:
        """Saves a checkpoint of the state after so many steps."""
        self.source.settle()
        self.monitor.sync()
        extra = {"watch": self.watch.state(), BINDING: self.binding}
        self.engine.save(
            self.run_dir / run_folder.CHECKPOINTS,
            steps,
            extra,
            self.cfg.train.keep_checkpoints,
            background,
            protected=self.lookout.protected,
        )

    def flops(self, batches: Sequence[Judged]) -> dict[str, float]:
        """FLOPs of this rank's step by phase; none where the model's design does not say what its work costs."""
        return {} if self.accounting is None else self.accounting.flops(batches)

    def stop(self, reason: StopReason, step: int) -> int:
        """Ends the run after its ``step``-th step, exporting what it was made for; returns its exit status."""
        PHASES.enter("save" if reason is StopReason.ASKED else "export")
        self.engine.finish_save()
        if reason is StopReason.ASKED:
            self.monitor.message(f"stopped after step {step}, as asked; the same command goes on from there.")
            self._report()
        else:
            self.monitor.activity("exporting the model", say=True)
            self.export(step if self.kept is None else self.kept)
            self.monitor.activity("")
            self._report()
            records = read_metrics(self.run_dir / METRICS) if self.engine.rank == 0 else []
            self.monitor.show(usage_table(records))
            if records:
                looks = self.lookout.looks
                self.monitor.message(end_block(self.cfg, self.run_dir, records, looks, self.monitor.pace.elapsed))
                self.monitor.result(settings_told(self.cfg), results_told(records, looks))
        self.monitor.close()
        return {StopReason.FINISHED: 0, StopReason.ASKED: STOPPED, StopReason.WATCH: STOPPED_BY_WATCH}[reason]

    def _report(self) -> None:
        """Writes the run's report on rank 0. One that cannot be written is told: it spoils no run."""
        if self.engine.rank == 0:
            try:
                self.monitor.message(f"report: {write_run_report(self.run_dir, ending=True)}")
            except (UserError, OSError) as error:
                self.monitor.message(f"no report was written: {error}")

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
        kept = self.kept = found[0] if found is not None else step + 1
        self.monitor.message(
            f"stopped by the watch after step {step + 1}: {alarm.text}. Kept: the weights after step {kept}."
        )
        if self.engine.rank == 0:
            said = {"step": step + 1, "kept_step": kept, "signal": alarm.signal, "text": alarm.text}
            write_atomic(self.run_dir / run_folder.STOPPED_BY_WATCH, json.dumps(said, indent=2) + "\n")

    def export(self, step: int) -> None:
        """Writes the trained model as a checkpoint folder of its design, one gathered tensor at a time.

        step: how many its weights have taken, for the card beside them. Raises UserError, on all ranks, where the
        folder cannot be written or a weight is not finite; there is no export then.
        """
        weights = "ema" if self.cfg.eval.weights == "ema" else "live"
        partial = self.run_dir / (run_folder.EXPORT + ".partial")
        names = [name for name, p in self.model.module.named_parameters() if p.requires_grad]
        tensors = _counted(self.monitor, self.engine.consolidate(weights), len(names))
        problem = ""
        if self.engine.rank == 0:
            try:
                self.model.export(partial, names, finite(tensors), torch.float32)
                write_export_extras(partial, self.cfg, step, weights, self.run_dir)
                run_folder.publish_export(partial, self.run_dir)
            except (UserError, OSError) as error:
                problem = str(error)
                shutil.rmtree(partial, ignore_errors=True)
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
    monitor = open_monitor(cfg, run_dir)
    try:
        return _open_job(cfg, run_dir, monitor)
    except BaseException:
        # Its threads and files are not left to a program that goes on; why it ends is what matters.
        with suppress(OSError, UserError):
            monitor.close()
        raise


def _open_job(cfg: Config, run_dir: Path, monitor: Monitor) -> Job:
    data = open_data(cfg)
    judging = JudgePipeline(cfg, run_dir)
    if cfg.train.mode != "offline":
        judging.ready()
    model, engine = open_model(cfg)
    if isinstance(data, PromptReader):
        check_prompts(model, [data])
    host = choose_judge(cfg, model, engine)
    objective = get_objective(cfg.objective.name)
    for policy in policies_of(cfg, objective):
        engine.add_weights(policy, fixed=policy == "reference")
    found = engine.load(run_dir / run_folder.CHECKPOINTS)
    fork = take_fork(engine, run_dir, begins=found is None)
    start, kept = found or (0, {})
    ranks.run_on_all_ranks(lambda: refuse_foreign(run_dir, cfg, start, kept), rank_zero=True)
    watch = Watch(cfg.watch, kept.get("watch"))
    binding = ranks.run_on_all_ranks(lambda: binding_of(run_dir, cfg), rank_zero=True)[0]
    collector = Collector(cfg, model, host, judging, sampling_of(cfg))
    held_out = HeldOut(collector, engine, binding)
    looks = ranks.run_on_all_ranks(lambda: taken_up(monitor, run_dir, start), rank_zero=True)[0]
    accounting, peak, peak_told = open_accounting(cfg, judging, collector.sampling, engine)
    if engine.rank == 0:
        write_environment(
            run_dir,
            engine.world_size,
            sharded_share=engine.sharded_share(),
            judge=judging.described(),
            kernels=chosen().described(),
            peak_flops=peak,
            **({} if fork is None else {"forked_from": asdict(fork)}),
        )
    monitor.begin(settings_told(cfg))
    kernels = "; ".join(chosen().lines())
    monitor.message(start_block(cfg, engine, model, host.judge is model, start, held_out, kernels))
    if fork is not None and start == 0:
        monitor.message(fork.told())
    for line in (peak_told, held_out.missing):
        if line:
            monitor.message(line)
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
        lookout=Lookout(held_out, monitor, run_dir, looks),
        failures=failures,
        stop_signal=stop_signal,
        start=start,
        folder=ranks.run_on_all_ranks(lambda: run_folder.identity(run_dir), rank_zero=True)[0],
        accounting=accounting,
        binding=binding,
    )


def _counted(monitor: Monitor, tensors: Iterator[Any], count: int) -> Iterator[Any]:
    """The same, with the status line told how many of them have passed."""
    passed = 0
    # Not by enumerate, which holds a pair until it has the next one.
    for pair in tensors:
        monitor.activity("exporting the model", passed / max(1, count))
        yield pair
        del pair
        passed += 1


def _ending(alarms: Sequence[Alarm]) -> list[Alarm]:
    """The alarms that may end a run."""
    return [alarm for alarm in alarms if alarm.stops]
