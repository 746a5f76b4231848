"""What a model folder is known by: its weights and configuration, wherever a design keeps them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from tests.support.designs import DESIGNS


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_by_hand(tmp_path: Path) -> None:
    """Weights, JSON and text by their names; a folder's parts by their paths; adapters and hidden files not at all."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "picture.png").write_bytes(b"picture")
    flat = f"config.json {sha256(b'{}')}\nmodel.safetensors {sha256(b'weights')}\n"
    assert weights_sha256(tmp_path) == sha256(flat.encode())
    for folder in ("lora", ".cache", "vae"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.safetensors").write_bytes(b"part")
    whole = flat + f"vae/part.safetensors {sha256(b'part')}\n"
    assert weights_sha256(tmp_path) == sha256(whole.encode())


def test_a_folder_without_weights_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no model there"):
        weights_sha256(tmp_path)


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_is_known_by_all_its_parts(name: str, tmp_path: Path) -> None:
    folder = DESIGNS[name].write(tmp_path / "model")
    before = weights_sha256(folder)
    for path in sorted(folder.rglob("*.safetensors")):
        kept = path.read_bytes()
        path.write_bytes(kept + b"\0")
        assert weights_sha256(folder) != before, path
        path.write_bytes(kept)
    assert weights_sha256(folder) == before
