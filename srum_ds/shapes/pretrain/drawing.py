"""The second half of pretraining: drawing alone, with understanding frozen as it was left.

Understanding needs long training before it judges well; by then drawing has seen few pictures. Here
only the generation half trains (it cannot change an answer), at a third of a joint step's cost. The
share of altered captions decides how far drawing stays behind understanding.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.models.bagel.adapter import trains_in
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.tokens import BagelTokenizer
from srum_ds.shapes.pretrain.pool import Pool
from srum_ds.shapes.pretrain.umm import Progress, Texts, fall_off, flow_loss, lerp, optimizers, set_rate

STATE = "drawing.safetensors"
PROGRESS = "drawing.json"


@dataclass(frozen=True)
class DrawingPlan:
    """Sizes and rates. ``altered`` is the share of captions that say something slightly different."""

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
    """Trains the generation half of a module that holds the joint stage's averaged weights.

    Writes ``out/drawing.safetensors`` (live and averaged weights of the generation half) and
    ``out/drawing.json`` (progress, curve, plan) every 300 steps, and resumes from them (the optimizers'
    momenta start afresh then).
    """
    texts = Texts(tokenizer, pool.strings)
    opts = optimizers(module, plan.lr)
    live: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains_in("generation", name))
        if parameter.requires_grad:
            live[name] = parameter
    averaged = {name: tensor.detach().clone() for name, tensor in live.items()}
    progress = Progress(0, 0.0, [])
    if (out / PROGRESS).exists():
        progress = Progress(**json.loads((out / PROGRESS).read_text())["progress"])
        stored = load_file(out / STATE)
        for name, tensor in live.items():
            tensor.data.copy_(stored["live/" + name])
            averaged[name].copy_(stored["ema/" + name])
    start = time.time() - progress.seconds
    total, since = 0.0, 0
    while progress.step < plan.steps:
        step = progress.step
        g = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        set_rate(opts, fall_off(step, plan.steps, plan.lr, plan.warmup, plan.flat_share))
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(
                module,
                pool,
                texts,
                captions=plan.captions,
                copies=plan.noise_copies,
                altered=plan.altered,
                dropout=plan.caption_dropout,
                g=g,
            )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(live.values(), plan.max_grad_norm)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad()
        lerp(averaged, live, step, plan.ema_decay)
        total += loss.item()
        since += 1
        progress.step += 1
        progress.seconds = time.time() - start
        if progress.step % 50 == 0:
            point = {"step": progress.step, "seconds": round(progress.seconds, 1)}
            point |= {"flow": round(total / since, 4), "grad_norm": round(float(norm), 4)}
            progress.curve.append(point)
            print(json.dumps(point), flush=True)
            total, since = 0.0, 0
        if progress.step % 300 == 0 or progress.step == plan.steps:
            _save(out, live, averaged, progress, plan)


def _save(
    out: Path, live: dict[str, Tensor], averaged: dict[str, Tensor], progress: Progress, plan: DrawingPlan
) -> None:
    tensors = {"live/" + name: p.detach().clone() for name, p in live.items()}
    tensors |= {"ema/" + name: p for name, p in averaged.items()}
    save_file(tensors, out / "drawing.partial")
    (out / "drawing.partial").replace(out / STATE)
    record = {"plan": asdict(plan), "progress": asdict(progress)}
    (out / "progress.partial").write_text(json.dumps(record))
    (out / "progress.partial").replace(out / PROGRESS)
