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
from srum_ds.rollouts.counting import tell_losses
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


def spoilt() -> Judged:
    """The second image has a pixel that is not finite, the third a token; the judge has a score of each."""
    whole = judged()
    images_NCHW, tokens = whole.samples.images_NCHW.clone(), whole.samples.tokens.clone()
    images_NCHW[1], tokens[2, 1, 0] = torch.nan, torch.inf
    scores = replace(
        whole.scores,
        global_N=torch.tensor([0.1, 0.2, 0.3, 0.4]),
        global_status_N=torch.zeros(4, dtype=torch.int64),
        by_judge={"own": torch.tensor([0.1, torch.inf, 0.3, 0.4])},
    )
    return Judged(replace(whole.samples, images_NCHW=images_NCHW, tokens=tokens), whole.regions, scores)


def test_an_image_that_is_not_finite_stays_one_and_has_no_score() -> None:
    samples: list[Any] = list(encode(spoilt(), 0, 0, 0, {}))
    assert ["finite" in json.loads(sample["json"]) for sample in samples] == [False, True, True, False]
    # A former version wrote no word of it, and a black picture.
    former = json.loads(samples[2]["json"])
    del former["finite"]
    samples[2]["json"] = json.dumps(former).encode()
    found = decode(samples, "here")
    assert found.samples.finite_N.tolist() == [True, False, False, True]
    assert found.samples.images_NCHW.isnan().flatten(1).all(dim=1).tolist() == [False, True, True, False]
    assert found.scores.global_N.isnan().tolist() == [False, True, True, False]
    assert found.scores.global_status_N.tolist() == [0, 2, 2, 0]
    assert found.scores.local_status_R.tolist() == [0, 0, 2, 1, 0] and bool(found.scores.local_R[2].isnan())
    assert found.scores.by_judge["own"].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(("given", "expected"), [("null", True), ("1e999", True), ("-1e999", True), ("0.5", False)])
def test_a_recorded_score_that_is_no_number_has_failed(given: str, expected: bool) -> None:
    samples: list[Any] = list(encode(judged(), 0, 0, 0, {}))
    first = samples[0]["json"].decode()
    assert '"global":{"score":0.10000000149011612,"status":"parsed"' in first
    samples[0]["json"] = first.replace("0.10000000149011612", given, 1).encode()
    scores = decode(samples, "here").scores
    assert (bool(scores.global_N[0].isnan()), int(scores.global_status_N[0]) == 2) == (expected, expected)


@pytest.mark.parametrize(
    "key, value",
    [
        ("missing", 1.5),
        ("missing", True),
        ("judges", {"own": -2.0}),
        ("requests", {"ok": 10**12}),
        ("requests", {"ok": -1}),
        ("looked", {"asked": 0.5}),
    ],
)
def test_a_number_that_cannot_have_been_is_named(key: str, value: object) -> None:
    samples: list[Any] = list(encode(judged(), 0, 0, 0, {}))
    record = json.loads(samples[0]["json"])
    samples[0]["json"] = json.dumps(record | {key: value}).encode()
    with pytest.raises(UserError, match=r"here: not a sample .*(share of missing|score of judge|number of requests)"):
        decode(samples, "here")


def test_what_no_version_writes_is_named() -> None:
    samples: list[Any] = list(encode(judged(), 0, 0, 0, {}))
    whole = samples[0]["json"]
    for broken in (whole.replace(b"0.10000000149011612", b"NaN"), whole.replace(b'"box":[', b'"box":[1e999,')):
        with pytest.raises(UserError, match="not a sample of a rollout"):
            decode([samples[0] | {"json": broken}, *samples[1:]], "here")


def test_what_was_lost_is_told_and_too_much_of_it_is_refused() -> None:
    told: list[str] = []
    tell_losses(3, [judged(), spoilt()], 0.5, "look", told.append)
    lost = "step 3: 3 of 8 images have no score, 2 of them since they are not finite; nothing is learnt from them"
    assert told == [lost]
    with pytest.raises(UserError, match=r"step 3: 2 of 4 pictures are not finite.*judge\.max_failed_share=40%"):
        tell_losses(3, [spoilt()], 0.4, "look", told.append)
    told.clear()
    whole = judged()
    whole.scores.global_N[1] = 0.0
    tell_losses(3, [whole], 0.0, "look", told.append)
    assert not told


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


@pytest.mark.parametrize("key", ["prompts_per_step", "images_per_prompt"])
def test_a_header_that_asks_for_more_than_is_there_is_named_at_once(folder: Path, key: str) -> None:
    """Before there is memory for what it asks for, which is more than any machine has."""
    path = folder / "index.jsonl"
    head, *lines = path.read_text().splitlines(keepends=True)
    header = json.loads(head) | {key: 2**40}
    path.write_text("".join([json.dumps(header) + "\n", *lines]))
    with pytest.raises(UserError, match="step 0 has no sample s000000-"):
        RolloutReader(folder).batches(0, 2)


def test_a_setting_that_is_no_number_is_named(folder: Path) -> None:
    """It would differ from itself, so that nobody could go on with the folder."""
    path = folder / "index.jsonl"
    head, *lines = path.read_text().splitlines(keepends=True)
    header = json.loads(head) | {"settings": {"rollout.text_scale": float("nan")}}
    path.write_text("".join([json.dumps(header) + "\n", *lines]))
    with pytest.raises(UserError, match="not an index of rollouts"):
        RolloutReader(folder)


def test_a_sample_that_is_none_is_named() -> None:
    samples: list[dict[str, Any]] = [dict(sample) for sample in encode(judged(), 7, 0, 3, {})]
    for broken in ({"png": b"no picture"}, {"json": b"{}"}, {"safetensors": b"0123456789"}):
        with pytest.raises(UserError, match=r"shard 5: (not a sample of a rollout|the image of prompt 'p0')"):
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
