"""Whether a run works, in plain words: what was measured, against chance, and what nobody looked at.

A difference counts where it is more than chance would give: at least ``SURE`` standard errors, more where few numbers
stand behind it. Evidence goes by who gives it: an evaluation of the exported model first, then held-out prompts during
training, then the reward of the training steps, which are of other prompts each and judged by the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

from srum_ds.common.texts import is_number
from srum_ds.evaluation.report import verdict as evaluation_line
from srum_ds.evaluation.run_report.facts import RunFacts, watch_settings
from srum_ds.evaluation.run_report.state import State
from srum_ds.monitoring.health import Watch

SURE = 1.96
"""Standard errors that a difference must be for 95 % certainty, where many numbers stand behind it."""

FEWEST = 3
MOST = 20
"""The first and the last steps that a trend compares: a third of the run, at least and at most so many."""

WORRYING_FAILURES = 0.05
"""A larger share of the judge's answers that could not be used is worth a warning."""

Level = Literal["good", "bad", "warn", "unsure"]

SIGNALS = {
    "latent_std_ratio": "the spread of the drawn tokens against the first steps",
    "diversity_ratio": "the distance between the images of a prompt against the first steps",
    "grad_growth": "the gradient norm against the first steps",
    "reward_drop": "the fall of the self-reward from its best",
    "reward_std_zero_share": "the share of prompts whose images all got one reward",
}


@dataclass(frozen=True)
class Told:
    """One sentence or two, and how it should make one feel."""

    level: Level
    text: str


@dataclass(frozen=True)
class Difference:
    """A difference and its standard error; ``degrees`` of freedom behind the error, None for many."""

    mean: float
    stderr: float
    degrees: int | None = None

    @property
    def sure(self) -> bool:
        """Whether it is more than chance, at 95 %."""
        return self.stderr > 0 and abs(self.mean) >= quantile(self.degrees) * self.stderr

    @property
    def level(self) -> Level:
        """Good or bad where it is sure."""
        return ("good" if self.mean > 0 else "bad") if self.sure else "unsure"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.stderr:.3f}"


@dataclass(frozen=True)
class Alarm:
    """A figure of the watch that left its range. step: after so many steps; value: what it was then."""

    signal: str
    step: int
    value: float

    @property
    def text(self) -> str:
        """The alarm as a sentence."""
        return (
            f"After step {self.step}, {SIGNALS.get(self.signal, self.signal)} was out of its range: {self.value:.3f}."
        )


@dataclass(frozen=True)
class Verdict:
    """level and headline: the answer. sentences: what it stands on, the gravest first. difference: what decided it."""

    level: Level
    headline: str
    sentences: tuple[Told, ...]
    alarms: tuple[Alarm, ...]
    difference: Difference | None = None
    difference_name: str = ""


def counted(number: int, what: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def quantile(degrees: int | None) -> float:
    """Student's t that 95 % lie within, for so many degrees of freedom (Cornish-Fisher, to 2 % from 4 on)."""
    if degrees is None:
        return SURE
    z = SURE
    first = (z**3 + z) / (4 * degrees)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def trend(values: Sequence[float]) -> Difference | None:
    """The mean of the last steps less that of the first ones; None where there are too few to say."""
    count = min(MOST, len(values) // 3)
    if count < FEWEST:
        return None
    first, last = values[:count], values[-count:]
    error = math.sqrt((variance(first) + variance(last)) / count)
    return Difference(fmean(last) - fmean(first), error, 2 * count - 2)


def first_and_last(values: Sequence[float]) -> tuple[float, float, int]:
    """Means of the first and of the last steps, and of how many: those of a trend, or one each where there are few.

    ValueError without any.
    """
    count = min(MOST, len(values) // 3)
    count = count if count >= FEWEST else 1
    return fmean(values[:count]), fmean(values[-count:]), count


def last_look(facts: RunFacts) -> dict[str, Any] | None:
    """The last look at held-out prompts that has a difference from the base; of one prompt it has no error."""
    for line in reversed(facts.held_out):
        if line["step"] > 0 and is_number(line.get("difference")):
            return line
    return None


def held_out_difference(facts: RunFacts) -> Difference | None:
    """What the last look at held-out prompts says against the base; None without one, or without its error."""
    line = last_look(facts)
    if line is None or not is_number(line.get("difference_se")):
        return None
    return Difference(float(line["difference"]), float(line["difference_se"]))


def evaluated_difference(facts: RunFacts) -> tuple[Difference, str] | None:
    """What ``srum-ds eval`` measured, trained less base, and its name.

    Of several benchmarks the first one that somebody else than the model under test judged, in shares of its scale.
    """
    found: Any = (facts.result or {}).get("difference")
    if isinstance(found, dict) and is_number(found.get("mean")) and is_number(found.get("stderr")):
        return Difference(float(found["mean"]), float(found["stderr"])), "exact success, trained less base"
    for benchmark in facts.benchmarks:
        if benchmark.independent and benchmark.mean is not None and benchmark.stderr is not None:
            return Difference(
                benchmark.mean, benchmark.stderr
            ), f"share of the scale of {benchmark.name}, trained less base"
    return None


def alarms_of(facts: RunFacts) -> list[Alarm]:
    """The alarms that the watch gave, found again from the steps' figures."""
    watch = Watch(watch_settings(facts.config))
    found = []
    for line in facts.metrics:
        figures, alarms = watch.see({**line, "step": line["step"] - 1})
        seen = {**line, **figures}
        for alarm in alarms:
            value = seen.get(alarm.signal)
            found.append(Alarm(alarm.signal, line["step"], float(value) if is_number(value) else math.nan))
    return found


def verdict_of(facts: RunFacts) -> Verdict:
    """The verdict on a run, as far as it has come."""
    evaluation, held, rewards = evaluated_difference(facts), held_out_difference(facts), facts.values("reward_global")
    evaluated = evaluation[0] if evaluation else None
    risen = trend([value for _, value in rewards])
    alarms = alarms_of(facts)
    sentences = [
        *_of_state(facts),
        *_of_evaluation(facts),
        *_of_benchmarks(facts),
        *_of_held_out(facts, held),
        *_of_checker(facts),
        *_of_trend(rewards, risen),
        *_of_conflict(evaluated, held, risen),
        *_of_watch(facts, alarms),
        *_of_judge(facts),
    ]
    order = {"bad": 0, "warn": 1, "good": 2, "unsure": 3}
    level, headline = _headline(facts, evaluated, held, risen, alarms)
    sentences.sort(key=lambda told: order[told.level])
    deciding, name = None, ""
    if evaluation is not None:
        deciding, name = evaluation
    elif held is not None:
        deciding, name = held, "self-reward of held-out prompts, now less base"
    return Verdict(level, headline, tuple(sentences), tuple(alarms), deciding, name)


def _headline(
    facts: RunFacts,
    evaluated: Difference | None,
    held: Difference | None,
    risen: Difference | None,
    alarms: Sequence[Alarm],
) -> tuple[Level, str]:
    if facts.state is State.BY_WATCH:
        return "bad", "The watch ended this run"
    if evaluated is not None:
        if not evaluated.sure:
            return "unsure", "No difference from the base is established"
        if evaluated.mean < 0:
            return "bad", "The trained model is worse than the base"
        return "good", "It works: the trained model is better"
    if facts.state is State.FAILED:
        return "bad", "The run failed"
    if held is not None:
        if not held.sure:
            return "unsure", "No difference on held-out prompts is established yet"
        if held.mean < 0:
            return "bad", "It gets worse on held-out prompts"
        if alarms:
            return "warn", "The held-out reward rises, but the watch gave alarms"
        return "good", "It works, as far as its own judge can tell"
    if risen is None:
        return "unsure", "Too little to say"
    if not risen.sure:
        return "unsure", "The reward has not moved beyond chance"
    if risen.mean < 0:
        return "bad", "The reward falls"
    return "unsure", "The reward rises; whether the images are better is not known"


def _of_state(facts: RunFacts) -> list[Told]:
    if facts.state is State.FAILED:
        return [Told("bad", "A rank ended with an error; its stack stands in the run’s folder crash.")]
    if facts.state is State.BY_WATCH and facts.stopped is not None:
        kept = facts.stopped.get("kept_step")
        return [Told("bad", f"{facts.stopped.get('text', 'An alarm ended it')}. Kept: the weights after step {kept}.")]
    return []


def _of_evaluation(facts: RunFacts) -> list[Told]:
    if facts.result is None:
        if facts.benchmarks:
            return []
        finished = facts.state in (State.FINISHED, State.BY_WATCH)
        how = f"`srum-ds eval {facts.run_dir}` does it." if finished else "That can be done once it has finished."
        return [Told("unsure", f"Nobody has evaluated the trained model against the base yet. {how}")]
    found = evaluated_difference(facts)
    try:
        line = evaluation_line(facts.result)
    except (KeyError, TypeError, ValueError):
        return [Told("unsure", "The result of the evaluation cannot be read; evaluate the run again.")]
    level = found[0].level if found else "unsure"
    return [Told(level, f"Evaluation: {line}. The checker that judged it has no part in the training.")]


def _of_benchmarks(facts: RunFacts) -> list[Told]:
    told = []
    for found in facts.benchmarks:
        text = f"{found.name}: {found.trained} against the base’s {found.base}, of {found.full:g}, on {found.n} images"
        if found.mean is None or found.stderr is None:
            told.append(Told("unsure", f"{text}; too few to know the error of the difference."))
            continue
        difference = Difference(found.mean, found.stderr)
        what = "more than chance" if difference.sure else "no more than chance may give"
        own = "" if found.independent else " The model under test judged itself."
        told.append(Told(difference.level, f"{text}: {found.difference}, {what}.{own}"))
    return told


def _of_held_out(facts: RunFacts, held: Difference | None) -> list[Told]:
    last = last_look(facts)
    if last is None:
        if facts.held_out:
            return [Told("unsure", "No look at held-out prompts has a difference from the base yet.")]
        return [Told("unsure", "No held-out prompts were looked at during training.")]
    if held is None:
        return [
            Told(
                "unsure",
                f"On the held-out prompts the self-reward after step {last['step']} differs from the base’s by "
                f"{last['difference']:+.3f}; too few prompts to know the error of the difference.",
            )
        ]
    what = "more than chance" if held.sure else "no more than chance may give"
    return [
        Told(
            held.level,
            f"On {last.get('prompts', 'the')} held-out prompts the self-reward after step {last['step']} differs from "
            f"the base’s by {held} (paired, one standard error): {what}. The model judges itself there.",
        )
    ]


def _of_checker(facts: RunFacts) -> list[Told]:
    looks = facts.looks("checker_exact") or facts.values("checker_exact")
    if len(looks) < 2:
        return []
    (first, before), (last, after) = looks[0], looks[-1]
    return [
        Told(
            "unsure",
            f"The checker, which knows the truth, found {before:.0%} of the held-out images exact after step {first} "
            f"and {after:.0%} after step {last}.",
        )
    ]


def _of_trend(rewards: Sequence[tuple[int, float]], risen: Difference | None) -> list[Told]:
    if not rewards:
        return [Told("unsure", "No step has a reward yet.")]
    if risen is None:
        return [
            Told(
                "unsure",
                f"{counted(len(rewards), 'step')} {'is' if len(rewards) == 1 else 'are'} too few for a trend of the "
                f"training reward: each step has other prompts, and {3 * FEWEST} steps are the fewest to be compared.",
            )
        ]
    first, last, count = first_and_last([value for _, value in rewards])
    what = ("risen" if risen.mean > 0 else "fallen") if risen.sure else "not moved beyond chance"
    return [
        Told(
            "bad" if risen.sure and risen.mean < 0 else "unsure",
            f"The reward of the training images has {what}: {first:+.3f} over the first {count} steps, {last:+.3f} "
            f"over the last {count}, {risen} (one standard error over steps).",
        )
    ]


def _of_conflict(evaluated: Difference | None, held: Difference | None, risen: Difference | None) -> list[Told]:
    own = held or risen
    if evaluated is None or own is None or not (own.sure and own.mean > 0) or (evaluated.sure and evaluated.mean > 0):
        return []
    return [
        Told(
            "bad",
            "The self-reward rose, but the evaluation does not show better images: the judge may reward something else "
            "than what was asked for. Look at the pictures below.",
        )
    ]


def _of_watch(facts: RunFacts, alarms: Sequence[Alarm]) -> list[Told]:
    if not facts.metrics:
        return []
    if not alarms:
        return [Told("good", f"The watch gave no alarm in {counted(len(facts.metrics), 'step')}.")]
    named = ", ".join(dict.fromkeys(alarm.signal for alarm in alarms))
    return [Told("warn", f"The watch gave {counted(len(alarms), 'alarm')} ({named}); see below.")]


def _of_judge(facts: RunFacts) -> list[Told]:
    asked = sum(value for _, value in facts.values("judged"))
    failed = sum(value for _, value in facts.values("parse_failures"))
    masked = sum(value for _, value in facts.values("masked"))
    pictures = sum(value for _, value in facts.values("pictures"))
    if not asked:
        return []
    share = failed / asked
    left_out = f"; {masked:.0f} of {pictures:.0f} images were left out of the loss" if masked and pictures else ""
    if not failed and not masked:
        return [Told("good", f"All {asked:,.0f} answers of the judge could be used.")]
    level: Level = (
        "warn" if share > WORRYING_FAILURES or (pictures and masked / pictures > WORRYING_FAILURES) else "unsure"
    )
    return [
        Told(level, f"{failed:,.0f} of {asked:,.0f} answers of the judge ({share:.1%}) could not be used{left_out}.")
    ]
