"""Public prompt sets as prompts with stable ids: T2I-CompBench, the SRUM release's records, GenEval.

The files are read from the user's own checkout of each project; nothing of them is shipped here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json, require_encodable
from srum_ds.prompts.files import found_in, read_text
from srum_ds.prompts.reasonbench import read_reasonbench
from srum_ds.prompts.wise import read_wise, read_wise_verified
from srum_ds.types import Prompt

COMPBENCH_CATEGORIES = (
    "color",
    "shape",
    "texture",
    "spatial",
    "3d_spatial",
    "numeracy",
    "non_spatial",
    "complex",
)
_COMPBENCH_FILE = re.compile(
    rf"(?P<category>{'|'.join(COMPBENCH_CATEGORIES)})_(?P<split>train|val)(?:_(?P<subset>[a-z]+))?\.txt"
)
COMPBENCH_FOLDER = Path("examples/dataset")
"""Where a checkout of T2I-CompBench keeps them."""
GENEVAL_PLACES = ("evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")
# GenEval class names that are plural already and take no article.
_PLURAL = {"scissors", "skis"}


def read_lines(path: Path) -> list[str]:
    """The prompts of a text file, one a line: UTF-8, LF or CRLF ends, blank lines dropped.

    A prompt is what precedes a tab. The last line may lack its end. Raises UserError when the
    file is missing, not UTF-8 or empty.
    """
    # Not splitlines(): it would also cut at U+2028 or a form feed inside a prompt.
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = [line.strip().split("\t")[0].strip() for line in lines]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts


def read_compbench(source: Path) -> dict[str, list[Prompt]]:
    """T2I-CompBench prompts, by split ("train", "val").

    source: the project's checkout, a folder with ``{category}_{train|val}.txt`` (its ``examples/dataset``), or
    one such file. A prompt's id is the file's name and its place in it (from 1). In a
    folder, subsets (``complex_val_spatial.txt``, ``color_val_unseen.txt``) are no prompts of their
    own but mark those of the whole file with ``meta["subset"]``. Raises UserError when nothing
    matches, or a subset holds a prompt that the whole does not.
    """
    named = source
    if source.is_dir() and (source / COMPBENCH_FOLDER).is_dir():
        source = source / COMPBENCH_FOLDER
    files = sorted(source.glob("*.txt")) if source.is_dir() else [source]
    found = [(match, path) for path in files if (match := _COMPBENCH_FILE.fullmatch(path.name))]
    whole = {(m["category"], m["split"]): path for m, path in found if not m["subset"]}
    if source.is_file() and found and not whole:
        # A single subset file, asked for by name, is a prompt set of its own.
        match, path = found[0]
        subset = dict.fromkeys(read_lines(path), match["subset"])
        return {match["split"]: _compbench(path, match["category"], subset)}
    if not whole:
        looked = f"{named} and {named / COMPBENCH_FOLDER}" if named.is_dir() else str(named)
        raise UserError(
            f"{named}: no T2I-CompBench prompt file there; looked for names like color_train.txt and complex_val.txt "
            f"in {looked}"
        )
    subsets: dict[tuple[str, str], dict[str, str]] = {}
    for match, path in found:
        place = (match["category"], match["split"])
        if match["subset"] and place not in whole:
            raise UserError(
                f"{path}: a subset of {match['category']}_{match['split']}.txt, which is not beside it; take all files "
                "from one checkout, or name this file alone"
            )
        if match["subset"]:
            subsets.setdefault(place, {}).update({text: match["subset"] for text in read_lines(path)})
    splits: dict[str, list[Prompt]] = {}
    for split in ("train", "val"):
        for category in COMPBENCH_CATEGORIES:
            if (category, split) not in whole:
                continue
            names = subsets.get((category, split), {})
            prompts = _compbench(whole[category, split], category, names)
            strays = set(names) - {prompt.text for prompt in prompts}
            if strays:
                raise UserError(
                    f"{whole[category, split]}: a subset file beside it holds {len(strays)} prompts that it "
                    f"lacks, such as {sorted(strays)[0]!r}; take all files from one checkout"
                )
            splits.setdefault(split, []).extend(prompts)
    return splits


def _compbench(path: Path, category: str, subsets: Mapping[str, str]) -> list[Prompt]:
    prompts = []
    for number, text in enumerate(read_lines(path), 1):
        meta = {"subset": subsets[text]} if text in subsets else {}
        prompts.append(Prompt(f"compbench-{path.stem}-{number:04d}", text, category, (), meta))
    return prompts


def read_srum(source: Path) -> dict[str, list[Prompt]]:
    """The SRUM release's prompt records, by split ("train", "val").

    source: ``train_comp.json`` or ``val_comp.json``, or a folder with one or both. Ids are made of
    the record's Question_id. Every record is kept: prompts of the complex kinds occur twice, as
    the benchmark's arithmetic wants it. ``non-spatial`` becomes ``non_spatial``. Raises UserError
    naming the first record that is not {Question, Category, Question_id}.
    """
    if source.is_dir():
        files = [source / f"{split}_comp.json" for split in ("train", "val")]
        files = [path for path in files if path.exists()]
        if not files:
            raise UserError(f"{source}: expected the SRUM release's train_comp.json or val_comp.json there")
    else:
        files = [source]
    splits = {}
    for path in files:
        split = path.name.split("_")[0]
        if split not in ("train", "val"):
            raise UserError(f"{path}: expected a file named train_*.json or val_*.json, to know the split")
        try:
            records = parse_json(read_text(path))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(records, list):
            raise UserError(f"{path}: expected a list of records, found {type(records).__name__}")
        if not records:
            raise UserError(f"{path}: holds no records")
        prompts = [_srum(record, f"{path}: record {i}") for i, record in enumerate(records, 1)]
        splits[split] = _unique(prompts, path)
    return splits


def _srum(record: Any, where: str) -> Prompt:
    kinds = {"Question": str, "Category": str, "Question_id": int}
    # By type and not isinstance: true is no number.
    fits = isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in kinds.items())
    if not fits:
        raise UserError(f"{where}: expected Question (text), Category (text) and Question_id (number)")
    text = record["Question"].strip().split("\t")[0].strip()
    if not text:
        raise UserError(f"{where}: its Question is empty")
    require_encodable(text, f"{where}: its Question")
    category = record["Category"].strip().replace("-", "_")
    if not category:
        raise UserError(f"{where}: its Category is empty")
    number = record["Question_id"]
    return Prompt(f"srum-{number:05d}", text, category, (), {"question_id": number})


def read_geneval(source: Path) -> dict[str, list[Prompt]]:
    """GenEval's prompts as one split, "test".

    source: ``evaluation_metadata.jsonl``, its folder, or the project's checkout. Ids are the record's place (from 0,
    as in the folder names of GenEval's images); phrases are the classes to include, with their colour;
    ``meta`` is the whole record, and ``counts``: how many of each phrase. Raises UserError naming the first bad line.
    """
    path = found_in(source, GENEVAL_PLACES, "djghosh13/geneval")
    prompts: list[Prompt] = []
    for number, line in enumerate(read_text(path).replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            prompts.append(_geneval(line, len(prompts), f"{path}: line {number}"))
    if not prompts:
        raise UserError(f"{path}: holds no records")
    return {"test": prompts}


def _geneval(line: str, index: int, where: str) -> Prompt:
    try:
        record = parse_json(line)
        counts: dict[str, int] = {}
        for item in record["include"]:
            phrase = _geneval_phrase(item)
            counts[phrase] = counts.get(phrase, 0) + _geneval_count(item)
        text, tag = _geneval_text(record, "prompt"), _geneval_text(record, "tag")
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: expected tag, prompt and include (a list of {{class, count}})") from error
    if not counts:
        raise UserError(f"{where}: include is empty: nothing would be asked for")
    for said in (text, tag, *counts):
        require_encodable(said, where)
    meta = {**record, "counts": list(counts.values())}
    return Prompt(f"geneval-{index:05d}", text, tag, tuple(counts), meta)


def _geneval_text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{key} is {value!r}")
    return value.strip()


def _geneval_count(item: Mapping[str, Any]) -> int:
    count = item["count"]
    if type(count) is not int or count < 1:
        raise TypeError(f"count is {count!r}")
    return count


def _geneval_phrase(item: Mapping[str, Any]) -> str:
    name = _geneval_text(item, "class")
    # A round through a table library leaves "color": null where there was none.
    words = name if item.get("color") is None else f"{_geneval_text(item, 'color')} {name}"
    if name in _PLURAL:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _unique(prompts: list[Prompt], path: Path) -> list[Prompt]:
    seen = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise UserError(f"{path}: the Question_id of {prompt.id!r} occurs twice")
        seen.add(prompt.id)
    return prompts


IMPORTERS = {
    "compbench": read_compbench,
    "srum": read_srum,
    "geneval": read_geneval,
    "reasonbench": read_reasonbench,
    "wise": read_wise,
    "wise_verified": read_wise_verified,
}
"""Kind of prompts -> what reads them from a file or folder, by split."""
