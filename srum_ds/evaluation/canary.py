"""Cases whose answer is known before a judge's scores are believed: a blank picture must not score well.

``score`` asks them before the pictures; the report shows a judge that fails them above its table.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from srum_ds.evaluation.benchmarks.protocol import Asks, Benchmark, Grade
from srum_ds.judges.protocol import Ask, PictureJudge, Reply
from srum_ds.types import Prompt

AskAll = Callable[[Sequence[Ask]], Sequence[Reply]]
"""All asks -> their replies, in order; such as a store of replies gives, so that nothing is asked twice."""

CANARY_PROMPTS = 3
MOST_OF_FULL = 0.5
"""Share of the best grade that a picture which shows nothing of its prompt may have at most."""

REPLY_LENGTH = 300
BLANK = (255, 255, 255)
GREY = (128, 128, 128)
_SMALL_WORDS = frozenset("a an and in is of on one the there to two with".split())


@dataclass(frozen=True)
class CanaryResult:
    """How a judge did in a case whose answer is known. what: the case in words. reply: what it said, in short."""

    what: str
    passed: bool
    reply: str


@dataclass(frozen=True)
class _Case:
    """A picture that does not show what ``prompt`` asks for, and what is asked about it."""

    what: str
    prompt: Prompt
    asks: tuple[Ask, ...]


def run_canaries(
    judge: PictureJudge,
    benchmark: Benchmark,
    prompts: Sequence[Prompt] = (),
    picture_of: Callable[[Prompt], bytes | None] | None = None,
    ask: AskAll | None = None,
) -> list[CanaryResult]:
    """Asks the benchmark's own canaries and, where a judge grades, pictures that must not be graded well.

    The latter are, for up to ``CANARY_PROMPTS`` of ``prompts`` of different categories: a blank (white) picture, a
    grey one (the blind control: what the judge grades without seeing anything), and another prompt's picture. None may
    have more than ``MOST_OF_FULL`` of the best grade. A reply with an error, or without a grade, does not pass: nobody
    knows.

    prompts: those of the evaluation; none: no such case. picture_of: the bytes of a PNG drawn of a prompt, None where
    there is none (without it no picture of something else is shown). ask: how the asks are put, such as through a store
    of replies; without, to ``judge``.
    """
    put = ask if ask is not None else lambda asks: replies_of(judge, asks)
    own = list(benchmark.canaries())
    cases: list[_Case] = []
    if isinstance(benchmark.grading, Asks):
        cases = _cases(benchmark.grading, _chosen(prompts), prompts, picture_of)
    asks = [Ask(canary.question, canary.picture()) for canary in own]
    asks += [one for case in cases for one in case.asks]
    replies = iter(put(asks) if asks else ())
    results: list[CanaryResult] = []
    for canary in own:
        reply = next(replies)
        passed = not reply.error and canary.good(reply)
        results.append(CanaryResult(canary.what, passed, _shown(reply)))
    for case in cases:
        mine = {one.question.key: next(replies) for one in case.asks}
        results.append(_graded(benchmark, case, mine))
    return results


def verdict(results: Sequence[CanaryResult]) -> str:
    """What stands on top of a table: that the judge can be believed, or in which cases it failed; empty for none."""
    if not results:
        return ""
    failed = [result for result in results if not result.passed]
    if not failed:
        return f"Canaries: the judge passed all {len(results)} cases whose answer is known."
    cases = "; ".join(f"{result.what} (it said: {result.reply})" for result in failed)
    return (
        f"CANARIES FAILED: the judge failed {len(failed)} of {len(results)} cases whose answer is known. Do not "
        f"believe the scores below. {cases}"
    )


def replies_of(judge: PictureJudge, asks: Sequence[Ask]) -> list[Reply]:
    """The judge's replies in the order of the asks; one that it never gave is a failed reply."""
    found: dict[int, Reply] = dict(judge.ask(iter(asks)))
    silent = Reply(attempts=0, error="the judge gave no reply")
    return [found.get(position, silent) for position in range(len(asks))]


def plain_png(color: tuple[int, int, int], size: tuple[int, int] = (512, 512)) -> bytes:
    """The bytes of a PNG of one colour (0..255 each). size: width, height in pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def most_unlike(text: str, others: Sequence[str]) -> list[int]:
    """Positions of the texts that share the fewest words with ``text`` (articles and the like aside), in order.

    The same text is never among them; empty where there is no other.
    """
    words = _words(text)
    shared = {
        position: len(words & _words(other))
        for position, other in enumerate(others)
        if other.strip().casefold() != text.strip().casefold()
    }
    fewest = min(shared.values(), default=0)
    return [position for position, count in shared.items() if count == fewest]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold())) - _SMALL_WORDS


def _chosen(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of each category, then others, up to ``CANARY_PROMPTS``."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.category, prompt)
    chosen = list(first.values())
    chosen += [prompt for prompt in prompts if prompt not in chosen]
    return chosen[:CANARY_PROMPTS]


def _cases(
    grading: Asks,
    chosen: Iterable[Prompt],
    prompts: Sequence[Prompt],
    picture_of: Callable[[Prompt], bytes | None] | None,
) -> list[_Case]:
    blank, grey = plain_png(BLANK), plain_png(GREY)
    cases: list[_Case] = []
    for prompt in chosen:
        shown = [("a blank picture", blank), ("a grey picture (blind control)", grey)]
        other = None if picture_of is None else _picture_of_something_else(prompt, prompts, picture_of)
        if other is not None:
            shown.append(other)
        questions = grading.questions(prompt)
        for what, picture in shown:
            asks = tuple(Ask(question, picture) for question in questions)
            cases.append(_Case(f"{what} for {prompt.text!r}", prompt, asks))
    return cases


def _picture_of_something_else(
    prompt: Prompt, prompts: Sequence[Prompt], picture_of: Callable[[Prompt], bytes | None]
) -> tuple[str, bytes] | None:
    for position in most_unlike(prompt.text, [other.text for other in prompts]):
        picture = picture_of(prompts[position])
        if picture is not None:
            return f"a picture of {prompts[position].text!r}", picture
    return None


def _graded(benchmark: Benchmark, case: _Case, replies: dict[str, Reply]) -> CanaryResult:
    most = MOST_OF_FULL * benchmark.full
    what = f"{case.what} must not score above {most:g} of {benchmark.full:g}"
    errors = [reply for reply in replies.values() if reply.error]
    if errors:
        return CanaryResult(what, False, _shown(errors[0]))
    assert isinstance(benchmark.grading, Asks)
    grade: Grade = benchmark.grading.grade(case.prompt, replies)
    said = "; ".join(_said(reply) for reply in replies.values())
    if grade.value is None:
        return CanaryResult(what, False, _short(f"no usable reply ({grade.failure or 'no grade'}): {said}"))
    return CanaryResult(what, grade.value <= most, _short(f"{grade.value:g}: {said}"))


def _shown(reply: Reply) -> str:
    return _short(f"no reply: {reply.error}" if reply.error else _said(reply))


def _said(reply: Reply) -> str:
    if reply.probabilities:
        return "probabilities " + ", ".join(f"{value:.3g}" for value in reply.probabilities)
    return reply.text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= REPLY_LENGTH else text[: REPLY_LENGTH - 3] + "..."
