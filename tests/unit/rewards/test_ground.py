"""Boxes out of written replies, worked out by hand; and a judge that is asked for them."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.rewards.regions import select
from srum_ds.rewards.regions.ground import CONVENTIONS, Ground, parse_boxes, seen_size
from srum_ds.rewards.regions.pipeline import RegionFinder
from srum_ds.rewards.templates import Template, load_template
from tests.support.judges import RIGHT, WritingJudge, picture, samples_showing

SIZE = (100, 200)


def boxes(reply: str, convention: str = "pixels", size: tuple[int, int] = SIZE) -> list[tuple[float, ...]]:
    return [tuple(round(edge, 6) for edge in box) for box in parse_boxes(reply, size, convention).boxes]


def test_the_three_conventions() -> None:
    reply = '[{"bbox_2d": [56, 28, 112, 84], "label": "dog"}]'
    assert boxes(reply) == [(0.28, 0.28, 0.56, 0.84)]
    assert boxes(reply, "qwen3-vl") == [(0.056, 0.028, 0.112, 0.084)]
    # 100 x 200 becomes 112 x 196: 3.57 and 7.14 squares of 28, to the nearest.
    assert seen_size(SIZE, "qwen2.5-vl") == (112.0, 196.0)
    assert boxes(reply, "qwen2.5-vl") == [(0.285714, 0.25, 0.571429, 0.75)]
    assert parse_boxes(reply, SIZE, "pixels").labels == ("dog",)


@pytest.mark.parametrize("size", [(1024, 1024), (64, 64), (20, 20), (28, 900), (100, 41), (5000, 4000), (480, 640)])
def test_seen_size_is_that_of_the_released_processor(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    expected = smart_resize(*size, factor=28, min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
    assert seen_size(size, "qwen2.5-vl") == expected


def test_how_models_wrap_their_json() -> None:
    plain = '[{"bbox_2d": [0, 0, 100, 50], "label": "a"}, {"bbox_2d": [100, 50, 200, 100], "label": "b"}]'
    expected = [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)]
    assert boxes(plain) == expected
    assert boxes(f"```json\n{plain}\n```") == expected
    assert boxes(f"Here are the boxes [as asked]:\n{plain}\nThat is all (2 in [0, 200]).") == expected
    assert boxes(f"<think>[[0, 0, 10, 10]] or so</think>{plain}") == expected
    assert boxes('{"objects": ' + plain + "}") == expected
    assert boxes("[[0, 0, 100, 50], [100, 50, 200, 100]]") == expected
    assert boxes('{"bbox": [0, 0, 100, 50]}\n{"box": [100.0, 50, 200, 100]}') == expected


def test_a_truncated_reply_gives_its_whole_entries() -> None:
    whole = '```json\n[{"bbox_2d": [0, 0, 100, 50], "label": "a"}, '
    for rest in ('{"bbox_2d": [100, 50, 2', '{"bbox_2d": [', '{"bb', ""):
        found = parse_boxes(whole + rest, SIZE, "pixels")
        assert found.boxes == ((0.0, 0.0, 0.5, 0.5),)
        assert found.readable and found.broken == 0
    # The coordinates are there, the label is not.
    assert boxes(whole + '{"bbox_2d": [100, 50, 200, 100], "label": "a sm') == [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)]


def test_swapped_corners_and_parts_outside() -> None:
    assert boxes("[[100, 50, 0, 0]]") == [(0, 0, 0.5, 0.5)]
    assert boxes("[[0, 50, 100, 0]]") == [(0, 0, 0.5, 0.5)]
    assert boxes("[[-20, -10, 100, 500]]") == [(0, 0, 0.5, 1)]


@pytest.mark.parametrize(
    "entry",
    [
        "[200, 0, 300, 50]",
        "[50, 10, 50, 40]",
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": "none"}',
        '{"bbox_2d": [1, 2, 3, "x"]}',
        '{"bbox_2d": [1, 2, 3, true]}',
        '{"bbox_2d": [NaN, 0, 10, 10]}',
        '{"bbox_2d": [0, 0, Infinity, 10]}',
    ],
)
def test_what_is_no_box_is_counted(entry: str) -> None:
    found = parse_boxes(f"[{entry}, [0, 0, 100, 50]]", SIZE, "pixels")
    assert found.boxes == ((0.0, 0.0, 0.5, 0.5),)
    assert found.broken == 1


@pytest.mark.parametrize(
    ("reply", "readable"),
    [
        ("[]", True),
        ("```json\n[]\n```", True),
        ("There is no dog.", False),
        ("", False),
        ("<think>[[0, 0, 1, 1]]", False),
    ],
)
def test_nothing_there_is_not_the_same_as_nothing_said(reply: str, readable: bool) -> None:
    found = parse_boxes(reply, SIZE, "pixels")
    assert found.boxes == () and found.readable is readable


def test_nesting_without_end_is_no_crash() -> None:
    assert parse_boxes("[" * 3000, SIZE, "pixels").boxes == ()


def test_the_judge_is_asked_once_a_picture_and_failures_are_counted() -> None:
    shown = picture(("red", 0, 0))
    samples = samples_showing((RIGHT,), ((shown, shown, shown, shown, shown),))
    replies = ["[[0, 0, 8, 8], [16, 16, 64, 64]]", "no idea", "[]", "[[70, 70, 80, 80]]", "[[0, 0, 32, 32]]"]
    judge = WritingJudge(lambda question, attempt: replies[attempt])
    ground = Ground(load_template("ground_boxes"), "pixels", max_new_tokens=16, batch=2)
    regions = RegionFinder(ground, max_count=4)(judge, samples)
    assert judge.sizes == [(2, 2), (2, 2), (1, 1)]
    assert "a red circle, a blue square" in judge.calls[0][0][0]
    # The larger box first; three pictures without any, of which two are failures.
    assert regions.owner_R.tolist() == [0, 0, 4]
    assert (regions.boxes_R4 * 64).tolist() == [[16, 16, 64, 64], [0, 0, 8, 8], [0, 0, 32, 32]]
    assert (regions.asked, regions.failed) == (5, 2)


def test_the_judge_is_asked_about_several_micro_batches_at_once() -> None:
    shown = picture(("red", 0, 0))
    batches = [samples_showing((RIGHT,), ((shown,) * count,)) for count in (2, 1)]
    replies = ["[[0, 0, 8, 8]]", "no idea", "[[0, 0, 16, 16], [32, 32, 64, 64]]"]
    judge = WritingJudge(lambda question, attempt: replies[attempt])
    finder = RegionFinder(Ground(load_template("ground_boxes"), "pixels", max_new_tokens=16), max_count=4)
    first, second = finder.together(judge, batches)
    assert judge.sizes == [(3, 3)]
    assert (first.boxes_R4 * 64).tolist() == [[0, 0, 8, 8]] and (first.asked, first.failed) == (2, 1)
    assert second.owner_R.tolist() == [0, 0] and (second.asked, second.failed) == (1, 0)
    assert finder.together(judge, []) == []


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="mentions neither"):
        Ground(Template(text="where?", name="where", sha256=""), "pixels", 16)
    with pytest.raises(UserError, match="ground_convention"):
        Ground(load_template("ground_boxes"), "qwen", 16)
    assert len(CONVENTIONS) == 3
    assert len(select([], max_count=1)) == 0
    assert torch.equal(select([], max_count=1).boxes_R4, torch.zeros(0, 4))


def test_a_reply_of_brackets_costs_no_more_than_its_length() -> None:
    found = parse_boxes("[" * 20000 + '{"bbox_2d": [1, 2, 3, 4]}', (64, 64), "pixels")
    assert len(found.boxes) == 1 and found.readable
    assert not parse_boxes("[" * 20000 + "]" * 20000, (64, 64), "pixels").readable
