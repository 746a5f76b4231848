"""WISE: pictures of prompts that need knowledge of the world, in its two editions, which are two benchmarks.

``wise`` is the first one: three scores of 0, 1 or 2, of which the consistency counts most. ``wise_verified`` is that of
2026: one answer, 0 or 1. Both put the text before the picture, after a system turn, and weigh six categories. Released
scripts (commit eb51174) leave a reply out that they cannot read; here it is a failure, counted and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.canaries import SHOWN, four_cases
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Figure, Grade
from srum_ds.evaluation.benchmarks.published import WISE_VERIFIED_ROWS
from srum_ds.evaluation.benchmarks.replies import excerpt, number, read_object
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.records import read_records
from srum_ds.prompts.wise import read_wise, read_wise_verified
from srum_ds.types import Prompt

WEIGHTS = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
"""Of the first edition: the shares of its 1,000 prompts."""

VERIFIED_WEIGHTS = {"culture": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12, "chemistry": 0.12}
"""Of WISE_Verified, likewise."""

SHARES = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
"""How the three scores of 0 to 2 make one of 0 to 2; half of it is a picture's grade."""

_KEY = "score"
_SYSTEM = "You audit pictures made by text-to-image models. Judge strictly by the rules that you are given."
_SCORES = """\
Rate a generated picture with three scores of 0, 1 or 2 each. Be strict: 2 is rare, and in doubt the lower one counts.

You get the PROMPT that the picture was made for, which may only hint at what it means, and an EXPLANATION of what it \
means.

consistency: does the picture show what the prompt means?
0: it misses or contradicts something essential. 1: part of it is there, or not exactly. 2: all of it, in every detail.
realism: could the picture be a photograph?
0: physically impossible or plainly artificial. 1: believable, with flaws that one notices. 2: not to be told from a \
photograph in light, material and space.
aesthetic_quality: how good does it look?
0: poor composition, unpleasant. 1: composition and colours are acceptable, without distinction. 2: outstanding, like \
the work of a master.

PROMPT: "{prompt}"
EXPLANATION: "{explanation}"

Reply with one JSON object and nothing else: {{"consistency": 0, 1 or 2, "realism": 0, 1 or 2, "aesthetic_quality": 0, \
1 or 2}}"""
_BINARY = """\
Decide whether a generated picture is right: 1 or 0.

You get the PROMPT that the picture was made for and an EXPLANATION. The prompt often does not name what should be \
seen: culture, science, space or time must be known to infer it. The explanation says what it is; take it as the truth.

Check whether the objects and the scene of the prompt are there; whether the picture shows what the explanation says, \
not the prompt's surface alone; whether relations, states, behaviour and effects are right; and whether the picture \
can be judged at all, without collapsed, deformed or unreadable main objects.

1: all of that holds. A plain composition, an unphotographic style or little beauty do not matter.
0: any of it fails, or is so unclear that a person could not be sure. In serious doubt: 0.

PROMPT: "{prompt}"
EXPLANATION: "{explanation}"

Reply with one JSON object and nothing else: {{"score": 0 or 1}}"""


@dataclass(frozen=True)
class WiseGrading:
    """Three scores, (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2; each is a part, in [0, 1], too."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """One question, the text before the picture. UserError for a prompt without an explanation."""
        return [_question(_SCORES, prompt, SHARES, 2, 2000)]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """Fails unless each of the three is 0, 1 or 2."""
        reply = replies[_KEY]
        scores, failure = _whole_scores(reply, SHARES, 2)
        if failure:
            return Grade(None, {name: None for name in SHARES}, failure, reply.text)
        parts = {name: score / 2 for name, score in scores.items()}
        return Grade(sum(SHARES[name] * part for name, part in parts.items()), parts, words=reply.text)


@dataclass(frozen=True)
class WiseVerifiedGrading:
    """One answer: 1 where the picture is right, 0 where it is not."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """One question, the text before the picture. UserError for a prompt without an explanation."""
        return [_question(_BINARY, prompt, [_KEY], 1, 500)]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """Fails unless the answer is 0 or 1."""
        reply = replies[_KEY]
        scores, failure = _whole_scores(reply, [_KEY], 1)
        return Grade(scores.get(_KEY), failure=failure, words=reply.text)


def _question(form: str, prompt: Prompt, keys: Sequence[str] | Mapping[str, float], most: int, tokens: int) -> Question:
    explanation = prompt.meta.get("explanation")
    if not isinstance(explanation, str) or not explanation:
        raise UserError(f"prompt {prompt.id!r} has no explanation: it is no prompt of WISE. {_where('wise')}")
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {key: {"type": "integer", "enum": list(range(most + 1))} for key in keys},
        "required": list(keys),
        "additionalProperties": False,
    }
    text = form.format(prompt=prompt.text, explanation=explanation)
    return Question(_KEY, (text,), system=_SYSTEM, picture_first=False, max_tokens=tokens, schema=schema)


def _whole_scores(reply: Reply, keys: Sequence[str] | Mapping[str, float], most: int) -> tuple[dict[str, float], str]:
    """The scores 0, 1, ... ``most`` under the keys, or none and why."""
    if reply.error:
        return {}, reply.error
    read = read_object(reply.text)
    if read is None:
        return {}, f"no JSON object, or not a single one, in the reply {excerpt(reply.text)!r}"
    scores: dict[str, float] = {}
    for key in keys:
        score = number(read.get(key), 0, most)
        if score is None or not score.is_integer():
            return (
                {},
                f"{key} is not one of {', '.join(map(str, range(most + 1)))} in the reply {excerpt(reply.text)!r}",
            )
        scores[key] = score
    return scores, ""


def _where(name: str) -> str:
    folder = {"wise": "WISE_legacy/data", "wise_verified": "data_verified"}[name]
    return (
        f"Give a checkout of https://github.com/PKU-YuanGroup/WISE, or its {folder}, with --prompts: it has no "
        "licence, so that nothing of it is part of this program"
    )


def _reading(name: str, importer: Callable[[Path], dict[str, list[Prompt]]]) -> Callable[[Path | None], list[Prompt]]:
    def read(source: Path | None) -> list[Prompt]:
        if source is None:
            raise UserError(f"--benchmark {name}: its prompts are not part of this program. {_where(name)}")
        return read_records(source) if source.suffix == ".jsonl" else importer(source)["test"]

    return read


def weighted(weights: Mapping[str, float], categories: Sequence[str]) -> list[Figure]:
    """``overall`` by the weights of the categories that the prompts have, scaled to sum to 1.

    Raises UserError for a category without a weight.
    """
    for name in categories:
        if name not in weights:
            raise UserError(f"WISE has no category {name!r}; known are {', '.join(weights)}")
    total = sum(weights[name] for name in categories)
    return [Figure("overall", {name: weights[name] / total for name in categories})]


_CANARY = Prompt(
    "canary",
    "The shape of a wheel seen from its side, in the colour of a ripe tomato",
    "physics",
    (),
    {"explanation": f"This means {SHOWN}: a single, clearly visible red disc"},
)


def _says(grading: WiseGrading | WiseVerifiedGrading, low: float, high: float) -> Callable[[Reply], bool]:
    """Whether a reply's consistency (its answer, in the verified edition) lies from low to high, in [0, 1]."""

    def good(reply: Reply) -> bool:
        grade = grading.grade(_CANARY, {_KEY: reply})
        said = grade.parts.get("consistency", grade.value)
        return said is not None and low <= said <= high

    return good


def _canaries(grading: WiseGrading | WiseVerifiedGrading, must: str) -> Callable[[], Sequence[Canary]]:
    return lambda: four_cases(grading.questions(_CANARY)[0], must, _says(grading, 0.0, 0.0), _says(grading, 0.5, 1.0))


_NOTICE = (
    "Prompts and explanations: WISE (PKU-YuanGroup/WISE, no licence), read from your checkout. The question is worded "
    "by us, in the structure of its scripts; the published judge is {judge}."
)

WISE = Benchmark(
    name="wise",
    version="1",
    read=_reading("wise", read_wise),
    grading=WiseGrading(),
    figures=lambda categories: weighted(WEIGHTS, categories),
    part_figures=tuple(SHARES),
    canaries=_canaries(WiseGrading(), "must have a consistency of 1 or 2"),
    notice=_NOTICE.format(judge="GPT-4o-2024-05-13"),
)
"""WISE, first edition, as ``--benchmark wise``."""

WISE_VERIFIED = Benchmark(
    name="wise_verified",
    version="1",
    read=_reading("wise_verified", read_wise_verified),
    grading=WiseVerifiedGrading(),
    figures=lambda categories: weighted(VERIFIED_WEIGHTS, categories),
    canaries=_canaries(WiseVerifiedGrading(), "must be answered with 1"),
    published=WISE_VERIFIED_ROWS,
    notice=_NOTICE.format(judge="Qwen3.5-35B-A3B"),
)
"""WISE_Verified as ``--benchmark wise_verified``."""
