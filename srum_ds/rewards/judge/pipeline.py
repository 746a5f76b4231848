"""The judge as a recipe has it: what it is asked, how it is read, where it looks, and who else is asked.

``JudgePipeline`` is built once per run and judges all micro-batches; evaluation and calibration use its questions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.crops import silent
from srum_ds.rewards.judge.external import mix
from srum_ds.rewards.judge.judge import Asked, Asking, ask_all, judge_together, render
from srum_ds.rewards.judge.outside import Externals, Sent
from srum_ds.rewards.judge.readouts import Request, readout_of
from srum_ds.rewards.regions.boxes import no_regions
from srum_ds.rewards.regions.pipeline import RegionPipeline, surplus_penalty_of
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Judged, Prompt, Regions, Samples, Scores


class JudgePipeline:
    """What the judge is asked, loaded once, and where it looks. ``run_dir``: see ``RegionPipeline``.

    Raises UserError for a readout or a template that is not there or that do not fit each other.
    """

    def __init__(self, cfg: Config, run_dir: Path | None = None) -> None:
        self.cfg = cfg
        self.run_dir = run_dir
        self.readout = readout_of(cfg)
        self.whole, self.part = _templates(cfg)
        self.externals = Externals(cfg)

    def judged(self, judge: Judge, samples: Samples) -> Judged:
        """``judged_together`` of one micro-batch."""
        return self.judged_together(judge, [samples])[0]

    def send(self, samples: Samples) -> Sent:
        """Asks the judges outside that are functions or servers, in threads. See ``begin``."""
        return self.externals.send(samples)

    def first_look(self, judge: Judge, samples: Samples) -> Tensor:
        """The judge's scores of whole images alone: float32 [N] in [-1, 1], NaN for a reply it cannot use.

        They are its own, or those of all others together where it is not asked (``asks_own``).
        """
        if not self.asks_own:
            return self.scores(judge, samples, no_regions()).global_N
        prompts = samples.prompt_of_each()
        requests = [
            Request(n, self.question_about(prompt), prompt.text, (prompt.name, int(samples.sample_N[n]), "pool"))
            for n, prompt in enumerate(prompts)
        ]
        asked = Asked(list(samples.images_NCHW), [[request] for request in requests])
        return ask_all(judge, [asked], self.readout, self.cfg.judge.batch)[0].score_Q

    def judged_together(self, judge: Judge, batches: Sequence[Samples]) -> list[Judged]:
        """Samples, their prompts with their object phrases, their regions, and what the judge says of all.

        Micro-batches that a rank has judged in one call have their written replies written together.
        """
        return self.begin(judge, batches)()

    def begin(self, judge: Judge, batches: Sequence[Samples], sent: Sequence[Sent] = ()) -> Callable[[], list[Judged]]:
        """Asks the judge; what is returned waits for a judge outside and gives ``judged_together``'s list.

        sent: what ``send`` gave for each micro-batch, if it was called.
        """
        pairs = [(samples, no_regions()) for samples in batches]
        if self.judges_regions:
            prompts = iter(self.regions.phrases(judge, [prompt for samples in batches for prompt in samples.prompts]))
            known = [replace(samples, prompts=tuple(islice(prompts, len(samples.prompts)))) for samples in batches]
            pairs = list(zip(known, self.regions.regions_together(judge, [s.finite() for s in known]), strict=True))
        scores = self._scores(judge, pairs, sent)
        return lambda: [Judged(*pair, said) for pair, said in zip(pairs, scores(), strict=True)]

    def scores(self, judge: Judge, samples: Samples, regions: Regions) -> Scores:
        """``scores_together`` of one micro-batch."""
        return self.scores_together(judge, [(samples, regions)])[0]

    def scores_together(self, judge: Judge, batches: Sequence[tuple[Samples, Regions]]) -> list[Scores]:
        """Global and local scores of samples whose regions are known."""
        return self._scores(judge, batches, ())()

    def _scores(
        self, judge: Judge, batches: Sequence[tuple[Samples, Regions]], sent: Sequence[Sent]
    ) -> Callable[[], list[Scores]]:
        # What nobody has asked before is asked while the own judge answers.
        sent = sent or [self.externals.send(samples) for samples, _ in batches]
        if self.asks_own:
            own = judge_together(judge, batches, self.asking)
        else:
            own = [silent(len(samples.group_N), len(regions)) for samples, regions in batches]
        checkpoints = self.externals.opinions(batches, self.asking)

        def settled() -> list[Scores]:
            found = []
            for (samples, regions), said, answers, others in zip(batches, own, sent, checkpoints, strict=True):
                wholes = [answer.result() for answer in answers]
                opinions = self.externals.about_regions(wholes, samples, regions, self.asking)
                found.append(mix(said, [*opinions, *others], asked=self.asks_own))
            return found

        return settled

    @cached_property
    def asks_own(self) -> bool:
        """Whether the model's own judge has a share of the scores; where the others have all, nobody asks it."""
        return self.externals.own_share > 0

    @property
    def cure(self) -> str:
        """What to look at where too many of the own judge's answers could not be used; empty where nobody asks it."""
        return self.readout.cure if self.asks_own else ""

    @cached_property
    def judges_regions(self) -> bool:
        """Whether anybody judges regions: the own judge, or another one. Nobody looks for any where not."""
        return self.asks_own or self.externals.judge_regions

    @cached_property
    def regions(self) -> RegionPipeline:
        """Phrases and regions. Built when first needed: who only asks about whole images needs no proposer."""
        return RegionPipeline(self.cfg, self.run_dir, int(os.environ.get("RANK", "0")))

    @cached_property
    def asking(self) -> Asking:
        """Questions and settings of a step's judging."""
        j = self.cfg.judge
        penalty = surplus_penalty_of(self.cfg)
        return Asking(self.whole, self.part, self.readout, j.regional, j.crop_size, j.batch, penalty)

    def ready(self) -> JudgePipeline:
        """Itself, with everything loaded that a step needs; UserError for what is not there."""
        assert self.asking is not None and self.regions is not None
        self.externals.ready()
        return self

    def question_about(self, prompt: Prompt) -> str:
        """The question about a whole image of a prompt; empty where none is asked."""
        return render(self.whole, self.readout, prompt=prompt.text)

    @property
    def label(self) -> str:
        """The readout and both templates with their version and the start of their hash, for a line of metrics."""
        parts = ["none" if template is None else template.label for template in (self.whole, self.part)]
        return f"{self.cfg.judge.readout}: {'; '.join(parts)}"

    def described(self) -> dict[str, Any]:
        """Readout, way of judging regions, and both templates with version and hash, for a result's file."""
        return {
            "readout": self.cfg.judge.readout,
            "regional": self.cfg.judge.regional,
            "global_template": None if self.whole is None else self.whole.described(),
            "local_template": None if self.part is None else self.part.described(),
            "external": self.cfg.written("judge.external"),
            "external_weight": self.cfg.judge.external_weight if self.externals.judges else None,
        }


def _templates(cfg: Config) -> tuple[Template | None, Template | None]:
    j = cfg.judge
    if j.readout != "likelihood":
        return load_template(j.global_template), load_template(j.local_template)
    caption = None if j.caption_template is None else load_template(j.caption_template)
    return caption, caption
