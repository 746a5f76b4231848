"""GenEval 2, DPG-Bench and UniGenBench: grades worked out by hand, and their files, well-formed and not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.aggregate import Row, figures_of_parts
from srum_ds.evaluation.benchmarks import dpg, geneval2, load_benchmark, unigenbench
from srum_ds.judges.protocol import Reply
from srum_ds.types import Prompt

ATOMS = {
    "prompt": "two green cups under a lamp",
    "atom_count": 5,
    "vqa_list": [
        ["How many cups are in the image?", "two"],
        ["Are the cups green?", "Yes"],
        ["Are there any cups in the image?", "Yes"],
        ["Are the cups under the lamp?", "Yes"],
    ],
    "skills": ["count", "attribute", "object", "position"],
}
CSV_HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)


def probably(*values: float) -> Reply:
    return Reply(probabilities=values)


# ---------------------------------------------------------------- GenEval 2


def test_soft_tifa_is_the_probability_of_the_right_spellings(tmp_path: Path) -> None:
    (tmp_path / "geneval2_data.jsonl").write_text(json.dumps(ATOMS) + "\r\n\n")
    benchmark = load_benchmark("geneval2")
    (prompt,) = benchmark.read(tmp_path)
    assert (prompt.id, prompt.category, prompt.text) == ("geneval2-0000", "atoms_5", ATOMS["prompt"])
    grading = geneval2.SoftTifa()
    questions = grading.questions(prompt)
    assert questions[0].turns == ("How many cups are in the image? Answer in one word.",)
    assert questions[0].answers == ("two", "Two", "2", *"13456789")
    assert questions[1].answers == ("Yes", "yes", "No", "no")
    replies = {
        "q0": probably(0.5, 0.1, 0.2),
        "q1": probably(0.5, 0.0, 0.4, 0.1),
        "q2": probably(0.9, 0.1, 0.0, 0.0),
        "q3": probably(0.1, 0.1, 0.8, 0.0),
    }
    grade = grading.grade(prompt, replies)
    # 0.8, 0.5, 1.0, 0.2: AM 0.625, GM 0.08 ** 0.25.
    assert grade.value == pytest.approx(100 * 0.08**0.25)
    parts = {"soft_tifa_am": 62.5, "count": 80, "attribute": 50, "object": 100, "position": 20}
    assert dict(grade.parts) == pytest.approx(parts)
    assert set(parts) <= set(benchmark.part_figures)


def test_an_atom_without_an_answer_fails_the_picture_and_is_no_zero(tmp_path: Path) -> None:
    prompt = Prompt("p", "text", "atoms_5", (), ATOMS)
    right = {f"q{n}": probably(1.0, 0.0, 0.0) for n in range(4)}
    for broken in (Reply(error="no answer in 5 attempts"), Reply(), probably(1.0, 0.9, 0.0), probably(math.nan, 0.0)):
        grade = geneval2.SoftTifa().grade(prompt, {**right, "q2": broken})
        assert grade.value is None and "Are there any cups" in grade.failure
        assert set(grade.parts.values()) == {None}
    zero = geneval2.SoftTifa().grade(prompt, {**right, "q2": probably(0.0, 0.0, 1.0)})
    assert zero.value == 0 and zero.parts["soft_tifa_am"] == 75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "line 2: expected prompt"),
        ({"atom_count": "5"}, "line 2: expected prompt"),
        ({"skills": ["count"]}, "line 2: expected vqa_list"),
        ({"vqa_list": []}, "line 2: expected vqa_list"),
        ({"skills": ["count", "attribute", "object", "mood"]}, "skill 'mood'"),
        ({"vqa_list": [["How many cups?", "lots"], *ATOMS["vqa_list"][1:]]}, "'lots'"),  # type: ignore[index]
    ],
)
def test_malformed_geneval2_records_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(ATOMS) + "\n" + json.dumps({**ATOMS, **change}) + "\n")
    with pytest.raises(UserError, match=message):
        geneval2.read(path)
    path.write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"file.jsonl: line 1: not valid JSON"):
        geneval2.read(path)
    with pytest.raises(UserError, match="CC BY-NC"):
        geneval2.read(None)


# ---------------------------------------------------------------- DPG-Bench


def dpg_csv(rows: Sequence[str]) -> str:
    return CSV_HEAD + "".join(row + "\n" for row in rows)


ROWS = (
    'cafe,"A cat, and a lamp",,1,0,entity,whole,entity - whole (cat),Is there a cat?',
    'cafe,"A cat, and a lamp",,2,1,attribute,color,"attribute - color (cat, red)",Is the cat red?',
    'cafe,"A cat, and a lamp",,3,"1,2",relation,spatial,"relation - spatial (cat, lamp)",Is the cat on it?',
    'cafe,"A cat, and a lamp",,4,0,global,,global - (photo),Is this a photo?',
)


def dpg_prompt(tmp_path: Path) -> Prompt:
    (tmp_path / "dpg_bench.csv").write_text(dpg_csv(ROWS))
    (prompt,) = load_benchmark("dpg").read(tmp_path)
    return prompt


def test_a_question_whose_parent_is_no_counts_as_no(tmp_path: Path) -> None:
    prompt = dpg_prompt(tmp_path)
    assert (prompt.id, prompt.text) == ("dpg-cafe", "A cat, and a lamp")
    grading = dpg.Dpg()
    questions = grading.questions(prompt)
    assert [one.key for one in questions] == ["q1", "q2", "q3", "q4"]
    assert questions[1].turns == ("Is the cat red? Answer yes or no.",)
    yes, no = probably(0.6, 0.1, 0.2, 0.0), probably(0.1, 0.0, 0.3, 0.2)
    all_yes = grading.grade(prompt, dict.fromkeys(("q1", "q2", "q3", "q4"), yes))
    assert all_yes.value == 100
    # No cat: its colour and place count as no, though both were answered yes.
    no_cat = grading.grade(prompt, {"q1": no, "q2": yes, "q3": yes, "q4": yes})
    assert no_cat.value == 25
    assert dict(no_cat.parts) == {"global": 100, "entity": 0, "attribute": 100, "relation": 100}
    assert "Is the cat red? yes, but it depends on a no" in no_cat.words
    not_red = grading.grade(prompt, {"q1": yes, "q2": no, "q3": yes, "q4": yes})
    assert not_red.value == 50
    failed = grading.grade(prompt, {"q1": yes, "q2": Reply(error="timed out"), "q3": yes, "q4": yes})
    assert failed.value is None and failed.failure == "Is the cat red? timed out"
    silent = grading.grade(prompt, {"q1": yes, "q2": probably(0, 0, 0, 0), "q3": yes, "q4": yes})
    assert silent.value is None and "neither yes nor no" in silent.failure


def test_the_texts_of_the_prompts_folder_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "dpg_bench.csv").write_text(dpg_csv(ROWS))
    folder = tmp_path / "prompts"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no prompts/cafe.txt"):
        dpg.read(tmp_path)
    (folder / "cafe.txt").write_text("A cat and a lamp, in short.")
    assert dpg.read(tmp_path)[0].text == "A cat and a lamp, in short."
    (folder / "stray.txt").write_text("nobody asks about this")
    with pytest.raises(UserError, match=r"1 files of prompts/, such as stray.txt"):
        dpg.read(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cafe,text,,5,9,entity,whole,entity - whole (x),Is it?", "line 6: depends on proposition 9"),
        ("cafe,text,,1,0,entity,whole,entity - whole (x),Is it?", "line 6: proposition 1 of item 'cafe' occurs twice"),
        ("cafe,text,,five,0,entity,whole,entity - whole (x),Is it?", "line 6: proposition_id 'five'"),
        ("cafe,text,,5,0,entity,whole,mood (x),Is it?", "line 6: tuple 'mood"),
        ("cafe,text,,5,0,entity,whole,entity - whole (x),", "line 6: question_natural_language is empty"),
        ("cafe,text", "line 6: proposition_id, dependency"),
        ("tea,,,5,0,entity,whole,entity - whole (x),Is it?", "line 6: item 'tea' has no text"),
    ],
)
def test_malformed_dpg_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "dpg.csv"
    path.write_text(dpg_csv([*ROWS, row]))
    with pytest.raises(UserError, match=message):
        dpg.read(path)


def test_a_csv_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dpg.csv"
    path.write_text("item_id,text\na,b\n")
    with pytest.raises(UserError, match="line 1: has no column proposition_id"):
        dpg.read(path)


# ---------------------------------------------------------------- UniGenBench


def unigen_csv(tmp_path: Path, *records: str) -> Path:
    path = tmp_path / "test_prompts_en.csv"
    lines = ["index,prompt_en,sub_dims_en"]
    for number, record in enumerate(records):
        quoted = record.replace('"', '""')
        lines.append(f'{number},"two red cups, in ink","{quoted}"')
    path.write_text("\n".join(lines) + "\n")
    return path


RECORD = json.dumps(
    {
        "Primary Categories": "Art",
        "Secondary Categories": "Graphic Art",
        "Testpoints": ["Style", "Attribute - Quantity", "Attribute - Color"],
        "Testpoint Description": ["ink", "two cups", "red cups"],
    }
)


def test_unigenbench_marks_are_shares_by_dimension(tmp_path: Path) -> None:
    unigen_csv(tmp_path, RECORD)
    benchmark = load_benchmark("unigenbench")
    (prompt,) = benchmark.read(tmp_path)
    assert (prompt.id, prompt.category) == ("unigenbench-0000", "Art")
    grading = unigenbench.UniGenBench()
    (question,) = grading.questions(prompt)
    assert "2. Attribute - Quantity (The number of items, above all three or more): two cups" in question.turns[0]
    assert question.schema is not None and question.schema["properties"]["score"]["minItems"] == 3
    said = 'Here: {"analysis": ["a", "b", "c"], "score": [1, 0, 1]}'
    grade = grading.grade(prompt, {"points": Reply(texts=(said,))})
    assert grade.value == pytest.approx(200 / 3)
    assert dict(grade.parts) == {"Style": 100, "Attribute": 50}
    assert dict(grade.weights) == {"Style": 1, "Attribute": 2}
    tags = "<analysis>['a', 'b', 'c']</analysis>\n<score>[1, 0, 0]</score>"
    assert grading.grade(prompt, {"points": Reply(texts=(tags,))}).value == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "I cannot say",
        '{"score": [1, 0]}',
        '{"score": [1, 0, 2]}',
        '{"score": [1, 0, 0.5]}',
        "<score>[1, 1]</score>",
    ],
)
def test_unreadable_marks_are_failures(tmp_path: Path, said: str) -> None:
    (prompt,) = unigenbench.read(unigen_csv(tmp_path, RECORD))
    grade = unigenbench.UniGenBench().grade(prompt, {"points": Reply(texts=(said,))})
    assert grade.value is None and "expected 3 marks" in grade.failure
    assert dict(grade.parts) == {"Style": None, "Attribute": None}


def test_malformed_unigenbench_rows_are_named_and_a_missing_comma_is_put_in(tmp_path: Path) -> None:
    short = RECORD.replace(', "red cups"', "")
    with pytest.raises(UserError, match="line 3: expected Testpoints"):
        unigenbench.read(unigen_csv(tmp_path, RECORD, short))
    with pytest.raises(UserError, match="line 2: test point 'Mood'"):
        unigenbench.read(unigen_csv(tmp_path, RECORD.replace('["Style"', '["Mood"')))
    with pytest.raises(UserError, match="line 2: sub_dims_en is not valid JSON"):
        unigenbench.read(unigen_csv(tmp_path, RECORD[:-1]))
    # As one record of the authors' long file has it.
    (prompt,) = unigenbench.read(unigen_csv(tmp_path, RECORD.replace('"Style", ', '"Style" ')))
    assert [name for name, _ in prompt.meta["points"]] == ["Style", "Attribute - Quantity", "Attribute - Color"]
    assert "comma" in prompt.meta["repaired"]
    # One description of the authors' short file is empty.
    (prompt,) = unigenbench.read(unigen_csv(tmp_path, RECORD.replace('"ink"', '""')))
    (question,) = unigenbench.UniGenBench().questions(prompt)
    assert "artist names): as the prompt has it" in question.turns[0]
    path = tmp_path / "zh.csv"
    path.write_text("index,prompt_zh,sub_dims_zh\n")
    with pytest.raises(UserError, match="use the English file"):
        unigenbench.read(path)


def test_published_overalls_are_the_means_of_ten_dimensions() -> None:
    (overall,) = load_benchmark("unigenbench").figures(["Art", "Design"])
    for row in unigenbench.PUBLISHED:
        rows = [Row(name, name, row.figures[name]) for name in unigenbench.DIMENSIONS]
        mean = figures_of_parts([overall], rows, False, False)["overall"]["mean"]
        assert mean == pytest.approx(row.figures["overall"], abs=0.006), row.model


# ---------------------------------------------------------------- canaries


@pytest.mark.parametrize("name", ["geneval2", "dpg", "unigenbench"])
def test_canaries_tell_a_seeing_judge_from_one_that_always_agrees(name: str) -> None:
    canaries = load_benchmark(name).canaries()
    assert len(canaries) >= 4
    assert all(canary.picture().startswith(b"\x89PNG") for canary in canaries)

    def says(yes: bool) -> Reply:
        return Reply(texts=(f'{{"score": [{int(yes)}]}}',), probabilities=(0.9, 0, 0.1, 0) if yes else (0.1, 0, 0.9, 0))

    agreeing = [canary.good(says(True)) for canary in canaries]
    assert any(agreeing) and not all(agreeing)
    assert [canary.good(says(False)) for canary in canaries] == [not good for good in agreeing]
    assert not any(canary.good(Reply(error="no reply")) for canary in canaries)
