"""Seconds of a step by phase, predicted from FLOPs, bytes and the assumptions: a rough figure, never measured.

Products take their FLOPs at a share of the peak; gathered weights and reduced gradients take their bytes at the bus's
or the network's rate; training hides the shorter of both behind the longer; written replies take the reading of the
weights, or the launching of the kernels, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

from srum_ds.models.costs import Flops
from srum_ds.planning import assumptions
from srum_ds.planning.hardware import Hardware
from srum_ds.planning.traffic import ELEMENT, Traffic
from srum_ds.planning.work import Seen, Work, proposals, written_tokens
from srum_ds.rewards.judge.readouts import writes


@dataclass(frozen=True)
class Cluster:
    """``ranks`` devices on ``nodes`` nodes; link: bytes/s between one node and the others."""

    hardware: Hardware
    ranks: int
    nodes: int
    link: float

    def moving(self, received: float) -> float:
        """Seconds of a collective in which each rank receives so many bytes: the slower of bus and network."""
        inside = received / self.hardware.bus
        # What comes from other nodes enters a node once.
        other = received * (self.nodes - 1) / self.nodes * self.ranks / max(1, self.ranks - 1)
        return max(inside, other / (self.link * assumptions.LINK_SHARE)) if self.nodes > 1 else inside


@dataclass(frozen=True)
class StepFlops:
    """A rank's FLOPs of a step."""

    rollout: float
    judge: float
    train: Flops


def expected_flops(work: Work, ranks: int) -> StepFlops:
    """A rank's FLOPs where every prompt, region and reply is as long as the assumptions say."""
    r = work.cfg.rollout
    prompts = r.prompts_per_step // ranks
    micro = r.micro_batch_prompts * r.images_per_prompt
    images = prompts * r.images_per_prompt
    proposed = proposals(work.cfg)
    regions = min(proposed, work.cfg.regions.max_count)
    filtered = float(min(proposed, work.cfg.regions.candidates)) if work.cfg.regions.filter else 0.0
    written = written_tokens(work)
    seen = Seen(assumptions.PROMPT, assumptions.PHRASES, regions, written, written, filtered)
    one = work.train([assumptions.PROMPT] * micro)
    share = images / micro
    train = Flops(one.forward * share, one.backward * share, one.recomputed * share)
    if work.cfg.train.mode == "offline":
        return StepFlops(0.0, 0.0, train)
    return StepFlops(prompts * work.draw(assumptions.PROMPT), images * work.judge(seen), train)


def seconds_of(
    work: Work, flops: StepFlops, traffic: Traffic, cluster: Cluster, draws_whole: bool = True
) -> dict[str, float]:
    """Seconds of a step by phase: ``rollout``, ``judge``, ``train`` and ``optimizer``.

    draws_whole: all is gathered before anything is drawn; else layers are fetched while others run.
    """
    drawn, fetched = flops.rollout / _speed(work, cluster, "rollout"), cluster.moving(traffic.rollout)
    frozen = cluster.moving(traffic.frozen)
    moved = cluster.moving(traffic.train + traffic.reduced)
    bandwidth = cluster.hardware.bandwidth * assumptions.BANDWIDTH_SHARE
    # Masters, both moments and the gradient are read, all but the gradient written.
    stepped = 28.0 * work.parameters.trained / cluster.ranks
    return {
        "rollout": drawn + fetched if draws_whole else max(drawn, fetched),
        "judge": flops.judge / _speed(work, cluster, "judge")
        + cluster.moving(traffic.judge)
        + _writing(work, cluster, bandwidth),
        "train": max(flops.train.executed / _speed(work, cluster, "train"), moved) + frozen,
        "optimizer": stepped / bandwidth,
    }


def _speed(work: Work, cluster: Cluster, phase: str) -> float:
    """FLOP/s of one GPU in a phase."""
    return cluster.hardware.peaks[work.cfg.train.precision] * assumptions.EFFICIENCY[phase]


def _writing(work: Work, cluster: Cluster, bandwidth: float) -> float:
    """Seconds of a step's written replies: one after another in tokens, all images of a rank at once.

    A rank asks about its images, then about their regions: all boxes of an image in one question, or crop by crop.
    """
    cfg = work.cfg
    if cfg.train.mode == "offline" or not writes(work.judging.readout):
        return 0.0
    images = cfg.rollout.prompts_per_step // cluster.ranks * cfg.rollout.images_per_prompt
    batches = -(-images // cfg.judge.batch)
    regions = min(proposals(cfg), cfg.regions.max_count)
    if regions:
        asked = images if cfg.judge.regional == "boxes" else images * regions
        batches += -(-asked // cfg.judge.batch)
    weights = work.parameters.judging * ELEMENT[cfg.train.precision]
    return batches * written_tokens(work) * max(assumptions.DECODE_STEP_SECONDS, weights / bandwidth)
