"""What Segment Anything costs, for plans and accounting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamCosts:
    """parameters: elements, whole on every rank in float32. encoder: FLOPs of an image; decoder: of 64 points of it.

    held: bytes while an image is encoded.
    """

    parameters: int
    encoder: float
    decoder: float
    held: int

    def flops(self, points_per_side: int) -> float:
        """FLOPs of one image asked about with a grid of points."""
        return self.encoder + self.decoder * points_per_side**2 / POINTS_AT_ONCE


POINTS_AT_ONCE = 64

# Counted on the meta device with transformers' SamModel (`measured_on_meta`) in float32 at 1024 px.
KNOWN = {
    "sam-vit-base": SamCosts(93_735_728, 0.972e12, 0.232e12, 2_800_000_000),
    "sam-vit-large": SamCosts(312_343_088, 2.986e12, 0.232e12, 4_480_000_000),
    "sam-vit-huge": SamCosts(641_090_864, 5.961e12, 0.232e12, 5_780_000_000),
}


def sam_costs(path: str) -> tuple[SamCosts, bool]:
    """Costs of ``regions.sam_model``, and whether it is known; an unknown one counts as the largest."""
    for name, costs in KNOWN.items():
        if name in path:
            return costs, True
    return KNOWN["sam-vit-huge"], False
