"""Writes files atomically: a reader sees the old one or the new one, never half of one. And hashes of files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from srum_ds.common.errors import UserError

# Files of a model folder that its images depend on.
_WEIGHTS = (".safetensors", ".json", ".txt")
GENERATION = "generation.json"
"""In an export's folder: how its training drew. It says which settings to draw with, and changes no weight."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside ``path`` for writing and, when the block ends well, renames it to ``path``.

    What stood at ``path`` stays untouched when the block raises. Raises UserError when the
    operating system refuses (a full disk, a read-only folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}). "
            "What stood there before is unchanged; free space or fix the permissions and repeat the command."
        ) from error
    finally:
        # Where a parent is no folder, there is nothing to clean up either.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8) to ``path`` in one step; see ``replacing`` for errors."""
    with replacing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def refuse_special(path: Path) -> None:
    """OSError for a pipe, a device or a socket, which may never give a byte, or never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, expected a file", str(path))


def file_bytes(path: Path) -> bytes:
    """What a file holds. OSError where it cannot be read, or is no regular file."""
    refuse_special(path)
    return path.read_bytes()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of a model folder's weights and configuration.

    Folders in it count too, since some designs keep their parts there; but an adapter that is merged already, under
    ``lora``, hidden ones and ``GENERATION`` do not. Raises UserError where the folder holds no weights, or one cannot
    be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS) if folder.is_dir() else []
    named = {path.relative_to(folder): path for path in files}
    left_out = ("lora", GENERATION)
    counted = {name: path for name, path in named.items() if name.parts[0] not in left_out and not _hidden(name)}
    if not any(name.suffix == ".safetensors" for name in counted):
        raise UserError(
            f"{folder}: no model there; expected a folder with *.safetensors and their configuration, in it or in "
            "folders of it"
        )
    digest = hashlib.sha256()
    try:
        for name, path in counted.items():
            digest.update(f"{name.as_posix()} {sha256_of(path)}\n".encode())
    except OSError as error:
        raise UserError(
            f"{path} could not be read ({error.strerror or error}): see to the disk, and run the same command again."
        ) from error
    return digest.hexdigest()


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)
