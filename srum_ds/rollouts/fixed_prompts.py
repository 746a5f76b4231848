"""The fixed prompts of a run: the same few images again and again, so that one sees how they change.

The job shows them every ``log.image_every`` steps. The ranks share them out, each drawing as many at once as a
micro-batch of the loop holds.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.common import ranks
from srum_ds.config import Config
from srum_ds.engine import Engine
from srum_ds.monitoring.images import boxes_by_picture, to_uint8
from srum_ds.monitoring.writer import Monitor
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import load_index
from srum_ds.rollouts.collect import Collector
from srum_ds.rollouts.draw import for_drawing, micro_batches, roll_out, share
from srum_ds.types import Judged, Prompt

SHOWN_PROMPTS = 8


@dataclass(frozen=True)
class _Shown:
    """One image (uint8 [3, H, W]), its boxes with a score each, and its prompt with the whole image's score."""

    image_CHW: Tensor
    boxes: list[list[float]]
    scores: list[float]
    caption: str


def fixed_prompts(cfg: Config) -> list[Prompt]:
    """The first prompts of the validation split, or of the training split where there is none."""
    shards = Path(cfg.data.shards)
    # Imported prompt sets call it "val", or have none.
    known = load_index(shards)
    reader = PromptReader(shards, next((s for s in ("validation", "val") if s in known), cfg.data.split))
    return [reader[i] for i in range(min(SHOWN_PROMPTS, len(reader)))]


def show_fixed_prompts(collector: Collector, engine: Engine, monitor: Monitor, step: int) -> None:
    """Draws them with the weights that are exported and shows them, boxes coloured by score; all ranks call it."""
    cfg = collector.cfg
    mine, count = share(fixed_prompts(cfg), engine.rank, engine.world_size)
    at_once = cfg.rollout.micro_batch_prompts * cfg.rollout.images_per_prompt
    with ExitStack() as gathered:
        gathered.enter_context(for_drawing(engine, cfg.eval.weights, cfg.rollout.gather))
        drawn = [
            roll_out(collector.model, group, 1, cfg.rollout.image_size, collector.sampling, cfg.run.seed, 0)
            for group in micro_batches(mine, at_once)
        ]
        judge = collector.host.take(gathered)
        judged = collector.judging.judged_together(judge, drawn)
    found = ranks.run_on_all_ranks(lambda: [shown for batch in judged for shown in _take_apart(batch)][:count])
    # In the order of the prompts, which were dealt out like cards.
    shown = [found[number % len(found)][number // len(found)] for number in range(sum(map(len, found)))]
    monitor.images(
        "fixed",
        torch.stack([item.image_CHW for item in shown]).float() / 255,
        [item.boxes for item in shown],
        [item.scores for item in shown],
        [item.caption for item in shown],
        step,
    )


def _take_apart(judged: Judged) -> list[_Shown]:
    samples, scores = judged.samples, judged.scores
    images = to_uint8(samples.images_NCHW).cpu()
    boxes, local = boxes_by_picture(judged.regions, scores.local_R, len(images))
    whole = scores.global_N.tolist()
    captions = [f"{p.text}  ({s:+.2f})" for p, s in zip(samples.prompt_of_each(), whole, strict=True)]
    return [_Shown(*each) for each in zip(images, boxes, local, captions, strict=True)]
