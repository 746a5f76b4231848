"""A region proposer of a user's own: it is given copies, and its boxes are looked at before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srum_ds.common import foreign
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import Candidates, Proposer
from srum_ds.types import Prompt


class GuardedProposer:
    """``Proposer`` of foreign code. It raises UserError for whatever that code raises or should not give."""

    def __init__(self, name: str, inner: Any) -> None:
        """name: the setting with what it names, for messages. UserError for what is no proposer."""
        self.name = name
        self.inner: Proposer = inner
        for attribute in ("asks", "finds_objects"):
            found = foreign.run(name, partial(getattr, inner, attribute, None))
            if not isinstance(found, bool):
                raise foreign.wrong(f"{name}: {attribute} of what it", found, "a truth value (docs/own_code.md)")
        if not callable(inner):
            raise foreign.wrong(name, inner, "a Proposer, which can be called (docs/own_code.md)")
        self.asks: bool = inner.asks
        self.finds_objects: bool = inner.finds_objects

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``."""
        count = len(prompts)
        found = foreign.run(self.name, lambda: self.inner(images_NCHW.clone(), foreign.copied(prompts), judge))
        expected = f"a list of {count} Candidates, one for each image"
        return [self._checked(one) for one in foreign.items(self.name, found, count, expected)]

    def _checked(self, one: Any) -> Candidates:
        expected = "Candidates with boxes_R4 [R, 4] and area_R [R], real numbers"
        if not isinstance(one, Candidates):
            raise foreign.wrong(self.name, one, expected)
        tensors: dict[str, Any] = {"boxes_R4": one.boxes_R4, "area_R": one.area_R}
        for name, value in tensors.items():
            if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
                raise foreign.wrong(f"{self.name}, {name}", value, expected)
        boxes_R4, area_R = foreign.run(self.name, lambda: [x.detach().cpu().double() for x in tensors.values()])
        if boxes_R4.ndim != 2 or boxes_R4.shape[1] != 4:
            raise foreign.wrong(f"{self.name}, boxes_R4", one.boxes_R4, expected)
        if tuple(area_R.shape) != (len(boxes_R4),):
            raise foreign.wrong(f"{self.name}, area_R", one.area_R, f"{len(boxes_R4)} areas, one for each box")
        return Candidates(boxes_R4, area_R, bool(one.failed))
