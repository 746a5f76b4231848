"""A folder of pictures and their prompts: written by ``draw_folder``, or by another tool; read by the scoring.

``scored`` says what lies where; ``picture_layouts`` how other tools name their pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.layout_paths import picture_places
from srum_ds.evaluation.picture_layouts import LAYOUTS, OWN, Mapped, map_pictures
from srum_ds.evaluation.scored import DRAWN, IMAGES, PROMPTS
from srum_ds.prompts.records import read_records
from srum_ds.types import Prompt

SCHEMA = 1
LAYOUT = "layout"
"""In ``drawn.json``, the layout that the pictures were drawn in, where it is not this program's own."""
INDEX = "index.jsonl"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
# Other layouts' grid of a prompt's pictures, beside them.
GRIDS = ("grid.png",)
SHOWN = 5


class Picture(NamedTuple):
    """A picture that is there. sample: which of the prompt's, from 0."""

    prompt: Prompt
    sample: int
    path: Path


@dataclass(frozen=True)
class PictureFolder:
    """A folder's prompts and pictures.

    samples: pictures that each prompt should have. drawn: what ``drawn.json`` says, None where another tool drew.
    found: (prompt's id, sample) -> path. strangers: files that are no picture of a known prompt, and why; pictures of
    prompts that were left out on purpose are none, and ``left_out`` counts them.
    """

    folder: Path
    prompts: tuple[Prompt, ...]
    samples: int
    layout: str
    drawn: Mapping[str, Any] | None
    found: Mapping[tuple[str, int], Path]
    strangers: Mapping[Path, str]
    left_out: int = 0

    @classmethod
    def open(cls, folder: Path, prompts: Sequence[Prompt] | None = None) -> PictureFolder:
        """Reads a folder; ``prompts``: those that are meant (default: the folder's own ``prompts.jsonl``).

        Raises UserError for a folder that is not there or holds no prompts while none are given, whose prompts of the
        same id have another text than those given, and where no picture fits any prompt.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; `srum-ds eval draw ... --out {folder}` draws pictures into it")
        own = read_records(folder / PROMPTS) if (folder / PROMPTS).exists() else None
        if own is None and prompts is None:
            raise UserError(
                f"{folder}: says nothing of its prompts (no {PROMPTS}): name the benchmark that it was drawn for by "
                "--benchmark, and its files by --prompts"
            )
        meant = tuple(prompts if prompts is not None else own or ())
        known = {prompt.id: prompt for prompt in own or ()}
        for prompt in meant:
            other = known.setdefault(prompt.id, prompt)
            if other.text != prompt.text:
                raise UserError(
                    f"{folder / PROMPTS}: the prompt {prompt.id!r} is {other.text!r} there, but {prompt.text!r} in the "
                    "prompts that were given: they are of another benchmark, or another version of it"
                )
        drawn = read_drawn(folder)
        files, strangers = _files(folder)
        layout = None if drawn is None else drawn.get(LAYOUT)
        if layout is None or own is None:
            mapped = map_pictures(folder, files, list(known.values()))
        else:
            mapped = _placed(layout, folder, files, own, int((drawn or {})["samples"]))
        strangers |= mapped.strangers
        ids = {prompt.id for prompt in meant}
        found = {key: path for key, path in mapped.found.items() if key[0] in ids}
        samples = _samples(folder, drawn, found)
        for key in [key for key in found if key[1] >= samples]:
            strangers[found.pop(key)] = f"{folder / DRAWN} says that a prompt has {samples} pictures"
        left_out = len(set(mapped.found.values()) - set(found.values()) - set(strangers))
        return cls(folder, meant, samples, mapped.layout, drawn, found, strangers, left_out)

    def pictures(self) -> list[Picture]:
        """The pictures that are there, in the order of the prompts and then of the samples."""
        return [
            Picture(prompt, sample, self.found[prompt.id, sample])
            for prompt in self.prompts
            for sample in range(self.samples)
            if (prompt.id, sample) in self.found
        ]

    def missing(self) -> list[tuple[Prompt, int]]:
        """(prompt, sample) of the pictures that are not there, in the same order."""
        return [
            (prompt, sample)
            for prompt in self.prompts
            for sample in range(self.samples)
            if (prompt.id, sample) not in self.found
        ]

    def lines(self) -> list[str]:
        """What a person should know of a folder that is not as it should be: what is missing, and each stranger."""
        said = []
        missing = self.missing()
        if missing:
            named = ", ".join(f"{prompt.id} ({sample})" for prompt, sample in missing[:SHOWN])
            said.append(f"{self.folder}: {len(missing)} of {len(self.prompts) * self.samples} pictures are missing:")
            said[-1] += f" {named}{' ...' if len(missing) > SHOWN else ''}"
        if self.strangers:
            said.append(f"{self.folder}: {len(self.strangers)} files are no picture of these prompts:")
            shown = sorted(self.strangers.items())[:SHOWN]
            said += [f"  {path.relative_to(self.folder)}: {why}" for path, why in shown]
            if len(self.strangers) > SHOWN:
                said.append(f"  and {len(self.strangers) - SHOWN} more")
        return said


def _placed(layout: str, folder: Path, files: Sequence[Path], prompts: Sequence[Prompt], samples: int) -> Mapped:
    """The files of a folder that was drawn in another tool's layout, by the one place that each picture has."""
    places = {path: key for key, path in picture_places(layout, folder, prompts, samples).items()}
    found = {places[path]: path for path in files if path in places}
    strangers = {path: f"is none of those that were drawn ({LAYOUTS[layout]})" for path in files if path not in places}
    return Mapped(layout, found, strangers)


def write_index(folder: PictureFolder, seed: int) -> None:
    """Writes ``index.jsonl``, a line for each picture that is there: its file, prompt, sample and seed."""
    lines = [
        {
            "file": path.relative_to(folder.folder).as_posix(),
            "prompt": prompt.text,
            "seed": seed,
            "sample": sample,
            "id": prompt.id,
            "category": prompt.category,
        }
        for prompt, sample, path in folder.pictures()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(folder.folder / INDEX, text)


def read_drawn(folder: Path) -> dict[str, Any] | None:
    """What ``drawn.json`` says, None where there is none. UserError for one that this program did not write."""
    path = folder / DRAWN
    if not path.exists():
        return None
    try:
        record = parse_json(file_bytes(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it if another tool drew the pictures") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("samples"), int):
        raise UserError(
            f'{path}: expected an object with "schema": {SCHEMA} and "samples", as `srum-ds eval draw` writes it; '
            "remove it if another tool drew the pictures"
        )
    if record.get(LAYOUT, OWN) not in LAYOUTS:
        raise UserError(f"{path}: the layout {record[LAYOUT]!r} is unknown; known are {', '.join(LAYOUTS)}")
    return record


def write_drawn(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``drawn.json`` in one step: ``facts`` as JSON, with the schema's number."""
    write_atomic(folder / DRAWN, json.dumps({"schema": SCHEMA, **facts}, indent=2, ensure_ascii=False) + "\n")


def _samples(folder: Path, drawn: Mapping[str, Any] | None, found: Mapping[tuple[str, int], Path]) -> int:
    if drawn is not None:
        return int(drawn["samples"])
    return 1 + max((sample for _, sample in found), default=0)


def _files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """PNG files that may be pictures, and what else lies where pictures are expected."""
    files: list[Path] = []
    strangers: dict[Path, str] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in place.parts) or path.name in GRIDS:
            continue
        if path.suffix == ".png":
            files.append(path)
        elif path.suffix.lower() in PICTURES:
            strangers[path] = "is no .png file: convert it"
        elif place.parts[0] == IMAGES and len(place.parts) > 1:
            strangers[path] = "is no picture"
    return files, strangers


__all__ = ["OWN", "Picture", "PictureFolder", "read_drawn", "write_drawn"]
