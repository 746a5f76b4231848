"""Proposals without a model: connected foreground segments, or the cells of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import Candidates, candidates_of
from srum_ds.types import Prompt


class Components:
    """Connected foreground segments, largest first (ties: upper, then left).

    Foreground is what differs from the image's background, the median colour of its border, by more
    than ``threshold`` in its strongest channel. A blank image has none, and one whose border is not
    finite is blank.

    Args:
        threshold: contrast in (0, 1).
    """

    asks = False
    finds_objects = True

    def __init__(self, threshold: float = 0.2) -> None:
        self.threshold = threshold

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``; neither prompts nor judge are looked at."""
        return component_candidates(images_NCHW, self.threshold)


def component_candidates(images_NCHW: Tensor, threshold: float = 0.2) -> list[Candidates]:
    """The foreground segments of each of N images [N, 3, H, W] in [0, 1]; see ``Components``."""
    pictures = images_NCHW.detach().float().cpu().numpy()
    return [component_boxes(picture, threshold) for picture in pictures]


def component_boxes(picture_CHW: np.ndarray, threshold: float) -> Candidates:
    """The foreground segments of one image; see ``Components``."""
    _, height, width = picture_CHW.shape
    border = np.concatenate(
        [picture_CHW[:, 0], picture_CHW[:, -1], picture_CHW[:, :, 0], picture_CHW[:, :, -1]], axis=1
    )
    background = np.median(border, axis=1)
    # NaN compares false, so a broken image has no foreground rather than a broken label image.
    foreground = np.abs(picture_CHW - background[:, None, None]).max(axis=0) > threshold
    labels, count = scipy.ndimage.label(foreground)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    ranked: list[tuple[int, int, int, int, int]] = []
    for index, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels)):
        ranked.append((-int(areas[index + 1]), rows.start, columns.start, rows.stop, columns.stop))
    ranked.sort()
    boxes = [(x0 / width, y0 / height, x1 / width, y1 / height) for _, y0, x0, y1, x1 in ranked]
    return candidates_of(boxes, [-entry[0] / (height * width) for entry in ranked])


class Grid:
    """``side`` x ``side`` equal boxes over every image, row by row; ``side`` >= 1."""

    asks = False
    # A cell is no object, and so never one too many.
    finds_objects = False

    def __init__(self, side: int = 2) -> None:
        edges = [k / side for k in range(side + 1)]
        cells = [(column, row) for row in range(side) for column in range(side)]
        boxes = [(edges[x], edges[y], edges[x + 1], edges[y + 1]) for x, y in cells]
        # A cell is no object that could be too small: all count as the whole image.
        self.cells = candidates_of(boxes, [1.0] * len(boxes))

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``; nothing is looked at."""
        return [self.cells] * images_NCHW.shape[0]


def components_proposer(cfg: Config) -> Components:
    """``regions.kind=components``."""
    return Components(cfg.regions.threshold)


def grid_proposer(cfg: Config) -> Grid:
    """``regions.kind=grid``."""
    return Grid(cfg.regions.grid_side)
