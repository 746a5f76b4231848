"""What a prompt about coloured shapes can say, and which split each prompt belongs to."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from srum_ds.common.errors import UserError
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.vocabulary import (
    COLORS,
    INVERSE_RELATION,
    KINDS,
    NUMBERS,
    PLURALS,
    RELATIONS,
    SHAPES,
    TEXTURES,
)

SPLITS = ("train", "validation", "test")
MAX_OBJECTS = 4
PAIR_COUNTS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Counts of the two types of a numeracy prompt."""


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
        """A key that is equal exactly for prompts of one kind that ask for the same image."""
        if self.relation is None:
            return (self.kind, tuple(sorted(self.slots, key=Slot.order)), None)
        if self.relation in ("right of", "below"):
            return (self.kind, self.slots[::-1], INVERSE_RELATION[self.relation])
        return (self.kind, self.slots, self.relation)


def _counted(slot: Slot, count: int) -> str:
    shape = slot.shape if count == 1 else PLURALS[slot.shape or ""]
    return f"{NUMBERS[count - 1]} {slot.color} {shape}"


# ---------------------------------------------------------------- which prompts exist

NEEDS = {
    "color": (False, True),
    "shape": (False, False),
    "texture": (True, False),
    "spatial": (False, True),
    "numeracy": (False, True),
    "complex": (True, True),
}
"""For each kind: whether its phrases name a texture, and a colour."""


def _slots_of(kind: str) -> list[Slot]:
    has_texture, has_color = NEEDS[kind]
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


@cache
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
            for n, m in PAIR_COUNTS:
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
_COUNT_SPLIT = _ranked_splits("counts", [(number, f"{c} {s}") for number in NUMBERS for c in COLORS for s in SHAPES])


@cache
def pair_split(first: tuple[str, str], second: tuple[str, str]) -> str:
    """The split of two differing (color, shape) types, in whatever order."""
    return _PAIR_SPLIT[tuple(sorted((" ".join(first), " ".join(second))))]


@cache
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
        if pair_split(first, second) != "train":
            return True
    return False
