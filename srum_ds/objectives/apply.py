"""The pieces of a training step: each takes a recipe and plain tensors, and gives the next piece its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.flow import Noised, add_noise
from srum_ds.objectives import compute_losses, get_objective
from srum_ds.rewards.token_weights import best_and_worst, dense_weights, group_map, paper_map, signed_map
from srum_ds.types import Judged


@dataclass(frozen=True)
class Batch(Judged):
    """One micro-batch on its way through a step."""

    noised: Noised


def with_noise(cfg: Config, judged: Judged, step: int) -> Batch:
    """A micro-batch with the noised copies that this step trains on."""
    t = cfg.train
    noised = add_noise(
        judged.samples,
        t.timesteps_per_image,
        t.timestep_distribution,
        t.timestep_shift,
        t.caption_dropout,
        cfg.run.seed,
        step,
        shared=get_objective(cfg.objective.name).weights == "pair",
    )
    return Batch(judged.samples, judged.regions, judged.scores, noised)


def velocity(forward: Any, model: Any, batch: Batch) -> Tensor:
    """Velocities [N, M, T, C] of a micro-batch's noised copies, through the engine or a gathered module."""
    groups = batch.samples.group_N.tolist()
    ids = model.prompt_ids([batch.samples.prompts[g] for g in groups])
    length_N = torch.tensor([len(i) for i in ids], device=ids[0].device)
    ids_NL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    n = batch.noised
    grid_2 = torch.tensor(batch.samples.grid)
    return forward("denoise", ids_NL, length_N, n.dropped_NM, n.x_NMTC, n.t_NM, grid_2)


def reward_weights(cfg: Config, kind: str, batch: Batch) -> Tensor | None:
    """The map of weights over latent tokens [N, h, w]: of the kind that an objective asks for, or none."""
    scores, regions, rollout = batch.scores, batch.regions, batch.samples
    if kind == "none":
        return None
    if kind == "positive":
        height, width = cfg.rollout.image_size
        return paper_map(
            regions.owner_R, regions.boxes_R4, scores.local_R, scores.global_N, (height, width), rollout.grid
        )[1]
    r = cfg.reward
    canvas = None if r.resize == "area" else cfg.rollout.image_size
    if kind == "group":
        local_Nhw = signed_map(
            regions.owner_R,
            regions.boxes_R4,
            scores.local_R,
            scores.global_N.numel(),
            rollout.grid,
            combine=r.combine,
            background=r.background,
            resolution=canvas,
            resize=r.resize,
        )
        whole_N = scores.global_N
        if scores.missing_N is not None:
            whole_N = whole_N - r.missing_penalty * scores.missing_N
        map_Nhw = r.global_weight * whole_N[:, None, None] + r.local_weight * local_Nhw
        return group_map(map_Nhw, rollout.group_N, torch.isfinite(scores.global_N))
    weights_Nhw = dense_weights(
        scores.global_N,
        scores.local_R,
        regions.owner_R,
        regions.boxes_R4,
        rollout.group_N,
        rollout.grid,
        missing_N=scores.missing_N,
        global_weight=r.global_weight,
        local_weight=r.local_weight,
        missing_penalty=r.missing_penalty,
        combine=r.combine,
        background=r.background,
        global_factor=r.global_factor,
        resolution=canvas,
        resize=r.resize,
    )
    if kind == "signed":
        return weights_Nhw
    reward_N = torch.where(torch.isfinite(scores.global_N), weights_Nhw.mean(dim=(1, 2)), torch.nan)
    sign_N, _ = best_and_worst(reward_N, rollout.group_N)
    return sign_N[:, None, None].expand_as(weights_Nhw)


def token_mask(batch: Batch, kind: str, weights_Nhw: Tensor | None) -> Tensor:
    """bool [N, M, T]: left out of the loss are pictures whose global score failed, or that are in no pair."""
    n, m, t, _ = batch.noised.x_NMTC.shape
    counts_N = torch.isfinite(batch.scores.global_N)
    if kind == "pair" and weights_Nhw is not None:
        counts_N = counts_N & (weights_Nhw != 0).flatten(1).any(dim=1)
    return counts_N[:, None, None].expand(n, m, t)


def partners(weights_Nhw: Tensor, group_N: Tensor, copies: int) -> Tensor:
    """int64 [N * copies]: for each noised copy the row of the same copy of its pair's other picture."""
    _, partner_N = best_and_worst(weights_Nhw.flatten(1)[:, 0], group_N)
    return (partner_N[:, None] * copies + torch.arange(copies)).flatten()


def token_losses(
    cfg: Config,
    velocity_NMTC: Tensor,
    batch: Batch,
    weights_Nhw: Tensor | None,
    mask_NMT: Tensor,
    old_NMTC: Tensor | None,
    reference_NMTC: Tensor | None,
) -> Tensor:
    """Losses [N * M, T] of the recipe's objective, 0 where masked."""
    n, m, t, _ = velocity_NMTC.shape
    device = velocity_NMTC.device

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device).reshape(n * m, t, -1)

    weights_BT = None
    if weights_Nhw is not None:
        weights_BT = weights_Nhw.reshape(n, 1, t).expand(n, m, t).reshape(n * m, t).to(device)
    objective = get_objective(cfg.objective.name)
    partner_B = None
    if objective.weights == "pair" and weights_Nhw is not None:
        partner_B = partners(weights_Nhw, batch.samples.group_N, m).to(device)
    return compute_losses(
        cfg.objective.name,
        velocity_NMTC.reshape(n * m, t, -1),
        batch.noised.target_NMTC.to(device).reshape(n * m, t, -1),
        weights_BT=weights_BT,
        old_velocity_BTC=flat(old_NMTC),
        reference_velocity_BTC=flat(reference_NMTC),
        constraint=cfg.objective.constraint,
        constraint_weight=cfg.objective.constraint_weight,
        partner_B=partner_B,
        t_B=batch.noised.t_NM.to(device).flatten(),
        mask_BT=mask_NMT.reshape(n * m, t).to(device),
        options={name: getattr(cfg.objective, name) for name in objective.options},
    )


def sum_of(masks: Sequence[Tensor]) -> Tensor:
    """How many tokens count, as a float64 scalar."""
    return torch.stack([mask.double().sum() for mask in masks]).sum()
