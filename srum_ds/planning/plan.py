"""The plan of a run: what a rank holds, whether it fits, what to change if not, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.config import Config, check_world
from srum_ds.engine import read_ds_config
from srum_ds.models import costs_of
from srum_ds.models.costs import ModelCosts
from srum_ds.objectives import get_objective
from srum_ds.planning.assumptions import SPARE
from srum_ds.planning.hardware import GPUS
from srum_ds.planning.memory import Memory, memory_of
from srum_ds.planning.policies import policies_of
from srum_ds.planning.seconds import Cluster, StepFlops, expected_flops, seconds_of
from srum_ds.planning.traffic import Traffic, traffic_of
from srum_ds.planning.work import Work
from srum_ds.rewards.judge.pipeline import JudgePipeline

BIG_CONFIG = "ds_configs/zero3_large.json"
"""The DeepSpeed settings whose buckets fit a layer of a full-size model."""

GPU_COUNTS = (8, 16, 32, 64)
MOST_ADVICE = 6


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on a cluster; bytes are of a rank, FLOPs of a rank's step, seconds of a step."""

    cfg: Config
    cluster: Cluster
    assumed: str
    memory: Memory
    flops: StepFlops
    traffic: Traffic
    seconds: dict[str, float]
    parameters: int
    trained: int

    @property
    def limit(self) -> int:
        """Bytes that a rank may hold."""
        return int(self.cluster.hardware.memory * (1 - SPARE))

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.limit

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        """Of the whole run, without evaluation and checkpoints."""
        return self.cfg.train.steps * self.step_seconds * self.cluster.ranks / 3600


@dataclass(frozen=True)
class Advice:
    """A change that makes a recipe fit: settings, or more or larger GPUs; peak: bytes a rank then."""

    change: str
    peak: int


Sampling = Callable[[Config], Any]
"""From a recipe to its sampler's settings (``rollouts.collect.sampling_of``)."""


def work_of(cfg: Config, sampling: Any, costs: ModelCosts | None = None) -> Work:
    """A recipe's work. UserError for a design that does not say what its work costs.

    costs: of its model, where they are known already.
    """
    costs = costs or costs_of(cfg.model.path, cfg.model.kind)
    if costs is None:
        raise UserError(
            f"model.kind={cfg.model.kind}: this design does not say what its work costs, so it cannot be planned: its "
            "ModelFamily needs `costs` (srum_ds/models/README.md)."
        )
    return Work(cfg, costs, JudgePipeline(cfg), sampling)


def make_plan(work: Work, cluster: Cluster) -> Plan:
    """The plan of a recipe's work. UserError where its prompts do not come out even over the ranks."""
    cfg = work.cfg
    check_world(cfg, cluster.ranks)
    if cluster.ranks % cluster.nodes:
        raise UserError(f"--gpus {cluster.ranks}: is not a multiple of --nodes {cluster.nodes}; it counts all GPUs.")
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    flops = expected_flops(work, cluster.ranks)
    counts = work.parameters
    memory = memory_of(work, ds_config, cluster.ranks, cluster.hardware)
    traffic = traffic_of(work, ds_config, cluster.ranks, memory.whole)
    return Plan(
        cfg=cfg,
        cluster=cluster,
        assumed=work.costs.assumed,
        memory=memory,
        flops=flops,
        traffic=traffic,
        seconds=seconds_of(work, flops, traffic, cluster, memory.whole),
        parameters=counts.total,
        trained=counts.trained,
    )


def advice_for(
    plan: Plan, costs: ModelCosts, load: Callable[[Sequence[str]], Config], sampling: Sampling
) -> list[Advice]:
    """Changes with which a plan that does not fit would: each one tried. First single ones, then pairs of settings.

    load: the recipe with further settings on top.
    """
    found = list(_fitting_clusters(plan, costs, sampling))
    settings = _candidates(plan)
    alone: list[set[str]] = []
    for count in (1, 2):
        found += _fitting_settings(plan, costs, load, sampling, combinations(settings, count), alone)
        if len(found) >= MOST_ADVICE:
            break
    return found[:MOST_ADVICE]


def _fitting_clusters(plan: Plan, costs: ModelCosts, sampling: Sampling) -> Iterator[Advice]:
    cluster = plan.cluster
    a_node = cluster.ranks // cluster.nodes
    for count in GPU_COUNTS:
        if count > cluster.ranks:
            nodes = max(cluster.nodes, -(-count // max(8, a_node)))
            other = Cluster(cluster.hardware, count, nodes, cluster.link)
            fitting = _if_it_fits(plan.cfg, costs, sampling, other, f"--gpus {count}")
            if fitting is not None:
                yield fitting
                break
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory > cluster.hardware.memory:
            other = Cluster(gpu, cluster.ranks, cluster.nodes, cluster.link)
            fitting = _if_it_fits(plan.cfg, costs, sampling, other, f"--gpu {gpu.name}")
            if fitting is not None:
                yield fitting
                break


def _fitting_settings(
    plan: Plan,
    costs: ModelCosts,
    load: Callable[[Sequence[str]], Config],
    sampling: Sampling,
    candidates: Iterable[tuple[str, ...]],
    alone: list[set[str]],
) -> Iterator[Advice]:
    for words in candidates:
        if any(set(words) > known for known in alone):
            # One of the pair is enough.
            continue
        try:
            cfg = load(words)
        except UserError:
            # Settings that contradict the recipe's others.
            continue
        fitting = _if_it_fits(cfg, costs, sampling, plan.cluster, " ".join(words))
        if fitting is not None:
            alone.append(set(words))
            yield fitting


def _if_it_fits(cfg: Config, costs: ModelCosts, sampling: Sampling, cluster: Cluster, change: str) -> Advice | None:
    try:
        plan = make_plan(work_of(cfg, sampling(cfg), costs), cluster)
    except UserError:
        return None
    return Advice(change, plan.memory.peak) if plan.fits else None


def _candidates(plan: Plan) -> list[str]:
    """Settings that take less memory than the recipe's, those first that change what is learnt the least."""
    cfg = plan.cfg
    r, t = cfg.rollout, cfg.train
    kept = policies_of(cfg, get_objective(cfg.objective.name))
    height, width = r.image_size
    possible = {
        "train.activation_checkpointing=true": not t.activation_checkpointing,
        "train.precision=bf16": t.precision == "fp32",
        f"rollout.micro_batch_prompts={r.micro_batch_prompts // 2}": r.micro_batch_prompts % 2 == 0,
        f"deepspeed.config={BIG_CONFIG}": not cfg.deepspeed.config.endswith(BIG_CONFIG),
        "rollout.gather=layers": plan.memory.whole,
        "eval.weights=live": "ema" in kept,
        "model.trains=generation": cfg.model.trains == "transformer",
        "model.trains=lora": cfg.model.trains != "lora",
        f"rollout.image_size=[{height // 2},{width // 2}]": height >= 1024,
    }
    return [words for words, useful in possible.items() if useful]
