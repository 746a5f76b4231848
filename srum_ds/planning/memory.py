"""Bytes of a rank by part and phase, from counts alone.

The parts that stay are there in every phase; the others are a phase's own. tests/integration/test_planned_memory.py
holds the sum against the bytes of tensors that ranks on a CPU really hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from srum_ds.models.costs import Device
from srum_ds.planning import assumptions
from srum_ds.planning.hardware import Hardware
from srum_ds.planning.policies import policies_of
from srum_ds.planning.segment_anything import sam_costs
from srum_ds.planning.traffic import ELEMENT, has_own_judge, zero_setting
from srum_ds.planning.work import Work, proposals, written_tokens
from srum_ds.rewards.judge.readouts import writes


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank: parts that stay, and by phase the parts that are there only then.

    whole: whether images are drawn with the whole model gathered, not layer by layer.
    """

    stays: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]
    whole: bool = True

    @property
    def persistent(self) -> int:
        """What is there all the time."""
        return sum(self.stays.values())

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase, with what stays."""
        return {phase: self.persistent + sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def peak_phase(self) -> str:
        """The phase that holds the most."""
        totals = self.totals
        return max(totals, key=lambda phase: totals[phase])

    @property
    def peak(self) -> int:
        """The most bytes that a rank holds."""
        return max(self.totals.values())


def memory_of(work: Work, ds_config: Mapping[str, Any], ranks: int, hardware: Hardware) -> Memory:
    """A rank's memory in the second step and after, when the optimizer's moments are there."""
    return _Rank(work, ds_config, ranks, hardware).memory()


class _Rank:
    """One rank of a run."""

    def __init__(self, work: Work, ds_config: Mapping[str, Any], ranks: int, hardware: Hardware) -> None:
        self.work = work
        self.cfg = work.cfg
        self.costs = work.costs
        self.counts = work.parameters
        self.ds_config = ds_config
        self.ranks = ranks
        self.hardware = hardware
        self.stage = int(ds_config["zero_optimization"]["stage"])
        self.element = ELEMENT[work.cfg.train.precision]
        self.device = Device(self.element, hardware.cpu)
        r = work.cfg.rollout
        self.micro = r.micro_batch_prompts * r.images_per_prompt
        self.drawn = r.micro_batch_prompts * max(r.pool, r.images_per_prompt)
        self.images = r.prompts_per_step // ranks * r.images_per_prompt
        self.trained_here = -(-self.counts.trained // ranks)
        offload = ds_config["zero_optimization"]
        self.optimizer_here = "offload_optimizer" not in offload
        self.prompt_tokens = self.costs.text_tokens(assumptions.PROMPT)

    def memory(self) -> Memory:
        staying = self._staying()
        self.whole = draws_whole(self.work, self.stage, self.hardware, sum(staying.values()))
        gathered = self._gathered()
        judged = self._gathered_judge()
        online = self.cfg.train.mode != "offline"
        phases: dict[str, Mapping[str, int]] = {}
        if online:
            phases["rollout: drawing"] = {**gathered, **self._drawing()}
            phases["rollout: decoding"] = {**gathered, "activations": self._decoding()}
            if self.cfg.regions.kind == "sam":
                phases["judge: regions"] = {**judged, "activations": sam_costs(self.cfg.regions.sam_model)[0].held}
            phases["judge: asking"] = {**judged, **self._judging()}
        if self.work.frozen_passes:
            phases["train: other policies"] = {**gathered, "activations": self._predicting()}
        phases["train: gradient"] = self._training()
        phases["train: step"] = self._stepping()
        return Memory(staying, phases, self.whole)

    # ---- what stays

    def _staying(self) -> dict[str, int]:
        counts, ranks = self.counts, self.ranks
        sharded = self.stage == 3
        policies = policies_of(self.cfg, self.work.objective)
        own = counts.judging * self.element if has_own_judge(self.cfg, self.costs) else 0
        vae = counts.frozen_outside * (4 if self.hardware.cpu else 2)
        gradients = self.trained_here if self.stage >= 2 else counts.trained
        away = not self.optimizer_here
        parts = {
            "weights, sharded" if sharded else "weights": counts.total * self.element // (ranks if sharded else 1),
            "fp32 masters": 0 if away else 4 * self.trained_here,
            "Adam's moments": 0 if away else 8 * self.trained_here,
            "gradients": 4 * gradients,
            "copy old": 4 * self.trained_here if "old" in policies else 0,
            "copy ema": 4 * self.trained_here if "ema" in policies else 0,
            "copy reference": self.element * self.trained_here if "reference" in policies else 0,
            "judge's copy": own // ranks if sharded else own,
            # The judge's copy has one of its own.
            "VAE": vae * 2 if own else vae,
            "SAM": 4 * sam_costs(self.cfg.regions.sam_model)[0].parameters if self.cfg.regions.kind == "sam" else 0,
            "reduction bucket": zero_setting(self.ds_config, "reduce_bucket_size") * self.element,
            "step's images": self._step_images(),
            "framework": 0 if self.hardware.cpu else assumptions.GPU_OVERHEAD_BYTES,
        }
        return {name: size for name, size in parts.items() if size}

    def _step_images(self) -> int:
        """Pixels and tokens of a step in float32, and of every view its input, its target and what others predict."""
        height, width = self.cfg.rollout.image_size
        tokens = 4 * self.costs.tokens((height, width)) * self.costs.token_numbers
        views = self.cfg.train.timesteps_per_image * (2 + self.work.frozen_passes)
        # Drawn ahead, the images of two steps are there.
        steps = 2 if self.cfg.train.mode == "ahead" else 1
        return self.images * (steps * (12 * height * width + tokens) + tokens * views)

    # ---- phases

    def _gathered(self) -> dict[str, int]:
        """The whole model in the compute dtype, beside its shards; under ZeRO-1 and 2 it is whole anyway."""
        if self.stage < 3:
            return {}
        if not self.whole:
            return {"gathered layers": self._live() * self.element}
        return {"gathered weights": self.counts.total * self.element}

    def _gathered_judge(self) -> dict[str, int]:
        """A copy of its own, or the live model; what of it does not train, where it was drawn with layer by layer."""
        if self.stage < 3:
            return {}
        if has_own_judge(self.cfg, self.costs):
            return {"gathered judge": self.counts.judging * self.element}
        if not self.whole:
            return {"gathered judge": (self.counts.total - self.counts.trained) * self.element}
        return self._gathered()

    def _live(self) -> int:
        """Elements that stay gathered while layers run one after another."""
        if self.stage < 3:
            return 0
        most = zero_setting(self.ds_config, "stage3_max_live_parameters")
        return min(self.counts.total, max(most, 2 * self.counts.unit))

    def _gathering(self, policy: str) -> int:
        """What is there while weights are gathered, and goes before they are used: a buffer, and a copy's cast."""
        if self.stage < 3:
            return 0
        cast = self.element * self.trained_here if policy in ("old", "ema") and self.element < 4 else 0
        if not self.whole:
            return cast
        return min(self.counts.total, assumptions.GATHER_AT_ONCE) * self.element + cast

    def _drawing(self) -> dict[str, int]:
        r = self.cfg.rollout
        found = dict(
            self.costs.draw_bytes(self.drawn, r.image_size, self.work.sampling, self.prompt_tokens, self.device)
        )
        gathering = self._gathering(r.weights)
        if not self.whole:
            # A copy's cast stays while its layers run.
            return {**found, "cast copy": gathering}
        found["activations"] = max(found["activations"], gathering - found["KV cache"])
        return found

    def _decoding(self) -> int:
        device = Device(4 if self.hardware.cpu else 2, self.hardware.cpu)
        return self.costs.decode_bytes(self.micro, self.cfg.rollout.image_size, device)

    def _judging(self) -> dict[str, int]:
        """The larger of what images and what crops take; written replies about all of a rank's images at once."""
        j = self.cfg.judge
        size = self.cfg.rollout.image_size
        written = writes(self.work.judging.readout)
        asked = self.costs.text_tokens(self.work.question(assumptions.PROMPT)) + 3
        if written:
            count = min(self.images, j.batch)
            return dict(self.costs.judge_bytes(count, size, asked, written_tokens(self.work), self.device))
        whole = dict(self.costs.judge_bytes(min(self.micro, j.batch), size, asked, 0, self.device))
        if self.cfg.regions.kind == "none" or j.regional == "boxes":
            return whole
        crops = min(self.micro * min(proposals(self.cfg), self.cfg.regions.max_count), j.batch)
        texts = len(assumptions.PHRASES) * asked
        part = dict(self.costs.judge_bytes(crops, j.crop_size, texts, 0, self.device))
        return part if sum(part.values()) > sum(whole.values()) else whole

    def _predicting(self) -> int:
        """A pass without gradient over a micro-batch's views: one layer's arrays, as in drawing without guidance."""
        one = self.costs.draw_bytes(
            self.micro * self.cfg.train.timesteps_per_image,
            self.cfg.rollout.image_size,
            _unguided(self.work.sampling),
            self.prompt_tokens,
            self.device,
        )
        policy = "old" if self.work.objective.needs_old else "reference"
        held, gathering = sum(one.values()), self._gathering(policy)
        return max(held, gathering) if self.whole else held + gathering

    def _training(self) -> dict[str, int]:
        t, counts = self.cfg.train, self.counts
        held = self.costs.train_bytes(
            self.micro,
            t.timesteps_per_image,
            self.cfg.rollout.image_size,
            self.prompt_tokens,
            self.cfg.model.trains,
            t.activation_checkpointing,
            self.device,
        )
        trained_unit = min(counts.trained, counts.unit)
        bucket = min(zero_setting(self.ds_config, "reduce_bucket_size"), counts.trained)
        return {
            "gathered layers": self._live() * self.element,
            "activations": held,
            # Of one unit in the compute dtype; a bucket of them in fp32 on its way.
            "gradients in flight": trained_unit * self.element + 4 * bucket,
        }

    def _stepping(self) -> dict[str, int]:
        """A sub-group's gradient in one piece, and what AdamW needs beside it."""
        group = min(zero_setting(self.ds_config, "sub_group_size"), self.trained_here)
        extra = assumptions.CPU_ADAM_TEMPORARIES if self.hardware.cpu else assumptions.GPU_ADAM_TEMPORARIES
        # What the pass before has left whole (stage3_max_reuse_distance).
        return {"gathered layers": self._live() * self.element, "step temporaries": 4 * group * (1 + extra)}


def draws_whole(work: Work, stage: int, hardware: Hardware, staying: int) -> bool:
    """Whether images are drawn with the whole model gathered: ``rollout.gather``; auto: as ``Engine.fits_gathered``.

    staying: bytes that a rank holds all the time.
    """
    gather = work.cfg.rollout.gather
    if stage < 3 or gather != "auto" or hardware.cpu:
        return gather != "layers"
    numel = work.parameters.total
    taken = (numel + min(numel, assumptions.GATHER_AT_ONCE)) * ELEMENT[work.cfg.train.precision]
    return hardware.memory - staying >= 1.1 * taken


def _unguided(sampling: Any) -> Any:
    """The same sampler without guidance, where its design knows it."""
    names = {field.name for field in fields(sampling)}
    return replace(sampling, text_scale=1.0) if "text_scale" in names else sampling
