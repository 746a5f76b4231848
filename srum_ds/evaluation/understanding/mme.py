"""Yes/no questions as MME has them (arXiv 2306.13394): two about each picture, one whose answer is yes and one no."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.evaluation.understanding.items import Item, ItemSet
from srum_ds.evaluation.understanding.records import picture_of, read_records, read_text

OPTIONS = ("yes", "no")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_mme(source: Path) -> ItemSet:
    """Questions of a folder as MME is released, or of a file of records.

    Folder: one folder a category, in it NAME.txt with lines ``question<tab>Yes`` or ``No``, and NAME.jpg or .png beside
    it (or in ``images``, the texts in ``questions_answers_YN``). File: JSON (lines) of {image, question, answer,
    category?}; ``image`` is a path from the file on, or base64. The question's text is asked as it stands. Raises
    UserError naming file and line of what is malformed, and where there are no questions.
    """
    found = list(_from_folder(source)) if source.is_dir() else list(_from_file(source))
    if not found:
        raise UserError(
            f"{source}: holds no questions; expected folders of NAME.txt (question, tab, Yes or No) and pictures, or "
            f"JSON lines of image, question and answer"
        )
    return ItemSet("mme", str(source), tuple(found))


def _from_folder(folder: Path) -> Iterator[Item]:
    for text in sorted(folder.rglob("*.txt")):
        inside = text.relative_to(folder).parts[:-1]
        category = inside[0] if inside else folder.name
        lines = list(enumerate(read_text(text).replace("\r\n", "\n").split("\n"), 1))
        asked = [(number, line) for number, line in lines if line.strip()]
        if not any("\t" in line for _, line in asked):
            # A README among the folders is no list of questions.
            continue
        picture = _beside(text)
        for number, line in asked:
            question, _, answer = line.rpartition("\t")
            where = f"{text}: line {number}"
            key = f"{category}/{text.stem}/{number}"
            yield Item(key, _said(question, where), OPTIONS, _answer(answer, where), picture, category, str(picture))


def _from_file(path: Path) -> Iterator[Item]:
    for number, (where, record) in enumerate(read_records(path)):
        picture = picture_of(record.get("image"), path.parent, where)
        # The same picture may stand in two records as the same bytes.
        name = str(picture) if isinstance(picture, Path) else hashlib.sha256(picture).hexdigest()
        category = str(record.get("category") or "")
        question = _said(str(record.get("question") or ""), where)
        answer = _answer(str(record.get("answer") or ""), where)
        yield Item(str(number), question, OPTIONS, answer, picture, category, f"{category}/{name}")


def _beside(text: Path) -> Path:
    for folder in (text.parent, text.parent.parent / "images"):
        for suffix in PICTURES:
            for path in (folder / f"{text.stem}{suffix}", folder / f"{text.stem}{suffix.upper()}"):
                if path.is_file():
                    return path
    raise UserError(f"{text}: no picture {text.stem}{'|'.join(PICTURES)} beside it or in ../images")


def _said(question: str, where: str) -> str:
    if not question.strip():
        raise UserError(f"{where}: expected a question, a tab, and Yes or No")
    return question.strip()


def _answer(answer: str, where: str) -> str:
    word = answer.strip().lower().rstrip(".")
    if word not in OPTIONS:
        raise UserError(f"{where}: the answer is {answer.strip()!r}, expected Yes or No")
    return word
