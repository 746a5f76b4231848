"""The judge as a recipe has it: what it is asked, how it is read, and the record of what could not be read."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from srum_ds.common.errors import UserError
from srum_ds.config import Config, find_path
from srum_ds.models import load_model
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.external import Scorer, function_scores, load_function, mix, mix_global
from srum_ds.rewards.judge.judge import judge_rollout, render
from srum_ds.rewards.judge.readouts import Agree, GenerateReadout, LikelihoodReadout, LogprobReadout, Readout, alone
from srum_ds.rewards.judge.templates import Template, load_template
from srum_ds.rewards.regions.pipeline import Looker, surplus_penalty
from srum_ds.types import Judged, Prompt, Regions, Samples, Scores

FAILURES = "judge_failures.jsonl"


def readout_of(cfg: Config) -> Readout:
    """The readout that ``judge.readout`` names. UserError for settings that do not fit it."""
    j = cfg.judge
    if j.readout == "likelihood":
        return LikelihoodReadout(j.likelihood_temperature, ask=j.caption_template is not None)
    if j.readout == "generate":
        return GenerateReadout(
            j.answers, j.max_new_tokens, j.think, j.temperature, j.retries, j.retry_temperature, cfg.run.seed
        )
    return LogprobReadout(j.answers, j.scale, j.min_mass)


class Questions:
    """What the judge is asked, loaded once, and where it looks. ``run_dir``: see ``Looker``."""

    def __init__(self, cfg: Config, run_dir: Path | None = None) -> None:
        self.cfg = cfg
        self.run_dir = run_dir
        self.readout = readout_of(cfg)
        self.whole, self.part = self._templates()
        self.external = External(cfg) if cfg.judge.external is not None else None

    def _templates(self) -> tuple[Template | None, Template | None]:
        j = self.cfg.judge
        if j.readout != "likelihood":
            return load_template(find_path(j.global_template)), load_template(find_path(j.local_template))
        caption = None if j.caption_template is None else load_template(find_path(j.caption_template))
        return caption, caption

    def about(self, judge: Judge, rollout: Samples, regions: Regions, agree: Agree = alone) -> Scores:
        """Global and local scores of a rollout. ``agree``: see ``srum_ds.rewards.judge.readouts``."""
        own = self._asked(judge, rollout, regions, agree)
        if self.external is None:
            return own
        weight = self.cfg.judge.external_weight
        if self.external.function is not None:
            return mix_global(own, *function_scores(self.external.function, self.external.name, rollout), weight)
        # Each rank has the whole external model: its calls do not communicate.
        return mix(own, self._asked(self.external.model(rollout.images_NCHW.device), rollout, regions, alone), weight)

    def _asked(self, judge: Judge, rollout: Samples, regions: Regions, agree: Agree) -> Scores:
        j = self.cfg.judge
        return judge_rollout(
            judge,
            rollout,
            regions,
            self.whole,
            self.part,
            self.readout,
            regional=j.regional,
            crop_size=j.crop_size,
            batch=j.batch,
            agree=agree,
            surplus_penalty=surplus_penalty(self.cfg),
        )

    @cached_property
    def look(self) -> Looker:
        """Phrases and regions. Built when first needed: who only asks about whole pictures needs no proposer."""
        return Looker(self.cfg, self.run_dir, int(os.environ.get("RANK", "0")))

    def ready(self) -> Questions:
        """Itself, with everything loaded that a step needs; UserError for what is not there."""
        assert self.look is not None
        return self

    def of_whole(self, prompt: Prompt) -> str:
        """The question about a whole picture of a prompt; empty where none is asked."""
        return render(self.whole, self.readout, prompt=prompt.text)

    @property
    def label(self) -> str:
        """The readout and both templates with their version and the start of their hash, for a line of figures."""
        parts = ["none" if template is None else template.label for template in (self.whole, self.part)]
        return f"{self.cfg.judge.readout}: {'; '.join(parts)}"

    def described(self) -> dict[str, Any]:
        """Readout, way of judging regions, and both templates with version and hash, for a result's file."""
        return {
            "readout": self.cfg.judge.readout,
            "regional": self.cfg.judge.regional,
            "global_template": None if self.whole is None else self.whole.described(),
            "local_template": None if self.part is None else self.part.described(),
            "external": self.cfg.judge.external,
            "external_weight": None if self.external is None else self.cfg.judge.external_weight,
        }


class External:
    """The second judge that ``judge.external`` names: a function, or a checkpoint that is loaded when first asked."""

    def __init__(self, cfg: Config) -> None:
        self.name = str(cfg.judge.external)
        self.kind = cfg.model.kind
        self.function: Scorer | None = None
        self._model: Judge | None = None
        if find_path(self.name).is_dir():
            return
        if ":" not in self.name:
            raise UserError(f"judge.external={self.name}: is no checkpoint folder; give one, or module:function")
        self.function = load_function(self.name)

    def model(self, device: torch.device) -> Judge:
        """The checkpoint's model."""
        if self._model is None:
            self._model = load_model(find_path(self.name), self.kind, device=device)
        return self._model


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


def refuse_broken_judge(cfg: Config, record: dict[str, Any], batches: Sequence[Judged]) -> None:
    """Raises UserError, on every rank alike, when too many of the judge's answers were unusable.

    The message shows this rank's most frequent unusable replies.
    """
    share = record["parse_failed_share"]
    if share <= cfg.judge.max_failed_share:
        return
    cure = {
        "logprob": "none of judge.answers (or judge.scale) gets a probability of judge.min_mass",
        "likelihood": "the model's log-probabilities are no numbers",
        "generate": "no score was found; see the templates, judge.max_new_tokens and judge.retries",
    }[cfg.judge.readout]
    raise UserError(
        f"step {record['step']}: {share:.0%} of the judge's answers could not be used, more than "
        f"judge.max_failed_share={cfg.judge.max_failed_share:.0%}. Try its questions with `srum-ds ask`: {cure}. "
        f"All are in {FAILURES}; of this rank's, the most frequent:\n{worst_replies(batches)}"
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
