"""Draws an evaluation's images: fixed seeds, fixed batches, as many processes as there are cores.

``evaluate``, ``ablation`` and ``labels`` call ``draw_images``.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256, write_atomic
from srum_ds.common.seeds import Key
from srum_ds.evaluation.processes import drawing_processes, model_of
from srum_ds.models import default_dtype
from srum_ds.monitoring.images import to_uint8
from srum_ds.prompts.shards import fingerprint
from srum_ds.rewards.judge.readouts import LogprobReadout, Readout, Request
from srum_ds.types import Prompt

# Part of the cache's key: raise it when the same settings give other images.
CACHE_VERSION = 1


@dataclass(frozen=True)
class DrawSettings:
    """How images are drawn, and how the model that drew them is asked about them.

    kind: the model's design, as ``model.kind`` names it. image_size: height, width in pixels. sampling: of the design's
    own ``sampling_type``, a dataclass. batch: images drawn at once (a part of the settings: batches
    stay the same for any number of processes). readout: how the model's opinion is read. sample:
    which of a prompt's images; each has its own randomness.
    """

    kind: str
    image_size: tuple[int, int]
    sampling: Any
    seed: int
    batch: int
    readout: Readout = LogprobReadout()
    device: str = "cpu"
    sample: int = 0


@dataclass(frozen=True)
class EvalImages:
    """One model's image of every prompt.

    images_NCHW: uint8. scores_N: the model's own global score in [-1, 1] (float32), NaN if it failed.
    cached: whether they were read from an earlier evaluation.
    """

    images_NCHW: Tensor
    scores_N: Tensor
    cached: bool = False


@dataclass(frozen=True)
class _Batch:
    folder: Path
    prompts: tuple[Prompt, ...]
    questions: tuple[str, ...]
    settings: DrawSettings


def draw_images(
    folders: Sequence[Path],
    prompts: Sequence[Prompt],
    questions: Sequence[str],
    settings: DrawSettings,
    processes: int = 1,
    cache_dir: Path | None = None,
    cacheable: Sequence[bool] = (),
    on_batch: Callable[[int, int], None] | None = None,
) -> list[EvalImages]:
    """One image per prompt by each model folder, and each model's score of its own images.

    questions: what to ask about each prompt's image. What is random about an image is seeded by ``image_key`` and is
    the same for every model. Models marked in ``cacheable`` are looked up in ``cache_dir`` and stored there.
    ``on_batch(done, total)`` is told of progress. Raises UserError for a folder that is no checkpoint.
    """
    # Every folder is looked at before the first image is drawn.
    hashes = [weights_sha256(folder) for folder in folders]
    stores: dict[int, Path] = {}
    if cache_dir is not None:
        for number in range(len(folders)):
            if number < len(cacheable) and cacheable[number]:
                stores[number] = cache_dir / f"{cache_key(hashes[number], prompts, questions, settings)}.npz"
    found = {number: _read_cache(store, len(prompts), settings) for number, store in stores.items()}
    drawn = {number: images for number, images in found.items() if images is not None}
    missing = [number for number in range(len(folders)) if number not in drawn]
    starts = range(0, len(prompts), settings.batch)
    batches = [
        _Batch(
            folders[number],
            tuple(prompts[start : start + settings.batch]),
            tuple(questions[start : start + settings.batch]),
            settings,
        )
        for number in missing
        for start in starts
    ]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in _draw_all(batches, processes):
        parts.append(part)
        if on_batch is not None:
            on_batch(len(parts), len(batches))
    for place, number in enumerate(missing):
        own = parts[place * len(starts) : (place + 1) * len(starts)]
        images = np.concatenate([images for images, _ in own])
        scores = np.concatenate([scores for _, scores in own])
        drawn[number] = EvalImages(torch.from_numpy(images), torch.from_numpy(scores))
        if number in stores:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=images, scores=scores)
            write_atomic(stores[number], buffer.getvalue())
    return [drawn[number] for number in range(len(folders))]


def image_key(seed: int, prompt: Prompt, sample: int = 0) -> Key:
    """What seeds an image of an evaluation: its seed, the prompt and which of the prompt's images it is."""
    return ("eval", seed, prompt.id, sample)


def refuse_broken(images_NCHW: Tensor, prompts: Sequence[Prompt], folder: Path) -> None:
    """UserError naming the first prompt whose image holds values that are no numbers: it would pass for a black one."""
    whole_N = torch.isfinite(images_NCHW.float()).flatten(start_dim=1).all(dim=1).tolist()
    for prompt, whole in zip(prompts, whole_N, strict=True):
        if not whole:
            raise UserError(
                f"{folder}: the image of prompt {prompt.id!r} holds values that are no numbers (NaN or infinite), so "
                "it cannot be scored; the weights are broken, or overflow in this precision: look at the training's "
                "metrics.jsonl, or draw in another precision"
            )


def cache_key(weights: str, prompts: Sequence[Prompt], questions: Sequence[str], settings: DrawSettings) -> str:
    """What cached images are found by: the weights' hash, prompts, questions and every setting."""
    parts = {
        "version": CACHE_VERSION,
        "torch": torch.__version__,
        "weights": weights,
        "prompts": fingerprint(prompts),
        "questions": list(questions),
        "readout": type(settings.readout).__name__,
        "settings": asdict(settings),
    }
    dtype = default_dtype(settings.device)
    if dtype != torch.float32:
        parts["dtype"] = str(dtype)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_described).encode()).hexdigest()[:32]


def _described(value: object) -> dict[str, Any]:
    """A readout that is no dataclass, for ``cache_key``: its class and its attributes."""
    kind = type(value)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **getattr(value, "__dict__", {})}


def _read_cache(path: Path, count: int, settings: DrawSettings) -> EvalImages | None:
    """What an earlier evaluation stored, or None where there is nothing whole."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, scores = arrays["images"], arrays["scores"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        # Whatever a crash, a full disk or a flipped bit leaves behind: it is drawn anew.
        return None
    whole = images.shape == (count, 3, *settings.image_size) and scores.shape == (count,)
    if not whole or images.dtype != np.uint8:
        return None
    return EvalImages(torch.from_numpy(images), torch.from_numpy(scores.astype(np.float32)), cached=True)


def _draw_all(batches: Sequence[_Batch], processes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images and scores of all batches, in order."""
    device = batches[0].settings.device if batches else "cpu"
    with drawing_processes(device, min(processes, len(batches))) as run:
        yield from run(_draw_batch, batches)


def _draw_batch(batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8 [N, 3, H, W]) and the model's own scores of them (float32 [N])."""
    settings = batch.settings
    model = model_of(batch.folder, settings.kind, settings.device)
    keys = [image_key(settings.seed, prompt, settings.sample) for prompt in batch.prompts]
    grid = model.grid(*settings.image_size)
    _, images_NCHW = model.generate(batch.prompts, keys, grid, settings.sampling)
    refuse_broken(images_NCHW, batch.prompts, batch.folder)
    images_NCHW = to_uint8(images_NCHW)
    requests = [
        Request(k, question, prompt.text, (prompt.name, "eval"))
        for k, (question, prompt) in enumerate(zip(batch.questions, batch.prompts, strict=True))
    ]
    replies = settings.readout.read(model, list(images_NCHW.float() / 255), requests)
    return images_NCHW.numpy(), replies.score_Q.numpy()
