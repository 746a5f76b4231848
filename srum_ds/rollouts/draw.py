"""``roll_out``: images of prompts from a model, and who draws which prompts.

The collector, the pool, the fixed prompts and the held-out check draw through it. All randomness is by identity: seeded
by (run seed, purpose, step, prompt name, sample), so that an image is the same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from srum_ds.common.seeds import SampleKeys
from srum_ds.engine import Engine
from srum_ds.models.protocol import Generator
from srum_ds.types import Prompt, Samples, all_finite


def roll_out(
    model: Generator,
    prompts: Sequence[Prompt],
    numbers: int | Sequence[Sequence[int]],
    image_size: tuple[int, int],
    sampling: Any,
    seed: int,
    step: int,
) -> Samples:
    """Draws images of each prompt; the samples of a prompt stand next to each other.

    An image with a pixel or a token that is not finite is NaN throughout: nobody judges it or learns from it.

    numbers: how many of each, or for each prompt the numbers of its samples. image_size: height, width in pixels.
    seed, step: of the run; they seed what is random about each image.
    """
    each = [range(numbers)] * len(prompts) if isinstance(numbers, int) else numbers
    repeated = [prompt for prompt, own in zip(prompts, each, strict=True) for _ in own]
    samples = [number for own in each for number in own]
    keys = SampleKeys(seed, step, tuple((p.name, k) for p, k in zip(repeated, samples, strict=True)))
    grid = model.grid(*image_size)
    tokens, images_NCHW = model.generate(repeated, keys.of("rollout"), grid, sampling)
    lost_N = ~all_finite(images_NCHW, tokens)
    if bool(lost_N.any()):
        # Half an image is none: no crop of it is judged either.
        images_NCHW = images_NCHW.clone()
        images_NCHW[lost_N.to(images_NCHW.device)] = torch.nan
    return Samples(
        prompts=tuple(prompts),
        group_N=torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(own) for own in each])),
        sample_N=torch.tensor(samples),
        images_NCHW=images_NCHW,
        tokens=tokens,
        grid=grid,
    )


def for_drawing(
    engine: Engine, weights: str, gather: Literal["auto", "whole", "layers"]
) -> AbstractContextManager[Any]:
    """The model in the state to draw by ``weights``: whole on every rank, or layer by layer; all ranks call it.

    auto: whole where there is room on all of them now.
    """
    if gather == "layers" or (gather == "auto" and not engine.fits_gathered()):
        return engine.layer_by_layer(weights)
    return engine.gathered(weights)


def micro_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Consecutive groups of ``size`` prompts."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def share(prompts: Sequence[Prompt], rank: int, world_size: int) -> tuple[list[Prompt], int]:
    """This rank's prompts, dealt out like cards, and how many of them count.

    All ranks get equally many, so that they make the same passes, which communicate where layers are gathered one by
    one: what is missing is filled up by the first prompt.
    """
    mine = list(prompts[rank::world_size])
    return mine + [prompts[0]] * (-(-len(prompts) // world_size) - len(mine)), len(mine)
