"""Evaluation: the result's figures, its files, and a whole evaluation with models of known skill."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, normal
from srum_ds.config import load_config, save_config
from srum_ds.evaluation import ablation_table
from srum_ds.evaluation import processes as drawing
from srum_ds.evaluation.ablation_table import RunOutcome
from srum_ds.evaluation.draw import DrawSettings, cache_key, draw_images, image_key
from srum_ds.evaluation.evaluate import draw_settings, eval_prompts, eval_questions, evaluate_run, grid_positions, main
from srum_ds.evaluation.report import Measured, build_result, markdown, result_table, verdict, write_result
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import Judge
from srum_ds.prompts.shards import write_shards
from srum_ds.rewards.judge.readouts import Replies, Request
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.prompt_set import shapes_prompts
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.world import ShapePrompt, random_scene
from tests.support.paths import RECIPE

SHARDS = {"test": 60}


def example() -> dict:
    return build_result(
        ["color", "shape", "color", "shape"],
        Measured([1, 0, 0, 0], [1, 0.5, 0, 0], [0.5, -0.5, math.nan, -1.0]),
        Measured([1, 0, 1, 0], [1, 0.5, 1, 0.5], [0.5, -0.5, 1.0, -1.0]),
        seed=7,
        seconds=12.34,
        settings={"split": "test"},
    )


def test_result_has_the_figures_and_names_others_rely_on() -> None:
    result = example()
    assert result["base"]["overall"] == 0.25 and result["base"]["n"] == 4
    # s^2 = (0.75^2 + 3 * 0.25^2) / 3 = 0.25, stderr = 0.25.
    assert result["base"]["stderr"] == pytest.approx(0.25)
    assert result["trained"]["by_category"] == {
        "color": {"mean": 1.0, "stderr": 0.0, "n": 2},
        "shape": {"mean": 0.0, "stderr": 0.0, "n": 2},
    }
    assert result["difference"]["mean"] == 0.25
    assert result["difference"]["stderr"] == pytest.approx(0.25)
    assert result["difference"]["by_category"]["color"] == {"mean": 0.5, "stderr": 0.5, "n": 2}
    assert result["base"]["partial"]["mean"] == pytest.approx(0.375)
    assert result["difference"]["partial"]["mean"] == pytest.approx(0.375)
    assert result["seed"] == 7 and result["seconds"] == 12.3


def test_failed_scores_are_counted_and_never_a_number() -> None:
    result = example()
    assert result["base"]["self_reward"]["failed"] == 1
    assert result["base"]["self_reward"]["n"] == 3
    assert result["base"]["self_reward"]["mean"] == pytest.approx(-1 / 3)
    assert result["trained"]["self_reward"]["failed"] == 0
    # The only exact picture of the base, 0.5, scores above both that are left of the others.
    assert result["base"]["judge_auc"] == 1.0


def test_undefined_figures_are_null_not_nan(tmp_path: Path) -> None:
    one = Measured([1.0], self_reward=[math.nan])
    result = build_result(["color"], one, one, seed=0, seconds=1.0)
    write_result(tmp_path, result)
    stored = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert stored == result
    assert stored["base"]["stderr"] is None and stored["base"]["self_reward"] is None
    assert stored["base"]["judge_auc"] is None
    assert "nan" not in markdown(stored).lower()
    assert "no difference established" in verdict(stored)


def test_markdown_and_terminal_table_tell_the_same(tmp_path: Path) -> None:
    result = example()
    write_result(tmp_path, result)
    text = (tmp_path / "eval.md").read_text()
    assert "| color | 2 | 0.500 ± 0.500 | 1.000 ± 0.000 | +0.500 ± 0.500 |" in text
    assert "| **overall** | **4** | **0.250 ± 0.250** | **0.500 ± 0.289** | **+0.250 ± 0.250** |" in text
    assert "| self-reward | 3 / 4 |" in text
    assert "| split | `test` |" in text
    console = Console(file=io.StringIO(), width=120)
    console.print(result_table(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for cell in ("0.250 ± 0.250", "+0.500 ± 0.500", "partial credit", "judge AUC"):
        assert cell in shown


@pytest.mark.parametrize(
    ("base", "trained", "words"),
    [
        ([0] * 20, [1] * 10 + [0] * 10, "+0.500 (+4.4 standard errors): better"),
        ([1] * 10 + [0] * 10, [0] * 20, "-0.500 (-4.4 standard errors): worse"),
        ([1, 0] * 10, [0, 1] * 10, "+0.000 (+0.0 standard errors): no difference established"),
        ([1, 0] * 10, [1, 0] * 10, "+0.000: no difference established"),
    ],
)
def test_verdict_in_one_line(base: list, trained: list, words: str) -> None:
    line = verdict(build_result(["a"] * 20, Measured(base), Measured(trained), 0, 0.0))
    assert line.endswith(words)
    assert f"trained {np.mean(trained):.3f} against base {np.mean(base):.3f}" in line


def test_result_on_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="could not be written .No space left on device"):
        write_result(tmp_path, example())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "old"


def first_number(key: Key) -> float:
    """The first of the numbers that a key seeds."""
    return normal((16, 64), *key)[0, 0].item()


class SkilledModel:
    """Draws what is asked for where a normal number of the image's key is below its skill, else nothing."""

    drawn: list[str] = []

    def __init__(self, folder: Path):
        self.folder = folder
        self.skill = float((folder / "model.safetensors").read_text())

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16

    def generate(
        self, prompts: Sequence[Prompt], keys: Sequence[Key], grid: tuple[int, int], sampling: FlowSampling
    ) -> tuple[Tensor, Tensor]:
        assert len(keys) == len(prompts) and grid == (4, 4)
        SkilledModel.drawn.append(self.folder.name)
        images = torch.zeros(len(prompts), 3, 64, 64)
        for i, prompt in enumerate(prompts):
            if first_number(keys[i]) < self.skill:
                scene = random_scene(random.Random(0), ShapePrompt.from_meta(prompt.meta), train=False)
                images[i] = render_scenes([scene])[0]
        return torch.zeros(len(prompts), 16, 64), images

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        assert list(image_index or ()) == list(range(len(images)))
        assert all(question.startswith("does the picture show ") for question in questions)
        likely = torch.tensor([0.9 if bool(image.max() > 0) else 0.2 for image in images])
        return torch.stack((likely, 1 - likely), dim=1).log()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, prompts in shapes_prompts(SHARDS).items():
        write_shards(tmp_path / "shards", split, prompts)
    run = tmp_path / "runs" / "one"
    for folder, skill in ((tmp_path / "base", -0.3), (run / "export", 0.5)):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(str(skill))
        (folder / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: {tmp_path / 'base'}, kind: bagel}}\n"
        f"data: {{shards: {tmp_path / 'shards'}}}\n"
        f"run: {{dir: {run}}}\n"
        "eval: {prompts: 48, batch: 20}\n"
    )
    save_config(load_config(tmp_path / "recipe.yaml"), run / "config.yaml")
    monkeypatch.setattr(drawing, "load_model", lambda folder, kind, dtype, device: SkilledModel(folder))
    drawing._held.clear()
    SkilledModel.drawn.clear()
    return run


def expected_share(seed: int, skill: float) -> float:
    prompts = shapes_prompts(SHARDS)["test"][:48]
    return float(np.mean([first_number(("eval", seed, prompt.id, 0)) < skill for prompt in prompts]))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_evaluation_measures_the_skill_of_both_models(run_dir: Path) -> None:
    console = quiet()
    result = evaluate_run(run_dir, processes=1, console=console)
    assert result["base"]["overall"] == pytest.approx(expected_share(1234, -0.3))
    assert result["trained"]["overall"] == pytest.approx(expected_share(1234, 0.5))
    assert result["base"]["n"] == 48
    assert {entry["n"] for entry in result["base"]["by_category"].values()} == {8}
    # Better and never worse on the same seed: the paired error is below the unpaired one.
    assert result["difference"]["mean"] > 0.2
    assert result["difference"]["stderr"] < result["base"]["stderr"] + result["trained"]["stderr"]
    assert result["base"]["judge_auc"] == 1.0
    share = result["trained"]["overall"]
    assert result["trained"]["self_reward"]["mean"] == pytest.approx(0.8 * share - 0.6 * (1 - share))
    assert json.loads((run_dir / "result.json").read_text()) == result
    assert "Base against trained" in (run_dir / "eval.md").read_text()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "better" in text and "overall" in text
    assert "It works: the trained model is better" in (run_dir / "report.html").read_text()
    grid = Image.open(run_dir / "samples" / "eval_grid.png")
    # Two prompts of each of six categories in two columns of pairs, 192 pixels a picture.
    assert grid.height > 6 * 192 and grid.width > 4 * 192


def test_base_is_drawn_once_for_the_same_settings(run_dir: Path) -> None:
    first = evaluate_run(run_dir, processes=1, console=quiet())
    assert SkilledModel.drawn == ["base"] * 3 + ["export"] * 3
    SkilledModel.drawn.clear()
    second = evaluate_run(run_dir, processes=1, console=quiet())
    assert SkilledModel.drawn == ["export"] * 3
    assert second["settings"]["base_from_cache"] and not first["settings"]["base_from_cache"]
    for side in ("base", "trained", "difference"):
        assert second[side] == first[side]
    SkilledModel.drawn.clear()
    other = evaluate_run(run_dir, ["eval.seed=5"], processes=1, console=quiet())
    assert SkilledModel.drawn == ["base"] * 3 + ["export"] * 3
    assert other["base"]["overall"] == pytest.approx(expected_share(5, -0.3))
    SkilledModel.drawn.clear()
    evaluate_run(run_dir, processes=1, cache=False, console=quiet())
    assert SkilledModel.drawn == ["base"] * 3 + ["export"] * 3


def test_new_base_weights_are_drawn_anew(run_dir: Path) -> None:
    evaluate_run(run_dir, processes=1, console=quiet())
    (run_dir.parents[1] / "base" / "model.safetensors").write_text("0.50")
    result = evaluate_run(run_dir, processes=1, console=quiet())
    assert result["base"]["overall"] == pytest.approx(expected_share(1234, 0.5))
    assert result["difference"]["mean"] == 0.0
    assert not result["settings"]["base_from_cache"]


@pytest.mark.parametrize("left", [-100, 0, 10])
def test_a_broken_cache_is_drawn_anew(run_dir: Path, left: int) -> None:
    first = evaluate_run(run_dir, processes=1, console=quiet())
    (stored,) = (run_dir.parent / ".eval_cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:left])
    second = evaluate_run(run_dir, processes=1, console=quiet())
    assert not second["settings"]["base_from_cache"]
    assert second["base"] == first["base"]


def test_pictures_do_not_depend_on_their_batch(run_dir: Path) -> None:
    folder = run_dir.parents[1] / "base"
    prompts = shapes_prompts(SHARDS)["test"]
    questions = [f"does the picture show {prompt.text}?" for prompt in prompts]
    results = []
    for batch in (7, 60):
        settings = DrawSettings("bagel", (64, 64), FlowSampling(), seed=3, batch=batch)
        results.append(draw_images([folder], prompts, questions, settings)[0])
    assert torch.equal(results[0].images_NCHW, results[1].images_NCHW)
    assert results[0].images_NCHW.dtype == torch.uint8


def test_cache_key_changes_with_everything_that_changes_pictures() -> None:
    prompts = shapes_prompts(SHARDS)["test"]
    questions = [prompt.text for prompt in prompts]
    settings = DrawSettings("bagel", (64, 64), FlowSampling(), seed=3, batch=7)
    keys = [
        cache_key("0f", prompts, questions, settings),
        cache_key("f0", prompts, questions, settings),
        cache_key("0f", prompts[:-1], questions[:-1], settings),
        cache_key("0f", prompts[::-1], questions, settings),
        cache_key("0f", prompts, [*questions[:-1], "other"], settings),
        cache_key("0f", prompts, questions, DrawSettings("bagel", (64, 64), FlowSampling(), 4, 7)),
        cache_key("0f", prompts, questions, DrawSettings("bagel", (64, 64), FlowSampling(9), 3, 7)),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key("0f", prompts, questions, settings) == keys[0]


def test_what_is_missing_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="eval.prompts=61, but .*shards has 60 prompts in the split 'test'"):
        evaluate_run(run_dir, ["eval.prompts=61"], console=quiet())
    with pytest.raises(UserError, match="eval.key=value only"):
        evaluate_run(run_dir, ["train.steps=3"], console=quiet())
    (run_dir / "export").rename(run_dir / "elsewhere")
    with pytest.raises(UserError, match="export: missing; the run has not finished"):
        evaluate_run(run_dir, console=quiet())
    (run_dir / "export").mkdir()
    with pytest.raises(UserError, match="export: no model there"):
        evaluate_run(run_dir, processes=1, console=quiet())
    assert main([str(run_dir.parent)]) == 2
    assert "no config.yaml" in capsys.readouterr().err
    assert not (run_dir / "result.json").exists()


def test_cache_keys_are_those_of_earlier_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded at 138c5fc: what was drawn and measured before stays valid, and an ablation goes on with it."""
    monkeypatch.setattr(torch, "__version__", "recorded")
    for words in ([], ["model.kind=bagel"]):
        cfg = load_config(RECIPE, ["eval.prompts=2", *words])
        prompts = eval_prompts(cfg)
        settings = replace(draw_settings(cfg), device="cpu")
        assert cache_key("0f", prompts, eval_questions(cfg, prompts), settings) == "a9d7d4f3e9cb8aeef11557c5c712b5c5"


def test_an_images_seed_is_the_evaluations_the_prompts_and_the_samples() -> None:
    # Another order or another part would draw other images than every earlier version.
    assert image_key(1234, Prompt("shapes-test-00000", "a circle"), 3) == ("eval", 1234, "shapes-test-00000", 3)


def test_a_readout_of_ones_own_has_a_cache_key_that_names_its_settings() -> None:
    class Own:
        needs_question, think, cure = True, False, ""

        def __init__(self, answers: tuple[str, ...]) -> None:
            self.answers = answers

        def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
            raise NotImplementedError

    prompts = shapes_prompts(SHARDS)["test"]
    keys = [
        cache_key("0f", prompts, [], DrawSettings("bagel", (64, 64), FlowSampling(), 3, 7, readout=readout))
        for readout in (Own(("yes", "no")), Own(("yes", "no")), Own(("good", "bad")))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_shown_prompts_are_the_first_of_each_category() -> None:
    assert grid_positions(["b", "a", "b", "b", "a"], 2) == [0, 2, 1, 4]


def test_brackets_in_names_are_shown_as_they_are() -> None:
    shown = Console(file=io.StringIO(), width=200)
    name = "own.yaml:lora.targets=[q_proj] [/x]"
    shown.print(ablation_table.screen_table(ablation_table.build_table([RunOutcome(name, 0, [0, 1], [1, 1], 8, 1.0)])))
    shown.print(result_table(build_result(["[/close]", "[red]"], Measured([0, 1]), Measured([1, 1]), 0, 1.0)))
    said = shown.file.getvalue()  # type: ignore[attr-defined]
    assert all(text in said for text in (name, "[/close]", "[red]"))
