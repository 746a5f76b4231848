"""From pretraining's state to a checkpoint folder in the library's own layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes.pretrain.janus.model import Size, build, generation_config
from srum_ds.worlds.shapes.pretrain.janus.prompting import build_processor
from srum_ds.worlds.shapes.world import PICTURE


def publish(work: Path, snapshot: Path, out: Path, size: Size, guidance: float) -> None:
    """Writes averaged weights and the autoencoder, all as bfloat16, with processor and configuration, into ``out``.

    snapshot: a file of averaged weights. guidance: what the library's own ``generate`` uses by default.
    UserError where the weights are not those of a model of that size.
    """
    model, _ = build(size, load_file(work / "vq.safetensors"), seed=0)
    averaged = load_file(snapshot)
    wanted = {name: p for name, p in model.named_parameters() if not name.startswith("model.vqmodel.")}
    if set(averaged) != set(wanted):
        raise UserError(
            f"{snapshot} holds other weights than a model of this size: {sorted(set(averaged) ^ set(wanted))}"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(averaged[name])
    out.mkdir(parents=True, exist_ok=True)
    processor = build_processor(PICTURE, size.vision_side**2)
    model.generation_config = generation_config(processor.tokenizer, guidance)
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
