"""The second stage of pretraining: drawing alone, with understanding frozen as it was left.

Understanding needs long training before it judges well; by then drawing has seen few pictures. Here
only the generation half trains (it cannot change an answer), at a third of a joint step's cost. The
share of altered captions decides how far drawing stays behind understanding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.modes import trains_in
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.worlds.shapes.pretrain.pool import Pool
from srum_ds.worlds.shapes.pretrain.stage import Schedule, Stage
from srum_ds.worlds.shapes.pretrain.umm import Texts, flow_loss

NAME = "drawing"


@dataclass(frozen=True)
class DrawingPlan(Schedule):
    """The schedule of the drawing stage."""

    steps: int = 2400
    captions: int = 64
    noise_copies: int = 3
    lr: float = 2e-3
    warmup: int = 50
    flat_share: float = 0.3
    altered: float = 0.15
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    max_grad_norm: float = 2.0
    seed: int = 77


def train_drawing(module: Bagel, tokenizer: BagelTokenizer, pool: Pool, plan: DrawingPlan, out: Path) -> None:
    """Trains the generation half of a module that holds the joint stage's averages, and leaves its own there."""
    texts = Texts(tokenizer, pool.strings)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains_in("generation", name))
    live = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    stage = Stage(NAME, live, plan, out)
    while stage.step < plan.steps:
        g = stage.begin_step()
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(module, plan, pool, texts, plan.altered, g)
        loss.backward()
        stage.end_step({"flow": loss.item()})
    stage.finish()
