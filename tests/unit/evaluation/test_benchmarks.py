"""Benchmarks and checkers by name: what the embedded world's says, what it refuses, and one of the user's own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.evaluation.benchmarks import Outcome, RegionTruth, load_benchmark, load_checks
from srum_ds.evaluation.checkers import load_checker
from srum_ds.evaluation.draw import refuse_broken
from srum_ds.evaluation.evaluate import (
    benchmark_for,
    categories_left_out,
    check_images,
    draw_settings,
    eval_prompts,
    outcomes_key,
)
from srum_ds.evaluation.labels import drawn_and_checked
from srum_ds.prompts.shards import write_shards
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.prompt_set import shapes_prompts
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.truth import crop_truths
from srum_ds.worlds.shapes.world import ShapePrompt, random_scene
from tests.support.paths import MODEL, RECIPE

OWN = '''
from srum_ds.evaluation.benchmarks import Outcome

class Bright:
    """Exact where anything is bright."""
    name = "bright"
    def refuse(self, prompts, where):
        pass
    def check(self, prompts, images_NCHW):
        return [Outcome(bool(image.max() > 0.5), float(image.max())) for image in images_NCHW]
    def region_truths(self, rng, prompt, image_CHW, boxes):
        return [[] for _ in boxes]
'''


def test_the_embedded_world_says_what_its_checker_says() -> None:
    prompts = shapes_prompts({"test": 12})["test"]
    scenes = [random_scene(random.Random(i), ShapePrompt.from_meta(p.meta), train=False) for i, p in enumerate(prompts)]
    # Every second image is another prompt's.
    images_NCHW = render_scenes([scenes[i if i % 2 == 0 else i - 1] for i in range(12)])
    outcomes = load_checks("shapes").check(prompts, images_NCHW)
    found = [check(prompt, image) for prompt, image in zip(prompts, images_NCHW, strict=True)]
    assert outcomes == [Outcome(one.exact, one.partial) for one in found]
    assert [outcome.exact for outcome in outcomes] == load_checker("shapes")(prompts, images_NCHW)
    assert any(outcome.exact for outcome in outcomes) and not all(outcome.exact for outcome in outcomes)
    boxes = [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]
    truths = load_checks("shapes").region_truths(random.Random(5), prompts[0], images_NCHW[0], boxes)
    assert truths == crop_truths(random.Random(5), prompts[0], images_NCHW[0], boxes)
    assert all(isinstance(said, RegionTruth) for of_box in truths for said in of_box)


def test_images_are_checked_in_batches_and_in_order() -> None:
    class Counting:
        name = "counting"
        sizes: list[int] = []

        def refuse(self, prompts: Sequence[Prompt], where: str) -> None: ...

        def check(self, prompts: Sequence[Prompt], images_NCHW: torch.Tensor) -> list[Outcome]:
            self.sizes.append(len(prompts))
            return [Outcome(False, float(image.mean())) for image in images_NCHW]

        def region_truths(
            self, rng: random.Random, prompt: Prompt, image_CHW: torch.Tensor, boxes: Sequence[Sequence[float]]
        ) -> list[list[RegionTruth]]:
            return [[] for _ in boxes]

    images_NCHW = (torch.arange(5) * 51).to(torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    benchmark = Counting()
    outcomes = check_images(benchmark, [Prompt(str(i), "x") for i in range(5)], images_NCHW, 2)
    assert benchmark.sizes == [2, 2, 1]
    assert [outcome.partial for outcome in outcomes] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


def test_prompts_that_nobody_can_score_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    good = shapes_prompts({"test": 2})["test"]
    strange = replace(good[1], id="strange", meta={})
    write_shards(tmp_path, "test", [good[0], strange])
    cfg = load_config(RECIPE, [f"data.shards={tmp_path}", "eval.prompts=2"])
    with pytest.raises(UserError, match=r"split 'test': prompt 'strange' is not of the shapes world"):
        benchmark_for(cfg, eval_prompts(cfg))
    with pytest.raises(UserError, match="or give --labels"):
        drawn_and_checked(cfg)


@pytest.mark.parametrize("name", ["pixels", "os.path:join", "tests.unit.evaluation.test_benchmarks:OWN"])
def test_what_is_no_benchmark_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"eval.benchmark={name}"):
        load_checks(name)


def test_a_misspelt_benchmark_is_named_as_it_was_written() -> None:
    with pytest.raises(UserError, match="^--benchmark=combench: no such benchmark.*did you mean 'compbench'"):
        load_benchmark("combench")


def test_what_is_no_checker_is_named() -> None:
    with pytest.raises(UserError, match="watch.checker=os:name: is str, expected a function"):
        load_checker("os:name")


def test_a_benchmark_of_ones_own_scores_and_shows_in_the_key_of_the_outcomes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path}/own.py:Bright"
    cfg = load_config(RECIPE, [f"eval.benchmark={name}", "eval.prompts=2"])
    prompts = eval_prompts(cfg)
    images_NCHW = torch.tensor([0, 204], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    outcomes = check_images(benchmark_for(cfg, prompts), prompts, images_NCHW, 60)
    assert [(outcome.exact, outcome.partial) for outcome in outcomes] == [(False, 0.0), (True, pytest.approx(0.8))]
    (tmp_path / "export").symlink_to(MODEL)
    default = load_config(RECIPE, ["eval.prompts=2"])
    assert draw_settings(cfg) == draw_settings(default)
    assert outcomes_key(cfg, tmp_path, prompts) == f"{outcomes_key(default, tmp_path, prompts)}-{name}"


def test_categories_that_the_first_prompts_lack_are_told_of(tmp_path: Path) -> None:
    prompts = [Prompt(f"p{k}", "x", category) for k, category in enumerate(["color", "color", "shape", "numeracy"])]
    write_shards(tmp_path, "test", prompts)
    cfg = load_config(RECIPE, [f"data.shards={tmp_path}", "eval.prompts=3"])
    assert categories_left_out(cfg, eval_prompts(cfg)) == ["numeracy"]
    assert categories_left_out(cfg, prompts) == []


def test_a_credit_that_is_none_never_gets_into_a_mean() -> None:
    class Broken:
        name = "broken"

        def refuse(self, prompts: Sequence[Prompt], where: str) -> None:
            pass

        def check(self, prompts: Sequence[Prompt], images_NCHW: torch.Tensor) -> list[Outcome]:
            return [Outcome(False, 0.0 if prompt.id == "p0" else float("nan")) for prompt in prompts]

        def region_truths(
            self, rng: random.Random, prompt: Prompt, image_CHW: torch.Tensor, boxes: Sequence[Sequence[float]]
        ) -> list[list[RegionTruth]]:
            return []

    images_NCHW = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(UserError, match="broken gave the image of prompt 'p1' a partial credit of nan"):
        check_images(Broken(), [Prompt("p0", "x"), Prompt("p1", "x")], images_NCHW, 8)


def test_an_image_without_numbers_is_no_black_image() -> None:
    images_NCHW = torch.zeros(2, 3, 4, 4)
    prompts = [Prompt("p0", "x"), Prompt("p1", "x")]
    refuse_broken(images_NCHW, prompts, Path("runs/x/export"))
    images_NCHW[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="runs/x/export: the image of prompt 'p1' holds values that are no numbers"):
        refuse_broken(images_NCHW, prompts, Path("runs/x/export"))
