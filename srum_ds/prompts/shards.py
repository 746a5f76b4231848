"""Prompt shards: webdataset tars of ``<id>.json`` members, and the ``index.json`` beside them.

The index knows every sample's place in its tar (name, offset, size), so that a reader can fetch
any sample at once and the order of a run needs no state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, refuse_special, replacing, sha256_of, write_atomic
from srum_ds.common.tars import members_of
from srum_ds.common.texts import parse_json, require_encodable
from srum_ds.prompts.files import sample_name
from srum_ds.types import Prompt

FORMAT = "srum-ds-prompt-shards"
VERSION = 1
INDEX = "index.json"
# webdataset takes what stands before the first dot of a member's name as the sample's key.
KEY = re.compile(r"[A-Za-z0-9_-]+")
_TAR = re.compile(rf"(?P<split>{KEY.pattern})-(?P<number>\d{{6}})\.tar")
PROMPT_FIELDS = ("id", "text", "category", "phrases", "meta")


@dataclass(frozen=True)
class Sample:
    """Where one prompt stands in its tar: ``size`` bytes of JSON from ``offset`` on."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, SHA-256, size in bytes and samples in the order of the file."""

    file: str
    sha256: str
    size: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class SplitReport:
    """What ``check_shards`` found in a split; ``categories`` counts the prompts of each category."""

    shards: int
    prompts: int
    bytes: int
    categories: Mapping[str, int]


def prompt_to_json(prompt: Prompt) -> bytes:
    """The bytes of a prompt's ``<id>.json`` member: UTF-8, compact, keys in a fixed order.

    Raises UserError naming the prompt where something in it is not UTF-8, or no JSON (NaN, infinities).
    """
    record = {
        "id": prompt.id,
        "text": prompt.text,
        "category": prompt.category,
        "phrases": list(prompt.phrases),
        "meta": dict(prompt.meta),
    }
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        require_encodable(str(error.object)[error.start : error.end], f"prompt {ascii(prompt.id)}")
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"prompt {prompt.id!r}: its meta cannot be written as JSON ({error})") from error


def prompt_from_json(data: bytes, where: str) -> Prompt:
    """Parses what ``prompt_to_json`` wrote. ``where`` names the place in the UserError raised otherwise."""
    try:
        record = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); {_REWRITE}") from error
    if not isinstance(record, dict) or sorted(record) != sorted(PROMPT_FIELDS):
        found = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where}: expected an object with keys {', '.join(PROMPT_FIELDS)}, found {found}")
    strings = [record["id"], record["text"], record["category"]]
    if isinstance(record["phrases"], list):
        strings += record["phrases"]
    typed = isinstance(record["phrases"], list) and isinstance(record["meta"], dict)
    if not typed or not all(isinstance(value, str) for value in strings):
        raise UserError(f"{where}: id, text, category must be text, phrases a list of text, meta an object")
    for text in strings:
        require_encodable(text, where)
    require_encodable(json.dumps(record["meta"], ensure_ascii=False), where)
    return Prompt(record["id"], record["text"], record["category"], tuple(record["phrases"]), record["meta"])


_LARGEST = 1 << 63
"""No file has as many bytes."""

_REWRITE = "copy the shards again, or write them anew with `srum-ds shards write`"


def write_shards(
    folder: Path,
    split: str,
    prompts: Sequence[Prompt],
    shard_size: int = 2000,
    force: bool = False,
) -> list[Path]:
    """Writes ``prompts`` as ``<split>-000000.tar``, ... of ``shard_size`` prompts each, and the index.

    The bytes depend on the prompts alone (no clock, no user name). Other splits in the folder's
    index stay. Returns the tars' paths. Raises UserError for an empty list or text, ids that repeat or
    cannot be a webdataset key, and a split that is already there unless ``force``.
    """
    _check_prompts(split, prompts)
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size}; it must be at least 1")
    splits = load_index(folder) if (folder / INDEX).exists() else {}
    if split in splits and not force:
        raise UserError(f"{folder} already holds the split {split!r}; name another folder or pass --force")
    shards = []
    for number, start in enumerate(range(0, len(prompts), shard_size)):
        path = folder / f"{split}-{number:06d}.tar"
        _write_tar(path, prompts[start : start + shard_size])
        shards.append(scan_tar(path))
    old = {shard.file for shard in splits.get(split, ())}
    splits[split] = tuple(shards)
    write_atomic(folder / INDEX, _index_json(splits))
    for name in old - {shard.file for shard in shards}:
        (folder / name).unlink(missing_ok=True)
    return [folder / shard.file for shard in shards]


def rebuild_index(folder: Path, force: bool = False) -> dict[str, SplitReport]:
    """Writes ``index.json`` anew from the tars of a folder, every prompt of which is read; reports as ``check_shards``.

    Raises UserError where an index is there already (unless ``force``), where there are no tars named
    ``<split>-000000.tar``, one of a row is missing, or one holds something else than prompts or one twice.
    """
    if (folder / INDEX).exists() and not force:
        raise UserError(f"{folder / INDEX} is there already: look with `srum-ds shards check`, or pass --force")
    found: dict[str, list[Shard]] = {}
    for path in sorted(folder.glob("*.tar")):
        named = _TAR.fullmatch(path.name)
        if named is None:
            raise UserError(f"{path}: expected only tars named <split>-000000.tar there; move it away")
        shards = found.setdefault(named["split"], [])
        if int(named["number"]) != len(shards):
            raise UserError(f"{folder}/{named['split']}-{len(shards):06d}.tar: missing; copy it there. {path.name} is.")
        shard = scan_tar(path)
        _check_shard(path, shard)
        shards.append(shard)
    if not found:
        raise UserError(f"{folder}: holds no tars named <split>-000000.tar")
    for split, shards in found.items():
        keys = [sample.key for shard in shards for sample in shard.samples]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if twice:
            raise UserError(f"{folder}: the split {split!r} holds the prompt {twice[0]!r} twice")
    write_atomic(folder / INDEX, _index_json(found))
    return check_shards(folder)


def load_index(folder: Path) -> dict[str, tuple[Shard, ...]]:
    """The shards of every split in ``folder``, by the split's name. Raises UserError on a bad index."""
    path = folder / INDEX
    try:
        record = parse_json(file_bytes(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing. {folder} is no folder of prompt shards; write one with `srum-ds shards write`, or "
            "where its tars are there `srum-ds shards index`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REWRITE}") from error
    try:
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise UserError(
                f"{path}: format {record['format']!r} version {record['version']!r}; this program reads "
                f"{FORMAT!r} version {VERSION}: write the shards anew with `srum-ds shards write`"
            )
        entries = record["splits"].items()
        splits = {name: tuple(shard_from_json(item) for item in entry["shards"]) for name, entry in entries}
        counts = {name: entry["count"] for name, entry in entries}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a complete index ({error!r}); {_REWRITE}") from error
    for name, shards in splits.items():
        keys = [sample.key for shard in shards for sample in shard.samples]
        if len(keys) != counts[name] or len(set(keys)) != len(keys):
            raise UserError(
                f"{path}: split {name!r} counts {counts[name]} prompts but lists {len(set(keys))}; {_REWRITE}"
            )
    return splits


def check_sizes(folder: Path, shards: Sequence[Shard], cure: str = _REWRITE) -> None:
    """Raises a UserError that names every missing file and every file of another size than the index says.

    ``cure`` ends the message: what to do.
    """
    problems = []
    for shard in shards:
        path = folder / shard.file
        try:
            found = path.stat().st_size if path.is_file() else None
        except OSError as error:
            # A name that is longer than names may be.
            problems.append(f"{path}: cannot be there ({error.strerror})")
            continue
        if found is None:
            problems.append(f"{path}: missing (expected {shard.size} bytes)")
        elif found != shard.size:
            kind = "truncated" if found < shard.size else "too long"
            problems.append(f"{path}: {kind}: expected {shard.size} bytes, found {found}")
    if problems:
        raise UserError("\n".join([*problems, f"What to do: {cure}."]))


def check_shards(folder: Path) -> dict[str, SplitReport]:
    """Checks every tar of ``folder`` against the index: size, SHA-256, every sample parsed.

    Returns a report for each split. Raises UserError naming the files that are missing, truncated
    or changed.
    """
    splits = load_index(folder)
    check_sizes(folder, [shard for shards in splits.values() for shard in shards])
    reports = {}
    for name, shards in splits.items():
        categories: dict[str, int] = {}
        for shard in shards:
            for prompt in _check_shard(folder / shard.file, shard):
                categories[prompt.category] = categories.get(prompt.category, 0) + 1
        reports[name] = SplitReport(
            shards=len(shards),
            prompts=sum(len(shard.samples) for shard in shards),
            bytes=sum(shard.size for shard in shards),
            categories=categories,
        )
    return reports


def require_unchanged(path: Path, found: str, expected: str) -> None:
    """UserError where a shard's SHA-256 is not the one that the index says."""
    if found != expected:
        raise UserError(f"{path}: changed: expected sha256 {expected}, found {found}. What to do: {_REWRITE}.")


def _check_shard(path: Path, shard: Shard) -> list[Prompt]:
    require_unchanged(path, sha256_of(path), shard.sha256)
    if scan_tar(path).samples != shard.samples:
        raise UserError(f"{path}: its members are not where the index says. What to do: {_REWRITE}.")
    data = file_bytes(path)
    prompts = []
    for sample in shard.samples:
        where = f"{path}: {sample.key}.json"
        prompt = prompt_from_json(data[sample.offset : sample.offset + sample.size], where)
        if prompt.id != sample.key:
            raise UserError(f"{where}: holds the prompt {prompt.id!r}; {_REWRITE}")
        prompts.append(prompt)
    return prompts


def _check_prompts(split: str, prompts: Sequence[Prompt]) -> None:
    if not KEY.fullmatch(split):
        raise UserError(f"split {split!r}: only letters, digits, '_' and '-' can name a split")
    if not prompts:
        raise UserError(f"split {split!r}: there are no prompts to write")
    seen = set()
    for prompt in prompts:
        if not KEY.fullmatch(prompt.id):
            raise UserError(f"prompt id {prompt.id!r}: an id has letters, digits, '_' and '-' only")
        if prompt.id in seen:
            raise UserError(f"prompt id {prompt.id!r} occurs twice in the split {split!r}")
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} is empty; give it a text, or leave it out")
        # Everything is looked at before the first file is touched.
        prompt_to_json(prompt)
        seen.add(prompt.id)


def _write_tar(path: Path, prompts: Sequence[Prompt]) -> None:
    # It imports torch, which reading prompts does not take.
    from webdataset import TarWriter

    with replacing(path) as stream:
        # A whole-number mtime: with a fraction every member would get a pax header of 1 KB.
        with TarWriter(stream, user="root", group="root", mtime=0) as writer:
            for prompt in prompts:
                writer.write({"__key__": prompt.id, "json": prompt_to_json(prompt)})


def scan_tar(path: Path, extensions: Sequence[str] = ("json",)) -> Shard:
    """What a tar holds and where. Its samples' keys are the members' names; with one extension, without it.

    Raises UserError for a file that is no tar and for a member with another extension.
    """
    samples = []
    try:
        refuse_special(path)
        with tarfile.open(path, "r:") as tar:
            for member in members_of(tar):
                if member.isdir():
                    # `tar -c .` writes the folder itself.
                    continue
                key, extension = sample_name(member.name)
                if not key or not member.isreg() or extension not in extensions:
                    listed = ", ".join(f"<id>.{known}" for known in extensions)
                    raise UserError(f"{path}: unexpected member {member.name!r}; shards hold {listed} only")
                name = key if len(extensions) == 1 else member.name
                samples.append(Sample(name, member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a readable tar ({error}). What to do: {_REWRITE}.") from error
    return Shard(path.name, sha256_of(path), path.stat().st_size, tuple(samples))


def shard_from_json(item: Mapping[str, Any]) -> Shard:
    """A shard as an index lists it. Raises KeyError, TypeError or ValueError where something is not right."""
    samples = []
    whole = item["size"]
    if type(whole) is not int or not 0 <= whole < _LARGEST:
        raise ValueError(f"a shard of {whole!r} bytes")
    for key, offset, size in item["samples"]:
        if not isinstance(key, str):
            raise ValueError(f"bad sample {key!r}")
        if type(offset) is not int or type(size) is not int or min(offset, size) < 0 or offset + size > whole:
            raise ValueError(f"sample {key!r} of {size!r} bytes at {offset!r} in a shard of {whole} bytes")
        samples.append(Sample(key, offset, size))
    file = item["file"]
    if os.path.basename(file) != file:
        raise ValueError(f"shard {file!r} is not a plain file name")
    return Shard(file, str(item["sha256"]), whole, tuple(samples))


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """A shard as an index lists it."""
    samples = [[sample.key, sample.offset, sample.size] for sample in shard.samples]
    return {"file": shard.file, "sha256": shard.sha256, "size": shard.size, "samples": samples}


def _index_json(splits: Mapping[str, Sequence[Shard]]) -> str:
    entries = {}
    for name in sorted(splits):
        shards = [shard_to_json(shard) for shard in splits[name]]
        entries[name] = {"count": sum(len(shard.samples) for shard in splits[name]), "shards": shards}
    record = {"format": FORMAT, "version": VERSION, "splits": entries}
    return json.dumps(record, separators=(",", ":")) + "\n"


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 (hex) of a list of prompts, in order: what a cache made from them is keyed by."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt_to_json(prompt) + b"\n")
    return digest.hexdigest()
