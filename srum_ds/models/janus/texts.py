"""Texts as Janus reads them: the tokenizer, the chat template, and where an answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from srum_ds.common.errors import UserError
from srum_ds.models.janus.config import JanusSettings
from srum_ds.models.library.spelled_tokens import SpelledTokens

Ids = tuple[int, ...]


@dataclass(frozen=True)
class SpecialIds:
    """Ids of what is no text: begin and end of a sequence, padding, begin and end of a picture, a picture's place."""

    bos: int
    eos: int
    pad: int
    image_start: int
    image_end: int
    image: int


class JanusTexts:
    """Prompts, questions and answers to ids and back, as ``JanusProcessor`` renders them (torchvision is not needed).

    UserError, naming the folder, where the tokenizer's files are missing, broken or of another model.
    """

    def __init__(self, folder: Path, settings: JanusSettings) -> None:
        self.settings = settings
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            known = len(self._inner)
        except Exception as error:
            # The library raises whatever its parsers do.
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the tokenizer's files in {folder} cannot be read ({reason}); copy them again.") from error
        if not self._inner.chat_template:
            raise UserError(
                f"the tokenizer in {folder} has no chat template: copy chat_template.jinja from the release."
            )
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad"}
        names |= {"boi_token": "image_start", "eoi_token": "image_end", "image_token": "image"}
        tokens = {name: getattr(self._inner, name, None) for name in names}
        missing = [name for name, token in tokens.items() if not token]
        if missing:
            raise UserError(f"tokenizer_config.json in {folder} lacks {', '.join(missing)}: copy Janus's own there.")
        self._tokens = {names[name]: str(token) for name, token in tokens.items()}
        ids: dict[str, Any] = {name: self._inner.convert_tokens_to_ids(token) for name, token in self._tokens.items()}
        self.special = SpecialIds(**ids)
        self._spelled = SpelledTokens(self._inner)
        vocabulary = settings.library.text_config.vocab_size
        if max(known - 1, *ids.values()) >= vocabulary:
            raise UserError(
                f"the tokenizer in {folder} knows {known} tokens, but config.json says text_config.vocab_size "
                f"{vocabulary}; the tokenizer and the weights do not belong together. Copy the tokenizer's files that "
                "came with these weights."
            )
        if self.special.image != settings.library.image_token_id:
            raise UserError(
                f"config.json in {folder}: image_token_id is {settings.library.image_token_id}, but the tokenizer's "
                f"{self._tokens['image']} is {self.special.image}. Correct one of them."
            )
        for name, stated in settings.stated.items():
            if stated != ids[name]:
                raise UserError(
                    f"generation_config.json in {folder} says {stated} for the token that the tokenizer calls "
                    f"{self._tokens[name]}, {ids[name]}. Correct one of them."
                )
        self.ends = frozenset((self.special.eos, *settings.eos))
        # The same questions come again for thousands of pictures.
        self.prompt = lru_cache(maxsize=65536)(self._prompt)
        self.opening = lru_cache(maxsize=65536)(self._opening)
        self.answer = lru_cache(maxsize=65536)(self._answer)

    # ---- drawing

    def _prompt(self, text: str) -> Ids:
        """Ids of a prompt up to the begin of its picture."""
        return self._spelled.encode(text, self._drawn, self._encode, self._piece)

    def _drawn(self, text: str) -> str:
        return self._chat([{"type": "text", "text": text}]) + self._tokens["image_start"]

    def without_prompt(self, ids: Ids) -> Ids:
        """The empty prompt of the same length: all but bos and begin of picture are pads, which are attended."""
        kept = (self.special.bos, self.special.image_start)
        return tuple(token if token in kept else self.special.pad for token in ids)

    # ---- looking

    def _opening(self, question: str | None) -> Ids:
        """Ids of a question about a picture, up to where its answer begins; None: the picture without a question."""
        asked = self._asked(question)
        if question is None:
            return self._expanded(self._encode(asked))
        return self._expanded(self._spelled.encode(question, self._asked, self._encode, self._piece))

    def _answer(self, question: str | None, text: str) -> Ids:
        """Ids of an answer's text behind its question, with one space before it as the template has it, without eos."""
        if self._spelled.in_text(f"{question or ''} {text}"):
            return tuple(number for piece in self._spelled.pieces(f" {text}") for number in self._piece(piece))
        asked = self._asked(question)
        before, whole = self._encode(asked), self._encode(f"{asked} {text}")
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._encode(f" {text}", special=False)

    def _asked(self, question: str | None) -> str:
        content = [{"type": "image"}]
        if question is not None:
            content.append({"type": "text", "text": question})
        image = self._tokens["image"]
        rendered = self._chat(content)
        if rendered.count(image) != 1:
            raise UserError(f"the question {question!r} holds {image}, which stands for the picture. Leave it out.")
        rendered = rendered.replace(image, self._tokens["image_start"] + image + self._tokens["image_end"])
        return DEFAULT_SYSTEM_PROMPT + rendered if self.settings.system_prompt else rendered

    def _expanded(self, ids: Ids) -> Ids:
        place = ids.index(self.special.image)
        return ids[:place] + (self.special.image,) * self.settings.tokens + ids[place + 1 :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids up to the first that ends an answer; special tokens are left out."""
        kept: list[int] = []
        for token in ids:
            if token in self.ends:
                break
            kept.append(token)
        return str(self._inner.decode(kept, skip_special_tokens=True))

    # ----

    def _chat(self, content: list[dict[str, str]]) -> str:
        messages = [{"role": "user", "content": content}]
        return str(self._inner.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _piece(self, text: str) -> Ids:
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool = True) -> Ids:
        return tuple(self._inner(text, add_special_tokens=special)["input_ids"])
