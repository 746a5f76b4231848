"""Faults are drawn from (seed, number) alone, of every kind; damage changes no file that another name links to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.chaos import hook
from tests.chaos.__main__ import main
from tests.chaos.campaign import KINDS, ROUND, Record, draw
from tests.chaos.damage import CUT, EMPTY, FLIP, GONE, alter_state, damage_file, header_bytes, lose_key
from tests.chaos.doors import LAUNCHED, RANKS
from tests.chaos.recording import add_line, read_lines, rows, write_record
from tests.chaos.workshop import STEPS, Workshop, copy_tree

SHOP = Workshop(Path("chaos"), 5.0, 10.0, True, {}, "")


def test_every_kind_is_drawn_and_drawn_alike_again() -> None:
    faults = [draw(0, number, SHOP) for number in range(100)]
    assert {fault.kind for fault in faults} == set(KINDS)
    assert all(sum(fault.kind == kind for fault in faults) >= 6 for kind in KINDS)
    again = [draw(0, number, SHOP) for number in range(100)]
    assert [(f.what, f.door, f.ranks, f.moment) for f in faults] == [(f.what, f.door, f.ranks, f.moment) for f in again]
    assert [f.what for f in faults] != [draw(1, number, SHOP).what for number in range(100)]
    assert {fault.door for fault in faults} >= {RANKS, *LAUNCHED}
    assert {fault.moment.place for fault in faults if fault.moment} >= {"start-up", "step", "save", "export"}
    assert all(0 < fault.moment.step < STEPS for fault in faults if fault.moment and fault.moment.place == "save")


def test_kinds_are_chosen_by_name() -> None:
    assert {draw(3, number, SHOP, ["model", "read"]).kind for number in range(20)} == {"model", "read"}
    assert set(ROUND) == set(KINDS)


def test_without_a_disk_of_its_own_files_are_limited() -> None:
    shop = Workshop(Path("chaos"), 5.0, 10.0, False, {}, "")
    assert all(draw(0, number, shop, ["disk"]).mount is None for number in range(40))
    assert any(draw(0, number, SHOP, ["disk"]).mount is not None for number in range(40))


@pytest.mark.parametrize("how", [FLIP, CUT, EMPTY, GONE])
def test_damage_stays_in_its_own_copy(how: str, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    save_file({"a": torch.arange(8.0), "b": torch.ones(2)}, tmp_path / "from" / "x.safetensors")
    before = (tmp_path / "from" / "x.safetensors").read_bytes()
    copy_tree(tmp_path / "from", tmp_path / "to")
    damaged = tmp_path / "to" / "x.safetensors"
    damage_file(damaged, how, Random(0), header_bytes(damaged) if how == FLIP else None)
    assert (tmp_path / "from" / "x.safetensors").read_bytes() == before
    assert not damaged.exists() if how == GONE else damaged.read_bytes() != before
    if how == FLIP:
        assert damaged.read_bytes()[header_bytes(tmp_path / "from" / "x.safetensors") :] == before[-40:]


def test_a_key_is_lost(tmp_path: Path) -> None:
    save_file({"a": torch.arange(8.0), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    lose_key(tmp_path / "x.safetensors", Random(0))
    assert len(load_file(tmp_path / "x.safetensors")) == 1


def test_an_altered_state_is_json_and_says_something_else(tmp_path: Path) -> None:
    state = {"step": 4, "optimizer_steps": 4, "adam_steps": 4, "world_size": 1, "format": 2, "sha256": "0"}
    state |= {"files": [{}], "kinds": ["live"], "parameters": {}, "extra": {}}
    for seed in range(60):
        path = tmp_path / "state.json"
        path.write_text(json.dumps(state))
        alter_state(path, Random(seed))
        assert json.loads(path.read_text()) != state


def test_files_fail_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import io

    monkeypatch.setattr(io, "open", io.open)
    monkeypatch.setattr(builtins, "open", builtins.open)
    monkeypatch.setattr(os, "replace", os.replace)
    (tmp_path / "state.json").write_text("{}")
    faults = {
        "ranks": [1],
        "read": {"name": "state.*", "errno": 5, "nth": 2},
        "write": {"call": "replace", "name": "b", "errno": 28, "nth": 1},
    }
    monkeypatch.setenv(hook.VARIABLE, json.dumps(faults))
    monkeypatch.setenv("RANK", "0")
    hook.install()
    assert [(tmp_path / "state.json").read_text() for _ in range(3)] == ["{}"] * 3
    monkeypatch.setenv("RANK", "1")
    hook.install()
    assert (tmp_path / "state.json").read_text() == "{}"
    with pytest.raises(OSError, match="state.json") as caught:
        (tmp_path / "state.json").read_text()
    assert caught.value.errno == 5
    (tmp_path / "a").write_text("written")
    with pytest.raises(OSError, match="No space"):
        os.replace(tmp_path / "a", tmp_path / "b")
    os.replace(tmp_path / "a", tmp_path / "c")


def record(number: int, kind: str = "kill", outcome: str = "same", seconds: float = 1.0) -> Record:
    calls: list[list[int | None]] = [[-9], [0]]
    done = (seconds, 9.0, 60.0, 1, True, "", 0.5, "abc")
    return Record(number, 0, kind, "what", "", None, RANKS, 1, calls, outcome, [], *done)


def test_a_campaign_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    lines = tmp_path / "faults.jsonl"
    assert read_lines(lines) == []
    for number in (1, 0):
        add_line(lines, record(number))
    whole = lines.read_text()
    lines.write_text(whole + whole[:40])
    assert [found.number for found in read_lines(lines)] == [0, 1]


def test_the_record_counts_by_kind_and_says_where_it_was_made(tmp_path: Path) -> None:
    found = [record(0), record(1, seconds=4.0), record(2, "model", "refused"), record(3, "model", "FAIL")]
    kill, model, everything = rows(found)
    assert (kill["kind"], kill["faults"], kill["same"], kill["longest_seconds_to_detect"]) == ("kill", 2, 2, 4.0)
    assert (model["refused"], model["FAIL"]) == (1, 1)
    assert everything["faults"] == 4
    write_record(tmp_path / "chaos.json", found, 0)
    written = json.loads((tmp_path / "chaos.json").read_text())
    assert written["faults"] == len(written["records"]) == 4
    assert written["environment"]["hardware"]["cores"] >= 1 and "commit" in written["environment"]


def test_faults_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--faults", "5", "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert list(tmp_path.iterdir()) == []
