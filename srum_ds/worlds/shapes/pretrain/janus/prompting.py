"""How the embedded Janus reads texts: its tokenizer, its processor, and what surrounds a caption or a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from srum_ds.worlds.shapes.pretrain.tokenizer import INITIAL, VOCAB_MULTIPLE, build_vocabulary
from srum_ds.worlds.shapes.vocabulary import WORDS

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE = "<image_placeholder>"
IMAGE_START = "<begin_of_image>"
IMAGE_END = "<end_of_image>"
SPECIAL = (BOS, EOS, PAD, IMAGE, IMAGE_START, IMAGE_END, "<|User|>", "<|Assistant|>")

NEWLINE = "Ċ"
"""A line break, as byte-level tokenizers write it."""

PIXEL_SCALE = 0.3
"""Pictures are divided by it, and nothing is taken away: a black ground stays zero and drowns no position."""

TEMPLATE = (
    "{% for message in messages %}"
    "{% set last = loop.last %}"
    "{% set role = message['role'] | lower %}"
    "{% if role == 'user' %}<|User|>: {% elif role == 'assistant' %}<|Assistant|>: "
    "{% else %}{{ message['role'] | capitalize }}: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}<image_placeholder>{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% elif part['type'] == 'text' %}"
    "{% set text = part['text'] %}"
    "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}"
    "{% if loop.last %}{% set text = text.rstrip() %}{% endif %}"
    "{% if not loop.first and message['content'][loop.index0 - 1]['type'] == 'text' %}{{ ' ' }}{% endif %}{{ text }}"
    "{% endif %}{% endfor %}"
    "{% if not last or add_generation_prompt %}"
    "{% if role == 'user' %}{{ '\n\n' }}{% else %}<｜end▁of▁sentence｜>{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
"""Turns of a conversation as the released processors write them."""


def build_tokenizer() -> Any:
    """A byte-level BPE in which every word of the world is one token; ValueError if one would not be."""
    vocabulary, merges = build_vocabulary()
    merges.append((NEWLINE, NEWLINE))
    vocabulary[NEWLINE * 2] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIAL))
    bos = bpe.token_to_id(BOS)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "boi_token": IMAGE_START, "eoi_token": IMAGE_END},
        model_max_length=1024,
    )
    for text in [*INITIAL, "?", *(" " + word for word in WORDS if word != "?")]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {ids}, expected one token")
    return tokenizer


def build_processor(picture: int, image_tokens: int) -> Any:
    """The library's processor around that tokenizer, for pictures of ``picture`` pixels a side; no system prompt."""
    images = JanusImageProcessorPil(
        size={"height": picture, "width": picture}, min_size=2, image_mean=[0.0] * 3, image_std=[PIXEL_SCALE] * 3
    )
    return JanusProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        chat_template=TEMPLATE,
        use_default_system_prompt=False,
        num_image_tokens=image_tokens,
    )


def vocabulary_size(tokenizer: Any) -> int:
    """Rows of the embedding: every token, rounded up."""
    return -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def pixel_values(images_NCHW: Tensor) -> Tensor:
    """What the processor makes of pictures in [0, 1] of the model's own size: whole 255ths, scaled."""
    return (images_NCHW * 255).round() / 255 / PIXEL_SCALE


@dataclass(frozen=True)
class Rows:
    """Some texts as ids, padded on the right: ids_SL int64, length_S."""

    ids_SL: Tensor
    length_S: Tensor


class Wording:
    """Ids of captions and questions as the chat template surrounds them, and of the answers' first tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos, self.pad, self.boi = (tokenizer.convert_tokens_to_ids(t) for t in (BOS, PAD, IMAGE_START))
        before = self._ids(f"{BOS}<|User|>: {IMAGE_START}")
        self.before_image, self.after_image = torch.tensor(before), torch.tensor(self._ids(IMAGE_END))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rows(self, texts: Sequence[str]) -> Rows:
        ids = [self._ids(text) for text in texts]
        length = torch.tensor([len(row) for row in ids])
        padded = torch.full((len(ids), int(length.max())), self.pad)
        for number, row in enumerate(ids):
            padded[number, : len(row)] = torch.tensor(row)
        return Rows(padded, length)

    def captions(self, texts: Sequence[str]) -> Rows:
        """The whole of what is read before a picture is drawn, from bos to begin-of-image."""
        return self._rows([f"{BOS}<|User|>: {text}\n\n<|Assistant|>:{IMAGE_START}" for text in texts])

    def questions(self, texts: Sequence[str]) -> Rows:
        """What is read after a picture: the line break, the question, and all up to the answer."""
        return self._rows([f"\n{text}\n\n<|Assistant|>:" for text in texts])

    def answers(self, texts: Sequence[str]) -> Tensor:
        """The first token [S] of each answer, which follows a space."""
        return torch.tensor([self._ids(f"<|Assistant|>: {text}")[2] for text in texts])

    def emptied(self, ids_BL: Tensor) -> Tensor:
        """The empty prompt in the place of each: pads everywhere but at bos and begin-of-image."""
        kept = (ids_BL == self.bos) | (ids_BL == self.boi)
        return torch.where(kept, ids_BL, self.pad)
