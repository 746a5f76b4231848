"""Writes whole random BLIP3-o folders of some ten thousand parameters, in the layout that the released code writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from srum_ds.models.blip3o.denoiser import Denoiser, denoiser_config, denoiser_key
from tests.support.tiny_qwen_image import TinyQwenImage, encoder_config, randomise, tiny_encoder, tiny_tokenizer

IMAGE_TOKENS = ("[IMG]", "[/IMG]", "<image>")


@dataclass(frozen=True)
class TinyBlip3o:
    """Sizes of a tiny model. ``vlm``: of its Qwen2.5-VL; side x side features of ``channels`` numbers."""

    vlm: TinyQwenImage = TinyQwenImage()
    queries: int = 5
    side: int = 4
    channels: int = 12
    dim: int = 24
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    latent_side: int = 8
    nested: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def dit(self) -> dict[str, Any]:
        """What ``dit`` of config.json says."""
        return {
            "input_size": self.side,
            "in_channels": self.channels,
            "dim": self.dim,
            "n_layers": self.layers,
            "n_heads": self.heads,
            "n_kv_heads": self.kv_heads,
            "multiple_of": 8,
        }


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A Qwen2.5-VL configuration as transformers 4.51 wrote it, with the text model's keys at the top."""
    text = values.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    for name in ("model_type", "layer_types"):
        text.pop(name)
    return {**text, **values}


def write_tiny_decoder(folder: Path, seed: int, sizes: TinyBlip3o) -> None:
    """A tiny UNet of SDXL's kind for the features, an autoencoder and a scheduler."""
    unet: Any = UNet2DConditionModel(
        sample_size=sizes.latent_side,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=sizes.channels,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=sizes.channels + 24,
    )
    randomise(unet, seed)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=2 * sizes.latent_side,
        scaling_factor=0.13025,
    )
    randomise(vae, seed + 1)
    scheduler: Any = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    unet.to(sizes.dtype).save_pretrained(folder / "unet")
    vae.to(sizes.dtype).save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")


def write_tiny_blip3o(folder: Path, seed: int = 0, sizes: TinyBlip3o = TinyBlip3o()) -> Path:
    """Writes a complete folder with random weights and returns it; the same seed gives the same weights.

    Its images are ``2 * sizes.latent_side`` pixels high and wide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(IMAGE_TOKENS), special_tokens=True)
    tokenizer.save_pretrained(str(folder))
    vlm = tiny_encoder(tokenizer, sizes.vlm, seed)
    denoiser = Denoiser(denoiser_config(sizes.dit, "tiny", latent_embedding_size=sizes.vlm.width))
    randomise(denoiser, seed + 1)
    queries = torch.randn(1, sizes.queries, sizes.vlm.width, generator=torch.Generator().manual_seed(seed + 2))
    values = encoder_config(tokenizer, sizes.vlm).to_dict()
    values = {**(values if sizes.nested else _flat(values)), "model_type": "blip3o_qwen", "n_query": sizes.queries}
    values |= {"dit": sizes.dit, "gen_vision_tower": "eva-clip-E-14-plus", "gen_pooling": "early_pool2d_4"}
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    # What the library would save: a tied head is no tensor of its own, and files have other names than the module.
    state = dict(vlm.state_dict())
    if sizes.vlm.tied:
        del state["lm_head.weight"]
    tensors: dict[str, Tensor] = dict(revert_weight_conversion(vlm, state))
    tensors |= {f"model.dit.{denoiser_key(name)}": tensor for name, tensor in denoiser.state_dict().items()}
    tensors["model.latent_queries"] = queries
    save_file(
        {key: tensor.detach().to(sizes.dtype).contiguous() for key, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    write_tiny_decoder(folder / "diffusion-decoder", seed + 3, sizes)
    return folder
