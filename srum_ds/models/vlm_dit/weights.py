"""A pipeline's folder as the weights of one module: ``transformer/`` and ``text_encoder/``, each in its own names."""

from __future__ import annotations

from srum_ds.models.library import FolderWeights, Part, library_names
from srum_ds.models.vlm_dit.config import PipelineFolder
from srum_ds.models.vlm_dit.modes import TRANSFORMER

TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
ENCODER_FILE = "model.safetensors"


def folder_weights(folder: PipelineFolder, text_encoder: object) -> FolderWeights:
    """The parts of a pipeline's folder; the text encoder's files have other names than its module."""
    return FolderWeights(
        folder.folder,
        (
            Part("transformer", TRANSFORMER, (TRANSFORMER_FILE,)),
            Part("text_encoder", "text_encoder.", (ENCODER_FILE,), library_names(text_encoder)),
        ),
    )


def library_name(name: str) -> str:
    """The name within the library's transformer, which peft's files name, of a name in the module."""
    return name.removeprefix(TRANSFORMER)
