"""Training checkpoints on disk: safetensors and JSON, one folder per step, committed by one rename.

    checkpoints/step_000020/rank_00000.safetensors   what rank 0 held: "<kind>/<parameter>" -> 1-D tensor
                            rank_00001.safetensors
                            state.json               step, sizes and hashes of the files, the caller's state,
                                                     and a hash of all this (``checkpoint_state``)

A kind is ``live`` (fp32 master weights), ``exp_avg``, ``exp_avg_sq`` or ``weights.<name>`` (a named copy).
Each file says in its header where in the flattened parameter its pieces start, so a run of any number of
ranks reads the checkpoint of any other. A folder is written under ``step_000020.partial`` and renamed
when everything in it is on the disk: whatever has the final name is whole. No function here communicates.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import refuse_special
from srum_ds.common.texts import parse_json
from srum_ds.engine.checkpoint_state import (
    STATE_FILE,
    STEP_FOLDER,
    CorruptCheckpoint,
    FileRecord,
    rank_file,
    sealed,
    unreadable,
)

PARTIAL = ".partial"
CORRUPT = ".corrupt"
_REPLACED = f".replaced{PARTIAL}"
# Room for headers, state.json and the file system's own bookkeeping.
_SLACK_BYTES = 1 << 20


def step_folder(folder: Path, step: int) -> Path:
    """The final name of a step's checkpoint inside ``folder``."""
    return folder / f"step_{step:06d}"


def partial_folder(folder: Path, step: int) -> Path:
    """The name under which a step's checkpoint is written."""
    final = step_folder(folder, step)
    return final.with_name(final.name + PARTIAL)


def committed_steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints in ``folder``, ascending; empty where the folder is missing.

    Raises UserError where the disk does not say what is there.
    """
    matches = (STEP_FOLDER.fullmatch(name) for name in _folders(folder))
    return sorted(int(match.group(1)) for match in matches if match)


def set_aside(folder: Path) -> list[str]:
    """Names of the damaged checkpoints that were moved out of the way; raises as ``committed_steps``."""
    return sorted(name for name in _folders(folder) if name.endswith(CORRUPT))


def under_other_names(folder: Path) -> list[str]:
    """Names of folders that hold a checkpoint's state and have another name than a step's.

    Raises as ``committed_steps``.
    """
    left_out = (PARTIAL, CORRUPT)
    strange = (name for name in _folders(folder) if not STEP_FOLDER.fullmatch(name) and not name.endswith(left_out))
    return sorted(name for name in strange if os.path.lexists(folder / name / STATE_FILE))


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def clean_partial(folder: Path) -> list[str]:
    """Removes what an interrupted save left behind; returns the names removed. Raises as ``committed_steps``.

    A checkpoint that was about to be replaced by one of the same step gets its name back.
    """
    for name in _folders(folder):
        final = folder / name.removesuffix(_REPLACED)
        if name.endswith(_REPLACED) and not final.exists():
            os.rename(folder / name, final)
    partial = sorted(folder / name for name in _folders(folder) if name.endswith(PARTIAL))
    for path in partial:
        shutil.rmtree(path)
    return [path.name for path in partial]


def begin(folder: Path, step: int, bytes_needed: int) -> Path:
    """Makes the empty partial folder of a step. Raises UserError where the disk has too little room."""
    folder.mkdir(parents=True, exist_ok=True)
    clean_partial(folder)
    free = shutil.disk_usage(folder).free
    if free < bytes_needed + _SLACK_BYTES:
        raise no_room(folder, bytes_needed, f"{free:,} bytes are free")
    partial = partial_folder(folder, step)
    partial.mkdir()
    return partial


def no_room(folder: Path, bytes_needed: int, found: str) -> UserError:
    """The error of a disk that cannot take a checkpoint."""
    return UserError(
        f"no room for a checkpoint in {folder}: it needs {bytes_needed:,} bytes ({found}). "
        "The last checkpoint is untouched: free some space, or move run.dir to another disk, and run the "
        "same command again."
    )


def on_host(pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the pieces in the host's memory, which training no longer changes."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in pieces.items()}


def write_rank(partial: Path, rank: int, contents: Mapping[str, Tensor], starts: Mapping[str, int]) -> FileRecord:
    """Writes one rank's pieces and waits until they are on the disk.

    contents: ``<kind>/<parameter>`` -> 1-D tensor in the host's memory. starts: parameter -> index in the flattened
    parameter of the first element of its pieces. Raises OSError where the disk refuses (full, read-only, gone).
    """
    path = partial / rank_file(rank)
    try:
        save_file(dict(contents), path, metadata={"starts": json.dumps(dict(starts))})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    _fsync(path)
    return FileRecord(path.name, path.stat().st_size, _sha256(path))


def commit(partial: Path, folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes state.json and gives the folder its final name, which is the moment the checkpoint exists."""
    path = partial / STATE_FILE
    path.write_text(json.dumps(sealed(state), indent=1), encoding="utf-8")
    _fsync(path)
    _fsync(partial)
    final = step_folder(folder, step)
    if final.exists():
        # The same step saved again after a fall-back: rename cannot replace a folder that is not empty.
        replaced = final.with_name(final.name + _REPLACED)
        os.rename(final, replaced)
        os.rename(partial, final)
        _fsync(folder)
        shutil.rmtree(replaced)
        return final
    os.rename(partial, final)
    _fsync(folder)
    return final


def prune(folder: Path, keep: int, protected: Collection[int] = ()) -> None:
    """Removes all but the ``keep`` newest committed checkpoints and those of the steps ``protected``."""
    for step in committed_steps(folder)[:-keep]:
        if step in protected:
            continue
        doomed = step_folder(folder, step)
        # Renamed first: a half-removed folder must never carry a final name.
        going = doomed.with_name(f"{doomed.name}.old{PARTIAL}")
        os.rename(doomed, going)
        shutil.rmtree(going)


def quarantine(folder: Path, step: int) -> Path:
    """Moves a checkpoint that failed its checks out of the way, keeping its contents and what was moved before."""
    bad = step_folder(folder, step)
    aside, number = bad.with_name(bad.name + CORRUPT), 1
    while os.path.lexists(aside):
        number += 1
        aside = bad.with_name(f"{bad.name}.{number}{CORRUPT}")
    os.rename(bad, aside)
    return aside


def verify(checkpoint: Path, record: FileRecord) -> None:
    """Checks one file against its record. Raises CorruptCheckpoint naming the file and the difference.

    Raises UserError where the disk does not give what it holds.
    """
    path = checkpoint / record.name
    try:
        if record.name not in os.listdir(checkpoint):
            raise CorruptCheckpoint(f"{path} is missing")
        refuse_special(path)
        size = path.stat().st_size
        if size != record.bytes:
            raise CorruptCheckpoint(f"{path} has {size:,} bytes instead of {record.bytes:,}")
        if _sha256(path) != record.sha256:
            raise CorruptCheckpoint(f"{path} has other contents than were written (SHA-256 differs)")
    except OSError as error:
        raise unreadable(path, error) from error


class Reader:
    """Reads any range of any parameter from a checkpoint, whatever ranks wrote it.

    Use as a context manager. Files are memory-mapped, only the ranges asked for are read. Their hashes have been
    checked before, so that a file which does not open is a disk that does not answer: UserError.
    """

    def __init__(self, checkpoint: Path, names: list[str]) -> None:
        """names: the rank files, as state.json lists them."""
        self._files = []
        self._pieces: dict[str, list[tuple[int, int, int]]] = {}
        for index, name in enumerate(names):
            try:
                handle = safe_open(checkpoint / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise unreadable(checkpoint / name, OSError(str(error))) from error
            self._files.append(handle)
            try:
                starts = parse_json((handle.metadata() or {}).get("starts", "{}"))
                for key in handle.keys():
                    start = starts[key.split("/", 1)[1]]
                    length = handle.get_slice(key).get_shape()[0]
                    self._pieces.setdefault(key, []).append((index, start, length))
            except (ValueError, LookupError, TypeError) as error:
                raise CorruptCheckpoint(f"{checkpoint / name}: its header is not what a save writes") from error

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def kinds(self) -> set[str]:
        """Kinds of tensors that the checkpoint holds."""
        return {key.split("/", 1)[0] for key in self._pieces}

    def read(self, key: str, start: int, numel: int) -> Tensor:
        """Elements [start, start + numel) of the flattened tensor ``<kind>/<parameter>``, float32, CPU."""
        parts = []
        position = start
        for index, first, length in sorted(self._pieces.get(key, []), key=lambda piece: piece[1]):
            if first > position or first + length <= position:
                continue
            stop = min(first + length, start + numel)
            parts.append(self._files[index].get_slice(key)[position - first : stop - first])
            position = stop
            if position == start + numel:
                return parts[0] if len(parts) == 1 else torch.cat(parts)
        raise CorruptCheckpoint(f"{key}: elements {start} to {start + numel} are not in the checkpoint")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
