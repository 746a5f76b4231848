"""A Janus checkpoint folder's weights: which are the module's and which the VQ's, both under the library's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from srum_ds.common.errors import UserError
from srum_ds.models.janus.config import JanusSettings
from srum_ds.models.janus.model import Janus
from srum_ds.models.library import FolderWeights, Part, library_names, meta_module

VQ = "model.vqmodel."


def build(folder: Path, settings: JanusSettings) -> tuple[Janus, JanusVQVAE, Callable[[str], str]]:
    """The module and its VQ on the meta device, and from a key of the files to the library's name.

    UserError where the library cannot make a model of the configuration.
    """
    try:
        library = meta_module(lambda: JanusForConditionalGeneration(settings.library))
    except Exception as error:
        # What its layers demand of their sizes, the library finds out when it makes them.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / 'config.json'} describes no Janus that can be made: {reason}. Correct it."
        ) from error
    name_of = library_names(library)
    vq = library.model.vqmodel
    return Janus(library), vq, name_of


def module_weights(folder: Path, name_of: Callable[[str], str]) -> FolderWeights:
    """The folder's tensors by the module's names; those of the VQ are kept as they are."""

    def of_module(key: str) -> str | None:
        name = name_of(key)
        return None if name.startswith(VQ) else name

    return FolderWeights(folder, (Part(name_of=of_module),))


def vq_weights(folder: Path, name_of: Callable[[str], str]) -> FolderWeights:
    """The folder's tensors by the VQ's names; the others are kept as they are."""

    def of_vq(key: str) -> str | None:
        name = name_of(key)
        return name.removeprefix(VQ) if name.startswith(VQ) else None

    return FolderWeights(folder, (Part(name_of=of_vq),))
