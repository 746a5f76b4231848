"""Importers of T2I-ReasonBench and WISE: small files of our own with every irregularity of the public ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.prompts.importers import IMPORTERS
from srum_ds.prompts.reasonbench import PROMPT_FILES, REASONBENCH_SECTIONS, read_reasonbench
from srum_ds.prompts.records import read_records, write_records
from srum_ds.prompts.shards import check_shards, write_shards
from srum_ds.prompts.wise import read_wise, read_wise_verified
from srum_ds.types import Prompt


def _plain(count: int = 2) -> dict[str, Any]:
    return {f"{kind}{i}": f"{kind} number {i}" for i in range(1, count + 1) for kind in "qc"}


def _checkout(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Writes a checkout with three prompts a category; returns its lists by file, to be changed and written again."""
    lists: dict[str, list[dict[str, Any]]] = {}
    for category, name in PROMPT_FILES.items():
        numbers = (1, 2, 3)
        lists[f"prompts/{name}"] = [{"id": i, "prompt": f"{category} prompt {i}", "tag": "t"} for i in numbers]
        lists[f"deepseek_evaluation_qs/evaluation_{category}.json"] = [
            {
                "id": i,
                "prompt": f"{category} prompt {i}",
                "image_content": {"of": ["any", "shape"]},
                **{key: _plain() for key in REASONBENCH_SECTIONS[category].values()},
            }
            for i in numbers
        ]
    _write(folder, lists)
    return lists


def _write(folder: Path, lists: dict[str, list[dict[str, Any]]]) -> None:
    for name, items in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(items, indent=1), encoding="utf-8")


QUESTIONS = "deepseek_evaluation_qs/evaluation_scientific.json"


def test_a_regular_checkout_gives_each_prompt_its_questions(tmp_path: Path) -> None:
    _checkout(tmp_path)
    prompts = read_reasonbench(tmp_path)["test"]
    assert [p.category for p in prompts] == [name for name in PROMPT_FILES for _ in range(3)]
    first = prompts[0]
    assert (first.id, first.text) == ("reasonbench-idiom-0001", "idiom prompt 1")
    pairs = [["q number 1", "c number 1"], ["q number 2", "c number 2"]]
    assert first.meta == {"tag": "t", "sections": {"reason": pairs, "quality": pairs}}
    assert list(prompts[-1].meta["sections"]) == ["reason", "details", "quality"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        # A prefix of letters, with and without an underscore; questions and criteria apart.
        ({"sci_q1": "A?", "sci_c1": "a", "sci_q2": "B?", "sci_c2": "b"}, [["A?", "a"], ["B?", "b"]]),
        ({"aq1": "A?", "aq2": "B?", "ac1": "a", "ac2": "b"}, [["A?", "a"], ["B?", "b"]]),
        # Numbers that go on from the section before.
        ({"q4": "A?", "c4": "a", "q5": "B?", "c5": "b"}, [["A?", "a"], ["B?", "b"]]),
        # Scores beside the criteria.
        (
            {"q1": "A?", "c1": "a.", "q2": "B?", "c2": "b.", "scoring": {"score_1": "1: so", "score_2": "0: not"}},
            [["A?", "a. 1: so"], ["B?", "b. 0: not"]],
        ),
        # Criteria as objects: by score in any order, with a prefix, or in a wrapper.
        ({"q1": "A?", "c1": {"1": "yes", "0": "no", "0.5": "half"}}, [["A?", "1: yes; 0.5: half; 0: no"]]),
        (
            {"q1": "A?", "c1": {"score_1": "yes", "score_0.5": "half", "score_0": "no"}},
            [["A?", "1: yes; 0.5: half; 0: no"]],
        ),
        ({"q1": "A?", "c1": {"criteria": "Score 1: yes"}}, [["A?", "Score 1: yes"]]),
        ({"q1": "A?", "c1": {"score": "1=yes; 0=no"}}, [["A?", "1=yes; 0=no"]]),
    ],
)
def test_irregular_questions_are_taken(section: dict[str, Any], expected: list[list[str]], tmp_path: Path) -> None:
    lists = _checkout(tmp_path)
    lists[QUESTIONS][1]["scientific_evaluation"] = section
    _write(tmp_path, lists)
    by_id = {p.id: p for p in read_reasonbench(tmp_path)["test"]}
    assert by_id["reasonbench-scientific-0002"].meta["sections"]["reason"] == expected


def test_pictures_are_drawn_of_the_prompts_file_and_the_other_text_is_kept(tmp_path: Path) -> None:
    lists = _checkout(tmp_path)
    lists[QUESTIONS][2]["prompt"] = "scientific prompt 3, with its answer"
    # The two lists need not be in one order.
    lists[QUESTIONS].reverse()
    _write(tmp_path, lists)
    prompts = [p for p in read_reasonbench(tmp_path)["test"] if p.category == "scientific"]
    assert [p.text for p in prompts] == [f"scientific prompt {i}" for i in (1, 2, 3)]
    assert [p.meta.get("asked_of") for p in prompts] == [None, None, "scientific prompt 3, with its answer"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (None, r"evaluation_scientific.json: item 2 \(id 2\): scientific_evaluation: expected an object of questions"),
        ({}, "scientific_evaluation: expected an object of questions"),
        ({"q1": "A?"}, "q1 and c1 do not stand together"),
        ({"q1": "A?", "c2": "b"}, "do not stand together"),
        ({"sci_q1": "A?", "c1": "a"}, "do not stand together"),
        ({"q1": "A?", "c1": "a", "note": "x"}, "'note' is neither a question"),
        ({"q1": "", "c1": "a"}, "expected text under 'q1'"),
        ({"q1": ["A?"], "c1": "a"}, "expected text under 'q1'"),
        ({"q1": "A?", "c1": 1}, "c1: expected a criterion"),
        ({"q1": "A?", "c1": {"2": "twice"}}, "'2' is no score"),
        ({"q1": "A?", "c1": {"1": "yes", "score_1": "yes"}}, "two criteria for the score 1"),
        ({"q1": "A?", "c1": "a", "scoring": {"score_2": "x"}}, "score_2 is of no question"),
        ({"q1": "A?", "c1": "a", "scoring": {"first": "x"}}, "'first' is not score_1"),
        ({"q1": "A?", "c1": "a", "scoring": "x"}, "scoring: expected an object"),
    ],
)
def test_what_cannot_be_taken_is_named_by_file_and_item(section: Any, words: str, tmp_path: Path) -> None:
    lists = _checkout(tmp_path)
    lists[QUESTIONS][1]["scientific_evaluation"] = section
    _write(tmp_path, lists)
    with pytest.raises(UserError, match=words):
        read_reasonbench(tmp_path)


def test_broken_checkouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a checkout of KaiyueSun98/T2I-ReasonBench"):
        read_reasonbench(tmp_path / "nowhere")
    lists = _checkout(tmp_path)
    path = tmp_path / QUESTIONS
    path.write_text('[\n {"id": 1,\n  "prompt" "x"}]')
    with pytest.raises(UserError, match=r"evaluation_scientific.json: line 3: not valid JSON"):
        read_reasonbench(tmp_path)
    path.write_text('{"id": 1}')
    with pytest.raises(UserError, match="expected a list of records, found dict"):
        read_reasonbench(tmp_path)
    path.write_text('[{"id": 1}, 7]')
    with pytest.raises(UserError, match="item 2: expected an object, found int"):
        read_reasonbench(tmp_path)
    path.write_text(json.dumps([*lists[QUESTIONS], lists[QUESTIONS][0]]))
    with pytest.raises(UserError, match="item 4: the id 1 occurs twice"):
        read_reasonbench(tmp_path)
    path.write_text(json.dumps([{**lists[QUESTIONS][0], "id": "1"}]))
    with pytest.raises(UserError, match="item 1: expected a number under 'id', found '1'"):
        read_reasonbench(tmp_path)
    path.write_text(json.dumps(lists[QUESTIONS][:2]))
    with pytest.raises(UserError, match="scientific: 1 ids stand in only one of prompts/scientific_reasoning.json"):
        read_reasonbench(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="evaluation_scientific.json: cannot be read"):
        read_reasonbench(tmp_path)


WISE_FILES = {
    "cultural_common_sense": [("Cultural knowledge", "Festival", 1), ("Cultural knowledge", "Art", 2)],
    "spatio-temporal_reasoning": [("time", "Longitudinal time", 401), ("Space", "Occlusion", 568)],
    "natural_science": [
        ("Biology", "State", 701),
        ("Physical Knowledge", "Optics", 869),
        ("Chemistry", "Combustion", 901),
    ],
}


def _wise(folder: Path, ending: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, kinds in WISE_FILES.items():
        records = [
            # The public files have their keys in three orders.
            {
                "prompt_id": i,
                "Explanation": f"means {i} ",
                "Category": kind,
                "Subcategory": sub,
                "Prompt": f"prompt {i}",
            }
            for kind, sub, i in kinds
        ]
        (folder / f"{stem}{ending}.json").write_text(json.dumps(records), encoding="utf-8")


def test_both_editions_of_wise_are_read_apart(tmp_path: Path) -> None:
    _wise(tmp_path / "WISE_legacy" / "data")
    _wise(tmp_path / "WISE_legacy" / "data", "_rewrite")
    _wise(tmp_path / "data_verified", "_verified")
    (tmp_path / "data_verified" / "merge.json").write_text("[]")
    first = read_wise(tmp_path)["test"]
    assert [p.id for p in first] == [f"wise-{i:04d}" for i in (1, 2, 401, 568, 701, 869, 901)]
    kinds = ["culture", "culture", "time", "space", "biology", "physics", "chemistry"]
    assert [p.category for p in first] == kinds
    assert first[0].text == "prompt 1"
    assert first[0].meta == {"prompt_id": 1, "explanation": "means 1", "subcategory": "Festival"}
    verified = read_wise_verified(tmp_path)["test"]
    assert [p.id for p in verified] == [p.id.replace("wise-", "wise_verified-") for p in first]
    assert read_wise(tmp_path / "WISE_legacy" / "data")["test"] == first
    one = read_wise(tmp_path / "WISE_legacy" / "data" / "natural_science_rewrite.json")["test"]
    assert [p.category for p in one] == kinds[4:]
    with pytest.raises(
        UserError, match="holds the prompts of WISE's other edition; wise needs those of WISE_legacy/data"
    ):
        read_wise(tmp_path / "data_verified" / "natural_science_verified.json")
    with pytest.raises(UserError, match="other edition; wise_verified needs those of data_verified"):
        read_wise_verified(tmp_path / "WISE_legacy" / "data" / "natural_science.json")


def test_bad_files_of_wise_are_named(tmp_path: Path) -> None:
    _wise(tmp_path)
    path = tmp_path / "natural_science.json"
    good = json.loads(path.read_text())
    for change, words in (
        ({"Category": "Astrology"}, "natural_science.json: item 2: Category is 'Astrology'"),
        ({"Explanation": " "}, "item 2: expected text under 'Explanation'"),
        ({"prompt_id": True}, "item 2: expected a number under 'prompt_id'"),
        ({"prompt_id": 1}, "item 2: the prompt_id 1 occurs twice"),
    ):
        path.write_text(json.dumps([good[0], {**good[1], **change}, good[2]]))
        with pytest.raises(UserError, match=words):
            read_wise(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="natural_science.json is not there; expected a checkout of PKU-YuanGroup/WISE"):
        read_wise(tmp_path)


@pytest.mark.parametrize(
    ("kind", "make", "count"),
    [("reasonbench", _checkout, 12), ("wise", _wise, 7), ("wise_verified", lambda path: _wise(path, "_verified"), 7)],
)
def test_such_prompts_go_through_shards_and_records(
    kind: str, make: Callable[[Path], object], count: int, tmp_path: Path
) -> None:
    make(tmp_path / "source")
    prompts = IMPORTERS[kind](tmp_path / "source")["test"]
    write_shards(tmp_path / "shards", "test", prompts)
    assert check_shards(tmp_path / "shards")["test"].prompts == count == len(prompts)
    write_records(tmp_path / "prompts.jsonl", prompts)
    assert read_records(tmp_path / "prompts.jsonl") == prompts


def test_a_record_that_somebody_wrote_needs_no_more_than_an_id_and_a_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"schema": 1, "id": "a", "text": "a bench", "category": "c"}\n{"schema": 1, "id": "b", "text": "b"}\n'
    )
    assert read_records(path) == [Prompt("a", "a bench", "c"), Prompt("b", "b")]
    path.write_text('{"id": "a", "text": "a bench"}\n')
    with pytest.raises(UserError, match=r'line 1: expected an object with "schema": 1, such as \{"schema": 1, "id"'):
        read_records(path)
    path.write_text('{"schema": 1, "id": "a"}\n')
    with pytest.raises(UserError, match="line 1: expected an object with keys id, text"):
        read_records(path)
