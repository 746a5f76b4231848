"""Turns CLIP features into pixels: a frozen diffusion decoder of SDXL's kind, of diffusers' classes.

``FeatureDecoder`` is what the generator needs of one. ``SdxlDecoder`` is the release's: its ``diffusion-decoder``
folder is that of a pipeline of Emu2's kind with ``unet``, ``vae`` and ``scheduler``. The pipeline file itself,
``pipeline_llava_gen``, ships with the weights and was not at hand; what is computed here is what its relative
``pipeline_emu2_gen`` (JiuhaiChen/BLIP3o, 7bfef50) does for a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.config_values import read_json
from srum_ds.models.blip3o.sampling import guide
from srum_ds.models.library import FolderWeights, Part, fill, meta_module

SCHEDULERS: Mapping[str, Any] = {
    "EulerDiscreteScheduler": EulerDiscreteScheduler,
    "DDIMScheduler": DDIMScheduler,
}
"""Those of which each step is a function of what it is given, so that an image depends on its noise alone."""

FILES = tuple(f"diffusion_pytorch_model.{variant}safetensors" for variant in ("", "bf16.", "fp16."))
_SIZE_NUMBERS = 6


class FeatureDecoder(Protocol):
    """Draws pixels from features."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of its images."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The noise that one image is drawn from."""
        ...

    def decode(
        self, features_NTC: Tensor, empty_1TC: Tensor | None, noise_NCHW: Tensor, steps: int, scale: float
    ) -> Tensor:
        """Images [N, 3, H, W] (float32, about [-1, 1]) of features, each from its own noise.

        empty_1TC: the features of no text, which guidance by ``scale`` compares with; None: no guidance.
        """
        ...


@dataclass(frozen=True)
class SdxlDecoder:
    """A UNet that is conditioned on features, an autoencoder, and the settings of a scheduler.

    The features are the UNet's ``encoder_hidden_states``, their mean over the cells is its ``text_embeds``, and
    ``time_ids`` say that the image is whole: its size, no crop, its size.
    """

    unet: Any
    vae: Any
    scheduler: Any
    scheduler_config: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """The size that the UNet was trained for: 1024 x 1024 in SDXL."""
        side = int(self.unet.config.sample_size) * self._scale
        return side, side

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Channels, rows and columns of a latent."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    @property
    def _scale(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def decode(
        self, features_NTC: Tensor, empty_1TC: Tensor | None, noise_NCHW: Tensor, steps: int, scale: float
    ) -> Tensor:
        """See ``FeatureDecoder.decode``. The latents are kept in float32 between the steps."""
        device, dtype = self.unet.device, self.unet.dtype
        count, guided = len(features_NTC), empty_1TC is not None
        conditions = features_NTC.to(device, dtype)
        if empty_1TC is not None:
            conditions = torch.cat([conditions, empty_1TC.to(device, dtype).expand_as(conditions)])
        height, width = self.size
        sizes = torch.tensor([height, width, 0, 0, height, width], device=device).expand(len(conditions), -1)
        added = {"text_embeds": conditions.mean(dim=1), "time_ids": sizes}
        scheduler = self.scheduler.from_config(dict(self.scheduler_config))
        scheduler.set_timesteps(steps, device=device)
        latents = noise_NCHW.to(device, torch.float32) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            shown = scheduler.scale_model_input(latents, timestep)
            shown = torch.cat([shown, shown]) if guided else shown
            predicted = self.unet(
                shown.to(dtype),
                timestep,
                encoder_hidden_states=conditions,
                added_cond_kwargs=added,
                return_dict=False,
            )[0].float()
            if guided:
                predicted = guide(predicted[:count], predicted[count:], scale)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        latents = latents / self.vae.config.scaling_factor
        # One at a time: at 1024 pixels the autoencoder's activations are the largest of all.
        images = [self.vae.decode(one.to(dtype), return_dict=False)[0].float() for one in latents.split(1)]
        return torch.cat(images)


@dataclass(frozen=True)
class DecoderConfig:
    """The configuration files of a decoder's folder, which fit each other and the features."""

    folder: Path
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def build_unet(self) -> Any:
        """The UNet, without weights of the folder."""
        return _built(UNet2DConditionModel, self.unet, self.folder / "unet/config.json")

    def build_vae(self) -> Any:
        """The autoencoder, without weights of the folder."""
        return _built(AutoencoderKL, self.vae, self.folder / "vae/config.json")


def read_decoder(folder: Path, channels: int) -> DecoderConfig:
    """Reads the configuration of a decoder for features of ``channels`` numbers; no weights are needed.

    UserError naming the file and the key where one is missing or does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: the decoder of BLIP3-o's features ships with its weights; copy the folder there."
        )
    unet, vae = read_json(folder / "unet/config.json"), read_json(folder / "vae/config.json")
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    name = scheduler.get("_class_name")
    numbers = channels + _SIZE_NUMBERS * int(unet.get("addition_time_embed_dim") or 0)
    wanted: dict[str, Any] = {
        "cross_attention_dim": channels,
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": numbers,
    }
    for key, expected in wanted.items():
        if unet.get(key) != expected:
            raise UserError(
                f"{folder / 'unet/config.json'}: {key} is {unet.get(key)!r}, expected {expected!r} for features of "
                f"{channels} numbers (dit, in_channels): the decoder does not belong to these weights."
            )
    if not isinstance(unet.get("sample_size"), int):
        raise UserError(
            f"{folder / 'unet/config.json'}: sample_size is {unet.get('sample_size')!r}, expected a whole number, "
            "the side of the latents."
        )
    if name not in SCHEDULERS:
        raise UserError(
            f"{folder / 'scheduler/scheduler_config.json'}: _class_name is {name!r}, expected one of "
            f"{', '.join(SCHEDULERS)}. The released pipeline's own file was not at hand; write one of these there."
        )
    return DecoderConfig(folder, unet, vae, scheduler)


def load_decoder(
    folder: Path, channels: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> SdxlDecoder:
    """Loads a decoder's folder, strictly, frozen. UserError as ``read_decoder``, and for weights that do not fit."""
    config = read_decoder(folder, channels)
    unet, vae = meta_module(config.build_unet), meta_module(config.build_vae)
    for part, module in (("unet", unet), ("vae", vae)):
        weights = FolderWeights(config.folder, (Part(part, "", FILES),))
        weights.check(module, f"{part}/config.json belongs")
        fill(module, weights.stored(), dtype, device)
        module.eval().requires_grad_(False)
    return SdxlDecoder(unet, vae, SCHEDULERS[config.scheduler["_class_name"]], config.scheduler)


def _built(kind: Any, values: Mapping[str, Any], path: Path) -> Any:
    try:
        return kind.from_config(dict(values))
    except Exception as error:
        # The library raises whatever its constructors do.
        raise UserError(f"{path}: no {kind.__name__} can be made of it: {error}") from error
