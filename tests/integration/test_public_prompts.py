"""Phrases and regions of a recipe on the embedded model, and a run on prompts that say nothing of their objects."""

from __future__ import annotations

import json
from pathlib import Path

from srum_ds.prompts.importers import read_compbench
from srum_ds.prompts.shards import write_shards
from srum_ds.rollouts.fixed_records import read_showings
from tests.support.ranks import run_ranks
from tests.support.runs import metrics, short_run


def test_a_run_on_a_public_prompt_set_asks_splits_and_remembers(tmp_path: Path) -> None:
    """Prompts of T2I-CompBench's form, in the tiny model's alphabet if not in its world; two steps."""
    source = tmp_path / "source"
    source.mkdir()
    texts = ["a red bird and a brown giraffe", "three horses and four bottles", "a dog next to a key", "a blue bowl"]
    (source / "color_train.txt").write_text("\n".join(texts) + "\n")
    (source / "color_val.txt").write_text(texts[0] + "\n")
    shards = tmp_path / "shards"
    for split, prompts in read_compbench(source).items():
        write_shards(shards, split, prompts)
    run_dir = tmp_path / "run"
    words = ["train.steps=2", "regions.phrases_tokens=4", "log.tensorboard=true", "log.image_every=1"]
    run_ranks(1, short_run(shards, run_dir, "train.save_every=4", *words))
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["regions"] > 0 for line in lines)
    assert all(line["region_answers"] == line["region_failures"] == 0 for line in lines)
    assert all(line["phrases_split"] == 4 for line in lines)
    entries = json.loads((run_dir / "phrases/rank-00000.json").read_text())["entries"]
    assert set(entries) == set(texts)
    assert all(entry["reply"] is not None for entry in entries.values())
    if entries[texts[1]]["source"] == "split":
        assert (entries[texts[1]]["phrases"], entries[texts[1]]["counts"]) == (["a horse", "a bottle"], [3, 4])
    # The base is shown before the first step, and the run ends with its report.
    assert [shown.showing.step for shown in read_showings(run_dir) if shown.showing] == [0, 1, 2]
    report = (run_dir / "report.html").read_text()
    assert "Too little to say" in report and f"before training: {texts[0]}" in report and "· finished ·" in report
