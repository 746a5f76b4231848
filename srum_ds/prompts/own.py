"""Prompts of one's own: text, JSON, CSV or Parquet files, folders that Hugging Face's datasets saved, also by URL."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import at_home, parse_json, require_encodable
from srum_ds.types import Prompt

TEXT_COLUMNS = ("text", "prompt", "caption")
CATEGORY_COLUMNS = ("category", "tag")
PHRASE_COLUMNS = ("phrases", "objects")
TRAIN, TEST = "train", "test"
_LONGEST_ID = 64
_OTHERWISE = "make it one, or give the column another name where it holds something else"
_Row = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Columns:
    """Which columns (keys of a record) hold what; None: the first of the usual names that is there."""

    text: str | None = None
    category: str | None = None
    phrases: str | None = None


def is_url(source: str) -> bool:
    """Whether a source is read over a network: ``https://``, ``s3://``, ``gs://`` and so on."""
    return "://" in source


def read_own(source: str, columns: Columns = Columns()) -> list[Prompt]:  # noqa: B008 - it is frozen
    """The prompts of a file, a URL or a folder, in their order, each text once.

    By the name's ending: ``.txt`` one a line; ``.jsonl`` and ``.json`` texts or objects; ``.csv`` and ``.tsv`` with a
    header; ``.parquet``; a folder that ``datasets`` saved (``save_to_disk``), or that holds Parquet files. A prompt's
    id is a hash of its text, so that it stays the same wherever the prompt stands. Where a text occurs again the first
    is kept, and ``meta["times"]`` of it counts them. Phrases are a list, or one text with semicolons between.

    Raises UserError naming file, line or row for what cannot be read, an ending that is not known, a column that is not
    there, and an empty text.
    """
    if is_url(source):
        rows = _by_ending(source, _Fetched(source))
    else:
        path = Path(at_home(source))
        try:
            is_folder = path.is_dir()
        except (OSError, ValueError) as error:
            # Longer than names may be, or with NUL.
            raise UserError(
                f"{source[:200]!r}: cannot be a path ({getattr(error, 'strerror', None) or error})"
            ) from error
        rows = _folder(path) if is_folder else _by_ending(str(path), path)
    return _prompts(source, rows, columns)


def split_prompts(prompts: Sequence[Prompt], share: float) -> dict[str, list[Prompt]]:
    """Splits "train" and "test": ``share`` of the prompts train, at least one of each where there are two.

    share: in (0, 1]; at 1 all train. Prompts are held out by a hash of their ids, whatever their order. Raises
    UserError for a share out of its range.
    """
    if not 0 < share <= 1:
        raise UserError(f"--split {share:g}: give the share of prompts to train on, above 0 and up to 1, such as 0.95")
    held_out = round(len(prompts) * (1 - share))
    if share < 1 and len(prompts) > 1:
        held_out = min(max(held_out, 1), len(prompts) - 1)
    by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(f"split {prompt.id}".encode()).digest())
    tested = {prompt.id for prompt in by_hash[:held_out]}
    splits = {
        TRAIN: [prompt for prompt in prompts if prompt.id not in tested],
        TEST: [prompt for prompt in prompts if prompt.id in tested],
    }
    return {name: found for name, found in splits.items() if found}


def _prompts(source: str, rows: Iterator[_Row], columns: Columns) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    times: dict[str, int] = {}
    for where, row in rows:
        text = row[_column(row, columns.text, TEXT_COLUMNS, where)]
        if isinstance(text, str):
            require_encodable(text, where)
        if not isinstance(text, str) or not any(sign.isprintable() and not sign.isspace() for sign in text):
            raise UserError(f"{where}: expected a prompt's text, found {text!r}")
        text = text.strip()
        category = _optional(row, columns.category, CATEGORY_COLUMNS, where)
        if category is not None and not isinstance(category, str):
            raise UserError(f"{where}: expected a category's name, found {category!r}; {_OTHERWISE}")
        phrases = _phrases(_optional(row, columns.phrases, PHRASE_COLUMNS, where), where)
        identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        times[identity] = times.get(identity, 0) + 1
        found.setdefault(identity, Prompt(identity, text, (category or "").strip(), phrases))
    if not found:
        raise UserError(f"{source}: holds no prompts; put at least one text there")
    return [
        prompt if times[key] == 1 else Prompt(key, prompt.text, prompt.category, prompt.phrases, {"times": times[key]})
        for key, prompt in found.items()
    ]


def _column(row: Mapping[str, Any], named: str | None, usual: Sequence[str], where: str) -> str:
    wanted = [named] if named is not None else list(usual)
    found = next((name for name in wanted if name in row), None)
    if found is None:
        there = ", ".join(str(name) for name in row) or "none"
        cure = "name the one with the prompts: --column NAME (data.column)" if usual else "name one of these, or none"
        raise UserError(f"{where}: no column {' or '.join(map(repr, wanted))}; there are {there}: {cure}.")
    return found


def _optional(row: Mapping[str, Any], named: str | None, usual: Sequence[str], where: str) -> Any:
    if named is not None:
        return row[_column(row, named, (), where)]
    return next((row[name] for name in usual if name in row), None)


def _phrases(value: Any, where: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise UserError(
            f"{where}: expected phrases as a list of texts, or one text with ';' between, found {value!r}; {_OTHERWISE}"
        )
    found = tuple(part.strip() for part in parts if part.strip())
    for phrase in found:
        require_encodable(phrase, where)
    return found


# ---- the files


class _Fetched:
    """The bytes behind a URL, by fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url

    def read_bytes(self) -> bytes:
        """All of them; UserError where they cannot be had."""
        import fsspec

        try:
            with fsspec.open(self.url, "rb") as stream:
                return bytes(stream.read())
        except ImportError as error:
            raise UserError(f"{self.url}: {error}. Install it, or fetch the file and name its path.") from error
        # Every kind of store has errors of its own.
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{self.url}: cannot be read ({said[0][:200]})") from error


def _by_ending(name: str, file: Path | _Fetched) -> Iterator[_Row]:
    ending = Path(name.partition("?")[0]).suffix.lower()
    if ending not in _READERS:
        raise UserError(
            f"{name}: prompts are read from {', '.join(_READERS)} files; its name ends otherwise: convert it"
        )
    return _READERS[ending](name, file)


def _bytes(name: str, file: Path | _Fetched) -> bytes:
    try:
        return file_bytes(file) if isinstance(file, Path) else file.read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a name with NUL.
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _decoded(name: str, file: Path | _Fetched) -> str:
    try:
        return _bytes(name, file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def _text(name: str, file: Path | _Fetched) -> Iterator[_Row]:
    # Not splitlines(): it would also cut at U+2028 or a form feed inside a prompt.
    lines = _decoded(name, file).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return ((f"{name}: line {number}", {"text": line}) for number, line in enumerate(lines, 1) if line.strip())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. JSONDecodeError where it gives a key two values, of which one would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise json.JSONDecodeError(f"it gives the key {ascii(key)} twice", "", 0)
        found[key] = value
    return found


def _as_row(item: Any, where: str) -> _Row:
    if isinstance(item, str):
        return where, {"text": item}
    if isinstance(item, dict):
        return where, item
    raise UserError(f"{where}: expected a text or an object, found {type(item).__name__}")


def _json_lines(name: str, file: Path | _Fetched) -> Iterator[_Row]:
    for number, line in enumerate(_decoded(name, file).split("\n"), 1):
        if line.strip():
            where = f"{name}: line {number}"
            try:
                item = parse_json(line, object_pairs_hook=_object)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({error})") from error
            yield _as_row(item, where)


def _json(name: str, file: Path | _Fetched) -> Iterator[_Row]:
    try:
        items = parse_json(_decoded(name, file), object_pairs_hook=_object)
    except ValueError as error:
        raise UserError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(items, list):
        raise UserError(f"{name}: expected a list of texts or objects, found {type(items).__name__}")
    for number, item in enumerate(items, 1):
        yield _as_row(item, f"{name}: item {number}")


def _csv(delimiter: str) -> Callable[[str, Path | _Fetched], Iterator[_Row]]:
    def read(name: str, file: Path | _Fetched) -> Iterator[_Row]:
        reader = csv.DictReader(io.StringIO(_decoded(name, file), newline=""), delimiter=delimiter, strict=True)
        try:
            # "text, category": a space behind the comma belongs to no name.
            header = [column.strip() for column in reader.fieldnames or ()]
            twice = sorted({column for column in header if header.count(column) > 1})
            if twice:
                raise UserError(f"{name}: line 1: two columns are called {twice[0]!r}; name them apart")
            reader.fieldnames = header
            for row in reader:
                where = f"{name}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: not the {len(reader.fieldnames or ())} columns of the header")
                yield where, row
        except csv.Error as error:
            raise UserError(f"{name}: line {reader.line_num}: no valid CSV ({error})") from error

    return read


def _arrow(name: str) -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UserError(f"{name}: reading it needs pyarrow: pip install 'srum-ds[prompts]'") from error


def _parquet(name: str, file: Path | _Fetched) -> Iterator[_Row]:
    arrow = _arrow(name)
    data = _bytes(name, file)
    try:
        rows = importlib.import_module("pyarrow.parquet").read_table(io.BytesIO(data)).to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: no readable Parquet file ({error})") from error
    return ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


def _arrow_stream(path: Path) -> Iterator[_Row]:
    arrow = _arrow(str(path))
    try:
        with open(path, "rb") as stream:
            rows = importlib.import_module("pyarrow.ipc").open_stream(stream).read_all().to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no readable Arrow file ({error})") from error
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))


def _folder(folder: Path) -> Iterator[_Row]:
    state = folder / "state.json"
    if state.is_file():
        try:
            names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{state}: not as datasets' save_to_disk writes it ({error!r})") from error
        for name in names:
            yield from _arrow_stream(folder / Path(name).name)
        return
    files = sorted(folder.glob("*.parquet"))
    if not files:
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        hint = f"; name one of its splits: {', '.join(f'{folder}/{split}' for split in splits)}" if splits else ""
        raise UserError(
            f"{folder}: expected a data set saved by datasets (state.json and Arrow files) or Parquet files{hint}"
        )
    for path in files:
        yield from _parquet(str(path), path)


_READERS: dict[str, Callable[[str, Path | _Fetched], Iterator[_Row]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv(","),
    ".tsv": _csv("\t"),
    ".parquet": _parquet,
}
