"""Trains the embedded BAGEL from scratch: to draw captions, and to answer questions about pictures.

Each step is one sum of four losses: the flow-matching loss on captions (a share of them altered, so
that drawing stays behind understanding), and cross-entropy of one-token answers about whole
pictures, about their layout, and about crops. Matrices of the transformers train with Muon, the
rest with AdamW; an exponential average of the weights is what is kept.
``drawing`` goes on from there with the generation half alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.images import to_tensor
from srum_ds.models.bagel.layout import Segment
from srum_ds.models.bagel.model import Bagel, Inputs
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.models.bagel.vision import grid_ids
from srum_ds.rewards.regions import crop_pictures
from srum_ds.worlds.shapes.pretrain.pool import Pool, understanding_images
from srum_ds.worlds.shapes.pretrain.stage import Schedule, Stage

GRID = (4, 4)


NAME = "joint"


@dataclass(frozen=True)
class Plan(Schedule):
    """The schedule, the understanding batches and the weights of the losses.

    altered_late: the share of altered captions once the learning rate falls.
    """

    steps: int = 2000
    captions: int = 48
    noise_copies: int = 3
    lr: float = 3e-3
    warmup: int = 100
    flat_share: float = 0.45
    altered: float = 0.3
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    max_grad_norm: float = 2.0
    seed: int = 1
    altered_late: float = 0.2
    pictures: int = 32
    crops: int = 32
    match_weight: float = 1.0
    exist_weight: float = 0.4
    open_weight: float = 0.6
    crop_weight: float = 0.5


class Texts:
    """The pool's distinct strings as padded ids: [bos] text [eos], and for questions a final [bos]."""

    def __init__(self, tokenizer: BagelTokenizer, strings: list[str]) -> None:
        ids = [tokenizer.segment(s) for s in strings]
        self.length_S = torch.tensor([len(i) for i in ids])
        width = int(self.length_S.max()) + 1
        self.ids_SL = torch.zeros(len(ids), width, dtype=torch.int64)
        for row, segment in enumerate(ids):
            self.ids_SL[row, : len(segment)] = segment
        self.bos = tokenizer.special.bos
        self.first_S = torch.tensor([int(i[1]) if len(i) > 2 else 0 for i in ids])

    def captions(self, index_B: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ids [B, width] and lengths [B]."""
        return self.ids_SL[index_B][:, :width], self.length_S[index_B]

    def questions(self, index_Q: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ids [Q, width] that end in the answer's [bos], and their lengths."""
        ids = self.ids_SL[index_Q][:, :width].clone()
        length = self.length_S[index_Q]
        ids.scatter_(1, length[:, None], self.bos)
        return ids, length + 1


def vit_patches(images_NCHW: Tensor, patch: int = 14, size: int = 56) -> Tensor:
    """ViT patches [N * 16, 588] of pictures in [0, 1], by the very transform the judge will use."""
    from PIL import Image

    n = images_NCHW.shape[0]
    array = (images_NCHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    resized = [to_tensor(Image.fromarray(a).resize((size, size), Image.Resampling.BICUBIC)) for a in array]
    x = torch.stack(resized)
    side = size // patch
    x = x.reshape(n, 3, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(n * side * side, patch * patch * 3)


def read_pictures(module: Bagel, images_NCHW: Tensor) -> Cache:
    """The context of one picture a sample."""
    n = images_NCHW.shape[0]
    side = module.config.vit.image_size // module.config.vit.patch_size
    place = grid_ids(side, side, module.config.vit_max_num_patch_per_side)
    wrap = torch.tensor([module.special.image_start, module.special.image_end])
    inputs = Inputs(
        text_N=wrap.repeat(n),
        patches_VD=vit_patches(images_NCHW),
        patch_place_V=place.repeat(n),
        patch_counts=(side * side,) * n,
    )
    layout = module.layout_after([[Segment("vision", side * side)]] * n, None)
    return module.read(inputs, layout)


def ask(module: Bagel, pictures: Cache, ids_QL: Tensor, length_Q: Tensor, each: int) -> Tensor:
    """Vocabulary logits [Q, V] of the answers; ``each`` consecutive questions share a picture."""
    index = torch.arange(pictures.batch).repeat_interleave(each)
    hidden, _ = module.read_padded(ids_QL, length_Q, pictures.take(index))
    last = hidden[torch.arange(hidden.shape[0]), length_Q - 1]
    return module.logits(last)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Slight blur on some pictures and noise on others: generated pictures are never quite clean."""
    n = images.shape[0]

    def rand() -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = rand() * 0.8
    images = torch.where(rand() < 0.15, images * (1 - share) + blurred * share, images)
    noise = torch.randn(images.shape, generator=generator) * rand() * 0.12
    return torch.where(rand() < 0.3, images + noise, images).clamp(0, 1)


def flow_loss(module: Bagel, plan: Schedule, pool: Pool, texts: Texts, altered: float, g: torch.Generator) -> Tensor:
    """Mean squared velocity error over ``noise_copies`` noised copies of each drawn picture.

    altered: the share of captions that are not quite true.
    """
    b, m = plan.captions, plan.noise_copies
    index = torch.randint(len(pool), (b,), generator=g)
    swap = torch.rand(b, generator=g) < altered
    which = torch.randint(2, (b,), generator=g)
    caption = torch.where(swap, pool.altered_N2[index, which], pool.caption_N[index])
    ids, length = texts.captions(caption, 12)
    x0 = pool.latents_NTC[index].float()[:, None].expand(b, m, -1, -1)
    noise = torch.randn(x0.shape, generator=g)
    t = torch.sigmoid(torch.randn(b, m, generator=g))
    # Where things stand is decided at high noise: half of the copies lean towards it.
    lean = torch.rand(b, m, generator=g) < 0.5
    t = torch.where(lean, 2 * t / (1 + t), t)
    x_t = (1 - t)[..., None, None] * x0 + t[..., None, None] * noise
    dropped = torch.rand(b, m, generator=g) < plan.caption_dropout
    v: Tensor = module(ids, length, dropped, x_t, t, torch.tensor(GRID))
    return (v - (noise - x0)).square().mean()


def _pick(pool: Pool, count: int, g: torch.Generator) -> Tensor:
    """Half pictures that went through the autoencoder, half fresh ones."""
    seen = torch.randint(pool.round_trips, (count // 2,), generator=g)
    fresh = torch.randint(pool.round_trips, len(pool), (count - count // 2,), generator=g)
    return torch.cat([seen, fresh])


def picture_losses(
    module: Bagel, plan: Plan, pool: Pool, texts: Texts, g: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cross-entropy and accuracy of the questions about whole pictures, by group."""
    index = _pick(pool, plan.pictures, g)
    images = augment(understanding_images(pool, index), g)
    # All questions whether it matches, and one of each other kind.
    third = torch.randint(3, (len(index), 1), generator=g)
    half = torch.randint(2, (len(index), 1), generator=g)

    def asked(match: Tensor, exist: Tensor, open_: Tensor) -> Tensor:
        one = exist[index].gather(1, third)
        two = open_[index].gather(1, torch.cat([half, 2 + half], dim=1))
        return torch.cat([match[index], one, two], dim=1)

    question = asked(pool.match_question_N5, pool.exist_question_N3, pool.open_question_N4)
    answer = asked(pool.match_answer_N5, pool.exist_answer_N3, pool.open_answer_N4)
    ids, length = texts.questions(question.reshape(-1), 18)
    logits = ask(module, read_pictures(module, images), ids, length, question.shape[1])
    return _grouped(logits, texts.first_S[answer], {"match": 5, "exist": 1, "where": 1, "which": 1})


def crop_losses(
    module: Bagel, plan: Plan, pool: Pool, texts: Texts, g: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cross-entropy and accuracy of the questions about crops."""
    index = _pick(pool, plan.crops, g)
    images = augment(understanding_images(pool, index), g)
    crops = crop_pictures(images, pool.crop_box_N4[index].float() / images.shape[-1], 64)
    ids, length = texts.questions(pool.crop_question_N4[index].reshape(-1), 11)
    logits = ask(module, read_pictures(module, crops), ids, length, 4)
    return _grouped(logits, texts.first_S[pool.crop_answer_N4[index]], {"crop": 4})


def _grouped(logits_QV: Tensor, answer_BQ: Tensor, groups: dict[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    loss = F.cross_entropy(logits_QV, answer_BQ.reshape(-1), reduction="none").view(answer_BQ.shape)
    right = (logits_QV.argmax(-1) == answer_BQ.reshape(-1)).float().view(answer_BQ.shape)
    out = {}
    start = 0
    for name, count in groups.items():
        out[name] = (loss[:, start : start + count].mean(), right[:, start : start + count].mean())
        start += count
    return out


def train(module: Bagel, tokenizer: BagelTokenizer, pool: Pool, plan: Plan, out: Path) -> None:
    """Trains the whole module, and leaves it with the averages; see ``Stage`` for what ``out`` holds."""
    texts = Texts(tokenizer, pool.strings)
    module.requires_grad_(True)
    stage = Stage(NAME, dict(module.named_parameters()), plan, out)
    while stage.step < plan.steps:
        g = stage.begin_step()
        late = stage.step / plan.steps > plan.flat_share
        marks = [time.time()]
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(module, plan, pool, texts, plan.altered_late if late else plan.altered, g)
        loss.backward()
        marks.append(time.time())
        with torch.autocast("cpu", torch.bfloat16):
            groups = picture_losses(module, plan, pool, texts, g)
        weighted = (
            plan.match_weight * groups["match"][0]
            + plan.exist_weight * groups["exist"][0]
            + plan.open_weight * (groups["where"][0] + groups["which"][0]) / 2
        )
        weighted.backward()
        marks.append(time.time())
        with torch.autocast("cpu", torch.bfloat16):
            crops = crop_losses(module, plan, pool, texts, g)
        (plan.crop_weight * crops["crop"][0]).backward()
        marks.append(time.time())
        values = {"flow": loss.item()}
        for name, (entropy, right) in {**groups, **crops}.items():
            values[name] = entropy.item()
            values[name + "_acc"] = right.item()
        for name, a, b in zip(("t_flow", "t_pic", "t_crop"), marks, marks[1:], strict=False):
            values[name] = b - a
        stage.end_step(values)
    stage.finish()
