"""How the pictures of a folder are named: by this program, and as the benchmarks' own tools name them.

Each layout is a function from a file's path in the folder to what the name says (``Named``), or None where the name is
none of its own. ``map_pictures`` finds the layout of a folder and gives each file its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json
from srum_ds.types import Prompt

OWN, GENEVAL, COMPBENCH, SRUM, WISE = "srum-ds", "GenEval", "T2I-CompBench", "SRUM", "WISE"
LAYOUTS = {
    OWN: "images/ID_000.png (or ID_000.png)",
    GENEVAL: "00000/samples/00000.png",
    COMPBENCH: "samples/PROMPT_000000.png",
    SRUM: "QUESTION_ID.png",
    WISE: "PROMPT_ID.png",
}
"""The known layouts, as a message shows them."""

_OWN = re.compile(r"(?P<name>.+)_(?P<sample>\d{3,})\.png")
_GENEVAL = re.compile(r"(?P<index>\d+)/samples/(?P<sample>\d+)\.png")
_COMPBENCH = re.compile(r"(?P<text>.+)_(?P<number>\d{6})\.png")
_NUMBER = re.compile(r"(?P<number>\d+)\.png")
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class Mapped:
    """Which file shows which prompt. found: (prompt's id, sample) -> path. strangers: path -> why it fits no prompt."""

    layout: str
    found: Mapping[tuple[str, int], Path]
    strangers: Mapping[Path, str]


def map_pictures(folder: Path, files: Sequence[Path], prompts: Sequence[Prompt]) -> Mapped:
    """Gives PNG ``files`` of ``folder`` their prompts, by the layout in which most of them have one.

    A picture of T2I-CompBench's layout, which is named by its text, shows every prompt of that text; those of one text
    are numbered from 0 in the order of their numbers where these run through the folder. Of two files that would be the
    same picture the second is a stranger. Raises UserError naming a file and the layouts where no file has a prompt.
    """
    ordered = sorted(files)
    names = {path: path.relative_to(folder).as_posix() for path in ordered}
    readings = [_mapped(name, names, read(folder, names, prompts)) for name, read in _READERS]
    # The first of equals: sorting is stable.
    best = max(readings, key=lambda reading: len(ordered) - len(reading.strangers))
    if ordered and not best.found:
        raise UserError(
            f"{folder}: none of its {len(ordered)} PNG files is a picture of these {len(prompts)} prompts; the first "
            f"is {names[ordered[0]]}, the first prompt {prompts[0].id!r}. Known layouts: "
            f"{'; '.join(f'{name}: {shown}' for name, shown in LAYOUTS.items())}. Check --benchmark and --prompts."
        )
    return best


_Read = dict[Path, "list[tuple[str, int]] | str"]
"""File -> the pictures that it is, or why it is none."""


def _mapped(layout: str, names: Mapping[Path, str], read: _Read) -> Mapped:
    found: dict[tuple[str, int], Path] = {}
    strangers: dict[Path, str] = {}
    for path, said in read.items():
        if isinstance(said, str):
            strangers[path] = said
            continue
        free = [key for key in said if key not in found]
        if not free:
            strangers[path] = f"shows the same prompt and sample as {names[found[said[0]]]}"
        found |= {key: path for key in free}
    return Mapped(layout, found, strangers)


def _own(folder: Path, names: Mapping[Path, str], prompts: Sequence[Prompt]) -> _Read:
    known = {prompt.id for prompt in prompts}
    read: _Read = {}
    for path, name in names.items():
        place = PurePosixPath(name)
        match = _OWN.fullmatch(place.name)
        if match is None or place.parent.as_posix() not in ("images", "."):
            read[path] = f"is not named {LAYOUTS[OWN]}"
        elif unquote(match["name"]) not in known:
            read[path] = f"there is no prompt {unquote(match['name'])!r}"
        else:
            read[path] = [(unquote(match["name"]), int(match["sample"]))]
    return read


def _geneval(folder: Path, names: Mapping[Path, str], prompts: Sequence[Prompt]) -> _Read:
    by_number = _numbered(prompts)
    texts: dict[str, str | None] = {}
    read: _Read = {}
    for path, name in names.items():
        match = _GENEVAL.fullmatch(name)
        if match is None:
            read[path] = f"is not named {LAYOUTS[GENEVAL]}"
            continue
        index = match["index"]
        if index not in texts:
            texts[index] = _text_of(folder / index / "metadata.jsonl")
        prompt = by_number.get(int(index))
        said = texts[index]
        if prompt is None:
            read[path] = f"there is no prompt of number {int(index)}"
        elif said is not None and said.strip() != prompt.text:
            read[path] = f"its metadata.jsonl says {said!r}, but {prompt.id} is {prompt.text!r}"
        else:
            read[path] = [(prompt.id, int(match["sample"]))]
    return read


def _numbered(prompts: Sequence[Prompt]) -> dict[int, Prompt]:
    """Prompts by the number that their ids end in, as importers make them; by their place where not all have one."""
    numbers = [_LAST_NUMBER.search(prompt.id) for prompt in prompts]
    by_number = {int(match[1]): prompt for match, prompt in zip(numbers, prompts, strict=True) if match is not None}
    return by_number if len(by_number) == len(prompts) else dict(enumerate(prompts))


def _text_of(metadata: Path) -> str | None:
    """The prompt that a folder of GenEval names; None without the file. UserError for a damaged one."""
    if not metadata.is_file():
        return None
    try:
        record = parse_json(file_bytes(metadata).decode("utf-8").strip().split("\n")[0])
        return str(record["prompt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{metadata}: expected one JSON object with "prompt" ({error!r})') from error


def _compbench(folder: Path, names: Mapping[Path, str], prompts: Sequence[Prompt]) -> _Read:
    by_text: dict[str, list[str]] = {}
    for prompt in prompts:
        by_text.setdefault(comparable(prompt.text), []).append(prompt.id)
    read: _Read = {}
    of_text: dict[str, list[tuple[int, Path]]] = {}
    for path, name in names.items():
        place = PurePosixPath(name)
        match = _COMPBENCH.fullmatch(place.name)
        if match is None or place.parent.name not in ("samples", ""):
            read[path] = f"is not named {LAYOUTS[COMPBENCH]}"
        elif comparable(match["text"]) not in by_text:
            read[path] = f"there is no prompt {match['text']!r}"
        else:
            of_text.setdefault(comparable(match["text"]), []).append((int(match["number"]), path))
    numbers = [number for group in of_text.values() for number, _ in group]
    throughout = len(set(numbers)) == len(numbers)
    for text, group in of_text.items():
        for turn, (number, path) in enumerate(sorted(group)):
            read[path] = [(name, turn if throughout else number) for name in by_text[text]]
    return read


def comparable(text: str) -> str:
    """A prompt's text as file names keep it: a "/" cannot stand there, and a full stop is often left out."""
    return " ".join(text.replace("/", "_").split()).rstrip(". ").casefold()


def _srum(folder: Path, names: Mapping[Path, str], prompts: Sequence[Prompt]) -> _Read:
    return _by_number(names, prompts, "question_id", SRUM)


def _wise(folder: Path, names: Mapping[Path, str], prompts: Sequence[Prompt]) -> _Read:
    return _by_number(names, prompts, "prompt_id", WISE)


def _by_number(names: Mapping[Path, str], prompts: Sequence[Prompt], key: str, layout: str) -> _Read:
    """Files whose name is the number that a benchmark's record has under ``key``, kept in ``Prompt.meta``."""
    by_number: dict[int, str] = {}
    for prompt in prompts:
        number = prompt.meta.get(key)
        if isinstance(number, int):
            by_number[number] = prompt.id
    read: _Read = {}
    for path, name in names.items():
        match = _NUMBER.fullmatch(PurePosixPath(name).name)
        if match is None:
            read[path] = f"is not named {LAYOUTS[layout]}"
        elif int(match["number"]) not in by_number:
            read[path] = f"there is no prompt of {key} {int(match['number'])}"
        else:
            read[path] = [(by_number[int(match["number"])], 0)]
    return read


_READERS = ((OWN, _own), (GENEVAL, _geneval), (COMPBENCH, _compbench), (SRUM, _srum), (WISE, _wise))
"""In this order: of layouts that say the same of a folder, the first is meant."""
