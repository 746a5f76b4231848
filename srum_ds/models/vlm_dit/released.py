"""The released Qwen-Image's configurations, for plans where there is no folder.

Sources: ``transformer/config.json`` and ``vae/config.json`` of Qwen/Qwen-Image are the defaults of the library's
classes; ``text_encoder/config.json`` is that of Qwen/Qwen2.5-VL-7B-Instruct.
"""

from __future__ import annotations

from typing import Any


def released_parts() -> tuple[Any, Any, Any]:
    """Transformer, text encoder and autoencoder, as the library builds them; call it where nothing takes memory."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
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
    return QwenImageTransformer2DModel(), Qwen2_5_VLForConditionalGeneration(config), AutoencoderKLQwenImage()
