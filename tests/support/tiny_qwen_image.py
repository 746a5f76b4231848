"""Writes whole random Qwen-Image folders of some ten thousand parameters, in the layout of the released pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from srum_ds.common.seeds import Key
from srum_ds.models.flow import initial_noise
from srum_ds.models.vlm_dit.adapter import load_vlm_dit
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.types import Prompt
from tests.support.tiny_models import MERGES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2.5-VL's own template makes of a user's turn with an image and a text."""


@dataclass(frozen=True)
class TinyQwenImage:
    """Sizes of a tiny pipeline. ``width`` is the language model's; ``heads`` share ``kv_heads`` keys and values."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    mrope: tuple[int, int, int] = (1, 1, 2)
    tied: bool = False
    vision_width: int = 16
    vision_layers: int = 2
    vision_heads: int = 2
    window: int = 56
    full_attention: tuple[int, ...] = (1,)
    blocks: int = 2
    block_heads: int = 2
    axes: tuple[int, int, int] = (4, 6, 6)
    latent: int = 4
    base: int = 4
    tokens: int = 16
    dtype: torch.dtype = torch.float32


def tiny_tokenizer() -> Any:
    """Qwen2's byte-level tokenizer with a few merges, the special tokens of Qwen-VL and its chat template."""
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    parts: dict[str, Any] = {
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": list(MERGES),
        "unk_token": None,
    }
    tokenizer = Qwen2Tokenizer(
        **parts,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL),
        model_max_length=4096,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def encoder_config(tokenizer: Any, sizes: TinyQwenImage = TinyQwenImage()) -> Qwen2_5_VLConfig:
    """The configuration of a tiny Qwen2.5-VL of the tokenizer's vocabulary."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": (len(tokenizer) + 7) // 8 * 8,
        "hidden_size": sizes.width,
        "intermediate_size": 48,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sizes.mrope)},
        "tie_word_embeddings": sizes.tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": 32,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.width,
        "window_size": sizes.window,
        "fullatt_block_indexes": list(sizes.full_attention),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=sizes.tied,
    )


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights that let every part be felt: norms about 1, biases not 0, matrices of unit gain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.squeeze().ndim < 2:
                start = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(start + 0.1 * normal(parameter))
            elif "embed_tokens" in name:
                parameter.copy_(normal(parameter))
            else:
                parameter.copy_(normal(parameter) / parameter[0].numel() ** 0.5)


def tiny_encoder(tokenizer: Any, sizes: TinyQwenImage = TinyQwenImage(), seed: int = 0) -> Any:
    """A tiny random Qwen2.5-VL whose answers depend on what it sees."""
    encoder = Qwen2_5_VLForConditionalGeneration(encoder_config(tokenizer, sizes))
    randomise(encoder, seed)
    with torch.no_grad():
        # A head that is the embedding is longer, and its logits are as large.
        encoder.lm_head.weight.mul_(0.3 if sizes.tied else 2.0)
    return encoder.eval()


def write_tiny_qwen_image(folder: Path, seed: int = 0, sizes: TinyQwenImage = TinyQwenImage()) -> Path:
    """Writes a complete folder with random weights and returns it; the same seed gives the same weights.

    Its largest square has ``sizes.tokens`` tokens of 16 x 16 pixels.
    """
    tokenizer = tiny_tokenizer()
    encoder = tiny_encoder(tokenizer, sizes, seed)
    transformer: Any = QwenImageTransformer2DModel(
        in_channels=4 * sizes.latent,
        out_channels=sizes.latent,
        num_layers=sizes.blocks,
        attention_head_dim=sum(sizes.axes),
        num_attention_heads=sizes.block_heads,
        joint_attention_dim=sizes.width,
        axes_dims_rope=sizes.axes,
    )
    randomise(transformer, seed + 1)
    autoencoder: Any = AutoencoderKLQwenImage(
        base_dim=sizes.base,
        z_dim=sizes.latent,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.7, 0.1, 0.5, -0.2][: sizes.latent],
        latents_std=[2.8, 1.4, 2.3, 1.2][: sizes.latent],
    )
    randomise(autoencoder, seed + 2)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=4,
        max_image_seq_len=sizes.tokens,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
    pipeline: Any = QwenImagePipeline(
        scheduler=scheduler,
        vae=autoencoder.to(sizes.dtype),
        text_encoder=encoder.to(sizes.dtype),
        tokenizer=tokenizer,
        transformer=transformer.to(sizes.dtype),
    )
    pipeline.save_pretrained(str(folder))
    return folder


def pipeline_redraws(folder: Path) -> float:
    """How far what ``QwenImagePipeline`` draws from the adapter's noise lies from what the adapter does, relative."""
    pipeline: Any = QwenImagePipeline.from_pretrained(str(folder), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = load_vlm_dit(folder)
    prompts = [Prompt("0", "a red circle above a blue square"), Prompt("1", "a star")]
    keys: list[Key] = [("redraw", number) for number in range(len(prompts))]
    height, width = model.default_size()
    grid = model.grid(height, width)
    tokens, images = model.generate(prompts, keys, grid, PipelineSampling(5, 3.0))
    options = {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [" "] * len(prompts),
        "true_cfg_scale": 3.0,
        "height": height,
        "width": width,
        "num_inference_steps": 4,
        "latents": initial_noise(keys, (grid[0] * grid[1], model.token_spec.size)),
    }
    latents = pipeline(**options, output_type="latent").images
    drawn = pipeline(**options, output_type="pt").images
    if float((drawn - images).abs().max()) > 1.01 / 255:
        return 1.0
    return float((latents - tokens).abs().max() / tokens.abs().max())
