"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from srum_ds.errors import UserError


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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
