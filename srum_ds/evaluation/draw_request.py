"""What ``srum-ds eval draw`` is asked for: which model draws which prompts of a benchmark, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from srum_ds.common.errors import UserError
from srum_ds.config.limits import LimitsConfig
from srum_ds.config.messages import refuse_others
from srum_ds.config.schema import EvalConfig
from srum_ds.evaluation.benchmarks import Asks, Benchmark, Checks, load_benchmark
from srum_ds.evaluation.evaluate import draw_settings
from srum_ds.evaluation.layout_paths import Places, picture_places
from srum_ds.evaluation.picture_layouts import OWN
from srum_ds.models import family_of
from srum_ds.models.fused import DEFAULT
from srum_ds.models.generation import Generation, read_generation, usual_sampling
from srum_ds.monitoring.run_folder import CONFIG, EXPORT, load_run
from srum_ds.prompts.choose import choose_prompts
from srum_ds.types import Prompt

MODEL_BATCH = 16
"""Pictures that a bare model draws at once; a run says it itself (``eval.batch``)."""
KEPT = "a run that is there keeps its settings, and only eval.* and limits.* can be chosen anew."


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts of which benchmark. files: of the benchmark's own making; None: the bundled ones."""

    benchmark: str
    files: Path | None = None
    limit: int | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrawOptions:
    """What the command line says of drawing; None leaves it to the run, or to the model's and benchmark's defaults.

    words: ``eval.key=value`` for a run, ``key=value`` of the design's sampler for a model. batch: pictures at once.
    size: height, width in pixels. samples: pictures a prompt.
    """

    words: tuple[str, ...] = ()
    seed: int | None = None
    samples: int | None = None
    batch: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drawing:
    """A model and how it draws.

    sampling: of the design's own ``sampling_type``. image_size: height, width in pixels; None: the largest square of
    the model. batch: pictures drawn at once; rounding depends on it. fused: ``kernels.fused``.
    limits: how long a rank of several may hang.
    """

    model: Path
    kind: str
    sampling: Any
    image_size: tuple[int, int] | None
    seed: int
    batch: int
    fused: str = DEFAULT
    limits: LimitsConfig = LimitsConfig()
    told: str = ""


@dataclass(frozen=True)
class DrawRequest:
    """A folder of pictures to be made: ``samples`` of each prompt.

    layout: of ``picture_layouts``, how they are named. index: whether ``index.jsonl`` lists them.
    """

    drawing: Drawing
    benchmark: Benchmark
    choice: PromptChoice
    prompts: tuple[Prompt, ...]
    samples: int
    out: Path
    layout: str = OWN
    index: bool = False

    @cached_property
    def places(self) -> Places:
        """Where each picture goes. UserError where the layout has no place for one."""
        return picture_places(self.layout, self.out, self.prompts, self.samples)


def benchmark_prompts(benchmark: Benchmark, choice: PromptChoice) -> tuple[Prompt, ...]:
    """The prompts that are meant, each of which the benchmark can grade.

    Raises UserError as ``Benchmark.read`` and ``choose_prompts``, and naming the first prompt that cannot be graded.
    """
    prompts = choose_prompts(benchmark.read(choice.files), choice.limit, choice.categories)
    grading = benchmark.grading
    if isinstance(grading, Checks):
        grading.refuse(prompts, f"--benchmark {choice.benchmark}")
    elif isinstance(grading, Asks):
        for prompt in prompts:
            grading.questions(prompt)
    else:
        grading.classes(prompts)
    return prompts


def draw_request(source: Path, base: bool, choice: PromptChoice, options: DrawOptions, out: Path) -> DrawRequest:
    """The request of a run's folder (its trained model, or its ``base``) or of a model's folder.

    Raises UserError for a folder that is neither, for a run that is not finished, for settings that the run or the
    sampler does not have, and as ``benchmark_prompts``.
    """
    benchmark = load_benchmark(choice.benchmark)
    for name, value in (("--samples", options.samples), ("--batch", options.batch)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: give at least 1.")
    if (source / CONFIG).is_file():
        drawing = _of_run(source, base, options.words)
    elif base:
        raise UserError(f"--base: {source} is no run (no {CONFIG}): give the folder of the base model itself.")
    else:
        drawing = _of_model(source, options.words)
    drawing = replace(
        drawing,
        seed=drawing.seed if options.seed is None else options.seed,
        batch=options.batch or drawing.batch,
        image_size=options.size or drawing.image_size,
    )
    samples = options.samples or benchmark.samples
    return DrawRequest(drawing, benchmark, choice, benchmark_prompts(benchmark, choice), samples, out)


def _of_run(run: Path, base: bool, words: Sequence[str]) -> Drawing:
    refuse_others(words, ("eval", "limits"), KEPT)
    cfg = load_run(run, words)
    settings = draw_settings(cfg)
    model = Path(cfg.model.path) if base else run / EXPORT
    if not model.is_dir():
        cure = "copy the base model there" if base else "the run has not finished: repeat its `srum-ds train`"
        raise UserError(f"{model}: missing; {cure}")
    return Drawing(
        model,
        settings.kind,
        settings.sampling,
        settings.image_size,
        cfg.eval.seed,
        cfg.eval.batch,
        cfg.kernels.fused,
        cfg.limits,
    )


def _of_model(model: Path, words: Sequence[str]) -> Drawing:
    family = family_of(model)
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{word!r}: expected key=value, a setting of the sampler of {family.kind}")
        if "." in name:
            raise UserError(
                f"{word}: {model} is a model, not a run, and takes settings of its sampler by their own names: "
                f"{word.rpartition('.')[2]}"
            )
        try:
            given[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{word!r}: the value is not valid YAML") from error
    own = read_generation(model, family)
    return model_drawing(model, family.kind, usual_sampling(family, own, given), own)


def model_drawing(model: Path, kind: str, sampling: Any, own: Generation | None) -> Drawing:
    """How a bare model draws with a sampler's settings. own: what its folder says of how it is drawn with."""
    told, size = (own.line(model), own.image_size) if own else ("", None)
    return Drawing(model, kind, sampling, size, EvalConfig().seed, MODEL_BATCH, told=told)
