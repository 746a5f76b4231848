"""Images as a Qwen-VL vision tower takes them, by the library's processor on PIL: no torchvision, no processor file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json

SETTINGS_FILE = "preprocessor_config.json"
AREAS: Mapping[str, int] = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""Smallest and largest area in pixels that an image is brought to, where a checkpoint names none: the library's."""
LONGEST = 200
"""The library refuses images whose one side is more than so many times the other."""


@dataclass(frozen=True)
class Picture:
    """One image cut into patches [V, D] (float32), and its grid (time, rows, columns) of patches."""

    patches_VD: Tensor
    grid: tuple[int, int, int]

    def placeholders(self, merge: int) -> int:
        """How many tokens of the language model it becomes: merge x merge patches each."""
        return len(self.patches_VD) // merge**2


class PictureReader:
    """Cuts images into patches as the vision tower of ``vision_config`` takes them.

    vision_config: the ``vision_config`` of a Qwen-VL configuration (patch_size, spatial_merge_size,
    temporal_patch_size). settings: keys of a ``preprocessor_config.json``: ``size`` with ``shortest_edge`` and
    ``longest_edge``, which are areas in pixels, ``image_mean``, ``image_std``; what is not given is the library's.
    Raises UserError for a size that is no object.
    """

    def __init__(self, vision_config: Any, settings: Mapping[str, Any] | None = None) -> None:
        self.merge = int(vision_config.spatial_merge_size)
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        size = given.get("size", AREAS)
        if not isinstance(size, Mapping):
            raise UserError(f"{SETTINGS_FILE}: size is {size!r}, expected an object with {' and '.join(AREAS)}.")
        # Said here: before transformers 5.24 a processor opened with other areas changed what all have by default.
        areas = dict(size)
        for name, older in ("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"):
            if older in given:
                areas[name] = given[older]
        self.processor = Qwen2VLImageProcessorPil(
            patch_size=int(vision_config.patch_size),
            merge_size=self.merge,
            temporal_patch_size=int(vision_config.temporal_patch_size),
            size=areas,
            **{name: given[name] for name in ("image_mean", "image_std") if name in given},
        )

    def read(self, images: Sequence[Tensor]) -> list[Picture]:
        """Patches of images [3, H, W] in [0, 1], rounded to 8 bits; UserError for one that is too long and narrow."""
        return [self._read(image) for image in images]

    def _read(self, image_CHW: Tensor) -> Picture:
        height, width = image_CHW.shape[-2:]
        if max(height, width) > LONGEST * min(height, width):
            raise UserError(f"an image of {height} x {width} pixels is too narrow to look at: widen it.")
        pixels_HWC = (image_CHW.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        found = self.processor(Image.fromarray(pixels_HWC.cpu().numpy()), return_tensors="pt")
        time, rows, columns = found["image_grid_thw"][0].tolist()
        return Picture(found["pixel_values"], (time, rows, columns))


def read_settings(*folders: Path) -> Mapping[str, Any]:
    """The first ``preprocessor_config.json`` of the folders; empty where none has one. UserError for a broken one."""
    for folder in folders:
        path = folder / SETTINGS_FILE
        if path.is_file():
            try:
                settings = parse_json(path.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}); copy it again from the release.") from None
            if not isinstance(settings, dict):
                raise UserError(f"{path} holds {type(settings).__name__}, expected an object {{...}}. Copy it again.")
            return settings
    return {}
