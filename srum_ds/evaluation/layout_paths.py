"""Where a drawn set's pictures go: in this program's own layout, or in that of a benchmark's tools.

``picture_layouts`` reads such folders without knowing who wrote them; here each picture has its one place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.evaluation.picture_layouts import COMPBENCH, GENEVAL, OWN, WISE, comparable
from srum_ds.evaluation.scored import picture_path
from srum_ds.types import Prompt

NAMES = {"plain": OWN, "geneval": GENEVAL, "wise": WISE, "compbench": COMPBENCH}
"""``--layout`` -> what ``picture_layouts`` calls it."""
METADATA = "metadata.jsonl"
LONGEST_TEXT = 230
"""Bytes of a text that, with its number and as a half-written file, still makes a file's name on Linux (255)."""
_GENEVAL_ID = re.compile(r"geneval-(\d+)")

Places = Mapping[tuple[str, int], Path]
"""(prompt's id, sample) -> the picture's path."""


def picture_places(layout: str, folder: Path, prompts: Sequence[Prompt], samples: int) -> Places:
    """The path of every picture; none stands twice.

    ``srum-ds``: images/ID_000.png. ``GenEval``: NUMBER/samples/00000.png, the number being the prompt's own in GenEval
    or its place, from 0. ``T2I-CompBench``: samples/TEXT_000000.png, numbered through the folder. ``WISE``:
    NUMBER.png, the prompt's own number in WISE or its place, from 1. Raises UserError where the layout has no place
    for a picture.
    """
    if layout == OWN:
        return {(p.id, k): picture_path(folder, p.id, k) for p in prompts for k in range(samples)}
    if layout == GENEVAL:
        numbers = geneval_numbers(prompts)
        return {
            (p.id, k): folder / f"{number:05d}" / "samples" / f"{k:05d}.png"
            for p, number in zip(prompts, numbers, strict=True)
            for k in range(samples)
        }
    if layout == WISE:
        if samples > 1:
            raise UserError(f"--samples {samples}: WISE's tools know one picture of a prompt; give --samples 1.")
        return {(p.id, 0): folder / f"{number}.png" for p, number in zip(prompts, _wise_numbers(prompts), strict=True)}
    _refuse_unnameable(prompts)
    return {
        (p.id, k): folder / "samples" / f"{_in_a_name(p.text)}_{place * samples + k:06d}.png"
        for place, p in enumerate(prompts)
        for k in range(samples)
    }


def geneval_numbers(prompts: Sequence[Prompt]) -> list[int]:
    """The folder of each prompt in GenEval's layout."""
    matches = [_GENEVAL_ID.fullmatch(prompt.id) for prompt in prompts]
    if all(match is not None for match in matches):
        return [int(match[1]) for match in matches if match is not None]
    return list(range(len(prompts)))


def write_beside(layout: str, folder: Path, prompts: Sequence[Prompt]) -> None:
    """Writes what a layout's tools read beside the pictures: in GenEval's, each prompt's ``metadata.jsonl``."""
    if layout != GENEVAL:
        return
    for prompt, number in zip(prompts, geneval_numbers(prompts), strict=True):
        path = folder / f"{number:05d}" / METADATA
        if not path.exists():
            write_atomic(path, json.dumps(_record(prompt), ensure_ascii=False) + "\n")


def _record(prompt: Prompt) -> dict[str, Any]:
    """GenEval's own record of a prompt; of any other prompt what GenEval would call its text and kind."""
    if "include" in prompt.meta:
        return {key: value for key, value in prompt.meta.items() if key != "counts"}
    return {"tag": prompt.category, "prompt": prompt.text}


def _wise_numbers(prompts: Sequence[Prompt]) -> list[int]:
    own = [prompt.meta.get("prompt_id") for prompt in prompts]
    numbers = [number for number in own if isinstance(number, int)]
    whole = len(numbers) == len(prompts) == len(set(numbers))
    return numbers if whole else list(range(1, len(prompts) + 1))


def _in_a_name(text: str) -> str:
    return text.replace("/", "_")


def _refuse_unnameable(prompts: Sequence[Prompt]) -> None:
    """UserError naming the first prompt whose text makes no file's name of its own."""
    seen: dict[str, str] = {}
    for prompt in prompts:
        key, text = comparable(prompt.text), prompt.text
        if key in seen:
            raise UserError(
                f"--layout compbench names pictures by their prompts, and {text!r} and {seen[key]!r} make the same "
                "name: leave one of them out, or take another layout."
            )
        seen[key] = text
        if len(text.encode()) > LONGEST_TEXT or text.startswith(".") or set(text) & {"\0", "\n"}:
            raise UserError(
                f"--layout compbench names pictures by their prompts, and {text[:60]!r} makes no file's name (at most "
                f"{LONGEST_TEXT} bytes in one line, not beginning with a full stop): take another layout."
            )
