"""Opening a checkpoint folder: which design it is, and its model. The only door to a concrete model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from srum_ds.common.errors import UserError
from srum_ds.common.model_files import refuse_special_files, refuse_wild_sizes
from srum_ds.common.texts import parse_json
from srum_ds.config.choices import MODELS
from srum_ds.models.protocol import Materialise, ModelFamily, UnifiedModel

if TYPE_CHECKING:
    # Which design a folder is of is told without torch.
    import torch

    from srum_ds.models.costs import ModelCosts

AUTO = "auto"
"""``model.kind`` of a recipe that lets the folder say which design it is."""


def family_of(folder: Path | str, kind: str = AUTO) -> ModelFamily:
    """The design of a folder; ``kind`` other than ``auto`` names it instead.

    Raises UserError for a folder that is not there or of no known design: it says what lies there, and what each
    design's folder contains.
    """
    folder = Path(folder)
    if folder.is_dir():
        refuse_special_files(folder)
    if kind != AUTO:
        return cast(ModelFamily, MODELS.get(kind))
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the path of a model's checkpoint folder (model.path).")
    families = [cast(ModelFamily, MODELS.get(name)) for name in MODELS.names()]
    found = [family for family in families if family.matches(folder)]
    if len(found) == 1:
        return found[0]
    there = (", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing") + _said_of_itself(folder)
    if found:
        kinds = ", ".join(family.kind for family in found)
        raise UserError(f"{folder} could be of several designs ({kinds}): say which by model.kind.")
    if (folder / "export").is_dir():
        raise UserError(f"{folder} is a run's folder: its trained model is {folder / 'export'}; name that one.")
    known = "; ".join(f"{family.kind}: {family.contains}" for family in families)
    raise UserError(f"{folder} is of no known design: it holds {there}. Known are {known}.")


def _said_of_itself(folder: Path) -> str:
    """The architecture that a folder's own configuration names, in words; nothing where it names none."""
    for name, keys in (("model_index.json", ("_class_name",)), ("config.json", ("architectures", "model_type"))):
        try:
            values = parse_json((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = [f"{key} {json.dumps(values[key])}" for key in keys if isinstance(values, dict) and values.get(key)]
        if found:
            return f"; its {name} says {' and '.join(found)}"
    return ""


def default_dtype(device: torch.device | str) -> torch.dtype:
    """The type in which a model draws and judges: bfloat16 on an accelerator, float32 on a CPU."""
    import torch

    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def costs_of(path: Path | str, kind: str = AUTO) -> ModelCosts | None:
    """What the work of a folder's model costs; None where its design does not say.

    Where the folder is not there and ``kind`` names a design, it is that design's released model. UserError as
    ``family_of``.
    """
    family = family_of(path, kind)
    if family.costs is None:
        return None
    if Path(path).is_dir():
        refuse_wild_sizes(Path(path))
    return family.costs(Path(path) if Path(path).is_dir() else None)


def load_model(
    path: Path | str,
    kind: str = AUTO,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_judges: bool = False,
) -> UnifiedModel:
    """Loads a checkpoint folder of the given design. UserError for an unknown design or a bad folder.

    dtype: of its weights, None for float32. materialise: what gives the module its memory and values instead of a
    plain load, e.g. an engine's shards. only_judges: for a judge, whose drawing half may be left out. Fused kernels are
    tried on the device where nobody has chosen any yet (``fused``).
    """
    import torch

    from srum_ds.models.fused import start_by_default

    family = family_of(path, kind)
    if Path(path).is_dir():
        refuse_wild_sizes(Path(path))
    start_by_default(torch.device(device))
    return family.load(Path(path), dtype or torch.float32, device, materialise, only_judges)


def make_sampling(family: ModelFamily, given: Mapping[str, Any], setting: str) -> Any:
    """The sampler's settings of a family from the ones that are given; the others have its defaults.

    setting: how a user writes one, such as ``rollout.{}``, for messages. Raises UserError for a setting that the
    family's sampler does not have and for a value of another type or out of its range.
    """
    known = [field.name for field in fields(family.sampling_type)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {setting.format(near[0])}?" if near else ""
            raise UserError(
                f"{setting.format(name)}: the sampler of {family.kind} has no such setting; it has "
                f"{', '.join(known)}{hint}"
            )
    kinds = get_type_hints(family.sampling_type)
    settings = {name: _of_type(kinds[name], value, setting.format(name)) for name, value in given.items()}
    return family.sampling_type(**settings)


def _of_type(kind: Any, value: Any, setting: str) -> Any:
    """A value as its setting has it, such as a tuple for a list. UserError for one that does not fit."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{setting}={value}: {error.errors()[0]['msg']}") from error
