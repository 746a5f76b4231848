"""Show-o (arXiv 2408.12528) as a family: what ``models.registry`` knows of it before any weights are read.

The code that needs the libraries of a model is imported when a folder is loaded or inspected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.texts import parse_json
from srum_ds.models.protocol import Materialise, ModelFamily
from srum_ds.models.showo.settings import MaskedSampling

if TYPE_CHECKING:
    import torch

    from srum_ds.models.costs import ModelCosts
    from srum_ds.models.showo.adapter import ShowoAdapter

_KEYS = ("llm_vocab_size", "num_vq_tokens", "llm_model_path")


def _matches(folder: Path) -> bool:
    # Every design has a config.json: what it says tells them apart.
    try:
        values = parse_json((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and (values.get("_class_name") == "Showo" or all(key in values for key in _KEYS))


def _load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    materialise: Materialise | None,
    only_judges: bool,
) -> ShowoAdapter:
    from srum_ds.models.showo.adapter import load_showo

    return load_showo(folder, dtype, device, materialise, only_judges)


def _inspect(folder: Path) -> tuple[Mapping[str, Any], str]:
    from srum_ds.models.showo.inspect import inspect_folder, inspection_text

    facts = inspect_folder(folder)
    return facts, inspection_text(facts)


def _costs(folder: Path | None) -> ModelCosts:
    from srum_ds.models.showo.costs import costs_of_folder

    return costs_of_folder(folder)


def _refuses_size(folder: Path, height: int, width: int) -> str:
    from srum_ds.models.showo.sizes import refuses_size

    return refuses_size(folder, height, width)


def _trained(mode: str, names: Iterable[str]) -> list[str]:
    from srum_ds.models.showo.modes import trained

    return trained(mode, names)


FAMILY = ModelFamily(
    kind="showo",
    modes=("transformer", "lora"),
    sampling_type=MaskedSampling,
    matches=_matches,
    contains=(
        "config.json of the class Showo, pytorch_model.safetensors, magvitv2/ with the picture tokenizer, and the "
        "language model's configuration and tokenizer where llm_model_path says"
    ),
    load=_load,
    inspect=_inspect,
    costs=_costs,
    refuses_size=_refuses_size,
    trained=_trained,
)
