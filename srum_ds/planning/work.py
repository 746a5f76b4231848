"""FLOPs of a step's phases, from what is drawn, asked and trained: the arithmetic of plans and of accounting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from srum_ds.config import Config
from srum_ds.models.costs import Flops, ModelCosts, ParameterCounts
from srum_ds.objectives import Objective, get_objective
from srum_ds.planning import assumptions
from srum_ds.planning.policies import holds_to_reference
from srum_ds.planning.segment_anything import sam_costs
from srum_ds.rewards.judge.judge import render
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import LikelihoodReadout, writes
from srum_ds.rewards.templates import load_template


@dataclass(frozen=True)
class Seen:
    """What is asked about one image: its prompt, the phrases of it, how many regions, and what is replied.

    filtered: crops of it that the filter asks about (a share, where only a batch's are known). whole_tokens,
    region_tokens: of a written reply about the image, and about a region (of ``boxes``, about all).
    """

    prompt: str
    phrases: tuple[str, ...]
    regions: int
    whole_tokens: int = 0
    region_tokens: int = 0
    filtered: float = 0.0


@dataclass(frozen=True)
class Work:
    """A recipe's work. sampling: the sampler's settings. FLOPs are of whatever is given, one rank's or all."""

    cfg: Config
    costs: ModelCosts
    judging: JudgePipeline
    sampling: Any

    @cached_property
    def objective(self) -> Objective:
        return get_objective(self.cfg.objective.name)

    @cached_property
    def parameters(self) -> ParameterCounts:
        """Parameters in the recipe's mode."""
        cfg = self.cfg
        return self.costs.parameters(cfg.model.trains, cfg.lora.rank, cfg.lora.targets)

    @property
    def adapter(self) -> int:
        """Elements of the LoRA adapter; 0 without."""
        return self.parameters.trained if self.cfg.model.trains == "lora" else 0

    # ---- rollout

    def draw(self, prompt: str) -> float:
        """All images of one prompt, and the pool that they are chosen from, with the first look at it."""
        r = self.cfg.rollout
        flops = self.costs.draw_flops(prompt, r.images_per_prompt, r.image_size, self.sampling, self.adapter)
        if r.pool:
            cheap = replace(self.sampling, num_timesteps=r.pool_timesteps)
            flops += self.costs.draw_flops(prompt, r.pool, r.image_size, cheap, self.adapter)
            flops += r.pool * self._ask_whole(Seen(prompt, (), 0, 1)) if self.judging.asks_own else 0.0
        return flops

    # ---- judge

    def judge(self, seen: Seen) -> float:
        """Finding one image's regions, and asking about the image and about them.

        Not counted: phrases that the judge is asked for, replies that are asked for again, a second judge.
        """
        if not self.judging.asks_own:
            return self._propose(seen) if self.judging.judges_regions else 0.0
        return self._propose(seen) + self._ask_whole(seen) + self._ask_regions(seen)

    def _propose(self, seen: Seen) -> float:
        r, size = self.cfg.regions, self.cfg.rollout.image_size
        flops = 0.0
        if r.kind == "sam":
            flops += sam_costs(r.sam_model)[0].flops(r.sam_points)
        if r.kind == "ground":
            question = load_template(r.ground_template).render(prompt=seen.prompt, phrases=list(seen.phrases))
            flops += self.costs.write_flops(size, question, r.ground_tokens)
        if r.filter:
            questions = self.filter_questions(seen.prompt, seen.phrases)
            flops += seen.filtered * self.costs.answer_flops(self.cfg.judge.crop_size, questions)
        return flops

    def filter_questions(self, prompt: str, phrases: Sequence[str]) -> list[str]:
        """What ``regions.filter`` asks about each crop of a prompt's images."""
        template = load_template(self.cfg.regions.filter_template)
        if "phrase" in template.variables:
            return [template.render(prompt=prompt, phrase=phrase) for phrase in phrases]
        return [template.render(prompt=prompt)]

    def question(self, prompt: str) -> str:
        """The question about a whole image of a prompt; empty where none is asked."""
        return render(self.judging.whole, self.judging.readout, prompt=prompt)

    def _ask_whole(self, seen: Seen) -> float:
        return self._read(self.cfg.rollout.image_size, [self.question(seen.prompt)], [seen.prompt], seen.whole_tokens)

    def _ask_regions(self, seen: Seen) -> float:
        if not seen.regions:
            return 0.0
        size = self.cfg.rollout.image_size
        part, readout = self.judging.part, self.judging.readout
        if self.cfg.judge.regional == "boxes":
            boxes = [[0, 0, size[1], size[0]]] * seen.regions
            question = render(part, readout, prompt=seen.prompt, boxes=boxes, width=size[1], height=size[0])
            return self.costs.write_flops(size, question, seen.region_tokens)
        questions = [render(part, readout, prompt=seen.prompt, phrase=phrase) for phrase in seen.phrases]
        return seen.regions * self._read(self.cfg.judge.crop_size, questions, seen.phrases, seen.region_tokens)

    def _read(self, size: tuple[int, int], questions: Sequence[str], texts: Sequence[str], written: int) -> float:
        """Questions about one image as the readout asks them; one of a user's own counts as ``logprob``."""
        readout = self.judging.readout
        if writes(readout):
            return sum(self.costs.write_flops(size, question, written) for question in questions)
        if isinstance(readout, LikelihoodReadout):
            asked = questions if readout.ask else [""] * len(texts)
            return self.costs.text_flops(size, asked, texts)
        return self.costs.answer_flops(size, questions)

    # ---- train

    @cached_property
    def frozen_passes(self) -> int:
        """Policies beside the trained one that predict every view."""
        return int(self.objective.needs_old) + int(holds_to_reference(self.cfg, self.objective))

    def train(self, prompts: Sequence[str]) -> Flops:
        """One micro-batch's training pass with its gradient, and the predictions of the other policies.

        prompts: one entry per image.
        """
        t, size = self.cfg.train, self.cfg.rollout.image_size
        mode, views = self.cfg.model.trains, t.timesteps_per_image
        flops = self.costs.train_flops(prompts, views, size, mode, t.activation_checkpointing, self.adapter)
        return Flops(flops.forward * (1 + self.frozen_passes), flops.backward, flops.recomputed)


def proposals(cfg: Config) -> int:
    """Boxes of an image that a plan counts with: a grid's cells; of another proposer more than any bound."""
    known = {"none": 0, "grid": cfg.regions.grid_side**2}
    return known.get(cfg.regions.kind, max(cfg.regions.max_count, cfg.regions.candidates))


def written_tokens(work: Work) -> int:
    """Tokens of a written reply that a plan counts with."""
    j = work.cfg.judge
    expected = assumptions.THOUGHT_TOKENS if j.think else assumptions.REPLY_TOKENS
    return min(j.max_new_tokens, expected)
