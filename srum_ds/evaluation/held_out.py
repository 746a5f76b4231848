"""Looks at held-out prompts while a run trains: the self-reward on the same few prompts again and again.

The job calls it before the first step and after steps. Images have seeds of their own, so that each look draws the same
noise and training draws what it would without. The reward that training itself goes by chooses the best checkpoint
(with ``judge.external``: mixed by the judges' weights); what a checker says is reported and chooses nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.engine import Engine
from srum_ds.evaluation.checkers import load_checker
from srum_ds.evaluation.statistics import estimate
from srum_ds.models.protocol import Judge
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import load_index
from srum_ds.rewards.regions.boxes import no_regions
from srum_ds.rollouts.collect import Collector
from srum_ds.rollouts.draw import for_drawing, micro_batches, roll_out, share
from srum_ds.types import Prompt, Samples, Scores

SPLITS = ("validation", "val", "test")
"""Where the prompts come from: the first of these that there is."""
BASE = "held_out_base.json"
"""In a run's folder: what the base got on each prompt, with which later looks are compared."""


@dataclass(frozen=True)
class Seen:
    """What a look saw of one image. reward: in [-1, 1], NaN where the judge failed. judges: likewise, by name."""

    reward: float
    judges: Mapping[str, float] = field(default_factory=dict)
    exact: bool | None = None


class HeldOut:
    """The first ``watch.prompts`` prompts of the first of ``SPLITS``, one image each, always of the same seed.

    ``every`` is 0 where nobody looks, and ``missing`` then says why, unless nobody wants it. Raises UserError for an
    unknown checker, for a split that cannot be read, and for prompts that the model does not take.
    """

    def __init__(self, collector: Collector, engine: Engine, binding: Mapping[str, str] | None = None) -> None:
        cfg = collector.cfg
        self.cfg = cfg
        self.engine = engine
        self.collector = collector
        self.every = cfg.watch.every
        self.missing = ""
        self.split = ""
        self.prompts: list[Prompt] = []
        self.base: dict[str, float] = {}
        self.weights = "ema" if cfg.eval.weights == "ema" else "live"
        self._binding = hashlib.sha256(json.dumps(binding or {}, sort_keys=True).encode()).hexdigest()[:16]
        self._check = None if cfg.watch.checker == "none" else load_checker(cfg.watch.checker)
        if self.every:
            self._open()

    def _open(self) -> None:
        cfg = self.cfg
        try:
            folder = prompt_folder(cfg)
            known = load_index(folder)
        except UserError as error:
            if cfg.train.mode != "offline":
                raise
            # Offline training needs no prompts; nobody is to be stopped for the want of them.
            self._none(f"its prompts cannot be read ({error})")
            return
        self.split = next((split for split in SPLITS if known.get(split) and split != cfg.data.split), "")
        if not self.split:
            names = ", ".join(sorted(known))
            self._none(
                f"{folder} has none of the splits {', '.join(SPLITS)} beside the one it trains on (it has {names})"
            )
            return
        with PromptReader(folder, self.split) as reader:
            self.prompts = [reader[i] for i in range(min(cfg.watch.prompts, len(reader)))]
        self.collector.model.check_prompts(self.prompts)

    def _none(self, why: str) -> None:
        """Nobody looks. UserError where somebody is asked for by name."""
        if self._check is not None:
            raise UserError(f"watch.checker={self.cfg.watch.checker}: {why}")
        self.every = 0
        self.missing = f"no look at held-out prompts: {why}. The split `validation` or `test` makes one."

    def due(self, steps: int) -> bool:
        """Whether there is a look after so many steps; the same on all ranks."""
        last = steps == self.cfg.train.steps
        return self.every > 0 and (last or steps % self.every == 0)

    def open_base(self, run_dir: Path, steps: int, tell: Callable[[int, int], None]) -> dict[str, Any] | None:
        """Has the base's rewards known before step ``steps`` + 1; all ranks call it.

        Returns the base's record where it was looked at now; None where it was before, or where nobody knows it: a run
        that was begun without a look, and that keeps no untrained weights.
        """
        if not self.every:
            return None
        self.base = ranks.run_on_all_ranks(lambda: self._kept_base(run_dir), rank_zero=True)[0]
        if self.base:
            return None
        weights = self.weights if steps == 0 else "reference"
        if steps and not self.engine.has_weights("reference"):
            return None
        seen = self.look(tell, weights)
        self.base = {prompt.id: one.reward for prompt, one in zip(self.prompts, seen, strict=True)}
        kept = {key: None if math.isnan(value) else value for key, value in self.base.items()}
        text = json.dumps({"split": self.split, "binding": self._binding, "rewards": kept}, indent=1) + "\n"
        ranks.run_on_all_ranks(lambda: write_atomic(run_dir / BASE, text), rank_zero=True)
        return self.record(0, seen)

    def _kept_base(self, run_dir: Path) -> dict[str, float]:
        """What ``open_base`` wrote in an earlier call of this run; nothing where there is none, or another run's."""
        try:
            found = parse_json((run_dir / BASE).read_bytes())
            if found["split"] != self.split or found["binding"] != self._binding:
                return {}
            return {str(key): math.nan if value is None else float(value) for key, value in found["rewards"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def look(self, tell: Callable[[int, int], None] = lambda done, total: None, weights: str = "") -> list[Seen]:
        """Draws, judges and checks every prompt once; all ranks call it and get the same, in the prompts' order.

        tell: (images drawn, of how many) on this rank. weights: without, those that are exported.
        """
        cfg, engine, collector = self.cfg, self.engine, self.collector
        r = cfg.rollout
        mine, count = share(self.prompts, engine.rank, engine.world_size)
        drawn: list[Samples] = []
        with ExitStack() as gathered:
            gathered.enter_context(for_drawing(engine, weights or self.weights, r.gather))
            for group in micro_batches(mine, r.micro_batch_prompts * r.images_per_prompt):
                tell(sum(len(samples.prompts) for samples in drawn), len(mine))
                drawn.append(roll_out(collector.model, group, 1, r.image_size, collector.sampling, cfg.run.seed, 0))
            tell(len(mine), len(mine))
            judge = collector.host.take(gathered)
            # Where it fails on one rank it fails on all: nobody waits for its part.
            found = ranks.run_on_all_ranks(lambda: self._judged(judge, drawn)[:count])
        # In the order of the prompts, which were dealt out like cards.
        return [found[number % len(found)][number // len(found)] for number in range(sum(map(len, found)))]

    def _judged(self, judge: Judge, drawn: Sequence[Samples]) -> list[Seen]:
        said = self.collector.judging.scores_together(judge, [(samples, no_regions()) for samples in drawn])
        return [one for samples, scores in zip(drawn, said, strict=True) for one in self._seen(samples, scores)]

    def _seen(self, samples: Samples, scores: Scores) -> list[Seen]:
        exact: Sequence[bool | None] = [None] * len(samples.prompts)
        if self._check is not None:
            exact = self._check(samples.prompts, samples.finite().images_NCHW)
        rewards = scores.global_N.tolist()
        judges = {name: said_N.tolist() for name, said_N in scores.by_judge.items()}
        return [
            Seen(reward, {name: said[n] for name, said in judges.items()}, true)
            for n, (reward, true) in enumerate(zip(rewards, exact, strict=True))
        ]

    def record(self, steps: int, seen: Sequence[Seen]) -> dict[str, Any]:
        """A line of ``held_out.jsonl``; figures that nobody knows are None."""
        rewards = {prompt.id: one.reward for prompt, one in zip(self.prompts, seen, strict=True)}
        gained = [value - self.base[key] for key, value in rewards.items() if key in self.base]
        record: dict[str, Any] = {
            "step": steps,
            "prompts": len(seen),
            "weights": self.weights,
            **_mean("reward", list(rewards.values())),
            **_mean("difference", gained),
        }
        if self._check is not None:
            record["checker_exact"] = sum(bool(one.exact) for one in seen) / len(seen)
        names = list(dict.fromkeys(name for one in seen for name in one.judges))
        if names:
            record["judges"] = {name: _mean("it", [one.judges[name] for one in seen])["it"] for name in names}
        return record


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """A mean and its standard error, of what is known; None where nothing is."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {name: None, f"{name}_se": None}
    found = estimate(known)
    return {name: found.mean, f"{name}_se": None if math.isnan(found.stderr) else found.stderr}


def best_of(looks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The look after a step with the highest reward, the first of equals; None where there is none."""
    after = [look for look in looks if look["step"] > 0 and look["reward"] is not None]
    return max(after, key=lambda look: float(look["reward"]), default=None)


def told(look: Mapping[str, Any]) -> str:
    """A look in one line for the console."""
    if look["reward"] is None:
        return f"held-out after step {look['step']}: the judge gave none of the {look['prompts']} images a score"
    when = f"after step {look['step']}" if look["step"] else "before any step (the base)"
    spread = "" if look["reward_se"] is None else f" ± {look['reward_se']:.3f}"
    parts = [f"held-out {when}: {look['reward']:+.3f}{spread}"]
    if look["step"] and look["difference"] is not None:
        spread = "" if look["difference_se"] is None else f" ± {look['difference_se']:.3f}"
        parts.append(f"{look['difference']:+.3f}{spread} against the base")
    if "checker_exact" in look:
        parts.append(f"{look['checker_exact']:.0%} exact by the checker")
    parts += [f"{name} {said:+.3f}" for name, said in look.get("judges", {}).items() if said is not None]
    return ", ".join(parts)
