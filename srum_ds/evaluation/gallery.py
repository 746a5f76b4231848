"""The picture of before and after in an export: base beside trained, prompts that nobody chose by looking."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.image_files import open_picture, read_image
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.model_card import BASE, TRAINED
from srum_ds.evaluation.picture_folder import PictureFolder
from srum_ds.monitoring.images import Shown, comparison

WIDEST = 900
"""Pixels: a card's picture is for looking at, and travels with the weights."""
GALLERY_ROWS = 8
SAMPLES = "samples"
"""In a run's folder; a showing of the fixed prompts after 20 steps is ``fixed_000020.json`` there."""


def fixed_gallery(run_dir: Path, step: int, weights: str) -> Image.Image | None:
    """The run's fixed prompts before the first step and after ``step`` steps; None where either was not kept.

    weights: ``ema`` or ``live``, which the later ones must have been drawn with.
    """
    before = _showing(run_dir, 0, None)
    after = _showing(run_dir, step, weights)
    pairs = [(text, before[text], path) for text, path in after.items() if text in before] if step > 0 else []
    return _beside(pairs)


def _beside(pairs: Sequence[tuple[str, Path, Path]]) -> Image.Image | None:
    """(prompt, base's picture, trained one's) as a page; None without one that can be read."""
    rows = []
    for text, base, trained in pairs:
        try:
            sides = [Shown(read_image(base)), Shown(read_image(trained))]
        except UserError:
            # A card is no reason to lose an export: what is damaged is not shown.
            continue
        rows.append((text, sides))
        if len(rows) == GALLERY_ROWS:
            break
    return comparison(rows, [BASE, TRAINED]) if rows else None


def _showing(run_dir: Path, step: int, weights: str | None) -> Mapping[str, Path]:
    """Prompt -> its picture, of a kept showing; nothing where there is none, or one of other weights."""
    folder = run_dir / SAMPLES
    try:
        record = parse_json(file_bytes(folder / f"fixed_{step:06d}.json"))
        if record["format"] != 1 or weights not in (None, record["weights"]):
            return {}
        return {str(image["text"]): folder / str(image["picture"]) for image in record["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def picture_of(path: Path) -> Image.Image | None:
    """A picture's file, None where there is none that can be read."""
    try:
        return open_picture(path)
    except UserError:
        return None


def benchmark_gallery(folder: Path) -> Image.Image | None:
    """Base beside trained on the first prompts of a benchmark's categories in turn."""
    try:
        sides = [PictureFolder.open(folder / side) for side in (BASE, TRAINED)]
    except UserError:
        return None
    turns: dict[str, int] = {}
    ordered: list[tuple[int, int]] = []
    for place, prompt in enumerate(sides[1].prompts):
        turn = turns.get(prompt.category, 0)
        turns[prompt.category] = turn + 1
        ordered.append((turn, place))
    prompts = [sides[1].prompts[place] for _, place in sorted(ordered)]
    base, trained = (side.found for side in sides)
    keys = [(prompt.text, (prompt.id, 0)) for prompt in prompts]
    return _beside([(text, base[key], trained[key]) for text, key in keys if key in base and key in trained])


def save_gallery(path: Path, picture: Image.Image) -> None:
    """Writes a gallery as a PNG of ``WIDEST`` pixels at most."""
    if picture.width > WIDEST:
        height = round(picture.height * WIDEST / picture.width)
        picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
