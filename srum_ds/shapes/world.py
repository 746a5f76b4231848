"""Prompts and scenes of coloured shapes, and which split each prompt belongs to.

A picture is 64x64 pixels: 4x4 cells of 16 pixels, each empty or holding one 12 pixel object whose
centre is moved by up to one pixel.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from srum_ds.errors import UserError
from srum_ds.models.base import Prompt
from srum_ds.shapes.vocabulary import (
    CELLS,
    COLORS,
    GRID,
    INVERSE_RELATION,
    KINDS,
    NUMBERS,
    PLURALS,
    RELATIONS,
    SHAPES,
    TEXTURES,
)

PICTURE = 64
CELL = PICTURE // GRID
JITTERS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
SPLITS = ("train", "validation", "test")
FLAWS = ("top_bottom", "left_right", "blend", "top_half", "left_half")
"""Ways an object can be broken: two objects joined, two mixed, or only one half drawn."""

MAX_OBJECTS = 4
MIN_DISTANCE = 4.0
"""Pixels by which a relation must hold along its axis."""

SAME_LINE_SHARE = 0.7
"""Share of relation scenes drawn in one row or column, so that the layout is learnable."""

_PAIR_COUNTS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


class Visible(Protocol):
    """Anything with attributes (None: unknown) and a centre in pixels."""

    @property
    def texture(self) -> str | None: ...
    @property
    def color(self) -> str | None: ...
    @property
    def shape(self) -> str | None: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """One object as words ask for it; None means that any value will do."""

    texture: str | None = None
    color: str | None = None
    shape: str | None = None

    def noun(self) -> str:
        """The description without an article: ``striped red circle``, ``red object``."""
        words = [word for word in (self.texture, self.color) if word is not None]
        return " ".join([*words, self.shape or "object"])

    def phrase(self) -> str:
        """The description with its article: ``a striped red circle``."""
        return f"a {self.noun()}"

    def fits(self, thing: Visible) -> bool:
        """Whether ``thing`` certainly has every attribute asked for."""
        if self.shape is not None and self.shape != thing.shape:
            return False
        if self.color is not None and self.color != thing.color:
            return False
        return self.texture is None or self.texture == thing.texture

    def may_fit(self, thing: Visible) -> bool:
        """As ``fits``, where an unknown attribute of ``thing`` might be any."""
        if self.shape is not None and thing.shape not in (None, self.shape):
            return False
        if self.color is not None and thing.color not in (None, self.color):
            return False
        return self.texture is None or thing.texture in (None, self.texture)

    def order(self) -> tuple[str, str, str]:
        """A sort key."""
        return (self.texture or "", self.color or "", self.shape or "")


@dataclass(frozen=True, slots=True)
class ShapePrompt:
    """A prompt: its kind, its objects in the order of the text, and a relation of first to second.

    A numeracy prompt repeats a slot once for each object of that type.
    """

    kind: str
    slots: tuple[Slot, ...]
    relation: str | None = None

    def types(self) -> list[tuple[Slot, int]]:
        """Distinct slots in the order of the text, each with its count."""
        return list(Counter(self.slots).items())

    def text(self) -> str:
        """The prompt as plain lower-case English."""
        if self.kind == "numeracy":
            return " and ".join(_counted(slot, count) for slot, count in self.types())
        phrases = [slot.phrase() for slot in self.slots]
        if self.relation is not None:
            return f"{phrases[0]} {self.relation} {phrases[1]}"
        return " and ".join(phrases)

    def phrases(self) -> tuple[str, ...]:
        """The distinct object phrases, singular."""
        return tuple(slot.phrase() for slot, _ in self.types())

    def to_prompt(self, id: str) -> Prompt:
        """The prompt as the training loop knows it; ``meta`` holds plain lists and strings only."""
        slots = [[slot.texture, slot.color, slot.shape] for slot in self.slots]
        meta = {"kind": self.kind, "slots": slots, "relation": self.relation}
        return Prompt(id=id, text=self.text(), category=self.kind, phrases=self.phrases(), meta=meta)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> ShapePrompt:
        """Rebuilds a prompt from the ``meta`` of ``to_prompt``; UserError where that is not one."""
        missing = [key for key in ("kind", "slots", "relation") if key not in meta]
        if missing:
            raise UserError(
                f"a prompt's meta lacks {', '.join(missing)}: the shapes checker needs kind, slots and "
                "relation, as `srum-ds shards` writes them"
            )
        try:
            slots = tuple(Slot(texture, color, shape) for texture, color, shape in meta["slots"])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a prompt's meta.slots is {meta['slots']!r}: expected a list of [texture, color, shape]"
            ) from error
        prompt = cls(meta["kind"], slots, meta["relation"])
        if not is_valid(prompt):
            raise UserError(f"a prompt's meta is not a prompt of the shapes world: {dict(meta)!r}")
        return prompt

    def meaning(self) -> tuple[Any, ...]:
        """A key that is equal exactly for prompts of one kind that ask for the same picture."""
        if self.relation is None:
            return (self.kind, tuple(sorted(self.slots, key=Slot.order)), None)
        if self.relation in ("right of", "below"):
            return (self.kind, self.slots[::-1], INVERSE_RELATION[self.relation])
        return (self.kind, self.slots, self.relation)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object in a picture. ``cell`` is row-major 0..15, ``jitter`` is (dy, dx) in pixels.

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


def _counted(slot: Slot, count: int) -> str:
    shape = slot.shape if count == 1 else PLURALS[slot.shape or ""]
    return f"{NUMBERS[count - 1]} {slot.color} {shape}"


# ---------------------------------------------------------------- which prompts exist

_NEEDS = {
    "color": (False, True),
    "shape": (False, False),
    "texture": (True, False),
    "spatial": (False, True),
    "numeracy": (False, True),
    "complex": (True, True),
}
"""For each kind: whether its phrases name a texture, and a colour."""


def _slots_of(kind: str) -> list[Slot]:
    has_texture, has_color = _NEEDS[kind]
    textures: Sequence[str | None] = TEXTURES if has_texture else (None,)
    colors: Sequence[str | None] = COLORS if has_color else (None,)
    return [Slot(*values) for values in itertools.product(textures, colors, SHAPES)]


def is_valid(prompt: ShapePrompt) -> bool:
    """Whether a prompt is one of the world's: right attributes, count, relation, distinct objects."""
    kind = prompt.kind
    slots = prompt.slots
    if kind not in KINDS:
        return False
    if (prompt.relation in RELATIONS) != (kind in ("spatial", "complex")):
        return False
    if prompt.relation is not None and prompt.relation not in RELATIONS:
        return False
    allowed = _allowed(kind)
    if any(slot not in allowed for slot in slots):
        return False
    if kind == "numeracy":
        types = prompt.types()
        grouped = tuple(slot for slot, count in types for _ in range(count))
        return 1 <= len(types) <= 2 and len(slots) <= MAX_OBJECTS and grouped == slots
    if kind == "shape":
        return len(slots) in (2, 3) and len(set(slots)) == len(slots)
    if len(slots) != 2:
        return False
    if kind == "texture":
        return slots[0] != slots[1]
    return (slots[0].color, slots[0].shape) != (slots[1].color, slots[1].shape)


@lru_cache(maxsize=None)
def _allowed(kind: str) -> frozenset[Slot]:
    return frozenset(_slots_of(kind))


def enumerate_prompts(kind: str, split: str | None = None) -> Iterator[ShapePrompt]:
    """Every distinct prompt of a kind (every order of its objects counts), of one split or of all."""
    for prompt in _candidates(kind):
        if is_valid(prompt) and (split is None or split_of(prompt) == split):
            yield prompt


def _candidates(kind: str) -> Iterator[ShapePrompt]:
    slots = _slots_of(kind)
    if kind == "numeracy":
        for slot in slots:
            for count in range(1, MAX_OBJECTS + 1):
                yield ShapePrompt(kind, (slot,) * count)
        for first, second in itertools.permutations(slots, 2):
            for n, m in _PAIR_COUNTS:
                yield ShapePrompt(kind, (first,) * n + (second,) * m)
        return
    relations: Sequence[str | None] = RELATIONS if kind in ("spatial", "complex") else (None,)
    lengths = (2, 3) if kind == "shape" else (2,)
    for length in lengths:
        for chosen in itertools.permutations(slots, length):
            for relation in relations:
                yield ShapePrompt(kind, chosen, relation)


# ---------------------------------------------------------------- splits

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1

Combination = tuple[str, ...]


def _ranked_splits(family: str, combinations: Sequence[Combination]) -> dict[Combination, str]:
    """Orders a family by hash: the first fifth is test, the next tenth validation, the rest train.

    Ranks instead of thresholds give small families their share too.
    """

    def rank(combination: Combination) -> str:
        return hashlib.sha256("|".join((family, *combination)).encode()).hexdigest()

    ordered = sorted(combinations, key=rank)
    tests = round(TEST_SHARE * len(ordered))
    validations = round(VALIDATION_SHARE * len(ordered))
    names = ["test"] * tests + ["validation"] * validations
    names += ["train"] * (len(ordered) - len(names))
    return dict(zip(ordered, names, strict=True))


def _unordered(words: Sequence[str], size: int) -> list[Combination]:
    return [tuple(sorted(chosen)) for chosen in itertools.combinations(words, size)]


_PAIR_SPLIT = _ranked_splits("pair", _unordered([f"{c} {s}" for c in COLORS for s in SHAPES], 2))
_SHAPE_SPLIT = {
    **_ranked_splits("two shapes", _unordered(SHAPES, 2)),
    **_ranked_splits("three shapes", _unordered(SHAPES, 3)),
}
_TEXTURE_SPLIT = _ranked_splits("textures", _unordered([f"{t} {s}" for t in TEXTURES for s in SHAPES], 2))
_COUNT_SPLIT = _ranked_splits(
    "counts", [(number, f"{c} {s}") for number in NUMBERS for c in COLORS for s in SHAPES]
)


@lru_cache(maxsize=None)
def pair_split(first: tuple[str, str], second: tuple[str, str]) -> str:
    """The split of two differing (color, shape) types, in whatever order."""
    return _PAIR_SPLIT[tuple(sorted((" ".join(first), " ".join(second))))]


@lru_cache(maxsize=None)
def split_of(prompt: ShapePrompt) -> str:
    """``train``, ``validation`` or ``test``.

    Depends on the unordered combination alone: the pair of (color, shape) types for color, spatial,
    complex and two-type numeracy prompts; the set of shapes; the pair of (texture, shape) types; the
    number and type of one-type numeracy prompts.
    """
    slots = prompt.slots
    if prompt.kind == "shape":
        return _SHAPE_SPLIT[tuple(sorted(str(slot.shape) for slot in slots))]
    if prompt.kind == "texture":
        return _TEXTURE_SPLIT[tuple(sorted(f"{slot.texture} {slot.shape}" for slot in slots))]
    types = prompt.types()
    if len(types) == 1:
        slot, count = types[0]
        return _COUNT_SPLIT[(NUMBERS[count - 1], f"{slot.color} {slot.shape}")]
    (first, _), (second, _) = types
    return pair_split((str(first.color), str(first.shape)), (str(second.color), str(second.shape)))


def has_held_out_pair(objects: Sequence[Visible]) -> bool:
    """Whether two objects of differing (color, shape) form a pair that is not a training pair."""
    types = {(thing.color, thing.shape) for thing in objects if thing.color and thing.shape}
    for first, second in itertools.combinations(types, 2):
        if pair_split(first, second) != "train":  # type: ignore[arg-type]
            return True
    return False


# ---------------------------------------------------------------- random prompts


def random_prompt(rng: random.Random, kind: str | None = None, split: str | None = "train") -> ShapePrompt:
    """A random prompt of a kind (None: kinds equally likely) and a split (None: any)."""
    chosen_kind = kind or rng.choice(KINDS)
    while True:
        prompt = _draw(rng, chosen_kind)
        if is_valid(prompt) and (split is None or split_of(prompt) == split):
            return prompt


def _draw(rng: random.Random, kind: str) -> ShapePrompt:
    has_texture, has_color = _NEEDS[kind]

    def slot() -> Slot:
        texture = rng.choice(TEXTURES) if has_texture else None
        color = rng.choice(COLORS) if has_color else None
        return Slot(texture, color, rng.choice(SHAPES))

    if kind == "numeracy":
        if rng.random() < 0.6:
            return ShapePrompt(kind, (slot(),) * rng.randint(1, MAX_OBJECTS))
        n, m = rng.choice(_PAIR_COUNTS)
        return ShapePrompt(kind, (slot(),) * n + (slot(),) * m)
    count = rng.choice((2, 3, 3)) if kind == "shape" else 2
    relation = rng.choice(RELATIONS) if kind in ("spatial", "complex") else None
    return ShapePrompt(kind, tuple(slot() for _ in range(count)), relation)


def sample_prompts(split: str, n: int, seed: int) -> list[ShapePrompt]:
    """``n`` prompts of a split, kinds balanced and interleaved; repeats only where a kind runs out."""
    rng = random.Random(f"{seed} {split}")
    queues: dict[str, list[ShapePrompt]] = {}
    pools = {kind: list(enumerate_prompts(kind, split)) for kind in KINDS}
    prompts: list[ShapePrompt] = []
    for position in range(n):
        kind = KINDS[position % len(KINDS)]
        if not queues.get(kind):
            queues[kind] = rng.sample(pools[kind], len(pools[kind]))
        prompts.append(queues[kind].pop())
    return prompts


def paraphrase(rng: random.Random, prompt: ShapePrompt) -> ShapePrompt:
    """The same request in other words: objects in another order, the relation turned round."""
    if prompt.relation is not None:
        return replace(prompt, slots=prompt.slots[::-1], relation=INVERSE_RELATION[prompt.relation])
    types = prompt.types()
    rng.shuffle(types)
    return replace(prompt, slots=tuple(slot for slot, count in types for _ in range(count)))


def alter_slot(rng: random.Random, slot: Slot) -> Slot:
    """Changes exactly one of the attributes that a slot names."""
    names = [name for name in ("texture", "color", "shape") if getattr(slot, name) is not None]
    name = rng.choice(names)
    values = {"texture": TEXTURES, "color": COLORS, "shape": SHAPES}[name]
    old = getattr(slot, name)
    new = rng.choice([value for value in values if value != old])
    return Slot(
        new if name == "texture" else slot.texture,
        new if name == "color" else slot.color,
        new if name == "shape" else slot.shape,
    )


def alter_prompt(
    rng: random.Random, prompt: ShapePrompt, attribute_share: float = 0.7, split: str = "train"
) -> ShapePrompt:
    """A prompt of the same kind and of ``split`` that asks for a slightly different picture.

    With probability ``attribute_share`` one attribute of one object phrase differs; else two objects
    swap an attribute, or the count or the relation differs. ValueError where the split has no other
    prompt of that kind.
    """
    for attempt in range(200):
        # Late attempts fall back on attributes: some prompts have no other alteration in the split.
        attribute = rng.random() < attribute_share or attempt > 40
        changed = _alter_attribute(rng, prompt) if attribute else _alter_structure(rng, prompt)
        if changed.meaning() == prompt.meaning() or not is_valid(changed):
            continue
        if split_of(changed) == split:
            return changed
    others = [other for other in enumerate_prompts(prompt.kind, split) if other.meaning() != prompt.meaning()]
    if not others:
        raise ValueError(f"the {split} split has no {prompt.kind} prompt but paraphrases of {prompt.text()!r}")
    return rng.choice(others)


def _alter_attribute(rng: random.Random, prompt: ShapePrompt) -> ShapePrompt:
    types = prompt.types()
    chosen = rng.randrange(len(types))
    types[chosen] = (alter_slot(rng, types[chosen][0]), types[chosen][1])
    return replace(prompt, slots=tuple(slot for slot, count in types for _ in range(count)))


def _alter_structure(rng: random.Random, prompt: ShapePrompt) -> ShapePrompt:
    if prompt.kind == "numeracy":
        return _alter_count(rng, prompt)
    if prompt.kind == "shape":
        if len(prompt.slots) == 3:
            dropped = rng.randrange(3)
            slots = prompt.slots[:dropped] + prompt.slots[dropped + 1 :]
        else:
            slots = (*prompt.slots, Slot(shape=rng.choice(SHAPES)))
        return replace(prompt, slots=slots)
    if prompt.relation is not None and rng.random() < 0.6:
        return replace(prompt, relation=rng.choice(RELATIONS))
    first, second = prompt.slots
    if first.color is not None and (first.texture is None or rng.random() < 0.5):
        swapped = (replace(first, color=second.color), replace(second, color=first.color))
    else:
        swapped = (replace(first, texture=second.texture), replace(second, texture=first.texture))
    return replace(prompt, slots=swapped)


def _alter_count(rng: random.Random, prompt: ShapePrompt) -> ShapePrompt:
    types = prompt.types()
    if len(types) == 2 and rng.random() < 0.3:
        (first, n), (second, m) = types
        types = [(first, m), (second, n)]
    else:
        chosen = rng.randrange(len(types))
        others = len(prompt.slots) - types[chosen][1]
        types[chosen] = (types[chosen][0], rng.randint(1, MAX_OBJECTS - others))
    return replace(prompt, slots=tuple(slot for slot, count in types for _ in range(count)))


# ---------------------------------------------------------------- scenes


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
            slots[0].fits(first)
            and slots[1].fits(second)
            and relation_holds(prompt.relation, first, second)
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


@lru_cache(maxsize=None)
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
    """A picture that a prompt is true of.

    Unnamed textures are solid, unnamed colours random. Where ``train``, no pair of objects in it is
    held out (the prompt itself must then be a training prompt).
    """
    for _ in range(1000):
        slots = [
            Slot(slot.texture or "solid", slot.color or rng.choice(COLORS), slot.shape)
            for slot in prompt.slots
        ]
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
    """A picture that differs in one thing.

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
