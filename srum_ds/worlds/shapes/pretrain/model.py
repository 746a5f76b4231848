"""The embedded model before any training: its size, its configuration files, its initialisation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.models.bagel.config import read_config
from srum_ds.models.bagel.latents import sincos_table
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.worlds.shapes.pretrain.tokenizer import write_tokenizer

HIDDEN = 160
VIT_HIDDEN = 128
POSITION_SCALE = 1.0
"""Root mean square of the position tables: the size of what they are added to."""


def write_config(folder: Path, vae_facts: dict[str, float]) -> None:
    """Writes the configuration and tokenizer files of the embedded BAGEL into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder)
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": 432,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "qk_norm": True,
        "tie_word_embeddings": False,
        "layer_module": "Qwen2MoTDecoderLayer",
    }
    vit = {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": VIT_HIDDEN,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_channels": 3,
        "image_size": 56,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
    }
    vae = {
        "resolution": 64,
        "in_channels": 3,
        "downsample": 8,
        "ch": 16,
        "out_ch": 3,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "z_channels": 16,
        "norm_num_groups": 8,
        "scale_factor": vae_facts["scaling_factor"],
        "shift_factor": vae_facts["shift_factor"],
    }
    top = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "llm_config": llm,
        "vit_config": vit,
        "vae_config": vae,
        "latent_patch_size": 2,
        "max_latent_size": 4,
        "vit_max_num_patch_per_side": 4,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": 1.0,
        "vae_transform": {"max_image_size": 64, "min_image_size": 64, "image_stride": 16},
        "vit_transform": {"max_image_size": 56, "min_image_size": 56, "image_stride": 14},
    }
    for name, values in (("llm_config", llm), ("vit_config", vit), ("config", top)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")


def distinct_table(side: int, width: int) -> Tensor:
    """A position table [side * side, width] in which positions differ as much as contents do.

    The plain sin-cos table of so small a grid is mostly one constant vector: its positions drown in
    what they are added to, and a model so started never learns left from right.
    """
    table = sincos_table(side, width)
    table = table - table.mean(0, keepdim=True)
    table = table / table.std(0, keepdim=True).clamp(min=1e-6)
    return table * (POSITION_SCALE / table.square().mean().sqrt())


@torch.no_grad()
def initialise(module: Bagel, seed: int) -> None:
    """Random weights, sized so that no part of a sum drowns the others.

    Matrices have unit gain, the projections that write into the residual stream a third of it. The
    patch embedding maps black to zero (a black ground would otherwise be one huge constant).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    writes = ("o_proj", "down_proj", "out_proj", "fc2")
    for name, sub in module.named_modules():
        if isinstance(sub, nn.Linear):
            last = name.split(".")[-1].removesuffix("_moe_gen")
            normal(sub.weight, sub.in_features**-0.5 * (0.3 if last in writes else 1.0))
            if sub.bias is not None:
                sub.bias.zero_()
        elif isinstance(sub, nn.Embedding):
            normal(sub.weight, 0.5)
        elif isinstance(sub, nn.RMSNorm | nn.LayerNorm):
            sub.weight.fill_(1.0)
            if isinstance(sub, nn.LayerNorm):
                sub.bias.zero_()
    patch = module.vit_model.vision_model.embeddings.patch_embedding
    patch.bias.copy_(patch.weight.sum(1))
    normal(module.vit_model.vision_model.embeddings.position_embedding.weight, 0.5)
    normal(module.connector.fc2.weight, HIDDEN**-0.5 * 2.0)
    module.vit_pos_embed.pos_embed.copy_(distinct_table(module.config.vit_max_num_patch_per_side, HIDDEN))
    module.latent_pos_embed.pos_embed.copy_(distinct_table(module.config.max_latent_size, HIDDEN))
    into, out_of = module.time_embedder.mlp[0], module.time_embedder.mlp[2]
    assert isinstance(into, nn.Linear) and isinstance(out_of, nn.Linear)
    normal(into.weight, 0.25)
    normal(out_of.weight, HIDDEN**-0.5)
    module.llm2vae.weight.zero_()
    module.llm2vae.bias.zero_()


def build(folder: Path, seed: int) -> tuple[Bagel, BagelTokenizer]:
    """A freshly initialised model (float32) for a folder written by ``write_config``."""
    config = read_config(folder)
    tokenizer = BagelTokenizer(folder, config.llm.vocab_size)
    module = Bagel(config, tokenizer.special)
    initialise(module, seed)
    return module, tokenizer
