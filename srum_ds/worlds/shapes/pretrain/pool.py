"""The pretraining set: supervised examples, drawn once, with latents and worn pictures prepared."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.stopping import start_helper
from srum_ds.worlds.shapes.pretrain.vae import LatentCodec, load_codec
from srum_ds.worlds.shapes.questions import build_examples
from srum_ds.worlds.shapes.render import render_arrays

CHUNKS = 20
BATCH = 50
"""Pictures at once through the autoencoder: fewer or more are slower on a CPU's cache."""

WORN_NOISE = 0.3
TEXT_FIELDS = (
    "caption",
    "altered",
    "match_question",
    "match_answer",
    "exist_question",
    "exist_answer",
    "open_question",
    "open_answer",
    "crop_question",
    "crop_answer",
)


@dataclass(frozen=True)
class Pool:
    """N examples. Texts are int64 indices into ``strings``.

    latents_NTC: fp16 latent tokens of the pictures that ``caption_N`` is true of. shown_N516: scene
    arrays of the pictures that the questions are about; worn_M3HW (uint8): the first M of them as
    the autoencoder gives them back, with some latent noise.
    """

    strings: list[str]
    latents_NTC: Tensor
    shown_N516: Tensor
    worn_M3HW: Tensor
    caption_N: Tensor
    altered_N2: Tensor
    match_question_N5: Tensor
    match_answer_N5: Tensor
    exist_question_N3: Tensor
    exist_answer_N3: Tensor
    open_question_N4: Tensor
    open_answer_N4: Tensor
    crop_box_N4: Tensor
    crop_question_N4: Tensor
    crop_answer_N4: Tensor

    def __len__(self) -> int:
        return int(self.caption_N.shape[0])

    @property
    def round_trips(self) -> int:
        return int(self.worn_M3HW.shape[0])


def understanding_images(pool: Pool, index_B: Tensor) -> Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1] of examples: worn where prepared, else freshly drawn."""
    worn = index_B < pool.round_trips
    images = torch.empty(len(index_B), 3, *pool.worn_M3HW.shape[-2:])
    if bool(worn.any()):
        images[worn] = pool.worn_M3HW[index_B[worn]].float() / 255
    if bool((~worn).any()):
        images[~worn] = render_arrays(pool.shown_N516[index_B[~worn]])
    return images


def build_pool(folder: Path, scenes: int, round_trips: int, seed: int, processes: int = 2) -> None:
    """Writes ``pool.safetensors`` and ``texts.json`` into a folder that holds the trained VAE."""
    codec = load_codec(folder, autocast=True)
    counts = [len(part) for part in np.array_split(np.arange(scenes), CHUNKS)]
    # Spawned, not forked: a forked child inherits torch's thread pool locked and waits for ever.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, start_helper) as workers:
        chunks = list(workers.map(build_examples, [seed * CHUNKS + i for i in range(CHUNKS)], counts))
    codec = load_codec(folder, autocast=True)
    strings: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name in TEXT_FIELDS:
        texts = np.array([row for chunk in chunks for row in chunk[name]], dtype=object)
        index = [strings.setdefault(text, len(strings)) for text in texts.reshape(-1)]
        tensors[name] = torch.tensor(index, dtype=torch.int32).view(texts.shape)
    arrays = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in ("scene", "shown", "crop_box")}
    tensors["shown"] = torch.from_numpy(arrays["shown"])
    tensors["crop_box"] = torch.from_numpy(arrays["crop_box"])
    scene = torch.from_numpy(arrays["scene"])
    latents = [codec.encode(render_arrays(part)).half() for part in scene.split(BATCH)]
    tensors["latents"] = torch.cat(latents)
    tensors["worn"] = _wear(codec, tensors["shown"][:round_trips], seed)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "pool.safetensors")
    (folder / "texts.json").write_text(json.dumps(list(strings)))


def _wear(codec: LatentCodec, shown: Tensor, seed: int) -> Tensor:
    """Pictures through the autoencoder (uint8), seven in ten of them with latent noise."""
    generator = torch.Generator().manual_seed(seed)
    worn = []
    for part in shown.split(BATCH):
        tokens = codec.encode(render_arrays(part))
        shape = (len(part), 1, 1)
        size = torch.rand(shape, generator=generator) * WORN_NOISE
        size = size * (torch.rand(shape, generator=generator) < 0.7)
        tokens = tokens + size * torch.randn(tokens.shape, generator=generator)
        worn.append((codec.decode(tokens) * 255).round().to(torch.uint8))
    return torch.cat(worn).contiguous()


def load_pool(folder: Path) -> Pool:
    """Reads what ``build_pool`` wrote; UserError where a file is missing."""
    for name in ("pool.safetensors", "texts.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: run `python -m srum_ds.worlds.shapes.pretrain` first.")
    stored: dict[str, Any] = load_file(folder / "pool.safetensors")
    texts = {name: stored[name].long() for name in TEXT_FIELDS}
    return Pool(
        strings=json.loads((folder / "texts.json").read_text()),
        latents_NTC=stored["latents"],
        shown_N516=stored["shown"],
        worn_M3HW=stored["worn"],
        crop_box_N4=stored["crop_box"],
        caption_N=texts["caption"],
        altered_N2=texts["altered"],
        match_question_N5=texts["match_question"],
        match_answer_N5=texts["match_answer"],
        exist_question_N3=texts["exist_question"],
        exist_answer_N3=texts["exist_answer"],
        open_question_N4=texts["open_question"],
        open_answer_N4=texts["open_answer"],
        crop_question_N4=texts["crop_question"],
        crop_answer_N4=texts["crop_answer"],
    )
