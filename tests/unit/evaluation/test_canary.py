"""Canaries: a judge that sees passes them, one that praises everything or does not answer is told of in words."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Benchmark, Canary, Grade, equal_shares, load_benchmark
from srum_ds.evaluation.canary import CanaryResult, most_unlike, plain_png, run_canaries, verdict
from srum_ds.judges import Ask, Question, Reply
from srum_ds.types import Prompt

PROMPTS = [
    Prompt("p1", "a red circle", "color"),
    Prompt("p2", "a red circle above a cross", "spatial"),
    Prompt("p3", "two dogs", "numeracy"),
    Prompt("p4", "a green tree", "color"),
]
COLORS = {"p1": (200, 0, 0), "p2": (200, 0, 100), "p3": (90, 60, 20), "p4": (0, 200, 0)}


def picture_of(prompt: Prompt) -> bytes | None:
    return plain_png(COLORS[prompt.id], (8, 8))


class Marks:
    """Two questions a picture, each answered by a number from 0 to 100; their mean is the grade."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        return [Question("follows", (f"0..100: {prompt.text}?",)), Question("quality", (f"quality of {prompt.text}",))]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        texts = [replies[key].text for key in ("follows", "quality")]
        if not all(text.isdigit() for text in texts):
            return Grade(None, failure="not a number")
        return Grade(sum(float(text) for text in texts) / 2)


def read(source: Path | None) -> list[Prompt]:
    raise UserError("not needed")


def benchmark(canaries: Sequence[Canary] = ()) -> Benchmark:
    return Benchmark("marks", "1", read, Marks(), equal_shares, full=100, canaries=lambda: canaries)


class Scripted:
    """Answers as ``say`` does, last ask first."""

    kind = "replay"
    model = "scripted"
    under_test = False

    def __init__(self, say: object) -> None:
        self.say = say
        self.asked: list[Ask] = []

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        self.asked = list(asks)
        for position in reversed(range(len(self.asked))):
            yield position, self.say(self.asked[position])  # type: ignore[operator]

    def close(self) -> None:
        pass


def sees(ask: Ask) -> Reply:
    """High marks exactly where the picture has the colour of the prompt that is asked about."""
    with Image.open(io.BytesIO(ask.picture)) as opened:
        color = opened.convert("RGB").getpixel((0, 0))
    wanted = {COLORS[prompt.id] for prompt in PROMPTS if prompt.text in ask.question.turns[0]}
    return Reply(("90" if color in wanted else "5",))


def test_a_judge_that_looks_passes() -> None:
    judge = Scripted(sees)
    results = run_canaries(judge, benchmark(), PROMPTS, picture_of)
    # Three prompts of three categories; blank, grey and something else each; two questions.
    assert len(results) == 9 and len(judge.asked) == 18
    assert all(result.passed for result in results), results
    assert verdict(results) == "Canaries: the judge passed all 9 cases whose answer is known."
    whats = [result.what for result in results]
    assert whats[0] == "a blank picture for 'a red circle' must not score above 50 of 100"
    # p2 shares words with p1; the first prompt that shares none is shown.
    assert whats[2] == "a picture of 'two dogs' for 'a red circle' must not score above 50 of 100"
    assert results[0].reply == "5: 5; 5"


def test_a_judge_that_praises_everything_fails_in_words() -> None:
    results = run_canaries(Scripted(lambda ask: Reply(("95",))), benchmark(), PROMPTS[:1])
    # Without pictures no picture of something else is shown.
    assert [result.passed for result in results] == [False, False]
    said = verdict(results)
    assert said.startswith("CANARIES FAILED: the judge failed 2 of 2 cases")
    assert "Do not believe the scores below" in said
    assert (
        "a grey picture (blind control) for 'a red circle' must not score above 50 of 100 (it said: 95: 95; 95)" in said
    )


def test_a_judge_that_does_not_answer_fails_as_such() -> None:
    broken = run_canaries(Scripted(lambda ask: Reply(error="HTTP 500 after 5 attempts")), benchmark(), PROMPTS[:1])
    assert not any(result.passed for result in broken)
    assert broken[0].reply == "no reply: HTTP 500 after 5 attempts"
    vague = run_canaries(Scripted(lambda ask: Reply(("lovely",))), benchmark(), PROMPTS[:1])
    assert not any(result.passed for result in vague)
    assert vague[0].reply == "no usable reply (not a number): lovely; lovely"


def test_a_reply_that_never_comes_is_no_pass() -> None:
    class Silent(Scripted):
        def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
            list(asks)
            yield from ()

    results = run_canaries(Silent(sees), benchmark(), PROMPTS[:1])
    assert [result.reply for result in results] == ["no reply: the judge gave no reply"] * 2
    assert not any(result.passed for result in results)


def test_canaries_of_the_benchmark_come_first_and_may_want_a_yes() -> None:
    question = Question("exist", ("is there a red picture?",), answers=("yes", "no"))
    must = Canary(
        "a red picture must be seen", question, lambda: plain_png((255, 0, 0)), lambda r: r.probabilities[0] > 0.5
    )

    def says_no(ask: Ask) -> Reply:
        return Reply(probabilities=(0.1, 0.9)) if ask.question.answers else sees(ask)

    results = run_canaries(Scripted(says_no), benchmark([must]), PROMPTS[:1], picture_of)
    assert results[0] == CanaryResult("a red picture must be seen", False, "probabilities 0.1, 0.9")
    assert all(result.passed for result in results[1:])
    # An error is never looked at by the canary itself.
    failed = run_canaries(Scripted(lambda ask: Reply(error="timeout")), benchmark([must]))
    assert failed == [CanaryResult("a red picture must be seen", False, "no reply: timeout")]


def test_asks_go_through_the_store_where_one_is_given() -> None:
    judge = Scripted(sees)
    seen: list[int] = []

    def store(asks: Sequence[Ask]) -> list[Reply]:
        seen.append(len(asks))
        return [Reply(("3",)) for _ in asks]

    results = run_canaries(judge, benchmark(), PROMPTS[:2], None, store)
    assert seen == [8] and judge.asked == []
    assert all(result.passed for result in results)


def test_a_benchmark_of_pixels_asks_nothing() -> None:
    judge = Scripted(sees)
    assert run_canaries(judge, load_benchmark("shapes"), PROMPTS) == []
    assert judge.asked == [] and verdict([]) == ""


@pytest.mark.parametrize(
    ("text", "others", "found"),
    [
        ("a red circle", ["a red circle", "A red circle "], []),
        ("a red circle", ["a blue circle", "a blue dog", "the cat"], [1, 2]),
        ("a red circle", ["a red cross", "a red circle"], [0]),
    ],
)
def test_most_unlike(text: str, others: Sequence[str], found: Sequence[int]) -> None:
    assert most_unlike(text, others) == found
