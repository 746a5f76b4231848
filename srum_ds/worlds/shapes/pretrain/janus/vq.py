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

OCCUPANCY = (0.2, 1.0)
"""Least and largest share of cells that hold an object: the norms see whole pictures, emptier and fuller ones."""

KEPT_BATCHES = 40
"""Whose vectors the codebook is made of."""

L1_WEIGHT = 0.3
WIDTH = 64
STEADY = 8.0
"""Height of the pattern that keeps the norms steady."""

FLAWED = 0.04
"""Share of broken objects: with many of them, the codebook would be spent on mixtures."""


@dataclass(frozen=True)
class VqSchedule:
    """Steps, pictures a step, and rates, under one cosine.

    For ``free_steps`` steps nothing is quantised; then the codebook is the k-means of the last of them, encoder and
    codebook stay, and the decoder alone goes on.
    """

    steps: int = 1200
    pictures: int = 4
    lr: float = 3e-3
    warmup: int = 30
    free_steps: int = 450
    compiled: bool = True


def vq_config(codes: int, embed_dim: int, hidden: int) -> JanusVQVAEConfig:
    """The autoencoder of 64x64 pictures as ``SIDE`` x ``SIDE`` codes; ``hidden``: width of the language model."""
    return JanusVQVAEConfig(
        embed_dim=embed_dim,
        num_embeddings=codes,
        latent_channels=32,
        base_channels=WIDTH,
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
    """Weights under which the norms hardly normalise, and black as the first answer.

    The library normalises in 32 groups, here of two channels, over a whole picture that is mostly black: how bright an
    object comes out would depend on how many there are, and what does not occur would be amplified. So every second
    channel carries one strong pattern, the same in every picture: constant inside and cut off at a border by the
    convolutions' zero padding. It makes each group's variance nearly constant, and nothing reads it at first.
    """
    for name, sub in vq.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(sub, nn.GroupNorm):
            sub.weight.fill_(2.0)
            sub.bias.normal_(0.0, 0.7)
            sub.weight[1::2] = 0.0
            sub.bias[1::2] = 3.0 if last in ("norm1", "norm2") else 0.0
        elif isinstance(sub, nn.Conv2d):
            wide = sub.in_channels == WIDTH
            fan = sub.weight[0].numel() / (2 if wide else 1)
            gain = {"conv1": 1.5, "conv2": 0.5, "proj_out": 0.3}.get(last, 1.0)
            sub.weight.normal_(0.0, gain * fan**-0.5)
            sub.bias.zero_()
            if wide:
                sub.weight[:, 1::2] = 0.0
            if sub.out_channels == WIDTH:
                sub.weight[1::2] = 0.0
    steady = torch.arange(1, WIDTH, 2)
    for name, sub in vq.named_modules():
        if name.endswith("conv1"):
            # What a norm leaves of the pattern is a constant; padding cuts it off at the left.
            into = STEADY / F.silu(torch.tensor(3.0))
            sub.weight[steady, steady, 1, 1] = into
            sub.weight[steady, steady, 1, 0] = -into
        elif name.endswith("upsample.conv"):
            sub.weight[steady, steady, 1, 1] = 1.0
        elif name.endswith("downsample.conv"):
            sub.weight[steady, steady, 1, 1] = 1.0
    vq.encoder.conv_in.bias[steady] = STEADY
    vq.encoder.down[2].downsample.conv.weight[steady, steady, 1, 2] = -1.0
    vq.post_quant_conv.weight[0] = 0.0
    vq.post_quant_conv.bias[0] = 1.0
    vq.decoder.conv_in.weight[:, 0] = 0.0
    vq.decoder.conv_in.weight[steady, 0, 1, 1] = STEADY
    vq.decoder.conv_in.weight[steady, 0, 1, 0] = -STEADY
    vq.decoder.conv_out.weight.mul_(0.3)
    vq.decoder.conv_out.bias.fill_(-1.0)


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


@torch.no_grad()
def spread(vectors_TC: Tensor, codes: int, generator: torch.Generator) -> Tensor:
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


def _pictures(count: int, generator: torch.Generator) -> Tensor:
    """Random pictures in [-1, 1], each with its own share of occupied cells."""
    shares = OCCUPANCY[0] + (OCCUPANCY[1] - OCCUPANCY[0]) * torch.rand(count, generator=generator)
    return render_arrays(torch.cat([random_arrays(1, generator, float(share), FLAWED) for share in shares])) * 2 - 1


def train_vq(
    vq: Vq, schedule: VqSchedule, seed: int, report: Callable[[dict[str, float]], None]
) -> list[dict[str, float]]:
    """Trains ``vq`` in place and leaves its codebook at unit length; returns the curve, a point every 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    codebook_weight = vq.quantize.embedding.weight
    vq.requires_grad_(True)
    codebook_weight.requires_grad_(False)
    live = [p for p in vq.parameters() if p.requires_grad]
    edges = ("conv_in.weight", "conv_out.weight", "quant_conv.weight")
    filters = [p for n, p in vq.named_parameters() if p.ndim == 4 and not n.endswith(edges)]
    rest = [p for n, p in vq.named_parameters() if p.requires_grad and (p.ndim < 4 or n.endswith(edges))]
    # Muon takes matrices: each filter bank as one, sharing its memory.
    matrices = [nn.Parameter(p.detach().flatten(1)) for p in filters]
    optimizers = [
        torch.optim.Muon(matrices, lr=schedule.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    codebook = torch.empty(0)
    curve: list[dict[str, float]] = []
    recent: list[Tensor] = []
    start = time.time()
    for step in range(schedule.steps):
        warm = min(1.0, (step + 1) / schedule.warmup)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = schedule.lr * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * step / schedule.steps)))
        pixels = _pictures(schedule.pictures, generator)
        with torch.autocast("cpu", torch.bfloat16):
            free = vectors(vq, pixels)
            flat = free.detach().flatten(0, 2)
            quantised = free
            if step == schedule.free_steps:
                codebook = spread(torch.cat(recent), len(codebook_weight), generator)
                vq.encoder.requires_grad_(False)
                vq.quant_conv.requires_grad_(False)
            if step < schedule.free_steps:
                recent = [*recent[-KEPT_BATCHES:], flat]
            else:
                quantised = codebook[nearest(codebook, flat)].view_as(free)
            output = decoded(vq, quantised).float()
        error = output - pixels
        loss = error.square().mean() + L1_WEIGHT * error.abs().mean()
        vq.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for matrix, bank in zip(matrices, filters, strict=True):
            matrix.grad = None if bank.grad is None else bank.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
        if step % 50 == 0 or step == schedule.steps - 1:
            point = {
                "step": step,
                "seconds": round(time.time() - start, 1),
                "mse": round(error.square().mean().item(), 5),
                "mse_share": round((error.square().mean() / pixels.var()).item(), 4),
                "code_error": round((flat - quantised.detach().flatten(0, 2)).square().sum(-1).mean().item(), 4),
            }
            curve.append(point)
            report(point)
    with torch.no_grad():
        codebook_weight.copy_(codebook)
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


def make_vq(config: JanusVQVAEConfig, out: Path, schedule: VqSchedule, seed: int, pictures: int = 600) -> None:
    """Trains, measures on ``pictures`` and writes ``vq.safetensors`` and ``vq.json`` into ``out``."""
    torch.manual_seed(seed)
    vq = JanusVQVAE(config)
    initialise(vq)
    if schedule.compiled:
        compile_parts(vq)
    start = time.time()
    curve = train_vq(vq, schedule, seed, lambda point: print(json.dumps(point), flush=True))
    # What is published is rounded: everything after this sees the rounded weights.
    vq.to(torch.bfloat16).float()
    facts = measure(vq, seed, pictures) | {"seed": seed, "seconds": round(time.time() - start, 1), "curve": curve}
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
