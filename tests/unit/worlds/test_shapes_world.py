"""The world of shapes: its texts, splits, alterations, scenes and supervised examples."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes import questions, vocabulary, world
from srum_ds.worlds.shapes.pretrain.vae import latents_from_tokens, tokens_from_latents
from srum_ds.worlds.shapes.questions import build_examples
from srum_ds.worlds.shapes.render import render_arrays, render_scenes, scene_array
from srum_ds.worlds.shapes.world import SceneObject, ShapePrompt, Slot

TEXTS = {
    "a red circle and a blue square": ShapePrompt("color", (Slot(None, "red", "circle"), Slot(None, "blue", "square"))),
    "a circle and a square and a cross": ShapePrompt(
        "shape", (Slot(shape="circle"), Slot(shape="square"), Slot(shape="cross"))
    ),
    "a striped circle and a solid square": ShapePrompt(
        "texture", (Slot("striped", None, "circle"), Slot("solid", None, "square"))
    ),
    "a red circle left of a blue square": ShapePrompt(
        "spatial", (Slot(None, "red", "circle"), Slot(None, "blue", "square")), "left of"
    ),
    "three red crosses": ShapePrompt("numeracy", (Slot(None, "red", "cross"),) * 3),
    "two red circles and one blue square": ShapePrompt(
        "numeracy", (Slot(None, "red", "circle"),) * 2 + (Slot(None, "blue", "square"),)
    ),
    "a striped red circle above a solid blue square": ShapePrompt(
        "complex", (Slot("striped", "red", "circle"), Slot("solid", "blue", "square")), "above"
    ),
}


def all_prompts() -> list[ShapePrompt]:
    return [prompt for kind in vocabulary.KINDS for prompt in world.enumerate_prompts(kind)]


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    return build_examples(3, 400)


def test_texts_and_phrases() -> None:
    for text, prompt in TEXTS.items():
        assert prompt.text() == text
        assert world.is_valid(prompt)
    assert TEXTS["three red crosses"].phrases() == ("a red cross",)
    assert TEXTS["two red circles and one blue square"].phrases() == ("a red circle", "a blue square")
    spatial = TEXTS["a striped red circle above a solid blue square"]
    assert spatial.phrases() == ("a striped red circle", "a solid blue square")


def test_every_text_is_of_known_words_and_names_one_prompt() -> None:
    prompts = all_prompts()
    words = {word for prompt in prompts for word in prompt.text().split()}
    assert words <= set(vocabulary.WORDS)
    assert len(vocabulary.WORDS) == len(set(vocabulary.WORDS))
    assert len({prompt.text() for prompt in prompts}) == len(prompts) == len(set(prompts))


def test_a_prompt_survives_its_meta() -> None:
    for prompt in all_prompts()[::97]:
        line = prompt.to_prompt("some-id")
        assert (line.id, line.text, line.category) == ("some-id", prompt.text(), prompt.kind)
        assert line.phrases == prompt.phrases()
        assert ShapePrompt.from_meta(line.meta) == prompt


@pytest.mark.parametrize(
    ("meta", "complaint"),
    [
        ({"kind": "color", "slots": []}, "relation"),
        ({"kind": "color", "slots": 7, "relation": None}, "slots"),
        ({"kind": "color", "slots": [["solid", "red", "circle"]], "relation": None}, "not a prompt"),
        ({"kind": "odour", "slots": [[None, "red", "circle"]] * 2, "relation": None}, "not a prompt"),
    ],
)
def test_a_wrong_meta_is_named(meta: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ShapePrompt.from_meta(meta)


def test_splits_are_blind_to_any_order() -> None:
    for kind in vocabulary.KINDS:
        for prompt in list(world.enumerate_prompts(kind))[::7]:
            if kind == "numeracy":
                turned = itertools.permutations(prompt.types())
                orders = [tuple(s for s, n in order for _ in range(n)) for order in turned]
            else:
                orders = list(itertools.permutations(prompt.slots))
            splits = {world.split_of(replace(prompt, slots=slots)) for slots in orders}
            assert len(splits) == 1, prompt.text()
            if prompt.relation is not None:
                related = {world.split_of(replace(prompt, relation=r)) for r in vocabulary.RELATIONS}
                assert related == splits


def test_a_held_out_pair_is_held_out_in_every_kind() -> None:
    """The same two coloured shapes, whatever is said of them, lie in one split."""
    splits: dict[frozenset[tuple[str | None, str | None]], set[str]] = {}
    for kind in ("color", "spatial", "complex", "numeracy"):
        for prompt in world.enumerate_prompts(kind):
            pair = frozenset((slot.color, slot.shape) for slot in prompt.slots)
            if len(pair) == 2:
                splits.setdefault(pair, set()).add(world.split_of(prompt))
    assert len(splits) == 276
    assert all(len(found) == 1 for found in splits.values())


def test_every_kind_has_every_split_in_about_its_share() -> None:
    for kind in vocabulary.KINDS:
        meanings = {
            split: {prompt.meaning() for prompt in world.enumerate_prompts(kind, split)} for split in world.SPLITS
        }
        assert all(meanings.values()), kind
        total = sum(map(len, meanings.values()))
        assert 0.15 <= len(meanings["test"]) / total <= 0.25, kind
        assert 0.05 <= len(meanings["validation"]) / total <= 0.15, kind


def test_sampled_prompts_are_balanced_and_repeat_only_where_they_must() -> None:
    prompts = world.sample_prompts("test", 600, seed=1)
    assert prompts == world.sample_prompts("test", 600, seed=1)
    assert prompts != world.sample_prompts("test", 600, seed=2)
    for kind in vocabulary.KINDS:
        chosen = [prompt for prompt in prompts if prompt.kind == kind]
        assert len(chosen) == 100
        assert all(world.split_of(prompt) == "test" for prompt in chosen)
        available = sum(1 for _ in world.enumerate_prompts(kind, "test"))
        assert len(set(chosen)) == min(100, available)
    assert len({prompt.text() for prompt in prompts}) >= 300


def test_alterations_ask_for_something_else_and_paraphrases_do_not() -> None:
    rng = random.Random(0)
    attribute_changes = 0
    for _ in range(600):
        prompt = world.random_prompt(rng)
        scene = world.random_scene(rng, prompt)
        altered = world.alter_prompt(rng, prompt)
        assert altered.kind == prompt.kind
        assert world.split_of(altered) == "train"
        assert altered.meaning() != prompt.meaning()
        assert not world.satisfies(altered, scene), (prompt.text(), altered.text())
        other = world.paraphrase(rng, prompt)
        assert other.meaning() == prompt.meaning()
        assert world.satisfies(other, scene)
        attribute_changes += _differs_in_one_attribute(prompt, altered)
    assert 0.6 <= attribute_changes / 600 <= 0.95


def _differs_in_one_attribute(first: ShapePrompt, second: ShapePrompt) -> bool:
    if first.relation != second.relation or len(first.slots) != len(second.slots):
        return False
    changed = set()
    for a, b in zip(first.slots, second.slots, strict=True):
        for name in ("texture", "color", "shape"):
            if getattr(a, name) != getattr(b, name):
                changed.add((a, name))
    return len(changed) == 1


def test_altering_within_a_split_of_one_prompt_says_so() -> None:
    only = next(world.enumerate_prompts("shape", "validation"))
    with pytest.raises(ValueError, match="no shape prompt"):
        world.alter_prompt(random.Random(0), only, split="validation")


def test_training_scenes_hold_no_held_out_pair() -> None:
    rng = random.Random(1)
    for _ in range(600):
        prompt = world.random_prompt(rng)
        assert not world.has_held_out_pair(world.random_scene(rng, prompt))
    held = next(world.enumerate_prompts("color", "test"))
    scene = world.random_scene(rng, held, train=False)
    assert world.has_held_out_pair(scene)
    with pytest.raises(ValueError, match="held-out"):
        world.random_scene(rng, held)


def test_relation_scenes_are_mostly_in_line() -> None:
    rng = random.Random(2)
    in_line = 0
    for _ in range(400):
        prompt = world.random_prompt(rng, "spatial")
        first, second = world.random_scene(rng, prompt)
        assert world.relation_holds(str(prompt.relation), first, second)
        across = first.cell // 4 - second.cell // 4
        if prompt.relation in ("above", "below"):
            across = first.cell % 4 - second.cell % 4
        in_line += across == 0
    assert 0.6 <= in_line / 400 <= 0.8


def test_relations_by_hand() -> None:
    low_left = SceneObject("solid", "red", "circle", 12)
    top_left = SceneObject("solid", "red", "circle", 0)
    top_right = SceneObject("solid", "red", "circle", 3)
    assert world.relation_holds("below", low_left, top_left)
    assert world.relation_holds("left of", top_left, top_right)
    assert world.relation_holds("right of", top_right, top_left)
    diagonal = [r for r in vocabulary.RELATIONS if world.relation_holds(r, low_left, top_right)]
    assert diagonal == []
    assert questions.cell_name(low_left.x, low_left.y) == vocabulary.CELLS[12]
    assert questions.clear_direction(top_right, top_left) == "right"


def test_rendering_colours_cells_and_leaves_the_rest_black() -> None:
    thing = SceneObject("solid", "yellow", "square", 6, jitter=(1, -1))
    image = render_scenes([(thing,)])[0]
    assert image.shape == (3, 64, 64)
    assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(image[:, int(thing.y), int(thing.x)], torch.tensor([1.0, 1.0, 0.0]))
    outside = image.clone()
    outside[:, 16:32, 32:48] = 0
    assert outside.abs().max() == 0
    rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (20, 29)
    assert (int(columns.min()), int(columns.max())) == (34, 43)


def test_stripes_dim_every_other_three_pixels() -> None:
    image = render_scenes([(SceneObject("striped", "red", "square", 0),)])[0]
    bands = [float(image[0, row, 8]) for row in (3, 6, 9, 12)]
    assert bands == pytest.approx([1.0, 0.35, 1.0, 0.35])


def test_half_objects_lose_light() -> None:
    whole = SceneObject("solid", "red", "circle", 5)
    half = replace(whole, flaw="top_half")
    images = render_scenes([(whole,), (half,)])
    assert images[1].sum() == pytest.approx(float(images[0].sum()) / 2)
    assert images[1][:, 24:].sum() == 0
    assert torch.equal(render_arrays(torch.from_numpy(scene_array((whole,)))[None, :2])[0], images[0])


def test_examples_have_the_promised_shapes_and_known_words(examples: dict[str, Any]) -> None:
    assert examples["scene"].shape == examples["shown"].shape == (400, 5, 16)
    assert examples["crop_box"].shape == (400, 4)
    counts = {"match": 5, "exist": 3, "open": 4, "crop": 4}
    for family, count in counts.items():
        for row in examples[f"{family}_question"] + examples[f"{family}_answer"]:
            assert len(row) == count
            for text in row:
                assert set(text.replace("?", " ?").split()) <= set(vocabulary.WORDS), text
    boxes = examples["crop_box"]
    assert (boxes[:, :2] < boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= 64


def test_examples_repeat_and_differ_by_seed(examples: dict[str, Any]) -> None:
    again = build_examples(3, 50)
    for name in ("caption", "match_question", "crop_answer"):
        assert again[name] == examples[name][:50]
    assert np.array_equal(again["shown"], examples["shown"][:50])
    assert build_examples(4, 50)["caption"] != again["caption"]


def test_no_text_of_the_examples_is_held_out(examples: dict[str, Any]) -> None:
    held = {prompt.text() for prompt in all_prompts() if world.split_of(prompt) != "train"}
    trained = {prompt.text() for prompt in all_prompts()} - held
    asked = [
        re.fullmatch(r"does the picture show (.*)\?", question).group(1)  # type: ignore[union-attr]
        for row in examples["match_question"]
        for question in row
    ]
    captions = examples["caption"] + [text for row in examples["altered"] for text in row]
    assert not held & set(asked + captions)
    assert set(asked + captions) <= trained
    for caption, row in zip(examples["caption"], examples["altered"], strict=True):
        assert caption not in row


def test_no_picture_of_the_examples_shows_a_held_out_pair(examples: dict[str, Any]) -> None:
    palette = {index: color for index, color in enumerate(vocabulary.COLORS)}
    for name in ("scene", "shown"):
        for array in examples[name]:
            types = set()
            for cell in range(16):
                if array[0, cell] and not array[4, cell]:
                    shape = vocabulary.SHAPES[(int(array[0, cell]) - 1) // 18]
                    types.add((palette[int(array[1, cell])], shape))
            for first, second in itertools.combinations(types, 2):
                assert world.pair_split(first, second) == "train"


def test_answers_are_balanced_enough_to_teach(examples: dict[str, Any]) -> None:
    answers = [answer for row in examples["match_answer"] for answer in row]
    assert 0.4 <= answers.count("yes") / len(answers) <= 0.6
    crops = [answer for row in examples["crop_answer"] for answer in row]
    assert 0.35 <= crops.count("yes") / len(crops) <= 0.6
    for position, allowed in ((0, vocabulary.CELLS), (2, tuple(vocabulary.DIRECTION_OF.values()))):
        column = [row[position] for row in examples["open_answer"]]
        share = sum(answer in allowed for answer in column) / len(column)
        assert share >= 0.45
        assert set(column) <= {*allowed, "yes", "no"}


def test_latent_tokens_are_row_major_with_channels_fastest() -> None:
    latents = torch.arange(16 * 8 * 8).view(1, 16, 8, 8)
    tokens = tokens_from_latents(latents)
    assert tokens.shape == (1, 16, 64)
    # Token 6 is patch row 1, column 2; number 37 in it is row 1, column 0, channel 5 of that patch.
    assert tokens[0, 6, 37] == latents[0, 5, 3, 4]
    assert torch.equal(latents_from_tokens(tokens), latents)
