"""Reads images and texts into contexts of a Qwen-VL model: an image once, however many questions follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.library.caches import cache_of, with_cache
from srum_ds.models.qwen_vl.chat import Ids
from srum_ds.models.qwen_vl.pictures import Picture


@dataclass
class Context:
    """What Q sequences have read: keys and values, which of their columns count, and the next rotary position.

    cache: the library's, changed in place by whatever reads on. mask_QL: int64, 0 where a column is padding.
    """

    cache: Any
    mask_QL: Tensor
    next_Q: Tensor

    def take(self, rows: Sequence[int]) -> Context:
        """The contexts of these rows, in this order and as often as they come; this one is used up."""
        index = torch.tensor(list(rows), device=self.mask_QL.device)
        if list(rows) != list(range(len(self.mask_QL))):
            self.cache.batch_select_indices(index)
        return Context(self.cache, self.mask_QL[index], self.next_Q[index])


class VLReader:
    """Runs the two passes of a Qwen-VL module: over images and what stands before them, and over what follows.

    module: the library's ``...ForConditionalGeneration``. All its weights must be whole on this rank. Paddings change
    nothing: they are masked, and rotary positions count without them.
    """

    def __init__(self, module: Any, picture: int, pad: int) -> None:
        self.module = module
        self.picture = picture
        self.pad = pad
        text = module.config.text_config
        self.longest = int(text.max_position_embeddings)
        if getattr(text, "use_sliding_window", False) and getattr(text, "sliding_window", None):
            raise UserError("use_sliding_window in the language model's config.json is not supported: set it to false.")

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        device: torch.device = self.module.lm_head.weight.device
        return device

    def features(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """What the vision tower makes of each image: [tokens, D], one row for each placeholder."""
        if not pictures:
            return []
        patches, grids = self._patches(pictures)
        return list(self.module.model.get_image_features(patches, grids).pooler_output)

    def read_pictures(self, pictures: Sequence[Picture], before: Sequence[Ids], merge: int) -> Context:
        """Contexts of one image each, behind the ids ``before`` it: every image goes through the tower once."""
        rows = [
            (*ids, *(self.picture,) * picture.placeholders(merge))
            for ids, picture in zip(before, pictures, strict=True)
        ]
        ids_PL, mask_PL = _padded(rows, self.pad, left=False)
        ids_PL, mask_PL = ids_PL.to(self.device), mask_PL.to(self.device)
        self._fits(mask_PL)
        patches_VD, grids_P3 = self._patches(pictures)
        # Without the kinds of tokens the library would place an image's tokens as if they were text.
        kinds_PL = (ids_PL == self.picture).int()
        model = self.module.model
        positions_3PL, _ = model.get_rope_index(
            ids_PL, mm_token_type_ids=kinds_PL, image_grid_thw=grids_P3, attention_mask=mask_PL
        )
        found = model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=positions_3PL,
            pixel_values=patches_VD,
            image_grid_thw=grids_P3,
            mm_token_type_ids=kinds_PL,
            use_cache=True,
        )
        last_P = positions_3PL.masked_fill(mask_PL[None] == 0, -1).amax(dim=(0, 2))
        return Context(cache_of(found), mask_PL, last_P + 1)

    def append(self, ids_Q: Sequence[Ids], context: Context) -> tuple[Tensor, Context]:
        """Reads on: normed hidden states [Q, L, D] of the ids, which end in the last column, and the context."""
        ids_QL, new_QL = _padded(ids_Q, self.pad, left=True)
        ids_QL, new_QL = ids_QL.to(self.device), new_QL.to(self.device)
        return self.append_padded(ids_QL, new_QL, context)

    def append_padded(self, ids_QL: Tensor, new_QL: Tensor, context: Context) -> tuple[Tensor, Context]:
        """``append`` for ids [Q, L] whose paddings, on the left, have 0 in ``new_QL`` (int64)."""
        mask_QL = torch.cat([context.mask_QL, new_QL], dim=1)
        self._fits(mask_QL)
        place_QL = context.next_Q[:, None] + (new_QL.cumsum(dim=1) - 1).clamp(min=0)
        found = self.module.model.language_model(
            input_ids=ids_QL,
            attention_mask=mask_QL,
            position_ids=place_QL.expand(3, *place_QL.shape),
            use_cache=True,
            **with_cache(context.cache),
        )
        return found.last_hidden_state, Context(cache_of(found), mask_QL, context.next_Q + new_QL.sum(dim=1))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (float32) of normed hidden states."""
        logits: Tensor = self.module.lm_head(hidden)
        return logits.float()

    def _patches(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        patches_VD = torch.cat([picture.patches_VD for picture in pictures]).to(self.device)
        return patches_VD, torch.tensor([picture.grid for picture in pictures], device=self.device)

    def _fits(self, mask_QL: Tensor) -> None:
        if mask_QL.shape[1] > self.longest:
            raise UserError(
                f"an image and its texts take {mask_QL.shape[1]} tokens, but max_position_embeddings in the language "
                f"model's config.json is {self.longest}. Shorten the texts, or take a smaller image."
            )


def _padded(rows: Sequence[Ids], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Ids [Q, L] and their mask, int64: padded on the left, or on the right."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding, gap = (pad,) * (longest - len(row)), (0,) * (longest - len(row))
        ids.append((*padding, *row) if left else (*row, *padding))
        mask.append((*gap, *(1,) * len(row)) if left else (*(1,) * len(row), *gap))
    return torch.tensor(ids), torch.tensor(mask)
