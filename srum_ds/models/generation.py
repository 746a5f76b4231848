"""``generation.json`` of an exported model: the settings that its training drew with, which whoever draws begins from.

A model that was trained at a guidance of 1.25 draws something else at its design's default of 4. The export of a run
says so itself; a folder without the file is drawn by its design's defaults, as ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import GENERATION, file_bytes, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.models.protocol import ModelFamily
from srum_ds.models.registry import make_sampling

SCHEMA = 1
_CURE = "export the model again, or remove the file to draw by the design's own defaults"


@dataclass(frozen=True)
class Generation:
    """How a trained model is drawn with.

    kind: its design. sampling: settings of the design's sampler by name, all of them. image_size: height, width in
    pixels. about: what else is known of the training (``step``, ``weights``, ``base``, ...), for people.
    """

    kind: str
    sampling: Mapping[str, Any]
    image_size: tuple[int, int]
    about: Mapping[str, Any] = field(default_factory=dict)

    def line(self, folder: Path) -> str:
        """One line that says which settings apply, and why."""
        shown = ", ".join(f"{name} {_short(value)}" for name, value in self.sampling.items())
        height, width = self.image_size
        return f"drawn as {folder / GENERATION} says, but for what the command line sets: {shown}; {height}x{width}"


def generation_of(
    family: ModelFamily, sampling: Any, image_size: tuple[int, int], about: Mapping[str, Any]
) -> Generation:
    """What an export says of ``sampling``, settings of the family's ``sampling_type``."""
    return Generation(family.kind, asdict(sampling), image_size, about)


def write_generation(folder: Path, generation: Generation) -> None:
    """Writes the file, in one step."""
    said = {
        "schema": SCHEMA,
        "kind": generation.kind,
        "sampling": {name: list(v) if isinstance(v, tuple) else v for name, v in generation.sampling.items()},
        "image_size": list(generation.image_size),
        **generation.about,
    }
    write_atomic(folder / GENERATION, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def read_generation(folder: Path, family: ModelFamily) -> Generation | None:
    """What a model's folder says of how it is drawn with; None where it says nothing.

    Raises UserError naming the file where it cannot be read, is not what ``write_generation`` writes, is of another
    design than the folder, or has a setting that the design's sampler lacks or refuses.
    """
    path = folder / GENERATION
    if not path.exists():
        return None
    try:
        said = parse_json(file_bytes(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_CURE}.") from error
    if not isinstance(said, dict) or type(said.get("schema")) is not int:
        raise UserError(f'{path}: expected an object with "schema": {SCHEMA}, as srum-ds exports it; {_CURE}.')
    if said["schema"] != SCHEMA:
        raise UserError(f"{path}: its schema is {said['schema']}, this srum-ds reads {SCHEMA}; {_CURE}.")
    if said.get("kind") != family.kind:
        other = said.get("kind")
        raise UserError(f"{path}: is of a model of the design {other!r}, the folder of {family.kind}; {_CURE}.")
    sampling, size = said.get("sampling"), said.get("image_size")
    if not isinstance(sampling, dict):
        raise UserError(f'{path}: expected the sampler\'s settings under "sampling", found {sampling!r}; {_CURE}.')
    fits = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not fits or not isinstance(size, list):
        raise UserError(f'{path}: expected "image_size" as [height, width] in pixels, found {size!r}; {_CURE}.')
    try:
        checked = asdict(make_sampling(family, sampling, "sampling.{}"))
    except UserError as error:
        raise UserError(f"{path}: {error}; {_CURE}.") from error
    about = {name: value for name, value in said.items() if name not in ("schema", "kind", "sampling", "image_size")}
    return Generation(family.kind, checked, (size[0], size[1]), about)


def usual_sampling(family: ModelFamily, own: Generation | None, given: Mapping[str, Any], setting: str = "{}") -> Any:
    """Settings of a sampler: what is given, the rest as the model's folder says, else the design's defaults.

    own: see ``read_generation``. setting: how a user writes one, for the UserErrors of ``make_sampling``.
    """
    return make_sampling(family, {**(own.sampling if own else {}), **given}, setting)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
