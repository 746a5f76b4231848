"""Questions and answers as token ids: the chat template of a Qwen-VL tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json
from srum_ds.models.library.spelled_tokens import SpelledTokens

PICTURE = "<|image_pad|>"
"""The placeholder of one merged patch of an image, of which a template writes one for each image."""

_SHOWN = f"<|vision_start|>{PICTURE}<|vision_end|>"

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """What a model reads before it answers: ids up to the image's placeholder, and ids behind it."""

    before: Ids
    after: Ids

    def around(self, placeholders: int, picture: int) -> Ids:
        """The whole, with ``placeholders`` times the id ``picture``."""
        return (*self.before, *(picture,) * placeholders, *self.after)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, whatever its class; UserError where its files are missing or broken."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} holds no tokenizer_config.json: copy the tokenizer's files from the release there.")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        # The library raises whatever its parsers do.
        raise UserError(
            f"the tokenizer's files in {folder} cannot be read ({error}); copy them from the release."
        ) from error


def read_ends(folder: Path) -> tuple[int, ...]:
    """The ids at which the library stops writing: ``eos_token_id`` of the folder's generation_config.json, if any."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        found = parse_json(path.read_text()).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        return tuple(int(number) for number in ids)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again from the release.") from None


class Chat:
    """Renders questions about one image by a tokenizer's own template, and reads ids back.

    picture: the id of the placeholder as the model's configuration has it (``image_token_id``). ends: ids that end a
    written text (``read_ends``); none: the tokenizer's eos and padding. UserError where the tokenizer has another
    placeholder, or no eos.
    """

    def __init__(self, tokenizer: Any, picture: int, ends: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.picture = picture
        found = tokenizer.convert_tokens_to_ids(PICTURE)
        if found != picture:
            raise UserError(
                f"the tokenizer has the id {found} for {PICTURE}, but image_token_id of the model's config.json is "
                f"{picture}; they do not belong together. Copy the tokenizer's files that came with these weights."
            )
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token: copy tokenizer_config.json from the release.")
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.ends = tuple(ends) or (self.end, self.pad)
        self.spelled = SpelledTokens(tokenizer)
        # The same questions come again for thousands of images.
        self.opening = lru_cache(maxsize=65536)(self._opening)
        self.encode = lru_cache(maxsize=65536)(self._encode)
        self.as_text = lru_cache(maxsize=65536)(self._as_text)

    def rendered(self, question: str) -> str:
        """The template's text for a question about one image, up to where the answer begins; "" asks nothing.

        The image stands first, as one placeholder. A template that knows text alone gets the placeholder as text, which
        is how Qwen-VL's own template writes it. UserError where a template does not fit.
        """
        parts: list[dict[str, str]] = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        for content in (parts, _SHOWN + question):
            try:
                text = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            except Exception:
                # jinja2 raises what the template does; the other form of the content may still suit it.
                continue
            if text.count(PICTURE) == 1 + question.count(PICTURE):
                return str(text)
        raise UserError(
            f"the tokenizer's chat template shows no image: it must write {PICTURE} for one. Copy chat_template.jinja "
            "from the release of the model into its tokenizer's folder."
        )

    def _opening(self, question: str) -> Opening:
        if PICTURE in question:
            raise UserError(f"the question {question!r} contains {PICTURE}, which stands for an image: leave it out.")
        ids = self.spelled.encode(question, self.rendered, self.encode, self.encode)
        place = ids.index(self.picture)
        return Opening(ids[:place], ids[place + 1 :])

    def _encode(self, text: str) -> Ids:
        """Ids of what a template has rendered, special tokens in it included and none added."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _as_text(self, text: str) -> Ids:
        """Ids of a text of somebody's: a control token that it spells is text."""
        return tuple(number for piece in self.spelled.pieces(text) for number in self.encode(piece))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
