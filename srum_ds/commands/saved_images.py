"""The PNG files that `srum-ds generate` writes: their names, and what each says about how it was made."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_NAME = 60


@dataclass(frozen=True)
class SavedImage:
    """One image that was written: where, and the prompt, number and plan that it was drawn by."""

    path: Path
    prompt: str
    number: int
    plan: str | None


def output_paths(
    out: Path, prompts: Sequence[str], edits: Sequence[Path | None], seed: int, count: int, force: bool
) -> list[Path]:
    """The files of ``count`` images of each prompt, in the order in which they are drawn.

    edits: the image that each prompt edits, if any. Raises UserError where the folder cannot be written, where two
    prompts are the same, and for a file that is there already unless ``force``.
    """
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file; give a folder.")
    if not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} is not writable for you; choose another folder.")
    names = [_name(text, edit) for text, edit in zip(prompts, edits, strict=True)]
    if len(set(names)) < len(names):
        raise UserError("the same prompt is given twice: raise --count instead.")
    paths = [out / f"{name}-seed{seed}-{number}.png" for name in names for number in range(count)]
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{there[0]} is there already: choose another --out or --seed, or pass --force.")
    return paths


def _name(text: str, edit: Path | None) -> str:
    """A file name that says the prompt; a hash tells prompts apart that look alike in it."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_NAME] or "picture"
    if edit is None and text.replace(" ", "-") == slug:
        return slug
    identity = text if edit is None else f"{text}|{edit}"
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"


def save(image: SavedImage, pixels_CHW: Tensor, about: Mapping[str, Any]) -> None:
    """Writes an image in [0, 1] with its prompt, number, plan and ``about`` as text chunks; a None is left out."""
    from srum_ds.common.image_files import write_image

    said = {"prompt": image.prompt, "number": image.number, "plan": image.plan, **about}
    write_image(image.path, pixels_CHW, {name: value for name, value in said.items() if value is not None})
