"""Rollout shards: what is written reads back bit for bit, and what is damaged or foreign is named."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from srum_ds.common.errors import UserError
from srum_ds.rollouts.codec import decode, encode
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter, load_index
from srum_ds.types import Judged, Regions, Samples, Scores, TokenSpec
from tests.support.paths import GOLDEN
from tests.support.rollouts import HEADER, judged


def assert_same(a: Any, b: Any) -> None:
    """Equal in every field, NaN equal to NaN, dtypes included: also in fields that are added later."""
    assert type(a) is type(b)
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and x.shape == y.shape, field.name
            assert torch.equal(torch.nan_to_num(x, nan=9.0), torch.nan_to_num(y, nan=9.0)), field.name
        elif isinstance(x, Samples | Regions | Scores):
            assert_same(x, y)
        else:
            assert x == y, field.name
            if field.name == "prompts":
                assert [p.epoch for p in x] == [p.epoch for p in y]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = RolloutWriter(tmp_path / "rollouts", HEADER)
    for step in range(3):
        writer.write(step, policy=step // 2, batches=[judged(0, step), judged(2, step)])
    return writer.folder


def test_a_sample_reads_back_bit_for_bit() -> None:
    whole = judged()
    samples = list(encode(whole, 7, 0, 3, {}))
    assert_same(decode([s for s in samples], "here"), whole)  # type: ignore[misc]
    alone = decode(samples[2:], "here")  # type: ignore[arg-type]
    assert alone.samples.prompts == whole.samples.prompts[1:]
    assert alone.regions.owner_R.tolist() == [0, 1, 1]
    assert [(failure.picture, failure.region) for failure in alone.scores.failures] == [(0, 0)]
    assert alone.scores.raw == ("reply 2", "reply 3", "reply 6", "reply 7", "reply 8")


def test_what_each_of_several_judges_said_reads_back() -> None:
    one = judged()
    said = {"own": torch.tensor([0.5, torch.nan, 0.25, 1.0]), "http": torch.tensor([1.0, 0.0, torch.nan, -1.0])}
    several = replace(one, scores=replace(one.scores, by_judge=said))
    found = decode(list(encode(several, 0, 0, 0, {})), "here").scores.by_judge  # type: ignore[arg-type]
    assert list(found) == ["own", "http"]
    for name, score_N in said.items():
        assert torch.equal(found[name].nan_to_num(9), score_N.nan_to_num(9))
    assert decode(list(encode(one, 0, 0, 0, {})), "here").scores.by_judge == {}  # type: ignore[arg-type]


def test_a_picture_without_regions_and_a_judge_without_opinion() -> None:
    one = judged()
    none = Regions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    empty = torch.zeros(0)
    whole = torch.zeros(0, dtype=torch.int64)
    scores = replace(
        one.scores, local_R=empty, local_status_R=whole, phrase_R=whole, missing_N=None, raw=one.scores.raw[:4]
    )
    scores = replace(scores, status_Q=None, failures=())
    bare = Judged(one.samples, none, scores)
    assert_same(decode(list(encode(bare, 0, 0, 0, {})), "here"), bare)  # type: ignore[arg-type]


def test_any_number_of_ranks_reads_the_same_in_the_same_order(folder: Path) -> None:
    reader = RolloutReader(folder)
    one = reader.batches(1, 2)
    assert_same(one[0], judged(0, 1))
    assert_same(one[1], judged(2, 1))
    for rank in range(2):
        (half,) = reader.batches(1, 2, rank, 2)
        assert_same(half, one[rank])
    quarters = [reader.batches(1, 2, rank, 4)[0] for rank in range(4)]
    latents = torch.cat([q.samples.tokens for q in quarters])
    assert torch.equal(latents, torch.cat([b.samples.tokens for b in one]))
    assert [reader.policy(step) for step in range(3)] == [0, 0, 1]


def test_the_tars_are_webdatasets_and_a_sample_says_who_made_it(folder: Path) -> None:
    (shard,) = load_index(folder).steps[2].shards
    samples = list(webdataset.WebDataset(str(folder / shard.file), shardshuffle=False, empty_check=False))
    assert len(samples) == 8
    record = json.loads(samples[5]["json"])
    assert (record["step"], record["place"], record["sample"]) == (2, 2, 1)
    assert record["seed"] == [3, "rollout", 2, "p2", 1]
    assert record["global"] == {"score": None, "status": "failed", "raw": "reply 1"}
    assert record["made"]["model"] == "f" * 64 and record["made"]["policy"] == 1
    assert record["made"]["judge"]["global_template"]["sha256"] == "a" * 64
    with tarfile.open(folder / shard.file) as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"json", "png", "safetensors"}


def test_the_same_rollouts_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = RolloutWriter(tmp_path / "again", HEADER)
    again.write(0, policy=0, batches=[judged(0, 0), judged(2, 0)])
    name = "step-000000-rank-00000.tar"
    assert (folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_a_writer_goes_on_after_whole_steps_only(folder: Path) -> None:
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole[:-20])
    writer = RolloutWriter(folder, HEADER)
    assert sorted(writer.index.steps) == [0, 1]
    assert not (folder / "step-000002-rank-00000.tar").exists()
    writer.write(2, policy=1, batches=[judged(0, 2), judged(2, 2)])
    assert index.read_bytes() == whole
    assert sorted(RolloutWriter(folder, HEADER, keep=range(1)).index.steps) == [0]
    assert [path.name for path in folder.glob("*.tar")] == ["step-000000-rank-00000.tar"]


def test_other_settings_do_not_go_on_in_a_folder(folder: Path) -> None:
    other = replace(HEADER, seed=4, settings={"rollout.text_scale": 2.0})
    with pytest.raises(UserError, match=r"seed was 3 and is now 4; rollout\.text_scale was 1\.25 and is now 2\.0"):
        RolloutWriter(folder, other)
    RolloutWriter(folder, replace(HEADER, made_by={"package": "srum-ds 1"}))


def test_damage_is_named(folder: Path) -> None:
    reader = RolloutReader(folder)
    reader.check(range(3))
    with pytest.raises(UserError, match=r"2 of the steps 0 to 4 .* the first being 3.*train\.steps=3"):
        reader.check(range(5))
    path = folder / "step-000001-rank-00000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    reader.check(range(3))
    with pytest.raises(UserError, match=r"step-000001.*changed since it was written"):
        reader.batches(1, 2)
    assert reader.batches(0, 2)
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"step-000001.*truncated"):
        reader.check(range(3))
    path.unlink()
    with pytest.raises(UserError, match=r"step-000001.*missing"):
        reader.check(range(3))
    with pytest.raises(UserError, match="srum-ds rollout"):
        RolloutReader(folder.parent)
    (folder / "index.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not an index of rollouts"):
        RolloutReader(folder)


def test_a_sample_that_is_none_is_named() -> None:
    samples: list[dict[str, Any]] = [dict(sample) for sample in encode(judged(), 7, 0, 3, {})]
    for broken in ({"png": b"no picture"}, {"json": b"{}"}, {"safetensors": b"0123456789"}):
        with pytest.raises(UserError, match=r"shard 5: not a sample of a rollout"):
            decode([samples[0] | broken, *samples[1:]], "shard 5")


def test_a_folder_of_format_1_reads_as_it_did_and_goes_on_as_format_2(tmp_path: Path) -> None:
    """tests/golden/rollouts_v1 was written by the last version of format 1 from the same ``judged`` samples."""
    folder = tmp_path / "old"
    shutil.copytree(GOLDEN / "rollouts_v1", folder)
    settings = {"rollout.text_scale": 1.25, "judge.global_template": "shapes_global"}
    header = replace(HEADER, settings=settings)
    reader = RolloutReader(folder)
    assert reader.header == header
    for found, expected in zip(reader.batches(0, 2), (judged(0), judged(2)), strict=True):
        assert_same(replace(found, scores=replace(found.scores, status_Q=None)), _without_requests(expected))
    writer = RolloutWriter(folder, header)
    writer.write(1, 0, [judged(4), judged(6)])
    again = RolloutReader(folder)
    assert json.loads((folder / "index.jsonl").read_text().splitlines()[0])["version"] == 2
    assert torch.equal(again.batches(0, 2)[0].samples.tokens, judged(0).samples.tokens)
    assert torch.equal(again.batches(1, 2)[1].samples.tokens, judged(6).samples.tokens)


def test_codes_are_kept_as_codes(tmp_path: Path) -> None:
    header = replace(HEADER, tokens=TokenSpec("discrete", 11))
    drawn = judged()
    codes = torch.tensor([[3, 10], [0, 1], [7, 7], [2, 5]])
    coded = replace(drawn, samples=replace(drawn.samples, tokens=codes))
    RolloutWriter(tmp_path / "codes", header).write(0, 0, [coded, coded])
    reader = RolloutReader(tmp_path / "codes")
    assert reader.header.tokens == TokenSpec("discrete", 11)
    found = reader.batches(0, 2)[0].samples.tokens
    assert found.dtype == torch.int64 and torch.equal(found, codes)


def _without_requests(judged: Judged) -> Judged:
    """How requests ended is kept by kind and not in order."""
    return replace(judged, scores=replace(judged.scores, status_Q=None))
