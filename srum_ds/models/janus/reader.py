"""The parts of a loaded Janus folder that the judge and the generator share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.modeling_janus import JanusVQVAE

from srum_ds.common.errors import UserError
from srum_ds.models.janus.config import JanusSettings
from srum_ds.models.janus.model import Janus
from srum_ds.models.janus.texts import Ids, JanusTexts


@dataclass
class Reader:
    """The parts of a checkpoint folder. vq: from codes to pixels, outside the module."""

    settings: JanusSettings
    module: Janus
    vq: JanusVQVAE
    texts: JanusTexts
    processor: Any

    def prompt_ids(self, text: str, what: str) -> Ids:
        """Ids of a prompt called ``what`` in errors; UserError where it is empty or leaves no room for its picture."""
        if not text.strip():
            raise UserError(f"{what} is empty; give it a text.")
        ids = self.texts.prompt(text)
        self.check_room(len(ids), self.settings.tokens - 1, what)
        return ids

    def check_room(self, length: int, more: int, what: str) -> None:
        """UserError where ``length`` tokens and ``more`` behind them exceed ``max_position_embeddings``."""
        longest = self.settings.longest
        if length + more > longest:
            raise UserError(
                f"{what} is too long: {length} tokens and {more} that follow, but max_position_embeddings in "
                f"config.json is {longest}. Shorten it."
            )

    def pixel_values(self, images: Sequence[Tensor]) -> Tensor:
        """Images [3, H, W] in [0, 1], rounded to 8 bits, as the processor gives them to the tower: [P, 3, h, w].

        An image that is not square is padded to a square with the processor's background.
        """
        pictures = [
            (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            for image in images
        ]
        values: Tensor = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return values


def load_processor(folder: Path, settings: JanusSettings) -> Any:
    """The folder's image processor in its form for PIL, which needs no torchvision. UserError where it does not fit."""
    try:
        processor: Any = JanusImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the image processor's file in {folder} cannot be read ({reason}); copy it again.") from error
    side = settings.library.vision_config.image_size
    size = dict(processor.size)
    if size.get("height") != side or size.get("width") != side:
        raise UserError(
            f"the image processor's file in {folder} says size {size}, but config.json says vision_config.image_size "
            f"{side}. Correct one of them."
        )
    return processor
