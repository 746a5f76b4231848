"""A vision-language model that conditions a diffusion transformer, in a folder of a diffusers pipeline.

Qwen-Image (arXiv 2508.02324) and its kin: the pipeline itself says how it conditions its denoiser, which sign and time
scale its velocities have and how latents become an image, and its own vision-language model judges. The code that needs
the libraries of a model is imported when a folder is loaded or inspected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.texts import parse_json
from srum_ds.models.protocol import Materialise, ModelFamily
from srum_ds.models.vlm_dit.pipelines import PIPELINES
from srum_ds.models.vlm_dit.settings import PipelineSampling

if TYPE_CHECKING:
    import torch

    from srum_ds.models.costs import ModelCosts
    from srum_ds.models.vlm_dit.adapter import VlmDitAdapter


def _matches(folder: Path) -> bool:
    try:
        index = parse_json((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") in PIPELINES


def _load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    materialise: Materialise | None,
    only_judges: bool,
) -> VlmDitAdapter:
    from srum_ds.models.vlm_dit.adapter import load_vlm_dit

    return load_vlm_dit(folder, dtype, device, materialise, only_judges)


def _inspect(folder: Path) -> tuple[Mapping[str, Any], str]:
    from srum_ds.models.vlm_dit.inspect import inspect_folder, inspection_text

    facts = inspect_folder(folder)
    return facts, inspection_text(facts)


def _costs(folder: Path | None) -> ModelCosts | None:
    from srum_ds.models.vlm_dit.costs import costs_of_folder

    return costs_of_folder(folder)


FAMILY = ModelFamily(
    kind="vlm_dit",
    modes=("generation", "lora"),
    sampling_type=PipelineSampling,
    matches=_matches,
    contains=(
        "model_index.json of a pipeline such as QwenImagePipeline, with transformer, text_encoder, vae, scheduler and "
        "tokenizer"
    ),
    load=_load,
    inspect=_inspect,
    costs=_costs,
)
