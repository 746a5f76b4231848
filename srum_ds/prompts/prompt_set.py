"""Where a run's prompts lie: the shards that ``data.shards`` names, or those that are made of ``data.prompts``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import sha256_of
from srum_ds.common.texts import at_home
from srum_ds.config import Config
from srum_ds.prompts.own import Columns, is_url, read_own, split_prompts
from srum_ds.prompts.shards import INDEX, write_shards

FOLDER = "prompts"
"""In a run's folder, the shards made of ``data.prompts``."""
SOURCE = "source.json"


def prompt_folder(cfg: Config) -> Path:
    """The folder of shards that a run reads.

    Of ``data.prompts`` shards are made at the first call, in ``run.dir``/prompts, with the splits "train" and "test";
    the bytes depend on the prompts alone, so ranks that come at once make the same. Later calls take what stands there,
    so that a run goes on where the file is gone, or the network.

    Raises UserError as ``read_own``, and where the file has changed since, or the shards there are of another one.
    """
    if cfg.data.prompts is None:
        return Path(cfg.data.shards)
    folder = Path(cfg.run.dir) / FOLDER
    wanted = {"prompts": cfg.data.prompts, "column": cfg.data.column, "train_share": cfg.data.train_share}
    if not (folder / INDEX).is_file():
        _make(folder, wanted)
    _check(folder, wanted)
    return folder


def _make(folder: Path, wanted: dict[str, Any]) -> None:
    content = _digest(wanted["prompts"])
    prompts = read_own(wanted["prompts"], Columns(text=wanted["column"]))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for split, members in split_prompts(prompts, wanted["train_share"]).items():
            write_shards(partial, split, members)
        (partial / SOURCE).write_text(json.dumps({**wanted, "sha256": content}, indent=2) + "\n")
        if folder.exists() and not (folder / INDEX).exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except OSError as error:
        # Another rank was first, with the same bytes.
        if not (folder / INDEX).is_file():
            raise UserError(f"{folder}: the prompts cannot be written there ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        known = json.loads((folder / SOURCE).read_bytes())
        same = all(known[key] == wanted[key] for key in wanted if key != "prompts")
        content, place = known["sha256"], known["prompts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SOURCE}: does not say what the prompts there are ({error!r}); {_CURE}") from error
    now = _digest(wanted["prompts"], missing_is_none=True)
    # A file that was moved has the contents that were taken.
    other = place != wanted["prompts"] and (now is None or now != content)
    if other or not same:
        raise UserError(f"{folder}: holds the prompts of {place}, other ones or made with other settings; {_CURE}")
    if now is not None and now != content:
        raise UserError(
            f"data.prompts={wanted['prompts']} has changed since its prompts were taken to {folder}. Put it back, or "
            "begin another run (run.dir) with it."
        )


_CURE = "remove that folder, or give another run.dir"


def _digest(source: str, missing_is_none: bool = False) -> str | None:
    """SHA-256 of a file's bytes, or of a folder's names and files; None for a URL, and if so said for nothing."""
    if is_url(source):
        return None
    path = Path(at_home(source))
    if missing_is_none and not path.exists():
        return None
    try:
        if not path.is_dir():
            return sha256_of(path)
        files = sorted(item for item in path.rglob("*") if item.is_file())
        listed = "".join(f"{item.relative_to(path)} {sha256_of(item)}\n" for item in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    except OSError as error:
        raise UserError(f"data.prompts={source}: cannot be read ({error.strerror})") from error
