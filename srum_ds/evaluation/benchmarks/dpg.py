"""DPG-Bench: dense prompts, and yes/no questions that build on each other.

Facts from ``dpg_bench/compute_dpg_bench.py`` of github.com/TencentQQGYLab/ELLA (Apache-2.0; arXiv 2403.05135). A
picture's score is the share of its questions answered yes, where a question counts as no when one that it depends on
does; the benchmark's is the mean over pictures, times 100. Categories (global, entity, attribute, relation, other) are
the first word of a question's tuple, and score the answers as they were given, pooled over questions.

Differences from the released script, on purpose: it drops the first question of the file (its loop passes over row 0),
counts in its categories only the last picture of each prompt, and leaves out pictures that raise an error; all count
here, the last as failures. Its judge is mPLUG-large, which writes its answer; here any judge is asked for the
probabilities of yes and no, and the larger one is the answer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Figure, Grade, Published
from srum_ds.evaluation.benchmarks.yes_no_canaries import yes_no_canaries
from srum_ds.judges.protocol import Question, Reply
from srum_ds.prompts.files import found_in
from srum_ds.types import Prompt

CATEGORIES = ("global", "entity", "attribute", "relation", "other")
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
ANSWERS = ("Yes", "yes", "No", "no")
FILE = "dpg_bench.csv"
CATEGORY = "dense"


def yes_share(reply: Reply) -> float | None:
    """P(yes) / (P(yes) + P(no)) in [0, 1]; None without an answer, or where neither word is probable at all."""
    if reply.error or len(reply.probabilities) != len(ANSWERS):
        return None
    yes, no = sum(reply.probabilities[:2]), sum(reply.probabilities[2:])
    return yes / (yes + no) if yes + no > 0 else None


def with_parents(yes: Mapping[int, bool], parents: Mapping[int, tuple[int, ...]]) -> dict[int, bool]:
    """What counts as yes: yes, and so do all questions that it depends on (by id; 0 is none).

    As in the released script, questions are settled in their order, so that a no passes on to what follows it.
    """
    counts = dict(yes)
    for number in yes:
        if any(parent and not counts[parent] for parent in parents[number]):
            counts[number] = False
    return counts


@dataclass(frozen=True)
class Proposition:
    """One question of a prompt. parents: ids that it depends on, 0 for none. category: one of ``CATEGORIES``."""

    number: int
    question: str
    parents: tuple[int, ...]
    category: str


class Dpg:
    """Grades a picture by the share of its questions that count as yes."""

    def questions(self, prompt: Prompt) -> list[Question]:
        """One yes/no question a proposition, by its id. UserError for a prompt without ``propositions``."""
        return [ask(f"q{one.number}", one.question) for one in _propositions(prompt)]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """100 x the share that counts; parts: 100 x the share answered yes by category. One failed answer fails all."""
        asked = _propositions(prompt)
        counts = {name: sum(one.category == name for one in asked) for name in CATEGORIES}
        weights = {name: float(count) for name, count in counts.items() if count}
        parts: dict[str, float | None] = dict.fromkeys(weights)
        yes: dict[int, bool] = {}
        for one in asked:
            reply = replies[f"q{one.number}"]
            share = yes_share(reply)
            if share is None:
                why = reply.error or "neither yes nor no is probable"
                return Grade(None, parts, failure=f"{one.question} {why}", weights=weights)
            yes[one.number] = share > 0.5
        settled = with_parents(yes, {one.number: one.parents for one in asked})
        for name in parts:
            given = [yes[one.number] for one in asked if one.category == name]
            parts[name] = 100 * sum(given) / len(given)
        words = "; ".join(f"{one.question} {_said(yes[one.number], settled[one.number])}" for one in asked)
        return Grade(100 * sum(settled.values()) / len(settled), parts, words=words, weights=weights)


def ask(key: str, text: str) -> Question:
    """A yes/no question; the instruction is ours, mPLUG needs none."""
    return Question(key, (f"{text} Answer yes or no.",), max_tokens=1, answers=ANSWERS)


def _said(yes: bool, counts: bool) -> str:
    return "no" if not yes else ("yes" if counts else "yes, but it depends on a no")


def _propositions(prompt: Prompt) -> list[Proposition]:
    records = prompt.meta.get("propositions")
    if not records:
        raise UserError(f"prompt {prompt.id!r}: no record of DPG-Bench (its meta has no 'propositions')")
    return [Proposition(one["number"], one["question"], tuple(one["parents"]), one["category"]) for one in records]


def read(source: Path | None) -> list[Prompt]:
    """The prompts of ``dpg_bench.csv``, of its folder (with perhaps ``prompts/ID.txt``), or of a checkout of ELLA.

    A prompt's id is ``dpg-ITEM``; where ``prompts`` is there, its texts are the ones drawn, and every item must have
    one. UserError without a file, and naming the line of a row that is malformed.
    """
    if source is None:
        raise UserError(
            f"--prompts is missing: DPG-Bench's questions are dpg_bench/{FILE} of "
            f"https://github.com/TencentQQGYLab/ELLA (Apache-2.0); give that file or the folder dpg_bench"
        )
    path = found_in(source, (FILE, f"dpg_bench/{FILE}"), "TencentQQGYLab/ELLA")
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: holds no questions")
    texts = _texts(path.parent / "prompts")
    items: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for where, row in rows:
        items.setdefault(row["item_id"], []).append((where, row))
    prompts = []
    for item, found in items.items():
        text = found[0][1]["text"].strip() if texts is None else texts.get(item, "")
        if not text:
            where = found[0][0]
            raise UserError(f"{where}: item {item!r} has no text (no prompts/{item}.txt, or an empty one)")
        prompts.append(Prompt(f"dpg-{item}", text, CATEGORY, (), {"item": item, "propositions": _checked(found)}))
    asked = {prompt.meta["item"] for prompt in prompts}
    strays = sorted(set(texts or ()) - asked)
    if strays:
        raise UserError(f"{path}: has no questions for {len(strays)} files of prompts/, such as {strays[0]}.txt")
    return prompts


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        text = file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: line 1: has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if any(row[name] is None or not row[name].strip() for name in COLUMNS if name != "text"):
            empty = [name for name in COLUMNS if name != "text" and not (row[name] or "").strip()]
            raise UserError(f"{where}: {', '.join(empty)} is empty")
        yield where, {name: (row[name] or "").strip() for name in COLUMNS}


def _checked(found: list[tuple[str, dict[str, str]]]) -> list[dict[str, Any]]:
    records: dict[int, dict[str, Any]] = {}
    for where, row in found:
        try:
            number = int(row["proposition_id"])
            parents = [int(part) for part in row["dependency"].split(",")]
        except ValueError:
            raise UserError(
                f"{where}: proposition_id {row['proposition_id']!r} and dependency {row['dependency']!r}: expected a "
                f"number, and numbers with commas between them (0: none)"
            ) from None
        category = row["tuple"].split("(")[0].split("-")[0].strip().lower()
        if category not in CATEGORIES:
            raise UserError(f"{where}: tuple {row['tuple']!r} begins with none of {', '.join(CATEGORIES)}")
        if number in records:
            raise UserError(f"{where}: proposition {number} of item {row['item_id']!r} occurs twice")
        records[number] = {
            "number": number,
            "question": row["question_natural_language"],
            "parents": parents,
            "category": category,
            "where": where,
        }
    for record in records.values():
        strays = [parent for parent in record["parents"] if parent and parent not in records]
        where = record.pop("where")
        if strays:
            raise UserError(f"{where}: depends on proposition {strays[0]}, which its item does not have")
    return list(records.values())


def _texts(folder: Path) -> dict[str, str] | None:
    if not folder.is_dir():
        return None
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            texts[path.stem] = file_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
    return texts


def canaries() -> tuple[Canary, ...]:
    """Pictures made here, whose answers are known."""
    return yes_no_canaries(ask, yes_share)


def figures(categories: object) -> list[Figure]:
    """The mean over all pictures; categories of questions are part figures."""
    return [Figure("overall", {CATEGORY: 1.0})]


def _row(model: str, overall: float, *by_category: float) -> Published:
    source = "arXiv 2505.14683 and 2501.17811 (mPLUG-large), as repeated in the tables of later papers"
    return Published(model, {**dict(zip(CATEGORIES, by_category, strict=True)), "overall": overall}, source)


# Categories are not weighted into the overall figure: that one counts answers with what they depend on.
PUBLISHED = (
    _row("SDXL", 74.65, 83.27, 82.43, 80.91, 86.76, 80.41),
    _row("DALL-E 3", 83.50, 90.97, 89.61, 88.39, 90.58, 89.83),
    _row("SD3-Medium", 84.08, 87.90, 91.01, 88.83, 80.70, 88.68),
    _row("FLUX.1-dev", 83.84, 74.35, 90.00, 88.96, 90.87, 88.33),
    _row("Janus-Pro-7B", 84.19, 86.90, 88.90, 89.40, 89.32, 89.48),
    _row("OmniGen2", 83.57, 88.81, 88.83, 90.18, 89.37, 90.27),
    _row("BAGEL", 85.07, 88.94, 90.37, 91.29, 90.82, 88.67),
)

BENCHMARK = Benchmark(
    name="dpg",
    version="1",
    read=read,
    grading=Dpg(),
    figures=figures,
    samples=4,
    full=100.0,
    part_figures=CATEGORIES,
    canaries=canaries,
    published=PUBLISHED,
    notice="DPG-Bench: Apache-2.0, Tencent, https://github.com/TencentQQGYLab/ELLA",
)
