"""``srum-ds eval``: a run's trained model against the one it started from, on held-out prompts.

The command and ``launch/eval.sh`` call ``evaluate_run``; ablations run this module in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from srum_ds.common.errors import WRONG_INPUT, UserError
from srum_ds.common.files import replacing, weights_sha256, write_atomic
from srum_ds.config import COMMAND_LINE, Config, load_config, split_arguments
from srum_ds.config.schema import EvalConfig
from srum_ds.evaluation.benchmarks import Checks, Outcome, load_checks
from srum_ds.evaluation.card_figures import refresh_card
from srum_ds.evaluation.draw import DrawSettings, EvalImages, cache_key, draw_images
from srum_ds.evaluation.model_card import GRID
from srum_ds.evaluation.processes import default_processes
from srum_ds.evaluation.report import MARKDOWN, RESULT, Measured, build_result, result_table, verdict, write_result
from srum_ds.evaluation.run_report import write_run_report
from srum_ds.models import AUTO, family_of
from srum_ds.models.fused import start_kernels
from srum_ds.monitoring.images import Shown, beside, comparison
from srum_ds.monitoring.run_folder import CONFIG, EXPORT, load_run
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import readout_of
from srum_ds.rollouts.collect import sampling_of
from srum_ds.types import Prompt

CACHE = ".eval_cache"
OUTCOMES = "outcomes.json"
GRID_PROMPTS_PER_CATEGORY = 2
DEFAULT_BENCHMARK = EvalConfig().benchmark
# Settings of samplers that results leave out: they matter to edits, or hardly anyone changes them.
HIDDEN_SAMPLING = ("image_scale", "renorm", "renorm_min", "renorm_scope")


def evaluation_request(arguments: Sequence[str], recipe: Path | None) -> tuple[Path, list[str]]:
    """Which run `srum-ds eval` means, and the evaluation settings that were given with it.

    ``arguments`` are ``[RUN] [key=value ...]``. With ``recipe`` they are the words a training run was
    started with, and the run is that recipe's ``run.dir``; without, the run is RUN (or the default
    recipe's) and only ``eval.*`` may be set. Returns the run's folder and the ``eval.*`` overrides.

    Raises UserError for other settings, and for a folder that holds no run.
    """
    words = list(arguments)
    named = words.pop(0) if words and "=" not in words[0] else None
    default, overrides = split_arguments(words)
    if recipe is not None and named is not None:
        raise UserError(f"'{named}' names a run and --recipe names another: give one of them.")
    chosen = [word for word in overrides if word.split("=")[0].strip().split(".")[0] == "eval"]
    fixed = [word for word in overrides if word not in chosen]
    if recipe is None and fixed:
        raise UserError(
            f"{fixed[0]} {COMMAND_LINE}: a run that is there keeps its settings, and only eval.* can be "
            "chosen anew. (With --recipe, give the words the training was started with.)"
        )
    run = Path(load_config(recipe or default, overrides).run.dir if named is None else named)
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} holds no run (no {CONFIG}): train one first, with `srum-ds train`.")
    load_run(run, chosen)
    return run, chosen


def evaluate_run(
    run_dir: Path,
    overrides: Sequence[str] = (),
    processes: int | None = None,
    cache: bool = True,
    console: Console | None = None,
    model: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Draws with the base model and with ``run_dir/export``, checks both, writes and prints the result.

    Reads ``run_dir/config.yaml`` with ``overrides`` (``eval.key=value`` only). Writes
    ``result.json``, ``eval.md``, ``samples/eval_grid.png`` and ``outcomes.json`` (0 or 1 for each
    prompt) into the run's folder and its report anew; the base's images are kept in ``.eval_cache`` beside it.
    model: a model folder instead of ``run_dir/export``. out: a folder for what is written instead of the run's, whose
    report then stays as it is.
    processes: default one per core, or one per GPU. Returns the content of ``result.json``. Raises
    UserError where the run is not finished, its configuration, shards or models are broken, or its
    prompts cannot be scored by ``eval.benchmark``.
    """
    started = time.monotonic()
    console = console or Console()
    cfg = _run_config(run_dir, overrides)
    base_folder, trained_folder = Path(cfg.model.path), model or run_dir / EXPORT
    results = out or run_dir
    if not trained_folder.is_dir():
        raise UserError(f"{trained_folder}: missing; the run has not finished: repeat its `srum-ds train`")
    prompts = eval_prompts(cfg)
    left_out = categories_left_out(cfg, prompts)
    benchmark = benchmark_for(cfg, prompts)
    questions = eval_questions(cfg, prompts)
    settings = draw_settings(cfg)
    start_kernels(cfg.kernels.fused, torch.device(settings.device))
    if processes is None:
        processes = default_processes(settings.device)
    with console.status("") as status:
        base, trained = draw_images(
            [base_folder, trained_folder],
            prompts,
            questions,
            settings,
            processes,
            cache_dir=run_dir.resolve().parent / CACHE if cache else None,
            cacheable=(True, False),
            on_batch=lambda done, total: status.update(f"drawing: {done} of {total} batches"),
        )
    outcomes = [check_images(benchmark, prompts, side.images_NCHW, settings.batch) for side in (base, trained)]
    result = build_result(
        [prompt.category for prompt in prompts],
        _measured(base, outcomes[0]),
        _measured(trained, outcomes[1]),
        seed=cfg.eval.seed,
        seconds=time.monotonic() - started,
        settings=_described(cfg, settings, prompts, base_folder, trained_folder, base.cached)
        | ({"categories_left_out": left_out} if left_out else {})
        | {"judge": JudgePipeline(cfg).described()},
    )
    _save_grid(results / GRID, prompts, (base, trained), outcomes)
    write_result(results, result)
    stored = {
        "key": outcomes_key(cfg, run_dir, prompts, trained_folder),
        "prompts": [prompt.id for prompt in prompts],
        "base": [int(outcome.exact) for outcome in outcomes[0]],
        "trained": [int(outcome.exact) for outcome in outcomes[1]],
    }
    write_atomic(results / OUTCOMES, json.dumps(stored) + "\n")
    refresh_card(trained_folder, results, result["settings"]["trained_sha256"])
    console.print(result_table(result))
    console.print(verdict(result), soft_wrap=True, highlight=False)
    if left_out:
        console.print(
            f"not evaluated: {', '.join(left_out)}; eval.prompts={cfg.eval.prompts} takes the first prompts of the "
            f"split, and none of them is of these categories",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    written = [RESULT, str(MARKDOWN), str(GRID)]
    if results == run_dir:
        written.append(write_run_report(run_dir).name)
    console.print(f"written: {results}/{', '.join(written)}", soft_wrap=True, highlight=False, markup=False)
    return result


def eval_prompts(cfg: Config) -> list[Prompt]:
    """The first ``eval.prompts`` prompts of ``eval.split``. UserError where there are fewer."""
    folder = prompt_folder(cfg)
    with PromptReader(folder, cfg.eval.split) as reader:
        if len(reader) < cfg.eval.prompts:
            raise UserError(
                f"eval.prompts={cfg.eval.prompts}, but {folder} has {len(reader)} prompts in the split "
                f"{cfg.eval.split!r}: set eval.prompts={len(reader)}, or write larger shards"
            )
        return [reader[i] for i in range(cfg.eval.prompts)]


def benchmark_for(cfg: Config, prompts: Sequence[Prompt]) -> Checks:
    """The benchmark that ``eval.benchmark`` names. UserError where it cannot score these prompts."""
    benchmark = load_checks(cfg.eval.benchmark)
    benchmark.refuse(prompts, f"{prompt_folder(cfg)}, split {cfg.eval.split!r}")
    return benchmark


def check_images(benchmark: Checks, prompts: Sequence[Prompt], images_NCHW: Tensor, batch: int) -> list[Outcome]:
    """The benchmark's outcome of each prompt's image (uint8 [N, 3, H, W]), ``batch`` images at a time.

    Raises UserError for a credit that is none, ValueError for another number of outcomes than of images.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        outcomes += benchmark.check(prompts[part], images_NCHW[part].float() / 255)
    if len(outcomes) != len(prompts):
        raise ValueError(f"the benchmark {benchmark.name} gave {len(outcomes)} outcomes of {len(prompts)} images")
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if not 0 <= outcome.partial <= 1:
            raise UserError(
                f"the benchmark {benchmark.name} gave the image of prompt {prompt.id!r} a partial credit of "
                f"{outcome.partial}, expected a number in [0, 1]; correct its check()"
            )
    return outcomes


def categories_left_out(cfg: Config, prompts: Sequence[Prompt]) -> list[str]:
    """Categories of ``eval.split`` of which the first ``eval.prompts`` prompts have none, in the split's order."""
    seen = {prompt.category for prompt in prompts}
    with PromptReader(prompt_folder(cfg), cfg.eval.split) as reader:
        others = dict.fromkeys(prompt.category for prompt in reader)
    return [category for category in others if category not in seen]


def eval_questions(cfg: Config, prompts: Sequence[Prompt]) -> list[str]:
    """What the judge is asked about each prompt's image."""
    judging = JudgePipeline(cfg)
    return [judging.question_about(prompt) for prompt in prompts]


def outcomes_key(cfg: Config, run_dir: Path, prompts: Sequence[Prompt], trained: Path | None = None) -> str:
    """What ``outcomes.json`` depends on, in one word: both models, the prompts, the sampler and the benchmark.

    trained: a model folder instead of the run's export.
    """
    models = " ".join(weights_sha256(folder) for folder in (Path(cfg.model.path), trained or run_dir / EXPORT))
    key = cache_key(models, prompts, eval_questions(cfg, prompts), draw_settings(cfg))
    # Outcomes from before there were benchmarks are the default one's.
    return key if cfg.eval.benchmark == DEFAULT_BENCHMARK else f"{key}-{cfg.eval.benchmark}"


def draw_settings(cfg: Config) -> DrawSettings:
    """How a configuration's evaluation draws. UserError for a sampler's setting that the model's design lacks."""
    # "auto" is looked up, so that a recipe that names the design shares its images with one that does not.
    kind = family_of(cfg.model.path).kind if cfg.model.kind == AUTO else cfg.model.kind
    return DrawSettings(
        kind=kind,
        image_size=cfg.rollout.image_size,
        sampling=sampling_of(cfg, "eval"),
        seed=cfg.eval.seed,
        batch=cfg.eval.batch,
        readout=readout_of(cfg),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def shown_sampling(settings: DrawSettings) -> dict[str, Any]:
    """The sampler's settings as a result shows them: all but ``HIDDEN_SAMPLING``."""
    shown = {name: value for name, value in asdict(settings.sampling).items() if name not in HIDDEN_SAMPLING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()}


def shown_benchmark(cfg: Config) -> dict[str, Any]:
    """The benchmark as a result shows it: by its name where it is not the default one."""
    return {} if cfg.eval.benchmark == DEFAULT_BENCHMARK else {"benchmark": cfg.eval.benchmark}


def grid_positions(categories: Sequence[str], per_category: int = GRID_PROMPTS_PER_CATEGORY) -> list[int]:
    """The first prompts of each category, the categories in order: chosen without a look at the images."""
    positions = []
    for category in dict.fromkeys(categories):
        positions += [i for i, other in enumerate(categories) if other == category][:per_category]
    return positions


def _save_grid(
    path: Path, prompts: Sequence[Prompt], sides: Sequence[EvalImages], outcomes: Sequence[Sequence[Outcome]]
) -> None:
    rows = []
    for i in grid_positions([prompt.category for prompt in prompts]):
        cells = [Shown(side.images_NCHW[i], mark=own[i].exact) for side, own in zip(sides, outcomes, strict=True)]
        rows.append((prompts[i].text, cells))
    half = -(-len(rows) // 2)
    pages = [comparison(part, ["base", "trained"]) for part in (rows[:half], rows[half:]) if part]
    with replacing(path) as stream:
        beside(pages).save(stream, "PNG")


def _measured(side: EvalImages, outcomes: Sequence[Outcome]) -> Measured:
    return Measured(
        exact=[float(outcome.exact) for outcome in outcomes],
        partial=[outcome.partial for outcome in outcomes],
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
    return {
        "split": cfg.eval.split,
        "prompts": len(prompts),
        "distinct_texts": len({prompt.text for prompt in prompts}),
        **shown_sampling(settings),
        "base_model": cfg.written("model.path"),
        "base_sha256": weights_sha256(base),
        "trained_sha256": weights_sha256(trained),
        "base_from_cache": cached,
        **shown_benchmark(cfg),
    }


def _run_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: missing; {run_dir} is not a run. Give a run's folder, such as runs/tiny")
    strange = [item for item in overrides if not item.startswith("eval.")]
    if strange:
        raise UserError(f"{strange[0]!r}: an evaluation takes eval.key=value only; the rest is the run's own")
    return load_run(run_dir, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module: ``[RUN] [eval.key=value ...]``; returns the exit status."""
    parser = argparse.ArgumentParser(description="Base against trained, on held-out prompts.")
    parser.add_argument("words", nargs="*", metavar="[RUN] [eval.key=value]", help="default: runs/tiny")
    parser.add_argument("--processes", type=int, help="drawing processes (default: one per core, or one per GPU)")
    parser.add_argument("--no-cache", action="store_true", help="draw the base's images anew")
    arguments = parser.parse_args(argv)
    folders = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if len(folders) > 1:
        parser.error(f"one run at a time: {' '.join(folders)}")
    try:
        run_dir, chosen = evaluation_request([*folders, *overrides], None)
        evaluate_run(run_dir, chosen, arguments.processes, not arguments.no_cache)
    except UserError as error:
        print(f"srum-ds eval: {error}", file=sys.stderr)
        return WRONG_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
