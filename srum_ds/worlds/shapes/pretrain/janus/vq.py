"""Trains the tiny Janus's autoencoder: a codebook, and the decoder that paints its patches (about ten minutes).

Codes of a picture are looked up (``patches``), so that the decoder learns by plain regression from codes to pixels, and
the codebook with it; the encoder, which nothing here or in training reads, then learns to give the codebook's vectors.
Two things let it learn in minutes. The library normalises one or two channels over a whole picture, mostly black, so
that the scale would depend on how many objects there are: constants of either sign, far larger than what varies, are
put into every channel before a norm. And codes begin with vectors that say of what kind an object is. Where in its
patch an upsampled pixel is, its neighbours tell it, and the picture's border where two objects are the same.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable
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
from srum_ds.worlds.shapes.pretrain.janus.patches import SIDE, alphabet, looked_up, painted, undisturbed
from srum_ds.worlds.shapes.render import PALETTE, render_arrays, scene_array
from srum_ds.worlds.shapes.vocabulary import COLORS, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import random_prompt, random_scene

Vq = Any
"""transformers' JanusVQVAE, whose methods the library hides from type checkers."""

L1_WEIGHT = 0.3
CONSTANT = 3.0
"""The constants before a norm, in standard deviations of what varies."""


@dataclass(frozen=True)
class VqSchedule:
    """Steps of the decoder and of the encoder, pictures a step, and the rate, under one cosine each."""

    steps: int = 1500
    encoder_steps: int = 150
    pictures: int = 8
    lr: float = 1.5e-3
    warmup: int = 30
    compiled: bool = True


def vq_config(codes: int, embed_dim: int, hidden: int) -> JanusVQVAEConfig:
    """The autoencoder of 64x64 pictures as ``SIDE`` x ``SIDE`` codes; ``hidden``: width of the language model."""
    return JanusVQVAEConfig(
        embed_dim=embed_dim,
        num_embeddings=codes,
        latent_channels=32,
        base_channels=64,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=0,
        num_patches=SIDE,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
        num_hidden_layers=2,
        double_latent=False,
    )


def code_maps(count: int, generator: torch.Generator) -> Tensor:
    """Random codes [count, T] of objects on black."""
    shape = (count, SIDE * SIDE)
    occupied = torch.rand(count, 1, generator=generator) * 0.4 + 0.05
    objects = torch.randint(1, len(alphabet()), shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < occupied, objects, 0)


@torch.no_grad()
def initialise(vq: Vq, generator: torch.Generator) -> None:
    """Filters of unit gain; the codebook's structure; constants before norms; norms by what passes them."""
    _structure(vq.quantize.embedding.weight)
    for name, sub in vq.named_modules():
        if isinstance(sub, nn.Conv2d):
            nn.init.kaiming_normal_(sub.weight, nonlinearity="linear")
            if sub.bias is not None:
                nn.init.zeros_(sub.bias)
            if name.endswith(("conv2", "proj_out")):
                sub.weight.mul_(0.5)
    codes = code_maps(16, generator)
    for half, run in (
        (vq.decoder, lambda: decoded(vq, codes)),
        (vq.encoder, lambda: vq.encoder(painted(codes) * 2 - 1)),
    ):
        hooks = [
            sub.register_forward_hook(_normalise if isinstance(sub, nn.GroupNorm) else _add_constants)
            for name, sub in half.named_modules()
            if isinstance(sub, nn.GroupNorm) or name == "conv_in" or name.endswith(("conv1", "sample.conv"))
        ]
        run()
        for hook in hooks:
            hook.remove()
    # Black is the first answer.
    vq.decoder.conv_out.weight.mul_(0.1)
    vq.decoder.conv_out.bias.fill_(-1.0)


def _structure(codebook_KC: Tensor) -> None:
    """Vectors of codes: black has a direction of its own; others say colour, shape, texture."""
    codebook_KC.normal_(0, 0.05)
    codebook_KC[0, 0] = 3.0
    kinds = ((color, shape, texture) for color in COLORS for shape in SHAPES for texture in TEXTURES)
    for code, (color, shape, texture) in enumerate(kinds, start=1):
        vector = codebook_KC[code]
        vector[1] = 1.5
        vector[2:5] = PALETTE[COLORS.index(color)] * 2 - 1
        vector[5 + SHAPES.index(shape)] = 1.5
        vector[9] = 1.5 - 3 * TEXTURES.index(texture)


def _add_constants(conv: Any, _: Any, output: Tensor) -> Tensor:
    sign = torch.ones(output.shape[1])
    sign[1::2] = -1
    conv.bias.copy_(CONSTANT * output.std() * sign)
    shifted: Tensor = output + conv.bias[:, None, None]
    return shifted


def _normalise(norm: Any, _: Any, output: Tensor) -> Tensor:
    mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3)).clamp(min=1e-3)
    norm.weight.copy_(1 / std)
    norm.bias.copy_(-mean / std)
    normed: Tensor = (output - mean[:, None, None]) / std[:, None, None]
    return normed


def decoded(vq: Vq, codes_NT: Tensor) -> Tensor:
    """Pictures [N, 3, H, W], about [-1, 1], of codes; with a gradient for decoder and codebook."""
    side = math.isqrt(codes_NT.shape[1])
    vectors = F.normalize(vq.quantize.embedding(codes_NT), dim=-1).view(len(codes_NT), side, side, -1)
    pixels: Tensor = vq.decoder(vq.post_quant_conv(vectors.permute(0, 3, 1, 2).contiguous()))
    return pixels


class _Optimizers:
    """Muon for filter banks, each as one matrix, AdamW for the rest, under one cosine."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], schedule: VqSchedule, steps: int) -> None:
        pairs = list(named)
        edges = ("conv_in.weight", "conv_out.weight", "quant_conv.weight")
        self.filters = [p for name, p in pairs if p.ndim == 4 and not name.endswith(edges)]
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.filters]
        self.all = [p for _, p in pairs]
        rest = [p for name, p in pairs if p.ndim < 4 or name.endswith(edges)]
        self.schedule, self.steps = schedule, steps
        self.optimizers = [
            torch.optim.Muon(self.matrices, lr=schedule.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, loss: Tensor, step: int) -> None:
        """One step down ``loss``, the ``step``-th of all."""
        warm = min(1.0, (step + 1) / self.schedule.warmup)
        rate = self.schedule.lr * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * step / self.steps)))
        for parameter in self.all:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.all, 1.0)
        for matrix, bank in zip(self.matrices, self.filters, strict=True):
            matrix.grad = None if bank.grad is None else bank.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()


def train_vq(
    vq: Vq, schedule: VqSchedule, seed: int, report: Callable[[dict[str, float]], None]
) -> list[dict[str, float]]:
    """Trains ``vq`` in place, the decoder first; returns the curve, a point every 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    vq.requires_grad_(True)
    curve: list[dict[str, float]] = []
    start = time.time()

    def note(step: int, last: int, **values: float) -> None:
        if step % 50 == 0 or step == last:
            point = {"step": step, "seconds": round(time.time() - start, 1)}
            curve.append({**point, **{name: round(value, 5) for name, value in values.items()}})
            report(curve[-1])

    painting = [(n, p) for n, p in vq.named_parameters() if n.startswith(("decoder", "post_quant", "quantize"))]
    optimizers = _Optimizers(painting, schedule, schedule.steps)
    for step in range(schedule.steps):
        codes = code_maps(schedule.pictures, generator)
        pixels = painted(codes) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            error = decoded(vq, codes).float() - pixels
        optimizers.step(error.square().mean() + L1_WEIGHT * error.abs().mean(), step)
        mse = error.square().mean().item()
        note(step, schedule.steps - 1, mse=mse, mse_share=mse / pixels.var().item())

    reading = [(n, p) for n, p in vq.named_parameters() if n.startswith(("encoder", "quant_conv"))]
    optimizers = _Optimizers(reading, schedule, schedule.encoder_steps)
    for step in range(schedule.encoder_steps):
        codes = code_maps(schedule.pictures, generator)
        target = F.normalize(vq.quantize.embedding.weight.detach()[codes], dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            found = vq.quant_conv(vq.encoder(painted(codes) * 2 - 1)).flatten(2).transpose(1, 2).float()
        loss = (found - target).square().sum(-1).mean()
        optimizers.step(loss, step)
        note(step, schedule.encoder_steps - 1, code_error=loss.item())
    vq.eval().requires_grad_(False)
    return curve


@torch.no_grad()
def decode(vq: Vq, codes_NT: Tensor, autocast: bool = True) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of codes, as whole 255ths: (x + 1) / 2 * 255, clamped and truncated."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pixels = decoded(vq, codes_NT)
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).trunc() / 255


def measure(vq: Vq, seed: int, pictures: int = 600) -> dict[str, Any]:
    """Share of true pictures that the checker passes after they were painted by the decoder, and their error."""
    rng = random.Random(seed)
    prompts = [random_prompt(rng, split=None) for _ in range(pictures)]
    scenes = [random_scene(rng, prompt, train=False) for prompt in prompts]
    arrays = undisturbed(torch.stack([torch.from_numpy(scene_array(scene)) for scene in scenes]))
    images = render_arrays(arrays)
    codes = looked_up(images)
    again = torch.cat([decode(vq, part, autocast=False) for part in codes.split(50)])
    exact = [check(prompt, image).exact for prompt, image in zip(prompts, again, strict=True)]
    return {
        "pictures": pictures,
        "checker_pass_rate": sum(exact) / pictures,
        "mse": (again - images).square().mean().item(),
    }


def make_vq(config: JanusVQVAEConfig, out: Path, schedule: VqSchedule, seed: int, pictures: int = 600) -> None:
    """Trains, measures on ``pictures`` and writes ``vq.safetensors`` and ``vq.json`` into ``out``."""
    torch.manual_seed(seed)
    vq: Vq = JanusVQVAE(config)
    initialise(vq, torch.Generator().manual_seed(seed + 1))
    if schedule.compiled:
        vq.encoder.compile(dynamic=False)
        vq.decoder.compile(dynamic=False)
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
