"""The released BLIP3-o 8B's configurations, for plans where there is no folder.

Sources: the language model is that of Qwen/Qwen2.5-VL-7B-Instruct; ``n_query`` and the transformer are those of the
released code. The decoder's own configuration ships with the weights and was not at hand: it is assumed to be SDXL's
(stabilityai/stable-diffusion-xl-base-1.0) with conditions as wide as the features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig

from srum_ds.models.blip3o.config import DECODER_FOLDER, Blip3oConfig
from srum_ds.models.blip3o.decoder import DecoderConfig
from srum_ds.models.blip3o.denoiser import DenoiserConfig

TIME_NUMBERS = 256


def released_config() -> Blip3oConfig:
    """Language model, queries and transformer."""
    vlm = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    )
    return Blip3oConfig(Path("BLIP3o-Model-8B"), vlm, DenoiserConfig(), 64, 151665)


def assumed_decoder(channels: int) -> DecoderConfig:
    """A decoder of SDXL's sizes for features of ``channels`` numbers."""
    unet: dict[str, Any] = {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": channels,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_NUMBERS,
        "projection_class_embeddings_input_dim": channels + 6 * TIME_NUMBERS,
    }
    vae: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    }
    return DecoderConfig(Path("BLIP3o-Model-8B") / DECODER_FOLDER, unet, vae, {})
