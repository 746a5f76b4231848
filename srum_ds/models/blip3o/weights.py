"""The tensors of a BLIP3-o folder by the module's names, and export in the same layout.

One checkpoint, ``model.safetensors`` or shards with an index, with the names of the released class:

| key in the folder | name in the module |
|---|---|
| ``model.dit.model.caption_projection.*`` | ``dit.caption_projection.*`` |
| ``model.dit.model.*`` | ``dit.transformer.*`` |
| ``model.latent_queries`` | ``queries.latent_queries`` |
| ``model.gen_vision_tower.*`` | none: EVA-CLIP, which encodes given pictures alone; kept as it is |
| ``model.*``, ``visual.*``, ``lm_head.*`` | ``vlm.*``, by transformers' own mapping for Qwen2.5-VL |
"""

from __future__ import annotations

from pathlib import Path

from srum_ds.models.blip3o.denoiser import denoiser_key, denoiser_name
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.library import FolderWeights, Part, library_names

DENOISER_KEYS = "model.dit."
QUERIES_KEY = "model.latent_queries"
UNREAD_KEYS = ("model.gen_vision_tower.", "gen_vision_tower.")
WEIGHTS = "model.safetensors"


def folder_weights(folder: Path, module: Blip3o) -> FolderWeights:
    """The folder's tensors as those of ``module``. UserError where there are none."""
    of_library = library_names(module.vlm)

    def name_of(key: str) -> str | None:
        if key.startswith(UNREAD_KEYS):
            return None
        if key == QUERIES_KEY:
            return "queries.latent_queries"
        if key.startswith(DENOISER_KEYS):
            inner = denoiser_name(key.removeprefix(DENOISER_KEYS))
            return None if inner is None else "dit." + inner
        return "vlm." + of_library(key)

    copied = tuple(str(path) for path in _beside(folder))
    return FolderWeights(folder, (Part(files=(WEIGHTS,), name_of=name_of),), copied=copied).settle_ties(module)


def _beside(folder: Path) -> list[Path]:
    """What export copies: every file but the checkpoint itself and hidden ones, the decoder's weights too."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        weights = len(inside.parts) == 1 and (".safetensors" in path.name or path.suffix in (".bin", ".pt", ".pth"))
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not (weights or hidden or inside.parts[0] == "lora"):
            found.append(inside)
    return found


def library_name(name: str) -> str:
    """The name within the released ``NextDiTCrossAttn``, which peft's files name, of a name in the module."""
    return denoiser_key(name.removeprefix("dit."))
