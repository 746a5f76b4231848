"""Pictures as a Python program has them: tensors, PIL images, files; and those that a model has drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image
from srum_ds.monitoring.images import Shown, annotated, grid, to_pil


@dataclass(frozen=True)
class Pictures:
    """Pictures that a model has drawn. A notebook shows them as one grid.

    images_NCHW: float32 [N, 3, H, W] in [0, 1], on the CPU. prompts: the text of each. seed: they were drawn with.
    ``len()``, indexing and iteration give tensors [3, H, W].
    """

    images_NCHW: Tensor
    prompts: tuple[str, ...]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, place: int) -> Tensor:
        return self.images_NCHW[place]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images_NCHW)

    def pil(self) -> list[Image.Image]:
        """The N pictures as PIL images."""
        return [to_pil(image) for image in self.images_NCHW]

    def grid(self, captions: Sequence[str] | None = None) -> Image.Image:
        """All on one page, each below its prompt (or another caption), small ones enlarged."""
        drawn = [annotated(Shown(image)) for image in self.images_NCHW]
        return grid(drawn, list(captions if captions is not None else self.prompts))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        count, _, height, width = self.images_NCHW.shape
        return f"Pictures({count} of {height}x{width} pixels, seed {self.seed})"


Picture = Tensor | Image.Image | str | Path
"""A tensor [3, H, W] in [0, 1], a PIL image, or the path of an image file."""


def is_one(pictures: Any) -> bool:
    """Whether this is one picture, and no collection of some."""
    if isinstance(pictures, Tensor):
        return pictures.ndim == 3
    return isinstance(pictures, Image.Image | str | Path)


def tensors_of(pictures: Picture | Tensor | Pictures | Sequence[Picture]) -> list[Tensor]:
    """One picture or several as float32 [3, H, W] in [0, 1], on the CPU.

    Raises UserError, naming the place in the list, for what is no picture: another shape, numbers that are not finite
    or off [0, 1] (bytes are divided by 255), a file that cannot be read.
    """
    if is_one(pictures):
        return [_tensor(pictures, "the picture")]
    try:
        members = list(pictures)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(
            f"{type(pictures).__name__} is no picture; expected a tensor, a PIL image, a file, or some of them"
        ) from error
    return [_tensor(one, f"pictures[{number}]") for number, one in enumerate(members)]


def _tensor(picture: Any, where: str) -> Tensor:
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return pixels.float() / 255
    if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[0] != 3:
        shape = f" {list(picture.shape)}" if isinstance(picture, Tensor) else ""
        raise UserError(
            f"{where} is {type(picture).__name__}{shape}; expected a tensor [3, H, W] in [0, 1], a PIL image or a file"
        )
    if picture.dtype == torch.uint8:
        return picture.cpu().float() / 255
    image = picture.detach().float().cpu()
    if not bool(image.isfinite().all()) or float(image.min()) < 0 or float(image.max()) > 1:
        raise UserError(
            f"{where} has numbers from {float(image.min()):g} to {float(image.max()):g}; expected them in [0, 1]"
        )
    return image
