"""Scenes of coloured shapes: where objects stand, what holds of them, how they go wrong.

An image is 64x64 pixels: 4x4 cells of 16 pixels, each empty or holding one 12 pixel object whose
centre is moved by up to one pixel. Everything about prompts is reachable from here too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from srum_ds.worlds.shapes.prompts import (
    MAX_OBJECTS,
    SPLITS,
    ShapePrompt,
    Slot,
    Visible,
    enumerate_prompts,
    has_held_out_pair,
    is_valid,
    pair_split,
    split_of,
)
from srum_ds.worlds.shapes.variation import alter_prompt, alter_slot, paraphrase, random_prompt, sample_prompts
from srum_ds.worlds.shapes.vocabulary import CELLS, COLORS, GRID, SHAPES, TEXTURES

__all__ = [
    "CELL",
    "FLAWS",
    "JITTERS",
    "PICTURE",
    "SPLITS",
    "Scene",
    "SceneObject",
    "ShapePrompt",
    "Slot",
    "Visible",
    "alter_prompt",
    "alter_slot",
    "break_object",
    "enumerate_prompts",
    "has_held_out_pair",
    "is_valid",
    "mutate_scene",
    "pair_split",
    "paraphrase",
    "random_prompt",
    "random_scene",
    "relation_holds",
    "sample_prompts",
    "satisfies",
    "split_of",
]

PICTURE = 64
CELL = PICTURE // GRID
JITTERS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
FLAWS = ("top_bottom", "left_right", "blend", "top_half", "left_half")
"""Ways an object can be broken: two objects joined, two mixed, or only one half drawn."""

MIN_DISTANCE = 4.0
"""Pixels by which a relation must hold along its axis."""

SAME_LINE_SHARE = 0.7
"""Share of relation scenes drawn in one row or column, so that the layout is learnable."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object in an image. ``cell`` is row-major 0..15, ``jitter`` is (dy, dx) in pixels.

    ``flaw`` is one of FLAWS for a broken object; the joined and mixed ones also need ``second``,
    the other object's attributes.
    """

    texture: str
    color: str
    shape: str
    cell: int
    jitter: tuple[int, int] = (0, 0)
    flaw: str | None = None
    second: Slot | None = None

    @property
    def x(self) -> float:
        """Centre, pixels from the left edge."""
        return self.cell % GRID * CELL + CELL / 2 + self.jitter[1]

    @property
    def y(self) -> float:
        """Centre, pixels from the top edge."""
        return self.cell // GRID * CELL + CELL / 2 + self.jitter[0]

    def slot(self) -> Slot:
        """The object's full description."""
        return Slot(self.texture, self.color, self.shape)


Scene = tuple[SceneObject, ...]


def relation_holds(relation: str, first: Visible, second: Visible) -> bool:
    """Whether ``first`` lies in ``relation`` to ``second``: further along that axis than across it."""
    dx = second.x - first.x
    dy = second.y - first.y
    if relation in ("left of", "right of"):
        along = dx if relation == "left of" else -dx
        across = dy
    else:
        along = dy if relation == "above" else -dy
        across = dx
    return along > MIN_DISTANCE and along > abs(across)


def satisfies(prompt: ShapePrompt, objects: Sequence[Visible]) -> bool:
    """Whether objects are exactly what a prompt asks for: each one, no more, and the relation."""
    slots = prompt.slots
    if len(slots) != len(objects):
        return False
    if prompt.relation is not None:
        return any(
            slots[0].fits(first) and slots[1].fits(second) and relation_holds(prompt.relation, first, second)
            for first, second in (objects, objects[::-1])
        )
    return _assignable(slots, list(objects))


def _assignable(slots: Sequence[Slot], objects: list[Visible]) -> bool:
    if not slots:
        return True
    for position, thing in enumerate(objects):
        if slots[0].fits(thing) and _assignable(slots[1:], objects[:position] + objects[position + 1 :]):
            return True
    return False


@cache
def _cell_pairs(relation: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of cells in a relation: those in one row or column, and the others."""
    aligned: list[tuple[int, int]] = []
    oblique: list[tuple[int, int]] = []
    for first, second in itertools.permutations(range(len(CELLS)), 2):
        a = SceneObject("solid", "red", "circle", first)
        b = SceneObject("solid", "red", "circle", second)
        if relation_holds(relation, a, b):
            in_line = a.x == b.x or a.y == b.y
            (aligned if in_line else oblique).append((first, second))
    return aligned, oblique


def random_scene(rng: random.Random, prompt: ShapePrompt, train: bool = True) -> Scene:
    """An image that a prompt is true of.

    Unnamed textures are solid, unnamed colours random. Where ``train``, no pair of objects in it is
    held out (the prompt itself must then be a training prompt).
    """
    for _ in range(1000):
        slots = [Slot(slot.texture or "solid", slot.color or rng.choice(COLORS), slot.shape) for slot in prompt.slots]
        cells = _random_cells(rng, prompt)
        scene = tuple(
            SceneObject(str(slot.texture), str(slot.color), str(slot.shape), cell, rng.choice(JITTERS))
            for slot, cell in zip(slots, cells, strict=True)
        )
        if not train or not has_held_out_pair(scene):
            return scene
    raise ValueError(f"no training scene shows the held-out prompt {prompt.text()!r}")


def _random_cells(rng: random.Random, prompt: ShapePrompt) -> Sequence[int]:
    if prompt.relation is None:
        return rng.sample(range(len(CELLS)), len(prompt.slots))
    aligned, oblique = _cell_pairs(prompt.relation)
    return rng.choice(aligned if rng.random() < SAME_LINE_SHARE else oblique)


def mutate_scene(rng: random.Random, scene: Scene) -> Scene:
    """An image that differs in one thing.

    An object is dropped, doubled, recoloured, reshaped, retextured, moved, broken, or two objects
    exchange colours or places. May contain held-out pairs: the caller checks.
    """
    objects = list(scene)
    chosen = rng.randrange(len(objects))
    old = objects[chosen]
    operation = rng.random()
    used = {thing.cell for thing in objects}
    free = rng.choice([cell for cell in range(len(CELLS)) if cell not in used])
    if operation < 0.18 and len(objects) > 1:
        del objects[chosen]
    elif operation < 0.36 and len(objects) < MAX_OBJECTS + 1:
        like = rng.choice(objects).slot()
        if rng.random() < 0.4:
            like = Slot(rng.choice(TEXTURES), rng.choice(COLORS), rng.choice(SHAPES))
        extra = SceneObject(str(like.texture), str(like.color), str(like.shape), free, rng.choice(JITTERS))
        objects.append(extra)
    elif operation < 0.46:
        objects[chosen] = replace(old, color=rng.choice(COLORS))
    elif operation < 0.56:
        objects[chosen] = replace(old, shape=rng.choice(SHAPES))
    elif operation < 0.61:
        objects[chosen] = replace(old, texture=rng.choice(TEXTURES))
    elif operation < 0.70:
        objects[chosen] = replace(old, cell=free)
    elif operation < 0.80 and len(objects) == 2:
        first, second = objects
        if rng.random() < 0.5:
            objects = [replace(first, color=second.color), replace(second, color=first.color)]
        else:
            objects = [replace(first, cell=second.cell), replace(second, cell=first.cell)]
    else:
        objects[chosen] = break_object(rng, old)
    return tuple(objects)


def break_object(rng: random.Random, thing: SceneObject) -> SceneObject:
    """A broken form of an object: joined to or mixed with another one, or only half of it."""
    flaw = rng.choice(FLAWS)
    if flaw in ("top_half", "left_half"):
        return replace(thing, flaw=flaw)
    shape = rng.choice([shape for shape in SHAPES if shape != thing.shape])
    same_color = flaw != "blend" and rng.random() < 0.5
    color = thing.color if same_color else rng.choice(COLORS)
    return replace(thing, flaw=flaw, second=Slot(rng.choice(TEXTURES), color, shape))
