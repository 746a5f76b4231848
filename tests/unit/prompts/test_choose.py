"""`--limit` and `--categories`: which prompts they leave."""

from __future__ import annotations

import pytest

from srum_ds.common.errors import UserError
from srum_ds.prompts.choose import choose_prompts
from srum_ds.types import Prompt

PROMPTS = [Prompt(f"{category}-{i}", "x", category) for category in ("color", "shape", "texture") for i in range(3)]


def ids(*limits: object, **options: object) -> list[str]:
    return [prompt.id for prompt in choose_prompts(PROMPTS, *limits, **options)]  # type: ignore[arg-type]


def test_a_small_limit_sees_every_category_and_keeps_the_order() -> None:
    assert ids() == [prompt.id for prompt in PROMPTS]
    assert ids(4) == ["color-0", "color-1", "shape-0", "texture-0"]
    assert ids(100) == ids()


def test_a_smaller_limits_prompts_are_among_a_larger_ones() -> None:
    for limit in range(1, 9):
        assert set(ids(limit)) < set(ids(limit + 1))


def test_categories_are_chosen_before_the_limit() -> None:
    assert ids(categories=["texture", "color"]) == [f"color-{i}" for i in range(3)] + [f"texture-{i}" for i in range(3)]
    assert ids(3, categories=["texture", "color"]) == ["color-0", "color-1", "texture-0"]


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"--categories colour: .* color, shape, texture"):
        ids(categories=["colour"])
    with pytest.raises(UserError, match="--limit 0"):
        ids(0)
