"""UniGenBench: 600 prompts, each with test points in 10 dimensions that a judge marks 1 or 0 in one reply.

Facts from ``eval/src/eval_common.py`` and ``data/*.csv`` of github.com/CodeGoat24/UniGenBench (CC BY 4.0, Tencent;
arXiv 2508.20751 and 2510.18701). A dimension's figure is the share of its test points that are met, pooled over all
pictures; the overall figure is the mean of the ten dimensions (each row of the authors' tables adds up so). The judge
is gemini-2.5-pro, or the authors' own models (UniGenBench-EvalModel-qwen3vl-32b-v1) over vLLM.

The definitions of test points are the authors'; the question is worded anew (it asks for JSON instead of tags). A reply
in the authors' form, <score>[1, 0]</score>, is read too, which is how their own models may answer. Where the released
script leaves out a picture whose reply it cannot read, it counts as a failure here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.benchmarks.pooling import part_shares
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Figure, Grade, Published
from srum_ds.evaluation.benchmarks.replies import after_thinking, excerpt, numbers, read_object
from srum_ds.evaluation.benchmarks.yes_no_canaries import blank, blue_square, two_discs
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.files import found_in
from srum_ds.types import Prompt

DIMENSIONS = (
    "Style",
    "World Knowledge",
    "Attribute",
    "Action",
    "Relationship",
    "Logical Reasoning",
    "Grammar",
    "Compound",
    "Entity Layout",
    "Text Generation",
)

# Words of the authors (CC BY 4.0), in part shortened.
DEFINITIONS = {
    "Relationship - Comparison": "Comparison of attributes between two entities",
    "Relationship - Composition": "An entity is composed of one or more other entities",
    "Relationship - Inclusion": "A container contains an entity; the container can also be a plane, such as a painting",
    "Relationship - Similarity": "Existence of similarities between different entities",
    "Compound - Imagination": "Things that are impossible in real life",
    "Compound - Feature Matching": "Different entities possess different types of attribute features",
    "Attribute - Size": "The subject's size, height, length, thickness, width, or tallness",
    "Attribute - Expression": "Facial expressions, which must convey a clear emotion",
    "Attribute - Quantity": "The number of items, above all three or more",
    "Attribute - Material": "Material types and textures",
    "Attribute - Color": "Colors",
    "Attribute - Shape": "Shapes",
    "Entity Layout - Two-Dimensional Space": "Arrangement and positioning of entities in two-dimensional space",
    "Entity Layout - Three-Dimensional Space": "Arrangement and positioning of entities in three-dimensional space",
    "Action - Full-body (Character/Anthropomorphic)": "Full-body actions by characters or anthropomorphized entities",
    "Action - Hand (Character/Anthropomorphic)": "Hand structure: whether fingers are missing, broken, or distorted",
    "Action - Animal": "Actions performed by animals",
    "Action - Contact Interaction": "Physical interactions between entities",
    "Action - Non-contact Interaction": "Interactions without touch, such as two people making eye contact",
    "Action - State": "A sustained state of an entity, typically expressed with a verb",
    "Grammar - Negation": "Understanding of negation",
    "Grammar - Pronoun Reference": "Ambiguous pronoun references are resolved correctly",
    "Grammar - Consistency": "Shared attributes among entities",
    "World Knowledge": "Knowledge of celebrities, architecture, basic domains, and internet slang",
    "Style": "Art, painting, photography, design styles, and corresponding artist names",
    "Text Generation": "Text is generated accurately, without omissions or extra words",
    "Logical Reasoning": "The intent has to be understood deeply and reasoned about",
}

_QUESTION = """This picture was generated from the prompt: "{prompt}"

Decide for each test point below whether the picture meets what the prompt asks for in it. Judge only what is directly \
visible; leave out what is uncertain, and infer no background story.

{points}

Answer with one JSON object and nothing else: {{"analysis": [one sentence for each test point, in order], \
"score": [1 or 0 for each test point, in order]}}. Both lists have {count} entries: 1 where the test point is met, \
0 where it is not."""

_SCORE_TAG = re.compile(r"<score>\s*(\[[^\]<]{0,400}\])\s*</score>")


def dimension_of(point: str) -> str:
    """The dimension of a test point: what precedes its dash."""
    return point.split("-", 1)[0].strip()


def read_scores(text: str, count: int) -> list[int] | None:
    """``count`` marks of 0 or 1 from a reply in JSON or in the authors' tags; None for anything else."""
    said = after_thinking(text)
    found = _SCORE_TAG.findall(said)
    if found:
        try:
            value: Any = parse_json(found[-1])
        except ValueError:
            return None
    else:
        value = (read_object(text) or {}).get("score")
    marks = numbers(value, count, 0, 1)
    if marks is None or any(mark not in (0.0, 1.0) for mark in marks):
        return None
    return [int(mark) for mark in marks]


class UniGenBench:
    """Grades a picture by the share of its test points that a judge finds met."""

    def questions(self, prompt: Prompt) -> list[Question]:
        """One question about all test points. UserError for a prompt without them."""
        return [ask("points", prompt.text, _points(prompt))]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """100 x the share of test points met; parts: the same by dimension. Another number of marks is a failure."""
        points = _points(prompt)
        dimensions = [dimension_of(name) for name, _ in points]
        weights = {name: float(dimensions.count(name)) for name in dict.fromkeys(dimensions)}
        parts: dict[str, float | None] = dict.fromkeys(weights)
        reply = replies["points"]
        if reply.error:
            return Grade(None, parts, failure=reply.error, weights=weights)
        marks = read_scores(reply.text, len(points))
        if marks is None:
            why = f"expected {len(points)} marks of 0 or 1, got {excerpt(reply.text)!r}"
            return Grade(None, parts, failure=why, words=reply.text, weights=weights)
        for name in parts:
            of_dimension = [mark for mark, other in zip(marks, dimensions, strict=True) if other == name]
            parts[name] = 100 * sum(of_dimension) / len(of_dimension)
        return Grade(100 * sum(marks) / len(marks), parts, words=reply.text, weights=weights)


def ask(key: str, text: str, points: Sequence[tuple[str, str]]) -> Question:
    """The question about a prompt's test points, (name, how it shows in the prompt) each."""
    lines = [
        f"{n}. {name} ({DEFINITIONS.get(name, 'as it is named')}): {shows or 'as the prompt has it'}"
        for n, (name, shows) in enumerate(points, 1)
    ]
    schema = {
        "type": "object",
        "properties": {
            "analysis": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": len(points),
                "maxItems": len(points),
            },
            "score": {
                "type": "array",
                "items": {"type": "integer", "enum": [0, 1]},
                "minItems": len(points),
                "maxItems": len(points),
            },
        },
        "required": ["analysis", "score"],
        "additionalProperties": False,
    }
    said = _QUESTION.format(prompt=text, points="\n".join(lines), count=len(points))
    return Question(key, (said,), max_tokens=4096, schema=schema)


def _points(prompt: Prompt) -> list[tuple[str, str]]:
    points = prompt.meta.get("points")
    if not points:
        raise UserError(f"prompt {prompt.id!r}: no record of UniGenBench (its meta has no 'points')")
    return [(str(name), str(shows)) for name, shows in points]


def read(source: Path | None) -> list[Prompt]:
    """The prompts of ``test_prompts_en.csv`` or ``test_prompts_en_long.csv`` (a folder or checkout: the first).

    Ids are ``unigenbench-INDEX``; the category is the prompt's theme. UserError without a file, for the Chinese files
    (their judge is asked in Chinese, which is not done here), and naming the line of a malformed row. One list of the
    long file lacks a comma between two names: it is put in where that makes the record whole.
    """
    if source is None:
        raise UserError(
            "--prompts is missing: UniGenBench's prompts are data/test_prompts_en.csv of "
            "https://github.com/CodeGoat24/UniGenBench (CC BY 4.0); give that file or its folder"
        )
    path = found_in(source, ("test_prompts_en.csv", "data/test_prompts_en.csv"), "CodeGoat24/UniGenBench")
    prompts: dict[str, Prompt] = {}
    for where, row in _rows(path):
        prompt = _prompt(row, where)
        if prompt.id in prompts:
            raise UserError(f"{where}: index {row['index']!r} occurs twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return list(prompts.values())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        text = file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = ("index", "prompt_en", "sub_dims_en")
    if not set(columns) <= set(reader.fieldnames or ()):
        chinese = "prompt_zh" in (reader.fieldnames or ())
        hint = "; the Chinese prompts are judged in Chinese, use the English file" if chinese else ""
        raise UserError(f"{path}: line 1: expected the columns {', '.join(columns)}{hint}")
    for row in reader:
        yield f"{path}: line {reader.line_num}", {name: (row[name] or "").strip() for name in columns}


def _prompt(row: Mapping[str, str], where: str) -> Prompt:
    if not row["index"].isdecimal() or not row["prompt_en"]:
        raise UserError(f"{where}: expected index (a number) and prompt_en (a text)")
    record, repaired = _record(row["sub_dims_en"], where)
    names: Any = record.get("Testpoints")
    shows: Any = record.get("Testpoint Description")
    # One description of the authors' file is empty; the test point is then asked about by its name.
    if not _are_texts(names) or not _are_texts(shows, empty=True) or len(names) != len(shows):
        raise UserError(f"{where}: expected Testpoints and 'Testpoint Description', two lists of texts of one length")
    unknown = [name for name in names if dimension_of(name) not in DIMENSIONS]
    if unknown:
        raise UserError(f"{where}: test point {unknown[0]!r} is of none of {', '.join(DIMENSIONS)}")
    meta: dict[str, Any] = {
        "points": [list(pair) for pair in zip(names, shows, strict=True)],
        "subcategory": str(record.get("Secondary Categories", "")),
    }
    if repaired:
        meta["repaired"] = "a comma between two names was missing"
    theme = str(record.get("Primary Categories", "")) or "none"
    return Prompt(f"unigenbench-{int(row['index']):04d}", row["prompt_en"], theme, (), meta)


def _record(text: str, where: str) -> tuple[dict[str, Any], bool]:
    try:
        record, repaired = parse_json(text), False
    except ValueError as error:
        try:
            record, repaired = parse_json(re.sub(r'(?<=[^\\,:\[{])"\s+"', '", "', text)), True
        except ValueError:
            raise UserError(f"{where}: sub_dims_en is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: sub_dims_en is {type(record).__name__}, expected an object")
    return record, repaired


def _are_texts(value: Any, empty: bool = False) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, str) and (empty or bool(one.strip())) for one in value)


def figures(categories: Sequence[str]) -> list[Figure]:
    """The mean of the ten dimensions, as the authors report it."""
    return [part_shares(DIMENSIONS)]


def canaries() -> tuple[Canary, ...]:
    """Pictures made here with one test point each, whose mark is known."""
    quantity = "Attribute - Quantity"
    cases: tuple[tuple[str, str, tuple[str, str], Callable[[], bytes], int], ...] = (
        ("a blank picture shows no three dogs", "three dogs on a beach", (quantity, "three dogs"), blank, 0),
        ("a blue square is not red", "a red square", ("Attribute - Color", "red square"), blue_square, 0),
        ("two red discs are two", "two red circles", (quantity, "two circles"), two_discs, 1),
        ("a blue square is blue", "a blue square", ("Attribute - Color", "blue square"), blue_square, 1),
    )

    def marks(mark: int) -> Callable[[Reply], bool]:
        return lambda reply: not reply.error and read_scores(reply.text, 1) == [mark]

    return tuple(
        Canary(what, ask(f"canary-{n}", text, [point]), picture, marks(mark))
        for n, (what, text, point, picture, mark) in enumerate(cases)
    )


def _row(model: str, overall: float, *by_dimension: float) -> Published:
    source = "table 'English Short Prompt Evaluation' of github.com/CodeGoat24/UniGenBench (2026-06), gemini-2.5-pro"
    return Published(model, {**dict(zip(DIMENSIONS, by_dimension, strict=True)), "overall": overall}, source)


PUBLISHED = (
    _row("SDXL", 40.22, 87.45, 72.28, 44.66, 35.10, 46.37, 10.34, 48.48, 26.68, 30.80, 0.00),
    _row("BLIP3-o", 59.57, 92.81, 79.97, 64.77, 64.59, 65.99, 36.78, 69.05, 54.57, 67.19, 0.00),
    _row("BAGEL", 59.91, 90.08, 85.42, 67.73, 62.14, 70.64, 23.85, 65.85, 56.86, 76.56, 0.00),
    _row("FLUX.1-dev", 60.97, 85.00, 87.50, 67.20, 62.26, 66.88, 29.77, 62.30, 45.75, 70.90, 32.18),
    _row("Janus-Pro", 61.36, 90.40, 86.55, 68.59, 63.88, 69.54, 35.68, 64.04, 60.18, 72.76, 2.01),
    _row("Show-o2", 61.90, 87.40, 85.44, 69.87, 69.01, 68.78, 39.55, 60.83, 63.79, 73.13, 1.15),
    _row("OmniGen2", 63.09, 91.90, 86.39, 72.12, 62.83, 68.27, 32.50, 59.89, 56.31, 71.64, 29.02),
    _row("Qwen-Image", 78.36, 94.70, 94.15, 87.93, 82.60, 80.08, 51.59, 60.96, 72.94, 86.57, 72.13),
)

BENCHMARK = Benchmark(
    name="unigenbench",
    version="1",
    read=read,
    grading=UniGenBench(),
    figures=figures,
    samples=4,
    full=100.0,
    part_figures=DIMENSIONS,
    canaries=canaries,
    published=PUBLISHED,
    notice="UniGenBench: CC BY 4.0, Tencent, https://github.com/CodeGoat24/UniGenBench; the question is worded anew",
)
