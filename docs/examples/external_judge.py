"""An external judge of whole images: how much of an image is not background, from -1 (nothing) to 1 (a tenth or more).

judge.external=external_judge.py:fullness judge.external_weight=0.2
"""

from collections.abc import Sequence

from torch import Tensor

from srum_ds.types import Prompt


def fullness(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """N scores in [-1, 1]; NaN would say that there is none, and leave the image out of the loss."""
    share_N = (images_NCHW.amax(dim=1) > 0.2).float().mean(dim=(1, 2))
    return (20 * share_N).clamp(max=2) - 1
