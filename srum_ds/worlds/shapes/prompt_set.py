"""The prompts of the embedded world as a prompt set, which `srum-ds shards write shapes` writes as shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from srum_ds.types import Prompt
from srum_ds.worlds.shapes.world import sample_prompts

SHAPES_SIZES = {"train": 3996, "validation": 600, "test": 1200}
"""Prompts of each split of the shipped set."""


def shapes_prompts(sizes: Mapping[str, int] = SHAPES_SIZES, seed: int = 0) -> dict[str, list[Prompt]]:
    """Prompts of the embedded world by split, kinds balanced and interleaved.

    ``meta`` holds what the checker needs and ``counts``: how many of each of the prompt's phrases.
    Texts repeat (under another id) only where a kind has no more of them in the split.
    """
    splits = {}
    for split, size in sizes.items():
        prompts = []
        for number, shape_prompt in enumerate(sample_prompts(split, size, seed)):
            prompt = shape_prompt.to_prompt(f"shapes-{split}-{number:05d}")
            counts = [count for _, count in shape_prompt.types()]
            prompts.append(replace(prompt, meta={**prompt.meta, "counts": counts}))
        splits[split] = prompts
    return splits
