"""Scored folders of a made-up benchmark, for tests of reports and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from srum_ds.evaluation.benchmarks import Benchmark, Detection, Figure, Grade, Published
from srum_ds.evaluation.canary import CanaryResult
from srum_ds.evaluation.results import build_results, score_rows, write_results
from srum_ds.evaluation.scored import Scored, picture_path
from srum_ds.judges.protocol import Question, Reply
from srum_ds.types import Prompt

JUDGE = {"kind": "http", "model": "qwen", "under_test": False}
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


class Given:
    """Grades nothing: the grades are given."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """None."""
        return []

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """Never called."""
        raise AssertionError("grades are given")


def figures(categories: Sequence[str]) -> list[Figure]:
    """As T2I-CompBench's: ``complex`` is a mean of leaves, and overall a mean of it and another category."""
    leaves = ("complex_a", "complex_b")
    return [
        Figure("complex", {name: 1 / 2 for name in leaves}),
        Figure("overall", {"color": 1 / 2, **{name: 1 / 4 for name in leaves}}),
    ]


BENCHMARK = Benchmark(
    name="toy",
    version="1",
    read=lambda path: [],
    grading=Given(),
    figures=figures,
    full=100.0,
    published=[
        Published("BAGEL", {"color": 89.3, "complex": 83.32, "overall": 82.18}, "SRUM, table 1"),
        Published("SDXL", {"overall": 74.38}, "SRUM, table 1"),
    ],
)

CATEGORIES = ("color", "complex_a", "complex_b")


def scored_folder(
    folder: Path,
    values: Mapping[tuple[str, int], float | None],
    judge: Mapping[str, object] = JUDGE,
    canary: Sequence[CanaryResult] = (CanaryResult("a blank picture must score below 20", True, "3"),),
    benchmark: Benchmark = BENCHMARK,
    size: int = 64,
    texts: Mapping[tuple[str, int], str] | None = None,
    drawn: Mapping[str, object] | None = None,
) -> Path:
    """Writes pictures, scores.jsonl and results.json. values: by category and number of the prompt, None: failed."""
    scored = []
    for position, ((category, number), value) in enumerate(values.items()):
        text = (texts or {}).get((category, number), f"{category} prompt {number}")
        prompt = Prompt(f"{category}-{number}", text, category)
        path = picture_path(folder, prompt.id, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (position * 40 % 256, 120, 200)).save(path)
        failure = "" if value is not None else f"the reply is prose {SCRIPT}"
        grade = Grade(value, {}, failure, f"words about {number} {SCRIPT}", None if value is not None else -1.0)
        scored.append(Scored(prompt, 0, str(path.relative_to(folder)), grade))
    boxes = {(scored[0].prompt.id, 0): [Detection("cat", 0.75, (0.1, 0.2, 0.5, 0.9))]}
    results = build_results(benchmark, scored, judge, canary, drawn=drawn)
    write_results(folder, results, score_rows(scored, boxes))
    return folder
