"""A pipeline's components from their configuration: built by the library's classes, and the autoencoder loaded."""

from __future__ import annotations

from typing import Any

import torch

from srum_ds.common.errors import UserError
from srum_ds.models.library import FolderWeights, Part, fill
from srum_ds.models.vlm_dit.config import PipelineFolder
from srum_ds.models.vlm_dit.weights import TRANSFORMER_FILE


def build_transformer(folder: PipelineFolder) -> Any:
    """The diffusion transformer, without weights of the folder."""
    return _from_config(folder, "transformer")


def build_autoencoder(folder: PipelineFolder) -> Any:
    """The autoencoder, without weights of the folder."""
    return _from_config(folder, "vae")


def build_encoder(folder: PipelineFolder) -> Any:
    """The vision-language model, without weights of the folder. UserError for a configuration that cannot be one."""
    kind = folder.loaded_class("text_encoder")
    folder.config("text_encoder")
    try:
        config = kind.config_class.from_pretrained(str(folder.path("text_encoder")), local_files_only=True)
        return kind(config)
    except UserError:
        raise
    except Exception as error:
        # The library raises whatever its checks do.
        raise UserError(f"{folder.path('text_encoder')}/config.json: no model can be made of it: {error}") from error


def _from_config(folder: PipelineFolder, part: str) -> Any:
    kind, values = folder.loaded_class(part), folder.config(part)
    try:
        return kind.from_config(values)
    except Exception as error:
        # The library raises whatever its constructors do.
        raise UserError(f"{folder.path(part)}/config.json: no model can be made of it: {error}") from error


def load_autoencoder(autoencoder: Any, folder: PipelineFolder, dtype: torch.dtype, device: torch.device | str) -> None:
    """Gives an autoencoder on the meta device its memory and the folder's weights, strictly. UserError."""
    weights = FolderWeights(folder.folder, (Part("vae", "", (TRANSFORMER_FILE,)),))
    weights.check(autoencoder, "vae/config.json belongs")
    fill(autoencoder, weights.stored(), dtype, device)
