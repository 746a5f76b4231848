"""Asks a pipeline what it does: conditions, sign and time scale, guidance, noise levels, tokens, decoding.

``DryRun`` needs no weights but the autoencoder's: its pipeline has stand-ins for the denoiser and the text encoder. A
``Conditioner`` has the real text encoder. Both stop the pipeline at its denoiser, or run it past one that says known
numbers, so that this package repeats nothing of a pipeline's code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.vlm_dit.config import SCHEDULER, PipelineFolder
from srum_ds.models.vlm_dit.sampling import GUIDES
from srum_ds.models.vlm_dit.stand_ins import AsDecoded, Denoiser, DryEncoder, Encoder, Heard, NoSteps, TextProcessor

DRY_SIZE = (64, 128)
"""Pixels (height, width) of dry runs that are about no size: whole tokens in every pipeline, and no square."""

USUAL_SIDE = 1024
"""Pixels of a side where a pipeline does not say."""

NOT_CONDITIONS = ("hidden_states", "timestep", "return_dict")

Conditions = Mapping[str, Any]
"""What a denoiser is called with beside its tokens and their time."""


def build_pipeline(folder: PipelineFolder, tokenizer: Any, **parts: Any) -> Any:
    """A pipeline of the folder's class from components; a further processor beside a tokenizer is left out."""
    texts = {"tokenizer": tokenizer, "processor": TextProcessor(tokenizer), "text_processor": None}
    texts = {name: value for name, value in texts.items() if name in folder.components}
    pipeline = folder.pipeline_class()(**parts, **texts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh_scheduler(folder: PipelineFolder) -> Any:
    """A scheduler as the folder has it, which nobody else has stepped."""
    import diffusers

    return getattr(diffusers, SCHEDULER).from_config(folder.config("scheduler"))


class Conditioner:
    """Says what the pipeline conditions its denoiser on, with the real text encoder, which no gradient enters.

    It runs inside the module's forward, where a sharded encoder is gathered layer by layer, and on a gathered module.
    """

    def __init__(self, folder: PipelineFolder, transformer: Any, text_encoder: Any, vae: Any, tokenizer: Any) -> None:
        self.facts = folder.pipeline
        self.denoiser = Denoiser(transformer)
        self.pipeline = build_pipeline(
            folder,
            tokenizer,
            transformer=self.denoiser,
            text_encoder=Encoder(text_encoder),
            vae=vae,
            scheduler=fresh_scheduler(folder),
        )

    def __call__(self, texts: Sequence[str], size_hw: tuple[int, int]) -> Conditions:
        """The conditions of images of so many pixels, one for each text; "" stands for no prompt."""
        prompts = [text or self.facts.empty for text in texts]
        heard = _hear(
            self.pipeline, self.denoiser, prompts, size_hw, {self.facts.guidance: 1.0, **self.facts.arguments}
        )
        return {name: value for name, value in heard.items() if name not in NOT_CONDITIONS}


class DryRun:
    """What a pipeline says without weights.

    sign, time_scale: velocity = sign * output, where the denoiser is given time_scale * sigma. guide: the name in
    ``GUIDES`` of its guidance. UserError where it does what this package does not know.
    """

    def __init__(self, folder: PipelineFolder, transformer: Any, text_encoder: Any, vae: Any, tokenizer: Any) -> None:
        self.folder = folder
        self.facts = folder.pipeline
        self.denoiser = Denoiser(transformer)
        self.encoder = DryEncoder(text_encoder)
        parts = {"transformer": self.denoiser, "text_encoder": self.encoder, "vae": vae}
        self.scheduler = fresh_scheduler(folder)
        self.pipeline = build_pipeline(folder, tokenizer, **parts, scheduler=self.scheduler)
        self.decoder = build_pipeline(folder, tokenizer, **parts, scheduler=NoSteps(self.scheduler))
        self.decoder.image_processor = AsDecoded()
        self.grid = lru_cache(maxsize=256)(self._grid)
        self.sigmas = lru_cache(maxsize=256)(self._sigmas)
        tokens = self._tokens(DRY_SIZE)
        self.unit = _side_of_token(DRY_SIZE, tokens.shape[1])
        self.channels = int(tokens.shape[2])
        self.sign, self.time_scale = self._velocity()
        self.guide = self._guidance()

    def prompt_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the text encoder is given of texts ("": no prompt): ids and mask [B, L] (int64), template included."""
        self.encoder.read.clear()
        prompts = [text or self.facts.empty for text in texts]
        options = {self.facts.guidance: 1.0, **self.facts.arguments}
        _hear(self.pipeline, self.denoiser, prompts, DRY_SIZE, options)
        return self.encoder.read[0]

    # ---- sizes

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels: the pipeline's own, or the largest square that its noise levels are made for."""
        sample = getattr(self.pipeline, "default_sample_size", None)
        usual = int(sample * self.pipeline.vae_scale_factor) if sample else USUAL_SIDE
        most = int(self.scheduler.config.get("max_image_seq_len", 4096))
        side = min(usual // self.unit, int(most**0.5)) * self.unit
        return side, side

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens (rows, columns) of a size in pixels. UserError for one that the pipeline would cut."""
        unit = self.unit
        rows, columns = height // unit, width // unit
        whole = height % unit == 0 and width % unit == 0 and min(rows, columns) > 0
        if not whole or self._count((height, width)) != rows * columns:
            raise UserError(
                f"image sides must be whole tokens, got {height} x {width} pixels, which {self.folder.name} would cut: "
                f"round them to multiples of {unit}, or of {2 * unit} where the pipeline takes tokens by fours."
            )
        return rows, columns

    def size_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Pixels (height, width) of a grid."""
        return grid[0] * self.unit, grid[1] * self.unit

    def _count(self, size_hw: tuple[int, int]) -> int:
        try:
            return int(self._tokens(size_hw).shape[1])
        except (ValueError, RuntimeError):
            # The pipeline itself refuses the size.
            return 0

    def _tokens(self, size_hw: tuple[int, int]) -> Tensor:
        tokens: Tensor = self._hear(size_hw)["hidden_states"]
        if tokens.ndim != 3:
            raise UserError(
                f"{self.folder.name} gives its denoiser {tokens.ndim} dimensions, expected tokens [B, T, C]."
            )
        return tokens

    def _hear(self, size_hw: tuple[int, int], steps: int = 2) -> Conditions:
        self.denoiser.answer = None
        options = {self.facts.guidance: 1.0, **self.facts.arguments}
        return _hear(self.pipeline, self.denoiser, [self.facts.empty], size_hw, options, steps)

    # ---- the sampler

    def _sigmas(self, steps: int, grid: tuple[int, int]) -> Tensor:
        """Noise levels [steps + 1] (float32, CPU) of the pipeline's own schedule, the last 0."""
        with np.errstate(invalid="ignore"):
            # What is no number is said below.
            self._hear(self.size_of(grid), steps)
        sigmas: Tensor = self.scheduler.sigmas.float().cpu()
        if not bool(sigmas.isfinite().all()):
            raise UserError(
                f"{self.folder.name} has no noise levels for {steps} step{'s' if steps > 1 else ''} by its "
                "scheduler_config.json (shift_terminal stretches at least two): draw in 2 or more (num_timesteps=3)."
            )
        if len(sigmas) != steps + 1:
            raise UserError(
                f"{self.folder.name} draws in {len(sigmas) - 1} steps of its own: set the sampler's num_timesteps to "
                f"{len(sigmas)}."
            )
        return sigmas

    def _velocity(self) -> tuple[float, float]:
        """(sign, time scale), from one step past a denoiser that says known numbers."""
        said, given, time = self._step({self.facts.guidance: 1.0}, 1)
        sign = 1.0 if (given - said[0]).abs().max() <= (given + said[0]).abs().max() else -1.0
        if not torch.allclose(given, sign * said[0], atol=1e-5):
            raise UserError(f"{self.folder.name} gives its sampler something else than its denoiser's output.")
        return sign, time / float(self.scheduler.sigmas[0])

    def _guidance(self) -> str:
        """The name of the guidance, from one guided step, where the first call is with the prompt."""
        scale = 3.0
        said, given, _ = self._step({self.facts.guidance: scale, "negative_prompt": [self.facts.empty]}, 2)
        for name, guide in GUIDES.items():
            if torch.allclose(self.sign * given, guide(said[0], said[1], scale), atol=1e-4):
                return name
        raise UserError(f"{self.folder.name} guides in a way that is none of {', '.join(GUIDES)}.")

    def _step(self, options: Mapping[str, Any], calls: int) -> tuple[list[Tensor], Tensor, float]:
        """What the denoiser said in its calls before the first step, what the sampler was given, and the time."""
        generator = torch.Generator().manual_seed(0)
        said: list[Tensor] = []
        seen: list[Tensor] = []

        def answer(given: Mapping[str, Any]) -> Tensor:
            tokens: Tensor = given["hidden_states"]
            numbers = torch.randn(tokens.shape, generator=generator).to(tokens)
            if said:
                # Guided, every other token is longer than without, and the rest are shorter.
                numbers[:, ::2] = 1.2 * said[0][:, ::2]
            said.append(numbers)
            return numbers

        def step(model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> None:
            seen.append(model_output.clone())
            raise Heard

        self.denoiser.answer = answer
        self.denoiser.calls.clear()
        self.scheduler.step = step
        try:
            _call(self.pipeline, ["x"], DRY_SIZE, {**options, **self.facts.arguments}, 2)
        finally:
            del self.scheduler.step
            self.denoiser.answer = None
        if len(said) != calls or not seen:
            raise UserError(f"{self.folder.name} calls its denoiser {len(said)} times a step, expected {calls}.")
        return said, seen[0], float(self.denoiser.calls[0]["timestep"].flatten()[0])

    # ---- decoding

    @torch.no_grad()
    def decode(self, tokens_NTC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The autoencoder's output [N, 3, H, W] (float32), about [-1, 1], for tokens as they are sampled."""
        texts = [self.facts.empty] * len(tokens_NTC)
        options = {self.facts.guidance: 1.0, **self.facts.arguments, "latents": tokens_NTC}
        height, width = self.size_of(grid)
        found = self.decoder(
            texts, height=height, width=width, num_inference_steps=2, output_type="pt", return_dict=False, **options
        )
        images: Tensor = found[0]
        return images.float()


def _hear(
    pipeline: Any,
    denoiser: Denoiser,
    texts: Sequence[str],
    size_hw: tuple[int, int],
    options: Mapping[str, Any],
    steps: int = 2,
) -> Conditions:
    """What the denoiser's first call is given. Two steps: one is not a number in some schedules."""
    denoiser.calls.clear()
    _call(pipeline, texts, size_hw, options, steps)
    heard = denoiser.calls.pop()
    denoiser.calls.clear()
    return heard


def _call(
    pipeline: Any, texts: Sequence[str], size_hw: tuple[int, int], options: Mapping[str, Any], steps: int
) -> None:
    # The latents' numbers are not used, but they must not be drawn from torch's own generator either.
    generator = torch.Generator().manual_seed(0)
    height, width = size_hw
    try:
        pipeline(
            list(texts),
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
            **options,
        )
    except Heard:
        return
    raise RuntimeError("the pipeline did not call its denoiser")


def _side_of_token(size_hw: tuple[int, int], tokens: int) -> int:
    side = round(math.sqrt(size_hw[0] * size_hw[1] / max(tokens, 1)))
    if tokens * side**2 != size_hw[0] * size_hw[1]:
        raise UserError(f"{tokens} tokens for {size_hw[0]} x {size_hw[1]} pixels are no squares.")
    return side
