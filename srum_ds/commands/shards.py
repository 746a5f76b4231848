"""`srum-ds shards write` and `srum-ds shards check`: prompt sets as shards."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.prompts.shards import SplitReport
    from srum_ds.types import Prompt

SHAPES = "shapes"

app = App(name="shards", help="Write and check prompt shards.")


@app.command
def write(
    kind: str,
    source: Path | None = None,
    *,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    force: bool = False,
) -> None:
    """Write a prompt set as shards, and check them.

    Parameters
    ----------
    kind
        shapes (drawn), or compbench, srum, geneval, reasonbench, wise, wise_verified (read from your checkout of
        that project).
    source
        File or folder of the public prompt set.
    out
        Folder of the shards.
    shard_size
        Prompts per tar.
    seed
        Seeds the prompts of shapes.
    sizes
        Prompts of each split of shapes, such as --sizes.train 4002 --sizes.test 1200.
    force
        Replace splits that are there.
    """
    _print_reports(out, write_prompt_set(kind, source, out, shard_size, seed, sizes, force))


@app.command
def check(folder: Path) -> None:
    """Check every shard of a folder byte for byte against its index.

    Parameters
    ----------
    folder
        Folder of the shards.
    """
    from srum_ds.prompts.shards import check_shards

    _print_reports(folder, check_shards(folder))


def write_prompt_set(
    kind: str,
    source: Path | None,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
) -> dict[str, SplitReport]:
    """Writes every split of a prompt set as shards under ``out``, checks them and reports.

    kind: ``shapes`` or one of ``prompts.importers.IMPORTERS``. source: the file or folder of a public prompt set;
    none for ``shapes``, whose prompts are drawn (``seed``, ``sizes`` by split). Raises UserError on bad input,
    before anything is written.
    """
    from srum_ds.prompts.shards import INDEX, check_shards, load_index, write_shards

    splits = read_prompt_set(kind, source, seed, sizes)
    present = set(load_index(out)) if (out / INDEX).exists() else set()
    taken = sorted(present & set(splits))
    if taken and not force:
        raise UserError(f"{out} already holds {', '.join(taken)}; name another folder or pass --force")
    for split, prompts in splits.items():
        write_shards(out, split, prompts, shard_size, force)
    return check_shards(out)


def read_prompt_set(
    kind: str, source: Path | None, seed: int, sizes: Mapping[str, int] | None
) -> dict[str, list[Prompt]]:
    """The prompts of a set by split; see ``write_prompt_set``."""
    from srum_ds.prompts.importers import IMPORTERS
    from srum_ds.worlds.shapes.prompt_set import SHAPES_SIZES, shapes_prompts

    if kind == SHAPES:
        if source is not None:
            raise UserError(f"'shapes' prompts are drawn, not read: drop the source {source}")
        return shapes_prompts(sizes or SHAPES_SIZES, seed)
    if kind not in IMPORTERS:
        kinds = [SHAPES, *IMPORTERS]
        near = difflib.get_close_matches(kind, kinds, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown kind of prompts {kind!r}; known are {', '.join(kinds)}{hint}")
    if source is None:
        raise UserError(f"{kind!r} prompts are read from your checkout of that project: give its path")
    return IMPORTERS[kind](source)


def _print_reports(folder: Path, reports: Mapping[str, SplitReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder))
    for name in ("split", "shards", "prompts", "bytes", "categories"):
        table.add_column(name, justify="left" if name in ("split", "categories") else "right")
    for split, report in reports.items():
        kinds = ", ".join(f"{name} {count}" for name, count in report.categories.items())
        table.add_row(split, f"{report.shards:,}", f"{report.prompts:,}", f"{report.bytes:,}", kinds)
    Console().print(table)
