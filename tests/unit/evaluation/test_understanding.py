"""Questions with answers to choose from: their files, what is read out of an answer, and accuracy by hand."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation.understanding.accuracy import accuracy, clustered_error, compare, mcnemar
from srum_ds.evaluation.understanding.asking import Answer, ask_items, choose, read_choice
from srum_ds.evaluation.understanding.items import Item
from srum_ds.evaluation.understanding.mmbench import read_mmbench
from srum_ds.evaluation.understanding.mme import read_mme
from srum_ds.evaluation.understanding.mmmu import read_mmmu
from srum_ds.worlds.shapes.understanding import shapes_items


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(stream, "PNG")
    return stream.getvalue()


def coded(color: str = "red") -> str:
    return base64.b64encode(png(color)).decode()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("split", [False, True])
def test_mme_folders_are_read(tmp_path: Path, split: bool) -> None:
    pictures = tmp_path / "color" / "images" if split else tmp_path / "color"
    texts = tmp_path / "color" / "questions_answers_YN" if split else tmp_path / "color"
    pictures.mkdir(parents=True)
    texts.mkdir(exist_ok=True)
    (pictures / "0001.png").write_bytes(png())
    (texts / "0001.txt").write_text("Is it red? Please answer yes or no.\tYes\r\nIs it blue?\tNo")
    (tmp_path / "README.txt").write_text("about these files")
    found = read_mme(tmp_path)
    assert [(item.category, item.answer) for item in found.items] == [("color", "yes"), ("color", "no")]
    assert found.items[0].question == "Is it red? Please answer yes or no."
    assert found.items[0].group == found.items[1].group
    assert found.items[0].pixels()[:, 0, 0].tolist() == [1, 0, 0]
    (texts / "0002.txt").write_text("Is it red?\tYes")
    with pytest.raises(UserError, match=r"0002.txt: no picture"):
        read_mme(tmp_path)
    (texts / "0002.txt").write_text("Is it red?\tmaybe")
    (pictures / "0002.png").write_bytes(png())
    with pytest.raises(UserError, match=r"0002.txt: line 1: the answer is 'maybe'"):
        read_mme(tmp_path)


def test_mme_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("blue"))
    path = tmp_path / "mme.jsonl"
    rows = [
        {"image": "a.png", "question": "Is it blue?", "answer": "yes", "category": "color"},
        {"image": coded(), "question": "Is it blue?", "answer": "No"},
        {"image": coded(), "question": "Is it red?", "answer": "Yes"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    items = read_mme(path).items
    assert [item.answer for item in items] == ["yes", "no", "yes"]
    assert items[1].group == items[2].group != items[0].group
    for change, message in (
        ({"image": "b.png"}, "line 1: no such picture"),
        ({"image": ""}, "line 1: expected a picture"),
        ({"question": ""}, "line 1: expected a question"),
        ({"image": "!!!"}, "line 1: its picture is no base64"),
    ):
        path.write_text(json.dumps({**rows[0], **change}))
        with pytest.raises(UserError, match=message):
            read_mme(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="record 1: is int"):
        read_mme(path)


MMMU = {
    "id": "validation_Art_Theory_7",
    "question": "Which is it? <image 1>",
    "options": "['a cat', 'a dog', 'a <image 1>']",
    "answer": "B",
    "image_1": {"bytes": coded()},
    "image_2": None,
    "question_type": "multiple-choice",
}


def test_mmmu_leaves_out_and_counts_what_no_judge_can_take(tmp_path: Path) -> None:
    path = tmp_path / "mmmu.jsonl"
    rows = [
        MMMU,
        {**MMMU, "id": "2", "image_2": coded()},
        {**MMMU, "id": "3", "options": "['<image 1>', '<image 2>']"},
        {**MMMU, "id": "4", "question_type": "open"},
        {**MMMU, "id": "5", "answer": "?"},
        {**MMMU, "id": "6", "options": ["a cat", "a dog"], "answer": "a dog"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_mmmu(path)
    assert dict(found.left_out) == {"more than one picture": 2, "open question": 1, "no answer given": 1}
    first, last = found.items
    assert (first.answer, first.options, first.category) == ("B", ("A", "B", "C"), "Art_Theory")
    assert first.question.splitlines()[:3] == ["Which is it?", "A. a cat", "B. a dog"]
    assert (last.answer, last.category) == ("B", "")
    for change, message in (
        ({"options": "a cat"}, "line 1: options is no list"),
        ({"options": "(" * 5000 + ")" * 5000}, "line 1: options is no list"),
        ({"options": "['a cat', '\\ud800']"}, "line 1: options"),
        ({"options": ["a cat"]}, "line 1: expected a question and options"),
        ({"answer": "Z"}, "line 1: the answer is 'Z'"),
        ({"image_1": None}, "line 1: has no picture"),
    ):
        path.write_text(json.dumps({**MMMU, **change}))
        with pytest.raises(UserError, match=message):
            read_mmmu(path)
    path.write_text("\n".join(map(json.dumps, [MMMU, MMMU])))
    with pytest.raises(UserError, match="line 2: the id 'validation_Art_Theory_7' occurs twice"):
        read_mmmu(path)
    with pytest.raises(UserError, match="convert it to JSON lines"):
        read_mmmu(tmp_path / "mmmu.parquet")


def mmbench(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "mmbench.tsv"
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_mmbench_tables_are_read_and_their_options_rotated(tmp_path: Path) -> None:
    # Longer than what the csv module takes by default.
    stream = io.BytesIO()
    Image.effect_noise((500, 500), 80).save(stream, "PNG")
    large = base64.b64encode(stream.getvalue()).decode()
    assert len(large) > 131072
    rows = (
        f"0\tWhich is it?\tLook.\ta cat\ta dog\ta cow\t\tC\tanimals\t{large}",
        '1\t"Is it ""it""?"\tnan\tyes\tno\tnan\tnan\tA\tlogic\t0',
        "2\tAnd this?\t\ta\tb\t\t\t\tlogic\t0",
    )
    path = mmbench(tmp_path, *rows)
    found = read_mmbench(path)
    assert dict(found.left_out) == {"no answer given": 1}
    first, second = found.items
    assert first.question.splitlines()[:3] == ["Look.", "Which is it?", "A. a cat"]
    assert second.question.splitlines()[0] == 'Is it "it"?'
    assert second.picture == first.picture == stream.getvalue()
    turned = read_mmbench(path, circular=True).items
    assert [item.key for item in turned] == ["0-0", "0-1", "0-2", "1-0", "1-1"]
    assert [item.answer for item in turned] == ["C", "B", "A", "A", "B"]
    assert [item.texts[0] for item in turned] == ["a cat", "a dog", "a cow", "yes", "no"]
    assert {item.unit for item in turned} == {"0", "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0\tWhich?\t\ta\t\tc\t\tA\tx\t", "line 2: index, question or image is empty"),
        ("0\tWhich?\t\ta\t\tc\t\tA\tx\tAAAA", "line 2: has options A, C"),
        ("0\tWhich?\t\ta\tb\t\t\tC\tx\tAAAA", "line 2: the answer is 'C'"),
        ("0\tWhich?\t\ta\tb\t\t\tA\tx\t!", "line 2: its picture is no base64"),
    ],
)
def test_malformed_mmbench_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_mmbench(mmbench(tmp_path, row))


def test_the_embedded_world_asks_the_same_for_the_same_seed() -> None:
    found = shapes_items(6)
    assert len(found.items) == 72
    assert all(item.answer in item.options for item in found.items)
    assert {item.category for item in found.items} == {"match", "exist", "where", "direction"}
    assert found == shapes_items(6) != shapes_items(6, seed=1)
    assert found.items[0].pixels().shape == (3, 64, 64)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. a dog", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("The answer is (C)", "C"),
        ("A dog is there", "B"),
        ("A horse is there", ""),
        ("I think B", "B"),
        ("It shows a cow", "C"),
        ("A or B", ""),
        ("a cat and a dog", ""),
        ("", ""),
        ("D", ""),
    ],
)
def test_written_letters_are_read_only_where_they_are_one(text: str, said: str) -> None:
    assert read_choice(text, ("A", "B", "C"), ("a cat", "a dog", "a cow")) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), ("There is no dog", "no"), ("yes and no", ""), ("nope", "")],
)
def test_written_yes_and_no_are_read(text: str, said: str) -> None:
    assert read_choice(text, ("yes", "no")) == said


def test_a_model_that_says_something_else_has_failed() -> None:
    item = Item("q", "Is it?", ("yes", "no"), "yes", png())
    assert choose(item, [0.3, 0.1]).right
    assert not choose(item, [0.1, 0.3]).right
    for shares in ([0.01, 0.02], [math.nan, 0.5]):
        failed = choose(item, shares)
        assert failed.failure and not failed.said


class Saying:
    """A judge that gives the same probabilities to every question, and remembers what it was shown."""

    def __init__(self, *shares: float) -> None:
        self.shares = shares
        self.shown: list[int] = []

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        self.shown.append(len(images))
        assert image_index is not None and len(image_index) == len(questions)
        return torch.tensor(self.shares)[: len(answers)].log().expand(len(questions), -1)

    def answer(self, images: Sequence[Tensor], questions: Sequence[str], *_: object, **__: object) -> list[str]:
        return ["The answer is B."] * len(questions)

    def text_logprob(self, *_: object, **__: object) -> Tensor:
        raise NotImplementedError


def test_items_come_back_in_order_and_a_picture_is_shown_once_a_batch() -> None:
    yes_no = [Item(f"y{n}", "Is it?", ("yes", "no"), ("yes", "no")[n % 2], png()) for n in range(3)]
    letters = [Item(f"l{n}", "Which?", ("A", "B"), "B", png("blue")) for n in range(2)]
    items = [yes_no[0], letters[0], yes_no[1], letters[1], yes_no[2]]
    # yes 0.1 + 0.1 and no 0.5 + 0.1; A 0.1 and B 0.1 (the first where they tie).
    judge = Saying(0.1, 0.1, 0.5, 0.1)
    answers = ask_items(judge, items, batch=2)
    assert [answer.key for answer in answers] == ["y0", "l0", "y1", "l1", "y2"]
    assert [answer.said for answer in answers] == ["no", "A", "no", "A", "no"]
    assert judge.shown == [1, 1, 1]
    written = ask_items(judge, letters, readout="generate")
    assert [answer.right for answer in written] == [True, True]
    with pytest.raises(UserError, match="--readout 'guess'"):
        ask_items(judge, items, readout="guess")


# ---------------------------------------------------------------- accuracy


def answered(items: Sequence[Item], right: Sequence[bool | None]) -> list[Answer]:
    return [
        Answer(item.key, "" if value is None else "yes", bool(value), "failed" if value is None else "")
        for item, value in zip(items, right, strict=True)
    ]


def pairs_of(pictures: int) -> list[Item]:
    return [
        Item(f"{n}-{k}", "?", ("yes", "no"), "yes", png(), "a" if n < pictures // 2 else "b", str(n))
        for n in range(pictures)
        for k in range(2)
    ]


def test_accuracy_and_acc_plus_by_hand() -> None:
    items = pairs_of(4)
    found = accuracy(items, answered(items, [True, True, True, False, False, False, True, None]))
    overall = found["overall"]
    # 4 of 7; pictures 0 (both right), 1 and 2 are whole: 1 of 3.
    assert overall["mean"] == pytest.approx(400 / 7) and overall["n"] == 7 and overall["failures"] == 1
    assert overall["failures_wrong"] == pytest.approx(50)
    assert overall["acc_plus"] == pytest.approx(100 / 3) and overall["pictures"] == 3
    assert overall["score"] == pytest.approx(400 / 7 + 100 / 3)
    a = found["by_category"]["a"]
    assert (a["mean"], a["n"], a["acc_plus"], a["score"]) == (75, 4, 50, 125)
    # Sums of deviations of the two pictures: 0.25 + 0.25 and 0.25 - 0.75: sqrt(2 x (0.25 + 0.25)) / 4.
    assert a["stderr"] == pytest.approx(100 * 1.0 / 4)
    nothing = accuracy(items, answered(items, [None] * 8))["overall"]
    assert nothing["mean"] is None and nothing["failures"] == 8 and nothing["failures_wrong"] == 0


def test_a_rotated_question_is_right_where_every_rotation_is() -> None:
    items = [Item(f"{n}-{k}", "?", ("A", "B"), "A", png(), "", str(n), str(n)) for n in range(4) for k in range(2)]
    right = [True, True, True, False, None, True, None, False]
    overall = accuracy(items, answered(items, right))["overall"]
    assert (overall["n"], overall["failures"], overall["mean"]) == (3, 1, pytest.approx(100 / 3))
    assert "acc_plus" not in overall


def test_two_models_are_compared_on_what_both_answered() -> None:
    items = pairs_of(4)
    before = answered(items, [True, False, False, False, True, True, None, True])
    after = answered(items, [True, True, True, False, False, True, True, True])
    overall = compare(items, before, after)["overall"]
    assert (overall["wins"], overall["losses"], overall["ties"], overall["unpaired"]) == (2, 1, 4, 1)
    assert overall["difference"] == pytest.approx(100 / 7)
    # Three tosses, 2 to 1: as even as can be.
    assert overall["p"] == pytest.approx(1.0)
    assert mcnemar(8, 0) == pytest.approx(2 / 256)
    assert mcnemar(0, 0) == 1.0


def test_clustered_errors_are_plain_ones_for_clusters_of_one() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    plain = torch.tensor(values).std().item() / math.sqrt(5)
    assert clustered_error(values, list("abcde")) == pytest.approx(plain)
    # The same measurement twice is no more than once.
    assert clustered_error(values * 2, list("abcde") * 2) == pytest.approx(plain)
    assert math.isnan(clustered_error([1.0, 0.0], ["a", "a"]))
