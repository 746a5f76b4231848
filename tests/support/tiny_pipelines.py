"""Writes tiny random folders of further pipelines that a vision-language model conditions, in their layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.support.tiny_qwen_image import SPECIAL, TinyQwenImage, randomise, tiny_encoder, tiny_tokenizer

SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 4,
    "max_image_seq_len": 16,
    "shift_terminal": 0.02,
}
PROCESSOR = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_pixels": 1024, "max_pixels": 65536}


def _qwen3_vl(tokenizer: Any, layers: int) -> Any:
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": (len(tokenizer) + 7) // 8 * 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    encoder = Qwen3VLForConditionalGeneration(config)
    randomise(encoder, 0)
    return encoder


def _qwen_image_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.7, 0.1, 0.5, -0.2],
        latents_std=[2.8, 1.4, 2.3, 1.2],
    )


def _write(folder: Path, name: str, parts: dict[str, Any], tokenizer: Any, text: tuple[str, ...]) -> Path:
    for seed, part in enumerate(("transformer", "vae")):
        randomise(parts[part], seed + 1)
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": diffusers.__version__}
    for part, component in parts.items():
        component.save_pretrained(str(folder / part))
        library = "transformers" if part == "text_encoder" else "diffusers"
        index[part] = [library, type(component).__name__]
    for part in text:
        tokenizer.save_pretrained(str(folder / part))
        index[part] = ["transformers", "Qwen2Tokenizer" if part == "tokenizer" else "Qwen3VLProcessor"]
        if part != "tokenizer":
            (folder / part / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_tiny_nucleus(folder: Path) -> Path:
    """NucleusMoE-Image: its text encoder's eighth layer from the end conditions it, and its output is negated."""
    tokenizer = tiny_tokenizer()
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    parts = {"transformer": transformer, "vae": _qwen_image_vae(), "text_encoder": _qwen3_vl(tokenizer, 9)}
    return _write(folder, "NucleusMoEImagePipeline", parts, tokenizer, ("processor",))


def write_tiny_qwen_image_21(folder: Path) -> Path:
    """Qwen-Image-2.1: an autoencoder of 16 x 16 pixels a token with four channels, one stream of text and image."""
    tokenizer = tiny_tokenizer()
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[-0.7, 0.1, 0.5, -0.2],
        latents_std=[2.8, 1.4, 2.3, 1.2],
    )
    parts = {"transformer": transformer, "vae": autoencoder, "text_encoder": _qwen3_vl(tokenizer, 2)}
    return _write(folder, "QwenImage21Pipeline", parts, tokenizer, ("processor",))


def write_tiny_longcat(folder: Path) -> Path:
    """LongCat-Image: Qwen2.5-VL, prompts padded to 512 tokens that are attended, the FLUX autoencoder."""
    tokenizer = tiny_tokenizer()
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=2,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    encoder = tiny_encoder(tokenizer, TinyQwenImage())
    parts = {"transformer": transformer, "vae": autoencoder, "text_encoder": encoder}
    return _write(folder, "LongCatImagePipeline", parts, tokenizer, ("tokenizer", "text_processor"))


TINY_PIPELINES: dict[str, Callable[[Path], Path]] = {
    "NucleusMoEImagePipeline": write_tiny_nucleus,
    "QwenImage21Pipeline": write_tiny_qwen_image_21,
    "LongCatImagePipeline": write_tiny_longcat,
}
