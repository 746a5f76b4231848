"""Trains the embedded model's VAE on crowded random pictures (about five minutes on two cores).

    python -m srum_ds.worlds.shapes.pretrain.vae --out runs/pretrain --seed 0

writes ``vae.safetensors`` (diffusers' AutoencoderKL keys) and ``vae.json`` (scale, shift, figures).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.render import random_arrays, render_arrays, render_scenes
from srum_ds.worlds.shapes.world import random_prompt, random_scene

Autoencoder = Any
"""diffusers' AutoencoderKL, whose methods the library hides from type checkers."""

CHANNELS = 16
PATCH = 2
LATENT_SIDE = 8
L1_WEIGHT = 0.3
KL_WEIGHT = 6e-4


@dataclass(frozen=True)
class VaeSchedule:
    """Steps on 32x32 crops, then on whole pictures, under one cosine."""

    crop_steps: int = 1500
    full_steps: int = 300
    crop_pictures: int = 8
    full_pictures: int = 12
    lr: float = 2e-3
    warmup: int = 50


def build_vae() -> Autoencoder:
    """An untrained VAE: pictures [N, 3, 64, 64] in [-1, 1] to latents [N, 16, 8, 8]."""
    channels = (16, 32, 64, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tokens_from_latents(latents: Tensor) -> Tensor:
    """Latents [N, 16, 8, 8] to tokens [N, 16, 64]: row-major; (row, column, channel) in a token."""
    count = latents.shape[0]
    side = LATENT_SIDE // PATCH
    patches = latents.reshape(count, CHANNELS, side, PATCH, side, PATCH)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(count, side * side, PATCH * PATCH * CHANNELS)


def latents_from_tokens(tokens: Tensor) -> Tensor:
    """The inverse of ``tokens_from_latents``."""
    count = tokens.shape[0]
    side = LATENT_SIDE // PATCH
    patches = tokens.reshape(count, side, side, PATCH, PATCH, CHANNELS)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(count, CHANNELS, LATENT_SIDE, LATENT_SIDE)


@dataclass
class LatentCodec:
    """A trained VAE with the scale and shift that give its latents unit scale."""

    vae: Autoencoder
    scale: float = 1.0
    shift: float = 0.0
    autocast: bool = False

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [0, 1] to the posterior mean as tokens [N, 16, 64] float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            mean = self.vae.encode(_channels_last(images * 2 - 1)).latent_dist.mode()
        return tokens_from_latents((mean.float() - self.shift) * self.scale)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [N, 16, 64] to pictures [N, 3, 64, 64] float32 in [0, 1]."""
        latents = latents_from_tokens(tokens.float()) / self.scale + self.shift
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            images = self.vae.decode(_channels_last(latents)).sample
        pixels_NCHW: Tensor = (images.float() / 2 + 0.5).clamp(0, 1)
        return pixels_NCHW


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def load_codec(folder: Path, autocast: bool = False) -> LatentCodec:
    """Reads ``vae.safetensors`` and ``vae.json`` from a folder; UserError where one is missing."""
    for name in ("vae.safetensors", "vae.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: run `python -m srum_ds.worlds.shapes.pretrain.vae` first")
    facts = json.loads((folder / "vae.json").read_text())
    vae = build_vae()
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    vae.eval().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    return LatentCodec(vae, facts["scaling_factor"], facts["shift_factor"], autocast)


def vae_loss(vae: Autoencoder, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """mse + 0.3 L1 + 6e-4 KL (per latent) of pictures in [-1, 1]; also its parts as numbers."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
    error = output.float() - images
    mse = error.square().mean()
    l1 = error.abs().mean()
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    parts = {"mse": mse.item(), "l1": l1.item(), "kl": kl.item()}
    return mse + L1_WEIGHT * l1 + KL_WEIGHT * kl, parts


def train_vae(
    seed: int, schedule: VaeSchedule, report: Callable[[dict[str, float]], None]
) -> tuple[Autoencoder, list[dict[str, float]]]:
    """The trained VAE (eval mode) and its curve, a point every 100 steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = build_vae()
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.0)
    steps = schedule.crop_steps + schedule.full_steps
    curve: list[dict[str, float]] = []
    start = time.time()
    for step in range(steps):
        warm = min(1.0, (step + 1) / schedule.warmup)
        cosine = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * warm * cosine
        images = _training_batch(schedule, step < schedule.crop_steps, generator)
        loss, parts = vae_loss(vae, _channels_last(images * 2 - 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            point = {"step": step, "seconds": round(time.time() - start, 1), **parts}
            curve.append(point)
            report(point)
    return vae.eval().requires_grad_(False), curve


def _training_batch(schedule: VaeSchedule, crops: bool, generator: torch.Generator) -> Tensor:
    if not crops:
        return render_arrays(random_arrays(schedule.full_pictures, generator))
    images = render_arrays(random_arrays(schedule.crop_pictures, generator))
    halves = [half for row in images.split(32, dim=2) for half in row.split(32, dim=3)]
    return torch.cat(halves)


def measure(vae: Autoencoder, seed: int, pictures: int = 1000) -> dict[str, object]:
    """Scale and shift of the latents, and the checker's pass rate on reconstructions by latent noise."""
    rng = random.Random(seed)
    prompts = [random_prompt(rng, split=None) for _ in range(pictures)]
    images = render_scenes([random_scene(rng, prompt, train=False) for prompt in prompts])
    plain = LatentCodec(vae)
    raw = torch.cat([plain.encode(batch) for batch in images.split(100)])
    shift = raw.mean().item()
    scale = 1.0 / raw.std().item()
    codec = LatentCodec(vae, scale, shift)
    tokens = (raw - shift) * scale
    generator = torch.Generator().manual_seed(seed)
    passed = {}
    mse = {}
    for noise in (0.0, 0.1, 0.2, 0.3):
        noisy = tokens + noise * torch.randn(tokens.shape, generator=generator)
        decoded = torch.cat([codec.decode(batch) for batch in noisy.split(100)])
        exact = [check(prompt, image).exact for prompt, image in zip(prompts, decoded, strict=True)]
        passed[str(noise)] = sum(exact) / pictures
        mse[str(noise)] = (decoded - images).square().mean().item()
    return {
        "scaling_factor": scale,
        "shift_factor": shift,
        "checker_pass_rate_by_latent_noise": passed,
        "mse_by_latent_noise": mse,
        "pictures": pictures,
    }


def main() -> None:
    """Command line: trains, measures and saves."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crop-steps", type=int, default=VaeSchedule.crop_steps)
    parser.add_argument("--full-steps", type=int, default=VaeSchedule.full_steps)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    schedule = VaeSchedule(crop_steps=args.crop_steps, full_steps=args.full_steps)
    vae, curve = train_vae(args.seed, schedule, lambda point: print(json.dumps(point), flush=True))
    facts = measure(vae, args.seed)
    facts |= {"seed": args.seed, "seconds": round(time.time() - start, 1), "curve": curve}
    weights = {name: tensor.contiguous() for name, tensor in vae.state_dict().items()}
    save_file(weights, args.out / "vae.safetensors")
    (args.out / "vae.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key != "curve"}, indent=2))


if __name__ == "__main__":
    main()
