"""``srum-ds ablate``: trains and measures a list of recipes with several seeds of each, and writes one table.

Every run is started as ``srum-ds train`` and measured as ``srum-ds eval`` would, each in processes of
its own. A run lives in a folder of its own under ``--runs``; whatever is finished there is not done
again, and a half-done run goes on where it stands. All runs are measured alike: on the prompts, with the
sampler and by the benchmark that the first recipe's ``eval.*`` name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from srum_ds.common.errors import STOPPED, UserError
from srum_ds.common.files import weights_sha256
from srum_ds.common.stopping import handle_stops
from srum_ds.common.supervise import tree_below
from srum_ds.common.texts import parse_json
from srum_ds.config import ROOT, Config, load_config
from srum_ds.evaluation.ablation_plan import PlannedRun, evaluation_words, plan_runs
from srum_ds.evaluation.ablation_table import RunOutcome, build_table, screen_table, write_table
from srum_ds.evaluation.draw import draw_images
from srum_ds.evaluation.evaluate import (
    CACHE,
    OUTCOMES,
    benchmark_for,
    check_images,
    draw_settings,
    eval_prompts,
    eval_questions,
    outcomes_key,
    shown_sampling,
)
from srum_ds.evaluation.processes import default_processes
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.records import METRICS
from srum_ds.types import Prompt

BEST_OF = 8


class ChildProcesses:
    """The processes under way, which are asked to stop together."""

    def __init__(self) -> None:
        self._asked = 0
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], environment: dict[str, str], log: Path) -> int:
        """Runs a command to its end, its output appended to ``log``; returns its exit status."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            with self._lock:
                if self._asked:
                    return STOPPED
                # A session of its own: Ctrl-C reaches it through `stop` alone.
                child = subprocess.Popen(
                    command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._running.append(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._running.remove(child)

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """The first time: training runs save and stop. The second time everything ends."""
        self._asked += 1
        for child in list(self._running):
            if self._asked == 1:
                child.send_signal(signal.SIGTERM)
            else:
                # Ranks have a session of their own; all of the tree is meant.
                for process in tree_below(child.pid):
                    with suppress(psutil.Error):
                        process.kill()

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked > 0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Stops on each of ``STOP_SIGNALS``."""
        before = handle_stops(self.stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ablate(
    arguments: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    out: Path = Path("benchmarks/ablation"),
    runs: Path = Path("runs/ablation"),
    jobs: int = 1,
    console: Console | None = None,
) -> int:
    """Trains and measures every recipe with every seed and writes the table into ``out``.

    arguments: ``FILE[:key=value...]... [key=value ...]``. The table is written anew after each run. Returns
    0; 1 when a run failed (the others are done all the same); 75 when it was asked to stop. Raises
    UserError before anything runs for whatever can be known by then.
    """
    console = console or Console()
    planned = plan_runs(arguments, seeds, runs, jobs)
    first = planned[0].cfg
    prompts = eval_prompts(first)
    benchmark_for(first, prompts)
    weights_sha256(Path(first.model.path))
    words = evaluation_words(first)
    command = f"srum-ds ablate {' '.join(arguments)} --seeds {' '.join(map(str, seeds))}"
    settings = _described(first, jobs)
    # By the runs' folders, of which there is one for each.
    found: dict[Path, RunOutcome] = {}
    failed: dict[Path, str] = {}
    children = ChildProcesses()

    def write(best_of_8: Sequence[int] | None) -> dict[str, Any]:
        finished = [run for run in planned if run.run_dir in found]
        finished.sort(key=lambda run: (_place(planned, run.recipe), run.seed))
        done = [found[run.run_dir] for run in finished]
        table = build_table(
            done, best_of_8, settings, [failed[run.run_dir] for run in planned if run.run_dir in failed]
        )
        write_table(out, table, command)
        return table

    with children.on_signals(), ThreadPoolExecutor(jobs) as pool:
        pending = {
            pool.submit(_train_and_measure, run, words, prompts, children, jobs, console): run for run in planned
        }
        for future in as_completed(pending):
            run = pending[future]
            result = future.result()
            if isinstance(result, RunOutcome):
                found[run.run_dir] = result
                mean, base = np.mean(result.trained), np.mean(result.base)
                console.print(
                    f"[{len(found)}/{len(planned)}] {run.name}: {mean:.3f} (base {base:.3f})",
                    markup=False,
                    highlight=False,
                )
                write(None)
            elif not children.stopped():
                failed[run.run_dir] = result
                console.print(result, soft_wrap=True, markup=False, highlight=False)
        best = None if children.stopped() or not found else best_of(planned, words, prompts, runs, children, console)
    table = write(best)
    console.print(screen_table(table))
    console.print(f"written: {out}", soft_wrap=True, highlight=False, markup=False)
    if children.stopped():
        console.print("stopped, as asked; the same command goes on from there.")
        return STOPPED
    return 1 if failed else 0


def best_of(
    planned: Sequence[PlannedRun],
    words: Sequence[str],
    prompts: Sequence[Prompt],
    runs: Path,
    children: ChildProcesses,
    console: Console,
) -> list[int] | None:
    """1 where a prompt's image is exact, else 0, when the base draws 8 and its own judge picks one; None if stopped.

    Image 0 is the one that the base is measured by. Drawn images are kept beside the runs.
    """
    cfg = load_config(planned[0].path, [*planned[0].overrides, *words])
    settings = draw_settings(cfg)
    questions = eval_questions(cfg, prompts)
    benchmark = benchmark_for(cfg, prompts)
    processes = default_processes(settings.device)
    scores_KN, exact_KN = [], []
    for sample in range(BEST_OF):
        if children.stopped():
            return None
        console.print(f"the base's image {sample + 1} of {BEST_OF}", highlight=False)
        try:
            drawn = draw_images(
                [Path(cfg.model.path)],
                prompts,
                questions,
                replace(settings, sample=sample),
                processes,
                cache_dir=runs.resolve() / CACHE,
                cacheable=(True,),
            )[0]
        except UserError:
            if children.stopped():
                # Ctrl-C ends the drawing processes themselves.
                return None
            raise
        # A failed answer is never picked before one that could be read.
        scores_KN.append(torch.nan_to_num(drawn.scores_N, nan=-torch.inf))
        outcomes = check_images(benchmark, prompts, drawn.images_NCHW, settings.batch)
        exact_KN.append(torch.tensor([outcome.exact for outcome in outcomes]))
    picked_N = torch.stack(scores_KN).argmax(0)
    return [int(x) for x in torch.stack(exact_KN).gather(0, picked_N[None])[0]]


def _train_and_measure(
    run: PlannedRun,
    words: Sequence[str],
    prompts: Sequence[Prompt],
    children: ChildProcesses,
    jobs: int,
    console: Console,
) -> RunOutcome | str:
    """Trains and measures one run, whatever of it is not done yet; a text says why there is no outcome."""
    if children.stopped():
        return "stopped"
    log = run.run_dir.with_name(run.run_dir.name + ".log")
    done = read_outcome(run, words, prompts)
    if done is not None:
        return done
    environment = dict(os.environ)
    # The same tree as here, wherever this was imported from.
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs * run.cfg.deepspeed.ranks))))
    if not run_folder.is_finished(run.run_dir, run.cfg):
        console.print(f"trains {run.name} (output: {log})", markup=False, highlight=False, soft_wrap=True)
        starts = "import sys; from srum_ds.commands.main import main; sys.exit(main())"
        command = [sys.executable, "-P", "-c", starts, "train", str(run.path), *run.overrides]
        status = children.run(command, environment, log)
        if not run_folder.is_finished(run.run_dir, run.cfg):
            return f"{run.name}: training ended with status {status}: {_last_line(log)} (all of it: {log})"
    command = [sys.executable, "-P", "-m", "srum_ds.evaluation.evaluate", str(run.run_dir), *words]
    if not torch.cuda.is_available():
        command += ["--processes", str(max(1, cores // jobs))]
    status = children.run(command, environment, log)
    done = read_outcome(run, words, prompts)
    if done is None:
        return f"{run.name}: evaluation ended with status {status}: {_last_line(log)} (all of it: {log})"
    return done


def read_outcome(run: PlannedRun, words: Sequence[str], prompts: Sequence[Prompt]) -> RunOutcome | None:
    """What an evaluation by ``words`` left in the run's folder; None where there is none of these weights."""
    path = run.run_dir / OUTCOMES
    if not run_folder.is_finished(run.run_dir, run.cfg) or not path.is_file():
        return None
    try:
        stored = parse_json(path.read_text())
    except ValueError:
        return None
    cfg = load_config(run.run_dir / run_folder.CONFIG, words)
    if stored.get("key") != outcomes_key(cfg, run.run_dir, prompts):
        return None
    lines = [parse_json(line) for line in (run.run_dir / METRICS).read_text().splitlines()]
    r = run.cfg.rollout
    return RunOutcome(
        recipe=run.recipe,
        seed=run.seed,
        base=stored["base"],
        trained=stored["trained"],
        images=len(lines) * r.prompts_per_step * r.images_per_prompt,
        seconds=sum(value for line in lines for key, value in line.items() if key.startswith("time_")),
        stopped_by_watch=(run.run_dir / run_folder.STOPPED_BY_WATCH).is_file(),
    )


def _described(cfg: Config, jobs: int) -> dict[str, object]:
    sampling = shown_sampling(draw_settings(cfg))
    return {
        "split": cfg.eval.split,
        "prompts": cfg.eval.prompts,
        "eval_seed": cfg.eval.seed,
        **{name: sampling[name] for name in ("text_scale", "num_timesteps") if name in sampling},
        "base_model": cfg.written("model.path"),
        "base_sha256": weights_sha256(Path(cfg.model.path)),
        "ranks": cfg.deepspeed.ranks,
        "runs_at_once": jobs,
    }


def _place(planned: Sequence[PlannedRun], recipe: str) -> int:
    return [run.recipe for run in planned].index(recipe)


def _last_line(log: Path) -> str:
    """The last line that says what is wrong, else the last one."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("srum-ds")]
    return (told or lines or ["no output"])[-1]
