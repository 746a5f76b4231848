"""Drawing: the same picture in any batch, guidance, editing, planning, seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.config import ImageTransform
from srum_ds.models.bagel.generator import SamplerStep
from srum_ds.models.bagel.sampling import guided_at, time_points
from srum_ds.models.flow import FlowSampling, initial_noise
from srum_ds.models.protocol import UnifiedModel
from srum_ds.types import Prompt
from tests.support.tiny_models import random_picture, write_tiny_bagel

GRID = (2, 3)
SAMPLING = FlowSampling(num_timesteps=5, text_scale=3.0, renorm_min=0.2)
TEXTS = ("a red cat", "a", "a red cat on a much longer mat", "no")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BagelAdapter:
    return load_bagel(write_tiny_bagel(tmp_path_factory.mktemp("bagel")))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{number}", text) for number, text in enumerate(texts)]


def some_keys(count: int) -> list[Key]:
    return [("test", number) for number in range(count)]


def assert_same_pictures(one: Tensor, other: Tensor) -> None:
    """Equal but for a rounding step where a value sat on the edge between two of 256 levels."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 1.01 / 255
    assert (one != other).float().mean() < 0.001


def test_the_adapter_speaks_the_protocol(model: BagelAdapter) -> None:
    adapter: object = model
    assert isinstance(adapter, UnifiedModel)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_a_picture_does_not_depend_on_its_batch(model: BagelAdapter, renorm: str) -> None:
    sampling = replace(SAMPLING, renorm=renorm)
    keys = some_keys(len(TEXTS))
    targets, images = model.generate(prompts(*TEXTS), keys, GRID, sampling)
    assert images.shape == (4, 3, 32, 48) and images.min() >= 0 and images.max() <= 1
    for row, text in enumerate(TEXTS):
        alone, image = model.generate(prompts(text), keys[row : row + 1], GRID, sampling)
        torch.testing.assert_close(alone[0], targets[row], atol=1e-5, rtol=0)
        assert_same_pictures(image[0], images[row])
    shuffled, _ = model.generate(prompts(*TEXTS[::-1]), keys[::-1], GRID, sampling)
    torch.testing.assert_close(shuffled.flip(0), targets, atol=1e-5, rtol=0)


def test_the_released_norm_over_the_batch_is_an_option(model: BagelAdapter) -> None:
    sampling = replace(SAMPLING, renorm_scope="batch", renorm_min=0.0)
    keys = some_keys(2)
    together, _ = model.generate(prompts(*TEXTS[:2]), keys, GRID, sampling)
    alone, _ = model.generate(prompts(TEXTS[0]), keys[:1], GRID, sampling)
    assert (together[0] - alone[0]).abs().max() > 1e-3


def test_prompt_and_guidance_matter(model: BagelAdapter) -> None:
    keys = some_keys(1) * 2
    targets, _ = model.generate(prompts(*TEXTS[:2]), keys, GRID, SAMPLING)
    assert (targets[0] - targets[1]).abs().max() > 1e-2
    plain, _ = model.generate(prompts(*TEXTS[:2]), keys, GRID, replace(SAMPLING, text_scale=1.0))
    assert (targets - plain).abs().max() > 1e-2


@torch.no_grad()
def test_guidance_applies_inside_its_interval_only(model: BagelAdapter) -> None:
    sampling = replace(SAMPLING, interval=(0.5, 0.9))
    seen = model.generator.contexts(model.generator.prompt_ids(prompts("a red cat")))
    trace: list[SamplerStep] = []
    _, velocities = model.generator.sample(initial_noise(some_keys(1), (6, 16)), GRID, sampling, seen, trace)
    guided = [step.no_text_BTC is not None for step in trace]
    assert guided == [0.5 < step.time <= 0.9 for step in trace]
    assert any(guided) and not all(guided)
    for step, velocity in zip(trace, velocities, strict=True):
        without = model.module.velocity(step.x_BTC, torch.tensor([step.time]), GRID, seen.full)
        torch.testing.assert_close(step.conditional_BTC, without, atol=1e-5, rtol=0)
        assert (step.no_text_BTC is None) == torch.equal(velocity, step.conditional_BTC)


def test_interval_bounds_are_compared_in_float32() -> None:
    third = float(torch.tensor(0.3))
    assert third > 0.3
    assert not guided_at(third, FlowSampling(interval=(0.3, 1.0)))
    assert guided_at(third, FlowSampling(interval=(0.0, 0.3)))


def test_time_points_are_shifted_towards_noise() -> None:
    points = time_points(FlowSampling(num_timesteps=3, timestep_shift=3.0))
    assert points.tolist() == pytest.approx([1.0, 0.75, 0.0])


# ---- editing


def test_edits_do_not_depend_on_their_batch(model: BagelAdapter) -> None:
    """Input pictures of different sizes in one batch, all three guidance branches."""
    pictures = [random_picture(32, 48, 1), random_picture(50, 40, 2), random_picture(64, 64, 3)]
    sampling = replace(SAMPLING, image_scale=2.0, renorm="text_channel")
    keys = some_keys(3)
    targets, images = model.generate(prompts(*TEXTS[:3]), keys, GRID, sampling, edits=pictures)
    for row in range(3):
        alone, image = model.generate(prompts(TEXTS[row]), keys[row : row + 1], GRID, sampling, edits=[pictures[row]])
        torch.testing.assert_close(alone[0], targets[row], atol=1e-5, rtol=0)
        assert_same_pictures(image[0], images[row])


def test_the_input_picture_and_its_guidance_matter(model: BagelAdapter) -> None:
    keys = some_keys(1)
    given: dict[str, Any] = {"prompts": prompts("a"), "keys": keys, "grid": GRID}
    one, _ = model.generate(**given, sampling=SAMPLING, edits=[random_picture(32, 48, 1)])
    other, _ = model.generate(**given, sampling=SAMPLING, edits=[random_picture(32, 48, 2)])
    none, _ = model.generate(**given, sampling=SAMPLING)
    pulled, _ = model.generate(**given, sampling=replace(SAMPLING, image_scale=3.0), edits=[random_picture(32, 48, 1)])
    for different in (other, none, pulled):
        assert (one - different).abs().max() > 1e-2


def test_contexts_leave_out_what_their_names_say(model: BagelAdapter) -> None:
    image = random_picture(32, 48, 1)
    ids = model.generator.prompt_ids(prompts("a red cat"))
    seen = model.generator.contexts(ids, [image])
    assert seen.no_image is not None
    picture = model.reader.read_edits([image])
    assert torch.equal(seen.no_text.keys_L[-1], picture.keys_L[-1])
    assert torch.equal(seen.no_image.keys_L[-1], model.module.read_text(ids).keys_L[-1])
    assert seen.full.valid_BP.sum() == picture.valid_BP.sum() + len(ids[0])
    # Each image segment advances the position by one, the text by its tokens.
    assert seen.full.position_B.tolist() == [2 + len(ids[0])]


def test_the_default_size_is_the_largest_square(model: BagelAdapter) -> None:
    assert model.default_size() == (64, 64)
    assert model.grid(*model.default_size()) == (4, 4)


def test_an_edit_has_its_pictures_size(model: BagelAdapter) -> None:
    assert model.default_size(random_picture(33, 50)) == (32, 48)
    assert model.default_size(random_picture(100, 200)) == (32, 64)
    assert model.reader.resized(random_picture(33, 50)).shape == (3, 32, 48)


def test_the_autoencoder_sees_a_picture_that_went_through_its_transform_twice(model: BagelAdapter) -> None:
    """As released. With few pixels allowed, the first pass goes below the smallest side and the second above it."""
    small = load_bagel(model.folder)
    small.reader.config = replace(small.reader.config, vae_transform=ImageTransform(64, 32, 16, 1024))
    image = random_picture(60, 44, 1)
    once = small.reader.resized(image)
    twice = small.reader.resized(once)
    assert (once.shape[1:], twice.shape[1:]) == ((16, 16), (32, 32)) and small.default_size(image) == (16, 16)
    expected = small.reader.read_images(
        [once], small.reader.read_latents([small.reader.encode(twice[None])[0]], [(2, 2)])
    )
    found = small.reader.read_edits([image])
    assert torch.equal(found.keys_L[-1], expected.keys_L[-1])


# ---- planning


def test_plans_are_repeatable_and_change_the_picture(model: BagelAdapter) -> None:
    texts = prompts(*TEXTS[:3])
    plans = model.plan(texts, 6)
    assert plans == model.plan(texts, 6)
    assert [model.plan([prompt], 6)[0] for prompt in texts] == plans
    sampled = model.plan(texts, 6, temperature=1.5, seeds=[3, 4, 5])
    assert sampled == model.plan(texts, 6, temperature=1.5, seeds=[3, 4, 5])
    assert [model.plan([p], 6, temperature=1.5, seeds=[s])[0] for p, s in zip(texts, (3, 4, 5), strict=True)] == (
        sampled
    )
    assert sampled != model.plan(texts, 6, temperature=1.5, seeds=[6, 7, 8])
    keys = some_keys(3)
    planned, _ = model.generate(texts, keys, GRID, SAMPLING, plans=plans)
    plain, _ = model.generate(texts, keys, GRID, SAMPLING)
    assert (planned - plain).abs().max() > 1e-2
    alone, _ = model.generate(texts[1:2], keys[1:2], GRID, SAMPLING, plans=plans[1:2])
    torch.testing.assert_close(alone[0], planned[1], atol=1e-5, rtol=0)


def test_planned_edits_do_not_depend_on_their_batch(model: BagelAdapter) -> None:
    """A plan, an input picture of its own size and guidance by both, for each sample."""
    texts = prompts(*TEXTS[:2])
    pictures = [random_picture(32, 48, 1), random_picture(64, 40, 2)]
    plans = model.plan(texts, 5, pictures)
    assert [model.plan([t], 5, [p])[0] for t, p in zip(texts, pictures, strict=True)] == plans
    sampling = replace(SAMPLING, image_scale=2.0)
    keys = some_keys(2)
    targets, _ = model.generate(texts, keys, GRID, sampling, pictures, plans)
    for row in range(2):
        given = (texts[row : row + 1], keys[row : row + 1], GRID, sampling, [pictures[row]])
        alone, _ = model.generate(*given, plans[row : row + 1])
        torch.testing.assert_close(alone[0], targets[row], atol=1e-5, rtol=0)
        unplanned, _ = model.generate(*given)
        assert (unplanned - alone).abs().max() > 1e-3


def test_a_plan_ends_where_another_text_opens(model: BagelAdapter) -> None:
    special, red = model.module.special, model.reader.tokenizer.encode("red")
    rows = [[*red, special.bos, *red], [*red, special.eos, *red], [*red, *red, *red], [special.eos, *red, *red]]
    width = min(len(row) for row in rows)
    texts = model.generator.decoder.texts(torch.tensor([row[:width] for row in rows]))
    assert texts[:2] == ["red", "red"] and texts[2].startswith("redred") and texts[3] == ""


# ---- keys and sizes


def test_a_picture_is_a_function_of_its_prompt_and_key(model: BagelAdapter) -> None:
    keys: list[Key] = [("test", 1), ("test", 1), ("test", 2)]
    _, images = model.generate(prompts("a red cat", "a", "a red cat"), keys, (2, 1), SAMPLING)
    assert images.shape == (3, 3, 32, 16)
    _, alone = model.generate(prompts("a red cat"), keys[2:], (2, 1), SAMPLING)
    assert_same_pictures(alone[0], images[2])
    assert (images[0] - images[2]).abs().max() > 0.01
    assert (images[0] - images[1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="as many keys"):
        model.generate(prompts("a"), keys[:2], (2, 1), SAMPLING)


def test_pictures_have_8_bit_values(model: BagelAdapter) -> None:
    levels = model.generate(prompts("a"), some_keys(1), (1, 1), SAMPLING)[1] * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "message"), [((80, 32), "max_latent_size 4"), ((30, 32), "multiples of 16"), ((0, 16), "multiples")]
)
def test_sizes_that_do_not_fit_are_refused(model: BagelAdapter, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.grid(*size)


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_prompt_is_refused(model: BagelAdapter, empty: str) -> None:
    with pytest.raises(UserError, match="'p1' is empty"):
        model.generate(prompts("a", empty), some_keys(2), GRID, SAMPLING)
    with pytest.raises(UserError, match="'p1' is empty"):
        model.check_prompts(prompts("a", empty))
    with pytest.raises(UserError, match="is empty"):
        model.plan(prompts(empty), 2)
