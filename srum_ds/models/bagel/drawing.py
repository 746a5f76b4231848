"""The adapter's drawing half: contexts of the guidance branches, sampling, decoding, and planning first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.bagel.answering import BagelAnswerer
from srum_ds.models.bagel.images import quantise
from srum_ds.models.bagel.latents import unpatchify_latent
from srum_ds.models.bagel.sampling import euler, guide
from srum_ds.models.bagel.transformer import Cache, stack_caches
from srum_ds.models.flow import FlowSampling, initial_noise, noised_views
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView

PLANNING_PROMPT = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. "
    "<think> planning process here </think> image here"
)
"""The system prompt that the released model was trained to plan under (arXiv 2505.14683)."""


@dataclass(frozen=True)
class Branches:
    """Contexts of the guidance branches: everything, all but the text, all but the picture (if any)."""

    full: Cache
    no_text: Cache
    no_image: Cache | None = None


@dataclass(frozen=True)
class Step:
    """One sampler step: x before it, its time, and the branches' velocities (None where not computed)."""

    time: float
    x_BTC: Tensor
    conditional_BTC: Tensor
    no_text_BTC: Tensor | None = None
    no_image_BTC: Tensor | None = None


class BagelPainter(BagelAnswerer):
    """Draws."""

    @property
    def token_spec(self) -> TokenSpec:
        """Latent tokens: numbers of the autoencoder's latent, ``latent_patch_size`` squared positions each."""
        return TokenSpec("continuous", self.config.token_channels)

    @property
    def matching(self) -> FlowMatching:
        """Predictions are velocities."""
        return FlowMatching()

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """UserError, naming the prompt, for an empty one and for one that is too long."""
        self.prompt_ids(prompts)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """[bos] ids [eos] of each prompt; UserError for an empty one and for one that is too long."""
        return [self.text_ids(prompt.text, f"prompt {prompt.id!r}") for prompt in prompts]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: FlowSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one picture per prompt, picture n from the noise that ``keys[n]`` seeds.

        edits: an input picture [3, H, W] in [0, 1] for each prompt, to be edited (``default_size`` says the size
        that suits it). plans: what ``plan`` wrote for each prompt.

        Returns the latent tokens as sampled [N, T, C] (float32) and the pictures [N, 3, H, W] in
        [0, 1], quantised to 8 bits. The same prompt and key give the same picture in any batch.
        """
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        ids = self.prompt_ids(prompts)
        plan_ids = None if plans is None else [self.tokenizer.segment(plan) for plan in plans]
        noise_NTC = initial_noise(keys, (grid[0] * grid[1], self.config.token_channels))
        seen = self.branches(ids, edits, plan_ids)
        tokens_NTC, _ = self.sample(noise_NTC, grid, sampling, seen.full, seen.no_text, seen.no_image)
        return tokens_NTC, self.decode(tokens_NTC, grid)

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """Noised copies of every picture; see ``flow.noised_views``."""
        return noised_views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """Velocities [N, M, T, C] of every view, through the engine or the gathered module; see ``Bagel.denoise``."""
        ids = self.prompt_ids(prompts)
        length_N = torch.tensor([len(i) for i in ids], device=ids[0].device)
        ids_NL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        inputs = view.inputs
        velocity_NMTC: Tensor = forward(
            "denoise",
            ids_NL,
            length_N,
            inputs["dropped_NM"],
            inputs["x_NMTC"],
            inputs["time_NM"],
            torch.tensor(grid),
        )
        return velocity_NMTC

    # ---- contexts

    def branches(
        self,
        ids_B: Sequence[Tensor],
        images: Sequence[Tensor] | None = None,
        plan_ids_B: Sequence[Tensor] | None = None,
    ) -> Branches:
        """Contexts for drawing: [planning prompt] [picture] text [plan], and the same with parts left out.

        ids_B, plan_ids_B: int64 with bos and eos. Without text means everything before it; without
        picture means the texts without plan, as released.
        """
        batch = len(ids_B)
        everyone = torch.ones(batch, dtype=torch.bool, device=self.module.device)
        if images is None and plan_ids_B is None:
            full = self._read_distinct(ids_B)
            return Branches(full, full.without(everyone))
        before = self.empty(batch)
        if plan_ids_B is not None:
            before = self._read_planning_prompt(batch)
        shown = before if images is None else self.read_pictures(images, before)
        full = self.module.read_text(ids_B, shown)
        if plan_ids_B is not None:
            full = self.module.read_text(plan_ids_B, full)
        no_image = None if images is None else self.module.read_text(ids_B, before)
        return Branches(full, shown, no_image)

    def _read_planning_prompt(self, batch: int) -> Cache:
        rows = torch.zeros(batch, dtype=torch.int64, device=self.module.device)
        return self.module.read_text([self.tokenizer.segment(PLANNING_PROMPT)]).take(rows)

    def _read_distinct(self, ids_B: Sequence[Tensor]) -> Cache:
        """Reads each distinct text once: samples of one prompt share its context."""
        keys = [tuple(ids.tolist()) for ids in ids_B]
        distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        texts = [torch.tensor(key, device=self.module.device) for key in distinct]
        index = torch.tensor([distinct[key] for key in keys], device=self.module.device)
        return self.module.read_text(texts).take(index)

    @torch.no_grad()
    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Writes a plan for each prompt; ``generate(..., plans=plans)`` then draws by it.

        Every rank decodes ``max_new_tokens`` steps. temperature, seeds: see ``decode_tokens``.
        """
        ids = self.prompt_ids(prompts)
        context = self._read_planning_prompt(len(prompts))
        if edits is not None:
            context = self.read_pictures(edits, context)
        context = self.module.read_text(ids, context)
        logits, cache = self.start_answer(context)
        tokens, _ = self.decode_tokens(logits, cache, max_new_tokens, temperature, seeds)
        return self._texts(tokens)

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        noise_NTC: Tensor,
        grid: tuple[int, int],
        sampling: FlowSampling,
        context: Cache,
        no_text: Cache,
        no_image: Cache | None = None,
        trace: list[Step] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Integrates the guided velocity; see ``sampling.euler``.

        All guidance branches of a step run as one batch. ``trace`` receives one ``Step`` an update.
        Returns the tokens and each step's velocity.
        """
        batch, tokens, _ = noise_NTC.shape
        module = self.module
        with_image = no_image is not None and sampling.image_scale > 1
        branches = [context, no_text, *([no_image] if with_image and no_image is not None else [])]
        joint = stack_caches(branches) if sampling.text_scale > 1 else context
        joint_layout = module.noised_layout(joint.batch, tokens, joint)
        plain_layout = module.noised_layout(batch, tokens, context)

        def velocity(x: Tensor, t: float, guided: bool) -> Tensor:
            if not guided:
                time = torch.full((batch,), t, device=module.device)
                v = module.velocity(x, time, grid, context, plain_layout)
                if trace is not None:
                    trace.append(Step(t, x, v))
                return v
            time = torch.full((joint.batch,), t, device=module.device)
            many = x.repeat(len(branches), 1, 1)
            parts = module.velocity(many, time, grid, joint, joint_layout).chunk(len(branches))
            if trace is not None:
                trace.append(Step(t, x, *parts))
            return guide(
                parts[0],
                parts[1],
                parts[2] if with_image else None,
                text_scale=sampling.text_scale,
                image_scale=sampling.image_scale,
                renorm=sampling.renorm,
                renorm_min=sampling.renorm_min,
                scope=sampling.renorm_scope,
            )

        return euler(velocity, noise_NTC.to(module.device), sampling)

    @torch.no_grad()
    def velocity(self, x_NTC: Tensor, time: float, grid: tuple[int, int], context: Cache) -> Tensor:
        """Velocity [N, T, C] (float32) of noised tokens at one time under a context."""
        time_N = torch.full((len(x_NTC),), time, device=self.module.device)
        return self.module.velocity(x_NTC.to(self.module.device), time_N, grid, context)

    @torch.no_grad()
    def decode_unclamped(self, targets_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The autoencoder's output [N, 3, H, W], about [-1, 1], for latent tokens."""
        return self.autoencoder.decode(unpatchify_latent(targets_NTC, grid, self.config.latent_patch_size))

    @torch.no_grad()
    def decode(self, targets_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] (8-bit values) of latent tokens."""
        return quantise(self.decode_unclamped(targets_NTC, grid) * 0.5 + 0.5)
