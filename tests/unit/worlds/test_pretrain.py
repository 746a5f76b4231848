"""The two stages of pretraining, on a handful of pictures: what moves, what stays, what resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srum_ds.common.errors import UserError
from srum_ds.models import load_model
from srum_ds.models.bagel.modes import trains_in
from srum_ds.worlds.shapes.pretrain import drawing, umm
from srum_ds.worlds.shapes.pretrain.model import build, write_config
from srum_ds.worlds.shapes.pretrain.pool import build_pool, load_pool
from srum_ds.worlds.shapes.pretrain.publish import publish
from srum_ds.worlds.shapes.pretrain.vae import build_vae


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained autoencoder and a pool of a few examples."""
    folder = tmp_path_factory.mktemp("pretrain")
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in build_vae().state_dict().items()}, folder / "vae.safetensors")
    facts = {"scaling_factor": 1.0, "shift_factor": 0.0}
    (folder / "vae.json").write_text(json.dumps(facts))
    build_pool(folder, 40, 20, seed=5, processes=1)
    write_config(folder / "model", facts)
    return folder


def test_drawing_goes_on_alone_and_leaves_understanding_as_it_is(work: Path) -> None:
    pool = load_pool(work)
    joint = umm.Plan(steps=2, captions=4, pictures=4, crops=4)
    module, tokenizer = build(work / "model", 0)
    umm.train(module, tokenizer, pool, joint, work)
    with pytest.raises(UserError, match="drawing.safetensors"):
        publish(work, work / "out")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    stored = load_file(work / "joint.safetensors")
    assert all(torch.equal(before[name], stored["ema/" + name]) for name in before)

    plan = drawing.DrawingPlan(steps=2, captions=4, noise_copies=2)
    drawing.train_drawing(module, tokenizer, pool, plan, work)
    for name, p in module.named_parameters():
        assert trains_in("generation", name) or torch.equal(p, before[name]), name
    assert any(not torch.equal(p, before[n]) for n, p in module.named_parameters())

    # A fresh process finds both stages done, and ends with the same weights.
    again, _ = build(work / "model", 0)
    umm.train(again, tokenizer, pool, joint, work)
    drawing.train_drawing(again, tokenizer, pool, plan, work)
    for (name, p), q in zip(module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name

    # Another plan does not go on from the same files.
    with pytest.raises(UserError, match="another captions: choose another --work"):
        umm.train(again, tokenizer, pool, replace(joint, captions=5), work)

    publish(work, work / "out")
    published = dict(load_model(work / "out").module.named_parameters())
    averaged = load_file(work / "drawing.safetensors")
    for name, p in published.items():
        expected = averaged["ema/" + name] if trains_in("generation", name) else before[name]
        assert torch.equal(p.float(), expected.to(torch.bfloat16).float()), name
