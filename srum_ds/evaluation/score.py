"""``srum-ds eval score``: grades a folder of pictures, and writes figures, a table and a report beside them.

What a judge or a detector said is kept in the folder and asked again only where it is missing, so a scoring that was
killed goes on. ``evaluate_benchmark`` calls it for base and trained, and ``srum-ds compare`` reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from srum_ds.common.errors import UserError
from srum_ds.config import find_path
from srum_ds.evaluation.benchmarks import Asks, Benchmark, Checks, Detection, Detects, Grade, load_benchmark
from srum_ds.evaluation.canary import CanaryResult, run_canaries, verdict
from srum_ds.evaluation.compare import compare
from srum_ds.evaluation.detectors import load_detector, read_detections
from srum_ds.evaluation.grading import grade_asked, grade_checked, grade_detected, png_bytes
from srum_ds.evaluation.picture_folder import PictureFolder
from srum_ds.evaluation.report_html.score_page import write_report
from srum_ds.evaluation.result_tables import screen_table, write_markdown
from srum_ds.evaluation.results import Chosen, build_results, score_rows, write_results
from srum_ds.evaluation.score_request import CHECKER, SELF, JudgeChoice, ScoreRequest
from srum_ds.evaluation.scored import MARKDOWN, PROMPTS, REPORT, RESULTS, Scored
from srum_ds.judges import JudgeSettings, PictureJudge
from srum_ds.judges.loading import load_judge
from srum_ds.judges.store import ReplyStore, ask_missing
from srum_ds.prompts.choose import choose_prompts
from srum_ds.types import Prompt

REPLIES = "replies.jsonl"
DETECTIONS = "detections.jsonl"


@dataclass(frozen=True)
class _Graded:
    """Grades in the pictures' order, and by whom. judge: {"kind", "model", "under_test"}. notes: for people."""

    grades: Sequence[Grade]
    judge: dict[str, Any]
    canaries: Sequence[CanaryResult] = ()
    notes: Sequence[str] = ()
    boxes: dict[tuple[str, int], Sequence[Detection]] = field(default_factory=dict)


def score_folder(
    request: ScoreRequest, console: Console | None = None, judge: PictureJudge | None = None
) -> dict[str, Any]:
    """Grades the pictures of a folder, writes ``results.json``, ``scores.jsonl``, ``eval.md`` and ``report.html``.

    judge: who is asked, instead of the one that the request names. Returns the content of ``results.json``.

    Raises UserError for a folder without such pictures, a benchmark or judge that cannot be had, one that cannot
    grade the other's questions, and, after everything is written, where not one picture could be graded.
    """
    console = console or Console()
    benchmark = load_benchmark(request.choice.benchmark)
    request.check(benchmark, judge is not None)
    folder = _folder(request, benchmark)
    pictures = folder.pictures()
    for line in folder.lines():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not pictures:
        raise UserError(
            f"{request.folder}: holds no picture of these {len(folder.prompts)} prompts; draw them with `srum-ds eval "
            f"draw`, or name the prompts that its pictures are of (--prompts)"
        )
    with console.status("") as status:
        told = _teller(lambda text: status.update(escape(text)))
        graded = _grade(benchmark, folder, request.judge, judge, told)
    scored = [
        Scored(picture.prompt, picture.sample, str(picture.path.relative_to(folder.folder)), grade)
        for picture, grade in zip(pictures, graded.grades, strict=True)
    ]
    choice = request.choice
    results = build_results(
        benchmark,
        scored,
        graded.judge,
        graded.canaries,
        folder.missing(),
        request.failures,
        request.srum_compat,
        folder.drawn,
        Chosen(tuple(choice.categories), choice.limit),
    )
    write_results(folder.folder, results, score_rows(scored, graded.boxes))
    write_markdown(folder.folder, results)
    write_report(folder.folder)
    said = [*graded.notes, verdict(graded.canaries)]
    for line in filter(None, said):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(screen_table(results))
    console.print(
        f"written: {folder.folder}/{RESULTS}, {MARKDOWN}, {REPORT}", soft_wrap=True, highlight=False, markup=False
    )
    if results["n"] == 0:
        first = next((one.grade.failure for one in scored if one.grade.failure), "no picture is there")
        raise UserError(
            f"{folder.folder}: not one of {len(scored)} pictures could be graded (the first: {first}); "
            f"{RESULTS} says why of each"
        )
    return results


def compare_folders(base: Path, trained: Path) -> dict[str, Any]:
    """Compares two scored folders and writes ``compare.json`` and ``report.html`` into the folder above them."""
    return compare(base, trained, out=trained.parent)


def scored_prompts(request: ScoreRequest, benchmark: Benchmark) -> tuple[Prompt, ...] | None:
    """The prompts whose pictures are scored; None where they are all that the folder itself lists.

    They come from ``--prompts``, else from the folder, else they are the benchmark's bundled ones.
    """
    choice = request.choice
    if choice.files is not None:
        every: Sequence[Prompt] = benchmark.read(choice.files)
    elif (request.folder / PROMPTS).exists():
        if choice.limit is None and not choice.categories:
            return None
        every = PictureFolder.open(request.folder).prompts
    elif request.folder.is_dir():
        every = benchmark.read(None)
    else:
        return None
    return choose_prompts(every, choice.limit, choice.categories)


def _folder(request: ScoreRequest, benchmark: Benchmark) -> PictureFolder:
    folder = PictureFolder.open(request.folder, scored_prompts(request, benchmark))
    drawn = folder.drawn or {}
    if drawn and drawn.get("benchmark") != benchmark.name:
        raise UserError(
            f"{request.folder}: its pictures were drawn for the benchmark {drawn.get('benchmark')!r}, not "
            f"{benchmark.name!r}: give --benchmark {drawn.get('benchmark')}, or another folder"
        )
    if drawn and drawn.get("version") != benchmark.version:
        raise UserError(
            f"{request.folder}: its pictures were drawn for version {drawn.get('version')} of {benchmark.name}, and "
            f"this is version {benchmark.version}: draw them again into another folder"
        )
    return folder


def _grade(
    benchmark: Benchmark,
    folder: PictureFolder,
    choice: JudgeChoice,
    judge: PictureJudge | None,
    told: Callable[[str], Callable[[int, int], None]],
) -> _Graded:
    grading = benchmark.grading
    pictures = folder.pictures()
    if isinstance(grading, Asks):
        with ExitStack() as held:
            if judge is None:
                judge = _judge(folder, choice)
                held.callback(judge.close)
            store = held.enter_context(ReplyStore(folder.folder / REPLIES))
            asked = judge
            by_prompt = {picture.prompt.id: picture.path for picture in reversed(pictures)}

            def picture_of(prompt: Prompt) -> bytes | None:
                try:
                    return png_bytes(by_prompt[prompt.id]) if prompt.id in by_prompt else None
                except UserError:
                    # A broken picture is a failure of its own, and no reason to grade none; another is shown.
                    return None

            prompts = [prompt for prompt in folder.prompts if prompt.id in by_prompt]
            canaries = run_canaries(asked, benchmark, prompts, picture_of, lambda asks: ask_missing(asked, asks, store))
            grades = grade_asked(grading, pictures, asked, store, told("asked"))
            named = {"kind": asked.kind, "model": asked.model, "under_test": asked.under_test}
        return _Graded(grades, named, canaries)
    if isinstance(grading, Checks):
        grades = grade_checked(grading, pictures, str(folder.folder), told("checked"))
        return _Graded(grades, {"kind": CHECKER, "model": grading.name, "under_test": False})
    assert isinstance(grading, Detects)
    return _detected(benchmark, grading, folder, choice, told("looked at"))


def _detected(
    benchmark: Benchmark,
    grading: Detects,
    folder: PictureFolder,
    choice: JudgeChoice,
    on_done: Callable[[int, int], None],
) -> _Graded:
    if choice.detections is not None:
        recorded = read_detections(choice.detections)
        names = [picture.path.relative_to(folder.folder).as_posix() for picture in folder.pictures()]
        recorded.refuse(names, grading.classes(folder.prompts))
        others = recorded.strangers(names)
        notes = [_others(recorded.source, others)] if others else []
        named = {"kind": "detections", "model": choice.detections.name, "under_test": False}
        grades, boxes = grade_detected(
            grading, folder.pictures(), folder.folder, recorded, folder.folder / DETECTIONS, on_done
        )
        return _Graded(grades, named, notes=notes, boxes=boxes)
    detector = load_detector(choice.detector, "cuda" if torch.cuda.is_available() else "cpu")
    grades, boxes = grade_detected(
        grading, folder.pictures(), folder.folder, detector, folder.folder / DETECTIONS, on_done
    )
    return _Graded(grades, {"kind": "detector", "model": detector.name, "under_test": False}, boxes=boxes)


def _others(source: Path, names: Sequence[str]) -> str:
    return f"{source}: {len(names)} of its entries are of none of these pictures: {', '.join(names[:5])}" + (
        " ..." if len(names) > 5 else ""
    )


def _judge(folder: PictureFolder, choice: JudgeChoice) -> PictureJudge:
    model = choice.model
    if choice.kind == SELF and not model:
        model = str((folder.drawn or {}).get("model", ""))
        if not model:
            raise UserError(
                f"{folder.folder}: says nothing of the model that drew its pictures: name it by --judge-model FOLDER"
            )
        model = str(find_path(model))
    settings = JudgeSettings(
        url=choice.url,
        model=model,
        replies=choice.replies,
        concurrency=choice.concurrency,
        timeout=choice.timeout,
        retries=choice.retries,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    return load_judge(choice.kind, settings)


def _teller(show: Callable[[str], Any]) -> Callable[[str], Callable[[int, int], None]]:
    def told(what: str) -> Callable[[int, int], None]:
        def on_done(done: int, total: int) -> None:
            show(f"{what}: {done} of {total}")

        return on_done

    return told
