"""What both halves of the adapter share: sizes, and contexts of texts and pictures read into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.configuration import BagelConfig
from srum_ds.models.bagel.images import to_tensors, transformed
from srum_ds.models.bagel.latents import Autoencoder, patchify_latent
from srum_ds.models.bagel.layout import Segment
from srum_ds.models.bagel.model import Bagel, Inputs
from srum_ds.models.bagel.tokens import BagelTokenizer
from srum_ds.models.bagel.transformer import Cache, empty_cache
from srum_ds.models.bagel.vision import grid_ids, patchify_image

Patches = tuple[Tensor, tuple[int, int]]


class BagelReader:
    """A loaded checkpoint folder, and how it reads."""

    def __init__(
        self,
        folder: Path,
        config: BagelConfig,
        module: Bagel,
        autoencoder: Autoencoder,
        tokenizer: BagelTokenizer,
    ) -> None:
        self.folder = Path(folder)
        self.config = config
        self.module = module
        self.autoencoder = autoencoder
        self.tokenizer = tokenizer

    # ---- sizes

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens (rows, columns) of a picture in pixels; UserError where it does not fit."""
        unit = self.config.pixels_per_token
        side = self.config.max_latent_size
        if height % unit or width % unit or min(height, width) < unit:
            raise UserError(f"picture sides must be multiples of {unit} pixels, got {height} x {width}. Round them.")
        if max(height, width) > side * unit:
            raise UserError(
                f"{height} x {width} pixels are too many: max_latent_size {side} in config.json allows "
                f"{side * unit} pixels a side. Choose a smaller size (for a picture to edit: max_image_size of "
                f"vae_transform there)."
            )
        return height // unit, width // unit

    def text_ids(self, text: str, what: str) -> Tensor:
        """[bos] ids [eos] (int64) of a text called ``what`` in errors; UserError where it is empty or too long."""
        if not text.strip():
            raise UserError(f"{what} is empty; give it a text.")
        ids = self.tokenizer.segment(text).to(self.module.device)
        longest = self.config.llm.max_position_embeddings
        if len(ids) > longest:
            raise UserError(
                f"{what} is too long: {len(ids)} tokens, but max_position_embeddings in llm_config.json is {longest}. "
                "Shorten it."
            )
        return ids

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        """(height, width) in pixels: the largest square, or what an input picture [3, H, W] is resized to."""
        if edit is None:
            side = self.config.max_latent_size * self.config.pixels_per_token
            return side, side
        _, height, width = self.resized(edit).shape
        return height, width

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self.module.device

    # ---- pictures

    def resized(self, image_CHW: Tensor) -> Tensor:
        """A picture in [0, 1] after the autoencoder's transform, [3, H', W'] in [0, 1] (8-bit values)."""
        return to_tensors(transformed([image_CHW], self.config.vae_transform))[0] * 0.5 + 0.5

    def patches(self, image_CHW: Tensor) -> Patches:
        """ViT patches [N, 588] of a picture in [0, 1] after BAGEL's transform, and their grid."""
        return self.patches_of([image_CHW])[0]

    def patches_of(self, images: Sequence[Tensor]) -> list[Patches]:
        """``patches`` of some pictures [3, H, W]; neighbours of one size are cut at once."""
        found: list[Patches] = []
        for (height, width, _), same in groupby(transformed(images, self.config.vit_transform), key=np.shape):
            grid = self._patch_grid(height, width)
            patches_MND = patchify_image(to_tensors(list(same)), self.config.vit.patch_size)
            found.extend((patches_ND, grid) for patches_ND in patches_MND)
        return found

    def _patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (rows, columns) of a picture as the tower gets it; UserError where its tables are too small."""
        patch = self.config.vit.patch_size
        grid = (height // patch, width // patch)
        side = self.config.vit_max_num_patch_per_side
        if max(grid) > side:
            raise UserError(
                f"a picture becomes {height} x {width} pixels for the vision tower, but "
                f"vit_max_num_patch_per_side {side} in config.json allows {side * patch} pixels a side; "
                f"lower max_image_size of vit_transform there."
            )
        learned = self.config.vit.num_positions
        if int(grid_ids(*grid, side, self.config.interpolate_pos).max()) >= learned:
            raise UserError(
                f"a picture becomes {grid[0]} x {grid[1]} patches in a table of {side} x {side}, but image_size in "
                f"vit_config.json leaves {learned} learned positions; lower max_image_size of vit_transform in "
                f"config.json, or vit_max_num_patch_per_side."
            )
        return grid

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Latent tokens [N, T, C] of pictures in [0, 1] (the posterior's mean)."""
        return patchify_latent(self.autoencoder.encode(images_NCHW * 2 - 1), self.config.latent_patch_size)

    @torch.no_grad()
    def look(self, patches: Sequence[Patches]) -> tuple[Tensor, Tensor]:
        """The tower's features [V, vit hidden] and the connector's outputs [V, hidden] of some pictures.

        patches: what ``patches`` returns, one a picture. Positions are not added yet.
        """
        inputs = self._vision_inputs(patches)
        assert inputs.patches_VD is not None and inputs.patch_place_V is not None
        features = self.module.vit_model.vision_model(
            inputs.patches_VD.to(self.module.dtype), inputs.patch_place_V, list(inputs.patch_counts)
        )
        return features, self.module.connector(features)

    def _wrap(self, count: int) -> Tensor:
        special = self.module.special
        return torch.tensor([special.image_start, special.image_end], device=self.module.device).repeat(count)

    def _vision_inputs(self, patches: Sequence[Patches]) -> Inputs:
        device = self.module.device
        side = self.config.vit_max_num_patch_per_side
        places = [grid_ids(*grid, side, self.config.interpolate_pos) for _, grid in patches]
        return Inputs(
            text_N=self._wrap(len(patches)),
            patches_VD=torch.cat([numbers for numbers, _ in patches]).to(device),
            patch_place_V=torch.cat(places).to(device),
            patch_counts=tuple(len(numbers) for numbers, _ in patches),
        )

    # ---- contexts

    def empty(self, batch: int) -> Cache:
        """A context that holds nothing, for ``batch`` samples."""
        return empty_cache(self.config.llm, batch, self.module.dtype, self.module.device)

    @torch.no_grad()
    def read_texts(self, ids_B: Sequence[Sequence[int]], past: Cache | None = None) -> Cache:
        """Appends [bos] ids [eos], one text a sample; ids without bos and eos."""
        return self.module.read_text([self.tokenizer.wrap(list(ids)) for ids in ids_B], past)

    @torch.no_grad()
    def read_images(self, images: Sequence[Tensor], past: Cache | None = None) -> Cache:
        """Appends one picture [3, H, W] in [0, 1] a sample to a cache, as the vision tower sees it."""
        patches = self.patches_of(images)
        past = past or self.empty(len(patches))
        layout = self.module._continue([[Segment("vision", len(numbers))] for numbers, _ in patches], past)
        return self.module.read(self._vision_inputs(patches), layout, past)

    @torch.no_grad()
    def read_latents(
        self, tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], past: Cache | None = None
    ) -> Cache:
        """Appends one picture a sample as clean latent tokens [T, C] (time 0)."""
        device = self.module.device
        past = past or self.empty(len(tokens))
        side = self.config.max_latent_size
        places = [grid_ids(*grid, side, self.config.interpolate_pos) for grid in grids]
        latents_GC = torch.cat(list(tokens)).to(device)
        inputs = Inputs(
            text_N=self._wrap(len(tokens)),
            latents_GC=latents_GC,
            latent_place_G=torch.cat(places).to(device),
            time_I=torch.zeros(1, device=device),
            time_index_G=torch.zeros(len(latents_GC), dtype=torch.int64, device=device),
        )
        layout = self.module._continue([[Segment("clean", len(t))] for t in tokens], past)
        return self.module.read(inputs, layout, past)

    @torch.no_grad()
    def read_pictures(self, images: Sequence[Tensor], past: Cache | None = None) -> Cache:
        """Appends one picture [3, H, W] in [0, 1] a sample as editing wants it: latents, then patches.

        As released, the picture is resized by the autoencoder's transform, and the result goes through that
        transform again and through the tower's. The second time changes nothing but long, narrow pictures.
        """
        resized = [self.resized(image) for image in images]
        encoded = [self.resized(image) for image in resized]
        grids = [self.grid(image.shape[1], image.shape[2]) for image in encoded]
        tokens = [self.encode(image[None].to(self.module.device))[0] for image in encoded]
        return self.read_images(resized, self.read_latents(tokens, grids, past))
