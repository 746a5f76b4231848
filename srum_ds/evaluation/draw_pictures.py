"""Draws one batch of a folder's pictures and writes them: what a drawing process of ``draw_folder`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import write_image
from srum_ds.evaluation.draw import image_key
from srum_ds.evaluation.draw_request import Drawing
from srum_ds.evaluation.processes import model_of
from srum_ds.models.fused import DEFAULT, chosen, start_kernels
from srum_ds.types import Prompt


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that are always drawn together.

    members: (prompt, sample) of each, paths: their files. todo: which of them are written; the others are there.
    image_size: height, width in pixels. check: prompts that the model must accept before anything is drawn.
    """

    drawing: Drawing
    device: str
    image_size: tuple[int, int]
    members: tuple[tuple[Prompt, int], ...]
    paths: tuple[Path, ...]
    todo: tuple[int, ...]
    check: tuple[Prompt, ...] = ()


def draw_pictures(batch: PictureBatch) -> int:
    """Draws a batch, writes what is missing of it, each file in one step, and returns how many these were.

    The whole batch is drawn even where a part is there: with other members the numbers would be rounded otherwise.
    Raises UserError for a prompt that the model cannot draw, for pictures that are no numbers, and where the device's
    memory or the disk is full.
    """
    drawing = batch.drawing
    if drawing.fused != DEFAULT and chosen().setting != drawing.fused:
        start_kernels(drawing.fused, torch.device(batch.device), together=False)
    model = model_of(drawing.model, drawing.kind, batch.device)
    if batch.check:
        model.check_prompts(batch.check)
    prompts = [prompt for prompt, _ in batch.members]
    keys = [image_key(drawing.seed, prompt, sample) for prompt, sample in batch.members]
    try:
        tokens, images_NCHW = model.generate(prompts, keys, model.grid(*batch.image_size), drawing.sampling)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{batch.device} has too little memory to draw {len(prompts)} pictures at once: lower --batch (of a run: "
            "eval.batch), and give another --out where pictures are drawn already"
        ) from error
    if not bool(tokens.isfinite().all() and images_NCHW.isfinite().all()):
        raise UserError(
            f"the model in {drawing.model} draws numbers that are not finite: its weights are damaged, or "
            f"{tokens.dtype} is too narrow for them. Copy the weights again."
        )
    for number in batch.todo:
        write_image(batch.paths[number], images_NCHW[number], {})
    return len(batch.todo)
