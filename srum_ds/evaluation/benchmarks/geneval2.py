"""GenEval 2 by Soft-TIFA: how probable a judge finds the right answer to one question for each atom of a prompt.

Facts from arXiv 2512.16853 and ``evaluation.py`` of github.com/facebookresearch/GenEval2 (CC BY-NC 4.0, so that its
file is read from the user's checkout and nothing of it stands here). A question is put as ``QUESTION Answer in one
word.``; an atom's soft score is the probability that the answer's first token is one of the spellings of the right
answer. Over a prompt, the arithmetic mean estimates atoms (Soft-TIFA AM), the geometric mean the prompt (Soft-TIFA GM);
both are averaged over prompts, times 100. The value here is GM, ``soft_tifa_am`` is AM, and AM by skill is pooled over
atoms. The authors' judge is Qwen3-VL-8B-Instruct. The original also counts spellings with a space in front; after a
chat template they have no mass, and in some tokenizers they are the same token again, so they are left out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json, require_encodable
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Grade, equal_shares
from srum_ds.evaluation.benchmarks.yes_no_canaries import yes_no_canaries
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.files import found_in
from srum_ds.types import Prompt

SKILLS = ("object", "attribute", "count", "position", "verb")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
AM = "soft_tifa_am"
FILE = "geneval2_data.jsonl"


def spellings(answer: str) -> tuple[str, ...]:
    """The ways in which a right answer is spelled: ``four``, ``Four``, ``4``; ``Yes``, ``yes``.

    10 is none: its first token is that of 1 where digits are tokens of their own.
    """
    word = answer.strip().lower()
    if word in NUMBERS:
        digit = str(NUMBERS.index(word) + 1)
        return (word, word.capitalize(), digit) if len(digit) == 1 else (word, word.capitalize())
    return word.capitalize(), word


def soft_score(reply: Reply, right: int) -> float | None:
    """Probability of the right answer: the sum over its spellings, the first ``right`` answers. None for no answer."""
    if reply.error or len(reply.probabilities) < right:
        return None
    total = sum(reply.probabilities[:right])
    # Rounding may carry a sum of probabilities over 1 by a hair; more means one token behind two spellings.
    return min(total, 1.0) if math.isfinite(total) and 0 <= total <= 1.001 else None


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log v)) of values in [0, 1]; 0 where one is."""
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(math.log(value) for value in values) / len(values))


class SoftTifa:
    """Grades a picture by the probabilities of the right answers."""

    def questions(self, prompt: Prompt) -> list[Question]:
        """One question an atom, ``q0`` and so on. UserError for a prompt without ``vqa_list``."""
        return [ask(f"q{n}", text, answer) for n, (text, answer) in enumerate(_atoms(prompt))]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """100 x the geometric mean; parts: 100 x AM, and by skill. One atom without an answer fails the picture."""
        atoms = _atoms(prompt)
        skills = [str(skill) for skill in prompt.meta["skills"]]
        parts: dict[str, float | None] = dict.fromkeys([AM, *dict.fromkeys(skills)])
        counts = {AM: 1.0, **{skill: float(skills.count(skill)) for skill in skills}}
        scores: list[float] = []
        for n, (text, answer) in enumerate(atoms):
            reply = replies[f"q{n}"]
            score = soft_score(reply, len(spellings(answer)))
            if score is None:
                why = reply.error or f"probabilities {reply.probabilities} are none"
                return Grade(None, parts, failure=f"{text} {why}", weights=counts)
            scores.append(score)
        parts[AM] = 100 * sum(scores) / len(scores)
        for skill in dict.fromkeys(skills):
            of_skill = [score for score, other in zip(scores, skills, strict=True) if other == skill]
            parts[skill] = 100 * sum(of_skill) / len(of_skill)
        words = "; ".join(f"{text} {answer}: {score:.3f}" for (text, answer), score in zip(atoms, scores, strict=True))
        return Grade(100 * geometric_mean(scores), parts, words=words, weights=counts)


def ask(key: str, text: str, answer: str) -> Question:
    """A question whose right answer's spellings come first, and behind them other answers: no, or other digits.

    They do not count. With them, a server that tells the likeliest tokens alone shows that a wrong answer is one.
    """
    right = spellings(answer)
    others = spellings("no") if right[-1] == "yes" else tuple(digit for digit in "123456789" if digit not in right)
    return Question(key, (f"{text} Answer in one word.",), max_tokens=1, answers=(*right, *others))


def _atoms(prompt: Prompt) -> list[tuple[str, str]]:
    atoms = prompt.meta.get("vqa_list")
    if not atoms:
        raise UserError(f"prompt {prompt.id!r}: no record of GenEval 2 (its meta has no 'vqa_list')")
    return [(str(text), str(answer)) for text, answer in atoms]


def read(source: Path | None) -> list[Prompt]:
    """The prompts of ``geneval2_data.jsonl`` or its folder; the category is the atomicity, ``atoms_3`` to ``atoms_10``.

    UserError without a file, and naming the line of a record that is not {prompt, atom_count, vqa_list, skills}.
    """
    if source is None:
        raise UserError(
            f"--prompts is missing: GenEval 2's prompts are {FILE} of https://github.com/facebookresearch/GenEval2 "
            f"(CC BY-NC 4.0: not for commercial use, and not part of this package); give that file or its folder"
        )
    path = found_in(source, (FILE,), "facebookresearch/GenEval2")
    prompts: list[Prompt] = []
    for number, line in enumerate(_text(path).replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            prompts.append(_prompt(line, len(prompts), f"{path}: line {number}"))
    if not prompts:
        raise UserError(f"{path}: holds no records")
    return prompts


def _prompt(line: str, index: int, where: str) -> Prompt:
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    record = record if isinstance(record, dict) else {}
    text, atoms, skills, count = (record.get(key) for key in ("prompt", "vqa_list", "skills", "atom_count"))
    if not isinstance(text, str) or not text.strip() or type(count) is not int:
        raise UserError(f"{where}: expected prompt (text), atom_count (number), vqa_list and skills")
    fits = isinstance(atoms, list) and atoms and all(_is_pair(atom) for atom in atoms)
    if not fits or not isinstance(skills, list) or len(skills) != len(atoms or []):
        raise UserError(f"{where}: expected vqa_list as [[question, answer], ...] and skills, one for each question")
    require_encodable("\n".join([text, *(part for atom in atoms or [] for part in atom)]), where)
    unknown = [skill for skill in skills if skill not in SKILLS]
    if unknown:
        raise UserError(f"{where}: skill {unknown[0]!r} is none of {', '.join(SKILLS)}")
    for question, answer in atoms or []:
        if question.startswith("How many") and answer.strip().lower() not in NUMBERS:
            raise UserError(f"{where}: the answer {answer!r} to {question!r} is no number from one to ten")
    return Prompt(f"geneval2-{index:04d}", text.strip(), f"atoms_{count}", (), record)


def _is_pair(atom: Any) -> bool:
    return isinstance(atom, list) and len(atom) == 2 and all(isinstance(part, str) and part.strip() for part in atom)


def _text(path: Path) -> str:
    try:
        return file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def canaries() -> tuple[Canary, ...]:
    """Pictures made here, whose answers are known."""
    return yes_no_canaries(lambda key, text: ask(key, text, "Yes"), lambda reply: soft_score(reply, 2))


BENCHMARK = Benchmark(
    name="geneval2",
    version="1",
    read=read,
    grading=SoftTifa(),
    figures=equal_shares,
    full=100.0,
    part_figures=(AM, *SKILLS),
    canaries=canaries,
    notice="GenEval 2's prompts: CC BY-NC 4.0, Meta, https://github.com/facebookresearch/GenEval2",
)
