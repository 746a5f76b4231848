"""Benchmarks named by the root of a clone of their project: the file inside is found, or the places are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.prompts.importers import IMPORTERS
from tests.unit.evaluation.test_question_benchmarks import RECORD, ROWS, dpg_csv, unigen_csv

GENEVAL = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
GENEVAL2 = {
    "prompt": "two red dogs",
    "atom_count": 3,
    "vqa_list": [["Is there a dog?", "yes"]],
    "skills": ["object"],
}
WISE = {
    "Prompt": "a festival of lanterns",
    "Explanation": "lanterns",
    "Category": "Cultural knowledge",
    "Subcategory": "Festival",
}


def put(root: Path, place: str, text: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(text, encoding="utf-8")


def wise(root: Path, folder: str, ending: str = "") -> None:
    stems = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    for number, stem in enumerate(stems, 1):
        put(root, f"{folder}/{stem}{ending}.json", json.dumps([{**WISE, "prompt_id": number}]))


def compbench(root: Path) -> None:
    put(root, "README.md", "T2I-CompBench")
    put(root, "examples/dataset/color_train.txt", "a red car\n")
    put(root, "examples/dataset/color_val.txt", "a blue bowl\n")


def unigenbench(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    unigen_csv(root / "data", RECORD)


CHECKOUTS: dict[str, Callable[[Path], None]] = {
    "compbench": compbench,
    "compbench_yes": compbench,
    "geneval": lambda root: put(root, "prompts/evaluation_metadata.jsonl", json.dumps(GENEVAL)),
    "geneval2": lambda root: put(root, "geneval2_data.jsonl", json.dumps(GENEVAL2)),
    "wise": lambda root: wise(root, "WISE_legacy/data"),
    "wise_verified": lambda root: wise(root, "data_verified", "_verified"),
    "dpg": lambda root: put(root, "dpg_bench/dpg_bench.csv", dpg_csv(ROWS)),
    "unigenbench": unigenbench,
}


@pytest.mark.parametrize("name", CHECKOUTS)
def test_a_benchmark_takes_the_root_of_its_projects_clone(name: str, tmp_path: Path) -> None:
    CHECKOUTS[name](tmp_path / "clone")
    prompts = load_benchmark(name).read(tmp_path / "clone")
    assert prompts and all(prompt.text for prompt in prompts)
    if name in IMPORTERS:
        assert any(IMPORTERS[name](tmp_path / "clone").values())


def test_an_older_clone_of_wise_keeps_its_prompts_in_data(tmp_path: Path) -> None:
    wise(tmp_path, "data")
    assert len(load_benchmark("wise").read(tmp_path)) == 3


def test_shards_are_written_of_a_clones_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compbench(tmp_path / "clone")
    assert main(["shards", "write", "compbench", str(tmp_path / "clone"), "--out", str(tmp_path / "shards")]) == 0
    assert main(["shards", "show", str(tmp_path / "shards")]) == 0
    assert "a red car" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("compbench", ["examples/dataset"]),
        ("geneval", ["evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl"]),
        ("geneval2", ["geneval2_data.jsonl"]),
        ("wise", ["WISE_legacy/data", "data"]),
        ("dpg", ["dpg_bench.csv", "dpg_bench/dpg_bench.csv"]),
        ("unigenbench", ["test_prompts_en.csv", "data/test_prompts_en.csv"]),
        ("reasonbench", ["prompts/idiom_interpretation.json"]),
    ],
)
def test_a_folder_without_the_file_names_the_places_that_were_looked_at(
    name: str, places: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_benchmark(name).read(tmp_path)
    assert all(str(tmp_path / place) in str(caught.value) for place in places)
