"""Questions about pictures that are answered by choosing, whatever file they come from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image, read_image_bytes

LETTERS = "ABCDEFGHIJ"
INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    key: its name among the set's. question: as it is put to the model. options: what may be answered (``yes`` and
    ``no``, or letters); texts: what each option stands for, empty where it speaks for itself. answer: the right one of
    ``options``. picture: a file, or the bytes of one. group: the picture's name; answers about one picture are not
    independent. unit: items of a unit have to be right together (rotations of one question); ``key`` where empty.
    """

    key: str
    question: str
    options: tuple[str, ...]
    answer: str
    picture: Path | bytes
    category: str = ""
    group: str = ""
    unit: str = ""
    texts: tuple[str, ...] = ()

    def pixels(self) -> Tensor:
        """The picture, float32 [3, H, W] in [0, 1]. UserError where it cannot be read."""
        if isinstance(self.picture, Path):
            return read_image(self.picture)
        return read_image_bytes(self.picture, f"question {self.key!r}")


@dataclass(frozen=True)
class ItemSet:
    """The questions of a file. kind: mme, mmmu, mmbench or shapes. source: the file, for results.

    left_out: why questions of the file are not among ``items``, with how many there are of each.
    """

    kind: str
    source: str
    items: tuple[Item, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def how_often(reasons: Sequence[str]) -> dict[str, int]:
    """How often each reason occurs, in the order in which they first do."""
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def with_options(question: str, texts: Sequence[str], hint: str = "") -> str:
    """A multiple-choice question as it is asked: the hint, the question, ``A. text`` lines, and the instruction."""
    lines = [*([hint] if hint else []), question]
    lines += [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return "\n".join([*lines, INSTRUCTION])


def from_base64(text: str, where: str) -> bytes:
    """The bytes of a picture in base64, perhaps as a data URL. UserError where it is none."""
    data = text.split(",", 1)[1] if text.startswith("data:") and "," in text else text
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: its picture is no base64 ({error})") from error
