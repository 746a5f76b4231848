"""T2I-ReasonBench's prompts and the questions about them, from the user's own checkout: nothing of it is shipped here.

Its files were written by a language model, and some items of them are irregular: keys with a prefix (``sci_q1``),
numbers that go on from the section before, a further key ``scoring``, criteria that are objects of several shapes, and
prompts that differ from the file of questions. All of these are taken; what cannot be is named by file and item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.prompts.files import id_of, read_objects, text_of
from srum_ds.types import Prompt

REASONBENCH_SECTIONS: Mapping[str, Mapping[str, str]] = {
    "idiom": {"reason": "reason_evaluation", "quality": "quality_evaluation"},
    "textual_image": {"reason": "reason_evaluation", "quality": "quality_evaluation"},
    "entity": {
        "reason": "entity_evaluation",
        "details": "other_details_evaluation",
        "quality": "quality_evaluation",
    },
    "scientific": {
        "reason": "scientific_evaluation",
        "details": "other_details_evaluation",
        "quality": "quality_evaluation",
    },
}
"""Category -> section, as ``Prompt.meta["sections"]`` names it -> its key in the file of questions."""

PROMPT_FILES = {
    "idiom": "idiom_interpretation.json",
    "textual_image": "textual_image_design.json",
    "entity": "entity_reasoning.json",
    "scientific": "scientific_reasoning.json",
}
# q1, c12; with whatever a model put before: aq1, sci_c1, detail_q2.
_KEY = re.compile(r"(?P<prefix>[A-Za-z_]*?)(?P<kind>[qc])(?P<number>[0-9]{1,4})")
_SCORING = re.compile(r"score_(?P<number>[0-9]{1,4})")
# A criterion for one score: "1", "0.5", "score_0".
_LEVEL = re.compile(r"(?:score_)?(?P<level>0|0\.5|1)")
# Keys that only wrap the text of a criterion.
_WRAPPERS = ("criteria", "score")
_KEPT = ("tag", "idiom", "idiom_meaning", "explicit_meaning")


def read_reasonbench(source: Path) -> dict[str, list[Prompt]]:
    """T2I-ReasonBench's prompts as one split, "test": 200 of each of four categories.

    source: the checkout, with ``prompts/`` and ``deepseek_evaluation_qs/``. Texts are those of ``prompts/``; where the
    file of questions has another text, that stands in ``meta["asked_of"]``. ``meta["sections"]`` has the questions:
    section -> list of [question, criterion], the sections being those of ``REASONBENCH_SECTIONS``. Raises UserError
    naming file and item for what is missing, occurs twice or is of no known shape.
    """
    if not source.is_dir():
        raise UserError(f"{source}: expected the folder of a checkout of KaiyueSun98/T2I-ReasonBench")
    prompts: list[Prompt] = []
    for category, name in PROMPT_FILES.items():
        texts = _by_id(source / "prompts" / name)
        questions = _by_id(source / "deepseek_evaluation_qs" / f"evaluation_{category}.json")
        if texts.keys() != questions.keys():
            lacking = sorted(texts.keys() ^ questions.keys())
            raise UserError(
                f"{source}: {category}: {len(lacking)} ids stand in only one of prompts/{name} and "
                f"deepseek_evaluation_qs/evaluation_{category}.json, such as {lacking[0]}; take both from one checkout"
            )
        prompts.extend(_prompt(category, number, texts[number], questions[number]) for number in texts)
    return {"test": prompts}


def _by_id(path: Path) -> dict[int, tuple[str, Mapping[str, Any]]]:
    items: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for where, item in read_objects(path):
        number = id_of(item, "id", where)
        if number in items:
            raise UserError(f"{where}: the id {number} occurs twice")
        items[number] = (f"{where} (id {number})", item)
    return items


def _prompt(
    category: str, number: int, said: tuple[str, Mapping[str, Any]], asked: tuple[str, Mapping[str, Any]]
) -> Prompt:
    text = text_of(said[1], "prompt", said[0])
    meta: dict[str, Any] = {key: said[1][key] for key in _KEPT if isinstance(said[1].get(key), str)}
    asked_of = text_of(asked[1], "prompt", asked[0])
    if asked_of != text:
        meta["asked_of"] = asked_of
    meta["sections"] = {
        section: _section(asked[1].get(key), f"{asked[0]}: {key}")
        for section, key in REASONBENCH_SECTIONS[category].items()
    }
    return Prompt(f"reasonbench-{category}-{number:04d}", text, category, (), meta)


def _section(section: object, where: str) -> list[list[str]]:
    if not isinstance(section, dict) or not section:
        raise UserError(f"{where}: expected an object of questions q1, ... and criteria c1, ..., found {section!r}")
    questions: dict[tuple[str, int], str] = {}
    criteria: dict[tuple[str, int], str] = {}
    scoring: dict[int, str] = {}
    for key, value in section.items():
        if key == "scoring":
            scoring = _scoring(value, f"{where}: scoring")
            continue
        named = _KEY.fullmatch(key)
        if named is None:
            raise UserError(f"{where}: {key!r} is neither a question (q1) nor a criterion (c1)")
        place = (named["prefix"], int(named["number"]))
        if named["kind"] == "q":
            questions[place] = text_of(section, key, where)
        else:
            criteria[place] = _criterion(value, f"{where}: {key}")
    if questions.keys() != criteria.keys():
        prefix, number = sorted(questions.keys() ^ criteria.keys())[0]
        raise UserError(f"{where}: {prefix}q{number} and {prefix}c{number} do not stand together; one is missing")
    strays = scoring.keys() - {number for _, number in questions}
    if strays:
        raise UserError(f"{where}: scoring: score_{min(strays)} is of no question")
    return [
        [question, " ".join([criteria[place], *([scoring[place[1]]] if place[1] in scoring else [])])]
        for place, question in questions.items()
    ]


def _scoring(value: object, where: str) -> dict[int, str]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with score_1, ..., found {value!r}")
    named = {key: _SCORING.fullmatch(key) for key in value}
    for key, match in named.items():
        if match is None:
            raise UserError(f"{where}: {key!r} is not score_1, score_2, ...")
    return {int(match["number"]): text_of(value, key, where) for key, match in named.items() if match is not None}


def _criterion(value: object, where: str) -> str:
    """A criterion as text: text itself, {"criteria": text}, or an object with a text for each of 1, 0.5 and 0."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _WRAPPERS:
        return text_of(value, next(iter(value)), where)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: expected a criterion as text or as an object, found {value!r}")
    levels: dict[str, str] = {}
    for key in value:
        named = _LEVEL.fullmatch(key)
        if named is None:
            raise UserError(f"{where}: {key!r} is no score that a criterion can be for (1, 0.5 or 0)")
        if named["level"] in levels:
            raise UserError(f"{where}: two criteria for the score {named['level']}")
        levels[named["level"]] = text_of(value, key, where)
    return "; ".join(f"{level}: {levels[level]}" for level in sorted(levels, key=float, reverse=True))
