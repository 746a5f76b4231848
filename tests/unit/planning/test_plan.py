"""Plans: what fits what, the parts of a rank's memory by hand, seconds, advice, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srum_ds.commands.main import main
from srum_ds.commands.plan import bytes_a_second
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.planning.hardware import GPUS
from srum_ds.planning.plan import Plan, make_plan, work_of
from srum_ds.planning.report import plan_text
from srum_ds.planning.seconds import Cluster
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.collect import sampling_of
from tests.support.paths import RECIPES, ROOT

H100 = GPUS["h100-80g"]
LINK = 50e9
STATED = (
    ("bagel_paper", 8, "h100-80g"),
    ("bagel", 8, "h100-80g"),
    ("bagel_1024", 8, "h100-80g"),
    ("bagel_lora", 4, "a100-80g"),
    ("bagel_lora", 8, "a100-40g"),
)
"""The hardware that each recipe of full size says that it is for."""


def planned(recipe: str, gpus: int, gpu: str = "h100-80g", *words: str, nodes: int = 1) -> Plan:
    cfg = load_config(RECIPES / f"{recipe}.yaml", words)
    return make_plan(work_of(cfg, sampling_of(cfg)), Cluster(GPUS[gpu], gpus, nodes, LINK))


@pytest.mark.parametrize(("recipe", "gpus", "gpu"), STATED)
def test_recipes_of_full_size_fit_their_hardware_with_a_tenth_to_spare(recipe: str, gpus: int, gpu: str) -> None:
    plan = planned(recipe, gpus, gpu)
    assert plan.fits
    assert plan.memory.peak <= 0.9 * plan.cluster.hardware.memory


@pytest.mark.parametrize(("recipe", "gpus", "gpu"), STATED)
def test_the_docs_show_the_plans_as_they_are(recipe: str, gpus: int, gpu: str) -> None:
    text = plan_text(planned(recipe, gpus, gpu), f"launch/recipes/{recipe}.yaml")
    assert f"```\n{text}```" in (ROOT / "docs/planning.md").read_text(), f"run: srum-ds plan {recipe} --gpus {gpus}"


def test_every_recipe_of_full_size_is_planned() -> None:
    there = {path.stem for path in RECIPES.glob("bagel*.yaml")}
    assert there == {recipe for recipe, _, _ in STATED}
    for name in there:
        assert JudgePipeline(load_config(RECIPES / f"{name}.yaml")).asking.readout.cure
        assert "obody has run this file" in (RECIPES / f"{name}.yaml").read_text(), name


def test_the_parts_of_a_rank_by_hand() -> None:
    """The paper's recipe on 8 GPUs: 14.607 B parameters, 13.381 B trained, a judge of 8.082 B."""
    plan = planned("bagel_paper", 8)
    stays = plan.memory.stays
    assert stays["weights, sharded"] == 14_607_260_128 * 2 // 8
    trained = 13_381_100_480 // 8
    assert stays["fp32 masters"] == stays["gradients"] == 4 * trained
    assert stays["Adam's moments"] == 8 * trained
    # bf16, and the only copy: the untrained model draws, nothing is averaged.
    assert stays["copy reference"] == 2 * trained
    assert "copy old" not in stays and "copy ema" not in stays
    assert stays["judge's copy"] == 8_081_631_200 * 2 // 8
    assert plan.memory.phases["rollout: drawing"]["gathered weights"] == 14_607_260_128 * 2
    assert plan.memory.persistent == sum(stays.values())
    assert plan.memory.peak == plan.memory.totals[plan.memory.peak_phase]


def test_bytes_move_by_hand() -> None:
    plan = planned("bagel_paper", 8)
    whole = 14_607_260_128 * 2 * 7 / 8
    assert plan.traffic.rollout == whole
    assert plan.traffic.judge == 8_081_631_200 * 2 * 7 / 8
    # Two micro-batches: prompt and image in one pass, and its gradient.
    assert plan.traffic.train == 2 * 2 * whole
    assert plan.traffic.reduced == 2 * 13_381_100_480 * 4 * 7 / 8


def test_fewer_gpus_and_more_memory_a_rank() -> None:
    peaks = [planned("bagel_paper", gpus).memory.peak for gpus in (2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True)
    assert not planned("bagel_paper", 4).fits and planned("bagel_paper", 4, "h200").fits


def test_a_slow_network_costs_seconds_and_nothing_else() -> None:
    one, two = planned("bagel_paper", 8), planned("bagel_paper", 8, nodes=2)
    assert two.memory == one.memory and two.flops == one.flops
    assert two.step_seconds > one.step_seconds
    assert one.gpu_hours == pytest.approx(309 * one.step_seconds * 8 / 3600)


def test_what_a_setting_costs() -> None:
    """Settings that take less, and that no plan may miss."""
    base = planned("bagel", 8)
    assert planned("bagel", 8, "h100-80g", "rollout.text_scale=4").flops.rollout > 1.3 * base.flops.rollout
    assert "copy ema" not in planned("bagel", 8, "h100-80g", "eval.weights=live").memory.stays
    assert "judge's copy" in planned("bagel", 8, "h100-80g", "model.judge=frozen_copy").memory.stays
    assert "SAM" not in planned("bagel", 8, "h100-80g", "regions.kind=grid", "regions.grid_side=2").memory.stays
    kept = planned("bagel", 8, "h100-80g", "train.activation_checkpointing=false")
    assert kept.memory.totals["train: gradient"] > base.memory.totals["train: gradient"]
    assert kept.flops.train.executed < base.flops.train.executed
    assert kept.flops.train.model == base.flops.train.model
    offline = ["train.mode=offline", "data.rollouts=x"]
    trained = planned("bagel", 8, "h100-80g", *offline)
    assert trained.flops.rollout == trained.flops.judge == 0
    assert not any(phase.startswith("rollout") for phase in trained.memory.phases)


def test_drawing_layer_by_layer_takes_less_memory_and_more_traffic() -> None:
    whole = planned("bagel", 8)
    layers = planned("bagel", 8, "h100-80g", "rollout.gather=layers")
    assert whole.memory.whole and not layers.memory.whole
    assert layers.memory.totals["rollout: drawing"] < whole.memory.totals["rollout: drawing"] - 20e9
    # 19 steps and the prompts' reading, for each of two micro-batches.
    assert layers.traffic.rollout == 2 * 20 * whole.traffic.rollout
    # What judges does not train: that alone is gathered then.
    frozen = (layers.parameters - layers.trained) * 2
    assert layers.memory.phases["judge: asking"]["gathered judge"] == frozen
    # auto: as the engine does, by what is free.
    assert not planned("bagel", 4, "a100-40g").memory.whole


def test_a_pool_is_drawn_and_looked_at() -> None:
    base, pooled = planned("bagel", 8), planned("bagel", 8, "h100-80g", "rollout.pool=32", "rollout.pool_timesteps=5")
    # 4 cheap steps for each of 32 images, beside 19 for each of 8.
    added = (pooled.flops.rollout - base.flops.rollout) / base.flops.rollout
    assert 32 * 4 / (8 * 19) < added < 2 * 32 * 4 / (8 * 19)
    assert pooled.memory.totals["rollout: drawing"] > base.memory.totals["rollout: drawing"]


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(RECIPES / "bagel_paper.yaml"), "--gpu", "h100-80g", "--gpus"]
    assert main([*words, "8"]) == 0
    said = capsys.readouterr().out
    assert "fits 8 x h100-80g" in said and "peak 73" in said and "in phase rollout" in said
    assert "not measured on a GPU" in said and "assumed: " in said and "is not on this machine" in said
    assert main([*words, "4"]) == 1
    said = capsys.readouterr().out
    assert "does not fit 4 x h100-80g" in said
    would = said.split("it would fit with any of")[1]
    assert "--gpus 8" in would and "--gpu h200" in would and "model.trains=generation" in would


def test_advice_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(RECIPES / "bagel_paper.yaml"), "--gpus", "4", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    for item in facts["advice"]:
        words = item["change"].split()
        gpus, gpu = ("4", "h100-80g")
        if words[0] == "--gpus":
            gpus, words = words[1], []
        elif words[0] == "--gpu":
            gpu, words = words[1], []
        assert planned("bagel_paper", int(gpus), gpu, *words).memory.peak == item["peak_bytes"]


def test_json_has_what_others_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(RECIPES / "bagel.yaml"), "--gpus", "8", "--gpu", "h100-80g", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["fits"] is True and facts["peak_phase"] in facts["phases"]
    assert facts["limit_bytes"] >= facts["peak_bytes"] == sum(facts["parts"].values())
    assert {"rollout", "judge", "train"} <= facts["seconds"].keys() and facts["gpu_hours"] > 0
    assert facts["shapes"] == "the released BAGEL-7B-MoT"


def test_the_embedded_model_is_planned_from_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "launch/recipes/tiny.yaml", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "tiny_bagel: 0.00 B parameters" in said and "is not on this machine" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "8", "--gpu", "h101"], "h100-80g"),
        (["--gpus", "0"], "--gpus 0"),
        (["--gpus", "3"], "rollout.prompts_per_step"),
        (["--gpus", "8", "--nodes", "3"], "--nodes 3"),
        (["--gpus", "8", "--link", "fast"], "400g"),
        (["--gpus", "8", "model.kind=auto"], "models/BAGEL-7B-MoT"),
        (["--gpus", "8", "train.stepz=1"], "train.steps"),
    ],
)
def test_wrong_input_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(RECIPES / "bagel_paper.yaml"), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_design_without_costs_cannot_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from srum_ds.models.bagel import FAMILY

    monkeypatch.setattr("srum_ds.models.registry.family_of", lambda *_: replace(FAMILY, costs=None))
    cfg = load_config(RECIPES / "bagel.yaml")
    with pytest.raises(UserError, match="does not say what its work costs"):
        work_of(cfg, sampling_of(cfg))


def test_rates_of_networks() -> None:
    assert bytes_a_second("400g") == 50e9 and bytes_a_second("3200") == 400e9
    cluster = Cluster(H100, 16, 2, 50e9)
    # Half of what all ranks need comes over the network once: 8 / 15 of a rank's 15 parts.
    assert cluster.moving(15e9) == pytest.approx(15e9 * 0.5 * 16 / 15 / (50e9 * 0.9))
    assert Cluster(H100, 8, 1, 1.0).moving(375e9) == pytest.approx(1.0)


def test_the_large_config_has_buckets_that_hold_a_layer() -> None:
    settings = json.loads(Path(ROOT / "ds_configs/zero3_large.json").read_text())["zero_optimization"]
    layer = 466_100_000
    assert settings["stage3_prefetch_bucket_size"] > layer
    assert settings["stage3_max_live_parameters"] > 3 * layer
    assert settings["sub_group_size"] == 200_000_000
