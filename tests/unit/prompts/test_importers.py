"""Importers of public prompt sets: small files with every trap, and the real files where present."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.prompts.importers import COMPBENCH_CATEGORIES, read_compbench, read_geneval, read_lines, read_srum
from srum_ds.prompts.shards import check_shards, write_shards
from srum_ds.rewards.judge.judge import phrase_counts
from tests.support.paths import SHARED

DATA = SHARED / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the public prompt files are not here")


def test_half_a_character_is_named_by_its_record(tmp_path: Path) -> None:
    path = tmp_path / "train_comp.json"
    path.write_text('[{"Question": "a \\ud83d cat", "Category": "color", "Question_id": 1}]')
    with pytest.raises(UserError, match=r"train_comp\.json: record 1: its Question: character 3 is \\ud83d"):
        read_srum(path)
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text('{"tag": "t", "include": [{"class": "b\\udc00", "count": 1}], "prompt": "a b"}')
    with pytest.raises(UserError, match=r"line 1: character 4 is \\udc00"):
        read_geneval(path)


def test_lines_of_mixed_files_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "color_train.txt"
    text = "a red car\r\n  a caf\u00e9 \r\n\r\na cup\tcolor, cup\t1\na form\u2028feed\na blue bowl"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_lines(path) == ["a red car", "a caf\u00e9", "a cup", "a form\u2028feed", "a blue bowl"]


def test_files_that_are_no_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="color_val.txt: cannot be read"):
        read_lines(tmp_path / "color_val.txt")
    (tmp_path / "empty.txt").write_text("\r\n \n")
    with pytest.raises(UserError, match="empty.txt: holds no prompts"):
        read_lines(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt: not UTF-8"):
        read_lines(tmp_path / "latin.txt")


def test_compbench_folder_marks_subsets_instead_of_repeating_them(tmp_path: Path) -> None:
    (tmp_path / "complex_val.txt").write_text("a\r\nb\r\nc", newline="")
    (tmp_path / "complex_val_spatial.txt").write_text("b\r\n", newline="")
    (tmp_path / "3d_spatial_val.txt").write_text("d\n")
    (tmp_path / "non_spatial_train.txt").write_text("e\n")
    (tmp_path / "LICENSE.txt").write_text("not a prompt\n")
    splits = read_compbench(tmp_path)
    assert sorted(splits) == ["train", "val"]
    assert [(p.id, p.text, p.category, dict(p.meta)) for p in splits["val"]] == [
        ("compbench-3d_spatial_val-0001", "d", "3d_spatial", {}),
        ("compbench-complex_val-0001", "a", "complex", {}),
        ("compbench-complex_val-0002", "b", "complex", {"subset": "spatial"}),
        ("compbench-complex_val-0003", "c", "complex", {}),
    ]
    assert [p.category for p in splits["train"]] == ["non_spatial"]


def test_compbench_subset_of_another_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "complex_val.txt").write_text("a\nb\n")
    (tmp_path / "complex_val_action.txt").write_text("something else\n")
    with pytest.raises(UserError, match="something else"):
        read_compbench(tmp_path)


def test_compbench_subset_without_its_whole_is_no_category_less(tmp_path: Path) -> None:
    (tmp_path / "color_val.txt").write_text("a\n")
    (tmp_path / "complex_val_spatial.txt").write_text("b\n")
    with pytest.raises(UserError, match=r"complex_val_spatial\.txt: a subset of complex_val\.txt, which is not beside"):
        read_compbench(tmp_path)


def test_compbench_single_file_and_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "complex_val_spatial.txt").write_text("b\n")
    splits = read_compbench(tmp_path / "complex_val_spatial.txt")
    assert [(p.id, p.category) for p in splits["val"]] == [("compbench-complex_val_spatial-0001", "complex")]
    with pytest.raises(UserError, match="no T2I-CompBench prompt file"):
        read_compbench(tmp_path / "missing")


def test_srum_records(tmp_path: Path) -> None:
    path = tmp_path / "val_comp.json"
    record = {"Question": " a dog ", "Category": "non-spatial", "Question_id": 701}
    path.write_text(json.dumps([record, {**record, "Question_id": 8902}]))
    prompts = read_srum(tmp_path)["val"]
    assert [(p.id, p.text, p.category, p.meta["question_id"]) for p in prompts] == [
        ("srum-00701", "a dog", "non_spatial", 701),
        ("srum-08902", "a dog", "non_spatial", 8902),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"Question": "a"}]', "record 1: expected Question"),
        ('[{"Question": "a", "Category": "c", "Question_id": "x"}]', "record 1: expected Question"),
        ('[{"Question": "a", "Category": "c", "Question_id": true}]', "record 1: expected Question"),
        ('[{"Question": " ", "Category": "c", "Question_id": 1}]', "record 1: its Question is empty"),
        ('[{"Question": "a", "Category": " ", "Question_id": 1}]', "record 1: its Category is empty"),
        ('[{"Question": "a", "Category": "c", "Question_id": 1}, 5]', "record 2"),
        ('{"a": 1}', "expected a list"),
        ("[{", "not valid JSON"),
    ],
)
def test_srum_bad_records_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "train_comp.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_srum(path)


def test_srum_repeated_question_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_comp.json"
    path.write_text(json.dumps([{"Question": "a", "Category": "c", "Question_id": 1}] * 2))
    with pytest.raises(UserError, match="srum-00001"):
        read_srum(path)


def test_geneval_records_have_object_phrases(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    include = [{"class": "orange", "count": 2}, {"class": "scissors", "count": 1}]
    include.append({"class": "cup", "count": 1, "color": "red", "position": ["left of", 0]})
    path.write_text(json.dumps({"tag": "position", "include": include, "prompt": "a photo"}) + "\r\n\r\n")
    (prompt,) = read_geneval(tmp_path)["test"]
    assert prompt.id == "geneval-00000"
    assert prompt.category == "position"
    assert prompt.phrases == ("an orange", "scissors", "a red cup")
    assert phrase_counts(prompt) == (2, 1, 1)
    assert prompt.meta["include"] == include
    path.write_text(json.dumps({"tag": "a", "include": [{"class": "cup", "count": "two"}], "prompt": "b"}))
    with pytest.raises(UserError, match="line 1: expected tag, prompt and include"):
        read_geneval(path)
    path.write_text('{"tag": "position", "prompt": "a photo"}\n')
    with pytest.raises(UserError, match="line 1: expected tag, prompt and include"):
        read_geneval(path)
    path.write_text("\n{\n")
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read_geneval(path)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": None},
        {"prompt": " "},
        {"tag": None},
        {"include": [{"class": "", "count": 1}]},
        {"include": []},
    ],
)
def test_geneval_fields_without_text_never_become_a_prompt(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    record = {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"}
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | change) + "\n")
    with pytest.raises(UserError, match=r"evaluation_metadata\.jsonl: line 2: "):
        read_geneval(path)


@real
def test_real_compbench(tmp_path: Path) -> None:
    splits = read_compbench(DATA / "compbench")
    counts = {s: {c: sum(p.category == c for p in splits[s]) for c in COMPBENCH_CATEGORIES} for s in splits}
    assert counts == {
        "train": dict.fromkeys(COMPBENCH_CATEGORIES, 700),
        "val": dict.fromkeys(COMPBENCH_CATEGORIES, 300),
    }
    subsets = [p.meta.get("subset") for p in splits["val"] if p.category == "complex"]
    assert [subsets.count(name) for name in ("action", "spatial", "spatialaction")] == [212, 58, 30]
    for prompts in splits.values():
        assert len({p.id for p in prompts}) == len(prompts)
        assert not [p.text for p in prompts if p.text != p.text.strip() or "\r" in p.text or "\t" in p.text]
    for split, prompts in splits.items():
        write_shards(tmp_path, split, prompts)
    reports = check_shards(tmp_path)
    assert (reports["train"].prompts, reports["val"].prompts) == (5600, 2400)


@real
def test_real_srum_records_are_the_compbench_prompts() -> None:
    splits = read_srum(DATA / "srum_prompts")
    assert {split: len(prompts) for split, prompts in splits.items()} == {"train": 6234, "val": 2670}
    distinct = {split: len({p.text for p in prompts}) for split, prompts in splits.items()}
    assert distinct == {"train": 5559, "val": 2395}
    assert "non_spatial" in {p.category for p in splits["val"]}
    assert "non-spatial" not in {p.category for p in splits["val"]}
    compbench = {p.text for p in read_compbench(DATA / "compbench")["val"]}
    assert {p.text for p in splits["val"]} <= compbench
    assert len({p.id for prompts in splits.values() for p in prompts}) == 6234 + 2670


@real
def test_real_geneval() -> None:
    prompts = read_geneval(DATA / "geneval")["test"]
    tags = {tag: sum(p.category == tag for p in prompts) for tag in {p.category for p in prompts}}
    assert tags == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    # Where nothing is counted or placed, the prompt is its phrases joined.
    simple = [p for p in prompts if p.category in ("single_object", "two_object", "colors", "color_attr")]
    plural = [p for p in simple if "skis" in p.text or "scissors" in p.text]
    assert len(plural) < 20
    for prompt in simple:
        if prompt not in plural:
            assert prompt.text == "a photo of " + " and ".join(prompt.phrases)
