"""``srum-ds ablate``: a list of recipes, several seeds of each, one table.

Every run is started as ``srum-ds train`` and measured as ``srum-ds eval`` would, each in processes of
its own. A run lives in a folder of its own under ``--runs``; whatever is finished there is not done
again, and a half-done run goes on where it stands. All runs are measured alike: on the prompts and with
the sampler that the first recipe's ``eval.*`` name.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console

from srum_ds.common.errors import STOPPED, UserError
from srum_ds.common.files import weights_sha256
from srum_ds.config import COMMAND_LINE, ROOT, Config, check_world, load_config
from srum_ds.evaluation.ablation_table import Outcome, build_table, screen_table, write_table
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
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.writer import METRICS
from srum_ds.rollouts.collect import SAMPLER_SETTINGS
from srum_ds.types import Prompt

BEST_OF = 8
# What a word must begin with to be a setting; anything else is a recipe.
SETTING = re.compile(r"^[a-z_]+(\.[a-z_]+)?=")
OWN = ("run.dir", "run.seed")


@dataclass(frozen=True)
class Job:
    """One run: a recipe with what was set on top of it, a seed, and where it lives."""

    recipe: str
    path: Path
    seed: int
    run_dir: Path
    overrides: tuple[str, ...]
    cfg: Config

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.recipe}, seed {self.seed}"


def split_words(arguments: Sequence[str]) -> tuple[list[tuple[str, Path, tuple[str, ...]]], list[str]]:
    """Recipes (name, file, its own settings) and the settings of all, from ``FILE... [key=value ...]``.

    ``FILE:key=value:key=value`` is a recipe with settings of its own: its row is named by them. Raises
    UserError without a recipe, for two rows of one name, and for settings that the command chooses itself.
    """
    shared = [word for word in arguments if SETTING.match(word)]
    recipes = []
    for word in arguments:
        if SETTING.match(word):
            continue
        file, *own = re.split(r":(?=[a-z_]+\.[a-z_]+=)", word)
        recipes.append((" ".join([Path(file).stem, *own]), Path(file), tuple(own)))
    if not recipes:
        raise UserError("which recipes? Give one or more files, such as launch/recipes/srum.yaml.")
    names = [name for name, _, _ in recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two recipes would both be called '{twice[0]}' in the table: rename one of the files.")
    for word in [*shared, *(setting for _, _, own in recipes for setting in own)]:
        if word.split("=")[0] in OWN:
            raise UserError(f"{word} {COMMAND_LINE}: each run has its own; give --seeds and --runs instead.")
    return recipes, shared


def plan(arguments: Sequence[str], seeds: Sequence[int], runs: Path, jobs: int = 1) -> list[Job]:
    """All runs, seed by seed, so that a table of every recipe stands as early as possible.

    Raises UserError for a recipe that cannot be loaded, does not fit the number of ranks, has another
    base model or other prompts than the first one, or whose folder holds a run with other settings.
    """
    recipes, shared = split_words(arguments)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give one or more different whole numbers.")
    if jobs > 1 and not any(word.startswith("deepspeed.ranks=") for word in shared):
        shared = [*shared, "deepspeed.ranks=1"]
    planned = []
    for seed in seeds:
        for name, path, own in recipes:
            run_dir = runs / (re.sub(r"[^\w.+-]+", "_", name) + f"-seed{seed}")
            words = (*shared, *own, f"run.dir={run_dir}", f"run.seed={seed}")
            cfg = load_config(path, words)
            check_world(cfg, cfg.deepspeed.ranks)
            try:
                run_folder.refuse_other_settings(run_dir, cfg)
            except UserError as error:
                raise UserError(f"{error} (For an ablation: another folder by --runs.)") from error
            planned.append(Job(name, path, seed, run_dir, words, cfg))
    first = planned[0].cfg
    for job in planned:
        for key in ("model.path", "data.shards"):
            section, name = key.split(".")
            mine, theirs = (getattr(getattr(cfg, section), name) for cfg in (job.cfg, first))
            if mine != theirs:
                raise UserError(
                    f"{job.path} has {key}={job.cfg.written(key)}, but {planned[0].path} has {first.written(key)}: "
                    f"one table, one base."
                )
    if len({job.run_dir for job in planned}) < len(planned):
        raise UserError("two recipes would share a run's folder: rename one of the files.")
    return planned


def evaluation_words(cfg: Config) -> list[str]:
    """The ``eval.*`` settings, fully resolved, by which every run of the table is measured."""
    words = [
        f"eval.split={cfg.eval.split}",
        f"eval.prompts={cfg.eval.prompts}",
        f"eval.seed={cfg.eval.seed}",
        f"eval.batch={cfg.eval.batch}",
        f"eval.benchmark={cfg.eval.benchmark}",
    ]
    for name, value in asdict(draw_settings(cfg).sampling).items():
        key = f"eval.{name}" if name in SAMPLER_SETTINGS else f"eval.sampler.{name}"
        words.append(f"{key}={_word(value)}")
    return words


def _word(value: object) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)


class Children:
    """The processes under way, to be asked to stop together."""

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
                os.killpg(child.pid, signal.SIGKILL)

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked > 0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Stops on SIGTERM and Ctrl-C."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
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
    planned = plan(arguments, seeds, runs, jobs)
    first = planned[0].cfg
    prompts = eval_prompts(first)
    benchmark_for(first, prompts)
    weights_sha256(Path(first.model.path))
    words = evaluation_words(first)
    command = f"srum-ds ablate {' '.join(arguments)} --seeds {' '.join(map(str, seeds))}"
    settings = _described(first, jobs)
    found: dict[Job, Outcome] = {}
    failed: dict[Job, str] = {}
    children = Children()

    def write(best_of_8: list[int] | None) -> dict[str, Any]:
        done = [found[job] for job in sorted(found, key=lambda j: (_place(planned, j.recipe), j.seed))]
        table = build_table(done, best_of_8, settings, [failed[job] for job in planned if job in failed])
        write_table(out, table, command)
        return table

    with children.on_signals(), ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(_run, job, words, prompts, children, jobs, console): job for job in planned}
        for future in as_completed(pending):
            job = pending[future]
            result = future.result()
            if isinstance(result, Outcome):
                found[job] = result
                mean, base = np.mean(result.trained), np.mean(result.base)
                console.print(
                    f"[{len(found)}/{len(planned)}] {job.name}: {mean:.3f} (base {base:.3f})",
                    markup=False,
                    highlight=False,
                )
                write(None)
            elif not children.stopped():
                failed[job] = result
                console.print(result, soft_wrap=True, markup=False, highlight=False)
        best = None if children.stopped() or not found else best_of(planned, words, prompts, runs, children, console)
    table = write(best)
    console.print(screen_table(table))
    console.print(f"written: {out}", highlight=False)
    if children.stopped():
        console.print("stopped, as asked; the same command goes on from there.")
        return STOPPED
    return 1 if failed else 0


def best_of(
    planned: Sequence[Job],
    words: Sequence[str],
    prompts: Sequence[Prompt],
    runs: Path,
    children: Children,
    console: Console,
) -> list[int] | None:
    """Outcome of each prompt when the base draws 8 images and its own judge picks one; None if stopped.

    Image 0 is the one that the base is measured by. Drawn images are kept beside the runs.
    """
    cfg = load_config(planned[0].path, [*planned[0].overrides, *words])
    settings = draw_settings(cfg)
    questions = eval_questions(cfg, prompts)
    benchmark = benchmark_for(cfg, prompts)
    processes = 1 if settings.device != "cpu" else len(os.sched_getaffinity(0))
    scores_KN, exact_KN = [], []
    for sample in range(BEST_OF):
        if children.stopped():
            return None
        console.print(f"the base's picture {sample + 1} of {BEST_OF}", highlight=False)
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


def _run(
    job: Job, words: Sequence[str], prompts: Sequence[Prompt], children: Children, jobs: int, console: Console
) -> Outcome | str:
    """Trains and measures one run, whatever of it is not done yet; a text says why there is no outcome."""
    if children.stopped():
        return "stopped"
    log = job.run_dir.with_name(job.run_dir.name + ".log")
    done = read_outcome(job, words, prompts)
    if done is not None:
        return done
    environment = dict(os.environ)
    # The same tree as here, wherever this was imported from.
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs * job.cfg.deepspeed.ranks))))
    if not run_folder.is_finished(job.run_dir):
        console.print(f"trains {job.name} (output: {log})", markup=False, highlight=False, soft_wrap=True)
        starts = "import sys; from srum_ds.commands.main import main; sys.exit(main())"
        command = [sys.executable, "-P", "-c", starts, "train", str(job.path), *job.overrides]
        status = children.run(command, environment, log)
        if not run_folder.is_finished(job.run_dir):
            return f"{job.name}: training ended with status {status}: {_last_line(log)} (all of it: {log})"
    command = [sys.executable, "-P", "-m", "srum_ds.evaluation.evaluate", str(job.run_dir), *words]
    if not torch.cuda.is_available():
        command += ["--processes", str(max(1, cores // jobs))]
    status = children.run(command, environment, log)
    done = read_outcome(job, words, prompts)
    if done is None:
        return f"{job.name}: evaluation ended with status {status}: {_last_line(log)} (all of it: {log})"
    return done


def read_outcome(job: Job, words: Sequence[str], prompts: Sequence[Prompt]) -> Outcome | None:
    """What an evaluation by ``words`` left in the run's folder; None where there is none of these weights."""
    path = job.run_dir / OUTCOMES
    if not run_folder.is_finished(job.run_dir) or not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        return None
    cfg = load_config(job.run_dir / run_folder.CONFIG, words)
    if stored.get("key") != outcomes_key(cfg, job.run_dir, prompts):
        return None
    lines = [json.loads(line) for line in (job.run_dir / METRICS).read_text().splitlines()]
    r = job.cfg.rollout
    return Outcome(
        recipe=job.recipe,
        seed=job.seed,
        base=stored["base"],
        trained=stored["trained"],
        images=len(lines) * r.prompts_per_step * r.images_per_prompt,
        seconds=sum(value for line in lines for key, value in line.items() if key.startswith("time_")),
        stopped_by_watch=(job.run_dir / run_folder.STOPPED_BY_WATCH).is_file(),
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


def _place(planned: Sequence[Job], recipe: str) -> int:
    return [job.recipe for job in planned].index(recipe)


def _last_line(log: Path) -> str:
    """The last line that says what is wrong, else the last one."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("srum-ds")]
    return (told or lines or ["no output"])[-1]
