"""Reads texts and images into contexts that the answerer and the generator go on from.

``Reader`` holds the parts of a loaded checkpoint folder. ``load_bagel`` makes one, and ``BagelAnswerer``,
``BagelGenerator`` and ``TextDecoder`` share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.cache import Cache, empty_cache
from srum_ds.models.bagel.config import BagelConfig
from srum_ds.models.bagel.images import to_tensors, transformed
from srum_ds.models.bagel.latents import Autoencoder, patchify_latent
from srum_ds.models.bagel.layout import Segment
from srum_ds.models.bagel.model import Bagel, Inputs
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.models.bagel.vision import grid_ids, patchify_image

Patches = tuple[Tensor, tuple[int, int]]
"""Patches [N, p * p * 3] of an image, row-major over their grid (rows, columns)."""


@dataclass
class Reader:
    """The parts of a checkpoint folder, and how contexts are read with them."""

    config: BagelConfig
    module: Bagel
    autoencoder: Autoencoder
    tokenizer: BagelTokenizer

    # ---- sizes and texts

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens (rows, columns) of an image in pixels; UserError where it does not fit."""
        unit = self.config.pixels_per_token
        side = self.config.max_latent_size
        if height % unit or width % unit or min(height, width) < unit:
            raise UserError(f"image sides must be multiples of {unit} pixels, got {height} x {width}. Round them.")
        if max(height, width) > side * unit:
            raise UserError(
                f"{height} x {width} pixels are too many: max_latent_size {side} in config.json allows "
                f"{side * unit} pixels a side. Choose a smaller size (for an image to edit: max_image_size of "
                f"vae_transform there)."
            )
        return height // unit, width // unit

    def text_ids(self, text: str, what: str) -> Tensor:
        """[bos] ids [eos] (int64, CPU) of a text called ``what`` in errors; UserError where it is empty or too long."""
        if not text.strip():
            raise UserError(f"{what} is empty; give it a text.")
        ids = self.tokenizer.segment(text)
        longest = self.config.llm.max_position_embeddings
        if len(ids) > longest:
            raise UserError(
                f"{what} is too long: {len(ids)} tokens, but max_position_embeddings in llm_config.json is {longest}. "
                "Shorten it."
            )
        return ids

    # ---- images

    def resized(self, image_CHW: Tensor) -> Tensor:
        """An image in [0, 1] after the autoencoder's transform, [3, H', W'] in [0, 1] (8-bit values)."""
        return to_tensors(transformed([image_CHW], self.config.vae_transform))[0] * 0.5 + 0.5

    def patches(self, images: Sequence[Tensor]) -> list[Patches]:
        """ViT patches of images [3, H, W] in [0, 1] after BAGEL's transform, and their grids.

        Neighbours of one size are cut at once. UserError for an image that the tower's tables are too small for.
        """
        found: list[Patches] = []
        for (height, width, _), same in groupby(transformed(images, self.config.vit_transform), key=np.shape):
            grid = self._patch_grid(height, width)
            patches_MND = patchify_image(to_tensors(list(same)), self.config.vit.patch_size)
            found.extend((patches_ND, grid) for patches_ND in patches_MND)
        return found

    def _patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (rows, columns) of an image as the tower gets it; UserError where its tables are too small."""
        patch = self.config.vit.patch_size
        grid = (height // patch, width // patch)
        side = self.config.vit_max_num_patch_per_side
        if max(grid) > side:
            raise UserError(
                f"an image becomes {height} x {width} pixels for the vision tower, but "
                f"vit_max_num_patch_per_side {side} in config.json allows {side * patch} pixels a side; "
                f"lower max_image_size of vit_transform there."
            )
        learned = self.config.vit.num_positions
        if int(grid_ids(*grid, side, self.config.interpolate_pos).max()) >= learned:
            raise UserError(
                f"an image becomes {grid[0]} x {grid[1]} patches in a table of {side} x {side}, but image_size in "
                f"vit_config.json leaves {learned} learned positions; lower max_image_size of vit_transform in "
                f"config.json, or vit_max_num_patch_per_side."
            )
        return grid

    def vision_inputs(self, patches: Sequence[Patches]) -> Inputs:
        """Inputs of a pass over images, one entry of ``patches`` each, as the vision tower sees them."""
        device = self.module.device
        side = self.config.vit_max_num_patch_per_side
        places = [grid_ids(*grid, side, self.config.interpolate_pos) for _, grid in patches]
        return Inputs(
            text_N=self._image_tokens(len(patches)),
            patches_VD=torch.cat([numbers for numbers, _ in patches]).to(device),
            patch_place_V=torch.cat(places).to(device),
            patch_counts=tuple(len(numbers) for numbers, _ in patches),
        )

    def _image_tokens(self, count: int) -> Tensor:
        """The start and end tokens of ``count`` images."""
        special = self.module.special
        return torch.tensor([special.image_start, special.image_end], device=self.module.device).repeat(count)

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Latent tokens [N, T, C] of images in [0, 1] (the posterior's mean)."""
        self.autoencoder.compute_in(self.module.dtype)
        return patchify_latent(self.autoencoder.encode(images_NCHW * 2 - 1), self.config.latent_patch_size)

    # ---- contexts

    def empty(self, batch: int) -> Cache:
        """A context that holds nothing, for ``batch`` samples."""
        return empty_cache(self.config.llm, batch, self.module.dtype, self.module.device)

    @torch.no_grad()
    def read_images(self, images: Sequence[Tensor], past: Cache | None = None) -> Cache:
        """Appends one image [3, H, W] in [0, 1] per sample to a context, as the vision tower sees it."""
        patches = self.patches(images)
        past = past or self.empty(len(patches))
        layout = self.module.layout_after([[Segment("vision", len(numbers))] for numbers, _ in patches], past)
        return self.module.read(self.vision_inputs(patches), layout, past)

    @torch.no_grad()
    def read_latents(
        self, tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], past: Cache | None = None
    ) -> Cache:
        """Appends one image per sample as clean latent tokens [T, C] (time 0)."""
        device = self.module.device
        past = past or self.empty(len(tokens))
        side = self.config.max_latent_size
        places = [grid_ids(*grid, side, self.config.interpolate_pos) for grid in grids]
        latents_GC = torch.cat(list(tokens)).to(device)
        inputs = Inputs(
            text_N=self._image_tokens(len(tokens)),
            latents_GC=latents_GC,
            latent_place_G=torch.cat(places).to(device),
            time_I=torch.zeros(1, device=device),
            time_index_G=torch.zeros(len(latents_GC), dtype=torch.int64, device=device),
        )
        layout = self.module.layout_after([[Segment("clean", len(t))] for t in tokens], past)
        return self.module.read(inputs, layout, past)

    @torch.no_grad()
    def read_edits(self, images: Sequence[Tensor], past: Cache | None = None) -> Cache:
        """Appends one image [3, H, W] in [0, 1] per sample as editing wants it: latents, then patches.

        As released, the image is resized by the autoencoder's transform, and the result goes through that
        transform again and through the tower's. The second time changes nothing but long, narrow images.
        """
        resized = [self.resized(image) for image in images]
        encoded = [self.resized(image) for image in resized]
        grids = [self.grid(image.shape[1], image.shape[2]) for image in encoded]
        tokens = [self.encode(image[None].to(self.module.device))[0] for image in encoded]
        return self.read_images(resized, self.read_latents(tokens, grids, past))
