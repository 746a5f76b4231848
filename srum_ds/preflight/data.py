"""Looks at the prompts: the shards or the file that they come from, the split, how many there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.common.files import sha256_of
from srum_ds.common.texts import at_home
from srum_ds.config import Config
from srum_ds.preflight.findings import Finding, error, not_checked, ok, warning
from srum_ds.prompts.own import Columns, is_url, read_own, split_prompts
from srum_ds.prompts.prompt_set import FOLDER
from srum_ds.prompts.shards import INDEX, Shard, check_sizes, load_index, require_unchanged

MOST_HASHED = 64 << 20
"""Bytes of a split's shards up to which they are hashed here, in a tenth of a second; larger ones are when read."""
MOST_READ = 32 << 20
"""Bytes of a file of prompts up to which it is read here."""


def look_at_data(cfg: Config) -> Iterator[Finding]:
    """What a run draws its images from."""
    if cfg.train.mode == "offline":
        yield from _rollouts(cfg)
    elif cfg.data.prompts is None:
        yield from _shards(cfg, Path(cfg.data.shards), "data.shards")
    elif (Path(cfg.run.dir) / FOLDER / INDEX).is_file():
        yield from _shards(cfg, Path(cfg.run.dir) / FOLDER, "data.prompts")
    else:
        yield from _own(cfg, cfg.data.prompts)


def _shards(cfg: Config, folder: Path, part: str) -> Iterator[Finding]:
    if not folder.is_dir():
        yield error(
            part,
            f"{part}={cfg.written(part)}: there is no such folder of prompt shards; write one with `srum-ds shards "
            "write`, or give data.prompts a file of your own.",
        )
        return
    splits = load_index(folder)
    split = cfg.data.split
    if split not in splits:
        yield error("data.split", _no_split(split, splits, str(folder)))
        return
    shards = splits[split]
    count = sum(len(shard.samples) for shard in shards)
    if not count:
        yield error(
            "data.split",
            f"data.split={split} of {folder} is empty; write it anew with `srum-ds shards write`, or name another.",
        )
        return
    check_sizes(folder, shards)
    total = sum(shard.size for shard in shards)
    if total <= MOST_HASHED:
        yield from _changed(folder, shards, part)
        how = f"of {total:,} bytes, as the index says"
    else:
        how = f"of the size that the index says ({total:,} bytes; their sums are compared when they are read)"
    yield ok(part, f"{folder}: {len(shards)} shard(s) {how}")
    yield _counted(cfg, count, split)


def _changed(folder: Path, shards: tuple[Shard, ...], part: str) -> Iterator[Finding]:
    for shard in shards:
        require_unchanged(folder / shard.file, sha256_of(folder / shard.file), shard.sha256)
    yield from ()


def _own(cfg: Config, source: str) -> Iterator[Finding]:
    part = "data.prompts"
    if is_url(source):
        yield not_checked(part, f"{source} is read when the run starts")
        return
    path = Path(at_home(source))
    if not os.path.lexists(path):
        yield error(part, f"data.prompts={cfg.written(part)}: there is no such file or folder; give the path of one.")
        return
    if path.is_file() and path.stat().st_size > MOST_READ:
        yield not_checked(part, f"{path} is large ({path.stat().st_size:,} bytes): it is read when the run starts")
        return
    try:
        prompts = read_own(source, Columns(text=cfg.data.column))
    except UserError as problem:
        yield error(part, f"{part}={cfg.written(part)}: {problem}")
        return
    splits = split_prompts(prompts, cfg.data.train_share)
    if cfg.data.split not in splits:
        yield error("data.split", _no_split(cfg.data.split, splits, source))
        return
    yield ok(part, f"{source}: " + ", ".join(f"{len(found)} prompts to {name}" for name, found in splits.items()))
    yield _counted(cfg, len(splits[cfg.data.split]), cfg.data.split)


def _counted(cfg: Config, count: int, split: str) -> Finding:
    wanted = cfg.rollout.prompts_per_step
    if count < wanted:
        return warning(
            "data.split",
            f"the split {split} has {count} prompts and a step takes {wanted} (rollout.prompts_per_step): a step holds "
            "some of them more than once; give more prompts, or lower it",
        )
    passes = cfg.train.steps * wanted / count
    return ok("data.split", f"{split}: {count} prompts, of which {cfg.train.steps} steps take each {passes:.2g} times")


def _no_split(split: str, splits: object, where: str) -> str:
    there = ", ".join(sorted(splits)) if isinstance(splits, dict) else ""
    return f"data.split={split}: {where} has no such split; name one of {there}."


def _rollouts(cfg: Config) -> Iterator[Finding]:
    if cfg.data.rollouts is None:
        # The settings say so.
        return
    folder = Path(cfg.data.rollouts)
    if not folder.is_dir():
        yield error(
            "data.rollouts",
            f"data.rollouts={folder} is no folder, and train.mode=offline trains from one: write it with `srum-ds "
            "rollout`.",
        )
    elif not any(folder.glob("index.json*")):
        yield error(
            "data.rollouts",
            f"data.rollouts={folder} holds no rollouts (no index.jsonl); write them with `srum-ds rollout`.",
        )
    else:
        yield ok("data.rollouts", f"{folder} is there")
