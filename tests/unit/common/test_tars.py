"""A tar is read whole, or refused: tarfile alone takes a damaged header for the end."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from srum_ds.common.tars import members_of


def written(path: Path) -> bytes:
    with tarfile.open(path, "w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    return path.read_bytes()


def read(path: Path) -> list[str]:
    with tarfile.open(path, "r:") as tar:
        return [member.name for member in members_of(tar)]


def test_a_whole_tar_is_read(tmp_path: Path) -> None:
    written(tmp_path / "a.tar")
    assert read(tmp_path / "a.tar") == [f"{number}.json" for number in range(5)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:2053] + b"x" + data[2054:],
        lambda data: data[:3072],
        lambda data: data[:3372],
        lambda data: data + data,
        lambda data: data[:2048] + bytes(1024) + data[2048:],
    ],
    ids=["header", "cut between members", "cut in a header", "joined", "zeros between"],
)
def test_a_tar_of_which_members_would_be_lost_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(damage(written(path)))
    with pytest.raises(tarfile.ReadError, match="at byte [0-9]+"):
        read(path)
