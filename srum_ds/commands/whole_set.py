"""`srum-ds generate --prompts`: the options of a whole set of prompts, and drawing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.commands.sampler import sampling_settings
from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.evaluation.draw_request import DrawRequest


@Parameter(name="*")
@dataclass(frozen=True)
class WholeSet:
    """Which prompts of a set, and how its pictures are drawn and named."""

    layout: Annotated[
        Literal["plain", "geneval", "wise", "compbench"],
        Parameter(help="With --prompts: how pictures are named; plain, or as that benchmark's own tools expect them."),
    ] = "plain"
    column: Annotated[str | None, Parameter(help="With --prompts: the column (key) that holds the texts.")] = None
    split: Annotated[str | None, Parameter(help="With --prompts, of shards: the split (default: test).")] = None
    limit: Annotated[
        int | None, Parameter(help="With --prompts: at most so many prompts, of the categories in turn.")
    ] = None
    batch: Annotated[
        int | None, Parameter(help="With --prompts: pictures drawn at once by a process (default: 16).")
    ] = None
    processes: Annotated[
        int | None, Parameter(help="With --prompts: drawing processes (default: one per core, or one per GPU).")
    ] = None

    def refuse(self, given: Mapping[str, Any]) -> None:
        """UserError for an option of single prompts (``given``: option -> its value) beside a whole set."""
        for option, value in given.items():
            if value:
                raise UserError(f"{option} goes with --prompt, not with --prompts, which draws a whole set.")
        for option in ("batch", "processes"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"--{option} {value}: give at least 1.")

    def refuse_alone(self) -> None:
        """UserError for an option of a whole set without one."""
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} needs a set of prompts: give --prompts FILE.")


WHOLE = WholeSet()


@dataclass(frozen=True)
class WholeSetRequest:
    """What `srum-ds generate` was given beside a set of prompts; see its options."""

    model: Path
    prompts: str
    out: Path
    seed: int
    samples: int
    size: tuple[int, int] | None
    options: Mapping[str, Any]
    further: Sequence[str]
    device: str


def draw_whole_set(given: WholeSetRequest, whole: WholeSet, as_json: bool) -> None:
    """Draws what is missing of a set, on all devices and ranks, and says what is there.

    Raises UserError as ``set_request`` and ``draw_folders`` do, and for a bad model, sampler or device.
    """
    from rich.console import Console

    from srum_ds.evaluation.draw_folder import draw_folders

    device = None if given.device == "auto" else str(resolve_placement(Placement(given.device))[0])
    one_gpu = device is not None and device.startswith("cuda:")
    processes = whole.processes or (1 if one_gpu else None)
    console = Console(stderr=as_json)
    if draw_folders(lambda: [_request(given, whole)], processes, console, device) and as_json:
        _print_index(given.out)


def _request(given: WholeSetRequest, whole: WholeSet) -> DrawRequest:
    from srum_ds.evaluation.draw_request import MODEL_BATCH, model_drawing
    from srum_ds.evaluation.draw_set import PromptSet, set_request
    from srum_ds.models import family_of
    from srum_ds.models.generation import read_generation

    family = family_of(given.model)
    own = read_generation(given.model, family)
    sampling = sampling_settings(family, given.options, given.further, False, own.sampling if own else None)
    drawing = model_drawing(given.model, family.kind, sampling, own)
    drawing = replace(
        drawing,
        seed=given.seed,
        image_size=given.size or drawing.image_size,
        batch=MODEL_BATCH if whole.batch is None else whole.batch,
    )
    chosen = PromptSet(given.prompts, whole.column, whole.split, whole.limit, whole.layout)
    return set_request(chosen, drawing, given.samples, given.out)


def _print_index(out: Path) -> None:
    """One JSON object a picture, as for single prompts."""
    from srum_ds.evaluation.picture_folder import INDEX

    for line in (out / INDEX).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        facts = {"image": str(out / entry["file"]), "prompt": entry["prompt"], "seed": entry["seed"]}
        print(json.dumps({**facts, "number": entry["sample"]}))
