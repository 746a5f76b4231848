"""A set of prompts by whatever names it: a file, a saved data set, a URL, or a folder of prompt shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.common.texts import at_home
from srum_ds.prompts.own import TEST, Columns, is_url, read_own
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import INDEX, load_index
from srum_ds.types import Prompt


def is_shards(source: str) -> bool:
    """Whether a source is a folder of prompt shards."""
    return not is_url(source) and (Path(at_home(source)) / INDEX).is_file()


HELD_OUT = (TEST, "val", "validation")
"""What a split is called that training leaves out, the one to measure by first."""


def held_out_split(splits: Iterable[str]) -> str | None:
    """The split of shards to measure by; None where none is held out by its name."""
    known = set(splits)
    return next((name for name in HELD_OUT if name in known), None)


def read_source(source: str, column: str | None = None, split: str | None = None) -> list[Prompt]:
    """The prompts of what ``data.prompts`` takes (``read_own``), or of a split of prompt shards.

    column: the texts' column in a file, None for the usual names. split: of shards; None: the only one, or the first of
    ``HELD_OUT`` that is there. Raises UserError as ``read_own`` and ``PromptReader`` do, for a column of shards or a
    split of a file, and for shards with several splits of which none is held out by its name and none is named.
    """
    if not is_shards(source):
        if split is not None:
            raise UserError(f"--split {split}: {source} is no folder of prompt shards, which alone have splits.")
        return read_own(source, Columns(text=column))
    if column is not None:
        raise UserError(f"--column {column}: {source} holds prompt shards, which have no columns.")
    folder = Path(at_home(source))
    splits = load_index(folder)
    usual = next(iter(splits)) if len(splits) == 1 else held_out_split(splits)
    chosen = split or usual or TEST
    if chosen not in splits:
        known = ", ".join(sorted(splits))
        cure = "" if split is None else "; name one of them"
        raise UserError(f"{source}: has no split {chosen!r}, but {known}{cure}")
    with PromptReader(folder, chosen) as reader:
        return list(reader)
