"""What a BLIP3-o checkpoint folder says of its model, checked: a wrong value is an error that names file and key.

The layout is what the released code (JiuhaiChen/BLIP3o, branch main, 4689ec3) writes and reads; no released folder was
at hand. ``config.json`` is Qwen2.5-VL's, flat as transformers 4.51 saves it or with a ``text_config``, and has more
keys. Read here:

- ``n_query``: how many learned queries are appended to a prompt (64 in the release).
- ``dit``: optional, sizes of the transformer by the names of ``DenoiserConfig``. The released code hard-codes them:
  what is absent has its defaults, and ``latent_embedding_size`` is the language model's width.
- ``image_start_token_id``: optional, the token before the queries; absent, that of ``[IMG]`` in the tokenizer, which
  is the 151665 that the released code hard-codes.

Other keys (``gen_vision_tower``, ``gen_pooling``, ``mm_*``) concern the training that made the release.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.config_values import read_json, whole_number
from srum_ds.models.blip3o.denoiser import DenoiserConfig, denoiser_config

MODEL_TYPES = ("blip3o_qwen", "blip3o_qwen_inference")
"""``model_type`` of the released code's training and inference classes."""

DECODER_FOLDER = "diffusion-decoder"
IMAGE_START = "[IMG]"

_OWN_KEYS = ("model_type", "architectures", "dit", "torch_dtype", "dtype", "auto_map", "transformers_version")


@dataclass(frozen=True)
class Blip3oConfig:
    """A checkpoint folder's model. ``image_start``: the id that ``config.json`` names, if any."""

    folder: Path
    vlm: Any
    denoiser: DenoiserConfig
    n_query: int
    image_start: int | None = None

    @property
    def width(self) -> int:
        """Numbers of one hidden state of the language model."""
        return int(self.vlm.text_config.hidden_size)

    @property
    def decoder_folder(self) -> Path:
        """Where the decoder's parts are."""
        return self.folder / DECODER_FOLDER


def read_config(folder: Path) -> Blip3oConfig:
    """Reads ``config.json``; no weights are needed. UserError that names the file and the key."""
    folder = Path(folder)
    path = folder / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{path}: model_type is {kind!r}, expected {' or '.join(MODEL_TYPES)} for BLIP3-o.")
    if not isinstance(values.get("vision_config"), dict):
        raise UserError(
            f"{path} has no vision_config: it is not the BLIP3-o of arXiv 2505.09568 on Qwen2.5-VL but one of its "
            "successors (such as BLIP3o-NEXT), which have other parts and are not supported. Take BLIP3o-Model-8B "
            "or -4B."
        )
    n_query = whole_number(values, "n_query", path)
    start = whole_number(values, "image_start_token_id", path, 0) if "image_start_token_id" in values else None
    sizes = values.get("dit", {})
    if not isinstance(sizes, dict):
        raise UserError(f"{path}: dit is {type(sizes).__name__}, expected an object of sizes of the transformer.")
    vlm = _language_config(values, path)
    denoiser = denoiser_config(sizes, f"{path}, dit", latent_embedding_size=int(vlm.text_config.hidden_size))
    config = Blip3oConfig(folder, vlm, denoiser, n_query, start)
    if denoiser.latent_embedding_size != config.width:
        raise UserError(
            f"{path}, dit: latent_embedding_size is {denoiser.latent_embedding_size}, but the language model's "
            f"hidden_size is {config.width}: they must be equal."
        )
    return config


def _language_config(values: dict[str, Any], path: Path) -> Any:
    try:
        return Qwen2_5_VLConfig(**{key: value for key, value in values.items() if key not in _OWN_KEYS})
    except Exception as error:
        # The library raises whatever its checks do.
        raise UserError(f"{path}: no Qwen2.5-VL can be made of it ({error}); copy it from the release.") from error
