"""What the configuration files of a pipeline's folder say, checked: a wrong one is an error that names the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json
from srum_ds.models.vlm_dit.pipelines import PIPELINES, Pipeline

INDEX = "model_index.json"
PARTS = ("transformer", "text_encoder", "vae", "scheduler")
LIBRARIES = ("diffusers", "transformers")
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline's folder: its class, what is known of it, and the (library, class) of each component."""

    folder: Path
    name: str
    pipeline: Pipeline
    components: Mapping[str, tuple[str, str]]

    def path(self, part: str) -> Path:
        """The folder of a component."""
        return self.folder / part

    @property
    def text_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.path("tokenizer" if "tokenizer" in self.components else "processor")

    def loaded_class(self, part: str) -> Any:
        """The library's class of a component. UserError for one that the installed library lacks."""
        library, name = self.components[part]
        found = getattr(__import__(library), name, None)
        if found is None:
            raise UserError(
                f"{self.folder / INDEX}: {part} is {library}.{name}, which the installed {library} does not have: "
                f"install a newer {library}."
            )
        return found

    def pipeline_class(self) -> Any:
        """The library's class of the pipeline. UserError where the installed diffusers lacks it."""
        import diffusers

        found = getattr(diffusers, self.name, None)
        if found is None:
            raise UserError(f"{self.folder / INDEX}: the installed diffusers has no {self.name}: install a newer one.")
        return found

    def config(self, part: str) -> dict[str, Any]:
        """The ``config.json`` of a component."""
        return read_json(self.path(part) / ("scheduler_config.json" if part == "scheduler" else "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file is missing, broken or something else."""
    try:
        values = parse_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again from the release.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected an object {{...}}. Copy it again.")
    return values


def read_folder(folder: Path) -> PipelineFolder:
    """Reads ``model_index.json`` and looks whether every component is there; no weights are needed.

    Raises UserError that names the file for a pipeline that is not known, a component that is missing or of a kind that
    does not fit, and a sampler that is no flow-matching one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the path of a diffusers pipeline's folder.")
    index = read_json(folder / INDEX)
    name = str(index.get("_class_name"))
    known = ", ".join(PIPELINES)
    if name not in PIPELINES:
        raise UserError(f"{folder / INDEX}: _class_name is {name}; the pipelines that can be read are {known}.")
    components = {
        part: (str(entry[0]), str(entry[1]))
        for part, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and None not in entry
    }
    wanted = [*PARTS, "processor" if "processor" in components else "tokenizer"]
    missing = [part for part in wanted if part not in components or not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {name} needs: copy them from the release.")
    for part in PARTS:
        library, kind = components[part]
        if library not in LIBRARIES:
            raise UserError(
                f"{folder / INDEX}: {part} is {library}.{kind}, expected a class of diffusers or transformers."
            )
    if components["scheduler"][1] != SCHEDULER:
        raise UserError(
            f"{folder / INDEX}: scheduler is {components['scheduler'][1]}, expected {SCHEDULER}: the others are no "
            "flow-matching samplers with Euler steps."
        )
    found = PipelineFolder(folder, name, PIPELINES[name], components)
    _check_scheduler(found)
    return found


def _check_scheduler(folder: PipelineFolder) -> None:
    values = folder.config("scheduler")
    for name in ("stochastic_sampling", "invert_sigmas"):
        if values.get(name):
            raise UserError(
                f"{folder.path('scheduler')}/scheduler_config.json: {name} is not supported: set it to false."
            )
