"""Multiple choice as MMMU has it (arXiv 2311.16502): options in a list, pictures where the text says ``<image 1>``."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.texts import require_encodable
from srum_ds.evaluation.understanding.items import LETTERS, Item, ItemSet, how_often, with_options
from srum_ds.evaluation.understanding.records import picture_of, read_records

_TAG = re.compile(r"<image (\d+)>")
MOST_PICTURES = 7


def read_mmmu(source: Path) -> ItemSet:
    """Questions of JSON (lines): {id, question, options, answer, image_1, ..., subfield?, question_type?}.

    options: a list, or the text of one, as the release has it. answer: a letter, or the option's text. Pictures are
    paths from the file on, or base64, as image, image_1 to image_7, or images (a list). Open questions, those without
    an answer and those with more than one picture (no judge here takes two at once) are left out and counted. Raises
    UserError naming the record that is malformed, and for Parquet files, which have to be converted.
    """
    if source.suffix == ".parquet":
        raise UserError(f"{source}: convert it to JSON lines first, the pictures in base64 (docs/evaluation.md)")
    items: list[Item] = []
    reasons: list[str] = []
    seen: set[str] = set()
    for number, (where, record) in enumerate(read_records(source)):
        reason = _unfit(record)
        if reason:
            reasons.append(reason)
            continue
        items.append(_item(record, number, source.parent, where))
        if items[-1].key in seen:
            raise UserError(f"{where}: the id {items[-1].key!r} occurs twice")
        seen.add(items[-1].key)
    if not items:
        raise UserError(
            f"{source}: holds no multiple-choice question with one picture (left out: {how_often(reasons)})"
        )
    return ItemSet("mmmu", str(source), tuple(items), how_often(reasons))


def _unfit(record: dict[str, Any]) -> str:
    if str(record.get("question_type", "multiple-choice")) == "open":
        return "open question"
    if str(record.get("answer", "")).strip() in ("", "?"):
        return "no answer given"
    texts = f"{record.get('question')} {record.get('options')}"
    pictures = max(len(_pictures(record)), len(set(_TAG.findall(texts))))
    return "more than one picture" if pictures > 1 else ""


def _pictures(record: dict[str, Any]) -> list[Any]:
    if isinstance(record.get("images"), list):
        return [picture for picture in record["images"] if picture]
    named = ["image", *(f"image_{number}" for number in range(1, MOST_PICTURES + 1))]
    return [record[name] for name in named if record.get(name)]


def _item(record: dict[str, Any], number: int, folder: Path, where: str) -> Item:
    question = _TAG.sub("", str(record.get("question") or "")).strip()
    options = record.get("options")
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError(f"{where}: options is no list ({options[:60]!r})") from error
    if not question or not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{where}: expected a question and options, a list of 2 to {len(LETTERS)} texts")
    texts = tuple(_TAG.sub("", str(option)).strip() for option in options)
    # A list within a text may spell out what no text of a file can hold.
    require_encodable("".join(texts), f"{where}: options")
    letters = tuple(LETTERS[: len(texts)])
    answer = str(record["answer"]).strip()
    if answer not in letters:
        if texts.count(answer) != 1:
            raise UserError(f"{where}: the answer is {answer!r}, expected one of {', '.join(letters)} or an option")
        answer = letters[texts.index(answer)]
    pictures = _pictures(record)
    if not pictures:
        raise UserError(f"{where}: has no picture; expected image, image_1 or images")
    picture = picture_of(pictures[0], folder, where)
    key = str(record.get("id") or number)
    category = str(record.get("subfield") or record.get("category") or _subject(key))
    return Item(key, with_options(question, texts), letters, answer, picture, category, key, "", texts)


def _subject(key: str) -> str:
    # validation_Art_Theory_7 is of Art_Theory.
    found = re.fullmatch(r"[a-z]+_(.+)_\d+", key)
    return found[1] if found else ""
