"""Logs judge replies that could not be used, and ends a run in which there are too many. The job calls it per step."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.types import Judged

FAILURES = "judge_failures.jsonl"
_SCALE = "its scores lie in [-1, 1], NaN where there is none"

FAILED_SHARE = "_failed_share"
"""Ends the metric of a judge outside, ``judge_NAME_failed_share``: the share of images that it gave no score for."""


class FailureLog:
    """``judge_failures.jsonl``: every reply that could not be used, one a line, until the file is full.

    All ranks append to the one file, a step's lines at once under a lock. A step that is done again
    after a kill is written again.
    """

    def __init__(self, run_dir: Path, rank: int, megabytes: float) -> None:
        self.path = run_dir / FAILURES
        self.rank = rank
        self.limit = int(megabytes * 1e6)

    def write(self, step: int, batches: Sequence[Judged]) -> None:
        """Appends a step's failures; those that no longer fit are left out. UserError where it cannot write."""
        lines = [(json.dumps(record) + "\n").encode() for record in self._records(step, batches)]
        if not lines:
            return
        try:
            with open(self.path, "ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                room = self.limit - os.fstat(stream.fileno()).st_size
                kept = []
                for line in lines:
                    room -= len(line)
                    if room < 0:
                        break
                    kept.append(line)
                stream.write(b"".join(kept))
        except OSError as error:
            raise UserError(f"{self.path}: could not be written ({error.strerror or error})") from error

    def _records(self, step: int, batches: Sequence[Judged]) -> list[dict[str, Any]]:
        records = []
        for batch in batches:
            owners = batch.regions.owner_R.tolist()
            boxes = batch.regions.boxes_R4.tolist()
            for failure in batch.scores.failures:
                prompt = batch.samples.prompts[int(batch.samples.group_N[failure.picture])]
                place = None
                if failure.region >= 0:
                    place = {
                        "number": failure.region - owners.index(failure.picture),
                        "box": [round(edge, 4) for edge in boxes[failure.region]],
                    }
                records.append(
                    {
                        "step": step,
                        "rank": self.rank,
                        "prompt_id": prompt.id,
                        "prompt": prompt.text,
                        "sample": int(batch.samples.sample_N[failure.picture]),
                        "region": place,
                        "question": failure.question,
                        "reply": failure.reply,
                        "template": failure.template,
                    }
                )
        return records


def refuse_broken_judge(
    max_failed_share: float, cure: str, record: Mapping[str, Any], batches: Sequence[Judged]
) -> None:
    """Raises UserError, on every rank alike, when too many pictures were left out or too many answers were unusable.

    max_failed_share: ``judge.max_failed_share``. cure: what the readout says should be looked at, "" where the model's
    own judge is not asked. The message shows this rank's most frequent unusable replies.
    """
    pictures = record.get("pictures", 0)
    lost, masked = record.get("pictures_not_finite", 0), record.get("masked", 0)
    # Scores of a function alone have no questions that one could ask again.
    hint = f"Try the judge's questions with `srum-ds ask`: {cure}" if cure else f"See judge.external: {_SCALE}"
    if lost > max_failed_share * pictures:
        raise UserError(
            f"step {record['step']}: {lost} of {pictures} pictures are not finite, a larger share than "
            f"judge.max_failed_share={max_failed_share:.0%}. The weights that draw or decode them overflow or are "
            f"damaged: check model.path with `srum-ds generate`, and try train.precision=fp32 if it draws well"
        )
    for key, value in record.items():
        # A judge outside gives few of all answers, and leaves all images out of the loss where it gives none.
        if key.startswith("judge_") and key.endswith(FAILED_SHARE) and value > max_failed_share:
            raise UserError(
                f"step {record['step']}: the judge {key.removeprefix('judge_').removesuffix(FAILED_SHARE)!r} gave no "
                f"score for {value:.0%} of the images, more than judge.max_failed_share={max_failed_share:.0%}: see "
                f"judge.external. All are in {FAILURES}; of this rank's, the most frequent:\n{worst_replies(batches)}"
            )
    # A score off the scale says no more than none: what counts in its place is the scale's end.
    share = record["parse_failed_share"] + record.get("parse_clamped", 0) / max(1, record.get("judged", 0))
    if share <= max_failed_share and masked > max_failed_share * pictures:
        raise UserError(
            f"step {record['step']}: {masked} of {pictures} pictures have no score and are left out of the loss, a "
            f"larger share than judge.max_failed_share={max_failed_share:.0%}. {hint}. All are in {FAILURES}; of "
            f"this rank's, the most frequent:\n{worst_replies(batches)}"
        )
    if share <= max_failed_share:
        return
    raise UserError(
        f"step {record['step']}: {share:.0%} of the judge's answers could not be used or lay off the scale, more than "
        f"judge.max_failed_share={max_failed_share:.0%}. {hint}. All are in {FAILURES}; of this "
        f"rank's, the most frequent:\n{worst_replies(batches)}"
    )


def worst_replies(batches: Sequence[Judged], count: int = 3, length: int = 300) -> str:
    """The most frequent replies that could not be used, each with how often and a question it answered."""
    failures = [failure for batch in batches for failure in batch.scores.failures]
    question_of = {failure.reply: failure.question for failure in reversed(failures)}
    often = Counter(failure.reply for failure in failures).most_common(count)
    shown = [f"  {times} x {_cut(reply, length)!r} to {_cut(question_of[reply], length)!r}" for reply, times in often]
    return "\n".join(shown) or "  (none on this rank)"


def worst_replies_of(replies: Sequence[str], count: int = 3, length: int = 300) -> list[str]:
    """The most frequent of some replies, each with how often it came."""
    return [f"{times} x {_cut(reply, length)!r}" for reply, times in Counter(replies).most_common(count)]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + " ..."
