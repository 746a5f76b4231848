"""The embedded Janus before any training: its size, its configuration, its initialisation, its passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    LlamaConfig,
)

from srum_ds.worlds.shapes.pretrain.janus.patches import SIDE
from srum_ds.worlds.shapes.pretrain.janus.prompting import IMAGE, Wording, build_tokenizer, vocabulary_size
from srum_ds.worlds.shapes.pretrain.janus.vq import vq_config
from srum_ds.worlds.shapes.world import PICTURE

Janus = Any
"""transformers' JanusForConditionalGeneration, whose methods the library hides from type checkers."""

CODES = SIDE * SIDE


@dataclass(frozen=True)
class Size:
    """Widths and depths. vision_side: patches along a side of what the vision tower sees.

    The library's ``generate`` draws as many codes as there are patches: the two sides are one.
    """

    hidden: int = 192
    intermediate: int = 512
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 6
    vision_side: int = SIDE
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    codes: int = 49
    code_dim: int = 32


def janus_config(size: Size, tokenizer: Any) -> JanusConfig:
    """The library's configuration, of ``SIDE`` x ``SIDE`` codes."""
    text = LlamaConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=1024,
        # Sequences have about a hundred tokens: slower rotations would tell no position from another.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=size.vision_hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        mlp_ratio=3.0,
        image_size=PICTURE,
        patch_size=PICTURE // size.vision_side,
        num_image_tokens=size.vision_side**2,
        projection_dim=size.hidden,
        depth=2,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq_config(size.codes, size.code_dim, size.hidden),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def generation_config(tokenizer: Any, guidance: float) -> GenerationConfig:
    """What the library's own ``generate`` reads."""
    boi = tokenizer.boi_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=guidance,
        temperature=1.0,
        boi_token_id=boi,
        generation_kwargs={"boi_token_id": boi},
    )


@torch.no_grad()
def initialise(model: Janus, seed: int) -> None:
    """Random weights, sized so that no part of a sum drowns the others; the VQ autoencoder is left alone.

    Matrices have unit gain, the projections that write into the residual stream a third of it. Positions of patches
    are as large as their contents.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    writes = ("o_proj", "down_proj", "projection_layer", "fc2")
    for name, sub in model.named_modules():
        if ".vqmodel" in name:
            continue
        if isinstance(sub, nn.Linear):
            last = name.rsplit(".", 1)[-1]
            normal(sub.weight, sub.in_features**-0.5 * (0.3 if last in writes else 1.0))
            if sub.bias is not None:
                sub.bias.zero_()
        elif isinstance(sub, nn.Embedding):
            normal(sub.weight, 0.7)
        elif isinstance(sub, nn.LayerNorm):
            sub.weight.fill_(1.0)
            sub.bias.zero_()
    patch = model.model.vision_model.embeddings.patch_embedding
    normal(patch.weight, patch.weight[0].numel() ** -0.5)
    patch.bias.zero_()
    for head in (model.lm_head, model.model.generation_head.vision_head):
        head.weight.mul_(0.1)


def build(size: Size, vq_state: dict[str, Tensor] | None, seed: int) -> tuple[Janus, Wording]:
    """A freshly initialised model (float32) that holds the trained autoencoder, and its wording."""
    tokenizer = build_tokenizer()
    model: Janus = JanusForConditionalGeneration(janus_config(size, tokenizer))
    initialise(model, seed)
    if vq_state is not None:
        model.model.vqmodel.load_state_dict(vq_state)
    model.model.vqmodel.requires_grad_(False)
    return model.train(), Wording(tokenizer)


def compile_layers(model: Janus) -> None:
    """Compiles the layers in place."""
    torch._dynamo.config.cache_size_limit = 32
    for layer in [*model.model.language_model.layers, *model.model.vision_model.encoder.layers]:
        layer.compile(dynamic=False)


def code_logits(model: Janus, ids_BL: Tensor, length_B: Tensor, codes_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of every code given those before it, teacher-forced.

    Each row is its prompt, its codes, then padding that nobody sees: shifting a row's positions changes nothing, so
    this equals the left-padded form, and needs no mask.
    """
    batch, width = ids_BL.shape
    count = codes_BT.shape[1]
    embed = model.model.language_model.embed_tokens
    drawn = model.prepare_embeddings_for_image_generation(codes_BT[:, :-1])
    pad = torch.zeros(batch, count - 1, dtype=ids_BL.dtype)
    x_BLD = embed(torch.cat([ids_BL, pad], dim=1)).to(drawn.dtype)
    place = length_B[:, None] + torch.arange(count - 1)
    x_BLD = x_BLD.scatter(1, place[..., None].expand(-1, -1, x_BLD.shape[-1]), drawn)
    position = torch.arange(width + count - 1).expand(batch, -1)
    hidden = model.model.language_model(inputs_embeds=x_BLD, position_ids=position, use_cache=False).last_hidden_state
    place = length_B[:, None] - 1 + torch.arange(count)
    hidden = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))
    logits: Tensor = model.model.generation_head(hidden)
    return logits


def question_mask(prefix: int, each: int, width: int) -> Tensor:
    """Which positions [1, 1, L, L] see which: a picture's own, then ``each`` questions that do not see each other."""
    block = torch.arange(each).repeat_interleave(width)
    owner = torch.cat([torch.full((prefix,), -1), block])
    same = (owner[:, None] == owner) | (owner == -1)
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    return (same & causal)[None, None]


def answer_logits(model: Janus, wording: Wording, pixels_BCHW: Tensor, ids_BQW: Tensor, length_BQ: Tensor) -> Tensor:
    """Vocabulary logits [B, Q, V] of the answers' first tokens; the Q questions of a picture share its reading."""
    batch, each, width = ids_BQW.shape
    embed = model.model.language_model.embed_tokens
    features = model.model.get_image_features(pixels_BCHW).pooler_output
    before = embed(wording.before_image).expand(batch, -1, -1)
    after = embed(wording.after_image).expand(batch, -1, -1)
    asked = embed(ids_BQW.reshape(batch, -1))
    x_BLD = torch.cat([part.to(features.dtype) for part in (before, features, after, asked)], dim=1)
    prefix = x_BLD.shape[1] - each * width
    position = torch.cat([torch.arange(prefix), prefix + torch.arange(width).repeat(each)])
    hidden = model.model.language_model(
        inputs_embeds=x_BLD,
        attention_mask=question_mask(prefix, each, width).expand(batch, -1, -1, -1),
        position_ids=position.expand(batch, -1),
        use_cache=False,
    ).last_hidden_state
    place = prefix + torch.arange(each) * width + length_BQ - 1
    hidden = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))
    logits: Tensor = model.lm_head(hidden)
    return logits


def trained_names(model: Janus, prefixes: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters that training moves: all but the autoencoder's, or those under ``prefixes``."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("model.vqmodel.") and (not prefixes or name.startswith(tuple(prefixes)))
    }
