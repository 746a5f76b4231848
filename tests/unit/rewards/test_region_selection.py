"""From candidates to regions: clipping, ranking, suppression, the count, and the judge's filter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.rewards.regions import non_maximum, select
from srum_ds.rewards.regions.boxes import Candidates, candidates_of, first_of_each
from srum_ds.rewards.regions.components import Components
from srum_ds.rewards.regions.pipeline import Filter, RegionFinder
from srum_ds.rewards.regions.relevance import keep_relevant
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt, Regions
from tests.support.judges import ANSWERS, RIGHT, ColourJudge, picture, samples_showing

ONE = Prompt(id="p1", text="a green circle", phrases=("a green circle",))
ABOUT_PROMPT = Template(text="is this in {{ prompt }}?", name="about_prompt", sha256="")


def of(*boxes: Sequence[float], areas: Sequence[float] | None = None) -> Candidates:
    return candidates_of(boxes, areas or [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes])


def test_boxes_are_clipped_and_those_that_are_nothing_then_are_dropped() -> None:
    inside = (0.25, 0.25, 0.5, 0.5)
    found = of(
        (-0.5, 0.5, 0.25, 1.5),
        (1.0, 0.0, 1.5, 0.5),
        (-1.0, -1.0, 0.0, 0.0),
        (0.5, 0.5, 0.5, 0.75),
        (0.75, 0.75, 0.5, 0.5),
        (math.nan, 0.0, 0.5, 0.5),
        (0.0, 0.0, math.inf, 0.5),
        inside,
        areas=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
    )
    regions = select([found, of(), of(inside)], max_count=10)
    assert regions.owner_R.tolist() == [0, 0, 2]
    assert regions.boxes_R4.tolist() == [[0.0, 0.5, 0.25, 1.0], list(inside), list(inside)]


def test_the_largest_objects_stay_and_ties_keep_the_proposers_order() -> None:
    boxes = [(0.0, 0.0, 0.1, 0.1), (0.2, 0.2, 0.9, 0.9), (0.5, 0.0, 0.6, 0.1)]
    # A wide box around a thin object is ranked by the object.
    found = of(*boxes, areas=[0.01, 0.005, 0.01])
    assert select([found], max_count=3).boxes_R4[:, 0].tolist() == pytest.approx([0.0, 0.5, 0.2])
    assert select([found], max_count=1).boxes_R4[:, 0].tolist() == pytest.approx([0.0])
    assert len(select([found], max_count=3, min_area=0.006)) == 2


def test_overlap_is_taken_off_before_the_count_and_the_margin() -> None:
    # Two that share 2/3 of their union, and one apart that touches them only once widened.
    found = of((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.4), (0.6, 0.0, 0.9, 0.4), areas=[0.3, 0.2, 0.1])
    kept = select([found], max_count=2, overlap=0.75, pad=0.1)
    assert kept.boxes_R4.tolist() == [pytest.approx([0.0, 0.0, 0.6, 0.6]), pytest.approx([0.5, 0.0, 1.0, 0.5])]
    # 0.8 is the overlap of the first two.
    assert select([found], max_count=2, overlap=0.81).boxes_R4[1].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.4])


def test_suppression_is_greedy() -> None:
    # 0 takes out 1; 2 overlaps 1 alone, and so stays; 3 equals 2.
    boxes = torch.tensor([[0.0, 0, 4, 1], [1.0, 0, 5, 1], [3.0, 0, 6, 1], [3.0, 0, 6, 1]])
    assert non_maximum(boxes, 0.4).tolist() == [0, 2]
    assert non_maximum(boxes, 0.99).tolist() == [0, 1, 2]
    assert non_maximum(boxes, 1.0).tolist() == [0, 1, 2, 3]
    assert non_maximum(torch.zeros(0, 4), 0.5).tolist() == []


@pytest.mark.parametrize("setting", [{"max_count": 0}, {"min_area": 2.0}, {"overlap": -0.1}, {"pad": -1.0}])
def test_settings_out_of_range_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match="overlap" if "overlap" in setting else next(iter(setting))):
        select([of()], **({"max_count": 1} | setting))  # type: ignore[arg-type]


def regions_at(*cells: tuple[int, int, int]) -> Regions:
    boxes = [[x / 4, y / 4, (x + 1) / 4, (y + 1) / 4] for _, x, y in cells]
    return Regions(owner_R=torch.tensor([cell[0] for cell in cells]), boxes_R4=torch.tensor(boxes))


def images() -> Tensor:
    first = picture(("red", 0, 0), ("green", 1, 1), ("blue", 2, 2))
    return torch.stack([first, picture(("green", 0, 0), ("red", 3, 3))])


CELLS = ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 0), (1, 3, 3))


def test_the_filter_keeps_what_the_prompt_is_about() -> None:
    regions = regions_at(*CELLS)
    for template in (ABOUT_PROMPT, load_template("shapes_local")):
        kept = keep_relevant(ColourJudge(), images(), regions, (RIGHT, ONE), template, ANSWERS)
        assert kept.owner_R.tolist() == [0, 0, 1]
        assert torch.equal(kept.boxes_R4, regions.boxes_R4[[0, 2, 3]])
        assert kept.failed == 0
        assert kept.asked == (5 if template is ABOUT_PROMPT else 8)


def test_an_answer_that_cannot_be_used_throws_nothing_away() -> None:
    def spoil(question: str, crop: Tensor) -> bool:
        return "red circle" in question

    regions = regions_at(*CELLS)
    kept = keep_relevant(ColourJudge(spoil), images(), regions, (RIGHT, ONE), ABOUT_PROMPT, ANSWERS)
    assert kept.owner_R.tolist() == [0, 0, 0, 1]
    assert (kept.asked, kept.failed) == (5, 3)
    # Of two answers about a crop, the one that is known decides.
    kept = keep_relevant(ColourJudge(spoil), images(), regions, (RIGHT, ONE), load_template("shapes_local"), ANSWERS)
    assert kept.boxes_R4[kept.owner_R == 0].tolist() == [regions.boxes_R4[2].tolist()]
    assert (kept.asked, kept.failed) == (8, 3)


@pytest.mark.parametrize(("batch", "calls"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (64, [5])])
def test_crops_are_asked_about_in_batches_and_the_same_stay(batch: int, calls: list[int]) -> None:
    whole = regions_at(*CELLS)
    judge = ColourJudge()
    kept = keep_relevant(judge, images(), whole, (RIGHT, ONE), ABOUT_PROMPT, ANSWERS, batch=batch)
    assert [pictures for pictures, _ in judge.calls] == calls
    assert kept.asked == len(whole) == 5
    assert kept.owner_R.tolist() == [0, 0, 1]
    empty = Regions(owner_R=whole.owner_R[:0], boxes_R4=whole.boxes_R4[:0])
    assert keep_relevant(judge, images(), empty, (RIGHT, ONE), ABOUT_PROMPT, ANSWERS, batch=batch).asked == 0
    assert len(judge.calls) == len(calls)


def test_a_filter_that_asks_the_same_of_every_crop_is_refused() -> None:
    regions = regions_at(*CELLS)
    nothing = Template(text="is there anything?", name="nothing", sha256="")
    with pytest.raises(UserError, match="nothing mentions neither"):
        keep_relevant(ColourJudge(), images(), regions, (RIGHT, ONE), nothing, ANSWERS)
    bare = Prompt(id="bare", text="a green circle")
    with pytest.raises(UserError, match="'bare' has none"):
        keep_relevant(ColourJudge(), images(), regions, (RIGHT, bare), load_template("shapes_local"), ANSWERS)


def test_the_count_is_limited_after_the_filter() -> None:
    samples = samples_showing((RIGHT,), ((picture(("green", 0, 0), ("green", 1, 0), ("red", 2, 2), ("blue", 3, 3)),),))
    wanted = Filter(ABOUT_PROMPT, ANSWERS, candidates=10)
    judge = ColourJudge()
    whole = RegionFinder(Components(), max_count=2)(judge, samples)
    assert whole.boxes_R4[:, 1].tolist() == pytest.approx([2 / 64, 2 / 64])
    assert judge.calls == []
    # Without the filter the two largest (the first two) are green; with it the red and the blue one are left.
    kept = RegionFinder(Components(), max_count=2, filter=wanted)(judge, samples)
    assert (kept.boxes_R4[:, 0] * 64).tolist() == pytest.approx([34.0, 50.0])
    one = RegionFinder(Components(), max_count=1, filter=wanted)(judge, samples)
    assert (one.boxes_R4[:, 0] * 64).tolist() == pytest.approx([34.0])
    few = RegionFinder(Components(), max_count=2, filter=Filter(ABOUT_PROMPT, ANSWERS, candidates=3))(judge, samples)
    assert len(few) == 1
    assert len(first_of_each(whole, 5)) == 2
