"""Trains the tiny Janus from scratch: to draw captions, and to answer questions about pictures, in one transformer.

Each step is one sum: cross-entropy of codes given captions (a share of them altered, so that drawing stays behind
understanding; a share dropped by the rule of the empty prompt), and cross-entropy of one-token answers about whole
pictures and about crops. From time to time the averaged model draws pictures, which the questions then are about too:
the judge has to be right on its own pictures. Matrices of the transformers train with Muon, the rest with AdamW; an
exponential average of the weights is what is kept.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.rewards.regions import crop_pictures
from srum_ds.worlds.shapes.pretrain.janus.draw import draw_codes
from srum_ds.worlds.shapes.pretrain.janus.model import (
    CODES,
    Janus,
    answer_logits,
    code_logits,
    compile_layers,
    trained_names,
)
from srum_ds.worlds.shapes.pretrain.janus.patches import painted
from srum_ds.worlds.shapes.pretrain.janus.pool import Drawing, Looking, load_looking, save_looking
from srum_ds.worlds.shapes.pretrain.janus.prompting import Wording, pixel_values
from srum_ds.worlds.shapes.pretrain.stage import Schedule, Stage
from srum_ds.worlds.shapes.world import PICTURE, random_prompt

NAME = "joint"
"""The stage's name in file names."""

NOISE = 0.06
"""Most noise in the pictures that questions are about; a pixel's standard deviation."""


@dataclass(frozen=True)
class Plan(Schedule):
    """The schedule, the understanding batches, the weights of the losses, and when the model draws for itself.

    altered_late: the share of altered captions once the learning rate falls. own_from, own_every: the first step after
    which own pictures are asked about, and how often they are drawn anew. snapshot_every: steps between kept averages.
    """

    steps: int = 2600
    captions: int = 32
    noise_copies: int = 1
    lr: float = 1.5e-3
    warmup: int = 100
    flat_share: float = 0.4
    altered: float = 0.25
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    max_grad_norm: float = 2.0
    seed: int = 1
    snapshot_every: int = 100
    altered_late: float = 0.25
    pictures: int = 28
    crops: int = 12
    code_weight: float = 1.0
    match_weight: float = 1.0
    exist_weight: float = 0.4
    open_weight: float = 0.6
    crop_weight: float = 0.5
    own_from: int = 900
    own_every: int = 450
    own_pictures: int = 2400
    own_guidance: tuple[float, ...] = (1.0, 1.5)


def disturbed(images_NCHW: Tensor, g: torch.Generator) -> Tensor:
    """Pictures with a little noise, each of its own strength: the autoencoder paints patches only nearly."""
    strength = NOISE * torch.rand(len(images_NCHW), 1, 1, 1, generator=g)
    return (images_NCHW + strength * torch.randn(images_NCHW.shape, generator=g)).clamp(0, 1)


class Captions:
    """The drawing pool with its texts as ids."""

    def __init__(self, pool: Drawing, wording: Wording) -> None:
        self.pool, self.wording = pool, wording
        self.rows = wording.captions(pool.strings)

    def loss(self, model: Janus, plan: Plan, altered: float, g: torch.Generator) -> Tensor:
        """Mean cross-entropy of the codes of a batch; ``altered``: share of captions that are not quite true."""
        pool, count = self.pool, plan.captions
        index = torch.randint(len(pool), (count,), generator=g)
        swap = torch.rand(count, generator=g) < altered
        which = torch.randint(2, (count,), generator=g)
        dropped = torch.rand(count, generator=g) < plan.caption_dropout
        caption = torch.where(swap, pool.altered_N2[index, which], pool.caption_N[index])
        ids, length = self.rows.ids_SL[caption], self.rows.length_S[caption]
        ids = torch.where(dropped[:, None], self.wording.emptied(ids), ids)
        codes = pool.codes_NT[index]
        logits = code_logits(model, ids, length, codes)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


class Questions:
    """A pool of pictures with its questions as ids and its answers as tokens."""

    def __init__(self, pool: Looking, wording: Wording) -> None:
        self.pool = pool
        self.rows = wording.questions(pool.strings)
        self.first_S = wording.answers(pool.strings)
        self.width = {name: int(self.rows.length_S[q].max()) for name, q in pool.question.items()}

    def whole(self, index: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pixels, ids [B, 8, W], length, answer): five "match", one "exist", one "where", one "which way"."""
        third = torch.randint(3, (len(index), 1), generator=g)
        half = torch.randint(2, (len(index), 1), generator=g)

        def asked(of: Mapping[str, Tensor]) -> Tensor:
            open_ = of["open"][index].gather(1, torch.cat([half, 2 + half], dim=1))
            return torch.cat([of["match"][index], of["exist"][index].gather(1, third), open_], dim=1)

        question = asked(self.pool.question)
        return self._row(disturbed(self.pool.images(index), g), question, asked(self.pool.answer), g)

    def crops(self, index: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of one crop of each picture, brought to the pictures' size: four questions."""
        boxes = self.pool.crop_box_N4[index] / PICTURE
        images = crop_pictures(disturbed(self.pool.images(index), g), boxes, PICTURE)
        return self._row(images, self.pool.question["crop"][index], self.pool.answer["crop"][index], g)

    def _row(
        self, images: Tensor, question: Tensor, answer: Tensor, g: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return images, self.rows.ids_SL[question], self.rows.length_S[question], self.first_S[answer]


GROUPS = {"whole": {"match": 5, "exist": 1, "where": 1, "which": 1}, "crops": {"crop": 4}}
WIDTH = {"whole": 24, "crops": 14}
"""Tokens that a question takes at most: one shape for every batch, so that nothing is compiled twice."""


def looking_losses(
    model: Janus,
    wording: Wording,
    kind: str,
    pools: Sequence[Questions],
    count: int,
    g: torch.Generator,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cross-entropy and accuracy, by group, of questions about ``count`` pictures, shared out among the pools."""
    parts = []
    for number, pool in enumerate(pools):
        share = count // len(pools) + (number < count % len(pools))
        if share == 0:
            continue
        index = torch.randint(len(pool.pool), (share,), generator=g)
        images, ids, length, answer = getattr(pool, kind)(index, g)
        width = WIDTH[kind]
        ids = F.pad(ids, (0, max(0, width - ids.shape[-1])), value=wording.pad)[..., :width]
        if int(length.max()) > width:
            raise ValueError(f"a question takes {int(length.max())} tokens, more than {width}")
        parts.append((images, ids, length, answer))
    images, ids, length, answer = (torch.cat(of_pools) for of_pools in zip(*parts, strict=True))
    logits = answer_logits(model, wording, pixel_values(images), ids, length).float()
    loss = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none").view(answer.shape)
    right = (logits.argmax(-1) == answer).float()
    out = {}
    start = 0
    for name, size in GROUPS[kind].items():
        out[name] = (loss[:, start : start + size].mean(), right[:, start : start + size].mean())
        start += size
    return out


def draw_own(model: Janus, wording: Wording, plan: Plan, averaged: Mapping[str, Tensor], step: int, path: Path) -> None:
    """Writes questions about pictures that the averaged model draws for training prompts, at several guidances."""
    rng = random.Random(f"own {plan.seed} {step}")
    generator = torch.Generator().manual_seed(plan.seed * 7919 + step)
    live = trained_names(model)
    kept = {name: p.detach().clone() for name, p in live.items()}
    prompts, images = [], []
    with torch.no_grad():
        for name, p in live.items():
            p.copy_(averaged[name])
    with uncompiled(model), torch.autocast("cpu", torch.bfloat16):
        for guidance in plan.own_guidance:
            asked = [random_prompt(rng) for _ in range(plan.own_pictures // len(plan.own_guidance))]
            for start in range(0, len(asked), 250):
                part = asked[start : start + 250]
                uniform = torch.rand(len(part), CODES, generator=generator, dtype=torch.float64)
                codes = draw_codes(model, wording, [p.text() for p in part], guidance, 1.0, uniform)
                images.append(painted(codes))
            prompts += asked
    with torch.no_grad():
        for name, p in live.items():
            p.copy_(kept[name])
    save_looking(path, torch.cat(images), plan.seed + step, prompts)


class uncompiled:  # noqa: N801
    """Within it, the layers run as they are written: drawing has a new shape at every code."""

    def __init__(self, model: Janus) -> None:
        self.layers = [*model.model.language_model.layers, *model.model.vision_model.encoder.layers]

    def __enter__(self) -> None:
        self.kept: list[Any] = [layer._compiled_call_impl for layer in self.layers]
        for layer in self.layers:
            layer._compiled_call_impl = None

    def __exit__(self, *_: object) -> None:
        for layer, compiled in zip(self.layers, self.kept, strict=True):
            layer._compiled_call_impl = compiled


def train(
    model: Janus,
    wording: Wording,
    drawing: Drawing,
    looking: Sequence[Looking],
    plan: Plan,
    out: Path,
    compiled: bool = True,
    name: str = NAME,
) -> None:
    """Trains all but the autoencoder, and leaves the model with the averages; ``Stage`` says what ``out`` holds."""
    captions = Captions(drawing, wording)
    pools = [Questions(pool, wording) for pool in looking]
    if compiled:
        compile_layers(model)
    model.train()
    stage = Stage(name, trained_names(model), plan, out, snapshot_every=plan.snapshot_every)
    own: Questions | None = None
    own_step = -1
    while stage.step < plan.steps:
        due = stage.step - plan.own_from
        if due >= 0 and own_step != plan.own_from + due // plan.own_every * plan.own_every:
            own_step = plan.own_from + due // plan.own_every * plan.own_every
            path = out / f"own-{name}-{own_step}.safetensors"
            if not path.exists():
                draw_own(model, wording, plan, stage.averaged, own_step, path)
            # A model that has hardly learned fills its pictures, and held-out pairs are in all of them: none is kept.
            drawn = load_looking(path)
            own = Questions(drawn, wording) if len(drawn) > 0 else None
        asked = pools if own is None else [*pools, own]
        g = stage.begin_step()
        late = stage.step / plan.steps > plan.flat_share
        marks = [time.time()]
        with torch.autocast("cpu", torch.bfloat16):
            loss = captions.loss(model, plan, plan.altered_late if late else plan.altered, g)
        (plan.code_weight * loss).backward()
        marks.append(time.time())
        values = {"code": loss.item()}
        weights = {
            "match": plan.match_weight,
            "exist": plan.exist_weight,
            "where": plan.open_weight / 2,
            "which": plan.open_weight / 2,
            "crop": plan.crop_weight,
        }
        for kind, count in (("whole", plan.pictures), ("crops", plan.crops)):
            with torch.autocast("cpu", torch.bfloat16):
                groups = looking_losses(model, wording, kind, asked, count, g)
            total = torch.stack([weights[group] * entropy for group, (entropy, _) in groups.items()]).sum()
            total.backward()
            marks.append(time.time())
            for group, (entropy, right) in groups.items():
                values[group] = entropy.item()
                values[group + "_acc"] = right.item()
        for part, a, b in zip(("t_code", "t_whole", "t_crop"), marks, marks[1:], strict=False):
            values[part] = b - a
        stage.end_step(values)
    stage.finish()
