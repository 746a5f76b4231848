"""What an image shows, from its pixels alone: no learned part, no knowledge of how it was made."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from srum_ds.types import Prompt
from srum_ds.worlds.shapes.render import object_mask
from srum_ds.worlds.shapes.vocabulary import COLORS, RGB, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import ShapePrompt, Slot, relation_holds

BRIGHT = 0.2
"""A pixel belongs to an object where its brightest channel exceeds this."""

MIN_AREA = 10
MAX_SIDE = 20
MIN_OVERLAP = 0.72
MAX_COLOR_DISTANCE = 0.2
MIN_PURE_SHARE = 0.75
"""Share of an object's light that must be nearest to its colour: two-coloured objects have none."""

_CANVAS = 24
_SHIFT = 2
_PALETTE = np.array([RGB[color] for color in COLORS], np.float32)
_LOOKS = [(shape, texture) for shape in SHAPES for texture in TEXTURES]
_TEMPLATES = np.stack([np.pad(object_mask(shape, texture), 4) for shape, texture in _LOOKS])
_TEMPLATE_SUMS = _TEMPLATES.sum(axis=(1, 2))


@dataclass(frozen=True, slots=True)
class Detected:
    """Something bright in an image. An attribute is None where the pixels do not settle it.

    ``x``, ``y``: centre in pixels. ``box``: x0, y0, x1, y1 in pixels, ends exclusive.
    """

    texture: str | None
    color: str | None
    shape: str | None
    x: float
    y: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Check:
    """How far an image follows a prompt.

    ``exact``: exactly the objects asked for, and the relation. ``objects_exact``: the same without the
    relation. ``partial``: share of attributes and relation met, times the ratio of the counts.
    """

    exact: bool
    partial: float
    objects_exact: bool
    detected: tuple[Detected, ...]


def as_array(image: np.ndarray | Tensor) -> np.ndarray:
    """An image as float32 [H, W, 3] clipped to [0, 1]; also takes a tensor [3, H, W].

    Raises ValueError for another shape. Non-finite values stay, so that the caller sees them.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected an image tensor [3, H, W], got {tuple(image.shape)}")
        image = image.detach().to("cpu", torch.float32).permute(1, 2, 0).numpy()
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an image array [H, W, 3], got {image.shape}")
    return np.clip(image.astype(np.float32), 0.0, 1.0)


def detect(image: np.ndarray | Tensor) -> list[Detected]:
    """Everything bright in an image of values in [0, 1]; nothing where any value is not finite."""
    pixels_HW3 = as_array(image)
    if not np.isfinite(pixels_HW3).all():
        return []
    labels, _ = scipy.ndimage.label(pixels_HW3.max(axis=2) > BRIGHT)
    found = []
    for number, window in enumerate(scipy.ndimage.find_objects(labels), start=1):
        blob = labels[window] == number
        if blob.sum() < MIN_AREA:
            continue
        rows, columns = window
        box = (columns.start, rows.start, columns.stop, rows.stop)
        colors = pixels_HW3[window] * blob[:, :, None]
        color, shape, texture = _describe(colors)
        x = (columns.start + columns.stop) / 2
        y = (rows.start + rows.stop) / 2
        found.append(Detected(texture, color, shape, x, y, box))
    return found


def _describe(colors: np.ndarray) -> tuple[str | None, str | None, str | None]:
    """(color, shape, texture) of one blob [h, w, 3], each None where unclear."""
    height, width = colors.shape[:2]
    if height > MAX_SIDE or width > MAX_SIDE:
        return None, None, None
    light = colors.max(axis=2)
    shape, texture = _nearest_look(light)
    return _nearest_color(colors, light), shape, texture


def _nearest_color(colors: np.ndarray, light: np.ndarray) -> str | None:
    """The palette colour that both the mean and most of the light are nearest to."""
    mean = colors.sum(axis=(0, 1)) / light.sum()
    distances = ((_PALETTE - mean) ** 2).sum(axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] >= MAX_COLOR_DISTANCE:
        return None
    shown = light > 0
    hues = colors[shown] / light[shown][:, None]
    each = ((hues[:, None] - _PALETTE) ** 2).sum(axis=2).argmin(axis=1)
    pure = light[shown][each == nearest].sum()
    return COLORS[nearest] if pure >= MIN_PURE_SHARE * light.sum() else None


def _nearest_look(light: np.ndarray) -> tuple[str | None, str | None]:
    """(shape, texture) of the template with the best overlap (common light / joint light)."""
    height, width = light.shape
    canvas = np.zeros((_CANVAS + 2 * _SHIFT, _CANVAS + 2 * _SHIFT), np.float32)
    top = (canvas.shape[0] - height) // 2
    left = (canvas.shape[1] - width) // 2
    canvas[top : top + height, left : left + width] = light
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (_CANVAS, _CANVAS))
    common = np.minimum(windows[:, :, None], _TEMPLATES).sum(axis=(3, 4))
    joint = windows.sum(axis=(2, 3))[:, :, None] + _TEMPLATE_SUMS - common
    overlap = (common / joint).max(axis=(0, 1))
    best = int(overlap.argmax())
    return _LOOKS[best] if overlap[best] >= MIN_OVERLAP else (None, None)


def check(prompt: ShapePrompt | Prompt, image: np.ndarray | Tensor) -> Check:
    """Judges an image ([H, W, 3] array or [3, H, W] tensor, values in [0, 1]) against a prompt."""
    wanted = _as_shape_prompt(prompt)
    detected = tuple(detect(image))
    met, objects_met, has_relation = _best_match(wanted, detected)
    asked = sum(_named(slot) for slot in wanted.slots)
    total = asked + (wanted.relation is not None)
    same_count = len(detected) == len(wanted.slots)
    larger = max(len(detected), len(wanted.slots))
    objects_exact = same_count and objects_met == asked
    exact = objects_exact and met == total and (has_relation or wanted.relation is None)
    partial = met / total * len(wanted.slots) / larger
    return Check(exact, partial, objects_exact, detected)


def _as_shape_prompt(prompt: ShapePrompt | Prompt) -> ShapePrompt:
    return prompt if isinstance(prompt, ShapePrompt) else ShapePrompt.from_meta(prompt.meta)


def _named(slot: Slot) -> int:
    return sum(value is not None for value in (slot.texture, slot.color, slot.shape))


def _met(slot: Slot, thing: Detected) -> int:
    """How many of the attributes that a slot names an object has."""
    pairs = ((slot.texture, thing.texture), (slot.color, thing.color), (slot.shape, thing.shape))
    return sum(wanted is not None and wanted == shown for wanted, shown in pairs)


def _best_match(prompt: ShapePrompt, detected: Sequence[Detected]) -> tuple[int, int, bool]:
    """(most criteria met, most attributes met, relation met) over assignments of objects to slots."""
    if not detected:
        return 0, 0, False
    met = np.array([[_met(slot, thing) for thing in detected] for slot in prompt.slots])
    rows, columns = scipy.optimize.linear_sum_assignment(met, maximize=True)
    objects_met = int(met[rows, columns].sum())
    if prompt.relation is None:
        return objects_met, objects_met, False
    best, best_relation = objects_met, False
    for first, second in itertools.permutations(range(len(detected)), 2):
        if relation_holds(prompt.relation, detected[first], detected[second]):
            total = int(met[0, first] + met[1, second]) + 1
            if total > best:
                best, best_relation = total, True
    return best, objects_met, best_relation


def region_matches(
    prompt: ShapePrompt | Prompt, image: np.ndarray | Tensor, boxes: Sequence[Sequence[float]] | Tensor
) -> list[bool]:
    """Whether each box (x0, y0, x1, y1 in [0, 1]) shows an object that some phrase asks for.

    A box shows an object where at least half of that object's own box lies inside it.
    """
    slots = _as_shape_prompt(prompt).slots
    pixels_HW3 = as_array(image)
    height, width = pixels_HW3.shape[:2]
    wanted = [thing for thing in detect(pixels_HW3) if any(slot.fits(thing) for slot in slots)]
    rows = boxes.tolist() if isinstance(boxes, Tensor) else boxes
    matches = []
    for x0, y0, x1, y1 in rows:
        region = (x0 * width, y0 * height, x1 * width, y1 * height)
        matches.append(any(_share_inside(thing.box, region) >= 0.5 for thing in wanted))
    return matches


def _share_inside(box: Sequence[float], region: Sequence[float]) -> float:
    across = min(box[2], region[2]) - max(box[0], region[0])
    down = min(box[3], region[3]) - max(box[1], region[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(across, 0.0) * max(down, 0.0) / area
