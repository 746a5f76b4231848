"""Other shapes than the usual: head groupings, widths of heads, patch sizes, tables, a padded vocabulary.

The language model is compared with a plain one written from its description (arXiv 2505.14683): one token and
one head at a time in float64, without packing, cache or layouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.config import ImageTransform, LanguageConfig
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt
from tests.support.bagel_packing import Latents, Text, losses, pack
from tests.support.tiny_models import TINY, random_picture, write_tiny_bagel

CONFIGS = {
    "as many key heads": replace(TINY, llm=replace(TINY.llm, num_key_value_heads=4, rope_theta=1e4)),
    "one key head": replace(
        TINY,
        llm=replace(TINY.llm, num_key_value_heads=1, rms_norm_eps=1e-3),
        vae=replace(TINY.vae, ch_mult=(1, 2, 1), downsample=4, z_channels=6),
        latent_patch_size=4,
        interpolate_pos=True,
    ),
    "seven heads a key head": replace(
        TINY,
        llm=LanguageConfig(28, 20, 3, 7, 1, 299, rope_theta=5e5),
        vae=replace(TINY.vae, z_channels=2),
        latent_patch_size=1,
        max_latent_size=7,
        vae_transform=ImageTransform(max_image_size=56, min_image_size=16, image_stride=8),
        timestep_shift=4.0,
    ),
    "wide heads": replace(TINY, llm=replace(TINY.llm, head_dim=14)),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: str(name).replace(" ", "-"))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BagelAdapter:
    return load_bagel(write_tiny_bagel(tmp_path_factory.mktemp("bagel"), CONFIGS[request.param]))


def noise(model: BagelAdapter, tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, model.reader.config.token_channels, generator=generator)


# ---- the plain language model


@dataclass(frozen=True)
class Token:
    """One token: its embedding, its expert's suffix, its rotary position, the tokens that it attends to."""

    embedding: Tensor
    suffix: str
    position: int
    sees: list[int]


def plain_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return x_D / (x_D.square().mean() + eps).sqrt() * weight_D


def plain_rotated(x_D: Tensor, position: int, theta: float) -> Tensor:
    half = len(x_D) // 2
    turned = x_D.clone()
    for k in range(half):
        angle = position * theta ** (-k / half)
        turned[k] = x_D[k] * math.cos(angle) - x_D[k + half] * math.sin(angle)
        turned[k + half] = x_D[k + half] * math.cos(angle) + x_D[k] * math.sin(angle)
    return turned


def plain_layer(
    w: dict[str, Tensor], at: str, llm: LanguageConfig, x: list[Tensor], tokens: list[Token]
) -> list[Tensor]:
    width, eps = llm.head_size, llm.rms_norm_eps
    queries, keys, values = [], [], []
    for state, token in zip(x, tokens, strict=True):
        s = token.suffix
        normed = plain_norm(state, w[f"{at}.input_layernorm{s}.weight"], eps)
        q, k, v = (
            (w[f"{at}.self_attn.{n}_proj{s}.weight"] @ normed + w[f"{at}.self_attn.{n}_proj{s}.bias"]).split(width)
            for n in "qkv"
        )
        scale_q, scale_k = (w[f"{at}.self_attn.{n}_norm{s}.weight"] for n in "qk")
        queries.append([plain_rotated(plain_norm(h, scale_q, eps), token.position, llm.rope_theta) for h in q])
        keys.append([plain_rotated(plain_norm(h, scale_k, eps), token.position, llm.rope_theta) for h in k])
        values.append(v)
    shared = llm.num_attention_heads // llm.num_key_value_heads
    after = []
    for row, (state, token) in enumerate(zip(x, tokens, strict=True)):
        s = token.suffix
        heads = []
        for head in range(llm.num_attention_heads):
            scores = torch.stack([queries[row][head] @ keys[c][head // shared] / width**0.5 for c in token.sees])
            mixed = zip(scores.softmax(0), token.sees, strict=True)
            heads.append(sum((share * values[c][head // shared] for share, c in mixed), torch.zeros(width)))
        state = state + w[f"{at}.self_attn.o_proj{s}.weight"] @ torch.cat(heads)
        normed = plain_norm(state, w[f"{at}.post_attention_layernorm{s}.weight"], eps)
        gate = F.silu(w[f"{at}.mlp{s}.gate_proj.weight"] @ normed)
        state = state + w[f"{at}.mlp{s}.down_proj.weight"] @ (gate * (w[f"{at}.mlp{s}.up_proj.weight"] @ normed))
        after.append(state)
    return after


def plain_time(w: dict[str, Tensor], t: float) -> Tensor:
    angles = [t * 10000 ** (-k / 128) for k in range(128)]
    wave = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
    hidden = F.silu(w["time_embedder.mlp.0.weight"] @ wave + w["time_embedder.mlp.0.bias"])
    return w["time_embedder.mlp.2.weight"] @ hidden + w["time_embedder.mlp.2.bias"]


def plain_place(side: int, row: int, column: int, width: int) -> Tensor:
    frequencies = [10000 ** (-k / (width // 4)) for k in range(width // 4)]
    parts = [f(p * q) for p in (column, row) for f in (math.sin, math.cos) for q in frequencies]
    assert max(row, column) < side
    return torch.tensor(parts, dtype=torch.float64)


def plain_image(
    model: BagelAdapter, w: dict[str, Tensor], latents: Tensor, grid: tuple[int, int], t: float, first: int, at: int,
    before: list[int],
) -> list[Token]:  # fmt: skip
    """Start token, latent tokens, end token; ``first`` is the sequence index of the start."""
    config, special = model.reader.config, model.module.special
    width, side = config.llm.hidden_size, config.max_latent_size
    sees = [*before, *range(first, first + len(latents) + 2)]
    embed = w["language_model.model.embed_tokens.weight"]
    tokens = [Token(embed[special.image_start], "", at, sees)]
    for number, latent in enumerate(latents):
        row, column = divmod(number, grid[1])
        if config.interpolate_pos:
            row, column = row * side // grid[0], column * side // grid[1]
        x = w["vae2llm.weight"] @ latent + w["vae2llm.bias"]
        tokens.append(Token(x + plain_time(w, t) + plain_place(side, row, column, width), "_moe_gen", at, sees))
    return [*tokens, Token(embed[special.image_end], "", at, sees)]


def test_the_language_model_equals_a_plain_one(model: BagelAdapter) -> None:
    """A clean picture, a text that is also predicted, a noised picture."""
    w = {name: p.detach().double() for name, p in model.module.named_parameters()}
    llm, special = model.reader.config.llm, model.module.special
    ids = [special.bos, *model.reader.tokenizer.encode("a red cat"), special.eos]
    clean, noised = Latents(noise(model, 2, 1), (2, 1), False), Latents(noise(model, 6, 2), (2, 3))
    added, t = noise(model, 8, 3), 0.3
    packed = pack([[clean, Text(tuple(ids[1:-1]), loss=True), noised]], model)
    with torch.no_grad():
        found = losses(model.module, packed, added, torch.full((8,), t))

    x_t = (1 - t) * noised.tokens_TC + t * added[2:]
    tokens = plain_image(model, w, clean.tokens_TC.double(), clean.grid, 0.0, 0, 0, [])
    picture = list(range(len(tokens)))
    for number, token_id in enumerate(ids):
        sees = list(range(len(picture) + number + 1))
        tokens.append(Token(w["language_model.model.embed_tokens.weight"][token_id], "", 1 + number, sees))
    context = list(range(len(tokens)))
    tokens += plain_image(model, w, x_t.double(), noised.grid, t, len(tokens), 1 + len(ids), context)

    torch.set_default_dtype(torch.float64)
    try:
        states = [token.embedding for token in tokens]
        for layer in range(llm.num_hidden_layers):
            states = plain_layer(w, f"language_model.model.layers.{layer}", llm, states, tokens)
        final = [
            plain_norm(state, w[f"language_model.model.norm{token.suffix}.weight"], llm.rms_norm_eps)
            for state, token in zip(states, tokens, strict=True)
        ]
    finally:
        torch.set_default_dtype(torch.float32)
    drawn = [w["llm2vae.weight"] @ state + w["llm2vae.bias"] for state in final[-7:-1]]
    logits = [w["language_model.lm_head.weight"] @ state for state in final[len(picture) : len(context) - 1]]
    torch.testing.assert_close(found["velocity_MC"].double(), torch.stack(drawn), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["logits_LV"].double(), torch.stack(logits), atol=1e-4, rtol=0)
    expected = F.cross_entropy(torch.stack(logits), torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(found["cross_entropy_L"].double(), expected, atol=1e-4, rtol=0)


# ---- drawing and looking at other shapes


def test_edits_and_answers_do_not_depend_on_their_batch(model: BagelAdapter) -> None:
    pictures = [random_picture(30, 50, 1), random_picture(41, 40, 2)]
    texts = [Prompt("0", "a red cat"), Prompt("1", "no")]
    keys = [("test", 4), ("test", 5)]
    sampling = FlowSampling(4, image_scale=2.0, renorm="channel", interval=(0.0, 1.0))
    targets, images = model.generate(texts, keys, (2, 3), sampling, pictures)
    unit = model.reader.config.pixels_per_token
    assert images.shape == (2, 3, 2 * unit, 3 * unit)
    chances = model.answer_logprobs(pictures, ["a", "what is it?"], ["yes", "no"])
    for row in range(2):
        one = slice(row, row + 1)
        alone, _ = model.generate(texts[one], keys[one], (2, 3), sampling, pictures[one])
        torch.testing.assert_close(alone[0], targets[row], atol=1e-5, rtol=0)
        single = model.answer_logprobs(pictures[one], ["a", "what is it?"][one], ["yes", "no"])
        torch.testing.assert_close(single[0], chances[row], atol=1e-5, rtol=0)


def test_the_cache_equals_one_pass(model: BagelAdapter) -> None:
    ids = model.reader.tokenizer.encode("a red cat")
    drawn = Latents(noise(model, 6, 6), (3, 2))
    added = noise(model, 6, 7)
    with torch.no_grad():
        out = losses(model.module, pack([[Text(tuple(ids)), drawn]], model), added, torch.full((6,), 0.6))
        x = 0.4 * drawn.tokens_TC + 0.6 * added
        context = model.module.read_text([model.reader.tokenizer.wrap(ids)])
        cached = model.module.velocity(x[None], torch.tensor([0.6]), (3, 2), context)
    torch.testing.assert_close(out["velocity_MC"], cached[0], atol=1e-5, rtol=0)
