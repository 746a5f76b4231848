"""What a conformance set of BAGEL holds: which tensors are inputs, a case as a runner sees it, and its images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Outputs = dict[str, Tensor]

INPUTS = {
    "vae": r"image|eps|z",
    "train": r"noise|timestep_logits|latent_\d+|text_ids|text_indexes|position_ids|vae_token_indexes"
    r"|mse_loss_indexes|vit_token_indexes|vit_token_seqlens|ce_loss_indexes|ce_loss_weights|label_ids",
    "und": r"image_uint8|image_rope_ids|text_ids|text_rope_ids",
    "t2i": r"init_noise|cfg_rope_ids|packed_rope_ids|text_ids|vae_position_ids",
    "edit_text": r"(?!)",
    "edit_image": r"init_noise",
    "srum": r"bad_latents|good_latents|noise|text_ids|position_ids|timestep_logits",
    "position_ids": r"(?!)",
}
"""Names of the input tensors by kind of case; every other tensor is an output."""


def kind_of(case: str) -> str | None:
    """The kind of a case by its name: ``t2i_batch_global`` is of kind ``t2i``."""
    fitting = [kind for kind in INPUTS if case == kind or case.startswith(kind + "_")]
    return max(fitting, key=len, default=None)


def is_input(key: str) -> bool:
    """Whether the tensor ``case/name`` is given to the model; of an unknown case none is."""
    case, _, name = key.partition("/")
    kind = kind_of(case)
    return kind is not None and re.fullmatch(INPUTS[kind], name) is not None


@dataclass(frozen=True)
class Case:
    """One case as a runner sees it.

    ``inputs`` holds the input tensors of the whole set (``case/name``), ``wanted`` the shape that the
    set declares for each output of this case, ``settings`` its entry in cases.json.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    wanted: Mapping[str, tuple[int, ...]]

    def input(self, name: str) -> Tensor:
        return self.inputs[f"{self.name}/{name}"]


def picture(image_HWC: Tensor) -> Tensor:
    """A uint8 picture [H, W, 3] as floats [3, H, W] in [0, 1]."""
    return image_HWC.permute(2, 0, 1).float() / 255


def as_uint8(image_CHW: Tensor) -> Tensor:
    """The 8-bit picture [H, W, 3] of floats in [0, 1] that are multiples of 1/255."""
    return (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0)


def released_regions(records: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[float]]:
    """Boxes in whole pixels and scores of one picture's records, read as the release reads them."""
    boxes: list[list[int]] = []
    scores: list[float] = []
    for record in records:
        box = record.get("bbox") or []
        if record.get("object") == "global_layout_reward" or len(box) != 4:
            continue
        boxes.append([int(float(edge)) for edge in box])
        scores.append(float(record.get("score") or 0.0))
    return boxes, scores
