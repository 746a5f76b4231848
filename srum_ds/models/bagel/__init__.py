"""BAGEL (arXiv 2505.14683) as a family: what ``models.registry`` knows of it before any weights are read.

The code that needs the libraries of a model is imported when a folder is loaded or inspected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.models.flow_settings import FlowSampling
from srum_ds.models.protocol import Materialise, ModelFamily

if TYPE_CHECKING:
    import torch

    from srum_ds.models.bagel.adapter import BagelAdapter
    from srum_ds.models.costs import ModelCosts

CONFIGURATIONS = ("llm_config.json", "vit_config.json")


def _matches(folder: Path) -> bool:
    # One of the two is enough, so that a folder that lacks the other is told which.
    return any((folder / name).is_file() for name in CONFIGURATIONS)


def _load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    materialise: Materialise | None,
    only_judges: bool,
) -> BagelAdapter:
    from srum_ds.models.bagel.adapter import load_bagel

    return load_bagel(folder, dtype, device, materialise, only_judges)


def _inspect(folder: Path) -> tuple[Mapping[str, Any], str]:
    from srum_ds.models.bagel.inspect import inspect_folder, inspection_text

    facts = inspect_folder(folder)
    return facts, inspection_text(facts)


def _costs(folder: Path | None) -> ModelCosts:
    from srum_ds.models.bagel.costs import costs_of_folder

    return costs_of_folder(folder)


def _refuses_size(folder: Path, height: int, width: int) -> str:
    from srum_ds.models.bagel.sizes import refuses_size

    return refuses_size(folder, height, width)


def _trained(mode: str, names: Iterable[str]) -> list[str]:
    from srum_ds.models.bagel.modes import trained

    return trained(mode, names)


FAMILY = ModelFamily(
    kind="bagel",
    modes=("generation", "transformer", "lora"),
    sampling_type=FlowSampling,
    matches=_matches,
    contains="llm_config.json, vit_config.json, ema.safetensors, ae.safetensors and the tokenizer's files",
    load=_load,
    inspect=_inspect,
    edit_sampling={"image_scale": 2.0, "interval": (0.0, 1.0), "renorm": "text_channel"},
    costs=_costs,
    refuses_size=_refuses_size,
    trained=_trained,
)
