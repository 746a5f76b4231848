"""GenEval's rules by values worked out by hand, colours by pixels, and its files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Detection, load_benchmark
from srum_ds.evaluation.benchmarks.colors import COLORS, name_pixels, pixel_color
from srum_ds.evaluation.benchmarks.geneval import GRADING, PUBLISHED, TAGS, relations
from srum_ds.evaluation.benchmarks.masks import decode_mask, encode_mask
from srum_ds.types import Prompt
from tests.support.paths import SHARED

FILE = SHARED / "data" / "geneval" / "evaluation_metadata.jsonl"
GREY = torch.full((3, 100, 200), 0.5)


def prompt(tag: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> Prompt:
    return Prompt("p", "a photo", tag, (), {"tag": tag, "include": include, "exclude": exclude})


def dog(score: float, box: tuple[float, float, float, float] = (0.1, 0.1, 0.3, 0.3), color: str = "") -> Detection:
    return Detection("dog", score, box, None, color)


def value(asked: Prompt, *found: Detection, image: Tensor = GREY) -> float | None:
    return GRADING.grade(asked, found, image).value


def test_relations_are_those_of_the_original() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    # Offset (-20, 0), shortened by 0.1 x 20 to -18; 18 / 20 = 0.9.
    assert relations(box, (20.0, 0.0, 30.0, 10.0)) == {"left of"}
    assert relations((20.0, 0.0, 30.0, 10.0), box) == {"right of"}
    assert relations(box, (0.0, 20.0, 10.0, 30.0)) == {"above"}
    # (-18, -18) / 28.28 = 0.64 on both axes.
    assert relations(box, (20.0, 20.0, 30.0, 30.0)) == {"left of", "above"}
    # (-18, -8) / 22.36 = (0.80, 0.36).
    assert relations(box, (20.0, 10.0, 30.0, 20.0)) == {"left of"}
    # Centres 2 apart, which is 0.1 x (10 + 10): nothing remains.
    assert relations(box, (2.0, 0.0, 12.0, 10.0)) == set()
    # 2.5 apart: 0.5 / 2.5 = 0.2, not above 0.5. 5 apart: 3 / 5 = 0.6.
    assert relations(box, (2.5, 0.0, 12.5, 10.0)) == set()
    assert relations(box, (5.0, 0.0, 15.0, 10.0)) == {"left of"}


def test_confidence_counts_by_tag() -> None:
    one = [{"class": "dog", "count": 1}]
    assert value(prompt("single_object", one), dog(0.31)) == 1
    assert value(prompt("single_object", one), dog(0.3)) == 0
    assert value(prompt("counting", one), dog(0.9)) == 0
    assert value(prompt("counting", one), dog(0.91)) == 1
    assert value(prompt("single_object", one)) == 0


def test_counting_excludes_one_more() -> None:
    two = prompt("counting", [{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}])
    sure = [dog(0.95 + n / 100) for n in range(4)]
    assert [value(two, *sure[:n]) for n in range(5)] == [0, 0, 1, 0, 0]
    grade = GRADING.grade(two, sure[:3], GREY)
    assert grade.words == "expected dog < 3, found 3"
    # A third that is not sure does not count.
    assert value(two, *sure[:2], dog(0.8)) == 1


def test_colours_of_the_most_confident_objects_alone_are_looked_at() -> None:
    red = prompt("colors", [{"class": "dog", "count": 1, "color": "red"}])
    assert value(red, dog(0.9, color="red"), dog(0.5, color="blue")) == 1
    assert value(red, dog(0.9, color="blue"), dog(0.95, color="red")) == 1
    assert value(red, dog(0.9, color="blue"), dog(0.8, color="red")) == 0
    assert value(red, dog(0.9, color=" Red")) == 1


def test_a_null_colour_asks_for_none() -> None:
    asked = prompt("single_object", [{"class": "dog", "count": 1, "color": None, "position": None}])
    assert value(asked, dog(0.9)) == 1


def test_positions_are_measured_in_pixels() -> None:
    asked = prompt("position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}])
    cat = Detection("cat", 0.9, (0.5, 0.1, 0.6, 0.3))
    assert value(asked, cat, dog(0.9, (0.1, 0.1, 0.2, 0.3))) == 1
    assert value(asked, cat, dog(0.9, (0.8, 0.1, 0.9, 0.3))) == 0
    # Equal offsets in shares are twice as far across as down in a picture of 200 x 100: left, not above.
    diagonal = GRADING.grade(asked, [cat, dog(0.9, (0.2, -0.2, 0.3, 0.0))], GREY)
    assert diagonal.value == 1
    above = prompt("position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}])
    assert value(above, cat, dog(0.9, (0.2, -0.2, 0.3, 0.0))) == 0
    missing = GRADING.grade(asked, [dog(0.9)], GREY)
    assert missing.value == 0 and "no target for dog to be left of" in missing.words


def test_at_most_sixteen_objects_of_a_class_count() -> None:
    many = prompt("counting", [{"class": "dog", "count": 17}])
    assert value(many, *[dog(0.95)] * 20) == 0


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("red", (0.8, 0.05, 0.05)),
        ("orange", (1.0, 0.55, 0.0)),
        ("yellow", (1.0, 0.95, 0.1)),
        ("green", (0.1, 0.6, 0.2)),
        ("blue", (0.1, 0.2, 0.9)),
        ("purple", (0.5, 0.1, 0.8)),
        ("pink", (1.0, 0.6, 0.75)),
        ("brown", (0.45, 0.25, 0.1)),
        ("black", (0.05, 0.05, 0.06)),
        ("white", (0.95, 0.95, 0.93)),
    ],
)
def test_flat_colours_are_read_exactly(name: str, rgb: tuple[float, float, float]) -> None:
    assert COLORS[int(name_pixels(torch.tensor(rgb)[:, None])[0])] == name


def test_the_mask_says_which_pixels_are_the_object() -> None:
    image = torch.zeros(3, 10, 10)
    image[2] = 1.0
    image[:, 4:6, 4:6] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[4:6, 4:6] = True
    box = (0.0, 0.0, 1.0, 1.0)
    assert pixel_color(image, Detection("dog", 0.9, box)) == "blue"
    assert pixel_color(image, Detection("dog", 0.9, box, encode_mask(mask))) == "red"
    assert pixel_color(image, Detection("dog", 0.9, (0.41, 0.41, 0.42, 0.42))) == "red"


def test_masks_survive_as_run_lengths() -> None:
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    for one in (mask, ~mask, torch.ones(7, 5, dtype=torch.bool), torch.zeros(7, 5, dtype=torch.bool)):
        coded = json.loads(json.dumps(encode_mask(one)))
        assert torch.equal(decode_mask(coded, 7, 5), one)
    # Down columns, as COCO has it.
    corner = torch.zeros(2, 2, dtype=torch.bool)
    corner[1, 0] = True
    assert encode_mask(corner)["counts"] == [1, 1, 2]
    with pytest.raises(UserError, match=r"size \[2, 2\]"):
        decode_mask(encode_mask(corner), 3, 2)
    with pytest.raises(UserError, match="sum to 3"):
        decode_mask({"size": [2, 2], "counts": [3]}, 2, 2)


def test_records_that_cannot_be_graded_are_named() -> None:
    with pytest.raises(UserError, match="'p': no record of GenEval"):
        GRADING.classes([Prompt("p", "a dog")])
    with pytest.raises(UserError, match="colour 'cyan'"):
        GRADING.classes([prompt("colors", [{"class": "dog", "count": 1, "color": "cyan"}])])
    with pytest.raises(UserError, match="include item 0"):
        GRADING.classes([prompt("position", [{"class": "dog", "count": 1, "position": ["left of", 0]}])])
    with pytest.raises(UserError, match=r"github.com/djghosh13/geneval"):
        load_benchmark("geneval").read(None)


def test_published_overalls_are_the_means_of_six() -> None:
    (overall,) = load_benchmark("geneval").figures(TAGS)
    for row in PUBLISHED:
        mean = sum(weight * row.figures[tag] for tag, weight in overall.weights.items())
        assert mean == pytest.approx(row.figures["overall"], abs=0.0076), row.model


@pytest.mark.skipif(not FILE.is_file(), reason="the public prompt files are not here")
def test_every_record_of_the_real_file_can_be_graded() -> None:
    benchmark = load_benchmark("geneval")
    prompts = benchmark.read(FILE.parent)
    assert len(prompts) == 553 and {one.category for one in prompts} == set(TAGS)
    assert len(GRADING.classes(prompts)) == 80
    for one in prompts:
        # A picture that shows what is asked for, in a row, or above and below each other.
        found = []
        for place, item in enumerate(one.meta["include"]):
            relation = (item.get("position") or ["right of"])[0]
            x, y = {"left of": (0.1, 0.4), "right of": (0.7, 0.4), "above": (0.4, 0.1), "below": (0.4, 0.7)}[relation]
            x, y = (x, y) if place else (0.4, 0.4)
            for _ in range(item["count"]):
                found.append(Detection(item["class"], 0.95, (x, y, x + 0.1, y + 0.1), None, item.get("color") or ""))
        assert GRADING.grade(one, found, GREY).value == 1, one
        assert GRADING.grade(one, found[:-1], GREY).value == 0, one
