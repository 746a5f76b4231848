"""Prompt shards and their stateless order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset

from srum_ds.commands.main import main
from srum_ds.commands.shards import write_prompt_set
from srum_ds.common.errors import UserError
from srum_ds.prompts.reader import PromptReader, permutation
from srum_ds.prompts.shards import (
    check_shards,
    load_index,
    prompt_from_json,
    prompt_to_json,
    rebuild_index,
    write_shards,
)
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.vocabulary import KINDS
from srum_ds.worlds.shapes.world import ShapePrompt
from tests.support.paths import PROMPTS


def make_prompts(count: int) -> list[Prompt]:
    return [
        Prompt(f"p-{i:04d}", f"a caf\u00e9 {i}", ("color", "shape")[i % 2], ("a cup",), {"counts": [i]})
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path, "train", make_prompts(23), shard_size=10)
    return tmp_path


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_written_prompts_come_back_whole(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "index.json",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    reader = PromptReader(folder, "train")
    assert len(reader) == 23
    assert list(reader) == make_prompts(23)
    reader.close()
    assert reader[22].id == "p-0022"


def test_webdataset_reads_the_shards_in_order(folder: Path) -> None:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ids(make_prompts(23))
    assert json.loads(samples[3]["json"])["phrases"] == ["a cup"]


def test_the_same_prompts_give_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_shards(other, "train", make_prompts(23), shard_size=10)
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_other_splits_stay_and_a_split_is_replaced_only_when_forced(folder: Path) -> None:
    write_shards(folder, "test", make_prompts(3))
    before = (folder / "train-000000.tar").read_bytes()
    with pytest.raises(UserError, match="already holds the split 'train'.*--force"):
        write_shards(folder, "train", make_prompts(2))
    assert (folder / "train-000000.tar").read_bytes() == before
    write_shards(folder, "train", make_prompts(2), force=True)
    assert sorted(p.name for p in folder.glob("*.tar")) == ["test-000000.tar", "train-000000.tar"]
    reports = check_shards(folder)
    assert {name: report.prompts for name, report in reports.items()} == {"test": 3, "train": 2}


@pytest.mark.parametrize(
    ("prompts", "split", "message"),
    [
        ([], "train", "no prompts"),
        ([Prompt("a.b", "x")], "train", "'a.b'"),
        ([Prompt("a", "x"), Prompt("a", "y")], "train", "occurs twice"),
        ([Prompt("a", "x")], "../up", "can name a split"),
        ([Prompt("a", "x"), Prompt("b", " ")], "train", "prompt 'b' is empty"),
        ([Prompt("a", "x"), Prompt("b", "half \ud83d")], "train", r"prompt 'b': character 1 is \\ud83d"),
        ([Prompt("a", "x", meta={"note": "\ud83d"})], "train", r"prompt 'a': character 1 is \\ud83d"),
        ([Prompt("a", "x", meta={"share": float("nan")})], "train", "prompt 'a': its meta cannot be written as JSON"),
    ],
)
def test_prompts_that_cannot_be_a_shard_are_refused(
    tmp_path: Path, prompts: list[Prompt], split: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards(tmp_path / "out", split, prompts)
    assert not (tmp_path / "out").exists()


def test_report_counts_what_is_there(folder: Path) -> None:
    report = check_shards(folder)["train"]
    assert (report.shards, report.prompts) == (3, 23)
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert report.categories == {"color": 12, "shape": 11}


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    for action in (lambda: check_shards(folder), lambda: PromptReader(folder, "train")):
        with pytest.raises(UserError, match=r"train-000001.tar: missing \(expected \d+ bytes\)") as error:
            action()
        assert "srum-ds shards write" in str(error.value)


def test_truncated_shard_is_named_with_both_sizes(folder: Path) -> None:
    path = folder / "train-000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:700])
    for action in (lambda: check_shards(folder), lambda: PromptReader(folder, "train")):
        message = f"train-000002.tar: truncated: expected {len(data)} bytes, found 700"
        with pytest.raises(UserError, match=message):
            action()


def test_a_reader_leaves_no_shard_open(folder: Path) -> None:
    def opened() -> int:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum(link.is_symlink() and os.readlink(link).endswith(".tar") for link in links)

    before = opened()
    with PromptReader(folder, "train") as reader:
        assert reader[0] and opened() == before + 1
    assert opened() == before


def test_shard_truncated_while_open_is_named(folder: Path) -> None:
    reader = PromptReader(folder, "train")
    assert reader[4].id == "p-0004"
    with open(folder / "train-000000.tar", "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match=r"train-000000.tar: p-0005.json at byte \d+: truncated"):
        reader[5]


def test_changed_bytes_are_found(folder: Path) -> None:
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b'"id"')
    data[place : place + 4] = b'"xd"'
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-000000.tar: changed: expected sha256"):
        check_shards(folder)
    reader = PromptReader(folder, "train")
    for _ in range(2):
        with pytest.raises(UserError, match="train-000000.tar: changed: expected sha256"):
            reader[0]
    assert reader[10].id == "p-0010", "another tar is as it was"


def test_one_flipped_bit_of_a_prompt_is_refused(folder: Path) -> None:
    path = folder / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"a caf") + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-000001.tar: changed: expected sha256"):
        list(PromptReader(folder, "train"))


def test_an_empty_split_is_refused(folder: Path) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    index["splits"]["train"] = {"count": 0, "shards": []}
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="the split 'train' is empty"):
        PromptReader(folder, "train")


def test_foreign_tar_behind_a_matching_index_is_found(folder: Path) -> None:
    # The same size and a true hash, but members elsewhere than the index says.
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["samples"][0][1] += 512
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not where the index says"):
        check_shards(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=99), "version 99"),
        (lambda index: index["splits"]["train"].pop("shards"), "not a complete index"),
        (lambda index: index["splits"]["train"].update(count=24), "counts 24 prompts but lists 23"),
        (lambda index: index["splits"]["train"]["shards"][0].update(file="../x"), "not a plain file name"),
        (lambda index: index["splits"]["train"]["shards"][0].update(size=float("inf")), "a shard of inf bytes"),
        (lambda index: index["splits"]["train"]["shards"][0]["samples"][0].__setitem__(1, 2**70), "in a shard of"),
    ],
)
def test_broken_index_is_named(folder: Path, change: object, message: str) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)  # type: ignore[operator]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"index.json.*{message}"):
        load_index(folder)


def test_a_lost_index_is_rebuilt(folder: Path) -> None:
    write_shards(folder, "test", make_prompts(3))
    before = (folder / "index.json").read_bytes()
    with pytest.raises(UserError, match="index.json is there already"):
        rebuild_index(folder)
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match="srum-ds shards index"):
        PromptReader(folder, "train")
    assert main(["shards", "index", str(folder)]) == 0
    assert (folder / "index.json").read_bytes() == before
    (folder / "train-000001.tar").rename(folder / "train-000007.tar")
    with pytest.raises(UserError, match="train-000001.tar: missing"):
        rebuild_index(folder, force=True)
    (folder / "train-000007.tar").write_bytes((folder / "train-000000.tar").read_bytes())
    (folder / "train-000007.tar").rename(folder / "train-000001.tar")
    with pytest.raises(UserError, match="the split 'train' holds the prompt 'p-0000' twice"):
        rebuild_index(folder, force=True)


def test_a_tar_packed_again_by_another_tool_can_be_indexed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        data = prompt_to_json(Prompt("a", "a cup"))
        member = tarfile.TarInfo("./a.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    rebuild_index(tmp_path)
    assert ids(list(PromptReader(tmp_path, "train"))) == ["a"]


def test_no_index_or_split(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="no folder of prompt shards"):
        PromptReader(tmp_path_factory.mktemp("empty"), "train")
    with pytest.raises(UserError, match="no split 'tset'; there are train"):
        PromptReader(folder, "tset")
    (folder / "index.json").write_text('{"format": "srum-')
    with pytest.raises(UserError, match="index.json: cannot be read"):
        load_index(folder)


def test_a_member_that_is_no_prompt_is_refused() -> None:
    number_for_phrase = prompt_to_json(Prompt("a", "t")).replace(b"[]", b"[1]")
    half = prompt_to_json(Prompt("a", "t")).replace(b'"t"', b'"\\ud83d"')
    for data in (b"[1]", b'{"id":"a"}', b"\x80\x04.", number_for_phrase, half, b"[" * 100000):
        with pytest.raises(UserError, match="here"):
            prompt_from_json(data, "here")


def test_pickles_in_a_shard_are_never_opened(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", make_prompts(1))
    path = tmp_path / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("p-0000.pyd")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    index = json.loads((tmp_path / "index.json").read_text())
    shard = index["splits"]["train"]["shards"][0]
    shard.update(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="unexpected member 'p-0000.pyd'"):
        check_shards(tmp_path)


def test_every_epoch_sees_every_prompt_once_in_its_own_order(folder: Path) -> None:
    reader = PromptReader(folder, "train")
    # 23 prompts, 5 a step: epochs end in the middle of a batch.
    seen = [prompt for step in range(23) for prompt in ids(reader.batch(step, 5, seed=1))]
    epochs = [seen[start : start + 23] for start in range(0, 115, 23)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(ids(make_prompts(23)))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != ids(make_prompts(23))


def test_a_batch_may_span_several_epochs(folder: Path) -> None:
    reader = PromptReader(folder, "train")
    batch = ids(reader.batch(1, 60, seed=1))
    flat = [prompt for step in range(8) for prompt in ids(reader.batch(step, 15, seed=1))]
    assert batch == flat[60:120]
    # Indices 60 to 119 of 23 prompts: the end of epoch 2, all of 3 and 4, the start of 5.
    assert [p.epoch for p in reader.batch(1, 60, seed=1)] == [2] * 9 + [3] * 23 + [4] * 23 + [5] * 5


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_together_see_what_one_sees(folder: Path, world_size: int) -> None:
    one = PromptReader(folder, "train")
    ranks = [PromptReader(folder, "train") for _ in range(world_size)]
    for step in range(9):
        parts = [ids(r.batch(step, 6, 7, rank, world_size)) for rank, r in enumerate(ranks)]
        assert sum(parts, []) == ids(one.batch(step, 6, 7))
        assert {len(part) for part in parts} == {6 // world_size}


def test_any_step_can_be_asked_for_first(folder: Path) -> None:
    in_order = PromptReader(folder, "train")
    steps = [ids(in_order.batch(step, 4, seed=3)) for step in range(30)]
    for step in (29, 5, 6, 0, 17):
        assert ids(PromptReader(folder, "train").batch(step, 4, seed=3)) == steps[step]


def test_the_order_depends_on_the_seed_and_is_pinned() -> None:
    assert permutation(8, 0, 0).tolist() != permutation(8, 1, 0).tolist()
    assert permutation(8, 0, 0).tolist() != permutation(8, 0, 1).tolist()
    assert sorted(permutation(8, -1, 0).tolist()) == list(range(8))
    # A change here reorders every run that resumes: it must be a decision.
    assert permutation(8, 1234, 2).tolist() == [5, 4, 7, 3, 6, 1, 2, 0]


def test_prompts_that_cannot_be_divided_are_an_error(folder: Path) -> None:
    reader = PromptReader(folder, "train")
    with pytest.raises(UserError, match="prompts_per_step=5 cannot be divided among 2 ranks"):
        reader.batch(0, 5, 0, 0, 2)
    with pytest.raises(UserError, match="prompts_per_step=0"):
        reader.batch(0, 0, 0)


SHIPPED = PROMPTS


def test_shipped_prompts_are_whole_and_what_the_command_writes(tmp_path: Path) -> None:
    reports = check_shards(SHIPPED)
    assert reports["test"].categories == dict.fromkeys(KINDS, 200)
    assert reports["validation"].categories == dict.fromkeys(KINDS, 100)
    assert reports["train"].categories == dict.fromkeys(KINDS, 666)
    assert write_prompt_set("shapes", None, tmp_path) == reports
    for path in SHIPPED.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_shipped_prompts_say_what_to_check_and_are_held_out() -> None:
    meanings: dict[str, set] = {}
    for split in ("train", "validation", "test"):
        meanings[split] = set()
        for prompt in PromptReader(SHIPPED, split):
            world = ShapePrompt.from_meta(prompt.meta)
            assert (world.text(), world.phrases(), world.kind) == (
                prompt.text,
                prompt.phrases,
                prompt.category,
            )
            assert len(prompt.meta["counts"]) == len(prompt.phrases)
            assert sum(prompt.meta["counts"]) == len(world.slots)
            meanings[split].add(world.meaning())
    assert not meanings["train"] & meanings["validation"]
    assert not meanings["train"] & meanings["test"]
    assert not meanings["validation"] & meanings["test"]


def test_evaluations_take_as_many_of_each_kind_from_any_multiple() -> None:
    reader = PromptReader(SHIPPED, "test")
    kinds = Counter(reader[i].category for i in range(900))
    assert kinds == dict.fromkeys(KINDS, 150)


def test_write_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown kind of prompts 'shape'.*did you mean 'shapes'"):
        write_prompt_set("shape", None, tmp_path)
    with pytest.raises(UserError, match="give its path"):
        write_prompt_set("srum", None, tmp_path)
    with pytest.raises(UserError, match="drawn, not read"):
        write_prompt_set("shapes", tmp_path, tmp_path)
    write_prompt_set("shapes", None, tmp_path, sizes={"test": 6})
    # Nothing is written when one of the splits is there already.
    with pytest.raises(UserError, match="already holds test; .*--force"):
        write_prompt_set("shapes", None, tmp_path, sizes={"train": 6, "test": 12})
    assert {name: report.prompts for name, report in check_shards(tmp_path).items()} == {"test": 6}
