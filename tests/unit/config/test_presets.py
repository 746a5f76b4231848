"""The shipped recipes say what the method's facts say, and differ from each other only where they claim to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.config import diff_configs, load_config
from srum_ds.evaluation.evaluate import draw_settings
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import count_tokens
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.types import Judged, Regions, TrainView
from srum_ds.worlds.shapes.prompt_set import shapes_prompts
from tests.support.batches import losses_of, map_of, samples_of, scores_of, weighed
from tests.support.paths import CONFORMANCE, RECIPES
from tests.support.released import released_regions

NAMED = ("srum", "paper", "sft", "global_only", "local_only")


def changed(name: str, base: str = "tiny") -> dict[str, object]:
    pairs = diff_configs(load_config(RECIPES / f"{base}.yaml"), load_config(RECIPES / f"{name}.yaml"))
    return {key: new for key, _, new in pairs if key not in ("run.dir", "train.lr")}


def test_named_recipes_draw_equally_many_pictures_from_one_base_into_folders_of_their_own() -> None:
    configs = [load_config(RECIPES / f"{name}.yaml") for name in NAMED]
    drawn = {c.train.steps * c.rollout.prompts_per_step * c.rollout.images_per_prompt for c in configs}
    assert drawn == {120 * 64}
    assert len({c.run.dir for c in configs}) == len(NAMED)
    assert len({(c.model.path, c.data.shards) for c in configs}) == 1
    # One table measures all alike.
    measured = {(c.eval.split, c.eval.prompts, c.eval.seed, draw_settings(c).sampling) for c in configs}
    assert len(measured) == 1
    # There are prompts enough for a step of the paper's recipe.
    assert len(shapes_prompts()["train"]) > 64


def test_srum_is_the_default() -> None:
    assert changed("srum") == {}


def test_one_sided_recipes_differ_from_the_default_in_the_reward_alone() -> None:
    assert changed("global_only") == {
        "regions.kind": "none",
        "reward.local_weight": 0.0,
        "reward.missing_penalty": 0.0,
    }
    assert changed("local_only") == {"reward.global_weight": 0.0}


def test_sft_has_no_reward_and_no_constraint() -> None:
    cfg = load_config(RECIPES / "sft.yaml")
    assert get_objective(cfg.objective.name).weights == "none" and cfg.objective.constraint == "none"


def test_both_paper_recipes_have_the_released_arithmetic() -> None:
    for name in ("paper", "bagel_paper"):
        cfg = load_config(RECIPES / f"{name}.yaml")
        assert cfg.objective.name == "weighted" and get_objective("weighted").weights == "positive"
        assert (cfg.objective.constraint, cfg.objective.constraint_weight) == ("target", 0.5)
        t = cfg.train
        assert (t.betas, t.eps, t.weight_decay, t.max_grad_norm) == ((0.9, 0.95), 1e-15, 0.0, 1.0)
        assert (t.timestep_distribution, t.timestep_shift, t.caption_dropout) == ("logit_normal", 1.0, 0.1)
        assert cfg.rollout.images_per_prompt == 1 and cfg.rollout.weights == "reference"
        assert cfg.regions.max_count == 10 and cfg.eval.weights == "live"


def test_the_full_size_recipe_has_the_released_numbers_and_loads_without_the_weights() -> None:
    cfg = load_config(RECIPES / "bagel_paper.yaml")
    assert not Path(cfg.model.path).exists()
    r = cfg.rollout
    assert r.image_size == (1024, 1024) and r.num_timesteps == 50 and r.timestep_shift == 3.0
    assert (r.text_scale, r.interval, r.renorm, r.renorm_min) == (4.0, (0.4, 1.0), "global", 0.0)
    # Without the folder, its design must be said.
    named = load_config(RECIPES / "bagel_paper.yaml", ["model.kind=bagel"])
    assert draw_settings(named).sampling.text_scale == 4.0
    assert (r.prompts_per_step, cfg.deepspeed.ranks) == (16, 8)
    j = cfg.judge
    assert (j.readout, j.regional, j.think, j.temperature, j.max_new_tokens) == ("generate", "boxes", True, 0.0, 4096)
    assert (cfg.regions.kind, cfg.regions.sam_model, cfg.regions.max_count) == ("sam", "facebook/sam-vit-huge", 10)
    # The questions fit the way they are asked.
    assert JudgePipeline(cfg).asking.readout.think
    t = cfg.train
    assert (t.lr, t.warmup_steps, t.steps, t.timesteps_per_image) == (2e-5, 100, 309, 1)
    assert (t.precision, cfg.model.trains, cfg.model.judge) == ("bf16", "transformer", "frozen_copy")


def test_the_paper_recipe_equals_the_release_to_1e_6() -> None:
    """The conformance set's `srum` case through the functions that a step of the recipe runs."""
    folder = CONFORMANCE / "bagel_a"
    if not folder.is_dir():
        pytest.skip(f"the conformance set is not at {folder}")
    case = json.loads((folder / "cases.json").read_text())["cases"]["srum"]
    tensors = {k: v for k, v in load_file(folder / "cases.safetensors").items() if k.startswith("srum/")}
    height, width = case["image_hw"]
    cfg = load_config(RECIPES / "paper.yaml", [f"rollout.image_size=[{height},{width}]"])
    owner, boxes, local = released_regions(case)
    target_MC, velocity_MC = tensors["srum/target_bad"], tensors["srum/velocity"]
    n, channels = 2, target_MC.shape[1]
    grid = (2, 3)
    shape = (n, 1, grid[0] * grid[1], channels)
    samples = replace(
        samples_of(torch.zeros(shape[0], *shape[2:]), grid, [0, 1]), images_NCHW=torch.zeros(n, 3, height, width)
    )
    whole_N = [float(case[f"global_score_{i}"]) for i in range(n)]
    judged = Judged(samples, Regions(owner, boxes), scores_of(whole_N, local.tolist()))
    view = TrainView({}, target_MC.reshape(shape), torch.ones(shape[:3], dtype=torch.bool))
    batch = weighed(cfg, judged, view)
    assert torch.allclose(map_of(batch).flatten(), tensors["srum/token_rewards"], rtol=0, atol=1e-6)
    losses = losses_of(cfg, batch, velocity_MC.reshape(shape))
    # The images themselves are the constraint's target, as in the released data.
    found = float(losses.sum() / count_tokens([batch]))
    assert found == pytest.approx(float(tensors["srum/same_loss"]), rel=0, abs=1e-6)
