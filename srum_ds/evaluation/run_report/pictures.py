"""The fixed prompts before, during and after training, with what the judge said, for the page; and former grids."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srum_ds.evaluation.report_html.thumbnails import Thumbnails, overlay
from srum_ds.evaluation.run_report.facts import RunFacts
from srum_ds.rollouts.fixed_records import SAMPLES, WEIGHTS_MAP, SeenImage, Shown

COLUMNS = 4
"""Most showings of a prompt that stand side by side: the first, the last and those evenly between."""

GOOD = np.array([26, 108, 229])
BAD = np.array([230, 81, 0])
STRONGEST = 0.75
"""Opacity of the map where it is farthest from neutral."""

EXTREMES = 4


def chosen(showings: Sequence[Shown], most: int = COLUMNS) -> list[Shown]:
    """The first, the last and evenly spaced showings between them, ``most`` at most."""
    if len(showings) <= most:
        return list(showings)
    places = [round(number * (len(showings) - 1) / (most - 1)) for number in range(most)]
    return [showings[place] for place in places]


def fixed_section(facts: RunFacts, thumbnails: Thumbnails) -> dict[str, Any]:
    """The prompts with their images at the chosen showings, the scale of the maps, and what is not shown."""
    recorded = [shown for shown in facts.showings if shown.showing is not None]
    used = chosen(recorded)
    images = [image for shown in used if shown.showing is not None for image in shown.showing.images]
    neutral = 1.0 if any(s.showing and s.showing.map_kind == WEIGHTS_MAP for s in used) else 0.0
    scale = max([1.0, *(abs(value - neutral) for image in images for row in image.map for value in row)])
    prompts: dict[str, dict[str, Any]] = {}
    for shown in used:
        if shown.showing is None:
            continue
        for image in shown.showing.images:
            prompt = prompts.setdefault(
                image.id, {"text": image.text, "category": image.category, "id": image.id, "sides": []}
            )
            folder = facts.run_dir / SAMPLES
            cell = card(image, folder, thumbnails, neutral, scale)
            prompt["sides"].append({"when": when(shown.number, facts), **cell})
    for prompt in prompts.values():
        scores = [side["value"] for side in prompt["sides"]]
        known = len(scores) > 1 and scores[0] is not None and scores[-1] is not None
        change = round(scores[-1] - scores[0], 2) if known else 0.0
        prompt["change"] = f"{change:+.2f}" if change else "unchanged" if known else ""
        prompt["way"] = "up" if change > 0 else "down" if change < 0 else ""
    return {
        "prompts": list(prompts.values()),
        "showings": len(recorded),
        "used": len(used),
        "columns": max((len(prompt["sides"]) for prompt in prompts.values()), default=1),
        "maps": any(image.map for image in images),
        "scale": f"{scale:.2g}",
        "weights": neutral == 1.0,
        "base_missing": bool(used) and used[0].number != 0,
        "first": used[0].number if used else 0,
    }


def when(step: int, facts: RunFacts) -> str:
    """A showing's heading."""
    if step == 0:
        return "before training"
    count = "1 step" if step == 1 else f"{step} steps"
    return f"after all {count}" if step == facts.steps_wanted else f"after {count}"


def card(image: SeenImage, folder: Path, thumbnails: Thumbnails, neutral: float, scale: float) -> dict[str, Any]:
    """One image of the page: its picture, boxes, map, score and the judge's words."""
    boxes = [{"box": box.box, "label": box.phrase or "no phrase", "score": box.score} for box in image.boxes]
    words = [f"Whole image: {image.reply}"] if image.reply else []
    words += [f"{box.phrase or 'Region without a phrase'}: {box.reply}" for box in image.boxes if box.reply]
    if image.missing:
        words.append(f"Share of asked-for objects that no region shows: {image.missing:.0%}")
    return {
        "text": image.text,
        "category": image.category,
        "id": image.id,
        "value": image.score,
        "score": "no score" if image.score is None else f"{image.score:+.2f}",
        "share": None if image.score is None else round(50 * (1 + max(-1.0, min(1.0, image.score))), 1),
        "finite": image.finite,
        "words": "\n".join(words),
        "picture": thumbnails.of(folder / image.picture) if image.finite else None,
        "boxes": overlay(boxes),
        "map": map_source(image.map, neutral, scale) if image.map else "",
    }


def map_source(rows: Sequence[Sequence[float]], neutral: float, scale: float) -> str:
    """``map_picture`` as a data URI."""
    stream = io.BytesIO()
    map_picture(rows, neutral, scale).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def map_picture(rows: Sequence[Sequence[float]], neutral: float, scale: float) -> Image.Image:
    """A map in RGBA, one pixel a token: blue above ``neutral``, orange below, clear where it is neutral.

    scale: the distance from neutral at which it is as strong as it gets.
    """
    values = np.asarray(rows, dtype=np.float64) - neutral
    colours = np.where(values[..., None] > 0, GOOD, BAD)
    opacity = np.clip(np.abs(values) / scale, 0, 1) * STRONGEST * 255
    pixels = np.concatenate([colours, opacity.round()[..., None]], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def extremes(facts: RunFacts, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """The best and the worst images of the last showing, by the score of the whole image."""
    recorded = [shown for shown in facts.showings if shown.showing is not None]
    if not recorded or recorded[-1].showing is None:
        return []
    known = [image for image in recorded[-1].showing.images if image.score is not None]
    known.sort(key=lambda image: -(image.score or 0.0))
    count = min(EXTREMES, len(known) // 2)
    if count == 0:
        return []
    folder = facts.run_dir / SAMPLES
    cards = [card(image, folder, thumbnails, 0.0, 1.0) for image in known]
    of = f"of {len(known)} fixed prompts, {when(recorded[-1].number, facts)}"
    return [
        {"title": "Highest scores", "of": of, "cards": [{**c, "map": ""} for c in cards[:count]]},
        {"title": "Lowest scores", "of": of, "cards": [{**c, "map": ""} for c in cards[::-1][:count]]},
    ]


def grids(facts: RunFacts, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Grids of showings that have no record (of a former version, or damaged): the first, the last, some between."""
    bare = [shown for shown in facts.showings if shown.showing is None and shown.grid is not None]
    found: list[dict[str, Any]] = [
        {"when": when(shown.number, facts), "picture": thumbnails.of(shown.grid), "boxes": []} for shown in chosen(bare)
    ]
    return [grid for grid in found if grid["picture"] is not None]
