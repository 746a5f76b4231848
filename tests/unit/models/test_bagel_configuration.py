"""What a folder's configuration means where it says nothing, or says it elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.models.bagel.adapter import load_bagel
from srum_ds.models.bagel.config import ImageTransform, read_config
from tests.support.tiny_models import random_picture, write_tiny_bagel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bagel(tmp_path / "model")


def test_transforms_that_a_folder_does_not_name(folder: Path) -> None:
    """The released model's own, and for smaller tables what fits them."""
    top = json.loads((folder / "config.json").read_text())
    for name in ("vae_transform", "vit_transform"):
        del top[name]
    (folder / "config.json").write_text(json.dumps(top))
    config = read_config(folder)
    assert config.vae_transform == ImageTransform(64, 64, 16) and config.vit_transform == ImageTransform(56, 56, 14)
    for size in ((30, 50), (1, 700)):
        model = load_bagel(folder)
        assert max(model.default_size(random_picture(*size))) <= 64
        assert max(model.reader.patches([random_picture(*size)])[0][1]) <= 4
    (folder / "config.json").unlink()
    (folder / "vit_config.json").write_text(json.dumps({"image_size": 980, "patch_size": 14}))
    released = read_config(folder)
    assert released.vae_transform == ImageTransform(1024, 512, 16)
    assert released.vit_transform == ImageTransform(980, 224, 14)


def test_the_base_of_the_rotary_embedding_may_stand_where_newer_files_have_it(folder: Path) -> None:
    content = json.loads((folder / "llm_config.json").read_text())
    del content["rope_theta"]
    content["rope_parameters"] = {"rope_theta": 12345.0, "rope_type": "default"}
    (folder / "llm_config.json").write_text(json.dumps(content))
    assert read_config(folder).llm.rope_theta == 12345.0
