"""T2I-ReasonBench: pictures of prompts that must be reasoned about, judged by questions that belong to each prompt.

The judge first describes the picture and then, from there, answers one section of questions as JSON: a score of 1, 0.5
or 0 for each. Every section starts from the description anew, as in the released scripts (commit efc1d20), so that no
answer sees another section's. The questions come from the user's checkout, in ``Prompt.meta``; the words around them
are our own, since the release has no licence. A released script ends where a reply cannot be read, and that of
``entity`` uses a variable that it never sets: there is no released number for a failure, and ``Grade.raw`` stays None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.canaries import four_cases
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Grade, equal_shares
from srum_ds.evaluation.benchmarks.published import REASONBENCH_ROWS
from srum_ds.evaluation.benchmarks.replies import excerpt, numbers, read_object
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.reasonbench import REASONBENCH_SECTIONS, read_reasonbench
from srum_ds.prompts.records import read_records
from srum_ds.types import Prompt

QUALITY = "quality"
DETAILS = "details"
MAIN_SHARE = 0.7
"""Weight of the section on the entity or the science in the accuracy; the section on other details has the rest."""

_DESCRIBE = "Describe what this picture shows."
_TASK = """\
Now answer the questions below about the picture; keep in mind what you have described. Give each question a score: 1, \
0.5 or 0, as the criterion after it says.

{questions}

Look at the picture once more for each question before you decide. Reply with one JSON object: \
{{"reason": [why, one text a question], "score": [the {count} scores, in the order of the questions]}}"""
_MAX_TOKENS = 1000
_WHERE = (
    "Give a checkout of https://github.com/KaiyueSun98/T2I-ReasonBench with --prompts: it has no licence, so that "
    "nothing of it is part of this program"
)


def read(source: Path | None) -> list[Prompt]:
    """The 800 prompts, from the checkout, or from ``prompts.jsonl`` as written from it. UserError as the importer."""
    if source is None:
        raise UserError(f"--benchmark reasonbench: its prompts are not part of this program. {_WHERE}")
    return read_records(source) if source.suffix == ".jsonl" else read_reasonbench(source)["test"]


@dataclass(frozen=True)
class ReasonBenchGrading:
    """Accuracy of 0 to 100 from the reason section, or 0.7 of the entity's or science's and 0.3 of other details.

    ``parts`` has ``quality``, which is no part of the accuracy, and the sections of which the accuracy is made.
    """

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """One conversation of two turns a section. UserError for a prompt without the benchmark's questions."""
        return [_question(section, asked) for section, asked in _sections(prompt).items()]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """Fails where a section of the accuracy fails; a failed quality is a part without a figure, said in words."""
        means: dict[str, float | None] = {}
        why: dict[str, str] = {}
        for section, asked in _sections(prompt).items():
            mean, trouble = _mean(replies[section], len(asked))
            means[section] = None if mean is None else 100 * mean
            if trouble:
                why[section] = f"{section}: {trouble}"
        value = _accuracy(means)
        failure = "; ".join(text for section, text in why.items() if section != QUALITY) if value is None else ""
        said = [f"{section}: {replies[section].text}" for section in means if replies[section].text]
        words = [*([why[QUALITY]] if QUALITY in why else []), *said]
        return Grade(value, parts=means, failure=failure, words="\n".join(words))


def _accuracy(means: Mapping[str, float | None]) -> float | None:
    main = means["reason"]
    if DETAILS not in means:
        return main
    details = means[DETAILS]
    return None if main is None or details is None else MAIN_SHARE * main + (1 - MAIN_SHARE) * details


def _mean(reply: Reply, count: int) -> tuple[float | None, str]:
    """The mean of a section's scores in [0, 1], or None and why."""
    if reply.error:
        return None, reply.error
    read = read_object(reply.text)
    if read is None:
        return None, f"no JSON object, or not a single one, in the reply {excerpt(reply.text)!r}"
    scores = numbers(read.get("score"), count, 0, 1)
    if scores is None:
        return None, f"score is not {count} numbers from 0 to 1 in the reply {excerpt(reply.text)!r}"
    return sum(scores) / count, ""


def _sections(prompt: Prompt) -> dict[str, list[list[str]]]:
    """The questions of a prompt by section. UserError naming the prompt where they are not there, or others are."""
    expected = REASONBENCH_SECTIONS.get(prompt.category)
    sections = prompt.meta.get("sections")
    if expected is None or not isinstance(sections, dict) or sections.keys() != expected.keys():
        raise UserError(
            f"prompt {prompt.id!r} has no questions of T2I-ReasonBench (category {prompt.category!r}). {_WHERE}"
        )
    for name, asked in sections.items():
        pairs = isinstance(asked, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in asked)
        if not pairs or not asked:
            raise UserError(f"prompt {prompt.id!r}: sections: {name}: expected a list of [question, criterion]")
    return {name: sections[name] for name in expected}


def _question(section: str, asked: Sequence[Sequence[str]]) -> Question:
    lines = [f"q{i}: {question}\nc{i}: {criterion}" for i, (question, criterion) in enumerate(asked, 1)]
    task = _TASK.format(questions="\n".join(lines), count=len(asked))
    return Question(section, (_DESCRIBE, task), max_tokens=_MAX_TOKENS, schema=_schema(len(asked)))


def _schema(count: int) -> Mapping[str, Any]:
    several = {"type": "array", "minItems": count, "maxItems": count}
    return {
        "type": "object",
        "properties": {
            "reason": {**several, "items": {"type": "string"}},
            "score": {**several, "items": {"type": "number", "enum": [0, 0.5, 1]}},
        },
        "required": ["reason", "score"],
        "additionalProperties": False,
    }


_CANARY = [
    ["Does the picture show a circle?", "1: one clear circle; 0.5: something nearly round; 0: no circle"],
    ["Is there a red shape on a white ground?", "1: clearly so; 0.5: only one of the two; 0: neither, or no shape"],
]


def canaries() -> Sequence[Canary]:
    """The mean of two scores must be at most 0.25 for what does not show the circle, and at least 0.75 for it."""
    return four_cases(
        _question("canary", _CANARY),
        "must score 0.75 or more",
        lambda reply: (mean := _mean(reply, len(_CANARY))[0]) is not None and mean <= 0.25,
        lambda reply: (mean := _mean(reply, len(_CANARY))[0]) is not None and mean >= 0.75,
    )


BENCHMARK = Benchmark(
    name="reasonbench",
    version="1",
    read=read,
    grading=ReasonBenchGrading(),
    figures=equal_shares,
    full=100.0,
    part_figures=(QUALITY,),
    canaries=canaries,
    published=REASONBENCH_ROWS,
    notice=(
        "Prompts and the questions about them: T2I-ReasonBench (KaiyueSun98/T2I-ReasonBench, no licence), read from "
        "your checkout. The words around the questions are ours, in the structure of its scripts; its published judge "
        "is Qwen2.5-VL-72B-Instruct."
    ),
)
"""T2I-ReasonBench as ``--benchmark reasonbench``."""
