"""What `srum-ds generate`, `srum-ds ask` and `srum-ds eval` do once their arguments are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from srum_ds.config import COMMAND_LINE, load_config, split_arguments
from srum_ds.errors import UserError
from srum_ds.files import replacing
from srum_ds.models import load_model
from srum_ds.models.base import Prompt, Sampling
from srum_ds.seeds import noise


def draw_pictures(
    model: Path,
    prompts: Sequence[str],
    out: Path,
    sampling: Sampling,
    *,
    count: int = 1,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    force: bool = False,
) -> list[Path]:
    """Draws ``count`` pictures of each prompt into PNG files of ``out`` and returns their paths.

    A picture depends on the model, the sampler, the seed, its prompt and its number alone, not on
    what else is drawn. ``size`` is (height, width) in pixels; without it, the largest square the
    model draws. Each PNG carries its prompt, seed and sampler as text chunks.

    Raises UserError when a file is there already (unless ``force``) and on a bad model or size.
    """
    if count < 1 or sampling.num_timesteps < 2:
        raise UserError("--count must be at least 1 and --steps at least 1.")
    names = [f"{_slug(prompt)}-seed{seed}-{number}.png" for prompt in prompts for number in range(count)]
    paths = [out / name for name in names]
    if len(set(paths)) < len(paths):
        raise UserError("the same prompt is given twice: raise --count instead.")
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{there[0]} is there already: choose another --out or --seed, or pass --force.")
    adapter = load_model(model)
    largest = adapter.config.max_latent_size * adapter.config.pixels_per_token
    height, width = size or (largest, largest)
    grid = adapter.grid_of(height, width)
    shape = (grid[0] * grid[1], adapter.config.token_channels)
    for start, text in enumerate(prompts):
        batch = [Prompt(id=f"{start}", text=text)] * count
        noise_NTC = torch.stack([noise(shape, "generate", seed, text, number) for number in range(count)])
        images_NCHW = adapter.generate(batch, noise_NTC, grid, sampling)[1]
        for number, image_CHW in enumerate(images_NCHW):
            about = {"prompt": text, "seed": seed, "number": number, "model": model, **asdict(sampling)}
            _write_png(paths[start * count + number], image_CHW, about)
    return paths


def ask_model(
    model: Path,
    images: Sequence[Path],
    question: str,
    *,
    answers: Sequence[str] = (),
    max_new_tokens: int = 16,
) -> list[tuple[Path, str, list[tuple[str, float]]]]:
    """Asks one question about each picture: (picture, answer, probability of each of ``answers``).

    With ``answers`` the reply is the likeliest of them, read from one prefill (their probabilities
    are the model's own and need not add up to 1); without, it is decoded greedily.

    Raises UserError for a picture that cannot be read and on a bad model.
    """
    pictures = [_read_picture(path) for path in images]
    adapter = load_model(model)
    questions = [question] * len(pictures)
    if not answers:
        texts = adapter.answer(pictures, questions, max_new_tokens)
        return [(path, text, []) for path, text in zip(images, texts, strict=True)]
    shares_QA = adapter.answer_logprobs(pictures, questions, answers).exp().tolist()
    replies = []
    for path, shares in zip(images, shares_QA, strict=True):
        best = answers[shares.index(max(shares))]
        replies.append((path, best, list(zip(answers, shares, strict=True))))
    return replies


def evaluation_request(arguments: Sequence[str], recipe: Path | None) -> tuple[Path, list[str]]:
    """Which run `srum-ds eval` means, and the evaluation settings that were given with it.

    ``arguments`` are ``[RUN] [key=value ...]``. With ``recipe`` they are the words a training run was
    started with, and the run is that recipe's ``run.dir``; without, the run is RUN (or the default
    recipe's) and only ``eval.*`` may be set. Returns the run's folder and the ``eval.*`` overrides.

    Raises UserError for other settings, and for a folder that holds no run.
    """
    words = list(arguments)
    named = words.pop(0) if words and "=" not in words[0] else None
    default, overrides = split_arguments(words)
    if recipe is not None and named is not None:
        raise UserError(f"'{named}' names a run and --recipe names another: give one of them.")
    chosen = [word for word in overrides if word.split("=")[0].strip().split(".")[0] == "eval"]
    fixed = [word for word in overrides if word not in chosen]
    if recipe is None and fixed:
        raise UserError(
            f"{fixed[0]} {COMMAND_LINE}: a run that is there keeps its settings, and only eval.* can be "
            "chosen anew. (With --recipe, give the words the training was started with.)"
        )
    run = Path(load_config(recipe or default, overrides).run.dir if named is None else named)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run (no config.yaml): train one first, with `srum-ds train`.")
    load_config(run / "config.yaml", chosen)
    return run, chosen


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"


def _write_png(path: Path, image_CHW: Tensor, about: dict[str, Any]) -> None:
    chunks = PngImagePlugin.PngInfo()
    for name, value in about.items():
        chunks.add_itxt(f"srum-ds:{name}", str(value))
    pixels = (image_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    with replacing(path) as stream:
        Image.fromarray(pixels).save(stream, format="PNG", pnginfo=chunks)


def _read_picture(path: Path) -> Tensor:
    """[3, H, W] float32 in [0, 1]; transparency is dropped."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such picture.") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}).") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
