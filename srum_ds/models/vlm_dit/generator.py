"""Draws images and predicts velocities with a pipeline's transformer: the ``Generator`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.flow import initial_noise, noised_views
from srum_ds.models.library.spelled_tokens import SpelledTokens
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, ViewSettings
from srum_ds.models.vlm_dit.asking import DryRun
from srum_ds.models.vlm_dit.model import VlmDit, as_bytes
from srum_ds.models.vlm_dit.sampling import GUIDES, PipelineSampling, euler
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView


@dataclass(frozen=True)
class SamplerStep:
    """One step: sigma, the time that the transformer is given, and the velocities [B, T, C] (None: not computed)."""

    sigma: float
    time_input_B: Tensor
    conditional_BTC: Tensor
    empty_BTC: Tensor | None
    guided_BTC: Tensor


class VlmDitGenerator:
    """The drawing half of a pipeline."""

    def __init__(self, module: VlmDit, dry: DryRun, tokenizer: Any) -> None:
        self.module = module
        self.dry = dry
        self.tokenizer = tokenizer
        self.spelled = SpelledTokens(tokenizer)

    @property
    def token_spec(self) -> TokenSpec:
        """Latent tokens as the pipeline packs them: for Qwen-Image number 4 channel + 2 row + column of 2 x 2."""
        return TokenSpec("continuous", self.dry.channels)

    @property
    def matching(self) -> FlowMatching:
        """Predictions are velocities."""
        return FlowMatching()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens (rows, columns) of an image in pixels; UserError where the pipeline would cut it."""
        return self.dry.grid(height, width)

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels; UserError for an image to edit, which no pipeline here takes."""
        _refuse_edits(edit)
        return self.dry.default_size

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """UserError, naming the prompt, for one that is empty, or so long that the pipeline would cut it."""
        longest = self.dry.facts.longest
        for prompt in prompts:
            if not prompt.text.strip():
                raise UserError(f"prompt {prompt.id!r} is empty; give it a text.")
            token = self.spelled.in_text(prompt.text)
            if token:
                raise UserError(
                    f"prompt {prompt.id!r} spells {token}, which the pipeline would read as a control token: leave it "
                    "out."
                )
            length = len(self.tokenizer(prompt.text, add_special_tokens=False).input_ids)
            if length > longest:
                raise UserError(
                    f"prompt {prompt.id!r} is too long: {length} tokens, of which {self.dry.folder.name} takes "
                    f"{longest}. Shorten it."
                )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: PipelineSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one image per prompt, image n from the noise that ``keys[n]`` seeds.

        Returns the latent tokens as sampled [N, T, C] (float32) and the images [N, 3, H, W] in [0, 1], rounded to 8
        bits. The same prompt, key and size give the same image in any batch: in float32 up to rounding, in bfloat16
        up to what paddings of other prompts' lengths round otherwise. UserError for edits and plans.
        """
        _refuse_edits(edits)
        _refuse_plans(plans)
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        self.check_prompts(prompts)
        noise_NTC = initial_noise(keys, (grid[0] * grid[1], self.token_spec.size))
        tokens_NTC = self.sample(noise_NTC, grid, sampling, [prompt.text for prompt in prompts])
        return tokens_NTC, self.decode(tokens_NTC, grid)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """UserError: a pipeline draws without a plan."""
        del prompts, max_new_tokens, edits, temperature, seeds
        _refuse_plans(())
        return []

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """Noised copies of every image; see ``flow.noised_views``."""
        return noised_views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """Velocities [N, M, T, C] of every view, through the engine or the gathered module; see ``VlmDit.forward``."""
        inputs = view.inputs
        utf8_NL, length_N = as_bytes([prompt.text for prompt in prompts])
        velocity_NMTC: Tensor = forward(
            utf8_NL, length_N, inputs["dropped_NM"], inputs["x_NMTC"], inputs["time_NM"], torch.tensor(grid)
        )
        return velocity_NMTC

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        noise_NTC: Tensor,
        grid: tuple[int, int],
        sampling: PipelineSampling,
        texts: Sequence[str],
        trace: list[SamplerStep] | None = None,
    ) -> Tensor:
        """Tokens [N, T, C] (float32) that the guided velocity leads to from noise, by the pipeline's noise levels.

        As in the pipeline, the pass with the prompts and the pass without them are two. ``trace`` receives one
        ``SamplerStep`` a step.
        """
        module, guide = self.module, GUIDES[self.dry.guide]
        prompted = module.conditions(texts, grid)
        empty = module.conditions([""] * len(texts), grid) if sampling.guided else None

        def velocity(x_BTC: Tensor, sigma: float) -> Tensor:
            time_B = torch.full((len(x_BTC),), sigma)
            conditional_BTC = module.velocity(x_BTC, time_B, prompted)
            empty_BTC = None if empty is None else module.velocity(x_BTC, time_B, empty)
            guided_BTC = conditional_BTC
            if empty_BTC is not None:
                guided_BTC = guide(conditional_BTC, empty_BTC, sampling.text_scale)
            if trace is not None:
                given_B = time_B * self.dry.time_scale
                trace.append(SamplerStep(sigma, given_B, conditional_BTC, empty_BTC, guided_BTC))
            return guided_BTC

        return euler(velocity, noise_NTC.to(module.device), self.dry.sigmas(sampling.steps, grid))

    @torch.no_grad()
    def decode_unclamped(self, tokens_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The autoencoder's output [N, 3 or 4, H, W] (float32), about [-1, 1], for latent tokens."""
        return self.dry.decode(tokens_NTC, grid)

    @torch.no_grad()
    def decode(self, tokens_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] of latent tokens, rounded to 8 bits; what is transparent lies on white."""
        image = (self.decode_unclamped(tokens_NTC, grid) * 0.5 + 0.5).clamp(0, 1)
        if image.shape[1] == 4:
            opaque = image[:, 3:]
            image = image[:, :3] * opaque + (1 - opaque)
        return (image * 255).round() / 255


def _refuse_edits(edits: object) -> None:
    if edits is not None:
        raise UserError("this design draws from prompts alone: leave the image to edit out.")


def _refuse_plans(plans: object) -> None:
    if plans is not None:
        raise UserError("this design draws without plans: leave the planning out.")
