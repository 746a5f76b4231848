"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811) as a family: pictures are codes, drawn one after the other.

The code that needs the libraries of a model is imported when a folder is loaded or inspected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.texts import parse_json
from srum_ds.models.janus.settings import CodeSampling
from srum_ds.models.protocol import Materialise, ModelFamily

if TYPE_CHECKING:
    import torch

    from srum_ds.models.costs import ModelCosts
    from srum_ds.models.janus.adapter import JanusAdapter

MODES = ("generation", "transformer", "lora")


def _matches(folder: Path) -> bool:
    try:
        values = parse_json((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == "janus"


def _load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    materialise: Materialise | None,
    only_judges: bool,
) -> JanusAdapter:
    from srum_ds.models.janus.adapter import load_janus

    # What draws alone is a small part of the weights: a judge keeps it.
    del only_judges
    return load_janus(folder, dtype, device, materialise)


def _inspect(folder: Path) -> tuple[Mapping[str, Any], str]:
    from srum_ds.models.janus.inspect import inspect_folder, inspection_text

    facts = inspect_folder(folder)
    return facts, inspection_text(facts)


def _costs(folder: Path | None) -> ModelCosts:
    from srum_ds.models.janus.costs import costs_of_folder

    return costs_of_folder(folder)


def _refuses_size(folder: Path, height: int, width: int) -> str:
    from srum_ds.models.janus.sizes import refuses_size

    return refuses_size(folder, height, width)


def _trained(mode: str, names: Iterable[str]) -> list[str]:
    from srum_ds.models.janus.modes import trained

    return trained(mode, names)


FAMILY = ModelFamily(
    kind="janus",
    modes=MODES,
    sampling_type=CodeSampling,
    matches=_matches,
    contains="config.json with model_type janus, model.safetensors, the tokenizer's and the processor's files",
    load=_load,
    inspect=_inspect,
    costs=_costs,
    refuses_size=_refuses_size,
    trained=_trained,
)
