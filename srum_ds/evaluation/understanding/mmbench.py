"""Multiple choice as MMBench has it (arXiv 2307.06281): a table with pictures in base64 and options A to D.

With ``circular``, a question is asked once for each rotation of its options, and counts as right where all are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.evaluation.understanding.items import LETTERS, Item, ItemSet, from_base64, how_often, with_options
from srum_ds.evaluation.understanding.records import read_text

# What an empty cell becomes in a round through a table library.
NONE = ("", "nan", "none")
# A picture in base64 is longer than what the csv module takes by default.
_LONGEST_FIELD = 2**31 - 1


def read_mmbench(source: Path, circular: bool = False) -> ItemSet:
    """Questions of a .tsv: index, question, A, B, (C, D,) answer, image, and perhaps hint and category.

    image: base64, or the index of the row that has it. Rows without an answer (the test split) are left out and
    counted. Raises UserError naming the row that is malformed.
    """
    rows = _rows(source)
    pictures = {row["index"]: row["image"] for _, row in rows}
    items: list[Item] = []
    reasons: list[str] = []
    for where, row in rows:
        letters = [letter for letter in LETTERS if row.get(letter, "").strip().lower() not in NONE]
        if "".join(letters) != LETTERS[: len(letters)] or len(letters) < 2:
            raise UserError(f"{where}: has options {', '.join(letters) or 'none'}, expected A, B, ... without a gap")
        answer = row.get("answer", "").strip()
        if answer.lower() in NONE:
            reasons.append("no answer given")
            continue
        if answer not in letters:
            raise UserError(f"{where}: the answer is {answer!r}, expected one of {', '.join(letters)}")
        picture = from_base64(pictures.get(row["image"].strip(), row["image"]), where)
        texts = tuple(row[letter].strip() for letter in letters)
        items += _items(row, texts, letters.index(answer), picture, circular)
    if not items:
        raise UserError(f"{source}: holds no question with an answer (left out: {how_often(reasons)})")
    return ItemSet("mmbench", str(source), tuple(items), how_often(reasons))


def _items(row: Mapping[str, str], texts: tuple[str, ...], right: int, picture: bytes, circular: bool) -> list[Item]:
    count = len(texts)
    letters = tuple(LETTERS[:count])
    hint = row.get("hint", "").strip()
    category = row.get("category", "").strip()
    items = []
    for turn in range(count if circular else 1):
        turned = texts[turn:] + texts[:turn]
        asked = with_options(row["question"].strip(), turned, "" if hint.lower() in NONE else hint)
        key = f"{row['index']}-{turn}" if circular else row["index"]
        answer = LETTERS[(right - turn) % count]
        items.append(Item(key, asked, letters, answer, picture, category, row["index"], row["index"], turned))
    return items


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    text = read_text(path)
    before = csv.field_size_limit(_LONGEST_FIELD)
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        missing = {"index", "question", "A", "B", "image"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{path}: line 1: has no column {', '.join(sorted(missing))}; expected an MMBench .tsv")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            filled = {name: (value or "") for name, value in row.items() if isinstance(name, str)}
            if not filled["index"].strip() or not filled["question"].strip() or not filled["image"].strip():
                raise UserError(f"{where}: index, question or image is empty")
            if filled["index"] in rows:
                raise UserError(f"{where}: the index {filled['index']!r} occurs twice")
            rows[filled["index"]] = (where, filled)
    except csv.Error as error:
        raise UserError(f"{path}: is no table of tab-separated values ({error})") from error
    finally:
        csv.field_size_limit(before)
    return list(rows.values())
