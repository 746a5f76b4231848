"""The pretraining set of the tiny Janus: captions with their codes, and questions about pictures of three origins.

Fresh pictures come from the renderer. Of worn ones, most have some codes taken from elsewhere. Own ones were drawn by
the model in training. What is true of the latter two is read off their pixels by the checker.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.stopping import start_helper
from srum_ds.worlds.shapes import questions
from srum_ds.worlds.shapes.checker import detect
from srum_ds.worlds.shapes.pretrain.janus.patches import looked_up, painted, undisturbed
from srum_ds.worlds.shapes.render import render_arrays
from srum_ds.worlds.shapes.world import ShapePrompt, has_held_out_pair, random_prompt

CHUNKS = 20
BATCH = 64
LOOKING_FIELDS = ("match", "exist", "open", "crop")
KEPT_WHOLE = 0.3
"""Share of worn pictures whose codes all stay."""

FOREIGN_SHARE = 0.15
"""At most this share of the other pictures' codes is taken from elsewhere."""


@dataclass(frozen=True)
class Drawing:
    """N captions and the codes of a picture each is true of. Texts are int64 indices into ``strings``."""

    strings: list[str]
    caption_N: Tensor
    altered_N2: Tensor
    codes_NT: Tensor

    def __len__(self) -> int:
        return len(self.caption_N)


@dataclass(frozen=True)
class Looking:
    """N pictures (scene arrays int8 [N, 5, 16], or pixels uint8 [N, 3, H, W]) and what is asked about them.

    ``question`` and ``answer``: for match, exist, open and crop, int64 [N, Q] indices into ``strings``. crop_box_N4:
    in pixels.
    """

    strings: list[str]
    pictures: Tensor
    crop_box_N4: Tensor
    question: Mapping[str, Tensor]
    answer: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self, index_B: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1]."""
        chosen = self.pictures[index_B]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else render_arrays(chosen)


class _Strings:
    """Texts by number; each once."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def index(self, rows: Sequence[Any]) -> Tensor:
        texts = np.array(rows, dtype=object)
        found = [self.number.setdefault(text, len(self.number)) for text in texts.reshape(-1)]
        return torch.tensor(found, dtype=torch.int32).view(texts.shape)


def _save(path: Path, tensors: Mapping[str, Tensor], strings: Sequence[str]) -> None:
    partial = path.with_suffix(".partial")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, partial, metadata={"strings": json.dumps(list(strings))})
    partial.replace(path)


def _load(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `python -m srum_ds.worlds.shapes.pretrain.janus` first.")
    with safe_open(path, "pt") as stored:
        strings = json.loads(stored.metadata()["strings"])
    return load_file(path), strings


def load_drawing(path: Path) -> Drawing:
    """Reads what ``build_pool`` wrote; UserError where it is missing."""
    stored, strings = _load(path)
    return Drawing(strings, stored["caption"].long(), stored["altered"].long(), stored["codes"].long())


def load_looking(path: Path) -> Looking:
    """Reads what ``build_pool`` or ``save_looking`` wrote; UserError where it is missing."""
    stored, strings = _load(path)
    question = {name: stored[f"{name}_question"].long() for name in LOOKING_FIELDS}
    answer = {name: stored[f"{name}_answer"].long() for name in LOOKING_FIELDS}
    return Looking(strings, stored["pictures"], stored["crop_box"], question, answer)


def build_pool(folder: Path, scenes: int, worn: int, seed: int, processes: int = 2) -> None:
    """Writes ``drawing``, ``fresh`` and ``worn`` ``.safetensors`` into ``folder``; ``processes`` 0 starts none."""
    counts = [len(part) for part in np.array_split(np.arange(scenes), min(CHUNKS, scenes))]
    seeds = [(seed + 100) * CHUNKS + i for i in range(len(counts))]
    if processes == 0:
        chunks = [questions.build_examples(*chunk) for chunk in zip(seeds, counts, strict=True)]
    else:
        # Spawned, not forked: a forked child inherits torch's thread pool locked and waits for ever.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn, start_helper) as workers:
            chunks = list(workers.map(questions.build_examples, seeds, counts))

    strings = _Strings()
    tensors = {
        name: strings.index([row for chunk in chunks for row in chunk[f"{name}"]])
        for family in LOOKING_FIELDS
        for name in (f"{family}_question", f"{family}_answer")
    }
    tensors["pictures"] = undisturbed(torch.from_numpy(np.concatenate([chunk["shown"] for chunk in chunks])))
    tensors["crop_box"] = torch.from_numpy(np.concatenate([chunk["crop_box"] for chunk in chunks]))
    # No code shows a broken object: questions about them would teach the judge nothing about what is drawn.
    whole = (tensors["pictures"][:, 4] == 0).all(1)
    tensors = {name: tensor[whole] for name, tensor in tensors.items()}
    _save(folder / "fresh.safetensors", tensors, list(strings.number))

    generator = torch.Generator().manual_seed(seed)
    shown = tensors["pictures"][torch.randperm(int(whole.sum()), generator=generator)[:worn]]
    codes = torch.cat([looked_up(render_arrays(part)) for part in shown.split(BATCH)])
    again = painted(exchange_codes(codes, generator))
    save_looking(folder / "worn.safetensors", again, seed)

    strings = _Strings()
    scene = undisturbed(torch.from_numpy(np.concatenate([chunk["scene"] for chunk in chunks])))
    tensors = {
        "caption": strings.index([row for chunk in chunks for row in chunk["caption"]]),
        "altered": strings.index([row for chunk in chunks for row in chunk["altered"]]),
        "codes": torch.cat([looked_up(render_arrays(part)) for part in scene.split(BATCH)]).to(torch.int16),
    }
    _save(folder / "drawing.safetensors", tensors, list(strings.number))


def exchange_codes(codes_NT: Tensor, generator: torch.Generator) -> Tensor:
    """Most rows with up to a few codes that stand elsewhere in another row, preferably where something is drawn."""
    rows, count = codes_NT.shape
    usual = codes_NT.flatten().mode().values
    drawn = codes_NT[codes_NT != usual]
    pick = torch.randint(len(drawn), codes_NT.shape, generator=generator)
    share = torch.rand(rows, 1, generator=generator) * FOREIGN_SHARE
    share = share * (torch.rand(rows, 1, generator=generator) >= KEPT_WHOLE)
    # Where something is drawn, errors matter more, and are commoner.
    share = torch.where(codes_NT == usual, share / 3, share * 3)
    return torch.where(torch.rand(rows, count, generator=generator) < share, drawn[pick], codes_NT)


def save_looking(path: Path, images_NCHW: Tensor, seed: int, prompts: Sequence[ShapePrompt] | None = None) -> int:
    """Writes questions about pictures in [0, 1], true by the checker; returns how many were kept.

    prompts: what each picture was drawn for, which one question of five asks about; None: true or random ones. A
    picture that shows a held-out pair is left out.
    """
    rng = random.Random(f"questions {seed}")
    texts: dict[str, list[Any]] = {f"{f}_{k}": [] for f in LOOKING_FIELDS for k in ("question", "answer")}
    kept: list[int] = []
    boxes: list[list[float]] = []
    ask: dict[str, Callable[..., list[tuple[str, str]]]] = {
        "match": questions.match_questions,
        "exist": questions.exist_questions,
        "open": questions.open_questions,
    }
    for number, image in enumerate(images_NCHW):
        objects = detect(image)
        if has_held_out_pair(objects):
            continue
        caption = prompts[number] if prompts is not None else questions.describe(rng, objects) or random_prompt(rng)
        box, crop = questions.crop_questions(rng, caption, objects)
        pairs = {family: question(rng, caption, objects) for family, question in ask.items()} | {"crop": crop}
        kept.append(number)
        boxes.append(box)
        for family, asked in pairs.items():
            texts[f"{family}_question"].append([question for question, _ in asked])
            texts[f"{family}_answer"].append([answer for _, answer in asked])
    strings = _Strings()
    tensors = {name: strings.index(rows) for name, rows in texts.items()}
    tensors["pictures"] = (images_NCHW[kept] * 255).round().to(torch.uint8)
    tensors["crop_box"] = torch.tensor(boxes, dtype=torch.float32)
    _save(path, tensors, list(strings.number))
    return len(kept)
