"""What a run counts of its steps: FLOPs by phase, bytes, and the device's peak."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srum_ds.config import Config, load_config
from srum_ds.models import costs_of
from srum_ds.planning.accounting import Accounting, open_accounting
from srum_ds.planning.hardware import GPUS, measured_product, peak_of
from srum_ds.planning.work import Seen, Work
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.collect import sampling_of
from srum_ds.types import Judged, Prompt, Regions
from tests.support.batches import samples_of, scores_of
from tests.support.paths import RECIPE

WORDS = ("rollout.images_per_prompt=2", "rollout.prompts_per_step=2", "rollout.micro_batch_prompts=1")


def opened(*words: str, ranks: int = 1) -> Accounting:
    cfg = load_config(RECIPE, [*WORDS, *words])
    engine: Any = SimpleNamespace(device=torch.device("cpu"), world_size=ranks)
    accounting, peak, _ = open_accounting(cfg, JudgePipeline(cfg), sampling_of(cfg), engine)
    assert accounting is not None and accounting.peak == peak
    return accounting


def judged(regions: int, raw: tuple[str, ...] = ()) -> Judged:
    """Two images of one prompt, all regions on the first."""
    samples = samples_of(torch.zeros(2, 16, 64), (4, 4), [0, 0])
    prompt = Prompt("a", "a red circle above a blue square", phrases=("a red circle", "a blue square"))
    samples = replace(samples, prompts=(prompt,))
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).repeat(regions, 1)
    scores = replace(scores_of([0.0, 0.0], [0.0] * regions), raw=raw)
    return Judged(samples, Regions(torch.zeros(regions, dtype=torch.int64), boxes), scores)


def test_a_step_is_its_images_regions_and_views() -> None:
    accounting = opened()
    none, some = accounting.flops([judged(0)]), accounting.flops([judged(3)])
    assert some["rollout"] == none["rollout"] and some["train"] == none["train"]
    cfg = accounting.work.cfg
    costs = accounting.work.costs
    questions = ["is this a red circle?", "is this a blue square?"]
    crops = 3 * costs.answer_flops(cfg.judge.crop_size, questions)
    assert some["judge"] - none["judge"] == pytest.approx(crops, rel=0.02)
    twice = accounting.flops([judged(3), judged(3)])
    assert twice == {phase: 2 * flops for phase, flops in some.items()}


def test_the_filter_counts_what_it_asked() -> None:
    accounting = opened("regions.filter=true")
    few, more = judged(1), judged(1)
    more = replace(more, regions=replace(more.regions, asked=6))
    added = accounting.flops([more])["judge"] - accounting.flops([few])["judge"]
    work = accounting.work
    questions = work.filter_questions("a red circle above a blue square", ())
    assert added == pytest.approx(6 * work.costs.answer_flops(work.cfg.judge.crop_size, questions))


def test_other_policies_and_views_add_to_training() -> None:
    both = opened().flops([judged(0)])["train"]
    words = ("objective.name=weighted", "objective.constraint=none")
    alone = opened(*words).flops([judged(0)])["train"]
    forward = opened(*words).work.train(["a red circle above a blue square"] * 2).forward
    assert both == pytest.approx(alone + 2 * forward)
    more = opened(*words, "train.timesteps_per_image=12").flops([judged(0)])["train"]
    assert 1.9 < more / alone <= 2.0
    # What checkpointed blocks run again is no work of the method.
    assert opened(*words, "train.activation_checkpointing=true").flops([judged(0)])["train"] == alone


def test_replies_count_by_what_they_say() -> None:
    words = ("judge.readout=generate", "judge.max_new_tokens=64")
    accounting = opened(*words)
    short = accounting.flops([judged(0, ("yes", "yes"))])["judge"]
    long = accounting.flops([judged(0, ("yes " * 30, "yes"))])["judge"]
    assert long > short


def test_offline_draws_and_asks_nothing() -> None:
    counted = opened("train.mode=offline", "data.rollouts=x").flops([judged(2)])
    assert counted["rollout"] == counted["judge"] == 0 < counted["train"]


def test_bytes_move_only_between_ranks() -> None:
    alone, two = opened(), opened(ranks=2)
    times = {f"time_{phase}": 1.0 for phase in ("data", "rollout", "judge", "train")}
    flops = {f"flops_{phase}": 1e9 for phase in ("rollout", "judge", "train")}
    one, both = alone.rates(times | flops), two.rates(times | flops)
    assert one["bytes_gathered"] == one["bytes_reduced"] == 0.0
    counts = two.work.parameters
    assert both["bytes_reduced"] == counts.trained * 4 / 2
    # Drawing, two policies' predictions, and one training pass, whose units all stay; half of each from the other rank.
    assert both["bytes_gathered"] == 4 * counts.total * 4 / 2
    # 4 images in 4 seconds; each of 16 tokens, trained in 6 views.
    assert one["speed_images_per_second_per_gpu"] == 1.0 and both["speed_images_per_second_per_gpu"] == 0.5
    assert one["speed_tokens_per_second"] == 4 * 16 * 6 / 4
    assert alone.peak is not None
    assert one["speed_mfu"] == pytest.approx(3e9 / (4 * alone.peak))
    assert one["speed_mfu_train"] == pytest.approx(1e9 / alone.peak)


def test_a_design_without_costs_is_not_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srum_ds.planning.accounting.costs_of", lambda *_: None)
    cfg = load_config(RECIPE)
    engine: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    accounting, peak, told = open_accounting(cfg, JudgePipeline(cfg), sampling_of(cfg), engine)
    assert accounting is None and peak is None and "left out" in told


def test_proposers_that_cost() -> None:
    cfg = Config()
    costs = costs_of(cfg.model.path)
    assert costs is not None
    seen = Seen("a red circle", ("a red circle",), 1, filtered=3)

    def judge(*words: str) -> float:
        cfg = load_config(RECIPE, words)
        return Work(cfg, costs, JudgePipeline(cfg), sampling_of(cfg)).judge(seen)

    plain = judge()
    assert judge("regions.kind=sam") == pytest.approx(plain + 5.961e12 + 16 * 0.232e12)
    assert judge("regions.filter=true") > plain
    assert judge("regions.kind=ground") > plain
    assert judge("judge.readout=likelihood") != plain
    boxes = ("judge.readout=generate", "judge.regional=boxes", "judge.local_template=regional_boxes")
    assert judge(*boxes) > 0


def test_the_peak_of_a_cpu_is_measured_and_of_an_unknown_gpu_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    peak, told = peak_of(torch.device("cpu"), "fp32")
    assert peak is not None and 1e8 < peak < 1e14 and "GFLOP/s" in told
    assert torch.equal(state, torch.get_rng_state())
    assert measured_product(1) > 0

    def on(name: str) -> tuple[float | None, str]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        return peak_of(torch.device("cuda", 0), "bf16")

    assert on("NVIDIA H100 80GB HBM3")[0] == 989e12
    assert on("NVIDIA A100-SXM4-40GB")[0] == on("NVIDIA A100-SXM4-80GB")[0] == 312e12
    assert on("NVIDIA H200")[0] == 989e12 and on("NVIDIA B200")[0] == 2250e12
    for lesser in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GB200", "Tesla T4"):
        peak, told = on(lesser)
        assert peak is None and "MFU is left out" in told
    assert peak_of(torch.device("meta"), "bf16")[0] is None


def test_no_name_is_of_two_gpus() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA L40S")
    for name in names:
        assert sum(gpu.is_called(name) for gpu in GPUS.values()) == 1, name
