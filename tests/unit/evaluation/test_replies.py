"""What is read from judges' replies, and what never is: each rule, hostile texts, and random ones."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from srum_ds.evaluation.benchmarks.replies import after_thinking, excerpt, number, numbers, read_object


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 85, "explanation": "fits"}', {"score": 85, "explanation": "fits"}),
        ('Sure! Here it is:\n```json\n{"score": 85}\n```\nAnything else?', {"score": 85}),
        ('<think>maybe {"score": 10}?</think>\n{"score": 85}', {"score": 85}),
        ('{"score": 10}</think>{"score": 85}', {"score": 85}),
        ('The set {a, b} and {"score": 85}.', {"score": 85}),
        ('{"score" is what I give: {"score": 85}', {"score": 85}),
        ('[{"score": 85}]', {"score": 85}),
        ('{"explanation": "two\nlines, a {brace} and \\"quotes\\"", "score": 3}', None),
        ('{"score": 85} and again {"score": 85.0}', {"score": 85.0}),
        ('{"reason": ["a"]}\n{"score": [1]}', {"reason": ["a"], "score": [1]}),
        ("{}", {}),
    ],
)
def test_an_object_is_found_wherever_it_stands(text: str, expected: dict[str, Any] | None) -> None:
    if expected is None:
        expected = {"explanation": 'two\nlines, a {brace} and "quotes"', "score": 3}
    assert read_object(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "85",
        "[85]",
        "The score is 85 out of 100.",
        '{"score": 85, "explanation": "cut o',
        "{'score': 85}",
        '<think>{"score": 85}',
        '{"score": 20} no, rather {"score": 90}',
        '{"score": 20, "score": 90}',
        '{"score": true}{"score": 1}',
        '[{"score": 1}, {"score": 0}]',
        '{"a":' * 100_000,
        '{"a":' + "[" * 100_000,
    ],
)
def test_what_says_nothing_or_two_things_is_no_object(text: str) -> None:
    assert read_object(text) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (85, 85.0),
        (85.0, 85.0),
        ("85", 85.0),
        (" 85.5 ", 85.5),
        ("85/100", 85.0),
        ("85 / 100", 85.0),
        ("85%", 85.0),
        (0, 0.0),
        (100, 100.0),
        (-1, None),
        (100.5, None),
        ("101", None),
        ("8/10", None),
        ("about 85", None),
        ("85 points", None),
        ("", None),
        ("\u0668\u0665", None),
        (True, None),
        (False, None),
        (None, None),
        ([85], None),
        ({"value": 85}, None),
        (float("nan"), None),
        (float("inf"), None),
        ("nan", None),
        ("9" * 5000, None),
    ],
)
def test_a_number_is_taken_as_meant_or_not_at_all(value: object, expected: float | None) -> None:
    assert number(value, 0, 100) == expected


def test_numbers_beyond_what_python_reads_are_refused_not_fatal() -> None:
    read = read_object('{"score": ' + "9" * 5000 + ', "other": NaN, "third": -Infinity}')
    assert read is not None
    assert [number(read[key], 0, 100) for key in ("score", "other", "third")] == [None, None, None]


def test_lists_have_the_length_asked_for() -> None:
    assert numbers([1, 0.5, "0"], 3, 0, 1) == [1.0, 0.5, 0.0]
    assert numbers([], 0, 0, 1) == []
    for wrong in ([1, 0.5], [1, 1, 1, 1], [1, 2, 0], [1, True, 0], "1, 0, 1", {"0": 1}, None, 1):
        assert numbers(wrong, 3, 0, 1) is None


def test_thoughts_are_no_answer() -> None:
    assert after_thinking("<think>hm</think> Score: 1") == "Score: 1"
    assert after_thinking("<think>Score: 1, because") == ""
    assert after_thinking(" Score: 1\n") == "Score: 1"
    assert after_thinking("<thinking>Score: 1") == ""
    assert after_thinking("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>Score: 1") == "Score: 1"
    assert excerpt("one\n two  three", 200) == "one two three"
    assert excerpt("x" * 300, 20) == "x" * 17 + "..."


def test_random_objects_amid_random_prose_are_read_back() -> None:
    rng = random.Random(14)
    prose = 'The picture shows "a cat", 85/100 [sic] {not json} \u2603 `x` \\ { " : , \n\t'
    for _ in range(400):
        score = rng.choice([rng.randint(0, 100), round(rng.uniform(0, 100), 2)])
        said: dict[str, Any] = {"score": score, "explanation": "".join(rng.choices(prose, k=rng.randint(0, 40)))}
        before = "".join(rng.choices(prose.replace('"', ""), k=rng.randint(0, 40)))
        after = "".join(rng.choices(prose.replace('"', ""), k=rng.randint(0, 40)))
        # An empty object in the prose would be one more object, which changes nothing.
        text = before + json.dumps(said, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5) + after
        assert read_object(text) == said
        assert read_object(f"<think>{text}</think>{text}") == said
        cut = json.dumps(said)[: rng.randint(0, len(json.dumps(said)) - 1)]
        assert read_object(cut) is None or "{" in said["explanation"]


def test_random_texts_never_raise() -> None:
    rng = random.Random(15)
    pieces = ['{"', '"', "{", "}", "[", "]", ":", ",", "\\", "\\u12", "1", "e9", "NaN", "<think>", "</think>", " ", "a"]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 60)))
        read = read_object(text)
        assert read is None or isinstance(read, dict)


@pytest.mark.parametrize(
    "piece", ['{"', '{"a":', '{"a{', "{ ", '{"a":1}', '{"a":"', "<think>", "</think>", '"\\{"', '{"a":[1,']
)
def test_time_grows_with_the_text_not_with_its_square(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    begin = time.process_time()
    read_object(text)
    # A quadratic reader takes minutes for these 400 kB, which are a hundred times the longest reply.
    assert time.process_time() - begin < 3
