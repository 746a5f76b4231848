"""``Trainer``: a run from Python, the same as `srum-ds train`'s, with functions of this process in it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from srum_ds.api.launched import run_launched
from srum_ds.api.prompts import Given, given_prompts
from srum_ds.api.settings import Overrides, Settings, resolve
from srum_ds.common import foreign, ranks
from srum_ds.common.errors import STOPPED, STOPPED_BY_WATCH, UserError
from srum_ds.common.given import give, is_given
from srum_ds.common.phases import PHASES
from srum_ds.common.stopping import STOP_SIGNALS
from srum_ds.config import Config, check_world
from srum_ds.engine import leave_at_exit, start_distributed
from srum_ds.job import open_job
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.records import METRICS
from srum_ds.monitoring.usage import read_metrics
from srum_ds.monitoring.watchdog import watched
from srum_ds.train import take_steps

Reward = Callable[[Any, Any], Any]
"""(images [N, 3, H, W] in [0, 1], their N prompts) -> N scores in [-1, 1], NaN for one it cannot give."""
Callback = Callable[[Mapping[str, Any]], Any]
"""A step's record, as a line of ``metrics.jsonl`` has it -> ``True`` to have the run stop after that step."""
_STATUS: dict[int, Literal["finished", "stopped", "stopped_by_watch"]] = {
    0: "finished",
    STOPPED: "stopped",
    STOPPED_BY_WATCH: "stopped_by_watch",
}


@dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    run_dir: its folder. status: ``finished``; ``stopped`` (by Ctrl-C, a signal or a callback: saved, the same call goes
    on); ``stopped_by_watch`` (docs/watch.md). metrics: every line of ``metrics.jsonl``, from the first step on. export:
    the trained model's folder, None while the run has not ended.
    """

    run_dir: Path
    status: Literal["finished", "stopped", "stopped_by_watch"]
    metrics: list[dict[str, Any]]
    export: Path | None

    @property
    def steps(self) -> int:
        """Steps that the run has taken."""
        return len(self.metrics)

    def __repr__(self) -> str:
        return f"TrainResult({str(self.run_dir)!r}, {self.status}, {self.steps} steps, export={self.export!s})"


class Trainer:
    """A training run, described; ``train()`` takes its steps, from where its folder stands.

    It is the run that `srum-ds train` would make of the same settings with ``deepspeed.ranks=1``, bit for bit, in this
    process, and either goes on with the other's folder.

    Args:
        config: a recipe by name or path (``"tiny"``, ``"my.yaml"``), its content as a dict (sections, or full keys such
            as ``"train.steps"``; ``base`` names a recipe below it), or a ``Config``.
        overrides: settings on top: a dict, or texts as on the command line (``["train.steps=3"]``).
        prompts: texts, ``srum_ds.types.Prompt`` objects, or what ``data.prompts`` takes (a file, a URL). Texts and
            objects are written into the run's folder; a run does not go on with others. Without: ``data.*`` says it.
        reward: a function (images float32 [N, 3, H, W] in [0, 1], their N ``Prompt``) -> N scores in [-1, 1], NaN for
            one it cannot give; or its name, ``file.py:name``. It has all of every score: the model's own judge is not
            asked, and nothing is judged by region. It runs in a thread, without gradients.
        callbacks: called after each step, on rank 0, with the step's record (a dict of its own, as a line of
            ``metrics.jsonl``); the run saves and stops after a step at which one returns ``True``. They change nothing
            of the run otherwise.
        ranks: 1 trains in this process. More start the DeepSpeed launcher, whose ranks are other processes: ``reward``
            must then be importable (in a module or a file). A program that a launcher has started is one of its ranks,
            whatever this says.

    Raises UserError for settings, prompts and functions that cannot be, before anything is trained.

    ``config``: the resolved ``Config``. A reward that only this process has is named ``python:NAME`` there, and the run
    is bound to a hash of its source in ``inputs.json``, as it is to files of code: what it refers to is not hashed.
    """

    def __init__(
        self,
        config: Settings = "tiny",
        overrides: Overrides = (),
        *,
        prompts: Given | None = None,
        reward: Reward | str | None = None,
        callbacks: Sequence[Callback] = (),
        ranks: int = 1,
    ) -> None:
        if ranks < 1:
            raise UserError(f"ranks={ranks}: give at least 1")
        for callback in callbacks:
            if not callable(callback):
                raise UserError(f"callbacks: {callback!r} cannot be called; expected functions of a step's record")
        self._callbacks = tuple(callbacks)
        self._prompts, settings = given_prompts(prompts)
        cfg = resolve(config, overrides)
        if self._prompts is not None:
            settings = self._prompts.settings(Path(cfg.run.dir))
        self._reward = reward
        launched = "RANK" not in os.environ and ranks > 1
        if reward is not None:
            settings = {**settings, **_settings_of(reward)}
            if launched and is_given(str(settings["judge.external"])):
                raise UserError(
                    f"reward={settings['judge.external'].partition(':')[2]} is a function that only this process has, "
                    f"and ranks={ranks} start others: put it into a file and give reward='file.py:name', or ranks=1"
                )
        self._launched = launched
        self.config: Config = resolve(cfg, {**settings, "deepspeed.ranks": ranks})
        check_world(self.config, ranks if "RANK" not in os.environ else _world_size())

    @property
    def run_dir(self) -> Path:
        """The run's folder, ``run.dir``."""
        return Path(self.config.run.dir)

    def train(self) -> TrainResult:
        """Trains from where the run's folder stands to ``train.steps``, and exports.

        Ctrl-C (a notebook's interrupt), SIGTERM and a callback finish the step, save, and return ``stopped``; the same
        call goes on from there. Ctrl-C before the first step, or a second time, raises KeyboardInterrupt.

        Raises UserError as the command would end with one line, and Crash where ranks of a launcher fail; whatever else
        goes wrong comes out as it is. The process can train again after either.
        """
        if callable(self._reward):
            # Another one may have been given under the same name since.
            give(self._reward)
        if self._launched:
            self._write_prompts()
            status = run_launched(self.config, self._tell)
        else:
            status = self._train_here()
        export = self.run_dir / run_folder.EXPORT
        done = run_folder.is_finished(self.run_dir)
        metrics = read_metrics(self.run_dir / METRICS)
        return TrainResult(self.run_dir, _STATUS[status], list(metrics), export if done else None)

    def _train_here(self) -> int:
        run_dir, cfg = self.run_dir, self.config
        rank = int(os.environ.get("RANK", "0"))
        launched = "RANK" in os.environ
        with ExitStack() as held:
            held.enter_context(_signals_kept())
            held.enter_context(_as_the_command(launched))
            if launched:
                start_distributed()
            if rank == 0:
                held.enter_context(run_folder.locked(run_dir))
            ranks.run_on_all_ranks(self._write_prompts, rank_zero=True)
            if rank == 0:
                for line in run_folder.prepare(run_dir, cfg):
                    Console().print(line, soft_wrap=True, markup=False)
            if run_folder.is_finished(run_dir, cfg):
                return STOPPED_BY_WATCH if (run_dir / run_folder.STOPPED_BY_WATCH).exists() else 0
            # Alone it waits for nobody, and whoever looks at a notebook sees where it hangs.
            dog = held.enter_context(watched(run_dir, rank, cfg.limits)) if launched else None
            if dog is None:
                PHASES.begin()
            job = open_job(cfg, run_dir)
            held.callback(job.monitor.close)
            job.stop_signal.interrupts = not launched
            job.on_step = self._tell if self._callbacks else None
            leave_at_exit()
            status = take_steps(job)
            if dog is not None:
                dog.stop(status)
            return status

    def _write_prompts(self) -> None:
        if self._prompts is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._prompts.write(self.run_dir, self.config.data.train_share)

    def _tell(self, record: Mapping[str, Any]) -> bool:
        """Calls the callbacks with copies of a record; whether any of them asks to stop."""
        asked = False
        for number, callback in enumerate(self._callbacks):
            name = f"callbacks[{number}] ({getattr(callback, '__name__', type(callback).__name__)})"
            asked |= foreign.run(name, partial(callback, dict(record))) is True
        return asked


def _settings_of(reward: Reward | str) -> dict[str, Any]:
    """The settings of a judge that has all of every score."""
    name = reward if isinstance(reward, str) else give(reward)
    return {"judge.external": name, "judge.external_weight": 1.0}


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts the handlers of signals back as they were, which a run takes over."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _as_the_command(launched: bool) -> Iterator[None]:
    """As many threads of torch as the command's rank has, all cores of this process, and the precision put back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not launched:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
