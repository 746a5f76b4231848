"""Targets: importers of prompts and of questions, prompt records, shards with their index and reader."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from srum_ds.common.texts import is_encodable
from srum_ds.evaluation.benchmarks import Asks, Detects, load_benchmark
from srum_ds.evaluation.understanding.mmbench import read_mmbench
from srum_ds.evaluation.understanding.mme import read_mme
from srum_ds.evaluation.understanding.mmmu import read_mmmu
from srum_ds.prompts.importers import IMPORTERS
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.reasonbench import PROMPT_FILES, REASONBENCH_SECTIONS
from srum_ds.prompts.records import read_records, write_records
from srum_ds.prompts.shards import (
    check_shards,
    load_index,
    prompt_from_json,
    prompt_to_json,
    rebuild_index,
    write_shards,
)
from srum_ds.types import Prompt
from tests.fuzz.inputs import ODD_TEXTS, Maker
from tests.fuzz.of_pictures import small_png
from tests.fuzz.target import Target, write

_SRUM = [{"Question": "a red dog", "Category": "color", "Question_id": n} for n in range(3)]
_GENEVAL = [
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 2}, {"class": "ski", "count": 1, "position": ["left of", 0]}],
        "exclude": [{"class": "cat", "count": 3}],
        "prompt": "a ski left of a cat",
    },
]
_WISE_STEMS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
_WISE = [
    {"prompt_id": n, "Prompt": "a dog", "Category": "Time", "Explanation": "it means a dog", "Subcategory": "x"}
    for n in range(2)
]
_GENEVAL2 = [
    {
        "prompt": "four dogs",
        "atom_count": 2,
        "vqa_list": [["How many dogs?", "four"], ["Is there a dog?", "Yes"]],
        "skills": ["count", "object"],
    }
]
_RECORDS = [
    {"schema": 1, "id": "p-1", "text": "a dog", "category": "color", "phrases": ["a dog"], "meta": {"counts": [1]}},
    {"schema": 1, "id": "p-2", "text": "a cat"},
]
_DPG = [
    ["dpg-1", "a red dog", "1", "0", "entity - whole (dog)", "Is there a dog?"],
    ["dpg-1", "a red dog", "2", "1", "attribute - color (dog, red)", "Is it red?"],
]
_UNIGEN = ["7", "a red dog", {"Testpoints": ["Style", "Attribute - Color"], "Testpoint Description": ["oil", "red"]}]
_MMMU = [
    {"id": "v_Art_1", "question": "what? <image 1>", "options": ["a", "b"], "answer": "A", "image_1": "@picture@"},
    {
        "id": "v_Art_2",
        "question": "what?",
        "options": "['a', 'b', 'c']",
        "answer": "b",
        "image": {"bytes": "@picture@"},
    },
]
_MME = [{"image": "@picture@", "question": "is it red?", "answer": "Yes", "category": "color"}]
_MMBENCH = ["index", "question", "A", "B", "C", "answer", "image", "hint", "category"]


def table(make: Maker, rows: list[list[Any]], delimiter: str = ",") -> str:
    """Rows as a table of separated values, cells changed, dropped or cut now and then."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    for row in rows:
        cells = [cell if isinstance(cell, str) else make.json(cell) for cell in row]
        if make.chance(0.4):
            at = make.below(len(cells))
            cells[at] = make.pick((make.pick(ODD_TEXTS), make.cut(cells[at]), make.digits()))
        if make.chance(0.05):
            cells = cells[:-1] if make.chance(0.5) else [*cells, "more"]
        writer.writerow([cell.replace("\0", "") if make.chance(0.8) else cell for cell in cells])
    text = out.getvalue()
    return make.cut(text) if make.chance(0.2) else text


def _reasonbench(make: Maker) -> dict[str, str]:
    files = {}
    for category, name in PROMPT_FILES.items():
        sections = {
            key: {"q1": "is it?", "c1": "1: yes; 0: no", "q2": "and?", "c2": {"1": "yes", "0.5": "partly", "0": "no"}}
            for key in REASONBENCH_SECTIONS[category].values()
        }
        files[f"prompts/{name}"] = [{"id": 1, "prompt": "a dog", "idiom": "x"}]
        files[f"deepseek_evaluation_qs/evaluation_{category}.json"] = [{"id": 1, "prompt": "a dog", **sections}]
    broken = make.pick(tuple(files))
    return {
        name: make.json(make.changed(value, keep=0.0) if name == broken else value) for name, value in files.items()
    }


def make_imported(make: Maker) -> tuple[str, dict[str, str | bytes]]:
    """A kind of prompts, and the files of its checkout."""
    kind = make.pick((*IMPORTERS, "geneval2", "dpg", "unigenbench", "records"))
    files: dict[str, Any] = {}
    if kind == "compbench":
        words = ("a red dog", "\n", "\r\n", "\t", "two cats")
        for name in ("color_val.txt", "complex_val.txt", "color_val_unseen.txt", "complex_train.txt")[
            : make.below(4) + 1
        ]:
            files[name] = make.text(words) if make.chance(0.7) else "a red dog\ntwo cats\n"
    elif kind == "srum":
        files["val_comp.json"] = make.json(make.changed(_SRUM))
    elif kind == "geneval":
        files["evaluation_metadata.jsonl"] = make.lines([make.changed(one, keep=0.4) for one in _GENEVAL])
    elif kind == "geneval2":
        files["geneval2_data.jsonl"] = make.lines([make.changed(one, keep=0.1) for one in _GENEVAL2])
    elif kind == "records":
        files["prompts.jsonl"] = make.lines([make.changed(one, keep=0.4) for one in _RECORDS])
    elif kind == "dpg":
        columns = ["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"]
        files["dpg_bench.csv"] = table(make, [columns, *_DPG])
        if make.chance(0.3):
            files["prompts/dpg-1.txt"] = make.text(("a red dog",))
    elif kind == "unigenbench":
        row = [*_UNIGEN[:2], make.changed(_UNIGEN[2])]
        files["test_prompts_en.csv"] = table(make, [["index", "prompt_en", "sub_dims_en"], row])
    elif kind == "reasonbench":
        files = dict(_reasonbench(make))
    else:
        ending = "_verified.json" if kind == "wise_verified" else ".json"
        broken = make.below(3)
        for n, stem in enumerate(_WISE_STEMS):
            items = [{**one, "prompt_id": 10 * n + k} for k, one in enumerate(_WISE)]
            files[f"{stem}{ending}"] = make.json(make.changed(items, keep=0.0) if n == broken else items)
    if make.chance(0.1):
        name = make.pick(tuple(files))
        files[name] = make.damaged(files[name].encode("utf-8", "surrogatepass"))
    return kind, files


def fresh(folder: Path) -> Path:
    """An empty folder in the place of a former one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def check_imported(case: tuple[str, dict[str, str | bytes]], folder: Path) -> None:
    """Imported prompts have texts and ids of their own, can be kept and read back, and asked about."""
    kind, files = case
    source = fresh(folder / "source")
    for name, data in files.items():
        write(source / name, data)
    if kind in IMPORTERS:
        prompts = [prompt for split in IMPORTERS[kind](source).values() for prompt in split]
    else:
        prompts = read_records(source / "prompts.jsonl") if kind == "records" else load_benchmark(kind).read(source)
    if kind not in ("records", "srum"):
        benchmark = load_benchmark(kind)
        if isinstance(benchmark.grading, Asks):
            for prompt in prompts:
                questions = benchmark.grading.questions(prompt)
                assert all(len(question.sha256()) == 64 for question in questions)
                assert len({question.key for question in questions}) == len(questions), questions
        if isinstance(benchmark.grading, Detects):
            assert all(isinstance(name, str) for name in benchmark.grading.classes(prompts))
        categories = list(dict.fromkeys(prompt.category for prompt in prompts))
        for figure in benchmark.figures(categories):
            assert abs(sum(figure.weights.values()) - 1) < 1e-6, figure
    check_prompts(prompts, folder)


def check_prompts(prompts: list[Prompt], folder: Path) -> None:
    """Prompts have texts and ids of their own, and are the same after they were kept."""
    ids = [prompt.id for prompt in prompts]
    assert prompts and len(set(ids)) == len(ids), ids
    for prompt in prompts:
        assert prompt.text.strip() and prompt.text.encode() and prompt.id.encode(), prompt
        kept = prompt_from_json(prompt_to_json(prompt), "here")
        assert json.dumps(vars(kept)) == json.dumps({**vars(prompt), "meta": dict(prompt.meta)}), kept
    write_records(folder / "kept.jsonl", prompts)
    assert [prompt.text for prompt in read_records(folder / "kept.jsonl")] == [prompt.text for prompt in prompts]


def _with_picture(text: str) -> str:
    return text.replace("@picture@", base64.b64encode(small_png()).decode())


def make_questions(make: Maker) -> tuple[str, str | bytes]:
    """A kind of questions about pictures, and a file of them."""
    kind = make.pick(("mmmu", "mme", "mmbench"))
    if kind == "mmbench":
        row = ["1", "what?", "a", "b", "nan", "A", "@picture@", "", "color"]
        text = table(make, [_MMBENCH, row, ["2", *row[1:6], make.pick(("1", "2", "@picture@")), *row[7:]]], "\t")
    else:
        values = [make.changed(one, keep=0.3) for one in (_MMMU if kind == "mmmu" else _MME)]
        text = make.json(values) if make.chance(0.5) else make.lines(values)
    text = _with_picture(text)
    return kind, make.damaged(text.encode("utf-8", "surrogatepass")) if make.chance(0.1) else text


def check_questions(case: tuple[str, str | bytes], folder: Path) -> None:
    """Questions have texts, options and a right one among them."""
    kind, data = case
    readers: dict[str, Callable[[Path], Any]] = {"mmmu": read_mmmu, "mme": read_mme, "mmbench": read_mmbench}
    found = readers[kind](write(folder / "questions.tsv", data))
    assert found.items and len({item.key for item in found.items}) == len(found.items)
    for item in found.items:
        assert item.question.strip() and item.answer in item.options, item
        assert is_encodable(f"{item.question} {item.key} {item.category} {item.group}"), item


PROMPTS = [Prompt(f"p-{n}", f"a dog {n}", "color", ("a dog",), {"counts": [n]}) for n in range(3)]


@cache
def _written() -> tuple[bytes, bytes]:
    """The tar and the index of three prompts."""
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), "train", PROMPTS)
        return (Path(name) / "train-000000.tar").read_bytes(), (Path(name) / "index.json").read_bytes()


def _misnamed(name: str) -> tuple[bytes, str]:
    """A shard, and an index that knows it by a name that no file has."""
    tar, index = _written()
    return tar, index.decode().replace('"train-000000.tar"', json.dumps(name))


def make_shards(make: Maker) -> tuple[bytes, str | bytes]:
    """A shard and its index; one of the two is not as it was written."""
    tar, index = _written()
    if make.chance(0.3):
        return make.damaged(tar), index
    if make.chance(0.2):
        return tar, make.damaged(index)
    return tar, make.json(make.changed(json.loads(index), keep=0.02))


def check_read(case: tuple[bytes, str | bytes], folder: Path) -> None:
    """What a reader gives are the prompts that were written, in an order that knows each once, or nothing."""
    tar, index = case
    place = folder / "shards"
    write(place / "train-000000.tar", tar)
    write(place / "index.json", index)
    for split in load_index(place):
        with PromptReader(place, split) as reader:
            found = list(reader)
            assert [prompt.id for prompt in found] == list(reader._position)
            assert set(prompt.text for prompt in found) <= {prompt.text for prompt in PROMPTS}
            assert sorted(prompt.id for prompt in reader.batch(0, len(reader), 1)) == sorted(p.id for p in found)
    assert all(report.prompts >= 0 for report in check_shards(place).values())


def check_rebuilt(tar: bytes, folder: Path) -> None:
    """An index that is made from a tar describes it: every prompt of it can be read."""
    place = fresh(folder / "rebuilt")
    write(place / "train-000000.tar", tar)
    reports = rebuild_index(place)
    with PromptReader(place, "train") as reader:
        assert reports["train"].prompts == len(list(reader))


def make_prompt(make: Maker) -> list[Prompt]:
    """Prompts of odd texts and values, as a program may hand them over to be written."""
    return [
        Prompt(
            make.pick((f"p-{n}", f"p-{n}", make.pick(ODD_TEXTS))),
            make.text(("a dog",)),
            make.pick(ODD_TEXTS),
            tuple(make.some(ODD_TEXTS, 2)),
            {make.pick(ODD_TEXTS): make.value() for _ in range(make.below(3))},
        )
        for n in range(make.below(3))
    ]


def check_written(prompts: list[Prompt], folder: Path) -> None:
    """What can be written reads back as it was."""
    place = fresh(folder / "written")
    write_shards(place, "train", prompts)
    with PromptReader(place, "train") as reader:
        assert list(map(repr, reader)) == [repr(prompt) for prompt in prompts]


TARGETS = (
    Target(
        "importers",
        make_imported,
        check_imported,
        6,
        80,
        known=(
            ("srum", {"val_comp.json": "[]"}),
            ("srum", {"val_comp.json": "[" * 100_000}),
            ("geneval", {"evaluation_metadata.jsonl": json.dumps({**_GENEVAL[0], "exclude": [["class"]]})}),
            ("records", {"prompts.jsonl": "[" * 100_000}),
            ("wise", {f"{stem}.json": "9" * 5000 for stem in _WISE_STEMS}),
        ),
    ),
    Target(
        "questions",
        make_questions,
        check_questions,
        4,
        80,
        known=(("mme", "[" * 100_000), ("mme", json.dumps([{**_MME[0], "image": "a" * 300}])), ("mmmu", "{}" * 2)),
    ),
    Target(
        "shards", make_shards, check_read, 5, 60, known=(_misnamed("a" * 300), _misnamed("a\0b"), _misnamed("\ud800"))
    ),
    Target("rebuilt", lambda make: make.damaged(_written()[0], keep=0.02), check_rebuilt, 1.5, 60),
    Target("written", make_prompt, check_written, 1, 50),
)
