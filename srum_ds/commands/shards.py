"""`srum-ds shards write`, `check`, `show`, `stats` and `index`: prompt sets as shards."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from srum_ds.commands.json_output import Json, one_object
from srum_ds.common.errors import UserError
from srum_ds.common.texts import at_home

if TYPE_CHECKING:
    from srum_ds.prompts.own import Columns
    from srum_ds.prompts.shards import SplitReport
    from srum_ds.prompts.stats import PromptStats, Spread
    from srum_ds.types import Prompt

SHAPES = "shapes"
OWN = "own"

app = App(name="shards", help="Write and check prompt shards, and their index.")


@app.command
def write(
    kind: str,
    source: str | None = None,
    *,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    split: float = 0.95,
    column: str | None = None,
    category: str | None = None,
    phrases: str | None = None,
    force: bool = False,
    json_: Json = False,
) -> None:
    """Write a prompt set as shards, and check them.

    Parameters
    ----------
    kind
        own (prompts of your own), shapes (drawn), or compbench, srum, geneval, reasonbench, wise, wise_verified (read
        from your checkout of that project).
    source
        File or folder of the prompt set; a checkout's root is enough. own: a .txt, .jsonl, .json, .csv, .tsv or
        .parquet file, a folder that Hugging Face's datasets saved, or the URL of a file.
    out
        Folder of the shards.
    shard_size
        Prompts per tar.
    seed
        Seeds the prompts of shapes.
    sizes
        Prompts of each split of shapes, such as --sizes.train 4002 --sizes.test 1200.
    split
        Of own: the share of prompts to train on; the others are the split test.
    column
        Of own: the column (key) that holds the texts (text, prompt or caption).
    category
        Of own: the column that holds their categories (category or tag, where there is one).
    phrases
        Of own: the column that holds the objects they name (phrases or objects, where there is one).
    force
        Replace splits that are there.
    """
    from srum_ds.prompts.own import Columns

    columns = Columns(column, category, phrases)
    reports = write_prompt_set(kind, source, out, shard_size, seed, sizes, force, split, columns)
    _print_reports("write", out, reports, json_)


@app.command
def show(folder: Path, split: str | None = None, *, count: int = 10, json_: Json = False) -> None:
    """Print the first prompts of each split.

    Parameters
    ----------
    folder
        Folder of the shards.
    split
        The one split to show.
    count
        How many of each.
    """
    from srum_ds.prompts.reader import PromptReader
    from srum_ds.prompts.shards import load_index

    shown: dict[str, Any] = {}
    with one_object(json_) as tell:
        for name in [split] if split is not None else load_index(folder):
            with PromptReader(folder, name) as reader:
                first = [reader[position] for position in range(min(count, len(reader)))]
                _print_prompts(name, len(reader), first)
                shown[name] = {"prompts": len(reader), "first": [asdict(prompt) for prompt in first]}
        tell({"command": "shards show", "folder": str(folder), "splits": shown})


def _print_prompts(split: str, prompts: int, first: Sequence[Prompt]) -> None:
    print(f"{split}: {prompts:,} prompts")
    for prompt in first:
        about = "; ".join(filter(None, [prompt.category, ", ".join(prompt.phrases)]))
        print(f"  {prompt.id}  {prompt.text}" + (f"  ({about})" if about else ""))


@app.command
def stats(folder: Path, *, json_: Json = False) -> None:
    """Say what a folder's prompts are like: counts, lengths, phrases, and texts that splits have in common.

    Parameters
    ----------
    folder
        Folder of the shards.
    """
    from srum_ds.prompts.stats import prompt_stats

    found = prompt_stats(folder)
    with one_object(json_) as tell:
        for line in stats_lines(found):
            print(line)
        tell({"command": "shards stats", "folder": str(folder)} | found.facts())


def stats_lines(stats: PromptStats) -> list[str]:
    """The figures as lines of text, a split after the other, then what splits share."""

    def spread(of: Spread) -> str:
        return f"{of.smallest} to {of.largest}, median {of.median:g}, mean {of.mean:.1f}"

    lines = []
    for name, split in stats.splits.items():
        again = f", {split.repeated:,} of them of a text that stood before" if split.repeated else ""
        lines.append(f"{name}: {split.prompts:,} prompts{again}")
        if list(split.categories) != [""]:
            counts = (f"{category or '(none)'} {count:,}" for category, count in split.categories.items())
            lines.append(f"  categories  {', '.join(counts)}")
        lines += [f"  words       {spread(split.words)}", f"  characters  {spread(split.characters)}"]
        if split.phrases is None:
            lines.append("  phrases     none")
        else:
            lines.append(
                f"  phrases     {split.with_phrases:,} prompts name {spread(split.phrases)}; "
                f"{split.distinct_phrases:,} different ones"
            )
    for shared in stats.shared:
        lines.append(
            f"{shared.second} repeats {shared.texts:,} texts of {shared.first} ({shared.prompts:,} prompts), such as "
            f"{'; '.join(map(repr, shared.examples))}"
        )
    if len(stats.splits) > 1 and not stats.shared:
        lines.append("no text stands in two splits")
    return lines


@app.command
def check(folder: Path, *, json_: Json = False) -> None:
    """Check every shard of a folder byte for byte against its index.

    Parameters
    ----------
    folder
        Folder of the shards.
    """
    from srum_ds.prompts.shards import check_shards

    _print_reports("check", folder, check_shards(folder), json_)


@app.command
def index(folder: Path, *, force: bool = False, json_: Json = False) -> None:
    """Write the lost index of a folder of shards anew from its tars.

    Parameters
    ----------
    folder
        Folder of the shards.
    force
        Replace the index that is there.
    """
    from srum_ds.prompts.shards import rebuild_index

    _print_reports("index", folder, rebuild_index(folder, force), json_)


def write_prompt_set(
    kind: str,
    source: Path | str | None,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
    split: float = 0.95,
    columns: Columns | None = None,
) -> dict[str, SplitReport]:
    """Writes every split of a prompt set as shards under ``out``, checks them and reports.

    kind: ``shapes``, ``own`` or one of ``prompts.importers.IMPORTERS``. source: the file or folder of the prompts; none
    for ``shapes``, whose prompts are drawn (``seed``, ``sizes`` by split). split, columns: of ``own``. Raises UserError
    on bad input, before anything is written.
    """
    from srum_ds.prompts.shards import INDEX, check_shards, load_index, write_shards

    splits = read_prompt_set(kind, source, seed, sizes, split, columns)
    present = set(load_index(out)) if (out / INDEX).exists() else set()
    taken = sorted(present & set(splits))
    if taken and not force:
        raise UserError(f"{out} already holds {', '.join(taken)}; name another folder or pass --force")
    for name, prompts in splits.items():
        write_shards(out, name, prompts, shard_size, force)
    return check_shards(out)


def read_prompt_set(
    kind: str,
    source: Path | str | None,
    seed: int,
    sizes: Mapping[str, int] | None,
    split: float = 0.95,
    columns: Columns | None = None,
) -> dict[str, list[Prompt]]:
    """The prompts of a set by split; see ``write_prompt_set``."""
    from srum_ds.prompts.importers import IMPORTERS
    from srum_ds.prompts.own import Columns, read_own, split_prompts
    from srum_ds.worlds.shapes.prompt_set import SHAPES_SIZES, shapes_prompts

    if kind == SHAPES:
        if source is not None:
            raise UserError(f"'shapes' prompts are drawn, not read: drop the source {source}")
        return shapes_prompts(sizes or SHAPES_SIZES, seed)
    if kind == OWN and source is not None:
        return split_prompts(read_own(str(source), columns or Columns()), split)
    if kind not in (*IMPORTERS, OWN):
        kinds = [SHAPES, OWN, *IMPORTERS]
        near = difflib.get_close_matches(kind, kinds, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown kind of prompts {kind!r}; known are {', '.join(kinds)}{hint}")
    if source is None:
        where = "a file of yours" if kind == OWN else "your checkout of that project"
        raise UserError(f"{kind!r} prompts are read from {where}: give its path")
    return IMPORTERS[kind](Path(at_home(str(source))))


def _print_reports(command: str, folder: Path, reports: Mapping[str, SplitReport], json_: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=escape(str(folder)))
    for name in ("split", "shards", "prompts", "bytes", "categories"):
        table.add_column(name, justify="left" if name in ("split", "categories") else "right")
    for split, report in reports.items():
        kinds = ", ".join(f"{name} {count}" for name, count in report.categories.items())
        # Names as texts: what stands in brackets in a category of the user's would be read as markup.
        table.add_row(Text(split), f"{report.shards:,}", f"{report.prompts:,}", f"{report.bytes:,}", Text(kinds))
    with one_object(json_) as tell:
        Console().print(table)
        splits = {split: asdict(report) for split, report in reports.items()}
        tell({"command": f"shards {command}", "folder": str(folder), "splits": splits})
