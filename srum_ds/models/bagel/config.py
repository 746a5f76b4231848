"""What a BAGEL checkpoint folder says about its model.

``llm_config.json`` and ``vit_config.json`` stand in every released folder. Everything the released
code hard-codes is an optional key of ``config.json``; an absent key means the released constant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json
from srum_ds.models.bagel.config_values import checked_fields, checked_value


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that wrap text and images."""

    bos: int = 151644
    eos: int = 151645
    image_start: int = 151652
    image_end: int = 151653


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen2 language model. ``vocab_size`` is the checkpoint's own, paddings included."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    vocab_size: int = 152064
    max_position_embeddings: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    head_dim: int = 0

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower. ``num_hidden_layers`` counts one more layer than is stored and run."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    patch_size: int = 14
    image_size: int = 980
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def kept_layers(self) -> int:
        return self.num_hidden_layers - 1

    @property
    def num_positions(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class AutoencoderConfig:
    """The FLUX autoencoder, in the names of its own release."""

    resolution: int = 256
    in_channels: int = 3
    downsample: int = 8
    ch: int = 128
    out_ch: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    norm_num_groups: int = 32


@dataclass(frozen=True)
class ImageTransform:
    """Resize limits in pixels; sides become multiples of ``image_stride``."""

    max_image_size: int
    min_image_size: int
    image_stride: int
    max_pixels: int = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class BagelConfig:
    """One BAGEL model. The defaults are the released BAGEL-7B-MoT."""

    llm: LanguageConfig = field(default_factory=LanguageConfig)
    vit: VisionConfig = field(default_factory=VisionConfig)
    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_patch_size: int = 2
    max_latent_size: int = 64
    vit_max_num_patch_per_side: int = 70
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift: float = 1.0
    vae_transform: ImageTransform = ImageTransform(1024, 512, 16)
    vit_transform: ImageTransform = ImageTransform(980, 224, 14)

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of the image square that one latent token stands for."""
        return self.vae.downsample * self.latent_patch_size

    @property
    def token_channels(self) -> int:
        """Numbers in one latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: a BAGEL folder holds llm_config.json, vit_config.json, ema.safetensors, "
            f"ae.safetensors and the tokenizer's files. Point at such a folder."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy it again from the release.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again from the release.") from None
    return _object(values, "the file", path)


def _object(values: Any, name: str, where: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {name} holds {type(values).__name__}, expected an object {{...}}. Copy it again.")
    return values


def _pick(cls: type, values: dict[str, Any], where: Path) -> Any:
    """Builds ``cls`` from the keys it knows; released files carry many more that do not matter here."""
    return cls(**checked_fields(cls, values, where))


def _rope_theta(values: dict[str, Any], where: Path) -> dict[str, Any]:
    """Newer writers keep ``rope_theta`` inside ``rope_parameters``."""
    nested = values.get("rope_parameters") or {}
    if values.get("rope_theta") is None and _object(nested, "rope_parameters", where).get("rope_theta") is not None:
        return {**values, "rope_theta": nested["rope_theta"]}
    return values


def read_config(folder: Path) -> BagelConfig:
    """Reads a checkpoint folder's configuration; no weights are needed.

    Raises UserError naming the file when one is missing, broken or of another architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the path of a BAGEL checkpoint folder.")
    llm_path = folder / "llm_config.json"
    vit_path = folder / "vit_config.json"
    llm_values = _read_json(llm_path)
    vit_values = _read_json(vit_path)
    top_path = folder / "config.json"
    top = _read_json(top_path) if top_path.exists() else {}
    _refuse_unsupported(llm_values, llm_path)
    defaults = BagelConfig()
    rest: dict[str, Any] = {
        name: checked_value(name, top[name], getattr(defaults, name), top_path)
        for name in (
            "latent_patch_size",
            "max_latent_size",
            "vit_max_num_patch_per_side",
            "connector_act",
            "interpolate_pos",
            "timestep_shift",
        )
        if top.get(name) is not None
    }
    for name in ("vae_transform", "vit_transform"):
        if top.get(name) is not None:
            rest[name] = _pick(ImageTransform, _object(top[name], name, top_path), top_path)
    config = BagelConfig(
        llm=_pick(LanguageConfig, _rope_theta(llm_values, llm_path), llm_path),
        vit=_pick(VisionConfig, vit_values, vit_path),
        vae=_pick(AutoencoderConfig, _object(top.get("vae_config") or {}, "vae_config", top_path), top_path),
        **rest,
    )
    _check_consistency(config, folder)
    return _with_transforms(config, rest)


def _check_consistency(config: BagelConfig, folder: Path) -> None:
    """What no single value shows: divisibility, activations, the autoencoder's levels. UserError."""
    llm, vit, vae = config.llm, config.vit, config.vae
    llm_path, vit_path, top = folder / "llm_config.json", folder / "vit_config.json", folder / "config.json"
    heads, kv_heads = llm.num_attention_heads, llm.num_key_value_heads
    if not llm.head_dim:
        _divides(llm.hidden_size, heads, "hidden_size", "num_attention_heads", llm_path)
    _divides(heads, kv_heads, "num_attention_heads", "num_key_value_heads", llm_path)
    _divides(llm.head_size, 2, "the width of a head", "rotary embedding's 2 halves", llm_path)
    _divides(llm.hidden_size, 4, "hidden_size", "the position table's 4 parts", llm_path)
    _divides(vit.hidden_size, vit.num_attention_heads, "hidden_size", "num_attention_heads", vit_path)
    if vit.image_size < vit.patch_size:
        raise UserError(f"{vit_path}: image_size {vit.image_size} is below patch_size {vit.patch_size}. Correct one.")
    for name, value, path in (
        ("hidden_act", llm.hidden_act, llm_path),
        ("hidden_act", vit.hidden_act, vit_path),
        ("connector_act", config.connector_act, top),
    ):
        if value not in ACT2FN:
            raise UserError(f"{path}: {name} {value!r} is unknown. Expected one of {', '.join(sorted(ACT2FN))}.")
    if not vae.ch_mult or vae.downsample != 2 ** (len(vae.ch_mult) - 1):
        raise UserError(
            f"{top}: vae_config.downsample is {vae.downsample}, but {len(vae.ch_mult)} levels of ch_mult "
            f"halve an image {len(vae.ch_mult) - 1} times. Correct one of them."
        )
    for level in (1, *vae.ch_mult):
        width = vae.ch * level
        _divides(width, vae.norm_num_groups, "vae_config: a level's width ch * ch_mult", "norm_num_groups", top)


def _divides(whole: int, part: int, name: str, by: str, where: Path) -> None:
    if whole % part:
        raise UserError(f"{where}: {name} {whole} is not a multiple of {by} ({part}). Correct one of them.")


def _with_transforms(config: BagelConfig, given: dict[str, Any]) -> BagelConfig:
    """Image transforms that the folder does not name: the released ones, within this model's own tables.

    Sides become whole tokens of the model and no more of them than its position tables hold, which
    leaves the released model's as they are.
    """
    vae, vit = config.vae_transform, config.vit_transform
    if "vae_transform" not in given:
        vae = _within(vae, config.pixels_per_token, config.max_latent_size)
    if "vit_transform" not in given:
        side = min(config.vit_max_num_patch_per_side, config.vit.image_size // config.vit.patch_size)
        vit = _within(vit, config.vit.patch_size, side)
    return replace(config, vae_transform=vae, vit_transform=vit)


def _within(transform: ImageTransform, stride: int, side: int) -> ImageTransform:
    longest = min(transform.max_image_size, stride * side)
    return replace(
        transform,
        image_stride=stride,
        max_image_size=longest,
        min_image_size=min(transform.min_image_size, longest),
    )


def _refuse_unsupported(values: dict[str, Any], path: Path) -> None:
    model_type = values.get("model_type", "qwen2")
    if model_type != "qwen2":
        raise UserError(f"{path}: model_type is {model_type!r}, expected 'qwen2': not a BAGEL folder.")
    layer = values.get("layer_module", "Qwen2MoTDecoderLayer")
    if layer not in ("Qwen2MoTDecoderLayer", "Qwen2DecoderLayer"):
        raise UserError(f"{path}: layer_module {layer!r} is not supported, expected 'Qwen2MoTDecoderLayer'.")
    scaling = values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    if kind not in (None, "default"):
        raise UserError(f"{path}: rope_scaling {scaling!r} is not supported by BAGEL; remove it.")
