"""Training samples of any kinds and sizes, packed into one forward pass.

A sample is a sequence of parts: texts, pictures as the vision tower sees them, and pictures as latent
tokens, clean (context) or noised (to be predicted). ``pack`` turns samples into a dict of plain tensors, so
that an engine's hooks, which look into tensors, tuples, lists and dicts only, see all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.configuration import BagelConfig, SpecialTokens
from srum_ds.models.bagel.layout import Kind, Layout, Segment, build_layout
from srum_ds.models.bagel.vision import grid_ids

KINDS: tuple[Kind, ...] = ("text", "vision", "clean", "noised")


@dataclass(frozen=True)
class Text:
    """Token ids without bos and eos. With ``loss``, [bos] ids predict ids [eos]."""

    ids: tuple[int, ...]
    loss: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture for the vision tower: patches [N, p * p * 3], row-major over ``grid`` = (rows, columns)."""

    patches_ND: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Latents:
    """A picture as latent tokens [T, C], row-major over ``grid``; ``noised`` ones carry the velocity loss."""

    tokens_TC: Tensor
    grid: tuple[int, int]
    noised: bool = True


Part = Text | Picture | Latents


class Packed(TypedDict):
    """Packed samples. G counts latent tokens, V patches, N text-like tokens (image start and end too).

    Every group keeps the order of the samples and, inside a sample, of its parts.

    plan_S3: int64, for each segment its sample, its kind (index into ``KINDS``) and its inner tokens.
    text_N: ids. patches_VD with patch_place_V (grid ids) and patch_count_P (patches of each picture).
    latents_GC: clean latents, with latent_place_G (grid ids), noised_G (bool) and image_G (number of the
    image, counted over the batch). predict_L: which of the N text-like tokens predict; label_L: what.
    """

    plan_S3: Tensor
    text_N: Tensor
    patches_VD: Tensor
    patch_place_V: Tensor
    patch_count_P: Tensor
    latents_GC: Tensor
    latent_place_G: Tensor
    noised_G: Tensor
    image_G: Tensor
    predict_L: Tensor
    label_L: Tensor


def pack(
    samples: Sequence[Sequence[Part]],
    config: BagelConfig,
    special: SpecialTokens,
    device: torch.device | str = "cpu",
    always_look: bool = False,
) -> Packed:
    """Packs samples for ``Bagel.forward("train", ...)``.

    ``always_look`` runs the vision tower even where no sample has a picture (on zero rows), which keeps
    ranks in lockstep when some of them have pictures and others do not.

    UserError for a picture whose grid exceeds the model's position tables. ValueError for a sample
    without parts, or tokens that do not fill their grid.
    """
    plan: list[tuple[int, int, int]] = []
    text: list[int] = []
    patches: list[Tensor] = []
    patch_places: list[Tensor] = []
    latents: list[Tensor] = []
    latent_places: list[Tensor] = []
    noised: list[Tensor] = []
    predict: list[int] = []
    labels: list[int] = []
    for number, sample in enumerate(samples):
        if not sample:
            raise ValueError(f"sample {number} has no parts")
        for part in sample:
            if isinstance(part, Text):
                if part.loss:
                    predict.extend(range(len(text), len(text) + len(part.ids) + 1))
                    labels.extend([*part.ids, special.eos])
                text.extend([special.bos, *part.ids, special.eos])
                plan.append((number, KINDS.index("text"), len(part.ids) + 2))
                continue
            text.extend([special.image_start, special.image_end])
            if isinstance(part, Picture):
                patch_places.append(_places(part.grid, part.patches_ND, config, "vit_max_num_patch_per_side"))
                patches.append(part.patches_ND)
                plan.append((number, KINDS.index("vision"), len(part.patches_ND)))
            else:
                latent_places.append(_places(part.grid, part.tokens_TC, config, "max_latent_size"))
                latents.append(part.tokens_TC)
                noised.append(torch.full((len(part.tokens_TC),), part.noised))
                kind = KINDS.index("noised" if part.noised else "clean")
                plan.append((number, kind, len(part.tokens_TC)))
    patch_numbers = config.vit.num_channels * config.vit.patch_size**2
    index = torch.zeros(0, dtype=torch.int64)
    counts = [len(p) for p in patches] or [0] * always_look
    images = [torch.full((len(tokens),), number) for number, tokens in enumerate(latents)]
    packed: Packed = {
        "plan_S3": torch.tensor(plan, dtype=torch.int64).view(-1, 3),
        "text_N": torch.tensor(text, dtype=torch.int64),
        "patches_VD": torch.cat([torch.zeros(0, patch_numbers), *(p.float().cpu() for p in patches)]),
        "patch_place_V": torch.cat([index, *patch_places]),
        "patch_count_P": torch.tensor(counts, dtype=torch.int64),
        "latents_GC": torch.cat([torch.zeros(0, config.token_channels), *(x.float().cpu() for x in latents)]),
        "latent_place_G": torch.cat([index, *latent_places]),
        "noised_G": torch.cat([index.bool(), *noised]),
        "image_G": torch.cat([index, *images]),
        "predict_L": torch.tensor(predict, dtype=torch.int64),
        "label_L": torch.tensor(labels, dtype=torch.int64),
    }
    return {key: tensor.to(device) for key, tensor in packed.items()}  # type: ignore[return-value, attr-defined]


def _places(grid: tuple[int, int], tokens: Tensor, config: BagelConfig, key: str) -> Tensor:
    side: int = getattr(config, key)
    if grid[0] * grid[1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens do not fill a grid of {grid[0]} x {grid[1]}")
    if max(grid) > side:
        raise UserError(f"a grid of {grid[0]} x {grid[1]} is too large: {key} in config.json is {side}.")
    return grid_ids(*grid, side, config.interpolate_pos)


def packed_layout(packed: Packed, device: torch.device | str = "cpu") -> Layout:
    """The layout of packed samples; its flat groups have the order of ``Packed``'s."""
    rows = packed["plan_S3"].tolist()
    samples: list[list[Segment]] = [[] for _ in range(rows[-1][0] + 1 if rows else 0)]
    for number, kind, tokens in rows:
        samples[number].append(Segment(KINDS[kind], tokens))
    return build_layout(samples, device=device)


def drop_conditions(
    sample: Sequence[Part],
    uniform_S: Sequence[float] | Tensor,
    text: float = 0.1,
    vision: float = 0.0,
    clean: float = 0.0,
) -> tuple[Part, ...]:
    """Leaves out context parts at random, so that the model also learns to draw without them.

    uniform_S: one number in [0, 1) a part, drawn by the caller; a part goes when its number is below the
    probability of its kind. Texts with loss and noised latents always stay.
    """
    kept: list[Part] = []
    for part, number in zip(sample, uniform_S, strict=True):
        if isinstance(part, Text):
            limit = 0.0 if part.loss else text
        elif isinstance(part, Picture):
            limit = vision
        else:
            limit = 0.0 if part.noised else clean
        if float(number) >= limit:
            kept.append(part)
    return tuple(kept)
