"""Writes whole random BLIP3-o folders of some ten thousand parameters, in the layout that the released code writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LuminaNextDiT2DModel,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.core_model_loading import revert_weight_conversion

from srum_ds.common import seeds
from srum_ds.common.seeds import Key
from srum_ds.models.blip3o.adapter import load_blip3o
from srum_ds.models.blip3o.denoiser import Denoiser, denoiser_config, denoiser_key
from srum_ds.models.blip3o.generator import EMPTY_KEY
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.flow import initial_noise
from srum_ds.types import Prompt
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


class LibraryParts:
    """A folder's parts as the libraries' own classes, put together as the released code does it: one text at a time."""

    def __init__(self, folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        sizes, self.queries_count = values.pop("dit"), values.pop("n_query")
        values.pop("model_type")
        tensors = load_file(folder / "model.safetensors")
        self.queries = tensors.pop("model.latent_queries").float()
        prefix = "model.dit.model."
        dit = {key.removeprefix(prefix): tensors.pop(key).float() for key in list(tensors) if key.startswith(prefix)}
        config: Any = Qwen2_5_VLConfig(**values)
        vlm: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32
        )
        self.vlm = vlm.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        width = int(config.text_config.hidden_size)
        projected = "caption_projection."
        self.projection = PixArtAlphaTextProjection(width, sizes["dim"])
        self.projection.load_state_dict(
            {key.removeprefix(projected): dit.pop(key) for key in list(dit) if key.startswith(projected)}
        )
        transformer: Any = LuminaNextDiT2DModel(
            sample_size=sizes["input_size"],
            patch_size=1,
            in_channels=sizes["in_channels"],
            hidden_size=sizes["dim"],
            num_layers=sizes["n_layers"],
            num_attention_heads=sizes["n_heads"],
            num_kv_heads=sizes["n_kv_heads"],
            multiple_of=sizes["multiple_of"],
            learn_sigma=False,
            cross_attention_dim=sizes["dim"],
        )
        left = transformer.load_state_dict(dit, strict=False)
        assert left.missing_keys == ["pad_token"] and not left.unexpected_keys
        self.dit = transformer
        self.rotations = get_2d_rotary_pos_embed_lumina(sizes["dim"] // sizes["n_heads"], 384, 384)
        decoder = folder / "diffusion-decoder"
        self.unet: Any = UNet2DConditionModel.from_pretrained(decoder / "unet", dtype=torch.float32)
        self.vae: Any = AutoencoderKL.from_pretrained(decoder / "vae", dtype=torch.float32)
        self.scheduler: Any = EulerDiscreteScheduler.from_pretrained(decoder / "scheduler")

    @torch.no_grad()
    def condition(self, text: str) -> Tensor:
        """The last hidden states at the queries behind a text and the token that begins a picture: [1, Q, D]."""
        ids = [*(self.tokenizer(text).input_ids if text else []), self.tokenizer.get_vocab()["[IMG]"]]
        embedded = self.vlm.get_input_embeddings()(torch.tensor([ids]))
        whole = torch.cat([embedded, self.queries], dim=1)
        found = self.vlm.model(inputs_embeds=whole, attention_mask=torch.ones(whole.shape[:2]).long())
        states: Tensor = found.last_hidden_state[:, -self.queries_count :]
        return states

    @torch.no_grad()
    def features(self, z: Tensor, noise: Tensor, steps: int, scale: float) -> Tensor:
        """A map [1, C, h, w] from noise, by the library's scheduler."""
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps, sigmas=torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).numpy())
        for timestep in scheduler.timesteps:
            predicted = self.dit(
                hidden_states=noise.repeat(2, 1, 1, 1),
                timestep=timestep.expand(2).to(torch.long),
                encoder_hidden_states=self.projection(torch.cat([torch.zeros_like(z), z])),
                encoder_mask=torch.ones(2, self.queries_count),
                image_rotary_emb=self.rotations,
                cross_attention_kwargs={},
            ).sample
            empty, conditional = predicted.chunk(2)
            noise = scheduler.step(empty + scale * (conditional - empty), timestep, noise).prev_sample
        return noise

    @torch.no_grad()
    def pixels(self, features: Tensor, empty: Tensor, noise: Tensor, steps: int, scale: float) -> Tensor:
        """An image [1, 3, H, W] in [0, 1] from features [1, T, C] and those of the empty text."""
        side = int(self.unet.config.sample_size) * 2
        conditions = torch.cat([features, empty])
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * 2)
        self.scheduler.set_timesteps(steps)
        latents = noise * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            predicted = self.unet(
                self.scheduler.scale_model_input(torch.cat([latents] * 2), timestep),
                timestep,
                encoder_hidden_states=conditions,
                added_cond_kwargs={"text_embeds": conditions.mean(dim=1), "time_ids": sizes},
            ).sample
            conditional, unconditional = predicted.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = self.scheduler.step(guided, timestep, latents).prev_sample
        image: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1)


def parts_redraw(folder: Path) -> float:
    """How far what the libraries' classes draw from the adapter's noise lies from what the adapter does, relative."""
    parts, model = LibraryParts(folder), load_blip3o(folder)
    prompts = [Prompt("0", "a red circle above a blue square"), Prompt("1", "a star")]
    keys: list[Key] = [("redraw", number) for number in range(len(prompts))]
    grid = model.grid(*model.default_size())
    tokens, images = model.generate(prompts, keys, grid, Blip3oSampling(5, 3.0, 4, 2.5))
    shape = (grid[0] * grid[1], model.token_spec.size)

    def drawn(text: str, key: Key) -> Tensor:
        noise = initial_noise([key], shape).transpose(1, 2).unflatten(2, grid)
        return parts.features(parts.condition(text), noise, 4, 3.0).flatten(2).transpose(1, 2)

    empty, farthest = drawn("", EMPTY_KEY), 0.0
    for prompt, key, token, image in zip(prompts, keys, tokens, images, strict=True):
        asked = f"Please generate image based on the following caption: {prompt.text}"
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text += f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        features = drawn(text, key)
        side = int(parts.unet.config.sample_size)
        noise = seeds.normal((4, side, side), *key, "decoder")[None]
        pixels = parts.pixels(features, empty, noise, 3, 2.5)
        if float((pixels[0] - image).abs().max()) > 1.01 / 255:
            return 1.0
        farthest = max(farthest, float((features[0] - token).abs().max() / token.abs().max()))
    return farthest
