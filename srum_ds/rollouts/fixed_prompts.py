"""The fixed prompts of a run: the same few images again and again, so that one sees how they change.

The job shows them before the first step (step 0: the base) and every ``log.image_every`` steps. The ranks share them
out, each drawing as many at once as a micro-batch of the loop holds. Their randomness is their own: showing them, or
not, changes no weight. ``fixed_records`` keeps what was seen.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from srum_ds.common import ranks
from srum_ds.config import Config
from srum_ds.engine import Engine
from srum_ds.monitoring.images import boxes_by_picture, to_uint8
from srum_ds.monitoring.writer import Monitor
from srum_ds.objectives import get_objective
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import load_index
from srum_ds.rewards.token_weights import brush_of, raw_map, token_weights
from srum_ds.rollouts.collect import Collector
from srum_ds.rollouts.draw import for_drawing, micro_batches, roll_out, share
from srum_ds.rollouts.fixed_records import REWARD_MAP, WEIGHTS_MAP, SeenBox, SeenImage, Showing, write_showing
from srum_ds.types import Judged, Prompt

SHOWN_PROMPTS = 8
TAG = "fixed"


def fixed_prompts(cfg: Config) -> list[Prompt]:
    """The first prompts of the validation split, or of the training split where there is none."""
    shards = prompt_folder(cfg)
    # Imported prompt sets call it "val", or have none.
    known = load_index(shards)
    with PromptReader(shards, next((s for s in ("validation", "val") if s in known), cfg.data.split)) as reader:
        return [reader[i] for i in range(min(SHOWN_PROMPTS, len(reader)))]


def show_fixed_prompts(collector: Collector, engine: Engine, monitor: Monitor, step: int) -> None:
    """Draws them with the weights that are exported and shows them, boxes coloured by score; all ranks call it.

    step: how many steps were done; 0 for the untrained model. Rank 0 writes ``samples/fixed_000020.png`` and, beside
    it, the record of what was seen. Raises UserError, on all ranks, where that cannot be written.
    """
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
    found = ranks.run_on_all_ranks(lambda: [seen for batch in judged for seen in seen_images(batch, cfg)][:count])
    # In the order of the prompts, which were dealt out like cards.
    seen = [found[number % len(found)][number // len(found)] for number in range(sum(map(len, found)))]
    kind = WEIGHTS_MAP if get_objective(cfg.objective.name).weights == "positive" else REWARD_MAP
    showing = Showing(
        step, cfg.eval.weights, cfg.run.seed, collector.judging.label, kind, tuple(record for _, record in seen)
    )

    def write() -> None:
        if not monitor.active:
            return
        monitor.images(
            TAG,
            torch.stack([image_CHW for image_CHW, _ in seen]).float() / 255,
            [[box.box for box in record.boxes] for _, record in seen],
            [[math.nan if box.score is None else box.score for box in record.boxes] for _, record in seen],
            [_caption(record) for _, record in seen],
            step,
        )
        write_showing(monitor.run_dir, showing, [image_CHW for image_CHW, _ in seen])

    # Where the disk refuses, nobody waits for rank 0.
    ranks.run_on_all_ranks(write, rank_zero=True)


def _caption(record: SeenImage) -> str:
    return f"{record.text}  ({math.nan if record.score is None else record.score:+.2f})"


def seen_images(judged: Judged, cfg: Config) -> list[tuple[Tensor, SeenImage]]:
    """Each image of a micro-batch (uint8 [3, H, W]), and what the judge said of it with the map over its tokens."""
    samples, scores = judged.samples, judged.scores
    images_NCHW = to_uint8(samples.images_NCHW).cpu()
    count = len(images_NCHW)
    boxes, local = boxes_by_picture(judged.regions, scores.local_R, count)
    numbers = boxes_by_picture(judged.regions, torch.arange(len(judged.regions)).float(), count)[1]
    maps_Nhw = _maps(judged, cfg)
    seen = []
    for n, prompt in enumerate(samples.prompt_of_each()):
        own = [int(number) for number in numbers[n]]
        found = tuple(
            SeenBox(tuple(box), _known(score), _phrase(prompt, int(scores.phrase_R[r])), _reply(scores.raw, count + r))
            for box, score, r in zip(boxes[n], local[n], own, strict=True)
        )
        seen.append(
            SeenImage(
                id=prompt.id,
                text=prompt.text,
                category=prompt.category,
                phrases=tuple(prompt.phrases),
                finite=bool(samples.finite_N[n]),
                score=_known(float(scores.global_N[n])),
                reply=_reply(scores.raw, n),
                missing=None if scores.missing_N is None else _known(float(scores.missing_N[n])),
                boxes=found,
                map=_rows(maps_Nhw[n]),
            )
        )
    return list(zip(images_NCHW, seen, strict=True))


def _maps(judged: Judged, cfg: Config) -> Tensor:
    """The map over each image's tokens, [N, h, w]: what the objective weighs them by, or the reward at each token.

    Other objectives weigh an image against the others of its prompt, and here it has none: what is shown is the reward
    that they compare.
    """
    samples = judged.samples
    if get_objective(cfg.objective.name).weights == "positive":
        found = token_weights("positive", judged, cfg.reward).map_Nhw
        assert found is not None
        return found
    image_hw = (int(samples.images_NCHW.shape[-2]), int(samples.images_NCHW.shape[-1]))
    return raw_map(judged.scores, judged.regions, samples.grid, cfg.reward, brush_of(cfg.reward, image_hw))


def _phrase(prompt: Prompt, number: int) -> str:
    return prompt.phrases[number] if 0 <= number < len(prompt.phrases) else ""


def _reply(raw: tuple[str, ...], number: int) -> str:
    return raw[number] if number < len(raw) else ""


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(map_hw: Tensor) -> tuple[tuple[float, ...], ...]:
    """The map to two decimals; none where a number of it is not finite."""
    if not bool(torch.isfinite(map_hw).all()):
        return ()
    rows: Any = map_hw.double().tolist()
    return tuple(tuple(round(value, 2) for value in row) for row in rows)
