"""Writes whole random BAGEL folders of a few ten thousand parameters, in the released layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from srum_ds.models.bagel.config import (
    AutoencoderConfig,
    BagelConfig,
    ImageTransform,
    LanguageConfig,
    SpecialTokens,
    VisionConfig,
)
from srum_ds.models.bagel.latents import Autoencoder, sincos_table
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.weights import save_autoencoder

MERGES = (("Ġ", "a"), ("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("y", "e"), ("ye", "s"), ("n", "o"))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")

TINY = BagelConfig(
    llm=LanguageConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=272,
    ),
    vit=VisionConfig(hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=2, image_size=56),
    vae=AutoencoderConfig(ch=8, ch_mult=(2, 1, 1, 1), num_res_blocks=1, z_channels=4, norm_num_groups=4),
    max_latent_size=4,
    vit_max_num_patch_per_side=4,
    timestep_shift=2.0,
    vae_transform=ImageTransform(max_image_size=64, min_image_size=16, image_stride=16),
    vit_transform=ImageTransform(max_image_size=56, min_image_size=14, image_stride=14),
)


def write_tokenizer(folder: Path) -> SpecialTokens:
    """A byte-level BPE with a few merges; returns the ids of its special tokens."""
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    ids = {name: len(tokens) + number for number, name in enumerate(SPECIAL)}
    added = {
        str(number): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for name, number in ids.items()
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return SpecialTokens(*(ids[name] for name in SPECIAL[1:]))


def write_configs(folder: Path, config: BagelConfig) -> None:
    """config.json, llm_config.json and vit_config.json."""
    top: dict[str, Any] = asdict(config)
    llm = {"model_type": "qwen2", "layer_module": "Qwen2MoTDecoderLayer", **top.pop("llm")}
    if not llm["head_dim"]:
        del llm["head_dim"]
    (folder / "llm_config.json").write_text(json.dumps(llm))
    (folder / "vit_config.json").write_text(json.dumps(top.pop("vit")))
    top["vae_config"] = top.pop("vae")
    (folder / "config.json").write_text(json.dumps(top))


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights that let every part be felt: norms about 1, biases not 0, matrices of unit gain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embed.pos_embed"):
                side = round(len(parameter) ** 0.5)
                parameter.copy_(sincos_table(side, parameter.shape[1]))
            elif parameter.ndim == 1:
                start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(start + 0.1 * normal(parameter))
            else:
                parameter.copy_(normal(parameter) / parameter[0].numel() ** 0.5)


def write_tiny_bagel(folder: Path, config: BagelConfig = TINY, seed: int = 0) -> Path:
    """Writes a complete folder with random weights and returns it; the same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, config)
    special = write_tokenizer(folder)
    module = Bagel(config, special)
    randomise(module, seed)
    save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, folder / "ema.safetensors")
    autoencoder = Autoencoder(config.vae)
    randomise(autoencoder, seed + 1)
    save_autoencoder(autoencoder, folder / "ae.safetensors")
    return folder


def random_picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture [3, H, W] in [0, 1] with 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).float() / 255
