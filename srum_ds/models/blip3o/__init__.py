"""BLIP3-o (arXiv 2505.09568): a frozen Qwen2.5-VL whose hidden states condition a transformer of CLIP features.

What the released code says is followed; the released weights were not at hand, and what only they can say is named
where it matters (``config``, ``weights``, ``decoder``). The code that needs the libraries of a model is imported when a
folder is loaded or inspected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.texts import parse_json
from srum_ds.models.blip3o.settings import Blip3oSampling
from srum_ds.models.protocol import Materialise, ModelFamily

if TYPE_CHECKING:
    import torch

    from srum_ds.models.blip3o.adapter import Blip3oAdapter
    from srum_ds.models.costs import ModelCosts


def _matches(folder: Path) -> bool:
    # Every design has a config.json: what it says tells them apart.
    try:
        values = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and str(values.get("model_type")).startswith("blip3o_")


def _load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    materialise: Materialise | None,
    only_judges: bool,
) -> Blip3oAdapter:
    from srum_ds.models.blip3o.adapter import load_blip3o

    return load_blip3o(folder, dtype, device, materialise, only_judges)


def _inspect(folder: Path) -> tuple[Mapping[str, Any], str]:
    from srum_ds.models.blip3o.inspect import inspect_folder, inspection_text

    facts = inspect_folder(folder)
    return facts, inspection_text(facts)


def _costs(folder: Path | None) -> ModelCosts:
    from srum_ds.models.blip3o.costs import costs_of_folder

    return costs_of_folder(folder)


FAMILY = ModelFamily(
    kind="blip3o",
    modes=("generation", "lora"),
    sampling_type=Blip3oSampling,
    matches=_matches,
    contains=(
        "config.json with model_type blip3o_qwen, model.safetensors, the tokenizer's files, and diffusion-decoder/ "
        "with unet, vae and scheduler"
    ),
    load=_load,
    inspect=_inspect,
    costs=_costs,
)
