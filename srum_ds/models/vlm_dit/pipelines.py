"""The pipelines of diffusers that can be read, and what of them no dry run can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pipeline:
    """One class of pipeline.

    guidance: what its call calls the guidance scale. empty: the prompt that stands for no prompt, as the release has
    it. longest: most tokens of a prompt before the pipeline would cut it. arguments: of every call. unreached: ends of
    names in the transformer's last block that no velocity depends on, though they belong to it.
    """

    guidance: str
    empty: str
    longest: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()


QWEN_IMAGE_UNREACHED = (
    "attn.to_add_out.",
    "attn.add_q_proj.",
    "attn.norm_added_q.",
    "txt_mlp.",
)
"""In Qwen-Image's last block the text stream ends after its keys and values: what only its queries use is idle."""

PIPELINES: Mapping[str, Pipeline] = {
    "QwenImagePipeline": Pipeline(
        guidance="true_cfg_scale",
        empty=" ",
        # The call keeps 512 of what is left of the template and the prompt.
        longest=500,
        unreached=QWEN_IMAGE_UNREACHED,
    ),
}
"""By the ``_class_name`` of a folder's model_index.json."""
