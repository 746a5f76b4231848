"""Supervised examples about scenes: captions, and questions with their one-word answers.

The texts here are the ones that the training loop's judge asks; every caption and every prompt inside a
question belongs to the training split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from srum_ds.worlds.shapes.checker import detect
from srum_ds.worlds.shapes.render import render_scenes, scene_array
from srum_ds.worlds.shapes.vocabulary import CELLS, COLORS, DIRECTION_OF, GRID, KINDS, RELATIONS, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import (
    CELL,
    PICTURE,
    Scene,
    ShapePrompt,
    Slot,
    Visible,
    alter_prompt,
    alter_slot,
    has_held_out_pair,
    is_valid,
    mutate_scene,
    paraphrase,
    random_prompt,
    random_scene,
    relation_holds,
    satisfies,
    split_of,
)

MATCH_QUESTIONS = 5
EXIST_QUESTIONS = 3
OPEN_QUESTIONS = 4
CROP_QUESTIONS = 4
ALTERED_CAPTIONS = 2

MUTATED_SHARE = 0.55
TWICE_MUTATED_SHARE = 0.25
STRUCTURE_SHARE = 0.5
"""Share of hard negatives that change a relation, a count or a binding rather than one attribute."""

CLEAR_MARGIN = 8.0
"""Pixels by which a direction must win over the other axis before "which way" is asked."""

_KIND_WEIGHTS = {"color": 1.0, "shape": 1.0, "texture": 1.0, "numeracy": 1.0, "spatial": 2.0, "complex": 2.0}

QuestionAnswer = tuple[str, str]


def match_question(prompt_text: str) -> str:
    """The judge's question about a whole image."""
    return f"does the picture show {prompt_text}?"


def exist_question(slot: Slot) -> str:
    """Whether a whole image holds such an object."""
    return f"is there {slot.phrase()}?"


def crop_question(phrase: str) -> str:
    """The judge's question about a cropped region."""
    return f"is this {phrase}?"


def where_question(slot: Slot) -> str:
    """Which cell an object lies in."""
    return f"where is the {slot.noun()}?"


def direction_question(first: Slot, second: Slot) -> str:
    """Which relation the first object has to the second."""
    return f"which way is the {first.noun()} from the {second.noun()}?"


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


# ---------------------------------------------------------------- what an image shows


def visible_objects(scene: Scene) -> list[Visible]:
    """The objects of an image as its pixels show them: broken ones as the checker sees them."""
    if all(thing.flaw is None for thing in scene):
        return list(scene)
    return list(detect(render_scenes([scene])[0]))


def _intact(objects: Sequence[Visible]) -> list[Visible]:
    return [thing for thing in objects if thing.texture and thing.color and thing.shape]


def _slot_of(thing: Visible) -> Slot:
    return Slot(thing.texture, thing.color, thing.shape)


def describe(rng: random.Random, objects: Sequence[Visible], tries: int = 12) -> ShapePrompt | None:
    """A random training prompt that is true of an image; None where none was found."""
    if not 1 <= len(objects) <= 4 or len(_intact(objects)) < len(objects):
        return None
    # Only numeracy and shape prompts can be about other than two objects.
    kinds: Sequence[str] = KINDS if len(objects) == 2 else ("numeracy", "shape")
    weights = [_KIND_WEIGHTS[kind] for kind in kinds]
    for _ in range(tries):
        prompt = _describe_as(rng, rng.choices(kinds, weights)[0], objects)
        if prompt is not None and is_valid(prompt) and split_of(prompt) == "train":
            return prompt
    return None


def _describe_as(rng: random.Random, kind: str, objects: Sequence[Visible]) -> ShapePrompt | None:
    has_texture = kind in ("texture", "complex")
    has_color = kind not in ("texture", "shape")
    things = rng.sample(list(objects), len(objects))
    slots = [
        Slot(thing.texture if has_texture else None, thing.color if has_color else None, thing.shape)
        for thing in things
    ]
    if kind == "numeracy":
        return ShapePrompt(kind, tuple(sorted(slots, key=slots.index)))
    if kind not in ("spatial", "complex"):
        return ShapePrompt(kind, tuple(slots))
    for relation in RELATIONS:
        if relation_holds(relation, things[0], things[1]):
            return ShapePrompt(kind, tuple(slots), relation)
    return None


def understanding_scene(rng: random.Random, scene: Scene) -> Scene:
    """The image to ask about: the scene itself or, more often, a mutation; no held-out pair in it."""
    if rng.random() >= MUTATED_SHARE:
        return scene
    for _ in range(50):
        changed = mutate_scene(rng, scene)
        if rng.random() < TWICE_MUTATED_SHARE:
            changed = mutate_scene(rng, changed)
        if not has_held_out_pair([thing for thing in changed if thing.flaw is None]):
            return changed
    return scene


# ---------------------------------------------------------------- questions


def partial_slot(rng: random.Random, slot: Slot) -> Slot:
    """A full or partial description: texture, colour or shape may go unnamed, never all of them."""
    texture = slot.texture if rng.random() < 0.5 else None
    color = slot.color if rng.random() < 0.8 else None
    shape = slot.shape
    if (texture or color) and rng.random() < 0.15:
        shape = None
    return Slot(texture, color, shape)


def _random_slot(rng: random.Random) -> Slot:
    return Slot(rng.choice(TEXTURES), rng.choice(COLORS), rng.choice(SHAPES))


def match_questions(rng: random.Random, caption: ShapePrompt, objects: Sequence[Visible]) -> list[QuestionAnswer]:
    """Five whole-image questions, about half true: the caption, true descriptions, hard negatives."""

    def hard_negative(prompt: ShapePrompt) -> ShapePrompt:
        return alter_prompt(rng, prompt, attribute_share=1 - STRUCTURE_SHARE)

    first = describe(rng, objects)
    second = describe(rng, objects)
    asked = [caption]
    asked.append(first or hard_negative(caption))
    asked.append(paraphrase(rng, second or caption))
    asked.append(hard_negative(first or caption))
    if second is not None and rng.random() < 0.3:
        asked.append(second)
    else:
        asked.append(hard_negative(second or caption))
    return [(match_question(prompt.text()), _yes_no(satisfies(prompt, objects))) for prompt in asked]


def exist_questions(
    rng: random.Random, caption: ShapePrompt, objects: Sequence[Visible], count: int = EXIST_QUESTIONS
) -> list[QuestionAnswer]:
    """``count`` questions whether an object is there: in turn true, one attribute off, and asked for."""
    good = _intact(objects)
    pairs = []
    for position in range(count):
        if position < 2 and good:
            slot = partial_slot(rng, _slot_of(rng.choice(good)))
        else:
            slot = rng.choice(caption.slots)
        if (position == 1 and good) or (position == 2 and rng.random() < 0.5):
            slot = alter_slot(rng, slot)
        truth = any(slot.fits(thing) for thing in objects)
        pairs.append((exist_question(slot), _yes_no(truth)))
    return pairs


def _unique_slot(rng: random.Random, thing: Visible, objects: Sequence[Visible]) -> Slot | None:
    """A description that fits one object of the image and might fit no other."""
    for attempt in range(4):
        slot = partial_slot(rng, _slot_of(thing)) if attempt < 3 else _slot_of(thing)
        if sum(slot.may_fit(other) for other in objects) == 1:
            return slot
    return None


def cell_name(x: float, y: float) -> str:
    """Name of the cell that a point (pixels) lies in."""
    return CELLS[int(y // CELL) * GRID + int(x // CELL)]


def clear_direction(first: Visible, second: Visible) -> str | None:
    """left, right, above or below where the first object clearly lies so from the second, else None."""
    dx = abs(first.x - second.x)
    dy = abs(first.y - second.y)
    if abs(dx - dy) < CLEAR_MARGIN:
        return None
    for relation in RELATIONS:
        if relation_holds(relation, first, second):
            return DIRECTION_OF[relation]
    return None


def _where(rng: random.Random, objects: Sequence[Visible]) -> QuestionAnswer | None:
    good = _intact(objects)
    for thing in rng.sample(good, len(good)):
        slot = _unique_slot(rng, thing, objects)
        if slot is not None:
            return where_question(slot), cell_name(thing.x, thing.y)
    return None


def _direction(rng: random.Random, objects: Sequence[Visible]) -> QuestionAnswer | None:
    good = _intact(objects)
    for _ in range(4):
        if len(good) < 2:
            return None
        first, second = rng.sample(good, 2)
        answer = clear_direction(first, second)
        slots = _unique_slot(rng, first, objects), _unique_slot(rng, second, objects)
        if answer is not None and slots[0] is not None and slots[1] is not None:
            return direction_question(slots[0], slots[1]), answer
    return None


def open_questions(rng: random.Random, caption: ShapePrompt, objects: Sequence[Visible]) -> list[QuestionAnswer]:
    """Two "where" and two "which way" questions; "is there" where an image has no unique answer."""
    pairs = [_where(rng, objects), _where(rng, objects), _direction(rng, objects), _direction(rng, objects)]
    spare = iter(exist_questions(rng, caption, objects, OPEN_QUESTIONS))
    return [pair if pair is not None else next(spare) for pair in pairs]


def crop_questions(
    rng: random.Random, caption: ShapePrompt, objects: Sequence[Visible]
) -> tuple[list[float], list[QuestionAnswer]]:
    """One box (x0, y0, x1, y1 in pixels, inside the image) and four questions about its crop."""
    good = _intact(objects)
    if objects and rng.random() < 0.95:
        shown = [rng.choice(list(objects))]
        half = rng.uniform(6.5, 9.5)
        halves = (half, half + rng.uniform(-1.0, 1.0))
        x = shown[0].x + rng.uniform(-1.5, 1.5)
        y = shown[0].y + rng.uniform(-1.5, 1.5)
    else:
        halves = (CELL / 2, CELL / 2)
        x = rng.randrange(GRID) * CELL + CELL / 2
        y = rng.randrange(GRID) * CELL + CELL / 2
        shown = [thing for thing in objects if cell_name(thing.x, thing.y) == cell_name(x, y)]
    box = [x - halves[0], y - halves[1], x + halves[0], y + halves[1]]
    inside = [min(max(value, 0.0), float(PICTURE)) for value in box]

    shown_good = _intact(shown)
    asked = []
    for position in range(CROP_QUESTIONS):
        if position < 2 and shown_good:
            slot = partial_slot(rng, _slot_of(shown_good[0]))
        elif position == 3:
            slot = partial_slot(rng, _slot_of(rng.choice(good)) if good else _random_slot(rng))
        else:
            slot = rng.choice(caption.slots)
        if position == 1 or (position == 3 and rng.random() < 0.3):
            slot = alter_slot(rng, slot)
        truth = any(slot.fits(thing) for thing in shown)
        asked.append((crop_question(slot.phrase()), _yes_no(truth)))
    return inside, asked


# ---------------------------------------------------------------- examples


def build_examples(seed: int, n: int) -> dict[str, Any]:
    """``n`` supervised examples, the same for the same seed.

    Arrays: ``scene`` int8 [n, 5, 16] (the image the caption is true of), ``shown`` int8 [n, 5, 16] (the
    image the questions are about), ``crop_box`` float32 [n, 4] (pixels of that image). Texts: ``caption``
    [n]; ``altered`` [n][2]; ``match_question`` and ``match_answer`` [n][5]; ``exist_*`` [n][3]; ``open_*``
    [n][4] (two "where", two "which way"); ``crop_*`` [n][4].
    """
    rng = random.Random(f"shapes examples {seed}")
    texts: dict[str, list[Any]] = {"caption": [], "altered": []}
    families = ("match", "exist", "open", "crop")
    for family in families:
        texts[f"{family}_question"] = []
        texts[f"{family}_answer"] = []
    scenes = []
    shown = []
    boxes = []
    for _ in range(n):
        caption = random_prompt(rng)
        scene = random_scene(rng, caption)
        picture = understanding_scene(rng, scene)
        objects = visible_objects(picture)
        box, crop = crop_questions(rng, caption, objects)
        pairs = {
            "match": match_questions(rng, caption, objects),
            "exist": exist_questions(rng, caption, objects),
            "open": open_questions(rng, caption, objects),
            "crop": crop,
        }
        scenes.append(scene_array(scene))
        shown.append(scene_array(picture))
        boxes.append(box)
        texts["caption"].append(caption.text())
        texts["altered"].append([alter_prompt(rng, caption).text() for _ in range(ALTERED_CAPTIONS)])
        for family in families:
            texts[f"{family}_question"].append([question for question, _ in pairs[family]])
            texts[f"{family}_answer"].append([answer for _, answer in pairs[family]])
    arrays = {
        "scene": np.stack(scenes),
        "shown": np.stack(shown),
        "crop_box": np.array(boxes, np.float32),
    }
    return {**arrays, **texts}
