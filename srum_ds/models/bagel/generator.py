"""Draws images, with a plan first where asked, and predicts velocities: the ``Generator`` of models/protocol.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.images import quantise
from srum_ds.models.bagel.latents import unpatchify_latent
from srum_ds.models.bagel.reader import Reader
from srum_ds.models.bagel.sampling import euler, guide
from srum_ds.models.bagel.text_decoding import TextDecoder
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
class GuidanceContexts:
    """What guidance compares: the whole context, all of it but the text, and all but the image to edit (if any)."""

    full: Cache
    no_text: Cache
    no_image: Cache | None = None


@dataclass(frozen=True)
class SamplerStep:
    """One sampler step: x before it, its time, and the velocity under each context (None where not computed)."""

    time: float
    x_BTC: Tensor
    conditional_BTC: Tensor
    no_text_BTC: Tensor | None = None
    no_image_BTC: Tensor | None = None


class BagelGenerator:
    """The drawing half of a BAGEL model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.decoder = TextDecoder(reader)

    @property
    def token_spec(self) -> TokenSpec:
        """Latent tokens: numbers of the autoencoder's latent, ``latent_patch_size`` squared positions each."""
        return TokenSpec("continuous", self.reader.config.token_channels)

    @property
    def matching(self) -> FlowMatching:
        """Predictions are velocities."""
        return FlowMatching()

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels: the largest square, or what an image to edit [3, H, W] is resized to."""
        if edit is None:
            side = self.reader.config.max_latent_size * self.reader.config.pixels_per_token
            return side, side
        _, height, width = self.reader.resized(edit).shape
        return height, width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See ``Reader.grid``."""
        return self.reader.grid(height, width)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See ``prompt_ids``."""
        self.prompt_ids(prompts)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """[bos] ids [eos] of each prompt, on the CPU; UserError, naming the prompt, for an empty or too long one."""
        return [self.reader.text_ids(prompt.text, f"prompt {prompt.id!r}") for prompt in prompts]

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
        """Draws one image per prompt, image n from the noise that ``keys[n]`` seeds.

        edits: an image [3, H, W] in [0, 1] for each prompt, to be edited (``default_size`` says the size
        that suits it). plans: what ``plan`` wrote for each prompt.

        Returns the latent tokens as sampled [N, T, C] (float32) and the images [N, 3, H, W] in [0, 1], quantised to
        8 bits. The same prompt and key give the same image in any batch. ValueError where there is not one key per
        prompt.
        """
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        ids = self.prompt_ids(prompts)
        plan_ids = None if plans is None else [self.reader.tokenizer.segment(plan) for plan in plans]
        noise_NTC = initial_noise(keys, (grid[0] * grid[1], self.token_spec.size))
        contexts = self.contexts(ids, edits, plan_ids)
        tokens_NTC, _ = self.sample(noise_NTC, grid, sampling, contexts)
        return tokens_NTC, self.decode(tokens_NTC, grid)

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

        All are written in one decoding. temperature, seeds: see ``TextDecoder.decode``.
        """
        ids = self.prompt_ids(prompts)
        context = self._read_planning_prompt(len(prompts))
        if edits is not None:
            context = self.reader.read_edits(edits, context)
        context = self.reader.module.read_text(ids, context)
        logits, cache = self.decoder.start(context)
        tokens, _ = self.decoder.decode(logits, cache, max_new_tokens, temperature, seeds)
        return self.decoder.texts(tokens)

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """Noised copies of every image; see ``flow.noised_views``."""
        return noised_views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """Velocities [N, M, T, C] of every view, through the engine or the gathered module; see ``Bagel.forward``."""
        texts, prompt_N = _distinct(self.prompt_ids(prompts))
        length_P = torch.tensor([len(ids) for ids in texts])
        ids_PL = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        inputs = view.inputs
        velocity_NMTC: Tensor = forward(
            ids_PL,
            length_P,
            inputs["dropped_NM"],
            inputs["x_NMTC"],
            inputs["time_NM"],
            torch.tensor(grid),
            torch.tensor(prompt_N),
        )
        return velocity_NMTC

    # ---- contexts

    def contexts(
        self,
        ids_B: Sequence[Tensor],
        edits: Sequence[Tensor] | None = None,
        plan_ids_B: Sequence[Tensor] | None = None,
    ) -> GuidanceContexts:
        """Contexts for drawing: [planning prompt] [image to edit] text [plan], and the same with parts left out.

        ids_B, plan_ids_B: int64 with bos and eos. Without text means everything before it; without
        image means the texts without plan, as released.
        """
        module = self.reader.module
        batch = len(ids_B)
        if edits is None and plan_ids_B is None:
            return GuidanceContexts(self._read_distinct(ids_B), self.reader.empty(batch))
        before = self.reader.empty(batch)
        if plan_ids_B is not None:
            before = self._read_planning_prompt(batch)
        shown = before if edits is None else self.reader.read_edits(edits, before)
        full = module.read_text(ids_B, shown)
        if plan_ids_B is not None:
            full = module.read_text(plan_ids_B, full)
        no_image = None if edits is None else module.read_text(ids_B, before)
        return GuidanceContexts(full, shown, no_image)

    def _read_planning_prompt(self, batch: int) -> Cache:
        module = self.reader.module
        rows = torch.zeros(batch, dtype=torch.int64, device=module.device)
        return module.read_text([self.reader.tokenizer.segment(PLANNING_PROMPT)]).take(rows)

    def _read_distinct(self, ids_B: Sequence[Tensor]) -> Cache:
        """Reads each distinct text once: samples of one prompt share its context."""
        module = self.reader.module
        texts, index = _distinct(ids_B)
        return module.read_text(texts).take(torch.tensor(index, device=module.device))

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        noise_NTC: Tensor,
        grid: tuple[int, int],
        sampling: FlowSampling,
        contexts: GuidanceContexts,
        trace: list[SamplerStep] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Integrates the guided velocity; see ``sampling.euler``.

        The contexts of a guided step run as one batch. ``trace`` receives one ``SamplerStep`` per update.
        Returns the tokens and each step's velocity.
        """
        module = self.reader.module
        compared = [contexts.full]
        if sampling.text_scale > 1:
            compared.append(contexts.no_text)
            if contexts.no_image is not None and sampling.image_scale > 1:
                compared.append(contexts.no_image)
        branches = [module.branch(context) for context in compared]
        joint = module.plan_denoising(branches, grid)
        plain = module.plan_denoising(branches[:1], grid)

        def velocity(x: Tensor, t: float, guided: bool) -> Tensor:
            time = torch.full((1,), t, device=module.device)
            parts = module.velocities(x, time, joint if guided else plain)
            if trace is not None:
                trace.append(SamplerStep(t, x, *parts))
            if not guided:
                return parts[0]
            return guide(
                parts[0],
                parts[1],
                parts[2] if len(parts) == 3 else None,
                text_scale=sampling.text_scale,
                image_scale=sampling.image_scale,
                renorm=sampling.renorm,
                renorm_min=sampling.renorm_min,
                scope=sampling.renorm_scope,
            )

        return euler(velocity, noise_NTC.to(module.device), sampling)

    @torch.no_grad()
    def decode_unclamped(self, tokens_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The autoencoder's output [N, 3, H, W], about [-1, 1], for latent tokens."""
        latent_NCHW = unpatchify_latent(tokens_NTC, grid, self.reader.config.latent_patch_size)
        self.reader.autoencoder.compute_in(self.reader.module.dtype)
        return self.reader.autoencoder.decode(latent_NCHW)

    @torch.no_grad()
    def decode(self, tokens_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] (8-bit values) of latent tokens."""
        return quantise(self.decode_unclamped(tokens_NTC, grid) * 0.5 + 0.5)


def _distinct(ids_B: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Each distinct text once, in order of appearance, and which of them each text is."""
    keys = [tuple(ids.tolist()) for ids in ids_B]
    first: dict[tuple[int, ...], Tensor] = {}
    for key, ids in zip(keys, ids_B, strict=True):
        first.setdefault(key, ids)
    row = {key: number for number, key in enumerate(first)}
    return list(first.values()), [row[key] for key in keys]
