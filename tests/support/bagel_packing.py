"""BAGEL's released training pass, for tests: samples of any kinds and sizes packed into one forward pass.

The training loop reads prompts into a cache instead, which is faster (benchmarks/training_path.md); here the official
numbers are computed the official way, from the module's public parts. A sample is a sequence of parts: texts, images
as the vision tower sees them, and images as latent tokens, clean (context) or noised (to be predicted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.adapter import BagelAdapter
from srum_ds.models.bagel.config import BagelConfig, SpecialTokens
from srum_ds.models.bagel.layout import Kind, Layout, Segment, build_layout
from srum_ds.models.bagel.model import Bagel, Inputs
from srum_ds.models.bagel.vision import grid_ids

KINDS: tuple[Kind, ...] = ("text", "vision", "clean", "noised")


@dataclass(frozen=True)
class Text:
    """Token ids without bos and eos. With ``loss``, [bos] ids predict ids [eos]."""

    ids: tuple[int, ...]
    loss: bool = False


@dataclass(frozen=True)
class Picture:
    """An image for the vision tower: patches [N, p * p * 3], row-major over ``grid`` = (rows, columns)."""

    patches_ND: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Latents:
    """An image as latent tokens [T, C], row-major over ``grid``; ``noised`` ones carry the velocity loss."""

    tokens_TC: Tensor
    grid: tuple[int, int]
    noised: bool = True


Part = Text | Picture | Latents


class Packed(TypedDict):
    """Packed samples. G counts latent tokens, V patches, N text-like tokens (image start and end too).

    Every group keeps the order of the samples and, inside a sample, of its parts.

    plan_S3: int64, for each segment its sample, its kind (index into ``KINDS``) and its inner tokens.
    text_N: ids. patches_VD with patch_place_V (grid ids) and patch_count_P (patches of each image).
    latents_GC: clean latents, with latent_place_G (grid ids) and noised_G (bool). predict_L: which of the N text-like
    tokens predict; label_L: what.
    """

    plan_S3: Tensor
    text_N: Tensor
    patches_VD: Tensor
    patch_place_V: Tensor
    patch_count_P: Tensor
    latents_GC: Tensor
    latent_place_G: Tensor
    noised_G: Tensor
    predict_L: Tensor
    label_L: Tensor


def pack(samples: Sequence[Sequence[Part]], model: BagelAdapter) -> Packed:
    """Packs samples for ``losses``; see ``pack_for``."""
    return pack_for(samples, model.reader.config, model.module.special)


def pack_for(samples: Sequence[Sequence[Part]], config: BagelConfig, special: SpecialTokens) -> Packed:
    """Packs samples.

    UserError for an image whose grid exceeds the model's position tables. ValueError for a sample
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
    return {
        "plan_S3": torch.tensor(plan, dtype=torch.int64).view(-1, 3),
        "text_N": torch.tensor(text, dtype=torch.int64),
        "patches_VD": torch.cat([torch.zeros(0, patch_numbers), *(p.float().cpu() for p in patches)]),
        "patch_place_V": torch.cat([index, *patch_places]),
        "patch_count_P": torch.tensor([len(p) for p in patches], dtype=torch.int64),
        "latents_GC": torch.cat([torch.zeros(0, config.token_channels), *(x.float().cpu() for x in latents)]),
        "latent_place_G": torch.cat([index, *latent_places]),
        "noised_G": torch.cat([index.bool(), *noised]),
        "predict_L": torch.tensor(predict, dtype=torch.int64),
        "label_L": torch.tensor(labels, dtype=torch.int64),
    }


def _places(grid: tuple[int, int], tokens: Tensor, config: BagelConfig, key: str) -> Tensor:
    side: int = getattr(config, key)
    if grid[0] * grid[1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens do not fill a grid of {grid[0]} x {grid[1]}")
    if max(grid) > side:
        raise UserError(f"a grid of {grid[0]} x {grid[1]} is too large: {key} in config.json is {side}.")
    return grid_ids(*grid, side, config.interpolate_pos)


def packed_layout(packed: Packed) -> Layout:
    """The layout of packed samples; its flat groups have the order of ``Packed``'s."""
    rows = packed["plan_S3"].tolist()
    samples: list[list[Segment]] = [[] for _ in range(rows[-1][0] + 1 if rows else 0)]
    for number, kind, tokens in rows:
        samples[number].append(Segment(KINDS[kind], tokens))
    return build_layout(samples)


def losses(module: Bagel, packed: Packed, noise_GC: Tensor, time_G: Tensor) -> dict[str, Tensor]:
    """One training forward over packed samples.

    noise_GC ~ N(0, 1) and time_G in [0, 1] for every latent token; a clean token's time counts as 0.

    Returns, in float32: ``time_G``; ``noisy_GC`` = (1 - t) clean + t noise, the tokens that went in;
    ``velocity_MC`` of the noised tokens; ``squared_error_M``, the mean over channels of
    (velocity - (noise - clean))^2; ``logits_LV`` and ``cross_entropy_L`` of the predicted ids.
    """
    clean_GC = packed["latents_GC"].float()
    noised_G = packed["noised_G"]
    time_G = time_G.float() * noised_G
    noisy_GC = (1 - time_G[:, None]) * clean_GC + time_G[:, None] * noise_GC.float()
    time_I, time_index_G = torch.unique_consecutive(time_G, return_inverse=True)
    sees_images = packed["patch_count_P"].numel() > 0
    inputs = Inputs(
        text_N=packed["text_N"],
        patches_VD=packed["patches_VD"] if sees_images else None,
        patch_place_V=packed["patch_place_V"] if sees_images else None,
        patch_counts=tuple(packed["patch_count_P"].tolist()),
        latents_GC=noisy_GC,
        latent_place_G=packed["latent_place_G"],
        time_I=time_I,
        time_index_G=time_index_G,
    )
    und, gen = module.run_last(inputs, packed_layout(packed))
    index_M = noised_G.nonzero()[:, 0]
    velocity_MC = module.llm2vae(gen.index_select(0, index_M)).float()
    direction_MC = (noise_GC.float() - clean_GC).index_select(0, index_M)
    logits_LV = module.logits(und.index_select(0, packed["predict_L"]))
    return {
        "time_G": time_G,
        "noisy_GC": noisy_GC,
        "velocity_MC": velocity_MC,
        "squared_error_M": (velocity_MC - direction_MC).square().mean(dim=-1),
        "logits_LV": logits_LV,
        "cross_entropy_L": F.cross_entropy(logits_LV, packed["label_L"], reduction="none"),
    }


class PackedBagel(Bagel):
    """A BAGEL module whose pass under an engine is ``losses``."""

    def forward(self, *args: Any) -> Any:
        """``losses`` of packed samples, noise and times."""
        return losses(self, *args)


def train_packed(module: Bagel) -> None:
    """Makes ``losses`` the pass that an engine around ``module`` runs."""
    module.__class__ = PackedBagel
