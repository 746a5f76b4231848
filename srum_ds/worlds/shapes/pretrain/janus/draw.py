"""Draws pictures with the model in training: the library's own loop, batched, with one uniform number a code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from srum_ds.models.library.caches import with_cache
from srum_ds.worlds.shapes.pretrain.janus.model import Janus
from srum_ds.worlds.shapes.pretrain.janus.prompting import Wording


@torch.no_grad()
def draw_codes(
    model: Janus, wording: Wording, texts: Sequence[str], guidance: float, temperature: float, uniform_NT: Tensor
) -> Tensor:
    """Codes [N, T] int64, one picture a text, by inverse transform of the guided distribution.

    guided = u + guidance * (c - u), u of the empty prompt, which is as long as the prompt; code = number of entries of
    cumsum(softmax(guided / temperature)) that are <= its uniform number. guidance 1 leaves the empty prompt out.
    """
    rows = wording.captions(texts)
    ids_BL, length_B = _left_padded(rows.ids_SL, rows.length_S)
    valid = torch.arange(ids_BL.shape[1]) >= ids_BL.shape[1] - length_B[:, None]
    if guidance != 1.0:
        ids_BL = torch.cat([ids_BL, torch.where(valid, wording.emptied(ids_BL), ids_BL)])
        valid = torch.cat([valid, valid])
    kept = with_cache(DynamicCache())
    x_BLD = model.model.language_model.embed_tokens(ids_BL)
    position = (valid.long().cumsum(1) - 1).clamp(min=0)
    found = []
    for step in range(uniform_NT.shape[1]):
        hidden = model.model.language_model(
            inputs_embeds=x_BLD, attention_mask=valid.long(), position_ids=position, use_cache=True, **kept
        ).last_hidden_state
        logits = model.model.generation_head(hidden[:, -1]).float()
        if guidance != 1.0:
            conditional, empty = logits.chunk(2)
            logits = empty + guidance * (conditional - empty)
        share = (logits / temperature).double().softmax(-1).cumsum(-1)
        code = (share <= uniform_NT[:, step, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        found.append(code)
        each = code if guidance == 1.0 else torch.cat([code, code])
        x_BLD = model.prepare_embeddings_for_image_generation(each[:, None])
        valid = torch.cat([valid, torch.ones(len(valid), 1, dtype=torch.bool)], dim=1)
        position = position[:, -1:] + 1
    return torch.stack(found, dim=1)


def _left_padded(ids_BL: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
    """Rows moved to the right end; the padding goes in front."""
    width = ids_BL.shape[1]
    source = (torch.arange(width) - (width - length_B[:, None])) % width
    return ids_BL.gather(1, source), length_B
