"""Drawing an evaluation's pictures: fixed noise, fixed batches, as many processes as there are cores."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256, write_atomic
from srum_ds.common.seeds import noise
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.monitoring.images import to_uint8
from srum_ds.prompts.shards import fingerprint
from srum_ds.rewards.judge.readouts import LogprobReadout, Readout, Request, alone
from srum_ds.types import Prompt

# Part of the cache's key: raise it when the same settings give other pictures.
CACHE_VERSION = 1


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn, and how the model that drew them is asked about them.

    image_size: height, width in pixels. batch: pictures at once (a part of the settings: batches
    stay the same for any number of processes). readout: how the model's opinion is read. sample:
    which of a prompt's pictures; each has its own noise.
    """

    kind: str
    image_size: tuple[int, int]
    sampling: FlowSampling
    seed: int
    batch: int
    readout: Readout = LogprobReadout()
    device: str = "cpu"
    sample: int = 0


@dataclass(frozen=True)
class Drawn:
    """images_NCHW: uint8. scores_N: the model's own global score in [-1, 1] (float32), NaN if it failed.

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


def draw(
    folders: Sequence[Path],
    prompts: Sequence[Prompt],
    questions: Sequence[str],
    settings: DrawSettings,
    processes: int = 1,
    cache_dir: Path | None = None,
    cacheable: Sequence[bool] = (),
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """One picture a prompt by each model folder, and each model's score of its own pictures.

    questions: what to ask about each prompt's picture. The noise of a picture is seeded by
    (settings.seed, prompt id, settings.sample) and is the same for every model. Models marked in
    ``cacheable`` are looked up in ``cache_dir`` and stored there. ``on_batch(done, total)`` is told
    of progress. Raises UserError for a folder that is no checkpoint.
    """
    # Every folder is looked at before the first picture is drawn.
    hashes = [weights_sha256(folder) for folder in folders]
    drawn: list[Drawn | None] = [None] * len(folders)
    stores: list[Path | None] = [None] * len(folders)
    for i in range(len(folders)):
        if cache_dir is not None and i < len(cacheable) and cacheable[i]:
            stores[i] = cache_dir / f"{cache_key(hashes[i], prompts, questions, settings)}.npz"
            drawn[i] = _read_cache(stores[i], len(prompts), settings)
    missing = [i for i in range(len(folders)) if drawn[i] is None]
    starts = range(0, len(prompts), settings.batch)
    jobs = [
        _Batch(
            folders[i],
            tuple(prompts[start : start + settings.batch]),
            tuple(questions[start : start + settings.batch]),
            settings,
        )
        for i in missing
        for start in starts
    ]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in _run(jobs, processes):
        parts.append(part)
        if on_batch is not None:
            on_batch(len(parts), len(jobs))
    for place, i in enumerate(missing):
        own = parts[place * len(starts) : (place + 1) * len(starts)]
        images = np.concatenate([images for images, _ in own])
        scores = np.concatenate([scores for _, scores in own])
        drawn[i] = Drawn(torch.from_numpy(images), torch.from_numpy(scores))
        store = stores[i]
        if store is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=images, scores=scores)
            write_atomic(store, buffer.getvalue())
    return [item for item in drawn if item is not None]


def eval_noise(shape: tuple[int, int], seed: int, prompt: Prompt, sample: int = 0) -> Tensor:
    """Initial noise [T, C] of an evaluation's picture."""
    return noise(shape, "eval", seed, prompt.id, sample)


def cache_key(weights: str, prompts: Sequence[Prompt], questions: Sequence[str], settings: DrawSettings) -> str:
    """What cached pictures are found by: the weights' hash, prompts, questions and every setting."""
    parts = {
        "version": CACHE_VERSION,
        "torch": torch.__version__,
        "weights": weights,
        "prompts": fingerprint(prompts),
        "questions": list(questions),
        "readout": type(settings.readout).__name__,
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read_cache(path: Path | None, count: int, settings: DrawSettings) -> Drawn | None:
    """What an earlier evaluation stored, or None where there is nothing whole."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, scores = arrays["images"], arrays["scores"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    whole = images.shape == (count, 3, *settings.image_size) and scores.shape == (count,)
    if not whole or images.dtype != np.uint8:
        return None
    return Drawn(torch.from_numpy(images), torch.from_numpy(scores.astype(np.float32)), cached=True)


def _run(jobs: Sequence[_Batch], processes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches' results in the order of the jobs."""
    processes = min(processes, len(jobs))
    if processes < 2:
        with _one_thread(bool(jobs) and jobs[0].settings.device == "cpu"):
            yield from map(_draw_batch, jobs)
        return
    # spawn: a forked torch can hang on locks that other threads held.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
            yield from pool.map(_draw_batch, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            "a drawing process was ended by the system, probably for lack of memory: lower eval.batch, "
            "or use one process"
        ) from error


@contextmanager
def _one_thread(active: bool) -> Iterator[None]:
    """One thread, as in a worker process, so that the number of processes changes no rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if active else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)
def _loaded(folder: Path, kind: str, device: str, stamp: tuple[tuple[str, int, int], ...]) -> Any:
    return load_model(folder, kind, device=device)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Sizes and times of a folder's files: weights replaced in place are loaded again."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _draw_batch(job: _Batch) -> tuple[np.ndarray, np.ndarray]:
    settings = job.settings
    model = _loaded(job.folder, settings.kind, settings.device, _stamp(job.folder))
    grid = model.grid_of(*settings.image_size)
    shape = (math.prod(grid), model.config.token_channels)
    noise_NTC = torch.stack([eval_noise(shape, settings.seed, prompt, settings.sample) for prompt in job.prompts])
    _, images_NCHW = model.generate(job.prompts, noise_NTC.to(settings.device), grid, settings.sampling)
    pictures = to_uint8(images_NCHW)
    requests = [
        Request(k, question, prompt.text, (prompt.name, "eval"))
        for k, (question, prompt) in enumerate(zip(job.questions, job.prompts, strict=True))
    ]
    replies = settings.readout.read(model, list(pictures.float() / 255), requests, alone)
    return pictures.numpy(), replies.score_Q.numpy()
