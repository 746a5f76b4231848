"""The checker of the shapes world: truth passes; alterations, noise and junk do not."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from srum_ds.worlds.shapes import world
from srum_ds.worlds.shapes.checker import check, detect, region_matches
from srum_ds.worlds.shapes.questions import build_examples
from srum_ds.worlds.shapes.render import render_arrays, render_scenes
from srum_ds.worlds.shapes.vocabulary import CELLS, COLORS, GRID, KINDS, RELATIONS, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import Scene, SceneObject, ShapePrompt, Slot

RED_CIRCLE = Slot(None, "red", "circle")
BLUE_SQUARE = Slot(None, "blue", "square")
PAIR = ShapePrompt("color", (RED_CIRCLE, BLUE_SQUARE))
LEFT = ShapePrompt("spatial", (RED_CIRCLE, BLUE_SQUARE), "left of")
SCENE: Scene = (SceneObject("solid", "red", "circle", 5), SceneObject("solid", "blue", "square", 7))


def picture(scene: Scene) -> np.ndarray:
    return render_scenes([scene])[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_truth_passes_and_alterations_fail(kind: str) -> None:
    rng = random.Random(kind)
    prompts = [world.random_prompt(rng, kind, split=None) for _ in range(100)]
    images = render_scenes([world.random_scene(rng, prompt, train=False) for prompt in prompts])
    for prompt, image in zip(prompts, images, strict=True):
        result = check(prompt.to_prompt("id"), image)
        assert result.exact and result.objects_exact and result.partial == 1.0, prompt.text()
        assert check(world.paraphrase(rng, prompt), image).exact
        altered = world.alter_prompt(rng, prompt, attribute_share=0.5)
        wrong = check(altered, image)
        assert not wrong.exact, (prompt.text(), altered.text())
        assert 0 < wrong.partial < 1


def test_every_look_in_every_cell_is_read() -> None:
    rng = random.Random(0)
    things = [
        SceneObject(texture, color, shape, rng.randrange(len(CELLS)), jitter)
        for texture in TEXTURES
        for color in COLORS
        for shape in SHAPES
        for jitter in world.JITTERS
    ]
    for thing, image in zip(things, render_scenes([(thing,) for thing in things]), strict=True):
        (found,) = detect(image)
        assert (found.texture, found.color, found.shape) == (thing.texture, thing.color, thing.shape)
        assert abs(found.x - thing.x) <= 1 and abs(found.y - thing.y) <= 1


def test_a_full_grid_is_read() -> None:
    rng = random.Random(1)
    scene = tuple(
        SceneObject(rng.choice(TEXTURES), rng.choice(COLORS), rng.choice(SHAPES), cell, rng.choice(world.JITTERS))
        for cell in range(GRID * GRID)
    )
    found = {(int(f.y) // 16 * 4 + int(f.x) // 16): f for f in detect(picture(scene))}
    assert len(found) == 16
    for thing in scene:
        f = found[thing.cell]
        assert (f.texture, f.color, f.shape) == (thing.texture, thing.color, thing.shape)


def test_count_must_be_exact() -> None:
    assert check(PAIR, picture(SCENE)).exact
    surplus = check(PAIR, picture((*SCENE, SceneObject("solid", "red", "circle", 0))))
    missing = check(PAIR, picture(SCENE[:1]))
    assert not surplus.exact and surplus.partial == pytest.approx(2 / 3)
    assert not missing.exact and missing.partial == pytest.approx(1 / 2)
    assert check(PAIR, picture(())).partial == 0.0


def test_partial_credit_by_hand() -> None:
    one_color_off = (replace(SCENE[0], color="green"), SCENE[1])
    result = check(PAIR, picture(one_color_off))
    assert not result.exact and result.partial == pytest.approx(3 / 4)
    turned = check(LEFT, picture((replace(SCENE[0], cell=7), replace(SCENE[1], cell=5))))
    assert not turned.exact and turned.objects_exact and turned.partial == pytest.approx(4 / 5)


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_needs_its_own_axis(relation: str) -> None:
    prompt = replace(LEFT, relation=relation)
    exact = 0
    for first in range(len(CELLS)):
        second = 5
        if first == second:
            continue
        scene = (replace(SCENE[0], cell=first), replace(SCENE[1], cell=second))
        dx = second % 4 - first % 4
        dy = second // 4 - first // 4
        along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
        across = dy if relation in ("left of", "right of") else dx
        result = check(prompt, picture(scene))
        assert result.exact == (along > abs(across))
        assert result.objects_exact
        exact += result.exact
    assert exact > 0


def test_broken_objects_are_rarely_taken_for_whole_ones() -> None:
    """Half an object never passes; one grown together with another only where the two look alike."""
    rng = random.Random(2)
    passed = {flaw: 0 for flaw in world.FLAWS}
    shown = dict(passed)
    for _ in range(400):
        whole = world.random_scene(rng, world.random_prompt(rng, "color"))
        broken = world.break_object(rng, whole[0])
        prompt = ShapePrompt("color", tuple(Slot(None, thing.color, thing.shape) for thing in whole))
        shown[str(broken.flaw)] += 1
        passed[str(broken.flaw)] += check(prompt, picture((broken, *whole[1:]))).exact
    assert min(shown.values()) >= 50
    assert passed["top_half"] == passed["left_half"] == 0
    assert sum(passed.values()) / 400 <= 0.15


def test_two_coloured_objects_have_no_colour() -> None:
    image = picture(SCENE[:1])
    assert [found.color for found in detect(image)] == ["red"]
    image[:, 24:] = image[:, 24:, ::-1]
    (found,) = detect(image)
    assert found.color is None and found.shape == "circle"


JUNK = ("uniform", "gaussian", "grey", "white", "checkerboard") + ("nan", "inf", "one_nan", "huge", "negative")


@pytest.mark.parametrize("name", JUNK)
def test_noise_and_junk_never_succeed(name: str) -> None:
    rng = np.random.default_rng(0)
    truth = picture(SCENE)
    one_nan = truth.copy()
    one_nan[0, 0, 0] = np.nan
    rows, columns = np.indices((64, 64))
    board = np.repeat(((rows // 8 + columns // 8) % 2)[:, :, None], 3, axis=2)
    junk = {
        "uniform": rng.uniform(size=(64, 64, 3)),
        "gaussian": rng.normal(size=(64, 64, 3)),
        "grey": np.full((64, 64, 3), 0.5),
        "white": np.ones((64, 64, 3)),
        "nan": np.full((64, 64, 3), np.nan),
        "inf": truth + np.inf,
        "one_nan": one_nan,
        "huge": truth * 1e30 + 1e30,
        "negative": -truth,
        "checkerboard": board.astype(np.float32),
    }[name]
    prompts = [world.random_prompt(random.Random(seed), split=None) for seed in range(60)]
    for prompt in [PAIR, LEFT, *prompts]:
        result = check(prompt, junk)
        assert not result.exact and not result.objects_exact
        assert 0.0 <= result.partial <= 0.5


def test_light_noise_does_not_hide_the_truth() -> None:
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.03
    assert check(LEFT, (render_scenes([SCENE])[0] + noise)).exact


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="H, W, 3"):
        detect(np.zeros((3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="3, H, W"):
        detect(torch.zeros(64, 64, 3))


def test_regions_by_hand() -> None:
    image = picture((SCENE[0], replace(SCENE[1], color="green")))
    boxes = [
        (0.25, 0.25, 0.5, 0.5),  # the red circle's cell
        (0.75, 0.25, 1.0, 0.5),  # the green square's cell: nobody asked for it
        (0.0, 0.0, 0.25, 0.25),  # an empty cell
        (0.0, 0.0, 1.0, 1.0),
        (0.25, 0.25, 0.34, 0.5),  # less than half of the circle
    ]
    expected = [True, False, False, True, False]
    assert region_matches(PAIR, image, boxes) == expected
    assert region_matches(PAIR.to_prompt("id"), image, torch.tensor(boxes)) == expected
    assert region_matches(PAIR, image, []) == []


def test_answers_of_the_examples_agree_with_the_pixels() -> None:
    """The judge learns from these answers: they have to be what the checker reads off the picture."""
    by_text = {prompt.text(): prompt for kind in KINDS for prompt in world.enumerate_prompts(kind)}
    examples = build_examples(11, 150)
    images = render_arrays(torch.from_numpy(examples["shown"]))
    for row, image in enumerate(images):
        pairs = zip(examples["match_question"][row], examples["match_answer"][row], strict=True)
        for question, answer in pairs:
            prompt = by_text[question.removeprefix("does the picture show ").removesuffix("?")]
            assert check(prompt, image).exact == (answer == "yes"), question
        caption = by_text[examples["caption"][row]]
        scene = render_arrays(torch.from_numpy(examples["scene"][row : row + 1]))[0]
        assert check(caption, scene).exact
