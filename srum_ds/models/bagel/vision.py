"""The SigLIP-NaViT tower and the connector that carries its features into the language model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from srum_ds.models.bagel.config import VisionConfig


class PatchEmbeddings(nn.Module):
    """A linear patch embedding plus a learned position table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch_numbers = config.num_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch_numbers, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, patches_ND: Tensor, position_N: Tensor) -> Tensor:
        embedded_ND: Tensor = self.patch_embedding(patches_ND) + self.position_embedding(position_N)
        return embedded_ND


class VisionTransformer(nn.Module):
    """Encodes images of different sizes at once; patches only see their own image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        siglip: Any = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.kept_layers,
            num_attention_heads=config.num_attention_heads,
            num_channels=config.num_channels,
            patch_size=config.patch_size,
            image_size=config.image_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act=config.hidden_act,
        )
        siglip._attn_implementation = "sdpa"
        self.embeddings = PatchEmbeddings(config)
        self.encoder = SiglipEncoder(siglip)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches_ND: Tensor, position_N: Tensor, counts: list[int]) -> Tensor:
        """Features [N, hidden] of all patches; ``counts`` says how many each image has, in order."""
        embedded_ND: Tensor = self.embeddings(patches_ND, position_N)
        features_ND: Tensor
        batch, longest = len(counts), max(counts)
        if len(set(counts)) <= 1:
            hidden = embedded_ND.view(batch, longest, embedded_ND.shape[-1])
            hidden = self.encoder(inputs_embeds=hidden).last_hidden_state
            features_ND = self.post_layernorm(hidden.reshape(-1, hidden.shape[-1]))
            return features_ND
        rows = torch.tensor(counts, device=patches_ND.device)
        valid_BN = torch.arange(longest, device=patches_ND.device)[None] < rows[:, None]
        hidden = embedded_ND.new_zeros(batch, longest, embedded_ND.shape[-1])
        hidden[valid_BN] = embedded_ND
        mask = torch.zeros(batch, 1, longest, longest, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~valid_BN[:, None, None, :], torch.finfo(hidden.dtype).min)
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        features_ND = self.post_layernorm(hidden[valid_BN])
        return features_ND


class VisionModel(nn.Module):
    """``vit_model`` of the checkpoint."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)


class Connector(nn.Module):
    """Two linear layers from the tower's width to the language model's."""

    def __init__(self, vision_size: int, hidden_size: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, hidden_size)
        self.activation_fn = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features_ND: Tensor) -> Tensor:
        hidden_ND: Tensor = self.fc2(self.activation_fn(self.fc1(features_ND)))
        return hidden_ND


def patchify_image(images_NCHW: Tensor, patch: int) -> Tensor:
    """Patches [N, (H/p)(W/p), p*p*C], row-major; inside a patch (row, column, channel), channel fastest."""
    n, c, h, w = images_NCHW.shape
    x = images_NCHW.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, (h // patch) * (w // patch), patch * patch * c)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def grid_ids(height: int, width: int, side: int, interpolate: bool = False) -> Tensor:
    """Indices [height * width] of a grid into a square table with ``side`` rows and columns.

    ``interpolate`` spreads the grid over the whole table (the checkpoint's ``interpolate_pos``);
    otherwise row * side + column. On the CPU, whatever the caller's default; the same tensor is given to all who
    ask, and is not to be written to.
    """
    if interpolate:
        edges = torch.arange(1 / side, 1.0, 1 / side, device="cpu")
        rows = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / height, device="cpu"), edges, right=True)
        columns = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / width, device="cpu"), edges, right=True)
    else:
        rows = torch.arange(height, device="cpu")
        columns = torch.arange(width, device="cpu")
    return (rows[:, None] * side + columns[None, :]).reshape(-1)
