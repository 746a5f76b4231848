"""Writes whole random Janus folders of a few ten thousand parameters, in the library's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from srum_ds.models.janus.adapter import load_janus
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.types import Prompt
from tests.support.tiny_models import randomise

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE, IMAGE_START, IMAGE_END = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
SPECIAL = (BOS, EOS, PAD, IMAGE, IMAGE_START, IMAGE_END, "<|User|>", "<|Assistant|>")
MERGES = (
    ("Ġ", "a"),
    ("Ġ", "r"),
    ("Ġr", "e"),
    ("Ġre", "d"),
    ("Ġ", "y"),
    ("Ġy", "e"),
    ("Ġye", "s"),
    ("Ġ", "n"),
    ("Ġn", "o"),
)

TEMPLATE = """\
{%- for message in messages -%}
{{- '<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image_placeholder>' + ('' if loop.last else '\\n') -}}
{%- else -%}{{- (part['text'] if not loop.first else part['text'].lstrip()).rstrip() -}}{%- endif -%}
{%- endfor -%}
{{- '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|>:' -}}{%- endif -%}
"""
"""One turn of a user, as the release's template renders it."""


@dataclass(frozen=True)
class TinyJanus:
    """Sizes of a tiny model: a picture of ``per_side`` squared codes, ``upsampled`` times doubled to pixels."""

    hidden: int = 32
    inner: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    per_side: int = 4
    upsampled: int = 2
    codes: int = 40
    code_width: int = 8
    vision: int = 24
    vision_layers: int = 2
    vision_heads: int = 2
    tied: bool = False
    theta: float = 10000.0
    system_prompt: bool = False
    longest: int = 1024


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, which puts bos in front."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    inner = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, list(MERGES)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bos = [(BOS, inner.token_to_id(BOS))]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=bos
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "boi_token": IMAGE_START, "eoi_token": IMAGE_END},
    )


def tiny_config(sizes: TinyJanus, words: PreTrainedTokenizerFast) -> JanusConfig:
    """The library's configuration of a tiny model."""
    ids: list[Any] = [words.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, IMAGE)]
    bos, eos, pad, image = ids
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.longest,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        tie_word_embeddings=sizes.tied,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    side = sizes.per_side * 2**sizes.upsampled
    vision = JanusVisionConfig(
        hidden_size=sizes.vision,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=side,
        patch_size=2**sizes.upsampled,
        mlp_ratio=2.0,
        projection_dim=sizes.hidden,
        num_image_tokens=sizes.per_side**2,
    )
    vq = JanusVQVAEConfig(
        embed_dim=sizes.code_width,
        num_embeddings=sizes.codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1] * (sizes.upsampled + 1),
        num_res_blocks=1,
        projection_dim=sizes.hidden,
        image_token_embed_dim=sizes.hidden,
    )
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=image, tie_word_embeddings=sizes.tied
    )


def write_tiny_janus(folder: Path, seed: int = 0, sizes: TinyJanus = TinyJanus()) -> Path:
    """Writes a complete folder with random weights and returns it; the same seed gives the same bytes."""
    words = tokenizer()
    model = JanusForConditionalGeneration(tiny_config(sizes, words))
    if sizes.tied:
        model.tie_weights()
    randomise(model, seed)
    _spread(model)
    start = words.convert_tokens_to_ids(IMAGE_START)
    bos, eos, pad = words.bos_token_id, words.eos_token_id, words.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": start},
    )
    model.save_pretrained(folder)
    side = sizes.per_side * 2**sizes.upsampled
    processor = JanusProcessor(
        image_processor=JanusImageProcessorPil(size={"height": side, "width": side}, min_size=2),
        tokenizer=words,
        chat_template=TEMPLATE,
        use_default_system_prompt=sizes.system_prompt,
        num_image_tokens=sizes.per_side**2,
    )
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def janus_redraws(folder: Path) -> float:
    """How far what the library's own class draws from a folder lies from what the adapter draws: share of the codes."""
    texts = ("a red circle", "two dogs", "a")
    adapter = load_janus(folder)
    prompts = [Prompt(str(number), text) for number, text in enumerate(texts)]
    greedy = CodeSampling(guidance=3.0, temperature=0.0)
    codes, _ = adapter.generate(prompts, [("any", 0)] * len(texts), adapter.grid(*adapter.default_size()), greedy)
    return float((codes != library_codes(folder, texts, greedy.guidance)).float().mean())


def drawing(library: Any) -> Any:
    """The library's model, able to draw: before transformers 5.24 its ``generate`` left an argument of its own out."""
    library._prepare_static_cache = partial(library._prepare_static_cache, prefill_chunk_size=None)
    return library


def library_codes(folder: Path, texts: Sequence[str], guidance: float) -> Tensor:
    """Codes [N, T] that the library's own class draws, greedy, under a guidance above 1."""
    library = drawing(JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval())
    processor: Any = JanusProcessor.from_pretrained(folder)
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    rendered = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    batch = processor(text=rendered, generation_mode="image", return_tensors="pt", padding=True)
    codes: Tensor = library.generate(**batch, generation_mode="image", do_sample=False, guidance_scale=guidance)
    return codes


@torch.no_grad()
def _spread(model: Any) -> None:
    """Logits far enough apart that prompts and pictures are felt, and codes still vary."""
    model.model.generation_head.vision_head.weight.mul_(2)
    model.lm_head.weight.mul_(1.5)
