"""Draws images and predicts velocities: the ``Generator`` of models/protocol.py.

A token is one cell of a coarse map of CLIP features, 8 x 8 in the release: 128 pixels of 1024 either way. The decoder
mixes all cells, so a reward on a cell is about that part of the image roughly, not exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.blip3o.decoder import FeatureDecoder
from srum_ds.models.blip3o.drawing import DrawingStep, draw_features
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.blip3o.prompts import Ids, PromptWriter
from srum_ds.models.blip3o.sampling import noise_levels
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.flow import initial_noise, noised_views
from srum_ds.models.matching import FlowMatching
from srum_ds.models.protocol import Forward, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView

EMPTY_KEY: Key = ("blip3o", "features of the empty text")
"""Seeds the noise of the features that the decoder's guidance compares with: the same for every image."""


class Blip3oGenerator:
    """The drawing half of a BLIP3-o model. decoder: None in a model that only judges."""

    def __init__(self, module: Blip3o, prompts: PromptWriter, decoder: FeatureDecoder | None) -> None:
        self.module = module
        self.prompts = prompts
        self.decoder = decoder

    @property
    def token_spec(self) -> TokenSpec:
        """Numbers of one cell of the feature map."""
        return TokenSpec("continuous", self.module.config.denoiser.in_channels)

    @property
    def matching(self) -> FlowMatching:
        """Predictions are velocities."""
        return FlowMatching()

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the only map that it draws."""
        side = self.module.config.denoiser.input_size
        return side, side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens (rows, columns) of an image in pixels; UserError for any size but its only one."""
        if (height, width) != self.default_size():
            rows, columns = self.default_size()
            raise UserError(
                f"BLIP3-o draws images of {rows} x {columns} pixels alone, not {height} x {width}: its decoder makes "
                f"them of {self.feature_grid[0]} x {self.feature_grid[1]} features (rollout.image_size)."
            )
        return self.feature_grid

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels of its images; UserError for an image to edit."""
        _refuse_edits(edit)
        return self._decoder.size

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """UserError, naming the prompt, for one that is empty or too long."""
        self.prompts.prompt_ids(prompts)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: Blip3oSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one image per prompt, image n from two noises that ``keys[n]`` seeds: its features', its pixels'.

        Returns the features as sampled [N, T, C] (float32) and the images [N, 3, H, W] in [0, 1], rounded to 8 bits.
        The same prompt and key give the same image in any batch: in float32 up to rounding; in bfloat16 roundings add
        up over the steps, and images drift slightly. UserError for edits and plans.
        """
        _refuse_edits(edits)
        _refuse_plans(plans)
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many keys, got {len(keys)}")
        if grid != self.feature_grid:
            raise ValueError(f"a map of {grid} features, but it draws {self.feature_grid} alone")
        z_NQD = self.conditions(self.prompts.prompt_ids(prompts))
        noise_NTC = initial_noise(keys, (grid[0] * grid[1], self.token_spec.size))
        tokens_NTC = self.sample(noise_NTC, z_NQD, sampling)
        return tokens_NTC, self.decode(tokens_NTC, keys, sampling)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """UserError: it draws without a plan."""
        del prompts, max_new_tokens, edits, temperature, seeds
        _refuse_plans(())
        return []

    # ---- training

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        """Noised copies of every image's features; see ``flow.noised_views``.

        Times are any numbers in (0, 1), of which the released training takes whole thousandths.
        """
        return noised_views(samples, settings, keys)

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        """Velocities [N, M, T, C] of every view, through the engine or the gathered module; see ``Blip3o.forward``."""
        distinct, prompt_N = _distinct(self.prompts.prompt_ids(prompts))
        ids_PL, length_P = _padded(distinct)
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

    # ---- drawing

    @torch.no_grad()
    def conditions(self, ids_N: Sequence[Ids]) -> Tensor:
        """What the transformer is told of each prompt's ids, [N, Q, D]; each distinct prompt is read once."""
        distinct, prompt_N = _distinct(ids_N)
        z_PQD = self.module.conditions(*_padded(distinct))
        return z_PQD[torch.tensor(prompt_N, device=z_PQD.device)]

    @torch.no_grad()
    def sample(
        self, noise_NTC: Tensor, z_NQD: Tensor, sampling: Blip3oSampling, trace: list[DrawingStep] | None = None
    ) -> Tensor:
        """Features [N, T, C] (float32) drawn from noise under conditions; see ``draw_features``."""
        sigmas = noise_levels(sampling.steps)
        return draw_features(self.module.dit, noise_NTC, z_NQD, self.feature_grid, sigmas, sampling.text_scale, trace)

    @torch.no_grad()
    def empty_features(self, sampling: Blip3oSampling) -> Tensor:
        """Features [1, T, C] of the empty text, drawn as all others are: what the released code guides against."""
        rows, columns = self.feature_grid
        noise_1TC = initial_noise([EMPTY_KEY], (rows * columns, self.token_spec.size))
        return self.sample(noise_1TC, self.conditions([self.prompts.empty]), sampling)

    @torch.no_grad()
    def decode(self, tokens_NTC: Tensor, keys: Sequence[Key], sampling: Blip3oSampling) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] of features, rounded to 8 bits, each from the decoder's noise of its key."""
        decoder = self._decoder
        empty_1TC = self.empty_features(sampling) if sampling.decoder_scale > 1 else None
        noise_NCHW = torch.stack([seeds.normal(decoder.noise_shape, *key, "decoder") for key in keys])
        drawn = decoder.decode(tokens_NTC, empty_1TC, noise_NCHW, sampling.decoder_steps, sampling.decoder_scale)
        return ((drawn * 0.5 + 0.5).clamp(0, 1) * 255).round() / 255

    @property
    def _decoder(self) -> FeatureDecoder:
        if self.decoder is None:
            raise ValueError("this model was loaded to judge alone: it has nothing to draw with")
        return self.decoder


def _distinct(ids_N: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """Each distinct prompt once, in order of appearance, and which of them each is."""
    distinct = list(dict.fromkeys(ids_N))
    row = {ids: number for number, ids in enumerate(distinct)}
    return distinct, [row[ids] for ids in ids_N]


def _padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids [P, L] (int64) with zeros behind each row, and their lengths [P]."""
    length_P = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True), length_P


def _refuse_edits(edits: object) -> None:
    if edits is not None:
        raise UserError("BLIP3-o draws from prompts alone here: leave the image to edit out.")


def _refuse_plans(plans: object) -> None:
    if plans is not None:
        raise UserError("BLIP3-o draws without plans: leave the planning out.")
