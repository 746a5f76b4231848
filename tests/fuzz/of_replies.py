"""Targets: what is read out of judges' written replies, in training and in evaluation, and the store of replies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srum_ds.evaluation.benchmarks import Asks, Grade, load_benchmark
from srum_ds.evaluation.benchmarks.compbench import released_score
from srum_ds.evaluation.benchmarks.replies import number, numbers, read_object
from srum_ds.judges.protocol import Reply
from srum_ds.judges.replay import ReplayJudge
from srum_ds.judges.store import Record, ReplyStore, read_store
from srum_ds.judges.words import answer_probabilities
from srum_ds.rewards.judge.json_replies import regions_in_json, score_in_json
from srum_ds.rewards.judge.parsing import parse_regions, parse_reply, parse_score
from srum_ds.rewards.phrases.extract import MAX_COUNT, parse_phrases, split_prompt
from srum_ds.rewards.regions.boxes import candidates_of, select
from srum_ds.rewards.regions.ground import CONVENTIONS, parse_boxes
from srum_ds.types import Prompt, Status
from tests.fuzz.inputs import ODD_TEXTS, Maker
from tests.fuzz.target import Target, is_share, write

WORDS = (
    "Score",
    "score:",
    "**Score**:",
    "Final score",
    "overall",
    "total",
    "is",
    "out of 10",
    "(0-10)",
    "from -1 to 1",
    "/10",
    "Region",
    "Region 1:",
    "Region 2",
    "1.",
    "2)",
    "3 |",
    "object:",
    "Object",
    "a red circle",
    "a dog",
    "---",
    "***",
    "===",
    "|",
    "```json",
    "```",
    "<think>",
    "</think>",
    "[thinking]",
    "</reasoning>",
    "\\boxed{",
    "}",
    "scale of 10",
    "10-point scale",
    '{"score":',
    '"score"',
    "'score':",
    "yes",
    "no",
    "Yes.",
    "N/A",
    "I see 3 dogs",
    "2024-05-12",
    "12:30",
    "0.5-0.8",
    "\n",
    "\n\n",
    "score of",
    "Score (out of 10):",
    "**",
    "*",
    "$",
    "\\(",
    ":",
    "=",
    "%",
    "点",
    "分",
)
_SCORED: dict[str, Any] = {
    "score": 0.7,
    "final_score": "4/5",
    "out_of": 10,
    "Region 1": {"object": "a dog", "score": 0.2},
    "regions": [{"region": 1, "score": 0.5, "label": "cat"}, {"region": 2, "score": "-0.5"}],
    "2": 0.1,
}
_BOXED = [{"bbox_2d": [10, 20, 300, 400], "label": "dog"}, {"box": [0.1, 0.2, 0.5, 0.9]}, [1, 2, 30, 40]]
_GRADED = {"score": 85, "explanation": "all there", "consistency": 2, "realism": 1, "aesthetic_quality": 0}
_LISTED = {"analysis": ["one", "two"], "score": [1, 0], "reason": ["why", "why"]}


def reply(make: Maker, forms: Sequence[Any], words: Sequence[str] = WORDS) -> str:
    """A reply: prose, JSON, or JSON amid prose, now and then behind thoughts."""
    kind = make.below(4)
    said = make.text(words) if kind < 2 else make.json(make.changed(make.pick(forms)))
    if kind == 3:
        said = f"{make.text(words, 4)}{make.pick(('', '```json', chr(10)))}{said}{make.text(words, 4)}"
    if make.chance(0.1):
        said = f"{make.pick(('<think>', '[THINK]', ''))}{make.text(words, 4)}</think>{said}"
    return make.cut(said) if make.chance(0.2) else said


def _holds(score: float, status: Status, low: float = -1.0, high: float = 1.0) -> None:
    if status == Status.FAILED:
        assert math.isnan(score), f"FAILED with {score}"
    else:
        assert math.isfinite(score) and low <= score <= high, f"{status.name} with {score}"
        assert status == Status.PARSED or score in (low, high), f"CLAMPED to {score}"


def check_score(text: str, folder: Path) -> None:
    """A score is finite and on its scale, or failed and NaN; a hundred times the scale says the same."""
    first = parse_score(text)
    _holds(*first)
    assert repr(parse_score(text)) == repr(first)
    _holds(*parse_score(text, 0.0, 10.0), 0.0, 10.0)
    _holds(*parse_reply(text, ("yes", "no")))
    said = score_in_json(text)
    assert said is None or isinstance(said, str)


def check_regions(case: tuple[str, int], folder: Path) -> None:
    """One reply for each region, each a score or failed, its name in one line of text."""
    text, count = case
    found = parse_regions(text, count)
    assert len(found) == count and repr(parse_regions(text, count)) == repr(found)
    for one in found:
        _holds(one.score, one.status)
        assert isinstance(one.object, str)
    named = regions_in_json(text, count)
    assert named is None or all(type(key) is int for key in named)


def check_boxes(case: tuple[str, tuple[int, int], str], folder: Path) -> None:
    """Boxes lie in the image and are not empty, and what is selected of them too."""
    text, size_hw, convention = case
    found = parse_boxes(text, size_hw, convention)
    assert len(found.boxes) == len(found.labels) and found.broken >= 0
    assert all(isinstance(label, str) for label in found.labels)
    for x0, y0, x1, y1 in found.boxes:
        assert 0.0 <= x0 < x1 <= 1.0 and 0.0 <= y0 < y1 <= 1.0, found.boxes
    assert parse_boxes(text, size_hw, convention) == found
    if found.boxes:
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found.boxes]
        kept = select([candidates_of(found.boxes, areas)], max_count=4, overlap=0.5, pad=0.1).boxes_R4
        assert len(kept) <= 4 and bool(((kept >= 0) & (kept <= 1)).all())
        assert bool((kept[:, 2:] >= kept[:, :2]).all())


def check_phrases(case: tuple[str, str], folder: Path) -> None:
    """Phrases are texts with a letter or the prompt itself, each counted at least once."""
    text, prompt = case
    for found in (parse_phrases(text, prompt), split_prompt(prompt)):
        if found is not None:
            assert found.phrases and len(found.phrases) == len(found.counts) == len(set(found.phrases))
            assert all(1 <= count <= MAX_COUNT * 64 for count in found.counts)
    assert parse_phrases(text, prompt) == parse_phrases(text, prompt)


def check_object(text: str, folder: Path) -> None:
    """Objects and numbers of the benchmarks' replies: a number is finite and in its range."""
    found = read_object(text)
    for value in (found or {}).values():
        one = number(value, 0, 100)
        assert one is None or (math.isfinite(one) and 0 <= one <= 100)
        several = numbers(value, 2, 0, 1)
        assert several is None or all(is_share(each) for each in several)
    assert math.isfinite(released_score(text))


_SECTIONS = {"reason": [["q", "c"], ["q", "c"]], "quality": [["q", "c"], ["q", "c"]]}
_PROPOSITIONS = [
    {"number": 1, "question": "a dog?", "parents": [0], "category": "entity"},
    {"number": 2, "question": "red?", "parents": [1], "category": "attribute"},
]
PROMPTS = {
    "compbench": Prompt("a", "a red dog", "color"),
    "compbench_yes": Prompt("a", "a red dog", "color"),
    "wise": Prompt("a", "a red dog", "time", (), {"explanation": "a dog"}),
    "wise_verified": Prompt("a", "a red dog", "time", (), {"explanation": "a dog"}),
    "reasonbench": Prompt("a", "a red dog", "idiom", (), {"sections": _SECTIONS}),
    "unigenbench": Prompt("a", "a dog", "t", (), {"points": [["Style", "oil"], ["Attribute - Color", "red"]]}),
    "dpg": Prompt("a", "a red dog", "dense", (), {"propositions": _PROPOSITIONS}),
    "geneval2": Prompt(
        "a",
        "a dog",
        "atoms_2",
        (),
        {"vqa_list": [["a dog?", "Yes"], ["How many?", "two"]], "skills": ["object", "count"]},
    ),
}
"""A prompt of each benchmark that asks a judge."""


def holds(grade: Grade, full: float) -> None:
    """A grade has a value in its range or a reason; its parts likewise."""
    assert (grade.value is None) == bool(grade.failure), grade
    assert grade.value is None or 0 <= grade.value <= full + 1e-9, grade
    for part in grade.parts.values():
        assert part is None or 0 <= part <= full + 1e-9, grade
    assert grade.raw is None or math.isfinite(grade.raw), grade


def make_graded(make: Maker) -> tuple[str, tuple[Reply, ...]]:
    """A benchmark's name, and replies to as many questions as it may ask."""
    forms = (_GRADED, _LISTED, {"score": 1}, {"score": [1, 0.5]})
    replies = []
    for _ in range(3):
        odd = [make.pick((0.0, 0.5, 1.0, 0.25, 1e-9, 1e300, -0.1, float("nan"), float("inf"))) for _ in range(4)]
        many = tuple(odd if make.chance(0.3) else [0.5, 0.1, 0.2, 0.1])[: make.pick((0, 1, 2, 4, 4, 4))]
        error = make.pick(("", "", "", "", "no answer"))
        texts = tuple(reply(make, forms, (*WORDS, "<score>[1, 0]</score>")) for _ in range(make.pick((0, 1, 1, 2))))
        replies.append(Reply(texts, many, 1, error))
    return make.pick(tuple(PROMPTS)), tuple(replies)


def check_graded(case: tuple[str, tuple[Reply, ...]], folder: Path) -> None:
    """Whatever a judge replies, a picture has a grade in its range or is a failure that says why."""
    name, replies = case
    benchmark = load_benchmark(name)
    assert isinstance(benchmark.grading, Asks)
    prompt = PROMPTS[name]
    questions = benchmark.grading.questions(prompt)
    answers = {question.key: replies[n % len(replies)] for n, question in enumerate(questions)}
    grade = benchmark.grading.grade(prompt, answers)
    holds(grade, benchmark.full)
    assert benchmark.grading.grade(prompt, answers) == grade
    for canary in benchmark.canaries():
        assert canary.good(replies[0]) in (True, False)


_RECORD = {
    "key": "k",
    "judge": "http",
    "model": "m",
    "question": "score",
    "question_sha256": "a" * 64,
    "picture_sha256": "b" * 64,
    "texts": ["fine", '{"score": 1}'],
    "probabilities": [0.5, 0.25],
    "attempts": 1,
    "error": "",
    "seconds": 0.25,
}


def make_store(make: Maker) -> str | bytes:
    """A file of replies, some lines of which are not as they were kept."""
    text = make.lines([make.changed(_RECORD, keep=0.5) for _ in range(make.below(3) + 1)])
    return make.damaged(text.encode("utf-8", "surrogatepass")) if make.chance(0.2) else text


def check_store(case: str | bytes, folder: Path) -> None:
    """Numbers of a store are finite; what is kept again reads as it was."""
    path = write(folder / "replies.jsonl", case)
    records = list(read_store(path))
    for record in records:
        for value in (*record.reply.probabilities, record.reply.seconds):
            assert math.isfinite(value), record
        assert record.reply.attempts >= 0, record
        assert len(record.key) == 64
    again = write(folder / "again.jsonl", "".join(record.line() + "\n" for record in records))
    assert list(read_store(again)) == records
    with ReplyStore(path) as store:
        assert len(store) <= len(records)
        for record in records[:1]:
            store.add(record)
    assert list(read_store(path))[: len(records)] == records
    assert ReplayJudge([again]).model == ReplayJudge([again]).model


def make_kept(make: Maker) -> Record:
    """A reply of any text."""
    texts = tuple(make.text(WORDS, 3) for _ in range(make.below(3)))
    return Record("http", make.pick(ODD_TEXTS), "q", "a" * 64, "b" * 64, Reply(texts, (0.5,), 1, make.pick(("", "e"))))


def check_kept(record: Record, folder: Path) -> None:
    """Whatever a judge says is kept and read back as it was said."""
    path = folder / "kept.jsonl"
    path.unlink(missing_ok=True)
    with ReplyStore(path) as store:
        store.add(record)
    assert list(read_store(path)) == [record]


def check_words(case: list[tuple[str, float]], folder: Path) -> None:
    """Probabilities of answers lie in [0, 1]."""
    found, spelled = answer_probabilities(case, ("Yes", "yes", "No", "no"))
    assert all(is_share(value) for value in found) and 0 <= spelled <= len(case)


_TEXT = "a photo of two red circles and the blue vase next to a dog"
TARGETS = (
    Target("score", lambda make: reply(make, (_SCORED, {"score": 7, "out_of": 10})), check_score, 24, 50),
    Target("regions", lambda make: (reply(make, (_SCORED, _SCORED["regions"])), make.below(4)), check_regions, 7, 50),
    Target(
        "boxes",
        lambda make: (
            reply(make, (_BOXED, _BOXED[0], {"objects": _BOXED})),
            make.pick(((64, 64), (1, 1), (480, 640), (1, 100000))),
            make.pick(CONVENTIONS),
        ),
        check_boxes,
        10,
        80,
    ),
    Target(
        "phrases",
        lambda make: (
            reply(make, (["a red circle", "two dogs"],), (*WORDS, "a red circle", "the blue vase", "- two dogs", ",")),
            make.pick((_TEXT, make.text((*_TEXT.split(), "without", "holding", "no")))),
        ),
        check_phrases,
        8,
        60,
    ),
    Target("objects", lambda make: reply(make, (_GRADED, _LISTED)), check_object, 14, 60),
    Target("grades", make_graded, check_graded, 8, 60),
    Target(
        "store",
        make_store,
        check_store,
        2,
        60,
        known=(
            "[" * 100_000 + "\n",
            json.dumps({**_RECORD, "probabilities": [10**400]}) + "\n",
            json.dumps({**_RECORD, "seconds": float("nan")}) + "\n",
        ),
    ),
    Target("kept", make_kept, check_kept, 1, 40, known=(Record("http", "\udc80", "q", "a", "b", Reply()),)),
    Target(
        "words",
        lambda make: [
            (
                make.pick((*ODD_TEXTS, "yes", " Yes", "NO")),
                float(make.pick((0, -1, -9999, 5, math.nan, math.inf, -math.inf))),
            )
            for _ in range(make.below(6))
        ],
        check_words,
        3,
    ),
)
