"""What `srum-ds shards write` and `srum-ds shards check` do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.prompts.importers import read_compbench, read_geneval, read_srum
from srum_ds.prompts.shards import INDEX, SplitReport, check_shards, load_index, write_shards
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.world import sample_prompts

KINDS = ("shapes", "compbench", "srum", "geneval")
IMPORTERS = {"compbench": read_compbench, "srum": read_srum, "geneval": read_geneval}
SHAPES_SIZES = {"train": 3996, "validation": 600, "test": 1200}


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


def write(
    kind: str,
    source: Path | None,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
) -> dict[str, SplitReport]:
    """Writes every split of a prompt set as shards under ``out``, checks them and reports.

    kind: one of ``KINDS``. source: the file or folder of a public prompt set; none for "shapes",
    whose prompts are drawn (``seed``, ``sizes`` by split). Raises UserError on bad input, before
    anything is written.
    """
    if kind == "shapes":
        if source is not None:
            raise UserError(f"'shapes' prompts are drawn, not read: drop the source {source}")
        splits = shapes_prompts(sizes or SHAPES_SIZES, seed)
    elif kind in IMPORTERS:
        if source is None:
            raise UserError(f"{kind!r} prompts are read from your checkout of that project: give its path")
        splits = IMPORTERS[kind](source)
    else:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown kind of prompts {kind!r}; known are {', '.join(KINDS)}{hint}")
    present = set(load_index(out)) if (out / INDEX).exists() else set()
    taken = sorted(present & set(splits))
    if taken and not force:
        raise UserError(f"{out} already holds {', '.join(taken)}; name another folder or pass --force")
    for split, prompts in splits.items():
        write_shards(out, split, prompts, shard_size, force)
    return check_shards(out)


def check(folder: Path) -> dict[str, SplitReport]:
    """Checks a folder of shards byte for byte; see ``srum_ds.prompts.shards.check_shards``."""
    return check_shards(folder)
