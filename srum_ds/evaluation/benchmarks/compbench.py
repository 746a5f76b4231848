"""T2I-CompBench by SRUM's protocol: one picture a prompt, one question to a judge, 0 to 100.

The prompts are T2I-CompBench's validation prompts, and those of two kinds of ``complex`` once more as categories of
their own, as SRUM's ``val_comp.json`` lists them; ``complex`` is then the mean of the three, and ``overall`` that of
eight. The question is the released one (CompBench_eval/qwen_eval.py, commit a53ba18).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.canaries import SHOWN, four_cases
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Figure, Grade
from srum_ds.evaluation.benchmarks.published import COMPBENCH_ROWS
from srum_ds.evaluation.benchmarks.replies import excerpt, number, read_object
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.importers import read_compbench, read_srum
from srum_ds.prompts.records import read_records
from srum_ds.types import Prompt

COMPLEX = ("complex", "complex_action", "complex_spatial")
"""The leaf categories of which the figure ``complex`` is the mean."""

RELEASED_FAILURE = -1.0
"""What the released parser counts for a reply that it cannot read."""

_KEY = "score"
_QUESTION = """\
You are my assistant to evaluate the correspondence of the image to a given text prompt. \
Focus on the objects in the image and their attributes (such as color, shape, texture), spatial layout and action \
relationships. According to the image, evaluate how well the image aligns with the text prompt: "{prompt}" \
Give a score from 0 to 100, according the criteria:{space}
81-100: the image perfectly matches the content of the text prompt, with no discrepancies.{space}
61-80: the image portrayed most of the actions, events and relationships but with minor discrepancies.{space}
41-60: the image depicted some elements in the text prompt, but ignored some key parts or details.{space}
21-40: the image did not depict any actions or events that match the text.{space}
1-20: the image failed to convey the full scope in the text prompt.{space}
Provide your analysis and explanation in JSON format with the following keys: score (e.g., 2), explanation (within 20 \
words)."""
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "explanation": {"type": "string"},
    },
    "required": ["score", "explanation"],
    "additionalProperties": False,
}
_SCORE = re.compile(r'"score":\s*([0-9]+)')
_QUOTED_SCORE = re.compile(r'"score":\s*"?([0-9]+)')
_WHERE = (
    "Give the prompts with --prompts: val_comp.json of WayneJin0918/SRUM (CompBench_eval's prompts), or "
    "examples/dataset of Karine-Huang/T2I-CompBench (https://github.com/Karine-Huang/T2I-CompBench)"
)


def read(source: Path | None) -> list[Prompt]:
    """The prompts to evaluate on: 2,670 of the full sets.

    source: SRUM's ``val_comp.json`` or its folder; T2I-CompBench's checkout, its ``examples/dataset`` or one of its
    ``*_val.txt``; or prompts of any origin as ``prompts.jsonl``. Raises UserError without one, and as the importers do.
    """
    if source is None:
        raise UserError(f"--benchmark compbench: its prompts are not part of this program. {_WHERE}")
    if source.suffix == ".jsonl":
        return read_records(source)
    if source.is_dir() and (source / "examples" / "dataset").is_dir():
        source = source / "examples" / "dataset"
    is_srum = (source / "val_comp.json").is_file() if source.is_dir() else source.suffix == ".json"
    splits = read_srum(source) if is_srum else read_compbench(source)
    if "val" not in splits:
        raise UserError(f"{source}: holds training prompts alone; a benchmark is drawn of the others. {_WHERE}")
    prompts = splits["val"]
    if source.is_dir() and not is_srum and any(prompt.category == "complex" for prompt in prompts):
        for leaf in COMPLEX[1:]:
            prompts += _again(source / f"complex_val_{leaf.removeprefix('complex_')}.txt", leaf)
    return prompts


def _again(path: Path, category: str) -> list[Prompt]:
    if not path.is_file():
        raise UserError(f"{path}: missing; SRUM's protocol repeats its prompts as {category!r}. {_WHERE}")
    return [replace(prompt, category=category) for prompt in read_compbench(path)["val"]]


def figures(categories: Sequence[str]) -> list[Figure]:
    """``complex``, the mean of its three leaf categories, and ``overall``, the mean of that and of each other one.

    Over the categories that the prompts have, eight of them in the full set; the user's own count one each.
    """
    present = [name for name in COMPLEX if name in categories]
    others = [name for name in categories if name not in COMPLEX]
    share = 1 / (len(others) + bool(present))
    wanted = [Figure("complex", {name: 1 / len(present) for name in present})] if present else []
    shares = {name: share / len(present) if name in present else share for name in categories}
    return [*wanted, Figure("overall", shares)]


@dataclass(frozen=True)
class CompBenchGrading:
    """Asks for a score of 0 to 100 and takes it as it is: what lies outside is a failure, and nothing is clamped."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """One question, the picture before the text."""
        return [_question(prompt.text)]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """The score, its explanation as words; ``raw`` is what the released parser counts where that differs."""
        reply = replies[_KEY]
        if reply.error:
            return Grade(None, failure=reply.error, raw=RELEASED_FAILURE)
        read = read_object(reply.text)
        said = None if read is None else read.get("score")
        value = number(said, 0, 100)
        counted = released_score(reply.text)
        if value is not None and read is not None:
            words = read.get("explanation")
            shown = words if isinstance(words, str) else reply.text
            return Grade(value, words=shown, raw=None if counted == value else counted)
        if read is None:
            failure = f"no JSON object, or not a single one, in the reply {excerpt(reply.text)!r}"
        elif "score" not in read:
            failure = f"no score in the reply {excerpt(reply.text)!r}"
        else:
            failure = f"the score {excerpt(repr(said), 60)} is no number from 0 to 100: {excerpt(reply.text)!r}"
        return Grade(None, failure=failure, words=reply.text, raw=counted)


def released_score(text: str) -> float:
    """What the released parser makes of a reply: the first it finds, unclamped, and -1 where it finds none.

    It takes the whole number after ``"score":`` from the JSON object that ends behind the last of these, or, where that
    is no JSON, from anywhere in the text, cutting 85.5 to 85. Written here in time linear in the text.
    """
    cleaned = text.strip().replace("```json", "").replace("```", "").strip()
    begins, last = cleaned.find("{"), cleaned.rfind("}")
    scores = [match for match in _SCORE.finditer(cleaned, max(begins, 0)) if match.end() <= last]
    if begins >= 0 and scores:
        part = cleaned[begins : cleaned.find("}", scores[-1].end()) + 1]
        try:
            said = json.loads(part).get("score")
            if isinstance(said, int):
                return float(said)
        except ValueError:
            # The second way of the parser is tried.
            pass
        except (RecursionError, OverflowError):
            return RELEASED_FAILURE
    match = _QUOTED_SCORE.search(text)
    try:
        return RELEASED_FAILURE if match is None else float(int(match[1]))
    except (ValueError, OverflowError):
        # More digits than a number can have.
        return RELEASED_FAILURE


@dataclass(frozen=True)
class Compat:
    """Figures of the released arithmetic. by_category: leaf -> mean. figures: ``complex`` and ``overall``."""

    by_category: Mapping[str, float]
    figures: Mapping[str, float]


def compat_figures(raws: Mapping[str, Sequence[float]]) -> Compat:
    """SRUM's released arithmetic (CompBench_eval/qwen_eval.sh) for ``--srum-compat``, defects and all.

    raws: leaf category -> each picture's ``Grade.raw``, or its value where that is None. Means are rounded to four
    digits, -1 of failures enters them, a category without pictures leaves the denominator, and ``complex`` is counted
    as 0 where none of its three has any. Raises UserError where no category has a picture.
    """
    means = {name: round(sum(values) / len(values), 4) for name, values in raws.items() if values}
    if not means:
        raise UserError("--srum-compat: no category has a picture")
    of_complex = [means[name] for name in COMPLEX if name in means]
    others = [mean for name, mean in means.items() if name not in COMPLEX]
    composite = sum(of_complex) / len(of_complex) if of_complex else 0.0
    overall = (sum(others) + composite) / (len(others) + 1)
    return Compat(means, {"complex": round(composite, 4), "overall": round(overall, 4)})


def _question(text: str) -> Question:
    return Question(_KEY, (_QUESTION.format(prompt=text, space=" "),), max_tokens=512, schema=_SCHEMA)


def canaries() -> Sequence[Canary]:
    """A blank picture, another one and a blind control must score at most 40; a drawn one more than 60."""
    return four_cases(
        _question(SHOWN),
        "must score above 60",
        lambda reply: (score := _score(reply)) is not None and score <= 40,
        lambda reply: (score := _score(reply)) is not None and score > 60,
    )


def _score(reply: Reply) -> float | None:
    return CompBenchGrading().grade(Prompt("canary", SHOWN), {_KEY: reply}).value


BENCHMARK = Benchmark(
    name="compbench",
    version="1",
    read=read,
    grading=CompBenchGrading(),
    figures=figures,
    full=100.0,
    canaries=canaries,
    published=COMPBENCH_ROWS,
    notice=(
        "Prompts: T2I-CompBench (Karine-Huang/T2I-CompBench, MIT), read from your copy. Question and arithmetic: SRUM "
        "(WayneJin0918/SRUM, Apache-2.0, commit a53ba18); its published judge is Qwen2.5-VL-72B-Instruct."
    ),
    srum_compat=True,
    released_as_zero=COMPLEX,
)
"""T2I-CompBench as ``--benchmark compbench``."""
