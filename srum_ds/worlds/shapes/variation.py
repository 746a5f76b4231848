"""Random prompts, and prompts that say the same or almost the same as another."""

from __future__ import annotations

import random
from dataclasses import replace

from srum_ds.worlds.shapes.prompts import (
    MAX_OBJECTS,
    NEEDS,
    PAIR_COUNTS,
    ShapePrompt,
    Slot,
    enumerate_prompts,
    is_valid,
    split_of,
)
from srum_ds.worlds.shapes.vocabulary import COLORS, INVERSE_RELATION, KINDS, RELATIONS, SHAPES, TEXTURES


def random_prompt(rng: random.Random, kind: str | None = None, split: str | None = "train") -> ShapePrompt:
    """A random prompt of a kind (None: kinds equally likely) and a split (None: any)."""
    chosen_kind = kind or rng.choice(KINDS)
    while True:
        prompt = _draw(rng, chosen_kind)
        if is_valid(prompt) and (split is None or split_of(prompt) == split):
            return prompt


def _draw(rng: random.Random, kind: str) -> ShapePrompt:
    has_texture, has_color = NEEDS[kind]

    def slot() -> Slot:
        texture = rng.choice(TEXTURES) if has_texture else None
        color = rng.choice(COLORS) if has_color else None
        return Slot(texture, color, rng.choice(SHAPES))

    if kind == "numeracy":
        if rng.random() < 0.6:
            return ShapePrompt(kind, (slot(),) * rng.randint(1, MAX_OBJECTS))
        n, m = rng.choice(PAIR_COUNTS)
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
    """A prompt of the same kind and of ``split`` that asks for a slightly different image.

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
