"""The pool of pretraining pictures: made by several processes, read back as it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes.pretrain.pool import build_pool, load_pool, understanding_images
from srum_ds.worlds.shapes.pretrain.vae import build_vae
from srum_ds.worlds.shapes.render import render_arrays
from srum_ds.worlds.shapes.vocabulary import KINDS
from srum_ds.worlds.shapes.world import enumerate_prompts, split_of


def test_a_pool_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    """Stored indices lead to the very texts, latents and pictures of the examples."""
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in build_vae().state_dict().items()}, tmp_path / "vae.safetensors")
    (tmp_path / "vae.json").write_text(json.dumps({"scaling_factor": 2.0, "shift_factor": 0.5}))
    with pytest.raises(UserError, match="pool.safetensors"):
        load_pool(tmp_path)
    build_pool(tmp_path, 40, 10, seed=5, processes=1)
    pool = load_pool(tmp_path)
    assert (len(pool), pool.round_trips) == (40, 10)
    assert pool.latents_NTC.shape == (40, 16, 64) and pool.latents_NTC.dtype == torch.float16
    trained = {prompt.text() for kind in KINDS for prompt in enumerate_prompts(kind) if split_of(prompt) == "train"}
    assert {pool.strings[index] for index in pool.caption_N} <= trained
    questions_4 = [[pool.strings[index] for index in row] for row in pool.crop_question_N4]
    assert all(text.startswith("is this a ") for row in questions_4 for text in row)
    images = understanding_images(pool, torch.tensor([39, 0, 12]))
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images[0], render_arrays(pool.shown_N516[39:40])[0])
    assert torch.equal(images[1], pool.worn_M3HW[0].float() / 255)
