"""A region proposer: vertical strips of equal width.

regions.kind=region_proposer.py:strips regions.options.count=3
"""

from collections.abc import Sequence

from torch import Tensor

from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import Candidates, candidates_of
from srum_ds.types import Prompt


class Strips:
    asks = False  # the judge is not asked for boxes
    finds_objects = False  # a strip that no phrase claims is not one object too many

    def __init__(self, count: int) -> None:
        self.boxes = [(k / count, 0.0, (k + 1) / count, 1.0) for k in range(count)]

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        return [candidates_of(self.boxes, [1 / len(self.boxes)] * len(self.boxes)) for _ in prompts]


def strips(cfg: Config) -> Strips:
    return Strips(int(cfg.regions.options.get("count", 3)))
