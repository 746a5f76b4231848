"""Micro-batches made by hand, and what the loop does with one: weights, then losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.matching import FlowMatching
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import Batch, token_losses
from srum_ds.rewards.token_weights import token_weights
from srum_ds.types import Judged, Prompt, Regions, Samples, Scores, Status, TrainView

FLOW = FlowMatching()


def samples_of(tokens_NTC: Tensor, grid: tuple[int, int], group_N: Sequence[int], side: int = 64) -> Samples:
    """Black images of ``side`` pixels with these tokens; the prompts are called a, b, ... and say "a red circle"."""
    numbers = [group_N[:n].count(group) for n, group in enumerate(group_N)]
    prompts = tuple(Prompt(name, "a red circle", phrases=("a red circle",)) for name in "abcdefgh"[: max(group_N) + 1])
    return Samples(
        prompts,
        torch.tensor(list(group_N)),
        torch.tensor(numbers),
        torch.zeros(len(tokens_NTC), 3, side, side),
        tokens_NTC,
        grid,
    )


def scores_of(global_N: Sequence[float], local_R: Sequence[float], missing_N: Tensor | None = None) -> Scores:
    """Scores with the statuses that go with them: NaN is FAILED."""
    whole, local = torch.tensor(list(global_N)), torch.tensor(list(local_R))
    return Scores(
        whole, _status(whole), local, _status(local), torch.zeros(len(local), dtype=torch.int64), missing_N=missing_N
    )


def flow_view(tokens_NTC: Tensor, copies: int, generator: torch.Generator, time: float = 0.5) -> TrainView:
    """Copies of tokens at one noise level, nothing dropped, every token counting."""
    n, tokens, channels = tokens_NTC.shape
    noise = torch.randn(n, copies, tokens, channels, generator=generator)
    x0 = tokens_NTC[:, None]
    time_NM = torch.full((n, copies), time)
    inputs = {
        "x_NMTC": (1 - time) * x0 + time * noise,
        "time_NM": time_NM,
        "dropped_NM": torch.zeros(n, copies, dtype=torch.bool),
    }
    return TrainView(inputs, noise - x0, torch.ones(n, copies, tokens, dtype=torch.bool), time_NM)


def left_half_batch(
    cfg: Config, global_N: Sequence[float], local_R: Sequence[float], group_N: Sequence[int], copies: int, channels: int
) -> Batch:
    """Images on a 2 x 2 grid, each with one region over its left half, scored as given, weighed as a recipe says."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(len(global_N), 4, channels, generator=generator)
    samples = samples_of(tokens, (2, 2), group_N)
    regions = Regions(torch.arange(len(local_R)), torch.tensor([[0.0, 0.0, 0.5, 1.0]] * len(local_R)))
    judged = Judged(samples, regions, scores_of(global_N, local_R))
    return weighed(cfg, judged, flow_view(tokens, copies, generator))


def weighed(cfg: Config, judged: Judged, view: TrainView) -> Batch:
    """A micro-batch with the weights that a recipe's objective asks for."""
    weights = token_weights(get_objective(cfg.objective.name).weights, judged, cfg.reward)
    return Batch(judged.samples, judged.regions, judged.scores, view, weights)


def map_of(batch: Batch) -> Tensor:
    """The token weights of a batch whose objective has some."""
    assert batch.weights.map_Nhw is not None
    return batch.weights.map_Nhw


def losses_of(
    cfg: Config, batch: Batch, prediction: Tensor, old: Tensor | None = None, reference: Tensor | None = None
) -> Tensor:
    """Token losses of a recipe's objective for velocities [N, M, T, C]."""
    objective = get_objective(cfg.objective.name)
    return token_losses(objective, cfg.objective, FLOW, prediction, batch, old, reference)


def _status(scores: Tensor) -> Tensor:
    return torch.where(scores.isnan(), int(Status.FAILED), int(Status.PARSED))
