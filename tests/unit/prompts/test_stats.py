"""`srum-ds shards stats`: what it counts of small sets whose figures are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.prompts.shards import write_shards
from srum_ds.prompts.stats import Spread, prompt_stats
from srum_ds.types import Prompt

TRAIN = [
    Prompt("a", "a red circle", "color", ("a red circle",)),
    Prompt("b", "A  red circle", "color"),
    Prompt("c", "two green squares and one dog", "numeracy", ("two green squares", "one dog")),
]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path, "train", TRAIN)
    write_shards(tmp_path, "test", [Prompt("d", "a red Circle"), Prompt("e", "a hat")])
    return tmp_path


def test_lengths_phrases_and_texts_that_come_again_are_counted(shards: Path) -> None:
    stats = prompt_stats(shards)
    train, test = stats.splits["train"], stats.splits["test"]
    assert (train.prompts, dict(train.categories), train.repeated) == (3, {"color": 2, "numeracy": 1}, 1)
    assert train.words == Spread(3, 3, 4.0, 6)
    assert train.characters == Spread(12, 13, 18.0, 29)
    assert (train.with_phrases, train.phrases, train.distinct_phrases) == (2, Spread(1, 1.5, 1.5, 2), 3)
    assert (test.with_phrases, test.phrases, test.repeated) == (0, None, 0)
    (shared,) = stats.shared
    assert {shared.first, shared.second} == {"train", "test"} and shared.texts == 1
    # Of the second split: one prompt of "test", or both that train has of that text.
    assert shared.prompts == (1 if shared.second == "test" else 2) and shared.examples == ("a red circle",)


def test_the_command_says_it_in_lines_and_as_json(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "stats", str(shards)]) == 0
    said = capsys.readouterr().out
    assert "train: 3 prompts, 1 of them of a text that stood before" in said
    assert "categories  color 2, numeracy 1" in said and "words       3 to 6, median 3, mean 4.0" in said
    assert "phrases     2 prompts name 1 to 2, median 1.5, mean 1.5; 3 different ones" in said
    assert "repeats 1 texts of" in said and "'a red circle'" in said
    assert main(["shards", "stats", str(shards), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["words"] == {"smallest": 3, "median": 3, "mean": 4.0, "largest": 6}
    assert facts["splits"]["test"]["phrases"] is None and facts["shared"][0]["texts"] == 1
    assert main(["shards", "stats", str(shards / "none")]) == 2


def test_splits_without_a_text_in_common_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, "train", [Prompt("a", "a hat")])
    write_shards(tmp_path, "test", [Prompt("b", "a cat")])
    assert main(["shards", "stats", str(tmp_path)]) == 0
    assert "no text stands in two splits" in capsys.readouterr().out
