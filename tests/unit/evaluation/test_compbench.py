"""CompBench by SRUM's protocol: what is asked, what a reply is worth, and both arithmetics, worked out by hand."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Asks, Grade, load_benchmark
from srum_ds.evaluation.benchmarks.compbench import (
    BENCHMARK,
    CompBenchGrading,
    compat_figures,
    figures,
    read,
    released_score,
)
from srum_ds.evaluation.result_tables import remarks
from srum_ds.evaluation.results import build_results
from srum_ds.evaluation.scored import Scored
from srum_ds.judges.protocol import Reply
from srum_ds.prompts.importers import COMPBENCH_CATEGORIES
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt
from tests.support.paths import SHARED

DATA = SHARED / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the public prompt files are not here")
PROMPT = Prompt("p", 'a "red" {car}', "color")


def _grade(text: str) -> Grade:
    return CompBenchGrading().grade(PROMPT, {"score": Reply((text,))})


def test_the_question_is_the_released_one_with_the_picture_first() -> None:
    (question,) = CompBenchGrading().questions(PROMPT)
    (text,) = question.turns
    assert question.picture_first and question.system == "" and question.max_tokens == 512
    assert 'aligns with the text prompt: "a "red" {car}" Give a score from 0 to 100, according the criteria: \n' in text
    assert text.count(" \n") == 6 and len(text.split("\n")) == 7
    assert text.endswith("with the following keys: score (e.g., 2), explanation (within 20 words).")
    schema = question.schema
    assert schema is not None and schema["required"] == ["score", "explanation"]


def test_a_score_is_taken_with_its_words() -> None:
    assert _grade('{"score": 85, "explanation": "all there"}') == Grade(85.0, words="all there")
    assert _grade('```json\n{"score": 0, "explanation": "nothing"}\n```') == Grade(0.0, words="nothing")
    # The released parser cuts fractions, and takes a number in quotes as this one does.
    assert _grade('{"score": 85.5, "explanation": "x"}') == Grade(85.5, words="x", raw=85.0)
    assert _grade('{"score": "85/100", "explanation": "x"}').value == 85.0


@pytest.mark.parametrize(
    ("text", "said", "raw"),
    [
        ('{"score": 850, "explanation": "x"}', "the score 850 is no number from 0 to 100", 850.0),
        ('{"score": -5, "explanation": "x"}', "the score -5 is no number", -1.0),
        ('{"score": true}', "the score True is no number", -1.0),
        ('{"score": NaN}', "the score nan is no number", -1.0),
        ('{"rating": 85}', "no score in the reply", -1.0),
        ("I would give it 85.", "no JSON object", -1.0),
        ("", "no JSON object", -1.0),
        # Cut off: the released parser still finds a number, and this one does not guess.
        ('{"score": 85, "explanation": "the pic', "no JSON object", 85.0),
        ('{"score": 20} or {"score": 90}', "not a single one", 20.0),
    ],
)
def test_what_cannot_be_taken_fails_with_its_words(text: str, said: str, raw: float) -> None:
    grade = _grade(text)
    assert grade.value is None and said in grade.failure
    assert grade.words == text and grade.raw == raw


def test_a_judge_that_gave_no_reply_is_a_failure_and_minus_one_for_the_released_code() -> None:
    grade = CompBenchGrading().grade(PROMPT, {"score": Reply(error="timed out", attempts=5)})
    assert grade == Grade(None, failure="timed out", raw=-1.0)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ('{"score": 85}', 85.0),
        # The last one inside the braces counts.
        ('{"score": 10, "score": 90}', 90.0),
        # One piece from the first brace to the last score's is no JSON, so that the first number counts.
        ('{"score": 10} {"score": 90}', 10.0),
        ('"score": 70', 70.0),
        ('"score": "70"', 70.0),
        ('"score" : 70', -1.0),
        ("'score': 70", -1.0),
        ('{"score": 5000}', 5000.0),
        ('{"score": [85]}', -1.0),
        ('{"score": ' + "9" * 5000 + "}", -1.0),
        ('{"score": ' + '{"a":' * 5000, -1.0),
    ],
)
def test_the_released_parser_counts_the_first_number_unclamped(text: str, counted: float) -> None:
    assert released_score(text) == counted


def test_reading_takes_time_linear_in_a_hostile_reply() -> None:
    for piece in ('{"score":1', '"score":1}', '{"score":1}', "{", "```json", '"score":'):
        begin = time.process_time()
        _grade(piece * 30_000)
        assert time.process_time() - begin < 3


def test_overall_is_the_mean_of_eight_where_complex_is_the_mean_of_three() -> None:
    leaves = [*COMPBENCH_CATEGORIES, "complex_action", "complex_spatial"]
    means = {name: 10.0 * i for i, name in enumerate(leaves)}
    complex_, overall = figures(leaves)
    assert complex_.name == "complex" and overall.name == "overall"
    # complex 70, complex_action 80, complex_spatial 90.
    assert sum(weight * means[name] for name, weight in complex_.weights.items()) == pytest.approx(80)
    # 0 + 10 + ... + 60, and 80 for complex.
    expected = (210 + 80) / 8
    assert sum(weight * means[name] for name, weight in overall.weights.items()) == pytest.approx(expected)
    for present in (leaves, ["color"], ["complex", "complex_spatial", "shape"], ["my own"]):
        for figure in figures(present):
            assert sum(figure.weights.values()) == pytest.approx(1)
    assert [figure.name for figure in figures(["color"])] == ["overall"]


def test_srum_compat_counts_failures_as_minus_one_and_drops_missing_categories() -> None:
    raws: dict[str, Sequence[float]] = {
        "color": [80, -1, 100],
        "shape": [-1],
        "complex": [60],
        "complex_action": [30, 50],
        "complex_spatial": [],
        "texture": [],
    }
    found = compat_figures(raws)
    # 179 / 3, to four digits as the released script prints it.
    assert found.by_category == {"color": 59.6667, "shape": -1.0, "complex": 60.0, "complex_action": 40.0}
    # complex (60 + 40) / 2; overall (59.6667 - 1 + 50) / 3: texture has left the denominator.
    assert found.figures == {"complex": 50.0, "overall": 36.2222}
    # Without any complex picture the composite is 0, and still one of the figures that overall is the mean of.
    assert compat_figures({"color": [80], "shape": [40]}).figures == {"complex": 0.0, "overall": 40.0}
    with pytest.raises(UserError, match="no category has a picture"):
        compat_figures({"color": []})


def test_srum_compat_without_failures_is_the_mean_that_results_use() -> None:
    rng = random.Random(3)
    leaves = [*COMPBENCH_CATEGORIES, "complex_action", "complex_spatial"]
    raws = {name: [float(rng.randint(0, 100)) for _ in range(rng.randint(1, 9))] for name in leaves}
    found = compat_figures(raws)
    for figure in figures(leaves):
        mean = sum(weight * sum(raws[name]) / len(raws[name]) for name, weight in figure.weights.items())
        assert found.figures[figure.name] == pytest.approx(mean, abs=2e-4)


REPLIES = (
    "prose",
    '{"score": 150}',
    '{"score": 85.7}',
    '{"score": "77"}',
    '{"score": 7',
    '{"score": 64, "explanation": ""}',
)


@pytest.mark.parametrize("seed", range(12))
def test_results_with_srum_compat_are_the_released_arithmetic_on_any_made_up_set(seed: int) -> None:
    rng = random.Random(seed)
    leaves = [*COMPBENCH_CATEGORIES, "complex_action", "complex_spatial"]
    # Half of them lack categories, some all three of complex.
    leaves = rng.sample(leaves, rng.randint(1, 4)) if seed % 2 else leaves
    scored: list[Scored] = []
    raws: dict[str, list[float]] = {}
    for leaf in leaves:
        for number in range(rng.randint(1, 5)):
            dead = Reply(error="the connection broke", attempts=3)
            grade = CompBenchGrading().grade(PROMPT, {"score": rng.choice([dead, *map(_reply, REPLIES)])})
            scored.append(Scored(Prompt(f"{leaf}-{number}", f"{leaf} {number}", leaf), 0, "a.png", grade))
            counted = grade.value if grade.raw is None else grade.raw
            assert counted is not None
            raws.setdefault(leaf, []).append(counted)
    judge = {"kind": "http", "model": "stand-in", "under_test": False}
    found = build_results(BENCHMARK, scored, judge, srum_compat=True)
    expected = compat_figures(raws)
    for leaf, mean in expected.by_category.items():
        assert found["by_category"][leaf]["mean"] == pytest.approx(mean, abs=1e-4)
    assert found["overall"]["mean"] == pytest.approx(expected.figures["overall"], abs=2e-4)
    if not set(leaves) & {"complex", "complex_action", "complex_spatial"}:
        assert any("complex counted as 0" in said for said in remarks(found))


def _reply(text: str) -> Reply:
    return Reply((text,))


def test_prompts_come_from_the_users_files_and_are_never_bundled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val_comp.json of WayneJin0918/SRUM.*Karine-Huang/T2I-CompBench"):
        read(None)
    (tmp_path / "color_train.txt").write_text("a\n")
    with pytest.raises(UserError, match="holds training prompts alone"):
        read(tmp_path)
    dataset = tmp_path / "checkout" / "examples" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "complex_val.txt").write_text("a\nb\nc\n")
    (dataset / "color_val.txt").write_text("d\n")
    (dataset / "complex_val_action.txt").write_text("b\nc\n")
    with pytest.raises(UserError, match=r"complex_val_spatial.txt: missing; SRUM's protocol repeats its prompts"):
        read(tmp_path / "checkout")
    (dataset / "complex_val_spatial.txt").write_text("a\n")
    prompts = read(tmp_path / "checkout")
    assert [(p.text, p.category) for p in prompts] == [
        ("d", "color"),
        ("a", "complex"),
        ("b", "complex"),
        ("c", "complex"),
        ("b", "complex_action"),
        ("c", "complex_action"),
        ("a", "complex_spatial"),
    ]
    assert len({p.id for p in prompts}) == 7
    assert [p.text for p in read(dataset / "color_val.txt")] == ["d"]
    write_records(tmp_path / "prompts.jsonl", prompts)
    assert read(tmp_path / "prompts.jsonl") == prompts


def test_it_is_found_by_its_name() -> None:
    found = load_benchmark("compbench")
    assert found.grading is BENCHMARK.grading and isinstance(found.grading, Asks)
    assert (found.samples, found.full) == (1, 100.0)


@real
def test_both_public_sources_give_the_same_prompts_for_each_category() -> None:
    srum = read(DATA / "srum_prompts")
    checkout = read(DATA / "compbench")
    sizes = {**{name: 300 for name in COMPBENCH_CATEGORIES}, "complex_action": 212, "complex_spatial": 58}
    assert Counter(p.category for p in srum) == Counter(p.category for p in checkout) == sizes
    assert len(srum) == len(checkout) == 2670
    assert read(DATA / "srum_prompts" / "val_comp.json") == srum
    pairs = [
        sorted((p.category, p.text) for p in prompts if p.category.startswith("complex"))
        for prompts in (srum, checkout)
    ]
    assert pairs[0] == pairs[1]
    assert len({p.id for p in checkout}) == 2670
    grading = BENCHMARK.grading
    assert isinstance(grading, Asks)
    assert all(len(grading.questions(p)) == 1 for p in checkout)
