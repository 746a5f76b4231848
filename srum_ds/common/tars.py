"""The members of a tar, all of them. Python's ``tarfile`` takes a damaged header for the end of the file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

_BLOCK = 512
_CHUNK = 1 << 20


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar that is open for reading from a file on disk.

    Raises tarfile.ReadError behind the last member that can be read where the mark of a tar's end (blocks of zeros)
    does not follow, or something follows it: a header is damaged, the file was cut off, or tars were joined.
    """
    yield from tar
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    read = 0
    while chunk := stream.read(_CHUNK):
        if chunk.count(0) < len(chunk):
            raise tarfile.ReadError(
                f"no header of a member at byte {tar.offset}: it is damaged, or tars were joined into one file"
            )
        read += len(chunk)
    if read < _BLOCK:
        raise tarfile.ReadError(f"it ends at byte {tar.offset} without the mark of its end, as one that was cut off")
