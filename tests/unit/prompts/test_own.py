"""Prompts of one's own: the same prompts from every kind of file, and what is wrong named by file and line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.prompts.own import Columns, read_own, split_prompts
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.records import read_records

TEXTS = ["a red bench", "un café, à Paris", "two cats\u2028and a dog"]
RECORDS = [{"prompt": text, "category": "plain", "phrases": ["cat", "dog"]} for text in TEXTS]


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parquet(folder: Path) -> str:
    arrow = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    tables.write_table(arrow.Table.from_pylist(RECORDS), folder / "p.parquet")
    return str(folder / "p.parquet")


def saved_data_set(folder: Path) -> str:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(RECORDS)
    (folder / "set").mkdir()
    with arrow.OSFile(str(folder / "set/data-00000-of-00001.arrow"), "wb") as sink:
        with arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "set/state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return str(folder / "set")


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    rows = "\n".join(f'"{text}",plain,cat; dog' for text in TEXTS)
    sources = [
        write(tmp_path, "a.jsonl", "".join(json.dumps(record) + "\n\n" for record in RECORDS)),
        write(tmp_path, "a.json", b"\xef\xbb\xbf" + json.dumps(RECORDS, ensure_ascii=False).encode()),
        write(tmp_path, "a.csv", f"prompt,category,phrases\r\n{rows}\r\n"),
        write(tmp_path, "A.TSV", "prompt\tcategory\tphrases\n" + "\n".join(f"{t}\tplain\tcat;dog" for t in TEXTS)),
    ]
    found = [read_own(source) for source in sources]
    assert [prompt.text for prompt in found[0]] == TEXTS
    assert {(prompt.category, prompt.phrases) for prompt in found[0]} == {("plain", ("cat", "dog"))}
    assert all(prompts == found[0] for prompts in found[1:])


@pytest.mark.parametrize("make", [parquet, saved_data_set])
def test_columnar_files_too(make: Any, tmp_path: Path) -> None:
    assert read_own(make(tmp_path)) == read_own(write(tmp_path, "a.json", json.dumps(RECORDS)))


def test_text_lines_and_ids_that_stay(tmp_path: Path) -> None:
    prompts = read_own(write(tmp_path, "a.txt", "  a red bench \r\n\r\nun café, à Paris\r\na red bench"))
    assert [(prompt.text, dict(prompt.meta)) for prompt in prompts] == [
        ("a red bench", {"times": 2}),
        ("un café, à Paris", {}),
    ]
    turned = read_own(write(tmp_path, "b.txt", "un café, à Paris\nanother\na red bench\n"))
    assert {prompt.id for prompt in prompts} < {prompt.id for prompt in turned}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.txt", b"a \xff", "not UTF-8"),
        ("a.doc", "x", r"prompts are read from .*\.txt"),
        ("a.csv", "words,n\nx,1\n", r"line 2: no column 'text' or 'prompt' or 'caption'; there are words, n.*--column"),
        ("a.csv", "text,n\nx,1\ny\n", "line 3: not the 2 columns"),
        ("a.jsonl", '{"text": "x"}\n{"text": ""}\n', "line 2: expected a prompt's text, found ''"),
        ("a.jsonl", '{"text": "x"\n', "line 1: not valid JSON"),
        ("a.jsonl", "7\n", "line 1: expected a text or an object, found int"),
        ("a.json", '{"text": "x"}', "expected a list"),
        ("a.json", '["\\ud800"]', "which is no character"),
        ("a.json", '[{"text": "x", "phrases": [1]}]', "expected phrases as a list of texts"),
        ("a.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}.*{said}"):
        read_own(write(tmp_path, name, content))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_own(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="expected a data set saved by datasets"):
        read_own(str(tmp_path))
    with pytest.raises(UserError, match="no column 'words'"):
        read_own(write(tmp_path, "a.jsonl", '{"text": "x"}\n'), Columns(text="words"))


def test_url_by_memory(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://own/a.txt", "wb") as stream:
        stream.write(b"a red bench\n")
    assert [prompt.text for prompt in read_own("memory://own/a.txt")] == ["a red bench"]
    with pytest.raises(UserError, match=r"memory://own/b\.txt: cannot be read"):
        read_own("memory://own/b.txt")
    with pytest.raises(UserError, match=r"nosuch://a\.txt"):
        read_own("nosuch://a.txt")


@pytest.mark.parametrize(
    ("count", "share", "tests"), [(5, 0.95, 1), (2, 0.95, 1), (1, 0.95, 0), (100, 0.95, 5), (4, 1.0, 0)]
)
def test_a_split_holds_some_back(count: int, share: float, tests: int, tmp_path: Path) -> None:
    prompts = read_own(write(tmp_path, "a.txt", "\n".join(f"prompt {number}" for number in range(count))))
    splits = split_prompts(prompts, share)
    assert len(splits["train"]) == count - tests
    assert len(splits.get("test", [])) == tests
    backwards = split_prompts(prompts[::-1], share)
    assert {prompt.id for prompt in backwards["train"]} == {prompt.id for prompt in splits["train"]}
    with pytest.raises(UserError, match="--split 0"):
        split_prompts(prompts, 0.0)


def settings(tmp_path: Path, source: str) -> Config:
    return load_config("tiny", [f"data.prompts={source}", f"run.dir={tmp_path / 'run'}"])


def test_a_run_keeps_its_prompts(tmp_path: Path) -> None:
    source = write(tmp_path, "a.txt", "one\ntwo\nthree\n")
    cfg = settings(tmp_path, source)
    folder = prompt_folder(cfg)
    assert folder == tmp_path / "run/prompts"
    with PromptReader(folder, "train") as train, PromptReader(folder, "test") as test:
        assert sorted(p.text for p in [*train, *test]) == ["one", "three", "two"]
        assert [p.text for p in load_benchmark("own").read(folder)] == [p.text for p in test]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert prompt_folder(cfg) == folder
    Path(source).write_text("one\nother\n")
    with pytest.raises(UserError, match="has changed since"):
        prompt_folder(cfg)
    Path(source).unlink()
    assert prompt_folder(cfg) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other = replace(cfg, data=replace(cfg.data, train_share=0.5))
    with pytest.raises(UserError, match="other settings"):
        prompt_folder(other)


def test_prompts_without_a_category_are_all_of_one(tmp_path: Path) -> None:
    own = load_benchmark("own")
    assert {p.category for p in own.read(Path(write(tmp_path, "a.txt", "one\ntwo\n")))} == {"all"}
    with pytest.raises(UserError, match="--prompts FILE"):
        own.read(None)


def test_records_and_atoms_hold_text(tmp_path: Path) -> None:
    records = write(tmp_path, "prompts.jsonl", '{"schema": 1, "id": "", "text": "a cat"}\n')
    with pytest.raises(UserError, match="line 1: the id is empty"):
        read_records(Path(records))
    for text, said in (
        ('{"schema": 1, "id": "a", "text": " "}', "line 1: the text of prompt 'a' is empty"),
        (
            '{"schema": 1, "id": "a", "text": "a cat", "meta": {"points": ["a\\udc80"]}}',
            r"is \\udc80, which is no character",
        ),
    ):
        with pytest.raises(UserError, match=said):
            read_records(Path(write(tmp_path, "prompts.jsonl", text + "\n")))
    atoms = '{"prompt": "a\\udc80", "atom_count": 1, "vqa_list": [["Is there a dog?", "Yes"]], "skills": ["object"]}'
    with pytest.raises(UserError, match=r"character 2 is \\udc80"):
        load_benchmark("geneval2").read(Path(write(tmp_path, "geneval2_data.jsonl", atoms + "\n")))
    points = '{""Testpoints"": [""Style""], ""Testpoint Description"": [""a\\udc80b""]}'
    table = f'index,prompt_en,sub_dims_en\n7,a red dog,"{points}"\n'
    with pytest.raises(UserError, match=r"unigenbench-0007.*is \\udc80"):
        load_benchmark("unigenbench").read(Path(write(tmp_path, "test_prompts_en.csv", table)))


def test_a_column_that_holds_something_else_has_a_way_out(tmp_path: Path) -> None:
    boxes = write(tmp_path, "a.jsonl", '{"text": "x", "objects": {"bbox": [1]}}\n')
    with pytest.raises(UserError, match="give the column another name where it holds something else"):
        read_own(boxes)
    with pytest.raises(UserError, match=r"no column 'nope'; there are text, objects: name one of these, or none\."):
        read_own(boxes, Columns(phrases="nope"))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1.*twice"),
        ("a.csv", b"text,text\na,b\n", "line 1.*two columns"),
        ("a.txt", "a\n\u200b\n".encode(), "line 2"),
        ("a.txt", b"a\n\0\n", "line 2"),
        ("a.json", b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", "not valid JSON"),
    ],
)
def test_what_would_lose_a_prompt_is_refused(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_own(str(tmp_path / name))


def test_a_space_behind_a_comma_belongs_to_no_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text, category\na red circle, color\n")
    assert [prompt.category for prompt in read_own(str(tmp_path / "a.csv"))] == ["color"]


@pytest.mark.parametrize("source", ["a\0b.txt", "x" * 5000 + ".txt"])
def test_names_that_can_be_no_file_are_refused(source: str) -> None:
    with pytest.raises(UserError, match="cannot"):
        read_own(source)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="pipe"):
        read_own(str(tmp_path / "a.txt"))
