"""Trains the embedded Janus's VQ autoencoder on random pictures (about seven minutes on two cores).

The library's own ``JanusVQVAE`` cannot train: its forward pass decodes from the codes, through which no gradient
flows. Here its parts are called one by one, with the straight-through estimate in between. ``decode`` normalises a
code's vector and ``encode`` normalises nothing, so the codebook is kept at unit length: the two then agree.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.render import random_arrays, render_arrays, render_scenes
from srum_ds.worlds.shapes.world import random_prompt, random_scene

Vq = Any
"""transformers' JanusVQVAE, whose methods the library hides from type checkers."""

SIDE = 8
"""Codes along a side of a picture: a quarter of an object each."""

OCCUPANCY = (0.12, 0.25, 0.4)
"""Shares of cells that hold an object: the norms see one channel of a whole picture, so both kinds are needed."""

COMMITMENT = 0.25
L1_WEIGHT = 0.3


@dataclass(frozen=True)
class VqSchedule:
    """Steps on 32x32 crops, then on whole pictures, under one cosine.

    Codes are used from step ``free_steps`` on, and unused ones moved until ``settled``.
    """

    crop_steps: int = 1500
    full_steps: int = 400
    crop_pictures: int = 4
    full_pictures: int = 9
    lr: float = 2e-3
    warmup: int = 30
    free_steps: int = 500
    settled: float = 0.7
    decay: float = 0.985
    compiled: bool = True

    @property
    def steps(self) -> int:
        """Of both kinds."""
        return self.crop_steps + self.full_steps


def vq_config(codes: int, embed_dim: int, hidden: int) -> JanusVQVAEConfig:
    """The autoencoder of 64x64 pictures as ``SIDE`` x ``SIDE`` codes; ``hidden``: width of the language model."""
    return JanusVQVAEConfig(
        embed_dim=embed_dim,
        num_embeddings=codes,
        latent_channels=32,
        # The library normalises in 32 groups: with one channel a group, the share of black ground would set the scale.
        base_channels=64,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=0,
        num_patches=SIDE,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
        num_hidden_layers=2,
        double_latent=False,
    )


@torch.no_grad()
def initialise(vq: Vq) -> None:
    """Convolutions of about unit gain, those that end a residual branch smaller: the library's 0.02 learns nothing."""
    for name, sub in vq.named_modules():
        if isinstance(sub, nn.Conv2d):
            nn.init.kaiming_normal_(sub.weight, nonlinearity="linear")
            if name.endswith(("block_1.conv2", "block_2.conv2", "proj_out")) or ".block." in name and "conv2" in name:
                sub.weight.mul_(0.3)
            nn.init.zeros_(sub.bias)
    vq.decoder.conv_out.weight.mul_(0.1)


def compile_parts(vq: Vq) -> None:
    """Compiles the halves in place: a training step takes 0.25 s instead of 1 s, after a minute of compiling."""
    vq.encoder.compile(dynamic=False)
    vq.decoder.compile(dynamic=False)


def vectors(vq: Vq, pixels_NCHW: Tensor) -> Tensor:
    """What ``vq`` would quantise, at unit length: [N, h, w, C] float32 of pictures in [-1, 1]."""
    hidden = vq.quant_conv(vq.encoder(pixels_NCHW))
    return F.normalize(hidden.float().permute(0, 2, 3, 1), dim=-1)


def nearest(codebook_KC: Tensor, vectors_TC: Tensor) -> Tensor:
    """The code [T] of each vector; both of unit length."""
    return (vectors_TC @ codebook_KC.T).argmax(-1)


def decoded(vq: Vq, quantised_NhwC: Tensor) -> Tensor:
    """Pictures [N, 3, H, W], about [-1, 1], of quantised vectors."""
    pixels: Tensor = vq.decoder(vq.post_quant_conv(quantised_NhwC.permute(0, 3, 1, 2).contiguous()))
    return pixels


class Codebook:
    """Unit vectors that follow the mean of what falls to them, weighted like the last steps; idle ones are moved."""

    def __init__(self, vectors_TC: Tensor, codes: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.unit_KC = _spread(vectors_TC, codes, generator)
        self.count_K = torch.ones(codes)
        self.sum_KC = self.unit_KC.clone()

    @torch.no_grad()
    def follow(self, vectors_TC: Tensor, code_T: Tensor, decay: float) -> None:
        """Moves every vector towards the mean of its share."""
        one_KT = F.one_hot(code_T, len(self.unit_KC)).float().T
        self.count_K.lerp_(one_KT.sum(1), 1 - decay)
        self.sum_KC.lerp_(one_KT @ vectors_TC, 1 - decay)
        moved = self.sum_KC / self.count_K.clamp(min=1e-6)[:, None]
        self.unit_KC = torch.where(self.count_K[:, None] > 1e-3, F.normalize(moved, dim=-1), self.unit_KC)

    @torch.no_grad()
    def revive(self, vectors_TC: Tensor, code_T: Tensor, least: float = 0.05) -> int:
        """Puts codes that hardly occur where vectors are worst served; returns how many."""
        idle = (self.count_K < least).nonzero().flatten()
        if len(idle):
            error_T = 1 - (vectors_TC * self.unit_KC[code_T]).sum(-1)
            chosen = torch.multinomial(error_T.clamp(min=1e-8), len(idle), generator=self.generator)
            self.unit_KC[idle] = vectors_TC[chosen]
            self.sum_KC[idle] = vectors_TC[chosen]
            self.count_K[idle] = 1.0
        return len(idle)


@torch.no_grad()
def _spread(vectors_TC: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """Well separated members of a set (k-means++ seeding), then ten rounds of spherical k-means."""
    chosen = [int(torch.randint(len(vectors_TC), (1,), generator=generator))]
    distance = 1 - vectors_TC @ vectors_TC[chosen[0]]
    for _ in range(codes - 1):
        chosen.append(int(torch.multinomial(distance.clamp(min=1e-8), 1, generator=generator)))
        distance = torch.minimum(distance, 1 - vectors_TC @ vectors_TC[chosen[-1]])
    unit_KC = vectors_TC[chosen].clone()
    for _ in range(10):
        one_KT = F.one_hot(nearest(unit_KC, vectors_TC), codes).float().T
        mean = one_KT @ vectors_TC
        unit_KC = torch.where(one_KT.sum(1, keepdim=True) > 0, F.normalize(mean, dim=-1), unit_KC)
    return unit_KC


def _pictures(schedule: VqSchedule, step: int, generator: torch.Generator) -> Tensor:
    if step < schedule.crop_steps:
        images = render_arrays(random_arrays(schedule.crop_pictures, generator)) * 2 - 1
        return torch.cat([half for row in images.split(32, dim=2) for half in row.split(32, dim=3)])
    count = schedule.full_pictures
    each = count // len(OCCUPANCY)
    arrays = [random_arrays(each, generator, occupied) for occupied in OCCUPANCY]
    return render_arrays(torch.cat(arrays)) * 2 - 1


def train_vq(
    vq: Vq, schedule: VqSchedule, seed: int, report: Callable[[dict[str, float]], None]
) -> list[dict[str, float]]:
    """Trains ``vq`` in place and leaves its codebook at unit length; returns the curve, a point every 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    codebook_weight = vq.quantize.embedding.weight
    vq.requires_grad_(True)
    codebook_weight.requires_grad_(False)
    live = [p for p in vq.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(live, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.0)
    book: Codebook | None = None
    curve: list[dict[str, float]] = []
    recent: list[Tensor] = []
    start = time.time()
    for step in range(schedule.steps):
        warm = min(1.0, (step + 1) / schedule.warmup)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / schedule.steps)))
        pixels = _pictures(schedule, step, generator)
        with torch.autocast("cpu", torch.bfloat16):
            free = vectors(vq, pixels)
            flat = free.detach().flatten(0, 2)
            if step < schedule.free_steps:
                recent = [*recent[-31:], flat]
                quantised, commitment = free, torch.zeros(())
            else:
                if book is None:
                    book = Codebook(torch.cat(recent), len(codebook_weight), generator)
                code = nearest(book.unit_KC, flat)
                target = book.unit_KC[code].view_as(free)
                commitment = (free - target).square().sum(-1).mean()
                quantised = free + (target - free).detach()
            output = decoded(vq, quantised).float()
        error = output - pixels
        loss = error.square().mean() + L1_WEIGHT * error.abs().mean() + COMMITMENT * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimizer.step()
        revived = 0
        if book is not None:
            book.follow(flat, code, schedule.decay)
            if step < schedule.settled * schedule.steps and step % 20 == 0:
                revived = book.revive(flat, code)
        if step % 50 == 0 or step == schedule.steps - 1:
            point = {
                "step": step,
                "seconds": round(time.time() - start, 1),
                "mse": round(error.square().mean().item(), 5),
                "mse_share": round((error.square().mean() / pixels.var()).item(), 4),
                "commitment": round(commitment.item(), 4),
                "moved_codes": revived,
            }
            curve.append(point)
            report(point)
    assert book is not None
    with torch.no_grad():
        codebook_weight.copy_(book.unit_KC)
    vq.eval().requires_grad_(False)
    return curve


@torch.no_grad()
def encode(vq: Vq, images_NCHW: Tensor, autocast: bool = True) -> Tensor:
    """Codes [N, T] int64, row-major, of pictures in [0, 1]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = vectors(vq, images_NCHW * 2 - 1)
    code = nearest(F.normalize(vq.quantize.embedding.weight, dim=-1), found.flatten(0, 2))
    return code.view(len(images_NCHW), -1)


@torch.no_grad()
def decode(vq: Vq, codes_NT: Tensor, autocast: bool = True) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of codes, as whole 255ths: (x + 1) / 2 * 255, clamped and truncated."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        quantised = F.normalize(vq.quantize.embedding(codes_NT), dim=-1)
        pixels = decoded(vq, quantised.view(len(codes_NT), SIDE, SIDE, -1))
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).trunc() / 255


def measure(vq: Vq, seed: int, pictures: int = 600) -> dict[str, Any]:
    """Share of reconstructed true pictures that the checker passes, their error, and how many codes occur."""
    rng = random.Random(seed)
    prompts = [random_prompt(rng, split=None) for _ in range(pictures)]
    images = render_scenes([random_scene(rng, prompt, train=False) for prompt in prompts])
    codes = torch.cat([encode(vq, part, autocast=False) for part in images.split(50)])
    again = torch.cat([decode(vq, part, autocast=False) for part in codes.split(50)])
    exact = [check(prompt, image).exact for prompt, image in zip(prompts, again, strict=True)]
    share_K = torch.bincount(codes.flatten(), minlength=len(vq.quantize.embedding.weight)) / codes.numel()
    return {
        "pictures": pictures,
        "checker_pass_rate": sum(exact) / pictures,
        "mse": (again - images).square().mean().item(),
        "codes_used": int((share_K > 0).sum()),
        "most_frequent_code": float(share_K.max()),
    }


def make_vq(config: JanusVQVAEConfig, out: Path, schedule: VqSchedule, seed: int) -> None:
    """Trains, measures and writes ``vq.safetensors`` and ``vq.json`` into ``out``."""
    torch.manual_seed(seed)
    vq = JanusVQVAE(config)
    initialise(vq)
    if schedule.compiled:
        compile_parts(vq)
    start = time.time()
    curve = train_vq(vq, schedule, seed, lambda point: print(json.dumps(point), flush=True))
    # What is published is rounded: everything after this sees the rounded weights.
    vq.to(torch.bfloat16).float()
    facts = measure(vq, seed) | {"seed": seed, "seconds": round(time.time() - start, 1), "curve": curve}
    save_file({name: t.contiguous() for name, t in vq.state_dict().items()}, out / "vq.safetensors")
    (out / "vq.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key != "curve"}), flush=True)


def load_vq(config: JanusVQVAEConfig, folder: Path) -> Vq:
    """The trained autoencoder (float32, frozen) that ``make_vq`` wrote; UserError where it is missing."""
    path = folder / "vq.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: run `python -m srum_ds.worlds.shapes.pretrain.janus` first.")
    vq: Vq = JanusVQVAE(config)
    vq.load_state_dict(load_file(path))
    return vq.eval().requires_grad_(False)
