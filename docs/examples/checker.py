"""A checker: whether anything was drawn. A run reports it on held-out prompts, and is never steered by it.

watch.checker=checker.py:not_blank watch.every=20
"""

from collections.abc import Sequence

from torch import Tensor

from srum_ds.types import Prompt


def not_blank(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[bool]:
    """One answer for each prompt and its image [3, H, W] in [0, 1]."""
    return [bool(image.max() - image.min() > 0.2) for image in images_NCHW]
